/* SPDX-License-Identifier: Apache-2.0 */
/* test_refine.c: new scales in a .bdelta file: all else stays, and the old file until the new one is whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "import.h"
#include "refine.h"
#include "testdata.h"
#include "testdelta.h"
#include "verify.h"
#include "view.h"

static struct bd_error err;
static const struct bd_watch nobody;

#define TENSORS 7

/* A fine-tune with every encoding; with `scales`, one after another, in place of the generated ones. */
static void model(struct ts_model *m, struct ts_tensor t[TENSORS], const float *scales)
{
	struct ts_tensor list[TENSORS] = {
		{ .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 50, 71 }, .kind = TS_SIGN },
		{ .name = "b.weight", .dtype = BD_F16, .dims = 2, .shape = { 30, 31 }, .kind = TS_SIGN,
		  .planes = 3 },
		{ .name = "norm", .dtype = BD_F32, .dims = 1, .shape = { 300 }, .kind = TS_RAW },
		{ .name = "same", .dtype = BD_U8, .dims = 1, .shape = { 9000 }, .kind = TS_SAME },
		{ .name = "embed", .dtype = BD_BF16, .dims = 2, .shape = { 40, 300 }, .base_rows = 30,
		  .kind = TS_ROWS_SAME },
		{ .name = "head", .dtype = BD_BF16, .dims = 2, .shape = { 40, 30 }, .base_rows = 35,
		  .kind = TS_ROWS_SIGN },
		{ .name = "c.weight", .dtype = BD_F32, .dims = 2, .shape = { 9, 20 }, .kind = TS_SIGN },
	};
	static const uint64_t counts[TENSORS] = { 50 + 71, 3 * (30 + 31), 0, 0, 0, 35 + 30, 9 + 20 };

	memcpy(t, list, sizeof(list));
	for (int i = 0; scales && i < TENSORS; i++)
		if (counts[i]) {
			t[i].scales_given = scales;
			scales += counts[i];
		}
	*m = (struct ts_model){
		.tensors = t, .count = TENSORS, .file_count = 2, .base_shards = 2,
		.files = {
			{ .name = "config.json", .text = "{\"model_type\":\"llama\"}" },
			{ .name = "empty.txt", .text = "" },
		},
	};
	ts_build(m, td_dir());
}

/* Put an `import` member into the manifest. */
static void describe(struct ts_model *m, const char *import)
{
	char *at = strstr(m->manifest, "\"files\"");

	ts_pack(m, td_format("%.*s\"import\":%s,\"later\":[1],%s", (int)(at - m->manifest), m->manifest,
			     import, at));
	assert_non_null(at);
	m->delta_path = td_write(td_dir(), "fine.bdelta", m->delta, m->delta_size);
}

static struct bd_delta *opened(const char *path)
{
	struct bd_delta *d;

	if (bd_delta_open(&d, path, &err))
		fail_msg("%s", err.text);
	return d;
}

static float *read_scales(const struct bd_delta *d)
{
	float *scales = ts_memory(d->scales->size);

	assert_int_equal(bd_file_read(d->file, scales, d->scales->size, d->scales->offset, &err), 0);
	return scales;
}

static float *other_scales(const struct bd_delta *d)
{
	float *scales = read_scales(d);

	for (uint64_t i = 0; i < d->scales->count; i++)
		scales[i] = i % 7 == 3 ? -scales[i] : scales[i] * 1.25f + 1e-4f;
	return scales;
}

static void refined(const struct bd_delta *d, const float *scales, const char *path)
{
	if (bd_refine(d, scales, path, NULL, NULL, &err))
		fail_msg("%s", err.text);
}

static void verified(const char *path, const char *base_path)
{
	struct bd_delta *d = opened(path);
	struct bd_base *base;

	if (bd_base_open(&base, base_path, &err) || bd_verify(d, base, &nobody, &err))
		fail_msg("%s", err.text);
	bd_delta_close(d);
	bd_base_close(base);
}

static struct bd_view *viewed(const char *path, struct bd_base *base)
{
	struct bd_view *v;

	if (bd_view_open(&v, opened(path), base, &err))
		fail_msg("%s", err.text);
	return v;
}

/* The view has the files of `m`. */
static void shows(struct bd_view *v, const struct ts_model *m)
{
	struct bd_scratch *scratch = bd_scratch_new();

	assert_int_equal(v->file_count, m->file_count);
	for (size_t f = 0; f < m->file_count; f++) {
		char *data = malloc(m->files[f].size + 1);

		assert_string_equal(v->files[f].name, m->files[f].name);
		assert_int_equal(v->files[f].size, m->files[f].size);
		assert_int_equal(bd_view_acquire(v, f, &err), 0);
		assert_int_equal(bd_view_read(v, f, data, m->files[f].size, 0, scratch, &err),
				 m->files[f].size);
		bd_view_release(v, f);
		assert_memory_equal(data, m->files[f].data, m->files[f].size);
		free(data);
	}
	bd_scratch_free(scratch);
}

