/* SPDX-License-Identifier: Apache-2.0 */
/* evaluate.c: how close is a delta to its fine-tune, as functions? See evaluate.h. */
#include "evaluate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "judge.h"
#include "pace.h"

#define LENGTH 128
#define WINDOWS 256
#define SECONDS 60
#define LEAST 4       /* windows of each text, where there is time for fewer only */
#define SHORT 10      /* seconds that need no announcement */
#define TOO_LONG 5    /* times the seconds that are allowed: not without being asked to */
#define SEED 20240215 /* another text than distillation learns from */

struct evaluation {
	const struct bdx_evaluate_options *options; /* those below */
	struct bdx_evaluate_options own;
	struct bdx_evaluation *result;
	struct bdx_source *fine, *student, *base_source;
	struct bd_base *base;
	struct bd_view *view;
	struct bdx_config *config, *base_config;
	struct bdx_tokenizer *tokenizer;
	struct bdx_ops *ops;
	struct bdx_model *teacher;
	struct bdx_windows windows[2];
	struct bdx_judge *judges[2];
	uint64_t most;            /* windows of each text that are wanted, and there */
	uint64_t planned;         /* of which there is time for so many */
	/* Seconds, measured or foreseen: */
	double started;           /* when */
	double begin;             /* for all before the first text */
	double load;              /* to load a model */
	double write;             /* for the text that the fine-tune writes */
	double teach;             /* for the fine-tune on all windows */
	double compare;           /* for another model on all windows */
};

void bdx_evaluate_defaults(struct bdx_evaluate_options *options)
{
	*options = (struct bdx_evaluate_options){
		.device = "auto", .length = LENGTH, .windows = WINDOWS, .seconds = SECONDS,
	};
}

/* Without one, there still are the text that the fine-tune writes and files of token numbers. */
static int open_tokenizer(struct evaluation *e, struct bd_error *err)
{
	struct bd_error why = { 0 };
	char *json = NULL;
	size_t size;
	int rc = bdx_source_file(e->fine, "tokenizer.json", &json, &size, &why);

	if (rc == 0)
		rc = bdx_tokenizer_open(&e->tokenizer, json, size, "tokenizer.json", &why);
	free(json);
	if (rc == -ENOENT || rc == -ENOTSUP || rc == -EINVAL) {
		bdx_note(&e->options->watch, "comparing without a tokenizer: %s", why.text);
		return 0;
	}
	if (rc < 0 && err)
		*err = why;
	return rc;
}

static int open_inputs(struct evaluation *e, struct bd_error *err)
{
	struct bd_delta *delta;
	int rc = bdx_source_open(&e->fine, e->options->fine, err);

	if (rc < 0) {
		bd_error_prefix(err, "fine-tune");
		return rc;
	}
	rc = bdx_config_read(&e->config, e->fine, err);
	if (rc < 0)
		return rc;
	bdx_config_tell(e->config, e->fine, &e->options->watch);
	e->own.length = bdx_config_length(e->config, e->fine, e->own.length, &e->own.watch);
	rc = bd_base_open(&e->base, e->options->base, err);
	if (rc == 0)
		rc = bdx_source_open(&e->base_source, e->options->base, err);
	if (rc < 0) {
		bd_error_prefix(err, "base");
		return rc;
	}
	rc = bdx_config_read(&e->base_config, e->base_source, err);
	if (rc == 0)
		bdx_config_tell(e->base_config, e->base_source, &e->options->watch);
	if (rc == 0)
		rc = bd_delta_open(&delta, e->options->delta, err);
	if (rc < 0)
		return rc;
	rc = bd_view_open(&e->view, delta, e->base, err);
	if (rc < 0) {
		bd_delta_close(delta);
		return rc;
	}
	rc = bdx_source_match(e->fine, e->view, err);
	if (rc == 0)
		rc = bdx_source_view(&e->student, e->view, err);
	return rc < 0 ? rc : open_tokenizer(e, err);
}

/* The first windows of a file, as many as are wanted and there. */
static int read_text(struct evaluation *e, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	struct bdx_windows *w = &e->windows[0];
	uint64_t count;
	int rc = bdx_file_tokens(&w->tokens, &count, o->text, e->tokenizer, e->config->vocabulary,
				 &o->watch, err);

	if (rc < 0)
		return rc;
	w->length = o->length;
	w->count = e->most = count / o->length < o->windows ? count / o->length : o->windows;
	if (w->count == 0)
		return bd_error_set(err, -EINVAL, "%s: %" PRIu64 " tokens are too few for a window of %"
				    PRIu64, o->text, count, o->length);
	snprintf(e->result->texts[0].name, sizeof(e->result->texts[0].name), "%s", o->text);
	return 0;
}

