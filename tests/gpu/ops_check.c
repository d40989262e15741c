/* SPDX-License-Identifier: Apache-2.0 */
/* ops_check.c: every operation of the CUDA backend against the reference in double, with
 * operands of each type: random data, odd sizes, gaps between rows, outputs full of NaNs
 * beforehand, and twice, since the same calls must give the same bits.
 *
 * BITDELTA_CUDA=build/release/bitdelta-cuda.so ops_check
 *
 * Prints `ok NAME`, `not ok NAME: why` or `skip NAME: why`. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "sign.h"

#define BUFFERS 12
#define GUARD 64 /* elements after a buffer that nothing may write */

enum role { IN, OUT, CHANGED };
enum form { REAL, OPERAND, BYTES };

struct buffer {
	enum role role;
	enum form form;
	uint64_t count;
	unsigned skip;  /* elements before the first: other addresses */
	double *values; /* REAL, OPERAND: what both begin with */
	void *bytes;    /* BYTES: the same */
};

struct test {
	char name[160];
	struct buffer buffers[BUFFERS];
	unsigned count;
	double tolerance; /* of the norm of an error beside that of what is wanted */
};

/* An operation on the pointers of the test's buffers; `detail` is the caller's. */
typedef void (*operation)(struct bdx_ops *ops, void **at, const void *detail);

static struct bdx_ops *cuda, *reference;
static struct bd_error err;
static int failures;
static unsigned misplaced; /* `skip` of buffers that are made from now on */
static uint64_t state = 88172645463325252u;

static void *need(void *p)
{
	if (!p) {
		printf("not ok memory: %s\n", err.text[0] ? err.text : "none");
		exit(1);
	}
	return p;
}

