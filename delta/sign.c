/* SPDX-License-Identifier: Apache-2.0 */
/* sign.c: sign encoding in plain C, which defines what every level computes, and the choice of
 * level. */
#include "sign_impl.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

/* x87 arithmetic would round twice. */
_Static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16, "binary32 is evaluated as binary32");

BD_INLINE uint32_t float_bits(float f)
{
	uint32_t x;

	memcpy(&x, &f, sizeof(x));
	return x;
}

BD_INLINE float float_of_bits(uint32_t x)
{
	float f;

	memcpy(&f, &x, sizeof(f));
	return f;
}

/* condition ? a : b, but never as a branch, which would keep compilers from vectorising. */
BD_INLINE uint32_t choose(bool condition, uint32_t a, uint32_t b)
{
	uint32_t mask = -(uint32_t)condition;

	return (a & mask) | (b & ~mask);
}

BD_INLINE float bf16_to_float(uint16_t h)
{
	return float_of_bits((uint32_t)h << 16);
}

BD_INLINE uint16_t bf16_from_float(float f)
{
	uint32_t x = float_bits(f);
	uint32_t rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;

	return f != f ? 0x7fc0 : (uint16_t)rounded;
}

BD_INLINE float f16_to_float(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16;
	uint32_t x = (uint32_t)(h & 0x7fff) << 13; /* exponent and mantissa where binary32 has them */
	uint32_t bias = 112u << 23;                /* 127 - 15 */
	uint32_t wide = x + bias + (x >= 0x7c00u << 13 ? bias : 0); /* exponent 31 becomes 255 */
	/* With exponent 113 a subnormal stands for 2^-14 + its value: no subnormal arithmetic, which
	 * takes a hundred cycles on many processors. */
	float subnormal = float_of_bits(x + bias + (1u << 23)) - 0x1p-14f;

	return float_of_bits(sign | choose(x < 1u << 23, float_bits(subnormal), wide));
}

BD_INLINE uint16_t f16_from_float(float f)
{
	uint32_t sign = float_bits(f) >> 16 & 0x8000;
	uint32_t x = float_bits(f) & 0x7fffffff;
	/* The unit in the last place of 0.5 is 2^-24, that of subnormal halves: the addition rounds. */
	uint32_t subnormal = float_bits(float_of_bits(x) + 0.5f) - float_bits(0.5f);
	uint32_t normal = (x - (112u << 23) + 0xfff + (x >> 13 & 1)) >> 13; /* 65520 and up: infinity */
	uint32_t h = choose(x < float_bits(0x1p-14f), subnormal, normal);

	h = sign | choose(x >= float_bits(0x1p16f), 0x7c00, h);
	return (uint16_t)choose(f != f, 0x7e00, h);
}

/* Element i of an array of `dtype` at any alignment. */
BD_INLINE float load(const uint8_t *p, uint64_t i, enum bd_dtype dtype)
{
	uint16_t h;

	if (dtype == BD_F32)
		return float_of_bits(bd_sign_load32(p + 4 * i));
	memcpy(&h, p + 2 * i, sizeof(h));
	return dtype == BD_BF16 ? bf16_to_float(h) : f16_to_float(h);
}

BD_INLINE void store(uint8_t *p, uint64_t i, enum bd_dtype dtype, float f)
{
	uint32_t x = f != f ? 0x7fc00000 : float_bits(f);
	uint16_t h = dtype == BD_BF16 ? bf16_from_float(f) : f16_from_float(f);

	if (dtype == BD_F32)
		memcpy(p + 4 * i, &x, sizeof(x));
	else
		memcpy(p + 2 * i, &h, sizeof(h));
}

/* Kernels take BD_SIGN_LANES elements at a time in loops of fixed length, which compilers turn into
 * the vector instructions that every processor of the architecture has. Only the last n of a row
 * may be fewer; zeros fill them up. */
BD_INLINE void load_block(float *x, const uint8_t *p, unsigned n, enum bd_dtype dtype)
{
	uint8_t raw[4 * BD_SIGN_LANES] = { 0 };
	unsigned i;

	memcpy(raw, p, n * bd_sign_size(dtype));
	for (i = 0; i < BD_SIGN_LANES; i++)
		x[i] = load(raw, i, dtype);
}

BD_INLINE void store_block(uint8_t *p, const float *x, unsigned n, enum bd_dtype dtype)
{
	uint8_t raw[4 * BD_SIGN_LANES];
	unsigned i;

	for (i = 0; i < BD_SIGN_LANES; i++)
		store(raw, i, dtype, x[i]);
	memcpy(p, raw, n * bd_sign_size(dtype));
}

