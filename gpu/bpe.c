/* SPDX-License-Identifier: Apache-2.0 */
/* bpe.c: byte pair encoding: the vocabulary, the merges, and a word turned into tokens; see
 * tokenizer_impl.h.
 *
 * A word begins as its characters. Of all neighbours that may be merged, those with the lowest rank
 * are, leftmost first, until none is left (Sennrich et al., 2016, section 3.2). The candidates wait
 * in a heap: n characters take O(n log n) steps. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tokenizer_impl.h"
#include "utf8.h"

#define BDX_DIRECT 0x800 /* characters below are looked up in an array */
#define NONE UINT32_MAX
#define MERGES_UNWATCHED 65536 /* at most before the clock is looked at */

struct bdx_symbol {
	int32_t token; /* -1: merged into an earlier one */
	uint32_t previous, next; /* neighbours, or NONE */
};

struct bdx_candidate {
	uint32_t rank, at; /* at: the left one of the two */
	int32_t token;     /* that they become */
};

/* --- Tables --- */

static uint64_t hash_text(const struct bdx_bpe *bpe, const char *text, size_t size)
{
	return XXH3_64bits_withSeed(text, size, bpe->seed);
}

int32_t bdx_bpe_find(const struct bdx_bpe *bpe, const char *text, size_t size)
{
	for (uint64_t i = hash_text(bpe, text, size);; i++) {
		uint32_t slot = bpe->slots[i & bpe->slot_mask];
		const struct bdx_token *t = &bpe->tokens[slot - (slot != 0)];

		if (slot == 0)
			return -1;
		if (t->size == size && memcmp(t->text, text, size) == 0)
			return t->number;
	}
}

