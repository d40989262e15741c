/* SPDX-License-Identifier: Apache-2.0 */
/* test_ops.c: every operation of the C reference, in float and in double, against formulas that
 * share no code with it, and every backward operation against finite differences.
 *
 * Tests give and take doubles; those that go in are exact in float, so that both precisions are
 * held to the same formula. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops.h"
#include "ops_cpu.h"
#include "sign.h"

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* What the test at hand runs on. */
static struct bdx_ops *ops;

static void open_ops(enum bd_dtype real, unsigned threads)
{
	struct bd_error err;

	if (bdx_ops_cpu_open(&ops, real, threads, &err))
		fail_msg("%s", err.text);
}

/* Nothing failed on the way. */
static void close_ops(void)
{
	struct bd_error err;

	if (ops->finish(ops, &err))
		fail_msg("%s", err.text);
	bdx_ops_close(ops);
	ops = NULL;
}

static int open_float(void **state)
{
	(void)state;
	open_ops(BD_F32, 2);
	return 0;
}

static int open_double(void **state)
{
	(void)state;
	open_ops(BD_F64, 2);
	return 0;
}

static int close_after(void **state)
{
	(void)state;
	close_ops();
	return 0;
}

/* --- Numbers ------------------------------------------------------------------------------- */

static uint64_t rng;

static uint32_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 16);
}

/* In -scale .. scale, exact in float. */
static double *numbers(uint64_t n, double scale)
{
	double *x = malloc((n ? n : 1) * sizeof(*x));
	uint64_t i;

	assert_non_null(x);
	for (i = 0; i < n; i++)
		x[i] = (double)(float)(scale * ((double)rnd() * 0x1p-31 - 1));
	return x;
}

static double *zeros(uint64_t n)
{
	double *x = calloc(n ? n : 1, sizeof(*x));

	assert_non_null(x);
	return x;
}

static double *copy_of(const double *x, uint64_t n)
{
	return memcpy(zeros(n), x, n * sizeof(*x));
}

static void *room(size_t bytes)
{
	struct bd_error err;
	void *memory = ops->alloc(ops, bytes, &err);

	if (!memory)
		fail_msg("%s", err.text);
	return memory;
}

/* Bytes, in the backend. */
static void *put_bytes(const void *host, size_t bytes)
{
	void *memory = room(bytes);

	ops->upload(ops, memory, host, bytes);
	return memory;
}

/* Reals (or operands, which are the same here) in the backend. */
static void *put(const double *x, uint64_t n)
{
	float *narrow = malloc((n ? n : 1) * sizeof(*narrow));
	void *memory;
	uint64_t i;

	assert_non_null(narrow);
	for (i = 0; i < n; i++)
		narrow[i] = (float)x[i];
	memory = ops->real == BD_F64 ? put_bytes(x, n * sizeof(*x))
		: put_bytes(narrow, n * sizeof(*narrow));
	free(narrow);
	return memory;
}

/* And out of it; frees. */
static double *take(void *memory, uint64_t n)
{
	double *x = zeros(n);
	float *narrow = malloc((n ? n : 1) * sizeof(*narrow));
	uint64_t i;

	assert_non_null(narrow);
	if (ops->real == BD_F64) {
		ops->download(ops, x, memory, n * sizeof(*x));
	} else {
		ops->download(ops, narrow, memory, n * sizeof(*narrow));
		for (i = 0; i < n; i++)
			x[i] = (double)narrow[i];
	}
	free(narrow);
	ops->free(ops, memory);
	return x;
}

static void check_near(const char *what, const double *got, const double *want, uint64_t n,
		       double tolerance)
{
	double size = 0;
	uint64_t i;

	for (i = 0; i < n; i++)
		size = fmax(size, fabs(want[i]));
	for (i = 0; i < n; i++)
		if (!(fabs(got[i] - want[i]) <= tolerance * size))
			fail_msg("%s, element %zu of %zu: %.17g, not %.17g (largest %g, %s)", what,
				 (size_t)i, (size_t)n, got[i], want[i], size, ops->name);
}

/* To the precision of the backend. Frees `got` and `want`. */
static void check(const char *what, double *got, double *want, uint64_t n)
{
	check_near(what, got, want, n, ops->real == BD_F64 ? 1e-12 : 1e-6);
	free(got);
	free(want);
}

/* gradient: what a backward operation says of the derivative of loss(context) with respect to
 * x[n]; no more than about 30 elements are looked at. */
static void check_gradient(const char *what, double (*loss)(const void *context),
			   const void *context, double *x, const double *gradient, uint64_t n)
{
	const double step = 1e-5;
	uint64_t stride = n / 30 + 1, i;
	double size = 0;

	assert_int_equal(ops->real, BD_F64);
	for (i = 0; i < n; i++)
		size = fmax(size, fabs(gradient[i]));
	for (i = stride > 1 ? rnd() % stride : 0; i < n; i += stride) {
		double middle = x[i], above, below;

		x[i] = middle + step;
		above = loss(context);
		x[i] = middle - step;
		below = loss(context);
		x[i] = middle;
		if (!(fabs((above - below) / (2 * step) - gradient[i]) <= 1e-6 * size))
			fail_msg("%s, element %zu of %zu: %.12g, by differences %.12g", what,
				 (size_t)i, (size_t)n, gradient[i], (above - below) / (2 * step));
	}
}

static double dot(const double *a, const double *b, uint64_t n)
{
	double sum = 0;
	uint64_t i;

	for (i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/* --- Memory -------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
	uint8_t bytes[1000], back[1000] = { 0 };
	size_t before = ops->peak(ops), i;
	uint8_t *a = room(1000), *b = room(5000000);

	(void)state;
	assert_int_equal((uintptr_t)a % 256, 0);
	assert_int_equal((uintptr_t)b % 256, 0);
	assert_true(ops->peak(ops) >= before + 5001000);
	assert_true(ops->available(ops) > 5000000);
	ops->download(ops, bytes, a, 1000);
	assert_memory_equal(bytes, back, 1000); /* zeros */
	for (i = 0; i < 1000; i++)
		bytes[i] = (uint8_t)rnd();
	ops->upload(ops, a, bytes, 1000);
	ops->copy(ops, b, a, 1000);
	ops->download(ops, back, b, 1000);
	assert_memory_equal(bytes, back, 1000);
	ops->zero(ops, a, 999);
	ops->download(ops, back, a, 1000);
	assert_int_equal(back[998], 0);
	assert_int_equal(back[999], bytes[999]);
	ops->free(ops, a);
	ops->free(ops, b);
	ops->free(ops, NULL);
	a = ops->host_alloc(ops, 1 << 20);
	assert_non_null(a);
	memset(a, 1, 1 << 20);
	ops->host_free(ops, a);
}

static void test_too_much_memory(void **state)
{
	static const size_t sizes[] = { (size_t)1 << 50, SIZE_MAX, SIZE_MAX - 300 };
	struct bd_error err = { 0 };
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(sizes); i++) {
		assert_null(ops->alloc(ops, sizes[i], &err));
		assert_int_equal(err.code, -ENOMEM);
		assert_non_null(strstr(err.text, "MiB wanted"));
		assert_null(ops->alloc(ops, sizes[i], NULL));
	}
	assert_int_equal(ops->finish(ops, &err), 0); /* the caller knows */
}

/* What an operation itself cannot get is remembered. */
static void test_failure_is_remembered(void **state)
{
	struct bd_error err = { 0 };
	uint8_t byte = 7, *memory;

	(void)state;
	open_ops(BD_F32, 2);
	memory = put_bytes(&byte, 1);
	ops->compare(ops, NULL, NULL, NULL, 0, NULL, 0, NULL, 1, (uint64_t)1 << 50, 1, 1, 1);
	ops->zero(ops, memory, 1);
	assert_int_equal(*memory, 7);
	assert_int_equal(ops->finish(ops, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "MiB wanted"));
	assert_null(ops->alloc(ops, 1, &err));
	assert_int_equal(err.code, -EIO);
	ops->free(ops, memory);
	bdx_ops_close(ops);
	ops = NULL;
}