BD_INLINE void rebuild_block(const struct bd_sign_span *span, uint64_t k, unsigned n,
			     enum bd_dtype base, enum bd_dtype out)
{
	/* A table, because few processors shift each element by a number of its own. */
	static const uint32_t select[BD_SIGN_LANES] = {
		1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
		1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
	};
	float acc[BD_SIGN_LANES];
	unsigned p, i;

	load_block(acc, span->base + k * bd_sign_size(base), n, base);
	for (p = 0; p < span->planes; p++) {
		const struct bd_sign_plane *plane = &span->plane[p];
		uint32_t bits = bd_sign_load32(plane->bits + k / 8) >> plane->shift;
		float row = plane->row, col[BD_SIGN_LANES] = { 0 };

		memcpy(col, plane->col + k, n * sizeof(*col));
		for (i = 0; i < BD_SIGN_LANES; i++) {
			uint32_t minus = (bits & select[i]) == 0 ? 0x80000000 : 0;

			acc[i] += float_of_bits(float_bits(row * col[i]) ^ minus);
		}
	}
	store_block(span->out + k * bd_sign_size(out), acc, n, out);
}

BD_INLINE void rebuild_span(const struct bd_sign_span *span, enum bd_dtype base, enum bd_dtype out)
{
	const struct bd_sign_span s = *span; /* a copy, since stores to `out` might change *span */
	unsigned rest = s.count % BD_SIGN_LANES;
	uint64_t k;

	for (k = 0; k < s.count - rest; k += BD_SIGN_LANES)
		rebuild_block(&s, k, BD_SIGN_LANES, base, out);
	if (rest)
		rebuild_block(&s, k, rest, base, out);
}

BD_INLINE void extract_block(struct bd_sign_row *row, double *abs, uint64_t k,
			     unsigned n, enum bd_dtype fine, enum bd_dtype base)
{
	float f[BD_SIGN_LANES], b[BD_SIGN_LANES], col[BD_SIGN_LANES] = { 0 };
	uint32_t plus = 0;
	unsigned i;

	load_block(f, row->fine + k * bd_sign_size(fine), n, fine);
	load_block(b, row->base + k * bd_sign_size(base), n, base);
	memcpy(col, row->col_abs + k, n * sizeof(*col));
	for (i = 0; i < BD_SIGN_LANES; i++) {
		float d = f[i] - b[i], a = fabsf(d);

		abs[i] += (double)a;
		col[i] += a;
		plus |= (uint32_t)(d > 0) << i;
	}
	memcpy(row->col_abs + k, col, n * sizeof(*col));
	bd_sign_put(&row->writer, plus, n);
}

BD_INLINE void extract_row(struct bd_sign_row *row, enum bd_dtype fine, enum bd_dtype base)
{
	double abs[BD_SIGN_LANES] = { 0 };
	unsigned rest = row->cols % BD_SIGN_LANES;
	uint64_t k;

	for (k = 0; k < row->cols - rest; k += BD_SIGN_LANES)
		extract_block(row, abs, k, BD_SIGN_LANES, fine, base);
	if (rest)
		extract_block(row, abs, k, rest, fine, base);
	row->abs = bd_sign_fold(abs);
}

#define BD_SIGN_TARGET
BD_SIGN_DEFINE_LEVEL(bd_sign_scalar);

float bd_bf16_to_float(uint16_t h)
{
	return bf16_to_float(h);
}

float bd_f16_to_float(uint16_t h)
{
	return f16_to_float(h);
}

uint16_t bd_bf16_from_float(float f)
{
	return bf16_from_float(f);
}

uint16_t bd_f16_from_float(float f)
{
	return f16_from_float(f);
}

float bd_sign_element(const void *data, uint64_t index, enum bd_dtype dtype)
{
	return load(data, index, dtype);
}

static const struct bd_sign_level *const levels[BD_CPUS] = {
	[BD_CPU_SCALAR] = &bd_sign_scalar,
#ifdef __x86_64__
	[BD_CPU_AVX2] = &bd_sign_avx2,
	[BD_CPU_AVX512] = &bd_sign_avx512,
	[BD_CPU_AVX512_BF16] = &bd_sign_avx512,
#endif
};

static const char *const names[BD_CPUS] = {
	[BD_CPU_SCALAR] = "scalar",
	[BD_CPU_AVX2] = "avx2",
	[BD_CPU_AVX512] = "avx512",
	[BD_CPU_AVX512_BF16] = "avx512bf16",
};

