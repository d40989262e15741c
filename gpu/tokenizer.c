/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.c: encoding and decoding through all stages, see tokenizer.h and tokenizer_impl.h. */
#include "tokenizer.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"

#define MAX_TEXT ((size_t)1 << 30)

/* How a text may grow in normalization: NFKD makes 33 bytes of 3, bytes as characters double it. */
#define GROWTH 64
#define FREE_GROWTH ((size_t)1 << 20)

/* Seconds that a text may take: a free part, and a part by size. */
#define SECONDS 10
#define BYTES_PER_SECOND ((size_t)100 << 10)

/* --- A run --- */

void bdx_run_init(struct bdx_run *run, const struct bdx_tokenizer *t, size_t size,
		  struct bd_error *err)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	*run = (struct bdx_run){
		.name = t->name, .err = err, .text_limit = FREE_GROWTH + GROWTH * size,
		.deadline = now.tv_sec + SECONDS + (time_t)(size / BYTES_PER_SECOND),
	};
}

void bdx_run_free(struct bdx_run *run)
{
	bd_buffer_free(&run->text);
	bd_buffer_free(&run->other_text);
	free(run->pieces.data);
	free(run->other_pieces.data);
	free(run->spans.data);
	free(run->ids.data);
	free(run->symbols);
	free(run->heap);
}

void bdx_run_swap_texts(struct bdx_run *run)
{
	struct bd_buffer text = run->text;

	run->text = run->other_text;
	run->other_text = text;
}

void bdx_run_swap_pieces(struct bdx_run *run)
{
	struct bdx_pieces pieces = run->pieces;

	run->pieces = run->other_pieces;
	run->other_pieces = pieces;
	run->other_pieces.count = 0;
}

void *bdx_grow(void *data, size_t count, size_t *capacity, size_t size)
{
	size_t wanted = *capacity ? 2 * *capacity : 64;

	if (count < *capacity)
		return data;
	data = realloc(data, wanted * size);
	if (data)
		*capacity = wanted;
	return data;
}

int bdx_run_add_piece(struct bdx_run *run, struct bdx_piece piece)
{
	struct bdx_pieces *pieces = &run->other_pieces;
	struct bdx_piece *data = bdx_grow(pieces->data, pieces->count, &pieces->capacity,
					  sizeof(*data));

	if (!data)
		return bdx_run_nomem(run);
	pieces->data = data;
	data[pieces->count++] = piece;
	return 0;
}

int bdx_run_add_id(struct bdx_run *run, int32_t token)
{
	struct bdx_ids *ids = &run->ids;
	int32_t *data = bdx_grow(ids->data, ids->count, &ids->capacity, sizeof(*data));

	if (!data)
		return bdx_run_nomem(run);
	ids->data = data;
	data[ids->count++] = token;
	return 0;
}

int bdx_run_check(struct bdx_run *run, const struct bd_buffer *b)
{
	if (b->failed)
		return bdx_run_nomem(run);
	if (b->size > run->text_limit)
		return bd_error_set(run->err, -EINVAL,
				    "%s: this tokenizer makes the text more than %d times as long",
				    run->name, GROWTH);
	return 0;
}

int bdx_run_nomem(struct bdx_run *run)
{
	return bd_error_set(run->err, -ENOMEM, "%s: out of memory for a text", run->name);
}

int bdx_run_clock(struct bdx_run *run)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return now.tv_sec <= run->deadline ? 0 :
	       bd_error_set(run->err, -EINVAL, "%s: this tokenizer takes too long for this text",
			    run->name);
}

/* --- Opening --- */

int bdx_tokenizer_open(struct bdx_tokenizer **tokenizer, const char *json, size_t size,
		       const char *name, struct bd_error *err)
{
	struct bdx_tokenizer *t = calloc(1, sizeof(*t));
	int rc = -ENOMEM;

	*tokenizer = NULL;
	if (t)
		t->name = strdup(name);
	if (t && t->name)
		rc = bdx_tokenizer_read(t, json, size, err);
	else
		bd_error_set(err, rc, "%s: out of memory", name);
	if (rc) {
		bdx_tokenizer_close(t);
		return rc;
	}
	*tokenizer = t;
	return 0;
}

void bdx_steps_free(struct bdx_steps *steps)
{
	for (size_t i = 0; i < steps->count; i++) {
		bdx_pattern_close(steps->data[i].pattern);
		free(steps->data[i].text);
	}
	free(steps->data);
}

void bdx_tokenizer_close(struct bdx_tokenizer *t)
{
	if (!t)
		return;
	bdx_steps_free(&t->normalizer);
	bdx_steps_free(&t->pretokenizer);
	bdx_steps_free(&t->decoder);
	bdx_added_free(&t->added);
	bdx_bpe_free(&t->bpe);
	free(t->before.data);
	free(t->after.data);
	free(t->name);
	free(t);
}

uint32_t bdx_tokenizer_size(const struct bdx_tokenizer *t)
{
	return t->size;
}

/* The text of a token, of which an added token comes first; NULL where there is none. */
static const char *token_text(const struct bdx_tokenizer *t, int32_t token, size_t *size)
{
	const struct bdx_added *added = bdx_added_by_number(&t->added, token);
	const struct bdx_token *ordinary = added ? NULL : bdx_bpe_token(&t->bpe, token);

	if (added) {
		*size = added->size;
		return added->text;
	}
	*size = ordinary ? ordinary->size : 0;
	return ordinary ? ordinary->text : NULL;
}

