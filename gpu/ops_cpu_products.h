/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_products.h: matrix products and sign-coded weights of the C reference; a part of
 * ops_cpu_impl.h. */

/* ---- Products ---- */

/* A block of B that stays in the cache while all rows of A pass by. */
#define BLOCK_K 128
#define BLOCK_N 64
#define STEP_K 4 /* additions to a sum between loading and storing it */

/* sum += x * block, for one row x of A. */
static void add_row_product(real *sum, const real *x, real (*block)[BLOCK_N], uint64_t depth)
{
	uint64_t l;
	unsigned j;

	for (l = 0; l < depth; l += STEP_K)
		for (j = 0; j < BLOCK_N; j++)
			sum[j] += (x[l] * block[l][j] + x[l + 1] * block[l + 1][j]) +
				(x[l + 2] * block[l + 2][j] + x[l + 3] * block[l + 3][j]);
}

/* What struct bdx_blas has, without OpenBLAS. */
static void plain_product(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
			  real alpha, const real *a, uint64_t lda, const real *b, uint64_t ldb,
			  real beta, real *c, uint64_t ldc)
{
	real block[BLOCK_K][BLOCK_N], x[BLOCK_K];
	uint64_t i, j, l, first_j, first_l;

	for (i = 0; i < m; i++)
		for (j = 0; j < n; j++)
			c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
	for (first_j = 0; first_j < n; first_j += BLOCK_N)
		for (first_l = 0; first_l < k; first_l += BLOCK_K) {
			uint64_t columns = least(BLOCK_N, n - first_j);
			uint64_t depth = least(BLOCK_K, k - first_l);

			memset(block, 0, sizeof(block));
			memset(x, 0, sizeof(x));
			for (l = 0; l < depth; l++)
				for (j = 0; j < columns; j++)
					block[l][j] = alpha * (transpose_b
						? b[(first_j + j) * ldb + first_l + l]
						: b[(first_l + l) * ldb + first_j + j]);
			for (i = 0; i < m; i++) {
				real sum[BLOCK_N] = { 0 };

				for (l = 0; l < depth; l++)
					x[l] = a[transpose_a ? (first_l + l) * lda + i
						 : i * lda + first_l + l];
				add_row_product(sum, x, block, depth);
				for (j = 0; j < columns; j++)
					c[i * ldc + first_j + j] += sum[j];
			}
		}
}

/* One row a[k] times op(b): by the other name of the same product. */
static void row_times(const struct bdx_cpu *cpu, bool transpose_b, uint64_t n, uint64_t k, real alpha,
		      const real *a, const real *b, uint64_t ldb, real beta, real *c)
{
	if (beta == 0)
		memset(c, 0, n * sizeof(*c)); /* whatever is there may be NaN */
	cpu->blas.REAL_GEMV(BDX_ROW_MAJOR, transpose_b ? BDX_AS_IT_IS : BDX_TRANSPOSED,
			    (int)(transpose_b ? n : k), (int)(transpose_b ? k : n), alpha, b, (int)ldb, a,
			    1, beta, c, 1);
}

