/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h: the text of tokens that come one after the other.
 *
 * What comes out, put together, is the text of all tokens (bdx_tokenizer_decode without special ones),
 * but for bytes that are no characters. A token costs the decoding of a few before it, however many
 * there are. */
#ifndef BDX_STREAM_H
#define BDX_STREAM_H

#include "tokenizer.h"

struct bdx_stream {
	const struct bdx_tokenizer *tokenizer; /* borrowed */
	void (*write)(void *context, const char *text, size_t size); /* valid UTF-8 */
	void *context;
	/* private, zero at first: */
	size_t from;    /* the text of the tokens from here on is looked at, */
	size_t written; /* of which so many bytes are out */
	size_t whole;   /* up to here the tokens end in a whole character */
};

/* Write what is new with `count` tokens, of which there were fewer the last time. The last character may
 * lack bytes that the next token brings: it waits, but for `last`. */
int bdx_stream_take(struct bdx_stream *stream, const int32_t *tokens, size_t count, bool last,
		    struct bd_error *err);

#endif
