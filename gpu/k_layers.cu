/* SPDX-License-Identifier: Apache-2.0 */
/* k_layers.cu: the small operations of a layer: embedding, norms, biases, rotary positions,
 * activations. All are bound by memory: four elements at a time wherever widths and addresses
 * allow. */
#include "cuda.cuh"

#define THREADS 256

/* Whether rows of `width` elements at `stride` can be taken four at a time. */
template <class... P>
static bool by_four(uint64_t width, uint64_t stride, const P *...pointers)
{
	return width % 4 == 0 && stride % 4 == 0 && bdx_aligned(pointers...);
}

/* ---- Embedding ---- */

template <class T, int V>
static __global__ void k_embed(float *out, const T *table, const int32_t *tokens, uint64_t width)
{
	const T *from = table + tokens[blockIdx.x] * width;
	uint64_t i;

	for (i = (uint64_t)threadIdx.x * V; i < width; i += THREADS * V) {
		bdx_pack<T, V> in = bdx_load<T, V>(from + i);
		bdx_pack<float, V> x;

#pragma unroll
		for (int j = 0; j < V; j++)
			x.v[j] = bdx_float(in.v[j]);
		bdx_store<float, V>(out + blockIdx.x * width + i, x);
	}
}

static void op_embed(struct bdx_ops *ops, void *out, const void *table, const int32_t *tokens,
		     uint64_t count, uint64_t width)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (!bdx_cuda_begin(c) || !count || !width)
		return;
	bdx_with(ops->operand, [=](auto operand) {
		using T = typename decltype(operand)::type;

		if (by_four(width, width, (const float *)out, (const T *)table))
			k_embed<T, 4><<<(unsigned)count, THREADS, 0, c->stream>>>(
				(float *)out, (const T *)table, tokens, width);
		else
			k_embed<T, 1><<<(unsigned)count, THREADS, 0, c->stream>>>(
				(float *)out, (const T *)table, tokens, width);
	});
	bdx_cuda_launched(c, "embedding");
}

/* ---- Norms ---- */

struct rows {
	uint64_t count, width, group, stride;
};

static __device__ inline uint64_t row_start(const struct rows &rows, uint64_t r)
{
	return r / rows.group * rows.stride + r % rows.group * rows.width;
}

/* R threads for each row: a warp, or the block. */
template <class O, int V, int R>
static __global__ void __launch_bounds__(THREADS)
k_norm(O *out, float *statistics, const float *in, const float *weight, const float *bias,
       struct rows rows, float epsilon, bool layer)
{
	uint64_t r = (uint64_t)blockIdx.x * (THREADS / R) + threadIdx.x / R, start, i;
	float mean = 0, sum = 0, scale;
	unsigned t = threadIdx.x % R;

	if (r >= rows.count)
		return;
	start = row_start(rows, r);
	if (layer) {
		for (i = t * V; i < rows.width; i += R * V) {
			bdx_pack<float, V> x = bdx_load<float, V>(in + start + i);

#pragma unroll
			for (int j = 0; j < V; j++)
				sum += x.v[j];
		}
		mean = bdx_row_sum<R>(sum) / rows.width;
		sum = 0;
	}
	for (i = t * V; i < rows.width; i += R * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(in + start + i);

#pragma unroll
		for (int j = 0; j < V; j++)
			sum = fmaf(x.v[j] - mean, x.v[j] - mean, sum);
	}
	scale = 1 / sqrtf(bdx_row_sum<R>(sum) / rows.width + epsilon);
	if (t == 0) {
		statistics[2 * r] = mean;
		statistics[2 * r + 1] = scale;
	}
	for (i = t * V; i < rows.width; i += R * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(in + start + i);
		bdx_pack<float, V> w = bdx_load<float, V>(weight + i);
		bdx_pack<float, V> b = {};
		bdx_pack<O, V> y;

		if (bias)
			b = bdx_load<float, V>(bias + i);
#pragma unroll
		for (int j = 0; j < V; j++)
			bdx_round(&y.v[j], fmaf((x.v[j] - mean) * scale, w.v[j], b.v[j]));
		bdx_store<O, V>(out + start + i, y);
	}
}

