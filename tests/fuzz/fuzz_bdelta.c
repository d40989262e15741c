/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_bdelta.c: libFuzzer target for .bdelta files: an input is a whole file, opened over the tiny base
 * of tests/golden/bdelta/.
 *
 * What opens and fits is read in two ways, which must agree, and now and then verified; what verifies
 * must be readable. The mutator changes the manifest and the stored tensors and then makes sizes,
 * offsets, hash and compression right again, so that changes get past the first checks. Deltas are
 * opened by name, so the file lies in /dev/shm or /tmp. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "buffer.h"
#include "paths.h"
#include "summary.h"
#include "verify.h"
#include "view.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
/* libFuzzer's; not there when a corpus is only replayed. */
__attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

#define MAX_PARTS 64
#define MAX_TEXT ((size_t)1 << 16)
#define MAX_FILE ((uint64_t)1 << 20) /* longer ones are read in part */

static char path[64] = "/dev/shm/fuzz-bdelta-XXXXXX";
static int fd = -1;
static struct bd_base *base;
static struct bd_scratch *scratch;

static void require(bool condition, const char *what, const char *text)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_bdelta: %s: %s\n", what, text);
	abort();
}

static void remove_file(void)
{
	unlink(path);
}

static void prepare(void)
{
	char golden[4096] = __FILE__, *slash = strrchr(golden, '/');
	struct bd_error err = { 0 };

	fd = mkstemp(path);
	if (fd < 0) {
		strcpy(path, "/tmp/fuzz-bdelta-XXXXXX");
		fd = mkstemp(path);
	}
	require(fd >= 0, "no temporary file", path);
	atexit(remove_file);
	strcpy(slash ? slash : golden, "/../golden/bdelta/base");
	require(bd_base_open(&base, golden, &err) == 0, "run it in the root of the repository", err.text);
	scratch = bd_scratch_new();
}

static void check_entries(const struct bd_delta *d)
{
	for (size_t f = 0; f < d->file_count; f++) {
		const struct bd_delta_file *file = &d->files[f];

		require(bd_path_is_safe(file->name, strlen(file->name)), "file name", file->name);
		require(f == 0 || strcmp(d->files[f - 1].name, file->name) < 0, "order", file->name);
		require((file->st == NULL) == (file->stored != NULL), "kind", file->name);
		for (size_t i = 0; file->st && i < file->st->count; i++) {
			const struct bd_entry *e = &file->entries[i];

			require(e->tensor == &file->st->tensors[i], "tensor", e->tensor->name);
			require(e->planes <= 8 && (e->planes > 0) == (e->sign != NULL), "planes",
				e->tensor->name);
			require((e->head == BD_SIGN) == (e->sign != NULL), "head", e->tensor->name);
			require((e->encoding == BD_EXACT) == (e->exact != NULL), "exact", e->tensor->name);
			if (e->sign)
				require(e->scales + e->planes * (e->rows + e->cols) <= d->scales->count &&
						e->rows * e->cols <= e->tensor->count && e->rows && e->cols,
					"scales", e->tensor->name);
		}
	}
}

/* Some of a file, in reads of `step` bytes; NULL where one fails. */
static char *read_file(struct bd_view *v, size_t index, uint64_t size, size_t step)
{
	char *data = malloc(size + 1);
	struct bd_error err = { 0 };

	for (uint64_t at = 0; data && at < size; at += step) {
		size_t want = size - at < step ? (size_t)(size - at) : step;
		ssize_t n = bd_view_read(v, index, data + at, want, at, scratch, &err);

		if (n < 0) {
			require(n == err.code && *err.text, "no message", v->files[index].name);
			free(data);
			return NULL;
		}
		require((size_t)n == want, "short read", v->files[index].name);
	}
	return data;
}

