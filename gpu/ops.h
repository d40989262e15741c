/* SPDX-License-Identifier: Apache-2.0 */
/* ops.h: the table of operations that the engine is made of, and the memory they work on.
 *
 * A backend is one implementation of the table: the plain C reference in float or double
 * (ops_cpu.c), which defines what each operation means, and CUDA (ops_cuda.cu). model.c and its
 * callers know nothing but this file.
 *
 * Memory belongs to the backend; pointers to it are never dereferenced outside. Two element types
 * are in use, and every parameter says which it has:
 *   real     accumulations, residual stream, statistics, gradients, scales: ops->real
 *            (BD_F64 in the double reference, else BD_F32)
 *   operand  what goes into matrix products: weights and the activations before them: ops->operand
 *            (== real in the reference; BF16, F16 or F32 with CUDA, where products accumulate in
 *            F32; with F16 the caller scales gradients so that they stay in range)
 * Matrices are row-major without gaps unless a stride is given. "tokens" is batch * length, the
 * sequences of a batch one after another.
 *
 * Operations return nothing. A backend may run them later, in the order of the calls; the first
 * failure is remembered, makes all that follows do nothing, and is reported by finish() (and by
 * alloc()). The reference and CUDA are deterministic: the same calls on the same machine give the
 * same bits, so no reduction may depend on the order in which threads happen to run.
 *
 * One thread at a time uses a table, except for upload(), which any number may call at once. */
#ifndef BDX_OPS_H
#define BDX_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtype.h"
#include "error.h"

enum bdx_kind { BDX_REAL, BDX_OPERAND };
enum bdx_norm { BDX_RMS_NORM, BDX_LAYER_NORM };
enum bdx_activation { BDX_SILU, BDX_GELU /* with erf */, BDX_GELU_TANH };

/* A sign-coded matrix: out = round(base + bit ? +row*col : -row*col), the arithmetic of sign.h. */
struct bdx_signed {
	const void *base;           /* [rows, cols] of base_dtype */
	const uint8_t *bits;        /* bit e of byte e/8, least significant first */
	enum bd_dtype base_dtype;   /* BF16, F16 or F32 */
	enum bd_dtype out_dtype;    /* what the mount rounds to: BF16, F16 or F32 */
	uint64_t rows, cols;
	const void *row, *col;      /* real [rows], real [cols] */
};

struct bdx_attention {
	uint64_t batch;
	uint64_t query_length;  /* new tokens per sequence */
	uint64_t key_length;    /* tokens per sequence that keys and values hold, these included; query i
	                         * is at position key_length - query_length + i */
	uint64_t query_stride, key_stride; /* elements from one token to the next in q, and in k and v */
	uint64_t key_capacity;  /* tokens from one sequence to the next in k and v (>= key_length) */
	uint64_t heads, kv_heads, head_dim; /* heads % kv_heads == 0; query head h uses kv head
	                         * h / (heads / kv_heads) */
	double scale;           /* factor on q.k */
	uint64_t window;        /* key j is seen by position i where i - window < j <= i; 0: all j <= i */
	const void *slopes;     /* real [heads]: slope * (j - i) is added to the scores (ALiBi); NULL: none */
};

/* What compare() finds in one row (one position); doubles in host memory. */
struct bdx_comparison {
	double mse;       /* mean over the vocabulary of (student - teacher)^2 */
	double kl;        /* KL(teacher || student), nats */
	double nll_teacher, nll_student; /* of the target token; 0 where there is none */
	int32_t agree;    /* both have their largest logit (the first of equals) at the same token */
	int32_t pad;
};

struct bdx_adam {
	double rate;              /* the step's learning rate, after the schedule */
	double beta1, beta2, epsilon;
	uint64_t step;            /* 1, 2, ...: for the bias correction */
	double gradient_factor;   /* the gradient is multiplied by it first */
};

struct bdx_ops {
	const char *name;          /* for people: "CPU (OpenBLAS, 2 threads)", "NVIDIA H200" */
	enum bd_dtype real, operand;
	bool rounds;               /* rebuild() rounds to out_dtype; false in the double reference, whose
	                            * derivatives are to be compared with finite differences */