static uint64_t dice(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Near the normal distribution. */
static double bell(void)
{
	double sum = 0;
	int i;

	for (i = 0; i < 6; i++)
		sum += (double)(dice() >> 11) * 0x1p-53 - 0.5;
	return sum * 1.4142135623730951;
}

static void __attribute__((format(printf, 2, 3))) verdict(const char *name, const char *format, ...)
{
	va_list args;

	if (!format) {
		printf("ok %s\n", name);
		return;
	}
	printf("not ok %s: ", name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	failures++;
}

/* ---- Elements ---- */

static enum bd_dtype type_of(struct bdx_ops *ops, enum form form)
{
	return form == BYTES ? BD_U8 : form == REAL ? ops->real : ops->operand;
}

static size_t size_of(enum bd_dtype dtype)
{
	return bd_dtype_bits(dtype) / 8;
}

static void put(void *to, uint64_t i, enum bd_dtype dtype, double x)
{
	if (dtype == BD_F64)
		((double *)to)[i] = x;
	else if (dtype == BD_F32)
		((float *)to)[i] = (float)x;
	else
		((uint16_t *)to)[i] = dtype == BD_BF16 ? bd_bf16_from_float((float)x)
						       : bd_f16_from_float((float)x);
}

static double get(const void *from, uint64_t i, enum bd_dtype dtype)
{
	uint16_t h;

	if (dtype == BD_F64)
		return ((const double *)from)[i];
	if (dtype == BD_F32)
		return (double)((const float *)from)[i];
	h = ((const uint16_t *)from)[i];
	return (double)(dtype == BD_BF16 ? bd_bf16_to_float(h) : bd_f16_to_float(h));
}

/* ---- A test's buffers ---- */

static struct test begin(const char *format, ...) __attribute__((format(printf, 1, 2)));
static struct test begin(const char *format, ...)
{
	struct test t = { .tolerance = 1e-6 };
	va_list args;

	va_start(args, format);
	vsnprintf(t.name, sizeof(t.name), format, args);
	va_end(args);
	return t;
}

static struct buffer *add(struct test *t, enum role role, enum form form, uint64_t count)
{
	struct buffer *b = &t->buffers[t->count++];

	*b = (struct buffer){ .role = role, .form = form, .count = count, .skip = misplaced };
	return b;
}

/* Random numbers that operands of this type can have. */
static double *random_values(struct test *t, enum role role, enum form form, uint64_t count,
			     double size)
{
	struct buffer *b = add(t, role, form, count);
	uint64_t i;

	b->values = need(malloc(count * sizeof(*b->values) + 1));
	for (i = 0; i < count; i++) {
		uint8_t element[8];

		put(element, 0, type_of(cuda, form), size * bell());
		b->values[i] = get(element, 0, type_of(cuda, form));
	}
	return b->values;
}

static void output(struct test *t, enum form form, uint64_t count)
{
	struct buffer *b = add(t, OUT, form, count);
	uint64_t i;

	b->values = need(malloc(count * sizeof(*b->values) + 1));
	for (i = 0; i < count; i++)
		b->values[i] = NAN;
}

static void *bytes(struct test *t, enum role role, const void *content, uint64_t count)
{
	struct buffer *b = add(t, role, BYTES, count);

	b->skip = 0;
	b->bytes = need(malloc(count + 1));
	if (content)
		memcpy(b->bytes, content, count);
	else
		memset(b->bytes, 0xff, count);
	return b->bytes;
}

static int32_t *tokens(struct test *t, uint64_t count, uint64_t vocabulary)
{
	int32_t *all = bytes(t, IN, NULL, count * sizeof(*all));
	uint64_t i;

	for (i = 0; i < count; i++)
		all[i] = (int32_t)(dice() % vocabulary);
	return all;
}

/* ---- Running ---- */

/* Run with fresh buffers; what they hold afterwards, guard included. */
static int execute(struct test *t, struct bdx_ops *ops, operation call, const void *detail,
		   void *results[BUFFERS])
{
	void *memory[BUFFERS], *at[BUFFERS];
	unsigned i;

	for (i = 0; i < t->count; i++) {
		struct buffer *b = &t->buffers[i];
		enum bd_dtype dtype = type_of(ops, b->form);
		size_t size = size_of(dtype), total = (b->skip + b->count + GUARD) * size;
		uint8_t *host = need(malloc(total));
		uint64_t j;

		memset(host, 0x5a, total);
		for (j = 0; b->values && j < b->count; j++)
			put(host, b->skip + j, dtype, b->values[j]);
		if (b->bytes)
			memcpy(host, b->bytes, b->count);
		memory[i] = need(ops->alloc(ops, total, &err));
		at[i] = (char *)memory[i] + b->skip * size;
		ops->upload(ops, memory[i], host, total);
		results[i] = host;
	}
	call(ops, at, detail);
	for (i = 0; i < t->count; i++) {
		struct buffer *b = &t->buffers[i];
		size_t size = size_of(type_of(ops, b->form));

		ops->download(ops, results[i], memory[i], (b->skip + b->count + GUARD) * size);
		ops->free(ops, memory[i]);
	}
	return ops->finish(ops, &err);
}

static bool guarded(const struct buffer *b, const uint8_t *memory, size_t size)
{
	const uint8_t *end = memory + (b->skip + b->count) * size;
	size_t i;

	for (i = 0; i < b->skip * size; i++)
		if (memory[i] != 0x5a)
			return false;
	for (i = 0; i < GUARD * size; i++)
		if (end[i] != 0x5a)
			return false;
	return true;
}

/* NULL, or what is wrong. */
static const char *judge(const struct test *t, unsigned number, void *const *one, void *const *two,
			 void *const *wanted)
{
	static char why[200];
	const struct buffer *b = &t->buffers[number];
	enum bd_dtype dtype = type_of(cuda, b->form), exact = type_of(reference, b->form);
	size_t size = size_of(dtype);
	double error = 0, norm = 0, worst = 0;
	uint64_t i, worst_at = 0;

	if (!guarded(b, one[number], size))
		return "wrote outside of a buffer";
	if (memcmp(one[number], two[number], (b->skip + b->count) * size))
		return "gives other bits the second time";
	if (b->form == BYTES) {
		if (b->role == IN && memcmp(one[number], b->bytes, b->count))
			return "changed an input";
		return NULL;
	}
	for (i = 0; i < b->count; i++) {
		double x = get(one[number], b->skip + i, dtype);
		double y = get(wanted[number], b->skip + i, exact), d = fabs(x - y);

		if (b->role == IN ? x != b->values[i] : isnan(x) != isnan(y)) {
			snprintf(why, sizeof(why), "buffer %u: element %llu is %g, %g is right",
				 number, (unsigned long long)i, x,
				 b->role == IN ? b->values[i] : y);
			return why;
		}
		if (isnan(x) || x == y)
			continue;
		error += d * d;
		norm += y * y;
		if (d > worst) {
			worst = d;
			worst_at = i;
		}
	}
	error = sqrt(error);
	norm = sqrt(norm);
	if (b->role != IN && !(error <= t->tolerance * norm)) {
		snprintf(
			why, sizeof(why),
			"buffer %u: relative error %.2e, allowed %.2e; worst element %llu: %g, %g is right",
			number, error / norm, t->tolerance, (unsigned long long)worst_at,
			get(one[number], b->skip + worst_at, dtype),
			get(wanted[number], b->skip + worst_at, exact));
		return why;
	}
	return NULL;
}

/* Run on both and compare; `also`, if given, compares BYTES that are results. */
static void check(struct test *t, operation call, const void *detail,
		  const char *(*also)(void *const *got, void *const *wanted))
{
	void *one[BUFFERS], *two[BUFFERS], *wanted[BUFFERS];
	const char *why = NULL;
	unsigned i;

	execute(t, reference, call, detail, wanted);
	if (execute(t, cuda, call, detail, one) || execute(t, cuda, call, detail, two)) {
		verdict(t->name, "%s", err.text);
		exit(1);
	}
	for (i = 0; i < t->count && !why; i++)
		why = judge(t, i, one, two, wanted);
	if (!why && also)
		why = also(one, wanted);
	if (why)
		verdict(t->name, "%s", why);
	else
		verdict(t->name, NULL);
	for (i = 0; i < t->count; i++) {
		free(one[i]);
		free(two[i]);
		free(wanted[i]);
		free(t->buffers[i].values);
		free(t->buffers[i].bytes);
	}
}

/* The error of rounding once to an operand, for norms of many. */
static double rounding(void)
{
	return cuda->operand == BD_BF16 ? 3e-3 : cuda->operand == BD_F16 ? 4e-4 : 2e-6;
}

/* Of products in attention: TF32 where operands have 16 bits. */
static double tensor_rounding(void)
{
	return cuda->operand == BD_F32 ? 1e-5 : 1e-3;
}

/* ---- Products ---- */

struct gemm {
	bool ta, tb;
	uint64_t m, n, k, lda, ldb, ldc;
	double alpha, beta;
	enum bdx_kind kind;
};

static void call_gemm(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct gemm *g = detail;

	ops->gemm(ops, g->ta, g->tb, g->m, g->n, g->k, g->alpha, at[0], g->lda, at[1], g->ldb,
		  g->beta, at[2], g->kind, g->ldc);
}

static void check_gemm(uint64_t m, uint64_t n, uint64_t k, uint64_t gap, bool ta, bool tb,
		       double beta, enum bdx_kind kind)
{
	struct gemm g = { .ta = ta, .tb = tb, .m = m, .n = n, .k = k, .lda = (ta ? m : k) + gap,
			  .ldb = (tb ? k : n) + gap, .ldc = n + gap, .alpha = 0.75, .beta = beta,
			  .kind = kind };
	struct test t = begin("%s gemm %llux%llux%llu%s%s beta %g, to %s",
			      bd_dtype_name(cuda->operand), (unsigned long long)m,
			      (unsigned long long)n, (unsigned long long)k, ta ? " A^T" : "",
			      tb ? " B^T" : "", beta, kind == BDX_REAL ? "real" : "operand");

	t.tolerance = kind == BDX_REAL ? 2e-6 : rounding();
	random_values(&t, IN, OPERAND, (ta ? k : m) * g.lda, 1);
	random_values(&t, IN, OPERAND, (tb ? n : k) * g.ldb, 1);
	if (beta != 0)
		random_values(&t, CHANGED, REAL, m * g.ldc, 1);
	else
		output(&t, kind == BDX_REAL ? REAL : OPERAND, m * g.ldc);
	check(&t, call_gemm, &g, NULL);
}

static void products(void)
{
	int form;

	for (form = 0; form < 4; form++) {
		check_gemm(96, 160, 224, 0, form & 1, form & 2, 0, BDX_REAL);
		check_gemm(96, 160, 224, 32, form & 1, form & 2, 1, BDX_REAL);
		check_gemm(96, 160, 224, 8, form & 1, form & 2, 0, BDX_OPERAND);
		check_gemm(37, 53, 71, 0, form & 1, form & 2, 0, BDX_REAL);
		check_gemm(37, 53, 71, 3, form & 1, form & 2, 0, BDX_OPERAND);
	}
	check_gemm(1, 512, 384, 0, false, true, 0, BDX_REAL);
	check_gemm(4, 33, 384, 0, false, true, 0, BDX_REAL);
	check_gemm(128, 256, 2048, 0, true, false, 0, BDX_OPERAND);
}

/* ---- Sign-coded weights ---- */

struct matrix {
	uint64_t rows, cols;
};

static void call_scale_gradient(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct matrix *m = detail;
	struct bdx_signed w = { .bits = at[0], .base_dtype = BD_BF16, .out_dtype = BD_BF16,
				.rows = m->rows, .cols = m->cols, .row = at[1], .col = at[2] };

	ops->scale_gradient(ops, &w, at[3], at[4], at[5]);
}

static uint8_t *random_bits(struct test *t, uint64_t count)
{
	uint8_t *all = bytes(t, IN, NULL, count / 8 + 8);
	uint64_t i;

	for (i = 0; i < count / 8 + 8; i++)
		all[i] = (uint8_t)dice();
	return all;
}

static void scale_gradients(void)
{
	static const struct matrix shapes[] = { { 64, 128 }, { 130, 1032 }, { 33, 77 }, { 1, 8 },
						{ 200, 2056 }, { 7, 1 } };
	size_t i;

	for (i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		const struct matrix *m = &shapes[i];
		struct test t = begin("%s scale_gradient %llux%llu", bd_dtype_name(cuda->operand),
				      (unsigned long long)m->rows, (unsigned long long)m->cols);

		random_bits(&t, m->rows * m->cols);
		random_values(&t, IN, REAL, m->rows, 1);
		random_values(&t, IN, REAL, m->cols, 1);
		random_values(&t, IN, OPERAND, m->rows * m->cols, 1);
		random_values(&t, CHANGED, REAL, m->rows, 1);
		random_values(&t, CHANGED, REAL, m->cols, 1);
		check(&t, call_scale_gradient, m, NULL);
	}
}

/* Any bits, the special ones often. */
static uint32_t odd_bits(enum bd_dtype dtype)
{
	static const uint32_t single[] = { 0,	       0x80000000, 1,	       0x807fffff,
					   0x00800000, 0x7f7fffff, 0x7f800000, 0xff800000,
					   0x7f800001, 0xffc12345, 0x3f800000 };
	static const uint16_t brain[] = { 0,	  0x8000, 1,	  0x807f, 0x0080, 0x7f7f,
					  0x7f80, 0xff80, 0x7f81, 0xffff, 0x3f80 };
	static const uint16_t half[] = { 0,	 0x8000, 1,	 0x83ff, 0x0400, 0x7bff,
					 0x7c00, 0xfc00, 0x7c01, 0xffff, 0x3c00 };
	uint64_t d = dice();
	unsigned pick = (unsigned)(d >> 40) % 11;

	if (d % 4)
		return (uint32_t)(d >> 8) & (dtype == BD_F32 ? 0xffffffff : 0xffff);
	return dtype == BD_F32 ? single[pick] : dtype == BD_BF16 ? brain[pick] : half[pick];
}

static float odd_scale(void)
{
	uint32_t bits = odd_bits(BD_F32);
	float f;

	if (dice() % 2)
		return (float)(0.01 * bell());
	memcpy(&f, &bits, sizeof(f));
	return f;
}

static void check_rebuild(uint64_t rows, uint64_t cols, enum bd_dtype base_dtype,
			  enum bd_dtype out_dtype)
{
	uint64_t count = rows * cols, i;
	size_t base_size = size_of(base_dtype), out_size = size_of(out_dtype);
	size_t size = size_of(cuda->operand), bits_size = count / 8 + 1 + BD_SIGN_SLACK;
	uint8_t *base = need(malloc(count * base_size)), *bits = need(malloc(bits_size));
	uint8_t *out = need(malloc(count * out_size)), *wanted = need(malloc(count * size));
	uint8_t *got = need(malloc(count * size));
	float *scales = need(malloc((rows + cols) * sizeof(*scales)));
	struct bd_sign_run run = { .cols = cols,
				   .count = count,
				   .planes = 1,
				   .base_dtype = base_dtype,
				   .out_dtype = out_dtype,
				   .bits = { bits },
				   .row = { scales },
				   .col = { scales + rows } };
	struct bdx_signed w = { .base_dtype = base_dtype, .out_dtype = out_dtype, .rows = rows,
				.cols = cols };
	void *memory[4];
	char name[120];

	snprintf(name, sizeof(name), "%s rebuild %llux%llu %s to %s", bd_dtype_name(cuda->operand),
		 (unsigned long long)rows, (unsigned long long)cols, bd_dtype_name(base_dtype),
		 bd_dtype_name(out_dtype));
	for (i = 0; i < count; i++) {
		uint32_t x = odd_bits(base_dtype);

		memcpy(base + i * base_size, &x, base_size);
	}
	for (i = 0; i < bits_size; i++)
		bits[i] = (uint8_t)dice();
	for (i = 0; i < rows + cols; i++)
		scales[i] = odd_scale();
	bd_sign_rebuild(&run, out, base);
	for (i = 0; i < count; i++)
		if (out_dtype == cuda->operand)
			memcpy(wanted + i * size, out + i * size, size);
		else
			put(wanted, i, cuda->operand, get(out, i, out_dtype));
	memory[0] = need(cuda->alloc(cuda, count * base_size, &err));
	memory[1] = need(cuda->alloc(cuda, count / 8 + 1, &err));
	memory[2] = need(cuda->alloc(cuda, (rows + cols) * sizeof(float), &err));
	memory[3] = need(cuda->alloc(cuda, count * size, &err));
	cuda->upload(cuda, memory[0], base, count * base_size);
	cuda->upload(cuda, memory[1], bits, count / 8 + 1);
	cuda->upload(cuda, memory[2], scales, (rows + cols) * sizeof(float));
	w.base = memory[0];
	w.bits = memory[1];
	w.row = memory[2];
	w.col = (float *)memory[2] + rows;
	cuda->rebuild(cuda, &w, memory[3]);
	cuda->download(cuda, got, memory[3], count * size);
	for (i = 0; i < count && !memcmp(got + i * size, wanted + i * size, size); i++)
		;
	if (cuda->finish(cuda, &err))
		verdict(name, "%s", err.text);
	else if (i < count)
		verdict(name, "element %llu is %g, %g is right", (unsigned long long)i,
			get(got, i, cuda->operand), get(wanted, i, cuda->operand));
	else
		verdict(name, NULL);
	for (i = 0; i < 4; i++)
		cuda->free(cuda, memory[i]);
	free(base);
	free(bits);
	free(out);
	free(wanted);
	free(got);
	free(scales);
}

static void rebuilds(void)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32 };
	int i;

	for (i = 0; i < 9; i++) {
		check_rebuild(130, 2056, dtypes[i / 3], dtypes[i % 3]);
		check_rebuild(61, 77, dtypes[i / 3], dtypes[i % 3]);
	}
}

