/* SPDX-License-Identifier: Apache-2.0 */
/* sign_avx2.c: sign encoding with AVX2 and F16C; same bits as sign.c. */
#include "sign_impl.h"

#ifdef __x86_64__

#include <immintrin.h>

/* Without "fma": the compiler could not fuse even if it were told to. */
#define BD_SIGN_TARGET __attribute__((target("avx2,f16c")))
#define FN BD_SIGN_TARGET BD_INLINE

#define BLOCK 16

/* One block in binary32: elements 0..7 and 8..15. */
struct pair {
	__m256 lo, hi;
};

FN __m256 load_bf16(const uint8_t *p)
{
	__m128i words = _mm_loadu_si128((const __m128i *)p);

	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

FN __m256 load_f16(const uint8_t *p)
{
	return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

FN __m256 load_f32(const uint8_t *p)
{
	return _mm256_loadu_ps((const float *)p);
}

FN struct pair load(const uint8_t *p, enum bd_dtype dtype)
{
	if (dtype == BD_F32)
		return (struct pair){ load_f32(p), load_f32(p + 32) };
	if (dtype == BD_F16)
		return (struct pair){ load_f16(p), load_f16(p + 16) };
	return (struct pair){ load_bf16(p), load_bf16(p + 16) };
}

FN __m256 canonical(__m256 x)
{
	return _mm256_blendv_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
				_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* To nearest even, in the low half of each lane. */
FN __m256i round_bf16(__m256 x)
{
	__m256i i = _mm256_castps_si256(x);
	__m256i odd = _mm256_and_si256(_mm256_srli_epi32(i, 16), _mm256_set1_epi32(1));

	i = _mm256_add_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(0x7fff)), odd);
	return _mm256_srli_epi32(i, 16);
}

FN void store(uint8_t *p, enum bd_dtype dtype, struct pair x)
{
	/* One comparison finds a NaN in either half; they are rare enough for a branch. */
	if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(x.lo, x.hi, _CMP_UNORD_Q)), 0)) {
		x.lo = canonical(x.lo);
		x.hi = canonical(x.hi);
	}
	if (dtype == BD_F32) {
		_mm256_storeu_ps((float *)p, x.lo);
		_mm256_storeu_ps((float *)(p + 32), x.hi);
	} else if (dtype == BD_F16) {
		_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
		_mm_storeu_si128((__m128i *)(p + 16),
				 _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
	} else {
		__m256i words = _mm256_packus_epi32(round_bf16(x.lo), round_bf16(x.hi));

		/* packus works within each half of the register */
		_mm256_storeu_si256((__m256i *)p,
				    _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)));
	}
}