static void *upload_some(void *target)
{
	uint8_t bytes[4096];

	memset(bytes, 5, sizeof(bytes));
	ops->upload(ops, target, bytes, sizeof(bytes));
	return NULL;
}

static void test_upload_from_threads(void **state)
{
	uint8_t *memory = room(4 * 4096), back[4 * 4096];
	pthread_t threads[4];
	size_t i;

	(void)state;
	for (i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, upload_some, memory + 4096 * i),
				 0);
	for (i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	ops->download(ops, back, memory, sizeof(back));
	for (i = 0; i < sizeof(back); i++)
		assert_int_equal(back[i], 5);
	ops->free(ops, memory);
}

static void test_convert(void **state)
{
	/* Some are just above halfway between two numbers of BF16 or F16: rounding to float in
	 * between would lose that. */
	const double x[] = { 1, -0.5, 1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-11 + 0x1p-40, 1e-50, 1e300,
			     -1 - 0x1p-8 - 0x1p-40, 1 + 0x1p-8, 0x1p-24 };
	const uint16_t bf16[] = { 0x3f80, 0xbf00, 0x3f81, 0x3f80, 0, 0x7f80, 0xbf81, 0x3f80,
				  0x3380 };
	const uint16_t f16[] = { 0x3c00, 0xb800, 0x3c04, 0x3c01, 0, 0x7c00, 0xbc04, 0x3c04, 1 };
	enum { N = COUNT(x) };
	void *wide = put_bytes(x, sizeof(x)), *out = room(sizeof(x));
	uint16_t halves[N];
	float floats[N];
	double doubles[N];
	size_t i;

	(void)state;
	ops->convert(ops, out, BD_BF16, wide, BD_F64, N);
	ops->download(ops, halves, out, sizeof(halves));
	assert_memory_equal(halves, bf16, sizeof(bf16));
	ops->convert(ops, wide, BD_F32, out, BD_BF16, N);
	ops->download(ops, floats, wide, sizeof(floats));
	for (i = 0; i < N; i++)
		assert_true(floats[i] == bd_bf16_to_float(bf16[i]));
	ops->convert(ops, out, BD_F64, wide, BD_F32, N);
	ops->download(ops, doubles, out, sizeof(doubles));
	for (i = 0; i < N; i++)
		assert_true(doubles[i] == (double)floats[i]);
	ops->upload(ops, wide, x, sizeof(x));
	ops->convert(ops, out, BD_F16, wide, BD_F64, N);
	ops->download(ops, halves, out, sizeof(halves));
	assert_memory_equal(halves, f16, sizeof(f16));
	ops->convert(ops, wide, BD_F16, out, BD_F16, N);
	ops->convert(ops, out, BD_F64, wide, BD_F16, N);
	ops->download(ops, doubles, out, sizeof(doubles));
	for (i = 0; i < N; i++)
		assert_true(doubles[i] == (double)bd_f16_to_float(f16[i]));
	ops->upload(ops, wide, x, sizeof(x));
	ops->convert(ops, out, BD_F32, wide, BD_F64, N);
	ops->download(ops, floats, out, sizeof(floats));
	for (i = 0; i < N; i++)
		assert_true(floats[i] == (float)x[i]);
	ops->free(ops, wide);
	ops->free(ops, out);
}

/* --- Products ------------------------------------------------------------------------------ */

/* `gap`: elements between the rows of all three. */
static void check_gemm(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
		       uint64_t gap, double alpha, double beta)
{
	uint64_t lda = (transpose_a ? m : k) + gap, ldb = (transpose_b ? k : n) + gap;
	uint64_t size_a = (transpose_a ? k : m) * lda, size_b = (transpose_b ? n : k) * ldb;
	uint64_t ldc = n + gap, i, j, l;
	double *a = numbers(size_a, 1), *b = numbers(size_b, 1), *c = numbers(m * ldc, 1);
	double *want = copy_of(c, m * ldc);
	void *at_a = put(a, size_a), *at_b = put(b, size_b), *at_c;

	for (i = 0; i < m; i++)
		for (j = 0; j < n; j++) {
			double sum = 0;

			for (l = 0; l < k; l++)
				sum += a[transpose_a ? l * lda + i : i * lda + l] *
					b[transpose_b ? j * ldb + l : l * ldb + j];
			want[i * ldc + j] = alpha * sum + beta * c[i * ldc + j];
			if (beta == 0)
				c[i * ldc + j] = NAN;
		}
	at_c = put(c, m * ldc);
	ops->gemm(ops, transpose_a, transpose_b, m, n, k, alpha, at_a, lda, at_b, ldb, beta, at_c,
		  BDX_REAL, ldc);
	ops->free(ops, at_a);
	ops->free(ops, at_b);
	check("gemm", take(at_c, m * ldc), want, m * ldc);
	free(a);
	free(b);
	free(c);
}

static void check_gemms(void)
{
	static const uint64_t shapes[][3] = {
		{ 1, 1, 1 }, { 7, 5, 3 }, { 1, 67, 130 }, { 65, 1, 129 }, { 33, 70, 200 },
		{ 260, 520, 5 }, { 3, 4, 0 }, { 0, 4, 3 },
	};
	size_t s;
	unsigned transposed;

	for (s = 0; s < COUNT(shapes); s++)
		for (transposed = 0; transposed < 4; transposed++) {
			const uint64_t *shape = shapes[s];

			check_gemm(transposed & 1, transposed & 2, shape[0], shape[1], shape[2], 1,
				   1, 0);
			check_gemm(transposed & 1, transposed & 2, shape[0], shape[1], shape[2], 3,
				   -0.75, transposed == 3 ? 1 : 0.5);
		}
}

static void test_gemm(void **state)
{
	(void)state;
	check_gemms();
}

static void without_blas(enum bd_dtype real)
{
	setenv("BITDELTA_BLAS", "0", 1);
	open_ops(real, 2);
	unsetenv("BITDELTA_BLAS");
	assert_non_null(strstr(ops->name, "no OpenBLAS"));
}

static void test_gemm_without_blas(void **state)
{
	(void)state;
	without_blas(BD_F32);
	check_gemms();
	close_ops();
	without_blas(BD_F64);
	check_gemms();
	close_ops();
}

/* --- Sign-coded weights -------------------------------------------------------------------- */

static const enum bd_dtype weight_dtypes[] = { BD_BF16, BD_F16, BD_F32 };

/* A sign-coded matrix on the host. */
struct coded {
	uint64_t rows, cols;
	enum bd_dtype base_dtype, out_dtype;
	double *base, *row, *col; /* base: what base_bytes means */
	uint8_t *base_bytes, *bits;
};

static size_t size_of(enum bd_dtype dtype)
{
	return bd_dtype_bits(dtype) / 8;
}

static size_t bits_size(const struct coded *c)
{
	return (c->rows * c->cols + 7) / 8;
}

static struct coded coded(uint64_t rows, uint64_t cols, enum bd_dtype base_dtype,
			  enum bd_dtype out_dtype)
{
	struct coded c = {
		.rows = rows, .cols = cols, .base_dtype = base_dtype, .out_dtype = out_dtype,
	};
	uint64_t i, n = rows * cols;

	c.base = numbers(n, 0.1);
	c.row = numbers(rows, 0.01);
	c.col = numbers(cols, 1);
	c.base_bytes = malloc(4 * n);
	c.bits = calloc(1, bits_size(&c) + BD_SIGN_SLACK);
	assert_true(c.base_bytes && c.bits);
	for (i = 0; i < n; i++) {
		float f = (float)c.base[i];
		uint16_t h = base_dtype == BD_BF16 ? bd_bf16_from_float(f) : bd_f16_from_float(f);

		if (base_dtype == BD_F32) {
			memcpy(c.base_bytes + 4 * i, &f, 4);
			continue;
		}
		memcpy(c.base_bytes + 2 * i, &h, 2);
		c.base[i] = (double)(base_dtype == BD_BF16 ? bd_bf16_to_float(h)
				     : bd_f16_to_float(h));
	}
	for (i = 0; i < bits_size(&c); i++)
		c.bits[i] = (uint8_t)rnd();
	return c;
}

