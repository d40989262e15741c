/* SPDX-License-Identifier: Apache-2.0 */
/* test_delta.c: opening .bdelta files, whole and damaged, and matching them with a base. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "manifest.h"
#include "summary.h"
#include "testdata.h"
#include "testdelta.h"
#include "verify.h"
#include "view.h"

static struct bd_error err;
static const struct bd_watch nobody;

#define TENSORS 6

/* One of each encoding, all small: the whole file has some 3000 bytes. */
static void small_model(struct ts_model *m, struct ts_tensor t[TENSORS])
{
	struct ts_tensor list[TENSORS] = {
		{ .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 5, 7 }, .kind = TS_SIGN },
		{ .name = "b.weight", .dtype = BD_F16, .dims = 2, .shape = { 3, 3 }, .kind = TS_SIGN,
		  .planes = 2, .other_base_dtype = true, .base_dtype = BD_F32 },
		{ .name = "norm", .dtype = BD_F32, .dims = 1, .shape = { 3 }, .kind = TS_RAW },
		{ .name = "same", .dtype = BD_U8, .dims = 1, .shape = { 9 }, .kind = TS_SAME },
		{ .name = "embed", .dtype = BD_BF16, .dims = 2, .shape = { 4, 3 }, .base_rows = 3,
		  .kind = TS_ROWS_SAME },
		{ .name = "head", .dtype = BD_BF16, .dims = 2, .shape = { 4, 3 }, .base_rows = 3,
		  .kind = TS_ROWS_SIGN },
	};

	memcpy(t, list, sizeof(list));
	*m = (struct ts_model){
		.tensors = t, .count = TENSORS, .file_count = 1,
		.files = { { .name = "config.json", .text = "{\"model_type\":\"llama\"}" } },
	};
	ts_build(m, td_dir());
}

static struct bd_delta *opened(const char *path)
{
	struct bd_delta *d;

	if (bd_delta_open(&d, path, &err))
		fail_msg("%s", err.text);
	return d;
}

static void opens(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_delta *d;
	const struct bd_entry *e;
	struct bd_summary s;
	char *data;

	(void)state;
	small_model(&m, t);
	d = opened(m.delta_path);
	assert_string_equal(d->name, "fine");
	assert_int_equal(d->file_count, 2);
	assert_string_equal(d->files[0].name, "config.json");
	assert_int_equal(d->files[0].size, strlen(m.files[0].text));
	assert_null(d->files[0].st);
	assert_string_equal(d->files[1].name, "model.safetensors");
	assert_int_equal(d->files[1].size, m.files[1].size);
	assert_int_equal(d->files[1].st->count, TENSORS);
	assert_string_equal(d->producer, "the tests");
	assert_string_equal(d->base_label, "base");
	assert_null(d->base_revision);
	assert_null(d->scale_kind);
	assert_int_equal(d->scales->count, 5 + 7 + 2 * (3 + 3) + 3 + 3);
	e = d->files[1].entries;
	assert_int_equal(e[0].encoding, BD_SIGN);
	assert_int_equal(e[0].rows, 5);
	assert_int_equal(e[0].cols, 7);
	assert_int_equal(e[0].planes, 1);
	assert_int_equal(e[0].scales, 0);
	assert_true(e[0].error < 0);
	assert_int_equal(e[1].planes, 2);
	assert_int_equal(e[1].scales, 12);
	assert_int_equal(e[1].base_dtype, BD_F32);
	assert_int_equal(e[1].head, BD_SIGN);
	assert_int_equal(e[2].encoding, BD_RAW);
	assert_string_equal(e[2].base_xxh128, "");
	assert_int_equal(e[3].encoding, BD_SAME);
	assert_int_equal(e[3].planes, 0);
	assert_int_equal(e[4].encoding, BD_ROWS);
	assert_int_equal(e[4].head, BD_SAME);
	assert_int_equal(e[4].shared, 3);
	assert_int_equal(e[4].base_shape[0], 3);
	assert_int_equal(e[4].raw->shape[0], 1);
	assert_int_equal(e[5].head, BD_SIGN);
	assert_int_equal(e[5].rows, 3);
	assert_int_equal(bd_delta_inflate(d, &d->files[0], &data, &err), 0);
	assert_string_equal(data, m.files[0].text);
	free(data);
	assert_int_equal(bd_summary_of(d, &s, &err), 0);
	assert_int_equal(s.fine_bytes, m.files[0].size + m.files[1].size);
	assert_int_equal(s.delta_bytes, m.delta_size);
	assert_int_equal(s.weights, 35 + 9 + 9);
	assert_int_equal(s.encodings[BD_SIGN].tensors, 2);
	assert_int_equal(s.encodings[BD_ROWS].tensors, 2);
	assert_int_equal(s.other_files.tensors, 1);
	assert_true(s.error_worst < 0);
	bd_delta_close(d);
	bd_delta_close(NULL);
}

