/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_f32.c: the operations of the C reference in float. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float real;

static inline uint32_t bits_of(float f)
{
	uint32_t x;

	memcpy(&x, &f, sizeof(x));
	return x;
}

static inline float float_of(uint32_t x)
{
	float f;

	memcpy(&f, &x, sizeof(f));
	return f;
}

/* The C library's expf() takes several times as long, since it is called for each number. With
 * x = n ln 2 + r, |r| <= ln 2 / 2: 2^n times the Taylor polynomial of e^r, which is exact to 5e-9.
 * Masks instead of branches, and comparisons that raise no exception, so that compilers can
 * compute many at once. */
static inline real exponential(real x)
{
	const float to_integer = 0x1.8p23f; /* adding it rounds to integers */
	const float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f; /* n * ln2_high is exact */
	uint32_t great = -(uint32_t)isgreater(x, 88), kept = -(uint32_t)!isless(x, -87), scale;
	float n, r;

	x = float_of(((bits_of(x) & ~great) | (bits_of(88) & great)) & kept);
	n = x * 0x1.715476p0f + to_integer;
	scale = (bits_of(n) + 127) << 23 & kept; /* the bits of 2^n; those of to_integer are gone */
	n -= to_integer;
	r = x - n * ln2_high - n * ln2_low;
	return float_of(scale) * (1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f +
		r * (1 / 120.f + r * (1 / 720.f + r * (1 / 5040.f))))))));
}

#define REAL_DTYPE BD_F32
#define REAL_ROUNDS true /* weights are what the mount shows */
#define REAL_GEMM sgemm
#define REAL_GEMV sgemv
#define REAL_TABLE bdx_ops_cpu_f32
#include "ops_cpu_impl.h"