/* In the calling thread. */
static void product(const struct bdx_cpu *cpu, bool transpose_a, bool transpose_b, uint64_t m,
		    uint64_t n, uint64_t k, real alpha, const real *a, uint64_t lda, const real *b,
		    uint64_t ldb, real beta, real *c, uint64_t ldc)
{
	uint64_t largest = most(most(most(m, n), most(k, lda)), most(ldb, ldc));

	if (m == 0 || n == 0)
		return;
	if (cpu->blas.library && largest <= INT_MAX && m == 1 && !transpose_a)
		row_times(cpu, transpose_b, n, k, alpha, a, b, ldb, beta, c);
	else if (cpu->blas.library && largest <= INT_MAX)
		cpu->blas.REAL_GEMM(BDX_ROW_MAJOR, transpose_a ? BDX_TRANSPOSED : BDX_AS_IT_IS,
				    transpose_b ? BDX_TRANSPOSED : BDX_AS_IT_IS, (int)m, (int)n,
				    (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
	else
		plain_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c,
			      ldc);
}

/* C is cut into tiles. */
struct gemm {
	struct bdx_cpu *cpu;
	bool transpose_a, transpose_b;
	uint64_t m, n, k, lda, ldb, ldc;
	real alpha, beta;
	const real *a, *b;
	real *c;
	uint64_t tile_m, tile_n, tiles_n;
};

static void gemm_tiles(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct gemm *g = context;
	uint64_t tile;

	(void)thread;
	for (tile = first; tile < end; tile++) {
		uint64_t i = tile / g->tiles_n * g->tile_m, j = tile % g->tiles_n * g->tile_n;

		product(g->cpu, g->transpose_a, g->transpose_b, least(g->tile_m, g->m - i),
			least(g->tile_n, g->n - j), g->k, g->alpha,
			g->a + i * (g->transpose_a ? 1 : g->lda), g->lda,
			g->b + j * (g->transpose_b ? g->ldb : 1), g->ldb, g->beta,
			g->c + i * g->ldc + j, g->ldc);
	}
}

/* Along each side: few and large ones lose the least time in packing their operands, more of them
 * keep more cores busy. */
#define MOST_TILES 8
#define LEAST_TILE 256

static uint64_t tile_of(uint64_t length)
{
	uint64_t tile = (length + MOST_TILES - 1) / MOST_TILES;

	return most(LEAST_TILE, (tile + 15) / 16 * 16);
}

static void cpu_gemm(struct bdx_ops *ops, bool transpose_a, bool transpose_b, uint64_t m,
		     uint64_t n, uint64_t k, double alpha, const void *a, uint64_t lda,
		     const void *b, uint64_t ldb, double beta, void *c, enum bdx_kind c_kind,
		     uint64_t ldc)
{
	struct gemm g = {
		.cpu = bdx_cpu(ops), .transpose_a = transpose_a, .transpose_b = transpose_b,
		.m = m, .n = n, .k = k, .lda = lda, .ldb = ldb, .ldc = ldc,
		.alpha = (real)alpha, .beta = (real)beta, .a = a, .b = b, .c = c,
		.tile_m = tile_of(m), .tile_n = tile_of(n),
	};
	uint64_t tiles_m = (m + g.tile_m - 1) / g.tile_m;

	(void)c_kind; /* both kinds are `real` */
	g.tiles_n = (n + g.tile_n - 1) / g.tile_n;
	bdx_cpu_run(g.cpu, tiles_m * g.tiles_n, 1, gemm_tiles, &g);
}

/* ---- Sign-coded weights ---- */

struct signed_weight {
	const struct bdx_signed *w;
	real *weight;
	const real *gradient;
	real *row_gradient;
	double *col_partials; /* [pieces, col_stride] */
	uint64_t col_stride;  /* cols and some padding */
	uint64_t piece_rows;
	uint16_t *rounded; /* [threads, piece_rows * cols] */
};

static real load_base(const struct bdx_signed *w, uint64_t i)
{
	if (w->base_dtype == BD_F32)
		return (real)((const float *)w->base)[i];
	if (w->base_dtype == BD_BF16)
		return (real)bd_bf16_to_float(((const uint16_t *)w->base)[i]);
	return (real)bd_f16_to_float(((const uint16_t *)w->base)[i]);
}

static void rebuild_exactly(const struct signed_weight *s, uint64_t first, uint64_t end)
{
	const struct bdx_signed *w = s->w;
	const real *row = w->row, *col = w->col;
	uint64_t i, j;

	for (i = first; i < end; i++)
		for (j = 0; j < w->cols; j++) {
			uint64_t e = i * w->cols + j;
			real change = row[i] * col[j];
			bool plus = w->bits[e / 8] >> e % 8 & 1;

			s->weight[e] = load_base(w, e) + (plus ? change : -change);
		}
}

/* bd_bf16_to_float() where calling it takes longer than what it does. */
static void widen_bf16(real *out, const uint16_t *in, uint64_t count)
{
	uint64_t i;

	for (i = 0; i < count; i++) {
		uint32_t bits = (uint32_t)in[i] << 16;
		float x;

		memcpy(&x, &bits, sizeof(x));
		out[i] = (real)x;
	}
}

static void rebuild_rounded(const struct signed_weight *s, uint64_t first, uint64_t end,
			    unsigned thread)
{
	const struct bdx_signed *w = s->w;
	uint64_t start = first * w->cols, count = (end - first) * w->cols, i;
	uint16_t *rounded = s->rounded + thread * s->piece_rows * w->cols;
	void *out = w->out_dtype == BD_F32 ? (void *)(s->weight + start) : rounded;
	struct bd_sign_run run = {
		.cols = w->cols, .count = count, .planes = 1, .base_dtype = w->base_dtype,
		.out_dtype = w->out_dtype, .bits = { w->bits }, .bit = { start },
		.row = { (const float *)w->row + first }, .col = { w->col },
	};

	bd_sign_rebuild(&run, out, (const char *)w->base +
			start * (bd_dtype_bits(w->base_dtype) / 8));
	if (w->out_dtype == BD_BF16)
		widen_bf16(s->weight + start, rounded, count);
	else if (w->out_dtype == BD_F16)
		for (i = 0; i < count; i++)
			s->weight[start + i] = (real)bd_f16_to_float(rounded[i]);
}

static void rebuild_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	if (REAL_ROUNDS)
		rebuild_rounded(context, first, end, thread);
	else
		rebuild_exactly(context, first, end);
}

