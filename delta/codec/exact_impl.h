/* SPDX-License-Identifier: Apache-2.0 */
/* exact_impl.h: what the files of the exact coder share. Private to it.
 *
 * A coded chunk is
 *
 *     u32 number of words | words, u16 each | 32 states, u32 each | escapes, u16 each, to the end
 *
 * and is decoded in groups of 32 units. State j decodes unit bd_exact_lane[j] of each group, so that
 * vector code need not permute; the last group uses only the states whose units it has. For each unit,
 * x being its state and T the table of its context:
 *
 *     e = T[x mod 2^10]                  symbol s (signed), k raw bits, frequency f, bias b
 *     x = f * floor(x / 2^10) + b
 *     difference = s * 2^k + x mod 2^k   or the next escape, if the symbol is the escape
 *     x = floor(x / 2^k)
 *     if x < 2^16: x = x * 2^16 + the next word
 *
 * Words are taken in the order of the states, escapes in the order of the units. A state lies in
 * [2^16, 2^32) before each unit, and one word is always enough, since 10 + k is at most 16. In the end all
 * states are 2^16, and all words and escapes are used up. */
#ifndef BD_EXACT_IMPL_H
#define BD_EXACT_IMPL_H

#include <string.h>

#include "exact_coder.h"
#include "sign_impl.h"

#define BD_EXACT_LOW ((uint32_t)1 << 16) /* states are never below */
#define BD_EXACT_STATES (BD_EXACT_LANES * sizeof(uint32_t))
#define BD_EXACT_SLOTS (1u << BD_EXACT_BITS)

/* An entry of the decoder's tables. For units of two bytes, from the top: symbol, 6 bits, signed; raw bits, 3;
 * escape, 1; frequency, 11; bias, 11. For bytes the symbol has the 10 bits above the frequency. */
#define BD_EXACT_ENTRY_ESCAPE ((uint32_t)1 << 22)

struct bd_exact_decoder {
	const struct bd_exact_model *model;
	uint32_t *table; /* contexts * BD_EXACT_SLOTS */
};

/* The unit that each state decodes. */
static const uint8_t bd_exact_lane[BD_EXACT_LANES] = {
	0,  1,  2,  3,	8,  9,	10, 11, 16, 17, 18, 19, 24, 25, 26, 27,
	4,  5,  6,  7,	12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31,
};

/* A chunk while it is decoded. The words have the states behind them, so that reading one group too many
 * stays inside the chunk. */
struct bd_exact_reader {
	const uint8_t *word, *words_end;
	const uint8_t *escape, *end;
	uint32_t state[BD_EXACT_LANES];
};

/* Decode whole groups only: `groups` of them, or fewer where the words seem to be used up; *done is their
 * number. False: damaged. */
typedef bool bd_exact_groups(const struct bd_exact_decoder *d, const struct bd_exact_run *run,
			     struct bd_exact_reader *r, size_t groups, size_t *done, void *out);
bd_exact_groups bd_exact_groups_scalar;
#ifdef __x86_64__
bd_exact_groups bd_exact_groups_avx2, bd_exact_groups_avx512;
#endif

BD_INLINE uint16_t bd_exact_load16(const uint8_t *p)
{
	uint16_t x;

	memcpy(&x, p, sizeof(x));
	return x;
}

BD_INLINE uint32_t bd_exact_unit(const void *p, size_t i, unsigned unit)
{
	return unit == 1 ? ((const uint8_t *)p)[i] : bd_exact_load16((const uint8_t *)p + 2 * i);
}

BD_INLINE void bd_exact_put(void *p, size_t i, unsigned unit, uint32_t value)
{
	uint16_t half = (uint16_t)value;

	if (unit == 1)
		((uint8_t *)p)[i] = (uint8_t)value;
	else
		memcpy((uint8_t *)p + 2 * i, &half, sizeof(half));
}

/* The place of a unit in the order of values: below zero the bits but the sign are inverted. Its own
 * inverse, and different for all bit patterns, -0 and NaN among them. Upper bits of the result are to be
 * ignored. */
BD_INLINE uint32_t bd_exact_ordinal(uint32_t value, unsigned unit, bool ordered)
{
	uint32_t sign = unit == 1 ? 0x80 : 0x8000;

	return ordered && value & sign ? value ^ (sign - 1) : value;
}

/* The context of a unit whose base is `base`; offset as of its row. */
BD_INLINE uint32_t bd_exact_context(const struct bd_exact_model *m, uint32_t base, uint32_t offset,
				    uint64_t index, enum bd_exact_by by)
{
	int32_t c, last = m->contexts - 1;

	if (by == BD_EXACT_BY_PLACE)
		return (uint32_t)(index & (uint32_t)last);
	c = (int32_t)(base >> m->shift & m->mask) - (int32_t)offset;
	c = c < 0 ? 0 : c;
	return (uint32_t)(c < last ? c : last);
}

