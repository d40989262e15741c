/* SPDX-License-Identifier: Apache-2.0 */
/* test_sign.c: every level of sign encoding against a naive reference that shares no code with it.
 *
 * The reference decodes and rounds with ldexp and nearbyint in double instead of with bit tricks.
 * All buffers end at an inaccessible page, so reading or writing too far is noticed in any build.
 * A level that this processor lacks is skipped, visibly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sign.h"

#define CANARY 0xa5
#define MARGIN 64          /* bytes around `out` that must stay as they are */
#define ALL_HALVES 65536u  /* how many values 16 bits have */
#define ARENA (1u << 20)

static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32 };

/* --- Buffers ------------------------------------------------------------------------------- */

/* Memory before an inaccessible page. */
static uint8_t *arena(void)
{
	uint8_t *p = mmap(NULL, ARENA + 65536, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + ARENA, 65536, PROT_NONE))
		fail_msg("no memory");
	return p + ARENA;
}

/* The last `size` bytes, less `gap`, of the arena that *end remembers. */
static void *last(uint8_t **end, size_t size, size_t gap)
{
	if (!*end)
		*end = arena();
	assert_true(size + gap + MARGIN <= ARENA);
	return *end - gap - size;
}

static uint8_t *base_end, *out_end, *bits_end[BD_MAX_PLANES];
static uint8_t *row_end[BD_MAX_PLANES], *col_end[BD_MAX_PLANES];

static size_t size_of(enum bd_dtype dtype)
{
	return dtype == BD_F32 ? 4 : 2;
}

/* --- Random numbers ------------------------------------------------------------------------ */

static uint64_t rng;

static uint32_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 16);
}

static uint32_t below(uint32_t n)
{
	return rnd() % n;
}

static float as_float(uint32_t x)
{
	float f;

	memcpy(&f, &x, 4);
	return f;
}

static uint32_t as_bits(float f)
{
	uint32_t x;

	memcpy(&x, &f, 4);
	return x;
}

/* Uniform in the exponent between 2^lo and 2^hi, either sign. */
static float spread(int lo, int hi)
{
	float f = ldexpf(1 + (float)below(1 << 23) * 0x1p-23f, lo + (int)below((uint32_t)(hi - lo)));

	return below(2) ? f : -f;
}

/* --- The reference ------------------------------------------------------------------------- */

struct format {
	int digits, emin, emax; /* of 1.xxx * 2^e */
};

static struct format format_of(enum bd_dtype dtype)
{
	return dtype == BD_BF16 ? (struct format){ 8, -126, 127 } : (struct format){ 11, -14, 15 };
}

static float ref_decode(uint16_t h, enum bd_dtype dtype)
{
	struct format f = format_of(dtype);
	int mantissa_bits = f.digits - 1, field = (h & 0x7fff) >> mantissa_bits;
	int mantissa = h & ((1 << mantissa_bits) - 1);
	double x;

	if (field == f.emax - f.emin + 2)
		x = mantissa ? NAN : INFINITY;
	else if (field == 0)
		x = ldexp(mantissa, f.emin - mantissa_bits);
	else
		x = ldexp(mantissa + (1 << mantissa_bits), f.emin + field - 1 - mantissa_bits);
	return (float)(h & 0x8000 ? -x : x);
}

static uint16_t ref_encode(float value, enum bd_dtype dtype)
{
	struct format f = format_of(dtype);
	int mantissa_bits = f.digits - 1, exponent, unit;
	uint16_t sign = signbit(value) ? 0x8000 : 0;
	double x = fabs((double)value);

	if (isnan(value))
		return dtype == BD_BF16 ? 0x7fc0 : 0x7e00;
	if (isinf(value))
		return (uint16_t)(sign | (f.emax - f.emin + 2) << mantissa_bits);
	if (x == 0)
		return sign;
	exponent = ilogb(x) < f.emin ? f.emin : ilogb(x);
	unit = exponent - mantissa_bits;
	x = nearbyint(ldexp(x, -unit)); /* ties to even, in 0 .. 2^digits */
	if (x == ldexp(1, f.digits)) { /* rounded up to the next power of two */
		x /= 2;
		exponent++;
	}
	if (exponent > f.emax)
		return (uint16_t)(sign | (f.emax - f.emin + 2) << mantissa_bits);
	/* Adding the mantissa with its leading 1 makes the field 1 greater, unless subnormal. */
	return (uint16_t)(sign | (((exponent - f.emin) << mantissa_bits) + (int)x));
}