static int refused(const char *path, int code, const char *says)
{
	struct bd_delta *d = NULL;

	memset(&err, 0, sizeof(err));
	if (bd_delta_open(&d, path, &err) != code || err.code != code || !strstr(err.text, path) ||
	    !strstr(err.text, says))
		fail_msg("expected \"%s\", message is (%d): %s", says, err.code, err.text);
	assert_null(d);
	return 0;
}

static void no_delta(void **state)
{
	char *dir = td_dir(), *fifo = td_path(dir, "fifo.bdelta");
	struct td_tensor t = { .name = "a", .dtype = BD_BF16, .dims = 2, .shape = { 2, 2 } };

	(void)state;
	refused(td_path(dir, "none.bdelta"), -ENOENT, "No such file");
	refused(dir, -EINVAL, "directory");
	assert_int_equal(mkfifo(fifo, 0600), 0);
	refused(fifo, -EINVAL, "FIFO");
	refused(td_text(dir, "empty.bdelta", ""), -EINVAL, "too few");
	refused(td_text(dir, "text.bdelta", "this is no delta at all"), -EINVAL, "safetensors");
	refused(td_safetensors(dir, "model.bdelta", &t, 1, "{\"format\":\"pt\"}"), -EINVAL,
		"not a .bdelta file");
	refused(td_safetensors(dir, "no-version.bdelta", &t, 1, "{\"format\":\"bdelta\"}"), -EINVAL,
		"version");
	refused(td_safetensors(dir, "v2.bdelta", &t, 1,
			       "{\"format\":\"bdelta\",\"version\":\"2\",\"manifest_size\":\"1\"}"),
		-EINVAL, "version '2'");
	/* Nothing from a file reaches a terminal unseen. */
	refused(td_safetensors(dir, "esc.bdelta", &t, 1,
			       "{\"format\":\"bdelta\",\"version\":\"\\u001b[2J\"}"), -EINVAL, "version '?'");
	refused(td_safetensors(dir, "no-manifest.bdelta", &t, 1,
			       "{\"format\":\"bdelta\",\"version\":\"1\",\"manifest_size\":\"1\","
			       "\"manifest_xxh128\":\"00000000000000000000000000000000\"}"),
		-EINVAL, "manifest");
}

static void truncations(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	char *dir = td_dir(), *path;

	(void)state;
	small_model(&m, t);
	path = td_write(dir, "x.bdelta", m.delta, m.delta_size);
	for (size_t size = m.delta_size - 1; size < m.delta_size; size -= td_slowness() > 1 ? 3 : 1) {
		assert_int_equal(truncate(path, (off_t)size), 0);
		refused(path, -EINVAL, "");
	}
	for (size_t more = 1; more < 100; more += 7) {
		char *longer = ts_memory(m.delta_size + more);

		memcpy(longer, m.delta, m.delta_size);
		refused(td_write(dir, "x.bdelta", longer, m.delta_size + more), -EINVAL,
			"belong to no tensor");
	}
}