/* Names in a directory. */
static unsigned entries(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(d);
	return n;
}

static void same_file(const char *a, const char *b)
{
	size_t n, m;
	char *x = td_read(a, &n), *y = td_read(b, &m);

	assert_int_equal(n, m);
	assert_memory_equal(x, y, n);
}

static void elsewhere(void **state)
{
	struct ts_tensor t[TENSORS], u[TENSORS];
	struct ts_model m, wanted;
	char *dir = td_dir(), *out = td_path(dir, "new.bdelta"), *copy;
	struct bd_base *base;
	struct bd_view *v;
	struct bd_delta *old, *new;
	float *scales;
	size_t size;

	(void)state;
	model(&m, t, NULL);
	copy = td_write(td_dir(), "copy", td_read(m.delta_path, &size), m.delta_size);
	old = opened(m.delta_path);
	scales = other_scales(old);
	refined(old, scales, out);
	assert_int_equal(entries(dir), 1);
	same_file(m.delta_path, copy);
	verified(out, m.base_path);

	/* Everything else stays. */
	new = opened(out);
	assert_int_equal(new->st->count, old->st->count);
	for (size_t i = 0; i < old->st->count; i++) {
		const struct bd_tensor *a = &old->st->tensors[i], *b = bd_safetensors_find(new->st, a->name);
		char *x = malloc(a->size + 1), *y = malloc(a->size + 1);

		assert_non_null(b);
		if (strcmp(a->name, "manifest") != 0) {
			assert_int_equal(a->dtype, b->dtype);
			assert_true(bd_tensor_same_shape(a, b));
			assert_int_equal(bd_file_read(old->file, x, a->size, a->offset, &err), 0);
			assert_int_equal(bd_file_read(new->file, y, b->size, b->offset, &err), 0);
			assert_memory_equal(strcmp(a->name, "scales") == 0 ? (char *)scales : x, y, a->size);
		}
		free(x);
		free(y);
	}
	assert_string_equal(new->producer, old->producer);
	assert_string_equal(new->base_label, old->base_label);
	assert_string_equal(new->base_digest, old->base_digest);
	assert_true(new->distilled && !old->distilled);

	/* And the fine-tune is the one with these scales. */
	model(&wanted, u, scales);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	v = viewed(out, base);
	shows(v, &wanted);
	bd_view_close(v);
	bd_base_close(base);

	/* The same again gives the same bytes, also from the new file. */
	refined(old, scales, td_path(dir, "again.bdelta"));
	same_file(out, td_path(dir, "again.bdelta"));
	refined(new, scales, td_path(dir, "twice.bdelta"));
	same_file(out, td_path(dir, "twice.bdelta"));
	bd_delta_close(old);
	bd_delta_close(new);
}

static void kinds(void **state)
{
	static const struct {
		const char *import, *kind;
		double attenuation;
	} cases[] = {
		{ "{\"scale\":\"tensor\",\"attenuation\":1.25,\"distilled\":false}", "rank1", 1.25 },
		{ "{\"scale\":\"row\",\"attenuation\":1.4,\"distilled\":false}", "rank1", 1.4 },
		{ "{\"scale\":\"rank1\",\"attenuation\":1.4,\"distilled\":true}", "rank1", 1.4 },
		{ "{\"scale\":\"of a later version\",\"attenuation\":1,\"distilled\":false}",
		  "of a later version", 1 },
		{ "{}", "rank1", 0 },
	};
	char *out = td_path(td_dir(), "new.bdelta");

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct ts_tensor t[TENSORS];
		struct ts_model m;
		struct bd_delta *d, *new;

		model(&m, t, NULL);
		describe(&m, cases[i].import);
		d = opened(m.delta_path);
		refined(d, other_scales(d), out);
		new = opened(out);
		assert_string_equal(new->scale_kind, cases[i].kind);
		assert_true(new->attenuation == cases[i].attenuation && new->distilled);
		bd_delta_close(d);
		bd_delta_close(new);
		verified(out, m.base_path);
	}
}

