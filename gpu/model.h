/* SPDX-License-Identifier: Apache-2.0 */
/* model.h: a decoder on a backend: weights, forward and backward pass, generation. */
#ifndef BDX_MODEL_H
#define BDX_MODEL_H

#include "arch.h"
#include "delta.h"
#include "parallel.h"

/* All weights of one model in backend memory. Either plain (every weight as an operand), or a
 * student: sign-coded matrices are then kept as base, bits and scales, and rebuilt in the
 * rounding that the mount uses whenever a pass needs them. */
struct bdx_model {
	struct bdx_ops *ops;              /* borrowed */
	const struct bdx_config *config;  /* borrowed */
	/* A student's: */
	uint64_t scale_count;             /* of the delta's `scales` tensor; 0 for a plain model */
	void *scales;                     /* real [scale_count], in the order of the file: rows then columns
	                                   * of each sign-coded tensor */
	void *scale_gradient;             /* real [scale_count], added to by bdx_model_backward; zero for
	                                   * tensors that the engine does not train */
	bool *trained;                    /* host [scale_count]: is it one of a matrix that is rebuilt here */
	/* private: */
	struct bdx_layer *layers;
	struct bdx_linear *head;
	void *embedding, *final_norm, *final_norm_bias;
	void *rope_table, *slopes;
	struct bdx_workspace *work;
};

/* Load a plain model. Errors: -EINVAL a tensor is missing or has another shape than config.json
 * says; -ENOMEM; those of reading; -EINTR. `watch` may be NULL; its progress counts bytes. */
int bdx_model_open(struct bdx_model **model, struct bdx_ops *ops, const struct bdx_config *config,
		   struct bdx_source *source, const struct bd_watch *watch, struct bd_error *err);
/* Load a student from a delta's view. Tensors that are sign-coded with one plane and belong to
 * the linear layers of the decoder are kept apart and trained; everything else is loaded as the
 * view shows it. */
int bdx_model_open_student(struct bdx_model **model, struct bdx_ops *ops,
			   const struct bdx_config *config, struct bd_view *view,
			   const struct bd_watch *watch, struct bd_error *err);
void bdx_model_close(struct bdx_model *model); /* NULL allowed */
/* Free everything but what bdx_model_logits and bdx_model_logits_backward need. */
void bdx_model_keep_head(struct bdx_model *model);

/* Let a student keep up to `bytes` of rebuilt matrices from a training pass to its backward
 * pass, which then need not rebuild them; none at first. */
void bdx_model_keep_weights(struct bdx_model *model, size_t bytes);

/* Bytes of backend memory that one pass over `tokens` tokens in sequences of `length` needs
 * beside the weights; training: with what bdx_model_backward needs. */
size_t bdx_model_pass_bytes(const struct bdx_model *model, uint64_t tokens, uint64_t length,
			    bool training);

/* Run the decoder up to and with the final norm. tokens: host, batch * length, all within the
 * vocabulary. hidden: operand [batch * length, width], what the head multiplies. training: keep
 * what bdx_model_backward needs (until the next pass). Allocates its workspace when it first
 * needs one or a larger one. Errors: -ENOMEM; -EINVAL a token out of range. */
int bdx_model_forward(struct bdx_model *model, const int32_t *tokens, uint64_t batch,
		      uint64_t length, bool training, void *hidden, struct bd_error *err);
/* logits: real [rows, vocabulary]; hidden: operand [rows, width]. */
void bdx_model_logits(struct bdx_model *model, void *logits, const void *hidden, uint64_t rows);
/* hidden_gradient: real [rows, width] from logits_gradient: operand [rows, vocabulary]. */
void bdx_model_logits_backward(struct bdx_model *model, void *hidden_gradient,
			       const void *logits_gradient, uint64_t rows);
/* After a training pass: hidden_gradient, real [batch * length, width], leads to scale_gradient
 * (added). */
int bdx_model_backward(struct bdx_model *model, void *hidden_gradient, struct bd_error *err);

/* ---- Generation: sequences that grow, with their keys and values kept ---- */

struct bdx_decoder; /* opaque */
/* For `batch` sequences of at most `capacity` tokens. */
int bdx_decoder_open(struct bdx_decoder **decoder, struct bdx_model *model, uint64_t batch,
		     uint64_t capacity, struct bd_error *err);
size_t bdx_decoder_bytes(const struct bdx_model *model, uint64_t batch, uint64_t capacity);
void bdx_decoder_close(struct bdx_decoder *decoder); /* NULL allowed */
/* Begin anew with empty sequences. */
void bdx_decoder_reset(struct bdx_decoder *decoder);
/* Append `count` tokens to each sequence and compute the logits after the last: *logits is real
 * [batch, vocabulary] in backend memory, the decoder's, valid until the next call. tokens: int32
 * in backend memory, [batch, count]. */
int bdx_decoder_append(struct bdx_decoder *decoder, const int32_t *tokens, uint64_t count,
		       void **logits, struct bd_error *err);

#endif
