/* SPDX-License-Identifier: Apache-2.0 */
/* ops_bench.c: how fast the operations of the CUDA backend are, at the shapes of Llama-2-7B with
 * 4 windows of 128 tokens, beside what the bytes that must move and the products that must be
 * made take at least.
 *
 * BITDELTA_CUDA=build/release/bitdelta-cuda.so ops_bench [GB/s TFLOP/s]
 *
 * The two numbers are what the device can do at best: 4300 and 790, those of an H200, by
 * default. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops.h"

#define POOL ((size_t)1 << 30) /* bytes of random operands: twenty times what caches hold */
#define TOKENS 512
#define WIDTH 4096
#define HIDDEN 11008
#define VOCABULARY 32000

static struct bdx_ops *ops;
static struct bd_error err;
static double bandwidth = 4300e9, arithmetic = 790e12;
static char *pool;     /* random BF16 near 0, as weights are */
static float *reals;   /* random F32 near the normal distribution; also results */
static size_t next;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void finish(void)
{
	if (ops->finish(ops, &err)) {
		printf("not ok bench: %s\n", err.text);
		exit(1);
	}
}

/* Operands that were not used lately. */
static void *fresh(size_t bytes)
{
	bytes = (bytes + 255) / 256 * 256;
	if (next + bytes > POOL)
		next = 0;
	next += bytes;
	return pool + next - bytes;
}

static void *floats(uint64_t offset)
{
	return reals + offset;
}

/* Seconds that one call takes, of enough calls for 60 ms. */
static double measure(void (*call)(const void *detail), const void *detail)
{
	unsigned count = 10, i;
	double start, seconds;

	for (;;) {
		for (i = 0; i < 3; i++)
			call(detail);
		finish();
		start = now();
		for (i = 0; i < count; i++)
			call(detail);
		finish();
		seconds = now() - start;
		if (seconds > 0.06 || count > 100000)
			return seconds / count;
		count = (unsigned)(count * fmin(20, 0.08 / seconds)) + 1;
	}
}

static void report(const char *name, double seconds, double bytes, double products)
{
	double least = fmax(bytes / bandwidth, products / arithmetic);

	printf("%-44s %9.1f us %9.1f us %5.0f%% ", name, seconds * 1e6, least * 1e6,
	       100 * least / seconds);
	if (bytes / bandwidth >= products / arithmetic)
		printf("%8.0f GB/s\n", bytes / seconds * 1e-9);
	else
		printf("%8.0f TFLOP/s\n", products / seconds * 1e-12);
}

/* ---- Weights ---- */

struct matrix {
	uint64_t rows, cols;
};

static struct bdx_signed coded(const struct matrix *m)
{
	return (struct bdx_signed){ .base = fresh(m->rows * m->cols * 2),
				    .bits = fresh(m->rows * m->cols / 8),
				    .base_dtype = BD_BF16,
				    .out_dtype = BD_BF16,
				    .rows = m->rows,
				    .cols = m->cols,
				    .row = reals,
				    .col = reals + m->rows };
}

static void rebuild(const void *detail)
{
	const struct matrix *m = detail;
	struct bdx_signed w = coded(m);

	/* Rotating results too, and no operands of others. */
	ops->rebuild(ops, &w, pool + POOL + next / 2 / 256 * 256);
}

static void scale_gradient(const void *detail)
{
	const struct matrix *m = detail;
	struct bdx_signed w = coded(m);

	ops->scale_gradient(ops, &w, w.base, floats(1 << 20), floats(1 << 21));
}

static void weights(void)
{
	static const struct matrix all[] = { { 4096, 4096 }, { 11008, 4096 }, { 4096, 11008 },
					     { 22016, 4096 } };
	char name[80];
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		double count = (double)(all[i].rows * all[i].cols);

		snprintf(name, sizeof(name), "rebuild %llux%llu", (unsigned long long)all[i].rows,
			 (unsigned long long)all[i].cols);
		report(name, measure(rebuild, &all[i]), count * 4.125, 0);
	}
	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		double count = (double)(all[i].rows * all[i].cols);

		snprintf(name, sizeof(name), "scale_gradient %llux%llu",
			 (unsigned long long)all[i].rows, (unsigned long long)all[i].cols);
		report(name, measure(scale_gradient, &all[i]), count * 2.125, 0);
	}
}

/* ---- Products ---- */

struct gemm {
	const char *form;
	bool ta, tb;
	uint64_t m, n, k;
	enum bdx_kind kind;
};

static void gemm(const void *detail)
{
	const struct gemm *g = detail;

	ops->gemm(ops, g->ta, g->tb, g->m, g->n, g->k, 1, fresh(g->m * g->k * 2),
		  g->ta ? g->m : g->k, fresh(g->n * g->k * 2), g->tb ? g->k : g->n, 0,
		  g->kind == BDX_REAL ? (void *)reals : (void *)(pool + POOL), g->kind, g->n);
}