/* False where something could not be read. */
static bool read_all(struct bd_view *v, unsigned how)
{
	bool all = true;

	for (size_t f = 0; f < v->file_count; f++) {
		uint64_t size = v->files[f].size < MAX_FILE ? v->files[f].size : MAX_FILE;
		char *one, *two, beyond;

		if (bd_view_acquire(v, f, NULL) < 0) {
			all = false;
			continue;
		}
		one = read_file(v, f, size, 1 + how % 97);
		two = read_file(v, f, size, 4096 + how % 4096);
		require((one == NULL) == (two == NULL), "fails in one way only", v->files[f].name);
		require(!one || memcmp(one, two, size) == 0, "reads differ", v->files[f].name);
		all = all && one;
		require(bd_view_read(v, f, &beyond, 1, v->files[f].size, scratch, NULL) == 0, "no end",
			v->files[f].name);
		free(one);
		free(two);
		bd_view_release(v, f);
	}
	return all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bd_error err = { 0 };
	struct bd_delta *d = NULL;
	struct bd_view *v = NULL;
	struct bd_summary summary;
	struct bd_watch watch = { 0 };
	unsigned how = 0;
	bool whole = false, readable;

	if (fd < 0)
		prepare();
	for (size_t i = 0; i < size; i += 1 + size / 64)
		how = how * 31 + data[i];
	require(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size, "write", path);
	if (bd_delta_open(&d, path, &err) < 0) {
		require(!d && err.code < 0 && strstr(err.text, path), "message", err.text);
		return 0;
	}
	check_entries(d);
	require(bd_summary_of(d, &summary, &err) == 0, "summary", err.text);
	if (bd_view_open(&v, d, base, &err) < 0) {
		require(strstr(err.text, path) != NULL, "message", err.text);
		bd_delta_close(d);
		return 0;
	}
	if (how % 8 == 0)
		whole = bd_verify(d, base, &watch, &err) == 0;
	readable = read_all(v, how);
	require(readable || !whole, "verified, but cannot be read", path);
	bd_view_slim(v);
	require(read_all(v, how) == readable, "slim, and reads otherwise", path);
	bd_view_close(v);
	return 0;
}

/* ---- The mutator ---- */

struct part {
	char *name;
	enum bd_dtype dtype;
	unsigned dims;
	uint64_t shape[BD_MAX_DIMS];
	uint8_t *data; /* malloced, capacity MAX_TEXT */
	size_t size;
};

struct pieces {
	struct part parts[MAX_PARTS];
	size_t count;
	char *text; /* of the manifest; capacity MAX_TEXT */
	size_t text_size;
	unsigned random;
};

static unsigned pick(struct pieces *p, unsigned below)
{
	p->random = p->random * 1664525 + 1013904223;
	return below ? (p->random >> 8) % below : 0;
}

static bool take_apart(struct pieces *p, const uint8_t *data, size_t size)
{
	struct bd_safetensors *st;
	bool good = false;

	if (bd_safetensors_parse(&st, (const char *)data, size, size, "input", NULL) < 0)
		return false;
	for (size_t i = 0; i < st->count && p->count < MAX_PARTS / 2; i++) {
		const struct bd_tensor *t = &st->tensors[i];
		struct part *part = &p->parts[p->count];
		uLongf n = MAX_TEXT;

		if (t->size > MAX_TEXT)
			continue;
		if (strcmp(t->name, "manifest") == 0) {
			p->text = malloc(MAX_TEXT);
			good = p->text && uncompress((Bytef *)p->text, &n, data + t->offset, t->size) == Z_OK;
			p->text_size = n;
			continue;
		}
		*part = (struct part){ .dtype = t->dtype, .dims = t->dims, .size = t->size };
		memcpy(part->shape, t->shape, t->dims * sizeof(*t->shape));
		part->name = strdup(t->name);
		part->data = malloc(MAX_TEXT);
		memcpy(part->data, data + t->offset, t->size);
		p->count++;
	}
	bd_safetensors_free(st);
	return good;
}

static void give_back(struct pieces *p)
{
	for (size_t i = 0; i < p->count; i++) {
		free(p->parts[i].name);
		free(p->parts[i].data);
	}
	free(p->text);
}

/* Replace [from, to) of the text. */
static void replace_text(struct pieces *p, size_t from, size_t to, const char *with, size_t size)
{
	if (p->text_size - (to - from) + size > MAX_TEXT)
		return;
	memmove(p->text + from + size, p->text + to, p->text_size - to);
	memcpy(p->text + from, with, size);
	p->text_size += size - (to - from);
}

