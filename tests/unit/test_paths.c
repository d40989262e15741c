/* SPDX-License-Identifier: Apache-2.0 */
/* test_paths.c: what the files of a model may be called. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "paths.h"
#include "testdata.h"

static void component_names(void **state)
{
	char *longest = td_format("%0255d", 0);

	(void)state;
	assert_true(bd_name_is_component("a", 1));
	assert_true(bd_name_is_component("...", 3));
	assert_true(bd_name_is_component(".a", 2));
	assert_true(bd_name_is_component("\xc3\xa9 x", 4));
	assert_true(bd_name_is_component(longest, 255));
	assert_false(bd_name_is_component(td_format("%sx", longest), 256));
	assert_false(bd_name_is_component("", 0));
	assert_false(bd_name_is_component(".", 1));
	assert_false(bd_name_is_component("..", 2));
	assert_false(bd_name_is_component("a/b", 3));
	assert_false(bd_name_is_component("/", 1));
	assert_false(bd_name_is_component("a\0b", 3));
	assert_false(bd_name_is_component("a\n", 2));
	assert_false(bd_name_is_component("\x7f", 1));
	assert_false(bd_name_is_component("\xc2\x9b", 2));
	assert_false(bd_name_is_component("\xff", 1));
}

static bool is_safe(const char *path)
{
	return bd_path_is_safe(path, strlen(path));
}

static void safe_paths(void **state)
{
	static const char *const good[] = {
		"a", "a/b", "a/b/c", ".hidden/.x", "...", "a/...", "1_Pooling/config.json", "a b/\xc3\xa9",
		".github/x", "git/x", "a/.gitattributes", "\\/\\", ".git",
	};
	static const char *const bad[] = {
		"", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b",
		"a/\n", "\x7f/a", "a/\xff", "a/\xc2\x9b/b", ".git/config", ".GIT/config", "a/.git/config",
		"a/.Git",
	};
	char deep[2 * BD_MAX_DEPTH + 2], longest[BD_MAX_PATH + 2];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		if (!is_safe(good[i]))
			fail_msg("%s is not safe", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		if (is_safe(bad[i]))
			fail_msg("%s is safe", bad[i]);
	assert_false(bd_path_is_safe("a/b\0c", 5));
	for (size_t i = 0; i < sizeof(deep); i++)
		deep[i] = i % 2 ? '/' : 'a';
	deep[2 * BD_MAX_DEPTH + 1] = '\0';
	assert_false(is_safe(deep));
	deep[2 * BD_MAX_DEPTH - 1] = '\0';
	assert_true(is_safe(deep));
	for (size_t i = 0; i < sizeof(longest); i++)
		longest[i] = i % 200 == 199 ? '/' : 'a';
	longest[BD_MAX_PATH + 1] = '\0';
	assert_false(is_safe(longest));
	longest[BD_MAX_PATH] = '\0';
	assert_true(is_safe(longest));
	assert_false(is_safe(td_format("a/%0256d", 0)));
	assert_true(is_safe(td_format("a/%0255d", 0)));
	assert_string_equal(bd_path_last("a/b/c"), "c");
	assert_string_equal(bd_path_last("a"), "a");
}

static bool are_twins(const char *a, const char *b)
{
	/* Others around them in any order. */
	const char *const paths[] = { b, "zz", "A-", "a0/x", "a-b/q", "!", a, "\xc3\x89", "\xc3\xa9" };
	const char *one, *other;

	assert_int_equal(bd_paths_find_twins(paths, sizeof(paths) / sizeof(*paths), &one, &other), 0);
	if (one && !((one == a && other == b) || (one == b && other == a)))
		fail_msg("%s and %s", one, other);
	return one != NULL;
}

static void twins(void **state)
{
	const char *one, *other;

	(void)state;
	assert_int_equal(bd_paths_find_twins(NULL, 0, &one, &other), 0);
	assert_null(one);
	assert_true(are_twins("a.b", "A.B"));
	assert_true(are_twins("same", "same"));
	assert_true(are_twins("k", "k/b"));
	assert_true(are_twins("K/x/y", "k/x"));
	assert_true(are_twins("K/x", "k/y"));
	assert_true(are_twins("d/K/x", "d/k/y"));
	assert_true(are_twins("d/k/x", "d/k/X"));
	assert_true(are_twins("k", "K/b/c"));
	assert_false(are_twins("k", "k.b"));
	assert_false(are_twins("k/a", "k/b"));
	assert_false(are_twins("d/k/a", "d/l/a"));
	assert_false(are_twins("k/a/b", "k/ab"));
	assert_false(are_twins("kk/a", "k/a"));
	/* Letters are ASCII's: other case is for no filesystem to agree on. */
	assert_false(are_twins("k\xc3\x89", "k\xc3\xa9"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(component_names),
		cmocka_unit_test(safe_paths),
		cmocka_unit_test(twins),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
