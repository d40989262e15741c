/* SPDX-License-Identifier: Apache-2.0 */
/* test_import.c: which encoding each tensor gets, the scales, and that an import is all or nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "export.h"
#include "export.h"
#include "import.h"
#include "paths.h"
#include "refine.h"
#include "testdata.h"
#include "testdelta.h"
#include "verify.h"
#include "view.h"

static struct bd_error err;

static const struct bd_import_options defaults = {
	.scale = BD_SCALE_RANK1, .threads = 2,
};

static int import_with(struct bd_import_options o, const char *base, const char *fine, const char *out)
{
	o.base = base;
	o.fine = fine;
	o.out = out;
	memset(&err, 0, sizeof(err));
	return bd_import(&o, &err);
}

static void imported(struct bd_import_options o, const char *base, const char *fine, const char *out)
{
	if (import_with(o, base, fine, out))
		fail_msg("%s", err.text);
}

static struct bd_delta *opened(const char *path)
{
	struct bd_delta *d;

	if (bd_delta_open(&d, path, &err))
		fail_msg("%s", err.text);
	return d;
}

static const struct bd_entry *entry(const struct bd_delta *d, const char *name)
{
	for (size_t f = 0; f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++)
			if (strcmp(d->files[f].entries[i].tensor->name, name) == 0)
				return &d->files[f].entries[i];
	fail_msg("no tensor %s", name);
	return NULL;
}

static void encoded(const struct bd_delta *d, const char *name, enum bd_encoding encoding,
		    enum bd_encoding head)
{
	const struct bd_entry *e = entry(d, name);

	if (e->encoding != encoding || e->head != head)
		fail_msg("%s is %s (%s), expected %s (%s)", name, bd_encoding_name(e->encoding),
			 bd_encoding_name(e->head), bd_encoding_name(encoding), bd_encoding_name(head));
}

/* Names in a directory that are not among the expected. */
static unsigned strangers(const char *dir, const char *expected)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		     (!expected || strcmp(e->d_name, expected) != 0);
	closedir(d);
	return n;
}

/* ---- A pair of checkpoints, built tensor by tensor ---- */

struct pair {
	struct td_tensor base[400], fine[400];
	size_t base_count, fine_count;
	char *dir, *base_path, *fine_path, *out;
};

static char *bytes_of(const struct td_tensor *t, const char *seed)
{
	char *data = ts_memory(td_tensor_size(t));

	td_fill(data, td_tensor_size(t), t->dtype, seed);
	return data;
}

/* In both: `changed` gives the fine-tune other numbers. The shape of the base is the fine-tune's but
 * for the first dimension (0: the same). */
static struct td_tensor *both(struct pair *p, const char *name, enum bd_dtype dtype, unsigned dims,
			      uint64_t rows, uint64_t cols, uint64_t base_rows, bool changed)
{
	struct td_tensor *f = &p->fine[p->fine_count++], *b = &p->base[p->base_count++];
	size_t n;

	*f = (struct td_tensor){ .name = name, .dtype = dtype, .dims = dims, .shape = { rows, cols } };
	*b = *f;
	if (base_rows)
		b->shape[0] = base_rows;
	b->data = bytes_of(b, name);
	f->data = bytes_of(f, td_format("%s changed", name));
	n = td_tensor_size(f) < td_tensor_size(b) ? td_tensor_size(f) : td_tensor_size(b);
	if (!changed)
		memcpy((char *)f->data, b->data, n);
	return f;
}

static struct td_tensor *fine_only(struct pair *p, const char *name, enum bd_dtype dtype,
				   unsigned dims, uint64_t rows, uint64_t cols)
{
	struct td_tensor *f = both(p, name, dtype, dims, rows, cols, 0, true);

	p->base_count--;
	return f;
}

/* The dtype of the base's last tensor becomes another one. */
static void base_dtype(struct pair *p, enum bd_dtype dtype)
{
	struct td_tensor *b = &p->base[p->base_count - 1];

	b->dtype = dtype;
	b->data = bytes_of(b, b->name);
}

static struct pair *new_pair(void)
{
	struct pair *p = ts_memory(sizeof(*p));

	p->dir = td_dir();
	p->base_path = td_mkdir(p->dir, "base");
	p->fine_path = td_mkdir(p->dir, "fine");
	p->out = td_path(td_mkdir(p->dir, "out"), "x.bdelta");
	return p;
}

static void written(struct pair *p)
{
	td_safetensors(p->base_path, "model.safetensors", p->base, p->base_count, NULL);
	td_safetensors(p->fine_path, "model.safetensors", p->fine, p->fine_count,
		       "{\"format\":\"pt\"}");
}

static void check_bytes(const struct pair *p);

