/* SPDX-License-Identifier: Apache-2.0 */
/* model_impl.h: what the files model*.c share: how weights and the memory of a pass are laid out.
 * Nothing else includes this. */
#ifndef BDX_MODEL_IMPL_H
#define BDX_MODEL_IMPL_H

#include "model.h"

/* Memory is laid out twice by the same code: without `memory` to learn how much, then with it. */
struct bdx_layout {
	char *memory; /* of the backend, or NULL */
	size_t used;
};

/* Room for `bytes`; NULL while measuring. */
static inline void *bdx_place(struct bdx_layout *layout, uint64_t bytes)
{
	void *at = layout->memory ? layout->memory + layout->used : NULL;

	layout->used += (bytes + 255) / 256 * 256;
	return at;
}

struct bdx_part { /* one tensor of a linear layer: some rows of its matrix */
	uint64_t first, rows;
	bool coded;             /* kept as `sign`, else as `plain` or inside the linear's weight */
	struct bdx_signed sign;
	uint64_t scales;        /* index of its first one in the model's scales */
	void *plain;            /* operand [rows, cols], beside parts that are coded */
};

/* y = x weight^T + bias. q, k and v are one, gate and up too: one product serves all. */
struct bdx_linear {
	uint64_t rows, cols;
	bool coded;             /* some part is; the matrix is then rebuilt whenever it is needed */
	void *weight;           /* operand [rows, cols]; NULL where coded */
	void *bias;             /* real [rows]; NULL: none */
	void *kept;             /* operand [rows, cols]: place of the rebuilt matrix, which then
	                         * stays from a training pass to its backward pass; NULL: none */
	unsigned count;
	struct bdx_part parts[BDX_MAX_PARTS];
};

struct bdx_layer {
	void *attention_norm, *attention_norm_bias, *mlp_norm, *mlp_norm_bias; /* real [width] */
	void *query_norm, *key_norm; /* real [head_dim] or NULL */
	struct bdx_linear query_key_value, attention_out, gate_up, down;
};

struct bdx_kept { /* what a layer computes, kept for the backward pass */
	void *residual;         /* real [tokens, width]: before attention */
	void *middle;           /* real [tokens, width]: before the MLP */
	void *attention_input, *mlp_input; /* operand [tokens, width]: normed */
	void *attention_statistics, *mlp_statistics;
	void *raw;              /* real [tokens, q + k + v]: before norms of heads */
	void *turned;           /* the same after them and after rope; == raw where there are no
	                         * such norms or no backward pass */
	void *query_statistics, *key_statistics;
	void *probabilities;    /* real [batch, heads, length, length] or NULL */
	void *attended;         /* operand [tokens, q] */
	void *gate_up;          /* real [tokens, gate + up] */
	void *activated;        /* operand [tokens, mlp_width] */
};

#define BDX_TOKEN_SLOTS 16

/* What a model owns in the backend's memory, and how a pass uses its part. Without a backward pass
 * all layers share one bdx_kept, and `residual`, `middle` and `last` are one buffer. */
struct bdx_workspace {
	void *head_memory, *body_memory; /* all weights: what the head needs, and the others */
	uint64_t rope_positions; /* rows of model->rope_table */
	size_t keep;             /* bytes of rebuilt matrices that may stay */
	void *memory;            /* of a pass: allocated when first needed, and kept */
	size_t bytes;
	/* The pass that it is laid out for: */
	uint64_t batch, length;
	bool training;
	bool complete;          /* a training pass went through, backward may follow */
	struct bdx_kept *kept;  /* host [layers] */
	void *last;             /* real [tokens, width]: before the final norm */
	void *final_statistics;
	/* Uploading tokens must not disturb a pass that still runs: each takes a slot of its own,
	 * and the queue is drained when all were used. */
	int32_t *tokens[BDX_TOKEN_SLOTS];
	unsigned slot;
	void *weight;           /* operand: the rebuilt matrix in use; NULL in a plain model */
	/* Gradients: */
	void *weight_gradient;  /* operand, as large */
	void *operand;          /* operand [tokens, width]: of the residual stream */
	void *normed;           /* real [tokens, width] */
	void *activation;       /* real [tokens, mlp_width] */
	void *gates;            /* operand [tokens, gate + up] */
	void *attention;        /* real [tokens, q] */
	void *heads;            /* real [tokens, q + k + v] */
	void *heads_operand;    /* the same as operands */
};

/* Widths of the rows that the layers work on. */
static inline uint64_t bdx_query_width(const struct bdx_config *c)
{
	return c->heads * c->head_dim;
}

static inline uint64_t bdx_key_width(const struct bdx_config *c)
{
	return c->kv_heads * c->head_dim;
}

static inline uint64_t bdx_heads_width(const struct bdx_config *c)
{
	return bdx_query_width(c) + 2 * bdx_key_width(c);
}

static inline uint64_t bdx_gates_width(const struct bdx_config *c)
{
	return c->gated ? 2 * c->mlp_width : c->mlp_width;
}

/* Elements of the largest matrix that must be rebuilt; 0 where none is. */
uint64_t bdx_model_largest(const struct bdx_model *model);
/* The matrix, operand [rows, cols]: rebuilt in `scratch` where it is coded and has no place. */
const void *bdx_linear_weight(struct bdx_model *model, const struct bdx_linear *linear,
			      void *scratch);
/* out, real [rows, linear->rows], = in weight^T + bias, or += that. in: operand [rows, cols]. */
void bdx_linear_forward(struct bdx_model *model, const struct bdx_linear *linear, void *scratch,
			const void *in, uint64_t rows, bool add, void *out);
/* `count` numbers as reals into memory of their own, *to; what was there is freed. */
int bdx_model_reals(struct bdx_model *model, void **to, const double *values, uint64_t count,
		    struct bd_error *err);
/* Make the table of angles reach to `positions`. */
int bdx_model_reach(struct bdx_model *model, uint64_t positions, struct bd_error *err);

#endif
