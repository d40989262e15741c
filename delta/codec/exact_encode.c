/* SPDX-License-Identifier: Apache-2.0 */
/* exact_encode.c: coding chunks of the encoding `exact`. See exact_coder.h and exact_impl.h.
 *
 * rANS codes backwards: the states run from the last unit to the first, and words are written from the
 * end of the chunk to its beginning, so that the decoder goes forward. */
#include "exact_impl.h"

#include <stdlib.h>

/* A symbol in a context. */
struct code {
	uint64_t inverse; /* floor(2^64 / frequency) + 1: dividing by multiplying */
	uint64_t limit;   /* states from here on give off a word first */
	uint16_t frequency, start;
	uint8_t raw_bits;
};

struct bd_exact_encoder {
	const struct bd_exact_model *model;
	struct code *codes;  /* contexts * BD_EXACT_SYMBOLS */
	uint32_t *symbols;   /* of the chunk: index in codes << 8 | raw bits' value */
	uint16_t *escapes;
	uint16_t *words;     /* one more than units: the first is only scratch */
	size_t max_count;
};

struct bd_exact_encoder *bd_exact_encoder_new(const struct bd_exact_model *m, size_t max_count)
{
	struct bd_exact_encoder *e = calloc(1, sizeof(*e));
	struct code *code;

	if (!e)
		return NULL;
	e->model = m;
	e->max_count = max_count;
	e->codes = calloc(m->contexts * BD_EXACT_SYMBOLS, sizeof(*e->codes));
	e->symbols = malloc(max_count * sizeof(*e->symbols));
	e->escapes = malloc(max_count * sizeof(*e->escapes));
	e->words = malloc((max_count + 1) * sizeof(*e->words));
	if (!e->codes || (max_count && (!e->symbols || !e->escapes)) || !e->words) {
		bd_exact_encoder_free(e);
		return NULL;
	}
	code = e->codes;
	for (unsigned c = 0; c < m->contexts; c++) {
		uint32_t start = 0;

		for (unsigned s = 0; s < BD_EXACT_SYMBOLS; s++, code++) {
			uint32_t f = m->frequency[c][s];
			unsigned k = s == BD_EXACT_ESCAPE ? 0 : bd_exact_raw_bits(s, m->unit);

			*code = (struct code){
				.inverse = f > 1 ? UINT64_MAX / f + 1 : UINT64_MAX,
				.limit = (uint64_t)f << (32 - BD_EXACT_BITS - k),
				/* 2^64 does not fit: of frequency 1 the quotient comes out 1 too small. */
				.frequency = (uint16_t)f, .start = (uint16_t)(start + (f == 1 ? BD_EXACT_SLOTS - 1 : 0)),
				.raw_bits = (uint8_t)k,
			};
			start += f;
		}
	}
	return e;
}

void bd_exact_encoder_free(struct bd_exact_encoder *e)
{
	if (!e)
		return;
	free(e->codes);
	free(e->symbols);
	free(e->escapes);
	free(e->words);
	free(e);
}

size_t bd_exact_bound(size_t count)
{
	/* A unit gives off one word at most, and has one escape at most. */
	return sizeof(uint32_t) + BD_EXACT_STATES + 4 * count;
}

/* Find the symbols of a chunk; returns the number of escapes. */
BD_INLINE size_t find_symbols(const struct bd_exact_encoder *e, const struct bd_exact_run *run,
			      const void *fine, unsigned unit, bool ordered, enum bd_exact_by by)
{
	const struct bd_exact_model *m = e->model;
	const uint16_t (*frequency)[BD_EXACT_SYMBOLS] = m->frequency;
	struct bd_exact_rows rows = bd_exact_rows_at(m, run->first, by);
	struct bd_exact_base base = bd_exact_base_of(run, unit);
	uint32_t *symbols = e->symbols;
	uint16_t *escape = e->escapes;

	for (size_t i = 0; i < run->count; i++, base.next += base.step) {
		uint32_t b = bd_exact_unit(base.next, 0, unit);
		uint32_t d = bd_exact_ordinal(bd_exact_unit(fine, i, unit), unit, ordered) -
			     bd_exact_ordinal(b, unit, ordered);
		uint32_t context = bd_exact_context(m, b, bd_exact_rows_next(m, &rows, by), run->first + i, by);
		unsigned k, symbol = bd_exact_symbol(d, unit, &k);

		if (unit == 2 && __builtin_expect(symbol == BD_EXACT_ESCAPE || !frequency[context][symbol], 0)) {
			symbol = BD_EXACT_ESCAPE;
			k = 0;
			*escape++ = (uint16_t)d;
		}
		symbols[i] = (context * BD_EXACT_SYMBOLS + symbol) << 8 | (d & ((1u << k) - 1));
	}
	return (size_t)(escape - e->escapes);
}

BD_INLINE uint16_t *code_unit(const struct bd_exact_encoder *e, uint32_t symbol, uint32_t *state, uint16_t *word)
{
	const struct code *c = &e->codes[symbol >> 8];
	uint32_t x = *state, quotient, give = x >= c->limit;

	word[-1] = (uint16_t)x; /* kept only if given off: no branch that cannot be foreseen */
	word -= give;
	x = x >> 16 * give << c->raw_bits | (symbol & 0xff);
	quotient = (uint32_t)((unsigned __int128)x * c->inverse >> 64);
	*state = (quotient << BD_EXACT_BITS) + (x - quotient * c->frequency) + c->start;
	return word;
}

size_t bd_exact_encode(struct bd_exact_encoder *e, const struct bd_exact_run *run, const void *fine,
		       uint8_t *out)
{
	const struct bd_exact_model *m = e->model;
	uint32_t state[BD_EXACT_LANES], words;
	uint16_t *end = e->words + e->max_count + 1, *word = end;
	size_t groups = run->count / BD_EXACT_LANES, size;
	size_t escapes = BD_EXACT_SPECIALISE(m, find_symbols, e, run, fine);

	for (unsigned j = 0; j < BD_EXACT_LANES; j++)
		state[j] = BD_EXACT_LOW;
	for (unsigned j = BD_EXACT_LANES; j-- > 0;) {
		size_t i = groups * BD_EXACT_LANES + bd_exact_lane[j];

		if (i < run->count)
			word = code_unit(e, e->symbols[i], &state[j], word);
	}
	for (size_t g = groups; g-- > 0;) {
		const uint32_t *symbols = e->symbols + g * BD_EXACT_LANES;

#pragma GCC unroll 32
		for (unsigned j = BD_EXACT_LANES; j-- > 0;)
			word = code_unit(e, symbols[bd_exact_lane[j]], &state[j], word);
	}
	words = (uint32_t)(end - word);
	memcpy(out, &words, sizeof(words));
	size = sizeof(words);
	memcpy(out + size, word, 2 * (size_t)words);
	size += 2 * (size_t)words;
	memcpy(out + size, state, BD_EXACT_STATES);
	size += BD_EXACT_STATES;
	memcpy(out + size, e->escapes, 2 * escapes);
	return size + 2 * escapes;
}
