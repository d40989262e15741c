/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.c: the strict reader of safetensors headers, see safetensors.h.
 *
 * Refused although the reference parser (crate safetensors, 0.8) takes them, because no writer
 * produces them and each has two readings: a tensor name or metadata key that occurs twice (also
 * when one is written with escapes), empty tensor names, tensor names with control characters or
 * of more than BD_MAX_NAME bytes, control characters in metadata keys, U+0000 in metadata values,
 * a tensor description that is an array, more than BD_MAX_DIMS dimensions, and dimensions of 2^63
 * and more.
 * Taken, as by the reference parser: white space around the JSON, unknown fields in a tensor's
 * description, "__metadata__": null.
 *
 * Memory: the header, as much again for the decoded strings while it is parsed (a decoded string is
 * never longer than its text), then what they need, and the arrays and tables of what the header
 * describes. */
#include "safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "names.h"
#include "utf8.h"

#define START 48 /* bytes of a file that are read first: its length, or what it is instead */

/* Files of other kinds that stand where weights should be. */
static const struct {
	const char *start, *what;
} foreign[] = {
	{ BD_LFS_POINTER_BEGIN, BD_LFS_POINTER },
	{ "GGUF", "a GGUF file; what is needed here is the safetensors checkpoint that it was made from" },
	{ "PK\3\4", "a zip archive, such as pickled weights, and no safetensors; convert them first" },
	{ "\200\2", "pickled and no safetensors; convert it first" },
	{ "<!DOCTYPE", "a web page and not the file itself; download it again" },
	{ "<!doctype", "a web page and not the file itself; download it again" },
	{ "<html", "a web page and not the file itself; download it again" },
};

struct parse {
	struct bd_safetensors *st;
	struct bd_json j;
	size_t text_size, text_used; /* of st->text */
	size_t tensor_room, metadata_room;
	uint64_t data_size; /* bytes after the header */
	bool metadata_seen;
	const char *what;
	struct bd_error *err;
};

static uint64_t read_le64(const char *data)
{
	uint64_t value = 0;

	for (int i = 7; i >= 0; i--)
		value = value << 8 | (unsigned char)data[i];
	return value;
}

static int no_memory(struct parse *p)
{
	return bd_error_set(p->err, -ENOMEM, "%s: out of memory for a header of %zu bytes", p->what,
			    p->st->header_size);
}

/* The header length from the first bytes of a file, checked against the size of the file. */
static int header_length(const char *data, size_t size, uint64_t file_size, const char *what,
			 uint64_t *length, struct bd_error *err)
{
	bool whole = file_size >= 8 && size >= 8;

	*length = whole ? read_le64(data) : 0;
	if (!whole || *length > file_size - 8)
		for (size_t i = 0; i < sizeof(foreign) / sizeof(*foreign); i++)
			if (size >= strlen(foreign[i].start) &&
			    memcmp(data, foreign[i].start, strlen(foreign[i].start)) == 0)
				return bd_error_set(err, -EINVAL, "%s: is %s", what, foreign[i].what);
	if (!whole)
		return bd_error_set(err, -EINVAL, "%s: at byte 0: %" PRIu64 " bytes are too few "
				    "for a safetensors file", what, file_size);
	if (*length == 0)
		return bd_error_set(err, -EINVAL, "%s: at byte 0: the header is empty", what);
	if (*length > BD_MAX_HEADER)
		/* Without the number: it would show the first bytes of what may be nobody's business. */
		return bd_error_set(err, -EINVAL, "%s: at byte 0: the header claims to be longer than is "
				    "allowed (at most %u bytes); this is no safetensors file", what, BD_MAX_HEADER);
	if (*length > file_size - 8)
		return bd_error_set(err, -EINVAL, "%s: at byte 0: the header has %" PRIu64 " "
				    "bytes, but only %" PRIu64 " follow; the file is cut short or "
				    "no safetensors file", what, *length, file_size - 8);
	return 0;
}

/* An array of `count` elements with room for one more: the same or a larger one, NULL where there
 * is no memory (the old one is then still there). */
static void *grow(void *array, size_t *room, size_t count, size_t element)
{
	size_t more = *room ? *room * 2 : 16;
	void *larger;

	if (count < *room)
		return array;
	larger = realloc(array, more * element);
	if (larger)
		*room = more;
	return larger;
}

