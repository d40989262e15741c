/* SPDX-License-Identifier: Apache-2.0 */
/* exact_model.c: which contexts and frequencies code a plane best, and how they are stored. See
 * exact_coder.h.
 *
 * Logarithms are integers with 16 bits after the point, made without the C library's, so that the same
 * inputs give the same model on every machine. */
#include "exact_impl.h"

#include <math.h>
#include <stdlib.h>

#define FRACTION 16
#define LOG_STEPS 512
#define MIDDLE 256     /* by row: the place of contexts that are equal to their row's class */
#define MOST_PLACES 768 /* contexts before they are merged, whatever the kind */

struct bd_exact_stats {
	struct bd_exact_model kind;
	const uint8_t *row_class;
	unsigned places;
	uint64_t total;
	uint32_t log[LOG_STEPS + 1]; /* of 1 + i / LOG_STEPS */
	uint32_t count[MOST_PLACES][BD_EXACT_SYMBOLS];
};

/* ---- Counting ---- */

/* log2 of v >= 1, by squaring. */
static uint32_t slow_log(uint32_t v)
{
	unsigned whole = 31 - (unsigned)__builtin_clz(v);
	uint64_t x = (uint64_t)v << (31 - whole); /* 1 .. 2, with 31 bits after the point */
	uint32_t log = whole;

	for (int i = 0; i < FRACTION; i++) {
		x = x * x >> 31;
		log = log << 1 | (uint32_t)(x >> 32);
		x >>= x >> 32;
	}
	return log;
}

static uint32_t fixed_log(const struct bd_exact_stats *s, uint32_t v)
{
	unsigned whole = 31 - (unsigned)__builtin_clz(v);
	uint64_t part = ((uint64_t)v << (32 - whole)) & UINT32_MAX; /* after the first bit */
	uint32_t i = (uint32_t)(part >> 23), between = part & 0x7fffff;
	uint32_t low = s->log[i], high = s->log[i + 1];

	return (whole << FRACTION) + low + (uint32_t)((uint64_t)(high - low) * between >> 23);
}

struct bd_exact_stats *bd_exact_stats_new(const struct bd_exact_model *kind, const uint8_t *row_class)
{
	struct bd_exact_stats *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->kind = *kind;
	s->row_class = row_class;
	s->places = kind->by == BD_EXACT_BY_PLACE ? kind->contexts :
		    kind->by == BD_EXACT_BY_BASE ? kind->mask + 1u : MOST_PLACES;
	for (uint32_t i = 0; i <= LOG_STEPS; i++)
		s->log[i] = slow_log((LOG_STEPS + i) << 8) - ((9 + 8) << FRACTION);
	return s;
}

void bd_exact_stats_free(struct bd_exact_stats *stats)
{
	free(stats);
}

uint8_t bd_exact_row_class(double mean)
{
	int exponent, halves;
	double m;

	if (!(mean > 0) || !isfinite(mean))
		return 0;
	m = frexp(mean, &exponent); /* 0.5 .. 1, where log2 is -1 .. 0 */
	halves = 2 * exponent + (m < 0x1.306fe0a31b715p-1 ? -2 : m < 0x1.ae89f995ad3adp-1 ? -1 : 0);
	halves += 254; /* twice the bias of BF16 and F32 */
	return (uint8_t)(halves < 0 ? 0 : halves > 255 ? 255 : halves);
}

BD_INLINE size_t count(struct bd_exact_stats *s, const struct bd_exact_run *run, const void *fine, unsigned unit,
		       bool ordered, enum bd_exact_by by)
{
	const struct bd_exact_model *m = &s->kind;
	uint64_t row = by == BD_EXACT_BY_ROW ? run->first / m->cols : 0;
	uint64_t left = by == BD_EXACT_BY_ROW ? m->cols - run->first % m->cols : 0;
	uint32_t shift = m->shift, mask = m->mask, last = m->contexts - 1u, first = (uint32_t)run->first;
	struct bd_exact_base base = bd_exact_base_of(run, unit);

	for (size_t i = 0; i < run->count; i++, base.next += base.step) {
		uint32_t b = bd_exact_unit(base.next, 0, unit);
		uint32_t d = bd_exact_ordinal(bd_exact_unit(fine, i, unit), unit, ordered) -
			     bd_exact_ordinal(b, unit, ordered);
		uint32_t place = by == BD_EXACT_BY_PLACE ? (first + (uint32_t)i) & last : b >> shift & mask;
		unsigned k;

		if (by == BD_EXACT_BY_ROW) {
			if (left-- == 0) {
				left = m->cols - 1;
				row++;
			}
			place += MIDDLE - s->row_class[row];
		}
		s->count[place][bd_exact_symbol(d, unit, &k)]++;
	}
	return run->count;
}