static void free_coded(struct coded *c)
{
	free(c->base);
	free(c->row);
	free(c->col);
	free(c->base_bytes);
	free(c->bits);
}

static double sign_of(const struct coded *c, uint64_t i)
{
	return c->bits[i / 8] >> i % 8 & 1 ? 1 : -1;
}

static struct bdx_signed put_coded(const struct coded *c)
{
	return (struct bdx_signed){
		.base = put_bytes(c->base_bytes, c->rows * c->cols * size_of(c->base_dtype)),
		.bits = put_bytes(c->bits, bits_size(c)), .base_dtype = c->base_dtype,
		.out_dtype = c->out_dtype, .rows = c->rows, .cols = c->cols,
		.row = put(c->row, c->rows), .col = put(c->col, c->cols),
	};
}

static void free_signed(struct bdx_signed *w)
{
	ops->free(ops, (void *)w->base);
	ops->free(ops, (void *)w->bits);
	ops->free(ops, (void *)w->row);
	ops->free(ops, (void *)w->col);
}

static double *rebuilt(const struct coded *c)
{
	struct bdx_signed w = put_coded(c);
	void *weight = room(c->rows * c->cols * bdx_operand_size(ops));

	ops->rebuild(ops, &w, weight);
	free_signed(&w);
	return take(weight, c->rows * c->cols);
}

/* What the filesystem shows, in double. */
static double *shown(const struct coded *c)
{
	uint64_t n = c->rows * c->cols, i;
	float *row = malloc(c->rows * sizeof(*row)), *col = malloc(c->cols * sizeof(*col));
	uint8_t *out = malloc(4 * n);
	double *x = zeros(n);
	struct bd_sign_run run = {
		.cols = c->cols, .count = n, .planes = 1, .base_dtype = c->base_dtype,
		.out_dtype = c->out_dtype, .bits = { c->bits }, .row = { row }, .col = { col },
	};

	assert_true(row && col && out);
	for (i = 0; i < c->rows; i++)
		row[i] = (float)c->row[i];
	for (i = 0; i < c->cols; i++)
		col[i] = (float)c->col[i];
	bd_sign_rebuild_at(BD_CPU_SCALAR, &run, out, c->base_bytes);
	for (i = 0; i < n; i++) {
		uint16_t h;
		float f;

		memcpy(&h, out + 2 * i, 2);
		if (c->out_dtype == BD_F32)
			memcpy(&f, out + 4 * i, 4);
		else
			f = c->out_dtype == BD_BF16 ? bd_bf16_to_float(h) : bd_f16_to_float(h);
		x[i] = (double)f;
	}
	free(row);
	free(col);
	free(out);
	return x;
}

static void test_rebuild(void **state)
{
	static const uint64_t shapes[][2] = { { 5, 13 }, { 1, 1 }, { 70, 1001 } };
	size_t s, i;
	unsigned d;

	(void)state;
	for (s = 0; s < COUNT(shapes); s++)
		for (d = 0; d < 9; d++) {
			struct coded c = coded(shapes[s][0], shapes[s][1], weight_dtypes[d % 3],
					       weight_dtypes[d / 3]);
			uint64_t n = c.rows * c.cols;
			double *got = rebuilt(&c), *want = shown(&c);

			assert_int_equal(ops->rounds, ops->real == BD_F32);
			for (i = 0; !ops->rounds && i < n; i++)
				want[i] = c.base[i] + sign_of(&c, i) * (c.row[i / c.cols] *
									c.col[i % c.cols]);
			assert_memory_equal(got, want, n * sizeof(*got));
			free(got);
			free(want);
			free_coded(&c);
		}
}

static void scale_gradients(const struct coded *c, const double *gradient, double **row,
			    double **col)
{
	struct bdx_signed w = put_coded(c);
	void *at_gradient = put(gradient, c->rows * c->cols);
	void *at_row = put(*row, c->rows), *at_col = put(*col, c->cols);

	ops->scale_gradient(ops, &w, at_gradient, at_row, at_col);
	free_signed(&w);
	ops->free(ops, at_gradient);
	free(*row);
	free(*col);
	*row = take(at_row, c->rows);
	*col = take(at_col, c->cols);
}

static void test_scale_gradient(void **state)
{
	static const uint64_t shapes[][2] = { { 5, 13 }, { 1, 1 }, { 3, 64 }, { 200, 401 } };
	size_t s, i;

	(void)state;
	for (s = 0; s < COUNT(shapes); s++) {
		struct coded c = coded(shapes[s][0], shapes[s][1], BD_BF16, BD_BF16);
		double *gradient = numbers(c.rows * c.cols, 1);
		/* There is something already, which is added to. */
		double *row = numbers(c.rows, 1), *col = numbers(c.cols, 1);
		double *want_row = copy_of(row, c.rows), *want_col = copy_of(col, c.cols);

		for (i = 0; i < c.rows * c.cols; i++) {
			double g = gradient[i] * sign_of(&c, i);

			want_row[i / c.cols] += g * c.col[i % c.cols];
			want_col[i % c.cols] += g * c.row[i / c.cols];
		}
		scale_gradients(&c, gradient, &row, &col);
		check("row gradient", row, want_row, c.rows);
		check("column gradient", col, want_col, c.cols);
		free(gradient);
		free_coded(&c);
	}
}

struct rebuild_loss {
	struct coded coded;
	double *gradient;
};

static double rebuild_loss(const void *context)
{
	const struct rebuild_loss *l = context;
	double *weight = rebuilt(&l->coded);
	double loss = dot(weight, l->gradient, l->coded.rows * l->coded.cols);

	free(weight);
	return loss;
}

static void test_scale_gradient_by_differences(void **state)
{
	struct rebuild_loss l = { .coded = coded(7, 19, BD_F32, BD_F32) };
	double *row = zeros(7), *col = zeros(19);

	(void)state;
	l.gradient = numbers(7 * 19, 1);
	scale_gradients(&l.coded, l.gradient, &row, &col);
	check_gradient("row scales", rebuild_loss, &l, l.coded.row, row, 7);
	check_gradient("column scales", rebuild_loss, &l, l.coded.col, col, 19);
	free(row);
	free(col);
	free(l.gradient);
	free_coded(&l.coded);
}

/* --- Embedding, norms, biases, positions --------------------------------------------------- */

static void test_embed(void **state)
{
	static const int32_t tokens[] = { 4, 0, 10, 10, 3 };
	double *table = numbers(11 * 7, 1), *want = zeros(5 * 7);
	void *at_table = put(table, 11 * 7), *at_tokens = put_bytes(tokens, sizeof(tokens));
	void *out = room(5 * 7 * bdx_real_size(ops));
	size_t i;

	(void)state;
	for (i = 0; i < 5 * 7; i++)
		want[i] = table[(size_t)tokens[i / 7] * 7 + i % 7];
	ops->embed(ops, out, at_table, at_tokens, 5, 7);
	ops->free(ops, at_table);
	ops->free(ops, at_tokens);
	check("embed", take(out, 5 * 7), want, 5 * 7);
	free(table);
}

/* A norm with its inputs and the gradient of its output, on the host. */
struct norm_case {
	enum bdx_norm kind;
	uint64_t rows, width, group, stride;
	bool bias;
	double *in, *weight, *bias_values, *out_gradient;
	uint64_t size; /* of in, out and their gradients */
};

#define EPSILON 1e-3

static struct norm_case norm_case(unsigned number)
{
	static const struct norm_case cases[] = {
		{ .rows = 5, .width = 9, .group = 1, .stride = 9 },
		{ .rows = 4, .width = 16, .group = 1, .stride = 21, .bias = true },
		{ .rows = 12, .width = 7, .group = 3, .stride = 40 },
		{ .rows = 500, .width = 35, .group = 1, .stride = 35, .bias = true },
	};
	struct norm_case n = cases[number / 2 % COUNT(cases)];

