/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.c: reading, checking and writing the manifest, see manifest.h. */
#include "manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/exact_file.h"
#include "json.h"
#include "names.h"
#include "paths.h"
#include "sidecars.h"
#include "sign.h"
#include "utf8.h"

#define MAX_ELEMENTS ((uint64_t)1 << 56) /* so that planes * count cannot overflow */
#define MAX_LABEL 1024
#define MAX_MANIFEST ((uint64_t)256 << 20)
#define FREE_MANIFEST ((uint64_t)16 << 20) /* up to here, however small it was packed */
/* Deflate cannot expand by more than this, so a larger claim is a lie found before allocating. */
#define MAX_EXPANSION 1032

static const char *const encodings[BD_ENCODINGS] = {
	[BD_SAME] = "same", [BD_SIGN] = "sign", [BD_RAW] = "raw", [BD_ROWS] = "rows",
	[BD_EXACT] = "exact",
};

const char *bd_encoding_name(enum bd_encoding encoding)
{
	return encodings[encoding];
}

const char *bd_manifest_kind(const struct bd_entry *e, const char *kind, char text[BD_COPY_KIND])
{
	if (!e->copy)
		return kind;
	snprintf(text, BD_COPY_KIND, "%s.%u", kind, e->copy);
	return text;
}

uint64_t bd_manifest_plane_bytes(unsigned planes, uint64_t count)
{
	return (planes * count + 63) / 64 * 8;
}

bool bd_manifest_size_is_possible(uint64_t packed, uint64_t plain)
{
	return packed <= MAX_MANIFEST && plain <= MAX_MANIFEST &&
	       (plain <= FREE_MANIFEST || plain / 64 <= packed);
}

bool bd_manifest_file_size_is_possible(uint64_t packed, uint64_t plain)
{
	return plain <= BD_MAX_SIDECAR && packed <= 2 * BD_MAX_SIDECAR &&
	       plain <= packed * MAX_EXPANSION + 64;
}

/* What a file may ask of its readers, by name in `features`. One that uses none claims none, so that older
 * readers take it. */
enum feature { BASE_NAMES, COPIES, EXACT, PATHS, PLAIN_FILES, FEATURES };

static const char *const features[FEATURES] = {
	[BASE_NAMES] = "base-names", [COPIES] = "copies", [EXACT] = "exact", [PATHS] = "paths",
	[PLAIN_FILES] = "plain-files",
};

/* A record of the manifest before it is bound to its header. */
struct record {
	struct bd_entry entry;
	char *name;
	bool is_copy, has_base, has_base_dtype, has_base_shape, has_encoding, has_head, has_sample;
};

struct reader {
	struct bd_json json;
	struct bd_delta *delta;
	const char *what;
	struct record *records; /* of the file being read */
	size_t count, capacity;
	bool *used;             /* per container tensor */
	struct bd_name_table *names; /* of all tensors of all files so far, but for copies */
	uint64_t scales;        /* consumed so far */
	bool claimed[FEATURES], found[FEATURES]; /* features that the file names, and that it uses */
};

static int read_hash(struct bd_json *j, char text[BD_HASH])
{
	int rc = bd_json_string(j, text, BD_HASH, NULL);

	if (rc == 0 && !bd_hash_is_text(text))
		rc = bd_json_fail(j, "a hash must have 32 lower-case hexadecimal digits");
	return rc;
}

static int read_encoding(struct bd_json *j, enum bd_encoding *encoding)
{
	char name[32];
	int rc = bd_json_string(j, name, sizeof(name), NULL);

	if (rc < 0)
		return rc;
	for (int i = 0; i < BD_ENCODINGS; i++)
		if (strcmp(name, encodings[i]) == 0) {
			*encoding = (enum bd_encoding)i;
			return 0;
		}
	return bd_json_fail(j, "unknown encoding '%s': a newer bitdelta is needed", name);
}