void bd_exact_stats_add(struct bd_exact_stats *s, const struct bd_exact_run *run, const void *fine)
{
	s->total += BD_EXACT_SPECIALISE(&s->kind, count, s, run, fine);
}

/* ---- Choosing ---- */

/* Bits, with FRACTION, that these counts need if their frequencies are just right; *symbols: how many occur. */
static uint64_t entropy(const struct bd_exact_stats *s, const uint32_t *count, uint64_t *symbols)
{
	uint64_t total = 0, sum = 0;

	for (unsigned i = 0; i < BD_EXACT_SYMBOLS; i++)
		if (count[i]) {
			total += count[i];
			sum += (uint64_t)count[i] * fixed_log(s, count[i]);
			if (symbols)
				++*symbols;
		}
	return total ? total * fixed_log(s, (uint32_t)total) - sum : 0;
}

static void add(uint32_t *to, const uint32_t *count)
{
	for (unsigned i = 0; i < BD_EXACT_SYMBOLS; i++)
		to[i] += count[i];
}

/* The places that occur. */
static void find_range(const struct bd_exact_stats *s, unsigned *first, unsigned *last)
{
	unsigned low = 0, high = s->places - 1;
	static const uint32_t none[BD_EXACT_SYMBOLS];

	while (low < high && memcmp(s->count[low], none, sizeof(none)) == 0)
		low++;
	while (high > low && memcmp(s->count[high], none, sizeof(none)) == 0)
		high--;
	*first = low;
	*last = high;
}

/* What windows cost: contexts are the places from an offset on, and those before and after are merged
 * with the first and the last. All indexed by place - first. */
struct windows {
	unsigned first, count;
	uint64_t own[MOST_PLACES];   /* bits of the place alone */
	uint64_t below[MOST_PLACES]; /* of all places up to it together */
	uint64_t above[MOST_PLACES]; /* of all from it on */
};

static void measure(const struct bd_exact_stats *s, struct windows *w)
{
	uint32_t sum[BD_EXACT_SYMBOLS] = { 0 };
	unsigned last;

	find_range(s, &w->first, &last);
	w->count = last - w->first + 1;
	for (unsigned i = 0; i < w->count; i++) {
		w->own[i] = entropy(s, s->count[w->first + i], NULL);
		add(sum, s->count[w->first + i]);
		w->below[i] = entropy(s, sum, NULL);
	}
	memset(sum, 0, sizeof(sum));
	for (unsigned i = w->count; i-- > 0;) {
		add(sum, s->count[w->first + i]);
		w->above[i] = entropy(s, sum, NULL);
	}
}

/* The cheapest window of `contexts` places; returns its bits. Never wider than what occurs. */
static uint64_t best_window(const struct windows *w, unsigned contexts, unsigned *offset)
{
	uint64_t best = UINT64_MAX;

	if (contexts == 1) {
		*offset = w->first;
		return w->above[0];
	}
	for (unsigned at = 0; at + contexts <= w->count; at++) {
		uint64_t bits = w->below[at] + w->above[at + contexts - 1];

		for (unsigned i = at + 1; i + 1 < at + contexts; i++)
			bits += w->own[i];
		if (bits < best) {
			best = bits;
			*offset = w->first + at;
		}
	}
	return best;
}

/* The context of a place. */
static unsigned merged(unsigned place, unsigned offset, unsigned contexts)
{
	return place < offset ? 0 : place - offset >= contexts ? contexts - 1 : place - offset;
}

static void merge(const struct bd_exact_stats *s, const struct windows *w, unsigned contexts, unsigned offset,
		  uint32_t (*count)[BD_EXACT_SYMBOLS])
{
	memset(count, 0, contexts * sizeof(*count));
	for (unsigned i = 0; i < w->count; i++)
		add(count[merged(w->first + i, offset, contexts)], s->count[w->first + i]);
}

/* About the bits of the table of these contexts. */
static uint64_t table_bits(const struct bd_exact_stats *s, uint32_t (*count)[BD_EXACT_SYMBOLS], unsigned contexts)
{
	uint64_t symbols = 0;

	for (unsigned c = 0; c < contexts; c++)
		entropy(s, count[c], &symbols);
	return (9 * symbols + 16 * contexts) << FRACTION;
}

/* Frequencies of a context out of its counts. What is rarer than its smallest possible frequency would make
 * it becomes an escape, where there are escapes. */