/* ---- Conversion ---- */

static void check_convert(enum bd_dtype to, enum bd_dtype from, uint64_t count)
{
	size_t from_size = size_of(from), to_size = size_of(to);
	uint8_t *source = need(malloc(count * from_size)), *got[2];
	struct bdx_ops *tables[2] = { reference, cuda };
	char name[80];
	uint64_t i;
	int j;

	snprintf(name, sizeof(name), "convert %llu from %s to %s", (unsigned long long)count,
		 bd_dtype_name(from), bd_dtype_name(to));
	for (i = 0; i < count; i++) {
		uint32_t x = odd_bits(from == BD_F64 ? BD_F32 : from);
		double wide = bell() * exp2((double)(dice() % 60) - 40);
		float f;

		memcpy(&f, &x, sizeof(f));
		if (from == BD_F64 && dice() % 3 == 0)
			wide = (double)f;
		memcpy(source + i * from_size, from == BD_F64 ? (void *)&wide : (void *)&x,
		       from_size);
	}
	for (j = 0; j < 2; j++) {
		struct bdx_ops *ops = tables[j];
		void *a = need(ops->alloc(ops, count * from_size, &err));
		void *b = need(ops->alloc(ops, count * to_size, &err));

		got[j] = need(malloc(count * to_size));
		ops->upload(ops, a, source, count * from_size);
		ops->convert(ops, b, to, a, from, count);
		ops->download(ops, got[j], b, count * to_size);
		ops->free(ops, a);
		ops->free(ops, b);
	}
	for (i = 0; i < count; i++) {
		double x = get(got[1], i, to), y = get(got[0], i, to);

		if (isnan(x) ? !isnan(y) : x != y || signbit(x) != signbit(y))
			break;
	}
	if (cuda->finish(cuda, &err))
		verdict(name, "%s", err.text);
	else if (i < count)
		verdict(name, "%.17g became %g, %g is right", get(source, i, from),
			get(got[1], i, to), get(got[0], i, to));
	else
		verdict(name, NULL);
	free(source);
	free(got[0]);
	free(got[1]);
}