static int read_base(struct reader *reader, struct record *r)
{
	struct bd_json *j = &reader->json;
	struct bd_entry *e = &r->entry;
	uint64_t shape[BD_MAX_DIMS];
	char key[64], text[64];
	size_t length;
	int rc = bd_json_object(j);

	r->has_base = true;
	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "dtype") == 0) {
			rc = bd_json_string(j, text, sizeof(text), &length);
			e->base_dtype = rc == 0 ? bd_dtype_parse(text, length) : BD_DTYPES;
			if (rc == 0 && e->base_dtype == BD_DTYPES)
				rc = bd_json_fail(j, "unknown dtype '%s'", text);
			r->has_base_dtype = true;
		} else if (strcmp(key, "shape") == 0) {
			e->base_dims = 0;
			rc = bd_json_array(j);
			while (rc == 0 && (rc = bd_json_item(j)) > 0) {
				if (e->base_dims == BD_MAX_DIMS)
					return bd_json_fail(j, "more than %d dimensions", BD_MAX_DIMS);
				rc = bd_json_u64(j, &shape[e->base_dims++]);
			}
			if (rc < 0)
				return rc;
			e->base_shape = bd_shapes_add(&reader->delta->shapes, shape, e->base_dims);
			if (!e->base_shape)
				return bd_error_set(j->err, -ENOMEM, "%s: out of memory", reader->what);
			r->has_base_shape = true;
		} else if (strcmp(key, "xxh128") == 0) {
			rc = read_hash(j, e->base_xxh128);
		} else if (strcmp(key, "sample") == 0) {
			rc = bd_json_string(j, text, sizeof(text), NULL);
			if (rc == 0 && !bd_hash64_parse(text, &e->base_sample))
				rc = bd_json_fail(j, "a sample must have 16 hexadecimal digits");
			r->has_sample = true;
		} else if (strcmp(key, "name") == 0 && !e->base_name) {
			rc = bd_json_string_dup(j, &e->base_name, &length);
			if (rc == 0 && (length == 0 || length > BD_MAX_NAME ||
					!bd_utf8_is_plain(e->base_name, length)))
				rc = bd_json_fail(j, "the name of a base tensor is empty, too long or has "
						  "control characters");
		} else {
			rc = bd_json_skip(j);
		}
	}
	return rc;
}

static int read_record(struct reader *reader, struct record *r)
{
	struct bd_json *j = &reader->json;
	struct bd_entry *e = &r->entry;
	char key[64];
	uint64_t planes;
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "name") == 0 && !r->name) {
			rc = bd_json_string_dup(j, &r->name, NULL);
		} else if (strcmp(key, "encoding") == 0) {
			rc = read_encoding(j, &e->encoding);
			r->has_encoding = true;
		} else if (strcmp(key, "head") == 0) {
			rc = read_encoding(j, &e->head);
			r->has_head = true;
		} else if (strcmp(key, "shared") == 0) {
			rc = bd_json_u64(j, &e->shared);
		} else if (strcmp(key, "copy") == 0) {
			rc = bd_json_bool(j, &r->is_copy);
		} else if (strcmp(key, "planes") == 0) {
			rc = bd_json_u64(j, &planes);
			if (rc == 0 && (planes < 1 || planes > BD_MAX_PLANES))
				rc = bd_json_fail(j, "planes must be 1 to %d", BD_MAX_PLANES);
			else if (rc == 0)
				e->planes = (unsigned)planes;
		} else if (strcmp(key, "xxh128") == 0) {
			rc = read_hash(j, e->xxh128);
		} else if (strcmp(key, "tail_xxh128") == 0) {
			rc = read_hash(j, e->tail_xxh128);
		} else if (strcmp(key, "error") == 0) {
			rc = bd_json_number(j, &e->error);
		} else if (strcmp(key, "base") == 0) {
			rc = read_base(reader, r);
		} else {
			rc = bd_json_skip(j);
		}
	}
	if (rc < 0)
		return rc;
	if (!r->name || !r->has_encoding)
		return bd_json_fail(j, "a tensor without name or encoding");
	return 0;
}

static int read_records(struct reader *r)
{
	struct bd_json *j = &r->json;
	int rc = bd_json_array(j);

	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		if (r->count == r->capacity) {
			size_t capacity = r->capacity ? 2 * r->capacity : 64;
			struct record *grown = realloc(r->records, capacity * sizeof(*grown));

			if (!grown)
				return bd_error_set(j->err, -ENOMEM, "%s: out of memory", r->what);
			r->records = grown;
			r->capacity = capacity;
		}
		r->records[r->count] = (struct record){ .entry = { .error = -1 } };
		rc = read_record(r, &r->records[r->count++]);
	}
	return rc;
}

static void drop_records(struct reader *r)
{
	for (size_t i = 0; i < r->count; i++) {
		free(r->records[i].name);
		free(r->records[i].entry.base_name);
	}
	r->count = 0;
}

