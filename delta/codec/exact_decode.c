/* SPDX-License-Identifier: Apache-2.0 */
/* exact_decode.c: decoding chunks of the encoding `exact` in plain C, which defines what every level
 * computes, and the choice of level. See exact_coder.h and exact_impl.h. */
#include "exact_impl.h"

#include <stdlib.h>

/* ---- Tables ---- */

static uint32_t entry_of(unsigned symbol, uint32_t frequency, uint32_t bias, unsigned unit)
{
	uint32_t entry = frequency << 11 | bias;

	if (unit == 1)
		return entry | (uint32_t)bd_exact_symbol_value(symbol, unit) << 22;
	if (symbol == BD_EXACT_ESCAPE)
		return entry | BD_EXACT_ENTRY_ESCAPE;
	return entry | (uint32_t)bd_exact_symbol_value(symbol, unit) << 26 |
	       bd_exact_raw_bits(symbol, unit) << 23;
}

struct bd_exact_decoder *bd_exact_decoder_new(const struct bd_exact_model *model)
{
	struct bd_exact_decoder *d = malloc(sizeof(*d));
	size_t size = model->contexts * BD_EXACT_SLOTS * sizeof(uint32_t);
	uint32_t *entry = d ? aligned_alloc(64, size) : NULL;

	if (!entry) {
		free(d);
		return NULL;
	}
	*d = (struct bd_exact_decoder){ model, entry };
	for (unsigned c = 0; c < model->contexts; c++)
		for (unsigned s = 0; s < BD_EXACT_SYMBOLS; s++)
			for (uint32_t bias = 0; bias < model->frequency[c][s]; bias++)
				*entry++ = entry_of(s, model->frequency[c][s], bias, model->unit);
	return d;
}

void bd_exact_decoder_free(struct bd_exact_decoder *d)
{
	if (!d)
		return;
	free(d->table);
	free(d);
}

size_t bd_exact_decoder_size(const struct bd_exact_decoder *d)
{
	return sizeof(*d) + d->model->contexts * BD_EXACT_SLOTS * sizeof(uint32_t);
}

/* ---- The definition ---- */

/* One step of a state; `word` is what it takes if it must. Returns the difference, to be ignored where
 * the entry is an escape. */
BD_INLINE uint32_t step(uint32_t entry, uint32_t *state, uint32_t word, bool *took, unsigned unit)
{
	uint32_t x = (entry >> 11 & 0x7ff) * (*state >> BD_EXACT_BITS) + (entry & 0x7ff);
	unsigned k = unit == 1 ? 0 : entry >> 23 & 7;
	uint32_t symbol = (uint32_t)((int32_t)entry >> (unit == 1 ? 22 : 26));
	uint32_t difference = symbol << k | (x & ((1u << k) - 1)), empty;

	x >>= k;
	*took = x < BD_EXACT_LOW;
	empty = -(uint32_t)*took; /* a mask, since nobody could foresee the branch */
	*state = x << (16 & empty) | (word & empty);
	return difference;
}

/* Decode a group of n units; where n is constant and all 32, the compiler unrolls. False: an escape is missing. */
BD_INLINE bool group(const struct bd_exact_decoder *d, const void *base, uint64_t index,
		     struct bd_exact_rows *rows, struct bd_exact_reader *r, unsigned n, void *out,
		     unsigned unit, bool ordered, enum bd_exact_by by)
{
	const struct bd_exact_model *m = d->model;
	uint32_t slot[BD_EXACT_LANES], difference[BD_EXACT_LANES] = { 0 }, escapes = 0;
	const uint8_t *word = r->word;

#pragma GCC unroll 32
	for (unsigned u = 0; u < n; u++)
		slot[u] = bd_exact_context(m, bd_exact_unit(base, u, unit), bd_exact_rows_next(m, rows, by),
					   index + u, by) << BD_EXACT_BITS;
#pragma GCC unroll 32
	for (unsigned j = 0; j < BD_EXACT_LANES; j++) {
		unsigned u = bd_exact_lane[j];
		uint32_t entry;
		bool took;

		if (u >= n)
			continue;
		entry = d->table[slot[u] | (r->state[j] & (BD_EXACT_SLOTS - 1))];
		difference[u] = step(entry, &r->state[j], bd_exact_load16(word), &took, unit);
		word += 2 * took;
		if (unit == 2)
			escapes |= (entry >> 22 & 1) << u;
	}
	r->word = word;
#pragma GCC unroll 32
	for (unsigned u = 0; u < n; u++) {
		uint32_t place = bd_exact_ordinal(bd_exact_unit(base, u, unit), unit, ordered) + difference[u];

		bd_exact_put(out, u, unit, bd_exact_ordinal(place, unit, ordered));
	}
	return escapes == 0 || bd_exact_take_escapes(r, escapes, base, out, ordered);
}

