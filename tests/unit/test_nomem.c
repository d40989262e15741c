/* SPDX-License-Identifier: Apache-2.0 */
/* test_nomem.c: every allocation of the readers fails once: -ENOMEM, nothing leaked, no crash.
 *
 * The program's own malloc counts and fails. Sanitizers need malloc for themselves: under them
 * everything runs once without failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "buffer.h"
#include "checkpoint.h"
#include "sidecars.h"
#include "json.h"
#include "testdata.h"

static long left = -1; /* allocations until one fails; negative: none does */
static bool for_ever;  /* and all after it */
static long failures;
static long live;      /* blocks */

#if TD_SLOWNESS == 1 && defined(__GLIBC__)
#define COUNTING 1

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void __libc_free(void *p);

static bool fails(void)
{
	if (left < 0)
		return false;
	if (left > 0) {
		left--;
		return false;
	}
	if (!for_ever)
		left = -1;
	failures++;
	errno = ENOMEM;
	return true;
}

void *malloc(size_t size)
{
	void *p = fails() ? NULL : __libc_malloc(size);

	live += p != NULL;
	return p;
}

void *calloc(size_t n, size_t size)
{
	void *p = fails() ? NULL : __libc_calloc(n, size);

	live += p != NULL;
	return p;
}

void *realloc(void *old, size_t size)
{
	void *p = fails() ? NULL : __libc_realloc(old, size);

	live += p && !old;
	return p;
}

void free(void *p)
{
	live -= p != NULL;
	__libc_free(p);
}
#else
#define COUNTING 0
#endif

/* Run `open_it` with the first, second, ... allocation failing, until there are no more. */
static void exhaust(int (*open_it)(const char *path, struct bd_error *err), const char *path)
{
	if (!COUNTING)
		assert_int_equal(open_it(path, NULL), 0);
	for (int persistent = 0; COUNTING && persistent < 2; persistent++) {
		for (long k = 0;; k++) {
			struct bd_error err = { 0 };
			long before = live;
			int rc;

			for_ever = persistent;
			failures = 0;
			left = k;
			rc = open_it(path, &err);
			left = -1;
			if (live != before)
				fail_msg("allocation %ld: %ld blocks leaked", k, live - before);
			/* With a failure it may succeed as well: sorting does without memory. */
			if (rc && (!failures || rc != -ENOMEM || err.code != rc || !*err.text))
				fail_msg("allocation %ld: error %d: %s", k, rc, err.text);
			if (!failures) {
				assert_true(k > 3);
				break;
			}
		}
	}
}

static int open_checkpoint(const char *path, struct bd_error *err)
{
	struct bd_checkpoint *c;
	int rc = bd_checkpoint_open(&c, path, err);

	bd_checkpoint_close(c);
	return rc;
}

static int list_sidecars(const char *path, struct bd_error *err)
{
	static const struct bd_file_rule rules[] = { { true, "original" }, { false, "README.md" } };
	struct bd_checkpoint *c;
	struct bd_sidecars s;
	int rc = bd_checkpoint_open(&c, path, err);

	if (rc == 0) {
		rc = bd_sidecars_list(&s, c, rules, 2, err);
		bd_sidecars_free(&s);
	}
	bd_checkpoint_close(c);
	return rc;
}

static int read_file(const char *path, struct bd_error *err)
{
	struct bd_file *file;
	struct bd_safetensors *st = NULL;
	int rc = bd_file_open(&file, path, err);

	if (rc == 0)
		rc = bd_safetensors_read(&st, file, err);
	bd_safetensors_free(st);
	bd_file_close(file);
	return rc;
}

static int check_json(const char *path, struct bd_error *err)
{
	size_t size;
	char *text;
	int rc = bd_file_slurp(path, 1 << 20, &text, &size, err);

	if (rc == 0)
		rc = bd_json_check(text, size, path, err);
	free(text);
	return rc;
}