static int make_windows(struct evaluation *e, const struct bd_watch *watch, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	int rc;

	e->result->count = 1;
	if (o->text) {
		e->windows[0].count = e->planned;
		return 0;
	}
	rc = bdx_generate_windows(&e->windows[0], e->teacher, e->fine, e->tokenizer, e->planned,
				  o->length, SEED, watch, err);
	if (rc == 0 && e->tokenizer)
		rc = bdx_general_windows(&e->windows[1], e->tokenizer, e->config->vocabulary,
					 e->planned, o->length, SEED, watch, err);
	if (rc == 0 && e->windows[1].count)
		e->result->count = 2;
	strcpy(e->result->texts[0].name, "written by the fine-tune");
	strcpy(e->result->texts[1].name, "general");
	return rc;
}

static double share(double sum, uint64_t count)
{
	return count ? sum / (double)count : NAN;
}

/* Logits that are NaN or infinite make every figure meaningless: say whose they are. */
static int check_numbers(const struct evaluation *e, const struct bdx_source *source,
			 const struct bdx_score *s, const char *text, struct bd_error *err)
{
	if (!isfinite(s->nll_teacher))
		source = e->fine;
	else if (isfinite(s->nll_student) && isfinite(s->kl))
		return 0;
	return bd_error_set(err, -EDOM, "%s: this model gives no numbers: among its logits for the text \"%s\" "
			    "are NaN or infinities", bdx_source_name(source), text);
}

/* The shares that parts of the work have in all of it, of 1000, by the seconds that they take. */
static void begin_phase(struct bdx_phase *phase, const struct evaluation *e,
			const struct bd_watch *watch, double from, double to)
{
	double all = e->begin + e->write + e->teach + 2 * (e->load + e->compare);

	bdx_phase_begin(phase, watch, 1000 * from / all, 1000 * to / all);
}

/* One candidate over all texts; `from`: seconds before it. */
static int measure(struct evaluation *e, const struct bdx_config *config,
		   struct bdx_source *source, bool is_base, double from, struct bd_error *err)
{
	unsigned texts = e->result->count;
	struct bdx_model *model = NULL;
	struct bdx_phase phase;
	int rc;

	begin_phase(&phase, e, &e->options->watch, from, from + e->load);
	rc = bdx_model_open(&model, e->ops, config, source, &phase.watch, err);
	from += e->load;
	for (unsigned t = 0; rc == 0 && t < texts; t++, from += e->compare / texts) {
		struct bdx_text_quality *text = &e->result->texts[t];
		struct bdx_quality *q = is_base ? &text->base : &text->delta;
		struct bdx_score s = { 0 };

		begin_phase(&phase, e, &e->options->watch, from, from + e->compare / texts);
		rc = bdx_judge_measure(e->judges[t], model, 0, e->windows[t].count, &s, &phase.watch,
				       err);
		if (rc == 0)
			rc = check_numbers(e, source, &s, text->name, err);
		q->tokens = s.positions;
		q->kl = share(s.kl, s.positions);
		q->mse = share(s.mse, s.positions);
		q->top1 = share(s.agree, s.positions);
		q->perplexity = exp(share(s.nll_student, s.targets));
		if (!is_base) {
			text->perplexity_fine = exp(share(s.nll_teacher, s.targets));
		}
	}
	bdx_model_close(model);
	return rc;
}

/* Not on a processor that takes too long even for the least, unless that was asked for. */
static int refuse_slow(struct evaluation *e, const char *no_gpu, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	uint64_t windows = e->most < LEAST ? e->most : LEAST;
	double operations = 2 * bdx_config_products(e->config) * 7 * (double)(windows * o->length), seconds;
	char text[32];
	int rc;

	if (!bdx_device_is_cpu(e->ops) || strcmp(o->device, "cpu") == 0 || !o->seconds)
		return 0;
	rc = bdx_device_estimate(e->ops, operations, &seconds, err);
	if (rc < 0 || seconds <= TOO_LONG * o->seconds)
		return rc;
	bdx_device_duration(seconds, text);
	return bd_error_set(err, -ENODEV, "there is no GPU to be used (%s), and this processor would take "
			    "some %s at least; --device cpu does it anyway", no_gpu, text);
}

/* How many sequences may be written together, so that this takes no more than half of the time that is
 * left, and what one token of them takes. */
static int plan_writing(struct evaluation *e, double left, uint64_t *together, double *token,
			struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	int rc;

	*together = bdx_together(e->teacher, e->most, o->length);
	for (;;) {
		rc = bdx_pace_draw(token, e->teacher, *together, o->length, err);
		if (rc < 0 || *together <= LEAST || *token * (double)o->length <= left / 2)
			return rc;
		*together /= 2;
	}
}

