/* SPDX-License-Identifier: Apache-2.0 */
/* test_exact_file.c: imports that keep everything bit for bit: fine-tunes of every dtype and share of unchanged
 * values come back, whole and in parts, and a check finds whatever changes a byte of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bitdelta.h"
#include "import.h"
#include "refine.h"
#include "sign.h"
#include "testdata.h"
#include "verify.h"
#include "view.h"

#define MOST 160

static struct bd_error err;
static const struct bd_watch nobody;

struct pair {
	struct td_tensor base[MOST], fine[MOST];
	size_t base_count, fine_count;
	char *base_path, *fine_path, *out;
};

static uint64_t rng = 88172645463325252u;

static uint32_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 16);
}

static void put_number(uint8_t *to, size_t i, enum bd_dtype dtype, float f)
{
	uint16_t half = dtype == BD_BF16 ? bd_bf16_from_float(f) : bd_f16_from_float(f);

	if (dtype == BD_F32)
		memcpy(to + 4 * i, &f, 4);
	else
		memcpy(to + 2 * i, &half, 2);
}

static void *filled(size_t size, unsigned values)
{
	uint8_t *data = malloc(size + 1);

	assert_non_null(data);
	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)(rnd() % values);
	return data;
}

/* A tensor of the fine-tune; of 1,000 elements `changed` differ from the base's. BD_DTYPES: it has none. */
static void add(struct pair *p, const char *name, enum bd_dtype dtype, enum bd_dtype base_dtype, unsigned dims,
		uint64_t rows, uint64_t cols, unsigned changed)
{
	struct td_tensor *f = &p->fine[p->fine_count++], *b = &p->base[p->base_count];
	size_t element = bd_dtype_bits(dtype) / 8, count;

	assert_true(p->fine_count < MOST);
	*f = (struct td_tensor){ .name = name, .dtype = dtype, .dims = dims, .shape = { rows, cols } };
	*b = *f;
	b->dtype = base_dtype;
	count = td_tensor_size(f) / (element ? element : 1);
	f->data = filled(td_tensor_size(f), 40);
	if (base_dtype == BD_DTYPES)
		return;
	p->base_count++;
	b->data = filled(td_tensor_size(b), 40);
	for (size_t i = 0; i < count; i++) {
		bool same = rnd() % 1000 >= changed;

		if (bd_dtype_is_weight(dtype) && bd_dtype_is_weight(base_dtype)) {
			float x = (float)((int)(rnd() % 2001) - 1000) / 5000;

			put_number((uint8_t *)b->data, i, base_dtype, x);
			x = bd_sign_element(b->data, i, base_dtype);
			put_number((uint8_t *)f->data, i, dtype, x + (same ? 0 : x / 64 + 1e-5f));
		} else if (same) {
			memcpy((uint8_t *)f->data + i * element, (const uint8_t *)b->data + i * element, element);
		}
	}
	/* Numbers that are none, infinite, or zero with a sign. */
	for (size_t i = 0; bd_dtype_is_weight(dtype) && changed && i < 20 && i < count; i++)
		((uint8_t *)f->data)[(i + 1) * element - 1] |= (uint8_t)(i % 2 ? 0x7f : 0x80);
}

static void write_pair(struct pair *p)
{
	char *dir = td_dir();

	p->base_path = td_mkdir(dir, "base");
	p->fine_path = td_mkdir(dir, "fine");
	p->out = td_path(dir, "x.bdelta");
	td_safetensors(p->base_path, "model.safetensors", p->base, p->base_count, NULL);
	td_safetensors(p->fine_path, "model.safetensors", p->fine, p->fine_count, "{\"format\":\"pt\"}");
	td_text(p->fine_path, "config.json", "{}");
}

static void drop(struct pair *p)
{
	for (size_t i = 0; i < p->fine_count; i++)
		free((void *)p->fine[i].data);
	for (size_t i = 0; i < p->base_count; i++)
		free((void *)p->base[i].data);
}

static void import(const struct pair *p, const char *out, unsigned threads)
{
	const struct bd_import_options o = {
		.base = p->base_path, .fine = p->fine_path, .out = out, .exact = true, .threads = threads, .force = true,
	};

	if (bd_import(&o, &err))
		fail_msg("%s", err.text);
}

static struct bd_view *open_view(const char *path, struct bd_base *base)
{
	struct bd_delta *delta;
	struct bd_view *v;

