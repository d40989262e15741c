/* SPDX-License-Identifier: Apache-2.0 */
/* sign_avx512.c: sign encoding with AVX-512 (F, BW, DQ, VL; one kernel uses BF16 and VBMI where the
 * processor has them); same bits as sign.c. */
#include "sign_impl.h"

#ifdef __x86_64__

#include <immintrin.h>

#define BD_SIGN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define FN BD_SIGN_TARGET BD_INLINE

#define BLOCK 32

/* One block in binary32: elements 0..15 and 16..31. */
struct pair {
	__m512 lo, hi;
};

/* How many bytes ahead of their use blocks are asked for. Left to itself the processor waits for
 * memory a good part of the time; what is in its cache anyhow is no slower for this. */
#define AHEAD 2048

/* One block; past the end of a buffer this does nothing. */
FN void prefetch(const uint8_t *p, enum bd_dtype dtype)
{
	__builtin_prefetch(p + AHEAD);
	if (dtype == BD_F32)
		__builtin_prefetch(p + AHEAD + 64);
}

/* `full` is a constant of the caller; where false, only the elements in `mask` are touched. */
FN __m256i load_words(const uint8_t *p, bool full, __mmask16 mask)
{
	return full ? _mm256_loadu_si256((const __m256i *)p) : _mm256_maskz_loadu_epi16(mask, p);
}

FN __m512 load_floats(const void *p, bool full, __mmask16 mask)
{
	return full ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask, p);
}

FN __m512 load_half(const uint8_t *p, enum bd_dtype dtype, bool full, __mmask16 mask)
{
	if (dtype == BD_F32)
		return load_floats(p, full, mask);
	if (dtype == BD_F16)
		return _mm512_cvtph_ps(load_words(p, full, mask));
	return _mm512_castsi512_ps(
		_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p, full, mask)), 16));
}

FN struct pair load(const uint8_t *p, enum bd_dtype dtype, bool full, __mmask32 mask)
{
	if (full)
		prefetch(p, dtype);
	return (struct pair){
		load_half(p, dtype, full, (__mmask16)mask),
		load_half(p + 16 * bd_sign_size(dtype), dtype, full, (__mmask16)(mask >> 16)),
	};
}

/* One comparison finds a NaN in either half. */
FN __mmask16 any_nan(struct pair x)
{
	return _mm512_cmp_ps_mask(x.lo, x.hi, _CMP_UNORD_Q);
}

FN __m512 canonical_half(__m512 x)
{
	return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
				  _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

FN struct pair canonical(struct pair x)
{
	return (struct pair){ canonical_half(x.lo), canonical_half(x.hi) };
}

/* To nearest even, on words: 32 at a time instead of 16. */
FN __m512i round_bf16(struct pair x)
{
	/* The two words of each dword change places. */
	const __m512i swap = _mm512_set4_epi32(0x0d0c0f0e, 0x09080b0a, 0x05040706, 0x01000302);
	/* Words 0, 2, 4, .. and then 1, 3, 5, .. */
	const __m512i order = _mm512_set_epi32(0x001f001d, 0x001b0019, 0x00170015, 0x00130011,
					       0x000f000d, 0x000b0009, 0x00070005, 0x00030001,
					       0x001e001c, 0x001a0018, 0x00160014, 0x00120010,
					       0x000e000c, 0x000a0008, 0x00060004, 0x00020000);
	__m512i lo = _mm512_castps_si512(x.lo), hi = _mm512_castps_si512(x.hi);
	/* Upper and lower halves of all floats, elements i and 16 + i side by side. */
	__m512i upper = _mm512_mask_shuffle_epi8(hi, 0x3333333333333333, lo, swap);
	__m512i lower = _mm512_mask_shuffle_epi8(lo, 0xcccccccccccccccc, hi, swap);
	/* Up from 0x8001 if the upper half is even, from 0x8000 if it is odd: (~upper & 1) | 0x8000. */
	__m512i limit = _mm512_ternarylogic_epi32(upper, _mm512_set1_epi16(1),
						  _mm512_set1_epi16((short)0x8000), 0xae);
	__mmask32 carry = _mm512_cmpge_epu16_mask(lower, limit);

	upper = _mm512_mask_add_epi16(upper, carry, upper, _mm512_set1_epi16(1));
	return _mm512_permutexvar_epi16(order, upper);
}

/* One block of BF16 or F16. */
FN void store_words(uint8_t *p, __m512i words)
{
	prefetch(p, BD_BF16);
	_mm512_storeu_si512(p, words);
}

/* NaN must be canonical already. */
FN void store(uint8_t *p, enum bd_dtype dtype, struct pair x, bool full, __mmask32 mask)
{
	__m512i words;

	if (dtype == BD_F32) {
		if (full)
			prefetch(p, dtype);
		_mm512_mask_storeu_ps(p, full ? 0xffff : (__mmask16)mask, x.lo);
		_mm512_mask_storeu_ps(p + 64, full ? 0xffff : (__mmask16)(mask >> 16), x.hi);
		return;
	}
	if (dtype == BD_F16)
		words = _mm512_inserti64x4(
			_mm512_castsi256_si512(_mm512_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT)),
			_mm512_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT), 1);
	else
		words = round_bf16(x);
	if (full)
		store_words(p, words);
	else
		_mm512_mask_storeu_epi16(p, mask, words);
}