/* The units of the base one after another, 0 where there is none. */
struct bd_exact_base {
	const uint8_t *next;
	size_t step;
};

BD_INLINE struct bd_exact_base bd_exact_base_of(const struct bd_exact_run *run, size_t step)
{
	static const uint8_t zeros[2 * BD_EXACT_LANES];

	return run->base ? (struct bd_exact_base){ run->base, step } : (struct bd_exact_base){ zeros, 0 };
}

/* Walks along the rows of a plane. */
struct bd_exact_rows {
	const uint8_t *offset; /* of the row */
	uint64_t left;         /* units of it that are still to come */
};

BD_INLINE struct bd_exact_rows bd_exact_rows_at(const struct bd_exact_model *m, uint64_t index,
						enum bd_exact_by by)
{
	struct bd_exact_rows rows = { NULL, 0 };

	if (by == BD_EXACT_BY_ROW) {
		rows.offset = m->row_offset + index / m->cols;
		rows.left = m->cols - index % m->cols;
	}
	return rows;
}

/* The offset of the next unit. */
BD_INLINE uint32_t bd_exact_rows_next(const struct bd_exact_model *m, struct bd_exact_rows *rows,
				      enum bd_exact_by by)
{
	if (by != BD_EXACT_BY_ROW)
		return m->offset;
	if (rows->left == 0) {
		rows->offset++;
		rows->left = m->cols;
	}
	rows->left--;
	return *rows->offset;
}

/* Call f(..., unit, ordered, by) for a model's kind, with constants for those that are frequent, so that the compiler
 * makes a version for each. */
#define BD_EXACT_SPECIALISE(m, f, ...)                                                            \
	((m)->unit == 1 ? f(__VA_ARGS__, 1, (m)->ordered, (enum bd_exact_by)(m)->by) :            \
	 (m)->ordered && (m)->by == BD_EXACT_BY_BASE ? f(__VA_ARGS__, 2, true, BD_EXACT_BY_BASE) : \
	 (m)->ordered && (m)->by == BD_EXACT_BY_ROW ? f(__VA_ARGS__, 2, true, BD_EXACT_BY_ROW) :   \
	 f(__VA_ARGS__, 2, (m)->ordered, (enum bd_exact_by)(m)->by))

/* The symbol of a difference of ordinals; *raw_bits of its low bits are not in it. Of two bytes, differences
 * below 32 have a symbol each; larger ones 16 per octave, up to 2047. */
BD_INLINE unsigned bd_exact_symbol(uint32_t difference, unsigned unit, unsigned *raw_bits)
{
	int32_t o = unit == 1 ? (int8_t)difference : (int16_t)difference;
	uint32_t magnitude = (uint32_t)(o ^ o >> 31);
	unsigned k;

	*raw_bits = 0;
	if (unit == 1)
		return (unsigned)(o + 128);
	if (__builtin_expect(magnitude >= 2048, 0))
		return BD_EXACT_ESCAPE;
	*raw_bits = k = 27 - (unsigned)__builtin_clz(magnitude | 31);
	/* 0 .. 63: o + 32; then 32 for each k. No branch that cannot be foreseen. */
	return (unsigned)(o >> k & 31) + 32 * (k + ((k > 0) | (o >= 0)));
}

/* Raw bits of a symbol other than the escape. */
BD_INLINE unsigned bd_exact_raw_bits(unsigned symbol, unsigned unit)
{
	return unit == 1 || symbol < 64 ? 0 : (symbol - 32) / 32;
}

/* The reverse of bd_exact_symbol: the difference is the result << raw bits | raw. */
BD_INLINE int32_t bd_exact_symbol_value(unsigned symbol, unsigned unit)
{
	int32_t low = (int32_t)(symbol % 32);

	if (unit == 1)
		return (int32_t)symbol - 128;
	if (symbol < 64)
		return (int32_t)symbol - 32;
	return low < 16 ? low - 32 : low;
}

/* Put escapes over the units of a group that have one, a bit of `mask` each. False: one is missing. */
BD_INLINE bool bd_exact_take_escapes(struct bd_exact_reader *r, uint32_t mask, const void *base, void *out,
				     bool ordered)
{
	if ((size_t)(r->end - r->escape) < 2 * (size_t)__builtin_popcount(mask))
		return false;
	for (; mask; mask &= mask - 1, r->escape += 2) {
		unsigned u = (unsigned)__builtin_ctz(mask);
		uint32_t place = bd_exact_ordinal(bd_exact_unit(base, u, 2), 2, ordered) + bd_exact_load16(r->escape);

		bd_exact_put(out, u, 2, bd_exact_ordinal(place, 2, ordered));
	}
	return true;
}

#endif