static float ref_load(const uint8_t *p, uint64_t i, enum bd_dtype dtype)
{
	uint16_t h;
	float f;

	if (dtype == BD_F32) {
		memcpy(&f, p + 4 * i, 4);
		return f;
	}
	memcpy(&h, p + 2 * i, 2);
	return ref_decode(h, dtype);
}

static void ref_rebuild(const struct bd_sign_run *run, uint8_t *out, const uint8_t *base)
{
	uint64_t i;
	unsigned p;

	for (i = 0; i < run->count; i++) {
		uint64_t row = (run->first + i) / run->cols, col = (run->first + i) % run->cols;
		volatile float acc = ref_load(base, i, run->base_dtype);
		uint16_t h;
		float f;

		for (p = 0; p < run->planes; p++) {
			uint64_t k = run->bit[p] + i;
			volatile float s = run->row[p][row] * run->col[p][col];

			if (run->bits[p][k / 8] & 1 << k % 8)
				acc = acc + s;
			else
				acc = acc + -s;
		}
		f = isnan(acc) ? as_float(0x7fc00000) : acc;
		h = run->out_dtype == BD_F32 ? 0 : ref_encode(f, run->out_dtype);
		if (run->out_dtype == BD_F32)
			memcpy(out + 4 * i, &f, 4);
		else
			memcpy(out + 2 * i, &h, 2);
	}
}

/* --- Levels -------------------------------------------------------------------------------- */

static enum bd_cpu level_of(void **state)
{
	enum bd_cpu cpu = *(const enum bd_cpu *)*state;

	if (cpu > bd_cpu_best()) {
		print_message("this processor has no %s: not tested\n", bd_cpu_name(cpu));
		skip();
	}
	return cpu;
}

/* The child's answer, since it is given once per process. */
static int best_with(const char *variable)
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		if (variable)
			setenv("BITDELTA_CPU", variable, 1);
		_exit((int)bd_cpu_best());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void test_environment_lowers_the_level(void **state)
{
	int best = best_with(NULL), cpu;

	(void)state;
	for (cpu = 0; cpu < BD_CPUS; cpu++)
		assert_int_equal(best_with(bd_cpu_name((enum bd_cpu)cpu)), cpu < best ? cpu : best);
	assert_int_equal(best_with("no such level"), best);
	assert_int_equal(best_with(""), best);
	assert_int_equal((int)bd_cpu_best(), best);
}

/* --- Conversions --------------------------------------------------------------------------- */

static void check_encode(float f)
{
	uint16_t bf16 = bd_bf16_from_float(f), f16 = bd_f16_from_float(f);

	if (bf16 != ref_encode(f, BD_BF16) || f16 != ref_encode(f, BD_F16))
		fail_msg("%a (%08x): BF16 %04x, not %04x; F16 %04x, not %04x", (double)f,
			 as_bits(f), bf16, ref_encode(f, BD_BF16), f16, ref_encode(f, BD_F16));
#if defined(__FLT16_MAX__) && defined(__GNUC__) && !defined(__clang__)
	if (!isnan(f)) {
		_Float16 theirs = (_Float16)f;

		assert_memory_equal(&theirs, &f16, 2);
	}
#endif
}

