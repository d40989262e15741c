/* SPDX-License-Identifier: Apache-2.0 */
/* exact_avx512.c: decoding groups of the encoding `exact` with AVX-512 (F, BW, DQ, VL); same bytes as
 * exact_decode.c. */
#include "exact_impl.h"

#ifdef __x86_64__

#include <immintrin.h>

#define BD_EXACT_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,popcnt")))
#define FN BD_EXACT_TARGET BD_INLINE

FN __m128i look_up4(const uint32_t *table, __m128i index)
{
	const int *t = (const int *)table;
	uint64_t a = (uint64_t)_mm_cvtsi128_si64(index), b = (uint64_t)_mm_extract_epi64(index, 1);
	__m128i p = _mm_cvtsi32_si128(t[(uint32_t)a]);

	p = _mm_insert_epi32(p, t[a >> 32], 1);
	p = _mm_insert_epi32(p, t[(uint32_t)b], 2);
	return _mm_insert_epi32(p, t[b >> 32], 3);
}

/* Single loads, as in exact_avx2.c. */
FN __m512i look_up(const uint32_t *table, __m512i index)
{
	__m256i low = _mm512_castsi512_si256(index), high = _mm512_extracti64x4_epi64(index, 1);
	__m256i p = _mm256_inserti128_si256(
		_mm256_castsi128_si256(look_up4(table, _mm256_castsi256_si128(low))),
		look_up4(table, _mm256_extracti128_si256(low, 1)), 1);
	__m256i q = _mm256_inserti128_si256(
		_mm256_castsi128_si256(look_up4(table, _mm256_castsi256_si128(high))),
		look_up4(table, _mm256_extracti128_si256(high, 1)), 1);

	return _mm512_inserti64x4(_mm512_castsi256_si512(p), q, 1);
}

/* One step of sixteen states up to the word that each may need: its difference. */
FN __m512i advance(__m512i entry, __m512i *state, unsigned unit)
{
	const __m512i low = _mm512_set1_epi32(0x7ff);
	__m512i f = _mm512_and_si512(_mm512_srli_epi32(entry, 11), low);
	__m512i x = _mm512_mullo_epi32(f, _mm512_srli_epi32(*state, BD_EXACT_BITS)), difference, k;

	x = _mm512_add_epi32(x, _mm512_and_si512(entry, low));
	if (unit == 1) {
		*state = x;
		return _mm512_srai_epi32(entry, 22);
	}
	k = _mm512_and_si512(_mm512_srli_epi32(entry, 23), _mm512_set1_epi32(7));
	difference = _mm512_sllv_epi32(_mm512_srai_epi32(entry, 26), k);
	*state = _mm512_srlv_epi32(x, k);
	return _mm512_or_si512(difference, _mm512_andnot_si512(_mm512_sllv_epi32(_mm512_set1_epi32(-1), k), x));
}

/* Give words to those of sixteen states that need one, in their order. */
FN __m512i refill(__m512i x, const uint8_t **word)
{
	__mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(BD_EXACT_LOW));
	__m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*word));

	*word += 2 * (unsigned)_mm_popcnt_u32(empty);
	return _mm512_mask_or_epi32(x, empty, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(empty, words));
}

FN __m512i ordinal(__m512i v, unsigned unit, bool ordered)
{
	if (!ordered)
		return v;
	if (unit == 1)
		return _mm512_mask_xor_epi32(v, 0xffff, v, _mm512_maskz_mov_epi16(
			_mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(127)), _mm512_set1_epi16(127)));
	return _mm512_xor_si512(v, _mm512_srli_epi16(_mm512_srai_epi16(v, 15), 1));
}

FN __m512i offsets_next(const struct bd_exact_model *m, struct bd_exact_rows *rows)
{
	uint16_t each[BD_EXACT_LANES];

	if (__builtin_expect(rows->left >= BD_EXACT_LANES, 1)) {
		rows->left -= BD_EXACT_LANES;
		return _mm512_set1_epi16(*rows->offset);
	}
	for (unsigned u = 0; u < BD_EXACT_LANES; u++)
		each[u] = (uint16_t)bd_exact_rows_next(m, rows, BD_EXACT_BY_ROW);
	return _mm512_loadu_si512(each);
}

