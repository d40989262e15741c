/* SPDX-License-Identifier: Apache-2.0 */
/* test_exact_coder.c: what the coder of `exact` codes comes back bit for bit, at every level; damaged chunks and
 * tables are refused, and every level refuses the same ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "codec/exact_coder.h"

#define MOST 70000 /* units of a plane */

static uint64_t rng = 88172645463325252u;

static uint32_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 16);
}

/* Memory of `size` bytes that ends at an inaccessible page. */
static void *fenced(size_t size)
{
	size_t room = (size + 4095) / 4096 * 4096;
	uint8_t *p = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + room, 4096, PROT_NONE))
		fail_msg("no memory");
	return p + room - size;
}

static void unfence(void *p, size_t size)
{
	size_t room = (size + 4095) / 4096 * 4096;

	munmap((uint8_t *)p + size - room, room + 4096);
}

/* A plane and how it was coded. */
struct plane {
	struct bd_exact_model kind, model;
	void *base, *fine;  /* base NULL: none */
	size_t count, bytes;
	uint64_t rows;
	uint8_t *row;       /* classes, then offsets */
	uint8_t *stored;
	size_t size;
	double bits;        /* as estimated */
};

/* A number like a weight in BF16, F16 or F8. */
static uint32_t weight(const struct plane *p)
{
	uint32_t sign = rnd() & 1, mantissa = rnd(), exponent = 0;

	while (exponent < 12 && rnd() % 2)
		exponent++;
	if (p->kind.unit == 1)
		return sign << 7 | ((10 - exponent % 10) << 3 & 0x78) | (mantissa & 7);
	if (p->kind.shift == 10)
		return sign << 15 | (14 - exponent) << 10 | (mantissa & 0x3ff);
	return sign << 15 | (123 - exponent) << 7 | (mantissa & 0x7f);
}

static void put(void *to, const struct plane *p, size_t i, uint32_t value)
{
	uint16_t half = (uint16_t)value;

	if (p->kind.unit == 1)
		((uint8_t *)to)[i] = (uint8_t)value;
	else
		memcpy((uint8_t *)to + 2 * i, &half, 2);
}

/* Of 1,000 units `changed` differ from the base, most of them by a few steps. */
static void fill(struct plane *p, unsigned changed)
{
	for (size_t i = 0; i < p->count; i++) {
		uint32_t b = weight(p), f = b;
		unsigned reach = p->kind.by == BD_EXACT_BY_ROW ? 1u << (i / p->kind.cols % 10) : 4;

		if (rnd() % 1000 < changed)
			f += rnd() % (2 * reach + 1) - reach;
		if (changed && rnd() % 500 == 0)
			f = rnd(); /* anything: an escape, NaN, -0 */
		if (p->base)
			put(p->base, p, i, b);
		put(p->fine, p, i, f);
	}
}

static void code(struct plane *p)
{
	struct bd_exact_run run = { p->base, 0, p->count };
	struct bd_exact_encoder *e;
	struct bd_exact_stats *stats;

	for (uint64_t i = 0; p->row && i < p->rows; i++)
		p->row[i] = bd_exact_row_class(ldexp(1, -(int)(i % 10) - 5));
	stats = bd_exact_stats_new(&p->kind, p->row);
	assert_non_null(stats);
	bd_exact_stats_add(stats, &run, p->fine);
	p->bits = bd_exact_fit(stats, false, &p->model, p->row, p->rows) + BD_EXACT_FRAME;
	bd_exact_stats_free(stats);
	assert_true(p->bits >= 0);
	e = bd_exact_encoder_new(&p->model, p->count);
	assert_non_null(e);
	p->stored = malloc(bd_exact_bound(p->count));
	p->size = bd_exact_encode(e, &run, p->fine, p->stored);
	assert_true(p->size <= bd_exact_bound(p->count));
	bd_exact_encoder_free(e);
}

