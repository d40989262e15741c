/* SPDX-License-Identifier: Apache-2.0 */
/* test_exact.c: tensors of every dtype, coded against bases of every dtype that goes, come back bit for bit,
 * whole and in part; what is damaged is refused and never read past. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "codec/exact.h"

static uint64_t rng = 88172645463325252u;

static uint32_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 16);
}

struct pair {
	struct bd_exact_shape shape;
	uint8_t *fine, *base;
	size_t fine_size, base_size;
	uint8_t *stored;
	size_t size;
	uint64_t estimate;
};

static int read_fine(void *context, uint64_t at, size_t size, void *out, struct bd_error *err)
{
	struct pair *p = context;

	(void)err;
	assert_true(at + size <= p->fine_size);
	memcpy(out, p->fine + at, size);
	return 0;
}

static int read_base(void *context, uint64_t at, size_t size, void *out, struct bd_error *err)
{
	struct pair *p = context;

	(void)err;
	assert_true(at + size <= p->base_size);
	memcpy(out, p->base + at, size);
	return 0;
}

static float number(void)
{
	float f = (float)((int)(rnd() % 2001) - 1000) / 1000;

	return f * f * f * 0.1f;
}

static void put_number(uint8_t *to, size_t i, enum bd_dtype dtype, float f)
{
	uint16_t half = dtype == BD_BF16 ? bd_bf16_from_float(f) : bd_f16_from_float(f);

	if (dtype == BD_F32)
		memcpy(to + 4 * i, &f, 4);
	else
		memcpy(to + 2 * i, &half, 2);
}

/* Of 1,000 elements `changed` differ from the base. */
static void make(struct pair *p, enum bd_dtype dtype, enum bd_dtype base_dtype, uint64_t rows, uint64_t cols,
		 unsigned changed)
{
	size_t count = (size_t)(rows * cols), size = bd_dtype_bits(dtype) / 8;
	size_t base_size = base_dtype == BD_DTYPES ? 0 : bd_dtype_bits(base_dtype) / 8;

	*p = (struct pair){ .shape = { dtype, base_dtype, rows, cols } };
	p->fine_size = count * size;
	p->base_size = count * base_size;
	p->fine = malloc(p->fine_size + 1);
	p->base = malloc(p->base_size + 1);
	for (size_t i = 0; i < count; i++) {
		bool same = rnd() % 1000 >= changed;

		if (bd_dtype_is_weight(dtype) && (base_size == 0 || bd_dtype_is_weight(base_dtype))) {
			float f = number();

			put_number(p->fine, i, dtype, f + (same ? 0 : f * 0.01f + 1e-5f));
			if (base_size)
				put_number(p->base, i, base_dtype, f);
			continue;
		}
		for (size_t k = 0; k < size; k++)
			p->fine[i * size + k] = (uint8_t)(rnd() % 1000 < 900 ? k : rnd());
		for (size_t k = 0; k < base_size; k++)
			p->base[i * size + k] = same ? p->fine[i * size + k] : (uint8_t)rnd();
	}
}

static void drop(struct pair *p)
{
	free(p->fine);
	free(p->base);
	free(p->stored);
}

static struct bd_exact_input input_of(struct pair *p)
{
	return (struct bd_exact_input){ read_base, read_fine, p, NULL };
}

/* 0 or -ENODATA. */
static int code(struct pair *p, bool by_row)
{
	struct bd_exact_input input = input_of(p);
	struct bd_exact_plan *plan;
	int rc = bd_exact_plan_new(&plan, &p->shape, by_row, &input, NULL);

	if (rc == -ENODATA)
		return rc;
	assert_int_equal(rc, 0);
	p->estimate = bd_exact_plan_size(plan);
	assert_int_equal(bd_exact_plan_code(plan, &input, &p->stored, &p->size, NULL), 0);
	bd_exact_plan_free(plan);
	return 0;
}

static int open_stored(const struct pair *p, const uint8_t *stored, size_t size, struct bd_exact **x)
{
	uint64_t head = size < 8 ? 0 : bd_exact_head_size(&p->shape, stored, size);
	struct bd_error err;

	*x = NULL;
	return head ? bd_exact_open(x, &p->shape, stored, head, size, &err) : -EINVAL;
}