/* The container's tensor KIND/NAME, which nothing else may use. */
static int take_stored(struct reader *r, const char *kind, const char *name,
		       const struct bd_tensor **stored)
{
	const struct bd_safetensors *st = r->delta->st;
	char full[BD_MAX_NAME + 32];

	snprintf(full, sizeof(full), "%s%s%s", kind, *name ? "/" : "", name);
	*stored = bd_safetensors_find(st, full);
	if (!*stored)
		return bd_json_fail(&r->json, "the file holds no tensor '%s'", full);
	if (r->used[*stored - st->tensors])
		return bd_json_fail(&r->json, "'%s' is needed twice", full);
	r->used[*stored - st->tensors] = true;
	return 0;
}

static int check_bytes(struct reader *r, const struct bd_tensor *stored, uint64_t size)
{
	if (stored->dtype == BD_U8 && stored->dims == 1 && stored->size == size)
		return 0;
	return bd_json_fail(&r->json, "'%s' has the wrong dtype or size", stored->name);
}

/* Bytes of whatever size. */
static int take_bytes(struct reader *r, const char *kind, const char *name,
		      const struct bd_tensor **stored)
{
	int rc = take_stored(r, kind, name, stored);

	return rc < 0 ? rc : check_bytes(r, *stored, (*stored)->size);
}

/* The container's tensor KIND/NAME of an entry; KIND.N/NAME of a copy in the file with number N. */
static int take_part(struct reader *r, const char *kind, const struct bd_entry *e,
		     const struct bd_tensor **stored)
{
	char text[BD_COPY_KIND];

	return take_stored(r, bd_manifest_kind(e, kind, text), e->tensor->name, stored);
}

/* Bind raw/NAME: the tensor's shape, or its slices from `from` on. */
static int bind_raw(struct reader *r, struct bd_entry *e, uint64_t from)
{
	struct bd_tensor wanted = *e->tensor;
	uint64_t shape[BD_MAX_DIMS];
	int rc = take_part(r, "raw", e, &e->raw);

	if (rc < 0)
		return rc;
	memcpy(shape, wanted.shape, wanted.dims * sizeof(*shape));
	wanted.shape = shape;
	if (from)
		shape[0] -= from;
	if (e->raw->dtype != wanted.dtype || !bd_tensor_same_shape(e->raw, &wanted))
		return bd_json_fail(&r->json, "'%s' has another dtype or shape than '%s' needs",
				    e->raw->name, e->tensor->name);
	return 0;
}

/* Bind the planes and scales of a sign-coded tensor or head of `count` elements. */
static int bind_sign(struct reader *r, struct bd_entry *e, uint64_t count)
{
	int rc;

	if (e->planes == 0 || !*e->xxh128)
		return bd_json_fail(&r->json, "tensor '%s': sign needs planes and xxh128",
				    e->tensor->name);
	if (count == 0 || count > MAX_ELEMENTS || e->tensor->dims == 0 ||
	    !bd_dtype_is_weight(e->tensor->dtype) || !bd_dtype_is_weight(e->base_dtype))
		return bd_json_fail(&r->json, "tensor '%s' cannot be sign-coded", e->tensor->name);
	e->cols = bd_tensor_cols(e->tensor);
	e->rows = count / e->cols;
	e->scales = r->scales;
	/* Each term is at most 2^56 and the sum is compared to a real array's size at every step. */
	r->scales += e->planes * (e->rows + e->cols);
	if (!r->delta->scales || r->scales > r->delta->scales->count)
		return bd_json_fail(&r->json, "tensor '%s': 'scales' is too short", e->tensor->name);
	rc = take_part(r, "sign", e, &e->sign);
	return rc < 0 ? rc : check_bytes(r, e->sign, bd_manifest_plane_bytes(e->planes, count));
}

/* Bind what codes an exact tensor, whose base is known. */
static int bind_exact(struct reader *r, struct bd_entry *e)
{
	const char *fault;
	int rc;

	r->found[EXACT] = true;
	if (!*e->xxh128)
		return bd_json_fail(&r->json, "tensor '%s': exact needs xxh128", e->tensor->name);
	rc = take_part(r, "exact", e, &e->exact);
	if (rc == 0)
		rc = check_bytes(r, e->exact, e->exact->size);
	if (rc < 0)
		return rc;
	fault = bd_exact_entry_fault(e);
	return fault ? bd_json_fail(&r->json, "tensor '%s' %s", e->tensor->name, fault) : 0;
}

/* Does the base tensor's shape agree with the tensor's in all dimensions from `from` on? */
static bool base_shape_agrees(const struct bd_entry *e, unsigned from)
{
	if (e->base_dims != e->tensor->dims)
		return false;
	for (unsigned d = from; d < e->base_dims; d++)
		if (e->base_shape[d] != e->tensor->shape[d])
			return false;
	return true;
}