/* From how fast the model runs: how many windows there is time for, and what they will take. */
static int plan(struct evaluation *e, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	double texts = !o->text && e->tokenizer ? 2 : 1, left, window, group = 0, count;
	uint64_t together = e->most;
	struct bdx_pace pace;
	int rc = bdx_pace_measure(&pace, e->teacher, o->length, err);

	if (rc < 0)
		return rc;
	left = o->seconds ? o->seconds - (bdx_now() - e->started) - 2 * e->load : INFINITY;
	if (!o->text) {
		rc = plan_writing(e, left, &together, &group, err);
		if (rc < 0)
			return rc;
		group *= (double)o->length;
	}
	window = texts * (pace.pass + 2 * pace.compared);
	count = floor(left / window);
	if (group > 0 && left - group < (double)together * window) /* one group, or a part of one */
		count = floor((left - group) / window);
	else if (group > 0)
		count = (double)together * floor(left / ((double)together * window + group));
	count = fmin(fmax(count, LEAST), (double)e->most);
	e->planned = (uint64_t)count;
	e->write = group * ceil(count / (double)together);
	e->teach = texts * count * pace.pass;
	e->compare = texts * count * pace.compared;
	e->begin = bdx_now() - e->started;
	return 0;
}

static void announce(const struct evaluation *e)
{
	const struct bdx_evaluate_options *o = e->options;
	double seconds = e->begin + e->write + e->teach + 2 * (e->load + e->compare);
	char text[32];

	bdx_device_duration(seconds, text);
	if (e->planned < e->most)
		bdx_note(&o->watch, "%" PRIu64 " windows of each text instead of %" PRIu64 ", which takes about "
			 "%s here: --seconds and --windows decide", e->planned, e->most, text);
	else if (seconds > SHORT)
		bdx_note(&o->watch, "this takes about %s here: --seconds and --windows decide", text);
}

static int run_teacher(struct evaluation *e, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	struct bdx_phase phase;
	double from, texts;
	int rc;

	e->load = bdx_now();
	bdx_phase_begin(&phase, &o->watch, 0, 50); /* nobody knows yet how long it will take in all */
	rc = bdx_model_open(&e->teacher, e->ops, e->config, e->fine, &phase.watch, err);
	e->load = bdx_now() - e->load;
	if (rc == 0)
		rc = plan(e, err);
	if (rc < 0)
		return rc;
	announce(e);
	from = e->begin;
	begin_phase(&phase, e, &o->watch, from, from + e->write);
	rc = make_windows(e, &phase.watch, err);
	from += e->write;
	texts = e->result->count;
	for (unsigned t = 0; rc == 0 && t < e->result->count; t++, from += e->teach / texts) {
		e->result->texts[t].windows = e->windows[t].count;
		begin_phase(&phase, e, &o->watch, from, from + e->teach / texts);
		rc = bdx_judge_open(&e->judges[t], e->teacher, &e->windows[t], &phase.watch, err);
	}
	if (rc == 0)
		bdx_model_keep_head(e->teacher);
	return rc;
}

static int run(struct evaluation *e, struct bd_error *err)
{
	const struct bdx_evaluate_options *o = e->options;
	enum bd_dtype dtype;
	char no_gpu[256];
	double from;
	int rc = bdx_config_dtype(e->config, e->fine, &dtype, err);

	if (rc == 0)
		rc = bdx_device_open(&e->ops, o->device, dtype, o->threads, no_gpu, sizeof(no_gpu),
				     err);
	if (rc < 0)
		return rc;
	bdx_device_watch(e->ops, &o->watch);
	snprintf(e->result->device, sizeof(e->result->device), "%s", e->ops->name);
	e->most = o->windows;
	if (o->text)
		rc = read_text(e, err);
	if (rc == 0)
		rc = refuse_slow(e, no_gpu, err);
	if (rc == 0)
		rc = run_teacher(e, err);
	from = e->begin + e->write + e->teach;
	if (rc == 0)
		rc = measure(e, e->config, e->student, false, from, err);
	from += e->load + e->compare;
	if (rc == 0)
		rc = measure(e, e->base_config, e->base_source, true, from, err);
	if (rc == 0)
		rc = bdx_source_check(e->fine, err);
	if (rc == 0)
		rc = bdx_source_check(e->student, err);
	return rc;
}

int bdx_evaluate(const struct bdx_evaluate_options *options, struct bdx_evaluation *result,
		 struct bd_error *err)
{
	struct evaluation e = { .options = &e.own, .own = *options, .result = result, .started = bdx_now() };
	int rc;

	*result = (struct bdx_evaluation){ 0 };
	if (options->windows < 1 || options->windows > 1 << 20 || options->length < 2 ||
	    options->length > 1 << 20 || !(options->seconds >= 0))
		return bd_error_set(err, -EINVAL, "windows (at least 1), length (at least 2 tokens) or seconds "
				    "are out of range");
	rc = open_inputs(&e, err);
	if (rc == 0)
		rc = run(&e, err);
	for (int t = 0; t < 2; t++) {
		bdx_judge_close(e.judges[t]);
		bdx_windows_free(&e.windows[t]);
	}
	bdx_model_close(e.teacher);
	bdx_ops_close(e.ops);
	bdx_tokenizer_close(e.tokenizer);
	bdx_config_free(e.config);
	bdx_config_free(e.base_config);
	bdx_source_close(e.student);
	bdx_source_close(e.fine);
	bdx_source_close(e.base_source);
	bd_view_close(e.view);
	bd_base_close(e.base);
	return rc;
}
