/* SPDX-License-Identifier: Apache-2.0 */
/* engine.c: options and results of the subcommands that run models, see engine.h. */
#include "engine.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device.h"

int engine_device(const struct command *command, const char *value, const char **device)
{
	if (!value)
		return EXIT_OK;
	if (!bdx_device_is_valid(value))
		return command_usage(command, "--device is auto, cpu, cuda or cuda:N, not '%s'", value);
	*device = value;
	return EXIT_OK;
}

int engine_threads(const struct command *command, const char *value, unsigned *threads)
{
	uint64_t number = *threads;
	int status = command_whole(command, "--threads", value, 1, 1024, &number);

	*threads = (unsigned)number;
	return status;
}

static int settle_loss(const struct command *command, const char *value, enum bdx_loss *loss)
{
	static const char *const names[] = {
		[BDX_LOSS_BOTH] = "both", [BDX_LOSS_MSE] = "mse", [BDX_LOSS_KL] = "kl",
	};

	if (!value)
		return EXIT_OK;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcmp(value, names[i]) == 0) {
			*loss = (enum bdx_loss)i;
			return EXIT_OK;
		}
	return command_usage(command, "--loss is both, mse or kl, not '%s'", value);
}

int engine_settle(const struct command *command, const struct engine_arguments *a, uint64_t steps,
		  struct bdx_distill_options *o)
{
	int status = engine_device(command, a->device, &o->device);

	/* A wrong name is found before the work. */
	if (a->calib && access(a->calib, R_OK) < 0) {
		struct bd_error err = { 0 };

		bd_error_set(&err, -errno, "%s: %s", a->calib, strerror(errno));
		return command_fail(command, &err);
	}
	o->calib = a->calib;
	if (status == EXIT_OK)
		status = settle_loss(command, a->loss, &o->loss);
	if (status == EXIT_OK)
		status = command_whole(command, "--steps", a->steps, steps, 1000000, &o->steps);
	if (status == EXIT_OK)
		status = command_whole(command, "--seed", a->seed, 0, UINT64_MAX, &o->seed);
	if (status == EXIT_OK)
		status = command_whole(command, "--batch", a->batch, 1, 4096, &o->batch);
	if (status == EXIT_OK)
		status = command_whole(command, "--length", a->length, 2, 1 << 20, &o->length);
	if (status == EXIT_OK)
		status = command_real(command, "--rate", a->rate, 1e-9, 10, &o->rate);
	return status == EXIT_OK ? engine_threads(command, a->threads, &o->threads) : status;
}

void engine_begin(struct progress *progress, struct bd_watch *watch, const char *verb, bool json,
		  bool quiet)
{
	progress_begin(progress, watch, verb, json, quiet);
	progress->share_only = true;
}

void engine_print_distillation(const struct bdx_distill_report *r)
{
	if (!r->done)
		return;
	printf("  distilled on ");
	print_plain(r->device);
	printf(": kl %.4g -> %.4g on held-out text, %.1f s\n", r->kl_before, r->kl_after,
	       r->seconds_total);
	printf("  likeliest next token as the fine-tune's: %.1f %% -> %.1f %%; bitdelta eval tells more\n",
	       100 * r->top1_before, 100 * r->top1_after);
}

void engine_json_real(struct json *j, cJSON *object, const char *name, double value)
{
	if (isfinite(value))
		json_number(j, object, name, "%.6g", value);
	else
		json_raw(j, object, name, "null");
}

void engine_json_distillation(struct json *j, cJSON *o, const struct bdx_distill_report *r)
{
	json_bool(j, o, "done", r->done);
	if (!r->done)
		json_string(j, o, "why", r->why);
	if (*r->device)
		json_string(j, o, "device", r->device);
	if (r->kl_before == 0) /* it did not come to that */
		return;
	engine_json_real(j, o, "kl_before", r->kl_before);
	engine_json_real(j, o, "kl_after", r->kl_after);
	engine_json_real(j, o, "mse_before", r->mse_before);
	engine_json_real(j, o, "mse_after", r->mse_after);
	engine_json_real(j, o, "top1_before", r->top1_before);
	engine_json_real(j, o, "top1_after", r->top1_after);
	json_number(j, o, "best_step", "%llu", (unsigned long long)r->best_step);
	json_number(j, o, "seconds_load", "%.3f", r->seconds_load);
	json_number(j, o, "seconds_calibrate", "%.3f", r->seconds_calibrate);
	json_number(j, o, "seconds_teacher", "%.3f", r->seconds_teacher);
	json_number(j, o, "seconds_steps", "%.3f", r->seconds_steps);
	json_number(j, o, "seconds_total", "%.3f", r->seconds_total);
	json_number(j, o, "peak_memory", "%zu", r->peak_memory);
}
