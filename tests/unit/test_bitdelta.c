/* SPDX-License-Identifier: Apache-2.0 */
/* test_bitdelta.c: the public interface against the naive reference (testdelta.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "bitdelta.h"
#include "delta.h"
#include "testdata.h"
#include "testdelta.h"

#define THREADS 4
#define GOLDEN BD_TESTS_DIR "/golden/bdelta"

static struct ts_tensor tensors[] = {
	{ .name = "a.sign", .dtype = BD_BF16, .dims = 2, .shape = { 17, 31 }, .kind = TS_SIGN },
	{ .name = "a.raw", .dtype = BD_I64, .kind = TS_RAW },
	{ .name = "a.rows", .dtype = BD_BF16, .dims = 2, .shape = { 13, 5 }, .base_rows = 10,
	  .kind = TS_ROWS_SIGN },
	{ .name = "b.same", .dtype = BD_F16, .dims = 3, .shape = { 4, 5, 6 }, .kind = TS_SAME,
	  .file = "n.safetensors" },
	{ .name = "b.kept", .dtype = BD_F32, .dims = 2, .shape = { 7, 5 }, .base_rows = 9,
	  .kind = TS_ROWS_SAME, .file = "n.safetensors" },
	{ .name = "b.empty", .dtype = BD_F32, .dims = 2, .shape = { 0, 4 }, .kind = TS_RAW,
	  .file = "n.safetensors" },
};

#define TENSORS (sizeof(tensors) / sizeof(*tensors))

static struct ts_model model = {
	.tensors = tensors, .count = TENSORS,
	.files = { { .name = "config.json", .text = "{\"model_type\":\"llama\"}" },
		   { .name = "z empty", .text = "" } },
	.file_count = 2,
};
static struct bitdelta_error err;

static int build(void **state)
{
	(void)state;
	ts_build(&model, td_dir());
	return 0;
}

static struct bitdelta *opened(struct bitdelta_base **base)
{
	struct bitdelta *d;

	if (bitdelta_base_open(base, model.base_path, &err) ||
	    bitdelta_open(&d, *base, model.delta_path, &err))
		fail_msg("%s", err.text);
	return d;
}

static const struct ts_file *wanted_file(const char *name)
{
	for (size_t i = 0; i < model.file_count; i++)
		if (strcmp(model.files[i].name, name) == 0)
			return &model.files[i];
	return NULL;
}

/* Everything, in blocks of `block` bytes, beyond the end as well; the number of bytes that differ. */
static size_t read_all(struct bitdelta *d, size_t block)
{
	char *buf = malloc(block);
	size_t wrong = 0;

	for (size_t i = 0; i < bitdelta_file_count(d); i++) {
		const struct ts_file *f = wanted_file(bitdelta_file_at(d, i)->name);
		uint64_t at = 0;
		ssize_t n;

		while ((n = bitdelta_read_file(d, i, buf, block, at, NULL)) > 0) {
			wrong += memcmp(buf, f->data + at, (size_t)n) != 0;
			at += (uint64_t)n;
		}
		wrong += n != 0 || at != f->size;
	}
	for (size_t i = 0; i < bitdelta_tensor_count(d); i++) {
		const struct bitdelta_tensor *t = bitdelta_tensor_at(d, i);
		const struct ts_file *f = wanted_file(bitdelta_file_at(d, t->file)->name);
		uint64_t at = 0;
		ssize_t n;

		while ((n = bitdelta_read_tensor(d, i, buf, block, at, NULL)) > 0) {
			wrong += memcmp(buf, f->data + t->offset + at, (size_t)n) != 0;
			at += (uint64_t)n;
		}
		wrong += n != 0 || at != t->size;
	}
	free(buf);
	return wrong;
}