static void test_decoding_all_halves(void **state)
{
	uint32_t h;

	(void)state;
	for (h = 0; h < ALL_HALVES; h++) {
		float bf16 = bd_bf16_to_float((uint16_t)h), f16 = bd_f16_to_float((uint16_t)h);

		assert_true(isnan(bf16) == isnan(ref_decode((uint16_t)h, BD_BF16)));
		if (!isnan(bf16))
			assert_int_equal(as_bits(bf16), as_bits(ref_decode((uint16_t)h, BD_BF16)));
		assert_true(isnan(f16) == isnan(ref_decode((uint16_t)h, BD_F16)));
		if (!isnan(f16))
			assert_int_equal(as_bits(f16), as_bits(ref_decode((uint16_t)h, BD_F16)));
	}
}

/* Every number of 16 bits, every halfway point, and the floats next to them. */
static void test_encoding_around_all_halves(void **state)
{
	uint32_t h;
	int d;

	(void)state;
	for (d = 0; d < 2; d++) {
		for (h = 0; h < ALL_HALVES; h++) {
			float x = ref_decode((uint16_t)h, dtypes[d]);
			float next = ref_decode((uint16_t)(h + 1), dtypes[d]);
			float halfway = (float)(((double)x + (double)next) / 2);

			check_encode(x);
			check_encode(nextafterf(x, INFINITY));
			check_encode(nextafterf(x, -INFINITY));
			check_encode(halfway);
			check_encode(nextafterf(halfway, INFINITY));
			check_encode(nextafterf(halfway, -INFINITY));
		}
	}
}

static void test_encoding_many_floats(void **state)
{
	static const uint32_t special[] = {
		0, 1, 0x7fffff, 0x800000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fbfffff,
		0x7fc00000, 0x7fc00001, 0x7fffffff, 0x7f7f7fff, 0x7f7f8000, 0x477fefff, 0x477ff000,
		0x33000000, 0x33000001, 0x32ffffff, 0x387fffff, 0x38800000,
	};
	uint64_t x;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(special) / sizeof(*special); i++) {
		check_encode(as_float(special[i]));
		check_encode(as_float(special[i] | 0x80000000));
	}
	for (x = 0; x <= UINT32_MAX; x += 2053)
		check_encode(as_float((uint32_t)x));
}

/* --- Rebuilding ---------------------------------------------------------------------------- */

/* Compares rebuilding with the reference, also in place where that is allowed. `gap` bytes lie
 * between `out` and the inaccessible page. */
static void check_rebuild(enum bd_cpu cpu, const struct bd_sign_run *run, const uint8_t *base,
			  size_t gap)
{
	size_t size = run->count * size_of(run->out_dtype);
	size_t base_size = run->count * size_of(run->base_dtype), i;
	uint8_t *out = last(&out_end, size, gap), *want = malloc(size + 1);
	uint8_t *before = malloc(base_size + 1);
	bool in_place;

	assert_true(want && before);
	memcpy(before, base, base_size);
	ref_rebuild(run, want, base);
	for (in_place = false;; in_place = true) {
		memset(out - MARGIN, CANARY, size + MARGIN + gap);
		if (in_place)
			memcpy(out, base, size);
		bd_sign_rebuild_at(cpu, run, out, in_place ? out : base);
		for (i = 0; i < run->count && memcmp(out, want, size); i++) {
			size_t n = size_of(run->out_dtype);
			uint32_t got = 0, expected = 0;

			memcpy(&got, out + i * n, n);
			memcpy(&expected, want + i * n, n);
			if (got != expected)
				fail_msg("%s %s -> %s%s: element %zu of %zu (%u planes, %zu columns, first %zu, "
					 "bit %zu): base %a, got %x, not %x",
					 bd_cpu_name(cpu), bd_dtype_name(run->base_dtype),
					 bd_dtype_name(run->out_dtype), in_place ? " in place" : "",
					 i, (size_t)run->count, run->planes, (size_t)run->cols,
					 (size_t)run->first, (size_t)run->bit[0],
					 (double)ref_load(before, i, run->base_dtype), got, expected);
		}
		for (i = 0; i < MARGIN; i++)
			assert_int_equal((out - MARGIN)[i], CANARY);
		for (i = 0; i < gap; i++)
			assert_int_equal(out[size + i], CANARY);
		assert_memory_equal(base, before, base_size);
		if (in_place || size != base_size)
			break;
	}
	free(want);
	free(before);
}

