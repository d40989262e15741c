/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_attention.h: attention of the C reference, forward and backward; a part of
 * ops_cpu_impl.h. */

/* Rows of the score matrix that are computed at once: with all keys that any of them sees. */
#define QUERY_BLOCK 64

struct attention {
	struct bdx_cpu *cpu;
	const struct bdx_attention *a;
	const real *q, *k, *v, *out_gradient;
	real *out, *probabilities, *q_gradient, *k_gradient, *v_gradient;
	real *scratch; /* [threads, QUERY_BLOCK, key_length] */
	uint64_t blocks; /* of queries */
};

/* One block of queries of one head: positions first_position .. + rows - 1 and the keys that
 * they see, first_key .. end_key - 1. Offsets are in elements. */
struct block {
	uint64_t rows, first_position, first_key, end_key;
	uint64_t q, k, out;     /* to the first query, to the first key or value, to out */
	uint64_t probabilities; /* to the row of the first query */
};

static uint64_t first_visible(const struct bdx_attention *a, uint64_t position)
{
	return a->window && position >= a->window ? position - a->window + 1 : 0;
}

static struct block block_of(const struct attention *t, uint64_t sequence, uint64_t head,
			     uint64_t number)
{
	const struct bdx_attention *a = t->a;
	uint64_t first = number * QUERY_BLOCK;
	struct block b = { .rows = least(QUERY_BLOCK, a->query_length - first) };

	b.first_position = a->key_length - a->query_length + first;
	b.first_key = first_visible(a, b.first_position);
	b.end_key = b.first_position + b.rows;
	b.q = (sequence * a->query_length + first) * a->query_stride + head * a->head_dim;
	b.k = (sequence * a->key_capacity + b.first_key) * a->key_stride +
		head / (a->heads / a->kv_heads) * a->head_dim;
	b.out = ((sequence * a->query_length + first) * a->heads + head) * a->head_dim;
	b.probabilities = ((sequence * a->heads + head) * a->query_length + first) * a->key_length;
	return b;
}

/* scores: of keys first_key .. end_key - 1, of which the position sees first_visible .. itself. */
static void softmax(const struct bdx_attention *a, real *scores, uint64_t position,
		    uint64_t first_key, uint64_t end_key, real slope)
{
	uint64_t first = first_visible(a, position) - first_key, end = position + 1 - first_key;
	uint64_t seen = end - first, j;
	real factor;

	/* Distances are small enough for `real` to have them exactly. */
	for (j = first; slope != 0 && j < end; j++)
		scores[j] -= slope * (real)(end - 1 - j);
	factor = (real)(1 / exponentials(scores + first, scores + first,
					 largest(scores + first, seen), 1, seen));
	for (j = first; j < end; j++)
		scores[j] *= factor;
	memset(scores, 0, first * sizeof(*scores));
	memset(scores + end, 0, (end_key - first_key - end) * sizeof(*scores));
}

static void attention_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct attention *t = context;
	const struct bdx_attention *a = t->a;
	const real *slopes = a->slopes;
	uint64_t i, r;

	for (i = first; i < end; i++) {
		uint64_t head = i / t->blocks % a->heads;
		struct block b = block_of(t, i / t->blocks / a->heads, head, i % t->blocks);
		uint64_t keys = b.end_key - b.first_key;
		uint64_t stride = t->probabilities ? a->key_length : keys;
		real *row = t->probabilities ? t->probabilities + b.probabilities : NULL;
		real *scores = row ? row + b.first_key
			: t->scratch + thread * QUERY_BLOCK * a->key_length;

		product(t->cpu, false, true, b.rows, keys, a->head_dim, (real)a->scale, t->q + b.q,
			a->query_stride, t->k + b.k, a->key_stride, 0, scores, stride);
		for (r = 0; r < b.rows; r++) {
			softmax(a, scores + r * stride, b.first_position + r, b.first_key,
				b.end_key, slopes ? slopes[head] : 0);
			if (!row)
				continue;
			memset(row + r * stride, 0, b.first_key * sizeof(*row));
			memset(row + r * stride + b.end_key, 0,
			       (a->key_length - b.end_key) * sizeof(*row));
		}
		product(t->cpu, false, false, b.rows, a->head_dim, keys, 1, scores, stride,
			t->v + b.k, a->key_stride, 0, t->out + b.out, a->heads * a->head_dim);
	}
}

