/* SPDX-License-Identifier: Apache-2.0 */
/* k_weights.cu: sign-coded weights on the device (rebuilding them, the gradient of their scales)
 * and conversion between element types. The arithmetic of rebuilding is that of delta/sign.h,
 * bit for bit. */
#include "cuda.cuh"

/* ---- Rebuilding ---- */

#define REBUILD_THREADS 128
#define REBUILD_ROWS 4 /* per thread */

/* V scales of columns, which may lie at any float. */
template <int V> static __device__ inline void load_scales(float *to, const float *from)
{
	if (V == 8 && (uintptr_t)from % 16 == 0) {
		bdx_pack<float, 4> low = bdx_load<float, 4>(from),
				   high = bdx_load<float, 4>(from + 4);

#pragma unroll
		for (int i = 0; i < 4; i++) {
			to[i % V] = low.v[i];
			to[(i + 4) % V] = high.v[i];
		}
		return;
	}
#pragma unroll
	for (int i = 0; i < V; i++)
		to[i] = from[i];
}

template <class O, class T>
static __device__ inline T rebuilt(float base, uint32_t plus, int bit, float row, float col)
{
	T weight;
	O out;

	bdx_round(&out, __fadd_rn(base, bdx_signed_by(__fmul_rn(row, col), plus, bit)));
	bdx_round(&weight, bdx_float(out));
	return weight;
}

/* cols % 8 == 0: a thread takes 8 columns, whose bits are one byte, of REBUILD_ROWS rows.
 * Everything is loaded before anything is used: the loads are under way together. */
template <class B, class O, class T>
static __global__ void __launch_bounds__(REBUILD_THREADS)
	k_rebuild(T *__restrict__ weight, const B *__restrict__ base,
		  const uint8_t *__restrict__ bits, const float *__restrict__ row,
		  const float *__restrict__ col, uint64_t rows, uint64_t cols,
		  unsigned column_blocks)
{
	uint64_t first = (uint64_t)(blockIdx.x / column_blocks) * REBUILD_ROWS;
	uint64_t column =
		((uint64_t)(blockIdx.x % column_blocks) * REBUILD_THREADS + threadIdx.x) * 8;
	uint64_t at = first * cols + column;
	unsigned count = rows - first < REBUILD_ROWS ? (unsigned)(rows - first) : REBUILD_ROWS;
	bdx_pack<B, 8> in[REBUILD_ROWS];
	uint32_t plus[REBUILD_ROWS];
	float scale[REBUILD_ROWS], factor[8];

	if (column >= cols)
		return;
#pragma unroll
	for (int r = 0; r < REBUILD_ROWS; r++) {
		/* Past the end the last row again: no branch keeps loads apart. */
		uint64_t last = (r < count ? r : count - 1);

		in[r] = bdx_load_once<B, 8>(base + at + last * cols);
		plus[r] = bits[(at + last * cols) / 8];
		scale[r] = row[first + last];
	}
	load_scales<8>(factor, col + column);
#pragma unroll
	for (int r = 0; r < REBUILD_ROWS; r++) {
		bdx_pack<T, 8> out;

		if (r >= count)
			return;
#pragma unroll
		for (int i = 0; i < 8; i++)
			out.v[i] = rebuilt<O, T>(bdx_float(in[r].v[i]), plus[r], i, scale[r],
						 factor[i]);
		bdx_store<T, 8>(weight + at + r * cols, out);
	}
}

/* Any shape and alignment: one element each, the bits of a row begin anywhere in a byte. */
template <class B, class O, class T>
static __global__ void
k_rebuild_any(T *weight, const B *base, const uint8_t *bits, const float *row, const float *col,
	      uint64_t rows, uint64_t cols)
{
	uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;

	if (at < rows * cols)
		weight[at] = rebuilt<O, T>(bdx_float(base[at]), bits[at / 8] >> at % 8, 0,
					   row[at / cols], col[at % cols]);
}

