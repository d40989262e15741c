/* SPDX-License-Identifier: Apache-2.0 */
/* testdelta.h: a second, naive writer and decoder of .bdelta files for the tests, after FORMAT.md.
 *
 * A test lists the tensors of a fine-tune with their encodings; ts_build writes a base checkpoint
 * and a .bdelta file that fit, and computes what each file of the fine-tune must contain, one
 * element at a time and without any code of the library but its hashes and tables of names.
 *
 *     struct ts_tensor t[] = {
 *             { .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 4, 8 }, .kind = TS_SIGN },
 *     };
 *     struct ts_model m = { .tensors = t, .count = 1 };
 *     ts_build(&m, td_dir());
 *     ... m.base_path, m.delta_path, m.files[i].name, .data, .size
 *
 * Header only: every test is one source file. */
#ifndef BD_TESTDELTA_H
#define BD_TESTDELTA_H

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "base.h"
#include "buffer.h"
#include "testdata.h"

enum ts_kind { TS_SAME, TS_SIGN, TS_RAW, TS_ROWS_SAME, TS_ROWS_SIGN };

struct ts_tensor {
	const char *name;          /* goes into JSON as it is */
	enum bd_dtype dtype;       /* of the fine-tune */
	unsigned dims;
	uint64_t shape[8];
	enum ts_kind kind;
	unsigned planes;           /* of signs; 0: one */
	bool other_base_dtype;     /* base_dtype counts */
	enum bd_dtype base_dtype;
	uint64_t base_rows;        /* of rows: the base's first dimension */
	const char *file;          /* of the fine-tune; NULL: model.safetensors */
	bool wild;                 /* base bytes and scales of any bits (scales finite), not of tame numbers */
	const float *scales_given; /* instead of the generated ones: per plane rows, then columns */
	/* Filled in: */
	char *base, *stored, *expected;
	uint8_t *bits;
	float *scales;
	size_t size, base_size, stored_size, bits_size, scale_count, head_size;
	uint64_t rows, cols;
	struct td_tensor base_tensor;
};

struct ts_part {                   /* a tensor of the container */
	const char *name, *dtype;
	unsigned dims;
	uint64_t shape[8];
	const void *data;
	size_t size;
};

struct ts_file {
	const char *name;
	const char *text;  /* of a file that is not safetensors; size 0: its length */
	char *data;        /* filled in: what the file must contain */
	size_t size;
};

struct ts_model {
	struct ts_tensor *tensors;
	size_t count;
	struct ts_file files[8];    /* others first, given by the caller; safetensors files are added */
	size_t file_count;
	size_t base_shards;         /* 0 or 1: model.safetensors; more: with an index */
	size_t header_pad;          /* spaces after each safetensors header; 0: 3, so that it is misaligned */
	/* Filled in: */
	char *base_path, *delta_path, *delta;
	size_t delta_size;
	char *manifest;
	struct ts_part *parts;      /* the manifest is the last */
	size_t part_count;
};

/* ---- Numbers, written for plainness ---- */

__attribute__((unused))
static float ts_to_float(const void *p, enum bd_dtype dtype)
{
	uint16_t h;
	uint32_t u;
	float f;

	if (dtype == BD_F32) {
		memcpy(&f, p, 4);
		return f;
	}
	memcpy(&h, p, 2);
	if (dtype == BD_BF16) {
		u = (uint32_t)h << 16;
		memcpy(&f, &u, 4);
		return f;
	}
	if ((h & 0x7C00) == 0x7C00)
		f = h & 0x3FF ? NAN : INFINITY;
	else if ((h & 0x7C00) == 0)
		f = (float)ldexp(h & 0x3FF, -24);
	else
		f = (float)ldexp(1024 + (h & 0x3FF), (h >> 10 & 31) - 25);
	return h & 0x8000 ? -f : f;
}