FN __m512i lanes(void)
{
	return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* What shifts bit `shift` + i of a word to the sign of lane i. */
FN __m512i lane_shifts(unsigned shift)
{
	return _mm512_sub_epi32(_mm512_set1_epi32(31 - (int)shift), lanes());
}

/* row * col with the sign flipped where the plane's bit is 0. */
FN __m512 scale(const uint8_t *bits, __m512i shifts, __m512 row, __m512 col)
{
	__m512i word = _mm512_set1_epi32((int)bd_sign_load32(bits));
	__m512i s = _mm512_castps_si512(_mm512_mul_ps(row, col));

	/* s ^ (~bit & sign) */
	return _mm512_castsi512_ps(
		_mm512_ternarylogic_epi32(s, _mm512_sllv_epi32(word, shifts),
					  _mm512_set1_epi32((int)0x80000000), 0xd2));
}

/* A plane with what depends only on its row. */
struct plane {
	const uint8_t *bits;
	const float *col;
	__m512 row;
	__m512i shifts;
};

FN struct plane prepare(const struct bd_sign_plane *plane)
{
	return (struct plane){
		.bits = plane->bits,
		.col = plane->col,
		.row = _mm512_set1_ps(plane->row),
		.shifts = lane_shifts(plane->shift),
	};
}

FN struct pair add_plane(struct pair acc, const struct plane *plane, uint64_t i, bool full,
			 __mmask32 mask)
{
	const uint8_t *bits = plane->bits + i / 8;
	__m512 lo = load_floats(plane->col + i, full, (__mmask16)mask);
	__m512 hi = load_floats(plane->col + i + 16, full, (__mmask16)(mask >> 16));

	acc.lo = _mm512_add_ps(acc.lo, scale(bits, plane->shifts, plane->row, lo));
	acc.hi = _mm512_add_ps(acc.hi, scale(bits + 2, plane->shifts, plane->row, hi));
	return acc;
}

/* From element i to the end, which is near. */
FN void rebuild_rest(const struct bd_sign_span *s, const struct plane *planes, unsigned n,
		     uint64_t i, enum bd_dtype base, enum bd_dtype out)
{
	for (; i < s->count; i += BLOCK) {
		__mmask32 mask = s->count - i < BLOCK ? (1u << (s->count - i)) - 1 : ~0u;
		struct pair a = load(s->base + i * bd_sign_size(base), base, false, mask);
		unsigned p;

		for (p = 0; p < n; p++)
			a = add_plane(a, &planes[p], i, false, mask);
		store(s->out + i * bd_sign_size(out), out, canonical(a), false, mask);
	}
}

FN void rebuild_blocks(const struct bd_sign_span *span, unsigned n, enum bd_dtype base,
		       enum bd_dtype out)
{
	const struct bd_sign_span s = *span; /* a copy, since stores to `out` might change *span */
	const size_t base_size = bd_sign_size(base), out_size = bd_sign_size(out);
	struct plane planes[BD_MAX_PLANES];
	uint64_t i;
	unsigned p;

	for (p = 0; p < n; p++)
		planes[p] = prepare(&s.plane[p]);
	for (i = 0; i + 2 * BLOCK <= s.count; i += 2 * BLOCK) {
		struct pair a = load(s.base + i * base_size, base, true, 0);
		struct pair b = load(s.base + (i + BLOCK) * base_size, base, true, 0);

		for (p = 0; p < n; p++) {
			a = add_plane(a, &planes[p], i, true, 0);
			b = add_plane(b, &planes[p], i + BLOCK, true, 0);
		}
		/* Rare enough for a branch. */
		if (__builtin_expect(!_kortestz_mask16_u8(any_nan(a), any_nan(b)), 0)) {
			a = canonical(a);
			b = canonical(b);
		}
		store(s.out + i * out_size, out, a, true, 0);
		store(s.out + (i + BLOCK) * out_size, out, b, true, 0);
	}
	rebuild_rest(&s, planes, n, i, base, out);
}

/* --- One plane, BF16 to BF16, with AVX512_BF16 and VBMI -------------------------------------
 *
 * What almost every file needs gets code of its own where the processor has these: fewer
 * instructions on the two ports that bound the code above. AVX512_BF16 rounds to nearest even
 * whatever the mode, but takes subnormals as zeros and keeps the payloads of NaN. Both show in what
 * it gives: blocks with a result that could be one of these are rounded as above. Many exact zeros
 * therefore make it slower than the code above, by a third where there is nothing else. */

#define BF16_TARGET                                                                               \
	__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")))
#define FN_BF16 BF16_TARGET BD_INLINE

/* One instruction moves 16 words to the upper halves of dwords, where load_half() takes two. */
FN_BF16 struct pair load_bf16(const uint8_t *p)
{
	const __mmask64 upper = 0xcccccccccccccccc;
	/* Bytes 2 and 3 of lane i come from bytes 2 * i and 2 * i + 1. */
	const __m512i lo = _mm512_add_epi32(
		_mm512_mullo_epi32(lanes(), _mm512_set1_epi32(0x02020000)),
		_mm512_set1_epi32(0x01000000));
	const __m512i hi = _mm512_add_epi32(lo, _mm512_set1_epi32(0x20200000));
	__m512i words = _mm512_loadu_si512(p);

	prefetch(p, BD_BF16);
	/* Keeps compilers from loading twice: tensors are rarely aligned to 64 bytes, which makes
	 * loads dear. */
	__asm__("" : "+v"(words));
	return (struct pair){
		_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(upper, lo, words)),
		_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(upper, hi, words)),
	};
}

