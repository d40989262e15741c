/* SPDX-License-Identifier: Apache-2.0 */
/* judge.c: a teacher's outputs on windows, and other models held against them. See judge.h. */
#include "judge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

#define LOGITS ((uint64_t)1 << 24) /* elements of one chunk of logits */
#define PASS_TOKENS 4096           /* of one forward pass, where memory allows; */
#define CPU_TOKENS 1024            /* on the CPU, so that progress is seen to be made */

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Windows of one forward pass: as many as have so many tokens, fewer where they would take more
 * than half of the memory that is left. */
static uint64_t pass_windows(const struct bdx_judge *j, const struct bdx_model *model)
{
	uint64_t length = j->windows->length;
	uint64_t count = (bdx_device_is_cpu(j->ops) ? CPU_TOKENS : PASS_TOKENS) / length;
	size_t available = j->ops->available(j->ops);

	count = smaller(count ? count : 1, j->windows->count);
	while (count > 1 && bdx_model_pass_bytes(model, count * length, length, false) > available / 2)
		count /= 2;
	return count;
}

static const int32_t *window(const struct bdx_judge *j, uint64_t index)
{
	return j->windows->tokens + index * j->windows->length;
}

int bdx_judge_open(struct bdx_judge **judge, struct bdx_model *teacher,
		   const struct bdx_windows *windows, const struct bd_watch *watch,
		   struct bd_error *err)
{
	struct bdx_judge *j = calloc(1, sizeof(*j));
	struct bdx_ops *ops = teacher->ops;
	uint64_t pass, tokens;
	int rc = 0;

	*judge = NULL;
	if (!j)
		return bd_error_set(err, -ENOMEM, "out of memory");
	*j = (struct bdx_judge){
		.ops = ops, .teacher = teacher, .windows = windows,
		.width = teacher->config->width, .vocabulary = teacher->config->vocabulary,
	};
	tokens = windows->count * windows->length;
	j->hidden = ops->alloc(ops, tokens * j->width * bdx_operand_size(ops), err);
	if (!j->hidden) {
		bdx_judge_close(j);
		bd_error_prefix(err, "the teacher's outputs");
		return err ? err->code : -ENOMEM;
	}
	pass = pass_windows(j, teacher);
	for (uint64_t w = 0; rc == 0 && w < windows->count; w += pass) {
		uint64_t n = smaller(pass, windows->count - w);

		rc = bdx_check_cancel(watch, err);
		if (rc == 0)
			rc = bdx_model_forward(teacher, window(j, w), n, windows->length, false,
					       bdx_operand(ops, j->hidden,
							   w * windows->length * j->width), err);
		bdx_progress(watch, w + n, windows->count);
	}
	if (rc == 0)
		rc = ops->finish(ops, err);
	if (rc < 0) {
		bdx_judge_close(j);
		return rc;
	}
	*judge = j;
	return 0;
}

static void free_scratch(struct bdx_judge *j)
{
	struct bdx_ops *ops = j->ops;

	ops->free(ops, j->student_logits);
	ops->free(ops, j->teacher_logits);
	ops->free(ops, j->logits_gradient);
	ops->free(ops, j->student_hidden);
	ops->free(ops, j->hidden_gradient);
	ops->free(ops, j->targets);
	ops->free(ops, j->results);
	free(j->results_host);
	j->student_logits = j->teacher_logits = j->logits_gradient = NULL;
	j->student_hidden = j->hidden_gradient = NULL;
	j->targets = NULL;
	j->results = j->results_host = NULL;
	j->rows = j->batch = 0;
}

void bdx_judge_close(struct bdx_judge *j)
{
	if (!j)
		return;
	free_scratch(j);
	j->ops->free(j->ops, j->hidden);
	free(j);
}

/* Scratch for passes of `batch` windows of a model. */
static int prepare(struct bdx_judge *j, uint64_t batch, const struct bdx_model *model,
		   bool gradients, struct bd_error *err)
{
	uint64_t vocabulary = model->config->vocabulary, width = model->config->width;
	struct bdx_ops *ops = j->ops;
	uint64_t tokens = batch * j->windows->length, widest, rows;
	size_t real = bdx_real_size(ops), operand = bdx_operand_size(ops);

	if (batch <= j->batch && vocabulary == j->student_vocabulary && width == j->student_width &&
	    (!gradients || j->logits_gradient))
		return 0;
	free_scratch(j);
	widest = vocabulary > j->vocabulary ? vocabulary : j->vocabulary;
	rows = smaller(tokens, LOGITS / widest + 1);
	j->student_logits = ops->alloc(ops, rows * vocabulary * real, err);
	j->teacher_logits = ops->alloc(ops, rows * j->vocabulary * real, err);
	j->student_hidden = ops->alloc(ops, tokens * width * operand, err);
	j->targets = ops->alloc(ops, tokens * sizeof(*j->targets), err);
	j->results = ops->alloc(ops, tokens * sizeof(*j->results), err);
	if (gradients) {
		j->logits_gradient = ops->alloc(ops, rows * vocabulary * operand, err);
		j->hidden_gradient = ops->alloc(ops, tokens * width * real, err);
	}
	j->results_host = malloc(tokens * sizeof(*j->results_host));
	if (!j->student_logits || !j->teacher_logits || !j->student_hidden || !j->targets ||
	    !j->results || (gradients && (!j->logits_gradient || !j->hidden_gradient))) {
		free_scratch(j);
		return err ? err->code : -ENOMEM;
	}
	if (!j->results_host) {
		free_scratch(j);
		return bd_error_set(err, -ENOMEM, "out of memory");
	}
	j->rows = rows;
	j->batch = batch;
	j->student_vocabulary = vocabulary;
	j->student_width = width;
	return 0;
}