template <class O, int V>
static void
norm(struct bdx_cuda *c, O *out, float *statistics, const float *in, const float *weight,
     const float *bias, struct rows rows, double epsilon, bool layer)
{
	if (rows.width <= 1024)
		k_norm<O, V, 32><<<bdx_blocks(rows.count, THREADS / 32), THREADS, 0, c->stream>>>(
			out, statistics, in, weight, bias, rows, (float)epsilon, layer);
	else
		k_norm<O, V, THREADS><<<(unsigned)rows.count, THREADS, 0, c->stream>>>(
			out, statistics, in, weight, bias, rows, (float)epsilon, layer);
}

static void op_norm(struct bdx_ops *ops, enum bdx_norm kind, void *out, enum bdx_kind out_kind,
		    void *statistics, const void *in, const void *weight, const void *bias,
		    uint64_t count, uint64_t width, uint64_t group, uint64_t stride, double epsilon)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	struct rows rows = { count, width, group, stride };

	if (!bdx_cuda_begin(c) || !count || !width)
		return;
	bdx_with(out_kind == BDX_REAL ? BD_F32 : ops->operand, [=](auto type) {
		using O = typename decltype(type)::type;
		const float *x = (const float *)in, *w = (const float *)weight,
			    *b = (const float *)bias;

		if (by_four(width, stride, (const O *)out, x, w, b))
			norm<O, 4>(c, (O *)out, (float *)statistics, x, w, b, rows, epsilon,
				   kind == BDX_LAYER_NORM);
		else
			norm<O, 1>(c, (O *)out, (float *)statistics, x, w, b, rows, epsilon,
				   kind == BDX_LAYER_NORM);
	});
	bdx_cuda_launched(c, "a norm");
}

template <int V, int R>
static __global__ void __launch_bounds__(THREADS)
k_norm_backward(float *in_gradient, bool add, const float *out_gradient, const float *in,
		const float *weight, const float *statistics, struct rows rows, bool layer)
{
	uint64_t r = (uint64_t)blockIdx.x * (THREADS / R) + threadIdx.x / R, start, i;
	float mean, scale, sum = 0, dot = 0;
	unsigned t = threadIdx.x % R;

	if (r >= rows.count)
		return;
	start = row_start(rows, r);
	mean = statistics[2 * r];
	scale = statistics[2 * r + 1];
	for (i = t * V; i < rows.width; i += R * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(in + start + i);
		bdx_pack<float, V> w = bdx_load<float, V>(weight + i);
		bdx_pack<float, V> g = bdx_load<float, V>(out_gradient + start + i);

#pragma unroll
		for (int j = 0; j < V; j++) {
			float d = g.v[j] * w.v[j];

			sum += d;
			dot = fmaf(d, (x.v[j] - mean) * scale, dot);
		}
	}
	dot = bdx_row_sum<R>(dot) / rows.width;
	sum = layer ? bdx_row_sum<R>(sum) / rows.width : 0;
	for (i = t * V; i < rows.width; i += R * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(in + start + i);
		bdx_pack<float, V> w = bdx_load<float, V>(weight + i);
		bdx_pack<float, V> g = bdx_load<float, V>(out_gradient + start + i);
		bdx_pack<float, V> y = {};

		if (add)
			y = bdx_load<float, V>(in_gradient + start + i);
#pragma unroll
		for (int j = 0; j < V; j++) {
			float d = g.v[j] * w.v[j] - sum - (x.v[j] - mean) * scale * dot;

			y.v[j] = fmaf(scale, d, y.v[j]);
		}
		bdx_store<float, V>(in_gradient + start + i, y);
	}
}

/* part[p, i]: the sum over the rows of part p. */
static __global__ void k_norm_weight(float *part, const float *out_gradient, const float *in,
				     const float *statistics, struct rows rows, uint64_t each)
{
	uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
	uint64_t first = blockIdx.y * each, r;
	float sum = 0;

	if (i >= rows.width)
		return;
	for (r = first; r < first + each && r < rows.count; r++) {
		uint64_t at = row_start(rows, r) + i;

		sum = fmaf(out_gradient[at], (in[at] - statistics[2 * r]) * statistics[2 * r + 1],
			   sum);
	}
	part[blockIdx.y * rows.width + i] = sum;
}