template <class B, class O, class T>
static void rebuild(struct bdx_cuda *c, const struct bdx_signed *w, T *weight)
{
	const B *base = (const B *)w->base;
	const float *row = (const float *)w->row, *col = (const float *)w->col;
	unsigned column_blocks = bdx_blocks(w->cols, 8 * REBUILD_THREADS);

	if (w->cols % 8 == 0 && bdx_aligned(base, weight))
		k_rebuild<B, O, T><<<column_blocks * bdx_blocks(w->rows, REBUILD_ROWS),
				     REBUILD_THREADS, 0, c->stream>>>(
			weight, base, w->bits, row, col, w->rows, w->cols, column_blocks);
	else
		k_rebuild_any<B, O, T><<<bdx_blocks(w->rows * w->cols, 256), 256, 0, c->stream>>>(
			weight, base, w->bits, row, col, w->rows, w->cols);
	bdx_cuda_launched(c, "rebuilding weights");
}

static void op_rebuild(struct bdx_ops *ops, const struct bdx_signed *w, void *weight)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (!bdx_cuda_begin(c) || !w->rows || !w->cols)
		return;
	bdx_with(ops->operand, [=](auto operand) {
		bdx_with(w->base_dtype, [=](auto base) {
			bdx_with(w->out_dtype, [=](auto out) {
				using T = typename decltype(operand)::type;

				rebuild<typename decltype(base)::type, typename decltype(out)::type,
					T>(c, w, (T *)weight);
			});
		});
	});
}

/* ---- The gradient of the scales ---- */

#define SCALE_WARPS 8 /* of a block: the same columns, different rows */
#define SCALE_STEP 4  /* rows at a time */
#define SCALE_STEPS 4 /* of a warp */
#define SCALE_ROWS (SCALE_WARPS * SCALE_STEPS * SCALE_STEP)

/* Sum each of the SCALE_STEP values over the warp; lane l gets that of row
 * l / (32 / SCALE_STEP). */
static __device__ inline float sum_rows(float *v, unsigned lane)
{
#pragma unroll
	for (int half = SCALE_STEP / 2, step = 16; step; half /= 2, step /= 2) {
		if (!half)
			v[0] += __shfl_xor_sync(0xffffffffu, v[0], step);
#pragma unroll
		for (int i = 0; i < half; i++) {
			float mine = lane & step ? v[i + half] : v[i];
			float other = lane & step ? v[i] : v[i + half];

			v[i] = mine + __shfl_xor_sync(0xffffffffu, other, step);
		}
	}
	return v[0];
}

/* A block takes 32 * V columns (V being 8, whose bits are one byte, or 1) of SCALE_ROWS rows.
 * Sums over the columns of a row go to row_part[column_block, rows], those over the rows to
 * col_part[row_block, cols]. */