static void conversions(void)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32, BD_F64 };
	int i;

	for (i = 0; i < 16; i++)
		check_convert(dtypes[i / 4], dtypes[i % 4], i % 2 ? 5000 : 4999);
}

/* ---- Layers ---- */

struct rows {
	uint64_t count, width, group, stride;
	enum bdx_norm kind;
	enum bdx_kind out_kind;
	bool add, in_place, bias;
};

static void call_embed(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct rows *r = detail;

	ops->embed(ops, at[2], at[0], at[1], r->count, r->width);
}

static void call_norm(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct rows *r = detail;

	ops->norm(ops, r->kind, r->in_place ? at[0] : at[4], r->out_kind, at[3], at[0], at[1],
		  r->bias ? at[2] : NULL, r->count, r->width, r->group, r->stride, 1e-5);
}

static void call_norm_backward(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct rows *r = detail;

	ops->norm_backward(ops, r->kind, r->in_place ? at[1] : at[4], r->add, at[5], at[1], at[0],
			   at[2], at[3], r->count, r->width, r->group, r->stride);
}

static void call_add_bias(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct rows *r = detail;

	ops->add_bias(ops, at[0], at[1], r->count, r->width, r->stride);
}

static void check_norm(struct rows r, const char *what)
{
	uint64_t total = (r.count + r.group - 1) / r.group * r.stride, i;
	bool layer = r.kind == BDX_LAYER_NORM;
	const char *type = bd_dtype_name(cuda->operand);
	double *values;
	struct test t;

	t = begin("%s norm %s %llux%llu %s%s", type, layer ? "layer" : "rms",
		  (unsigned long long)r.count, (unsigned long long)r.width, what,
		  r.out_kind == BDX_REAL ? "" : " to operand");
	t.tolerance = r.out_kind == BDX_REAL ? 1e-6 : rounding();
	values = random_values(&t, r.in_place ? CHANGED : IN, REAL, total, 1);
	for (i = 0; layer && i < total; i++)
		values[i] = (double)(float)(values[i] + 3);
	random_values(&t, IN, REAL, r.width, 1);
	random_values(&t, IN, REAL, r.width, 1);
	output(&t, REAL, 2 * r.count);
	output(&t, r.out_kind == BDX_REAL ? REAL : OPERAND, total);
	check(&t, call_norm, &r, NULL);

	t = begin("%s norm_backward %s %llux%llu %s%s", type, layer ? "layer" : "rms",
		  (unsigned long long)r.count, (unsigned long long)r.width, what,
		  r.add ? ", added" : "");
	t.tolerance = 2e-6;
	random_values(&t, IN, REAL, total, 1);
	random_values(&t, r.in_place ? CHANGED : IN, REAL, total, 1);
	random_values(&t, IN, REAL, r.width, 1);
	values = random_values(&t, IN, REAL, 2 * r.count, 0.1);
	for (i = 0; i < r.count; i++) {
		values[2 * i] = layer ? (double)(float)values[2 * i] : 0;
		values[2 * i + 1] = 1.25;
	}
	if (r.add)
		random_values(&t, CHANGED, REAL, total, 1);
	else
		output(&t, REAL, total);
	random_values(&t, CHANGED, REAL, r.width, 1);
	check(&t, call_norm_backward, &r, NULL);
}

