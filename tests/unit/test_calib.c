/* SPDX-License-Identifier: Apache-2.0 */
/* test_calib.c: calibration text: files in all forms, the general text, randomness. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "calib.h"
#include "file.h"
#include "general.h"
#include "testdata.h"
#include "utf8.h"

#define NANO BD_TESTS_DIR "/data/nano-llama2/kjv/tokenizer.json"
#define VOCABULARY 1024

static struct bdx_tokenizer *open_nano(void)
{
	struct bdx_tokenizer *t;
	struct bd_error err = { 0 };
	char *json;
	size_t size;

	assert_int_equal(bd_file_slurp(NANO, 1 << 20, &json, &size, &err), 0);
	if (bdx_tokenizer_open(&t, json, size, "tokenizer.json", &err) < 0)
		fail_msg("%s", err.text);
	free(json);
	return t;
}

static void uniform_numbers_are_even_and_repeatable(void **state)
{
	double sum = 0, squares = 0;
	const uint64_t count = 100000;

	(void)state;
	for (uint64_t i = 0; i < count; i++) {
		double u = bdx_uniform(7, i);

		assert_true(u >= 0 && u < 1 && (double)(float)u == u);
		sum += u;
		squares += u * u;
	}
	assert_true(fabs(sum / (double)count - 0.5) < 0.005);
	assert_true(fabs(squares / (double)count - 1.0 / 3) < 0.005);
	assert_true(bdx_uniform(7, 3) == bdx_uniform(7, 3));
	assert_true(bdx_uniform(7, 3) != bdx_uniform(8, 3));
}

static void shuffling_keeps_every_window(void **state)
{
	struct bdx_windows w = { .count = 50, .length = 2, .tokens = malloc(50 * 2 * sizeof(int32_t)) };
	bool seen[50] = { 0 };
	unsigned moved = 0;

	(void)state;
	for (int i = 0; i < 50; i++)
		w.tokens[2 * i] = w.tokens[2 * i + 1] = i;
	bdx_windows_shuffle(&w, 3);
	for (int i = 0; i < 50; i++) {
		assert_int_equal(w.tokens[2 * i], w.tokens[2 * i + 1]);
		assert_false(seen[w.tokens[2 * i]]);
		seen[w.tokens[2 * i]] = true;
		moved += w.tokens[2 * i] != i;
	}
	assert_true(moved > 25);
	bdx_windows_free(&w);
}

static void the_general_text_is_text(void **state)
{
	size_t size, at = 0;
	const char *text = bdx_general_text(&size);
	uint32_t code;

	(void)state;
	assert_in_range(size, 150000, 400000);
	while (at < size) {
		unsigned n = bd_utf8_decode(text + at, size - at, &code);

		assert_true(n > 0 && code != 0);
		at += n;
	}
}

static void windows_of_the_general_text_vary(void **state)
{
	struct bdx_tokenizer *t = open_nano();
	struct bdx_windows a, b, c;
	struct bd_error err = { 0 };

	(void)state;
	assert_int_equal(bdx_general_windows(&a, t, VOCABULARY, 20, 64, 1, NULL, &err), 0);
	assert_int_equal(bdx_general_windows(&b, t, VOCABULARY, 20, 64, 1, NULL, &err), 0);
	assert_int_equal(bdx_general_windows(&c, t, VOCABULARY, 20, 64, 2, NULL, &err), 0);
	assert_memory_equal(a.tokens, b.tokens, 20 * 64 * sizeof(int32_t));
	assert_memory_not_equal(a.tokens, c.tokens, 20 * 64 * sizeof(int32_t));
	assert_memory_not_equal(a.tokens, a.tokens + 64, 64 * sizeof(int32_t));
	for (int i = 0; i < 20 * 64; i++)
		assert_in_range(a.tokens[i], 0, VOCABULARY - 1);
	bdx_windows_free(&a);
	bdx_windows_free(&b);
	bdx_windows_free(&c);
	bdx_tokenizer_close(t);
}

/* What the model has no tokens for gives no windows, and ends nothing. */
static void the_general_text_keeps_to_the_vocabulary(void **state)
{
	struct bdx_tokenizer *t = open_nano(), *none;
	static const char empty[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}";
	struct bdx_windows w;
	struct bd_error err = { 0 };

	(void)state;
	assert_int_equal(bdx_general_windows(&w, t, 800, 20, 8, 1, NULL, &err), 0);
	assert_int_equal(w.count, 20);
	for (int i = 0; i < 20 * 8; i++)
		assert_in_range(w.tokens[i], 0, 799);
	bdx_windows_free(&w);
	assert_int_equal(bdx_general_windows(&w, t, 3, 20, 8, 1, NULL, &err), 0);
	assert_int_equal(w.count, 0);
	bdx_windows_free(&w);
	assert_int_equal(bdx_general_windows(&w, t, VOCABULARY, 1, 1 << 20, 1, NULL, &err), 0);
	assert_int_equal(w.count, 0);
	bdx_windows_free(&w);
	assert_int_equal(bdx_tokenizer_open(&none, empty, strlen(empty), "empty", &err), 0);
	assert_int_equal(bdx_general_windows(&w, none, VOCABULARY, 20, 8, 1, NULL, &err), 0);
	assert_int_equal(w.count, 0);
	bdx_windows_free(&w);
	bdx_tokenizer_close(none);
	bdx_tokenizer_close(t);
}