static __global__ void k_add_parts(float *to, const float *part, uint64_t width, unsigned parts)
{
	uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
	float sum = 0;

	if (i >= width)
		return;
	for (unsigned p = 0; p < parts; p++)
		sum += part[p * width + i];
	to[i] += sum;
}

static void norm_weight(struct bdx_cuda *c, float *weight_gradient, const float *out_gradient,
			const float *in, const float *statistics, struct rows rows)
{
	uint64_t each = (rows.count + 63) / 64;
	unsigned parts = bdx_blocks(rows.count, each);
	float *part = (float *)bdx_cuda_scratch(c, parts * rows.width * sizeof(*part));

	if (!part)
		return;
	k_norm_weight<<<dim3(bdx_blocks(rows.width, 128), parts), 128, 0, c->stream>>>(
		part, out_gradient, in, statistics, rows, each);
	k_add_parts<<<bdx_blocks(rows.width, 128), 128, 0, c->stream>>>(weight_gradient, part,
									 rows.width, parts);
	bdx_cuda_launched(c, "the gradient of a norm's weight");
}

template <int V>
static void norm_backward(struct bdx_cuda *c, float *in_gradient, bool add,
			  const float *out_gradient, const float *in, const float *weight,
			  const float *statistics, struct rows rows, bool layer)
{
	if (rows.width <= 1024)
		k_norm_backward<V, 32>
			<<<bdx_blocks(rows.count, THREADS / 32), THREADS, 0, c->stream>>>(
				in_gradient, add, out_gradient, in, weight, statistics, rows,
				layer);
	else
		k_norm_backward<V, THREADS><<<(unsigned)rows.count, THREADS, 0, c->stream>>>(
			in_gradient, add, out_gradient, in, weight, statistics, rows, layer);
}

static void op_norm_backward(struct bdx_ops *ops, enum bdx_norm kind, void *in_gradient, bool add,
			     void *weight_gradient, const void *out_gradient, const void *in,
			     const void *weight, const void *statistics, uint64_t count,
			     uint64_t width, uint64_t group, uint64_t stride)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	struct rows rows = { count, width, group, stride };
	float *to = (float *)in_gradient;
	const float *g = (const float *)out_gradient, *x = (const float *)in;
	const float *w = (const float *)weight, *s = (const float *)statistics;

	if (!bdx_cuda_begin(c) || !count || !width)
		return;
	/* First: in_gradient may be out_gradient. */
	if (weight_gradient)
		norm_weight(c, (float *)weight_gradient, g, x, s, rows);
	if (by_four(width, stride, (const float *)to, g, x, w))
		norm_backward<4>(c, to, add, g, x, w, s, rows, kind == BDX_LAYER_NORM);
	else
		norm_backward<1>(c, to, add, g, x, w, s, rows, kind == BDX_LAYER_NORM);
	bdx_cuda_launched(c, "a norm's gradient");
}

/* ---- Bias ---- */

template <int V>
static __global__ void k_add_bias(float *x, const float *bias, uint64_t width, uint64_t stride)
{
	uint64_t i = ((uint64_t)blockIdx.y * THREADS + threadIdx.x) * V;
	bdx_pack<float, V> a, b;

	if (i >= width)
		return;
	a = bdx_load<float, V>(x + blockIdx.x * stride + i);
	b = bdx_load<float, V>(bias + i);
#pragma unroll
	for (int j = 0; j < V; j++)
		a.v[j] += b.v[j];
	bdx_store<float, V>(x + blockIdx.x * stride + i, a);
}

static void op_add_bias(struct bdx_ops *ops, void *x, const void *bias, uint64_t rows,
			uint64_t width, uint64_t stride)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	float *to = (float *)x;
	const float *b = (const float *)bias;

	if (!bdx_cuda_begin(c) || !rows || !width)
		return;
	if (by_four(width, stride, (const float *)to, b))
		k_add_bias<4><<<dim3((unsigned)rows, bdx_blocks(width, 4 * THREADS)), THREADS, 0,
				c->stream>>>(to, b, width, stride);
	else
		k_add_bias<1><<<dim3((unsigned)rows, bdx_blocks(width, THREADS)), THREADS, 0,
				c->stream>>>(to, b, width, stride);
	bdx_cuda_launched(c, "adding a bias");
}

