/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_layers.h: embedding, norms, biases, positions and activations of the C reference; a part
 * of ops_cpu_impl.h. */

/* ---- Embedding, norms, biases, positions ---- */

struct embed {
	real *out;
	const real *table;
	const int32_t *tokens;
	uint64_t width;
};

static void embed_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct embed *e = context;
	uint64_t t;

	(void)thread;
	for (t = first; t < end; t++)
		memcpy(e->out + t * e->width, e->table + (uint64_t)e->tokens[t] * e->width,
		       e->width * sizeof(real));
}

static void cpu_embed(struct bdx_ops *ops, void *out, const void *table, const int32_t *tokens,
		      uint64_t count, uint64_t width)
{
	struct embed e = { out, table, tokens, width };

	bdx_cpu_run(bdx_cpu(ops), count, rows_of_piece(width), embed_piece, &e);
}

struct norm {
	enum bdx_norm kind;
	uint64_t width, group, stride, piece_rows;
	double epsilon;
	const real *in, *weight, *bias, *out_gradient;
	real *out, *statistics, *in_gradient;
	bool add;
	double *weight_partials; /* [pieces, partial_stride] or NULL */
	uint64_t partial_stride; /* width and some padding */
};

static uint64_t norm_row(const struct norm *n, uint64_t r)
{
	return r / n->group * n->stride + r % n->group * n->width;
}

static double mean_of(const real *x, uint64_t count)
{
	double sum[LANES] = { 0 };
	real lanes[LANES];
	uint64_t i;
	unsigned j;

	for (i = 0; i < count; i += LANES) {
		load_lanes(lanes, x + i, count - i, 0);
		for (j = 0; j < LANES; j++)
			sum[j] += lanes[j];
	}
	return sum_of_lanes(sum) / (double)count;
}

static double variance_of(const real *x, uint64_t count, real mean)
{
	double sum[LANES] = { 0 };
	real lanes[LANES];
	uint64_t i;
	unsigned j;

	for (i = 0; i < count; i += LANES) {
		load_lanes(lanes, x + i, count - i, mean);
		for (j = 0; j < LANES; j++)
			lanes[j] -= mean;
		for (j = 0; j < LANES; j++)
			sum[j] += lanes[j] * lanes[j];
	}
	return sum_of_lanes(sum) / (double)count;
}

static void norm_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct norm *n = context;
	uint64_t r, j;

	(void)thread;
	for (r = first; r < end; r++) {
		const real *in = n->in + norm_row(n, r);
		real *out = n->out + norm_row(n, r);
		real mean = n->kind == BDX_LAYER_NORM ? (real)mean_of(in, n->width) : 0;
		real inverse = (real)(1 / sqrt(variance_of(in, n->width, mean) + n->epsilon));

		for (j = 0; j < n->width; j++)
			out[j] = (in[j] - mean) * inverse * n->weight[j] +
				(n->bias ? n->bias[j] : 0);
		n->statistics[2 * r] = mean;
		n->statistics[2 * r + 1] = inverse;
	}
}

static void cpu_norm(struct bdx_ops *ops, enum bdx_norm kind, void *out, enum bdx_kind out_kind,
		     void *statistics, const void *in, const void *weight, const void *bias,
		     uint64_t rows, uint64_t width, uint64_t group, uint64_t stride, double epsilon)
{
	struct norm n = {
		.kind = kind, .width = width, .group = group, .stride = stride, .epsilon = epsilon,
		.in = in, .weight = weight, .bias = bias, .out = out, .statistics = statistics,
	};

	(void)out_kind;
	bdx_cpu_run(bdx_cpu(ops), rows, rows_of_piece(width), norm_piece, &n);
}

/* With y = (in - mean) * inverse and g = out_gradient * weight:
 *   in_gradient = inverse * (g - mean(g) - y * mean(g * y))    mean(g) only for the layer norm
 *   weight_gradient += sum over rows of out_gradient * y */