__attribute__((unused))
static void ts_from_float(float f, enum bd_dtype dtype, void *p)
{
	uint32_t u;
	uint16_t h;

	memcpy(&u, &f, 4);
	if (dtype == BD_F32) {
		u = isnan(f) ? 0x7FC00000 : u;
		memcpy(p, &u, 4);
		return;
	}
	if (dtype == BD_BF16) {
		uint32_t low = u & 0xFFFF;

		h = (uint16_t)(u >> 16);
		if (low > 0x8000 || (low == 0x8000 && (h & 1)))
			h++;
		if (isnan(f))
			h = 0x7FC0;
	} else if (isnan(f)) {
		h = 0x7E00;
	} else {
		double x = fabs((double)f), unit, m;
		int e = -14;

		if (x >= 65520) {
			h = 0x7C00;
		} else {
			while (e < 15 && x >= ldexp(1, e + 1))
				e++;
			unit = ldexp(1, e - 10);
			m = nearbyint(x / unit);
			if (m == 2048) {
				m = 1024;
				e++;
			}
			h = (uint16_t)(m < 1024 ? m : (e + 15) * 1024 + (m - 1024));
		}
		h |= (uint16_t)(u >> 16 & 0x8000);
	}
	memcpy(p, &h, 2);
}

/* FORMAT.md section 4, one element at a time. */
__attribute__((unused))
static void ts_reference(const void *base, enum bd_dtype base_dtype, enum bd_dtype dtype,
			 const uint8_t *bits, const float *scales, unsigned planes, uint64_t rows,
			 uint64_t cols, char *out)
{
	size_t unit = bd_dtype_bits(dtype) / 8, base_unit = bd_dtype_bits(base_dtype) / 8;

	for (uint64_t e = 0; e < rows * cols; e++) {
		volatile float acc = ts_to_float((const char *)base + e * base_unit, base_dtype);

		for (unsigned p = 0; p < planes; p++) {
			const float *of_plane = scales + p * (rows + cols);
			volatile float s = of_plane[e / cols] * of_plane[rows + e % cols];
			uint64_t k = p * rows * cols + e;

			if (bits[k / 8] >> k % 8 & 1)
				acc = acc + s;
			else
				acc = acc + -s;
		}
		ts_from_float(acc, dtype, out + e * unit);
	}
}

/* ---- Building ---- */

static inline void *ts_memory(size_t size)
{
	/* Lives until exit; td_format would cut at NUL bytes. */
	size_t n;

	return td_raw_safetensors("", 0, NULL, size, &n) + 8;
}

static inline uint64_t ts_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline size_t ts_bytes(enum bd_dtype dtype, unsigned dims, const uint64_t *shape)
{
	struct td_tensor t = { .dtype = dtype, .dims = dims };

	memcpy(t.shape, shape, dims * sizeof(*shape));
	return td_tensor_size(&t);
}

static inline bool ts_has_base(const struct ts_tensor *t)
{
	return t->kind != TS_RAW;
}

static void ts_fill_scales(struct ts_tensor *t, uint64_t *seed)
{
	for (size_t i = 0; i < t->scale_count; i++) {
		uint64_t r = ts_random(seed);
		float f = (float)ldexp((double)(r >> 40) - (1 << 23), -29);

		if (t->wild) {
			uint32_t u = (uint32_t)r;

			if ((u & 0x7F800000) == 0x7F800000)
				u &= ~0x40000000u;
			memcpy(&f, &u, 4);
		}
		t->scales[i] = t->scales_given ? t->scales_given[i] : f;
	}
}