static void products(void)
{
	static const uint64_t shapes[][2] = { { 4096, 4096 }, { 12288, 4096 }, { 11008, 4096 },
					      { 22016, 4096 }, { 4096, 11008 }, { 32000, 4096 } };
	char name[80];
	size_t i, j;

	for (i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		uint64_t out = shapes[i][0], in = shapes[i][1];
		struct gemm all[] = {
			{ "Y = X W^T", false, true, TOKENS, out, in, BDX_REAL },
			{ "dX = dY W", false, false, TOKENS, in, out, BDX_REAL },
			{ "dW = dY^T X", true, false, out, in, TOKENS, BDX_OPERAND },
		};

		for (j = 0; j < 3; j++) {
			struct gemm *g = &all[j];
			double c = (double)(g->m * g->n) * (g->kind == BDX_REAL ? 4 : 2);

			snprintf(name, sizeof(name), "%s, W %llux%llu", g->form,
				 (unsigned long long)out, (unsigned long long)in);
			report(name, measure(gemm, g),
			       c + 2 * (double)(g->m * g->k) + 2 * (double)(g->n * g->k),
			       2.0 * (double)(g->m * g->n * g->k));
		}
	}
}

/* ---- Layers ---- */

static void norm(const void *detail)
{
	(void)detail;
	ops->norm(ops, BDX_RMS_NORM, pool, BDX_OPERAND, floats(1 << 24), reals, floats(1 << 23),
		  NULL, TOKENS, WIDTH, 1, WIDTH, 1e-5);
}

static void norm_backward(const void *detail)
{
	(void)detail;
	ops->norm_backward(ops, BDX_RMS_NORM, floats(1 << 22), true, NULL, floats(1 << 23), reals,
			   floats(3 << 22), floats(1 << 24), TOKENS, WIDTH, 1, WIDTH);
}

static void rope(const void *detail)
{
	(void)detail;
	ops->rope(ops, reals, floats(1 << 24), TOKENS, 128, 0, 64, 128, 128, 3 * WIDTH, false);
}

static void activate(const void *detail)
{
	(void)detail;
	ops->activate(ops, BDX_SILU, pool, reals, floats(HIDDEN), TOKENS, HIDDEN, 2 * HIDDEN);
}

static void activate_backward(const void *detail)
{
	(void)detail;
	ops->activate_backward(ops, BDX_SILU, pool, pool + 2 * HIDDEN, floats(1 << 24), reals,
			       floats(HIDDEN), TOKENS, HIDDEN, 2 * HIDDEN);
}

static void layers(void)
{
	double wide = TOKENS * (double)WIDTH, hidden = TOKENS * (double)HIDDEN;

	report("norm", measure(norm, NULL), wide * 6, 0);
	report("norm_backward, added", measure(norm_backward, NULL), wide * 16, 0);
	report("rope of 64 heads", measure(rope, NULL), wide * 2 * 8, 0);
	report("activate silu with up", measure(activate, NULL), hidden * 10, 0);
	report("activate_backward", measure(activate_backward, NULL), hidden * 16, 0);
}

/* ---- Attention ---- */

static const struct bdx_attention training = {
	4, 128, 128, 3 * WIDTH, 3 * WIDTH, 128, 32, 32, 128, 0.088, 0, NULL
};
static const struct bdx_attention longer = {
	1, 2048, 2048, 3 * WIDTH, 3 * WIDTH, 2048, 32, 32, 128, 0.088, 0, NULL
};
static const struct bdx_attention decoding = {
	64, 1, 128, 3 * WIDTH, WIDTH, 128, 32, 32, 128, 0.088, 0, NULL
};

static void attention(const void *detail)
{
	ops->attention(ops, detail, pool, detail == &training ? floats(1 << 25) : NULL, reals,
		       floats(WIDTH), floats(2 * WIDTH));
}

static void attention_backward(const void *detail)
{
	ops->attention_backward(ops, detail, floats(1 << 26), floats((1 << 26) + WIDTH),
				floats((1 << 26) + 2 * WIDTH), floats(1 << 24), floats(1 << 25),
				reals, floats(WIDTH), floats(2 * WIDTH));
}

static void decode(const void *detail)
{
	ops->attention(ops, detail, pool, NULL, reals, floats(1 << 24), floats(1 << 26));
}