	/* ---- Memory ---- */
	/* Zeroed; NULL and an error (-ENOMEM with how much was wanted and is free; -EIO for a lost
	 * device or an earlier failure; -EINTR). 256-byte aligned. */
	void *(*alloc)(struct bdx_ops *ops, size_t bytes, struct bd_error *err);
	void (*free)(struct bdx_ops *ops, void *memory);
	/* Bytes that alloc() can still give, and the most that was in use at once. */
	size_t (*available)(struct bdx_ops *ops);
	size_t (*peak)(struct bdx_ops *ops);
	/* Host memory that uploads fastest (pinned). */
	void *(*host_alloc)(struct bdx_ops *ops, size_t bytes);
	void (*host_free)(struct bdx_ops *ops, void *memory);
	/* Bytes as they are. Both return when `host` may be used again; download waits for all
	 * operations before it. upload is not ordered against running operations: its target
	 * must not be in use. */
	void (*upload)(struct bdx_ops *ops, void *to, const void *host, size_t bytes);
	void (*download)(struct bdx_ops *ops, void *host, const void *from, size_t bytes);
	void (*copy)(struct bdx_ops *ops, void *to, const void *from, size_t bytes);
	void (*zero)(struct bdx_ops *ops, void *memory, size_t bytes);
	/* Between F64, F32, BF16 and F16, round to nearest even. Not in place. */
	void (*convert)(struct bdx_ops *ops, void *to, enum bd_dtype to_dtype, const void *from,
			enum bd_dtype from_dtype, uint64_t count);
	/* Wait for everything; the first failure since the table was opened: -EIO device,
	 * -ENOMEM; -EINTR (ops_cpu.h). */
	int (*finish)(struct bdx_ops *ops, struct bd_error *err);

	/* ---- Products ---- */
	/* C[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C. A, B operand; C of c_kind (beta
	 * must be 0 for an operand C). transpose_a: A is stored [k,m]; transpose_b: B is stored
	 * [n,k]. lda, ldb, ldc: elements from row to row as stored. */
	void (*gemm)(struct bdx_ops *ops, bool transpose_a, bool transpose_b, uint64_t m, uint64_t n,
		     uint64_t k, double alpha, const void *a, uint64_t lda, const void *b,
		     uint64_t ldb, double beta, void *c, enum bdx_kind c_kind, uint64_t ldc);

	/* ---- Sign-coded weights ---- */
	/* weight: operand [rows, cols]. */
	void (*rebuild)(struct bdx_ops *ops, const struct bdx_signed *w, void *weight);
	/* From the gradient of the rebuilt weight, operand [rows, cols]:
	 *   row_gradient[i] += sum_j g[i,j] * sign[i,j] * col[j]    real [rows]
	 *   col_gradient[j] += sum_i g[i,j] * sign[i,j] * row[i]    real [cols]
	 * (rounding is taken as the identity). */
	void (*scale_gradient)(struct bdx_ops *ops, const struct bdx_signed *w, const void *gradient,
			       void *row_gradient, void *col_gradient);

	/* ---- Layers ---- */
	/* out[t] = table[tokens[t]]. table operand [vocabulary, width]; tokens int32 in backend
	 * memory, all within the vocabulary; out real [tokens, width]. */
	void (*embed)(struct bdx_ops *ops, void *out, const void *table, const int32_t *tokens,
		      uint64_t count, uint64_t width);
	/* Rows of `width` elements, `stride` from row to row in both in and out (for norms of heads
	 * inside a wider row the caller passes groups: see `group`): row r starts at element
	 * (r / group) * stride + (r % group) * width. weight real [width], bias real [width] or NULL.
	 *   RMS:   out = in / sqrt(mean(in^2) + epsilon) * weight
	 *   Layer: out = (in - mean) / sqrt(variance + epsilon) * weight + bias
	 * in real, out of out_kind; out == in is allowed where out_kind is BDX_REAL. statistics: real
	 * [rows, 2] (mean, 1/deviation; mean is 0 for RMS), for the backward pass. */
	void (*norm)(struct bdx_ops *ops, enum bdx_norm kind, void *out, enum bdx_kind out_kind,
		     void *statistics, const void *in, const void *weight, const void *bias,
		     uint64_t rows, uint64_t width, uint64_t group, uint64_t stride, double epsilon);
	/* in_gradient (+)= ...: added where `add`, else written (in_gradient == out_gradient is
	 * then allowed). All real; same rows and strides. weight_gradient: real [width], added
	 * to; NULL: not wanted. */
	void (*norm_backward)(struct bdx_ops *ops, enum bdx_norm kind, void *in_gradient, bool add,
			      void *weight_gradient, const void *out_gradient, const void *in,
			      const void *weight, const void *statistics, uint64_t rows,
			      uint64_t width, uint64_t group, uint64_t stride);
	/* x[t, :] += bias. x real [rows, width] with `stride` from row to row, bias real
	 * [width]. */
	void (*add_bias)(struct bdx_ops *ops, void *x, const void *bias, uint64_t rows,
			 uint64_t width, uint64_t stride);
	/* Rotate the heads of x in place, halves paired (x[i], x[i + head_dim/2]), by the angles
	 * in `table`: real [positions, head_dim / 2, 2] of cos and sin. Token t of a sequence of
	 * `length` is at position start + t % length. x real: heads at x + t * stride + h *
	 * head_dim. backward: rotate by the negative angles. `rotated` elements of each head
	 * turn (head_dim, or fewer where only a part is rotary), the table then has rotated / 2
	 * pairs. */
	void (*rope)(struct bdx_ops *ops, void *x, const void *table, uint64_t tokens,
		     uint64_t length, uint64_t start, uint64_t heads, uint64_t head_dim,
		     uint64_t rotated, uint64_t stride, bool backward);
	/* out operand [batch * query_length, heads * head_dim]. q, k, v real, strides in `a`.
	 * probabilities: real [batch, heads, query_length, key_length] for the backward pass;
	 * NULL: not wanted (forward only; the backend then needs no more than a bounded
	 * scratch). */
	void (*attention)(struct bdx_ops *ops, const struct bdx_attention *a, void *out,
			  void *probabilities, const void *q, const void *k, const void *v);
	/* q_gradient, k_gradient, v_gradient: real, laid out as q, k, v; written, not added to.
	 * out_gradient real [batch * query_length, heads * head_dim]; query_length == key_length ==
	 * key_capacity here. */
	void (*attention_backward)(struct bdx_ops *ops, const struct bdx_attention *a,
				   void *q_gradient, void *k_gradient, void *v_gradient,
				   const void *out_gradient, const void *probabilities,
				   const void *q, const void *k, const void *v);
	/* gate, up real: rows of `width`, `stride` from row to row; out operand [rows, width].
	 * up != NULL: out = f(gate) * up; NULL: out = f(gate). */
	void (*activate)(struct bdx_ops *ops, enum bdx_activation f, void *out, const void *gate,
			 const void *up, uint64_t rows, uint64_t width, uint64_t stride);
	/* gate_gradient, up_gradient: operand, `stride` from row to row (the same as of gate and
	 * up); written. out_gradient real [rows, width]. */
	void (*activate_backward)(struct bdx_ops *ops, enum bdx_activation f, void *gate_gradient,
				  void *up_gradient, const void *out_gradient, const void *gate,
				  const void *up, uint64_t rows, uint64_t width, uint64_t stride);

