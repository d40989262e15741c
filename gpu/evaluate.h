/* SPDX-License-Identifier: Apache-2.0 */
/* evaluate.h: how close is a delta to its fine-tune, as functions? */
#ifndef BDX_EVALUATE_H
#define BDX_EVALUATE_H

#include "parallel.h"
#include "ops.h"

struct bdx_quality {            /* averages over all positions of its windows; NAN without any */
	uint64_t tokens;        /* so many positions */
	double kl, mse, top1;   /* against the fine-tune; kl in nats, top1 from 0 to 1 */
	double perplexity;      /* of the candidate on the text */
};

struct bdx_evaluate_options {
	const char *base, *fine, *delta;
	const char *text;       /* NULL: text that the fine-tune writes, and the general text */
	const char *device;
	uint64_t length, windows; /* 128, at most 256 */
	double seconds;         /* that it may take, about: fewer windows then, but always some; 0: all of
	                         * them, however long it takes. 60 */
	unsigned threads;
	struct bd_watch watch;
};

struct bdx_text_quality {
	char name[256];         /* of the text */
	uint64_t windows;       /* of it that were used */
	double perplexity_fine;
	struct bdx_quality base, delta;
};

struct bdx_evaluation {
	char device[128];
	unsigned count;
	struct bdx_text_quality texts[2];
};

/* The averages of base and delta are over the same windows, but for those with tokens that the
 * base does not have, which are left out for the base (base.tokens is then smaller). A model
 * without a tokenizer that is known has only the text that the fine-tune writes. Errors:
 * -ENOTSUP an architecture that is not known; -EINVAL inputs that do not fit, as a fine-tune that
 * the delta was not made from; -EDOM logits that are no numbers; those of reading and of the
 * device; -EINTR. */
void bdx_evaluate_defaults(struct bdx_evaluate_options *options);
int bdx_evaluate(const struct bdx_evaluate_options *options, struct bdx_evaluation *result,
		 struct bd_error *err);

#endif
