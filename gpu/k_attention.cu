/* SPDX-License-Identifier: Apache-2.0 */
/* k_attention.cu: attention and its backward pass as products of 64 x 64 tiles around a softmax
 * of whole rows. With operands of 16 bits the tiles are multiplied in TF32 on tensor cores,
 * which keeps more digits than the operands have; with F32 operands in F32. */
#include "cuda.cuh"

#define TILE 64      /* rows and columns of a block's result */
#define DEPTH 32     /* of a step along the inner dimension */
#define THREADS 128  /* four warps of 32 x 32 results */
/* Row lengths in shared memory that let the reads below reach 32 different banks. */
#define PITCH_DEEP (DEPTH + 4) /* of a tile stored [TILE][DEPTH] */
#define PITCH_WIDE (TILE + 8)  /* of a tile stored [DEPTH][TILE] */
#define TILE_FLOATS (TILE * PITCH_DEEP)
#define SCRATCH ((size_t)128 << 20)

static_assert(DEPTH * PITCH_WIDE <= TILE_FLOATS, "both forms of a tile fit");

/* A matrix in memory: rows of `stride`; `quads`: rows and pointer lie at 16 bytes. */
struct matrix {
	const float *at;
	uint32_t stride;
	bool quads;
};

/* 32 bits where numbers of tokens and widths allow: registers are scarce. */
struct span {
	uint32_t begin, end;
};

/* What the kernels need of struct bdx_attention. */
struct shape {
	uint32_t queries, keys, capacity, query_stride, key_stride;
	uint32_t heads, group, head_dim, window;
	float scale;
	const float *slopes;
	/* struct matrix's: of q; of k and v; of [token, heads * head_dim]; of scores and
	 * probabilities */
	bool query_quads, key_quads, width_quads, score_quads;
};

/* A part of all queries: those of `rows` beginning at `first` of each sequence; the matrices of
 * scores hold these rows only. */
struct part {
	uint32_t first, rows;
};

static __device__ inline uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* The keys that query i sees. */
static __device__ inline struct span visible(const struct shape &s, uint32_t i)
{
	uint32_t end = s.keys - s.queries + i + 1;

	return { s.window && end > s.window ? end - s.window : 0, end };
}

/* ---- Tiles ---- */

/* To TF32 where it goes to tensor cores. */
template <bool TENSOR> static __device__ inline float prepared(float x)
{
	uint32_t y;

	if (!TENSOR)
		return x;
	asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
	return __uint_as_float(y);
}

/* A thread's share of a tile that is on its way from memory: MAJOR rows of MINOR elements. */
template <int MAJOR, int MINOR> struct cargo {
	static constexpr int LOADS = MAJOR * MINOR / 4 / THREADS;
	bdx_pack<float, 4> x[LOADS];

	__device__ inline void
	fetch(const struct matrix &from, struct span major, struct span minor)
	{
		constexpr unsigned WIDE = MINOR / 4;
		uint32_t row = major.begin + threadIdx.x / WIDE;
		uint32_t column = minor.begin + threadIdx.x % WIDE * 4;
		const float *p = from.at + (uint64_t)row * from.stride + column;

#pragma unroll
		for (int i = 0; i < LOADS; i++) {
			x[i] = {};
			if (row < major.end && column < minor.end) {
				if (from.quads && column + 4 <= minor.end)
					x[i] = bdx_load<float, 4>(p);
				else
					for (int j = 0; j < 4; j++)
						if (column + j < minor.end)
							x[i].v[j] = p[j];
			}
			row += THREADS / WIDE;
			p += (uint64_t)(THREADS / WIDE) * from.stride;
		}
	}

	template <bool TENSOR, int PITCH> __device__ inline void stow(float *tile) const
	{
#pragma unroll
		for (int i = 0; i < LOADS; i++) {
			unsigned index = threadIdx.x + i * THREADS;
			bdx_pack<float, 4> y;

#pragma unroll
			for (int j = 0; j < 4; j++)
				y.v[j] = prepared<TENSOR>(x[i].v[j]);
			*reinterpret_cast<bdx_pack<float, 4> *>(tile + index / (MINOR / 4) * PITCH +
								index % (MINOR / 4) * 4) = y;
		}
	}
};