/* Scales that take a sum to every interesting place. */
static const float scales[] = {
	0.0f, -0.0f, 1.0f, -1.5f, 0.001f, 0.01171875f, 3.1f, 65504.0f, 1e30f, 3.4e38f, -3.4e38f,
	1e-7f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f, 1e-39f, 0x1p-134f, 0x1p-149f, 1e-30f,
	INFINITY, -INFINITY, NAN,
};
#define SCALES (sizeof(scales) / sizeof(*scales))

static uint8_t *random_bits(unsigned plane, uint64_t bit, uint64_t count)
{
	size_t size = (bit + count + 7) / 8 + BD_SIGN_SLACK, i;
	uint8_t *p = last(&bits_end[plane], size, 0);

	for (i = 0; i < size; i++)
		p[i] = (uint8_t)rnd();
	return p;
}

/* All values of 16 bits as the base, to every dtype. */
static void test_rebuild_all_halves(void **state)
{
	enum bd_cpu cpu = level_of(state);
	struct bd_sign_run run = { .cols = ALL_HALVES, .count = ALL_HALVES, .planes = 1 };
	uint16_t *base = last(&base_end, 2 * ALL_HALVES, 0);
	float *col = last(&col_end[0], ALL_HALVES * sizeof(float), 0);
	float row;
	uint32_t h;
	size_t s;

	rng = 1;
	for (h = 0; h < ALL_HALVES; h++) {
		base[h] = (uint16_t)h;
		col[h] = 1;
	}
	run.row[0] = &row;
	run.col[0] = col;
	for (s = 0; s < SCALES * 6; s++) {
		row = scales[s / 6];
		run.bits[0] = random_bits(0, 0, ALL_HALVES);
		run.base_dtype = dtypes[s % 2];
		run.out_dtype = dtypes[s / 2 % 3];
		check_rebuild(cpu, &run, (uint8_t *)base, 0);
	}
}

/* Sums that lie halfway between two numbers of the dtype, or just beside that. */
static void test_rebuild_ties(void **state)
{
	enum bd_cpu cpu = level_of(state);
	struct bd_sign_run run = { .cols = ALL_HALVES, .count = ALL_HALVES, .planes = 1 };
	uint16_t *base = last(&base_end, 2 * ALL_HALVES, 0);
	float *col = last(&col_end[0], ALL_HALVES * sizeof(float), 0);
	static const float rows[] = { 1.0f, -1.0f, 0x1.000002p0f, 0x1.fffffep-1f, 1.5f };
	uint32_t h;
	size_t r;
	int d;

	rng = 2;
	for (d = 0; d < 2; d++) {
		run.base_dtype = run.out_dtype = dtypes[d];
		for (h = 0; h < ALL_HALVES; h++) {
			float x = ref_decode((uint16_t)h, dtypes[d]);
			float next = ref_decode((uint16_t)(h + 1), dtypes[d]);

			base[h] = (uint16_t)h;
			col[h] = isfinite(x) && isfinite(next) ? (next - x) / 2 : 0;
		}
		run.col[0] = col;
		for (r = 0; r < sizeof(rows) / sizeof(*rows); r++) {
			run.bits[0] = random_bits(0, 0, ALL_HALVES);
			run.row[0] = &rows[r];
			check_rebuild(cpu, &run, (uint8_t *)base, 0);
		}
	}
}

enum flavour { ORDINARY, ANY_BITS, GREAT, TINY, SPECIAL, FLAVOURS };