template <class T, int V>
static __global__ void __launch_bounds__(32 * SCALE_WARPS)
k_scale_parts(float *__restrict__ row_part, float *__restrict__ col_part,
	      const T *__restrict__ gradient, const uint8_t *__restrict__ bits,
	      const float *__restrict__ row, const float *__restrict__ col, uint64_t rows,
	      uint64_t cols, unsigned column_blocks)
{
	__shared__ float part[SCALE_WARPS][32 * V];
	unsigned row_block = blockIdx.x / column_blocks, column_block = blockIdx.x % column_blocks;
	unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	uint64_t first = (uint64_t)row_block * SCALE_ROWS + warp * SCALE_STEP;
	uint64_t column = ((uint64_t)column_block * 32 + lane) * V, i;
	bool inside = column < cols;
	float factor[V] = {}, sum[V] = {};

	if (inside)
		load_scales<V>(factor, col + column);
#pragma unroll
	for (int step = 0; step < SCALE_STEPS; step++, first += SCALE_WARPS * SCALE_STEP) {
		bdx_pack<T, V> g[SCALE_STEP];
		uint32_t plus[SCALE_STEP];
		float scale[SCALE_STEP], dot[SCALE_STEP], total;
		uint64_t mine = first + lane / (32 / SCALE_STEP);

		if (first >= rows)
			break;
#pragma unroll
		for (int s = 0; s < SCALE_STEP; s++) {
			/* Past the ends the last row or column again, times 0. */
			uint64_t r = first + s < rows ? first + s : rows - 1;
			uint64_t at = r * cols + (inside ? column : cols - V);

			g[s] = bdx_load_once<T, V>(gradient + at);
			plus[s] = V == 8 ? bits[at / 8] : bits[at / 8] >> at % 8;
			scale[s] = first + s < rows && inside ? row[r] : 0;
		}
#pragma unroll
		for (int s = 0; s < SCALE_STEP; s++) {
			dot[s] = 0;
#pragma unroll
			for (int i = 0; i < V; i++) {
				float x = bdx_signed_by(bdx_float(g[s].v[i]), plus[s], i);

				dot[s] = fmaf(x, factor[i], dot[s]);
				sum[i] = fmaf(x, scale[s], sum[i]);
			}
		}
		total = sum_rows(dot, lane);
		if (lane % (32 / SCALE_STEP) == 0 && mine < rows)
			row_part[column_block * rows + mine] = total;
	}
#pragma unroll
	for (int i = 0; i < V; i++)
		part[warp][lane * V + i] = sum[i];
	__syncthreads();
	for (i = threadIdx.x; i < 32 * V; i += 32 * SCALE_WARPS) {
		uint64_t to = (uint64_t)column_block * 32 * V + i;
		float x = part[0][i];

		for (int w = 1; w < SCALE_WARPS; w++)
			x += part[w][i];
		if (to < cols)
			col_part[row_block * cols + to] = x;
	}
}

/* gradient[i] += sum over parts of part[p, i]: first the rows', then the columns'. */
static __global__ void k_scale_sums(float *row_gradient, float *col_gradient, const float *row_part,
				    const float *col_part, uint64_t rows, uint64_t cols,
				    unsigned row_parts, unsigned col_parts, unsigned row_blocks)
{
	__shared__ float part[8][33];
	bool is_row = blockIdx.x < row_blocks;
	uint64_t i = (uint64_t)(is_row ? blockIdx.x : blockIdx.x - row_blocks) * 32 + threadIdx.x;
	uint64_t count = is_row ? rows : cols;
	const float *from = is_row ? row_part : col_part;
	unsigned parts = is_row ? row_parts : col_parts;
	float sum = 0;

	if (i < count)
#pragma unroll 4
		for (unsigned p = threadIdx.y; p < parts; p += 8)
			sum += from[p * count + i];
	part[threadIdx.y][threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.y || i >= count)
		return;
	for (int p = 1; p < 8; p++)
		sum += part[p][threadIdx.x];
	(is_row ? row_gradient : col_gradient)[i] += sum;
}

template <class T, int V>
static void scale_gradient(struct bdx_cuda *c, const struct bdx_signed *w, const T *gradient,
			   float *row_gradient, float *col_gradient)
{
	unsigned column_blocks = bdx_blocks(w->cols, 32 * V);
	unsigned row_blocks = bdx_blocks(w->rows, SCALE_ROWS);
	float *row_part, *col_part;

	row_part = (float *)bdx_cuda_scratch(c, (column_blocks * w->rows + row_blocks * w->cols) *
							sizeof(*row_part));
	if (!row_part)
		return;
	col_part = row_part + column_blocks * w->rows;
	k_scale_parts<T, V><<<column_blocks * row_blocks, 32 * SCALE_WARPS, 0, c->stream>>>(
		row_part, col_part, gradient, w->bits, (const float *)w->row, (const float *)w->col,
		w->rows, w->cols, column_blocks);
	bdx_cuda_launched(c, "the gradient of scales");
	k_scale_sums<<<bdx_blocks(w->rows, 32) + bdx_blocks(w->cols, 32), dim3(32, 8), 0,
		       c->stream>>>(row_gradient, col_gradient, row_part, col_part, w->rows,
				    w->cols, column_blocks, row_blocks, bdx_blocks(w->rows, 32));
	bdx_cuda_launched(c, "the gradient of scales");
}

