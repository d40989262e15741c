/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_tokenizer.c: libFuzzer target for tokenizer.json and for texts.
 *
 * An input is a file, a zero byte and a text; without a zero byte there is no text. What opens must
 * encode with the tokens that it has, twice the same, or refuse the text; what comes out must decode
 * to UTF-8. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "utf8.h"

#define MAX_TEXT 1024 /* hostile patterns take their time */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void check_decode(const struct bdx_tokenizer *t, const int32_t *tokens, size_t count)
{
	struct bd_error err = { 0 };
	size_t size;
	char *text;

	if (bdx_tokenizer_decode(t, tokens, count, false, &text, &size, &err)) {
		require(!text && err.code == -EINVAL);
		return;
	}
	require(text[size] == '\0');
	for (size_t i = 0, length; i < size; i += length) {
		uint32_t code;

		length = bd_utf8_decode(text + i, size - i, &code);
		require(length > 0);
	}
	free(text);
}

static void check_encode(const struct bdx_tokenizer *t, const char *text, size_t size)
{
	int32_t *plain, *again, *special;
	size_t count, count_again, count_special;
	struct bd_error err = { 0 };

	if (bdx_tokenizer_encode(t, text, size, false, &plain, &count, &err)) {
		require(!plain && err.code == -EINVAL && strncmp(err.text, "input: ", 7) == 0);
		return;
	}
	for (size_t i = 0; i < count; i++)
		require(plain[i] >= 0 && (uint32_t)plain[i] < bdx_tokenizer_size(t));
	check_decode(t, plain, count);
	require(bdx_tokenizer_encode(t, text, size, false, &again, &count_again, &err) == 0);
	require(count == count_again && memcmp(plain, again, count * sizeof(*plain)) == 0);
	free(again);
	require(bdx_tokenizer_encode(t, text, size, true, &special, &count_special, &err) == 0);
	require(count_special >= count);
	check_decode(t, special, count_special);
	free(special);
	free(plain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *json = (const char *)data, *end = memchr(json, '\0', size);
	size_t json_size = end ? (size_t)(end - json) : size;
	size_t text_size = end ? size - json_size - 1 : 0;
	struct bdx_tokenizer *t;
	struct bd_error err = { 0 };
	int rc = bdx_tokenizer_open(&t, json, json_size, "input", &err);

	if (rc) {
		require(!t && (rc == -EINVAL || rc == -ENOTSUP) && err.code == rc &&
			strncmp(err.text, "input: ", 7) == 0);
		return 0;
	}
	(void)bdx_tokenizer_find(t, "a");
	(void)bdx_tokenizer_is_special(t, 0);
	check_encode(t, end ? end + 1 : "", text_size < MAX_TEXT ? text_size : MAX_TEXT);
	bdx_tokenizer_close(t);
	return 0;
}
