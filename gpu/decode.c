/* SPDX-License-Identifier: Apache-2.0 */
/* decode.c: the decoders of tokenizer.json, from the texts of tokens to one text; see
 * tokenizer_impl.h.
 *
 * run->text holds the texts one after the other, and run->pieces where each of them lies. A decoder
 * writes other_text and other_pieces. */
#include <string.h>

#include "tokenizer_impl.h"
#include "utf8.h"

/* What has been written to other_text since `start` is one text. */
static int end_text(struct bdx_run *run, size_t start)
{
	int rc = bdx_run_check(run, &run->other_text);

	return rc ? rc : bdx_run_add_piece(run, (struct bdx_piece){
		.start = start, .end = run->other_text.size, .token = -1 });
}

static int replace(const struct bdx_step *step, struct bdx_run *run, const char *text, size_t size)
{
	int rc = bdx_pattern_split(step->pattern, run, text, size);

	for (size_t i = 0; i < run->spans.count && rc == 0; i++) {
		const struct bdx_span *s = &run->spans.data[i];

		if (s->match)
			bd_buffer_append(&run->other_text, step->text, step->size);
		else
			bd_buffer_append(&run->other_text, text + s->start, s->end - s->start);
		rc = bdx_run_check(run, &run->other_text);
	}
	return rc;
}

/* Take a character away at both ends, at most so many times. */
static void strip(const struct bdx_step *step, struct bdx_run *run, const char *text, size_t size)
{
	size_t start = 0, end = size;

	for (size_t i = 0; i < step->start && end - start >= step->size; i++) {
		if (memcmp(text + start, step->text, step->size) != 0)
			break;
		start += step->size;
	}
	for (size_t i = 0; i < step->stop && end - start >= step->size; i++) {
		if (memcmp(text + end - step->size, step->text, step->size) != 0)
			break;
		end -= step->size;
	}
	bd_buffer_append(&run->other_text, text + start, end - start);
}

/* Spaces for the visible character; in the first token there are none where encoding added one. */
static void metaspace(const struct bdx_step *step, struct bdx_run *run, const char *text,
		      size_t size, bool first)
{
	size_t done = 0;

	while (done < size) {
		const char *mark = memmem(text + done, size - done, step->text, step->size);
		size_t at = mark ? (size_t)(mark - text) : size;

		bd_buffer_append(&run->other_text, text + done, at - done);
		if (mark && (!first || step->prepend == BDX_PREPEND_NEVER))
			bd_buffer_append(&run->other_text, " ", 1);
		done = mark ? at + step->size : size;
	}
}

/* The byte for which a token such as <0x0A> stands, or -1. */
static int token_byte(const char *text, size_t size)
{
	int value = 0;

	if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
		return -1;
	for (size_t i = 3; i < 5; i++) {
		char c = text[i], low = (char)(c | 0x20);

		if (c >= '0' && c <= '9')
			value = value << 4 | (c - '0');
		else if (low >= 'a' && low <= 'f')
			value = value << 4 | (low - 'a' + 10);
		else if (c != '+' || i != 3) /* the package takes a sign for part of a number */
			return -1;
	}
	return value;
}

/* The bytes in other_text since `start` came from tokens such as <0x0A>: one text if they are
 * UTF-8, otherwise a U+FFFD for each. */
static int end_bytes(struct bdx_run *run, size_t start)
{
	struct bd_buffer *b = &run->other_text;
	size_t count = b->size - start, at = start;
	uint32_t code;
	int rc = 0;

	if (b->failed)
		return bdx_run_nomem(run);
	while (at < b->size) {
		unsigned length = bd_utf8_decode(b->data + at, b->size - at, &code);

		if (length == 0)
			break;
		at += length;
	}
	if (at == b->size)
		return count ? end_text(run, start) : 0;
	b->size = start;
	for (size_t i = 0; i < count && rc == 0; i++) {
		bdx_unicode_append_code(b, 0xfffd);
		rc = end_text(run, b->size - 3);
	}
	return rc;
}

static int byte_fallback(struct bdx_run *run)
{
	size_t start = 0;
	int rc = 0;

	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		const struct bdx_piece *p = &run->pieces.data[i];
		int byte = token_byte(run->text.data + p->start, p->end - p->start);
		char c = (char)byte;

		if (byte >= 0) {
			bd_buffer_append(&run->other_text, &c, 1);
			continue;
		}
		rc = end_bytes(run, start);
		start = run->other_text.size;
		bd_buffer_append(&run->other_text, run->text.data + p->start, p->end - p->start);
		if (rc == 0)
			rc = end_text(run, start);
		start = run->other_text.size;
	}
	return rc ? rc : end_bytes(run, start);
}

/* All bytes together; a token with a character that stands for no byte is taken as it is. */
static int byte_level(struct bdx_run *run)
{
	struct bd_buffer bytes = { 0 };
	uint32_t code;
	int rc;

	for (size_t i = 0; i < run->pieces.count; i++) {
		const struct bdx_piece *p = &run->pieces.data[i];
		size_t start = bytes.size, at = p->start;

		while (at < p->end) {
			unsigned length = bdx_unicode_next(run->text.data + at, &code);
			int byte = bdx_unicode_char_byte(code);
			char c = (char)byte;

			if (byte < 0)
				break;
			bd_buffer_append(&bytes, &c, 1);
			at += length;
		}
		if (at < p->end) {
			bytes.size = start;
			bd_buffer_append(&bytes, run->text.data + p->start, p->end - p->start);
		}
	}
	bdx_unicode_append(&run->other_text, bytes.data, bytes.size);
	rc = bytes.failed ? bdx_run_nomem(run) : end_text(run, 0);
	bd_buffer_free(&bytes);
	return rc;
}

/* A decoder that looks at one token at a time. */
static int take_each(const struct bdx_step *step, struct bdx_run *run)
{
	int rc = 0;

	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		const struct bdx_piece *p = &run->pieces.data[i];
		const char *text = run->text.data + p->start;
		size_t size = p->end - p->start, start = run->other_text.size;

		if (step->kind == BDX_REPLACE)
			rc = replace(step, run, text, size);
		else if (step->kind == BDX_METASPACE)
			metaspace(step, run, text, size, i == 0);
		else
			strip(step, run, text, size);
		if (rc == 0)
			rc = end_text(run, start);
	}
	return rc;
}

int bdx_decode(const struct bdx_steps *steps, struct bdx_run *run)
{
	int rc = 0;

	for (size_t i = 0; i < steps->count && rc == 0; i++) {
		const struct bdx_step *step = &steps->data[i];

		rc = bdx_run_clock(run);
		if (rc)
			return rc;
		run->other_text.size = 0;
		bd_buffer_append(&run->other_text, "", 0);
		switch (step->kind) {
		case BDX_BYTE_LEVEL:
			rc = byte_level(run);
			break;
		case BDX_BYTE_FALLBACK:
			rc = byte_fallback(run);
			break;
		case BDX_FUSE:
			bd_buffer_append(&run->other_text, run->text.data, run->text.size);
			rc = end_text(run, 0);
			break;
		default:
			rc = take_each(step, run);
		}
		bdx_run_swap_texts(run);
		bdx_run_swap_pieces(run);
	}
	return rc;
}