/* All bytes of all files of the view: 0 where they are the expected, 1 where other, negative errno. */
static int compare(struct bd_view *v, const struct ts_model *m, struct bd_scratch *scratch)
{
	int result = 0;

	if (v->file_count != m->file_count)
		return 1;
	for (size_t f = 0; f < v->file_count && result >= 0; f++) {
		char buf[4096];
		ssize_t n;
		int rc = bd_view_acquire(v, f, &err);

		if (rc < 0)
			return rc;
		assert_true(m->files[f].size < sizeof(buf));
		n = bd_view_read(v, f, buf, sizeof(buf), 0, scratch, &err);
		bd_view_release(v, f);
		if (n < 0)
			return (int)n;
		if ((size_t)n != m->files[f].size || memcmp(buf, m->files[f].data, (size_t)n) != 0 ||
		    strcmp(v->files[f].name, m->files[f].name) != 0)
			result = 1;
	}
	return result;
}

/* Every flipped bit is refused, or found by verify, or changes no byte of the fine-tune. */
static void bit_flips(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_base *base;
	struct bd_scratch *scratch = bd_scratch_new();
	char *path;
	size_t last = 0;
	int fd;
	unsigned at_open = 0, by_base = 0, at_read = 0, by_verify = 0, harmless = 0;

	(void)state;
	small_model(&m, t);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	path = td_write(td_dir(), "x.bdelta", m.delta, m.delta_size);
	fd = open(path, O_WRONLY);
	assert_true(fd >= 0);
	for (size_t i = 0; i < m.delta_size * 8; i += td_slowness() > 1 ? 5 : 1) {
		struct bd_delta *d = NULL;
		struct bd_view *v = NULL;
		char byte = (char)(m.delta[i / 8] ^ 1 << i % 8);
		int rc, bytes, checked;

		/* In place: to write the file anew is to wait for the disk. */
		if (last != i / 8)
			assert_int_equal(pwrite(fd, m.delta + last, 1, (off_t)last), 1);
		last = i / 8;
		assert_int_equal(pwrite(fd, &byte, 1, (off_t)last), 1);
		rc = bd_delta_open(&d, path, &err);
		if (rc < 0) {
			at_open++;
			assert_true(rc == -EINVAL && strstr(err.text, path));
			continue;
		}
		checked = bd_verify(d, base, &nobody, &err);
		if (bd_view_open(&v, d, base, &err) < 0) {
			by_base++;
			assert_true(checked < 0);
			bd_delta_close(d);
			continue;
		}
		bytes = compare(v, &m, scratch);
		bd_view_close(v);
		if (bytes < 0)
			at_read++;
		else if (checked < 0)
			by_verify++;
		else
			harmless++;
		if (bytes == 1 && checked == 0)
			fail_msg("bit %zu of byte %zu is not noticed", i % 8, i / 8);
		if (bytes < 0 && checked == 0)
			fail_msg("bit %zu of byte %zu: verify found nothing, reading fails: %s", i % 8, i / 8,
				 err.text);
	}
	print_message("%u refused at open, %u with the base, %u at read, %u found by verify, %u harmless\n",
		      at_open, by_base, at_read, by_verify, harmless);
	close(fd);
	bd_scratch_free(scratch);
	bd_base_close(base);
}

