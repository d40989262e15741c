/* SPDX-License-Identifier: Apache-2.0 */
/* calib.c: the windows of tokens that distillation learns from. See calib.h. */
#include "calib.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "file.h"
#include "general.h"
#include "json.h"

#define MAX_CALIB ((size_t)1 << 30) /* bytes of a user's file */
#define PART ((size_t)256 << 10)    /* of them are tokenized at a time, or a little more */
#define MAX_STARTS 4096             /* control tokens that text may begin with */
#define DRAWS 100                   /* places in the general text that may give no window */

void bdx_windows_free(struct bdx_windows *windows)
{
	free(windows->tokens);
	*windows = (struct bdx_windows){ 0 };
}

static int allocate(struct bdx_windows *windows, uint64_t count, uint64_t length,
		    struct bd_error *err)
{
	*windows = (struct bdx_windows){ .count = count, .length = length };
	windows->tokens = calloc(count * length + 1, sizeof(*windows->tokens));
	return windows->tokens ? 0 : bd_error_set(err, -ENOMEM, "out of memory");
}

/* SplitMix64 (Steele, Lea and Flood 2014) of a counter. */
static uint64_t mix(uint64_t seed, uint64_t index)
{
	uint64_t z = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

double bdx_uniform(uint64_t seed, uint64_t index)
{
	return (double)(mix(seed, index) >> 40) * 0x1p-24; /* exact as a float, too */
}

static uint64_t below(uint64_t limit, uint64_t seed, uint64_t index)
{
	return mix(seed, index) % limit;
}

void bdx_windows_shuffle(struct bdx_windows *w, uint64_t seed)
{
	for (uint64_t i = w->count; i > 1; i--) {
		int32_t *a = w->tokens + (i - 1) * w->length;
		int32_t *b = w->tokens + below(i, seed, i) * w->length;

		for (uint64_t t = 0; t < w->length; t++) {
			int32_t other = a[t];

			a[t] = b[t];
			b[t] = other;
		}
	}
}

int bdx_windows_append(struct bdx_windows *to, const struct bdx_windows *from, uint64_t first,
		       uint64_t count, struct bd_error *err)
{
	size_t window = from->length * sizeof(*to->tokens);
	int32_t *grown;

	if (count == 0)
		return 0;
	grown = realloc(to->tokens, (to->count + count) * window);
	if (!grown)
		return bd_error_set(err, -ENOMEM, "out of memory");
	memcpy(grown + to->count * from->length, from->tokens + first * from->length,
	       count * window);
	to->tokens = grown;
	to->count += count;
	to->length = from->length;
	return 0;
}

static bool all_known(const int32_t *tokens, uint64_t length, uint64_t vocabulary)
{
	for (uint64_t i = 0; i < length; i++)
		if ((uint64_t)tokens[i] >= vocabulary)
			return false;
	return true;
}

void bdx_windows_restrict(struct bdx_windows *w, uint64_t vocabulary)
{
	uint64_t kept = 0;

	for (uint64_t i = 0; i < w->count; i++) {
		const int32_t *window = w->tokens + i * w->length;

		if (all_known(window, w->length, vocabulary))
			memmove(w->tokens + kept++ * w->length, window,
				w->length * sizeof(*window));
	}
	w->count = kept;
}

/* ---- Text that a model writes ---- */

/* What sequences may begin with. */
struct starts {
	int32_t begin;              /* BOS, or the token that ends texts; -1: none */
	int32_t *control;           /* control tokens that the chat template mentions */
	uint64_t control_count;
	const struct bdx_tokenizer *tokenizer;
	uint64_t vocabulary;
};

/* The control tokens that conversations consist of: those whose text stands in the chat
 * template. */
static int find_control(struct starts *starts, struct bdx_source *source, struct bd_error *err)
{
	static const char *const homes[] = { "chat_template.jinja", "tokenizer_config.json" };
	const struct bdx_tokenizer *t = starts->tokenizer;
	const char *template = NULL;
	char *texts[2] = { 0 }, *text;
	size_t size;
	int rc = 0;

	if (!t || !source)
		return 0;
	for (int i = 0; i < 2; i++)
		if (bdx_source_file(source, homes[i], &texts[i], &size, NULL) < 0)
			texts[i] = NULL;
	/* In tokenizer_config.json control tokens are named elsewhere, too; and they need no
	 * escapes. */
	template = texts[0] ? texts[0] : texts[1] ? strstr(texts[1], "\"chat_template\"") : NULL;
	if (!template)
		goto out;
	starts->control = malloc(MAX_STARTS * sizeof(*starts->control));
	if (!starts->control) {
		rc = bd_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	for (uint32_t i = 0; i < bdx_tokenizer_size(t) && starts->control_count < MAX_STARTS; i++) {
		int32_t token = (int32_t)i;

		if (i >= starts->vocabulary || !bdx_tokenizer_is_special(t, token))
			continue;
		rc = bdx_tokenizer_decode(t, &token, 1, false, &text, NULL, err);
		if (rc < 0)
			goto out;
		if (*text && strstr(template, text) && token != starts->begin)
			starts->control[starts->control_count++] = token;
		free(text);
	}
out:
	free(texts[0]);
	free(texts[1]);
	return rc;
}

/* A token of text, drawn evenly. */
static int32_t draw_text(const struct starts *s, uint64_t seed, uint64_t index)
{
	uint64_t limit = s->vocabulary;

	if (s->tokenizer && bdx_tokenizer_size(s->tokenizer) < limit)
		limit = bdx_tokenizer_size(s->tokenizer);
	for (uint64_t i = 0; limit > 0 && i < 64; i++) {
		int32_t token = (int32_t)below(limit, seed, index * 64 + i);

		if (!s->tokenizer || !bdx_tokenizer_is_special(s->tokenizer, token))
			return token;
	}
	return s->begin >= 0 ? s->begin : 0;
}

/* The first token of sequence `index`: every second one BOS; of the others every fourth a
 * control token of conversations, where there are any. */
static int32_t draw_start(const struct starts *s, uint64_t seed, uint64_t index)
{
	if (index % 2 == 0 && s->begin >= 0)
		return s->begin;
	if (index % 8 == 1 && s->control_count)
		return s->control[below(s->control_count, seed, index)];
	return draw_text(s, seed, index);
}

static void put_real(const struct bdx_ops *ops, void *vector, uint64_t index, double value)
{
	if (ops->real == BD_F64)
		((double *)vector)[index] = value;
	else
		((float *)vector)[index] = (float)value;
}

/* `count` sequences at once, into `tokens`: [count, length]. `first` is the number of the first
 * one; the watch sees what it is told to be done, of `total` tokens, before these. */
static int generate_some(struct bdx_model *model, struct bdx_decoder *decoder,
			 const struct starts *starts, uint64_t first, uint64_t count,
			 uint64_t length, uint64_t seed, int32_t *tokens, int32_t *column,
			 void *uniform, void *column_device, void *uniform_device,
			 uint64_t done, uint64_t total, const struct bd_watch *watch,
			 struct bd_error *err)
{
	struct bdx_ops *ops = model->ops;
	const struct bdx_config *config = model->config;
	void *logits;
	int rc = 0;

	bdx_decoder_reset(decoder);
	for (uint64_t i = 0; i < count; i++)
		tokens[i * length] = column[i] = draw_start(starts, seed, first + i);
	for (uint64_t t = 1; rc == 0 && t < length; t++) {
		rc = bdx_check_cancel(watch, err);
		if (rc < 0)
			break;
		for (uint64_t i = 0; i < count; i++)
			put_real(ops, uniform, i, bdx_uniform(seed ^ 0x5eed, (first + i) * length + t));
		ops->upload(ops, column_device, column, count * sizeof(*column));
		ops->upload(ops, uniform_device, uniform, count * bdx_real_size(ops));
		rc = bdx_decoder_append(decoder, column_device, 1, &logits, err);
		if (rc < 0)
			break;
		ops->sample(ops, column_device, logits, uniform_device, count, config->vocabulary, 1.0);
		ops->download(ops, column, column_device, count * sizeof(*column));
		rc = ops->finish(ops, err);
		/* After the end of a text another one begins. */
		for (uint64_t i = 0; i < count; i++) {
			int32_t before = tokens[i * length + t - 1];

			if (config->bos >= 0 && before != config->bos &&
			    bdx_config_is_end(config, before))
				column[i] = config->bos;
			tokens[i * length + t] = column[i];
		}
		bdx_progress(watch, done + t * count, total);
	}
	return rc;
}

uint64_t bdx_together(struct bdx_model *model, uint64_t count, uint64_t length)
{
	size_t memory = model->ops->available(model->ops) / 4 * 3;

	count = count < BDX_TOGETHER ? count : BDX_TOGETHER;
	while (count > 1 && bdx_decoder_bytes(model, count, length) > memory)
		count /= 2;
	return count;
}

int bdx_generate_windows(struct bdx_windows *windows, struct bdx_model *model,
			 struct bdx_source *source, const struct bdx_tokenizer *tokenizer,
			 uint64_t count, uint64_t length, uint64_t seed,
			 const struct bd_watch *watch, struct bd_error *err)
{
	struct bdx_ops *ops = model->ops;
	const struct bdx_config *config = model->config;
	struct starts starts = {
		.begin = config->bos, .tokenizer = tokenizer, .vocabulary = config->vocabulary,
	};
	struct bdx_decoder *decoder = NULL;
	uint64_t together = bdx_together(model, count, length);
	void *column_device = NULL, *uniform_device = NULL;
	int32_t *column = NULL;
	void *uniform = NULL;
	int rc = allocate(windows, count, length, err);

	if (rc < 0 || count == 0)
		return rc;
	if (starts.begin < 0 && config->eos_count)
		starts.begin = config->eos[0];
	column = calloc(together, sizeof(*column));
	uniform = calloc(together, bdx_real_size(ops));
	if (!column || !uniform) {
		rc = bd_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	rc = find_control(&starts, source, err);
	if (rc == 0)
		rc = bdx_decoder_open(&decoder, model, together, length, err);
	if (rc < 0)
		goto out;
	column_device = ops->alloc(ops, together * sizeof(*column), err);
	uniform_device = ops->alloc(ops, together * bdx_real_size(ops), err);
	if (!column_device || !uniform_device) {
		rc = err ? err->code : -ENOMEM;
		goto out;
	}
	for (uint64_t i = 0; rc == 0 && i < count; i += together) {
		/* The last group runs again over some of the group before it: the decoder has
		 * one size. */
		uint64_t first = i + together <= count ? i : count - together;

		rc = generate_some(model, decoder, &starts, first, together, length, seed,
				   windows->tokens + first * length, column, uniform,
				   column_device, uniform_device, i * length,
				   (count + together - 1) / together * together * length, watch, err);
	}
out:
	bdx_decoder_close(decoder);
	ops->free(ops, column_device);
	ops->free(ops, uniform_device);
	free(starts.control);
	free(column);
	free(uniform);
	if (rc < 0)
		bdx_windows_free(windows);
	return rc;
}

/* ---- Text that is given ---- */

int bdx_cut_windows(struct bdx_windows *windows, const int32_t *tokens, uint64_t available,
		    uint64_t count, uint64_t length, uint64_t seed, const char *name,
		    struct bd_error *err)
{
	int rc;

	if (available < length)
		return bd_error_set(err, -EINVAL, "%s: %" PRIu64 " tokens are too few for a window of %"
				    PRIu64, name, available, length);
	rc = allocate(windows, count, length, err);
	for (uint64_t i = 0; rc == 0 && i < count; i++)
		memcpy(windows->tokens + i * length,
		       tokens + below(available - length + 1, seed, i), length * sizeof(*tokens));
	return rc;
}

/* Where a line or a word begins, at or after `at`. */
static size_t next_word(const char *text, size_t size, size_t at)
{
	while (at < size && at > 0 && text[at - 1] != '\n' && text[at - 1] != ' ')
		at++;
	return at;
}

/* Places are drawn from the text, not from its tokens: what takes many tokens (a script that the
 * tokenizer has no words for) would else take most windows. */
int bdx_general_windows(struct bdx_windows *windows, const struct bdx_tokenizer *tokenizer,
			uint64_t vocabulary, uint64_t count, uint64_t length, uint64_t seed,
			const struct bd_watch *watch, struct bd_error *err)
{
	size_t size, found;
	const char *text = bdx_general_text(&size);
	uint64_t filled = 0, most = DRAWS + 4 * count;
	size_t too_late = size; /* from there on too little text is left */
	int32_t *tokens;
	int rc = allocate(windows, count, length, err);

	for (uint64_t draw = 0; rc == 0 && filled < count && draw < most; draw++) {
		size_t at = next_word(text, size, below(size, seed, draw)), part = 4 * length;

		if (at >= too_late)
			continue;
		do {
			rc = bdx_check_cancel(watch, err);
			part = 2 * part < size - at ? 2 * part : size - at;
			if (rc == 0)
				rc = bdx_tokenizer_encode(tokenizer, text + at, part, false,
							  &tokens, &found, err);
			if (rc < 0)
				break;
			if (found >= length && all_known(tokens, length, vocabulary))
				memcpy(windows->tokens + filled++ * length, tokens,
				       length * sizeof(*tokens));
			free(tokens);
		} while (found < length && at + part < size);
		if (rc == 0 && found < length)
			too_late = at;
	}
	windows->count = filled;
	if (rc < 0)
		bdx_windows_free(windows);
	return rc;
}

struct tokens { /* that grow */
	int32_t *data;
	uint64_t count, capacity;
};

static int reserve(struct tokens *t, uint64_t more, struct bd_error *err)
{
	int32_t *grown;

	if (t->count + more <= t->capacity)
		return 0;
	t->capacity = 2 * (t->count + more);
	grown = realloc(t->data, t->capacity * sizeof(*grown));
	if (!grown)
		return bd_error_set(err, -ENOMEM, "out of memory");
	t->data = grown;
	return 0;
}

static int add_text(struct tokens *to, const struct bdx_tokenizer *tokenizer, const char *text,
		    size_t size, const char *path, struct bd_error *err)
{
	int32_t *tokens;
	size_t count;
	int rc;

	if (!tokenizer)
		return bd_error_set(err, -EINVAL, "%s: text needs a tokenizer.json, which the model does "
				    "not have; give token numbers instead", path);
	rc = bdx_tokenizer_encode(tokenizer, text, size, false, &tokens, &count, err);
	if (rc < 0)
		return rc;
	rc = reserve(to, count, err);
	if (rc == 0 && count) {
		memcpy(to->data + to->count, tokens, count * sizeof(*tokens));
		to->count += count;
	}
	free(tokens);
	return rc;
}

/* Where text that is too long to be tokenized at once may be cut: after a line, or else before a
 * word. */
static size_t cut_text(const char *text, size_t size)
{
	const char *end;

	if (size <= PART)
		return size;
	end = memchr(text + PART, '\n', size - PART < PART ? size - PART : PART);
	if (end)
		return (size_t)(end + 1 - text);
	end = memchr(text + PART, ' ', size - PART);
	return end ? (size_t)(end - text) : size;
}

/* A part at a time, so that it can be interrupted. */
static int add_parts(struct tokens *to, const struct bdx_tokenizer *tokenizer, const char *text,
		     size_t size, const char *path, const struct bd_watch *watch,
		     struct bd_error *err)
{
	int rc = 0;

	for (size_t at = 0, n; rc == 0 && at < size; at += n) {
		n = cut_text(text + at, size - at);
		rc = bdx_check_cancel(watch, err);
		if (rc == 0)
			rc = add_text(to, tokenizer, text + at, n, path, err);
	}
	return rc;
}

/* One document of JSON lines: its "text", or its "tokens". */
static int add_line(struct tokens *to, const struct bdx_tokenizer *tokenizer, const char *line,
		    size_t size, uint64_t origin, const char *path, struct bd_error *err)
{
	struct bd_json j;
	char key[4096], *text = NULL;
	size_t length;
	uint64_t token;
	int rc;

	bd_json_init(&j, line, size, path, origin, err);
	rc = bd_json_object(&j);
	while (rc == 0 && (rc = bd_json_member(&j, key, sizeof(key), &length)) > 0) {
		if (strcmp(key, "text") == 0) {
			rc = bd_json_string_dup(&j, &text, &length);
			if (rc == 0)
				rc = add_text(to, tokenizer, text, length, path, err);
			free(text);
			text = NULL;
		} else if (strcmp(key, "tokens") == 0) {
			rc = bd_json_array(&j);
			while (rc == 0 && (rc = bd_json_item(&j)) > 0) {
				rc = bd_json_u64(&j, &token);
				if (rc == 0)
					rc = reserve(to, 1, err);
				if (rc == 0)
					to->data[to->count++] = token > INT32_MAX ? -1 : (int32_t)token;
			}
		} else {
			rc = bd_json_skip(&j);
		}
	}
	return rc < 0 ? rc : bd_json_end(&j);
}

static bool ends_in(const char *name, const char *end)
{
	size_t n = strlen(name), e = strlen(end);

	return n >= e && strcmp(name + n - e, end) == 0;
}

int bdx_file_tokens(int32_t **tokens, uint64_t *count, const char *path,
		    const struct bdx_tokenizer *tokenizer, uint64_t vocabulary,
		    const struct bd_watch *watch, struct bd_error *err)
{
	struct tokens all = { 0 };
	char *data = NULL;
	size_t size;
	int rc = bd_file_slurp(path, MAX_CALIB, &data, &size, err);

	if (rc < 0)
		return rc;
	if (ends_in(path, ".tokens") || ends_in(path, ".bin")) {
		rc = reserve(&all, size / sizeof(int32_t) + 1, err);
		if (rc == 0) {
			all.count = size / sizeof(int32_t);
			memcpy(all.data, data, all.count * sizeof(int32_t));
		}
	} else if (ends_in(path, ".jsonl") || ends_in(path, ".json")) {
		for (size_t at = 0; rc == 0 && at < size; ) {
			const char *end = memchr(data + at, '\n', size - at);
			size_t n = end ? (size_t)(end - (data + at)) : size - at;

			rc = bdx_check_cancel(watch, err);
			if (rc == 0 && strspn(data + at, " \t\r") < n)
				rc = add_line(&all, tokenizer, data + at, n, at, path, err);
			at += n + 1;
		}
	} else {
		rc = add_parts(&all, tokenizer, data, size, path, watch, err);
	}
	for (uint64_t i = 0; rc == 0 && i < all.count; i++)
		if (all.data[i] < 0 || (uint64_t)all.data[i] >= vocabulary)
			rc = bd_error_set(err, -EINVAL, "%s: token number %" PRIu64 " is %" PRId32
					  ", but the model's vocabulary has %" PRIu64 " tokens", path, i,
					  all.data[i], vocabulary);
	free(data);
	if (rc < 0) {
		free(all.data);
		return rc;
	}
	*tokens = all.data;
	*count = all.count;
	return 0;
}
