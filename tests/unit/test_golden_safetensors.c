/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden_safetensors.c: every file of tests/golden/safetensors/ gets the verdict of its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "safetensors.h"
#include "testdata.h"

#define DIRECTORY BD_TESTS_DIR "/golden/safetensors"

/* Read one file; what is wrong with the verdict, or NULL. */
static const char *judge(const char *name)
{
	const char *path = td_path(DIRECTORY, name), *wrong = NULL;
	struct bd_safetensors *st = NULL;
	struct bd_error err = { 0 };
	struct bd_file *file;
	int rc;

	if (bd_file_open(&file, path, &err))
		return td_format("%s", err.text);
	rc = bd_safetensors_read(&st, file, &err);
	if (strncmp(name, "good-", 5) == 0) {
		if (rc)
			wrong = td_format("refused: %s", err.text);
	} else if (strncmp(name, "bad-", 4) != 0) {
		wrong = "is called neither good- nor bad-";
	} else if (rc == 0) {
		wrong = "accepted";
	} else if (rc != -EINVAL || err.code != rc) {
		wrong = td_format("error %d, expected %d", rc, -EINVAL);
	} else if (strncmp(err.text, path, strlen(path)) != 0 ||
		   strncmp(err.text + strlen(path), ": ", 2) != 0) {
		wrong = td_format("the message does not begin with the file: %s", err.text);
	}
	bd_safetensors_free(st);
	bd_file_close(file);
	return wrong;
}

static int visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static void golden_files(void **state)
{
	struct dirent **list;
	int n = scandir(DIRECTORY, &list, visible, alphasort), good = 0, bad = 0, wrong = 0;

	(void)state;
	assert_true(n >= 0);
	for (int i = 0; i < n; i++) {
		const char *why = judge(list[i]->d_name);

		if (why) {
			print_error("%s: %s\n", list[i]->d_name, why);
			wrong++;
		}
		good += list[i]->d_name[0] == 'g';
		bad += list[i]->d_name[0] == 'b';
		free(list[i]);
	}
	free(list);
	print_message("%d good and %d bad files\n", good, bad);
	assert_int_equal(wrong, 0);
	/* An empty directory is no success. */
	assert_true(good >= 30);
	assert_true(bad >= 100);
}

/* No good file is good at another size. */
static void golden_sizes(void **state)
{
	struct dirent **list;
	int n = scandir(DIRECTORY, &list, visible, alphasort);

	(void)state;
	assert_true(n >= 0);
	for (int i = 0; i < n; i++) {
		size_t size;
		const char *data = td_read(td_path(DIRECTORY, list[i]->d_name), &size);
		struct bd_safetensors *st;

		if (list[i]->d_name[0] == 'g') {
			assert_int_equal(bd_safetensors_parse(&st, data, size, size + 1, "t", NULL),
					 -EINVAL);
			assert_int_equal(bd_safetensors_parse(&st, data, size, size - 1, "t", NULL),
					 -EINVAL);
		}
		free(list[i]);
	}
	free(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_files),
		cmocka_unit_test(golden_sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