static void norms(void)
{
	enum bdx_norm kind;

	for (kind = BDX_RMS_NORM; kind <= BDX_LAYER_NORM; kind++) {
		struct rows r = { .count = 70,
				  .width = 4096,
				  .group = 1,
				  .stride = 4096,
				  .kind = kind,
				  .out_kind = BDX_OPERAND,
				  .bias = kind == BDX_LAYER_NORM };

		check_norm(r, "plain");
		r.add = true;
		r.width = 1234;
		r.stride = 1301;
		check_norm(r, "gaps");
		r.width = 77;
		check_norm(r, "odd");
		r.add = false;
		r.out_kind = BDX_REAL;
		r.in_place = true;
		r.width = 64;
		r.group = 7;
		r.stride = 7 * 64 + 20;
		check_norm(r, "heads in place");
	}
}

static void embeddings(void)
{
	static const uint64_t widths[] = { 4096, 77 };
	size_t i;

	for (i = 0; i < 2; i++) {
		struct rows r = { .count = 33, .width = widths[i] };
		struct test t = begin("%s embed %llu", bd_dtype_name(cuda->operand),
				      (unsigned long long)r.width);

		t.tolerance = 0;
		random_values(&t, IN, OPERAND, 101 * r.width, 1);
		tokens(&t, r.count, 101);
		output(&t, REAL, r.count * r.width);
		check(&t, call_embed, &r, NULL);

		r.stride = r.width + 8;
		t = begin("%s add_bias %llu", bd_dtype_name(cuda->operand),
			  (unsigned long long)r.width);
		random_values(&t, CHANGED, REAL, r.count * r.stride, 1);
		random_values(&t, IN, REAL, r.width, 1);
		check(&t, call_add_bias, &r, NULL);
	}
}

struct rope {
	uint64_t tokens, length, start, heads, head_dim, rotated, stride;
	bool backward;
};

static void call_rope(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct rope *r = detail;

	ops->rope(ops, at[0], at[1], r->tokens, r->length, r->start, r->heads, r->head_dim,
		  r->rotated, r->stride, r->backward);
}

static void ropes(void)
{
	static const struct rope all[] = {
		{ 64, 32, 0, 8, 128, 128, 8 * 128, false },
		{ 64, 32, 5, 8, 128, 128, 12 * 128, true },
		{ 21, 7, 3, 5, 80, 20, 5 * 80 + 3, false },
		{ 21, 7, 3, 5, 34, 34, 5 * 34, true },
		{ 4, 1, 99, 2, 64, 32, 128, false },
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		const struct rope *r = &all[i];
		struct test t = begin("%s rope %zu", bd_dtype_name(cuda->operand), i + 1);

		random_values(&t, CHANGED, REAL, r->tokens * r->stride, 1);
		random_values(&t, IN, REAL, (r->start + r->length) * r->rotated, 1);
		t.buffers[1].skip = 0; /* tables of pairs are not misplaced */
		check(&t, call_rope, r, NULL);
	}
}

struct activation {
	enum bdx_activation f;
	uint64_t rows, width, stride;
	bool up;
};

static void call_activate(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct activation *a = detail;

	ops->activate(ops, a->f, at[2], at[0], a->up ? at[1] : NULL, a->rows, a->width, a->stride);
}

static void call_activate_backward(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct activation *a = detail;

	ops->activate_backward(ops, a->f, at[3], a->up ? at[4] : NULL, at[2], at[0],
			       a->up ? at[1] : NULL, a->rows, a->width, a->stride);
}