static void lists(void **state)
{
	static const char *const names[] = { "config.json", "model.safetensors", "n.safetensors",
					     "z empty" };
	struct bitdelta_base *base;
	struct bitdelta *d = opened(&base);

	(void)state;
	assert_string_equal(bitdelta_version(), BD_VERSION);
	assert_string_equal(bitdelta_name(d), "fine");
	assert_int_equal(bitdelta_file_count(d), 4);
	assert_null(bitdelta_file_at(d, 4));
	for (size_t i = 0; i < 4; i++) {
		const struct bitdelta_file *f = bitdelta_file_at(d, i);

		assert_string_equal(f->name, names[i]);
		assert_int_equal(f->size, wanted_file(f->name)->size);
		assert_int_equal(f->safetensors, i == 1 || i == 2);
		assert_int_equal(bitdelta_find_file(d, f->name), i);
	}
	assert_int_equal(bitdelta_find_file(d, "config"), -ENOENT);

	assert_int_equal(bitdelta_tensor_count(d), TENSORS);
	assert_null(bitdelta_tensor_at(d, TENSORS));
	assert_int_equal(bitdelta_find_tensor(d, "a"), -ENOENT);
	for (size_t i = 0; i < TENSORS; i++) {
		static const char *const encodings[] = { "same", "sign", "raw", "rows", "rows" };
		const struct ts_tensor *w = &tensors[i];
		ssize_t at = bitdelta_find_tensor(d, w->name);
		const struct bitdelta_tensor *t = at < 0 ? NULL : bitdelta_tensor_at(d, (size_t)at);

		assert_non_null(t);
		assert_string_equal(t->name, w->name);
		assert_string_equal(t->dtype, bd_dtype_name(w->dtype));
		assert_int_equal(t->dims, w->dims);
		assert_memory_equal(t->shape, w->shape, w->dims * sizeof(*t->shape));
		assert_int_equal(t->size, w->size);
		assert_string_equal(bitdelta_file_at(d, t->file)->name,
				    w->file ? w->file : "model.safetensors");
		assert_string_equal(t->encoding, encodings[w->kind]);
		assert_int_equal(t->lossy, w->kind == TS_SIGN || w->kind == TS_ROWS_SIGN);
	}
	for (size_t i = 1; i < TENSORS; i++) {
		const struct bitdelta_tensor *t = bitdelta_tensor_at(d, i), *before = t - 1;

		assert_true(before->file < t->file ||
			    (before->file == t->file && before->offset <= t->offset));
	}
	bitdelta_close(d);
	bitdelta_base_close(base);
}

static void reads(void **state)
{
	static const size_t blocks[] = { 1, 7, 64, 4096, 1 << 20 };
	struct bitdelta_base *base;
	struct bitdelta *d = opened(&base);
	char buf[4];

	(void)state;
	for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++)
		assert_int_equal(read_all(d, blocks[i]), 0);
	/* A tensor ends where it ends, though its file goes on, and no offset is too large. */
	assert_int_equal(bitdelta_read_tensor(d, 0, buf, 4, bitdelta_tensor_at(d, 0)->size - 3, &err),
			 3);
	assert_int_equal(bitdelta_read_tensor(d, 0, buf, 4, UINT64_MAX, &err), 0);
	assert_int_equal(bitdelta_read_file(d, 0, buf, 4, UINT64_MAX, &err), 0);
	bitdelta_close(d);
	bitdelta_base_close(base);
}

struct reader {
	struct bitdelta *delta;
	size_t block, wrong;
};

static void *read_in_thread(void *argument)
{
	struct reader *r = argument;

	r->wrong = read_all(r->delta, r->block);
	return NULL;
}

static void many_threads(void **state)
{
	struct reader readers[THREADS];
	pthread_t threads[THREADS];
	struct bitdelta_base *base;
	struct bitdelta *d = opened(&base);

	(void)state;
	for (size_t i = 0; i < THREADS; i++) {
		readers[i] = (struct reader){ .delta = d, .block = 50 + i * 100 };
		assert_int_equal(pthread_create(&threads[i], NULL, read_in_thread, &readers[i]), 0);
	}
	for (size_t i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].wrong, 0);
	}
	bitdelta_close(d);
	bitdelta_base_close(base);
}