/* In place, while somebody reads: he keeps the old bytes. */
static void in_place(void **state)
{
	struct ts_tensor t[TENSORS], u[TENSORS];
	struct ts_model m, wanted;
	struct bd_base *base;
	struct bd_view *old, *new;
	float *scales;

	(void)state;
	model(&m, t, NULL);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	old = viewed(m.delta_path, base);
	shows(old, &m);
	scales = other_scales(old->delta);
	refined(old->delta, scales, m.delta_path);
	shows(old, &m);
	model(&wanted, u, scales);
	new = viewed(m.delta_path, base);
	shows(new, &wanted);
	shows(old, &m);
	/* Once more, from what is replaced by now. */
	refined(old->delta, read_scales(old->delta), m.delta_path);
	shows(new, &wanted);
	bd_view_close(old);
	bd_view_close(new);
	new = viewed(m.delta_path, base);
	shows(new, &m);
	bd_view_close(new);
	bd_base_close(base);
	verified(m.delta_path, m.base_path);
}

/* What import writes: aligned, and no longer than before but for a few bytes. */
static void of_import(void **state)
{
	char *dir = td_dir(), *base = td_mkdir(dir, "base"), *fine = td_mkdir(dir, "fine");
	char *path = td_path(dir, "x.bdelta"), *out = td_path(dir, "y.bdelta");
	struct td_tensor t[] = {
		{ .name = "ids", .dtype = BD_I64, .dims = 1, .shape = { 33 } },
		{ .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 33, 65 } },
		{ .name = "b.weight", .dtype = BD_F16, .dims = 2, .shape = { 64, 31 } },
		{ .name = "norm.weight", .dtype = BD_F32, .dims = 1, .shape = { 65 } },
		{ .name = "odd", .dtype = BD_U8, .dims = 1, .shape = { 3 } },
	};
	struct bd_import_options o = {
		.base = base, .fine = fine, .out = path, .scale = BD_SCALE_ROW,
		.attenuation = BD_ATTENUATION, .threads = 1,
	};
	struct bd_delta *d, *new;

	(void)state;
	td_safetensors(base, "model.safetensors", t, 5, NULL);
	for (int i = 0; i < 5; i++) {
		char *data = ts_memory(td_tensor_size(&t[i]));

		td_fill(data, td_tensor_size(&t[i]), t[i].dtype, "changed");
		t[i].data = data;
	}
	td_safetensors(fine, "model.safetensors", t, 5, NULL);
	td_text(fine, "config.json", "{\"model_type\":\"llama\"}");
	if (bd_import(&o, &err))
		fail_msg("%s", err.text);
	d = opened(path);
	refined(d, other_scales(d), out);
	verified(out, base);
	new = opened(out);
	for (size_t i = 0; i < new->st->count; i++) {
		const struct bd_tensor *s = &new->st->tensors[i];
		unsigned unit = strncmp(s->name, "sign/", 5) == 0 ? 8 : bd_dtype_bits(s->dtype) / 8;

		assert_int_equal(s->offset % unit, 0);
		assert_string_equal(s->name, d->st->tensors[i].name);
	}
	assert_string_equal(new->scale_kind, "rank1");
	assert_true(new->attenuation == BD_ATTENUATION);
	assert_true(new->file->size < d->file->size + 64);
	bd_delta_close(d);
	bd_delta_close(new);
}

/* Refining `from` to PATH fails, in words with TEXT; what is at PATH, and nothing else, stays. */
static void refused(const char *from, const float *scales, const char *path, int code,
		    const char *text)
{
	struct bd_delta *d = opened(from);
	char *dir = strndup(path, (size_t)(strrchr(path, '/') - path)), *before = NULL;
	unsigned names = entries(dir);
	size_t size = 0, n;
	struct stat st;
	int rc;

	if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
		before = td_read(path, &size);
	memset(&err, 0, sizeof(err));
	rc = bd_refine(d, scales, path, NULL, NULL, &err);
	if (rc != code || err.code != code || !strstr(err.text, text))
		fail_msg("%d, expected %d and \"%s\": %s", rc, code, text, err.text);
	assert_int_equal(entries(dir), names);
	if (before) {
		assert_memory_equal(td_read(path, &n), before, size);
		assert_int_equal(n, size);
	}
	bd_delta_close(d);
	free(dir);
}

