/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_json.c: libFuzzer target for the strict JSON reader, which indexes and manifests go through.
 *
 * The checker, the skipper and a walk that decodes everything must agree on what is JSON; what the
 * checker accepts must survive being decoded and printed again. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* Read one value, in all the ways there are, and print it. */
static int walk(struct bd_json *j, struct bd_buffer *out, unsigned depth)
{
	char *text = NULL, key[64];
	size_t length, start;
	uint64_t integer;
	double number;
	bool truth;
	int rc;

	require(depth <= BD_JSON_DEPTH + 1);
	switch (bd_json_peek(j)) {
	case BD_JSON_OBJECT:
		rc = bd_json_object(j);
		bd_buffer_append(out, "{", 1);
		start = out->size;
		while (rc == 0) {
			struct bd_json copy = *j;
			struct bd_error unseen;

			/* Once into too small a buffer, then with room for any key. */
			copy.err = &unseen;
			rc = bd_json_member(&copy, key, sizeof(key), &length);
			require(rc <= 0 || (length < sizeof(key) && key[length] == '\0'));
			text = malloc(j->size + 1);
			require(text != NULL);
			rc = bd_json_member(j, text, j->size + 1, &length);
			if (rc > 0) {
				if (out->size > start)
					bd_buffer_append(out, ",", 1);
				bd_buffer_json_string(out, text, length);
				bd_buffer_append(out, ":", 1);
			}
			free(text);
			if (rc <= 0)
				break;
			rc = walk(j, out, depth + 1);
		}
		bd_buffer_append(out, "}", 1);
		return rc;
	case BD_JSON_ARRAY:
		rc = bd_json_array(j);
		bd_buffer_append(out, "[", 1);
		start = out->size;
		while (rc == 0 && (rc = bd_json_item(j)) > 0) {
			if (out->size > start)
				bd_buffer_append(out, ",", 1);
			rc = walk(j, out, depth + 1);
		}
		bd_buffer_append(out, "]", 1);
		return rc;
	case BD_JSON_STRING:
		rc = bd_json_string_dup(j, &text, &length);
		if (rc == 0) {
			require(text[length] == '\0');
			bd_buffer_json_string(out, text, length);
			free(text);
		}
		return rc;
	case BD_JSON_NUMBER: {
		struct bd_json copy = *j;
		struct bd_error unseen;

		copy.err = &unseen;
		rc = bd_json_skip(j);
		if (rc < 0)
			return rc;
		bd_buffer_append(out, j->text + j->token, j->at - j->token);
		if (bd_json_u64(&copy, &integer) == 0)
			require(copy.at == j->at);
		copy.failed = 0;
		copy.at = j->token;
		if (bd_json_number(&copy, &number) == 0)
			require(copy.at == j->at && number - number == 0);
		return 0;
	}
	case BD_JSON_TRUE:
	case BD_JSON_FALSE:
		rc = bd_json_bool(j, &truth);
		if (rc == 0)
			bd_buffer_printf(out, "%s", truth ? "true" : "false");
		return rc;
	default:
		rc = bd_json_skip(j);
		if (rc == 0)
			bd_buffer_printf(out, "null");
		return rc;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	struct bd_error err = { 0 };
	struct bd_buffer once = { 0 }, twice = { 0 };
	struct bd_json j;
	int checked = bd_json_check(text, size, "input", &err), skipped, walked;

	require(checked == 0 || (checked == -EINVAL && strncmp(err.text, "input: at byte ", 15) == 0));
	bd_json_init(&j, text, size, "input", 0, &err);
	skipped = bd_json_skip(&j);
	if (skipped == 0)
		skipped = bd_json_end(&j);
	require(skipped == 0 || skipped == bd_json_skip(&j)); /* stays failed */
	bd_json_init(&j, text, size, "input", 0, &err);
	walked = walk(&j, &once, 0);
	if (walked == 0)
		walked = bd_json_end(&j);
	require(walked == skipped);
	require(checked != 0 || skipped == 0); /* the checker refuses more: keys twice, U+0000 */
	if (checked == 0) {
		require(!once.failed && bd_json_check(once.data, once.size, "printed", &err) == 0);
		bd_json_init(&j, once.data, once.size, "printed", 0, &err);
		require(walk(&j, &twice, 0) == 0 && once.size == twice.size &&
			memcmp(once.data, twice.data, once.size) == 0);
	}
	bd_buffer_free(&once);
	bd_buffer_free(&twice);
	return 0;
}
