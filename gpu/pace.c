/* SPDX-License-Identifier: Apache-2.0 */
/* pace.c: how fast a model runs here, see pace.h. */
#include "pace.h"

#include <errno.h>
#include <stdlib.h>

#include "device.h"
#include "judge.h"

#define WINDOWS 2
#define AGAIN 0.2 /* seconds: what took less is measured once more, now that all threads are awake */

/* One measurement: the model against itself. */
static int measure(struct bdx_pace *pace, struct bdx_model *model,
		   const struct bdx_windows *windows, struct bd_error *err)
{
	const struct bd_watch watch = { 0 };
	struct bdx_score score = { 0 };
	struct bdx_judge *judge;
	double started = bdx_now();
	int rc = bdx_judge_open(&judge, model, windows, &watch, err);

	if (rc < 0)
		return rc;
	pace->pass = (bdx_now() - started) / WINDOWS;
	started = bdx_now();
	rc = bdx_judge_measure(judge, model, 0, WINDOWS, &score, &watch, err);
	pace->compared = (bdx_now() - started) / WINDOWS;
	bdx_judge_close(judge);
	return rc;
}

int bdx_pace_measure(struct bdx_pace *pace, struct bdx_model *model, uint64_t length,
		     struct bd_error *err)
{
	struct bdx_windows windows = { .count = WINDOWS, .length = length };
	int rc;

	windows.tokens = calloc(WINDOWS * length, sizeof(*windows.tokens));
	if (!windows.tokens)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (uint64_t i = 0; i < WINDOWS * length; i++)
		windows.tokens[i] = (int32_t)(i * 7919 % model->config->vocabulary);
	rc = measure(pace, model, &windows, err);
	if (rc == 0 && WINDOWS * (pace->pass + pace->compared) < AGAIN)
		rc = measure(pace, model, &windows, err);
	bdx_windows_free(&windows);
	return rc;
}

int bdx_pace_draw(double *seconds, struct bdx_model *model, uint64_t count, uint64_t length,
		  struct bd_error *err)
{
	struct bdx_ops *ops = model->ops;
	struct bdx_decoder *decoder;
	int32_t *tokens;
	void *logits, *uniform;
	int rc = bdx_decoder_open(&decoder, model, count, length, err);

	if (rc < 0)
		return rc;
	tokens = ops->alloc(ops, count * sizeof(*tokens), err);
	uniform = tokens ? ops->alloc(ops, count * bdx_real_size(ops), err) : NULL;
	rc = uniform ? 0 : err ? err->code : -ENOMEM;
	if (rc == 0) {
		ops->zero(ops, tokens, count * sizeof(*tokens));
		ops->zero(ops, uniform, count * bdx_real_size(ops));
	}
	for (int i = 0; rc == 0 && i < 2; i++) { /* the first one wakes all threads */
		double started = bdx_now();

		rc = bdx_decoder_append(decoder, tokens, 1, &logits, err);
		if (rc == 0)
			ops->sample(ops, tokens, logits, uniform, count, model->config->vocabulary, 1.0);
		if (rc == 0)
			rc = ops->finish(ops, err);
		*seconds = bdx_now() - started;
	}
	ops->free(ops, tokens);
	ops->free(ops, uniform);
	bdx_decoder_close(decoder);
	return rc;
}
