/* SPDX-License-Identifier: Apache-2.0 */
/* pretokenize.c: the pre-tokenizers of tokenizer.json, which cut a text into words; see
 * tokenizer_impl.h. */
#include <string.h>

#include "tokenizer_impl.h"

/* run->spans: every character with a property, and what lies between them. */
static int split_characters(struct bdx_run *run, const char *text, size_t size,
			    bool (*has)(uint32_t))
{
	size_t done = 0;
	uint32_t code;
	int rc = 0;

	run->spans.count = 0;
	for (size_t at = 0; at < size && rc == 0;) {
		unsigned length = bdx_unicode_next(text + at, &code);

		if (has(code)) {
			rc = done < at ? bdx_add_span(run, done, at, false) : 0;
			if (rc == 0)
				rc = bdx_add_span(run, at, at + length, true);
			done = at + length;
		}
		at += length;
	}
	return rc == 0 && done < size ? bdx_add_span(run, done, size, false) : rc;
}

/* The same for one character, given as its bytes. */
static int split_at(struct bdx_run *run, const char *text, size_t size, const char *mark,
		    size_t length)
{
	size_t done = 0;
	int rc = 0;

	run->spans.count = 0;
	while (done < size && rc == 0) {
		const char *found = memmem(text + done, size - done, mark, length);
		size_t at = found ? (size_t)(found - text) : size;

		rc = done < at ? bdx_add_span(run, done, at, false) : 0;
		if (rc == 0 && found)
			rc = bdx_add_span(run, at, at + length, true);
		done = found ? at + length : size;
	}
	return rc;
}

static bool are_joined(enum bdx_behavior behavior, bool match, bool next)
{
	switch (behavior) {
	case BDX_MERGED_WITH_PREVIOUS: return !match && next;
	case BDX_MERGED_WITH_NEXT: return match && !next;
	case BDX_CONTIGUOUS: return match == next;
	default: return false;
	}
}

/* Pieces from run->spans, which are of a text that begins at `base` of the run's text. */
static int add_pieces(struct bdx_run *run, size_t base, enum bdx_behavior behavior, bool invert,
		      bool first)
{
	const struct bdx_spans *spans = &run->spans;
	int rc = 0;

	for (size_t i = 0; i < spans->count && rc == 0; i++) {
		size_t start = spans->data[i].start;

		if (behavior == BDX_REMOVED && spans->data[i].match != invert)
			continue;
		while (i + 1 < spans->count && are_joined(behavior, spans->data[i].match != invert,
							  spans->data[i + 1].match != invert))
			i++;
		if (start < spans->data[i].end)
			rc = bdx_run_add_piece(run, (struct bdx_piece){
				.start = base + start, .end = base + spans->data[i].end,
				.token = -1, .first = first && start == 0 });
	}
	return rc;
}

/* A step that cuts and does not change the text. */
static int cut(const struct bdx_step *step, struct bdx_run *run, const struct bdx_piece *piece)
{
	const char *text = run->text.data + piece->start;
	size_t size = piece->end - piece->start;
	enum bdx_behavior behavior = step->behavior;
	int rc;

	switch (step->kind) {
	case BDX_SPLIT:
		rc = bdx_pattern_split(step->pattern, run, text, size);
		break;
	case BDX_DIGITS:
		rc = split_characters(run, text, size, bdx_unicode_is_number);
		behavior = step->individual ? BDX_ISOLATED : BDX_CONTIGUOUS;
		break;
	case BDX_PUNCTUATION:
		rc = split_characters(run, text, size, bdx_unicode_is_punctuation);
		break;
	default:
		rc = split_characters(run, text, size, bdx_unicode_is_space);
		behavior = BDX_REMOVED;
	}
	return rc ? rc : add_pieces(run, piece->start, behavior, step->invert, piece->first);
}