bool bdx_tokenizer_is_special(const struct bdx_tokenizer *t, int32_t token)
{
	const struct bdx_added *added;
	size_t size;
	const char *text = token_text(t, token, &size);

	added = text ? bdx_added_find(&t->added, text, size) : NULL;
	return added && added->special;
}

int32_t bdx_tokenizer_find(const struct bdx_tokenizer *t, const char *text)
{
	size_t size = strlen(text);
	const struct bdx_added *added = bdx_added_find(&t->added, text, size);

	return added ? added->token : bdx_bpe_find(&t->bpe, text, size);
}

/* --- Encoding --- */

/* Rewrite what is not an added token. */
static int normalize(const struct bdx_tokenizer *t, struct bdx_run *run)
{
	int rc = 0;

	if (t->normalizer.count == 0)
		return 0;
	run->other_text.size = 0;
	bd_buffer_append(&run->other_text, "", 0);
	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		struct bdx_piece piece = run->pieces.data[i];
		size_t start = run->other_text.size;

		if (piece.token < 0)
			rc = bdx_normalize(&t->normalizer, run, run->text.data + piece.start,
					   piece.end - piece.start, &piece.first);
		piece.start = start;
		piece.end = run->other_text.size;
		if (rc == 0 && (piece.token >= 0 || piece.start < piece.end))
			rc = bdx_run_add_piece(run, piece);
	}
	bdx_run_swap_texts(run);
	bdx_run_swap_pieces(run);
	return rc;
}

static int add_ids(struct bdx_run *run, const struct bdx_ids *ids)
{
	int rc = 0;

	for (size_t i = 0; i < ids->count && rc == 0; i++)
		rc = bdx_run_add_id(run, ids->data[i]);
	return rc;
}

/* All stages; the text is in run->text. */
static int encode(const struct bdx_tokenizer *t, struct bdx_run *run)
{
	int rc = bdx_run_add_piece(run, (struct bdx_piece){ .end = run->text.size, .token = -1,
							    .first = true });

	bdx_run_swap_pieces(run);
	if (rc == 0)
		rc = bdx_added_split(&t->added, &t->added.raw, run);
	if (rc == 0)
		rc = normalize(t, run);
	if (rc == 0)
		rc = bdx_added_split(&t->added, &t->added.normalized, run);
	if (rc == 0)
		rc = bdx_pretokenize(&t->pretokenizer, run);
	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		const struct bdx_piece *piece = &run->pieces.data[i];

		rc = piece->token >= 0 ? bdx_run_add_id(run, piece->token) :
		     bdx_bpe_encode(&t->bpe, run, run->text.data + piece->start,
				    piece->end - piece->start);
	}
	return rc;
}

int bdx_tokenizer_encode(const struct bdx_tokenizer *t, const char *text, size_t size,
			 bool with_special, int32_t **tokens, size_t *count, struct bd_error *err)
{
	struct bdx_run run;
	int rc = 0;

	*tokens = NULL;
	*count = 0;
	if (size > MAX_TEXT)
		return bd_error_set(err, -EINVAL,
				    "%s: a text of %zu bytes is too long for one piece", t->name,
				    size);
	bdx_run_init(&run, t, size, err);
	bdx_unicode_append(&run.text, text, size);
	rc = bdx_run_check(&run, &run.text);
	if (rc == 0 && with_special)
		rc = add_ids(&run, &t->before);
	if (rc == 0 && run.text.size)
		rc = encode(t, &run);
	if (rc == 0 && with_special)
		rc = add_ids(&run, &t->after);
	if (rc == 0 && !run.ids.data) {
		run.ids.data = malloc(sizeof(*run.ids.data));
		rc = run.ids.data ? 0 : bdx_run_nomem(&run);
	}
	if (rc == 0) {
		*tokens = run.ids.data;
		*count = run.ids.count;
		run.ids.data = NULL;
	}
	bdx_run_free(&run);
	return rc;
}

/* --- Decoding --- */

/* The texts of tokens into run->text and run->pieces; without a decoder, with spaces between. */
static int collect(const struct bdx_tokenizer *t, struct bdx_run *run, const int32_t *tokens,
		   size_t count, bool skip_special)
{
	int rc = 0;

	bd_buffer_append(&run->text, "", 0);
	for (size_t i = 0; i < count && rc == 0; i++) {
		size_t size, start;
		const char *text = token_text(t, tokens[i], &size);

		if (!text || (skip_special && bdx_tokenizer_is_special(t, tokens[i])))
			continue;
		if (!t->has_decoder && run->other_pieces.count)
			bd_buffer_append(&run->text, " ", 1);
		start = run->text.size;
		bd_buffer_append(&run->text, text, size);
		if (run->text.failed)
			rc = bdx_run_nomem(run);
		else
			rc = bdx_run_add_piece(run, (struct bdx_piece){
				.start = start, .end = run->text.size, .token = -1 });
	}
	bdx_run_swap_pieces(run);
	return rc;
}

int bdx_tokenizer_decode(const struct bdx_tokenizer *t, const int32_t *tokens, size_t count,
			 bool skip_special, char **text, size_t *size, struct bd_error *err)
{
	struct bdx_run run;
	int rc;

	*text = NULL;
	bdx_run_init(&run, t, 0, err);
	rc = collect(t, &run, tokens, count, skip_special);
	run.text_limit += GROWTH * run.text.size;
	if (rc == 0)
		rc = bdx_decode(&t->decoder, &run);
	if (rc == 0)
		rc = bdx_run_check(&run, &run.text);
	if (rc == 0) {
		*text = run.text.data;
		if (size)
			*size = run.text.size;
		run.text.data = NULL;
	}
	bdx_run_free(&run);
	return rc;
}