	n.kind = number % 2 ? BDX_LAYER_NORM : BDX_RMS_NORM;
	n.size = (n.rows / n.group) * n.stride;
	n.in = numbers(n.size, 2);
	n.weight = numbers(n.width, 1);
	n.bias_values = numbers(n.width, 1);
	n.out_gradient = numbers(n.size, 1);
	return n;
}

#define NORM_CASES 8u

static void free_norm_case(struct norm_case *n)
{
	free(n->in);
	free(n->weight);
	free(n->bias_values);
	free(n->out_gradient);
}

/* out (with elements between the rows as in `in`), statistics (if not NULL). */
static double *run_norm(const struct norm_case *n, bool in_place, double **statistics)
{
	void *in = put(n->in, n->size), *out = in_place ? in : put(n->in, n->size);
	void *weight = put(n->weight, n->width), *bias = put(n->bias_values, n->width);
	void *at_statistics = room(2 * n->rows * bdx_real_size(ops));
	double *found;

	ops->norm(ops, n->kind, out, BDX_REAL, at_statistics, in, weight, n->bias ? bias : NULL,
		  n->rows, n->width, n->group, n->stride, EPSILON);
	if (!in_place)
		ops->free(ops, in);
	ops->free(ops, weight);
	ops->free(ops, bias);
	found = take(at_statistics, 2 * n->rows);
	if (statistics)
		*statistics = found;
	else
		free(found);
	return take(out, n->size);
}

static double *naive_norm(const struct norm_case *n)
{
	double *out = copy_of(n->in, n->size);
	uint64_t r, j;

	for (r = 0; r < n->rows; r++) {
		double *x = out + r / n->group * n->stride + r % n->group * n->width;
		double mean = 0, variance = 0;

		for (j = 0; n->kind == BDX_LAYER_NORM && j < n->width; j++)
			mean += x[j] / (double)n->width;
		for (j = 0; j < n->width; j++)
			variance += (x[j] - mean) * (x[j] - mean) / (double)n->width;
		for (j = 0; j < n->width; j++)
			x[j] = (x[j] - mean) / sqrt(variance + EPSILON) * n->weight[j] +
				(n->bias ? n->bias_values[j] : 0);
	}
	return out;
}

static void test_norm(void **state)
{
	unsigned i;

	(void)state;
	for (i = 0; i < NORM_CASES; i++) {
		struct norm_case n = norm_case(i);

		check("norm", run_norm(&n, false, NULL), naive_norm(&n), n.size);
		check("norm in place", run_norm(&n, true, NULL), naive_norm(&n), n.size);
		free_norm_case(&n);
	}
}

static double norm_loss(const void *context)
{
	const struct norm_case *n = context;
	double *out = run_norm(n, false, NULL), loss = 0;
	uint64_t r;

	for (r = 0; r < n->rows; r++) {
		uint64_t at = r / n->group * n->stride + r % n->group * n->width;

		loss += dot(out + at, n->out_gradient + at, n->width);
	}
	free(out);
	return loss;
}

/* in_gradient; where `add`, added to `before`. weight_gradient (NULL: none) is added to. */
static double *run_norm_backward(const struct norm_case *n, bool add, const double *before,
				 double *weight_gradient)
{
	double *statistics;
	void *in = put(n->in, n->size), *weight = put(n->weight, n->width);
	void *out_gradient = put(n->out_gradient, n->size);
	void *in_gradient = add ? put(before, n->size) : out_gradient; /* in place */
	void *at_statistics, *at_weight_gradient = NULL;

	free(run_norm(n, false, &statistics));
	at_statistics = put(statistics, 2 * n->rows);
	if (weight_gradient)
		at_weight_gradient = put(weight_gradient, n->width);
	ops->norm_backward(ops, n->kind, in_gradient, add, at_weight_gradient, out_gradient, in,
			   weight, at_statistics, n->rows, n->width, n->group, n->stride);
	if (weight_gradient) {
		double *found = take(at_weight_gradient, n->width);

		memcpy(weight_gradient, found, n->width * sizeof(*found));
		free(found);
	}
	free(statistics);
	ops->free(ops, in);
	ops->free(ops, weight);
	ops->free(ops, at_statistics);
	if (add)
		ops->free(ops, out_gradient);
	return take(in_gradient, n->size);
}

static void test_norm_by_differences(void **state)
{
	unsigned i;
	uint64_t j, r;

	(void)state;
	for (i = 0; i < NORM_CASES; i++) {
		struct norm_case n = norm_case(i);
		double *weight = zeros(n.width), *before = numbers(n.size, 1);
		double *in = run_norm_backward(&n, false, NULL, weight), *added;

		/* Elements between the rows are nobody's. */
		for (r = 0; r < n.rows / n.group; r++)
			for (j = n.group * n.width; j < n.stride; j++) {
				assert_true(in[r * n.stride + j] ==
					    n.out_gradient[r * n.stride + j]);
				in[r * n.stride + j] = 0;
			}
		check_gradient("input of a norm", norm_loss, &n, n.in, in, n.size);
		check_gradient("weight of a norm", norm_loss, &n, n.weight, weight, n.width);
		added = run_norm_backward(&n, true, before, NULL);
		for (j = 0; j < n.size; j++)
			before[j] += in[j];
		check("added gradient of a norm", added, before, n.size);
		free(in);
		free(weight);
		free_norm_case(&n);
	}
}

static void test_add_bias(void **state)
{
	double *x = numbers(6 * 13, 1), *bias = numbers(9, 1), *want = copy_of(x, 6 * 13);
	void *at_x = put(x, 6 * 13), *at_bias = put(bias, 9);
	size_t r, j;

	(void)state;
	for (r = 0; r < 6; r++)
		for (j = 0; j < 9; j++)
			want[13 * r + j] += bias[j];
	ops->add_bias(ops, at_x, at_bias, 6, 9, 13);
	ops->free(ops, at_bias);
	check("bias", take(at_x, 6 * 13), want, 6 * 13);
	free(x);
	free(bias);
}

static void check_rope(uint64_t rotated)
{
	enum { SEQUENCES = 2, LENGTH = 3, START = 4, HEADS = 3, DIM = 10, STRIDE = 37 };
	enum { TOKENS = SEQUENCES * LENGTH, SIZE = TOKENS * STRIDE };
	uint64_t pairs = rotated / 2, t, h, i, table_size = 2 * pairs * (START + LENGTH);
	double *x = numbers(SIZE, 1), *want = copy_of(x, SIZE), *table = zeros(table_size);
	void *at_x = put(x, SIZE), *at_table;

	for (t = 0; t < START + LENGTH; t++)
		for (i = 0; i < pairs; i++) {
			double angle = (double)t / pow(50, (double)i / (double)pairs);

			table[2 * (t * pairs + i)] = (double)(float)cos(angle);
			table[2 * (t * pairs + i) + 1] = (double)(float)sin(angle);
		}
	at_table = put(table, table_size);
	for (t = 0; t < TOKENS; t++)
		for (h = 0; h < HEADS; h++)
			for (i = 0; i < pairs; i++) {
				double *head = want + t * STRIDE + h * DIM;
				double *angle = table + 2 * ((START + t % LENGTH) * pairs + i);
				double a = head[i], b = head[i + pairs];

				head[i] = a * angle[0] - b * angle[1];
				head[i + pairs] = a * angle[1] + b * angle[0];
			}
	ops->rope(ops, at_x, at_table, TOKENS, LENGTH, START, HEADS, DIM, rotated, STRIDE, false);
	check("rope", take(at_x, SIZE), copy_of(want, SIZE), SIZE);
	/* A rotation's transpose, which is the derivative, is its inverse. */
	at_x = put(want, SIZE);
	ops->rope(ops, at_x, at_table, TOKENS, LENGTH, START, HEADS, DIM, rotated, STRIDE, true);
	if (ops->real == BD_F64) {
		double *back = take(at_x, SIZE);

		/* The angles were rounded to float. */
		check_near("rope and back", back, x, SIZE, 1e-6);
		free(back);
		free(x);
	} else {
		check("rope and back", take(at_x, SIZE), x, SIZE);
	}
	ops->free(ops, at_table);
	free(want);
	free(table);
}

