/* SPDX-License-Identifier: Apache-2.0 */
/* added.c: added tokens, which are found in a text before it is cut into words; see
 * tokenizer_impl.h.
 *
 * Of all that begin at the leftmost place the longest is taken. The texts to look for are kept
 * sorted, and the candidates at a place narrowed down byte by byte: as fast as a trie, and no data
 * structure that a file with many long tokens could blow up. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"

struct bdx_added_text {
	char *text;
	size_t size;
	const struct bdx_added *added;
};

static int compare(const char *a, size_t a_size, const char *b, size_t b_size)
{
	int order = memcmp(a, b, a_size < b_size ? a_size : b_size);

	return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int compare_added(const void *a, const void *b)
{
	const struct bdx_added *x = a, *y = b;

	return compare(x->text, x->size, y->text, y->size);
}

/* Equal texts (two tokens that a normalizer makes the same): special tokens first, then by number,
 * which is the order of the file. */
static int compare_texts(const void *a, const void *b)
{
	const struct bdx_added_text *x = a, *y = b;
	int order = compare(x->text, x->size, y->text, y->size);

	if (order == 0)
		order = y->added->special - x->added->special;
	if (order == 0)
		order = (x->added->token > y->added->token) - (x->added->token < y->added->token);
	return order;
}

static int compare_numbers(const void *a, const void *b)
{
	const struct bdx_added *x = *(struct bdx_added *const *)a;
	const struct bdx_added *y = *(struct bdx_added *const *)b;

	return (x->token > y->token) - (x->token < y->token);
}

static void free_set(struct bdx_added_set *set)
{
	for (size_t i = 0; i < set->count; i++)
		free(set->texts[i].text);
	free(set->texts);
}

void bdx_added_free(struct bdx_added_tokens *added)
{
	free_set(&added->raw);
	free_set(&added->normalized);
	for (size_t i = 0; i < added->count; i++)
		free(added->data[i].text);
	free(added->data);
	free(added->by_number);
	bdx_pattern_close(added->word);
}

const struct bdx_added *bdx_added_find(const struct bdx_added_tokens *added, const char *text,
				       size_t size)
{
	struct bdx_added key = { .text = (char *)text, .size = size };

	if (added->count == 0)
		return NULL;
	return bsearch(&key, added->data, added->count, sizeof(key), compare_added);
}

const struct bdx_added *bdx_added_by_number(const struct bdx_added_tokens *added, int32_t token)
{
	size_t low = 0, high = added->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (added->by_number[middle]->token < token)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == added->count || added->by_number[low]->token != token)
		return NULL;
	return added->by_number[low];
}

static int add_text(struct bdx_added_set *set, const struct bdx_added *added,
		    const struct bdx_steps *normalizer, struct bdx_run *run)
{
	struct bdx_added_text *t = &set->texts[set->count];
	const char *text = added->text;
	bool first = true;

	t->size = added->size;
	if (added->normalized) {
		int rc;

		run->other_text.size = 0;
		rc = bdx_normalize(normalizer, run, added->text, added->size, &first);
		if (rc)
			return rc;
		text = run->other_text.data;
		t->size = run->other_text.size;
	}
	if (t->size == 0)
		return 0;
	t->text = malloc(t->size);
	if (!t->text)
		return bdx_run_nomem(run);
	memcpy(t->text, text, t->size);
	t->added = added;
	set->first[(unsigned char)t->text[0]] = true;
	set->count++;
	return 0;
}

static int fill_set(struct bdx_added_set *set, const struct bdx_added_tokens *added,
		    bool normalized, const struct bdx_steps *normalizer, struct bdx_run *run)
{
	size_t unique = 0;

	set->texts = calloc(added->count + 1, sizeof(*set->texts));
	if (!set->texts)
		return bdx_run_nomem(run);
	for (size_t i = 0; i < added->count; i++) {
		int rc = added->data[i].normalized == normalized ?
			 add_text(set, &added->data[i], normalizer, run) : 0;

		if (rc)
			return rc;
	}
	qsort(set->texts, set->count, sizeof(*set->texts), compare_texts);
	for (size_t i = 0; i < set->count; i++) {
		struct bdx_added_text *t = &set->texts[i], *last = set->texts + unique - !!unique;

		if (unique && compare(t->text, t->size, last->text, last->size) == 0)
			free(t->text);
		else
			set->texts[unique++] = *t;
	}
	set->count = unique;
	return 0;
}

int bdx_added_index(struct bdx_added_tokens *added, const struct bdx_steps *normalizer,
		    struct bdx_run *run)
{
	/* What the package's other engine of regular expressions calls a character of a word. */
	static const char word[] = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
	bool single = false;
	int rc = 0;

