/* SPDX-License-Identifier: Apache-2.0 */
/* test_json.c: the JSON reader, the growing buffer and the name table. */
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "buffer.h"
#include "json.h"
#include "names.h"
#include "testdata.h"
#include "utf8.h"

#define TEXT(s) (s), sizeof(s) - 1 /* a literal that may contain NUL bytes, with its size */

static struct bd_error err;

/* Read past one document. */
static int read_past(const char *text, size_t size)
{
	/* A copy without anything after it, so that the sanitizer sees every byte too far. */
	char *copy = malloc(size ? size : 1);
	struct bd_json j;
	int rc;

	memcpy(copy, text, size);
	memset(&err, 0, sizeof(err));
	bd_json_init(&j, copy, size, "doc", 0, &err);
	rc = bd_json_skip(&j);
	if (rc == 0)
		rc = bd_json_end(&j);
	if (rc) {
		assert_int_equal(rc, -EINVAL);
		assert_int_equal(err.code, -EINVAL);
		assert_ptr_equal(strstr(err.text, "doc: at byte "), err.text);
		/* Sticky, and it says the same. */
		assert_int_equal(bd_json_object(&j), rc);
		assert_int_equal(bd_json_end(&j), rc);
		assert_int_equal(bd_json_peek(&j), BD_JSON_BAD);
	}
	free(copy);
	return rc;
}