static void activations(void)
{
	static const char *const names[] = { "silu", "gelu", "gelu_tanh" };
	int i;

	for (i = 0; i < 12; i++) {
		struct activation a = { .f = (enum bdx_activation)(i % 3),
					.rows = 19,
					.width = i / 3 % 2 ? 1032 : 77,
					.stride = 1040,
					.up = i / 6 };
		uint64_t total = a.rows * a.stride;
		struct test t =
			begin("%s activate %s %llu%s", bd_dtype_name(cuda->operand), names[i % 3],
			      (unsigned long long)a.width, a.up ? " with up" : "");

		t.tolerance = rounding();
		random_values(&t, IN, REAL, total, 3);
		random_values(&t, IN, REAL, total, 1);
		output(&t, OPERAND, a.rows * a.width);
		check(&t, call_activate, &a, NULL);
		t = begin("%s activate_backward %s %llu%s", bd_dtype_name(cuda->operand),
			  names[i % 3], (unsigned long long)a.width, a.up ? " with up" : "");
		t.tolerance = rounding();
		random_values(&t, IN, REAL, total, 3);
		random_values(&t, IN, REAL, total, 1);
		random_values(&t, IN, REAL, a.rows * a.width, 1);
		output(&t, OPERAND, total);
		output(&t, OPERAND, total);
		check(&t, call_activate_backward, &a, NULL);
	}
}

/* ---- Attention ---- */

struct attention {
	struct bdx_attention a;
	bool slopes, keep;
};

static struct bdx_attention placed(const struct attention *x, void *const *at)
{
	struct bdx_attention a = x->a;

	a.slopes = x->slopes ? at[3] : NULL;
	return a;
}

static void call_attention(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct attention *x = detail;
	struct bdx_attention a = placed(x, at);

	ops->attention(ops, &a, at[4], x->keep ? at[5] : NULL, at[0], at[1], at[2]);
}

/* The probabilities come from the forward pass. */
static void call_attention_backward(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct attention *x = detail;
	struct bdx_attention a = placed(x, at);

	ops->attention(ops, &a, at[4], at[5], at[0], at[1], at[2]);
	ops->attention_backward(ops, &a, at[7], at[8], at[9], at[6], at[5], at[0], at[1], at[2]);
}

static void attentions(void)
{
	/* batch, queries, keys, strides, capacity, heads, kv heads, head_dim, scale, window */
	static const struct attention all[] = {
		{ { 2, 128, 128, 384, 384, 128, 3, 3, 128, 0.088, 0, NULL }, false, true },
		{ { 3, 65, 65, 4 * 64, 2 * 64, 65, 4, 2, 64, 0.125, 0, NULL }, false, true },
		{ { 2, 37, 37, 5 * 18 + 1, 18 + 3, 37, 5, 1, 18, 0.2, 0, NULL }, false, true },
		{ { 1, 300, 300, 6 * 80, 3 * 80, 300, 6, 3, 80, 0.11, 0, NULL }, true, true },
		{ { 2, 200, 200, 2 * 64, 2 * 64, 200, 2, 2, 64, 0.125, 48, NULL }, false, true },
		{ { 1, 131, 131, 2 * 32, 2 * 32, 131, 2, 2, 32, 0.17, 7, NULL }, true, true },
		{ { 5, 1, 77, 8 * 64, 2 * 64, 90, 8, 2, 64, 0.125, 0, NULL }, false, false },
		{ { 3, 1, 130, 4 * 32, 4 * 32, 140, 4, 4, 32, 0.17, 33, NULL }, true, false },
		{ { 2, 9, 75, 4 * 40, 4 * 40, 80, 4, 4, 40, 0.15, 0, NULL }, false, true },
		{ { 2, 1, 1, 64, 64, 16, 2, 2, 32, 0.15, 0, NULL }, false, false },
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		const struct attention *x = &all[i];
		const struct bdx_attention *a = &x->a;
		uint64_t queries = a->batch * a->query_length * a->query_stride;
		uint64_t keys = a->batch * a->key_capacity * a->key_stride;
		uint64_t wide = a->batch * a->query_length * a->heads * a->head_dim;
		uint64_t scores = a->batch * a->heads * a->query_length * a->key_length;
		struct test t = begin("%s attention %zu", bd_dtype_name(cuda->operand), i + 1);
		unsigned j;

		t.tolerance = fmax(rounding(), tensor_rounding());
		random_values(&t, IN, REAL, queries, 1);
		random_values(&t, IN, REAL, keys, 1);
		random_values(&t, IN, REAL, keys, 1);
		random_values(&t, IN, REAL, a->heads, 0.1);
		output(&t, OPERAND, wide);
		output(&t, REAL, scores);
		check(&t, call_attention, x, NULL);
		if (a->query_length != a->key_capacity)
			continue;
		t = begin("%s attention_backward %zu", bd_dtype_name(cuda->operand), i + 1);
		t.tolerance = fmax(rounding(), 3 * tensor_rounding());
		for (j = 0; j < 3; j++)
			random_values(&t, IN, REAL, j ? keys : queries, 1);
		random_values(&t, IN, REAL, a->heads, 0.1);
		output(&t, OPERAND, wide);
		output(&t, REAL, scores);
		random_values(&t, IN, REAL, wide, 1);
		for (j = 0; j < 3; j++)
			output(&t, REAL, j ? keys : queries);
		check(&t, call_attention_backward, x, NULL);
	}
}

/* ---- Loss, sampling, optimiser ---- */

struct loss {
	uint64_t rows, vocabulary, student_stride, teacher_stride;
	double mse, kl, temperature;
	bool gradient;
};