/* Printable characters for bytes, into run->other_text; words as GPT-2 has them where wished. */
static int byte_level(const struct bdx_step *step, struct bdx_run *run,
		      const struct bdx_piece *piece, struct bd_buffer *prefixed)
{
	const char *text = run->text.data + piece->start;
	size_t size = piece->end - piece->start;
	int rc = 0;

	if (step->add_prefix_space && text[0] != ' ') {
		prefixed->size = 0;
		bd_buffer_append(prefixed, " ", 1);
		bd_buffer_append(prefixed, text, size);
		if (prefixed->failed)
			return bdx_run_nomem(run);
		text = prefixed->data;
		size = prefixed->size;
	}
	if (step->pattern) {
		rc = bdx_pattern_split(step->pattern, run, text, size);
	} else {
		run->spans.count = 0;
		rc = bdx_add_span(run, 0, size, false);
	}
	for (size_t i = 0; i < run->spans.count && rc == 0; i++) {
		const struct bdx_span *s = &run->spans.data[i];
		size_t start = run->other_text.size;

		for (size_t k = s->start; k < s->end; k++)
			bdx_unicode_append_code(&run->other_text,
						bdx_unicode_byte_char((unsigned char)text[k]));
		if (s->start < s->end)
			rc = bdx_run_add_piece(run, (struct bdx_piece){
				.start = start, .end = run->other_text.size, .token = -1,
				.first = piece->first && s->start == 0 });
	}
	return rc ? rc : bdx_run_check(run, &run->other_text);
}

/* A visible character for spaces, into run->other_text; words begin with it. */
static int metaspace(const struct bdx_step *step, struct bdx_run *run,
		     const struct bdx_piece *piece)
{
	const char *text = run->text.data + piece->start;
	size_t size = piece->end - piece->start, base = run->other_text.size;
	bool marked = size >= step->size && memcmp(text, step->text, step->size) == 0;
	int rc;

	if (text[0] != ' ' && !marked &&
	    (step->prepend == BDX_PREPEND_ALWAYS ||
	     (step->prepend == BDX_PREPEND_FIRST && piece->first)))
		bd_buffer_append(&run->other_text, step->text, step->size);
	for (size_t done = 0; done < size;) {
		const char *space = memchr(text + done, ' ', size - done);
		size_t at = space ? (size_t)(space - text) : size;

		bd_buffer_append(&run->other_text, text + done, at - done);
		if (space)
			bd_buffer_append(&run->other_text, step->text, step->size);
		done = at + 1;
	}
	rc = bdx_run_check(run, &run->other_text);
	if (rc)
		return rc;
	if (!step->split)
		return bdx_run_add_piece(run, (struct bdx_piece){
			.start = base, .end = run->other_text.size, .token = -1,
			.first = piece->first });
	rc = split_at(run, run->other_text.data + base, run->other_text.size - base, step->text,
		      step->size);
	return rc ? rc : add_pieces(run, base, BDX_MERGED_WITH_NEXT, false, piece->first);
}

static int take_step(const struct bdx_step *step, struct bdx_run *run)
{
	bool rewrites = step->kind == BDX_BYTE_LEVEL || step->kind == BDX_METASPACE;
	struct bd_buffer prefixed = { 0 };
	int rc = 0;

	run->other_text.size = 0;
	bd_buffer_append(&run->other_text, "", 0);
	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		const struct bdx_piece *piece = &run->pieces.data[i];

		if (piece->token >= 0)
			rc = bdx_run_add_piece(run, (struct bdx_piece){ .token = piece->token });
		else if (step->kind == BDX_BYTE_LEVEL)
			rc = byte_level(step, run, piece, &prefixed);
		else if (step->kind == BDX_METASPACE)
			rc = metaspace(step, run, piece);
		else
			rc = cut(step, run, piece);
	}
	if (rewrites)
		bdx_run_swap_texts(run);
	bdx_run_swap_pieces(run);
	bd_buffer_free(&prefixed);
	return rc;
}

int bdx_pretokenize(const struct bdx_steps *steps, struct bdx_run *run)
{
	int rc = 0;

	for (size_t i = 0; i < steps->count && rc == 0; i++) {
		rc = bdx_run_clock(run);
		if (rc == 0)
			rc = take_step(&steps->data[i], run);
	}
	return rc;
}