static void accepts(void **state)
{
	static const struct {
		const char *text;
		size_t size;
	} good[] = {
		{ TEXT("{}") }, { TEXT("[]") }, { TEXT("0") }, { TEXT("-0") }, { TEXT("-0.0e-0") },
		{ TEXT("1.5E+10") }, { TEXT("123456789012345678901234567890") }, { TEXT("\"\"") },
		{ TEXT("true") }, { TEXT("false") }, { TEXT("null") }, { TEXT(" \t\r\n[ ] \t\r\n") },
		{ TEXT("[1,2,[3,[4]],{\"a\":{\"b\":[]}}]") }, { TEXT("{\"a\":1,\"a\":2}") },
		{ TEXT("{\"\":0}") }, { TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"") },
		{ TEXT("\"\\u0000\"") }, { TEXT("\"\\ud834\\udd1e\"") }, { TEXT("\"\\uFFFF\"") },
		{ TEXT("\"\x7f\"") }, { TEXT("\"\xc2\x80\xdf\xbf\"") },
		{ TEXT("\"\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\"") },
		{ TEXT("\"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"") },
		{ TEXT("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]") }, /* 32 */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		if (read_past(good[i].text, good[i].size))
			fail_msg("%s: refused: %s", good[i].text, err.text);
}

static void refuses(void **state)
{
	static const struct {
		const char *text;
		size_t size;
		unsigned at; /* byte that the message names */
	} bad[] = {
		{ TEXT(""), 0 }, { TEXT("  "), 2 }, { TEXT("{"), 1 }, { TEXT("["), 1 },
		{ TEXT("}"), 0 }, { TEXT("]"), 0 }, { TEXT(","), 0 }, { TEXT("[1"), 2 },
		{ TEXT("[1,"), 3 }, { TEXT("[1,]"), 3 }, { TEXT("[,1]"), 1 }, { TEXT("[1 2]"), 3 },
		{ TEXT("[1}"), 2 }, { TEXT("{]"), 1 }, { TEXT("{\"a\"}"), 4 }, { TEXT("{\"a\":}"), 5 },
		{ TEXT("{\"a\":1,}"), 7 }, { TEXT("{\"a\" 1}"), 5 }, { TEXT("{a:1}"), 1 },
		{ TEXT("{1:1}"), 1 }, { TEXT("{\"a\":1 \"b\":2}"), 7 }, { TEXT("{\"a\":1]"), 6 },
		{ TEXT("{,}"), 1 }, { TEXT("1 2"), 2 }, { TEXT("{}x"), 2 }, { TEXT("{}\0"), 2 },
		{ TEXT("\0{}"), 0 }, { TEXT("\xef\xbb\xbf{}"), 0 }, { TEXT("\x0b{}"), 0 },
		{ TEXT("\xc2\xa0{}"), 0 }, { TEXT("// x\n1"), 0 }, { TEXT("'a'"), 0 },
		{ TEXT("tru"), 0 }, { TEXT("True"), 0 }, { TEXT("truex"), 4 }, { TEXT("nul"), 0 },
		{ TEXT("falsy"), 0 }, { TEXT("NaN"), 0 }, { TEXT("Infinity"), 0 },
		{ TEXT("-Infinity"), 1 }, { TEXT("-"), 1 }, { TEXT("+1"), 0 }, { TEXT("01"), 0 },
		{ TEXT("-01"), 1 }, { TEXT("00"), 0 }, { TEXT("1."), 2 }, { TEXT(".5"), 0 },
		{ TEXT("1.e5"), 2 }, { TEXT("1e"), 2 }, { TEXT("1e+"), 3 }, { TEXT("0x10"), 1 },
		{ TEXT("1_000"), 1 }, { TEXT("- 1"), 1 }, { TEXT("--1"), 1 }, { TEXT("\""), 0 },
		{ TEXT("\"abc"), 0 }, { TEXT("\"\\\""), 0 }, { TEXT("\"\\"), 1 },
		{ TEXT("\"\\x\""), 1 }, { TEXT("\"\\'\""), 1 }, { TEXT("\"\\\0\""), 1 },
		{ TEXT("\"\\u\""), 3 }, { TEXT("\"\\u12\""), 5 }, { TEXT("\"\\u123"), 6 },
		{ TEXT("\"\\u12g4\""), 5 }, { TEXT("\"\\U0041\""), 1 }, { TEXT("\"\\ud800\""), 7 },
		{ TEXT("\"\\ud800x\""), 7 }, { TEXT("\"\\ud800\\n\""), 7 },
		{ TEXT("\"\\ud800\\u0041\""), 13 }, { TEXT("\"\\ud800\\ud800\""), 13 },
		{ TEXT("\"\\udc00\""), 7 }, { TEXT("\"\\ud800"), 7 }, { TEXT("\"\\ud800\\"), 7 },
		{ TEXT("\"a\nb\""), 2 }, { TEXT("\"a\0b\""), 2 }, { TEXT("\"\x1f\""), 1 },
		{ TEXT("\"\x80\""), 1 }, { TEXT("\"\xc0\x80\""), 1 }, { TEXT("\"\xc1\xbf\""), 1 },
		{ TEXT("\"\xc3\""), 1 }, { TEXT("\"\xc3"), 1 }, { TEXT("\"\xe0\x9f\xbf\""), 1 },
		{ TEXT("\"\xed\xa0\x80\""), 1 }, { TEXT("\"\xe2\x82\""), 1 },
		{ TEXT("\"\xf0\x8f\xbf\xbf\""), 1 }, { TEXT("\"\xf4\x90\x80\x80\""), 1 },
		{ TEXT("\"\xf5\x80\x80\x80\""), 1 }, { TEXT("\"\xff\""), 1 },
		{ TEXT("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"), 32 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		unsigned at;

		if (read_past(bad[i].text, bad[i].size) == 0)
			fail_msg("case %zu accepted: %s", i, bad[i].text);
		assert_int_equal(sscanf(err.text, "doc: at byte %u:", &at), 1);
		if (at != bad[i].at)
			fail_msg("case %zu: %s: expected byte %u: %s", i, bad[i].text, bad[i].at,
				 err.text);
	}
}

/* The reader from the header's example, with every kind of value. */
static void reads(void **state)
{
	static const char text[] =
		" {\"n\":18446744073709551615, \"s\":\"a\\u00e9\\ud83d\\ude00\\n\", \"x\":-2.5e-3,"
		"\"t\":true,\"f\":false, \"a\":[1,2,3], \"o\":{}, \"skip\":[{\"a\":[null]}] } ";
	struct bd_json j;
	char key[8], string[16], *dup;
	size_t length;
	uint64_t n, sum = 0;
	double x;
	bool b;

	(void)state;
	bd_json_init(&j, text, sizeof(text) - 1, "doc", 100, &err);
	assert_int_equal(bd_json_peek(&j), BD_JSON_OBJECT);
	assert_int_equal(bd_json_object(&j), 0);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_string_equal(key, "n");
	assert_int_equal(length, 1);
	assert_int_equal(bd_json_peek(&j), BD_JSON_NUMBER);
	assert_int_equal(bd_json_u64(&j, &n), 0);
	assert_true(n == UINT64_MAX);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_peek(&j), BD_JSON_STRING);
	assert_int_equal(bd_json_string(&j, string, 9, &length), 0);
	assert_string_equal(string, "a\xc3\xa9\xf0\x9f\x98\x80\n");
	assert_int_equal(length, 8);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_number(&j, &x), 0);
	assert_true(x == -2.5e-3);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_bool(&j, &b), 0);
	assert_true(b);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_bool(&j, &b), 0);
	assert_false(b);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_array(&j), 0);
	while (bd_json_item(&j) > 0) {
		assert_int_equal(bd_json_u64(&j, &n), 0);
		sum += n;
	}
	assert_int_equal(sum, 6);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_int_equal(bd_json_object(&j), 0);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 0);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 1);
	assert_string_equal(key, "skip");
	assert_int_equal(bd_json_skip(&j), 0);
	assert_int_equal(bd_json_member(&j, key, sizeof(key), &length), 0);
	assert_int_equal(bd_json_end(&j), 0);

	bd_json_init(&j, "[null]", 6, "doc", 0, &err);
	assert_int_equal(bd_json_array(&j), 0);
	assert_int_equal(bd_json_item(&j), 1);
	assert_int_equal(bd_json_bool(&j, &b), -EINVAL);
	assert_string_equal(err.text, "doc: at byte 1: expected true or false, found null");
	assert_int_equal(bd_json_item(&j), -EINVAL);
	assert_int_equal(bd_json_u64(&j, &n), -EINVAL);
	assert_int_equal(bd_json_string(&j, string, sizeof(string), NULL), -EINVAL);
	assert_int_equal(bd_json_bool(&j, &b), -EINVAL);

	bd_json_init(&j, "\"\\u0000x\"", 9, "doc", 0, &err);
	assert_int_equal(bd_json_string_dup(&j, &dup, &length), 0);
	assert_int_equal(length, 2);
	assert_memory_equal(dup, "\0x", 3);
	free(dup);
	bd_json_init(&j, "\"x", 2, "doc", 0, &err);
	assert_int_equal(bd_json_string_dup(&j, &dup, &length), -EINVAL);
	assert_null(dup);
}