static void start(struct plane *p, const struct bd_exact_model *kind, size_t count, bool base)
{
	*p = (struct plane){ .kind = *kind, .count = count, .bytes = count * kind->unit };
	p->fine = fenced(p->bytes ? p->bytes : 1);
	p->base = base ? fenced(p->bytes ? p->bytes : 1) : NULL;
	if (kind->by == BD_EXACT_BY_ROW) {
		p->rows = (count + kind->cols - 1) / kind->cols;
		p->row = malloc(p->rows + 1);
	}
}

static void finish(struct plane *p)
{
	unfence(p->fine, p->bytes ? p->bytes : 1);
	if (p->base)
		unfence(p->base, p->bytes ? p->bytes : 1);
	free(p->row);
	free(p->stored);
}

/* The chunk at all levels, from memory that ends where it ends: all accept it or none, with the same units. */
static bool decode(const struct plane *p, const uint8_t *stored, size_t size, size_t wanted, uint8_t *out)
{
	struct bd_exact_decoder *d = bd_exact_decoder_new(&p->model);
	struct bd_exact_run run = { p->base, 0, p->count };
	uint8_t *copy = fenced(size ? size : 1), *to = fenced(p->bytes ? p->bytes : 1);
	bool good = false;

	assert_non_null(d);
	memcpy(copy, stored, size);
	for (int cpu = BD_CPU_SCALAR; cpu <= (int)bd_cpu_best(); cpu++) {
		bool this_good;

		memset(to, 0xa5, p->bytes);
		this_good = bd_exact_decode_at((enum bd_cpu)cpu, d, &run, copy, size, wanted, to);
		if (cpu == BD_CPU_SCALAR) {
			good = this_good;
			memcpy(out, to, p->bytes);
		}
		assert_int_equal(this_good, good);
		if (good)
			assert_memory_equal(to, out, p->bytes);
	}
	bd_exact_decoder_free(d);
	unfence(copy, size ? size : 1);
	unfence(to, p->bytes ? p->bytes : 1);
	return good;
}

static void check(const struct plane *p)
{
	uint8_t *out = malloc(p->bytes + 1);
	size_t wanted = p->count / 3, got = (wanted + BD_EXACT_LANES - 1) / BD_EXACT_LANES * BD_EXACT_LANES;

	assert_true(decode(p, p->stored, p->size, p->count, out));
	assert_memory_equal(out, p->fine, p->bytes);
	if (got <= p->count) {
		assert_true(decode(p, p->stored, p->size, wanted, out));
		assert_memory_equal(out, p->fine, got * p->kind.unit);
	}
	free(out);
}

static const struct bd_exact_model kinds[] = {
	{ .unit = 2, .ordered = true, .by = BD_EXACT_BY_BASE, .shift = 7, .mask = 255 },            /* BF16 */
	{ .unit = 2, .ordered = true, .by = BD_EXACT_BY_BASE, .shift = 10, .mask = 31 },            /* F16 */
	{ .unit = 2, .ordered = true, .by = BD_EXACT_BY_ROW, .shift = 6, .mask = 510, .cols = 100 },
	{ .unit = 2, .ordered = true, .by = BD_EXACT_BY_ROW, .shift = 6, .mask = 510, .cols = 7 },
	{ .unit = 2, .ordered = false, .by = BD_EXACT_BY_PLACE, .contexts = 1 },
	{ .unit = 1, .ordered = true, .by = BD_EXACT_BY_BASE, .shift = 3, .mask = 15 },             /* F8_E4M3 */
	{ .unit = 1, .ordered = true, .by = BD_EXACT_BY_BASE, .shift = 2, .mask = 31 },             /* F8_E5M2 */
	{ .unit = 1, .ordered = false, .by = BD_EXACT_BY_PLACE, .contexts = 1 },
	{ .unit = 1, .ordered = false, .by = BD_EXACT_BY_PLACE, .contexts = 8 },
};

#define EACH_KIND(i) (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)