static float random_float(enum flavour flavour)
{
	switch (flavour) {
	case ANY_BITS:
		return as_float(rnd());
	case GREAT:
		return spread(10, 128);
	case TINY:
		return below(8) ? spread(-149, -10) : 0;
	case SPECIAL:
		return scales[below(SCALES)];
	default:
		return spread(-12, 0);
	}
}

static void random_elements(uint8_t *p, uint64_t count, enum bd_dtype dtype, enum flavour flavour)
{
	uint64_t i;

	for (i = 0; i < count; i++) {
		float f = random_float(flavour);
		uint16_t h = dtype == BD_F32 ? 0 : ref_encode(f, dtype);

		if (flavour == ANY_BITS)
			h = (uint16_t)rnd();
		if (dtype == BD_F32)
			memcpy(p + 4 * i, &f, 4);
		else
			memcpy(p + 2 * i, &h, 2);
	}
}

static void random_floats(float *p, uint64_t count, enum flavour flavour)
{
	uint64_t i;

	for (i = 0; i < count; i++)
		p[i] = random_float(flavour);
}

static uint64_t random_cols(void)
{
	static const uint16_t usual[] = { 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 4096 };

	return below(2) ? usual[below(sizeof(usual) / sizeof(*usual))] : 1 + below(300);
}

static void test_rebuild_random_runs(void **state)
{
	enum bd_cpu cpu = level_of(state);
	unsigned round, p;

	rng = 3;
	for (round = 0; round < 3000; round++) {
		struct bd_sign_run run = { .cols = random_cols() };
		enum flavour base_flavour = (enum flavour)below(FLAVOURS);
		enum flavour scale_flavour = (enum flavour)below(FLAVOURS);
		size_t gap = below(4);
		uint64_t rows;
		uint8_t *base;

		run.first = below((uint32_t)run.cols);
		run.count = below(4) ? below(3 * (uint32_t)run.cols + 100) : below(40);
		run.planes = below(2) ? 1 : 1 + below(BD_MAX_PLANES);
		run.base_dtype = dtypes[round % 3];
		run.out_dtype = dtypes[round / 3 % 3];
		rows = (run.first + run.count) / run.cols + 1;
		base = last(&base_end, run.count * size_of(run.base_dtype), gap);
		random_elements(base, run.count, run.base_dtype, base_flavour);
		for (p = 0; p < run.planes; p++) {
			float *row = last(&row_end[p], rows * sizeof(float), 0);
			float *col = last(&col_end[p], run.cols * sizeof(float), 0);

			random_floats(row, rows, scale_flavour);
			random_floats(col, run.cols, below(2) ? ORDINARY : scale_flavour);
			run.row[p] = row;
			run.col[p] = col;
			run.bit[p] = below(200);
			run.bits[p] = random_bits(p, run.bit[p], run.count);
		}
		check_rebuild(cpu, &run, base, below(4));
	}
}

/* Reading in pieces of any length gives what reading at once gives. */
static void test_rebuild_in_pieces(void **state)
{
	enum bd_cpu cpu = level_of(state);
	enum { ROWS = 40, COLS = 83, COUNT = ROWS * COLS };
	static uint16_t base[COUNT], whole[COUNT], pieces[COUNT];
	static float row[ROWS], col[COLS];
	struct bd_sign_run run = {
		.cols = COLS, .count = COUNT, .planes = 2, .base_dtype = BD_BF16, .out_dtype = BD_F16,
	};
	uint64_t done, n;
	unsigned p;

	rng = 4;
	random_elements((uint8_t *)base, COUNT, BD_BF16, ORDINARY);
	random_floats(row, ROWS, ORDINARY);
	random_floats(col, COLS, ORDINARY);
	for (p = 0; p < run.planes; p++) {
		run.bits[p] = random_bits(p, 0, COUNT);
		run.row[p] = row;
		run.col[p] = col;
	}
	bd_sign_rebuild_at(cpu, &run, whole, base);
	for (done = 0; done < COUNT; done += n) {
		n = 1 + below(200);
		if (n > COUNT - done)
			n = COUNT - done;
		run.first = done % COLS;
		run.count = n;
		for (p = 0; p < run.planes; p++) {
			run.bit[p] = done;
			run.row[p] = row + done / COLS;
		}
		bd_sign_rebuild_at(cpu, &run, pieces + done, base + done);
	}
	assert_memory_equal(pieces, whole, sizeof(whole));
}