/* ---- Rotary positions ---- */

struct rope {
	uint64_t tokens, length, start, heads, head_dim, half, stride;
	float direction;
};

/* A thread turns V neighbouring pairs of a head of a token. */
template <int V>
static __global__ void k_rope(float *x, const float *table, struct rope a)
{
	unsigned parts = (unsigned)(a.half / V), i = blockIdx.y * THREADS + threadIdx.x;
	uint64_t position = a.start + blockIdx.x % a.length;
	unsigned first = i % parts * V;
	float *low = x + blockIdx.x * a.stride + i / parts * a.head_dim + first,
	      *high = low + a.half;
	bdx_pack<float, V> p, q;

	if (i >= a.heads * parts)
		return;
	p = bdx_load<float, V>(low);
	q = bdx_load<float, V>(high);
#pragma unroll
	for (int j = 0; j < V; j++) {
		bdx_pack<float, 2> angle =
			bdx_load<float, 2>(table + (position * a.half + first + j) * 2);
		float cosine = angle.v[0], sine = angle.v[1] * a.direction, u = p.v[j], v = q.v[j];

		p.v[j] = u * cosine - v * sine;
		q.v[j] = v * cosine + u * sine;
	}
	bdx_store<float, V>(low, p);
	bdx_store<float, V>(high, q);
}

static void op_rope(struct bdx_ops *ops, void *x, const void *table, uint64_t tokens,
		    uint64_t length, uint64_t start, uint64_t heads, uint64_t head_dim,
		    uint64_t rotated, uint64_t stride, bool backward)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	struct rope a = { tokens, length,      start,  heads,
			  head_dim, rotated / 2, stride, backward ? -1.f : 1.f };
	float *to = (float *)x;
	const float *angles = (const float *)table;

	if (!bdx_cuda_begin(c) || !tokens || !heads || !a.half)
		return;
	if (by_four(a.half, stride, (const float *)to) && head_dim % 4 == 0)
		k_rope<4><<<dim3((unsigned)tokens, bdx_blocks(heads * a.half / 4, THREADS)),
			    THREADS, 0, c->stream>>>(to, angles, a);
	else
		k_rope<1><<<dim3((unsigned)tokens, bdx_blocks(heads * a.half, THREADS)), THREADS, 0,
			    c->stream>>>(to, angles, a);
	bdx_cuda_launched(c, "rotary positions");
}

/* ---- Activations ---- */

#define SQRT_HALF 0.70710678118654752f
#define SQRT_2_PI 0.79788456080286536f /* sqrt(2 / pi) */
#define CUBIC 0.044715f

/* f(x), and f'(x) in *slope. */
template <enum bdx_activation F> static __device__ inline float activation(float x, float *slope)
{
	if (F == BDX_SILU) {
		float s = 1 / (1 + expf(-x));

		*slope = s * (1 + x * (1 - s));
		return x * s;
	}
	if (F == BDX_GELU) {
		float below = 0.5f * (1 + erff(x * SQRT_HALF));

		*slope = below + x * 0.5f * SQRT_2_PI * expf(-0.5f * x * x);
		return x * below;
	}
	float t = tanhf(SQRT_2_PI * (x + CUBIC * x * x * x));

	*slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * SQRT_2_PI * (1 + 3 * CUBIC * x * x);
	return 0.5f * x * (1 + t);
}

template <enum bdx_activation F, class T, int V>
static __global__ void k_activate(T *out, const float *gate, const float *up, uint64_t width,
				  uint64_t stride)
{
	uint64_t i = ((uint64_t)blockIdx.y * THREADS + threadIdx.x) * V,
		 at = blockIdx.x * stride + i;
	bdx_pack<float, V> g, u;
	bdx_pack<T, V> y;

	if (i >= width)
		return;
	g = bdx_load<float, V>(gate + at);
	if (up)
		u = bdx_load<float, V>(up + at);
#pragma unroll
	for (int j = 0; j < V; j++) {
		float slope, f = activation<F>(g.v[j], &slope);

		bdx_round(&y.v[j], up ? f * u.v[j] : f);
	}
	bdx_store<T, V>(out + blockIdx.x * width + i, y);
}