/* The side of a product that is read [TILE rows][inner] (DEEP) or [inner][TILE rows]. */
template <bool DEEP> struct side {
	cargo<DEEP ? TILE : DEPTH, DEEP ? DEPTH : TILE> load;

	__device__ inline void fetch(const struct matrix &from, struct span rows, struct span inner)
	{
		load.fetch(from, DEEP ? rows : inner, DEEP ? inner : rows);
	}

	template <bool TENSOR> __device__ inline void stow(float *tile) const
	{
		load.template stow<TENSOR, DEEP ? PITCH_DEEP : PITCH_WIDE>(tile);
	}

	static __device__ inline float at(const float *tile, unsigned row, unsigned inner)
	{
		return DEEP ? tile[row * PITCH_DEEP + inner] : tile[inner * PITCH_WIDE + row];
	}
};

/* A thread's results: those of 2 x 4 tensor-core tiles of 16 x 8. value(i, j, k) lies at row(i, k),
 * column(j, k) of the block's tile. */
struct results {
	float x[2][4][4];

	static __device__ inline unsigned row(int i, int k)
	{
		return threadIdx.x / 64 * 32 + i * 16 + (k & 2) * 4 + threadIdx.x % 32 / 4;
	}

	static __device__ inline unsigned column(int j, int k)
	{
		return threadIdx.x / 32 % 2 * 32 + j * 8 + threadIdx.x % 4 * 2 + (k & 1);
	}

	/* Call f(row, column, value) for each. */
	template <class F> __device__ inline void each(F f) const
	{
#pragma unroll
		for (int i = 0; i < 2; i++)
#pragma unroll
			for (int j = 0; j < 4; j++)
#pragma unroll
				for (int k = 0; k < 4; k++)
					f(row(i, k), column(j, k), x[i][j][k]);
	}
};

/* Add one step of DEPTH to the results, in F32, and on tensor cores. */
template <class A, class B>
static __device__ inline void multiply_plain(struct results *r, const float *a, const float *b)
{
	unsigned lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
	unsigned row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 32;

#pragma unroll 4
	for (unsigned k = 0; k < DEPTH; k++) {
		float x[4], y[8];

#pragma unroll
		for (int i = 0; i < 4; i++)
			x[i] = A::at(a, row + i * 8 + group, k);
#pragma unroll
		for (int j = 0; j < 8; j++)
			y[j] = B::at(b, column + j / 2 * 8 + quad * 2 + j % 2, k);
#pragma unroll
		for (int i = 0; i < 4; i++)
#pragma unroll
			for (int j = 0; j < 8; j++) {
				float *to = &r->x[i / 2][j / 2][i % 2 * 2 + j % 2];

				*to = fmaf(x[i], y[j], *to);
			}
	}
}

template <class A, class B>
static __device__ inline void multiply_tensor(struct results *r, const float *a, const float *b)
{
	unsigned lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
	unsigned row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 32;

#pragma unroll
	for (unsigned k = 0; k < DEPTH; k += 8) {
		float x[2][4], y[4][2];

#pragma unroll
		for (int i = 0; i < 2; i++)
#pragma unroll
			for (int q = 0; q < 4; q++)
				x[i][q] = A::at(a, row + i * 16 + q % 2 * 8 + group,
						k + q / 2 * 4 + quad);
#pragma unroll
		for (int j = 0; j < 4; j++)
#pragma unroll
			for (int q = 0; q < 2; q++)
				y[j][q] = B::at(b, column + j * 8 + group, k + q * 4 + quad);
#pragma unroll
		for (int i = 0; i < 2; i++)
#pragma unroll
			for (int j = 0; j < 4; j++) {
				float *d = r->x[i][j];

				asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
				    "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
				    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
				    : "r"(__float_as_uint(x[i][0])), "r"(__float_as_uint(x[i][1])),
				      "r"(__float_as_uint(x[i][2])), "r"(__float_as_uint(x[i][3])),
				      "r"(__float_as_uint(y[j][0])), "r"(__float_as_uint(y[j][1])));
			}
	}
}

/* results += A B^T over `inner`, A being [rows, inner] and B [columns, inner], each stored that
 * way or transposed. */