static void test_rope(void **state)
{
	(void)state;
	check_rope(10);
	check_rope(6);
}

/* --- Attention ----------------------------------------------------------------------------- */

/* Attention with its inputs and the gradient of its output, on the host. */
struct attention_case {
	struct bdx_attention a;
	bool alibi;
	double *q, *k, *v, *slopes, *out_gradient;
	uint64_t q_size, k_size, out_size, p_size;
};

static const struct attention_case attention_cases[] = {
	{ .a = { .batch = 2, .query_length = 5, .heads = 3, .kv_heads = 3, .head_dim = 7 } },
	{ .a = { .batch = 2, .query_length = 7, .heads = 6, .kv_heads = 2, .head_dim = 5,
		 .window = 3, .query_stride = 41, .key_stride = 23 } },
	{ .a = { .batch = 1, .query_length = 9, .heads = 5, .kv_heads = 5, .head_dim = 4 },
	  .alibi = true },
	{ .a = { .batch = 1, .query_length = 1, .heads = 1, .kv_heads = 1, .head_dim = 1,
		 .window = 1 } },
	{ .a = { .batch = 2, .query_length = 100, .heads = 3, .kv_heads = 1, .head_dim = 6 },
	  .alibi = true },
	{ .a = { .batch = 1, .query_length = 100, .heads = 2, .kv_heads = 2, .head_dim = 6,
		 .window = 40 } },
	/* From here on with keys and values of earlier tokens. */
	{ .a = { .batch = 3, .query_length = 1, .key_length = 9, .key_capacity = 12, .heads = 6,
		 .kv_heads = 2, .head_dim = 5 } },
	{ .a = { .batch = 2, .query_length = 3, .key_length = 9, .key_capacity = 9, .heads = 2,
		 .kv_heads = 1, .head_dim = 8, .window = 4, .key_stride = 11 }, .alibi = true },
	{ .a = { .batch = 1, .query_length = 100, .key_length = 171, .key_capacity = 200,
		 .heads = 2, .kv_heads = 1, .head_dim = 3, .window = 50 } },
};
#define TRAINING_CASES 6u

static struct attention_case attention_case(size_t number)
{
	struct attention_case c = attention_cases[number];
	struct bdx_attention *a = &c.a;

	if (!a->key_length)
		a->key_length = a->key_capacity = a->query_length;
	if (!a->query_stride)
		a->query_stride = a->heads * a->head_dim;
	if (!a->key_stride)
		a->key_stride = a->kv_heads * a->head_dim;
	a->scale = 1 / sqrt((double)a->head_dim);
	c.q_size = a->batch * a->query_length * a->query_stride;
	c.k_size = a->batch * a->key_capacity * a->key_stride;
	c.out_size = a->batch * a->query_length * a->heads * a->head_dim;
	c.p_size = a->batch * a->heads * a->query_length * a->key_length;
	c.q = numbers(c.q_size, 2);
	c.k = numbers(c.k_size, 2);
	c.v = numbers(c.k_size, 1);
	c.slopes = numbers(a->heads, 0.3);
	c.out_gradient = numbers(c.out_size, 1);
	return c;
}

static void free_attention_case(struct attention_case *c)
{
	free(c->q);
	free(c->k);
	free(c->v);
	free(c->slopes);
	free(c->out_gradient);
}

/* out; probabilities where that is not NULL. */
static double *run_attention(const struct attention_case *c, double **probabilities)
{
	struct bdx_attention a = c->a;
	void *q = put(c->q, c->q_size), *k = put(c->k, c->k_size), *v = put(c->v, c->k_size);
	void *slopes = put(c->slopes, a.heads), *out = room(c->out_size * bdx_operand_size(ops));
	void *p = NULL;

	if (probabilities) {
		double *garbage = numbers(c->p_size, 1e30);

		p = put(garbage, c->p_size); /* all of it is written */
		free(garbage);
	}
	a.slopes = c->alibi ? slopes : NULL;
	ops->attention(ops, &a, out, p, q, k, v);
	ops->free(ops, q);
	ops->free(ops, k);
	ops->free(ops, v);
	ops->free(ops, slopes);
	if (probabilities)
		*probabilities = take(p, c->p_size);
	return take(out, c->out_size);
}

/* One query of one head: p[key_length], out[head_dim] (zeros). */
static void naive_query(const struct attention_case *c, uint64_t sequence, uint64_t head,
			uint64_t query, double *p, double *out)
{
	const struct bdx_attention *a = &c->a;
	const double *q = c->q + (sequence * a->query_length + query) * a->query_stride +
		head * a->head_dim;
	uint64_t position = a->key_length - a->query_length + query, j, e;
	uint64_t kv = sequence * a->key_capacity * a->key_stride +
		head * a->kv_heads / a->heads * a->head_dim;
	double sum = 0;

	for (j = 0; j < a->key_length; j++) {
		bool early = a->window && j + a->window <= position;
		double score = dot(q, c->k + kv + j * a->key_stride, a->head_dim) * a->scale;

		if (c->alibi)
			score += c->slopes[head] * ((double)j - (double)position);
		p[j] = early || j > position ? 0 : exp(score);
		sum += p[j];
	}
	for (j = 0; j < a->key_length; j++) {
		p[j] /= sum;
		for (e = 0; e < a->head_dim; e++)
			out[e] += p[j] * c->v[kv + j * a->key_stride + e];
	}
}

static double *naive_attention(const struct attention_case *c, double *probabilities)
{
	const struct bdx_attention *a = &c->a;
	double *out = zeros(c->out_size);
	uint64_t n, i, h;

	for (n = 0; n < a->batch; n++)
		for (h = 0; h < a->heads; h++)
			for (i = 0; i < a->query_length; i++) {
				uint64_t row = (n * a->heads + h) * a->query_length + i;
				uint64_t token = n * a->query_length + i;

				naive_query(c, n, h, i, probabilities + row * a->key_length,
					    out + (token * a->heads + h) * a->head_dim);
			}
	return out;
}

static void check_attention(void)
{
	size_t i;

	for (i = 0; i < COUNT(attention_cases); i++) {
		struct attention_case c = attention_case(i);
		double *p, *want_p = zeros(c.p_size), *want = naive_attention(&c, want_p), *out;

		out = run_attention(&c, &p);
		check("attention", out, copy_of(want, c.out_size), c.out_size);
		check("probabilities", p, want_p, c.p_size);
		check("attention alone", run_attention(&c, NULL), want, c.out_size);
		free_attention_case(&c);
	}
}

static void test_attention(void **state)
{
	(void)state;
	check_attention();
}

static void test_attention_without_blas(void **state)
{
	(void)state;
	without_blas(BD_F32);
	check_attention();
	close_ops();
}

/* Scores of any size are no trouble. */
static void test_attention_of_great_scores(void **state)
{
	struct attention_case c = attention_case(1);
	double *out, *p;
	uint64_t i, j;

	(void)state;
	c.a.scale = 1e4;
	out = run_attention(&c, &p);
	for (i = 0; i < c.out_size; i++)
		assert_true(isfinite(out[i]));
	for (i = 0; i < c.p_size; i += c.a.key_length) {
		double sum = 0;

		for (j = 0; j < c.a.key_length; j++)
			sum += p[i + j];
		assert_true(fabs(sum - 1) < 1e-6);
	}
	free(out);
	free(p);
	free_attention_case(&c);
}

static double attention_loss(const void *context)
{
	const struct attention_case *c = context;
	double *out = run_attention(c, NULL), loss = dot(out, c->out_gradient, c->out_size);

	free(out);
	return loss;
}

