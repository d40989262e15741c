/* SPDX-License-Identifier: Apache-2.0 */
/* sign_impl.h: what sign.c and its vector versions share. Private to the library.
 *
 * All of it relies on the default floating-point environment: rounding to nearest, and subnormals
 * neither flushed nor taken as zero.
 *
 * A level (scalar, AVX2, AVX-512) is a table of two kernels for each pair of dtypes. sign.c cuts
 * the work into rows and calls a kernel for each; a kernel sees one row or a part of one.
 *
 * Bits in and out of binary32 are the definition in sign.h. The order of the sums of extraction is
 * defined here, for one row of d = float(fine) - float(base):
 *
 *     double abs[16] = {0}
 *     for j = 0 .. cols-1:    abs[j % 16] += |d[j]|
 *                             col_abs[j]  += |d[j]|     in binary32, rows ascending
 *     row_abs = fold(abs)     written
 *
 * Adding +0 changes none of these, so vector code may fill a short row up with zeros. Where a sum
 * is NaN, which NaN it is may differ between levels; where it is not, its bits agree. */
#ifndef BD_SIGN_IMPL_H
#define BD_SIGN_IMPL_H

#include <stdbool.h>
#include <string.h>

#include "sign.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data are little endian, and nothing here swaps bytes"
#endif
#ifdef __FAST_MATH__
#error "the file format promises exact binary32 results: do not build with -ffast-math"
#endif

#define BD_SIGN_LANES 16

/* Elements of one row to rebuild. */
struct bd_sign_span {
	const uint8_t *base;
	uint8_t *out;
	uint64_t count;
	unsigned planes;
	struct bd_sign_plane {
		const uint8_t *bits; /* the first element's bit is .. */
		unsigned shift;      /* .. this one of the first byte, 0 .. 7 */
		float row;
		const float *col;
	} plane[BD_MAX_PLANES];
};

/* Collects sign bits and ORs them into memory in whole bytes, never touching one past the last. */
struct bd_sign_writer {
	uint8_t *next;
	uint64_t pending;
	unsigned fill; /* bits in pending, less than 32 between calls */
};

/* One whole row to extract; kernels advance the writer and set the two sums. */
struct bd_sign_row {
	const uint8_t *fine, *base;
	uint64_t cols;
	float *col_abs;
	struct bd_sign_writer writer;
	double abs;
};

struct bd_sign_level {
	void (*rebuild[BD_DTYPES][BD_DTYPES])(const struct bd_sign_span *span); /* [base][out] */
	void (*extract[BD_DTYPES][BD_DTYPES])(struct bd_sign_row *row);         /* [fine][base] */
};

/* Each level compiles two always-inlined templates, rebuild_span(span, base, out) and
 * extract_row(row, fine, base), once for each pair of dtypes. BD_SIGN_TARGET says for which
 * processor, as a function attribute. */
#define BD_SIGN_PAIRS(X)                                                                          \
	X(BF16, BF16) X(BF16, F16) X(BF16, F32)                                                   \
	X(F16, BF16) X(F16, F16) X(F16, F32)                                                      \
	X(F32, BF16) X(F32, F16) X(F32, F32)
#define BD_SIGN_KERNELS(a, b)                                                                     \
	BD_SIGN_TARGET static void rebuild_##a##_##b(const struct bd_sign_span *span)             \
	{                                                                                         \
		rebuild_span(span, BD_##a, BD_##b);                                               \
	}                                                                                         \
	BD_SIGN_TARGET static void extract_##a##_##b(struct bd_sign_row *row)                     \
	{                                                                                         \
		extract_row(row, BD_##a, BD_##b);                                                 \
	}
#define BD_SIGN_REBUILD_ENTRY(a, b) [BD_##a][BD_##b] = rebuild_##a##_##b,
#define BD_SIGN_EXTRACT_ENTRY(a, b) [BD_##a][BD_##b] = extract_##a##_##b,
/* Defines the kernels and the level made of them. */
#define BD_SIGN_DEFINE_LEVEL(name)                                                                \
	BD_SIGN_PAIRS(BD_SIGN_KERNELS)                                                            \
	const struct bd_sign_level name = {                                                       \
		.rebuild = { BD_SIGN_PAIRS(BD_SIGN_REBUILD_ENTRY) },                              \
		.extract = { BD_SIGN_PAIRS(BD_SIGN_EXTRACT_ENTRY) },                              \
	}

extern const struct bd_sign_level bd_sign_scalar;
#ifdef __x86_64__
extern const struct bd_sign_level bd_sign_avx2, bd_sign_avx512;
/* All that BD_CPU_AVX512_BF16 has of its own: one plane, BF16 to BF16. */
void bd_sign_rebuild_bf16(const struct bd_sign_span *span);
#endif

#define BD_INLINE static inline __attribute__((always_inline))

BD_INLINE size_t bd_sign_size(enum bd_dtype dtype)
{
	return dtype == BD_F32 ? 4 : 2;
}

BD_INLINE uint32_t bd_sign_load32(const uint8_t *p)
{
	uint32_t x;

	memcpy(&x, p, sizeof(x));
	return x;
}

/* Appends the low n <= 32 bits of `bits`; the others must be zero. */
BD_INLINE void bd_sign_put(struct bd_sign_writer *w, uint32_t bits, unsigned n)
{
	w->pending |= (uint64_t)bits << w->fill;
	w->fill += n;
	if (w->fill >= 32) {
		uint32_t x = bd_sign_load32(w->next) | (uint32_t)w->pending;

		memcpy(w->next, &x, sizeof(x));
		w->next += sizeof(x);
		w->pending >>= 32;
		w->fill -= 32;
	}
}

/* The fixed order in which the lanes of a row become one sum. */
BD_INLINE double bd_sign_fold(const double lane[BD_SIGN_LANES])
{
	double sum[BD_SIGN_LANES];
	unsigned n, i;

	memcpy(sum, lane, sizeof(sum));
	for (n = BD_SIGN_LANES / 2; n > 0; n /= 2)
		for (i = 0; i < n; i++)
			sum[i] += sum[i + n];
	return sum[0];
}

#endif