/* The words in `mask` that are neither zero, which any subnormal has become, nor infinite or NaN:
 * exactly for those, bits 8 to 14 of 0x7f - word are all 0. */
FN_BF16 __mmask32 ordinary(__mmask32 mask, __m512i words)
{
	return _mm512_mask_test_epi16_mask(mask, _mm512_sub_epi16(_mm512_set1_epi16(0x7f), words),
					   _mm512_set1_epi16(0x7f00));
}

BF16_TARGET void bd_sign_rebuild_bf16(const struct bd_sign_span *span)
{
	const struct bd_sign_span s = *span; /* a copy, since stores to `out` might change *span */
	const struct plane plane = prepare(&s.plane[0]);
	uint64_t i;

	for (i = 0; i + 2 * BLOCK <= s.count; i += 2 * BLOCK) {
		struct pair a = add_plane(load_bf16(s.base + 2 * i), &plane, i, true, 0);
		struct pair b = add_plane(load_bf16(s.base + 2 * (i + BLOCK)), &plane, i + BLOCK,
					  true, 0);
		__m512i x = (__m512i)_mm512_cvtne2ps_pbh(a.hi, a.lo);
		__m512i y = (__m512i)_mm512_cvtne2ps_pbh(b.hi, b.lo);

		if (__builtin_expect(ordinary(ordinary(~0u, x), y) != ~0u, 0)) {
			x = round_bf16(canonical(a));
			y = round_bf16(canonical(b));
		}
		store_words(s.out + 2 * i, x);
		store_words(s.out + 2 * (i + BLOCK), y);
	}
	rebuild_rest(&s, &plane, 1, i, BD_BF16, BD_BF16);
}

