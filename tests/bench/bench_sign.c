/* SPDX-License-Identifier: Apache-2.0 */
/* bench_sign.c: speed of sign encoding on one core, beside memcpy in the same run.
 *
 * Prints lines "name GB/s ratio": for rebuilding, GB of output written per second; for extraction,
 * GB read from both checkpoints; for memcpy, GB copied. The ratio is to the memcpy of the same
 * kind: "hot" works on 256 KiB again and again, "stream" walks through 64 MiB. All kinds are timed
 * in turns, and the median over the rounds is printed, so a busy neighbour slows all alike. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sign.h"

#define ROUNDS 15
#define TURN_NS 10e6 /* time given to one kind in one round */
#define HOT (256u << 10)
#define STREAM (64u << 20)
#define COLS 4096u
#define CASES_MAX 64

enum work { COPY, REBUILD, EXTRACT };

struct bench {
	char name[64];
	enum work work;
	enum bd_cpu cpu;
	enum bd_dtype dtype; /* on both sides */
	unsigned planes;
	size_t size;         /* bytes written by COPY and REBUILD, bytes read by EXTRACT */
	double gbs[ROUNDS];
};

static uint8_t *from, *to, *bits;
static float *row, *col, *col_abs;
static double *row_abs;

static void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "bench_sign: out of memory\n");
		exit(1);
	}
	return p;
}

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void work_once(const struct bench *b)
{
	size_t elements = b->size / (bd_dtype_bits(b->dtype) / 8);
	unsigned p;

	if (b->work == COPY) {
		memcpy(to, from, b->size);
	} else if (b->work == REBUILD) {
		struct bd_sign_run run = {
			.cols = COLS,
			.count = elements,
			.planes = b->planes,
			.base_dtype = b->dtype,
			.out_dtype = b->dtype,
		};

		for (p = 0; p < b->planes; p++) {
			run.bits[p] = bits;
			run.row[p] = row;
			run.col[p] = col;
		}
		bd_sign_rebuild_at(b->cpu, &run, to, from);
	} else {
		struct bd_sign_stats stats = { .row_abs = row_abs, .col_abs = col_abs };

		bd_sign_extract_at(b->cpu, from, b->dtype, from + b->size / 2, b->dtype,
				   elements / 2 / COLS, COLS, to, 0, &stats);
	}
	__asm__ volatile("" : : "r"(to) : "memory"); /* the copy must not be optimised away */
}

static double measure(const struct bench *b)
{
	double begin = now_ns(), spent;
	size_t n = 0;

	do {
		work_once(b);
		n++;
		spent = now_ns() - begin;
	} while (spent < TURN_NS);
	return (double)n * (double)b->size / spent;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct bench *add(struct bench *b, enum work work, enum bd_cpu cpu, enum bd_dtype dtype,
			 unsigned planes, size_t size)
{
	const char *where = size == HOT ? "hot" : "stream";

	b->work = work;
	b->cpu = cpu;
	b->dtype = dtype;
	b->planes = planes;
	b->size = size;
	if (work == COPY)
		snprintf(b->name, sizeof(b->name), "memcpy_%s", where);
	else if (work == REBUILD)
		snprintf(b->name, sizeof(b->name), "rebuild_%s_%s_%uplane_%s", bd_cpu_name(cpu),
			 bd_dtype_name(dtype), planes, where);
	else
		snprintf(b->name, sizeof(b->name), "extract_%s_%s_%s", bd_cpu_name(cpu),
			 bd_dtype_name(dtype), where);
	return b + 1;
}

int main(void)
{
	static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32 };
	static struct bench benches[CASES_MAX];
	struct bench *end = benches, *b;
	uint32_t seed = 1;
	unsigned round, i;
	size_t k;
	int cpu;

	from = must(malloc(STREAM));
	to = must(malloc(STREAM));
	bits = must(malloc(STREAM / 16 + BD_SIGN_SLACK));
	row = must(malloc(STREAM / 2 / COLS * sizeof(*row)));
	row_abs = must(malloc(STREAM / 4 / COLS * sizeof(*row_abs)));
	col = must(malloc(COLS * sizeof(*col)));
	col_abs = must(calloc(COLS, sizeof(*col_abs)));
	for (k = 0; k < STREAM / 2; k++) { /* ordinary numbers in each of the dtypes */
		uint16_t h;

		seed = seed * 1664525 + 1013904223;
		h = (uint16_t)(0x2c00 + (seed >> 16) % 0x1000);
		memcpy(from + 2 * k, &h, 2);
	}
	memset(to, 0, STREAM);
	for (k = 0; k < STREAM / 16 + BD_SIGN_SLACK; k++) {
		seed = seed * 1664525 + 1013904223;
		bits[k] = (uint8_t)(seed >> 24);
	}
	for (k = 0; k < STREAM / 2 / COLS; k++)
		row[k] = 0.0123f;
	for (k = 0; k < COLS; k++)
		col[k] = 0.1f;

	end = add(end, COPY, BD_CPU_SCALAR, BD_BF16, 0, HOT);
	end = add(end, COPY, BD_CPU_SCALAR, BD_BF16, 0, STREAM);
	for (cpu = (int)bd_cpu_best(); cpu >= 0; cpu--) {
		for (i = 0; i < 3; i++)
			end = add(end, REBUILD, (enum bd_cpu)cpu, dtypes[i], 1, HOT);
		end = add(end, REBUILD, (enum bd_cpu)cpu, BD_BF16, 4, HOT);
		end = add(end, REBUILD, (enum bd_cpu)cpu, BD_BF16, 1, STREAM);
		for (i = 0; i < 3; i++)
			end = add(end, EXTRACT, (enum bd_cpu)cpu, dtypes[i], 1, HOT);
		end = add(end, EXTRACT, (enum bd_cpu)cpu, BD_BF16, 1, STREAM);
	}
	for (round = 0; round < ROUNDS; round++)
		for (b = benches; b < end; b++)
			b->gbs[round] = measure(b);
	for (b = benches; b < end; b++)
		qsort(b->gbs, ROUNDS, sizeof(b->gbs[0]), ascending);
	for (b = benches; b < end; b++) {
		const struct bench *copy = &benches[b->size == HOT ? 0 : 1];

		printf("%-36s %7.2f %6.2f\n", b->name, b->gbs[ROUNDS / 2],
		       b->gbs[ROUNDS / 2] / copy->gbs[ROUNDS / 2]);
	}
	free(from);
	free(to);
	free(bits);
	free(row);
	free(row_abs);
	free(col);
	free(col_abs);
	return 0;
}
