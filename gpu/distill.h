/* SPDX-License-Identifier: Apache-2.0 */
/* distill.h: refine the scales of a delta until the student's logits match the fine-tune's. */
#ifndef BDX_DISTILL_H
#define BDX_DISTILL_H

#include "parallel.h"
#include "ops.h"

enum bdx_loss { BDX_LOSS_BOTH, BDX_LOSS_MSE, BDX_LOSS_KL };

struct bdx_distill_options {
	const char *base, *fine, *delta; /* directories, and the .bdelta to refine */
	const char *out;                 /* where the refined file goes; may be == delta */
	const char *device;              /* "auto", "cpu" (however long it takes), "cuda", "cuda:N" */
	const char *calib;               /* a file of calibration text; NULL: the default mix */
	enum bdx_loss loss;
	uint64_t steps, batch, length;   /* 200, 4, 128 */
	double rate;                     /* relative step at the start; 0: the default */
	uint64_t seed;
	unsigned threads;
	struct bd_watch watch;           /* progress: parts of a thousand of the expected work, not bytes */
};

struct bdx_distill_report {
	bool done;                  /* the file was refined; else `why` says why not */
	char why[512];
	char device[128];
	double kl_before, kl_after; /* on held-out windows */
	double mse_before, mse_after;
	double top1_before, top1_after; /* share of likeliest next tokens that are the fine-tune's */
	uint64_t best_step;
	double seconds_load, seconds_calibrate, seconds_teacher, seconds_steps, seconds_total;
	size_t peak_memory;         /* of the device */
};

#define BDX_STEPS 200
#define BDX_BATCH 4
#define BDX_LENGTH 128

void bdx_distill_defaults(struct bdx_distill_options *options);
/* 0 with report->done false where there is no way to distil here that suits (an unknown
 * architecture, no GPU and a model too large for the CPU, nothing to train, no improvement
 * found): the delta is as it was and still good. Negative: bad arguments, inputs that cannot be
 * read, -EINTR; a device that failed or ran out of memory; -ECANCELED: `out` is no longer what it
 * was at the beginning (bd_output_replace). The file at `out` is then also as it was. */
int bdx_distill(const struct bdx_distill_options *options, struct bdx_distill_report *report,
		struct bd_error *err);

#endif