/* An element that takes some care in rounding to BF16, and its result. */
static const struct rare {
	uint16_t base;
	float add;
	uint16_t out;
} rares[] = {
	{ 0x0000, 0.0f, 0x0000 },          { 0x3f80, -1.0f, 0x0000 },
	{ 0x0001, 0.0f, 0x0001 },          { 0x0001, 0x1p-134f, 0x0002 },
	{ 0x0000, 0x1p-134f, 0x0000 },     { 0x0000, 0x1.8p-134f, 0x0001 },
	{ 0x0080, -0x1p-127f, 0x0040 },    { 0x0080, -0x1p-149f, 0x0080 },
	{ 0x0100, -0x1.fep-126f, 0x0001 }, { 0x7f7f, 0x1p119f, 0x7f80 },
	{ 0x7f7f, 0x1.fff8p118f, 0x7f7f }, { 0x7f7f, 0x1.fffffep127f, 0x7f80 },
	{ 0x7f80, 1.0f, 0x7f80 },          { 0x7f80, -INFINITY, 0x7fc0 },
	{ 0x7fc1, 1.0f, 0x7fc0 },          { 0x7f81, 1.0f, 0x7fc0 },
	{ 0x3f80, NAN, 0x7fc0 },
};
#define RARES (sizeof(rares) / sizeof(*rares))

/* Fast code rounds BF16 a whole block at a time and may leave blocks with such elements to other
 * code: each of them alone at every place, with both signs, and then many together. */
static void test_rebuild_rare_results(void **state)
{
	enum bd_cpu cpu = level_of(state);
	enum { COLS = 3 * 64 + 40, MIXED = 2000 };
	static const float one = 1.0f;
	uint8_t *base = last(&base_end, 2 * COLS, 1); /* at no even address */
	float *col = last(&col_end[0], COLS * sizeof(*col), 0);
	struct bd_sign_run run = {
		.cols = COLS, .count = COLS, .planes = 1, .base_dtype = BD_BF16, .out_dtype = BD_BF16,
	};
	unsigned round, j;

	rng = 8;
	run.row[0] = &one;
	run.col[0] = col;
	for (round = 0; round < 2 * RARES * COLS + MIXED; round++) {
		bool mixed = round >= 2 * RARES * COLS;
		uint8_t *bits;

		run.bit[0] = below(16);
		run.bits[0] = bits = random_bits(0, run.bit[0], COLS);
		random_elements(base, COLS, BD_BF16, ORDINARY);
		random_floats(col, COLS, ORDINARY);
		for (j = 0; j < COLS; j++) {
			const struct rare *rare = &rares[mixed ? below(RARES) : round / 2 % RARES];
			bool minus = mixed ? below(2) : round % 2;
			uint64_t k = run.bit[0] + j;
			uint16_t h = (uint16_t)(rare->base | minus << 15), out;

			if (mixed ? below(8) : j != round / 2 / RARES)
				continue;
			memcpy(base + 2 * j, &h, 2);
			col[j] = rare->add;
			bits[k / 8] = (uint8_t)((bits[k / 8] & ~(1 << k % 8)) | !minus << k % 8);
			out = ref_encode(ref_decode(h, BD_BF16) + (minus ? -col[j] : col[j]), BD_BF16);
			assert_int_equal(out & 0x7fff, rare->out); /* the table says what it means */
		}
		check_rebuild(cpu, &run, base, below(4));
	}
}

/* --- Extraction ---------------------------------------------------------------------------- */