static void normalise(const struct bd_exact_stats *s, const uint32_t *count, bool sampled, uint16_t *frequency)
{
	bool escapes = s->kind.unit == 2;
	uint64_t weight[BD_EXACT_SYMBOLS] = { 0 }, total = 0;
	int sum = 0;

	memset(frequency, 0, BD_EXACT_SYMBOLS * sizeof(*frequency));
	for (unsigned i = 0; i < BD_EXACT_SYMBOLS; i++)
		total += count[i];
	if (total == 0) { /* nothing comes here, unless the sample missed it */
		frequency[bd_exact_symbol(0, s->kind.unit, &(unsigned){ 0 })] = BD_EXACT_SLOTS - (escapes && sampled);
		frequency[BD_EXACT_ESCAPE] = escapes && sampled;
		return;
	}
	for (unsigned i = 0; i < BD_EXACT_SYMBOLS; i++) {
		/* A frequency of 1 takes 1/1024 of 1.44 bits from everything else; an escape costs 16 bits and its
		 * symbol in place of the raw bits. */
		bool rare = escapes && i != BD_EXACT_ESCAPE &&
			    (uint64_t)count[i] * (14 - bd_exact_raw_bits(i, 2)) * BD_EXACT_SLOTS * 100 < 144 * total;

		weight[rare ? BD_EXACT_ESCAPE : i] += count[i];
	}
	if (escapes && sampled && !weight[BD_EXACT_ESCAPE])
		weight[BD_EXACT_ESCAPE] = 1;
	for (unsigned i = 0; i < BD_EXACT_SYMBOLS - (escapes ? 0u : 1u); i++) {
		uint64_t f = weight[i] * BD_EXACT_SLOTS / total;

		/* Bytes have no escape: what a sample has not seen must be possible. */
		if (weight[i] || (!escapes && sampled))
			frequency[i] = f ? (uint16_t)(f < BD_EXACT_SLOTS ? f : BD_EXACT_SLOTS) : 1;
		sum += frequency[i];
	}
	while (sum != (int)BD_EXACT_SLOTS) {
		int by = sum < (int)BD_EXACT_SLOTS ? 1 : -1, best = -1;
		uint64_t most = 0, least = UINT64_MAX;

		for (int i = 0; i < BD_EXACT_SYMBOLS; i++) {
			uint32_t f = frequency[i];
			uint64_t change;

			if (f == 0 || (by < 0 && f == 1))
				continue;
			change = weight[i] * (by > 0 ? fixed_log(s, f + 1) - fixed_log(s, f) :
						       fixed_log(s, f) - fixed_log(s, f - 1));
			if (by > 0 ? change >= most : change < least) {
				most = least = change;
				best = i;
			}
		}
		frequency[best] = (uint16_t)(frequency[best] + by);
		sum += by;
	}
}

/* Bits, with FRACTION, that a context's symbols take with these frequencies. */
static uint64_t cost(const struct bd_exact_stats *s, const uint32_t *count, const uint16_t *frequency)
{
	uint64_t bits = 0;

	for (unsigned i = 0; i < BD_EXACT_SYMBOLS; i++) {
		bool escape = i == BD_EXACT_ESCAPE || !frequency[i];
		uint32_t f = frequency[escape ? BD_EXACT_ESCAPE : i];
		unsigned raw = escape ? 16 : bd_exact_raw_bits(i, s->kind.unit);

		if (count[i])
			bits += count[i] * (((uint64_t)(BD_EXACT_BITS + raw) << FRACTION) - fixed_log(s, f));
	}
	return bits;
}

/* By row: what was a place relative to the middle becomes an offset for each row. Returns the number of changed
 * rows whose offset does not fit, so that their contexts are others than were counted. */
static uint64_t place_rows(const struct bd_exact_stats *s, unsigned offset, uint8_t *row_offset, uint64_t rows)
{
	uint64_t misplaced = 0;

	for (uint64_t i = 0; i < rows; i++) {
		int at = (int)s->row_class[i] + (int)offset - MIDDLE;

		misplaced += s->row_class[i] && (at < 0 || at > 255);
		row_offset[i] = (uint8_t)(at < 0 ? 0 : at > 255 ? 255 : at);
	}
	return misplaced;
}