	if (bd_delta_open(&delta, path, &err) || bd_view_open(&v, delta, base, &err))
		fail_msg("%s", err.text);
	return v;
}

static struct bd_base *open_base(const char *path)
{
	struct bd_base *base;

	if (bd_base_open(&base, path, &err))
		fail_msg("%s", err.text);
	return base;
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

static void encoded(const struct bd_delta *d, const char *name, enum bd_encoding encoding, bool has_base)
{
	const struct bd_entry *e = entry(d, name);

	if (e->encoding != encoding || bd_entry_has_base(e) != has_base)
		fail_msg("%s is %s %s base", name, bd_encoding_name(e->encoding), bd_entry_has_base(e) ? "with" : "without");
}

/* The file is what was imported, in one read and at random places. */
static void shows(struct bd_view *v, const char *fine_path, struct bd_scratch *scratch, unsigned reads)
{
	size_t size, index = 0;
	char *want = td_read(td_path(fine_path, "model.safetensors"), &size), *got = malloc(size);

	while (strcmp(v->files[index].name, "model.safetensors") != 0)
		index++;
	assert_int_equal(v->files[index].size, size);
	for (unsigned i = 0; i < reads; i++) {
		size_t at = i ? rnd() % size : 0, n = i ? 1 + rnd() % (i % 5 ? 5000 : 400000) : size;
		ssize_t done = bd_view_read(v, index, got, n, at, scratch, &err);

		if (done < 0)
			fail_msg("%s", err.text);
		assert_int_equal(done, size - at < n ? size - at : n);
		if (memcmp(got, want + at, (size_t)done) != 0)
			fail_msg("%zu bytes at %zu differ", n, at);
	}
	free(got);
}

static int verify(const char *path, struct bd_base *base)
{
	struct bd_delta *delta;
	int rc = bd_delta_open(&delta, path, &err);

	if (rc == 0)
		rc = bd_verify(delta, base, &nobody, &err);
	bd_delta_close(delta);
	return rc;
}

static void every_dtype(struct pair *p)
{
	static const unsigned changed[] = { 0, 3, 400, 1000 };

	for (int t = 0; t < BD_DTYPES; t++)
		for (size_t c = 0; c < 4 && bd_dtype_bits((enum bd_dtype)t) % 8 == 0; c++)
			add(p, td_format("%s.%u", bd_dtype_name((enum bd_dtype)t), changed[c]), (enum bd_dtype)t,
			    (enum bd_dtype)t, 2, 3 + rnd() % 60, 1 + rnd() % 400, changed[c]);
}

static void everything_comes_back(void **state)
{
	struct pair p = { 0 };
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_view *v, *again;
	struct bd_base *base;
	size_t size[2];
	char *one, *other;

	(void)state;
	every_dtype(&p);
	add(&p, "big", BD_BF16, BD_BF16, 2, 700, 300, 300);
	add(&p, "big.f32", BD_F32, BD_F32, 2, 400, 300, 300);
	add(&p, "big.embed_tokens.weight", BD_BF16, BD_BF16, 2, 3000, 64, 300);
	add(&p, "wide", BD_F32, BD_BF16, 2, 100, 300, 300);
	add(&p, "equal.but.wide", BD_F32, BD_BF16, 2, 100, 300, 0);
	add(&p, "narrow", BD_BF16, BD_F32, 2, 100, 300, 300);
	add(&p, "half", BD_F16, BD_BF16, 2, 100, 300, 300);
	add(&p, "new", BD_BF16, BD_DTYPES, 2, 100, 300, 0);
	add(&p, "tiny", BD_F32, BD_F32, 1, 3, 0, 1000);
	add(&p, "scalar", BD_F32, BD_F32, 0, 0, 0, 1000);
	add(&p, "empty", BD_F32, BD_F32, 2, 0, 5, 0);
	add(&p, "code", BD_U8, BD_BF16, 2, 50, 100, 0);
	p.fine[p.fine_count - 1].shape[0] = 50;
	add(&p, "lm_head.weight", BD_BF16, BD_BF16, 2, 60, 200, 0);
	p.base[p.base_count - 1].shape[0] = 55; /* the fine-tune has five rows more */
	add(&p, "changed.embed_tokens.weight", BD_BF16, BD_BF16, 2, 60, 200, 500);
	p.base[p.base_count - 1].shape[0] = 55;
	write_pair(&p);
	import(&p, p.out, 1);
	import(&p, td_path(p.base_path, "again.bdelta"), 3);
	one = td_read(p.out, &size[0]);
	other = td_read(td_path(p.base_path, "again.bdelta"), &size[1]);
	assert_int_equal(size[0], size[1]);
	assert_memory_equal(one, other, size[0]);

	base = open_base(p.base_path);
	v = open_view(p.out, base);
	encoded(v->delta, "BF16.0", BD_SAME, true);
	encoded(v->delta, "BF16.3", BD_EXACT, true);
	encoded(v->delta, "BF16.1000", BD_EXACT, true);
	encoded(v->delta, "big.embed_tokens.weight", BD_EXACT, true);
	encoded(v->delta, "wide", BD_EXACT, true);
	encoded(v->delta, "equal.but.wide", BD_EXACT, true);
	encoded(v->delta, "half", BD_EXACT, true);
	encoded(v->delta, "new", BD_EXACT, false);
	encoded(v->delta, "code", BD_EXACT, false);
	encoded(v->delta, "tiny", BD_RAW, false);
	encoded(v->delta, "empty", BD_RAW, false);
	encoded(v->delta, "lm_head.weight", BD_ROWS, true);
	assert_true(entry(v->delta, "equal.but.wide")->exact->size < 300);
	for (size_t i = 0; i < v->delta->st->count; i++) /* of data that is aligned to 8 bytes */
		assert_int_equal(v->delta->st->tensors[i].offset %
				 ((bd_dtype_bits(v->delta->st->tensors[i].dtype) + 7) / 8), 0);
	for (size_t i = 0; i < v->delta->file_count; i++)
		for (size_t t = 0; v->delta->files[i].st && t < v->delta->files[i].st->count; t++)
			assert_int_equal(v->delta->files[i].entries[t].planes, 0);
	shows(v, p.fine_path, scratch, 400);
	again = open_view(td_path(p.base_path, "again.bdelta"), base);
	bd_view_slim(again);
	shows(again, p.fine_path, scratch, 40);
	shows(v, p.fine_path, scratch, 40);
	if (verify(p.out, base) || verify(p.out, NULL))
		fail_msg("%s", err.text);
	bd_view_close(v);
	bd_view_close(again);
	bd_base_close(base);
	bd_scratch_free(scratch);
	drop(&p);
}

/* More tensors than are kept open, read in turns. */
static void many_models(void **state)
{
	struct pair p = { 0 };
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_base *base;
	struct bd_view *v;

	(void)state;
	for (int i = 0; i < 90; i++)
		add(&p, td_format("w%d", i), BD_BF16, BD_BF16, 2, 40, 50, 500);
	write_pair(&p);
	import(&p, p.out, 0);
	base = open_base(p.base_path);
	v = open_view(p.out, base);
	for (int i = 0; i < 5; i++)
		shows(v, p.fine_path, scratch, 60);
	bd_view_close(v);
	bd_base_close(base);
	bd_scratch_free(scratch);
	drop(&p);
}

/* Under another name in the base, and through the public interface. */
static void other_names(void **state)
{
	static const struct bd_rename rename = { "model.", "" };
	struct pair p = { 0 };
	struct bd_import_options o = { .exact = true, .renames = &rename, .rename_count = 1 };
	struct bitdelta_error why;
	struct bitdelta_base *base;
	struct bitdelta *b;
	const struct bitdelta_tensor *t;
	struct bd_delta *d;
	char *data;

	(void)state;
	add(&p, "model.w", BD_BF16, BD_BF16, 2, 200, 500, 300);
	p.base[0].name = "w";
	write_pair(&p);
	o.base = p.base_path;
	o.fine = p.fine_path;
	o.out = p.out;
	if (bd_import(&o, &err) || bd_delta_open(&d, p.out, &err))
		fail_msg("%s", err.text);
	encoded(d, "model.w", BD_EXACT, true);
	assert_string_equal(bd_entry_base(entry(d, "model.w")), "w");
	bd_delta_close(d);

	if (bitdelta_base_open(&base, p.base_path, &why) || bitdelta_open(&b, base, p.out, &why))
		fail_msg("%s", why.text);
	assert_int_equal(bitdelta_tensor_count(b), 1);
	t = bitdelta_tensor_at(b, 0);
	assert_string_equal(t->encoding, "exact");
	assert_int_equal(t->lossy, 0);
	data = malloc(t->size);
	assert_int_equal(bitdelta_read_tensor(b, 0, data, t->size, 0, &why), t->size);
	assert_memory_equal(data, p.fine[0].data, t->size);
	free(data);
	bitdelta_close(b);
	bitdelta_base_close(base);
	drop(&p);
}

static void flip(const char *path, uint64_t offset, unsigned bit)
{
	int fd = open(path, O_RDWR);
	unsigned char c;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &c, 1, (off_t)offset), 1);
	c ^= (unsigned char)(1 << bit);
	assert_int_equal(pwrite(fd, &c, 1, (off_t)offset), 1);
	close(fd);
}

