/* SPDX-License-Identifier: Apache-2.0 */
/* test_view.c: the bytes of a fine-tune, read in every way, against a naive reference (testdelta.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "testdata.h"
#include "testdelta.h"
#include "view.h"

static struct bd_error err;

static struct bd_view *opened(const struct ts_model *m)
{
	struct bd_base *base;
	struct bd_delta *delta;
	struct bd_view *view;

	/* cmocka puts a handler of its own in place for each test. */
	if (bd_guard_installed())
		assert_int_equal(bd_guard_install(), 0);
	if (bd_base_open(&base, m->base_path, &err) || bd_delta_open(&delta, m->delta_path, &err) ||
	    bd_view_open(&view, delta, base, &err))
		fail_msg("%s", err.text);
	return view;
}

static void closed(struct bd_view *view)
{
	struct bd_base *base = view->base;

	bd_view_close(view);
	bd_base_close(base);
}

/* Read and compare one range; the bytes around the buffer must stay as they are. */
static void compare(struct bd_view *v, const struct ts_model *m, size_t file, uint64_t offset,
		    size_t size, struct bd_scratch *scratch)
{
	const struct ts_file *f = &m->files[file];
	size_t there = offset >= f->size ? 0 : size < f->size - offset ? size : f->size - offset;
	char *buf = malloc(size + 32);
	struct bd_error e = { 0 };
	ssize_t n;

	assert_non_null(buf);
	memset(buf, 0xA5, size + 32);
	n = bd_view_read(v, file, buf + 16, size, offset, scratch, &e);
	if (n != (ssize_t)there)
		fail_msg("%s: %zu bytes at %llu: %zd, expected %zu: %s", f->name, size,
			 (unsigned long long)offset, n, there, e.text);
	for (size_t i = 0; i < there; i++)
		if (buf[16 + i] != f->data[offset + i])
			fail_msg("%s: %zu bytes at %llu: byte %llu is %02x, expected %02x", f->name, size,
				 (unsigned long long)offset, (unsigned long long)(offset + i),
				 (unsigned char)buf[16 + i], (unsigned char)f->data[offset + i]);
	for (size_t i = 0; i < 16; i++)
		assert_true((unsigned char)buf[i] == 0xA5 && (unsigned char)buf[16 + there + i] == 0xA5);
	free(buf);
}

static void check_files(const struct bd_view *v, const struct ts_model *m)
{
	assert_string_equal(v->name, "fine");
	assert_int_equal(v->file_count, m->file_count);
	for (size_t f = 0; f < m->file_count; f++) {
		assert_string_equal(v->files[f].name, m->files[f].name);
		assert_int_equal(v->files[f].size, m->files[f].size);
		assert_int_equal(v->files[f].safetensors, m->files[f].text == NULL);
		assert_int_equal(bd_view_acquire((struct bd_view *)v, f, &err), 0);
	}
}

/* The same bytes once the view has forgotten what it was made from. */
static void read_slim(struct bd_view *v, const struct ts_model *m)
{
	struct bd_scratch *scratch = bd_scratch_new();
	uint64_t seed = 77;

	bd_view_slim(v);
	bd_view_slim(v); /* changes nothing */
	assert_null(v->delta->st);
	for (size_t f = 0; f < m->file_count; f++) {
		assert_string_equal(v->files[f].name, m->files[f].name);
		compare(v, m, f, 0, m->files[f].size, scratch);
		for (unsigned i = 0; i < 200 && m->files[f].size; i++)
			compare(v, m, f, ts_random(&seed) % m->files[f].size,
				(size_t)(ts_random(&seed) % 700), scratch);
	}
	bd_scratch_free(scratch);
}

/* Whole, at random places, and around every border between tensors. */
static void read_all(struct bd_view *v, const struct ts_model *m, unsigned random_reads, uint64_t seed)
{
	struct bd_scratch *scratch = bd_scratch_new();

	assert_non_null(scratch);
	for (size_t f = 0; f < m->file_count; f++) {
		uint64_t size = m->files[f].size;

		compare(v, m, f, 0, size, scratch);
		compare(v, m, f, 0, size + 100, scratch);
		compare(v, m, f, size, 1, scratch);
		compare(v, m, f, size + 1, 10, scratch);
		compare(v, m, f, UINT64_MAX, 10, scratch);
		compare(v, m, f, UINT64_MAX - 5, 10, scratch);
		compare(v, m, f, 0, 0, scratch);
		if (size)
			compare(v, m, f, size - 1, 5, scratch);
		for (unsigned i = 0; i < random_reads; i++) {
			uint64_t r = ts_random(&seed), offset = size ? r % size : 0;
			size_t length = (size_t)(ts_random(&seed) % (r >> 60 == 0 ? 400000 : 700));

			compare(v, m, f, offset, length, scratch);
		}
		for (size_t t = 0; !m->files[f].text && t < v->delta->files[f].st->count; t++) {
			uint64_t at = v->delta->files[f].st->tensors[t].offset;

			for (int before = 0; before < 6; before++)
				compare(v, m, f, at - (uint64_t)before, (size_t)(ts_random(&seed) % 12),
					scratch);
		}
	}
	bd_scratch_free(scratch);
}