/* The end of the token at `at`: a string, a number or a word, or one byte. */
static size_t token_end(const struct pieces *p, size_t at)
{
	size_t end = at + 1;

	if (p->text[at] == '"') {
		while (end < p->text_size && p->text[end] != '"')
			end += p->text[end] == '\\' ? 2 : 1;
		return end < p->text_size ? end + 1 : p->text_size;
	}
	while (end < p->text_size && !strchr("\"{}[],: \n\\", p->text[end]))
		end++;
	return end;
}

/* A random token of this kind ('"': string, '0': number); false where there is none near. */
static bool find_token(struct pieces *p, char kind, size_t *from, size_t *to)
{
	size_t at = 0, chosen = SIZE_MAX;
	unsigned seen = 0;

	while (at < p->text_size) {
		char c = p->text[at];
		size_t end = token_end(p, at);

		if (kind == '"' ? c == '"' : c >= '0' && c <= '9')
			if (pick(p, ++seen) == 0) {
				chosen = at;
				*to = end;
			}
		at = end;
	}
	*from = chosen;
	return chosen != SIZE_MAX;
}

static void change_text(struct pieces *p)
{
	static const char *const numbers[] = {
		"0", "1", "2", "3", "4", "5", "8", "9", "16", "255", "4294967296", "9223372036854775807",
		"9223372036854775808", "18446744073709551615", "18446744073709551616", "-1", "1.5", "1e3",
		"2305843009213693952",
	};
	static const char *const strings[] = {
		"\"same\"", "\"sign\"", "\"raw\"", "\"rows\"", "\"BF16\"", "\"F16\"", "\"F32\"", "\"F4\"",
		"\"U8\"", "\"I64\"", "\"\"", "\"w\"", "\"f\"", "\"odd\"", "\"table\"", "\"base\"", "\"head\"",
		"\"shared\"", "\"planes\"", "\"header\"", "\"tensors\"", "\"dtype\"", "\"shape\"", "\"size\"",
		"\"..\"", "\"none\"", "\"scalar\"", "\"tail_xxh128\"", "\"error\"", "\"config.json\"",
	};
	size_t from, to, from2, to2;
	const char *with;
	char *copy;

	switch (pick(p, 6)) {
	case 0:
		p->text_size = LLVMFuzzerMutate((uint8_t *)p->text, p->text_size, MAX_TEXT);
		break;
	case 1:
	case 2:
		/* In the manifest itself, or in the header within one of its strings. */
		if (find_token(p, '0', &from, &to)) {
			with = numbers[pick(p, sizeof(numbers) / sizeof(*numbers))];
			replace_text(p, from, to, with, strlen(with));
		}
		break;
	case 3:
		if (find_token(p, '"', &from, &to)) {
			with = strings[pick(p, sizeof(strings) / sizeof(*strings))];
			replace_text(p, from, to, with, strlen(with));
		}
		break;
	case 4: /* one string in the place of another */
		if (find_token(p, '"', &from, &to) && find_token(p, '"', &from2, &to2)) {
			copy = memcpy(malloc(to2 - from2), p->text + from2, to2 - from2);
			replace_text(p, from, to, copy, to2 - from2);
			free(copy);
		}
		break;
	default: /* inside a header: digits of shapes and offsets */
		if (find_token(p, '"', &from, &to) && to - from > 40)
			for (size_t i = from + pick(p, (unsigned)(to - from)); i < to; i++)
				if (p->text[i] >= '0' && p->text[i] <= '9') {
					p->text[i] = (char)('0' + pick(p, 10));
					break;
				}
		break;
	}
}