/* True if all of the file can be read and is what was imported. */
static bool is_whole(const struct pair *p, struct bd_base *base)
{
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_view *v = open_view(p->out, base);
	size_t size;
	char *want = td_read(td_path(p->fine_path, "model.safetensors"), &size), *got = malloc(size);
	bool whole = bd_view_read(v, 1, got, size, 0, scratch, &err) == (ssize_t)size && memcmp(got, want, size) == 0;

	free(got);
	bd_scratch_free(scratch);
	bd_view_close(v);
	return whole;
}

static void damage_is_found(void **state)
{
	struct pair p = { 0 };
	struct bd_base *base;
	struct bd_delta *d;
	const char *const names[] = { "w", "table.embed_tokens.weight", "f", "alone", "i" };
	unsigned found = 0;

	(void)state;
	add(&p, names[0], BD_BF16, BD_BF16, 2, 30, 50, 500);
	add(&p, names[1], BD_BF16, BD_BF16, 2, 30, 50, 500);
	add(&p, names[2], BD_F32, BD_F32, 2, 30, 50, 500);
	add(&p, names[3], BD_U8, BD_DTYPES, 2, 30, 50, 0);
	add(&p, names[4], BD_I64, BD_I64, 2, 30, 50, 10);
	write_pair(&p);
	import(&p, p.out, 0);
	base = open_base(p.base_path);
	assert_int_equal(bd_delta_open(&d, p.out, &err), 0);
	for (size_t t = 0; t < 5; t++) {
		const struct bd_tensor *stored = entry(d, names[t])->exact;

		assert_non_null(stored);
		for (int i = 0; i < 60; i++) {
			uint64_t at = stored->offset + (i < 30 ? (uint64_t)i : rnd() % stored->size);
			int rc;

			flip(p.out, at, (unsigned)i % 8);
			rc = verify(p.out, base);
			if (rc == 0 && !is_whole(&p, base))
				fail_msg("byte %llu of %s is damaged, and nobody says so",
					 (unsigned long long)(at - stored->offset), names[t]);
			if (rc < 0) {
				found++;
				assert_int_equal(rc, -EIO);
				assert_non_null(strstr(err.text, p.out));
			}
			flip(p.out, at, (unsigned)i % 8);
		}
	}
	assert_true(found > 200);
	assert_int_equal(verify(p.out, base), 0);
	assert_true(is_whole(&p, base));
	bd_delta_close(d);
	bd_base_close(base);
	drop(&p);
}

/* A file with signs and exact tensors gets other scales; the rest stays. */
static void refining_keeps_them(void **state)
{
	const float scales[] = { 0.25f, 0.5f, 1, 2, 3 };
	struct bd_base *base = open_base(BD_TESTS_DIR "/golden/bdelta/base");
	char *out = td_path(td_dir(), "refined.bdelta");
	struct bd_delta *d, *refined;

	(void)state;
	assert_int_equal(bd_delta_open(&d, BD_TESTS_DIR "/golden/bdelta/good-exact-alone.bdelta", &err), 0);
	if (bd_refine(d, scales, out, NULL, NULL, &err) || verify(out, base))
		fail_msg("%s", err.text);
	assert_int_equal(bd_delta_open(&refined, out, &err), 0);
	assert_string_equal(entry(refined, "counts")->xxh128, entry(d, "counts")->xxh128);
	assert_int_equal(entry(refined, "counts")->exact->size, entry(d, "counts")->exact->size);
	bd_delta_close(refined);
	bd_delta_close(d);
	bd_base_close(base);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_comes_back),
		cmocka_unit_test(many_models),
		cmocka_unit_test(other_names),
		cmocka_unit_test(damage_is_found),
		cmocka_unit_test(refining_keeps_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