static int bind_rows(struct reader *r, struct record *rec)
{
	struct bd_entry *e = &rec->entry;
	const struct bd_tensor *t = e->tensor;
	int rc = 0;

	if (!rec->has_head || (e->head != BD_SAME && e->head != BD_SIGN))
		return bd_json_fail(&r->json, "tensor '%s': rows needs a head, same or sign", t->name);
	if (t->dims < 2 || !base_shape_agrees(e, 1) || e->shared == 0 || t->count == 0 ||
	    e->shared > t->shape[0] || e->shared > e->base_shape[0])
		return bd_json_fail(&r->json, "tensor '%s': the shapes do not allow rows", t->name);
	if (e->head == BD_SIGN)
		rc = bind_sign(r, e, t->count / t->shape[0] * e->shared);
	else if (e->base_dtype != t->dtype || t->size % t->shape[0] != 0)
		rc = bd_json_fail(&r->json, "tensor '%s': another dtype than its base", t->name);
	if (rc == 0 && e->shared == t->shape[0] && *e->tail_xxh128)
		rc = bd_json_fail(&r->json, "tensor '%s': tail_xxh128, but no tail", t->name);
	if (rc == 0 && e->shared < t->shape[0]) {
		if (!*e->tail_xxh128)
			return bd_json_fail(&r->json, "tensor '%s': no tail_xxh128", t->name);
		rc = bind_raw(r, e, e->shared);
	}
	return rc;
}

static int bind_record(struct reader *r, struct record *rec, const struct bd_tensor *t)
{
	struct bd_entry *e = &rec->entry;
	int rc;

	if (strcmp(rec->name, t->name) != 0)
		return bd_json_fail(&r->json, "the header names '%s' where the manifest has '%s'",
				    t->name, rec->name);
	e->copy = rec->is_copy ? (unsigned)r->delta->file_count : 0;
	r->found[COPIES] |= rec->is_copy;
	rc = rec->is_copy ? 0 : bd_name_table_add(r->names, t->name, 0);
	if (rc < 0)
		return bd_json_fail(&r->json, rc == -EEXIST ? "tensor '%s' is in two files" :
				    "tensor '%s': out of memory", t->name);
	e->tensor = t;
	if (e->encoding == BD_RAW || (e->encoding == BD_EXACT && !rec->has_base)) {
		e->base_xxh128[0] = '\0';
		free(e->base_name);
		e->base_name = NULL;
		if (e->encoding == BD_EXACT)
			return bind_exact(r, e);
		if (!*e->xxh128)
			return bd_json_fail(&r->json, "tensor '%s': raw needs xxh128", t->name);
		return bind_raw(r, e, 0);
	}
	if (!rec->has_base || !*e->base_xxh128 || !rec->has_sample)
		return bd_json_fail(&r->json, "tensor '%s': no base, or one without hashes", t->name);
	r->found[BASE_NAMES] |= e->base_name != NULL;
	if (!rec->has_base_dtype)
		e->base_dtype = t->dtype;
	if (!rec->has_base_shape) {
		e->base_dims = t->dims;
		e->base_shape = t->shape;
	}
	if (e->encoding == BD_ROWS)
		return bind_rows(r, rec);
	if (!base_shape_agrees(e, 0))
		return bd_json_fail(&r->json, "tensor '%s': another shape than its base", t->name);
	if (e->encoding == BD_SIGN)
		return bind_sign(r, e, t->count);
	if (e->encoding == BD_EXACT)
		return bind_exact(r, e);
	if (e->base_dtype != t->dtype)
		return bd_json_fail(&r->json, "tensor '%s': another dtype than its base", t->name);
	return 0;
}