/* Gradients of q, k and v. */
static void run_attention_backward(const struct attention_case *c, double **gradients)
{
	struct bdx_attention a = c->a;
	double *probabilities, *garbage = numbers(c->q_size + c->k_size, 1);
	void *q = put(c->q, c->q_size), *k = put(c->k, c->k_size), *v = put(c->v, c->k_size), *p;
	void *out_gradient = put(c->out_gradient, c->out_size);
	void *q_gradient = put(garbage, c->q_size), *k_gradient = put(garbage, c->k_size);
	void *v_gradient = put(garbage, c->k_size);

	free(run_attention(c, &probabilities));
	p = put(probabilities, c->p_size);
	ops->attention_backward(ops, &a, q_gradient, k_gradient, v_gradient, out_gradient, p, q, k,
				v);
	gradients[0] = take(q_gradient, c->q_size);
	gradients[1] = take(k_gradient, c->k_size);
	gradients[2] = take(v_gradient, c->k_size);
	ops->free(ops, q);
	ops->free(ops, k);
	ops->free(ops, v);
	ops->free(ops, p);
	ops->free(ops, out_gradient);
	free(probabilities);
	free(garbage);
}

/* Elements between the heads of one token and of the next are nobody's. */
static void clear_gaps(double *x, uint64_t size, uint64_t used, uint64_t stride)
{
	uint64_t i;

	for (i = 0; i < size; i++)
		if (i % stride >= used)
			x[i] = 0;
}

static void test_attention_by_differences(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < TRAINING_CASES; i++) {
		struct attention_case c = attention_case(i);
		const struct bdx_attention *a = &c.a;
		double *gradients[3];

		run_attention_backward(&c, gradients);
		clear_gaps(gradients[0], c.q_size, a->heads * a->head_dim, a->query_stride);
		clear_gaps(gradients[1], c.k_size, a->kv_heads * a->head_dim, a->key_stride);
		clear_gaps(gradients[2], c.k_size, a->kv_heads * a->head_dim, a->key_stride);
		check_gradient("queries", attention_loss, &c, c.q, gradients[0], c.q_size);
		check_gradient("keys", attention_loss, &c, c.k, gradients[1], c.k_size);
		check_gradient("values", attention_loss, &c, c.v, gradients[2], c.k_size);
		free(gradients[0]);
		free(gradients[1]);
		free(gradients[2]);
		free_attention_case(&c);
	}
}

/* --- Activations --------------------------------------------------------------------------- */

static const enum bdx_activation activations[] = { BDX_SILU, BDX_GELU, BDX_GELU_TANH };

struct activation_case {
	enum bdx_activation f;
	uint64_t rows, width, stride;
	bool has_up;
	double *gate, *up, *out_gradient;
};

static struct activation_case activation_case(unsigned number)
{
	struct activation_case c = {
		.f = activations[number % 3], .rows = 7, .width = 21, .stride = 50,
		.has_up = number / 3 % 2,
	};

	c.gate = numbers(c.rows * c.stride, 4);
	c.up = numbers(c.rows * c.stride, 1);
	c.out_gradient = numbers(c.rows * c.width, 1);
	return c;
}

#define ACTIVATION_CASES 6u

static void free_activation_case(struct activation_case *c)
{
	free(c->gate);
	free(c->up);
	free(c->out_gradient);
}

static double *run_activate(const struct activation_case *c)
{
	void *gate = put(c->gate, c->rows * c->stride), *up = put(c->up, c->rows * c->stride);
	void *out = room(c->rows * c->width * bdx_operand_size(ops));

	ops->activate(ops, c->f, out, gate, c->has_up ? up : NULL, c->rows, c->width, c->stride);
	ops->free(ops, gate);
	ops->free(ops, up);
	return take(out, c->rows * c->width);
}

static double naive_activation(enum bdx_activation f, double x)
{
	if (f == BDX_SILU)
		return x / (1 + exp(-x));
	if (f == BDX_GELU)
		return x * erfc(-x / sqrt(2)) / 2;
	return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * pow(x, 3))));
}

static double *naive_activate(const struct activation_case *c)
{
	double *out = zeros(c->rows * c->width);
	uint64_t r, j;

	for (r = 0; r < c->rows; r++)
		for (j = 0; j < c->width; j++)
			out[r * c->width + j] = naive_activation(c->f, c->gate[r * c->stride + j]) *
				(c->has_up ? c->up[r * c->stride + j] : 1);
	return out;
}

static void test_activate(void **state)
{
	static const double great[] = { 50,  -50, 90,   -90,   200, -200,
					1e4, -1e4, 1e12, -1e12, 0,   1e-30 };
	unsigned i;
	size_t j;

	(void)state;
	for (i = 0; i < ACTIVATION_CASES; i++) {
		struct activation_case c = activation_case(i);

		check("activation", run_activate(&c), naive_activate(&c), c.rows * c.width);
		for (j = 0; j < COUNT(great); j++) {
			double *out;

			c.gate[0] = great[j];
			out = run_activate(&c);
			c.gate[0] = c.has_up ? c.up[0] : 1;
			assert_true(fabs(out[0] - fmax(great[j], 0) * c.gate[0]) <=
				    1e-6 * fmax(1, great[j]));
			free(out);
		}
		free_activation_case(&c);
	}
}

static double activation_loss(const void *context)
{
	const struct activation_case *c = context;
	double *out = run_activate(c), loss = dot(out, c->out_gradient, c->rows * c->width);

	free(out);
	return loss;
}

static void test_activate_by_differences(void **state)
{
	unsigned i;

	(void)state;
	for (i = 0; i < ACTIVATION_CASES; i++) {
		struct activation_case c = activation_case(i);
		uint64_t size = c.rows * c.stride;
		void *gate = put(c.gate, size), *up = put(c.up, size);
		void *out_gradient = put(c.out_gradient, c.rows * c.width);
		void *at_gate = room(size * bdx_operand_size(ops));
		void *at_up = room(size * bdx_operand_size(ops));
		double *gate_gradient, *up_gradient;

		ops->activate_backward(ops, c.f, at_gate, c.has_up ? at_up : NULL, out_gradient,
				       gate, c.has_up ? up : NULL, c.rows, c.width, c.stride);
		ops->free(ops, gate);
		ops->free(ops, up);
		ops->free(ops, out_gradient);
		gate_gradient = take(at_gate, size);
		up_gradient = take(at_up, size);
		check_gradient("gate", activation_loss, &c, c.gate, gate_gradient, size);
		check_gradient("up", activation_loss, &c, c.up, up_gradient, size);
		free(gate_gradient);
		free(up_gradient);
		free_activation_case(&c);
	}
}

/* --- Loss, sampling, optimiser ------------------------------------------------------------- */

struct compare_case {
	uint64_t rows, vocabulary, student_stride, teacher_stride;
	double mse_weight, kl_weight, factor;
	double *student, *teacher;
	int32_t *targets;
};

static struct compare_case compare_case(uint64_t rows, uint64_t vocabulary, double mse_weight,
					double kl_weight)
{
	struct compare_case c = {
		.rows = rows, .vocabulary = vocabulary, .student_stride = vocabulary + 3,
		.teacher_stride = vocabulary + 5, .mse_weight = mse_weight,
		.kl_weight = kl_weight, .factor = 1.0 / 7,
	};
	uint64_t i;

	c.student = numbers(rows * c.student_stride, 6);
	c.teacher = numbers(rows * c.teacher_stride, 6);
	c.targets = calloc(rows, sizeof(*c.targets));
	assert_non_null(c.targets);
	for (i = 0; i < rows; i++)
		c.targets[i] = i % 3 == 2 ? -1 : (int32_t)(rnd() % vocabulary);
	return c;
}

static void free_compare_case(struct compare_case *c)
{
	free(c->student);
	free(c->teacher);
	free(c->targets);
}

/* The gradient, where wanted. */
static double *run_compare(const struct compare_case *c, struct bdx_comparison *results,
			   bool gradient)
{
	size_t size = c->rows * sizeof(*results);
	void *student = put(c->student, c->rows * c->student_stride);
	void *teacher = put(c->teacher, c->rows * c->teacher_stride), *at_gradient = NULL;
	void *targets = put_bytes(c->targets, c->rows * sizeof(*c->targets)), *out = room(size);

	if (gradient)
		at_gradient = room(c->rows * c->vocabulary * bdx_operand_size(ops));
	ops->compare(ops, out, at_gradient, student, c->student_stride, teacher, c->teacher_stride,
		     targets, c->rows, c->vocabulary, c->mse_weight, c->kl_weight, c->factor);
	ops->download(ops, results, out, size);
	ops->free(ops, student);
	ops->free(ops, teacher);
	ops->free(ops, targets);
	ops->free(ops, out);
	return gradient ? take(at_gradient, c->rows * c->vocabulary) : NULL;
}