static void random_planes_come_back(void **state)
{
	static const size_t counts[] = { 0, 1, 31, 32, 33, 1000, 65536, MOST };
	static const unsigned changed[] = { 0, 3, 100, 500, 1000 };

	(void)state;
	for EACH_KIND(k)
		for (size_t c = 0; c < sizeof(counts) / sizeof(*counts); c++)
			for (size_t s = 0; s < 5; s++)
				for (int base = kinds[k].by != BD_EXACT_BY_PLACE; base < 2; base++) {
					struct plane p;

					start(&p, &kinds[k], counts[c], base);
					fill(&p, changed[s]);
					code(&p);
					check(&p);
					finish(&p);
				}
}

/* All values of a unit over bases at the edges: zeros, subnormal, largest, infinity, NaN, both signs. */
static void all_values_come_back(void **state)
{
	static const uint16_t edges[] = { 0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x3f80, 0xbf80, 0x7f7f, 0x7f80,
					  0xff80, 0x7fc0, 0x7fff, 0xffff, 0x3c00, 0x7c00, 0xfc00 };

	(void)state;
	for EACH_KIND(k) {
		size_t values = kinds[k].unit == 1 ? 256 : 65536;

		for (size_t e = 0; e < sizeof(edges) / sizeof(*edges); e++) {
			struct plane p;

			start(&p, &kinds[k], values, true);
			for (size_t i = 0; i < values; i++) {
				put(p.fine, &p, i, (uint32_t)i);
				put(p.base, &p, i, edges[e]);
			}
			code(&p);
			check(&p);
			finish(&p);
		}
	}
}

static void estimate_is_what_coding_takes(void **state)
{
	(void)state;
	for EACH_KIND(k)
		for (unsigned changed = 5; changed <= 1000; changed *= 14) {
			struct plane p;
			double real;

			start(&p, &kinds[k], 65536, true);
			fill(&p, changed);
			code(&p);
			real = 8.0 * (double)p.size;
			if (fabs(p.bits - real) > 0.01 * real + 64)
				fail_msg("kind %zu, %u changed: %.0f bits estimated, %.0f needed", k, changed,
					 p.bits, real);
			finish(&p);
		}
}

/* Few changes cost little, and none nothing but the chunk's frame. */
static void unchanged_units_are_free(void **state)
{
	struct plane p;

	(void)state;
	start(&p, &kinds[0], 65536, true);
	fill(&p, 0);
	code(&p);
	assert_int_equal(p.size, 4 + 4 * BD_EXACT_LANES);
	finish(&p);
}

/* Frequencies from a part of a plane code all of it. */
static void sampled_models_code_everything(void **state)
{
	(void)state;
	for EACH_KIND(k) {
		struct bd_exact_stats *stats;
		struct plane p;
		struct bd_exact_encoder *e;

		if (kinds[k].by == BD_EXACT_BY_ROW)
			continue;
		start(&p, &kinds[k], 65536, true);
		fill(&p, 900);
		stats = bd_exact_stats_new(&p.kind, NULL);
		bd_exact_stats_add(stats, &(struct bd_exact_run){ p.base, 0, 64 }, p.fine);
		assert_true(bd_exact_fit(stats, true, &p.model, NULL, 0) >= 0);
		bd_exact_stats_free(stats);
		e = bd_exact_encoder_new(&p.model, p.count);
		p.stored = malloc(bd_exact_bound(p.count));
		p.size = bd_exact_encode(e, &(struct bd_exact_run){ p.base, 0, p.count }, p.fine, p.stored);
		bd_exact_encoder_free(e);
		check(&p);
		finish(&p);
	}
}

static void tables_come_back(void **state)
{
	uint8_t *bytes = malloc(BD_EXACT_TABLE_BOUND);

	(void)state;
	for EACH_KIND(k) {
		struct bd_exact_model back;
		struct plane p;
		size_t size;

		start(&p, &kinds[k], 5000, true);
		fill(&p, 300);
		code(&p);
		size = bd_exact_table_print(&p.model, bytes);
		assert_true(size <= BD_EXACT_TABLE_BOUND);
		back = p.model;
		memset(back.frequency, 0xff, sizeof(back.frequency));
		assert_int_equal(bd_exact_table_parse(&back, bytes, size), size);
		assert_memory_equal(&back, &p.model, sizeof(back));
		for (size_t cut = 0; cut < size; cut++)
			assert_int_equal(bd_exact_table_parse(&back, bytes, cut), 0);
		finish(&p);
	}
	free(bytes);
}