/* Paths of files, and of tensors with one name the one that loaders take. */
static void golden(void **state)
{
	struct bitdelta_base *base;
	struct bitdelta *d;
	float norm = 0;

	(void)state;
	if (bitdelta_base_open(&base, GOLDEN "/base", &err) ||
	    bitdelta_open(&d, base, GOLDEN "/good-copies.bdelta", &err))
		fail_msg("%s", err.text);
	assert_int_equal(bitdelta_tensor_count(d), 5);
	assert_int_equal(bitdelta_read_tensor(d, (size_t)bitdelta_find_tensor(d, "norm"), &norm, 4, 0, &err), 4);
	assert_true(norm == 1);
	bitdelta_close(d);
	if (bitdelta_open(&d, base, GOLDEN "/good-paths.bdelta", &err))
		fail_msg("%s", err.text);
	assert_true(bitdelta_find_file(d, "1_Pooling/config.json") >= 0);
	assert_int_equal(bitdelta_find_file(d, "1_Pooling"), -ENOENT);
	bitdelta_close(d);
	bitdelta_base_close(base);
}

static void refused(void **state)
{
	struct ts_tensor other_tensors[] = {
		{ .name = "a.sign", .dtype = BD_BF16, .dims = 2, .shape = { 3, 4 }, .kind = TS_SIGN },
	};
	struct ts_model other = { .tensors = other_tensors, .count = 1 };
	struct bitdelta_base *base, *none = (struct bitdelta_base *)1;
	struct bitdelta *d = opened(&base), *bad = d;
	char buf[4];

	(void)state;
	assert_int_equal(bitdelta_read_file(d, 4, buf, 4, 0, &err), -EINVAL);
	assert_non_null(strstr(err.text, "no file number 4"));
	assert_int_equal(bitdelta_read_tensor(d, SIZE_MAX, buf, 4, 0, &err), -EINVAL);
	assert_non_null(strstr(err.text, model.delta_path));

	assert_int_equal(bitdelta_base_open(&none, "/no/such/base", &err), -ENOENT);
	assert_null(none);
	assert_non_null(strstr(err.text, "/no/such/base"));
	assert_int_equal(bitdelta_open(&bad, base, "/no/such.bdelta", &err), -ENOENT);
	assert_null(bad);
	assert_non_null(strstr(err.text, "/no/such.bdelta"));
	assert_int_equal(bitdelta_open(&bad, base, "/no/such.bdelta", NULL), -ENOENT);

	ts_build(&other, td_dir());
	assert_int_equal(bitdelta_open(&bad, base, other.delta_path, &err), -EINVAL);
	assert_null(bad);
	assert_non_null(strstr(err.text, "another one"));

	bitdelta_close(d);
	bitdelta_base_close(base);
	bitdelta_close(NULL);
	bitdelta_base_close(NULL);
}

static void changes_underneath(void **state)
{
	struct bitdelta_base *base;
	struct bitdelta *d = opened(&base);
	size_t sign = (size_t)bitdelta_find_tensor(d, "a.sign");
	char buf[64];

	(void)state;
	assert_int_equal(bitdelta_read_tensor(d, sign, buf, sizeof(buf), 0, &err), sizeof(buf));
	assert_int_equal(truncate(model.delta_path, 100), 0);
	assert_int_equal(bitdelta_read_tensor(d, sign, buf, sizeof(buf), 0, &err), -EIO);
	assert_non_null(strstr(err.text, model.delta_path));
	bitdelta_close(d);
	bitdelta_base_close(base);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lists),
		cmocka_unit_test(reads),
		cmocka_unit_test(many_threads),
		cmocka_unit_test(golden),
		cmocka_unit_test(refused),
		cmocka_unit_test(changes_underneath),
	};

	return cmocka_run_group_tests(tests, build, NULL);
}