/* The units that are escapes, a bit for each: `even` has those of the first sixteen states. */
FN uint32_t escape_mask(__m512i even, __m512i odd)
{
	const __m512i escape = _mm512_set1_epi32((int)BD_EXACT_ENTRY_ESCAPE);
	__m512i low = _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(even, escape), _mm512_set1_epi32(-1));
	__m512i high = _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(odd, escape), _mm512_set1_epi32(-1));

	return _mm512_movepi16_mask(_mm512_packs_epi32(low, high));
}

FN bool groups(const struct bd_exact_decoder *d, const struct bd_exact_run *run, struct bd_exact_reader *r,
	       size_t count, size_t *done, uint8_t *out, unsigned unit, bool ordered, enum bd_exact_by by)
{
	const struct bd_exact_model *m = d->model;
	const __m512i mask = _mm512_set1_epi16((short)m->mask), last = _mm512_set1_epi16(m->contexts - 1);
	const __m512i slot = _mm512_set1_epi32(BD_EXACT_SLOTS - 1), zero = _mm512_setzero_si512();
	const __m512i any = _mm512_set1_epi32((int)BD_EXACT_ENTRY_ESCAPE);
	const __m128i shift = _mm_cvtsi32_si128(m->shift);
	const uint32_t *table = d->table;
	const uint8_t *word = r->word, *words_end = r->words_end;
	size_t size = BD_EXACT_LANES * unit, g;
	struct bd_exact_base bases = bd_exact_base_of(run, size);
	__m512i offset = _mm512_set1_epi16((short)m->offset), context = zero;
	struct bd_exact_rows rows = bd_exact_rows_at(m, run->first, by);
	__m512i x0 = _mm512_loadu_si512(r->state), x1 = _mm512_loadu_si512(r->state + 16);

	if (by == BD_EXACT_BY_PLACE) {
		uint16_t place[BD_EXACT_LANES];

		for (unsigned u = 0; u < BD_EXACT_LANES; u++)
			place[u] = (uint16_t)((u & (m->contexts - 1u)) << BD_EXACT_BITS);
		context = _mm512_loadu_si512(place);
	}
	for (g = 0; g < count && word <= words_end; g++, bases.next += bases.step, out += size) {
		const uint8_t *base = bases.next;
		__m512i b, e0, e1, d0, d1, s;

		b = unit == 1 ? _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)base)) :
				_mm512_loadu_si512(base);
		if (by != BD_EXACT_BY_PLACE) {
			if (by == BD_EXACT_BY_ROW)
				offset = offsets_next(m, &rows);
			context = _mm512_and_si512(_mm512_srl_epi16(b, shift), mask);
			context = _mm512_min_epu16(_mm512_subs_epu16(context, offset), last);
			context = _mm512_slli_epi16(context, BD_EXACT_BITS);
		}
		/* The order of bd_exact_lane. */
		e0 = look_up(table, _mm512_or_si512(_mm512_unpacklo_epi16(context, zero), _mm512_and_si512(x0, slot)));
		e1 = look_up(table, _mm512_or_si512(_mm512_unpackhi_epi16(context, zero), _mm512_and_si512(x1, slot)));
		d0 = advance(e0, &x0, unit);
		d1 = advance(e1, &x1, unit);
		x0 = refill(x0, &word);
		x1 = refill(x1, &word);
		s = _mm512_add_epi16(_mm512_packs_epi32(d0, d1), ordinal(b, unit, ordered));
		if (unit == 1)
			_mm256_storeu_si256((__m256i *)out, _mm512_cvtepi16_epi8(ordinal(
				_mm512_and_si512(s, _mm512_set1_epi16(255)), unit, ordered)));
		else
			_mm512_storeu_si512(out, ordinal(s, unit, ordered));
		if (unit == 2 && __builtin_expect(_mm512_test_epi32_mask(_mm512_or_si512(e0, e1), any), 0)) {
			if (!bd_exact_take_escapes(r, escape_mask(e0, e1), base, out, ordered))
				return false;
		}
	}
	_mm512_storeu_si512(r->state, x0);
	_mm512_storeu_si512(r->state + 16, x1);
	r->word = word;
	*done = g;
	return true;
}

BD_EXACT_TARGET bool bd_exact_groups_avx512(const struct bd_exact_decoder *d, const struct bd_exact_run *run,
					    struct bd_exact_reader *r, size_t count, size_t *done, void *out)
{
	return BD_EXACT_SPECIALISE(d->model, groups, d, run, r, count, done, out);
}

#endif