static char *checkpoint(const char *parent, const char *name)
{
	struct td_tensor t[40];
	struct bd_buffer index = { 0 };
	char *dir = td_mkdir(parent, name);

	bd_buffer_printf(&index, "{\"weight_map\":{");
	for (int i = 0; i < 40; i++) {
		t[i] = (struct td_tensor){
			.name = td_format("t%d", i), .dtype = BD_U8, .dims = 1, .shape = { 1 },
		};
		bd_buffer_printf(&index, "%s\"t%d\":\"m-%d.safetensors\"", i ? "," : "", i, i / 20);
	}
	bd_buffer_printf(&index, "}}");
	td_write(dir, "model.safetensors.index.json", index.data, index.size);
	td_safetensors(dir, "m-0.safetensors", t, 20, "{\"a\":\"b\"}");
	td_safetensors(dir, "m-1.safetensors", t + 20, 20, "{\"a\":\"b\"}");
	td_text(dir, "config.json", "{}");
	td_text(dir, "pytorch_model.bin", "");
	bd_buffer_free(&index);
	return dir;
}

static void checkpoints(void **state)
{
	(void)state;
	exhaust(open_checkpoint, checkpoint(td_dir(), "plain"));
}

/* An index that differs from its shards in each way. */
static void loose_index(void **state)
{
	char *dir = checkpoint(td_dir(), "loose");
	struct td_tensor t = { .name = "t0", .dtype = BD_U8 };

	(void)state;
	td_safetensors(dir, "m-2.safetensors", &t, 1, NULL);
	td_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"t0\":\"m-2.safetensors\","
		"\"t1\":\"m-1.safetensors\",\"x\":\"m-0.safetensors\"}}");
	exhaust(open_checkpoint, dir);
}

static void sidecars(void **state)
{
	char *dir = checkpoint(td_dir(), "whole");

	(void)state;
	td_mkdir(dir, "1_Pooling/deep");
	td_mkdir(dir, "original");
	td_mkdir(dir, ".git");
	td_text(dir, ".git/config", "");
	td_text(dir, "README.md", "");
	td_text(dir, "1_Pooling/config.json", "{}");
	td_text(dir, "1_Pooling/deep/x", "");
	td_text(dir, "original/params.json", "");
	td_link(dir, "2_Pooling", "1_Pooling");
	td_link(dir, "elsewhere", "..");
	td_link(dir, "1_Pooling/gone", "nowhere");
	exhaust(list_sidecars, dir);
}

static void cache_entries(void **state)
{
	char *entry = td_mkdir(td_dir(), "models--o--m");

	(void)state;
	td_mkdir(entry, "snapshots");
	checkpoint(entry, "snapshots/aaa");
	exhaust(open_checkpoint, td_path(entry, "snapshots/aaa"));
	exhaust(open_checkpoint, entry);
	td_mkdir(entry, "refs");
	td_text(entry, "refs/main", "aaa\n");
	exhaust(open_checkpoint, entry);
}

static void headers(void **state)
{
	struct td_tensor t[20];

	(void)state;
	for (int i = 0; i < 20; i++)
		t[i] = (struct td_tensor){ .name = td_format("t%d", i), .dtype = BD_U8 };
	exhaust(read_file, td_safetensors(td_dir(), "t", t, 20, "{\"a\":\"b\"}"));
}

static void documents(void **state)
{
	(void)state;
	exhaust(check_json, td_text(td_dir(), "x", "[{\"a\":1},{\"a\":{\"b\":2,\"c\":{}},\"b\":0,\"c\":0,"
				    "\"d\":0,\"e\":0,\"f\":0,\"g\":0,\"h\":0,\"i\":0}]"));
}

static void buffers(void **state)
{
	struct bd_buffer b = { 0 };

	(void)state;
	if (!COUNTING)
		return;
	left = 0;
	bd_buffer_printf(&b, "x");
	left = -1;
	assert_true(b.failed);
	assert_null(b.data);
	bd_buffer_free(&b);
	assert_false(b.failed);
	bd_buffer_append(&b, "abc", 3);
	left = 0;
	for (int i = 0; i < 100; i++)
		bd_buffer_append(&b, "abc", 3);
	left = -1;
	assert_true(b.failed);
	assert_memory_equal(b.data, "abcabc", 6);
	bd_buffer_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(checkpoints),
		cmocka_unit_test(loose_index),
		cmocka_unit_test(sidecars),
		cmocka_unit_test(cache_entries),
		cmocka_unit_test(headers),
		cmocka_unit_test(documents),
		cmocka_unit_test(buffers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