BD_INLINE bool groups(const struct bd_exact_decoder *d, const struct bd_exact_run *run,
		      struct bd_exact_reader *reader, size_t count, size_t *done, uint8_t *out, unsigned unit,
		      bool ordered, enum bd_exact_by by)
{
	struct bd_exact_reader r = *reader; /* a copy, since stores to `out` might change *reader */
	struct bd_exact_rows rows = bd_exact_rows_at(d->model, run->first, by);
	size_t size = BD_EXACT_LANES * unit, g;
	struct bd_exact_base base = bd_exact_base_of(run, size);

	for (g = 0; g < count && r.word <= r.words_end; g++) {
		if (!group(d, base.next, run->first + g * BD_EXACT_LANES, &rows, &r, BD_EXACT_LANES, out, unit, ordered, by))
			return false;
		base.next += base.step;
		out += size;
	}
	*reader = r;
	*done = g;
	return true;
}

bool bd_exact_groups_scalar(const struct bd_exact_decoder *d, const struct bd_exact_run *run,
			    struct bd_exact_reader *r, size_t count, size_t *done, void *out)
{
	return BD_EXACT_SPECIALISE(d->model, groups, d, run, r, count, done, out);
}

/* The units after the last whole group. */
static bool rest(const struct bd_exact_decoder *d, const struct bd_exact_run *run, struct bd_exact_reader *r,
		 size_t from, uint8_t *out)
{
	const struct bd_exact_model *m = d->model;
	enum bd_exact_by by = (enum bd_exact_by)m->by;
	struct bd_exact_rows rows = bd_exact_rows_at(m, run->first + from, by);
	struct bd_exact_base base = bd_exact_base_of(run, from * m->unit);
	unsigned n = (unsigned)(run->count - from);

	return n == 0 || group(d, base.next + base.step, run->first + from, &rows, r, n, out + from * m->unit, m->unit,
			       m->ordered, by);
}

/* ---- Chunks ---- */

static bool open_chunk(struct bd_exact_reader *r, const uint8_t *stored, size_t size)
{
	uint32_t words;

	if (size < sizeof(words) + BD_EXACT_STATES || size % 2 != 0)
		return false;
	memcpy(&words, stored, sizeof(words));
	if (words > (size - sizeof(words) - BD_EXACT_STATES) / 2)
		return false;
	r->word = stored + sizeof(words);
	r->words_end = r->word + 2 * (size_t)words;
	r->escape = r->words_end + BD_EXACT_STATES;
	r->end = stored + size;
	memcpy(r->state, r->words_end, BD_EXACT_STATES);
	for (unsigned j = 0; j < BD_EXACT_LANES; j++)
		if (r->state[j] < BD_EXACT_LOW)
			return false;
	return true;
}

static bool is_used_up(const struct bd_exact_reader *r)
{
	for (unsigned j = 0; j < BD_EXACT_LANES; j++)
		if (r->state[j] != BD_EXACT_LOW)
			return false;
	return r->word == r->words_end && r->escape == r->end;
}

static bd_exact_groups *const levels[BD_CPUS] = {
	[BD_CPU_SCALAR] = bd_exact_groups_scalar,
#ifdef __x86_64__
	[BD_CPU_AVX2] = bd_exact_groups_avx2,
	[BD_CPU_AVX512] = bd_exact_groups_avx512,
	[BD_CPU_AVX512_BF16] = bd_exact_groups_avx512,
#endif
};

bool bd_exact_decode_at(enum bd_cpu cpu, const struct bd_exact_decoder *d, const struct bd_exact_run *run,
			const uint8_t *stored, size_t size, size_t wanted, void *out)
{
	struct bd_exact_reader r;
	size_t count = wanted < run->count ? (wanted + BD_EXACT_LANES - 1) / BD_EXACT_LANES : 0, done;
	bool whole = count * BD_EXACT_LANES >= run->count || wanted >= run->count;

	if (whole)
		count = run->count / BD_EXACT_LANES;
	if (!open_chunk(&r, stored, size) || !levels[cpu](d, run, &r, count, &done, out) || done < count ||
	    r.word > r.words_end)
		return false;
	return !whole || (rest(d, run, &r, count * BD_EXACT_LANES, out) && is_used_up(&r));
}