/* Make the bytes of a tensor: base, what is stored, what must come out. */
static void ts_prepare(struct ts_tensor *t)
{
	uint64_t shape[8] = { 0 }, head = 1, seed = 1;
	bool rows = t->kind == TS_ROWS_SAME || t->kind == TS_ROWS_SIGN;
	bool sign = t->kind == TS_SIGN || t->kind == TS_ROWS_SIGN;
	enum bd_dtype base_dtype = t->other_base_dtype ? t->base_dtype : t->dtype;
	size_t slice, head_base;

	for (const char *c = t->name; *c; c++)
		seed = seed * 31 + (unsigned char)*c;
	t->planes = sign ? t->planes ? t->planes : 1 : 0;
	t->size = ts_bytes(t->dtype, t->dims, t->shape);
	memcpy(shape, t->shape, sizeof(shape));
	if (rows)
		shape[0] = t->base_rows;
	t->base_tensor = (struct td_tensor){ .name = t->name, .dtype = base_dtype, .dims = t->dims };
	memcpy(t->base_tensor.shape, shape, sizeof(shape));
	t->base_size = ts_bytes(base_dtype, t->dims, shape);
	t->base = ts_memory(t->base_size);
	td_fill(t->base, t->base_size, t->wild ? BD_U8 : base_dtype, t->name);
	t->base_tensor.data = t->base;
	if (t->dims) {
		head = rows && t->base_rows < t->shape[0] ? t->base_rows : t->shape[0];
		t->cols = t->shape[t->dims - 1];
		t->rows = t->dims == 1 ? 1 : head;
		for (unsigned d = 1; d + 1 < t->dims; d++)
			t->rows *= t->shape[d];
	}
	slice = t->dims && t->shape[0] ? t->size / t->shape[0] : t->size;
	t->head_size = t->kind == TS_RAW ? 0 : t->dims ? slice * head : t->size;
	t->stored_size = t->size - t->head_size;
	t->stored = ts_memory(t->stored_size);
	td_fill(t->stored, t->stored_size, t->wild ? BD_U8 : t->dtype, td_format("%s stored", t->name));
	t->expected = ts_memory(t->size);
	if (sign) {
		uint64_t count = t->planes * t->rows * t->cols;

		t->scale_count = t->planes * (t->rows + t->cols);
		t->scales = ts_memory(t->scale_count * sizeof(float));
		ts_fill_scales(t, &seed);
		t->bits_size = (count + 63) / 64 * 8;
		t->bits = ts_memory(t->bits_size);
		td_fill(t->bits, t->bits_size, BD_U8, td_format("%s bits", t->name));
		for (uint64_t k = count; k < t->bits_size * 8; k++)
			t->bits[k / 8] &= (uint8_t)~(1 << k % 8);
		ts_reference(t->base, base_dtype, t->dtype, t->bits, t->scales, t->planes, t->rows,
			     t->cols, t->expected);
	} else {
		head_base = t->head_size;
		memcpy(t->expected, t->base, head_base);
	}
	memcpy(t->expected + t->head_size, t->stored, t->stored_size);
}

static void ts_le64(char *p, uint64_t value)
{
	for (int i = 0; i < 8; i++)
		p[i] = (char)(value >> 8 * i);
}

static void ts_shape(struct bd_buffer *b, unsigned dims, const uint64_t *shape)
{
	bd_buffer_printf(b, "[");
	for (unsigned d = 0; d < dims; d++)
		bd_buffer_printf(b, "%s%" PRIu64, d ? "," : "", shape[d]);
	bd_buffer_printf(b, "]");
}

static const char *ts_file_of(const struct ts_tensor *t)
{
	return t->file ? t->file : "model.safetensors";
}

