/* SPDX-License-Identifier: Apache-2.0 */
/* stream.c: the text of tokens as they come, see stream.h.
 *
 * What a token adds depends on the tokens before it: decoders take away the first space of a text,
 * and join bytes to characters. So each text is decoded with those tokens before it that begin at
 * `from`. That moves on in steps, to where a character ends and where the tokens that are left give
 * some text, so that it is not their first space that the next tokens lose. */
#include "stream.h"

#include <stdlib.h>
#include <string.h>

#define CONTEXT 8    /* tokens that are decoded again, at least */
#define LONGEST 256  /* tokens that may wait for the end of a character, or give no text */

static bool ends_in_part(const char *text, size_t size)
{
	/* Bytes that are no character yet come as U+FFFD. */
	return size >= 3 && memcmp(text + size - 3, "\xef\xbf\xbd", 3) == 0;
}

/* Forget what is not needed any more, all of the text of `count` tokens being out. */
static int move_on(struct bdx_stream *s, const int32_t *tokens, size_t count, struct bd_error *err)
{
	size_t next = s->whole, size;
	char *text;
	int rc;

	s->whole = count;
	if (next == s->from)
		return 0;
	rc = bdx_tokenizer_decode(s->tokenizer, tokens + next, count - next, true, &text, &size, err);
	if (rc < 0)
		return rc;
	if (size > 0 || count - s->from >= LONGEST) {
		s->from = next;
		s->written = size;
	}
	free(text);
	return 0;
}

int bdx_stream_take(struct bdx_stream *s, const int32_t *tokens, size_t count, bool last,
		    struct bd_error *err)
{
	bool waits = !last && count - s->whole < LONGEST;
	size_t size, end;
	char *text;
	int rc = bdx_tokenizer_decode(s->tokenizer, tokens + s->from, count - s->from, true, &text,
				      &size, err);

	if (rc < 0)
		return rc;
	for (end = size; waits && ends_in_part(text, end); )
		end -= 3;
	/* Byte tokens that turn out to be no characters change what is out already. */
	while (s->written < end && (text[s->written] & 0xc0) == 0x80)
		s->written++;
	if (end > s->written) {
		s->write(s->context, text + s->written, end - s->written);
		s->written = end;
	}
	free(text);
	return end == size && count - s->whole >= CONTEXT ? move_on(s, tokens, count, err) : 0;
}