static void damaged_tables_are_refused_or_whole(void **state)
{
	uint8_t *bytes = malloc(BD_EXACT_TABLE_BOUND), *bad = malloc(BD_EXACT_TABLE_BOUND);
	struct bd_exact_model m;
	struct plane p;
	size_t size;

	(void)state;
	start(&p, &kinds[0], 5000, true);
	fill(&p, 300);
	code(&p);
	size = bd_exact_table_print(&p.model, bytes);
	for (int i = 0; i < 20000; i++) {
		memcpy(bad, bytes, size);
		for (unsigned n = rnd() % 3 + 1; n > 0; n--)
			bad[rnd() % size] = (uint8_t)rnd();
		if (bd_exact_table_parse(&m, bad, size) == 0)
			continue;
		assert_true(m.contexts >= 1 && m.contexts <= BD_EXACT_CONTEXTS && m.shift <= 15);
		for (unsigned c = 0; c < m.contexts; c++) {
			unsigned sum = 0;

			for (unsigned s = 0; s < BD_EXACT_SYMBOLS; s++)
				sum += m.frequency[c][s];
			assert_int_equal(sum, 1 << BD_EXACT_BITS);
		}
	}
	finish(&p);
	free(bytes);
	free(bad);
}

/* Whatever a chunk holds, no level reads or writes outside, and all agree (decode asserts that). */
static void damaged_chunks_are_the_same_at_all_levels(void **state)
{
	(void)state;
	for EACH_KIND(k)
		for (int base = kinds[k].by != BD_EXACT_BY_PLACE; base < 2; base++) {
			struct plane p;
			uint8_t *bad, *out;
			unsigned refused = 0;

			start(&p, &kinds[k], 500, base);
			fill(&p, 400);
			code(&p);
			bad = malloc(p.size + 64);
			out = malloc(p.bytes);
			for (int i = 0; i < 300; i++) {
				size_t size = p.size;

				memcpy(bad, p.stored, size);
				if (i % 3 == 0)
					size = rnd() % (p.size + 1);
				else if (i % 3 == 1)
					memset(bad + size, 0, 64), size += rnd() % 64;
				for (unsigned n = rnd() % 4; n > 0 && size; n--)
					bad[rnd() % (i % 2 && size > 8 ? 8 : size)] ^= (uint8_t)(1 << rnd() % 8);
				refused += !decode(&p, bad, size, rnd() % 2 ? p.count : rnd() % p.count, out);
			}
			assert_true(refused > 100);
			free(bad);
			free(out);
			finish(&p);
		}
}

static void row_classes_are_half_octaves(void **state)
{
	(void)state;
	assert_int_equal(bd_exact_row_class(1.0), 254);
	assert_int_equal(bd_exact_row_class(0.5), 252);
	assert_int_equal(bd_exact_row_class(sqrt(0.5)), 253);
	assert_int_equal(bd_exact_row_class(0), 0);
	assert_int_equal(bd_exact_row_class(1e-45), 0);
	assert_int_equal(bd_exact_row_class(NAN), 0);
	assert_int_equal(bd_exact_row_class(INFINITY), 0);
	assert_int_equal(bd_exact_row_class(1e30), 255);
	for (double x = 1e-30; x < 1; x *= 1.01)
		assert_int_equal(bd_exact_row_class(x), lrint(2 * log2(x)) + 254 < 0 ? 0 : lrint(2 * log2(x)) + 254);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_planes_come_back),
		cmocka_unit_test(all_values_come_back),
		cmocka_unit_test(estimate_is_what_coding_takes),
		cmocka_unit_test(unchanged_units_are_free),
		cmocka_unit_test(sampled_models_code_everything),
		cmocka_unit_test(tables_come_back),
		cmocka_unit_test(damaged_tables_are_refused_or_whole),
		cmocka_unit_test(damaged_chunks_are_the_same_at_all_levels),
		cmocka_unit_test(row_classes_are_half_octaves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