static char *replaced(const char *text, const char *old, const char *new)
{
	const char *at = strstr(text, old);

	assert_non_null(at);
	return td_format("%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
}

/* Manifests whose hash is right, but which say something else. golden/ has many more. */
static void edited_manifests(void **state)
{
	static const struct { const char *old, *new, *says; } edits[] = {
		{ "\"features\":[]", "\"features\":[\"xor\"]", "feature 'xor': a newer bitdelta" },
		{ "\"encoding\":\"same\"", "\"encoding\":\"xor\"", "unknown encoding 'xor': a newer bitdelta" },
		{ "\"planes\":2", "\"planes\":9", "planes must be 1 to 8" },
		{ "\"planes\":2", "\"planes\":0", "planes must be 1 to 8" },
		{ "\"planes\":2", "\"planes\":1", "more scales than the tensors need" },
		{ "\"planes\":2", "\"planes\":8", "'scales' is too short" },
		{ "\"planes\":2", "\"planes\":2.0", "integer" },
		{ "\"planes\":2", "\"planes\":-2", "integer" },
		{ "\"planes\":2", "\"planes\":18446744073709551616", "64 bits" },
		{ "\"shared\":3", "\"shared\":0", "shapes do not allow rows" },
		{ "\"shared\":3", "\"shared\":5", "shapes do not allow rows" },
		{ "\"shared\":3", "\"shared\":18446744073709551615", "shapes do not allow rows" },
		{ "\"shared\":3", "\"shared\":2", "another dtype or shape" },
		{ "\"head\":\"same\"", "\"head\":\"raw\"", "head, same or sign" },
		{ "\"head\":\"same\"", "\"head\":\"rows\"", "head, same or sign" },
		{ "\"size\":22,\"", "\"size\":9223372036854775807,\"", "impossible size" },
		{ "\"size\":22,\"", "\"size\":18446744073709551615,\"", "impossible size" },
		{ "\"name\":\"config.json\"", "\"name\":\"../config.json\"", "impossible name" },
		{ "\"label\":\"base\"", "\"label\":\"\\u001b[2J\"", "control characters" },
		{ "\"label\":\"base\",", "", "label" },
		{ "\"producer\":\"the tests\",", "", "producer" },
		{ "\"producer\":", "\"producer\":\"x\",\"producer\":", "second time" },
		{ "\"features\":[]", "\"features\":[],\"files\":[]", "second time" },
		{ "\"name\":\"norm\"", "\"name\":\"norn\"", "the header names 'norm'" },
		{ "[0,70]", "[0,71]", "tensor a.weight" },
	};
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	char *dir = td_dir(), *manifest;

	(void)state;
	small_model(&m, t);
	manifest = m.manifest;
	for (size_t i = 0; i < sizeof(edits) / sizeof(*edits); i++) {
		ts_pack(&m, replaced(manifest, edits[i].old, edits[i].new));
		refused(td_write(dir, "x.bdelta", m.delta, m.delta_size), -EINVAL, edits[i].says);
	}
	/* What nobody names is ignored, also where it is long and deep. */
	ts_pack(&m, replaced(manifest, "\"features\":[]",
			     "\"features\":[],\"later\":[{\"a\":[[[1.5e3,null,true,\"\\u00e9\"]]]}]"));
	bd_delta_close(opened(td_write(dir, "x.bdelta", m.delta, m.delta_size)));
	ts_pack(&m, replaced(manifest, "\"encoding\":\"same\"",
			     "\"encoding\":\"same\",\"planes\":3,\"error\":0.5,\"x\":{}"));
	{
		struct bd_delta *d = opened(td_write(dir, "x.bdelta", m.delta, m.delta_size));

		assert_int_equal(d->files[1].entries[3].planes, 0);
		assert_true(d->files[1].entries[3].error < 0);
		bd_delta_close(d);
	}
}

/* Sizes that the file only claims are not believed: no memory is asked for. */
/* What a stream may claim to hold: FORMAT.md section 2, limits. */
static void claims(void **state)
{
	const uint64_t mib = 1 << 20;

	(void)state;
	assert_true(bd_manifest_size_is_possible(1, 16 * mib));
	assert_false(bd_manifest_size_is_possible(1, 16 * mib + 1));
	assert_true(bd_manifest_size_is_possible(mib, 64 * mib));
	assert_false(bd_manifest_size_is_possible(mib, 65 * mib));
	assert_true(bd_manifest_size_is_possible(256 * mib, 256 * mib));
	assert_false(bd_manifest_size_is_possible(256 * mib, 256 * mib + 1));
	assert_false(bd_manifest_size_is_possible(UINT64_MAX, 1));
	assert_true(bd_manifest_file_size_is_possible(mib, 64 * mib));
	assert_false(bd_manifest_file_size_is_possible(mib, 64 * mib + 1));
	assert_false(bd_manifest_file_size_is_possible(100, mib));
	assert_false(bd_manifest_file_size_is_possible(UINT64_MAX, 1));
}

static void bombs(void **state)
{
	static const char *const sizes[] = {
		"999999999999999999", "1000000000000000000", "18446744073709551616", "1073741825", "-1", "",
		" 700", "0x10", "7e2",
	};
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	char *dir = td_dir(), *size, *zeros = ts_memory((64 << 20) + 1), *manifest;
	struct ts_part *last;
	char hash[BD_HASH];

	(void)state;
	small_model(&m, t);
	size = td_format("\"manifest_size\":\"%zu\"", strlen(m.manifest));
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		char *fake = td_format("\"manifest_size\":\"%s\"", sizes[i]), *copy = ts_memory(m.delta_size);
		char *at;

		/* The same length, with spaces after the header's first brace. */
		memcpy(copy, m.delta, m.delta_size);
		at = memmem(copy, m.delta_size, size, strlen(size));
		assert_non_null(at);
		if (strlen(fake) > strlen(size)) {
			/* Room from the padding at the end of the header. */
			size_t more = strlen(fake) - strlen(size), header = 0;
			char *longer = ts_memory(m.delta_size + more), *end = at + strlen(size);

			for (int k = 7; k >= 0; k--)
				header = header << 8 | (unsigned char)copy[k];
			memcpy(longer, copy, (size_t)(at - copy));
			memcpy(longer + (at - copy), fake, strlen(fake));
			memcpy(longer + (at - copy) + strlen(fake), end,
			       m.delta_size - (size_t)(end - copy));
			ts_le64(longer, header + more);
			refused(td_write(dir, "x.bdelta", longer, m.delta_size + more), -EINVAL, "");
		} else {
			memset(at, ' ', strlen(size));
			memcpy(at, fake, strlen(fake));
			refused(td_write(dir, "x.bdelta", copy, m.delta_size), -EINVAL, "");
		}
	}
	/* A stream that inflates to more than it says. */
	last = &m.parts[m.part_count - 1];
	manifest = m.manifest;
	ts_deflate(last, zeros, (64 << 20) + 1);
	bd_hash_data(manifest, strlen(manifest), hash);
	ts_write_container(&m, strlen(manifest), hash);
	refused(td_write(dir, "x.bdelta", m.delta, m.delta_size), -EINVAL, "does not inflate");
	/* And one that has something after its end. */
	ts_deflate(last, manifest, strlen(manifest));
	last->data = memcpy(ts_memory(last->size + 1), last->data, last->size);
	last->shape[0] = ++last->size;
	ts_write_container(&m, strlen(manifest), hash);
	refused(td_write(dir, "x.bdelta", m.delta, m.delta_size), -EINVAL, "does not inflate");
}