static void refuses(void **state)
{
	static const float bad[] = { NAN, INFINITY, -INFINITY };
	static const char *const names[] = { "x", "x.bdelta.txt", ".bdelta", "" };
	struct ts_tensor t[TENSORS], raw = {
		.name = "norm", .dtype = BD_F32, .dims = 1, .shape = { 30 }, .kind = TS_RAW,
	};
	struct ts_model m, none = { .tensors = &raw, .count = 1 };
	struct bd_delta *d;
	float *scales;
	char *dir = td_dir();
	uint64_t count;

	(void)state;
	model(&m, t, NULL);
	d = opened(m.delta_path);
	scales = read_scales(d);
	count = d->scales->count;
	bd_delta_close(d);
	for (int i = 0; i < 3; i++)
		for (int k = 0; k < 3; k++) {
			uint64_t at = k == 0 ? 0 : k == 1 ? count / 2 : count - 1;
			float good = scales[at];

			scales[at] = bad[i];
			refused(m.delta_path, scales, m.delta_path, -EINVAL, "not a finite number");
			scales[at] = good;
		}
	for (int i = 0; i < 4; i++) {
		refused(m.delta_path, scales, td_path(dir, names[i]), -EINVAL, "SOMETHING.bdelta");
		assert_int_equal(bd_refine_check(td_path(dir, names[i]), &err), -EINVAL);
	}
	td_mkdir(dir, "d.bdelta");
	refused(m.delta_path, scales, td_path(dir, "d.bdelta"), -EINVAL, "d.bdelta");
	assert_int_equal(bd_refine_check(td_path(dir, "none/x.bdelta"), &err), -ENOENT);
	assert_non_null(strstr(err.text, "none"));
	assert_int_equal(bd_refine_check(td_path(dir, "x.bdelta"), &err), 0);
	assert_int_equal(bd_refine_check(m.delta_path, &err), 0);
	assert_int_equal(entries(dir), 1);
	ts_build(&none, td_dir());
	refused(none.delta_path, scales, td_path(dir, "x.bdelta"), -EINVAL, "no scales");
	verified(m.delta_path, m.base_path);
}

static void flip(const char *path, uint64_t offset)
{
	int fd = open(path, O_RDWR);
	unsigned char c;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &c, 1, (off_t)offset), 1);
	c ^= 0x10;
	assert_int_equal(pwrite(fd, &c, 1, (off_t)offset), 1);
	close(fd);
}

/* Damage is not copied under a new hash; but the old scales, which nobody wants, may be damaged. */
static void damaged(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_delta *d;
	char *out = td_path(td_dir(), "new.bdelta");
	float *scales;

	(void)state;
	model(&m, t, NULL);
	d = opened(m.delta_path);
	scales = other_scales(d);
	for (size_t i = 0; i < d->st->count; i++) {
		const struct bd_tensor *s = &d->st->tensors[i];
		uint64_t at = s->offset + s->size / 2;

		if (strcmp(s->name, "manifest") == 0)
			continue;
		flip(m.delta_path, at);
		if (s == d->scales) {
			struct bd_delta *bad = opened(m.delta_path);

			refined(bad, scales, out);
			bd_delta_close(bad);
			verified(out, m.base_path);
			unlink(out);
		} else {
			const char *name = strncmp(s->name, "file/", 5) == 0 ? "damaged" : s->name;
			int code = strcmp(s->name, "file/config.json") == 0 ||
				   strcmp(s->name, "file/empty.txt") == 0 ? -EINVAL : -EIO;

			refused(m.delta_path, scales, m.delta_path, code, name);
			refused(m.delta_path, scales, out, code, name);
		}
		flip(m.delta_path, at);
	}
	bd_delta_close(d);
	verified(m.delta_path, m.base_path);
	/* Written to between opening and refining, and not in the same tick of the clock. */
	d = opened(m.delta_path);
	flip(m.delta_path, d->scales->offset);
	assert_int_equal(utimensat(AT_FDCWD, m.delta_path, (struct timespec[2]){ { 0 } }, 0), 0);
	assert_int_equal(bd_refine(d, scales, out, NULL, NULL, &err), -EIO);
	assert_int_equal(access(out, F_OK), -1);
	bd_delta_close(d);
}

static void full(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_delta *d;
	struct rlimit old, small;
	float *scales;

	(void)state;
	model(&m, t, NULL);
	d = opened(m.delta_path);
	scales = other_scales(d);
	getrlimit(RLIMIT_FSIZE, &old);
	small = old;
	signal(SIGXFSZ, SIG_IGN);
	for (rlim_t limit = 1; limit < d->file->size; limit += d->file->size / 9) {
		int rc;

		small.rlim_cur = limit;
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
		rc = bd_refine(d, scales, m.delta_path, NULL, NULL, &err);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
		assert_int_equal(rc, -EFBIG);
		assert_non_null(strstr(err.text, "fine.bdelta: cannot write"));
		assert_memory_equal(td_read(m.delta_path, &(size_t){ 0 }), m.delta, m.delta_size);
	}
	bd_delta_close(d);
	verified(m.delta_path, m.base_path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(elsewhere),
		cmocka_unit_test(kinds),
		cmocka_unit_test(in_place),
		cmocka_unit_test(of_import),
		cmocka_unit_test(refuses),
		cmocka_unit_test(damaged),
		cmocka_unit_test(full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