/* Strings are decoded to the free end of st->text, and stay there only where keep_text follows.
 * What has been read of the document is always longer than what was kept, so they fit. */
static char *free_text(struct parse *p)
{
	return p->st->text + p->text_used;
}

static size_t free_text_size(const struct parse *p)
{
	return p->text_size - p->text_used;
}

static char *keep_text(struct parse *p, size_t length)
{
	char *text = free_text(p);

	p->text_used += length + 1;
	return text;
}

/* Give up what the strings did not need, which is more than half. Copied and not shrunk: memory that was used
 * before is resident, and the end of a block stays so. */
static int trim_text(struct parse *p)
{
	struct bd_safetensors *st = p->st;
	char *old = st->text, *text = malloc(p->text_used ? p->text_used : 1);

	if (!text)
		return no_memory(p);
	memcpy(text, old, p->text_used);
	for (size_t i = 0; i < st->count; i++)
		st->tensors[i].name = text + (st->tensors[i].name - old);
	for (size_t i = 0; i < st->metadata_count; i++) {
		st->metadata[i].key = text + (st->metadata[i].key - old);
		st->metadata[i].value = text + (st->metadata[i].value - old);
	}
	free(old);
	st->text = text;
	return 0;
}

/* Make the metadata findable. The tables are built when their size is known: growing one under
 * millions of keys would cost more than all the rest. */
static int index_metadata(struct parse *p)
{
	struct bd_safetensors *st = p->st;

	st->keys = bd_name_table_new(st->metadata_count);
	if (!st->keys)
		return no_memory(p);
	for (size_t i = 0; i < st->metadata_count; i++) {
		int rc = bd_name_table_add(st->keys, st->metadata[i].key, (uint32_t)i);

		if (rc == -EEXIST)
			return bd_error_set(p->err, -EINVAL, "%s: metadata key \"%.80s\" occurs "
					    "twice", p->what, st->metadata[i].key);
		if (rc)
			return no_memory(p);
	}
	return 0;
}

static int read_metadata(struct parse *p)
{
	struct bd_safetensors *st = p->st;
	struct bd_json *j = &p->j;
	size_t length;
	int rc;

	if (p->metadata_seen)
		return bd_json_fail(j, "__metadata__ for the second time");
	p->metadata_seen = true;
	if (bd_json_peek(j) == BD_JSON_NULL)
		return bd_json_skip(j);
	rc = bd_json_object(j);
	while (rc == 0 &&
	       (rc = bd_json_member(j, free_text(p), free_text_size(p), &length)) > 0) {
		struct bd_metadata *m;

		if (!bd_utf8_is_plain(free_text(p), length))
			return bd_json_fail(j, "control character in a metadata key");
		m = grow(st->metadata, &p->metadata_room, st->metadata_count, sizeof(*m));
		if (!m)
			return no_memory(p);
		st->metadata = m;
		m += st->metadata_count;
		m->key = keep_text(p, length);
		rc = bd_json_string(j, free_text(p), free_text_size(p), &length);
		if (rc)
			return rc;
		if (strlen(free_text(p)) != length)
			return bd_json_fail(j, "U+0000 in the metadata value of \"%.80s\"", m->key);
		m->value = keep_text(p, length);
		st->metadata_count++;
	}
	return rc;
}

static int read_dtype(struct parse *p, struct bd_tensor *t)
{
	size_t length;
	int rc = bd_json_string(&p->j, free_text(p), free_text_size(p), &length);

	if (rc)
		return rc;
	t->dtype = bd_dtype_parse(free_text(p), length);
	if (t->dtype == BD_DTYPES)
		return bd_json_fail(&p->j, "unknown dtype \"%.32s\" of tensor %s", free_text(p),
				    t->name);
	return 0;
}