/* What every position of these windows is to predict: the next token, none at the end of a
 * window. */
static int upload_targets(struct bdx_judge *j, uint64_t first, uint64_t count, uint64_t vocabulary,
			  struct bd_error *err)
{
	uint64_t length = j->windows->length, tokens = count * length;
	int32_t *targets = malloc(tokens * sizeof(*targets));
	int rc;

	if (!targets)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (uint64_t i = 0; i < tokens; i++) {
		int32_t next = (i + 1) % length ? window(j, first)[i + 1] : -1;

		targets[i] = next >= 0 && (uint64_t)next < vocabulary ? next : -1;
	}
	rc = j->ops->finish(j->ops, err); /* uploads do not wait for what runs */
	if (rc == 0)
		j->ops->upload(j->ops, j->targets, targets, tokens * sizeof(*targets));
	free(targets);
	return rc;
}

static int add_results(struct bdx_judge *j, uint64_t first, uint64_t count, uint64_t vocabulary,
		       struct bdx_score *score, struct bd_error *err)
{
	uint64_t length = j->windows->length, tokens = count * length;

	j->ops->download(j->ops, j->results_host, j->results, tokens * sizeof(*j->results));
	for (uint64_t i = 0; i < tokens; i++) {
		const struct bdx_comparison *r = &j->results_host[i];

		score->mse += r->mse;
		score->kl += r->kl;
		score->agree += r->agree;
		score->nll_teacher += r->nll_teacher;
		score->nll_student += r->nll_student;
		score->targets += (i + 1) % length &&
				  (uint64_t)window(j, first)[i + 1] < vocabulary;
	}
	score->positions += tokens;
	return j->ops->finish(j->ops, err);
}

/* Hold the student's hidden states of windows against the teacher's, a chunk of logits at a
 * time; with `learn`, hidden_gradient is filled. */
static void compare(struct bdx_judge *j, struct bdx_model *model, uint64_t first, uint64_t count,
		    bool learn, double mse_weight, double kl_weight, double factor, bool targets)
{
	struct bdx_ops *ops = j->ops;
	uint64_t length = j->windows->length, tokens = count * length;
	uint64_t vocabulary = smaller(j->student_vocabulary, j->vocabulary);
	const void *hidden = bdx_operand(ops, j->hidden, first * length * j->width);

	for (uint64_t r = 0; r < tokens; r += j->rows) {
		uint64_t n = smaller(j->rows, tokens - r);

		bdx_model_logits(model, j->student_logits,
				 bdx_operand(ops, j->student_hidden, r * j->student_width), n);
		bdx_model_logits(j->teacher, j->teacher_logits,
				 bdx_operand(ops, hidden, r * j->width), n);
		ops->compare(ops, j->results + r, learn ? j->logits_gradient : NULL,
			     j->student_logits, j->student_vocabulary, j->teacher_logits,
			     j->vocabulary, targets ? j->targets + r : NULL, n, vocabulary,
			     mse_weight, kl_weight, factor);
		if (learn)
			bdx_model_logits_backward(model,
						  bdx_real(ops, j->hidden_gradient,
							   r * j->student_width),
						  j->logits_gradient, n);
	}
}

/* Does the model have all tokens of a window? */
static bool is_known(const struct bdx_judge *j, uint64_t index, uint64_t vocabulary)
{
	for (uint64_t i = 0; i < j->windows->length; i++)
		if ((uint64_t)window(j, index)[i] >= vocabulary)
			return false;
	return true;
}

int bdx_judge_measure(struct bdx_judge *j, struct bdx_model *model, uint64_t first,
		      uint64_t count, struct bdx_score *score, const struct bd_watch *watch,
		      struct bd_error *err)
{
	uint64_t vocabulary = model->config->vocabulary, length = j->windows->length;
	uint64_t pass = pass_windows(j, model), n;
	int rc = 0;

	pass = smaller(pass, count);
	if (pass < j->batch) /* what a training pass allocated serves */
		pass = smaller(j->batch, count);
	for (uint64_t w = first; rc == 0 && w < first + count; w += n) {
		for (n = 0; n < pass && w + n < first + count; n++)
			if (!is_known(j, w + n, vocabulary))
				break;
		if (n == 0) {
			n = 1;
			continue;
		}
		rc = bdx_check_cancel(watch, err);
		if (rc == 0)
			rc = prepare(j, n, model, j->logits_gradient != NULL, err);
		if (rc == 0)
			rc = upload_targets(j, w, n, smaller(vocabulary, j->vocabulary), err);
		if (rc == 0)
			rc = bdx_model_forward(model, window(j, w), n, length, false,
					       j->student_hidden, err);
		if (rc < 0)
			break;
		compare(j, model, w, n, false, 0, 0, 0, true);
		rc = add_results(j, w, n, smaller(vocabulary, j->vocabulary), score, err);
		bdx_progress(watch, w + n - first, count);
	}
	return rc;
}

int bdx_judge_learn(struct bdx_judge *j, struct bdx_model *student, uint64_t first,
		    uint64_t count, double mse_weight, double kl_weight, double factor,
		    struct bdx_score *score, struct bd_error *err)
{
	uint64_t vocabulary = student->config->vocabulary;
	int rc = prepare(j, count, student, true, err);

	if (rc == 0)
		rc = bdx_model_forward(student, window(j, first), count, j->windows->length, true,
				       j->student_hidden, err);
	if (rc < 0)
		return rc;
	compare(j, student, first, count, true, mse_weight, kl_weight, factor, false);
	rc = bdx_model_backward(student, j->hidden_gradient, err);
	if (rc == 0 && score)
		rc = add_results(j, first, count, smaller(vocabulary, j->vocabulary), score, err);
	return rc;
}