static int u64(const char *text, uint64_t *n)
{
	struct bd_json j;

	bd_json_init(&j, text, strlen(text), "doc", 0, &err);
	return bd_json_u64(&j, n);
}

static void integers(void **state)
{
	static const char *const bad[] = {
		"-1", "-0", "1.0", "1e3", "1E0", "0.5", "18446744073709551616",
		"99999999999999999999999999", "\"1\"", "true", "null", "[]", "",
	};
	uint64_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (u64(bad[i], &n) != -EINVAL)
			fail_msg("%s accepted", bad[i]);
	assert_int_equal(u64("0", &n), 0);
	assert_true(n == 0);
	assert_int_equal(u64(" 9007199254740993", &n), 0);
	assert_true(n == 9007199254740993u);
}

static int number(const char *text, double *x)
{
	struct bd_json j;

	bd_json_init(&j, text, strlen(text), "doc", 0, &err);
	return bd_json_number(&j, x);
}

static void numbers(void **state)
{
	char *zeros = td_format("1%0600d", 0);
	double x;

	(void)state;
	assert_int_equal(number("1e400", &x), -EINVAL);
	assert_int_equal(number("-1e400", &x), -EINVAL);
	assert_int_equal(number(zeros, &x), -EINVAL);
	assert_int_equal(number("\"1\"", &x), -EINVAL);
	assert_int_equal(number("1e-400", &x), 0);
	assert_true(x == 0);
	assert_int_equal(number("-7", &x), 0);
	assert_true(x == -7);
	/* A program may run where the decimal point is a comma (if the machine has such a locale). */
	if (setlocale(LC_NUMERIC, "de_DE.UTF-8")) {
		assert_int_equal(number("0.25", &x), 0);
		setlocale(LC_NUMERIC, "C");
		assert_true(x == 0.25);
	}
}