static void norm_backward_row(const struct norm *n, uint64_t r, double *partial)
{
	const real *in = n->in + norm_row(n, r), *out_gradient = n->out_gradient + norm_row(n, r);
	real *in_gradient = n->in_gradient + norm_row(n, r);
	real mean = n->statistics[2 * r], inverse = n->statistics[2 * r + 1], mean_g, mean_gy;
	double sum_g[LANES] = { 0 }, sum_gy[LANES] = { 0 };
	uint64_t i;
	unsigned j;

	for (i = 0; i < n->width; i += LANES) {
		real y[LANES], g[LANES], weight[LANES];

		load_lanes(y, in + i, n->width - i, mean);
		load_lanes(g, out_gradient + i, n->width - i, 0);
		load_lanes(weight, n->weight + i, n->width - i, 0);
		for (j = 0; j < LANES; j++)
			y[j] = (y[j] - mean) * inverse;
		for (j = 0; partial && j < LANES; j++)
			partial[i + j] += g[j] * y[j];
		for (j = 0; j < LANES; j++)
			g[j] *= weight[j];
		for (j = 0; j < LANES; j++)
			sum_g[j] += g[j];
		for (j = 0; j < LANES; j++)
			sum_gy[j] += g[j] * y[j];
	}
	mean_g = n->kind == BDX_LAYER_NORM ? (real)(sum_of_lanes(sum_g) / (double)n->width) : 0;
	mean_gy = (real)(sum_of_lanes(sum_gy) / (double)n->width);
	for (i = 0; i < n->width; i++) {
		real y = (in[i] - mean) * inverse;
		real x = inverse * (out_gradient[i] * n->weight[i] - mean_g - y * mean_gy);

		in_gradient[i] = n->add ? in_gradient[i] + x : x;
	}
}

static void norm_backward_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct norm *n = context;
	double *partial = NULL;
	uint64_t r;

	(void)thread;
	if (n->weight_partials) {
		partial = n->weight_partials + first / n->piece_rows * n->partial_stride;
		memset(partial, 0, n->partial_stride * sizeof(*partial));
	}
	for (r = first; r < end; r++)
		norm_backward_row(n, r, partial);
}

static void cpu_norm_backward(struct bdx_ops *ops, enum bdx_norm kind, void *in_gradient, bool add,
			      void *weight_gradient, const void *out_gradient, const void *in,
			      const void *weight, const void *statistics, uint64_t rows,
			      uint64_t width, uint64_t group, uint64_t stride)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);
	struct norm n = {
		.kind = kind, .width = width, .group = group, .stride = stride, .add = add,
		.piece_rows = rows_of_partial(rows, width), .in = in, .weight = weight,
		.out_gradient = out_gradient, .statistics = (real *)statistics,
		.in_gradient = in_gradient,
		.partial_stride = (width + LANES - 1) / LANES * LANES,
	};
	uint64_t pieces = (rows + n.piece_rows - 1) / n.piece_rows;

	if (weight_gradient)
		n.weight_partials = bdx_cpu_scratch(cpu, pieces,
						    n.partial_stride * sizeof(double));
	bdx_cpu_run(cpu, rows, n.piece_rows, norm_backward_piece, &n);
	if (weight_gradient)
		add_partials(cpu, weight_gradient, n.weight_partials, pieces, n.partial_stride,
			     width);
}

struct bias {
	real *x;
	const real *bias;
	uint64_t width, stride;
};

static void bias_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct bias *b = context;
	uint64_t r, j;

	(void)thread;
	for (r = first; r < end; r++)
		for (j = 0; j < b->width; j++)
			b->x[r * b->stride + j] += b->bias[j];
}

static void cpu_add_bias(struct bdx_ops *ops, void *x, const void *bias, uint64_t rows,
			 uint64_t width, uint64_t stride)
{
	struct bias b = { x, bias, width, stride };

	bdx_cpu_run(bdx_cpu(ops), rows, rows_of_piece(width), bias_piece, &b);
}

struct rope {
	real *x;
	const real *table; /* [positions, rotated / 2, 2] */
	uint64_t length, start, heads, head_dim, rotated, stride;
	bool backward;
};

static void rope_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct rope *p = context;
	uint64_t half = p->rotated / 2, t, h, i;

	(void)thread;
	for (t = first; t < end; t++) {
		const real *angles = p->table + (p->start + t % p->length) * p->rotated;

		for (h = 0; h < p->heads; h++) {
			real *x = p->x + t * p->stride + h * p->head_dim, *y = x + half;

			for (i = 0; i < half; i++) {
				real c = angles[2 * i], s = angles[2 * i + 1], x_i = x[i];

				s = p->backward ? -s : s;
				x[i] = x_i * c - y[i] * s;
				y[i] = y[i] * c + x_i * s;
			}
		}
	}
}

static void cpu_rope(struct bdx_ops *ops, void *x, const void *table, uint64_t tokens,
		     uint64_t length, uint64_t start, uint64_t heads, uint64_t head_dim,
		     uint64_t rotated, uint64_t stride, bool backward)
{
	struct rope p = { x, table, length, start, heads, head_dim, rotated, stride, backward };

	bdx_cpu_run(bdx_cpu(ops), tokens, rows_of_piece(heads * rotated), rope_piece, &p);
}