static struct bdx_comparison naive_compare(const struct compare_case *c, uint64_t row)
{
	const double *s = c->student + row * c->student_stride;
	const double *t = c->teacher + row * c->teacher_stride;
	long double sum_s = 0, sum_t = 0, mse = 0, kl = 0;
	uint64_t j, best_s = 0, best_t = 0;
	struct bdx_comparison result = { 0 };

	for (j = 0; j < c->vocabulary; j++) {
		sum_s += expl(s[j]);
		sum_t += expl(t[j]);
		mse += ((long double)s[j] - t[j]) * (s[j] - t[j]) / c->vocabulary;
		best_s = s[j] > s[best_s] ? j : best_s;
		best_t = t[j] > t[best_t] ? j : best_t;
	}
	for (j = 0; j < c->vocabulary; j++)
		kl += expl(t[j]) / sum_t * ((t[j] - logl(sum_t)) - (s[j] - logl(sum_s)));
	result.mse = (double)mse;
	result.kl = (double)kl;
	if (c->targets[row] >= 0) {
		result.nll_teacher = (double)(logl(sum_t) - t[c->targets[row]]);
		result.nll_student = (double)(logl(sum_s) - s[c->targets[row]]);
	}
	result.agree = best_s == best_t;
	return result;
}

static void test_compare(void **state)
{
	static const uint64_t vocabularies[] = { 1, 2, 37, 1003, 20000 };
	double tolerance = ops->real == BD_F64 ? 1e-13 : 2e-6;
	size_t i, r;

	(void)state;
	for (i = 0; i < COUNT(vocabularies); i++) {
		struct compare_case c = compare_case(5, vocabularies[i], 1, 1);
		struct bdx_comparison results[5];

		memcpy(c.student, c.teacher, vocabularies[i] * sizeof(double)); /* row 0 */
		run_compare(&c, results, false);
		for (r = 0; r < 5; r++) {
			struct bdx_comparison want = naive_compare(&c, r), *got = &results[r];

			assert_true(fabs(got->mse - want.mse) <= tolerance * (1 + want.mse));
			assert_true(fabs(got->kl - want.kl) <= tolerance * (1 + want.kl));
			assert_true(fabs(got->nll_teacher - want.nll_teacher) <=
				    tolerance * (1 + want.nll_teacher));
			assert_true(fabs(got->nll_student - want.nll_student) <=
				    tolerance * (1 + want.nll_student));
			assert_int_equal(got->agree, want.agree);
		}
		assert_true(results[0].mse == 0 && results[0].kl == 0 && results[0].agree == 1);
		assert_true(results[2].nll_teacher == 0 && results[2].nll_student == 0);
		free_compare_case(&c);
	}
}

/* The first of equal logits counts; great logits overflow nothing; no targets. */
static void test_compare_extremes(void **state)
{
	double student[] = { 3, 9, 9, 1,  1e4, -1e4, 0, 0,  5, 5, 5, 5 };
	double teacher[] = { 1, 8, 2, 8,  -1e4, 1e4, 0, 0,  5, 5, 5, 5 };
	void *s = put(student, 12), *t = put(teacher, 12);
	struct bdx_comparison *out = room(3 * sizeof(*out)), results[3];
	void *gradient = room(12 * bdx_operand_size(ops));
	double *g;

	(void)state;
	ops->compare(ops, out, gradient, s, 4, t, 4, NULL, 3, 4, 0, 1, 1);
	ops->download(ops, results, out, sizeof(results));
	assert_int_equal(results[0].agree, 1);
	assert_int_equal(results[1].agree, 0);
	assert_int_equal(results[2].agree, 1);
	assert_true(fabs(results[1].kl - 2e4) < 1e-6 * 2e4);
	assert_true(results[1].nll_teacher == 0);
	g = take(gradient, 12);
	assert_true(g[4] == 1 && g[5] == -1 && g[6] == 0);
	assert_true(g[8] == 0 && g[11] == 0);
	free(g);
	ops->free(ops, s);
	ops->free(ops, t);
	ops->free(ops, out);
}

static double compare_loss(const void *context)
{
	const struct compare_case *c = context;
	struct bdx_comparison results[4];
	double loss = 0;
	uint64_t r;

	run_compare(c, results, false);
	for (r = 0; r < c->rows; r++)
		loss += c->factor * (c->mse_weight * results[r].mse + c->kl_weight * results[r].kl);
	return loss;
}

static void test_compare_by_differences(void **state)
{
	static const double weights[][2] = { { 1, 0 }, { 0, 1 }, { 0.3, 2 } };
	size_t i, r, j;

	(void)state;
	for (i = 0; i < COUNT(weights); i++) {
		struct compare_case c = compare_case(4, 37, weights[i][0], weights[i][1]);
		struct bdx_comparison results[4];
		double *gradient = run_compare(&c, results, true);
		double *spread = zeros(4 * c.student_stride);

		for (r = 0; r < 4; r++)
			for (j = 0; j < 37; j++)
				spread[r * c.student_stride + j] = gradient[r * 37 + j];
		check_gradient("logits", compare_loss, &c, c.student, spread, 4 * c.student_stride);
		free(gradient);
		free(spread);
		free_compare_case(&c);
	}
}

static void check_sample(const double *logits, uint64_t vocabulary, const double *uniform,
			 uint64_t rows, double temperature, const int32_t *want)
{
	void *at_logits = put(logits, rows * vocabulary), *at_uniform = put(uniform, rows);
	void *out = room(rows * sizeof(int32_t));
	int32_t tokens[64];
	uint64_t i;

	assert_true(rows <= COUNT(tokens));
	ops->sample(ops, out, at_logits, at_uniform, rows, vocabulary, temperature);
	ops->download(ops, tokens, out, rows * sizeof(*tokens));
	for (i = 0; i < rows; i++)
		if (tokens[i] != want[i])
			fail_msg("row %zu, uniform %g, temperature %g: token %d, not %d", (size_t)i,
				 uniform[i], temperature, tokens[i], want[i]);
	ops->free(ops, at_logits);
	ops->free(ops, at_uniform);
	ops->free(ops, out);
}

static void test_sample(void **state)
{
	enum { ROWS = 50, WORDS = 21 };
	double *logits = numbers((uint64_t)ROWS * WORDS, 3), uniform[ROWS];
	int32_t want[ROWS];
	size_t r;
	int32_t j;

	(void)state;
	for (r = 0; r < ROWS; r++) {
		double sum = 0, cumulated = 0;

		uniform[r] = ((double)r + 0.37) / ROWS;
		for (j = 0; j < WORDS; j++)
			sum += exp(logits[r * WORDS + (size_t)j] / 0.7);
		for (j = 0; j < WORDS; j++) {
			cumulated += exp(logits[r * WORDS + (size_t)j] / 0.7) / sum;
			if (cumulated > uniform[r])
				break;
		}
		want[r] = j;
	}
	check_sample(logits, WORDS, uniform, ROWS, 0.7, want);
	free(logits);
}

static void test_sample_extremes(void **state)
{
	/* The first and the last token have no chance. */
	static const double logits[] = { -2e4, 1, 3, 3, -2e4, -2e4, 1, 3, 3, -2e4,
					 7, 7, 7, 7, 7 };
	static const double uniform[] = { 0, 1 - 0x1p-24, 0.5 };

	(void)state;
	check_sample(logits, 5, uniform, 3, 0, (int32_t[]){ 2, 2, 0 });
	check_sample(logits, 5, uniform, 3, 1, (int32_t[]){ 1, 3, 2 });
	check_sample(logits, 5, uniform, 3, 1e-3, (int32_t[]){ 2, 3, 2 });
	check_sample(logits, 5, (double[]){ 0.5, 0.5, 0 }, 3, 1e9, (int32_t[]){ 2, 2, 0 });
	check_sample(logits, 1, uniform, 3, 1, (int32_t[]){ 0, 0, 0 });
}