static double naive_fold(const double *lane)
{
	double a[8], b[4], c[2];
	int i;

	for (i = 0; i < 8; i++)
		a[i] = lane[i] + lane[i + 8];
	for (i = 0; i < 4; i++)
		b[i] = a[i] + a[i + 4];
	for (i = 0; i < 2; i++)
		c[i] = b[i] + b[i + 2];
	return c[0] + c[1];
}

/* Equal, or both not a number. */
static void same_double(double got, double want)
{
	if (isnan(want) ? !isnan(got) : memcmp(&got, &want, sizeof(got)) != 0)
		fail_msg("got %a, not %a", got, want);
}

/* Bits and every sum exactly as documented, for one call. */
static void check_extract(enum bd_cpu cpu, const uint8_t *fine, enum bd_dtype fine_dtype,
			  const uint8_t *base, enum bd_dtype base_dtype, uint64_t rows, uint64_t cols,
			  uint64_t bit)
{
	size_t bytes = (bit + rows * cols + 7) / 8;
	uint8_t *bits = last(&bits_end[0], bytes, 0), *want_bits = calloc(bytes + 1, 1);
	double *row_abs = last(&row_end[0], rows * sizeof(double), 0);
	float *col_abs = last(&col_end[0], cols * sizeof(float), 0);
	float *want_col = malloc(cols * sizeof(float));
	struct bd_sign_stats stats = { .row_abs = row_abs, .col_abs = col_abs };
	uint64_t i, j, k;

	assert_true(want_bits && want_col);
	for (k = 0; k < bit; k++)
		want_bits[k / 8] |= (uint8_t)(below(2) << k % 8);
	memcpy(bits, want_bits, bytes);
	for (j = 0; j < cols; j++)
		col_abs[j] = want_col[j] = (float)below(3);
	memset(row_abs, CANARY, rows * sizeof(double));

	bd_sign_extract_at(cpu, fine, fine_dtype, base, base_dtype, rows, cols, bits, bit, &stats);
	for (i = 0; i < rows; i++) {
		double abs[16] = { 0 };

		for (j = 0; j < cols; j++, k++) {
			volatile float d = ref_load(fine, i * cols + j, fine_dtype) -
					   ref_load(base, i * cols + j, base_dtype);
			double a = fabs((double)d);

			if (d > 0)
				want_bits[k / 8] |= (uint8_t)(1 << k % 8);
			abs[j % 16] += a;
			want_col[j] += (float)a;
		}
		same_double(row_abs[i], naive_fold(abs));
	}
	for (j = 0; j < cols; j++)
		same_double((double)col_abs[j], (double)want_col[j]);
	assert_memory_equal(bits, want_bits, bytes);
	free(want_bits);
	free(want_col);
}

static void test_extract_random_rows(void **state)
{
	enum bd_cpu cpu = level_of(state);
	unsigned round;

	rng = 5;
	for (round = 0; round < 2000; round++) {
		enum bd_dtype fine_dtype = dtypes[round % 3], base_dtype = dtypes[round / 3 % 3];
		enum flavour flavour = below(2) ? ORDINARY : (enum flavour)below(FLAVOURS);
		uint64_t cols = random_cols(), rows = below(5), count = rows * cols;
		uint8_t *fine = last(&out_end, count * size_of(fine_dtype), below(4));
		uint8_t *base = last(&base_end, count * size_of(base_dtype), below(4));

		random_elements(fine, count, fine_dtype, flavour);
		if (fine_dtype == base_dtype && below(4) == 0)
			memcpy(base, fine, count * size_of(base_dtype)); /* no difference at all */
		else
			random_elements(base, count, base_dtype, flavour);
		check_extract(cpu, fine, fine_dtype, base, base_dtype, rows, cols, below(100));
	}
}