/* Decode chunk by chunk out of exact copies, so that reading too far is noticed; false: damaged. */
static bool decode(const struct pair *p, const uint8_t *stored, size_t size, bool part_only)
{
	size_t element = bd_dtype_bits(p->shape.dtype) / 8, base_element = p->base_size / (p->fine_size / element);
	struct bd_exact_scratch *scratch = bd_exact_scratch_new();
	uint8_t *out = malloc(BD_EXACT_CHUNK);
	struct bd_exact *x;
	bool good = open_stored(p, stored, size, &x) == 0;

	for (uint64_t c = 0; good && c * BD_EXACT_CHUNK < p->fine_size; c++) {
		size_t at = (size_t)(c * BD_EXACT_CHUNK), n = p->fine_size - at, wanted;
		uint64_t index[2][2] = { 0 };
		struct bd_exact_place place;
		uint8_t *part[2] = { NULL, NULL }, *base;

		n = n < BD_EXACT_CHUNK ? n : BD_EXACT_CHUNK;
		wanted = part_only ? rnd() % (n / element + 1) * element : n;
		for (unsigned k = 0; k < bd_exact_planes(x); k++) {
			unsigned words;
			uint64_t where = bd_exact_index_at(x, k, c, &words);

			assert_true(where + 8 * words <= size);
			memcpy(index[k], stored + where, 8 * words);
		}
		good = bd_exact_locate(x, c, (const uint64_t(*)[2])index, &place);
		for (unsigned k = 0; good && k < bd_exact_planes(x); k++) {
			assert_true(place.part[k].at + place.part[k].size <= size);
			part[k] = malloc(place.part[k].size + (place.part[k].size == 0));
			memcpy(part[k], stored + place.part[k].at, place.part[k].size);
		}
		base = malloc(n / element * base_element + 1);
		memcpy(base, p->base + at / element * base_element, n / element * base_element);
		good = good && bd_exact_decode_chunk(x, c, &place, base, (const uint8_t *const *)part, wanted, out,
						     scratch);
		if (good && stored == p->stored)
			assert_memory_equal(out, p->fine + at, wanted);
		free(base);
		free(part[0]);
		free(part[1]);
	}
	bd_exact_close(x);
	bd_exact_scratch_free(scratch);
	free(out);
	return good;
}

/* A plane that is alike all over is estimated right; chunks that are stored raw make the estimate too high. */
static void check(struct pair *p, bool by_row, bool alike)
{
	uint64_t slack;

	if (code(p, by_row) == -ENODATA)
		return;
	assert_true(decode(p, p->stored, p->size, false));
	assert_true(decode(p, p->stored, p->size, true));
	slack = p->size / 100 + 600;
	if (p->estimate + slack < p->size || (alike && p->estimate > p->size + slack))
		fail_msg("%s over %d: %llu estimated, %zu needed", bd_dtype_name(p->shape.dtype), p->shape.base_dtype,
			 (unsigned long long)p->estimate, p->size);
}

static void tensors_of_every_dtype_come_back(void **state)
{
	static const uint64_t shapes[][2] = { { 1, 1 }, { 3, 50 }, { 1, 5000 }, { 300, 301 } };
	static const unsigned changed[] = { 0, 3, 400, 1000 };
	unsigned coded = 0;

	(void)state;
	for (int t = 0; t < BD_DTYPES; t++)
		for (int b = 0; b <= BD_DTYPES; b++)
			for (size_t s = 0; s < 4; s++)
				for (size_t c = 0; c < 4; c++) {
					struct pair p;

					if (!bd_exact_has_dtype((enum bd_dtype)t) ||
					    (b != BD_DTYPES && !bd_exact_has_base((enum bd_dtype)t, (enum bd_dtype)b)))
						continue;
					make(&p, (enum bd_dtype)t, (enum bd_dtype)b, shapes[s][0], shapes[s][1],
					     changed[c]);
					check(&p, s == 3, true);
					coded += p.stored != NULL;
					drop(&p);
				}
	assert_true(coded > 200);
}

