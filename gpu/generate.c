/* SPDX-License-Identifier: Apache-2.0 */
/* generate.c: text from a model, to look at. See generate.h. */
#include "generate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "calib.h"

#define TOKENS 200

struct writer {
	const struct bdx_generate_options *options;
	struct bd_base *base;
	struct bd_view *view;
	struct bdx_source *source;
	struct bdx_config *config;
	struct bdx_tokenizer *tokenizer;
	struct bdx_ops *ops;
	struct bdx_model *model;
	struct bdx_decoder *decoder;
	int32_t *tokens;     /* prompt, then what was drawn; room for all */
	size_t prompt, count;
	size_t written;      /* bytes of their text that are out */
	void *device;        /* tokens, and a uniform number, in the device's memory */
	void *uniform;
};

bool bdx_generate_is_delta(const char *model)
{
	size_t length = strlen(model);

	return length >= 7 && strcmp(model + length - 7, ".bdelta") == 0;
}

void bdx_generate_defaults(struct bdx_generate_options *options)
{
	*options = (struct bdx_generate_options){
		.device = "auto", .tokens = TOKENS, .temperature = 1,
	};
}

static int open_source(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	struct bd_delta *delta;
	int rc;

	if (!bdx_generate_is_delta(o->model))
		return bdx_source_open(&w->source, o->model, err);
	if (!o->base)
		return bd_error_set(err, -EINVAL, "%s: a delta needs its base", o->model);
	rc = bd_base_open(&w->base, o->base, err);
	if (rc < 0) {
		bd_error_prefix(err, "base");
		return rc;
	}
	rc = bd_delta_open(&delta, o->model, err);
	if (rc < 0)
		return rc;
	rc = bd_view_open(&w->view, delta, w->base, err);
	if (rc < 0) {
		bd_delta_close(delta);
		return rc;
	}
	return bdx_source_view(&w->source, w->view, err);
}

static int open_prompt(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	int32_t *tokens = NULL;
	char *json = NULL;
	size_t size, count = 0;
	int rc = bdx_source_file(w->source, "tokenizer.json", &json, &size, err);

	if (rc == 0)
		rc = bdx_tokenizer_open(&w->tokenizer, json, size, "tokenizer.json", err);
	free(json);
	if (rc == 0)
		rc = bdx_tokenizer_encode(w->tokenizer, o->prompt ? o->prompt : "",
					  o->prompt ? strlen(o->prompt) : 0, true, &tokens, &count,
					  err);
	if (rc < 0)
		return rc;
	w->tokens = malloc((count + o->tokens + 1) * sizeof(*w->tokens));
	if (!w->tokens) {
		free(tokens);
		return bd_error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(w->tokens, tokens, count * sizeof(*tokens));
	free(tokens);
	if (count == 0) /* nothing to begin with: as texts begin */
		w->tokens[count++] = w->config->bos >= 0 ? w->config->bos :
				     w->config->eos_count ? w->config->eos[0] : 0;
	w->prompt = w->count = count;
	for (size_t i = 0; i < count; i++)
		if ((uint64_t)w->tokens[i] >= w->config->vocabulary)
			return bd_error_set(err, -EINVAL, "%s: tokenizer.json has more tokens than the "
					    "model", bdx_source_name(w->source));
	return 0;
}

static int open_model(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	uint64_t capacity = w->prompt + o->tokens;
	enum bd_dtype dtype;
	int rc = bdx_config_dtype(w->config, w->source, &dtype, err);

	if (rc == 0)
		rc = bdx_device_open(&w->ops, o->device, dtype, o->threads, NULL, 0, err);
	if (rc == 0)
		bdx_device_watch(w->ops, &o->watch);
	if (rc == 0)
		rc = bdx_model_open(&w->model, w->ops, w->config, w->source, &o->watch, err);
	if (rc == 0)
		rc = bdx_decoder_open(&w->decoder, w->model, 1, capacity, err);
	if (rc < 0)
		return rc;
	w->device = w->ops->alloc(w->ops, capacity * sizeof(*w->tokens), err);
	w->uniform = w->ops->alloc(w->ops, bdx_real_size(w->ops), err);
	return w->device && w->uniform ? 0 : err ? err->code : -ENOMEM;
}

/* Write what is new and complete: the last character may lack bytes that the next token brings. */
static int write_text(struct writer *w, bool last, struct bd_error *err)
{
	char *text;
	size_t size;
	int rc = bdx_tokenizer_decode(w->tokenizer, w->tokens, w->count, true, &text, &size, err);

	if (rc < 0)
		return rc;
	/* Bytes that are no character yet come as U+FFFD. */
	while (!last && size >= 3 && memcmp(text + size - 3, "\xef\xbf\xbd", 3) == 0)
		size -= 3;
	if (size > w->written) {
		w->options->write(w->options->write_context, text + w->written, size - w->written);
		w->written = size;
	}
	free(text);
	return 0;
}

static int write_all(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	struct bdx_ops *ops = w->ops;
	const int32_t *next = w->tokens;
	size_t count = w->prompt;
	void *logits;
	int rc = write_text(w, false, err); /* the prompt, too */

	for (uint64_t i = 0; rc == 0 && i < o->tokens; i++) {
		float uniform = (float)bdx_uniform(o->seed, i);

		rc = bdx_check_cancel(&o->watch, err);
		if (rc < 0)
			break;
		ops->upload(ops, w->device, next, count * sizeof(*next));
		ops->upload(ops, w->uniform, &uniform, sizeof(uniform));
		rc = bdx_decoder_append(w->decoder, w->device, count, &logits, err);
		if (rc < 0)
			break;
		ops->sample(ops, w->device, logits, w->uniform, 1, w->config->vocabulary,
			    o->temperature);
		ops->download(ops, &w->tokens[w->count], w->device, sizeof(*w->tokens));
		rc = ops->finish(ops, err);
		if (rc < 0 || bdx_config_is_end(w->config, w->tokens[w->count]))
			break;
		next = &w->tokens[w->count++];
		count = 1;
		rc = write_text(w, false, err);
	}
	return rc < 0 ? rc : write_text(w, true, err);
}

int bdx_generate(const struct bdx_generate_options *options, struct bd_error *err)
{
	struct writer w = { .options = options };
	int rc;

	if (options->tokens > 1 << 20 || !(options->temperature >= 0))
		return bd_error_set(err, -EINVAL, "tokens or temperature are out of range");
	rc = open_source(&w, err);
	if (rc == 0)
		rc = bdx_config_read(&w.config, w.source, err);
	if (rc == 0)
		bdx_config_tell(w.config, w.source, &options->watch);
	if (rc == 0)
		rc = open_prompt(&w, err);
	if (rc == 0)
		rc = open_model(&w, err);
	if (rc == 0)
		rc = write_all(&w, err);
	if (rc == 0)
		rc = bdx_source_check(w.source, err);
	bdx_decoder_close(w.decoder);
	if (w.ops) {
		w.ops->free(w.ops, w.device);
		w.ops->free(w.ops, w.uniform);
	}
	bdx_model_close(w.model);
	bdx_ops_close(w.ops);
	free(w.tokens);
	bdx_tokenizer_close(w.tokenizer);
	bdx_config_free(w.config);
	bdx_source_close(w.source);
	bd_view_close(w.view);
	bd_base_close(w.base);
	return rc;
}
