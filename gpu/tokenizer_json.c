/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer_json.c: reading tokenizer.json, see tokenizer_impl.h.
 *
 * The members of an object come in any order, and what they mean depends on its "type": so the
 * reader marks where the values of the known members begin, and then reads them one by one. Unknown
 * members are passed over, as the package does; unknown types are refused. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"

#define MAX_ADDED_TEXT 512 /* bytes of an added token: bounds the time of looking for them */
#define MAX_MERGES ((size_t)1 << 28)

/* --- Members of objects --- */

int bdx_json_mark(struct bd_json *j, const char *const *keys, struct bd_json *marks, size_t count)
{
	char key[BDX_MAX_KEY];
	int rc = bd_json_object(j);

	for (size_t i = 0; i < count; i++)
		marks[i] = (struct bd_json){ .text = NULL };
	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		for (size_t i = 0; i < count; i++) {
			if (strcmp(keys[i], key) != 0)
				continue;
			if (marks[i].text)
				return bd_json_fail(j, "key \"%s\" for the second time", key);
			if (bd_json_peek(j) != BD_JSON_NULL)
				marks[i] = *j;
		}
		rc = bd_json_skip(j);
	}
	return rc;
}

int bdx_json_need(struct bd_json *object, struct bd_json *mark, const char *key)
{
	return mark->text ? 0 : bd_json_fail(object, "\"%s\" is missing", key);
}

int bdx_json_bool(struct bd_json *mark, bool *value)
{
	return mark->text ? bd_json_bool(mark, value) : 0;
}

int bdx_json_string(struct bd_json *mark, char **text, size_t *size)
{
	*text = NULL;
	*size = 0;
	return mark->text ? bd_json_string_dup(mark, text, size) : 0;
}

int bdx_json_token(struct bd_json *j, int32_t *token)
{
	uint64_t number;
	int rc = bd_json_u64(j, &number);

	if (rc == 0 && number >= (uint64_t)BDX_MAX_TOKEN)
		rc = bd_json_fail(j,
				  "a token's number is %llu, and %d is the largest that is allowed",
				  (unsigned long long)number, BDX_MAX_TOKEN - 1);
	*token = rc ? -1 : (int32_t)number;
	return rc;
}

int bdx_json_unsupported(struct bdx_reader *r, const char *what, const char *type)
{
	char shown[80];
	size_t i;

	for (i = 0; type[i] && i + 1 < sizeof(shown); i++)
		shown[i] = (unsigned char)type[i] < 0x20 || type[i] == 0x7f ? '?' : type[i];
	shown[i] = '\0';
	return bd_error_set(r->err, -ENOTSUP, "%s: the %s %s is not supported", r->t->name, what,
			    shown);
}

static void count_token(struct bdx_tokenizer *t, int32_t token)
{
	if (t->size <= (uint32_t)token)
		t->size = (uint32_t)token + 1;
}

/* --- Model --- */

static int read_vocabulary(struct bdx_reader *r, struct bd_json *j)
{
	struct bdx_bpe *bpe = &r->t->bpe;
	size_t used = 0, length;
	int rc = bd_json_object(j);

	/* All texts, each shorter than what stands for it in the file. */
	bpe->arena = malloc(r->size + 1);
	if (!bpe->arena)
		return bd_error_set(r->err, -ENOMEM, "%s: out of memory", r->t->name);
	while (rc == 0 &&
	       (rc = bd_json_member(j, bpe->arena + used, r->size + 1 - used, &length)) > 0) {
		struct bdx_token *data = bdx_grow(bpe->tokens, bpe->count, &bpe->capacity,
						  sizeof(*data));

		if (!data)
			return bd_error_set(r->err, -ENOMEM, "%s: out of memory", r->t->name);
		bpe->tokens = data;
		data += bpe->count;
		data->text = bpe->arena + used;
		data->size = (uint32_t)length;
		rc = bdx_json_token(j, &data->number);
		if (rc == 0) {
			count_token(r->t, data->number);
			bpe->count++;
			used += length + 1;
		}
	}
	return rc ? rc : bdx_bpe_index(bpe, r->t->name, r->err);
}

/* One merge, "LEFT RIGHT" or ["LEFT","RIGHT"], as two texts in `text`. 1, or 0 for a line that is a
 * comment. */
static int read_pair(struct bd_json *j, char *text, size_t capacity, const char **right,
		     size_t size[2])
{
	size_t length;
	char *space;
	int rc;

	if (bd_json_peek(j) == BD_JSON_ARRAY) {
		size[1] = 0;
		rc = bd_json_array(j);
		for (unsigned i = 0; rc == 0 && (rc = bd_json_item(j)) > 0; i++) {
			if (i == 2)
				return bd_json_fail(j, "a merge has two parts");
			*right = text;
			rc = bd_json_string(j, text, capacity, &size[i]);
			text += rc ? 0 : size[i];
			capacity -= rc ? 0 : size[i];
		}
		if (rc == 0 && size[1] == 0)
			rc = bd_json_fail(j, "a merge has two parts");
		return rc ? rc : 1;
	}
	rc = bd_json_string(j, text, capacity, &length);
	if (rc)
		return rc;
	if (strncmp(text, "#version", 8) == 0)
		return 0;
	space = memchr(text, ' ', length);
	if (!space || memchr(space + 1, ' ', length - (size_t)(space + 1 - text)))
		return bd_json_fail(j, "a merge is two tokens with one space between them");
	size[0] = (size_t)(space - text);
	size[1] = length - size[0] - 1;
	memmove(space, space + 1, size[1]);
	*right = space;
	return 1;
}