/* A safetensors file: parse its own header, then bind its records to it. */
static int bind_file(struct reader *r, struct bd_delta_file *file, const char *header, size_t length)
{
	size_t size = length + 8;
	uint8_t *bytes = malloc(size);
	int rc;

	if (!bytes)
		return bd_error_set(r->json.err, -ENOMEM, "%s: out of memory", r->what);
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)((uint64_t)length >> 8 * i);
	memcpy(bytes + 8, header, length);
	rc = bd_safetensors_parse(&file->st, (char *)bytes, size, file->size, file->name,
				  r->json.err);
	free(bytes);
	if (rc < 0) {
		bd_error_prefix(r->json.err, "%s", r->what);
		return r->json.failed = rc;
	}
	if (file->st->count != r->count)
		return bd_json_fail(&r->json, "file '%s': the header names %zu tensors, the manifest %zu",
				    file->name, file->st->count, r->count);
	file->entries = calloc(r->count ? r->count : 1, sizeof(*file->entries));
	if (!file->entries)
		return bd_error_set(r->json.err, -ENOMEM, "%s: out of memory", r->what);
	for (size_t i = 0; i < r->count; i++) {
		rc = bind_record(r, &r->records[i], &file->st->tensors[i]);
		if (rc < 0)
			return rc;
		file->entries[i] = r->records[i].entry;
		r->records[i].entry.base_name = NULL;
		if (file->entries[i].encoding != BD_ROWS)
			file->entries[i].head = file->entries[i].encoding;
		if (file->entries[i].head != BD_SIGN) {
			file->entries[i].planes = 0;
			file->entries[i].error = -1;
		}
	}
	return 0;
}

static int read_file(struct reader *r, struct bd_delta_file *file)
{
	struct bd_json *j = &r->json;
	char key[64], *header = NULL;
	size_t header_length = 0, name_length = 0;
	bool has_size = false, has_tensors = false, plain = false;
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "name") == 0 && !file->name) {
			rc = bd_json_string_dup(j, &file->name, &name_length);
		} else if (strcmp(key, "size") == 0) {
			rc = bd_json_u64(j, &file->size);
			has_size = true;
		} else if (strcmp(key, "xxh128") == 0) {
			rc = read_hash(j, file->xxh128);
		} else if (strcmp(key, "plain") == 0) {
			rc = bd_json_bool(j, &plain);
		} else if (strcmp(key, "header") == 0 && !header) {
			rc = bd_json_string_dup(j, &header, &header_length);
		} else if (strcmp(key, "tensors") == 0 && !has_tensors) {
			rc = read_records(r);
			has_tensors = true;
		} else {
			rc = bd_json_skip(j);
		}
	}
	if (rc < 0)
		goto out;
	if (!file->name || !has_size || !bd_path_is_safe(file->name, name_length)) {
		rc = bd_json_fail(j, "a file without size or with an impossible name");
		goto out;
	}
	r->found[PATHS] |= strchr(file->name, '/') != NULL;
	if (header && has_tensors) {
		rc = bind_file(r, file, header, header_length);
	} else if (header || has_tensors || !*file->xxh128) {
		rc = bd_json_fail(j, "file '%s' lacks header, tensors or xxh128", file->name);
	} else if (plain) {
		r->found[PLAIN_FILES] = file->plain = true;
		rc = take_bytes(r, "plain", file->name, &file->stored);
		if (rc == 0)
			rc = check_bytes(r, file->stored, file->size);
	} else {
		rc = take_bytes(r, "file", file->name, &file->stored);
		if (rc == 0 && !bd_manifest_file_size_is_possible(file->stored->size, file->size))
			rc = bd_json_fail(j, "file '%s' claims an impossible size", file->name);
	}
out:
	drop_records(r);
	free(header);
	return rc;
}

int bd_manifest_find_twins(const struct bd_delta *d, const char **one, const char **other)
{
	const char **names = calloc(d->file_count + 1, sizeof(*names));
	int rc;

	*one = *other = NULL;
	if (!names)
		return -ENOMEM;
	for (size_t i = 0; i < d->file_count; i++)
		names[i] = d->files[i].name;
	rc = bd_paths_find_twins(names, d->file_count, one, other);
	free(names);
	return rc;
}

size_t bd_manifest_count_directories(const struct bd_delta *d)
{
	const char *before = "";
	size_t count = 0;

	for (size_t f = 0; f < d->file_count; before = d->files[f++].name)
		for (size_t n = 0; (n = bd_path_next_directory(d->files[f].name, before, n)); )
			count++;
	return count;
}

/* A name may be long and full of slashes, and every directory becomes a node of a mount. A file .git may name one
 * of them as the place where git finds what to run. */
static int check_directories(struct reader *r)
{
	const struct bd_delta *d = r->delta;

	for (size_t f = 0; r->found[PATHS] && f < d->file_count; f++)
		if (bd_name_is_git(d->files[f].name, strlen(d->files[f].name)))
			return bd_json_fail(&r->json, "a file '%s' beside directories", d->files[f].name);
	return bd_manifest_count_directories(d) <= BD_MAX_DIRECTORIES ? 0 :
		bd_json_fail(&r->json, "more than %d directories", BD_MAX_DIRECTORIES);
}