static int read_shape(struct parse *p, struct bd_tensor *t)
{
	struct bd_json *j = &p->j;
	uint64_t shape[BD_MAX_DIMS];
	int rc = bd_json_array(j);

	t->count = 1;
	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		uint64_t dim;

		rc = bd_json_u64(j, &dim);
		if (rc)
			return rc;
		if (t->dims == BD_MAX_DIMS)
			return bd_json_fail(j, "more than %d dimensions in the shape of tensor %s",
					    BD_MAX_DIMS, t->name);
		/* In the order of the dimensions, so that no product of leading ones wraps, not
		 * even before a zero. */
		if (dim > INT64_MAX || __builtin_mul_overflow(t->count, dim, &t->count))
			return bd_json_fail(j, "the shape of tensor %s is too large", t->name);
		shape[t->dims++] = dim;
	}
	if (rc < 0)
		return rc;
	t->shape = bd_shapes_add(&p->st->shapes, shape, t->dims);
	return t->shape ? 0 : no_memory(p);
}

/* The two offsets, still relative to the data, into t->offset and *end. */
static int read_offsets(struct parse *p, struct bd_tensor *t, uint64_t *end)
{
	struct bd_json *j = &p->j;
	uint64_t offsets[2];
	int rc = bd_json_array(j);

	for (int i = 0; i < 2; i++) {
		if (rc == 0)
			rc = bd_json_item(j);
		if (rc == 0)
			goto wrong_count;
		if (rc > 0)
			rc = bd_json_u64(j, &offsets[i]);
		if (rc < 0)
			return rc;
	}
	rc = bd_json_item(j);
	if (rc > 0)
		goto wrong_count;
	t->offset = offsets[0];
	*end = offsets[1];
	return rc;
wrong_count:
	return bd_json_fail(j, "data_offsets of tensor %s must be two integers", t->name);
}

/* Hold the fields of a tensor against each other. */
static int check_tensor(struct parse *p, struct bd_tensor *t, uint64_t end)
{
	struct bd_json *j = &p->j;
	uint64_t bits;

	if (__builtin_mul_overflow(t->count, (uint64_t)bd_dtype_bits(t->dtype), &bits))
		return bd_json_fail(j, "the shape of tensor %s is too large", t->name);
	if (bits % 8 != 0)
		return bd_json_fail(j, "tensor %s has %" PRIu64 " bits, which is no number of "
				    "bytes", t->name, bits);
	t->size = bits / 8;
	if (t->offset > end)
		return bd_json_fail(j, "tensor %s begins at %" PRIu64 " and ends before, at %"
				    PRIu64, t->name, t->offset, end);
	if (end > p->data_size)
		return bd_json_fail(j, "tensor %s ends at %" PRIu64 " of %" PRIu64 " bytes of "
				    "data; the file is cut short or damaged", t->name, end,
				    p->data_size);
	if (end - t->offset != t->size)
		return bd_json_fail(j, "tensor %s takes %" PRIu64 " bytes, but its dtype and shape "
				    "mean %" PRIu64, t->name, end - t->offset, t->size);
	t->offset += p->st->header_size;
	return 0;
}

/* The tensor whose key was just read to the free text. */
static int read_tensor(struct parse *p, size_t name_length)
{
	enum { DTYPE, SHAPE, OFFSETS, FIELDS };
	static const char *const fields[FIELDS] = { "dtype", "shape", "data_offsets" };
	struct bd_safetensors *st = p->st;
	struct bd_json *j = &p->j;
	bool seen[FIELDS] = { false };
	struct bd_tensor *t;
	uint64_t end = 0;
	size_t length;
	int rc;

	if (name_length == 0 || name_length > BD_MAX_NAME)
		return bd_json_fail(j, "a tensor name of %zu bytes, expected 1 to %d", name_length,
				    BD_MAX_NAME);
	if (!bd_utf8_is_plain(free_text(p), name_length))
		return bd_json_fail(j, "control character in a tensor name");
	t = grow(st->tensors, &p->tensor_room, st->count, sizeof(*t));
	if (!t)
		return no_memory(p);
	st->tensors = t;
	t += st->count;
	*t = (struct bd_tensor){ .name = keep_text(p, name_length) };
	rc = bd_json_object(j);
	while (rc == 0 &&
	       (rc = bd_json_member(j, free_text(p), free_text_size(p), &length)) > 0) {
		int field = 0;

		while (field < FIELDS && (strlen(fields[field]) != length ||
					  memcmp(fields[field], free_text(p), length) != 0))
			field++;
		if (field < FIELDS && seen[field])
			return bd_json_fail(j, "%s of tensor %s for the second time", fields[field],
					    t->name);
		if (field < FIELDS)
			seen[field] = true;
		if (field == DTYPE)
			rc = read_dtype(p, t);
		else if (field == SHAPE)
			rc = read_shape(p, t);
		else if (field == OFFSETS)
			rc = read_offsets(p, t, &end);
		else
			rc = bd_json_skip(j);
	}
	if (rc < 0)
		return rc;
	for (int i = 0; i < FIELDS; i++)
		if (!seen[i])
			return bd_json_fail(j, "tensor %s has no %s", t->name, fields[i]);
	rc = check_tensor(p, t, end);
	if (rc == 0)
		st->count++;
	return rc;
}