static void call_compare(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct loss *l = detail;

	ops->compare(ops, at[3], l->gradient ? at[4] : NULL, at[0], l->student_stride, at[1],
		     l->teacher_stride, at[2], l->rows, l->vocabulary, l->mse, l->kl, 17);
}

static uint64_t compared;

static const char *same_comparisons(void *const *got, void *const *wanted)
{
	const struct bdx_comparison *x = got[3], *y = wanted[3];
	static char why[160];
	uint64_t i;

	for (i = 0; i < compared; i++)
		if (!(fabs(x[i].mse - y[i].mse) <= 1e-6 * y[i].mse) ||
		    !(fabs(x[i].kl - y[i].kl) <= 1e-6 * y[i].kl + 3e-7) ||
		    !(fabs(x[i].nll_student - y[i].nll_student) <= 1e-6) ||
		    !(fabs(x[i].nll_teacher - y[i].nll_teacher) <= 1e-6) ||
		    x[i].agree != y[i].agree) {
			snprintf(
				why, sizeof(why),
				"row %llu: mse %.8g %.8g, kl %.8g %.8g, nll %.8g %.8g, agree %d %d",
				(unsigned long long)i, x[i].mse, y[i].mse, x[i].kl, y[i].kl,
				x[i].nll_student, y[i].nll_student, x[i].agree, y[i].agree);
			return why;
		}
	return NULL;
}

static void comparisons(void)
{
	static const struct loss all[] = {
		{ 20, 32000, 32000, 32000, 1, 0, 0, true },
		{ 20, 32000, 32008, 32000, 0.5, 2, 0, true },
		{ 9, 1001, 1003, 1001, 0, 1, 0, true },
		{ 9, 1001, 1001, 1024, 1, 0, 0, true },
		{ 9, 77, 77, 77, 1, 1, 0, false },
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		const struct loss *l = &all[i];
		struct test t = begin("%s compare %zu", bd_dtype_name(cuda->operand), i + 1);
		double *student, *teacher;
		int32_t *targets;
		uint64_t r, j;

		t.tolerance = rounding();
		student = random_values(&t, IN, REAL, l->rows * l->student_stride, 2);
		teacher = random_values(&t, IN, REAL, l->rows * l->teacher_stride, 2);
		/* Alike, as after some training; two equal peaks in a row. */
		for (r = 0; r < l->rows; r++) {
			double *s = student + r * l->student_stride,
			       *u = teacher + r * l->teacher_stride;

			for (j = 0; r % 3 && j < l->vocabulary; j++)
				s[j] = (double)(float)(u[j] + 0.01 * s[j]);
			u[70] = u[30] = 9;
			s[r % 2 ? 70 : 30] = 9.5;
		}
		targets = tokens(&t, l->rows, l->vocabulary);
		targets[1] = -1;
		bytes(&t, OUT, NULL, l->rows * sizeof(struct bdx_comparison));
		output(&t, OPERAND, l->rows * l->vocabulary);
		compared = l->rows;
		check(&t, call_compare, l, same_comparisons);
	}
}

static void call_sample(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct loss *l = detail;

	ops->sample(ops, at[2], at[0], at[1], l->rows, l->vocabulary, l->temperature);
}

static const char *same_tokens(void *const *got, void *const *wanted)
{
	const int32_t *x = got[2], *y = wanted[2];
	static char why[80];
	uint64_t i, wrong = 0;

	for (i = 0; i < compared; i++)
		wrong += x[i] != y[i];
	/* A draw that lands on a border may fall to either side. */
	if (wrong <= compared / 100)
		return NULL;
	snprintf(why, sizeof(why), "%llu of %llu tokens differ", (unsigned long long)wrong,
		 (unsigned long long)compared);
	return why;
}

static void samples(void)
{
	static const struct loss all[] = {
		{ .rows = 300, .vocabulary = 32000, .temperature = 1 },
		{ .rows = 300, .vocabulary = 1003, .temperature = 0.3 },
		{ .rows = 300, .vocabulary = 77, .temperature = 0 },
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		const struct loss *l = &all[i];
		struct test t = begin("%s sample %zu", bd_dtype_name(cuda->operand), i + 1);
		double *uniform;
		uint64_t j;

		random_values(&t, IN, REAL, l->rows * l->vocabulary, 2);
		uniform = random_values(&t, IN, REAL, l->rows, 1);
		for (j = 0; j < l->rows; j++)
			uniform[j] = (double)(dice() >> 40) * 0x1p-24;
		uniform[0] = 0;
		uniform[1] = 1 - 0x1p-24;
		bytes(&t, OUT, NULL, l->rows * sizeof(int32_t));
		compared = l->rows;
		check(&t, call_sample, l, same_tokens);
	}
}

static void call_adam(struct bdx_ops *ops, void **at, const void *detail)
{
	const struct bdx_adam *a = detail;

	ops->adam(ops, a, at[0], at[1], at[2], at[3], at[4], 1003);
}

static void optimisers(void)
{
	struct bdx_adam a = { .rate = 0.01, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8,
			      .gradient_factor = 0.25 };

	for (a.step = 1; a.step < 100; a.step += 49) {
		struct test t = begin("%s adam step %llu", bd_dtype_name(cuda->operand),
				      (unsigned long long)a.step);
		double *v;
		int i;

		random_values(&t, CHANGED, REAL, 1003, 1);
		random_values(&t, IN, REAL, 1003, 1);
		random_values(&t, IN, REAL, 1003, 1);
		random_values(&t, CHANGED, REAL, 1003, 0.1);
		v = random_values(&t, CHANGED, REAL, 1003, 0.1);
		for (i = 0; i < 1003; i++)
			v[i] = fabs(v[i]);
		check(&t, call_adam, &a, NULL);
	}
}

/* ---- Memory and failures ---- */

struct upload {
	pthread_t thread;
	void *to, *host;
	size_t size;
};