#define SIGN(n, d, ...) \
	{ .name = n, .dtype = d, .kind = TS_SIGN, .dims = sizeof((uint64_t[]){ __VA_ARGS__ }) / 8, \
	  .shape = { __VA_ARGS__ } }

static void every_encoding(void **state)
{
	struct ts_tensor t[] = {
		SIGN("bf16", BD_BF16, 17, 31), SIGN("f16", BD_F16, 31, 17), SIGN("f32", BD_F32, 5, 63),
		SIGN("one", BD_BF16, 1, 1), SIGN("vector", BD_BF16, 100), SIGN("vector1", BD_F32, 1),
		SIGN("column", BD_F16, 77, 1), SIGN("row", BD_F16, 1, 77),
		SIGN("cube", BD_BF16, 3, 5, 7), SIGN("eight", BD_F32, 1, 2, 1, 3, 1, 2, 1, 5),
		SIGN("bytes", BD_BF16, 16, 64),
		{ .name = "raw.f64", .dtype = BD_F64, .dims = 2, .shape = { 3, 3 }, .kind = TS_RAW },
		{ .name = "raw.bool", .dtype = BD_BOOL, .dims = 1, .shape = { 3 }, .kind = TS_RAW },
		{ .name = "raw.scalar", .dtype = BD_I64, .kind = TS_RAW },
		{ .name = "raw.fp8", .dtype = BD_F8_E4M3, .dims = 2, .shape = { 5, 5 }, .kind = TS_RAW },
		{ .name = "raw.fp4", .dtype = BD_F4, .dims = 2, .shape = { 3, 2 }, .kind = TS_RAW },
		{ .name = "raw.fp6", .dtype = BD_F6_E2M3, .dims = 1, .shape = { 4 }, .kind = TS_RAW },
		{ .name = "raw.complex", .dtype = BD_C64, .dims = 1, .shape = { 2 }, .kind = TS_RAW },
		{ .name = "raw.empty", .dtype = BD_BF16, .dims = 2, .shape = { 0, 4 }, .kind = TS_RAW },
		{ .name = "same.scalar", .dtype = BD_F32, .kind = TS_SAME },
		{ .name = "same.empty", .dtype = BD_F32, .dims = 2, .shape = { 4, 0 }, .kind = TS_SAME },
		{ .name = "same.u16", .dtype = BD_U16, .dims = 1, .shape = { 1001 }, .kind = TS_SAME },
		{ .name = "same.big", .dtype = BD_BF16, .dims = 2, .shape = { 100, 100 }, .kind = TS_SAME },
		{ .name = "same.fp4", .dtype = BD_F4, .dims = 2, .shape = { 3, 6 }, .kind = TS_SAME },
		{ .name = "rows.same.grown", .dtype = BD_BF16, .dims = 2, .shape = { 13, 5 },
		  .base_rows = 10, .kind = TS_ROWS_SAME },
		{ .name = "rows.same.shrunk", .dtype = BD_F16, .dims = 2, .shape = { 7, 5 },
		  .base_rows = 10, .kind = TS_ROWS_SAME },
		{ .name = "rows.same.i8", .dtype = BD_I8, .dims = 3, .shape = { 4, 3, 3 },
		  .base_rows = 1, .kind = TS_ROWS_SAME },
		{ .name = "rows.same.equal", .dtype = BD_F16, .dims = 2, .shape = { 7, 5 },
		  .base_rows = 7, .kind = TS_ROWS_SAME },
		{ .name = "rows.sign.grown", .dtype = BD_BF16, .dims = 2, .shape = { 13, 5 },
		  .base_rows = 10, .kind = TS_ROWS_SIGN },
		{ .name = "rows.sign.shrunk", .dtype = BD_F32, .dims = 2, .shape = { 3, 50 },
		  .base_rows = 10, .kind = TS_ROWS_SIGN, .planes = 2 },
		{ .name = "rows.sign.cube", .dtype = BD_F16, .dims = 3, .shape = { 5, 3, 4 },
		  .base_rows = 2, .kind = TS_ROWS_SIGN, .other_base_dtype = true, .base_dtype = BD_F32 },
		{ .name = "last.empty", .dtype = BD_U8, .dims = 1, .shape = { 0 }, .kind = TS_RAW },
	};
	struct ts_model m = {
		.tensors = t, .count = sizeof(t) / sizeof(*t), .base_shards = 3,
		.files = { { .name = "config.json", .text = "{\"model_type\":\"llama\"}" },
			   { .name = "z empty", .text = "" } },
		.file_count = 2,
	};
	struct bd_view *v;
	struct bd_scratch *scratch = bd_scratch_new();

	(void)state;
	ts_build(&m, td_dir());
	v = opened(&m);
	check_files(v, &m);
	read_all(v, &m, 400, 1);
	for (size_t f = 0; f < m.file_count; f++)
		for (uint64_t i = 0; i < m.files[f].size; i += td_slowness() > 1 ? 7 : 1)
			compare(v, &m, f, i, 1, scratch);
	bd_scratch_free(scratch);
	read_slim(v, &m);
	for (size_t f = 0; f < m.file_count; f++)
		bd_view_release(v, f);
	closed(v);
}