static int by_offset(const void *left, const void *right)
{
	const struct bd_tensor *a = left, *b = right;

	if (a->offset != b->offset)
		return a->offset < b->offset ? -1 : 1;
	/* Empty tensors come before the one that has the bytes at their place. */
	if (a->size != b->size)
		return a->size < b->size ? -1 : 1;
	/* Names lie in st->text in the order of the header. */
	return a->name < b->name ? -1 : a->name > b->name;
}

/* Sort the tensors, check that they cover the data exactly, and make them findable. */
static int place_tensors(struct parse *p)
{
	struct bd_safetensors *st = p->st;
	uint64_t at = st->header_size;
	const char *before = "the header";

	if (st->count)
		qsort(st->tensors, st->count, sizeof(*st->tensors), by_offset);
	st->names = bd_name_table_new(st->count);
	if (!st->names)
		return no_memory(p);
	for (size_t i = 0; i < st->count; i++) {
		const struct bd_tensor *t = &st->tensors[i];
		int rc = bd_name_table_add(st->names, t->name, (uint32_t)i);

		if (rc == -EEXIST)
			return bd_error_set(p->err, -EINVAL, "%s: two tensors are called %s",
					    p->what, t->name);
		if (rc)
			return no_memory(p);
		if (t->offset > at)
			return bd_error_set(p->err, -EINVAL, "%s: at byte %" PRIu64 ": a hole of %"
					    PRIu64 " bytes between %s and tensor %s", p->what, at,
					    t->offset - at, before, t->name);
		if (t->offset < at)
			return bd_error_set(p->err, -EINVAL, "%s: at byte %" PRIu64 ": tensor %s "
					    "overlaps tensor %s", p->what, t->offset, t->name,
					    before);
		at += t->size;
		before = t->name;
	}
	if (at != st->file_size)
		return bd_error_set(p->err, -EINVAL, "%s: at byte %" PRIu64 ": %" PRIu64 " bytes "
				    "that belong to no tensor follow %s", p->what, at,
				    st->file_size - at, before);
	return 0;
}

/* Parse a header that was checked by header_length. Takes over `header`, also on failure. */
static int parse_header(struct bd_safetensors **out, char *header, size_t header_size,
			uint64_t file_size, const char *what, struct bd_error *err)
{
	struct parse p = { .what = what, .err = err };
	struct bd_safetensors *st = calloc(1, sizeof(*st));
	struct bd_json *j = &p.j;
	size_t length;
	int rc;

	if (!st) {
		free(header);
		return bd_error_set(err, -ENOMEM, "%s: out of memory", what);
	}
	p.st = st;
	st->header = header;
	st->header_size = header_size;
	st->file_size = file_size;
	p.data_size = file_size - header_size;
	p.text_size = header_size - 8;
	st->text = malloc(p.text_size);
	if (!st->text) {
		rc = no_memory(&p);
		goto out;
	}
	bd_json_init(j, header + 8, header_size - 8, what, 8, err);
	rc = bd_json_object(j);
	while (rc == 0 &&
	       (rc = bd_json_member(j, free_text(&p), free_text_size(&p), &length)) > 0) {
		if (length == strlen("__metadata__") &&
		    memcmp(free_text(&p), "__metadata__", length) == 0)
			rc = read_metadata(&p);
		else
			rc = read_tensor(&p, length);
	}
	if (rc == 0)
		rc = bd_json_end(j);
	if (rc == 0)
		rc = trim_text(&p);
	if (rc == 0)
		rc = index_metadata(&p);
	if (rc == 0)
		rc = place_tensors(&p);
out:
	if (rc) {
		bd_safetensors_free(st);
		return rc;
	}
	*out = st;
	return 0;
}

