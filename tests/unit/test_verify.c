/* SPDX-License-Identifier: Apache-2.0 */
/* test_verify.c: damage anywhere in what a delta stores or needs is found and named. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "testdata.h"
#include "testdelta.h"
#include "verify.h"

static struct bd_error err;
static const struct bd_watch nobody;

#define TENSORS 6

static void model(struct ts_model *m, struct ts_tensor t[TENSORS])
{
	struct ts_tensor list[TENSORS] = {
		{ .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 50, 71 }, .kind = TS_SIGN },
		{ .name = "b.weight", .dtype = BD_F16, .dims = 2, .shape = { 30, 31 }, .kind = TS_SIGN,
		  .planes = 3 },
		{ .name = "norm", .dtype = BD_F32, .dims = 1, .shape = { 300 }, .kind = TS_RAW },
		{ .name = "same", .dtype = BD_U8, .dims = 1, .shape = { 90000 }, .kind = TS_SAME },
		{ .name = "embed", .dtype = BD_BF16, .dims = 2, .shape = { 40, 300 }, .base_rows = 30,
		  .kind = TS_ROWS_SAME },
		{ .name = "head", .dtype = BD_BF16, .dims = 2, .shape = { 40, 30 }, .base_rows = 41,
		  .kind = TS_ROWS_SIGN },
	};

	memcpy(t, list, sizeof(list));
	*m = (struct ts_model){
		.tensors = t, .count = TENSORS, .file_count = 1, .base_shards = 2,
		.files = { { .name = "config.json", .text = "{\"model_type\":\"llama\"}" } },
	};
	ts_build(m, td_dir());
}

/* 0 or the error of opening or verifying, without or with the base. */
static int verified(const struct ts_model *m, bool with_base)
{
	struct bd_delta *d = NULL;
	struct bd_base *base = NULL;
	int rc = bd_delta_open(&d, m->delta_path, &err);

	if (rc == 0 && with_base)
		rc = bd_base_open(&base, m->base_path, &err);
	if (rc == 0)
		rc = bd_verify(d, base, &nobody, &err);
	bd_delta_close(d);
	bd_base_close(base);
	return rc;
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

static void whole(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;

	(void)state;
	model(&m, t);
	if (verified(&m, false) || verified(&m, true))
		fail_msg("%s", err.text);
}

/* A bit at the begin, at the end and at many places of each tensor of the container. */
static void stored_damage(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_delta *d;
	uint64_t seed = 5;

	(void)state;
	model(&m, t);
	assert_int_equal(bd_delta_open(&d, m.delta_path, &err), 0);
	for (size_t i = 0; i < d->st->count; i++) {
		const struct bd_tensor *s = &d->st->tensors[i];
		bool stream = strncmp(s->name, "file/", 5) == 0 || strcmp(s->name, "manifest") == 0;

		for (unsigned k = 0; k < 40; k++) {
			uint64_t at = k == 0 ? 0 : k == 1 ? s->size - 1 : ts_random(&seed) % s->size;
			unsigned bit = (unsigned)(ts_random(&seed) % 8);
			int rc;

			flip(m.delta_path, s->offset + at, bit);
			rc = verified(&m, false);
			/* The last bits of a deflate stream say nothing. */
			if (rc == 0 && stream && at >= s->size - 5) {
				flip(m.delta_path, s->offset + at, bit);
				continue;
			}
			if (rc >= 0 || !strstr(err.text, m.delta_path))
				fail_msg("%s, byte %llu: %d: %s", s->name, (unsigned long long)at, rc, err.text);
			if (!stream && strcmp(s->name, "scales") != 0 && !strstr(err.text, s->name))
				fail_msg("%s: %s", s->name, err.text);
			assert_true(verified(&m, true) < 0);
			flip(m.delta_path, s->offset + at, bit);
		}
	}
	bd_delta_close(d);
	assert_int_equal(verified(&m, true), 0);
}

/* The same in the base: all of each tensor counts, also rows that the fine-tune has not. */
static void base_damage(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_base *base;
	uint64_t seed = 6;

	(void)state;
	model(&m, t);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	for (size_t i = 0; i < base->count; i++) {
		const struct bd_base_tensor *b = &base->tensors[i];

		for (unsigned k = 0; k < 40; k++) {
			uint64_t size = b->tensor->size;
			uint64_t at = k == 0 ? 0 : k == 1 ? size - 1 : ts_random(&seed) % size;
			int rc;

			flip(b->shard->file->path, b->tensor->offset + at, k % 8);
			rc = verified(&m, true);
			if (rc >= 0 || !strstr(err.text, b->tensor->name))
				fail_msg("%s, byte %llu: %d: %s", b->tensor->name, (unsigned long long)at, rc,
					 err.text);
			assert_int_equal(verified(&m, false), 0);
			flip(b->shard->file->path, b->tensor->offset + at, k % 8);
		}
	}
	bd_base_close(base);
	assert_int_equal(verified(&m, true), 0);
}

/* Hashes that are right for numbers that are wrong. */
static void bad_numbers(void **state)
{
	float scales[16];

	(void)state;
	for (int i = 0; i < 16; i++) {
		struct ts_tensor t = {
			.name = "a", .dtype = BD_BF16, .dims = 2, .shape = { 8, 8 }, .kind = TS_SIGN,
			.scales_given = scales,
		};
		struct ts_model m = { .tensors = &t, .count = 1 };

		for (int k = 0; k < 16; k++)
			scales[k] = k == i ? (i % 2 ? INFINITY : NAN) : -1.5f;
		ts_build(&m, td_dir());
		assert_int_equal(verified(&m, false), -EIO);
		assert_non_null(strstr(err.text, "not finite"));
		assert_non_null(strstr(err.text, m.delta_path));
	}
}

static unsigned long long last_done, last_total;

static void progress(void *context, unsigned long long done, unsigned long long total)
{
	(void)context;
	last_done = done;
	last_total = total;
}

static void watched(void **state)
{
	struct ts_tensor t[TENSORS];
	struct ts_model m;
	struct bd_delta *d;
	struct bd_base *base;
	atomic_int cancel = 0;
	struct bd_watch watch = { .progress = progress, .cancel = &cancel };

	(void)state;
	model(&m, t);
	assert_int_equal(bd_delta_open(&d, m.delta_path, &err), 0);
	assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
	assert_int_equal(bd_verify(d, base, &watch, &err), 0);
	assert_true(last_total > 90000 && last_done == last_total);
	cancel = 1;
	assert_int_equal(bd_verify(d, base, &watch, &err), -EINTR);
	cancel = 0;
	/* While somebody writes to it. */
	assert_int_equal(truncate(m.delta_path, (off_t)m.delta_size - 1), 0);
	assert_int_equal(bd_verify(d, base, &watch, &err), -EIO);
	assert_non_null(strstr(err.text, m.delta_path));
	bd_base_close(base);
	bd_delta_close(d);
}

static void wrong_base(void **state)
{
	struct ts_tensor t[TENSORS], u[TENSORS];
	struct ts_model m, other;
	char *path;

	(void)state;
	model(&m, t);
	model(&other, u);
	path = m.base_path;
	m.base_path = td_dir();
	u[0].base_tensor.name = "a";
	td_safetensors(m.base_path, "model.safetensors", &u[0].base_tensor, 1, NULL);
	assert_int_equal(verified(&m, true), -EINVAL);
	assert_non_null(strstr(err.text, "another one"));
	m.base_path = path;
	assert_int_equal(verified(&m, true), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole),
		cmocka_unit_test(stored_damage),
		cmocka_unit_test(base_damage),
		cmocka_unit_test(bad_numbers),
		cmocka_unit_test(watched),
		cmocka_unit_test(wrong_base),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