/* What views and bases of many tensors take, counted by the C library (a sanitizer's counts nothing). */
static void memory(void **state)
{
	enum { COUNT = 4000 };
	struct ts_tensor *t = calloc(COUNT, sizeof(*t));
	struct ts_model m = { .tensors = t, .count = COUNT, .base_shards = 3 };
	size_t header = 0, before, bytes, base, slim;
	struct bd_base *b;
	struct bd_view *v;

	(void)state;
	for (size_t i = 0; i < COUNT; i++)
		t[i] = (struct ts_tensor){
			.name = td_format("model.layers.%zu.mlp.experts.%zu.down_proj.weight", i / 128, i % 128),
			.dtype = BD_BF16, .dims = 2, .shape = { 4, 4 + i % 3 },
			.kind = i % 8 ? TS_SIGN : i % 3 ? TS_SAME : TS_RAW,
			.file = i < COUNT / 2 ? "a.safetensors" : "b.safetensors",
		};
	ts_build(&m, td_dir());
	before = mallinfo2().uordblks;
	v = opened(&m);
	for (size_t f = 0; f < v->file_count; f++)
		header += v->delta->files[f].st->header_size;
	bd_view_slim(v);
	slim = mallinfo2().uordblks - before;
	bytes = bd_view_bytes(v);
	assert_in_range(bytes, header, header + COUNT * 52);
	b = v->base;
	bd_view_close(v);
	base = mallinfo2().uordblks - before;
	bd_base_close(b);
	if (slim) {
		assert_in_range(slim - base, bytes, bytes + 4096);
		assert_in_range(base, COUNT * 100, COUNT * 220);
	}
	free(t);
}

/* All nine pairs of dtypes, up to eight planes, any bits in base and (finite) scales, odd widths. */
static void every_arithmetic(void **state)
{
	static const enum bd_dtype types[] = { BD_BF16, BD_F16, BD_F32 };
	struct ts_tensor t[9 * 8];
	size_t n = 0;
	struct ts_model m = { .tensors = t };
	struct bd_view *v;

	(void)state;
	for (unsigned planes = 1; planes <= 8; planes++)
		for (int a = 0; a < 3; a++)
			for (int b = 0; b < 3; b++) {
				t[n] = (struct ts_tensor){
					.name = td_format("t%zu", n), .dtype = types[a],
					.other_base_dtype = true, .base_dtype = types[b], .kind = TS_SIGN,
					.dims = 2, .shape = { 7 + n % 5, 29 + n % 17 }, .planes = planes,
					.wild = n % 2 == 0, .file = n % 3 ? "b.safetensors" : "a.safetensors",
				};
				n++;
			}
	m.count = n;
	ts_build(&m, td_dir());
	v = opened(&m);
	check_files(v, &m);
	read_all(v, &m, 300, 2);
	read_slim(v, &m);
	closed(v);
}