/* A row that is not finite says so, whatever the others are. */
static void test_extract_not_finite(void **state)
{
	enum bd_cpu cpu = level_of(state);
	enum { COLS = 70 };
	static const float bad[] = { INFINITY, -INFINITY, NAN };
	static float fine[3 * COLS], base[3 * COLS], col_abs[COLS];
	uint8_t bits[3 * COLS / 8 + 1];
	double row_abs[3];
	unsigned b, j;

	rng = 6;
	for (b = 0; b < 3; b++) {
		for (j = 0; j < COLS; j++) {
			struct bd_sign_stats stats = { .row_abs = row_abs, .col_abs = col_abs };

			random_floats(fine, 3 * COLS, ORDINARY);
			random_floats(base, 3 * COLS, ORDINARY);
			(b % 2 ? fine : base)[COLS + j] = bad[b];
			memset(bits, 0, sizeof(bits));
			memset(col_abs, 0, sizeof(col_abs));
			bd_sign_extract_at(cpu, fine, BD_F32, base, BD_F32, 3, COLS, bits, 0, &stats);
			assert_true(isfinite(row_abs[0]));
			assert_false(isfinite(row_abs[1]));
			assert_true(isfinite(row_abs[2]));
			assert_false(isfinite(col_abs[j]));
		}
	}
}

/* Wide rows keep their accuracy. */
static void test_extract_accuracy(void **state)
{
	enum bd_cpu cpu = level_of(state);
	enum { COLS = 16384, ROWS = 4 };
	static uint8_t bits[ROWS * COLS / 8];
	static float col_abs[COLS];
	uint8_t *fine = last(&out_end, ROWS * COLS * 2, 0), *base = last(&base_end, ROWS * COLS * 2, 0);
	double row_abs[ROWS];
	struct bd_sign_stats stats = { .row_abs = row_abs, .col_abs = col_abs };
	unsigned i, j;

	rng = 7;
	random_elements(fine, ROWS * COLS, BD_BF16, ORDINARY);
	random_elements(base, ROWS * COLS, BD_BF16, ORDINARY);
	memset(bits, 0, sizeof(bits));
	memset(col_abs, 0, sizeof(col_abs));
	bd_sign_extract_at(cpu, fine, BD_BF16, base, BD_BF16, ROWS, COLS, bits, 0, &stats);
	for (i = 0; i < ROWS; i++) {
		long double abs = 0;

		for (j = 0; j < COLS; j++) {
			long double d = (long double)ref_load(fine, i * COLS + j, BD_BF16) -
					ref_load(base, i * COLS + j, BD_BF16);

			abs += fabsl(d);
		}
		assert_true(fabsl(row_abs[i] - abs) < 1e-7L * abs);
	}
}

#define LEVELS(test)                                                                              \
	{ #test ", scalar", test, NULL, NULL, &levels[BD_CPU_SCALAR] },                           \
	{ #test ", avx2", test, NULL, NULL, &levels[BD_CPU_AVX2] },                               \
	{ #test ", avx512", test, NULL, NULL, &levels[BD_CPU_AVX512] },                           \
	{ #test ", avx512bf16", test, NULL, NULL, &levels[BD_CPU_AVX512_BF16] }

int main(void)
{
	static enum bd_cpu levels[] = {
		BD_CPU_SCALAR, BD_CPU_AVX2, BD_CPU_AVX512, BD_CPU_AVX512_BF16,
	};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_environment_lowers_the_level), /* before anything asks */
		cmocka_unit_test(test_decoding_all_halves),
		cmocka_unit_test(test_encoding_around_all_halves),
		cmocka_unit_test(test_encoding_many_floats),
		LEVELS(test_rebuild_all_halves),
		LEVELS(test_rebuild_ties),
		LEVELS(test_rebuild_random_runs),
		LEVELS(test_rebuild_in_pieces),
		LEVELS(test_rebuild_rare_results),
		LEVELS(test_extract_random_rows),
		LEVELS(test_extract_not_finite),
		LEVELS(test_extract_accuracy),
	};

	unsetenv("BITDELTA_CPU"); /* all levels are wanted here */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