template <enum bdx_activation F, class T, int V>
static __global__ void
k_activate_backward(T *gate_gradient, T *up_gradient, const float *out_gradient, const float *gate,
		    const float *up, uint64_t width, uint64_t stride)
{
	uint64_t i = ((uint64_t)blockIdx.y * THREADS + threadIdx.x) * V,
		 at = blockIdx.x * stride + i;
	bdx_pack<float, V> g, u, d;
	bdx_pack<T, V> dg, du;

	if (i >= width)
		return;
	g = bdx_load<float, V>(gate + at);
	d = bdx_load<float, V>(out_gradient + blockIdx.x * width + i);
	if (up)
		u = bdx_load<float, V>(up + at);
#pragma unroll
	for (int j = 0; j < V; j++) {
		float slope, f = activation<F>(g.v[j], &slope);

		bdx_round(&dg.v[j], up ? d.v[j] * u.v[j] * slope : d.v[j] * slope);
		bdx_round(&du.v[j], d.v[j] * f);
	}
	bdx_store<T, V>(gate_gradient + at, dg);
	if (up)
		bdx_store<T, V>(up_gradient + at, du);
}

template <enum bdx_activation F> struct activation_type {
	static constexpr enum bdx_activation value = F;
};

template <class L> static void with_activation(enum bdx_activation f, L launch)
{
	if (f == BDX_SILU)
		launch(activation_type<BDX_SILU>());
	else if (f == BDX_GELU)
		launch(activation_type<BDX_GELU>());
	else
		launch(activation_type<BDX_GELU_TANH>());
}

static void op_activate(struct bdx_ops *ops, enum bdx_activation f, void *out, const void *gate,
			const void *up, uint64_t rows, uint64_t width, uint64_t stride)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	const float *g = (const float *)gate, *u = (const float *)up;

	if (!bdx_cuda_begin(c) || !rows || !width)
		return;
	bdx_with(ops->operand, [=](auto operand) {
		with_activation(f, [=](auto activation) {
			using T = typename decltype(operand)::type;
			constexpr enum bdx_activation F = decltype(activation)::value;
			T *to = (T *)out;

			if (by_four(width, stride, (const T *)to, g, u))
				k_activate<F, T, 4>
					<<<dim3((unsigned)rows, bdx_blocks(width, 4 * THREADS)),
					   THREADS, 0, c->stream>>>(to, g, u, width, stride);
			else
				k_activate<F, T, 1>
					<<<dim3((unsigned)rows, bdx_blocks(width, THREADS)),
					   THREADS, 0, c->stream>>>(to, g, u, width, stride);
		});
	});
	bdx_cuda_launched(c, "an activation");
}

static void op_activate_backward(struct bdx_ops *ops, enum bdx_activation f, void *gate_gradient,
				 void *up_gradient, const void *out_gradient, const void *gate,
				 const void *up, uint64_t rows, uint64_t width, uint64_t stride)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	const float *d = (const float *)out_gradient, *g = (const float *)gate,
		    *u = (const float *)up;

	if (!bdx_cuda_begin(c) || !rows || !width)
		return;
	bdx_with(ops->operand, [=](auto operand) {
		with_activation(f, [=](auto activation) {
			using T = typename decltype(operand)::type;
			constexpr enum bdx_activation F = decltype(activation)::value;
			T *dg = (T *)gate_gradient, *du = (T *)up_gradient;

			if (by_four(width, stride, (const T *)dg, (const T *)du, d, g, u))
				k_activate_backward<F, T, 4>
					<<<dim3((unsigned)rows, bdx_blocks(width, 4 * THREADS)),
					   THREADS, 0, c->stream>>>(dg, du, d, g, u, width, stride);
			else
				k_activate_backward<F, T, 1>
					<<<dim3((unsigned)rows, bdx_blocks(width, THREADS)),
					   THREADS, 0, c->stream>>>(dg, du, d, g, u, width, stride);
		});
	});
	bdx_cuda_launched(c, "an activation's gradient");
}

void bdx_layers_table(struct bdx_ops *ops)
{
	ops->embed = op_embed;
	ops->norm = op_norm;
	ops->norm_backward = op_norm_backward;
	ops->add_bias = op_add_bias;
	ops->rope = op_rope;
	ops->activate = op_activate;
	ops->activate_backward = op_activate_backward;
}
