/* SPDX-License-Identifier: Apache-2.0 */
/* exact_avx2.c: decoding groups of the encoding `exact` with AVX2; same bytes as exact_decode.c. */
#include "exact_impl.h"

#ifdef __x86_64__

#include <immintrin.h>

#define BD_EXACT_TARGET __attribute__((target("avx2,popcnt")))
#define FN BD_EXACT_TARGET BD_INLINE

/* For each mask of states that take a word: which word, of those that come next, goes to each of them. */
#define TAKE(m, i) ((((m) >> (i) & 1) ? __builtin_popcount((m) & ((1 << (i)) - 1)) : 0))
#define TAKE8(m) { TAKE(m, 0), TAKE(m, 1), TAKE(m, 2), TAKE(m, 3), TAKE(m, 4), TAKE(m, 5), TAKE(m, 6), TAKE(m, 7) }
#define TAKE64(m) TAKE8(m), TAKE8(m + 1), TAKE8(m + 2), TAKE8(m + 3), TAKE8(m + 4), TAKE8(m + 5), TAKE8(m + 6), \
	TAKE8(m + 7)
#define TAKE512(m) TAKE64(m), TAKE64(m + 8), TAKE64(m + 16), TAKE64(m + 24), TAKE64(m + 32), TAKE64(m + 40), \
	TAKE64(m + 48), TAKE64(m + 56)
static const uint32_t take[256][8] __attribute__((aligned(32))) = { TAKE512(0), TAKE512(64), TAKE512(128), TAKE512(192) };


/* Eight loads are faster than the gather instruction on Zen 3, and nothing slows them down as microcode against
 * leaks through gathers does on Intel. */
FN __m256i look_up(const uint32_t *table, __m256i index)
{
	const int *t = (const int *)table;
	__m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
	uint64_t a = (uint64_t)_mm_cvtsi128_si64(low), b = (uint64_t)_mm_extract_epi64(low, 1);
	uint64_t c = (uint64_t)_mm_cvtsi128_si64(high), d = (uint64_t)_mm_extract_epi64(high, 1);
	__m128i p = _mm_cvtsi32_si128(t[(uint32_t)a]), q = _mm_cvtsi32_si128(t[(uint32_t)c]);

	p = _mm_insert_epi32(p, t[a >> 32], 1);
	q = _mm_insert_epi32(q, t[c >> 32], 1);
	p = _mm_insert_epi32(p, t[(uint32_t)b], 2);
	q = _mm_insert_epi32(q, t[(uint32_t)d], 2);
	p = _mm_insert_epi32(p, t[b >> 32], 3);
	q = _mm_insert_epi32(q, t[d >> 32], 3);
	return _mm256_inserti128_si256(_mm256_castsi128_si256(p), q, 1);
}

/* One step of eight states up to the word that each may need: its difference. */
FN __m256i advance(__m256i entry, __m256i *state, unsigned unit)
{
	const __m256i low = _mm256_set1_epi32(0x7ff);
	__m256i f = _mm256_and_si256(_mm256_srli_epi32(entry, 11), low);
	__m256i x = _mm256_mullo_epi32(f, _mm256_srli_epi32(*state, BD_EXACT_BITS)), difference, k;

	x = _mm256_add_epi32(x, _mm256_and_si256(entry, low));
	if (unit == 1) {
		*state = x;
		return _mm256_srai_epi32(entry, 22);
	}
	k = _mm256_and_si256(_mm256_srli_epi32(entry, 23), _mm256_set1_epi32(7));
	difference = _mm256_sllv_epi32(_mm256_srai_epi32(entry, 26), k);
	*state = _mm256_srlv_epi32(x, k);
	return _mm256_or_si256(difference, _mm256_andnot_si256(_mm256_sllv_epi32(_mm256_set1_epi32(-1), k), x));
}