static void op_scale_gradient(struct bdx_ops *ops, const struct bdx_signed *w, const void *gradient,
			      void *row_gradient, void *col_gradient)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (!bdx_cuda_begin(c) || !w->rows || !w->cols)
		return;
	bdx_with(ops->operand, [=](auto operand) {
		using T = typename decltype(operand)::type;
		const T *g = (const T *)gradient;

		if (w->cols % 8 == 0 && bdx_aligned(g))
			scale_gradient<T, 8>(c, w, g, (float *)row_gradient, (float *)col_gradient);
		else
			scale_gradient<T, 1>(c, w, g, (float *)row_gradient, (float *)col_gradient);
	});
}

/* ---- Conversion ---- */

template <class T> static __device__ inline void turn(T *to, float x)
{
	bdx_round(to, x);
}

template <class T> static __device__ inline void turn(T *to, __nv_bfloat16 x)
{
	bdx_round(to, __bfloat162float(x));
}

template <class T> static __device__ inline void turn(T *to, __half x)
{
	bdx_round(to, __half2float(x));
}

/* From F64 directly: by way of F32 would round twice. */
static __device__ inline void turn(float *to, double x)
{
	bdx_round(to, __double2float_rn(x));
}

static __device__ inline void turn(__nv_bfloat16 *to, double x)
{
	*to = x != x ? __ushort_as_bfloat16(0x7fc0) : __double2bfloat16(x);
}

static __device__ inline void turn(__half *to, double x)
{
	*to = x != x ? __ushort_as_half(0x7e00) : __double2half(x);
}

static __device__ inline void turn(double *to, double x)
{
	*to = x;
}

static __device__ inline void turn(double *to, float x)
{
	*to = x;
}

static __device__ inline void turn(double *to, __nv_bfloat16 x)
{
	*to = __bfloat162float(x);
}

static __device__ inline void turn(double *to, __half x)
{
	*to = __half2float(x);
}

template <class T, class F, int V>
static __global__ void k_convert(T *to, const F *from, uint64_t count)
{
	uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
	bdx_pack<F, V> in;
	bdx_pack<T, V> out;

	if (i >= count)
		return;
	in = bdx_load<F, V>(from + i);
#pragma unroll
	for (int j = 0; j < V; j++)
		turn(&out.v[j], in.v[j]);
	bdx_store<T, V>(to + i, out);
}

template <class F> static void with_any(enum bd_dtype dtype, F f)
{
	if (dtype == BD_F64)
		f(bdx_type<double>());
	else
		bdx_with(dtype, f);
}

static void op_convert(struct bdx_ops *ops, void *to, enum bd_dtype to_dtype, const void *from,
		       enum bd_dtype from_dtype, uint64_t count)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (!bdx_cuda_begin(c) || !count)
		return;
	with_any(to_dtype, [=](auto t) {
		with_any(from_dtype, [=](auto f) {
			using T = typename decltype(t)::type;
			using F = typename decltype(f)::type;

			if (count % 4 == 0 && bdx_aligned((char *)to, (const char *)from))
				k_convert<T, F, 4>
					<<<bdx_blocks(count, 4 * 256), 256, 0, c->stream>>>(
						(T *)to, (const F *)from, count);
			else
				k_convert<T, F, 1><<<bdx_blocks(count, 256), 256, 0, c->stream>>>(
					(T *)to, (const F *)from, count);
		});
	});
	bdx_cuda_launched(c, "converting");
}

void bdx_weights_table(struct bdx_ops *ops)
{
	ops->rebuild = op_rebuild;
	ops->scale_gradient = op_scale_gradient;
	ops->convert = op_convert;
}