int bd_safetensors_parse(struct bd_safetensors **st, const char *data, size_t size,
			 uint64_t file_size, const char *what, struct bd_error *err)
{
	uint64_t length = 0;
	char *header;
	int rc;

	*st = NULL;
	rc = header_length(data, size, file_size, what, &length, err);
	if (rc)
		return rc;
	if (length > size - 8)
		return bd_error_set(err, -EINVAL, "%s: at byte 8: the header has %" PRIu64 " "
				    "bytes, but only %zu were read", what, length, size - 8);
	header = malloc(8 + (size_t)length);
	if (!header)
		return bd_error_set(err, -ENOMEM, "%s: out of memory for a header of %" PRIu64 " "
				    "bytes", what, length);
	memcpy(header, data, 8 + (size_t)length);
	return parse_header(st, header, 8 + (size_t)length, file_size, what, err);
}

int bd_safetensors_read(struct bd_safetensors **st, struct bd_file *file, struct bd_error *err)
{
	char start[START];
	size_t start_size = file->size < sizeof(start) ? (size_t)file->size : sizeof(start);
	uint64_t length = 0;
	char *header;
	int rc;

	*st = NULL;
	rc = bd_file_read(file, start, start_size, 0, err);
	if (rc == 0)
		rc = header_length(start, start_size, file->size, file->path, &length, err);
	if (rc)
		return rc;
	header = malloc(8 + (size_t)length);
	if (!header)
		return bd_error_set(err, -ENOMEM, "%s: out of memory for a header of %" PRIu64 " "
				    "bytes", file->path, length);
	rc = bd_file_read(file, header, 8 + (size_t)length, 0, err);
	if (rc == 0)
		rc = bd_file_check(file, err);
	if (rc) {
		free(header);
		return rc;
	}
	return parse_header(st, header, 8 + (size_t)length, file->size, file->path, err);
}

void bd_safetensors_free(struct bd_safetensors *st)
{
	if (!st)
		return;
	bd_name_table_free(st->names);
	bd_name_table_free(st->keys);
	free(st->tensors);
	free(st->metadata);
	bd_shapes_free(&st->shapes);
	free(st->text);
	free(st->header);
	free(st);
}

void bd_safetensors_slim(struct bd_safetensors *st)
{
	free(st->header);
	st->header = NULL;
	bd_name_table_free(st->names);
	st->names = NULL;
}

const struct bd_tensor *bd_safetensors_find(const struct bd_safetensors *st, const char *name)
{
	uint32_t index;

	return st->names && bd_name_table_find(st->names, name, &index) ? &st->tensors[index] : NULL;
}

const char *bd_safetensors_metadata(const struct bd_safetensors *st, const char *key)
{
	uint32_t index;

	return bd_name_table_find(st->keys, key, &index) ? st->metadata[index].value : NULL;
}

uint64_t bd_tensor_rows(const struct bd_tensor *t)
{
	uint64_t rows = 1;

	for (unsigned i = 0; i + 1 < t->dims; i++)
		rows *= t->shape[i];
	return rows;
}

uint64_t bd_tensor_cols(const struct bd_tensor *t)
{
	return t->dims ? t->shape[t->dims - 1] : 1;
}

bool bd_tensor_same_shape(const struct bd_tensor *a, const struct bd_tensor *b)
{
	return a->dims == b->dims &&
	       memcmp(a->shape, b->shape, a->dims * sizeof(a->shape[0])) == 0;
}

char *bd_tensor_shape_text(const struct bd_tensor *t, char *buf, size_t capacity)
{
	size_t used = 0;

	if (capacity == 0)
		return buf;
	for (unsigned i = 0; i <= t->dims && used < capacity; i++) {
		int n;

		if (i == t->dims)
			n = snprintf(buf + used, capacity - used, t->dims ? "]" : "[]");
		else
			n = snprintf(buf + used, capacity - used, "%s%" PRIu64, i ? ", " : "[",
				     t->shape[i]);
		used += (size_t)n;
	}
	return buf;
}