static void encodings(void **state)
{
	struct pair *p = new_pair();
	struct td_tensor *t;
	struct bd_delta *d;
	uint16_t nan = 0x7FC0, inf = 0x7F80;
	char *zeros;

	(void)state;
	both(p, "l.0.q.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "l.0.k.weight", BD_BF16, 2, 32, 64, 0, false);
	both(p, "l.0.conv.weight", BD_F16, 3, 20, 4, 0, true)->shape[2] = 9;
	p->base[p->base_count - 1].shape[2] = 9;
	p->base[p->base_count - 1].data = bytes_of(&p->base[p->base_count - 1], "a");
	p->fine[p->fine_count - 1].data = bytes_of(&p->fine[p->fine_count - 1], "b");
	both(p, "l.0.f32.weight", BD_F32, 2, 32, 17, 0, true);
	both(p, "f16.on.bf16", BD_F16, 2, 32, 64, 0, true);
	base_dtype(p, BD_BF16);
	both(p, "bf16.on.f32", BD_BF16, 2, 31, 65, 0, true);
	base_dtype(p, BD_F32);
	both(p, "f32.on.f16", BD_F32, 2, 31, 65, 0, true);
	base_dtype(p, BD_F16);
	both(p, "tiny.weight", BD_BF16, 2, 2, 2, 0, true);
	both(p, "column.weight", BD_BF16, 2, 100, 1, 0, true);
	both(p, "l.0.input_layernorm.weight", BD_BF16, 1, 64, 0, 0, true);
	both(p, "l.1.input_layernorm.weight", BD_BF16, 1, 64, 0, 0, false);
	both(p, "norm.f32.on.bf16", BD_F32, 1, 64, 0, 0, true);
	base_dtype(p, BD_BF16);
	both(p, "l.0.q.bias", BD_F32, 1, 64, 0, 0, true);
	both(p, "longer.bias", BD_F32, 1, 64, 0, 60, true);
	both(p, "l.0.router.weight", BD_BF16, 2, 8, 64, 0, true);
	both(p, "l.0.mlp.gate.weight", BD_BF16, 2, 8, 64, 0, true);
	both(p, "model.embed_tokens.weight", BD_BF16, 2, 53, 16, 50, false);
	both(p, "shared.weight", BD_F16, 2, 40, 16, 50, false);
	both(p, "lm_head.weight", BD_BF16, 2, 53, 16, 50, true);
	both(p, "wte.weight", BD_BF16, 2, 50, 16, 0, true);
	both(p, "fp8.same", BD_F8_E4M3, 2, 16, 16, 0, false);
	both(p, "fp8.changed", BD_F8_E5M2, 2, 16, 16, 0, true);
	both(p, "fp8.on.bf16", BD_F8_E4M3, 2, 16, 16, 0, true);
	base_dtype(p, BD_BF16);
	both(p, "bf16.on.fp8", BD_BF16, 2, 16, 16, 0, true);
	base_dtype(p, BD_F8_E4M3);
	both(p, "i64.same", BD_I64, 2, 5, 5, 0, false);
	both(p, "i64.changed", BD_I64, 2, 5, 5, 0, true);
	both(p, "bool", BD_BOOL, 2, 5, 5, 0, true);
	both(p, "f64.weight", BD_F64, 2, 32, 32, 0, true);
	both(p, "scalar.same", BD_F32, 0, 0, 0, 0, false);
	both(p, "scalar.changed", BD_F32, 0, 0, 0, 0, true);
	both(p, "empty", BD_BF16, 2, 0, 16, 0, true);
	fine_only(p, "new.weight", BD_BF16, 2, 32, 32);
	t = both(p, "nan.fine", BD_BF16, 2, 32, 32, 0, true);
	memcpy((char *)t->data + 100, &nan, 2);
	t = both(p, "inf.fine", BD_BF16, 2, 32, 32, 0, true);
	memcpy((char *)t->data + 102, &inf, 2);
	both(p, "inf.base", BD_BF16, 2, 32, 32, 0, true);
	memcpy((char *)p->base[p->base_count - 1].data + 102, &inf, 2);
	t = both(p, "nan.same", BD_BF16, 2, 32, 32, 0, false);
	memcpy((char *)t->data + 102, &nan, 2);
	memcpy((char *)p->base[p->base_count - 1].data + 102, &nan, 2);
	/* Only the sign of a zero differs: not bit-identical. */
	zeros = bytes_of(&p->base[0], "l.0.q.weight");
	memset(zeros, 0, 8);
	t = both(p, "zero.weight", BD_BF16, 2, 32, 64, 0, false);
	t->data = ts_memory(4096);
	p->base[p->base_count - 1].data = ts_memory(4096);
	((char *)t->data)[1] = (char)0x80;
	written(p);
	td_text(p->fine_path, "config.json", "{\"model_type\":\"llama\"}");
	td_text(p->fine_path, "empty.txt", "");
	td_text(p->fine_path, "pytorch_model.bin", "not taken");
	imported(defaults, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	encoded(d, "l.0.q.weight", BD_SIGN, BD_SIGN);
	encoded(d, "l.0.k.weight", BD_SAME, BD_SAME);
	encoded(d, "l.0.conv.weight", BD_SIGN, BD_SIGN);
	encoded(d, "l.0.f32.weight", BD_SIGN, BD_SIGN);
	encoded(d, "f16.on.bf16", BD_SIGN, BD_SIGN);
	encoded(d, "bf16.on.f32", BD_SIGN, BD_SIGN);
	encoded(d, "f32.on.f16", BD_SIGN, BD_SIGN);
	encoded(d, "tiny.weight", BD_RAW, BD_RAW);
	encoded(d, "column.weight", BD_RAW, BD_RAW);
	encoded(d, "l.0.input_layernorm.weight", BD_RAW, BD_RAW);
	encoded(d, "l.1.input_layernorm.weight", BD_SAME, BD_SAME);
	encoded(d, "norm.f32.on.bf16", BD_RAW, BD_RAW);
	encoded(d, "l.0.q.bias", BD_RAW, BD_RAW);
	encoded(d, "longer.bias", BD_RAW, BD_RAW);
	encoded(d, "l.0.router.weight", BD_RAW, BD_RAW);
	encoded(d, "l.0.mlp.gate.weight", BD_RAW, BD_RAW);
	encoded(d, "model.embed_tokens.weight", BD_ROWS, BD_SAME);
	assert_int_equal(entry(d, "model.embed_tokens.weight")->shared, 50);
	assert_int_equal(entry(d, "model.embed_tokens.weight")->raw->shape[0], 3);
	encoded(d, "shared.weight", BD_ROWS, BD_SAME);
	assert_int_equal(entry(d, "shared.weight")->shared, 40);
	assert_null(entry(d, "shared.weight")->raw);
	encoded(d, "lm_head.weight", BD_RAW, BD_RAW);
	encoded(d, "wte.weight", BD_RAW, BD_RAW);
	encoded(d, "fp8.same", BD_SAME, BD_SAME);
	encoded(d, "fp8.changed", BD_RAW, BD_RAW);
	encoded(d, "fp8.on.bf16", BD_RAW, BD_RAW);
	encoded(d, "bf16.on.fp8", BD_RAW, BD_RAW);
	encoded(d, "i64.same", BD_SAME, BD_SAME);
	encoded(d, "i64.changed", BD_RAW, BD_RAW);
	encoded(d, "bool", BD_RAW, BD_RAW);
	encoded(d, "f64.weight", BD_RAW, BD_RAW);
	encoded(d, "scalar.same", BD_SAME, BD_SAME);
	encoded(d, "scalar.changed", BD_RAW, BD_RAW);
	encoded(d, "empty", BD_RAW, BD_RAW);
	encoded(d, "new.weight", BD_RAW, BD_RAW);
	encoded(d, "nan.fine", BD_RAW, BD_RAW);
	encoded(d, "inf.fine", BD_RAW, BD_RAW);
	encoded(d, "inf.base", BD_RAW, BD_RAW);
	encoded(d, "nan.same", BD_SAME, BD_SAME);
	encoded(d, "zero.weight", BD_SIGN, BD_SIGN);
	/* Every stored tensor is aligned to its elements. */
	for (size_t i = 0; i < d->st->count; i++) {
		const struct bd_tensor *s = &d->st->tensors[i];
		unsigned size = bd_dtype_bits(s->dtype) / 8;

		if (strncmp(s->name, "sign/", 5) == 0)
			size = 8;
		if (size && s->offset % size != 0)
			fail_msg("%s is at %" PRIu64, s->name, s->offset);
	}
	assert_int_equal(d->file_count, 3);
	assert_string_equal(d->base_label, "base");
	assert_string_equal(d->scale_kind, "rank1");
	assert_true(d->attenuation == BD_ATTENUATION && !d->distilled);
	bd_delta_close(d);
	check_bytes(p);
}

/* The bytes of the view: signs from what the file stores, everything else the fine-tune's own. */
static void check_bytes(const struct pair *p)
{
	struct bd_base *base;
	struct bd_delta *d = opened(p->out);
	struct bd_view *v;
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_watch watch = { 0 };
	size_t f = 0, size;
	char *truth = td_read(td_path(p->fine_path, "model.safetensors"), &size), *read = malloc(size);

	if (bd_base_open(&base, p->base_path, &err) || bd_verify(d, base, &watch, &err) ||
	    bd_view_open(&v, d, base, &err))
		fail_msg("%s", err.text);
	while (strcmp(v->files[f].name, "model.safetensors") != 0)
		f++;
	assert_int_equal(v->files[f].size, size);
	if (bd_view_read(v, f, read, size, 0, scratch, &err) != (ssize_t)size)
		fail_msg("%s", err.text);
	assert_memory_equal(read, truth, d->files[f].st->header_size);
	for (size_t i = 0; i < d->files[f].st->count; i++) {
		const struct bd_entry *e = &d->files[f].entries[i];
		const struct bd_base_tensor *b = bd_base_find(base, e->tensor->name);
		char *expected = malloc(e->tensor->size + 1);

		memcpy(expected, truth + e->tensor->offset, e->tensor->size);
		if (e->sign) {
			uint8_t *bits = malloc(e->sign->size);
			size_t n = (e->rows + e->cols) * sizeof(float);
			float *scales = malloc(n);
			char *from = malloc(b->tensor->size);

			bd_file_read(d->file, bits, e->sign->size, e->sign->offset, &err);
			bd_file_read(d->file, scales, n, d->scales->offset + e->scales * 4, &err);
			bd_file_read(b->shard->file, from, b->tensor->size, b->tensor->offset, &err);
			ts_reference(from, e->base_dtype, e->tensor->dtype, bits, scales, 1, e->rows,
				     e->cols, expected);
			free(bits);
			free(scales);
			free(from);
		}
		if (memcmp(expected, read + e->tensor->offset, e->tensor->size) != 0)
			fail_msg("%s has other bytes", e->tensor->name);
		free(expected);
	}
	free(read);
	bd_scratch_free(scratch);
	bd_view_close(v);
	bd_base_close(base);
}

static void rules(void **state)
{
	static const struct bd_rule all_raw[] = { { false, "*" } };
	static const struct bd_rule last_wins[] = {
		{ false, "*" }, { true, "b.*" }, { false, "b.x*" }, { true, "b.xy" },
	};
	static const struct bd_rule more[] = { { true, "lm_head.weight" }, { true, "*" } };
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;
	struct bd_delta *d;

	(void)state;
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "b.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "b.x", BD_BF16, 2, 32, 64, 0, true);
	both(p, "b.xy", BD_BF16, 2, 32, 64, 0, true);
	both(p, "lm_head.weight", BD_BF16, 2, 53, 16, 50, true);
	both(p, "embed.weight", BD_BF16, 2, 40, 16, 50, true);
	both(p, "other.grown", BD_F16, 2, 60, 16, 50, true);
	both(p, "norm.weight", BD_F32, 1, 6400, 0, 0, true);
	both(p, "wpe.weight", BD_F32, 2, 64, 64, 0, true);
	both(p, "same.weight", BD_F32, 2, 64, 64, 0, false);
	written(p);
	o.rules = all_raw;
	o.rule_count = 1;
	imported(o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	for (size_t i = 0; i < d->files[0].st->count; i++)
		assert_true(d->files[0].entries[i].encoding == BD_RAW ||
			    d->files[0].entries[i].encoding == BD_SAME);
	encoded(d, "same.weight", BD_SAME, BD_SAME);
	assert_null(d->scales);
	bd_delta_close(d);
	check_bytes(p);

	o.rules = last_wins;
	o.rule_count = 4;
	imported(o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	encoded(d, "a.weight", BD_RAW, BD_RAW);
	encoded(d, "b.weight", BD_SIGN, BD_SIGN);
	encoded(d, "b.x", BD_RAW, BD_RAW);
	encoded(d, "b.xy", BD_SIGN, BD_SIGN);
	bd_delta_close(d);

	o.rules = more;
	o.rule_count = 2;
	imported(o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	encoded(d, "lm_head.weight", BD_ROWS, BD_SIGN);
	assert_int_equal(entry(d, "lm_head.weight")->shared, 50);
	assert_int_equal(entry(d, "lm_head.weight")->raw->shape[0], 3);
	encoded(d, "embed.weight", BD_ROWS, BD_SIGN);
	assert_null(entry(d, "embed.weight")->raw);
	encoded(d, "other.grown", BD_ROWS, BD_SIGN);
	/* A vector has a column scale per element: signs cannot pay. */
	encoded(d, "norm.weight", BD_RAW, BD_RAW);
	encoded(d, "wpe.weight", BD_SIGN, BD_SIGN);
	encoded(d, "same.weight", BD_SAME, BD_SAME);
	bd_delta_close(d);
	check_bytes(p);

	/* Without a rule, only tables with a row per token may have another size. */
	assert_int_equal(import_with(defaults, p->base_path, p->fine_path, p->out), -EINVAL);
	assert_non_null(strstr(err.text, "'other.grown' has shape [50, 16]"));
	assert_non_null(strstr(err.text, "[60, 16]"));
	assert_non_null(strstr(err.text, "--raw 'other.grown'"));
}

static void close_to(double found, double expected, const char *what, uint64_t at)
{
	if (!(fabs(found - expected) <= 1e-5 * fabs(expected)))
		fail_msg("%s %" PRIu64 " is %.9g, expected %.9g", what, at, found, expected);
}

/* Signs and scales of one tensor against sums in double, and the error that is noted. */
static void check_scales(const struct pair *p, const struct bd_delta *d, enum bd_scale kind, double f,
			 size_t index)
{
	const struct td_tensor *ft = &p->fine[index], *bt = &p->base[index];
	const struct bd_entry *e = entry(d, ft->name);
	uint64_t rows = ft->shape[0], cols = ft->shape[1];
	size_t unit = bd_dtype_bits(ft->dtype) / 8, base_unit = bd_dtype_bits(bt->dtype) / 8;
	uint8_t *bits = malloc(e->sign->size);
	float *scales = malloc((rows + cols) * sizeof(float));
	double *row = calloc(rows, sizeof(double)), *col = calloc(cols, sizeof(double));
	double total = 0, off = 0, moved = 0;
	char *out = malloc(rows * cols * unit);

	assert_int_equal(e->rows, rows);
	assert_int_equal(e->cols, cols);
	assert_int_equal(e->planes, 1);
	bd_file_read(d->file, bits, e->sign->size, e->sign->offset, &err);
	bd_file_read(d->file, scales, (rows + cols) * 4, d->scales->offset + e->scales * 4, &err);
	ts_reference(bt->data, bt->dtype, ft->dtype, bits, scales, 1, rows, cols, out);
	for (uint64_t k = 0; k < rows * cols; k++) {
		float w = ts_to_float((const char *)ft->data + k * unit, ft->dtype);
		float b = ts_to_float((const char *)bt->data + k * base_unit, bt->dtype);
		float delta = w - b, s = ts_to_float(out + k * unit, ft->dtype);

		assert_int_equal(bits[k / 8] >> k % 8 & 1, delta > 0);
		row[k / cols] += fabs((double)delta);
		col[k % cols] += fabs((double)delta);
		total += fabs((double)delta);
		off += ((double)s - w) * ((double)s - w);
		moved += ((double)w - b) * ((double)w - b);
	}
	for (uint64_t k = rows * cols; k < e->sign->size * 8; k++)
		assert_int_equal(bits[k / 8] >> k % 8 & 1, 0);
	total /= (double)(rows * cols);
	for (uint64_t i = 0; i < rows; i++)
		close_to(scales[i], f * (kind == BD_SCALE_TENSOR ? total : row[i] / (double)cols), "row", i);
	for (uint64_t j = 0; j < cols; j++)
		close_to(scales[rows + j], kind == BD_SCALE_RANK1 ? col[j] / (double)rows / total : 1,
			 "column", j);
	if (rows <= 128)
		assert_true(fabs(e->error - sqrt(off / moved)) <= 0.006 * e->error);
	assert_true(e->error > 0 && e->error < 2);
	free(bits);
	free(scales);
	free(row);
	free(col);
	free(out);
}

static void scales(void **state)
{
	static const enum bd_dtype types[] = { BD_BF16, BD_F16, BD_F32 };
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;

	(void)state;
	for (int a = 0; a < 3; a++)
		for (int b = 0; b < 3; b++) {
			both(p, td_format("t%d%d", a, b), types[a], 2, 20 + (uint64_t)a, 37 + (uint64_t)b, 0,
			     true);
			base_dtype(p, types[b]);
		}
	both(p, "tall", BD_BF16, 2, 3001, 33, 0, true);
	both(p, "wide", BD_F16, 2, 5, 40001, 0, true);
	written(p);
	for (enum bd_scale kind = BD_SCALE_TENSOR; kind <= BD_SCALE_RANK1; kind++)
		for (int f = 0; f < 2; f++) {
			struct bd_delta *d;

			o.scale = kind;
			o.attenuation = f ? 1.0 : 1.4;
			imported(o, p->base_path, p->fine_path, p->out);
			d = opened(p->out);
			assert_string_equal(d->scale_kind, bd_scale_name(kind));
			assert_true(d->attenuation == o.attenuation);
			for (size_t i = 0; i < p->fine_count; i++)
				check_scales(p, d, kind, o.attenuation, i);
			bd_delta_close(d);
		}
	check_bytes(p);
}

/* ---- The factor that fits a change ---- */

enum change { PLAIN, TRAINED, EVEN, WIDE }; /* of |d| / (row * col): 1, half-normal, 0.5 to 1.5, 0 to 2 */

/* From 0 to below 1, by number. */
static double uniform(uint64_t n)
{
	n = (n + 1) * 0x9E3779B97F4A7C15u;
	n = (n ^ n >> 32) * 0xD6E8FEB86659FD93u;
	n = (n ^ n >> 32) * 0xD6E8FEB86659FD93u;
	return (double)((n ^ n >> 32) >> 11) * 0x1p-53;
}

/* The fine-tune's last tensor becomes the base's with a change of about `size`, which differs from
 * row to row and from column to column. */
static void change_by(struct pair *p, enum change change, double size)
{
	struct td_tensor *f = &p->fine[p->fine_count - 1], *b = &p->base[p->base_count - 1];
	size_t unit = bd_dtype_bits(f->dtype) / 8, base_unit = bd_dtype_bits(b->dtype) / 8;
	uint64_t cols = f->shape[1];

	for (uint64_t e = 0; e < f->shape[0] * cols; e++) {
		double u = uniform(3 * e + 1), part = u < 0.5 ? -1 : 1;
		double scale = size * (0.5 + uniform(e / cols + 7777)) * (0.5 + uniform(e % cols + 999));

		if (change == TRAINED) /* normal, by Box and Muller */
			part = sqrt(-2 * log(1 - u)) * cos(6.283185307 * uniform(3 * e + 2));
		else if (change != PLAIN)
			part *= change == EVEN ? 0.5 + uniform(3 * e + 2) : 2 * uniform(3 * e + 2);
		ts_from_float((float)(ts_to_float((const char *)b->data + e * base_unit, b->dtype) +
				      part * scale), f->dtype, (char *)f->data + e * unit);
	}
}

static double factor_of(struct pair *p, const struct bd_import_options *o)
{
	struct bd_delta *d;
	double factor;

	written(p);
	imported(*o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	factor = d->attenuation;
	bd_delta_close(d);
	check_bytes(p);
	return factor;
}

static void factors(void **state)
{
	/* How large the change is beside weights of 2^-7 to 1: much more than BF16 resolves, and less. */
	static const double sizes[] = { 0.3, 0.0008 };
	static const struct { enum change change; double least[2], most[2]; } cases[] = {
		{ PLAIN, { 1, 1 }, { 1, 1 } },
		{ TRAINED, { 1.4, 1.3 }, { 1.4, 2.2 } },
		{ EVEN, { 1.05, 1 }, { 1.1, 1.8 } },
		{ WIDE, { 1.3, 1.2 }, { 1.39, 2.1 } },
	};
	struct bd_import_options o = defaults;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		for (int s = 0; s < 2; s++) {
			struct pair *p = new_pair();
			double factor;

			both(p, "a.weight", BD_BF16, 2, 96, 160, 0, true);
			change_by(p, cases[i].change, sizes[s]);
			factor = factor_of(p, &o);
			if (!(factor >= cases[i].least[s] && factor <= cases[i].most[s]))
				fail_msg("%g for change %zu of size %g", factor, i, sizes[s]);
		}
	/* The mean over the weights of all tensors, and an order is an order. */
	{
		struct pair *p = new_pair();
		struct bd_delta *d;

		both(p, "a.weight", BD_BF16, 2, 96, 160, 0, true);
		change_by(p, PLAIN, 0.3);
		both(p, "b.weight", BD_BF16, 2, 192, 160, 0, true);
		change_by(p, TRAINED, 0.3);
		close_to(factor_of(p, &o), (1 + 2 * 1.4) / 3, "mean of factor", 0);
		o.attenuation = 1.25;
		assert_true(factor_of(p, &o) == 1.25);
		d = opened(p->out);
		check_scales(p, d, BD_SCALE_RANK1, 1.25, 0);
		check_scales(p, d, BD_SCALE_RANK1, 1.25, 1);
		bd_delta_close(d);
	}
}

/* What the delta gives, as a directory. */
static void exported(const char *base_path, const char *delta, const char *out)
{
	struct bd_delta *d = opened(delta);
	struct bd_watch watch = { 0 };
	struct bd_base *base;
	struct bd_view *v;

	if (bd_base_open(&base, base_path, &err) || bd_view_open(&v, d, base, &err) ||
	    bd_export(v, out, &watch, &err))
		fail_msg("%s", err.text);
	bd_view_close(v);
	bd_base_close(base);
}

/* Elements of two fine-tunes that are further apart than two units in the last place, and than `least`. */
static unsigned apart(const struct pair *p, const char *a, const char *b, double least)
{
	const struct td_tensor *f = &p->fine[0];
	size_t size, unit = bd_dtype_bits(f->dtype) / 8, data = td_tensor_size(f);
	char *x = td_read(td_path(a, "model.safetensors"), &size);
	char *y = td_read(td_path(b, "model.safetensors"), &size);
	double epsilon = f->dtype == BD_F32 ? 0x1p-10 : f->dtype == BD_F16 ? 0x1p-9 : 0x1p-6;
	unsigned count = 0;

	x += size - data;
	y += size - data;
	for (size_t e = 0; e < data; e += unit) {
		double v = ts_to_float(x + e, f->dtype), w = ts_to_float(y + e, f->dtype);

		count += !(fabs(v - w) <= fmax(epsilon * fabs(v), least));
	}
	return count;
}

/* Importing what an export gave, again and again, gives the same but for rounding. */
static void generations(void **state)
{
	static const struct { enum bd_dtype base, fine; enum bd_scale scale; double size; } cases[] = {
		{ BD_BF16, BD_BF16, BD_SCALE_RANK1, 0.003 }, { BD_BF16, BD_BF16, BD_SCALE_RANK1, 0.1 },
		{ BD_F16, BD_F16, BD_SCALE_RANK1, 0.003 }, { BD_F32, BD_F32, BD_SCALE_RANK1, 0.003 },
		{ BD_F32, BD_BF16, BD_SCALE_RANK1, 0.01 }, { BD_BF16, BD_F32, BD_SCALE_RANK1, 0.001 },
		{ BD_BF16, BD_BF16, BD_SCALE_ROW, 0.003 }, { BD_BF16, BD_BF16, BD_SCALE_TENSOR, 0.003 },
		{ BD_BF16, BD_BF16, BD_SCALE_RANK1, 0.0005 },
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct bd_import_options o = defaults;
		struct pair *p = new_pair();
		char *first = NULL;

		o.scale = cases[i].scale;
		both(p, "a.weight", cases[i].fine, 2, 192, 320, 0, true);
		base_dtype(p, cases[i].base);
		change_by(p, TRAINED, cases[i].size);
		written(p);
		for (int generation = 1; generation <= 4; generation++) {
			char *out = td_format("%s/%d", p->dir, generation);
			struct bd_delta *d;

			imported(o, p->base_path, generation > 1 ? td_format("%s/%d", p->dir, generation - 1) :
								   p->fine_path, p->out);
			d = opened(p->out);
			if (generation > 1 && !(d->attenuation == 1 && entry(d, "a.weight")->error < 0.2))
				fail_msg("generation %d of case %zu: factor %g, error %g", generation, i,
					 d->attenuation, entry(d, "a.weight")->error);
			bd_delta_close(d);
			exported(p->base_path, p->out, out);
			first = first ? first : out;
			if (apart(p, first, out, cases[i].size / 16))
				fail_msg("generation %d of case %zu: %u elements differ", generation, i,
					 apart(p, first, out, cases[i].size / 16));
		}
	}
}

/* A pair with all kinds of tensors, in several shards, and files. */
static void mixed(struct pair *p)
{
	char *index = td_format("{\"weight_map\":{"), *half;
	size_t n;

	both(p, "ids", BD_I64, 1, 100, 0, 0, true);
	for (int i = 0; i < 12; i++) {
		both(p, td_format("l.%d.q.weight", i), i % 3 ? BD_BF16 : BD_F16, 2, 64 + (uint64_t)i % 4,
		     128 - (uint64_t)i % 5, 0, i != 3);
		both(p, td_format("l.%d.norm.weight", i), BD_F32, 1, 128, 0, 0, i % 2);
	}
	both(p, "l.0.o.weight", BD_BF16, 2, 64, 128, 0, true);
	change_by(p, PLAIN, 0.01);
	both(p, "l.1.o.weight", BD_F16, 2, 64, 128, 0, true);
	change_by(p, EVEN, 0.01);
	both(p, "embed.weight", BD_BF16, 2, 210, 64, 200, false);
	both(p, "odd.u8", BD_U8, 1, 3, 0, 0, true);
	n = p->fine_count / 2;
	written(p);
	unlink(td_path(p->fine_path, "model.safetensors"));
	td_safetensors(p->fine_path, "b.safetensors", p->fine, n, NULL);
	td_safetensors(p->fine_path, "a.safetensors", p->fine + n, p->fine_count - n, "{\"x\":\"y\"}");
	for (size_t i = 0; i < p->fine_count; i++) {
		half = td_format("%s%s\"%s\":\"%s\"", index, i ? "," : "", p->fine[i].name,
				 i < n ? "b.safetensors" : "a.safetensors");
		index = half;
	}
	td_text(p->fine_path, "model.safetensors.index.json", td_format("%s}}", index));
	td_text(p->fine_path, "config.json", "{\"model_type\":\"llama\"}");
	td_text(p->base_path, "config.json", "{\"model_type\":\"llama\"}");
}

static char program[4096];

/* Import in a process of its own. */
static void import_in_child(const char *cpu, unsigned threads, const struct pair *p, const char *out)
{
	char *count = td_format("%u", threads);
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (cpu)
			setenv("BITDELTA_CPU", cpu, 1);
		execl(program, program, "import", count, p->base_path, p->fine_path, out, (char *)NULL);
		_exit(3);
	}
	assert_true(waitpid(pid, &status, 0) == pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void same_everywhere(void **state)
{
	static const unsigned threads[] = { 1, 2, 7 };
	static const char *const cpus[] = { "scalar", "avx2", "avx512", "avx512bf16" };
	struct pair *p = new_pair();
	char *first = NULL, *path, *data;
	size_t size = 0, n;

	(void)state;
	mixed(p);
	for (int c = 0; c < 4; c++)
		for (int t = 0; t < 3; t++) {
			path = td_format("%s/%s-%u.bdelta", p->dir, cpus[c], threads[t]);
			import_in_child(cpus[c], threads[t], p, path);
			data = td_read(path, &n);
			if (!first) {
				first = data;
				size = n;
			}
			assert_int_equal(n, size);
			assert_memory_equal(data, first, size);
		}
	/* Nor do the time and the state of this process matter. */
	imported(defaults, p->base_path, p->fine_path, p->out);
	data = td_read(p->out, &n);
	assert_int_equal(n, size);
	assert_memory_equal(data, first, size);
}

/* Nobody pays for more than the weights' bits, the scales and what is kept whole. */
static void sizes(void **state)
{
	struct pair *p = new_pair();
	uint64_t bound = 0;
	struct stat st;

	(void)state;
	for (int i = 0; i < 40; i++) {
		uint64_t rows = 256 + 8 * (uint64_t)i, cols = 320;

		both(p, td_format("model.layers.%d.self_attn.q_proj.weight", i), BD_BF16, 2, rows, cols, 0,
		     true);
		bound += rows * cols / 8 + 4 * (rows + cols);
		both(p, td_format("model.layers.%d.input_layernorm.weight", i), BD_BF16, 1, cols, 0, 0, true);
		bound += 2 * cols;
	}
	both(p, "model.embed_tokens.weight", BD_BF16, 2, 1010, 320, 1000, false);
	bound += 2 * 10 * 320;
	both(p, "lm_head.weight", BD_BF16, 2, 1000, 320, 0, true);
	bound += 2 * 1000 * 320;
	both(p, "tied.weight", BD_BF16, 2, 1000, 320, 0, false);
	written(p);
	td_write(p->fine_path, "tokenizer.model", bytes_of(&p->fine[0], "tokens"), 50000);
	bound += 50000;
	imported(defaults, p->base_path, p->fine_path, p->out);
	assert_int_equal(stat(p->out, &st), 0);
	print_message("%lld bytes, %.2f %% above planes, scales, raw tensors and files\n",
		      (long long)st.st_size, 100.0 * ((double)st.st_size / (double)bound - 1));
	assert_true((double)st.st_size <= 1.01 * (double)bound);
	check_bytes(p);
}

/* BASE and FINE must be refused, in words with all of these; the old file stays, and nothing else. */
static void refused(struct pair *p, int code, const char *a, const char *b)
{
	char *dir = td_path(p->dir, "out"), *data;
	size_t size;
	int rc;

	td_text(dir, "x.bdelta", "old");
	rc = import_with(defaults, p->base_path, p->fine_path, p->out);
	if (rc != code || err.code != code || !strstr(err.text, a) || !strstr(err.text, b))
		fail_msg("%d, expected %d, \"%s\" and \"%s\": %s", rc, code, a, b, err.text);
	data = td_read(p->out, &size);
	assert_string_equal(data, "old");
	assert_int_equal(strangers(dir, "x.bdelta"), 0);
}

static void refuses(void **state)
{
	static const char *const outs[] = { "x", "x.bdelta.txt", ".bdelta", "bdelta", "dir/.bdelta", "" };
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;

	(void)state;
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	written(p);
	for (size_t i = 0; i < sizeof(outs) / sizeof(*outs); i++) {
		assert_int_equal(import_with(defaults, p->base_path, p->fine_path, outs[i]), -EINVAL);
		assert_non_null(strstr(err.text, "SOMETHING.bdelta"));
	}
	assert_int_equal(import_with(defaults, p->base_path, p->fine_path,
				     td_path(p->dir, "none/x.bdelta")), -ENOENT);
	assert_non_null(strstr(err.text, "none"));
	for (int i = 0; i < 3; i++) {
		o.attenuation = (double[]){ -1, NAN, INFINITY }[i];
		assert_int_equal(import_with(o, p->base_path, p->fine_path, p->out), -EINVAL);
		assert_non_null(strstr(err.text, "attenuation"));
	}
	assert_int_equal(import_with(defaults, td_path(p->dir, "no-base"), p->fine_path, p->out), -ENOENT);
	assert_non_null(strstr(err.text, "base"));
	assert_non_null(strstr(err.text, "no-base"));
	assert_int_equal(import_with(defaults, p->base_path, td_path(p->dir, "no-fine"), p->out), -ENOENT);
	assert_non_null(strstr(err.text, "fine-tune"));

	td_text(p->base_path, "config.json", "{\"model_type\":\"llama\"}");
	td_text(p->fine_path, "config.json", "{\"model_type\":\"qwen2\"}");
	refused(p, -EINVAL, "wrong architecture", "--force");
	refused(p, -EINVAL, "llama", "qwen2");
	/* As Python reads it. */
	td_text(p->base_path, "config.json", "{\"limits\":[0.0,Infinity,NaN],\"model_type\":\"llama\"}");
	refused(p, -EINVAL, "wrong architecture", "--force");
	o = defaults;
	o.force = true;
	imported(o, p->base_path, p->fine_path, p->out);
	/* A configuration that cannot be read does not stop anybody. */
	td_text(p->fine_path, "config.json", "{\"model_type\":");
	imported(defaults, p->base_path, p->fine_path, p->out);
	td_text(p->fine_path, "config.json", "[1]");
	imported(defaults, p->base_path, p->fine_path, p->out);
	unlink(td_path(p->fine_path, "config.json"));

	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "b.weight", BD_BF16, 2, 32, 64, 0, true)->shape[1] = 63;
	p->fine[1].data = NULL;
	written(p);
	refused(p, -EINVAL, "'b.weight' has shape [32, 64]", "[32, 63]");

	p = new_pair();
	both(p, "embed.weight", BD_BF16, 2, 32, 64, 0, true)->dims = 3;
	p->fine[0].shape[2] = 1;
	written(p);
	refused(p, -EINVAL, "'embed.weight' has shape", "[32, 64, 1]");

	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "norm", BD_BF16, 1, 32, 0, 0, false);
	p->fine[0].name = "b.weight";
	written(p);
	refused(p, -EINVAL, "has nothing in common", p->fine_path);

	/* A file that belongs to the fine-tune and is gone; of a base nobody needs it. */
	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	written(p);
	td_link(p->base_path, "tokenizer.json", "nowhere");
	imported(defaults, p->base_path, p->fine_path, p->out);
	td_link(p->fine_path, "tokenizer.json", "nowhere");
	refused(p, -EINVAL, "tokenizer.json: is a link to a file that is not there", p->fine_path);
	unlink(td_path(p->fine_path, "tokenizer.json"));
	td_text(p->fine_path, "config.json", "{}");
	td_text(p->fine_path, "Config.json", "{}");
	refused(p, -EINVAL, "cannot lie in one directory", p->fine_path);

	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	written(p);
	assert_int_equal(truncate(td_path(p->fine_path, "model.safetensors"), 1000), 0);
	refused(p, -EINVAL, "fine-tune", "cut short");
}

/* ---- Interruption ---- */

static atomic_int cancel;

/* As a signal handler would, which no sanitizer minds. */
__attribute__((no_sanitize_thread))
static void *cancel_later(void *argument)
{
	struct timespec t = { .tv_nsec = *(long *)argument };

	nanosleep(&t, NULL);
	cancel = 1;
	return NULL;
}

static void cancelled(void **state)
{
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;
	char *dir = td_path(p->dir, "out"), *data;
	unsigned interrupted = 0;
	size_t size;

	(void)state;
	mixed(p);
	o.watch.cancel = &cancel;
	cancel = 1;
	assert_int_equal(import_with(o, p->base_path, p->fine_path, p->out), -EINTR);
	assert_string_equal(err.text, "interrupted");
	assert_int_equal(strangers(dir, NULL), 0);
	for (long i = 0; i < 20; i++) {
		long nanoseconds = i * 400 * 1000;
		pthread_t thread;
		int rc;

		td_text(dir, "x.bdelta", "old");
		cancel = 0;
		assert_int_equal(pthread_create(&thread, NULL, cancel_later, &nanoseconds), 0);
		rc = import_with(o, p->base_path, p->fine_path, p->out);
		pthread_join(thread, NULL);
		data = td_read(p->out, &size);
		if (rc == 0)
			bd_delta_close(opened(p->out));
		else
			assert_true(rc == -EINTR && strcmp(data, "old") == 0);
		interrupted += rc != 0;
		assert_int_equal(strangers(dir, "x.bdelta"), 0);
	}
	cancel = 0;
	print_message("%u of 20 were interrupted\n", interrupted);
}

static unsigned long long last_done, last_total;
static unsigned notes;
static char note_text[2048];

static void progress(void *context, unsigned long long done, unsigned long long total)
{
	assert_ptr_equal(context, &notes);
	assert_true(done >= last_done && done <= total);
	last_done = done;
	last_total = total;
}

static void take_note(void *context, const char *text)
{
	assert_ptr_equal(context, &notes);
	notes++;
	snprintf(note_text, sizeof(note_text), "%s", text);
}

static void watched(void **state)
{
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;

	(void)state;
	mixed(p);
	td_text(p->fine_path, "optimizer.pt", "x");
	o.watch = (struct bd_watch){ .progress = progress, .note = take_note, .context = &notes };
	imported(o, p->base_path, p->fine_path, p->out);
	assert_true(last_total > 0 && last_done <= last_total);
	/* What is not taken, and that these two have little to do with each other. */
	assert_int_equal(notes, 2);
	assert_non_null(strstr(note_text, "really the base"));

	/* Base and fine-tune that cannot be compared by their configurations. */
	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, false);
	written(p);
	td_text(p->base_path, "config.json", "{\"model_type\":\"llama\"}");
	td_text(p->fine_path, "config.json", "{\"model_type\":");
	notes = 0;
	last_done = 0;
	imported(o, p->base_path, p->fine_path, p->out);
	assert_int_equal(notes, 1);
	assert_non_null(strstr(note_text, "have the same architecture"));
	o.watch.progress = NULL;
	unlink(td_path(p->fine_path, "config.json"));
	td_text(p->base_path, "config.json", "version https://git-lfs.github.com/spec/v1\n");
	imported(o, p->base_path, p->fine_path, p->out);
	assert_non_null(strstr(note_text, "config.json: is a Git LFS pointer"));
	assert_int_equal(truncate(td_text(p->base_path, "config.json", "{}"), (16 << 20) + 1), 0);
	assert_int_equal(truncate(td_text(p->base_path, "tokenizer.json", "{}"), (64 << 20) + 1), 0);
	imported(o, p->base_path, p->fine_path, p->out);
	assert_non_null(strstr(note_text, "config.json: has 16777217 bytes, at most 16777216 are expected"));
	unlink(td_path(p->base_path, "config.json"));
	td_mkdir(p->base_path, "config.json");
	imported(o, p->base_path, p->fine_path, p->out);
	assert_non_null(strstr(note_text, "config.json: is a directory"));
}

/* What an export gave is told from what training made. */
static void exports_are_said(void **state)
{
	struct bd_import_options o = defaults;

	(void)state;
	o.watch = (struct bd_watch){ .note = take_note, .context = &notes };
	for (enum change change = PLAIN; change <= TRAINED; change++) {
		struct pair *p = new_pair();

		both(p, "a.weight", BD_BF16, 2, 96, 160, 0, true);
		change_by(p, change, 0.01);
		written(p);
		notes = 0;
		imported(o, p->base_path, p->fine_path, p->out);
		assert_int_equal(notes, change == PLAIN);
		assert_true(change != PLAIN || strstr(note_text, "1 of 1 matrices"));
	}
}

/* A quantised model, and one whose head has a name of its own. */
static void exact_by_context(void **state)
{
	struct pair *p = new_pair();
	struct bd_import_options o = defaults;
	struct bd_delta *d;

	(void)state;
	both(p, "l.0.q.weight", BD_U32, 2, 64, 32, 0, true);
	both(p, "l.0.q.scales", BD_BF16, 2, 64, 16, 0, true);
	both(p, "l.0.q.biases", BD_BF16, 2, 64, 16, 0, true);
	both(p, "l.1.q.weight_scale_inv", BD_F32, 2, 56, 16, 0, true);
	both(p, "l.1.o.weight", BD_BF16, 2, 64, 64, 0, true);
	written(p);
	td_text(p->fine_path, "config.json", "{\"quantization_config\":{}}");
	o.watch = (struct bd_watch){ .note = take_note, .context = &notes };
	notes = 0;
	imported(o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	encoded(d, "l.0.q.weight", BD_RAW, BD_RAW);
	encoded(d, "l.0.q.scales", BD_RAW, BD_RAW);
	encoded(d, "l.0.q.biases", BD_RAW, BD_RAW);
	encoded(d, "l.1.q.weight_scale_inv", BD_RAW, BD_RAW);
	encoded(d, "l.1.o.weight", BD_SIGN, BD_SIGN);
	bd_delta_close(d);
	check_bytes(p);
	assert_non_null(strstr(note_text, "quantised weights do not shrink here: 4 tensors"));

	/* Nothing is said of those that cost nothing. */
	p = new_pair();
	both(p, "l.0.q.weight", BD_U32, 2, 64, 32, 0, false);
	both(p, "l.0.q.scales", BD_BF16, 2, 64, 16, 0, false);
	written(p);
	notes = 0;
	imported(o, p->base_path, p->fine_path, p->out);
	assert_int_equal(notes, 0);

	p = new_pair();
	both(p, "l.0.q.weight", BD_BF16, 2, 64, 64, 0, true);
	both(p, "transformer.output_layer.weight", BD_BF16, 2, 53, 64, 50, false);
	both(p, "l.0.cos_cached", BD_F32, 2, 128, 16, 64, true);
	both(p, "l.0.sin_cached", BD_F32, 2, 64, 16, 0, true);
	written(p);
	td_text(p->base_path, "config.json", "{\"vocab_size\":50}");
	td_text(p->fine_path, "config.json", "{\"vocab_size\":53}");
	imported(defaults, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	encoded(d, "transformer.output_layer.weight", BD_ROWS, BD_SAME);
	encoded(d, "l.0.cos_cached", BD_RAW, BD_RAW);
	encoded(d, "l.0.sin_cached", BD_RAW, BD_RAW);
	bd_delta_close(d);
	check_bytes(p);
}

/* ---- Corners ---- */

/* Whatever an import writes can be opened, and says what the fine-tune said. */
static void check_readable(struct pair *p, struct bd_import_options o)
{
	written(p);
	imported(o, p->base_path, p->fine_path, p->out);
	check_bytes(p);
}

/* Rebuilt numbers that overflow make an infinite error, which JSON cannot express. */
static void overflow(void **state)
{
	struct pair *p = new_pair();
	struct bd_import_options tensor = defaults;
	uint16_t *b, *f;

	(void)state;
	tensor.scale = BD_SCALE_TENSOR;
	both(p, "a.weight", BD_F16, 2, 32, 64, 0, true);
	b = (uint16_t *)p->base[0].data;
	f = (uint16_t *)p->fine[0].data;
	for (int i = 0; i < 32 * 64; i++) {
		b[i] = i % 64 ? 0x3C00 : 0x7BFE; /* 1, 65472 */
		f[i] = i % 64 ? 0x6C00 : 0x7BFF; /* 4096, 65504 */
	}
	check_readable(p, tensor);
	p = new_pair();
	both(p, "a.weight", BD_F32, 2, 32, 64, 0, true);
	for (int i = 0; i < 32 * 64; i++) {
		((float *)p->base[0].data)[i] = i % 64 ? 1e38f : 3.3e38f;
		((float *)p->fine[0].data)[i] = i % 64 ? 2e38f : 3.4e38f;
	}
	check_readable(p, tensor);
	p = new_pair();
	both(p, "a.weight", BD_F32, 2, 32, 64, 0, true);
	for (int i = 0; i < 32 * 64; i++) {
		((float *)p->base[0].data)[i] = -3e38f; /* the difference overflows */
		((float *)p->fine[0].data)[i] = 3e38f;
	}
	check_readable(p, defaults);
	/* Differences so small that scales are subnormal or zero. */
	p = new_pair();
	both(p, "a.weight", BD_F32, 2, 32, 64, 0, true);
	for (int i = 0; i < 32 * 64; i++) {
		((float *)p->base[0].data)[i] = 1e-45f * (float)(i % 3);
		((float *)p->fine[0].data)[i] = 2.8e-45f;
	}
	check_readable(p, defaults);
}

/* One row of many, which the measuring of errors does not sample, would overflow. */
static void overflow_in_one_row(void **state)
{
	enum { ROWS = 1000, COLS = 64 };
	struct bd_import_options o = defaults;
	struct pair *p = new_pair();
	struct bd_delta *d;

	(void)state;
	o.attenuation = BD_ATTENUATION;
	both(p, "a.weight", BD_F16, 2, ROWS, COLS, 0, true);
	for (int i = 0; i < ROWS * COLS; i++) {
		bool large = i / COLS == 501;

		((uint16_t *)p->base[0].data)[i] = large ? 0x7BFD : 0x3C00; /* 65440, 1 */
		((uint16_t *)p->fine[0].data)[i] = large ? 0x7BFF : 0x3C10 + i % 7;
	}
	check_readable(p, o);
	assert_int_equal(bd_delta_open(&d, p->out, &err), 0);
	assert_int_equal(entry(d, "a.weight")->encoding, BD_RAW);
	bd_delta_close(d);
}

/* Tables of half bytes: slices are whole bytes or the table is kept whole. */
static void half_bytes(void **state)
{
	struct pair *p = new_pair();

	(void)state;
	both(p, "a.weight", BD_BF16, 2, 32, 64, 0, true);
	both(p, "embed.odd", BD_F4, 2, 8, 3, 6, false);
	both(p, "embed.even", BD_F4, 2, 8, 4, 6, false);
	both(p, "embed.f6", BD_F6_E2M3, 2, 8, 2, 4, false);
	check_readable(p, defaults);
}

/* "sign/" before a name of 1024 bytes is longer than a name may be. */
static void long_names(void **state)
{
	(void)state;
	for (int length = 1015; length <= 1024; length++)
		for (unsigned raw = 0; raw < 2; raw++) {
			struct bd_rule rule = { .glob = "*" };
			struct bd_import_options o = defaults;
			struct pair *p = new_pair();
			int rc;

			o.rules = &rule;
			o.rule_count = raw;
			both(p, td_format("%0*d", length, 7), BD_BF16, 2, 32, 64, 0, true);
			written(p);
			rc = import_with(o, p->base_path, p->fine_path, p->out);
			if (rc == 0)
				check_bytes(p);
			else if (rc != -EINVAL || !strstr(err.text, "name") ||
				 strangers(td_path(p->dir, "out"), NULL) != 0)
				fail_msg("%d bytes: %d: %s", length, rc, err.text);
			assert_true(rc == 0 || length > BD_MAX_NAME - 5);
		}
}

/* The room that is left for the header suffices, whatever takes the most of the file. */
static void header_room(void **state)
{
	struct pair *p = new_pair();
	char *name = "";

	(void)state;
	both(p, "wide", BD_I64, 2, 1200, 100, 0, true); /* all offsets have seven digits */
	for (int i = 0; i < 320; i++)
		both(p, td_format("l.%d.weight", i), BD_BF16, 2, 16, 16, 0, true);
	check_readable(p, defaults);
	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 16, 16, 0, true);
	for (int i = 0; i < 60; i++) {
		name = td_format("%s\\u00e9\\\"\\\\%d", name, i % 10);
		fine_only(p, name, BD_U8, 4, 1, 1)->shape[2] = p->fine[i + 1].shape[3] = 1;
		p->fine[i + 1].data = NULL;
		if (strlen(name) > 900)
			name = td_format("%d", i);
	}
	check_readable(p, defaults);
	/* Nothing but files with the longest names. */
	p = new_pair();
	both(p, "a.weight", BD_BF16, 2, 16, 16, 0, false);
	for (int i = 0; i < 30; i++)
		td_text(p->fine_path, td_format("%0*d\"\\", 253, i), "x");
	check_readable(p, defaults);
}

static void many_tensors(void **state)
{
	struct pair *p = new_pair();

	(void)state;
	for (int i = 0; i < 399; i++)
		both(p, td_format("t.%d", i), BD_BF16, 2, 1 + (uint64_t)i % 30, 1 + (uint64_t)i % 31, 0, true);
	check_readable(p, defaults);
}

/* Peak memory does not follow the size of the model. */
static void bounded_memory(void **state)
{
	enum { TENSORS = 160, SIDE = 768 }; /* 180 MiB each */
	struct pair *p = new_pair();
	char *status;
	size_t size;
	unsigned long peak;

	(void)state;
	if (td_slowness() > 1)
		skip();
	for (int which = 0; which < 2; which++) {
		char *path = td_path(which ? p->fine_path : p->base_path, "model.safetensors");
		FILE *f = fopen(path, "w");
		struct bd_buffer b = { 0 };
		static uint16_t weights[SIDE * SIDE];

		assert_non_null(f);
		bd_buffer_printf(&b, "01234567{");
		for (size_t i = 0; i < TENSORS; i++)
			bd_buffer_printf(&b, "%s\"l.%zu.weight\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],"
					 "\"data_offsets\":[%zu,%zu]}", i ? "," : "", i, SIDE, SIDE,
					 i * sizeof(weights), (i + 1) * sizeof(weights));
		bd_buffer_printf(&b, "}");
		ts_le64(b.data, b.size - 8);
		fwrite(b.data, b.size, 1, f);
		bd_buffer_free(&b);
		td_fill(weights, sizeof(weights), BD_BF16, which ? "fine" : "base");
		for (int i = 0; i < TENSORS; i++) {
			weights[i] ^= 1;
			fwrite(weights, sizeof(weights), 1, f);
		}
		assert_int_equal(fclose(f), 0);
	}
	import_in_child(NULL, 2, p, p->out);
	/* Not ru_maxrss, which remembers this process from before exec. */
	status = td_read(td_format("%s.status", p->out), &size);
	assert_non_null(strstr(status, "VmHWM:"));
	peak = strtoul(strstr(status, "VmHWM:") + 6, NULL, 10);
	print_message("peak memory %.1f MB\n", (double)peak * 1024 / 1e6);
	assert_true(peak < 48u << 10);
	unlink(td_path(p->base_path, "model.safetensors"));
	unlink(td_path(p->fine_path, "model.safetensors"));
}

static int child(char **argv)
{
	struct bd_import_options o = defaults;
	char status[4096];
	FILE *from, *to;

	o.threads = (unsigned)atoi(argv[2]);
	o.base = argv[3];
	o.fine = argv[4];
	o.out = argv[5];
	if (bd_import(&o, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	from = fopen("/proc/self/status", "r");
	to = fopen(td_format("%s.status", o.out), "w");
	if (!from || !to)
		return 1;
	fwrite(status, 1, fread(status, 1, sizeof(status), from), to);
	fclose(from);
	return fclose(to) == 0 ? 0 : 1;
}

/* Subdirectories, and a file too large for a stream, through refining and export. */
static void whole_directory(void **state)
{
	static const char *const names[] = {
		"1_Pooling/config.json", "a/b/c", "large", "model.safetensors", "projector.safetensors",
	};
	const struct bd_file_rule rules_of_files[] = { { true, "large" }, { false, "d*" } };
	struct bd_import_options o = defaults;
	atomic_int stop = 1;
	struct bd_watch nobody = { 0 }, stopped = { .cancel = &stop };
	struct pair *p = new_pair();
	char *large, *refined, *out;
	struct bd_base *base;
	struct bd_delta *d;
	struct bd_view *v;
	float *scales;
	size_t size;

	(void)state;
	both(p, "l.0.q.weight", BD_BF16, 2, 32, 64, 0, true);
	written(p);
	td_mkdir(p->fine_path, "a/b");
	td_mkdir(p->fine_path, "1_Pooling");
	td_text(p->fine_path, "1_Pooling/config.json", "{}");
	td_text(p->fine_path, "a/b/c", "deep");
	td_safetensors(p->fine_path, "projector.safetensors", p->fine, 1, NULL);
	large = td_text(p->fine_path, "large", "begin");
	assert_int_equal(truncate(large, BD_MAX_SIDECAR + 5), 0);
	o.file_rules = rules_of_files;
	o.file_rule_count = 1;
	for (int i = 0; i <= BD_MAX_DIRECTORIES; i++)
		td_text(td_mkdir(p->fine_path, td_format("d%d", i)), "x", "");
	assert_int_equal(import_with(o, p->base_path, p->fine_path, p->out), -EINVAL);
	assert_non_null(strstr(err.text, "more than 4096 directories"));
	o.file_rule_count = 2;
	imported(o, p->base_path, p->fine_path, p->out);
	d = opened(p->out);
	assert_int_equal(d->file_count, 5);
	for (size_t i = 0; i < 5; i++)
		assert_string_equal(d->files[i].name, names[i]);
	assert_true(d->files[2].plain && !d->files[4].plain && !d->files[4].st);
	assert_int_equal(d->files[2].size, BD_MAX_SIDECAR + 5);

	scales = ts_memory(d->scales->size);
	for (uint64_t i = 0; i < d->scales->count; i++)
		scales[i] = 1;
	refined = td_path(p->dir, "out/y.bdelta");
	if (bd_refine(d, scales, refined, NULL, NULL, &err) || bd_base_open(&base, p->base_path, &err))
		fail_msg("%s", err.text);
	bd_delta_close(d);
	unlink(large);
	d = opened(refined);
	if (bd_verify(d, base, &nobody, &err) || bd_view_open(&v, d, base, &err))
		fail_msg("%s", err.text);
	out = td_path(td_mkdir(p->dir, "exports"), "x");
	assert_int_equal(bd_export(v, out, &stopped, &err), -EINTR);
	assert_int_equal(strangers(td_path(p->dir, "exports"), NULL), 0);
	if (bd_export(v, out, &nobody, &err))
		fail_msg("%s", err.text);
	assert_string_equal(td_read(td_path(out, "a/b/c"), &size), "deep");
	assert_string_equal(td_read(td_path(out, "1_Pooling/config.json"), &size), "{}");
	large = td_read(td_path(out, "large"), &size);
	assert_int_equal(size, BD_MAX_SIDECAR + 5);
	assert_string_equal(large, "begin");
	unlink(td_path(out, "large"));
	bd_view_close(v);
	bd_base_close(base);
	unlink(p->out);
	unlink(refined);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(encodings),
		cmocka_unit_test(rules),
		cmocka_unit_test(scales),
		cmocka_unit_test(factors),
		cmocka_unit_test(generations),
		cmocka_unit_test(same_everywhere),
		cmocka_unit_test(sizes),
		cmocka_unit_test(refuses),
		cmocka_unit_test(cancelled),
		cmocka_unit_test(watched),
		cmocka_unit_test(exports_are_said),
		cmocka_unit_test(exact_by_context),
		cmocka_unit_test(overflow),
		cmocka_unit_test(overflow_in_one_row),
		cmocka_unit_test(half_bytes),
		cmocka_unit_test(long_names),
		cmocka_unit_test(whole_directory),
		cmocka_unit_test(header_room),
		cmocka_unit_test(many_tensors),
		cmocka_unit_test(bounded_memory),
	};

	if (argc == 6 && strcmp(argv[1], "import") == 0)
		return child(argv);
	snprintf(program, sizeof(program), "/proc/self/exe");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