/* What a view cuts into pieces: wide rows (more than 131072 columns), long columns, large reads. */
static void large(void **state)
{
	struct ts_tensor t[] = {
		SIGN("wide", BD_BF16, 3, 131073), SIGN("widest", BD_F16, 2, 300003),
		SIGN("just", BD_F32, 3, 131072), SIGN("some", BD_BF16, 9, 32769), SIGN("vector", BD_F32, 140001),
		SIGN("column", BD_BF16, 140000, 1), SIGN("narrow", BD_F16, 40000, 3),
		{ .name = "two", .dtype = BD_F16, .dims = 2, .shape = { 2, 70001 }, .kind = TS_SIGN,
		  .planes = 3, .other_base_dtype = true, .base_dtype = BD_F32 },
		{ .name = "up", .dtype = BD_F32, .dims = 2, .shape = { 401, 333 }, .kind = TS_SIGN,
		  .planes = 2, .other_base_dtype = true, .base_dtype = BD_BF16, .wild = true },
		{ .name = "rows", .dtype = BD_BF16, .dims = 2, .shape = { 5, 33000 }, .base_rows = 3,
		  .kind = TS_ROWS_SIGN },
		{ .name = "same", .dtype = BD_BF16, .dims = 2, .shape = { 300, 301 }, .kind = TS_SAME },
	};
	struct ts_model m = { .tensors = t, .count = sizeof(t) / sizeof(*t), .base_shards = 2 };
	struct bd_view *v;

	(void)state;
	ts_build(&m, td_dir());
	v = opened(&m);
	check_files(v, &m);
	read_all(v, &m, 600 / td_slowness(), 3);
	closed(v);
}

struct reader {
	struct bd_view *view;
	const struct ts_model *model;
	uint64_t seed;
	unsigned reads;
	atomic_bool *stop;
	atomic_uint good;
	unsigned failed;
	const char *wrong;
};

static void *read_many(void *argument)
{
	struct reader *r = argument;
	struct bd_scratch *scratch = bd_scratch_new();
	size_t capacity = 70000;
	char *buf = malloc(capacity);

	for (unsigned i = 0; i < r->reads || (r->stop && !atomic_load(r->stop)); i++) {
		size_t f = (size_t)(ts_random(&r->seed) % r->model->file_count);
		const struct ts_file *file = &r->model->files[f];
		uint64_t offset = ts_random(&r->seed) % file->size;
		size_t size = (size_t)(ts_random(&r->seed) % capacity) + 1, want;
		struct bd_error e = { 0 };
		ssize_t n;

		if (bd_view_acquire(r->view, f, &e) < 0) {
			r->failed++;
			continue;
		}
		n = bd_view_read(r->view, f, buf, size, offset, scratch, &e);
		bd_view_release(r->view, f);
		want = size < file->size - offset ? size : (size_t)(file->size - offset);
		if (n < 0) {
			r->failed++;
			if (n != -EIO || e.code != -EIO || !*e.text)
				r->wrong = "another error than -EIO, or no message";
			continue;
		}
		r->good++;
		if ((size_t)n != want || memcmp(buf, file->data + offset, want) != 0)
			r->wrong = "other bytes";
	}
	free(buf);
	bd_scratch_free(scratch);
	return NULL;
}

static void medium_model(struct ts_model *m, struct ts_tensor t[4])
{
	struct ts_tensor list[4] = {
		SIGN("sign", BD_BF16, 300, 301),
		{ .name = "same", .dtype = BD_BF16, .dims = 2, .shape = { 200, 101 }, .kind = TS_SAME },
		{ .name = "raw", .dtype = BD_F32, .dims = 2, .shape = { 100, 101 }, .kind = TS_RAW },
		{ .name = "rows", .dtype = BD_F16, .dims = 2, .shape = { 90, 77 }, .base_rows = 80,
		  .kind = TS_ROWS_SIGN, .planes = 2 },
	};

	memcpy(t, list, sizeof(list));
	*m = (struct ts_model){
		.tensors = t, .count = 4, .file_count = 1,
		.files = { { .name = "text", .text = "some text that is inflated when it is opened" } },
	};
}