/* Strings must fit with their NUL byte, and nothing is written past the capacity. */
/* What Python writes beside numbers: refused, but for readers that ask for it. */
static void constants(void **state)
{
	static const char text[] = "{\"a\":NaN,\"b\":[Infinity,-Infinity, -1],\"c\":1e999}";
	static const char *const bad[] = {
		"nan", "Na", "NaNs", "Inf", "Infinit", "-Infinit", "+Infinity", "-NaN", "I", "{\"a\":N}",
		"{NaN:1}",
	};
	struct bd_json j;
	uint64_t n;
	double x;

	(void)state;
	assert_int_equal(bd_json_check(TEXT("NaN"), "doc", &err), -EINVAL);
	assert_int_equal(bd_json_check(TEXT(text), "doc", &err), -EINVAL);
	assert_int_equal(bd_json_check_constants(TEXT(text), "doc", &err), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (bd_json_check_constants(bad[i], strlen(bad[i]), "doc", &err) != -EINVAL)
			fail_msg("%s accepted", bad[i]);
	bd_json_init(&j, TEXT("[NaN,-Infinity,Infinity,1e999,2,NaN]"), "doc", 0, &err);
	j.constants = true;
	assert_int_equal(bd_json_array(&j), 0);
	assert_int_equal(bd_json_item(&j), 1);
	assert_int_equal(bd_json_peek(&j), BD_JSON_NUMBER);
	assert_int_equal(bd_json_number(&j, &x), 0);
	assert_true(isnan(x));
	for (int sign = -1; sign <= 1; sign += 2) {
		assert_int_equal(bd_json_item(&j), 1);
		assert_int_equal(bd_json_number(&j, &x), 0);
		assert_true(isinf(x) && x * sign > 0);
	}
	assert_int_equal(bd_json_item(&j), 1);
	assert_int_equal(bd_json_number(&j, &x), 0);
	assert_true(isinf(x));
	assert_int_equal(bd_json_item(&j), 1);
	assert_int_equal(bd_json_u64(&j, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(bd_json_item(&j), 1);
	assert_int_equal(bd_json_u64(&j, &n), -EINVAL);
}

static void capacities(void **state)
{
	struct bd_json j;
	char s[8];
	size_t length;

	(void)state;
	for (size_t capacity = 0; capacity <= 6; capacity++) {
		memset(s, 'x', sizeof(s));
		bd_json_init(&j, "\"a\\u00e9bc\"", 11, "doc", 0, &err);
		assert_int_equal(bd_json_string(&j, s, capacity, &length),
				 capacity == 6 ? 0 : -EINVAL);
		assert_int_equal(s[capacity], 'x');
	}
	assert_string_equal(s, "a\xc3\xa9""bc");
	bd_json_init(&j, "\"\"", 2, "doc", 0, &err);
	assert_int_equal(bd_json_string(&j, s, 0, &length), -EINVAL);
	bd_json_init(&j, "{\"abc\":1}", 9, "doc", 0, &err);
	assert_int_equal(bd_json_object(&j), 0);
	assert_int_equal(bd_json_member(&j, s, 3, &length), -EINVAL);
}

/* What a message quotes cannot steer a terminal. */
static void messages(void **state)
{
	struct bd_json j;

	(void)state;
	bd_json_init(&j, "{\"a\":12}", 8, "m.json", 8, &err);
	assert_int_equal(bd_json_object(&j), 0);
	assert_int_equal(bd_json_member(&j, (char[4]){ 0 }, 4, NULL), 1);
	assert_int_equal(bd_json_fail(&j, "bad \"%s\"", "\033[31m\n\x7f"), -EINVAL);
	assert_string_equal(err.text, "m.json: at byte 9: bad \"?[31m??\"");
	assert_int_equal(bd_json_fail(&j, "something else"), -EINVAL);
	assert_string_equal(err.text, "m.json: at byte 9: bad \"?[31m??\"");
	bd_json_init(&j, "[1]", 3, "m.json", 0, NULL);
	assert_int_equal(bd_json_object(&j), -EINVAL);
}

static int check(const char *text, size_t size)
{
	return bd_json_check(text, size, "doc", &err);
}

static void checks_documents(void **state)
{
	(void)state;
	assert_int_equal(check(TEXT("{\"a\":{\"a\":{\"a\":1},\"b\":2},\"b\":[{\"a\":1},{\"a\":1}]}")), 0);
	assert_int_equal(check(TEXT("[]")), 0);
	assert_int_equal(check(TEXT("\"x\"")), 0);
	assert_int_equal(check(TEXT(" 1.5 ")), 0);
	assert_int_equal(check(TEXT("{\"a\":1,\"A\":2}")), 0);
	assert_int_equal(check(TEXT("{\"a\":1,\"b\":2,\"a\":3}")), -EINVAL);
	assert_string_equal(err.text, "doc: at byte 13: key \"a\" for the second time in one object");
	assert_int_equal(check(TEXT("{\"a\":1,\"\\u0061\":3}")), -EINVAL);
	assert_int_equal(check(TEXT("[{\"x\":{\"a\":1,\"b\":{},\"a\":1}}]")), -EINVAL);
	assert_int_equal(check(TEXT("{\"a\":\"\\u0000\"}")), -EINVAL);
	assert_int_equal(check(TEXT("{\"a\\u0000\":1}")), -EINVAL);
	assert_int_equal(check(TEXT("{\"a\":1} x")), -EINVAL);
	assert_int_equal(check(TEXT("{\"a\":tru}")), -EINVAL);
	assert_int_equal(check(TEXT("{\"a\":1")), -EINVAL);
	assert_int_equal(check(TEXT("")), -EINVAL);
}

/* Every prefix of a document with all kinds of tokens is refused, at any place, by both checkers. */
static void truncations(void **state)
{
	static const char text[] = "{\"a\":[1,-2.5e+3,true,false,null,\"\\ud83d\\ude00\xc3\xa9\\n\"],"
				   "\"b\":{\"c\":{}}}";

	(void)state;
	assert_int_equal(read_past(TEXT(text)), 0);
	for (size_t n = 0; n < sizeof(text) - 1; n++) {
		assert_int_equal(read_past(text, n), -EINVAL);
		assert_int_equal(check(text, n), -EINVAL);
	}
}

static double seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Documents of 4 MB made to be expensive cost what their size allows (a tenth of that under a
 * sanitizer). */
static void hostile_documents(void **state)
{
	size_t most = td_slowness() == 1 ? 4000000 : 400000;
	static const struct {
		const char *open, *repeat, *close;
	} shapes[] = {
		{ "[", "0,", "0]" }, { "[", "{\"a\":0},", "0]" }, { "[", "\"\",", "0]" },
		{ "[", "[[[]]],", "0]" }, { "", "[", "" }, { "[", " ", "]" },
		{ "\"", "\\u0041", "\"" }, { "", "0", "" }, { "", "1", "" }, { "\"", "\xc3\xa9", "\"" },
	};
	struct bd_buffer b = { 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		double start;

		bd_buffer_append(&b, shapes[i].open, strlen(shapes[i].open));
		while (b.size < most)
			bd_buffer_append(&b, shapes[i].repeat, strlen(shapes[i].repeat));
		bd_buffer_append(&b, shapes[i].close, strlen(shapes[i].close));
		start = seconds();
		check(b.data, b.size);
		read_past(b.data, b.size);
		if (seconds() - start > 1.0 * td_slowness())
			fail_msg("shape %zu took %.2f s", i, seconds() - start);
		bd_buffer_free(&b);
	}
	bd_buffer_append(&b, "{", 1);
	for (unsigned i = 0; b.size < most; i++)
		bd_buffer_printf(&b, "\"%x\":{\"a\":0},", i);
	bd_buffer_append(&b, "\"x\":0}", 6);
	{
		double start = seconds();

		assert_int_equal(check(b.data, b.size), 0);
		assert_true(seconds() - start < 1.0 * td_slowness());
	}
	bd_buffer_free(&b);
}

static void buffers(void **state)
{
	struct bd_buffer b = { 0 };
	struct bd_json j;
	char all[256], back[256];
	size_t length;

	(void)state;
	for (int i = 0; i < 128; i++)
		all[i] = (char)i;
	bd_buffer_append(&b, NULL, 0);
	assert_string_equal(b.data, "");
	bd_buffer_json_string(&b, all, 128);
	bd_json_init(&j, b.data, b.size, "doc", 0, &err);
	assert_int_equal(bd_json_string(&j, back, sizeof(back), &length), 0);
	assert_int_equal(length, 128);
	assert_memory_equal(all, back, 128);
	bd_buffer_free(&b);
	assert_null(b.data);
	for (int i = 0; i < 1000; i++)
		bd_buffer_printf(&b, "%d,", i);
	bd_buffer_json_string(&b, "\xc3\xa9\"", 3);
	assert_int_equal(b.size, 3890 + 6);
	assert_string_equal(b.data + 3890, "\"\xc3\xa9\\\"\"");
	assert_int_equal(strlen(b.data), b.size);
	assert_false(b.failed);
	bd_buffer_append(&b, "", SIZE_MAX / 2);
	assert_true(b.failed);
	bd_buffer_append(&b, "x", 1);
	bd_buffer_printf(&b, "x");
	assert_int_equal(b.size, 3890 + 6);
	bd_buffer_free(&b);
}

static void name_tables(void **state)
{
	enum { N = 200000 };
	struct bd_name_table *t = bd_name_table_new(0);
	char **names = malloc(N * sizeof(*names));
	uint32_t number;
	double start = seconds();

	(void)state;
	assert_non_null(t);
	assert_non_null(names);
	assert_false(bd_name_table_find(t, "0", NULL));
	for (uint32_t i = 0; i < N; i++) {
		char text[40];

		snprintf(text, sizeof(text), "model.layers.%u", i);
		names[i] = strdup(text);
		assert_int_equal(bd_name_table_add(t, names[i], i), 0);
	}
	for (uint32_t i = 0; i < N; i++) {
		assert_true(bd_name_table_find(t, names[i], &number));
		assert_true(number == i);
	}
	assert_int_equal(bd_name_table_add(t, "model.layers.7", 9), -EEXIST);
	assert_true(bd_name_table_find(t, "model.layers.7", &number));
	assert_int_equal(number, 7);
	assert_false(bd_name_table_find(t, "model.layers.", NULL));
	assert_int_equal(bd_name_table_add(t, "", 5), 0);
	assert_true(bd_name_table_find(t, "", &number));
	assert_int_equal(number, 5);
	assert_true(seconds() - start < 1.0 * td_slowness());
	bd_name_table_free(t);
	bd_name_table_free(NULL);
	for (uint32_t i = 0; i < N; i++)
		free(names[i]);
	free(names);
}

/* UTF-8: every code point goes there and back; the rest of Unicode's table is in refuses(). */
static void utf8(void **state)
{
	char bytes[4];
	uint32_t back;

	(void)state;
	for (uint32_t c = 0; c <= 0x10ffff; c++) {
		unsigned n = bd_utf8_encode(c, bytes);
		bool surrogate = c >= 0xd800 && c <= 0xdfff;

		if (bd_utf8_decode(bytes, n, &back) != (surrogate ? 0 : n) ||
		    (!surrogate && back != c) || bd_utf8_decode(bytes, n - 1, &back) != 0)
			fail_msg("U+%04X", c);
	}
	assert_true(bd_utf8_is_plain("", 0));
	assert_true(bd_utf8_is_plain("a b\xc3\xa9", 5));
	assert_false(bd_utf8_is_plain("a\tb", 3));
	assert_false(bd_utf8_is_plain("a\0b", 3));
	assert_false(bd_utf8_is_plain("\x7f", 1));
	assert_false(bd_utf8_is_plain("\xc2\x85", 2));
	assert_true(bd_utf8_is_plain("\xc2\xa0", 2));
	assert_false(bd_utf8_is_plain("a\xff", 2));
}

/* What a terminal must not get becomes a question mark, the rest stays. */
static void plain_text(void **state)
{
	static const struct { const char *text, *plain; } cases[] = {
		{ "", "" },
		{ "a b\xc3\xa9 \xf0\x9f\x98\x80", "a b\xc3\xa9 \xf0\x9f\x98\x80" },
		{ "a\x1b[31mb\n\tc\x7f", "a?[31mb??c?" },
		{ "\xc2\x9b" "31m\xc2\xa0", "?31m\xc2\xa0" },    /* CSI as a character */
		{ "\x9b" "31m\xff\xc3", "?31m??" },              /* and as a byte; cut short */
		{ "\xed\xa0\x80", "???" },                       /* a surrogate */
	};
	char text[64];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		strcpy(text, cases[i].text);
		bd_utf8_make_plain(text);
		assert_string_equal(text, cases[i].plain);
		assert_true(bd_utf8_is_plain(text, strlen(text)));
		bd_error_set(&err, -EINVAL, "%s", cases[i].text);
		bd_error_prefix(&err, "%s", cases[i].text);
		assert_true(bd_utf8_is_plain(err.text, strlen(err.text)));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts),
		cmocka_unit_test(refuses),
		cmocka_unit_test(reads),
		cmocka_unit_test(integers),
		cmocka_unit_test(numbers),
		cmocka_unit_test(constants),
		cmocka_unit_test(capacities),
		cmocka_unit_test(messages),
		cmocka_unit_test(checks_documents),
		cmocka_unit_test(truncations),
		cmocka_unit_test(hostile_documents),
		cmocka_unit_test(buffers),
		cmocka_unit_test(name_tables),
		cmocka_unit_test(utf8),
		cmocka_unit_test(plain_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