/* ---- Bases ---- */

static void check_refused(const struct ts_model *m, const char *base_path, const char *tensor,
			  const char *says)
{
	struct bd_delta *d = opened(m->delta_path);
	struct bd_base *base;

	assert_int_equal(bd_base_open(&base, base_path, &err), 0);
	assert_int_equal(bd_delta_check_base(d, base, &err), -EINVAL);
	if (!strstr(err.text, tensor) || !strstr(err.text, says) || !strstr(err.text, m->delta_path) ||
	    !strstr(err.text, "made from base 'base'"))
		fail_msg("expected \"%s\": %s", says, err.text);
	bd_base_close(base);
	bd_delta_close(d);
}

static void wrong_bases(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct td_tensor b[TENSORS], kept;
	size_t n = 0;
	struct bd_base *base;
	struct bd_delta *d;
	char *dir, *big;

	(void)state;
	small_model(&m, t);
	d = opened(m.delta_path);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	assert_int_equal(bd_delta_check_base(d, base, &err), 0);
	bd_base_close(base);
	for (size_t i = 0; i < TENSORS; i++)
		if (t[i].kind != TS_RAW)
			b[n++] = t[i].base_tensor;
	dir = td_mkdir(td_dir(), "another");
#define BASE() (td_safetensors(dir, "model.safetensors", b, n, NULL), dir)
	/* The order of the tensors and their file do not matter. */
	kept = b[0];
	b[0] = b[1];
	b[1] = kept;
	assert_int_equal(bd_base_open(&base, BASE(), &err), 0);
	assert_int_equal(bd_delta_check_base(d, base, &err), 0);
	bd_base_close(base);
	bd_delta_close(d);

	kept = b[1];
	b[1].name = "c.weight";
	check_refused(&m, BASE(), "'a.weight'", "has no tensor");
	b[1] = kept;
	b[1].shape[0] = 7;
	b[1].shape[1] = 5;
	check_refused(&m, BASE(), "'a.weight'", "BF16 [7, 5] there, expected BF16 [5, 7]");
	b[1] = kept;
	b[1].dtype = BD_F16;
	check_refused(&m, BASE(), "'a.weight'", "F16 [5, 7] there, expected BF16 [5, 7]");
	b[1] = kept;
	b[1].dims = 3;
	b[1].shape[2] = 1;
	check_refused(&m, BASE(), "'a.weight'", "BF16 [5, 7, 1] there, expected BF16 [5, 7]");
	b[1] = kept;
	b[1].data = memcpy(ts_memory(70), kept.data, 70);
	((char *)b[1].data)[69] ^= 1;
	check_refused(&m, BASE(), "'a.weight'", "contents");
	assert_non_null(strstr(err.text, "another"));
	b[1] = kept;
	/* The rows that a fine-tune dropped or has not count as well. */
	for (size_t i = 0; i < n; i++)
		if (strcmp(b[i].name, "embed") == 0) {
			b[i].shape[0] = 2;
			check_refused(&m, BASE(), "'embed'", "BF16 [2, 3] there, expected BF16 [3, 3]");
		}
	/* Of a large tensor only 4096 bytes in its middle are looked at; verify looks at all. */
	{
		struct ts_tensor u = { .name = "big", .dtype = BD_BF16, .dims = 2, .shape = { 100, 101 },
				       .kind = TS_SAME };
		struct ts_model large = { .tensors = &u, .count = 1 };
		size_t size = 100 * 101 * 2, at = (size - 4096) / 2 / 8 * 8;
		static const int places[] = { -1, 0, 4095, 4096 };

		ts_build(&large, td_dir());
		for (int i = 0; i < 4; i++) {
			struct td_tensor other = u.base_tensor;

			big = memcpy(ts_memory(size), u.base, size);
			big[(int)at + places[i]] ^= 1;
			other.data = big;
			td_safetensors(dir, "model.safetensors", &other, 1, NULL);
			if (i == 1 || i == 2) {
				check_refused(&large, dir, "'big'", "contents");
				continue;
			}
			d = opened(large.delta_path);
			assert_int_equal(bd_base_open(&base, dir, &err), 0);
			assert_int_equal(bd_delta_check_base(d, base, &err), 0);
			assert_int_equal(bd_verify(d, base, &nobody, &err), -EIO);
			assert_non_null(strstr(err.text, "base tensor 'big'"));
			bd_base_close(base);
			bd_delta_close(d);
		}
	}
}