	/* ---- Loss, sampling, optimiser ---- */
	/* Compare logits, real [rows, vocabulary] with `*_stride` from row to row. targets:
	 * int32 [rows] in backend memory, -1 where there is none; NULL: none. logits_gradient:
	 * operand [rows, vocabulary], of factor * sum over rows of (mse_weight * mse + kl_weight
	 * * kl), with respect to the student's logits; NULL: not wanted. results: struct
	 * bdx_comparison [rows] in backend memory. */
	void (*compare)(struct bdx_ops *ops, struct bdx_comparison *results, void *logits_gradient,
			const void *student, uint64_t student_stride, const void *teacher,
			uint64_t teacher_stride, const int32_t *targets, uint64_t rows,
			uint64_t vocabulary, double mse_weight, double kl_weight, double factor);
	/* Draw from softmax(logits / temperature): the first token whose cumulated probability
	 * exceeds uniform[row] (real, in [0, 1)), in order of tokens; temperature 0: the largest
	 * (the first of equals). tokens: int32 [rows] in backend memory. */
	void (*sample)(struct bdx_ops *ops, int32_t *tokens, const void *logits,
		       const void *uniform, uint64_t rows, uint64_t vocabulary, double temperature);
	/* AdamW without decay on relative parameters: with g = gradient * gradient_factor * unit,
	 * m and v the usual averages of g and g^2, and both corrected for the start,
	 *   parameter -= rate * unit * m / (sqrt(v) + epsilon)
	 * unit: real [count], the size that a relative step refers to. All real [count]; m and v start
	 * as zeros. */
	void (*adam)(struct bdx_ops *ops, const struct bdx_adam *settings, void *parameter,
		     const void *gradient, const void *unit, void *m, void *v, uint64_t count);

	void (*close)(struct bdx_ops *ops);
};

/* The reference; real is BD_F32 or BD_F64. threads 0: one per core. Products go through OpenBLAS
 * where it is installed (found at run time), else through plain loops with the same meaning. */
int bdx_ops_cpu_open(struct bdx_ops **ops, enum bd_dtype real, unsigned threads,
		     struct bd_error *err);

/* CUDA device `index` with operands of BF16, F16 or F32. The code lies in a library of its own,
 * bitdelta-cuda.so, which is looked for beside the program, then in ../lib/bitdelta of its
 * folder, so that nothing else needs CUDA. Errors: -ENODEV no library, driver or such device, or
 * one that is too old (the sentence says which); others of starting it. */
int bdx_ops_cuda_open(struct bdx_ops **ops, unsigned index, enum bd_dtype operand,
		      struct bd_error *err);

/* NULL allowed. */
static inline void bdx_ops_close(struct bdx_ops *ops)
{
	if (ops)
		ops->close(ops);
}

static inline size_t bdx_real_size(const struct bdx_ops *ops)
{
	return bd_dtype_bits(ops->real) / 8;
}

static inline size_t bdx_operand_size(const struct bdx_ops *ops)
{
	return bd_dtype_bits(ops->operand) / 8;
}

/* Element `index` of a vector of reals, of operands. */
static inline void *bdx_real(const struct bdx_ops *ops, const void *memory, uint64_t index)
{
	return (char *)memory + index * bdx_real_size(ops);
}

static inline void *bdx_operand(const struct bdx_ops *ops, const void *memory, uint64_t index)
{
	return (char *)memory + index * bdx_operand_size(ops);
}

#endif