/* What shifts bit `shift` + i of a word to the sign of lane i. */
FN __m256i lane_shifts(unsigned shift)
{
	return _mm256_sub_epi32(_mm256_set1_epi32(31 - (int)shift),
				_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

FN __m256 scale(__m256i word, __m256i shifts, __m256 row, __m256 col)
{
	__m256i minus = _mm256_andnot_si256(_mm256_sllv_epi32(word, shifts),
					    _mm256_set1_epi32((int)0x80000000));

	return _mm256_xor_ps(_mm256_mul_ps(row, col), _mm256_castsi256_ps(minus));
}

FN struct pair add_plane(struct pair acc, const struct bd_sign_plane *plane, __m256i shifts,
			 uint64_t i)
{
	__m256i word = _mm256_set1_epi32((int)bd_sign_load32(plane->bits + i / 8));
	__m256i next = _mm256_set1_epi32((int)bd_sign_load32(plane->bits + i / 8 + 1));
	const float *col = plane->col + i;
	__m256 row = _mm256_set1_ps(plane->row);

	acc.lo = _mm256_add_ps(acc.lo, scale(word, shifts, row, _mm256_loadu_ps(col)));
	acc.hi = _mm256_add_ps(acc.hi, scale(next, shifts, row, _mm256_loadu_ps(col + 8)));
	return acc;
}

/* Rebuilds the whole blocks of the span and returns how many elements that were. */
FN uint64_t rebuild_blocks(const struct bd_sign_span *span, unsigned planes, enum bd_dtype base,
			   enum bd_dtype out)
{
	const struct bd_sign_plane first = span->plane[0];
	__m256i shifts[BD_MAX_PLANES];
	uint64_t i;
	unsigned p;

	for (p = 0; p < planes; p++)
		shifts[p] = lane_shifts(span->plane[p].shift);
	for (i = 0; i + BLOCK <= span->count; i += BLOCK) {
		struct pair acc = load(span->base + i * bd_sign_size(base), base);

		acc = add_plane(acc, &first, shifts[0], i);
		for (p = 1; p < planes; p++)
			acc = add_plane(acc, &span->plane[p], shifts[p], i);
		store(span->out + i * bd_sign_size(out), out, acc);
	}
	return i;
}

FN void rebuild_span(const struct bd_sign_span *span, enum bd_dtype base, enum bd_dtype out)
{
	/* One plane is what almost every file has: it gets code without the loop over planes. */
	uint64_t done = span->planes == 1 ? rebuild_blocks(span, 1, base, out) :
					    rebuild_blocks(span, span->planes, base, out);
	struct bd_sign_span rest;
	unsigned p;

	if (done == span->count)
		return;
	rest = *span;
	rest.base += done * bd_sign_size(base);
	rest.out += done * bd_sign_size(out);
	rest.count -= done;
	for (p = 0; p < rest.planes; p++) {
		rest.plane[p].bits += done / 8;
		rest.plane[p].col += done;
	}
	bd_sign_scalar.rebuild[base][out](&rest);
}

/* Takes four absolute values into four of the lanes. */
FN void sum(__m256d *lanes, __m128 a)
{
	*lanes = _mm256_add_pd(*lanes, _mm256_cvtps_pd(a));
}

/* One block; returns its 16 sign bits. */
FN uint32_t extract_block(const uint8_t *fine, enum bd_dtype fine_dtype, const uint8_t *base,
			  enum bd_dtype base_dtype, float *col, __m256d sums[4])
{
	const __m256 zero = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
	struct pair f = load(fine, fine_dtype), b = load(base, base_dtype);
	struct pair d = { _mm256_sub_ps(f.lo, b.lo), _mm256_sub_ps(f.hi, b.hi) };
	struct pair a = { _mm256_andnot_ps(sign, d.lo), _mm256_andnot_ps(sign, d.hi) };

	sum(&sums[0], _mm256_castps256_ps128(a.lo));
	sum(&sums[1], _mm256_extractf128_ps(a.lo, 1));
	sum(&sums[2], _mm256_castps256_ps128(a.hi));
	sum(&sums[3], _mm256_extractf128_ps(a.hi, 1));
	_mm256_storeu_ps(col, _mm256_add_ps(_mm256_loadu_ps(col), a.lo));
	_mm256_storeu_ps(col + 8, _mm256_add_ps(_mm256_loadu_ps(col + 8), a.hi));
	return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(d.lo, zero, _CMP_GT_OQ)) |
	       (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(d.hi, zero, _CMP_GT_OQ)) << 8;
}

FN void extract_row(struct bd_sign_row *row, enum bd_dtype fine, enum bd_dtype base)
{
	struct bd_sign_row r = *row; /* a copy keeps the writer in registers */
	double lane[BD_SIGN_LANES];
	__m256d sums[4];
	unsigned rest = r.cols % BLOCK, i;
	uint64_t j;

	for (i = 0; i < 4; i++)
		sums[i] = _mm256_setzero_pd();
	for (j = 0; j + BLOCK <= r.cols; j += BLOCK)
		bd_sign_put(&r.writer,
			    extract_block(r.fine + j * bd_sign_size(fine), fine,
					  r.base + j * bd_sign_size(base), base, r.col_abs + j,
					  sums),
			    BLOCK);
	if (rest) {
		uint8_t f[BLOCK * 4] = { 0 }, b[BLOCK * 4] = { 0 };
		float col[BLOCK] = { 0 };

		memcpy(f, r.fine + j * bd_sign_size(fine), rest * bd_sign_size(fine));
		memcpy(b, r.base + j * bd_sign_size(base), rest * bd_sign_size(base));
		memcpy(col, r.col_abs + j, rest * sizeof(*col));
		bd_sign_put(&r.writer, extract_block(f, fine, b, base, col, sums), rest);
		memcpy(r.col_abs + j, col, rest * sizeof(*col));
	}
	row->writer = r.writer;
	for (i = 0; i < 4; i++)
		_mm256_storeu_pd(lane + 4 * i, sums[i]);
	row->abs = bd_sign_fold(lane);
}

BD_SIGN_DEFINE_LEVEL(bd_sign_avx2);

#endif
