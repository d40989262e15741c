/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_impl.h: the operations of the C reference, see ops.h for what each means.
 *
 * Included once by ops_cpu_f32.c and once by ops_cpu_f64.c, which define
 *   real           float or double; operands are the same
 *   exponential()  e^x; 0 where that is less than about 1e-38
 *   REAL_DTYPE     the bd_dtype of real
 *   REAL_ROUNDS    does rebuild() round
 *   REAL_GEMM      the member of struct bdx_blas
 *   REAL_TABLE     the name of the table
 *
 * Work is cut into pieces that do not depend on the number of threads, and neither do the results:
 * either no two pieces contribute to one number, or each leaves a partial sum of its own, and
 * those are added in order. Sums are in double; what is summed is computed in `real`. */
#include <limits.h>
#include <math.h>
#include <string.h>
#include <tgmath.h>

#include "ops_cpu.h"
#include "sign.h"

static inline uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* ---- Pieces of work ---- */

/* A thread takes at least about so many elements at a time: waking it takes some microseconds. */
#define PIECE_ELEMENTS 16384
/* Most partial sums that are kept of one. */
#define MAX_PARTIALS 32

/* Rows to a piece. */
static uint64_t rows_of_piece(uint64_t width)
{
	return width < PIECE_ELEMENTS ? PIECE_ELEMENTS / most(width, 1) : 1;
}

/* The same where each piece leaves partial sums. */
static uint64_t rows_of_partial(uint64_t rows, uint64_t width)
{
	return most(rows_of_piece(width), (rows + MAX_PARTIALS - 1) / MAX_PARTIALS);
}

/* Partial sums: double [pieces, stride]; sum: real [width], added to. */
struct partials {
	const double *partials;
	uint64_t pieces, stride;
	real *sum;
};

static void add_partials_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct partials *p = context;
	uint64_t piece, j;

	(void)thread;
	for (j = first; j < end; j++) {
		double sum = 0;

		for (piece = 0; piece < p->pieces; piece++)
			sum += p->partials[piece * p->stride + j];
		p->sum[j] += (real)sum;
	}
}

static void add_partials(struct bdx_cpu *cpu, real *sum, const double *partials, uint64_t pieces,
			 uint64_t stride, uint64_t width)
{
	struct partials p = { partials, pieces, stride, sum };

	bdx_cpu_run(cpu, width, rows_of_piece(pieces), add_partials_piece, &p);
}

/* ---- Rows, so many elements at a time ---- */

/* Loops of this fixed length over arrays of their own are what compilers turn into vector
 * instructions without being asked to reorder anything. */
#define LANES 16

/* The first `count` of LANES elements from memory (all of them if count is greater), the others
 * `padding`. */
static inline void load_lanes(real *lanes, const real *from, uint64_t count, real padding)
{
	unsigned i;

	if (count >= LANES) {
		memcpy(lanes, from, LANES * sizeof(real));
		return;
	}
	memcpy(lanes, from, count * sizeof(real));
	for (i = (unsigned)count; i < LANES; i++)
		lanes[i] = padding;
}

static inline void store_lanes(real *to, const real *lanes, uint64_t count)
{
	if (count >= LANES)
		memcpy(to, lanes, LANES * sizeof(real));
	else
		memcpy(to, lanes, count * sizeof(real));
}

static inline double sum_of_lanes(const double *lanes)
{
	double sum = 0;
	unsigned i;

	for (i = 0; i < LANES; i++)
		sum += lanes[i];
	return sum;
}

static real largest(const real *x, uint64_t count)
{
	real lanes[LANES], top[LANES], result = -INFINITY;
	uint64_t i;
	unsigned j;

	for (j = 0; j < LANES; j++)
		top[j] = -INFINITY;
	for (i = 0; i < count; i += LANES) {
		load_lanes(lanes, x + i, count - i, -INFINITY);
		for (j = 0; j < LANES; j++)
			top[j] = isgreater(lanes[j], top[j]) ? lanes[j] : top[j];
	}
	for (j = 0; j < LANES; j++)
		result = top[j] > result ? top[j] : result;
	return result;
}

/* out = exp((in - offset) * factor); their sum. out == in is allowed. */
static double exponentials(real *out, const real *in, real offset, real factor, uint64_t count)
{
	double sum[LANES] = { 0 };
	real x[LANES];
	uint64_t i;
	unsigned j;

	for (i = 0; i < count; i += LANES) {
		load_lanes(x, in + i, count - i, -INFINITY);
		for (j = 0; j < LANES; j++)
			x[j] = exponential((x[j] - offset) * factor);
		for (j = 0; j < LANES; j++)
			sum[j] += x[j];
		store_lanes(out + i, x, count - i);
	}
	return sum_of_lanes(sum);
}

#include "ops_cpu_products.h"
#include "ops_cpu_layers.h"
#include "ops_cpu_attention.h"
#include "ops_cpu_loss.h"

const struct bdx_ops REAL_TABLE = {
	.real = REAL_DTYPE, .operand = REAL_DTYPE, .rounds = REAL_ROUNDS,
	.gemm = cpu_gemm,
	.rebuild = cpu_rebuild, .scale_gradient = cpu_scale_gradient,
	.embed = cpu_embed,
	.norm = cpu_norm, .norm_backward = cpu_norm_backward,
	.add_bias = cpu_add_bias, .rope = cpu_rope,
	.attention = cpu_attention, .attention_backward = cpu_attention_backward,
	.activate = cpu_activate, .activate_backward = cpu_activate_backward,
	.compare = cpu_compare, .sample = cpu_sample, .adam = cpu_adam,
};