/* The fine-tune's own file, with its tensors in the order of the list. */
static void ts_fine_file(struct ts_model *m, struct ts_file *f)
{
	struct bd_buffer b = { 0 };
	uint64_t at = 0;

	bd_buffer_printf(&b, "01234567{\"__metadata__\":{\"format\":\"pt\"}");
	for (size_t i = 0; i < m->count; i++) {
		const struct ts_tensor *t = &m->tensors[i];

		if (strcmp(ts_file_of(t), f->name) != 0)
			continue;
		bd_buffer_printf(&b, ", \"%s\": {\"shape\":", t->name);
		ts_shape(&b, t->dims, t->shape);
		bd_buffer_printf(&b, ",\"dtype\":\"%s\",\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
				 bd_dtype_name(t->dtype), at, at + t->size);
		at += t->size;
	}
	bd_buffer_printf(&b, "}");
	if (m->header_pad == 0)
		while (b.size % 8 != 3)
			bd_buffer_printf(&b, " ");
	for (size_t i = 0; i < m->header_pad; i++)
		bd_buffer_printf(&b, " ");
	f->size = b.size + at;
	f->data = ts_memory(f->size);
	memcpy(f->data, b.data, b.size);
	ts_le64(f->data, b.size - 8);
	at = b.size;
	for (size_t i = 0; i < m->count; i++)
		if (strcmp(ts_file_of(&m->tensors[i]), f->name) == 0) {
			memcpy(f->data + at, m->tensors[i].expected, m->tensors[i].size);
			at += m->tensors[i].size;
		}
	bd_buffer_free(&b);
}

static void ts_hash(struct bd_buffer *b, const char *key, const void *data, size_t size)
{
	char hash[BD_HASH];

	bd_hash_data(data, size, hash);
	bd_buffer_printf(b, ",\"%s\":\"%s\"", key, hash);
}

static void ts_entry(struct bd_buffer *b, const struct ts_tensor *t)
{
	static const char *const names[] = { "same", "sign", "raw", "rows", "rows" };
	size_t at = t->base_size > BD_SAMPLE ? (t->base_size - BD_SAMPLE) / 2 / 8 * 8 : 0;
	size_t n = t->base_size > BD_SAMPLE ? BD_SAMPLE : t->base_size;
	bool rows = t->kind == TS_ROWS_SAME || t->kind == TS_ROWS_SIGN;
	char hash[BD_HASH];

	bd_buffer_printf(b, "{\"name\":\"%s\",\"encoding\":\"%s\"", t->name, names[t->kind]);
	if (rows) {
		bd_buffer_printf(b, ",\"shared\":%" PRIu64 ",\"head\":\"%s\"",
				 t->base_rows < t->shape[0] ? t->base_rows : t->shape[0],
				 t->kind == TS_ROWS_SAME ? "same" : "sign");
		if (t->stored_size)
			ts_hash(b, "tail_xxh128", t->stored, t->stored_size);
	}
	if (t->planes) {
		bd_buffer_printf(b, ",\"planes\":%u", t->planes);
		ts_hash(b, "xxh128", t->bits, t->bits_size);
	}
	if (t->kind == TS_RAW)
		ts_hash(b, "xxh128", t->stored, t->stored_size);
	if (ts_has_base(t)) {
		bd_buffer_printf(b, ",\"base\":{\"dtype\":\"%s\",\"shape\":",
				 bd_dtype_name(t->base_tensor.dtype));
		ts_shape(b, t->base_tensor.dims, t->base_tensor.shape);
		ts_hash(b, "xxh128", t->base, t->base_size);
		bd_hash64_text(XXH3_64bits(t->base + at, n), hash);
		bd_buffer_printf(b, ",\"sample\":\"%s\"}", hash);
	}
	bd_buffer_printf(b, "}");
}

static void ts_write_container(struct ts_model *m, size_t manifest_size, const char *hash)
{
	const struct ts_part *parts = m->parts;
	size_t count = m->part_count;
	struct bd_buffer b = { 0 };
	uint64_t at = 0;

	bd_buffer_printf(&b, "01234567{\"__metadata__\":{\"format\":\"bdelta\",\"version\":\"1\","
			 "\"manifest_size\":\"%zu\",\"manifest_xxh128\":\"%s\"}", manifest_size, hash);
	for (size_t i = 0; i < count; i++) {
		bd_buffer_printf(&b, ",\"%s\":{\"dtype\":\"%s\",\"shape\":", parts[i].name, parts[i].dtype);
		ts_shape(&b, parts[i].dims, parts[i].shape);
		bd_buffer_printf(&b, ",\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
				 at + parts[i].size);
		at += parts[i].size;
	}
	bd_buffer_printf(&b, "}");
	while (b.size % 8 != 5) /* readers cannot rely on alignment */
		bd_buffer_printf(&b, " ");
	ts_le64(b.data, b.size - 8);
	for (size_t i = 0; i < count; i++)
		bd_buffer_append(&b, parts[i].data, parts[i].size);
	m->delta = ts_memory(b.size);
	m->delta_size = b.size;
	memcpy(m->delta, b.data, b.size);
	bd_buffer_free(&b);
}