double bd_exact_fit(struct bd_exact_stats *s, bool sampled, struct bd_exact_model *model, uint8_t *row_offset,
		    uint64_t rows)
{
	static const unsigned choices[] = { 1, 8, 16, 32 };
	uint32_t (*counts)[BD_EXACT_SYMBOLS] = calloc(BD_EXACT_CONTEXTS, sizeof(*counts));
	struct windows *w = malloc(sizeof(*w));
	unsigned contexts = s->kind.contexts, offset = 0, tried = 0;
	uint64_t best = UINT64_MAX, bits = 0, misplaced = 0;

	*model = s->kind;
	if (!counts || !w) {
		free(counts);
		free(w);
		return -1;
	}
	measure(s, w);
	for (unsigned i = 0; s->kind.by != BD_EXACT_BY_PLACE && i < sizeof(choices) / sizeof(*choices); i++) {
		unsigned n = choices[i] < w->count ? choices[i] : w->count;
		uint64_t need = best_window(w, n, &tried);

		merge(s, w, n, tried, counts);
		need += table_bits(s, counts, n);
		/* More contexts are slower to look up: only for what can be noticed. */
		if (best == UINT64_MAX || need + need / 256 < best) {
			best = need;
			contexts = n;
			offset = tried;
		}
	}
	if (s->kind.by == BD_EXACT_BY_PLACE) {
		w->first = 0;
		w->count = contexts;
	}
	merge(s, w, contexts, offset, counts);
	memset(model->frequency, 0, sizeof(model->frequency));
	model->contexts = (uint8_t)contexts;
	model->offset = (uint16_t)offset;
	if (s->kind.by == BD_EXACT_BY_ROW) {
		misplaced = place_rows(s, offset, row_offset, rows);
		sampled = true; /* rows that have not changed are not where they were counted either */
		model->offset = 0;
		model->row_offset = row_offset;
	}
	for (unsigned c = 0; c < contexts; c++) {
		normalise(s, counts[c], sampled, model->frequency[c]);
		bits += cost(s, counts[c], model->frequency[c]);
	}
	free(counts);
	free(w);
	return misplaced > rows / 100 ? INFINITY : (double)bits / (1 << FRACTION);
}

/* ---- As bytes ---- */

static uint8_t *put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	return p + 2;
}

size_t bd_exact_table_print(const struct bd_exact_model *m, uint8_t *out)
{
	uint8_t *p = out;

	*p++ = m->unit;
	*p++ = m->ordered;
	*p++ = m->by;
	*p++ = m->contexts;
	*p++ = m->shift;
	p = put16(p, m->mask);
	p = put16(p, m->offset);
	for (unsigned c = 0; c < m->contexts; c++) {
		const uint16_t *f = m->frequency[c];
		unsigned left = BD_EXACT_SLOTS;

		for (unsigned i = 0; left > 0;) {
			unsigned run = 0;

			while (f[i + run] == 0 && run < 255)
				run++;
			if (run) {
				*p++ = 0;
				*p++ = (uint8_t)run;
				i += run;
				continue;
			}
			left -= f[i];
			if (f[i] >= 128)
				*p++ = (uint8_t)(0x80 | f[i] >> 8);
			*p++ = (uint8_t)f[i++];
		}
	}
	return (size_t)(p - out);
}

/* Frequencies of one context; NULL: none. */
static const uint8_t *parse_context(const uint8_t *p, const uint8_t *end, unsigned symbols, uint16_t *frequency)
{
	unsigned left = BD_EXACT_SLOTS, i = 0;

	while (left > 0) {
		unsigned f;

		if (p == end)
			return NULL;
		f = *p++;
		if ((f == 0 || f & 0x80) && p == end)
			return NULL;
		if (f == 0) {
			if (*p == 0)
				return NULL;
			i += *p++;
			continue;
		}
		if (f & 0x80)
			f = (f & 0x7f) << 8 | *p++;
		if (i >= symbols || f == 0 || f > left)
			return NULL;
		frequency[i++] = (uint16_t)f;
		left -= f;
	}
	return p;
}

size_t bd_exact_table_parse(struct bd_exact_model *m, const uint8_t *in, size_t size)
{
	const uint8_t *p = in + 9, *end = in + size;

	if (size < 9)
		return 0;
	m->unit = in[0];
	m->ordered = in[1] == 1;
	m->by = in[2];
	m->contexts = in[3];
	m->shift = in[4];
	m->mask = (uint16_t)(in[5] | in[6] << 8);
	m->offset = (uint16_t)(in[7] | in[8] << 8);
	memset(m->frequency, 0, sizeof(m->frequency));
	if (m->unit < 1 || m->unit > 2 || in[1] > 1 || m->by > BD_EXACT_BY_PLACE || m->contexts < 1 ||
	    m->contexts > BD_EXACT_CONTEXTS || m->shift > 15)
		return 0;
	if (m->by == BD_EXACT_BY_PLACE && m->contexts != 1 && m->contexts != 2 && m->contexts != 4 && m->contexts != 8)
		return 0;
	for (unsigned c = 0; c < m->contexts && p; c++)
		p = parse_context(p, end, m->unit == 1 ? BD_EXACT_SYMBOLS - 1 : BD_EXACT_SYMBOLS, m->frequency[c]);
	return p ? (size_t)(p - in) : 0;
}
