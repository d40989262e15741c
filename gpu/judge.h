/* SPDX-License-Identifier: Apache-2.0 */
/* judge.h: a teacher's outputs on windows of tokens, and other models held against them.
 *
 * The teacher runs once; only its final hidden states are kept (operand, width elements a token), from
 * which its head gives the logits again whenever they are needed, exactly as the first time. */
#ifndef BDX_JUDGE_H
#define BDX_JUDGE_H

#include "calib.h"
#include "distill.h"

struct bdx_score {              /* sums over positions */
	double mse, kl, agree;
	double nll_teacher, nll_student;
	uint64_t positions, targets;
};

struct bdx_judge {
	struct bdx_ops *ops;          /* borrowed, as are teacher and windows */
	struct bdx_model *teacher;
	const struct bdx_windows *windows;
	uint64_t width, vocabulary;   /* the teacher's */
	void *hidden;                 /* operand [windows, length, width] */
	/* Scratch for `rows` rows of logits, of two models each, and for `batch` windows. */
	uint64_t rows, batch;
	uint64_t student_width, student_vocabulary;
	void *student_logits, *teacher_logits, *logits_gradient;
	void *student_hidden, *hidden_gradient;
	int32_t *targets;
	struct bdx_comparison *results, *results_host;
};

/* Run the teacher over all windows; afterwards only its head is needed (bdx_model_keep_head). */
int bdx_judge_open(struct bdx_judge **judge, struct bdx_model *teacher,
		   const struct bdx_windows *windows, const struct bd_watch *watch,
		   struct bd_error *err);
void bdx_judge_close(struct bdx_judge *judge); /* NULL allowed */

/* Run MODEL over `count` windows from `first` on and add to the score. Its vocabulary may
 * differ: what both have is compared. Windows with tokens that it does not have are left out. So
 * may its width. */
int bdx_judge_measure(struct bdx_judge *judge, struct bdx_model *model, uint64_t first,
		      uint64_t count, struct bdx_score *score, const struct bd_watch *watch,
		      struct bd_error *err);

/* One training pass of a student over `count` windows from `first` on: adds `factor` times the
 * gradient of the loss, summed over positions, to student->scale_gradient. Where `score` is
 * given, waits for the results and adds them. */
int bdx_judge_learn(struct bdx_judge *judge, struct bdx_model *student, uint64_t first,
		    uint64_t count, double mse_weight, double kl_weight, double factor,
		    struct bdx_score *score, struct bd_error *err);

#endif