static void test_adam(void **state)
{
	enum { N = 23, STEPS = 3 };
	struct bdx_adam settings = {
		.rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .gradient_factor = 0.25,
	};
	double *parameter = numbers(N, 1), *unit = numbers(N, 0.1), m[N] = { 0 }, v[N] = { 0 };
	void *at_parameter = put(parameter, N), *at_unit = put(unit, N);
	void *at_m = room(N * bdx_real_size(ops)), *at_v = room(N * bdx_real_size(ops));
	unsigned i;

	(void)state;
	for (settings.step = 1; settings.step <= STEPS; settings.step++) {
		double *gradient = numbers(N, 10), step = (double)settings.step;
		void *at_gradient = put(gradient, N);

		ops->adam(ops, &settings, at_parameter, at_gradient, at_unit, at_m, at_v, N);
		for (i = 0; i < N; i++) {
			double g = gradient[i] * 0.25 * unit[i];

			m[i] = 0.9 * m[i] + 0.1 * g;
			v[i] = 0.95 * v[i] + 0.05 * g * g;
			parameter[i] -= 0.01 * unit[i] * (m[i] / (1 - pow(0.9, step))) /
				(sqrt(v[i] / (1 - pow(0.95, step))) + 1e-8);
		}
		ops->free(ops, at_gradient);
		free(gradient);
	}
	check("adam", take(at_parameter, N), parameter, N);
	ops->free(ops, at_unit);
	ops->free(ops, at_m);
	ops->free(ops, at_v);
	free(unit);
}

/* --- Threads ------------------------------------------------------------------------------- */

static uint64_t hash_of(uint64_t hash, const void *bytes, size_t size)
{
	const uint8_t *p = bytes;
	size_t i;

	for (i = 0; i < size; i++)
		hash = (hash ^ p[i]) * 0x100000001b3;
	return hash;
}

static uint64_t hash_numbers(uint64_t hash, double *x, uint64_t n)
{
	hash = hash_of(hash, x, n * sizeof(*x));
	free(x);
	return hash;
}

/* Of everything that is cut into pieces. */
static uint64_t hash_of_results(enum bd_dtype real, unsigned threads)
{
	uint64_t hash = 0xcbf29ce484222325;
	struct attention_case a;
	struct norm_case n;
	struct coded c;
	struct compare_case l;
	struct bdx_comparison results[40];
	double *gradients[3], *x, *y, *weight;
	void *at_x, *at_y, *out;

	open_ops(real, threads);
	rng = 77;
	a = attention_case(4);
	hash = hash_numbers(hash, run_attention(&a, NULL), a.out_size);
	run_attention_backward(&a, gradients);
	hash = hash_numbers(hash, gradients[0], a.q_size);
	hash = hash_numbers(hash, gradients[1], a.k_size);
	hash = hash_numbers(hash, gradients[2], a.k_size);
	free_attention_case(&a);

	n = norm_case(7);
	weight = zeros(n.width);
	hash = hash_numbers(hash, run_norm(&n, false, NULL), n.size);
	hash = hash_numbers(hash, run_norm_backward(&n, false, NULL, weight), n.size);
	hash = hash_numbers(hash, weight, n.width);
	free_norm_case(&n);

	c = coded(300, 203, BD_BF16, BD_BF16);
	weight = numbers(300 * 203, 1);
	x = zeros(300);
	y = zeros(203);
	hash = hash_numbers(hash, rebuilt(&c), 300 * 203);
	scale_gradients(&c, weight, &x, &y);
	hash = hash_numbers(hash, x, 300);
	hash = hash_numbers(hash, y, 203);
	free(weight);
	free_coded(&c);

	l = compare_case(40, 1003, 1, 1);
	hash = hash_numbers(hash, run_compare(&l, results, true), 40 * 1003);
	hash = hash_of(hash, results, sizeof(results));
	free_compare_case(&l);

	x = numbers(700 * 64, 1);
	y = numbers(64 * 600, 1);
	at_x = put(x, 700 * 64);
	at_y = put(y, 64 * 600);
	out = room(700 * 600 * bdx_real_size(ops));
	ops->gemm(ops, false, false, 700, 600, 64, 1, at_x, 64, at_y, 600, 0, out, BDX_REAL, 600);
	hash = hash_numbers(hash, take(out, 700 * 600), 700 * 600);
	ops->free(ops, at_x);
	ops->free(ops, at_y);
	free(x);
	free(y);
	close_ops();
	return hash;
}

static void test_threads_change_nothing(void **state)
{
	uint64_t one = hash_of_results(BD_F32, 1), wide = hash_of_results(BD_F64, 1);

	(void)state;
	assert_true(hash_of_results(BD_F32, 3) == one);
	assert_true(hash_of_results(BD_F32, 2) == one);
	assert_true(hash_of_results(BD_F64, 3) == wide);
	assert_true(one != wide);
}

static void test_cancel(void **state)
{
	static atomic_int cancel;
	struct bd_error err = { 0 };
	float *x;

	(void)state;
	open_ops(BD_F32, 2);
	bdx_ops_cpu_cancel(ops, &cancel);
	x = ops->alloc(ops, 3 * 16 * sizeof(*x), &err);
	assert_non_null(x);
	ops->gemm(ops, false, false, 4, 4, 4, 1, x, 4, x + 16, 4, 0, x + 32, BDX_REAL, 4);
	assert_int_equal(ops->finish(ops, &err), 0);
	cancel = 1;
	ops->gemm(ops, false, false, 4, 4, 4, 1, x, 4, x + 16, 4, 0, x + 32, BDX_REAL, 4);
	assert_int_equal(ops->finish(ops, &err), -EINTR);
	assert_string_equal(err.text, "interrupted");
	err.code = 0;
	assert_null(ops->alloc(ops, 16, &err));
	assert_int_equal(err.code, -EINTR);
	ops->free(ops, x);
	bdx_ops_close(ops);
}

static void test_names(void **state)
{
	(void)state;
	open_ops(BD_F32, 1);
	assert_non_null(strstr(ops->name, "CPU"));
	assert_non_null(strstr(ops->name, "1 thread"));
	if (strstr(ops->name, "no OpenBLAS"))
		print_message("OpenBLAS is not installed: products were tested without it only\n");
	close_ops();
	bdx_ops_close(NULL);
}

static int seed(void **state)
{
	(void)state;
	rng = 1;
	return 0;
}

#define IN_DOUBLE(f) cmocka_unit_test_prestate_setup_teardown(f, open_double, close_after, NULL)
#define IN_FLOAT(f) { #f " in float", f, open_float, close_after, NULL }
#define IN_BOTH(f) { #f " in double", f, open_double, close_after, NULL }, IN_FLOAT(f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_FLOAT(test_memory),
		IN_FLOAT(test_too_much_memory),
		cmocka_unit_test(test_failure_is_remembered),
		IN_FLOAT(test_upload_from_threads),
		IN_FLOAT(test_convert),
		IN_BOTH(test_gemm),
		cmocka_unit_test(test_gemm_without_blas),
		IN_BOTH(test_rebuild),
		IN_BOTH(test_scale_gradient),
		IN_DOUBLE(test_scale_gradient_by_differences),
		IN_BOTH(test_embed),
		IN_BOTH(test_norm),
		IN_DOUBLE(test_norm_by_differences),
		IN_BOTH(test_add_bias),
		IN_BOTH(test_rope),
		IN_BOTH(test_attention),
		cmocka_unit_test(test_attention_without_blas),
		IN_BOTH(test_attention_of_great_scores),
		IN_DOUBLE(test_attention_by_differences),
		IN_BOTH(test_activate),
		IN_DOUBLE(test_activate_by_differences),
		IN_BOTH(test_compare),
		IN_BOTH(test_compare_extremes),
		IN_DOUBLE(test_compare_by_differences),
		IN_BOTH(test_sample),
		IN_BOTH(test_sample_extremes),
		IN_BOTH(test_adam),
		cmocka_unit_test(test_threads_change_nothing),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, seed, NULL);
}