static void ts_deflate(struct ts_part *p, const void *data, size_t size)
{
	uLongf n = compressBound(size);
	char *packed = ts_memory(n);

	compress2((Bytef *)packed, &n, data, size, 6);
	p->data = packed;
	p->size = n;
	p->dtype = "U8";
	p->dims = 1;
	p->shape[0] = n;
}

static int ts_by_name(const void *a, const void *b)
{
	return strcmp(((const struct ts_file *)a)->name, ((const struct ts_file *)b)->name);
}

/* Set the manifest, and make the container anew. */
__attribute__((unused))
static void ts_pack(struct ts_model *m, const char *manifest)
{
	char hash[BD_HASH];

	m->manifest = td_format("%s", manifest);
	bd_hash_data(manifest, strlen(manifest), hash);
	ts_deflate(&m->parts[m->part_count - 1], manifest, strlen(manifest));
	ts_write_container(m, strlen(manifest), hash);
}

/* Container and manifest from tensors that are prepared and files that are there. */
static void ts_write_delta(struct ts_model *m)
{
	struct ts_part *parts = ts_memory((2 * m->count + 16) * sizeof(*parts));
	struct bd_buffer text = { 0 }, scales = { 0 };
	size_t n = 0;

	for (size_t i = 0; i < m->count; i++) {
		struct ts_tensor *t = &m->tensors[i];

		if (t->planes)
			parts[n++] = (struct ts_part){
				.name = td_format("sign/%s", t->name), .dtype = "U8", .dims = 1,
				.shape = { t->bits_size }, .data = t->bits, .size = t->bits_size,
			};
		if (t->kind == TS_RAW || t->stored_size) {
			struct ts_part *p = &parts[n++];

			*p = (struct ts_part){
				.name = td_format("raw/%s", t->name), .dtype = bd_dtype_name(t->dtype),
				.dims = t->dims, .data = t->stored, .size = t->stored_size,
			};
			memcpy(p->shape, t->shape, sizeof(p->shape));
			if (t->kind != TS_RAW)
				p->shape[0] -= t->base_rows;
		}
	}
	bd_buffer_printf(&text, "{\"features\":[],\"producer\":\"the tests\",\"base\":{\"label\":\"base\","
			 "\"digest\":\"00000000000000000000000000000000\"},\"files\":[");
	for (size_t f = 0; f < m->file_count; f++) {
		struct ts_file *file = &m->files[f];
		const char *comma = "";

		bd_buffer_printf(&text, "%s{\"name\":\"%s\",\"size\":%zu", f ? "," : "", file->name,
				 file->size);
		if (file->text) {
			ts_hash(&text, "xxh128", file->data, file->size);
			parts[n].name = td_format("file/%s", file->name);
			ts_deflate(&parts[n++], file->data, file->size);
		} else {
			uint64_t length = 0;

			for (int i = 7; i >= 0; i--)
				length = length << 8 | (unsigned char)file->data[i];
			bd_buffer_printf(&text, ",\"header\":");
			bd_buffer_json_string(&text, file->data + 8, length);
			bd_buffer_printf(&text, ",\"tensors\":[");
			for (size_t i = 0; i < m->count; i++) {
				struct ts_tensor *t = &m->tensors[i];

				if (strcmp(ts_file_of(t), file->name) != 0)
					continue;
				bd_buffer_printf(&text, "%s", comma);
				comma = ",";
				ts_entry(&text, t);
				if (t->scale_count)
					bd_buffer_append(&scales, t->scales,
							 t->scale_count * sizeof(float));
			}
			bd_buffer_printf(&text, "]");
		}
		bd_buffer_printf(&text, "}");
	}
	bd_buffer_printf(&text, "]");
	if (scales.size) {
		ts_hash(&text, "scales_xxh128", scales.data, scales.size);
		parts[n++] = (struct ts_part){
			.name = "scales", .dtype = "F32", .dims = 1,
			.shape = { scales.size / sizeof(float) }, .size = scales.size,
			.data = memcpy(ts_memory(scales.size), scales.data, scales.size),
		};
	}
	bd_buffer_printf(&text, "}");
	parts[n++].name = "manifest";
	m->parts = parts;
	m->part_count = n;
	ts_pack(m, text.data);
	bd_buffer_free(&text);
	bd_buffer_free(&scales);
}