FN void rebuild_span(const struct bd_sign_span *span, enum bd_dtype base, enum bd_dtype out)
{
	/* One plane is what almost every file has: it gets code without the loop over planes. */
	if (span->planes == 1)
		rebuild_blocks(span, 1, base, out);
	else
		rebuild_blocks(span, span->planes, base, out);
}

/* Takes 16 absolute values into the lanes. */
FN void sum(__m512d sums[2], __m512 a)
{
	__m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
	__m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));

	sums[0] = _mm512_add_pd(sums[0], lo);
	sums[1] = _mm512_add_pd(sums[1], hi);
}

/* Elements outside the mask are zero on both sides, so they have no effect on any sum. */
FN void extract_block(struct bd_sign_row *row, __m512d sums[2], uint64_t j, enum bd_dtype fine,
		      enum bd_dtype base, bool full, __mmask32 mask, unsigned n)
{
	const __m512 zero = _mm512_setzero_ps();
	__mmask16 lo = full ? 0xffff : (__mmask16)mask;
	__mmask16 hi = full ? 0xffff : (__mmask16)(mask >> 16);
	struct pair f = load(row->fine + j * bd_sign_size(fine), fine, full, mask);
	struct pair b = load(row->base + j * bd_sign_size(base), base, full, mask);
	struct pair d = { _mm512_sub_ps(f.lo, b.lo), _mm512_sub_ps(f.hi, b.hi) };
	struct pair a = { _mm512_abs_ps(d.lo), _mm512_abs_ps(d.hi) };
	uint32_t plus = _mm512_cmp_ps_mask(d.lo, zero, _CMP_GT_OQ) |
			(uint32_t)_mm512_cmp_ps_mask(d.hi, zero, _CMP_GT_OQ) << 16;
	float *col = row->col_abs + j;

	sum(sums, a.lo);
	sum(sums, a.hi);
	_mm512_mask_storeu_ps(col, lo, _mm512_add_ps(load_floats(col, full, lo), a.lo));
	_mm512_mask_storeu_ps(col + 16, hi, _mm512_add_ps(load_floats(col + 16, full, hi), a.hi));
	bd_sign_put(&row->writer, plus, n);
}

FN void extract_row(struct bd_sign_row *row, enum bd_dtype fine, enum bd_dtype base)
{
	__m512d sums[2] = { _mm512_setzero_pd(), _mm512_setzero_pd() };
	double lane[BD_SIGN_LANES];
	struct bd_sign_row r = *row; /* a copy keeps the writer in registers */
	unsigned rest = r.cols % BLOCK;
	uint64_t j;

	for (j = 0; j + BLOCK <= r.cols; j += BLOCK)
		extract_block(&r, sums, j, fine, base, true, 0, BLOCK);
	if (rest)
		extract_block(&r, sums, j, fine, base, false, (1u << rest) - 1, rest);
	row->writer = r.writer;
	_mm512_storeu_pd(lane, sums[0]);
	_mm512_storeu_pd(lane + 8, sums[1]);
	row->abs = bd_sign_fold(lane);
}

BD_SIGN_DEFINE_LEVEL(bd_sign_avx512);

#endif