static void many_threads(void **state)
{
	enum { THREADS = 16 };
	struct ts_tensor t[4];
	struct ts_model m;
	struct bd_view *v;
	pthread_t threads[THREADS];
	struct reader readers[THREADS];

	(void)state;
	medium_model(&m, t);
	ts_build(&m, td_dir());
	v = opened(&m);
	for (int i = 0; i < THREADS; i++) {
		readers[i] = (struct reader){ v, &m, (uint64_t)i, 400 / td_slowness(), NULL, 0, 0, NULL };
		assert_int_equal(pthread_create(&threads[i], NULL, read_many, &readers[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		if (readers[i].wrong || readers[i].failed)
			fail_msg("%s, %u errors", readers[i].wrong, readers[i].failed);
	}
	closed(v);
}

/* Until a change of PATH is sure to get another time than it has. */
static void settle(const char *path)
{
	struct stat before, after;
	char *probe = td_format("%s.probe", path);

	assert_int_equal(stat(path, &before), 0);
	do {
		FILE *f = fopen(probe, "w");

		assert_non_null(f);
		fclose(f);
		assert_int_equal(stat(probe, &after), 0);
		unlink(probe);
	} while (after.st_ctim.tv_sec == before.st_ctim.tv_sec &&
		 after.st_ctim.tv_nsec == before.st_ctim.tv_nsec);
}

static void put(const char *path, uint64_t offset, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, data, size, (off_t)offset), size);
	close(fd);
}

enum change { TRUNCATE, EMPTY, GROW, OVERWRITE, DELETE, REPLACE, CHMOD, CHANGES };

static void apply(enum change change, const char *path)
{
	switch (change) {
	case TRUNCATE: assert_int_equal(truncate(path, 3000), 0); break;
	case EMPTY: assert_int_equal(truncate(path, 0), 0); break;
	case GROW: assert_int_equal(truncate(path, 10 << 20), 0); break;
	case OVERWRITE: put(path, 5000, "other", 5); break;
	case DELETE: assert_int_equal(unlink(path), 0); break;
	case REPLACE: assert_int_equal(rename(td_write(td_dir(), "x", "other", 5), path), 0); break;
	case CHMOD: assert_int_equal(chmod(path, 0400), 0); break;
	default: break;
	}
}

/* Base or delta changes under the view: errors, and never other bytes. A file that was deleted or
 * replaced keeps its bytes, and a mode is no contents. */
static void changes_underneath(void **state)
{
	enum { THREADS = 4 };

	(void)state;
	for (int which = 0; which < 2; which++)
		for (enum change change = 0; change < CHANGES; change++) {
			struct ts_tensor t[4];
			struct ts_model m;
			struct bd_view *v;
			char *path;
			pthread_t threads[THREADS];
			struct reader readers[THREADS];
			atomic_bool stop = false;
			struct timespec pause = { .tv_nsec = 5 * 1000 * 1000 };
			struct bd_scratch *scratch = bd_scratch_new();
			struct bd_error e = { 0 };
			char buf[64];
			size_t file = 0;

			medium_model(&m, t);
			ts_build(&m, td_dir());
			path = which ? m.delta_path : td_path(m.base_path, "model.safetensors");
			settle(path);
			v = opened(&m);
			for (int i = 0; i < THREADS; i++) {
				readers[i] = (struct reader){ v, &m, (uint64_t)i, 1, &stop, 0, 0, NULL };
				assert_int_equal(pthread_create(&threads[i], NULL, read_many,
								&readers[i]), 0);
			}
			for (int i = 0; i < THREADS; i++)
				while (atomic_load(&readers[i].good) == 0)
					nanosleep(&pause, NULL);
			apply(change, path);
			nanosleep(&pause, NULL);
			atomic_store(&stop, true);
			for (int i = 0; i < THREADS; i++) {
				pthread_join(threads[i], NULL);
				if (readers[i].wrong)
					fail_msg("%s changed (%d): %s", which ? "delta" : "base", (int)change,
						 readers[i].wrong);
			}
			/* From now on nothing of the tensors that come from it can be read, or all. */
			while (m.files[file].text)
				file++;
			for (size_t i = 0; i < v->delta->files[file].st->count; i++) {
				const struct bd_entry *entry = &v->delta->files[file].entries[i];
				bool needed = change < DELETE && (which || entry->encoding != BD_RAW);
				ssize_t n = bd_view_read(v, file, buf, sizeof(buf), entry->tensor->offset,
							 scratch, &e);

				if (needed && (n != -EIO || !strstr(e.text, path)))
					fail_msg("%s: %zd: %s", entry->tensor->name, n, e.text);
				if (!needed)
					assert_int_equal(n, sizeof(buf));
			}
			bd_scratch_free(scratch);
			closed(v);
		}
}

/* A scale that is not finite is damage, found when it is needed. */
static void bad_scales(void **state)
{
	static const float bad[] = { NAN, INFINITY, -INFINITY };
	float scales[2 * (4 + 6)];

	(void)state;
	for (int b = 0; b < 3; b++)
		for (size_t at = 0; at < 20; at++) {
			struct ts_tensor t[] = {
				{ .name = "good", .dtype = BD_BF16, .dims = 2, .shape = { 4, 6 }, .kind = TS_SIGN },
				{ .name = "bad", .dtype = BD_BF16, .dims = 2, .shape = { 4, 6 },
				  .kind = TS_SIGN, .planes = 2, .scales_given = scales },
			};
			struct ts_model m = { .tensors = t, .count = 2 };
			struct bd_scratch *scratch = bd_scratch_new();
			struct bd_view *v;
			char buf[48];
			uint64_t offset;

			for (size_t i = 0; i < 20; i++)
				scales[i] = 0.5f;
			scales[at] = bad[b];
			ts_build(&m, td_dir());
			v = opened(&m);
			offset = v->delta->files[0].st->tensors[0].offset;
			assert_int_equal(bd_view_read(v, 0, buf, 48, offset, scratch, &err), 48);
			assert_int_equal(bd_view_read(v, 0, buf, 48, offset + 48, scratch, &err), -EIO);
			assert_non_null(strstr(err.text, "one of the scales "));
			assert_non_null(strstr(err.text, "not finite"));
			assert_non_null(strstr(err.text, m.delta_path));
			bd_scratch_free(scratch);
			closed(v);
		}
}

/* What a read needed of base and delta, without more than it must. */
static void counts(void **state)
{
	enum { ROWS = 512, COLS = 3000 };
	struct ts_tensor t[] = {
		SIGN("one", BD_BF16, ROWS, COLS), SIGN("other", BD_BF16, 2, 300003),
		{ .name = "same", .dtype = BD_F32, .dims = 1, .shape = { 1000 }, .kind = TS_SAME },
		{ .name = "raw", .dtype = BD_F32, .dims = 1, .shape = { 1000 }, .kind = TS_RAW },
	};
	struct ts_model m = { .tensors = t, .count = 4 };
	struct bd_scratch *scratch = bd_scratch_new();
	uint64_t base, delta, bases = 0, deltas = 0, offset, size;
	char *buf = malloc(1 << 20);
	struct bd_view *v;

	(void)state;
	ts_build(&m, td_dir());
	v = opened(&m);
	bd_scratch_take_counts(scratch, &base, &delta);
	assert_true(base == 0 && delta == 0);
	for (size_t i = 0; i < 4; i++) {
		const struct bd_entry *e = &v->delta->files[0].entries[i];
		size_t requests[] = { 4096, 65536, 1 << 20 };

		offset = e->tensor->offset;
		size = e->tensor->size;
		if (e->encoding != BD_SIGN) {
			assert_int_equal(bd_view_read(v, 0, buf, size, offset, scratch, &err), size);
			bd_scratch_take_counts(scratch, &base, &delta);
			assert_int_equal(base, e->encoding == BD_SAME ? size : 0);
			assert_int_equal(delta, e->encoding == BD_RAW ? size : 0);
			continue;
		}
		for (size_t r = 0; r < sizeof(requests) / sizeof(*requests); r++) {
			uint64_t needed = e->rows * e->cols / 8 + 4 * (e->rows + e->cols);

			bases = deltas = 0;
			for (uint64_t at = 0; at < size; at += requests[r]) {
				assert_true(bd_view_read(v, 0, buf, requests[r], offset + at, scratch, &err) > 0);
				bd_scratch_take_counts(scratch, &base, &delta);
				bases += base;
				deltas += delta;
			}
			/* The last request may reach into the next tensor. */
			assert_true(bases >= size && bases <= size + requests[r]);
			if (e->cols == COLS && (double)deltas > 1.1 * (double)needed + (double)requests[r])
				fail_msg("%llu bytes of delta instead of %llu", (unsigned long long)deltas,
					 (unsigned long long)needed);
		}
	}
	/* One request of 4 KiB in a wide row does not read all of its scales. */
	offset = v->delta->files[0].entries[1].tensor->offset;
	bd_scratch_free(scratch);
	scratch = bd_scratch_new();
	assert_int_equal(bd_view_read(v, 0, buf, 4096, offset, scratch, &err), 4096);
	bd_scratch_take_counts(scratch, &base, &delta);
	assert_int_equal(base, 4096);
	assert_true(delta <= 4 * 2048 + 2 * 4 * 512 + 257 + 4);
	bd_scratch_free(scratch);
	free(buf);
	closed(v);
}

/* Column scales are remembered from call to call, but never for another tensor or view. */
static void remembers_columns(void **state)
{
	struct ts_tensor t[] = {
		{ .name = "a", .dtype = BD_BF16, .dims = 2, .shape = { 9, 1300 }, .kind = TS_SIGN, .planes = 3 },
		{ .name = "b", .dtype = BD_BF16, .dims = 2, .shape = { 9, 1300 }, .kind = TS_SIGN },
		{ .name = "c", .dtype = BD_F32, .dims = 2, .shape = { 2, 140000 }, .kind = TS_SIGN, .planes = 8 },
		{ .name = "d", .dtype = BD_BF16, .dims = 2, .shape = { 9, 1300 }, .kind = TS_SIGN, .planes = 2 },
	};
	struct ts_tensor u[4];
	struct ts_model m = { .tensors = t, .count = 4 }, n = { .tensors = u, .count = 4 };
	struct bd_scratch *scratch = bd_scratch_new();
	uint64_t seed = 5;

	(void)state;
	memcpy(u, t, sizeof(t));
	for (int i = 0; i < 4; i++) {
		u[i].name = td_format("other%d", i); /* other scales */
		u[i].planes = (unsigned)i + 1;
	}
	ts_build(&m, td_dir());
	ts_build(&n, td_dir());
	for (int again = 0; again < 3; again++) {
		/* The second view may well lie where the first one was. */
		const struct ts_model *models[] = { &m, &n };

		for (int k = 0; k < 2; k++) {
			struct bd_view *v = opened(models[k]);

			for (unsigned i = 0; i < 300 / td_slowness() + 20; i++) {
				const struct bd_tensor *x =
					v->delta->files[0].entries[ts_random(&seed) % 4].tensor;

				compare(v, models[k], 0, x->offset + ts_random(&seed) % x->size,
					(size_t)(ts_random(&seed) % 5000), scratch);
			}
			closed(v);
		}
	}
	bd_scratch_free(scratch);
}

/* Other files: inflated once while anybody uses them; damage is an error for each who asks. */
static void other_files(void **state)
{
	struct ts_tensor t[4];
	struct ts_model m;
	struct bd_view *v;
	struct bd_scratch *scratch = bd_scratch_new();
	const struct bd_tensor *stored;
	char buf[8];

	(void)state;
	medium_model(&m, t);
	ts_build(&m, td_dir());
	v = opened(&m);
	assert_string_equal(v->files[1].name, "text");
	assert_int_equal(bd_view_acquire(v, 1, &err), 0);
	assert_int_equal(bd_view_acquire(v, 1, &err), 0);
	bd_view_release(v, 1);
	compare(v, &m, 1, 5, 4, scratch);
	bd_view_release(v, 1);
	assert_null(v->files[1].data);
	assert_int_equal(bd_view_acquire(v, 1, &err), 0);
	bd_view_release(v, 1);
	stored = bd_safetensors_find(v->delta->st, "file/text");
	memcpy(buf, m.delta + stored->offset + 10, 1);
	buf[0] ^= 1;
	put(m.delta_path, stored->offset + 10, buf, 1);
	closed(v);
	v = opened(&m); /* still opens: the streams of files are checked when they are inflated */
	assert_true(bd_view_acquire(v, 1, &err) < 0);
	assert_non_null(strstr(err.text, "text"));
	assert_non_null(strstr(err.text, m.delta_path));
	assert_true(bd_view_acquire(v, 1, &err) < 0);
	bd_scratch_free(scratch);
	closed(v);
}

/* Open the file of zeros; its memory is given back, and reads as zeros again. */
static int acquire_zeros(struct bd_view *v, size_t file)
{
	const uintptr_t page = 4096;
	int rc = bd_view_acquire(v, file, &err);
	uintptr_t start, end;

	if (rc == 0) {
		start = ((uintptr_t)v->files[file].data + page - 1) / page * page;
		end = ((uintptr_t)v->files[file].data + v->files[file].size) / page * page;
		assert_int_equal(madvise((void *)start, end - start, MADV_DONTNEED), 0);
	}
	return rc;
}

/* Other files are kept in memory while they are open, up to a bound for all views together. */
static void many_other_files(void **state)
{
	enum { SAFETENSORS, TEXT, ZEROS, SIZE = 64 << 20, COUNT = BD_VIEW_INFLATED / SIZE };
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_view *v[COUNT + 1], *last;
	char *zeros = calloc(1, SIZE);
	struct ts_tensor t[4];
	struct ts_model m;

	(void)state;
	assert_non_null(zeros);
	medium_model(&m, t);
	m.files[m.file_count++] = (struct ts_file){ .name = "zeros", .text = zeros, .size = SIZE };
	ts_build(&m, td_dir());
	free(zeros);
	for (size_t i = 0; i <= COUNT; i++)
		v[i] = opened(&m);
	for (size_t i = 0; i < COUNT; i++)
		assert_int_equal(acquire_zeros(v[i], ZEROS), 0);
	last = v[COUNT];
	for (int again = 0; again < 3; again++) {
		assert_int_equal(bd_view_acquire(last, ZEROS, &err), -ENOMEM);
		assert_non_null(strstr(err.text, m.delta_path));
		assert_non_null(strstr(err.text, "'zeros'"));
		assert_non_null(strstr(err.text, "open already take too much memory"));
	}
	assert_int_equal(bd_view_acquire(last, TEXT, &err), -ENOMEM);
	assert_int_equal(bd_view_acquire(last, SAFETENSORS, &err), 0);
	compare(last, &m, SAFETENSORS, 0, 1000, scratch);
	bd_view_release(last, SAFETENSORS);
	/* What is there already costs nothing. */
	assert_int_equal(bd_view_acquire(v[0], ZEROS, &err), 0);
	bd_view_release(v[0], ZEROS);
	assert_int_equal(bd_view_acquire(last, TEXT, &err), -ENOMEM);
	bd_view_release(v[0], ZEROS);
	assert_int_equal(acquire_zeros(last, ZEROS), 0);
	compare(last, &m, ZEROS, SIZE - 1000, 2000, scratch);
	assert_int_equal(bd_view_acquire(v[0], TEXT, &err), -ENOMEM);
	closed(v[1]); /* without a release */
	assert_int_equal(bd_view_acquire(v[0], TEXT, &err), 0);
	compare(v[0], &m, TEXT, 5, 4, scratch);
	bd_view_release(v[0], TEXT);
	for (size_t i = 0; i <= COUNT; i++)
		if (i != 1)
			closed(v[i]);
	bd_scratch_free(scratch);
}

/* A view that cannot be opened leaves the delta to its owner. */
static void wrong_base(void **state)
{
	struct ts_tensor t[4], u[4];
	struct ts_model m, other;
	struct bd_base *base;
	struct bd_delta *delta;
	struct bd_view *view = NULL;

	(void)state;
	medium_model(&m, t);
	medium_model(&other, u);
	u[0].name = "sign2";
	ts_build(&m, td_dir());
	ts_build(&other, td_dir());
	assert_int_equal(bd_base_open(&base, other.base_path, &err), 0);
	assert_int_equal(bd_delta_open(&delta, m.delta_path, &err), 0);
	assert_int_equal(bd_view_open(&view, delta, base, &err), -EINVAL);
	assert_null(view);
	assert_non_null(strstr(err.text, "'sign'"));
	bd_delta_close(delta);
	bd_base_close(base);
	bd_view_close(NULL);
	bd_scratch_free(NULL);
}

/* From here on with maps, which a process cannot give up again. */
static void install_guard(void **state)
{
	(void)state;
	assert_false(bd_guard_installed());
	assert_int_equal(setenv("BITDELTA_MAP", "0", 1), 0);
	assert_int_equal(bd_guard_install(), 0);
	assert_false(bd_guard_installed());
	assert_int_equal(unsetenv("BITDELTA_MAP"), 0);
	assert_int_equal(bd_guard_install(), 0);
	assert_true(bd_guard_installed());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_encoding),
		cmocka_unit_test(memory),
		cmocka_unit_test(every_arithmetic),
		cmocka_unit_test(large),
		cmocka_unit_test(many_threads),
		cmocka_unit_test(changes_underneath),
		cmocka_unit_test(bad_scales),
		cmocka_unit_test(counts),
		cmocka_unit_test(remembers_columns),
		cmocka_unit_test(other_files),
		cmocka_unit_test(many_other_files),
		cmocka_unit_test(wrong_base),
		cmocka_unit_test(install_guard),
		{ "every_encoding_mapped", every_encoding, NULL, NULL, NULL },
		{ "large_mapped", large, NULL, NULL, NULL },
		{ "many_threads_mapped", many_threads, NULL, NULL, NULL },
		{ "changes_underneath_mapped", changes_underneath, NULL, NULL, NULL },
		{ "bad_scales_mapped", bad_scales, NULL, NULL, NULL },
		{ "counts_mapped", counts, NULL, NULL, NULL },
		{ "remembers_columns_mapped", remembers_columns, NULL, NULL, NULL },
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