/* Give words to those of eight states that need one, in their order. */
FN __m256i refill(__m256i x, const uint8_t **word)
{
	__m256i empty = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
	unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(empty));
	__m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)*word));

	words = _mm256_permutevar8x32_epi32(words, _mm256_load_si256((const __m256i *)take[mask]));
	*word += 2 * (unsigned)_mm_popcnt_u32(mask);
	return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), empty);
}

FN __m256i ordinal(__m256i v, unsigned unit, bool ordered)
{
	if (!ordered)
		return v;
	if (unit == 1)
		return _mm256_xor_si256(v, _mm256_and_si256(_mm256_cmpgt_epi16(v, _mm256_set1_epi16(127)),
							    _mm256_set1_epi16(127)));
	return _mm256_xor_si256(v, _mm256_srli_epi16(_mm256_srai_epi16(v, 15), 1));
}

/* All bits of an element set where its entry is an escape. */
FN __m256i escapes(__m256i entry)
{
	return _mm256_srai_epi32(_mm256_slli_epi32(entry, 9), 31);
}

/* The units that are escapes, a bit for each. */
FN uint32_t escape_mask(__m256i e0, __m256i e1, __m256i e2, __m256i e3)
{
	__m256i low = _mm256_packs_epi32(escapes(e0), escapes(e2));
	__m256i high = _mm256_packs_epi32(escapes(e1), escapes(e3));

	return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8));
}

/* Offsets of a group, for units 0..15 and 16..31. */
struct offsets {
	__m256i low, high;
};

FN struct offsets offsets_next(const struct bd_exact_model *m, struct bd_exact_rows *rows)
{
	uint16_t each[BD_EXACT_LANES];
	struct offsets o;

	if (__builtin_expect(rows->left >= BD_EXACT_LANES, 1)) {
		rows->left -= BD_EXACT_LANES;
		o.low = o.high = _mm256_set1_epi16(*rows->offset);
		return o;
	}
	for (unsigned u = 0; u < BD_EXACT_LANES; u++)
		each[u] = (uint16_t)bd_exact_rows_next(m, rows, BD_EXACT_BY_ROW);
	o.low = _mm256_loadu_si256((const __m256i *)each);
	o.high = _mm256_loadu_si256((const __m256i *)(each + 16));
	return o;
}

FN __m256i context(__m256i base, __m256i offset, __m128i shift, __m256i mask, __m256i last)
{
	__m256i c = _mm256_and_si256(_mm256_srl_epi16(base, shift), mask);

	return _mm256_slli_epi16(_mm256_min_epu16(_mm256_subs_epu16(c, offset), last), BD_EXACT_BITS);
}