/* ---- Activations ---- */

#define SQRT_HALF ((real)0.70710678118654752440)
#define INVERSE_SQRT_2PI ((real)0.39894228040143267794)
#define TWICE_SQRT_2_PI ((real)1.59576912160573071176) /* 2 sqrt(2 / pi) */
#define GELU_CUBE ((real)0.044715)

/* x becomes f(x), and slope f'(x). With s(z) = 1 / (1 + exp(-z)), whose derivative is s (1 - s):
 * silu(x) = x s(x), and (1 + tanh(u)) / 2 = s(2 u). */
static inline void activation(enum bdx_activation f, real *x, real *slope)
{
	real cube = f == BDX_SILU ? 0 : GELU_CUBE, factor = f == BDX_SILU ? 1 : TWICE_SQRT_2_PI;
	real z[LANES], z_slope[LANES];
	unsigned j;

	if (f == BDX_GELU) {
		for (j = 0; j < LANES; j++) {
			real s = (1 + erf(x[j] * SQRT_HALF)) / 2;

			slope[j] = s + x[j] * exponential(-x[j] * x[j] / 2) * INVERSE_SQRT_2PI;
			x[j] *= s;
		}
		return;
	}
	for (j = 0; j < LANES; j++) {
		real square = cube * x[j] * x[j];

		z[j] = factor * (x[j] + square * x[j]);
		z_slope[j] = factor * (1 + 3 * square);
	}
	for (j = 0; j < LANES; j++) {
		real s = 1 / (1 + exponential(-z[j]));

		slope[j] = s + x[j] * s * (1 - s) * z_slope[j];
		x[j] *= s;
	}
}

struct activate {
	enum bdx_activation f;
	const real *gate, *up, *out_gradient;
	real *out, *gate_gradient, *up_gradient;
	uint64_t width, stride;
};

static void activate_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct activate *a = context;
	real y[LANES], slope[LANES], up[LANES];
	uint64_t r, i;
	unsigned j;

	(void)thread;
	for (r = first; r < end; r++)
		for (i = 0; i < a->width; i += LANES) {
			load_lanes(y, a->gate + r * a->stride + i, a->width - i, 0);
			activation(a->f, y, slope);
			if (a->up) {
				load_lanes(up, a->up + r * a->stride + i, a->width - i, 0);
				for (j = 0; j < LANES; j++)
					y[j] *= up[j];
			}
			store_lanes(a->out + r * a->width + i, y, a->width - i);
		}
}

static void cpu_activate(struct bdx_ops *ops, enum bdx_activation f, void *out, const void *gate,
			 const void *up, uint64_t rows, uint64_t width, uint64_t stride)
{
	struct activate a = {
		.f = f, .gate = gate, .up = up, .out = out, .width = width, .stride = stride,
	};

	bdx_cpu_run(bdx_cpu(ops), rows, rows_of_piece(width), activate_piece, &a);
}

static void activate_backward_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct activate *a = context;
	real y[LANES], slope[LANES], up[LANES], g[LANES];
	uint64_t r, i;
	unsigned j;

	(void)thread;
	for (r = first; r < end; r++)
		for (i = 0; i < a->width; i += LANES) {
			uint64_t at = r * a->stride + i, count = a->width - i;

			load_lanes(y, a->gate + at, count, 0);
			load_lanes(g, a->out_gradient + r * a->width + i, count, 0);
			activation(a->f, y, slope);
			for (j = 0; j < LANES; j++)
				slope[j] *= g[j];
			if (a->up) {
				load_lanes(up, a->up + at, count, 0);
				for (j = 0; j < LANES; j++)
					slope[j] *= up[j];
				for (j = 0; j < LANES; j++)
					y[j] *= g[j];
				store_lanes(a->up_gradient + at, y, count);
			}
			store_lanes(a->gate_gradient + at, slope, count);
		}
}

static void cpu_activate_backward(struct bdx_ops *ops, enum bdx_activation f, void *gate_gradient,
				  void *up_gradient, const void *out_gradient, const void *gate,
				  const void *up, uint64_t rows, uint64_t width, uint64_t stride)
{
	struct activate a = {
		.f = f, .gate = gate, .up = up, .out_gradient = out_gradient,
		.gate_gradient = gate_gradient, .up_gradient = up_gradient, .width = width,
		.stride = stride,
	};

	bdx_cpu_run(bdx_cpu(ops), rows, rows_of_piece(width), activate_backward_piece, &a);
}
