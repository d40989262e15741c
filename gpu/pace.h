/* SPDX-License-Identifier: Apache-2.0 */
/* pace.h: how fast a model runs here, measured on the model itself, so that long work can be planned
 * and announced. What is measured takes about as long as four windows. */
#ifndef BDX_PACE_H
#define BDX_PACE_H

#include "calib.h"

struct bdx_pace {         /* seconds: */
	double pass;      /* of a window through the model up to its last hidden states */
	double compared;  /* of such a pass, with the logits of two models, and these compared */
};

/* For windows of `length` tokens. */
int bdx_pace_measure(struct bdx_pace *pace, struct bdx_model *model, uint64_t length,
		     struct bd_error *err);
/* *seconds: for the next token of `count` sequences that are written together. */
int bdx_pace_draw(double *seconds, struct bdx_model *model, uint64_t count, uint64_t length,
		  struct bd_error *err);

#endif