static void cpu_attention(struct bdx_ops *ops, const struct bdx_attention *a, void *out,
			  void *probabilities, const void *q, const void *k, const void *v)
{
	struct attention t = {
		.cpu = bdx_cpu(ops), .a = a, .q = q, .k = k, .v = v, .out = out,
		.probabilities = probabilities,
		.blocks = (a->query_length + QUERY_BLOCK - 1) / QUERY_BLOCK,
	};

	if (!probabilities)
		t.scratch = bdx_cpu_scratch(t.cpu, bdx_pool_threads(t.cpu->pool) * QUERY_BLOCK,
					    a->key_length * sizeof(real));
	bdx_cpu_run(t.cpu, a->batch * a->heads * t.blocks, 1, attention_piece, &t);
}

/* gradient: of the probabilities; becomes that of q.k. */
static void softmax_backward(real *gradient, const real *probabilities, uint64_t keys, real scale)
{
	double sum = 0;
	uint64_t j;

	for (j = 0; j < keys; j++)
		sum += gradient[j] * probabilities[j];
	for (j = 0; j < keys; j++)
		gradient[j] = probabilities[j] * (gradient[j] - (real)sum) * scale;
}

static void zero_head(real *x, uint64_t length, uint64_t stride, uint64_t head_dim)
{
	uint64_t t;

	for (t = 0; t < length; t++)
		memset(x + t * stride, 0, head_dim * sizeof(*x));
}

/* A piece is one head of keys and values with all its queries, which add to its gradients in
 * turn. */
static void attention_backward_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct attention *t = context;
	const struct bdx_attention *a = t->a;
	uint64_t group = a->heads / a->kv_heads, width = a->heads * a->head_dim, i, j, r;
	real *scratch = t->scratch + thread * QUERY_BLOCK * a->key_length;

	for (i = first; i < end; i++) {
		uint64_t sequence = i / a->kv_heads, head = i % a->kv_heads;
		uint64_t start = sequence * a->key_capacity * a->key_stride + head * a->head_dim;

		zero_head(t->k_gradient + start, a->key_length, a->key_stride, a->head_dim);
		zero_head(t->v_gradient + start, a->key_length, a->key_stride, a->head_dim);
		for (j = 0; j < group * t->blocks; j++) {
			struct block b = block_of(t, sequence, head * group + j / t->blocks,
						  j % t->blocks);
			const real *p = t->probabilities + b.probabilities + b.first_key;
			const real *out_gradient = t->out_gradient + b.out;
			uint64_t keys = b.end_key - b.first_key;

			product(t->cpu, true, false, keys, a->head_dim, b.rows, 1, p, a->key_length,
				out_gradient, width, 1, t->v_gradient + b.k, a->key_stride);
			product(t->cpu, false, true, b.rows, keys, a->head_dim, 1, out_gradient,
				width, t->v + b.k, a->key_stride, 0, scratch, keys);
			for (r = 0; r < b.rows; r++)
				softmax_backward(scratch + r * keys, p + r * a->key_length, keys,
						 (real)a->scale);
			product(t->cpu, false, false, b.rows, a->head_dim, keys, 1, scratch, keys,
				t->k + b.k, a->key_stride, 0, t->q_gradient + b.q, a->query_stride);
			product(t->cpu, true, false, keys, a->head_dim, b.rows, 1, scratch, keys,
				t->q + b.q, a->query_stride, 1, t->k_gradient + b.k, a->key_stride);
		}
	}
}

static void cpu_attention_backward(struct bdx_ops *ops, const struct bdx_attention *a,
				   void *q_gradient, void *k_gradient, void *v_gradient,
				   const void *out_gradient, const void *probabilities,
				   const void *q, const void *k, const void *v)
{
	struct attention t = {
		.cpu = bdx_cpu(ops), .a = a, .q = q, .k = k, .v = v, .out_gradient = out_gradient,
		.probabilities = (real *)probabilities, .q_gradient = q_gradient,
		.k_gradient = k_gradient, .v_gradient = v_gradient,
		.blocks = (a->query_length + QUERY_BLOCK - 1) / QUERY_BLOCK,
	};

	t.scratch = bdx_cpu_scratch(t.cpu, bdx_pool_threads(t.cpu->pool) * QUERY_BLOCK,
				    a->key_length * sizeof(real));
	bdx_cpu_run(t.cpu, a->batch * a->kv_heads, 1, attention_backward_piece, &t);
}
