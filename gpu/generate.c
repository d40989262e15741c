/* SPDX-License-Identifier: Apache-2.0 */
/* generate.c: text from a model, to look at. See generate.h. */
#include "generate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "calib.h"
#include "stream.h"

#define TOKENS 200
#define TOKENS_PER_BYTE 16 /* of a prompt: no honest tokenizer makes more, and every token costs as much */
#define TOKENS_FREE 256    /* as there are tokens */

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
	uint64_t most;       /* tokens to be drawn */
	struct bdx_stream stream; /* their text */
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

/* A model has seen no positions beyond its last one. A small prompt must not become a large one, either:
 * tokenizer and configuration come from strangers. */
static int check_length(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	size_t bytes = o->prompt ? strlen(o->prompt) : 0;
	uint64_t positions = w->config->positions, left;

	if (w->prompt > positions)
		return bd_error_set(err, -EINVAL, "the prompt has %zu tokens, but the model only %" PRIu64
				    " positions", w->prompt, positions);
	if (w->prompt > TOKENS_FREE + TOKENS_PER_BYTE * bytes)
		return bd_error_set(err, -EINVAL, "%s: tokenizer.json makes %zu tokens of %zu bytes",
				    bdx_source_name(w->source), w->prompt, bytes);
	left = positions - w->prompt + 1;
	w->most = o->tokens < left ? o->tokens : left;
	if (w->most < o->tokens)
		bdx_note(&o->watch, "at most %" PRIu64 " tokens can follow a prompt of %zu: the model has %"
			 PRIu64 " positions", w->most, w->prompt, positions);
	return 0;
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
	w->stream = (struct bdx_stream){
		.tokenizer = w->tokenizer, .write = o->write, .context = o->write_context,
	};
	return check_length(w, err);
}

static int open_model(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	uint64_t capacity = w->prompt + w->most - 1; /* the last one is not read */
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

/* Of logits that are no numbers nothing can be drawn. */
static int check_numbers(struct writer *w, const void *logits, struct bd_error *err)
{
	struct bdx_ops *ops = w->ops;
	uint64_t count = w->config->vocabulary;
	size_t size = bdx_real_size(ops);
	char *host = malloc(count * size);
	bool good = true;
	int rc;

	if (!host)
		return bd_error_set(err, -ENOMEM, "out of memory");
	ops->download(ops, host, logits, count * size);
	rc = ops->finish(ops, err);
	for (uint64_t i = 0; rc == 0 && good && i < count; i++)
		good = ops->real == BD_F64 ? isfinite(((double *)host)[i]) : isfinite(((float *)host)[i]);
	free(host);
	if (rc == 0 && !good)
		rc = bd_error_set(err, -EDOM, "%s: this model gives no numbers: among its logits are NaN or "
				  "infinities", bdx_source_name(w->source));
	return rc;
}

static int write_all(struct writer *w, struct bd_error *err)
{
	const struct bdx_generate_options *o = w->options;
	struct bdx_ops *ops = w->ops;
	const int32_t *next = w->tokens;
	size_t count = w->prompt;
	void *logits;
	int rc = bdx_stream_take(&w->stream, w->tokens, w->count, false, err); /* the prompt, too */

	for (uint64_t i = 0; rc == 0 && i < w->most; i++) {
		float uniform = (float)bdx_uniform(o->seed, i);

		rc = bdx_check_cancel(&o->watch, err);
		if (rc < 0)
			break;
		ops->upload(ops, w->device, next, count * sizeof(*next));
		ops->upload(ops, w->uniform, &uniform, sizeof(uniform));
		rc = bdx_decoder_append(w->decoder, w->device, count, &logits, err);
		if (rc == 0 && i == 0)
			rc = check_numbers(w, logits, err);
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
		rc = bdx_stream_take(&w->stream, w->tokens, w->count, false, err);
	}
	return rc < 0 ? rc : bdx_stream_take(&w->stream, w->tokens, w->count, true, err);
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