static int read_merges(struct bdx_reader *r, struct bd_json *j)
{
	const struct bdx_bpe *bpe = &r->t->bpe;
	struct bdx_merge *merges = NULL, *data;
	size_t count = 0, capacity = 0, size[2] = { 0 };
	const char *right = NULL;
	char *text = malloc(r->size + 1);
	int rc = text ? bd_json_array(j) : -ENOMEM;

	if (!text)
		bd_error_set(r->err, rc, "%s: out of memory", r->t->name);
	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		int32_t left_token, right_token, token;

		rc = read_pair(j, text, r->size + 1, &right, size);
		if (rc <= 0)
			continue;
		left_token = bdx_bpe_find(bpe, text, size[0]);
		right_token = bdx_bpe_find(bpe, right, size[1]);
		token = bdx_bpe_find(bpe, text, size[0] + size[1]);
		if (left_token < 0 || right_token < 0 || token < 0) {
			rc = bd_json_fail(j, "merge %zu is of tokens, or gives one, that the "
					  "vocabulary does not have", count);
			break;
		}
		data = bdx_grow(merges, count, &capacity, sizeof(*data));
		if (!data || count == MAX_MERGES) {
			rc = bd_error_set(r->err, -ENOMEM, "%s: no memory for more than %zu merges",
					  r->t->name, count);
			break;
		}
		merges = data;
		merges[count] = (struct bdx_merge){
			.pair = (uint64_t)(uint32_t)left_token << 32 | (uint32_t)right_token,
			.rank = (uint32_t)count, .token = token,
		};
		count++;
		rc = 0;
	}
	if (rc == 0)
		rc = bdx_bpe_index_merges(&r->t->bpe, merges, count, r->t->name, r->err);
	free(merges);
	free(text);
	return rc;
}

/* An affix that some models put at their tokens: only the empty one is known here. */
static int refuse_affix(struct bdx_reader *r, struct bd_json *mark, const char *key)
{
	char *text;
	size_t size;
	int rc = bdx_json_string(mark, &text, &size);

	free(text);
	return rc == 0 && size ? bdx_json_unsupported(r, "option of the model", key) : rc;
}

static int read_model(struct bdx_reader *r, struct bd_json *j)
{
	enum { KIND, DROPOUT, UNK, PREFIX, SUFFIX, FUSE, FALLBACK, IGNORE, VOCAB, MERGES, COUNT };
	static const char *const keys[COUNT] = {
		"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
		"fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges",
	};
	struct bdx_bpe *bpe = &r->t->bpe;
	struct bd_json marks[COUNT];
	char type[BDX_MAX_KEY] = "BPE"; /* files before version 0.9 of the package have none */
	double dropout = 0;
	size_t size;
	int rc = bdx_json_mark(j, keys, marks, COUNT);

	if (rc == 0 && marks[KIND].text)
		rc = bd_json_string(&marks[KIND], type, sizeof(type), NULL);
	if (rc == 0 && strcmp(type, "BPE") != 0)
		rc = bdx_json_unsupported(r, "model", type);
	if (rc == 0 && marks[DROPOUT].text)
		rc = bd_json_number(&marks[DROPOUT], &dropout);
	if (rc == 0 && dropout != 0)
		rc = bdx_json_unsupported(r, "option of the model", "dropout");
	if (rc == 0)
		rc = refuse_affix(r, &marks[PREFIX], keys[PREFIX]);
	if (rc == 0)
		rc = refuse_affix(r, &marks[SUFFIX], keys[SUFFIX]);
	if (rc == 0)
		rc = bdx_json_string(&marks[UNK], &bpe->unk_text, &size);
	if (rc == 0)
		rc = bdx_json_bool(&marks[FUSE], &bpe->fuse_unk);
	if (rc == 0)
		rc = bdx_json_bool(&marks[FALLBACK], &bpe->byte_fallback);
	if (rc == 0)
		rc = bdx_json_bool(&marks[IGNORE], &bpe->ignore_merges);
	for (size_t i = VOCAB; i < COUNT && rc == 0; i++)
		rc = bdx_json_need(j, &marks[i], keys[i]);
	if (rc == 0)
		rc = read_vocabulary(r, &marks[VOCAB]);
	return rc ? rc : read_merges(r, &marks[MERGES]);
}

/* --- Added tokens --- */

/* Number an added token as the package does, whatever the file says: by the vocabulary where that
 * has it, otherwise after all others. */