/* All forms of the same text give the same tokens. */
static void files_of_every_form_are_read(void **state)
{
	static const char text[] = "In the beginning was the word, and the word was short.";
	struct bdx_tokenizer *t = open_nano();
	struct bd_error err = { 0 };
	char *dir = td_dir(), *numbers = strdup("");
	int32_t *plain, *other;
	uint64_t count, other_count;
	size_t bytes;
	char *paths[4];

	(void)state;
	paths[0] = td_text(dir, "calib.txt", text);
	assert_int_equal(bdx_file_tokens(&plain, &count, paths[0], t, VOCABULARY, NULL,
					 &err), 0);
	assert_in_range(count, 10, sizeof(text));
	bytes = count * sizeof(*plain);
	for (uint64_t i = 0; i < count; i++) {
		char *longer = td_format("%s%s%d", numbers, i ? "," : "", plain[i]);

		free(numbers);
		numbers = strdup(longer);
	}
	paths[1] = td_text(dir, "calib.jsonl",
			   td_format("\n{\"id\": [1, {}], \"%0100d\": 1, \"text\": "
				     "\"%s\"}\r\n\n", 0, text));
	paths[2] = td_text(dir, "numbers.jsonl", td_format("{\"tokens\":[%s]}\n", numbers));
	paths[3] = td_write(dir, "calib.tokens", plain, bytes);
	for (int i = 1; i < 4; i++) {
		assert_int_equal(bdx_file_tokens(&other, &other_count, paths[i], t, VOCABULARY,
						 NULL, &err), 0);
		assert_int_equal(other_count, count);
		assert_memory_equal(other, plain, bytes);
		free(other);
	}
	free(plain);
	free(numbers);
	bdx_tokenizer_close(t);
}

static void expect_refusal(const char *path, const struct bdx_tokenizer *t, const char *sentence)
{
	struct bdx_windows w;
	struct bd_error err = { 0 };
	int32_t *tokens = NULL;
	uint64_t count;
	int rc = bdx_file_tokens(&tokens, &count, path, t, VOCABULARY, NULL, &err);

	if (rc == 0)
		rc = bdx_cut_windows(&w, tokens, count, 4, 16, 0, path, &err);
	free(tokens);
	assert_true(rc < 0);
	assert_non_null(strstr(err.text, sentence));
	assert_non_null(strstr(err.text, strrchr(path, '/') + 1));
}

static void bad_files_are_refused(void **state)
{
	static const int32_t large[] = { 1, 2, VOCABULARY };
	static const int32_t negative[] = { 1, -2 };
	struct bdx_tokenizer *t = open_nano();
	char *dir = td_dir();

	(void)state;
	expect_refusal(td_text(dir, "short.txt", "few"), t, "too few");
	expect_refusal(td_text(dir, "empty.txt", ""), t, "too few");
	expect_refusal(td_write(dir, "large.bin", large, sizeof(large)), t, "vocabulary has 1024");
	expect_refusal(td_write(dir, "negative.tokens", negative, sizeof(negative)), t,
		       "token number 1 is -2");
	expect_refusal(td_text(dir, "huge.jsonl", "{\"tokens\":[4294967296]}"), t, "token number 0");
	expect_refusal(td_text(dir, "broken.jsonl", "{\"text\":\"a\"}\n{\"text\":"), t, "at byte");
	expect_refusal(td_text(dir, "list.jsonl", "[1,2]"), t, "at byte");
	expect_refusal(td_text(dir, "plain.txt", "text without a tokenizer"), NULL, "tokenizer.json");
	expect_refusal(td_path(dir, "none.txt"), t, "No such file");
	bdx_tokenizer_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(uniform_numbers_are_even_and_repeatable),
		cmocka_unit_test(shuffling_keeps_every_window),
		cmocka_unit_test(the_general_text_is_text),
		cmocka_unit_test(windows_of_the_general_text_vary),
		cmocka_unit_test(the_general_text_keeps_to_the_vocabulary),
		cmocka_unit_test(files_of_every_form_are_read),
		cmocka_unit_test(bad_files_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