static enum bd_cpu detect(void)
{
#ifdef __x86_64__
	unsigned eax, ebx, ecx = 0, edx;

	/* Not every compiler's __builtin_cpu_supports knows "f16c". */
	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_F16C) ||
	    !__builtin_cpu_supports("avx2"))
		return BD_CPU_SCALAR;
	if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
	    !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
		return BD_CPU_AVX2;
	if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi"))
		return BD_CPU_AVX512;
	return BD_CPU_AVX512_BF16;
#else
	return BD_CPU_SCALAR;
#endif
}

enum bd_cpu bd_cpu_best(void)
{
	/* Threads that come here at the same time find the same answer. */
	static atomic_int known = -1;
	int best = atomic_load_explicit(&known, memory_order_relaxed);
	const char *wanted;
	int cpu;

	if (best >= 0)
		return (enum bd_cpu)best;
	best = (int)detect();
	wanted = getenv("BITDELTA_CPU");
	for (cpu = 0; wanted && cpu < best; cpu++)
		if (!strcmp(wanted, names[cpu]))
			best = cpu;
	atomic_store_explicit(&known, best, memory_order_relaxed);
	return (enum bd_cpu)best;
}

const char *bd_cpu_name(enum bd_cpu cpu)
{
	return names[cpu];
}

/* The kernel for a run. */
static void (*kernel_for(enum bd_cpu cpu, const struct bd_sign_run *run))(const struct bd_sign_span *)
{
#ifdef __x86_64__
	if (cpu == BD_CPU_AVX512_BF16 && run->planes == 1 && run->base_dtype == BD_BF16 &&
	    run->out_dtype == BD_BF16)
		return bd_sign_rebuild_bf16;
#endif
	return levels[cpu]->rebuild[run->base_dtype][run->out_dtype];
}

void bd_sign_rebuild_at(enum bd_cpu cpu, const struct bd_sign_run *run, void *out,
			const void *base)
{
	void (*rebuild)(const struct bd_sign_span *) = kernel_for(cpu, run);
	struct bd_sign_span span = { .base = base, .out = out, .planes = run->planes };
	uint64_t done = 0, row = 0, column = run->first;
	unsigned p;

	for (; done < run->count; done += span.count, row++, column = 0) {
		span.count = run->cols - column;
		if (span.count > run->count - done)
			span.count = run->count - done;
		for (p = 0; p < run->planes; p++) {
			uint64_t k = run->bit[p] + done;

			span.plane[p] = (struct bd_sign_plane){
				.bits = run->bits[p] + k / 8,
				.shift = k % 8,
				.row = run->row[p][row],
				.col = run->col[p] + column,
			};
		}
		rebuild(&span);
		span.base += span.count * bd_sign_size(run->base_dtype);
		span.out += span.count * bd_sign_size(run->out_dtype);
	}
}

void bd_sign_rebuild(const struct bd_sign_run *run, void *out, const void *base)
{
	bd_sign_rebuild_at(bd_cpu_best(), run, out, base);
}

void bd_sign_extract_at(enum bd_cpu cpu, const void *fine, enum bd_dtype fine_dtype,
			const void *base, enum bd_dtype base_dtype, uint64_t rows, uint64_t cols,
			uint8_t *bits, uint64_t bit, struct bd_sign_stats *stats)
{
	void (*extract)(struct bd_sign_row *) = levels[cpu]->extract[fine_dtype][base_dtype];
	struct bd_sign_row row = {
		.fine = fine,
		.base = base,
		.cols = cols,
		.col_abs = stats->col_abs,
		.writer = { .next = bits + bit / 8, .fill = bit % 8 },
	};
	unsigned left;
	uint64_t i;

	for (i = 0; i < rows; i++) {
		extract(&row);
		stats->row_abs[i] = row.abs;
		row.fine += cols * bd_sign_size(fine_dtype);
		row.base += cols * bd_sign_size(base_dtype);
	}
	for (left = row.writer.fill; left > 0; left -= left < 8 ? left : 8) {
		*row.writer.next++ |= (uint8_t)row.writer.pending;
		row.writer.pending >>= 8;
	}
}

void bd_sign_extract(const void *fine, enum bd_dtype fine_dtype, const void *base,
		     enum bd_dtype base_dtype, uint64_t rows, uint64_t cols, uint8_t *bits,
		     uint64_t bit, struct bd_sign_stats *stats)
{
	bd_sign_extract_at(bd_cpu_best(), fine, fine_dtype, base, base_dtype, rows, cols, bits, bit,
			   stats);
}