template <bool TENSOR, bool DEEP_A, bool DEEP_B>
static __device__ inline void
product(struct results *r, const struct matrix &a, struct span rows, const struct matrix &b,
	struct span columns, struct span inner)
{
	__shared__ __align__(16) float tile_a[TILE_FLOATS], tile_b[TILE_FLOATS];
	side<DEEP_A> x;
	side<DEEP_B> y;

	if (inner.begin >= inner.end)
		return;
	x.fetch(a, rows, inner);
	y.fetch(b, columns, inner);
	for (;;) {
		x.template stow<TENSOR>(tile_a);
		y.template stow<TENSOR>(tile_b);
		__syncthreads();
		inner.begin += DEPTH;
		if (inner.begin < inner.end) {
			x.fetch(a, rows, inner);
			y.fetch(b, columns, inner);
		}
		if constexpr (TENSOR)
			multiply_tensor<side<DEEP_A>, side<DEEP_B>>(r, tile_a, tile_b);
		else
			multiply_plain<side<DEEP_A>, side<DEEP_B>>(r, tile_a, tile_b);
		__syncthreads();
		if (inner.begin >= inner.end)
			return;
	}
}

/* ---- The matrices of a head ---- */

/* Head `head` of sequence `batch` in rows of queries. */
static __device__ inline uint64_t query_at(const struct shape &s, uint64_t batch, uint64_t head)
{
	return batch * s.queries * s.query_stride + head * s.head_dim;
}

static __device__ inline uint64_t key_at(const struct shape &s, uint64_t batch, uint64_t head)
{
	return batch * s.capacity * s.key_stride + head / s.group * s.head_dim;
}

static __device__ inline uint64_t wide_at(const struct shape &s, uint64_t batch, uint64_t head)
{
	return (batch * s.queries * s.heads + head) * s.head_dim;
}

/* Keys that any of the queries rows.begin .. rows.end - 1 sees. */
static __device__ inline struct span visible_to(const struct shape &s, struct span rows)
{
	return { visible(s, rows.begin).begin, visible(s, rows.end - 1).end };
}

/* ---- Kernels; blockIdx.x is a head of a sequence, y and z are tiles ---- */

/* to[head, row, key] = left[row] . right[key] for the tiles of which anything is visible. With
 * `scores` left is q, right is k, scale and slope are applied; else left is the gradient of the
 * output, right v. */
template <bool TENSOR>
static __global__ void __launch_bounds__(THREADS, 4)
k_scores(float *to, const float *left, const float *right, struct shape s, struct part part,
	 uint64_t first_head, bool scores)
{
	uint64_t unit = first_head + blockIdx.x, batch = unit / s.heads, head = unit % s.heads;
	struct span rows = { part.first + blockIdx.z * TILE, 0 };
	struct span columns = { blockIdx.y * TILE, s.keys }, seen;
	struct matrix a = { left + query_at(s, batch, head), s.query_stride, s.query_quads };
	struct matrix b = { right + key_at(s, batch, head), s.key_stride, s.key_quads };
	float slope = scores && s.slopes ? s.slopes[head] : 0, scale = scores ? s.scale : 1;
	struct results r = {};

	rows.end = smaller(rows.begin + TILE, part.first + part.rows);
	seen = visible_to(s, rows);
	if (columns.begin >= seen.end || columns.begin + TILE <= seen.begin)
		return;
	if (!scores)
		a = { left + wide_at(s, batch, head), s.heads * s.head_dim, s.width_quads };
	product<TENSOR, true, true>(&r, a, rows, b, columns, { 0, s.head_dim });
	to += (uint64_t)blockIdx.x * part.rows * s.keys;
	r.each([&](unsigned i, unsigned j, float x) {
		uint32_t row = rows.begin + i, column = columns.begin + j;

		if (row < rows.end && column < columns.end) {
			float distance = (float)(int)(column - (s.keys - s.queries + row));

			to[(uint64_t)(row - part.first) * s.keys + column] =
				x * scale + slope * distance;
		}
	});
}