/* A copy is one of a tensor that there is. */
static int check_copies(struct reader *r)
{
	const struct bd_delta *d = r->delta;

	for (size_t f = 0; r->found[COPIES] && f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++) {
			const struct bd_entry *e = &d->files[f].entries[i];

			if (e->copy && !bd_name_table_find(r->names, e->tensor->name, NULL))
				return bd_json_fail(&r->json, "tensor '%s' is only there as a copy",
						    e->tensor->name);
		}
	return 0;
}

static int read_files(struct reader *r)
{
	struct bd_delta *d = r->delta;
	size_t capacity = 0;
	const char *one = NULL, *other = NULL;
	int rc = bd_json_array(&r->json);

	while (rc == 0 && (rc = bd_json_item(&r->json)) > 0) {
		if (d->file_count == capacity) {
			struct bd_delta_file *grown;

			capacity = capacity ? 2 * capacity : 16;
			grown = realloc(d->files, capacity * sizeof(*grown));
			if (!grown)
				return bd_error_set(r->json.err, -ENOMEM, "%s: out of memory", r->what);
			d->files = grown;
		}
		d->files[d->file_count] = (struct bd_delta_file){ 0 };
		rc = read_file(r, &d->files[d->file_count++]);
		if (rc == 0 && d->file_count > 1 &&
		    strcmp(d->files[d->file_count - 2].name, d->files[d->file_count - 1].name) >= 0)
			rc = bd_json_fail(&r->json, "files are not in ascending order of name");
	}
	if (rc == 0 && bd_manifest_find_twins(d, &one, &other) < 0)
		return bd_error_set(r->json.err, -ENOMEM, "%s: out of memory", r->what);
	if (rc == 0 && one)
		rc = bd_json_fail(&r->json, "files '%s' and '%s' cannot lie in one directory (upper and lower "
				  "case are not told apart everywhere)", one, other);
	if (rc == 0)
		rc = check_directories(r);
	return rc < 0 ? rc : check_copies(r);
}

static int read_label(struct bd_json *j, char **text)
{
	size_t length;
	int rc;

	free(*text);
	*text = NULL;
	rc = bd_json_string_dup(j, text, &length);
	/* Labels are shown on terminals. */
	if (rc == 0 && (length > MAX_LABEL || !bd_utf8_is_plain(*text, length)))
		rc = bd_json_fail(j, "a label of more than %d bytes or with control characters", MAX_LABEL);
	return rc;
}

static int read_base_identity(struct reader *r)
{
	struct bd_json *j = &r->json;
	struct bd_delta *d = r->delta;
	char key[64];
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "label") == 0)
			rc = read_label(j, &d->base_label);
		else if (strcmp(key, "revision") == 0)
			rc = read_label(j, &d->base_revision);
		else if (strcmp(key, "path") == 0)
			rc = read_label(j, &d->base_path);
		else if (strcmp(key, "hub") == 0)
			rc = read_label(j, &d->base_hub);
		else if (strcmp(key, "digest") == 0)
			rc = read_hash(j, d->base_digest);
		else
			rc = bd_json_skip(j);
	}
	return rc;
}

static int read_import(struct reader *r)
{
	struct bd_json *j = &r->json;
	struct bd_delta *d = r->delta;
	char key[64];
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "scale") == 0)
			rc = read_label(j, &d->scale_kind);
		else if (strcmp(key, "attenuation") == 0)
			rc = bd_json_number(j, &d->attenuation);
		else if (strcmp(key, "distilled") == 0)
			rc = bd_json_bool(j, &d->distilled);
		else
			rc = bd_json_skip(j);
	}
	return rc;
}

static int read_features(struct reader *r)
{
	struct bd_json *j = &r->json;
	char name[128];
	int rc = bd_json_array(j);

	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		int f = 0;

		rc = bd_json_string(j, name, sizeof(name), NULL);
		while (rc == 0 && f < FEATURES && strcmp(name, features[f]) != 0)
			f++;
		if (rc == 0 && f == FEATURES)
			rc = bd_json_fail(j, "needs the feature '%s': a newer bitdelta is needed", name);
		if (rc == 0)
			r->claimed[f] = true;
	}
	return rc;
}

