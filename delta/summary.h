/* SPDX-License-Identifier: Apache-2.0 */
/* summary.h: the figures of a delta that people ask for: sizes, encodings, errors. */
#ifndef BD_SUMMARY_H
#define BD_SUMMARY_H

#include "delta.h"

struct bd_encoding_summary {
	uint64_t tensors;
	uint64_t bytes;  /* of those tensors in the fine-tune */
	uint64_t stored; /* for them in the delta: planes and scales, or the raw or coded bytes */
};

struct bd_summary {
	uint64_t fine_bytes;  /* all files of the fine-tune's directory */
	uint64_t delta_bytes; /* the .bdelta file */
	uint64_t weights;     /* that are sign-coded */
	struct bd_encoding_summary encodings[BD_ENCODINGS];
	struct bd_encoding_summary other_files; /* "tensors" counts files here */
	double error_median, error_worst; /* relative errors of sign-coded tensors; negative: unknown */
	const char *worst;                /* the tensor with the worst, borrowed; NULL: unknown */
};

/* Bytes that the delta holds for one tensor. */
uint64_t bd_summary_stored(const struct bd_entry *e);
/* Errors: -ENOMEM. */
int bd_summary_of(const struct bd_delta *delta, struct bd_summary *summary, struct bd_error *err);

#endif
