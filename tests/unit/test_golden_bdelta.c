/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden_bdelta.c: the files of tests/golden/bdelta/, written by make_bdelta.py after FORMAT.md:
 * good ones give the expected bytes, bad ones are refused when and why faults.txt says. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "testdata.h"
#include "verify.h"
#include "view.h"

#define GOLDEN BD_TESTS_DIR "/golden/bdelta"

static struct bd_error err;
static const struct bd_watch nobody;

static struct bd_base *open_base(void)
{
	struct bd_base *base;

	if (bd_base_open(&base, GOLDEN "/base", &err))
		fail_msg("%s", err.text);
	return base;
}

/* File INDEX of the view, whole, in reads of this size; malloced. NULL: an error. */
static char *read_file(struct bd_view *v, size_t index, size_t step, struct bd_scratch *scratch)
{
	uint64_t size = v->files[index].size;
	char *data = malloc(size + 1);

	assert_non_null(data);
	if (bd_view_acquire(v, index, &err) < 0) {
		free(data);
		return NULL;
	}
	for (uint64_t at = 0; at < size; at += step) {
		ssize_t n = bd_view_read(v, index, data + at, step, at, scratch, &err);

		if (n < 0) {
			free(data);
			data = NULL;
			break;
		}
		assert_int_equal(n, size - at < step ? size - at : step);
	}
	bd_view_release(v, index);
	return data;
}

static unsigned count_files(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *e;
	unsigned n = 0;

	while (dir && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			n += e->d_type == DT_DIR ? count_files(td_path(path, e->d_name)) : 1;
	if (dir)
		closedir(dir);
	return n;
}

static void check_good(const char *name, struct bd_base *base)
{
	char *path = td_path(GOLDEN, name);
	char *expected = td_format("%.*s.expected", (int)(strlen(path) - 7), path);
	struct bd_scratch *scratch = bd_scratch_new();
	struct bd_delta *d;
	struct bd_view *v;

	if (bd_delta_open(&d, path, &err) || bd_verify(d, base, &nobody, &err) ||
	    bd_view_open(&v, d, base, &err))
		fail_msg("%s", err.text);
	assert_int_equal(v->file_count, count_files(expected));
	for (size_t f = 0; f < v->file_count; f++) {
		size_t size;
		char *truth = td_read(td_path(expected, v->files[f].name), &size);

		assert_int_equal(v->files[f].size, size);
		for (size_t step = 1; step <= size + 1; step = step < 20 ? step + 3 : 3 * step) {
			char *data = read_file(v, f, step, scratch);

			if (!data)
				fail_msg("%s", err.text);
			for (size_t i = 0; i < size; i++)
				if (data[i] != truth[i])
					fail_msg("%s: %s: byte %zu is %02x, expected %02x", name,
						 v->files[f].name, i, (unsigned char)data[i],
						 (unsigned char)truth[i]);
			free(data);
		}
	}
	bd_scratch_free(scratch);
	bd_view_close(v);
}

static void good_ones(void **state)
{
	struct bd_base *base = open_base();
	struct dirent **list;
	int n = scandir(GOLDEN, &list, NULL, alphasort);
	unsigned good = 0;

	(void)state;
	assert_true(n > 0);
	for (int i = 0; i < n; i++) {
		size_t length = strlen(list[i]->d_name);

		if (strncmp(list[i]->d_name, "good-", 5) == 0 &&
		    strcmp(list[i]->d_name + length - 7, ".bdelta") == 0) {
			check_good(list[i]->d_name, base);
			good++;
		}
		free(list[i]);
	}
	free(list);
	bd_base_close(base);
	print_message("%u good files\n", good);
	assert_true(good >= 20);
}

static bool read_fails(struct bd_view *v)
{
	struct bd_scratch *scratch = bd_scratch_new();
	bool failed = false;

	for (size_t f = 0; f < v->file_count && !failed; f++) {
		char *data = read_file(v, f, 50, scratch);

		failed = data == NULL;
		free(data);
	}
	bd_scratch_free(scratch);
	return failed;
}

/* When PATH is found to be bad: "open", "base", "read" or "verify", with the message in `err`. */
static const char *found_bad(const char *path, struct bd_base *base)
{
	struct bd_delta *d = NULL;
	struct bd_view *v = NULL;
	const char *when = "never";
	struct bd_error at_read = { 0 };

	memset(&err, 0, sizeof(err));
	if (bd_delta_open(&d, path, &err) < 0)
		return err.code == -EINVAL ? "open" : "open, but not as -EINVAL";
	if (bd_view_open(&v, d, base, &err) < 0) {
		bd_delta_close(d);
		return err.code == -EINVAL ? "base" : "base, but not as -EINVAL";
	}
	if (read_fails(v)) {
		when = "read";
		at_read = err;
	}
	/* The complete check finds all that a read finds. */
	if (bd_verify(d, base, &nobody, &err) == 0)
		when = strcmp(when, "read") == 0 ? "read, but not by verify" : "never";
	else if (strcmp(when, "read") == 0)
		err = at_read;
	else
		when = "verify";
	bd_view_close(v);
	return when;
}

static void bad_ones(void **state)
{
	struct bd_base *base = open_base();
	FILE *list = fopen(GOLDEN "/faults.txt", "r");
	char line[512], name[256], when[16];
	unsigned bad = 0, wrong = 0;
	int word;

	(void)state;
	assert_non_null(list);
	while (fgets(line, sizeof(line), list)) {
		char *path;
		const char *found;

		line[strcspn(line, "\n")] = '\0';
		assert_int_equal(sscanf(line, "%255s %15s %n", name, when, &word), 2);
		path = td_path(GOLDEN, name);
		found = found_bad(path, base);
		if (strcmp(found, when) != 0 || !strstr(err.text, line + word) ||
		    !(strstr(err.text, path) || strstr(err.text, GOLDEN "/base/"))) {
			print_message("%s: expected %s \"%s\", found %s: %s\n", name, when, line + word, found,
				      err.text);
			wrong++;
		}
		for (const char *p = err.text; *p; p++)
			if ((unsigned char)*p < 0x20 || *p == 0x7f)
				fail_msg("%s: control character in: %s", name, err.text);
		bad++;
	}
	fclose(list);
	bd_base_close(base);
	print_message("%u bad files\n", bad);
	assert_int_equal(wrong, 0);
	assert_true(bad >= 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_ones),
		cmocka_unit_test(bad_ones),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