static void cpu_rebuild(struct bdx_ops *ops, const struct bdx_signed *w, void *weight)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);
	struct signed_weight s = { .w = w, .weight = weight, .piece_rows = rows_of_piece(w->cols) };

	s.rounded = bdx_cpu_scratch(cpu, bdx_pool_threads(cpu->pool) * s.piece_rows,
				    w->cols * sizeof(*s.rounded));
	bdx_cpu_run(cpu, w->rows, s.piece_rows, rebuild_piece, &s);
}

/* x with the sign of each bit from `first` on. Reads some bytes more, which alloc() provides. */
static inline void apply_signs(real *x, const uint8_t *bits, uint64_t first)
{
	static const uint32_t select[LANES] = {
		1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
		1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
	};
	uint32_t window;
	unsigned i;

	memcpy(&window, bits + first / 8, sizeof(window));
	window >>= first % 8;
	for (i = 0; i < LANES; i++)
		x[i] = window & select[i] ? x[i] : -x[i];
}

static void scale_gradient_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct signed_weight *s = context;
	const struct bdx_signed *w = s->w;
	const real *row = w->row, *col = w->col;
	double *partial = s->col_partials + first / s->piece_rows * s->col_stride;
	uint64_t i, j;
	unsigned k;

	(void)thread;
	memset(partial, 0, s->col_stride * sizeof(*partial));
	for (i = first; i < end; i++) {
		double row_sum[LANES] = { 0 };

		for (j = 0; j < w->cols; j += LANES) {
			real g[LANES], c[LANES];
			double col_sum[LANES];

			load_lanes(g, s->gradient + i * w->cols + j, w->cols - j, 0);
			load_lanes(c, col + j, w->cols - j, 0);
			memcpy(col_sum, partial + j, sizeof(col_sum));
			apply_signs(g, w->bits, i * w->cols + j);
			for (k = 0; k < LANES; k++)
				row_sum[k] += g[k] * c[k];
			for (k = 0; k < LANES; k++)
				col_sum[k] += g[k] * row[i];
			memcpy(partial + j, col_sum, sizeof(col_sum));
		}
		s->row_gradient[i] += (real)sum_of_lanes(row_sum);
	}
}

static void cpu_scale_gradient(struct bdx_ops *ops, const struct bdx_signed *w,
			       const void *gradient, void *row_gradient, void *col_gradient)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);
	struct signed_weight s = {
		.w = w, .gradient = gradient, .row_gradient = row_gradient,
		.piece_rows = rows_of_partial(w->rows, w->cols),
		.col_stride = (w->cols + LANES - 1) / LANES * LANES,
	};
	uint64_t pieces = (w->rows + s.piece_rows - 1) / s.piece_rows;

	s.col_partials = bdx_cpu_scratch(cpu, pieces, s.col_stride * sizeof(*s.col_partials));
	bdx_cpu_run(cpu, w->rows, s.piece_rows, scale_gradient_piece, &s);
	add_partials(cpu, col_gradient, s.col_partials, pieces, s.col_stride,
		     w->cols);
}