static int32_t number_added(const struct bdx_tokenizer *t, const struct bdx_added *new,
			    int32_t largest)
{
	int32_t token = bdx_bpe_find(&t->bpe, new->text, new->size), count = (int32_t)t->bpe.count;

	if (token >= 0)
		return token;
	return largest >= count || (count == 0 && largest >= 0) ? largest + 1 : count;
}

static int read_added(struct bdx_reader *r, struct bd_json *j)
{
	enum { CONTENT_, SINGLE, LSTRIP, RSTRIP, NORMALIZED, SPECIAL, COUNT };
	static const char *const keys[COUNT] = {
		"content", "single_word", "lstrip", "rstrip", "normalized", "special",
	};
	struct bdx_added_tokens *added = &r->t->added;
	struct bd_json marks[COUNT];
	int32_t largest = -1;
	int rc = bd_json_array(j);

	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		struct bdx_added *new = bdx_grow(added->data, added->count, &added->capacity,
						 sizeof(*new));
		bool *flags[COUNT];

		if (!new)
			return bd_error_set(r->err, -ENOMEM, "%s: out of memory", r->t->name);
		added->data = new;
		new += added->count;
		*new = (struct bdx_added){ .normalized = true };
		rc = bdx_json_mark(j, keys, marks, COUNT);
		if (rc == 0)
			rc = bdx_json_need(j, &marks[CONTENT_], keys[CONTENT_]);
		if (rc == 0)
			rc = bdx_json_string(&marks[CONTENT_], &new->text, &new->size);
		if (rc)
			return rc;
		added->count++;
		if (new->size > MAX_ADDED_TEXT)
			return bd_json_fail(j, "an added token of more than %d bytes",
					    MAX_ADDED_TEXT);
		flags[SINGLE] = &new->single_word;
		flags[LSTRIP] = &new->lstrip;
		flags[RSTRIP] = &new->rstrip;
		flags[NORMALIZED] = &new->normalized;
		flags[SPECIAL] = &new->special;
		for (size_t i = SINGLE; i < COUNT && rc == 0; i++)
			rc = bdx_json_bool(&marks[i], flags[i]);
		if (new->size == 0) { /* the package passes over it */
			free(new->text);
			added->count--;
			continue;
		}
		new->token = number_added(r->t, new, largest);
		if (new->token >= BDX_MAX_TOKEN)
			return bd_json_fail(j, "too many tokens");
		if (new->token > largest)
			largest = new->token;
		count_token(r->t, new->token);
	}
	return rc;
}

/* --- The file --- */

static int index_added(struct bdx_reader *r)
{
	struct bdx_added_tokens *added = &r->t->added;
	struct bdx_run run;
	int rc;

	bdx_run_init(&run, r->t, MAX_ADDED_TEXT * (added->count + 1), r->err);
	rc = bdx_added_index(added, &r->t->normalizer, &run);
	bdx_run_free(&run);
	for (size_t i = 1; i < added->count && rc == 0; i++) {
		const struct bdx_added *a = &added->data[i - 1], *b = &added->data[i];

		if (a->size == b->size && memcmp(a->text, b->text, a->size) == 0)
			rc = bd_error_set(r->err, -EINVAL,
					  "%s: the added tokens %d and %d have the same text",
					  r->t->name, a->token, b->token);
	}
	return rc;
}

int bdx_tokenizer_read(struct bdx_tokenizer *t, const char *json, size_t size, struct bd_error *err)
{
	enum { POST_PROCESSOR = BDX_DECODER + 1, MODEL, ADDED, COUNT };
	static const char *const keys[COUNT] = {
		[BDX_NORMALIZER] = "normalizer", [BDX_PRETOKENIZER] = "pre_tokenizer",
		[BDX_DECODER] = "decoder", [POST_PROCESSOR] = "post_processor", [MODEL] = "model",
		[ADDED] = "added_tokens",
	};
	struct bdx_steps *steps[] = {
		[BDX_NORMALIZER] = &t->normalizer, [BDX_PRETOKENIZER] = &t->pretokenizer,
		[BDX_DECODER] = &t->decoder,
	};
	struct bdx_reader r = { .t = t, .err = err, .size = size };
	struct bd_json j, marks[COUNT];
	int rc;

	bd_json_init(&j, json, size, t->name, 0, err);
	rc = bdx_json_mark(&j, keys, marks, COUNT);
	if (rc == 0)
		rc = bd_json_end(&j);
	for (unsigned i = BDX_NORMALIZER; i <= BDX_DECODER && rc == 0; i++)
		if (marks[i].text)
			rc = bdx_parts_read(&r, &marks[i], (enum bdx_part)i, steps[i]);
	t->has_decoder = marks[BDX_DECODER].text != NULL;
	if (rc == 0 && marks[POST_PROCESSOR].text)
		rc = bdx_parts_read_post_processor(&r, &marks[POST_PROCESSOR]);
	if (rc == 0)
		rc = bdx_json_need(&j, &marks[MODEL], "model");
	if (rc == 0)
		rc = read_model(&r, &marks[MODEL]);
	if (rc == 0 && marks[ADDED].text)
		rc = read_added(&r, &marks[ADDED]);
	return rc ? rc : index_added(&r);
}