/* The digest is the same however a base is cut into shards (FORMAT.md section 5). */
static void digests(void **state)
{
	char digest[BD_HASH] = "";

	(void)state;
	for (size_t shards = 1; shards <= 3; shards++) {
		struct ts_tensor t[] = {
			{ .name = "b", .dtype = BD_BF16, .dims = 2, .shape = { 5, 7 }, .kind = TS_SAME },
			{ .name = "a", .dtype = BD_F32, .kind = TS_SAME },
			{ .name = "c", .dtype = BD_U8, .dims = 1, .shape = { 10000 }, .kind = TS_SAME },
		};
		struct ts_model m = { .tensors = t, .count = 3, .base_shards = shards };
		struct bd_base *base;
		struct bd_buffer lines = { 0 };
		char expected[BD_HASH];

		ts_build(&m, td_dir());
		assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
		bd_buffer_printf(&lines, "a\tF32\t\t%016llx\n",
				 (unsigned long long)XXH3_64bits(t[1].base, 4));
		bd_buffer_printf(&lines, "b\tBF16\t5,7\t%016llx\n",
				 (unsigned long long)XXH3_64bits(t[0].base, 70));
		bd_buffer_printf(&lines, "c\tU8\t10000\t%016llx\n",
				 (unsigned long long)XXH3_64bits(t[2].base + (10000 - 4096) / 2 / 8 * 8, 4096));
		bd_hash_data(lines.data, lines.size, expected);
		bd_buffer_free(&lines);
		assert_string_equal(base->digest, expected);
		if (*digest)
			assert_string_equal(base->digest, digest);
		memcpy(digest, base->digest, sizeof(digest));
		assert_string_equal(bd_base_find(base, "c")->tensor->name, "c");
		assert_null(bd_base_find(base, "d"));
		assert_int_equal(bd_base_check(base, &err), 0);
		bd_base_close(base);
	}
	bd_base_close(NULL);
}

