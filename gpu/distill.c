/* SPDX-License-Identifier: Apache-2.0 */
/* distill.c: refine the scales of a delta until the student's logits match the fine-tune's.
 *
 * BitDelta (Liu et al., arXiv 2402.10193), section 3.1, with scales per row and column. The order of work
 * keeps one model at a time in the device's memory: the base writes text; the fine-tune writes text, and its
 * final hidden states are kept for all windows; then base, bits and scales take its place as the student.
 * See distill.h. */
#include "distill.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "judge.h"
#include "pace.h"
#include "refine.h"

#define HELD_OUT 32       /* windows that are not learned from */
#define DISTINCT 480      /* windows to learn from, at least, where the steps need so many; they are then
                           * seen more than once (256 of each origin were as good as fresh ones) */
#define MOST_DISTINCT 8192 /* and at most: the teacher's outputs for all of them are in memory */
#define MEASURE_EVERY 100  /* steps from one look at the held-out windows to the next */
#define KEPT_WEIGHTS ((size_t)3 << 30) /* bytes of rebuilt matrices that wait for the backward pass, */
#define SPARE ((size_t)1 << 30)        /* where that much is left */
#define DIVERGED 1.5      /* times the divergence at the beginning: go back, with smaller steps */
#define RATE 0.02         /* of a scale's size, the largest step */
#define WARM_UP 10        /* steps until then */
#define KL_WEIGHT 2       /* of the divergence's share in the loss, that of the squared error being 1 */

#define SHORT 20          /* seconds that need no announcement */
/* What a window takes in a step, measured: so many passes up to the last hidden states, and so many times
 * what its logits and their comparison take. */
#define LEARN_PASSES 3
#define LEARN_COMPARED 1.75

/* The work, in order. */
enum part { LOAD_BASE, WRITE_BASE, LOAD_FINE, WRITE_FINE, TEACH, LOAD_STUDENT, LEARN, PARTS };

struct distill {
	const struct bdx_distill_options *options; /* those below */
	struct bdx_distill_options own;
	struct bdx_distill_report *report;
	struct bd_occupant was;          /* what `out` was at the beginning, and must be in the end */
	struct bdx_source *fine;
	struct bdx_config *config;
	struct bd_base *base;
	struct bd_view *view;
	struct bdx_tokenizer *tokenizer; /* NULL where the model has none that we know */
	struct bdx_ops *ops;
	struct bdx_windows base_text;    /* what the base wrote */
	struct bdx_windows windows;      /* HELD_OUT of them, then those to learn from */
	struct bdx_model *teacher, *student;
	struct bdx_judge *judge;
	double mse_weight, kl_weight;    /* in the loss */
	double parts[PARTS];             /* seconds that they take; at first, by their proportions on a
	                                  * GPU: the progress that is shown goes by them */
	bool foreseen;                   /* they are those of this model on this processor */
	/* The optimiser's, real [scale_count] in the device's memory. */
	void *unit, *m, *v, *best;
};

void bdx_distill_defaults(struct bdx_distill_options *options)
{
	*options = (struct bdx_distill_options){
		.device = "auto", .steps = BDX_STEPS, .batch = BDX_BATCH, .length = BDX_LENGTH,
		.rate = RATE,
	};
}