static void *upload(void *argument)
{
	struct upload *u = argument;
	int i;

	for (i = 0; i < 5; i++)
		cuda->upload(cuda, u->to, u->host, u->size);
	return NULL;
}

static void memory(void)
{
	struct upload uploads[12];
	bool zero = true, same = true;
	uint8_t *got;
	size_t i, j;

	for (i = 0; i < 12; i++) {
		struct upload *u = &uploads[i];

		u->size = 100000 + 7777 * i;
		u->to = need(cuda->alloc(cuda, u->size, &err));
		u->host = need(i % 2 ? malloc(u->size) : cuda->host_alloc(cuda, u->size));
		got = need(malloc(u->size));
		cuda->download(cuda, got, u->to, u->size);
		for (j = 0; j < u->size; j++) {
			zero = zero && !got[j];
			((uint8_t *)u->host)[j] = (uint8_t)dice();
		}
		free(got);
	}
	verdict("alloc gives zeros", zero ? NULL : "it does not");
	for (i = 0; i < 12; i++)
		if (pthread_create(&uploads[i].thread, NULL, upload, &uploads[i]))
			exit(1);
	for (i = 0; i < 12; i++)
		pthread_join(uploads[i].thread, NULL);
	for (i = 0; i < 12; i++) {
		struct upload *u = &uploads[i];

		got = need(malloc(u->size));
		cuda->download(cuda, got, u->to, u->size);
		same = same && !memcmp(got, u->host, u->size);
		free(got);
		cuda->free(cuda, u->to);
		if (i % 2)
			free(u->host);
		else
			cuda->host_free(cuda, u->host);
	}
	verdict("uploads of twelve threads", same ? NULL : "other bytes arrived");
}

static void limits(void)
{
	struct bd_error said = { 0 };
	struct bdx_ops *small;
	size_t before;
	void *p;

	before = cuda->available(cuda);
	if (cuda->alloc(cuda, (size_t)1 << 50, &said) || said.code != -ENOMEM)
		verdict("more memory than there is", "code %d: %s", said.code, said.text);
	else if (cuda->finish(cuda, &said))
		verdict("more memory than there is", "later operations fail: %s", said.text);
	else
		verdict("more memory than there is", NULL);
	verdict("available", before > 0 && cuda->peak(cuda) > 0 ? NULL : "%zu", before);

	setenv("BITDELTA_GPU_MEMORY", "200000000", 1);
	if (bdx_ops_cuda_open(&small, 0, BD_BF16, &err)) {
		verdict("BITDELTA_GPU_MEMORY", "%s", err.text);
	} else {
		p = small->alloc(small, 100000000, &err);
		if (!p || small->available(small) > 100000000 ||
		    small->alloc(small, 100000000, &said) || said.code != -ENOMEM ||
		    !strstr(said.text, "BITDELTA_GPU_MEMORY"))
			verdict("BITDELTA_GPU_MEMORY", "it limits nothing");
		else
			verdict("BITDELTA_GPU_MEMORY", NULL);
		bdx_ops_close(small);
	}
	setenv("BITDELTA_GPU_MEMORY", "much", 1);
	if (bdx_ops_cuda_open(&small, 0, BD_BF16, &said) != -EINVAL)
		verdict("BITDELTA_GPU_MEMORY that is no number", "accepted");
	else
		verdict("BITDELTA_GPU_MEMORY that is no number", NULL);
	unsetenv("BITDELTA_GPU_MEMORY");
	if (bdx_ops_cuda_open(&small, 1000, BD_BF16, &said) != -ENODEV)
		verdict("no such device", "code %d: %s", said.code, said.text);
	else
		verdict("no such device", NULL);
}

/* An operation that cannot work: later ones do nothing, and finish() says what failed. */
static void sticky(void)
{
	struct bd_error said = { 0 };
	struct bdx_ops *broken;
	uint8_t byte = 7;
	void *p;

	if (bdx_ops_cuda_open(&broken, 0, BD_BF16, &err)) {
		verdict("a failure is remembered", "%s", err.text);
		return;
	}
	p = need(broken->alloc(broken, 4096, &err));
	/* A leading dimension that is shorter than a row. */
	broken->gemm(broken, false, false, 8, 8, 8, 1, p, 4, p, 8, 0, p, BDX_REAL, 8);
	broken->upload(broken, p, &byte, 1);
	if (broken->finish(broken, &said) != -EIO || !strstr(said.text, broken->name) ||
	    broken->alloc(broken, 16, &said) || said.code != -EIO)
		verdict("a failure is remembered", "code %d: %s", said.code, said.text);
	else
		verdict("a failure is remembered", NULL);
	bdx_ops_close(broken);
}

int main(void)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32 };
	int i, ret;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (bdx_ops_cpu_open(&reference, BD_F64, 0, &err)) {
		printf("not ok the reference: %s\n", err.text);
		return 1;
	}
	for (i = 0; i < 3; i++) {
		ret = bdx_ops_cuda_open(&cuda, 0, dtypes[i], &err);
		if (ret == -ENODEV) {
			printf("skip the CUDA backend: %s\n", err.text);
			bdx_ops_close(reference);
			return 0;
		}
		if (ret) {
			printf("not ok opening: %s\n", err.text);
			return 1;
		}
		if (i == 0) {
			printf("# %s\n", cuda->name);
			memory();
			limits();
			sticky();
			conversions();
		}
		products();
		rebuilds();
		for (misplaced = 0; misplaced < 2; misplaced++) {
			scale_gradients();
			embeddings();
			norms();
			ropes();
			activations();
			attentions();
			comparisons();
			samples();
			optimisers();
		}
		misplaced = 0;
		bdx_ops_close(cuda);
	}
	bdx_ops_close(reference);
	return failures != 0;
}