static int read_manifest(struct reader *r)
{
	struct bd_json *j = &r->json;
	struct bd_delta *d = r->delta;
	bool has_files = false, has_features = false;
	char key[64];
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "features") == 0) {
			rc = read_features(r);
			has_features = true;
		} else if (strcmp(key, "producer") == 0) {
			rc = read_label(j, &d->producer);
		} else if (strcmp(key, "base") == 0) {
			rc = read_base_identity(r);
		} else if (strcmp(key, "import") == 0) {
			rc = read_import(r);
		} else if (strcmp(key, "scales_xxh128") == 0) {
			rc = read_hash(j, d->scales_xxh128);
		} else if (strcmp(key, "files") == 0 && !has_files) {
			rc = read_files(r);
			has_files = true;
		} else {
			rc = bd_json_skip(j);
		}
	}
	if (rc == 0)
		rc = bd_json_end(j);
	if (rc == 0 && (!has_files || !has_features || !d->producer || !d->base_label || !*d->base_digest))
		rc = bd_json_fail(j, "features, producer, files, or the base's label or digest are missing");
	/* A reader that does not know the feature would have passed over what is used of it. */
	for (int f = 0; rc == 0 && f < FEATURES; f++)
		if (r->found[f] && !r->claimed[f])
			rc = bd_json_fail(j, "uses the feature '%s' without naming it", features[f]);
	if (rc == 0 && d->scales && (!*d->scales_xxh128 || r->scales != d->scales->count))
		rc = bd_json_fail(j, "'scales' has no hash, or more scales than the tensors need");
	if (rc == 0 && !d->scales && *d->scales_xxh128)
		rc = bd_json_fail(j, "scales_xxh128, but no 'scales'");
	return rc;
}

int bd_manifest_parse(struct bd_delta *d, const char *text, size_t size, struct bd_error *err)
{
	struct reader r = { .delta = d };
	const struct bd_tensor *manifest;
	char *what = NULL;
	int rc = 0;

	r.used = calloc(d->st->count ? d->st->count : 1, sizeof(*r.used));
	r.names = bd_name_table_new(d->st->count);
	if (!r.used || !r.names || asprintf(&what, "%s: manifest", d->file->path) < 0) {
		bd_name_table_free(r.names);
		free(r.used);
		return bd_error_set(err, -ENOMEM, "%s: out of memory", d->file->path);
	}
	r.what = what;
	bd_json_init(&r.json, text, size, what, 0, err);
	rc = take_bytes(&r, "manifest", "", &manifest);
	if (rc == 0 && bd_safetensors_find(d->st, "scales")) {
		rc = take_stored(&r, "scales", "", &d->scales);
		if (rc == 0 && (d->scales->dtype != BD_F32 || d->scales->dims != 1))
			rc = bd_json_fail(&r.json, "'scales' is not a vector of F32");
	}
	/* First the whole text: nobody may read a member that another reader finds twice. */
	if (rc == 0)
		rc = bd_json_check(text, size, what, err);
	if (rc == 0)
		rc = read_manifest(&r);
	for (size_t i = 0; rc == 0 && i < d->st->count; i++)
		if (!r.used[i])
			rc = bd_json_fail(&r.json, "does not mention the tensor '%s' of the file",
					  d->st->tensors[i].name);
	drop_records(&r);
	free(r.records);
	bd_name_table_free(r.names);
	free(r.used);
	free(what);
	return rc;
}

static void print_base(const struct bd_entry *e, struct bd_buffer *out)
{
	const struct bd_tensor *t = e->tensor;

	bd_buffer_printf(out, ",\"base\":{");
	if (e->base_name) {
		bd_buffer_printf(out, "\"name\":");
		bd_buffer_json_string(out, e->base_name, strlen(e->base_name));
		bd_buffer_printf(out, ",");
	}
	if (e->base_dtype != t->dtype)
		bd_buffer_printf(out, "\"dtype\":\"%s\",", bd_dtype_name(e->base_dtype));
	if (!base_shape_agrees(e, 0)) {
		bd_buffer_printf(out, "\"shape\":[");
		for (unsigned d = 0; d < e->base_dims; d++)
			bd_buffer_printf(out, "%s%" PRIu64, d ? "," : "", e->base_shape[d]);
		bd_buffer_printf(out, "],");
	}
	bd_buffer_printf(out, "\"sample\":\"%016" PRIx64 "\",\"xxh128\":\"%s\"}", e->base_sample,
			 e->base_xxh128);
}