static void change_parts(struct pieces *p)
{
	struct part *part = &p->parts[pick(p, (unsigned)p->count)];
	static const char *const prefixes[] = { "sign/", "raw/", "file/", "" };
	char name[BD_MAX_NAME + 16];

	if (p->count == 0)
		return;
	switch (pick(p, 8)) {
	case 0: case 1: case 2: { /* other bytes, as many */
		size_t size = part->size;
		uint8_t *copy = malloc(MAX_TEXT);

		memcpy(copy, part->data, size);
		memset(part->data, 0, size);
		memcpy(part->data, copy, LLVMFuzzerMutate(copy, size, size ? size : 1) % (size + 1));
		free(copy);
		break;
	}
	case 3: /* another number of bytes */
		if (part->dims == 1 && bd_dtype_bits(part->dtype) == 8) {
			part->size = LLVMFuzzerMutate(part->data, part->size, MAX_TEXT);
			part->shape[0] = part->size;
		} else if (part->dims >= 1 && part->shape[0] > 0) {
			uint64_t slice = part->size / part->shape[0];

			if (pick(p, 2) && part->size + slice <= MAX_TEXT) {
				memset(part->data + part->size, 0, slice);
				part->shape[0]++;
				part->size += slice;
			} else {
				part->shape[0]--;
				part->size -= slice;
			}
		}
		break;
	case 4: /* another type of the same size */
		for (int i = 0; i < 20; i++) {
			enum bd_dtype dtype = (enum bd_dtype)pick(p, BD_DTYPES);

			if (bd_dtype_bits(dtype) == bd_dtype_bits(part->dtype))
				part->dtype = dtype;
		}
		break;
	case 5: /* another name */
		snprintf(name, sizeof(name), "%s%s", prefixes[pick(p, 4)],
			 strchr(part->name, '/') ? strchr(part->name, '/') + 1 : part->name);
		free(part->name);
		part->name = strdup(name);
		break;
	case 6: /* gone */
		free(part->name);
		free(part->data);
		*part = p->parts[--p->count];
		break;
	default: /* another place */
		if (p->count > 1) {
			struct part other = p->parts[0];

			p->parts[0] = *part;
			*part = other;
		}
		break;
	}
}

/* The file anew; 0 where it is too long. */
static size_t put_together(const struct pieces *p, uint8_t *data, size_t max)
{
	struct bd_buffer b = { 0 };
	char hash[BD_HASH];
	uLongf packed_size = compressBound(p->text_size);
	uint8_t *packed = malloc(packed_size);
	uint64_t at = 0;
	size_t size = 0;

	compress2(packed, &packed_size, (const Bytef *)p->text, p->text_size, 1);
	bd_hash_data(p->text, p->text_size, hash);
	bd_buffer_printf(&b, "01234567{\"__metadata__\":{\"format\":\"bdelta\",\"version\":\"1\","
			 "\"manifest_size\":\"%zu\",\"manifest_xxh128\":\"%s\"}", p->text_size, hash);
	for (size_t i = 0; i < p->count; i++) {
		const struct part *part = &p->parts[i];

		bd_buffer_printf(&b, ",");
		bd_buffer_json_string(&b, part->name, strlen(part->name));
		bd_buffer_printf(&b, ":{\"dtype\":\"%s\",\"shape\":[", bd_dtype_name(part->dtype));
		for (unsigned d = 0; d < part->dims; d++)
			bd_buffer_printf(&b, "%s%" PRIu64, d ? "," : "", part->shape[d]);
		bd_buffer_printf(&b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + part->size);
		at += part->size;
	}
	bd_buffer_printf(&b, ",\"manifest\":{\"dtype\":\"U8\",\"shape\":[%lu],\"data_offsets\":[%" PRIu64
			 ",%" PRIu64 "]}}", packed_size, at, at + packed_size);
	for (int i = 0; i < 8; i++)
		b.data[i] = (char)((uint64_t)(b.size - 8) >> 8 * i);
	for (size_t i = 0; i < p->count; i++)
		bd_buffer_append(&b, p->parts[i].data, p->parts[i].size);
	bd_buffer_append(&b, packed, packed_size);
	if (!b.failed && b.size <= max) {
		memcpy(data, b.data, b.size);
		size = b.size;
	}
	bd_buffer_free(&b);
	free(packed);
	return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	struct pieces p = { .random = seed };
	size_t n = 0;

	if (pick(&p, 5) != 0 && take_apart(&p, data, size)) {
		for (unsigned i = 1 + pick(&p, 3); i > 0; i--) {
			if (pick(&p, 3) != 0)
				change_text(&p);
			else
				change_parts(&p);
		}
		n = put_together(&p, data, max);
	}
	give_back(&p);
	return n ? n : LLVMFuzzerMutate(data, size, max);
}