/* Beside no directory it names nothing. No golden file: git keeps none of that name. */
static void git_file(void **state)
{
	struct ts_tensor t = { .name = "w", .dtype = BD_BF16, .dims = 1, .shape = { 4 }, .kind = TS_RAW };
	struct ts_model m = { .tensors = &t, .count = 1, .file_count = 1,
			      .files = { { .name = ".git", .text = "gitdir: a" } } };
	struct bd_delta *d;

	(void)state;
	ts_build(&m, td_dir());
	d = opened(m.delta_path);
	assert_string_equal(d->files[0].name, ".git");
	bd_delta_close(d);
}

static void hash_texts(void **state)
{
	static const char *const bad[] = {
		"", "0", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0",
		"0123456789ABCDEF0123456789abcdef", "0123456789abcdef 123456789abcdef",
		"0x23456789abcdef0123456789abcdef", "-123456789abcdef0123456789abcdef",
	};
	char text[BD_HASH];
	uint64_t value;

	(void)state;
	/* The values that xxh128sum and the reference print for nothing and for "a". */
	bd_hash_data("", 0, text);
	assert_string_equal(text, "99aa06d3014798d86001c324468d497f");
	bd_hash_data("a", 1, text);
	assert_string_equal(text, "a96faf705af16834e6c632b61e964e1f");
	bd_hash64_text(XXH3_64bits("", 0), text);
	assert_string_equal(text, "2d06800538d394c2");
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_false(bd_hash_is_text(bad[i]));
		assert_false(bd_hash64_parse(bad[i], &value));
	}
	assert_true(bd_hash_is_text("0123456789abcdef0123456789abcdef"));
	assert_true(bd_hash64_parse("fedcba9876543210", &value));
	assert_true(value == 0xfedcba9876543210);
	assert_false(bd_hash64_parse(" edcba9876543210", &value));
	assert_false(bd_hash64_parse("+edcba9876543210", &value));
	assert_false(bd_hash64_parse("0xdcba9876543210", &value));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(opens),
		cmocka_unit_test(no_delta),
		cmocka_unit_test(truncations),
		cmocka_unit_test(bit_flips),
		cmocka_unit_test(edited_manifests),
		cmocka_unit_test(claims),
		cmocka_unit_test(bombs),
		cmocka_unit_test(wrong_bases),
		cmocka_unit_test(digests),
		cmocka_unit_test(git_file),
		cmocka_unit_test(hash_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