const struct bdx_token *bdx_bpe_token(const struct bdx_bpe *bpe, int32_t number)
{
	size_t low = 0, high = bpe->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (bpe->tokens[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < bpe->count && bpe->tokens[low].number == number ? &bpe->tokens[low] : NULL;
}

static const struct bdx_merge *find_merge(const struct bdx_bpe *bpe, int32_t left, int32_t right)
{
	uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

	for (uint64_t i = XXH3_64bits_withSeed(&pair, sizeof(pair), bpe->seed);; i++) {
		const struct bdx_merge *m = &bpe->merges[i & bpe->merge_mask];

		if (m->pair == pair)
			return m;
		if (m->pair == UINT64_MAX)
			return NULL;
	}
}

static int compare_numbers(const void *a, const void *b)
{
	const struct bdx_token *x = a, *y = b;

	return (x->number > y->number) - (x->number < y->number);
}

/* A power of two of slots of which `count` fill at most half. */
static size_t slots_for(size_t count)
{
	size_t slots = 16;

	while (slots < 2 * count)
		slots *= 2;
	return slots;
}

int bdx_bpe_index(struct bdx_bpe *bpe, const char *name, struct bd_error *err)
{
	size_t slots = slots_for(bpe->count);
	char text[64]; /* 8 would do, but not for the warnings of gcc -O3, which sees the hash read more */

	if (getrandom(&bpe->seed, sizeof(bpe->seed), 0) != sizeof(bpe->seed))
		bpe->seed = (uintptr_t)bpe->tokens;
	bpe->slots = calloc(slots, sizeof(*bpe->slots));
	bpe->characters = malloc(BDX_DIRECT * sizeof(*bpe->characters));
	if (!bpe->slots || !bpe->characters)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", name);
	bpe->slot_mask = slots - 1;
	if (bpe->count)
		qsort(bpe->tokens, bpe->count, sizeof(*bpe->tokens), compare_numbers);
	for (size_t i = 0; i < bpe->count; i++) {
		const struct bdx_token *t = &bpe->tokens[i];
		uint64_t at = hash_text(bpe, t->text, t->size);

		if (i && t->number == t[-1].number)
			return bd_error_set(err, -EINVAL, "%s: two tokens have the number %d", name,
					    t->number);
		if (bdx_bpe_find(bpe, t->text, t->size) >= 0)
			return bd_error_set(err, -EINVAL,
					    "%s: the tokens %d and %d have the same text", name,
					    bdx_bpe_find(bpe, t->text, t->size), t->number);
		while (bpe->slots[at & bpe->slot_mask])
			at++;
		bpe->slots[at & bpe->slot_mask] = (uint32_t)i + 1;
	}
	for (uint32_t code = 0; code < BDX_DIRECT; code++)
		bpe->characters[code] = bdx_bpe_find(bpe, text, bd_utf8_encode(code, text));
	for (unsigned byte = 0; byte < 256; byte++)
		bpe->bytes[byte] = bdx_bpe_find(bpe, text, (size_t)snprintf(text, sizeof(text),
									    "<0x%02X>", byte));
	bpe->unk = bpe->unk_text ? bdx_bpe_find(bpe, bpe->unk_text, strlen(bpe->unk_text)) : -1;
	return 0;
}

int bdx_bpe_index_merges(struct bdx_bpe *bpe, const struct bdx_merge *merges, size_t count,
			 const char *name, struct bd_error *err)
{
	size_t slots = slots_for(count);

	bpe->merges = malloc(slots * sizeof(*bpe->merges));
	if (!bpe->merges)
		return bd_error_set(err, -ENOMEM, "%s: out of memory for %zu merges", name, count);
	memset(bpe->merges, 0xff, slots * sizeof(*bpe->merges));
	bpe->merge_mask = slots - 1;
	for (size_t i = 0; i < count; i++) {
		uint64_t pair = merges[i].pair;
		uint64_t at = XXH3_64bits_withSeed(&pair, sizeof(pair), bpe->seed);

		/* Of the same pair twice the later one counts. */
		while (bpe->merges[at & bpe->merge_mask].pair != UINT64_MAX &&
		       bpe->merges[at & bpe->merge_mask].pair != pair)
			at++;
		bpe->merges[at & bpe->merge_mask] = merges[i];
	}
	return 0;
}

void bdx_bpe_free(struct bdx_bpe *bpe)
{
	free(bpe->arena);
	free(bpe->tokens);
	free(bpe->slots);
	free(bpe->merges);
	free(bpe->characters);
	free(bpe->unk_text);
}

/* --- Words --- */

static bool is_before(const struct bdx_candidate *a, const struct bdx_candidate *b)
{
	return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void sift_down(struct bdx_candidate *heap, size_t count, size_t i)
{
	struct bdx_candidate moving = heap[i];

	for (size_t child; (child = 2 * i + 1) < count; i = child) {
		if (child + 1 < count && is_before(&heap[child + 1], &heap[child]))
			child++;
		if (!is_before(&heap[child], &moving))
			break;
		heap[i] = heap[child];
	}
	heap[i] = moving;
}

static void push(struct bdx_candidate *heap, size_t count, struct bdx_candidate new)
{
	size_t i = count;

	for (size_t parent; i && (parent = (i - 1) / 2, is_before(&new, &heap[parent])); i = parent)
		heap[i] = heap[parent];
	heap[i] = new;
}

/* The symbols `at` and the next one, if they may be merged, into heap[*count]. */
static bool candidate(const struct bdx_bpe *bpe, const struct bdx_symbol *s, uint32_t at,
		      struct bdx_candidate *new)
{
	const struct bdx_merge *m;

	if (s[at].next == NONE)
		return false;
	m = find_merge(bpe, s[at].token, s[s[at].next].token);
	if (m)
		*new = (struct bdx_candidate){ .rank = m->rank, .at = at, .token = m->token };
	return m != NULL;
}

/* Merge what can be merged. The heap has room for 3 candidates a symbol: there is one for each pair
 * in the beginning, and a merge takes one away and adds two. */
static int merge_all(const struct bdx_bpe *bpe, struct bdx_run *run, uint32_t symbols)
{
	struct bdx_symbol *s = run->symbols;
	struct bdx_candidate *heap = run->heap, new;
	size_t count = 0;
	int rc = 0;

	for (uint32_t i = 0; i + 1 < symbols; i++)
		if (candidate(bpe, s, i, &heap[count]))
			count++;
	for (size_t i = count / 2; i-- > 0;)
		sift_down(heap, count, i);
	for (size_t merges = 1; count && rc == 0; merges++) {
		struct bdx_candidate top = heap[0];
		struct bdx_symbol *left = &s[top.at];
		uint32_t right;

		if (merges % MERGES_UNWATCHED == 0)
			rc = bdx_run_clock(run);
		heap[0] = heap[--count];
		if (count)
			sift_down(heap, count, 0);
		/* Has one of the two become something else in the meantime? */
		if (left->token < 0 || !candidate(bpe, s, top.at, &new) || new.token != top.token)
			continue;
		right = left->next;
		left->token = top.token;
		left->next = s[right].next;
		s[right].token = -1;
		if (left->next != NONE)
			s[left->next].previous = top.at;
		if (left->previous != NONE && candidate(bpe, s, left->previous, &new))
			push(heap, count++, new);
		if (candidate(bpe, s, top.at, &new))
			push(heap, count++, new);
	}
	return rc;
}

/* The beginning of a word: a symbol for each character, for each byte of one that the vocabulary
 * does not have, or for what is unknown. */
static int begin_word(const struct bdx_bpe *bpe, struct bdx_run *run, const char *text, size_t size,
		      uint32_t *count)
{
	struct bdx_symbol *s = run->symbols;
	uint32_t n = 0, code;
	bool unknown = false; /* waits for the next known character, as in the package */

	for (size_t i = 0, length; i < size; i += length) {
		int32_t token;
		bool fall_back = bpe->byte_fallback;

		length = bdx_unicode_next(text + i, &code);
		token = code < BDX_DIRECT ? bpe->characters[code]
					  : bdx_bpe_find(bpe, text + i, length);
		if (token >= 0) {
			if (unknown)
				s[n++].token = bpe->unk;
			unknown = false;
			s[n++].token = token;
			continue;
		}
		for (size_t k = 0; k < length && fall_back; k++)
			fall_back = bpe->bytes[(unsigned char)text[i + k]] >= 0;
		if (fall_back) {
			for (size_t k = 0; k < length; k++)
				s[n++].token = bpe->bytes[(unsigned char)text[i + k]];
		} else if (bpe->unk_text) {
			if (bpe->unk < 0)
				return bd_error_set(run->err, -EINVAL,
						    "%s: the text has unknown characters, and the "
						    "vocabulary no token '%.80s'",
						    run->name, bpe->unk_text);
			if (unknown && !bpe->fuse_unk)
				s[n++].token = bpe->unk;
			unknown = true;
		}
	}
	if (unknown)
		s[n++].token = bpe->unk;
	for (uint32_t i = 0; i < n; i++) {
		s[i].previous = i ? i - 1 : NONE;
		s[i].next = i + 1 < n ? i + 1 : NONE;
	}
	*count = n;
	return 0;
}

/* Room for a word of `size` bytes. */
static int reserve(struct bdx_run *run, size_t size)
{
	struct bdx_symbol *symbols;
	struct bdx_candidate *heap;

	if (size <= run->symbols_capacity)
		return 0;
	size += size / 2 + 64;
	symbols = realloc(run->symbols, size * sizeof(*symbols));
	if (!symbols)
		return bdx_run_nomem(run);
	run->symbols = symbols;
	heap = realloc(run->heap, 3 * size * sizeof(*heap));
	if (!heap)
		return bdx_run_nomem(run);
	run->heap = heap;
	run->symbols_capacity = size;
	return 0;
}

int bdx_bpe_encode(const struct bdx_bpe *bpe, struct bdx_run *run, const char *text, size_t size)
{
	uint32_t count = 0;
	int32_t whole;
	int rc;

	if (bpe->ignore_merges) {
		whole = bdx_bpe_find(bpe, text, size);
		if (whole >= 0)
			return bdx_run_add_id(run, whole);
	}
	rc = reserve(run, size);
	if (rc == 0)
		rc = begin_word(bpe, run, text, size, &count);
	if (rc)
		return rc;
	rc = merge_all(bpe, run, count);
	for (uint32_t i = 0; i < count && rc == 0; i++)
		if (run->symbols[i].token >= 0)
			rc = bdx_run_add_id(run, run->symbols[i].token);
	return rc;
}