/* It cannot be done here, and that is no failure. */
static int decline(struct distill *d, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static int decline(struct distill *d, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(d->report->why, sizeof(d->report->why), format, args);
	va_end(args);
	return 1;
}

static int open_tokenizer(struct distill *d, struct bd_error *err)
{
	struct bd_error why = { 0 };
	char *json = NULL;
	size_t size;
	int rc = bdx_source_file(d->fine, "tokenizer.json", &json, &size, &why);

	if (rc == 0)
		rc = bdx_tokenizer_open(&d->tokenizer, json, size, "tokenizer.json", &why);
	free(json);
	if (rc == -ENOENT || rc == -ENOTSUP || rc == -EINVAL) {
		bdx_note(&d->options->watch, "calibrating without a tokenizer: %s", why.text);
		return 0;
	}
	if (rc < 0 && err)
		*err = why;
	return rc;
}

static int open_inputs(struct distill *d, struct bd_error *err)
{
	struct bd_delta *delta = NULL;
	struct bd_error why = { 0 };
	int rc = bdx_source_open(&d->fine, d->options->fine, err);

	if (rc < 0) {
		bd_error_prefix(err, "fine-tune");
		return rc;
	}
	rc = bdx_config_read(&d->config, d->fine, &why);
	if (rc == -ENOTSUP || rc == -ENOENT)
		return decline(d, "%s", why.text);
	if (rc < 0) {
		if (err)
			*err = why;
		return rc;
	}
	bdx_config_tell(d->config, d->fine, &d->options->watch);
	d->own.length = bdx_config_length(d->config, d->fine, d->own.length, &d->own.watch);
	rc = bd_base_open(&d->base, d->options->base, err);
	if (rc < 0) {
		bd_error_prefix(err, "base");
		return rc;
	}
	rc = bd_delta_open(&delta, d->options->delta, err);
	if (rc < 0)
		return rc;
	rc = bd_view_open(&d->view, delta, d->base, err);
	if (rc < 0) {
		bd_delta_close(delta);
		return rc;
	}
	rc = bdx_source_match(d->fine, d->view, err);
	return rc < 0 ? rc : open_tokenizer(d, err);
}

/* Batches of different windows; later steps begin again with the first. */
static uint64_t batches(const struct distill *d)
{
	uint64_t steps = d->options->steps, batch = d->options->batch;
	uint64_t least = (DISTINCT + batch - 1) / batch, most = MOST_DISTINCT / batch;

	if (steps <= least)
		return steps;
	return steps / 2 <= least || most <= least ? least : steps / 2 < most ? steps / 2 : most;
}

static uint64_t learned(const struct distill *d)
{
	return batches(d) * d->options->batch;
}

/* Floating-point operations of everything: for each step one forward pass of the student and
 * what two more would take backward; each window is written and seen by the teacher; and what is
 * measured. */
static double all_operations(const struct distill *d)
{
	double passes = 3.0 * (double)(d->options->steps * d->options->batch) + 2.0 * (double)learned(d);
	double looks = (double)HELD_OUT * (2.0 + (double)d->options->steps / MEASURE_EVERY);

	return 2 * bdx_config_products(d->config) * (passes + looks) * (double)d->options->length;
}

static int open_device(struct distill *d, struct bd_error *err)
{
	char no_gpu[256], long_time[32];
	enum bd_dtype dtype;
	double seconds;
	int rc = bdx_config_dtype(d->config, d->fine, &dtype, err);

	if (rc == 0)
		rc = bdx_device_open(&d->ops, d->options->device, dtype, d->options->threads,
				     no_gpu, sizeof(no_gpu), err);
	if (rc < 0)
		return rc;
	bdx_device_watch(d->ops, &d->options->watch);
	snprintf(d->report->device, sizeof(d->report->device), "%s", d->ops->name);
	if (!bdx_device_is_cpu(d->ops))
		return 0;
	d->parts[LOAD_BASE] /= 10; /* until foresee() knows */
	if (strcmp(d->options->device, "cpu") == 0)
		return 0;
	rc = bdx_device_estimate(d->ops, all_operations(d), &seconds, err);
	if (rc < 0 || seconds <= BDX_PATIENCE)
		return rc;
	bdx_device_duration(seconds, long_time);
	return decline(d, "there is no GPU to be used (%s), and this processor would take some %s; "
		       "`bitdelta distill` does it where there is one, or here with --device cpu",
		       no_gpu, long_time);
}

static void begin_part(struct bdx_phase *phase, const struct distill *d, enum part part)
{
	double before = 0, all = 0;

	for (int i = 0; i < PARTS; i++) {
		before += i < (int)part ? d->parts[i] : 0;
		all += d->parts[i];
	}
	bdx_phase_begin(phase, &d->options->watch, 1000 * before / all,
			1000 * (before + d->parts[part]) / all);
}

/* ---- Calibration ---- */

/* What the mix takes from each origin, of `count` windows in all: half is written by the
 * fine-tune, three eighths by the base, which stand for what its fine-tune still knows, and the
 * rest is general text. Measured on five pairs against other mixes: README.md, "How close". */
static uint64_t from_fine(const struct distill *d, uint64_t count)
{
	return d->tokenizer || d->base_text.count ? (count + 1) / 2 : count;
}

static uint64_t from_base(const struct distill *d, uint64_t count)
{
	return d->tokenizer ? count * 3 / 8 : count - from_fine(d, count);
}

/* What writing takes, of which a group of sequences takes `group`. */
static double writing(uint64_t windows, uint64_t together, double group)
{
	return group * (double)((windows + together - 1) / together);
}

/* A model is loaded, in `load` seconds. Where it is the first one and runs on a processor: foresee how
 * long everything takes, and say so. */
static int foresee(struct distill *d, struct bdx_model *model, enum part first, double load,
		   struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	uint64_t windows = learned(d) + HELD_OUT, together = bdx_together(model, windows, o->length);
	double looks = (double)HELD_OUT * (2.0 + (double)o->steps / MEASURE_EVERY), group, all = 0;
	struct bdx_pace pace;
	char text[32];
	int rc;

	if (d->foreseen || !bdx_device_is_cpu(d->ops))
		return 0;
	d->foreseen = true;
	rc = bdx_pace_measure(&pace, model, o->length, err);
	if (rc == 0)
		rc = bdx_pace_draw(&group, model, together, o->length, err);
	if (rc < 0)
		return rc;
	group *= (double)o->length;
	d->parts[LOAD_BASE] = first == LOAD_BASE ? load : 0;
	d->parts[WRITE_BASE] = first == LOAD_BASE ? writing(windows / 2, together, group) : 0;
	d->parts[LOAD_FINE] = d->parts[LOAD_STUDENT] = load;
	d->parts[WRITE_FINE] = o->calib ? 0 : writing(from_fine(d, windows), together, group);
	d->parts[TEACH] = (double)windows * pace.pass;
	d->parts[LEARN] = looks * pace.compared + (double)(o->steps * o->batch) *
			  (LEARN_PASSES * pace.pass + LEARN_COMPARED * (pace.compared - pace.pass));
	for (int i = 0; i < PARTS; i++)
		all += d->parts[i];
	bdx_device_duration(all, text);
	if (all > BDX_PATIENCE && strcmp(o->device, "cpu") != 0)
		return decline(d, "there is no GPU to be used, and this processor would take some %s; "
			       "`bitdelta distill` does it where there is one, or here with --device cpu",
			       text);
	if (all > SHORT)
		bdx_note(&o->watch, "distilling takes about %s on this processor; interrupted, it leaves the "
			 "file as it is", text);
	return 0;
}

/* Let the base write its part. A base that the engine does not know writes nothing. */
static int run_base(struct distill *d, struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	uint64_t count = (learned(d) + HELD_OUT) / 2; /* more than from_base() takes */
	struct bdx_source *source = NULL;
	struct bdx_config *config = NULL;
	struct bdx_model *model = NULL;
	struct bdx_phase phase;
	double started = bdx_now();
	int rc = bdx_source_open(&source, o->base, err);

	begin_part(&phase, d, LOAD_BASE);
	if (rc == 0 && bdx_config_read(&config, source, NULL) == 0) {
		rc = bdx_model_open(&model, d->ops, config, source, &phase.watch, err);
		d->report->seconds_load += bdx_now() - started;
		if (rc == 0)
			rc = foresee(d, model, LOAD_BASE, bdx_now() - started, err);
		started = bdx_now();
		begin_part(&phase, d, WRITE_BASE);
		if (rc == 0)
			rc = bdx_generate_windows(&d->base_text, model, NULL, d->tokenizer, count,
						  o->length, o->seed + 2, &phase.watch, err);
		if (rc == 0)
			bdx_windows_restrict(&d->base_text, d->config->vocabulary);
		d->report->seconds_calibrate += bdx_now() - started;
	}
	bdx_model_close(model);
	bdx_config_free(config);
	bdx_source_close(source);
	return rc;
}

/* The default mix: HELD_OUT windows, then those to learn from. */
static int mix_windows(struct distill *d, struct bdx_windows *train, const struct bd_watch *watch,
		       struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	const uint64_t counts[2] = { HELD_OUT, learned(d) };
	struct bdx_windows *const targets[2] = { &d->windows, train };
	struct bdx_windows fine = { 0 }, general = { 0 };
	uint64_t fine_used = 0, base_used = 0, kept;
	int rc = bdx_generate_windows(&fine, d->teacher, d->fine, d->tokenizer,
				      from_fine(d, counts[0]) + from_fine(d, counts[1]), o->length,
				      o->seed, watch, err);

	for (int i = 0; rc == 0 && i < 2; i++) {
		uint64_t own = from_fine(d, counts[i]), base = from_base(d, counts[i]), left;

		if (base > d->base_text.count - base_used)
			base = d->base_text.count - base_used;
		rc = bdx_windows_append(targets[i], &fine, fine_used, own, err);
		if (rc == 0)
			rc = bdx_windows_append(targets[i], &d->base_text, base_used, base, err);
		left = counts[i] - own - base;
		if (rc == 0 && left && d->tokenizer)
			rc = bdx_general_windows(&general, d->tokenizer, d->config->vocabulary,
						 left, o->length, o->seed + (uint64_t)i, watch,
						 err);
		kept = general.count;
		if (rc == 0)
			rc = bdx_windows_append(targets[i], &general, 0, kept, err);
		if (rc == 0) /* where there is nothing else, the fine-tune's text again */
			rc = bdx_windows_append(targets[i], &fine, fine_used, left - kept, err);
		bdx_windows_free(&general);
		fine_used += own;
		base_used += base;
	}
	bdx_windows_free(&fine);
	return rc;
}

/* The user's text: its last eighth is what the others are not cut from. Where it is too short
 * for that, all are cut from everywhere. */
static int file_windows(struct distill *d, struct bdx_windows *train, struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	uint64_t count, rest = 0;
	int32_t *tokens;
	int rc = bdx_file_tokens(&tokens, &count, o->calib, d->tokenizer, d->config->vocabulary,
				 &o->watch, err);

	if (rc < 0)
		return rc;
	if (count / 8 >= o->length)
		rest = count - count / 8;
	rc = bdx_cut_windows(&d->windows, tokens + rest, count - rest, HELD_OUT, o->length,
			     o->seed + 1, o->calib, err);
	if (rc == 0)
		rc = bdx_cut_windows(train, tokens, rest ? rest : count, learned(d), o->length,
				     o->seed, o->calib, err);
	free(tokens);
	return rc;
}

static int make_windows(struct distill *d, struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	struct bdx_windows train = { 0 };
	struct bdx_phase phase;
	int rc;

	begin_part(&phase, d, WRITE_FINE);
	rc = o->calib ? file_windows(d, &train, err) : mix_windows(d, &train, &phase.watch, err);
	if (rc == 0) {
		bdx_windows_shuffle(&train, o->seed);
		rc = bdx_windows_append(&d->windows, &train, 0, train.count, err);
	}
	bdx_windows_free(&train);
	return rc;
}

/* The teacher: load, write text, run over all windows, leave its head. */
static int run_teacher(struct distill *d, struct bd_error *err)
{
	struct bdx_distill_report *r = d->report;
	struct bdx_phase phase;
	double started = bdx_now();
	int rc;

	begin_part(&phase, d, LOAD_FINE);
	rc = bdx_model_open(&d->teacher, d->ops, d->config, d->fine, &phase.watch, err);
	r->seconds_load += bdx_now() - started;
	if (rc == 0)
		rc = foresee(d, d->teacher, LOAD_FINE, bdx_now() - started, err);
	started = bdx_now();
	if (rc == 0)
		rc = make_windows(d, err);
	r->seconds_calibrate += bdx_now() - started;
	started = bdx_now();
	begin_part(&phase, d, TEACH);
	if (rc == 0)
		rc = bdx_judge_open(&d->judge, d->teacher, &d->windows, &phase.watch, err);
	if (rc == 0)
		bdx_model_keep_head(d->teacher);
	r->seconds_teacher = bdx_now() - started;
	return rc;
}

/* ---- Learning ---- */

static double mean(const float *values, uint64_t count)
{
	double sum = 0;

	for (uint64_t i = 0; i < count; i++)
		sum += fabs((double)values[i]);
	return count ? sum / (double)count : 0;
}

static void fill(float *values, uint64_t count, double value)
{
	for (uint64_t i = 0; i < count; i++)
		values[i] = (float)value;
}

/* The size that a relative step of each scale refers to: the mean of its tensor's rows, or
 * columns. */
static void find_units(const struct bd_delta *delta, const float *scales, float *units)
{
	for (size_t f = 0; f < delta->file_count; f++)
		for (size_t t = 0; delta->files[f].st && t < delta->files[f].st->count; t++) {
			const struct bd_entry *e = &delta->files[f].entries[t];
			uint64_t at = e->scales;

			for (unsigned p = 0; p < e->planes; p++, at += e->rows + e->cols) {
				fill(units + at, e->rows, mean(scales + at, e->rows));
				fill(units + at + e->rows, e->cols,
				     mean(scales + at + e->rows, e->cols));
			}
		}
}

static int upload_reals(struct distill *d, void *to, const float *values, uint64_t count,
			struct bd_error *err)
{
	struct bdx_ops *ops = d->ops;
	void *floats = ops->alloc(ops, count * sizeof(*values), err);
	int rc;

	if (!floats)
		return err ? err->code : -ENOMEM;
	ops->upload(ops, floats, values, count * sizeof(*values));
	ops->convert(ops, to, ops->real, floats, BD_F32, count);
	rc = ops->finish(ops, err);
	ops->free(ops, floats);
	return rc;
}

static int open_optimiser(struct distill *d, struct bd_error *err)
{
	struct bdx_ops *ops = d->ops;
	const struct bd_delta *delta = d->view->delta;
	uint64_t count = d->student->scale_count;
	size_t bytes = count * bdx_real_size(ops);
	float *scales = malloc(count * sizeof(*scales)), *units = malloc(count * sizeof(*units));
	int rc = 0;

	if (!scales || !units) {
		rc = bd_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	if (!(d->unit = ops->alloc(ops, bytes, err)) || !(d->m = ops->alloc(ops, bytes, err)) ||
	    !(d->v = ops->alloc(ops, bytes, err)) || !(d->best = ops->alloc(ops, bytes, err))) {
		rc = err ? err->code : -ENOMEM;
		goto out;
	}
	rc = bd_file_read(delta->file, scales, count * sizeof(*scales), delta->scales->offset, err);
	if (rc < 0)
		goto out;
	find_units(delta, scales, units);
	rc = upload_reals(d, d->unit, units, count, err);
	ops->copy(ops, d->best, d->student->scales, bytes);
out:
	free(scales);
	free(units);
	return rc;
}

struct distance { /* of the student from the teacher, on the held-out windows */
	double kl, mse, top1;
};

static int measure(struct distill *d, struct distance *distance, struct bd_error *err)
{
	const struct bd_watch watch = { .cancel = d->options->watch.cancel };
	struct bdx_score score = { 0 };
	int rc = bdx_judge_measure(d->judge, d->student, 0, HELD_OUT, &score, &watch, err);

	if (rc == 0 && !isfinite(score.nll_teacher))
		rc = bd_error_set(err, -EDOM, "%s: this model gives no numbers: among its logits are NaN or "
				  "infinities", bdx_source_name(d->fine));
	distance->kl = score.kl / (double)score.positions;
	distance->mse = score.mse / (double)score.positions;
	distance->top1 = score.agree / (double)score.positions;
	return rc;
}

static void report_after(struct bdx_distill_report *r, const struct distance *distance)
{
	r->kl_after = distance->kl;
	r->mse_after = distance->mse;
	r->top1_after = distance->top1;
}

/* One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101; without decay) on the windows of
 * step `step`. */
static int learn(struct distill *d, uint64_t step, double rate, uint64_t since, struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	struct bdx_ops *ops = d->ops;
	struct bdx_model *s = d->student;
	/* F16 has few small numbers: gradients are kept within its range, and divided
	 * afterwards. */
	double factor = ops->operand == BD_F16 ? 16 : 1;
	struct bdx_adam adam = {
		.rate = rate, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-12, .step = since,
		.gradient_factor = 1 / (factor * (double)(o->batch * o->length)),
	};
	int rc;

	ops->zero(ops, s->scale_gradient, s->scale_count * bdx_real_size(ops));
	rc = bdx_judge_learn(d->judge, s, HELD_OUT + step % batches(d) * o->batch, o->batch,
			     d->mse_weight, d->kl_weight, factor, NULL, err);
	if (rc < 0)
		return rc;
	ops->adam(ops, &adam, s->scales, s->scale_gradient, d->unit, d->m, d->v, s->scale_count);
	return 0;
}

/* The terms of the loss are measured by what they are at the beginning: logits have another size
 * in every model. */
static void weigh_loss(struct distill *d)
{
	const struct bdx_distill_report *r = d->report;
	bool usable = r->mse_before > 0 && r->kl_before > 0;

	d->kl_weight = d->options->loss == BDX_LOSS_MSE ? 0 : 1;
	d->mse_weight = d->options->loss == BDX_LOSS_KL ? 0 : 1;
	if (d->options->loss == BDX_LOSS_BOTH && usable)
		d->mse_weight = r->kl_before / r->mse_before / KL_WEIGHT;
}

/* All steps; in the end the student has the best scales that were found. */
static int learn_all(struct distill *d, struct bd_error *err)
{
	const struct bdx_distill_options *o = d->options;
	struct bdx_distill_report *r = d->report;
	struct bdx_ops *ops = d->ops;
	size_t bytes = d->student->scale_count * bdx_real_size(ops);
	double rate = o->rate > 0 ? o->rate : RATE;
	struct distance now;
	uint64_t since = 0; /* steps since the averages of the optimiser began */
	struct bdx_phase phase;
	int rc = measure(d, &now, err);

	report_after(r, &now);
	r->kl_before = now.kl;
	r->mse_before = now.mse;
	r->top1_before = now.top1;
	weigh_loss(d);
	begin_part(&phase, d, LEARN);
	for (uint64_t step = 0; rc == 0 && step < o->steps; step++) {
		double warm = step < WARM_UP ? (double)(step + 1) / WARM_UP : 1;
		double decay = 1 - (double)step / (double)o->steps;

		rc = bdx_check_cancel(&o->watch, err);
		if (rc == 0)
			rc = learn(d, step, rate * warm * decay, ++since, err);
		bdx_progress(&phase.watch, step + 1, o->steps); /* a GPU is a step or two behind */
		if (rc < 0 || ((step + 1) % MEASURE_EVERY != 0 && step + 1 != o->steps))
			continue;
		rc = measure(d, &now, err);
		if (rc == 0 && now.kl < r->kl_after) {
			report_after(r, &now);
			r->best_step = step + 1;
			ops->copy(ops, d->best, d->student->scales, bytes);
		} else if (rc == 0 && !(now.kl < DIVERGED * r->kl_before)) {
			ops->copy(ops, d->student->scales, d->best, bytes);
			ops->zero(ops, d->m, bytes);
			ops->zero(ops, d->v, bytes);
			since = 0;
			rate /= 4;
		}
	}
	ops->copy(ops, d->student->scales, d->best, bytes);
	return rc < 0 ? rc : ops->finish(ops, err);
}

static int store(struct distill *d, struct bd_error *err)
{
	struct bdx_ops *ops = d->ops;
	uint64_t count = d->student->scale_count;
	float *scales = malloc(count * sizeof(*scales));
	void *floats = ops->alloc(ops, count * sizeof(*scales), err);
	int rc;

	if (!scales || !floats) {
		rc = floats ? bd_error_set(err, -ENOMEM, "out of memory") : err ? err->code : -ENOMEM;
		goto out;
	}
	ops->convert(ops, floats, BD_F32, d->student->scales, ops->real, count);
	ops->download(ops, scales, floats, count * sizeof(*scales));
	rc = ops->finish(ops, err);
	if (rc == 0)
		rc = bdx_source_check(d->fine, err);
	if (rc == 0)
		rc = bd_base_check(d->base, err);
	if (rc == 0)
		rc = bd_refine(d->view->delta, scales, d->options->out, &d->was,
			       d->options->watch.cancel, err);
out:
	ops->free(ops, floats);
	free(scales);
	return rc;
}

/* Bytes for rebuilt weights that a training pass leaves free. */
static size_t spare_memory(const struct distill *d)
{
	uint64_t length = d->options->length, tokens = d->options->batch * length;
	size_t left = d->ops->available(d->ops);
	size_t pass = bdx_model_pass_bytes(d->student, tokens, length, true) + SPARE;

	if (left < pass)
		return 0;
	return left - pass < KEPT_WEIGHTS ? left - pass : KEPT_WEIGHTS;
}

static int run_student(struct distill *d, struct bd_error *err)
{
	struct bdx_distill_report *r = d->report;
	struct bdx_phase phase;
	double started = bdx_now();
	int rc;

	begin_part(&phase, d, LOAD_STUDENT);
	rc = bdx_model_open_student(&d->student, d->ops, d->config, d->view, &phase.watch, err);
	r->seconds_load += bdx_now() - started;
	if (rc == 0)
		rc = open_optimiser(d, err);
	if (rc == 0)
		bdx_model_keep_weights(d->student, spare_memory(d));
	started = bdx_now();
	if (rc == 0)
		rc = learn_all(d, err);
	r->seconds_steps = bdx_now() - started;
	r->peak_memory = d->ops->peak(d->ops);
	if (rc < 0)
		return rc;
	if (r->best_step == 0)
		return decline(d, "no step came closer to the fine-tune on held-out windows (kl %.5f): "
			       "the scales are as good as they were", r->kl_before);
	return store(d, err);
}

static int check_options(const struct bdx_distill_options *o, struct bd_error *err)
{
	if (o->steps < 1 || o->steps > 1000000 || o->batch < 1 || o->batch > 4096 ||
	    o->length < 2 || o->length > 1 << 20 || o->batch * o->length > 1 << 20)
		return bd_error_set(err, -EINVAL, "steps (at least 1), batch (at least 1) or "
				    "length (at least 2 tokens) are out of range; a step has at "
				    "most %d tokens", 1 << 20);
	if (!(o->rate >= 0) || o->rate > 10)
		return bd_error_set(err, -EINVAL, "the rate must be from 0 to 10");
	return 0;
}

static bool has_scales(const struct bd_delta *delta)
{
	return delta->scales && delta->scales->size > 0;
}

static void end(struct distill *d)
{
	bdx_judge_close(d->judge);
	if (d->ops) {
		d->ops->free(d->ops, d->unit);
		d->ops->free(d->ops, d->m);
		d->ops->free(d->ops, d->v);
		d->ops->free(d->ops, d->best);
	}
	bdx_model_close(d->student);
	bdx_model_close(d->teacher);
	bdx_ops_close(d->ops);
	bdx_windows_free(&d->windows);
	bdx_windows_free(&d->base_text);
	bdx_tokenizer_close(d->tokenizer);
	bd_view_close(d->view);
	bd_base_close(d->base);
	bdx_config_free(d->config);
	bdx_source_close(d->fine);
}

int bdx_distill(const struct bdx_distill_options *options, struct bdx_distill_report *report,
		struct bd_error *err)
{
	struct distill d = {
		.options = &d.own, .own = *options, .report = report,
		.parts = { 80, 80, 80, 100, 60, 50, 550 },
	};
	double started = bdx_now();
	int rc = check_options(options, err);

	*report = (struct bdx_distill_report){ 0 };
	if (rc < 0)
		return rc;
	/* Before the delta is opened, which mostly is what has the name. */
	rc = bd_output_note(&d.was, options->out, err);
	if (rc == 0)
		rc = open_inputs(&d, err);
	if (rc == 0 && !has_scales(d.view->delta))
		rc = decline(&d, "nothing in it is coded by signs");
	if (rc == 0)
		rc = open_device(&d, err);
	if (rc == 0 && !options->calib)
		rc = run_base(&d, err);
	if (rc == 0)
		rc = run_teacher(&d, err);
	if (rc == 0)
		rc = run_student(&d, err);
	end(&d);
	report->seconds_total = bdx_now() - started;
	if (rc == 0)
		report->done = true;
	return rc < 0 ? rc : 0;
}