	added->by_number = calloc(added->count + 1, sizeof(*added->by_number));
	if (!added->by_number)
		return bdx_run_nomem(run);
	if (added->count)
		qsort(added->data, added->count, sizeof(*added->data), compare_added);
	for (size_t i = 0; i < added->count; i++) {
		single = single || added->data[i].single_word;
		added->by_number[i] = &added->data[i];
	}
	qsort(added->by_number, added->count, sizeof(*added->by_number), compare_numbers);
	if (single)
		rc = bdx_pattern_open(&added->word, word, sizeof(word) - 1, false, run->name,
				      run->err);
	if (rc == 0)
		rc = fill_set(&added->raw, added, false, normalizer, run);
	if (rc == 0)
		rc = fill_set(&added->normalized, added, true, normalizer, run);
	return rc;
}

/* The longest text of the set with which `text` begins, or NULL. */
static const struct bdx_added_text *longest(const struct bdx_added_set *set, const char *text,
					    size_t size)
{
	const struct bdx_added_text *found = NULL;
	size_t low = 0, high = set->count;

	for (size_t depth = 0; low < high; depth++) {
		unsigned char c;
		size_t a, b;

		if (set->texts[low].size == depth)
			found = &set->texts[low++];
		if (depth == size)
			break;
		c = (unsigned char)text[depth];
		/* Those with c here: the texts from low to high are equal up to this depth. */
		for (a = low, b = high; a < b;) {
			size_t middle = a + (b - a) / 2;

			if ((unsigned char)set->texts[middle].text[depth] < c)
				a = middle + 1;
			else
				b = middle;
		}
		low = a;
		for (b = high; a < b;) {
			size_t middle = a + (b - a) / 2;

			if ((unsigned char)set->texts[middle].text[depth] <= c)
				a = middle + 1;
			else
				b = middle;
		}
		high = a;
	}
	return found;
}

/* Is the character at text[at] part of a word? */
static int is_word(const struct bdx_added_tokens *added, struct bdx_run *run, const char *text,
		   size_t at)
{
	uint32_t code;
	unsigned length = bdx_unicode_next(text + at, &code);
	int rc = bdx_pattern_split(added->word, run, text + at, length);

	return rc ? rc : run->spans.data[0].match;
}

/* 1 where text[start] to text[end] stands between characters that belong to no word. */
static int stands_alone(const struct bdx_added_tokens *added, struct bdx_run *run, const char *text,
			size_t size, size_t start, size_t end)
{
	int before = start ? is_word(added, run, text, bdx_unicode_previous(text, start)) : 0;
	int after = end < size ? is_word(added, run, text, end) : 0;

	if (before < 0 || after < 0)
		return before < 0 ? before : after;
	return !before && !after;
}

static int split_piece(const struct bdx_added_tokens *added, const struct bdx_added_set *set,
		       struct bdx_run *run, const struct bdx_piece *whole)
{
	const char *text = run->text.data + whole->start;
	size_t size = whole->end - whole->start, done = 0;
	int rc = 0;

	for (size_t at = 0; at < size && rc == 0;) {
		const struct bdx_added_text *found = set->first[(unsigned char)text[at]] ?
						     longest(set, text + at, size - at) : NULL;
		size_t start = at, end;
		uint32_t code;

		if (!found) {
			at++;
			continue;
		}
		end = at += found->size;
		if (found->added->single_word) {
			rc = stands_alone(added, run, text, size, start, end);
			if (rc <= 0)
				continue;
		}
		while (found->added->lstrip && start > done) {
			size_t previous = bdx_unicode_previous(text, start);

			bdx_unicode_next(text + previous, &code);
			if (!bdx_unicode_is_space(code))
				break;
			start = previous;
		}
		if (found->added->rstrip && end < done)
			end = done; /* the token before has stripped these spaces already */
		while (found->added->rstrip && end < size) {
			unsigned length = bdx_unicode_next(text + end, &code);

			if (!bdx_unicode_is_space(code))
				break;
			end += length;
		}
		rc = start <= done ? 0 : bdx_run_add_piece(run, (struct bdx_piece){
			.start = whole->start + done, .end = whole->start + start, .token = -1,
			.first = whole->first && done == 0 });
		if (rc == 0)
			rc = bdx_run_add_piece(run, (struct bdx_piece){
				.start = whole->start + start, .end = whole->start + end,
				.token = found->added->token });
		done = end;
	}
	if (rc == 0 && done < size)
		rc = bdx_run_add_piece(run, (struct bdx_piece){
			.start = whole->start + done, .end = whole->end, .token = -1,
			.first = whole->first && done == 0 });
	return rc;
}

int bdx_added_split(const struct bdx_added_tokens *added, const struct bdx_added_set *set,
		    struct bdx_run *run)
{
	int rc = 0;

	if (set->count == 0)
		return 0;
	for (size_t i = 0; i < run->pieces.count && rc == 0; i++) {
		const struct bdx_piece *piece = &run->pieces.data[i];

		rc = piece->token >= 0 ? bdx_run_add_piece(run, *piece) :
		     split_piece(added, set, run, piece);
	}
	bdx_run_swap_pieces(run);
	return rc;
}