static void ts_write_base(struct ts_model *m)
{
	struct td_tensor *t = ts_memory((m->count + 1) * sizeof(*t));
	struct bd_buffer index = { 0 };
	size_t shards = m->base_shards ? m->base_shards : 1;

	bd_buffer_printf(&index, "{\"weight_map\":{");
	for (size_t s = 0; s < shards; s++) {
		char *name = shards == 1 ? td_format("model.safetensors") :
					   td_format("shard-%zu.safetensors", s);
		size_t n = 0;

		for (size_t i = 0; i < m->count; i++)
			/* In another order than the fine-tune's. */
			if (ts_has_base(&m->tensors[m->count - 1 - i]) && i % shards == s) {
				t[n] = m->tensors[m->count - 1 - i].base_tensor;
				bd_buffer_printf(&index, "%s\"%s\":\"%s\"", index.size > 16 ? "," : "",
						 t[n].name, name);
				n++;
			}
		td_safetensors(m->base_path, name, t, n, "{}");
	}
	bd_buffer_printf(&index, "}}");
	if (shards > 1)
		td_text(m->base_path, "model.safetensors.index.json", index.data);
	bd_buffer_free(&index);
}

__attribute__((unused))
static void ts_build(struct ts_model *m, const char *dir)
{
	m->base_path = td_mkdir(dir, "base");
	for (size_t f = 0; f < m->file_count; f++) {
		if (m->files[f].size == 0)
			m->files[f].size = strlen(m->files[f].text);
		m->files[f].data = ts_memory(m->files[f].size);
		memcpy(m->files[f].data, m->files[f].text, m->files[f].size);
	}
	for (size_t i = 0; i < m->count; i++) {
		const char *name = ts_file_of(&m->tensors[i]);
		size_t f = 0;

		ts_prepare(&m->tensors[i]);
		while (f < m->file_count && strcmp(m->files[f].name, name) != 0)
			f++;
		if (f == m->file_count)
			m->files[m->file_count++] = (struct ts_file){ .name = name };
	}
	for (size_t f = 0; f < m->file_count; f++)
		if (!m->files[f].text)
			ts_fine_file(m, &m->files[f]);
	qsort(m->files, m->file_count, sizeof(m->files[0]), ts_by_name);
	ts_write_base(m);
	ts_write_delta(m);
	m->delta_path = td_write(dir, "fine.bdelta", m->delta, m->delta_size);
}

/* Write the model's fine-tune as a plain checkpoint DIR/NAME; its path. */
__attribute__((unused))
static char *ts_write_fine(const struct ts_model *m, const char *dir, const char *name)
{
	char *path = td_mkdir(dir, name);

	for (size_t f = 0; f < m->file_count; f++)
		td_write(path, m->files[f].name, m->files[f].data, m->files[f].size);
	return path;
}

#endif