/* Rows of scores become probabilities, zero where nothing is seen. A warp takes a row. */
static __global__ void __launch_bounds__(THREADS, 4)
k_softmax(float *scores, uint64_t count, struct shape s, struct part part)
{
	uint64_t row = (uint64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
	uint32_t lane = threadIdx.x % 32, j;
	struct span seen;
	float top = -INFINITY, sum = 0;

	if (row >= count)
		return;
	seen = visible(s, part.first + (uint32_t)(row % part.rows));
	scores += row * s.keys;
	for (j = seen.begin + lane; j < seen.end; j += 32)
		top = fmaxf(top, scores[j]);
	for (int step = 16; step; step /= 2)
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
	for (j = seen.begin + lane; j < seen.end; j += 32) {
		float x = expf(scores[j] - top);

		scores[j] = x;
		sum += x;
	}
	sum = 1 / bdx_warp_sum(sum);
	for (j = seen.begin + lane; j < seen.end; j += 32)
		scores[j] *= sum;
	for (j = lane; j < s.keys; j += 32)
		if (j < seen.begin || j >= seen.end)
			scores[j] = 0;
}

/* From gradients of probabilities to those of q.k, in place. A warp takes a row. */
static __global__ void __launch_bounds__(THREADS, 4)
k_softmax_backward(float *gradient, const float *probabilities, uint64_t count, struct shape s)
{
	uint64_t row = (uint64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
	uint32_t lane = threadIdx.x % 32, j;
	struct span seen;
	float sum = 0;

	if (row >= count)
		return;
	seen = visible(s, (uint32_t)(row % s.queries));
	gradient += row * s.keys;
	probabilities += row * s.keys;
	for (j = seen.begin + lane; j < seen.end; j += 32)
		sum = fmaf(gradient[j], probabilities[j], sum);
	sum = bdx_warp_sum(sum);
	for (j = lane; j < s.keys; j += 32)
		gradient[j] = j < seen.begin || j >= seen.end ?
				      0 :
				      (gradient[j] - sum) * probabilities[j] * s.scale;
}

/* to[row, :] = sum over keys of weights[head, row, key] * values[key, :]: the output from
 * probabilities and v; the gradient of q from that of q.k, and k. */
template <bool TENSOR, class O>
static __global__ void __launch_bounds__(THREADS, 4)
k_mix(O *to, const float *weights, const float *values, struct shape s, struct part part,
      uint64_t first_head, bool wide)
{
	uint64_t unit = first_head + blockIdx.x, batch = unit / s.heads, head = unit % s.heads;
	struct span rows = { blockIdx.z * TILE, 0 };
	struct span columns = { blockIdx.y * TILE, s.head_dim }, seen;
	struct matrix a = { weights + (uint64_t)blockIdx.x * part.rows * s.keys, s.keys,
			    s.score_quads };
	struct matrix b = { values + key_at(s, batch, head), s.key_stride, s.key_quads };
	uint32_t stride = wide ? s.heads * s.head_dim : s.query_stride;
	struct results r = {};

	rows.end = smaller(rows.begin + TILE, part.rows);
	seen = visible_to(s, { part.first + rows.begin, part.first + rows.end });
	/* From where quads begin: the weights before what is seen are zeros. */
	product<TENSOR, true, false>(&r, a, rows, b, columns, { seen.begin / 4 * 4, seen.end });
	to += (wide ? wide_at(s, batch, head) : query_at(s, batch, head)) +
	      (uint64_t)part.first * stride;
	r.each([&](unsigned i, unsigned j, float x) {
		uint32_t row = rows.begin + i, column = columns.begin + j;

		if (row < rows.end && column < columns.end)
			bdx_round(&to[(uint64_t)row * stride + column], x);
	});
}

/* to[key, :] = sum over the query heads of a group and their rows of weights[head, row, key] *
 * values[row, :]: the gradient of v from probabilities and the output's; that of k from that of
 * q.k, and q. blockIdx.x is a kv head of a sequence. */
template <bool TENSOR>
static __global__ void __launch_bounds__(THREADS, 4)
k_gather(float *to, const float *weights, const float *values, struct shape s, uint64_t first_unit,
	 uint64_t first_weights, bool wide)
{
	uint64_t unit = first_unit + blockIdx.x, first = unit * s.group;
	uint64_t batch = first / s.heads, head = first % s.heads;
	struct span keys = { blockIdx.z * TILE, s.keys };
	struct span columns = { blockIdx.y * TILE, s.head_dim };
	/* Queries that see any of these keys; earlier and later ones have zeros for them. */
	struct span rows = { keys.begin, s.queries };
	uint32_t last = smaller(keys.begin + TILE, s.keys) - 1;
	struct results r = {};

	if (s.window && s.window < rows.end - last)
		rows.end = last + s.window;
	for (uint32_t g = 0; g < s.group; g++) {
		struct matrix a = { weights + (first + g - first_weights) * s.queries * s.keys,
				    s.keys, s.score_quads };
		struct matrix b = { values + query_at(s, batch, head + g), s.query_stride,
				    s.query_quads };

		if (wide)
			b = { values + wide_at(s, batch, head + g), s.heads * s.head_dim,
			      s.width_quads };
		product<TENSOR, false, false>(&r, a, keys, b, columns, rows);
	}
	to += key_at(s, batch, head);
	r.each([&](unsigned i, unsigned j, float x) {
		uint32_t row = keys.begin + i, column = columns.begin + j;

		if (row < keys.end && column < columns.end)
			to[(uint64_t)row * s.key_stride + column] = x;
	});
}

/* ---- Operations ---- */

static struct shape shape_of(const struct bdx_attention *a)
{
	struct shape s = {};

	s.queries = (uint32_t)a->query_length;
	s.keys = (uint32_t)a->key_length;
	s.capacity = (uint32_t)a->key_capacity;
	s.query_stride = (uint32_t)a->query_stride;
	s.key_stride = (uint32_t)a->key_stride;
	s.heads = (uint32_t)a->heads;
	s.group = (uint32_t)(a->heads / a->kv_heads);
	s.head_dim = (uint32_t)a->head_dim;
	/* A window as long as all keys is none. */
	s.window = a->window < a->key_length ? (uint32_t)a->window : 0;
	s.scale = (float)a->scale;
	s.slopes = (const float *)a->slopes;
	s.query_quads = a->query_stride % 4 == 0 && a->head_dim % 4 == 0;
	s.key_quads = a->key_stride % 4 == 0 && a->head_dim % 4 == 0;
	s.width_quads = a->head_dim % 4 == 0;
	s.score_quads = a->key_length % 4 == 0;
	return s;
}

static dim3 tiles(uint64_t units, uint64_t columns, uint64_t rows)
{
	return dim3((unsigned)units, bdx_blocks(columns, TILE), bdx_blocks(rows, TILE));
}

/* Sequences first .. first + count - 1, and `part` of their queries; their scores in `scores`. */
template <bool TENSOR, class O>
static void forward(struct bdx_cuda *c, const struct shape &s, uint64_t first, uint64_t count,
		    struct part part, O *out, float *scores, const float *q, const float *k,
		    const float *v)
{
	uint64_t units = count * s.heads, rows = units * part.rows;

	k_scores<TENSOR><<<tiles(units, s.keys, part.rows), THREADS, 0, c->stream>>>(
		scores, q, k, s, part, first * s.heads, true);
	k_softmax<<<bdx_blocks(rows, THREADS / 32), THREADS, 0, c->stream>>>(scores, rows, s, part);
	k_mix<TENSOR, O><<<tiles(units, s.head_dim, part.rows), THREADS, 0, c->stream>>>(
		out, scores, v, s, part, first * s.heads, true);
	bdx_cuda_launched(c, "attention");
}

/* Without room for all scores: as many sequences, then as many queries, as the scratch holds. */
template <bool TENSOR, class O>
static void forward_in_parts(struct bdx_cuda *c, const struct shape &s, uint64_t batch, O *out,
			     const float *q, const float *k, const float *v)
{
	uint64_t row = s.heads * sizeof(float) * s.keys, rows, sequences, first, i;
	float *scores;

	rows = SCRATCH / row / TILE * TILE;
	if (!rows)
		rows = SCRATCH / row ? SCRATCH / row : 1;
	if (rows > s.queries)
		rows = s.queries;
	sequences = SCRATCH / (rows * row) ? SCRATCH / (rows * row) : 1;
	if (sequences > batch)
		sequences = batch;
	scores = (float *)bdx_cuda_scratch(c, sequences * rows * row);
	if (!scores)
		return;
	for (first = 0; first < batch; first += sequences)
		for (i = 0; i < s.queries; i += rows) {
			struct part part = {
				(uint32_t)i, (uint32_t)(i + rows < s.queries ? rows : s.queries - i)
			};

			forward<TENSOR>(c, s, first,
					first + sequences < batch ? sequences : batch - first, part,
					out, scores, q, k, v);
		}
}

static void op_attention(struct bdx_ops *ops, const struct bdx_attention *a, void *out,
			 void *probabilities, const void *query, const void *key, const void *value)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	const float *q = (const float *)query, *k = (const float *)key, *v = (const float *)value;
	struct shape s = shape_of(a);
	uint64_t batch = a->batch;

	if (!bdx_cuda_begin(c) || !batch || !s.queries)
		return;
	s.query_quads = s.query_quads && bdx_aligned(q);
	s.key_quads = s.key_quads && bdx_aligned(k, v);
	s.score_quads = s.score_quads && bdx_aligned((const float *)probabilities);
	bdx_with(ops->operand, [=](auto operand) {
		using O = typename decltype(operand)::type;
		constexpr bool TENSOR = sizeof(O) == 2;

		if (probabilities)
			forward<TENSOR>(c, s, 0, batch, { 0, s.queries }, (O *)out,
					(float *)probabilities, q, k, v);
		else
			forward_in_parts<TENSOR>(c, s, batch, (O *)out, q, k, v);
	});
}

template <bool TENSOR>
static void
backward(struct bdx_cuda *c, const struct shape &s, uint64_t kv_heads, float *q_gradient,
	 float *k_gradient, float *v_gradient, const float *out_gradient,
	 const float *probabilities, const float *q, const float *k, const float *v)
{
	uint64_t matrix = (uint64_t)s.queries * s.keys, unit = s.group * matrix * sizeof(float),
		 units;
	uint64_t first;
	struct part all = { 0, s.queries };
	float *gradient;

	units = SCRATCH / unit ? SCRATCH / unit : 1;
	if (units > kv_heads)
		units = kv_heads;
	gradient = (float *)bdx_cuda_scratch(c, units * unit);
	if (!gradient)
		return;
	k_gather<TENSOR><<<tiles(kv_heads, s.head_dim, s.keys), THREADS, 0, c->stream>>>(
		v_gradient, probabilities, out_gradient, s, 0, 0, true);
	for (first = 0; first < kv_heads; first += units) {
		uint64_t count = first + units < kv_heads ? units : kv_heads - first;
		uint64_t head = first * s.group, heads = count * s.group, rows = heads * s.queries;

		k_scores<TENSOR><<<tiles(heads, s.keys, s.queries), THREADS, 0, c->stream>>>(
			gradient, out_gradient, v, s, all, head, false);
		k_softmax_backward<<<bdx_blocks(rows, THREADS / 32), THREADS, 0, c->stream>>>(
			gradient, probabilities + head * matrix, rows, s);
		k_mix<TENSOR, float>
			<<<tiles(heads, s.head_dim, s.queries), THREADS, 0, c->stream>>>(
				q_gradient, gradient, k, s, all, head, false);
		k_gather<TENSOR><<<tiles(count, s.head_dim, s.keys), THREADS, 0, c->stream>>>(
			k_gradient, gradient, q, s, first, head, false);
	}
	bdx_cuda_launched(c, "the gradient of attention");
}

static void op_attention_backward(struct bdx_ops *ops, const struct bdx_attention *a,
				  void *q_gradient, void *k_gradient, void *v_gradient,
				  const void *out_gradient, const void *probabilities,
				  const void *query, const void *key, const void *value)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	const float *q = (const float *)query, *k = (const float *)key, *v = (const float *)value;
	const float *d = (const float *)out_gradient, *p = (const float *)probabilities;
	struct shape s = shape_of(a);

	if (!bdx_cuda_begin(c) || !a->batch || !s.queries)
		return;
	s.query_quads = s.query_quads && bdx_aligned(q);
	s.key_quads = s.key_quads && bdx_aligned(k, v);
	s.width_quads = s.width_quads && bdx_aligned(d);
	s.score_quads = s.score_quads && bdx_aligned(p);
	(ops->operand == BD_F32 ? backward<false> : backward<true>)(
		c, s, a->batch * a->kv_heads, (float *)q_gradient, (float *)k_gradient,
		(float *)v_gradient, d, p, q, k, v);
}

void bdx_attention_table(struct bdx_ops *ops)
{
	ops->attention = op_attention;
	ops->attention_backward = op_attention_backward;
}