static void print_entry(const struct bd_entry *e, struct bd_buffer *out)
{
	bd_buffer_printf(out, "{\"name\":");
	bd_buffer_json_string(out, e->tensor->name, strlen(e->tensor->name));
	bd_buffer_printf(out, ",\"encoding\":\"%s\"", encodings[e->encoding]);
	if (e->copy)
		bd_buffer_printf(out, ",\"copy\":true");
	if (e->encoding == BD_ROWS)
		bd_buffer_printf(out, ",\"shared\":%" PRIu64 ",\"head\":\"%s\"", e->shared,
				 encodings[e->head]);
	if (e->planes)
		bd_buffer_printf(out, ",\"planes\":%u", e->planes);
	if (e->planes && e->error >= 0)
		bd_buffer_printf(out, ",\"error\":%.3g", e->error);
	if (*e->xxh128)
		bd_buffer_printf(out, ",\"xxh128\":\"%s\"", e->xxh128);
	if (*e->tail_xxh128)
		bd_buffer_printf(out, ",\"tail_xxh128\":\"%s\"", e->tail_xxh128);
	if (bd_entry_has_base(e))
		print_base(e, out);
	bd_buffer_printf(out, "}");
}

static void print_file(const struct bd_delta_file *f, struct bd_buffer *out)
{
	bd_buffer_printf(out, "{\"name\":");
	bd_buffer_json_string(out, f->name, strlen(f->name));
	bd_buffer_printf(out, ",\"size\":%" PRIu64, f->size);
	if (!f->st) {
		bd_buffer_printf(out, ",\"xxh128\":\"%s\"%s}", f->xxh128, f->plain ? ",\"plain\":true" : "");
		return;
	}
	bd_buffer_printf(out, ",\"header\":");
	bd_buffer_json_string(out, f->st->header + 8, f->st->header_size - 8);
	bd_buffer_printf(out, ",\"tensors\":[");
	for (size_t i = 0; i < f->st->count; i++) {
		if (i)
			bd_buffer_printf(out, ",\n");
		print_entry(&f->entries[i], out);
	}
	bd_buffer_printf(out, "]}");
}

static void find_features(const struct bd_delta *d, bool found[FEATURES])
{
	memset(found, 0, FEATURES * sizeof(*found));
	for (size_t f = 0; f < d->file_count; f++) {
		const struct bd_delta_file *file = &d->files[f];

		found[PATHS] |= strchr(file->name, '/') != NULL;
		found[PLAIN_FILES] |= file->plain;
		for (size_t i = 0; file->st && i < file->st->count; i++) {
			const struct bd_entry *e = &file->entries[i];

			found[BASE_NAMES] |= e->base_name != NULL;
			found[COPIES] |= e->copy != 0;
			found[EXACT] |= e->encoding == BD_EXACT;
		}
	}
}

/* A member after what separates it; none where the text is NULL. */
static void print_string(struct bd_buffer *out, const char *before, const char *name, const char *text)
{
	if (!text)
		return;
	bd_buffer_printf(out, "%s\"%s\":", before, name);
	bd_buffer_json_string(out, text, strlen(text));
}

void bd_manifest_print(const struct bd_delta *d, struct bd_buffer *out)
{
	bool found[FEATURES];
	const char *comma = "";

	find_features(d, found);
	bd_buffer_printf(out, "{\"features\":[");
	for (int f = 0; f < FEATURES; f++)
		if (found[f]) {
			bd_buffer_printf(out, "%s\"%s\"", comma, features[f]);
			comma = ",";
		}
	bd_buffer_printf(out, "]");
	print_string(out, ",", "producer", d->producer);
	print_string(out, ",\n\"base\":{", "label", d->base_label);
	print_string(out, ",", "revision", d->base_revision);
	print_string(out, ",", "path", d->base_path);
	print_string(out, ",", "hub", d->base_hub);
	bd_buffer_printf(out, ",\"digest\":\"%s\"}", d->base_digest);
	if (d->scale_kind) {
		bd_buffer_printf(out, ",\n\"import\":{\"scale\":");
		bd_buffer_json_string(out, d->scale_kind, strlen(d->scale_kind));
		bd_buffer_printf(out, ",\"attenuation\":%.9g,\"distilled\":%s}", d->attenuation,
				 d->distilled ? "true" : "false");
	}
	if (*d->scales_xxh128)
		bd_buffer_printf(out, ",\n\"scales_xxh128\":\"%s\"", d->scales_xxh128);
	bd_buffer_printf(out, ",\n\"files\":[\n");
	for (size_t i = 0; i < d->file_count; i++) {
		if (i)
			bd_buffer_printf(out, ",\n");
		print_file(&d->files[i], out);
	}
	bd_buffer_printf(out, "]}\n");
}