FN bool groups(const struct bd_exact_decoder *d, const struct bd_exact_run *run, struct bd_exact_reader *r,
	       size_t count, size_t *done, uint8_t *out, unsigned unit, bool ordered, enum bd_exact_by by)
{
	static const uint16_t place[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
	const struct bd_exact_model *m = d->model;
	const __m256i mask = _mm256_set1_epi16((short)m->mask), last = _mm256_set1_epi16(m->contexts - 1);
	const __m256i slot = _mm256_set1_epi32(BD_EXACT_SLOTS - 1), zero = _mm256_setzero_si256();
	const __m256i any = _mm256_set1_epi32((int)BD_EXACT_ENTRY_ESCAPE);
	const __m128i shift = _mm_cvtsi32_si128(m->shift);
	const uint32_t *table = d->table;
	const uint8_t *word = r->word, *words_end = r->words_end;
	size_t size = BD_EXACT_LANES * unit, g;
	struct bd_exact_base bases = bd_exact_base_of(run, size);
	struct offsets o = { _mm256_set1_epi16((short)m->offset), _mm256_set1_epi16((short)m->offset) };
	struct bd_exact_rows rows = bd_exact_rows_at(m, run->first, by);
	const __m256i *states = (const __m256i *)r->state;
	__m256i x0 = _mm256_loadu_si256(states), x1 = _mm256_loadu_si256(states + 1);
	__m256i x2 = _mm256_loadu_si256(states + 2), x3 = _mm256_loadu_si256(states + 3);

	for (g = 0; g < count && word <= words_end; g++, bases.next += bases.step, out += size) {
		const uint8_t *base = bases.next;
		__m256i b0, b1, c0, c1, e0, e1, e2, e3, d0, d1, d2, d3, s0, s1;

		if (unit == 1) {
			b0 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)base));
			b1 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)base + 1));
		} else {
			b0 = _mm256_loadu_si256((const __m256i *)base);
			b1 = _mm256_loadu_si256((const __m256i *)base + 1);
		}
		if (by == BD_EXACT_BY_PLACE) {
			c0 = c1 = _mm256_slli_epi16(
				_mm256_and_si256(_mm256_loadu_si256((const __m256i *)place), last),
				BD_EXACT_BITS);
		} else {
			if (by == BD_EXACT_BY_ROW)
				o = offsets_next(m, &rows);
			c0 = context(b0, o.low, shift, mask, last);
			c1 = context(b1, o.high, shift, mask, last);
		}
		/* The order of bd_exact_lane. */
		e0 = look_up(table, _mm256_or_si256(_mm256_unpacklo_epi16(c0, zero), _mm256_and_si256(x0, slot)));
		e1 = look_up(table, _mm256_or_si256(_mm256_unpacklo_epi16(c1, zero), _mm256_and_si256(x1, slot)));
		e2 = look_up(table, _mm256_or_si256(_mm256_unpackhi_epi16(c0, zero), _mm256_and_si256(x2, slot)));
		e3 = look_up(table, _mm256_or_si256(_mm256_unpackhi_epi16(c1, zero), _mm256_and_si256(x3, slot)));
		d0 = advance(e0, &x0, unit);
		d1 = advance(e1, &x1, unit);
		d2 = advance(e2, &x2, unit);
		d3 = advance(e3, &x3, unit);
		x0 = refill(x0, &word);
		x1 = refill(x1, &word);
		x2 = refill(x2, &word);
		x3 = refill(x3, &word);
		s0 = _mm256_packs_epi32(d0, d2);
		s1 = _mm256_packs_epi32(d1, d3);
		s0 = _mm256_add_epi16(s0, ordinal(b0, unit, ordered));
		s1 = _mm256_add_epi16(s1, ordinal(b1, unit, ordered));
		if (unit == 1) {
			const __m256i byte = _mm256_set1_epi16(255);

			s0 = ordinal(_mm256_and_si256(s0, byte), unit, ordered);
			s1 = ordinal(_mm256_and_si256(s1, byte), unit, ordered);
			_mm256_storeu_si256((__m256i *)out,
					    _mm256_permute4x64_epi64(_mm256_packus_epi16(s0, s1), 0xd8));
		} else {
			_mm256_storeu_si256((__m256i *)out, ordinal(s0, unit, ordered));
			_mm256_storeu_si256((__m256i *)out + 1, ordinal(s1, unit, ordered));
		}
		if (unit == 2 &&
		    __builtin_expect(!_mm256_testz_si256(_mm256_or_si256(_mm256_or_si256(e0, e1),
									 _mm256_or_si256(e2, e3)), any), 0)) {
			if (!bd_exact_take_escapes(r, escape_mask(e0, e1, e2, e3), base, out, ordered))
				return false;
		}
	}
	_mm256_storeu_si256((__m256i *)r->state, x0);
	_mm256_storeu_si256((__m256i *)r->state + 1, x1);
	_mm256_storeu_si256((__m256i *)r->state + 2, x2);
	_mm256_storeu_si256((__m256i *)r->state + 3, x3);
	r->word = word;
	*done = g;
	return true;
}

BD_EXACT_TARGET bool bd_exact_groups_avx2(const struct bd_exact_decoder *d, const struct bd_exact_run *run,
					  struct bd_exact_reader *r, size_t count, size_t *done, void *out)
{
	return BD_EXACT_SPECIALISE(d->model, groups, d, run, r, count, done, out);
}

#endif