/* Several chunks, some the same, some noise, some coded. */
static void chunks_are_independent(void **state)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32, BD_F8_E4M3, BD_I32 };

	(void)state;
	for (size_t t = 0; t < 5; t++)
		for (int rows = 0; rows < 2; rows++) {
			struct pair p;

			make(&p, dtypes[t], dtypes[t], 1100, 257, 300);
			memcpy(p.fine, p.base, 2 * BD_EXACT_CHUNK + 77);
			for (size_t i = 3 * BD_EXACT_CHUNK; i < 4 * BD_EXACT_CHUNK && i < p.fine_size; i++)
				p.fine[i] = (uint8_t)rnd();
			check(&p, rows, false);
			assert_non_null(p.stored);
			assert_true(p.size < p.fine_size);
			drop(&p);
		}
}

/* 70 chunks, of which some are looked at: what none of these has comes back as well. */
static void samples_do_not_matter(void **state)
{
	struct pair p;

	(void)state;
	make(&p, BD_BF16, BD_BF16, 4600, 2000, 300);
	for (size_t i = 0; i < 3000; i++) /* the first chunk is not sampled */
		p.fine[i] = (uint8_t)rnd();
	assert_int_equal(code(&p, true), 0);
	assert_true(decode(&p, p.stored, p.size, false));
	drop(&p);
}

/* Widened BF16 costs what BF16 costs. */
static void widened_halves_are_free(void **state)
{
	struct pair p, q;

	(void)state;
	make(&p, BD_BF16, BD_BF16, 500, 500, 500);
	q = (struct pair){ .shape = { BD_F32, BD_BF16, 500, 500 }, .fine_size = 2 * p.fine_size, .base = p.base,
			   .base_size = p.base_size, .fine = calloc(2, p.fine_size) };
	for (size_t i = 0; i < p.fine_size / 2; i++)
		memcpy(q.fine + 4 * i + 2, p.fine + 2 * i, 2);
	assert_int_equal(code(&p, false), 0);
	assert_int_equal(code(&q, false), 0);
	assert_true(decode(&q, q.stored, q.size, false));
	assert_true(q.size < p.size + p.size / 50);
	free(q.fine);
	free(q.stored);
	drop(&p);
}

static void noise_is_not_coded(void **state)
{
	struct pair p;

	(void)state;
	make(&p, BD_I64, BD_DTYPES, 10, 1000, 1000);
	for (size_t i = 0; i < p.fine_size; i++)
		p.fine[i] = (uint8_t)rnd();
	assert_int_equal(code(&p, false), -ENODATA);
	drop(&p);
}

static void damage_is_survived(void **state)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F32, BD_F8_E5M2, BD_U8 };
	unsigned refused = 0;

	(void)state;
	for (size_t t = 0; t < 4; t++)
		for (int b = 0; b < 2; b++) {
			struct pair p;
			uint8_t *bad;

			make(&p, dtypes[t], b ? dtypes[t] : BD_DTYPES, 300, 301, 300);
			if (code(&p, t == 0) < 0) {
				drop(&p);
				continue;
			}
			bad = malloc(p.size);
			for (int i = 0; i < 400; i++) {
				size_t size = i % 4 ? p.size : rnd() % (p.size + 1);
				struct bd_exact *x;
				size_t head = (size_t)bd_exact_head_size(&p.shape, p.stored, p.size);

				memcpy(bad, p.stored, size);
				for (unsigned n = 1 + rnd() % 3; n > 0 && size; n--) /* mostly what is before the chunks */
					bad[rnd() % (i % 3 && size > head + 32 ? head + 32 : size)] ^= (uint8_t)(1 << rnd() % 8);
				refused += !decode(&p, bad, size, i % 2);
				(void)open_stored(&p, bad, size, &x);
				bd_exact_close(x);
			}
			free(bad);
			drop(&p);
		}
	assert_true(refused > 500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_of_every_dtype_come_back),
		cmocka_unit_test(chunks_are_independent),
		cmocka_unit_test(samples_do_not_matter),
		cmocka_unit_test(widened_halves_are_free),
		cmocka_unit_test(noise_is_not_coded),
		cmocka_unit_test(damage_is_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