static void attentions(void)
{
	double wide = TOKENS * (double)WIDTH, scores = 4 * 32 * 128.0 * 128;

	report("attention 4x32 heads of 128, 128 tokens", measure(attention, &training),
	       wide * 14 + scores * 4, 4 * scores * 128);
	report("attention_backward", measure(attention_backward, &training), wide * 28 + scores * 4,
	       8 * scores * 128);
	report("attention 32 heads, 2048 tokens", measure(attention, &longer), wide * 4 * 14,
	       4.0 * 32 * 2048 * 2048 / 2 * 128);
	report("attention 64 sequences, token 128", measure(decode, &decoding),
	       64 * 128 * 4096.0 * 8, 0);
}

/* ---- Loss ---- */

static void compare(const void *detail)
{
	ops->compare(ops, (void *)(pool + POOL + (64 << 20)), pool + POOL, reals, VOCABULARY,
		     floats(1 << 25), VOCABULARY, NULL, TOKENS, VOCABULARY, 1,
		     *(const double *)detail, 1);
}

static void sample(const void *detail)
{
	(void)detail;
	ops->sample(ops, (void *)pool, reals, floats(1 << 25), 64, VOCABULARY, 1);
}

static void adam(const void *detail)
{
	static const struct bdx_adam a = { .rate = 0.01,
					   .beta1 = 0.9,
					   .beta2 = 0.99,
					   .epsilon = 1e-8,
					   .step = 1,
					   .gradient_factor = 1 };

	(void)detail;
	ops->adam(ops, &a, reals, floats(1 << 21), floats(1 << 22), floats(1 << 23),
		  floats(1 << 24), 1361920);
}

static void losses(void)
{
	static const double none = 0, some = 1;
	double logits = TOKENS * (double)VOCABULARY;

	report("compare 512x32000, mse", measure(compare, &none), logits * 10, 0);
	report("compare 512x32000, mse and kl", measure(compare, &some), logits * 10, 0);
	report("sample 64x32000", measure(sample, NULL), 64.0 * VOCABULARY * 4, 0);
	report("adam, 1.36 million scales", measure(adam, NULL), 1361920 * 32.0, 0);
}

static void upload(const void *detail)
{
	ops->upload(ops, pool, detail, 256 << 20);
}

static void transfers(void)
{
	void *pinned = ops->host_alloc(ops, 256 << 20), *plain = malloc(256 << 20);

	if (!pinned || !plain) {
		printf("not ok bench: no host memory\n");
		exit(1);
	}
	memset(plain, 1, 256 << 20);
	printf("%-44s %9.1f GB/s\n", "upload, pinned", 0.268435456 / measure(upload, pinned));
	printf("%-44s %9.1f GB/s\n", "upload, ordinary memory",
	       0.268435456 / measure(upload, plain));
	ops->host_free(ops, pinned);
	free(plain);
}

int main(int argc, char **argv)
{
	const size_t block = 4 << 20;
	uint64_t state = 88172645463325252u;
	uint16_t *brain;
	float *single;
	size_t i;
	int ret;

	if (argc == 3) {
		bandwidth = 1e9 * atof(argv[1]);
		arithmetic = 1e12 * atof(argv[2]);
	}
	ret = bdx_ops_cuda_open(&ops, 0, BD_BF16, &err);
	if (ret) {
		printf("%s bench: %s\n", ret == -ENODEV ? "skip" : "not ok", err.text);
		return ret != -ENODEV;
	}
	pool = ops->alloc(ops, 2 * POOL, &err);
	reals = ops->alloc(ops, POOL, &err);
	brain = malloc(block * sizeof(*brain));
	single = malloc(block * sizeof(*single));
	if (!pool || !reals || !brain || !single) {
		printf("not ok bench: %s\n", err.text);
		return 1;
	}
	for (i = 0; i < block; i++) {
		union { float f; uint32_t bits; } x;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		single[i] = (float)((double)(state >> 11) * 0x1p-53 - 0.5) * 3.4f;
		x.f = 0.02f * single[i];
		brain[i] = (uint16_t)(x.bits >> 16);
	}
	ops->upload(ops, pool, brain, block * sizeof(*brain));
	ops->upload(ops, reals, single, block * sizeof(*single));
	for (i = block * sizeof(*brain); i < 2 * POOL; i += block * sizeof(*brain))
		ops->copy(ops, pool + i, pool, block * sizeof(*brain));
	for (i = block; i < POOL / sizeof(*reals); i += block)
		ops->copy(ops, reals + i, reals, block * sizeof(*single));
	printf("%s; least time at %.0f GB/s and %.0f TFLOP/s\n", ops->name, bandwidth * 1e-9,
	       arithmetic * 1e-12);
	printf("%-44s %12s %12s %6s\n", "", "measured", "least", "");
	weights();
	products();
	layers();
	attentions();
	losses();
	transfers();
	free(brain);
	free(single);
	bdx_ops_close(ops);
	printf("ok bench\n");
	return 0;
}
