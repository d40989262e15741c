/* SPDX-License-Identifier: Apache-2.0 */
/* device.c: choosing where the engine runs, and how long that would take. See device.h. */
#include "device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops_cpu.h"

/* The number of "cuda" (0) or "cuda:N"; -1 for other text. */
static int cuda_index(const char *text)
{
	char *end;
	long index;

	if (strcmp(text, "cuda") == 0)
		return 0;
	if (strncmp(text, "cuda:", 5) != 0 || text[5] < '0' || text[5] > '9')
		return -1;
	index = strtol(text + 5, &end, 10);
	return *end == '\0' && index < 1024 ? (int)index : -1;
}

bool bdx_device_is_valid(const char *text)
{
	return strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || cuda_index(text) >= 0;
}

int bdx_device_open(struct bdx_ops **ops, const char *text, enum bd_dtype dtype, unsigned threads,
		    char *why_not, size_t size, struct bd_error *err)
{
	struct bd_error no_gpu = { 0 };

	if (why_not && size)
		*why_not = '\0';
	if (!bdx_device_is_valid(text))
		return bd_error_set(err, -EINVAL, "the device is auto, cpu, cuda or cuda:N, not '%s'",
				    text);
	if (strcmp(text, "auto") == 0) {
		if (bdx_ops_cuda_open(ops, 0, dtype, &no_gpu) == 0)
			return 0;
		if (why_not)
			snprintf(why_not, size, "%s", no_gpu.text);
	} else if (strcmp(text, "cpu") != 0) {
		return bdx_ops_cuda_open(ops, (unsigned)cuda_index(text), dtype, err);
	}
	return bdx_ops_cpu_open(ops, BD_F32, threads, err);
}

int bdx_device_check(const char *text, struct bd_error *err)
{
	struct bd_error why = { 0 };
	struct bdx_ops *ops;
	int rc;

	if (strncmp(text, "cuda", 4) != 0)
		return 0;
	rc = bdx_device_open(&ops, text, BD_BF16, 0, NULL, 0, &why);
	if (rc == 0)
		bdx_ops_close(ops);
	if (rc == 0 || rc == -ENOMEM) /* what others take of its memory, they may give back */
		return 0;
	if (err)
		*err = why;
	return rc;
}

bool bdx_device_is_cpu(const struct bdx_ops *ops)
{
	return strncmp(ops->name, "CPU", 3) == 0;
}

void bdx_device_watch(struct bdx_ops *ops, const struct bd_watch *watch)
{
	if (bdx_device_is_cpu(ops))
		bdx_ops_cpu_cancel(ops, watch->cancel);
}

int bdx_device_estimate(struct bdx_ops *ops, double operations, double *seconds,
			struct bd_error *err)
{
	enum { SIDE = 512, TIMES = 4 };
	size_t operand = SIDE * SIDE * bdx_operand_size(ops);
	char *memory = ops->alloc(ops, 2 * operand + SIDE * SIDE * bdx_real_size(ops), err);
	double started;
	int rc;

	if (!memory)
		return err ? err->code : -ENOMEM;
	started = bdx_now();
	for (int i = 0; i <= TIMES; i++) {
		if (i == 1) { /* the first one woke threads */
			ops->finish(ops, NULL);
			started = bdx_now();
		}
		ops->gemm(ops, false, true, SIDE, SIDE, SIDE, 1, memory, SIDE, memory + operand, SIDE,
			  0, memory + 2 * operand, BDX_REAL, SIDE);
	}
	rc = ops->finish(ops, err);
	*seconds = (bdx_now() - started) / (TIMES * 2.0 * SIDE * SIDE * SIDE) * operations;
	ops->free(ops, memory);
	return rc;
}

void bdx_device_duration(double seconds, char text[32])
{
	if (seconds < 100)
		snprintf(text, 32, "%.0f s", seconds);
	else if (seconds < 100 * 60)
		snprintf(text, 32, "%.0f minutes", seconds / 60);
	else if (seconds < 48 * 3600)
		snprintf(text, 32, "%.0f hours", seconds / 3600);
	else
		snprintf(text, 32, "%.0f days", seconds / 86400);
}

double bdx_config_products(const struct bdx_config *c)
{
	double width = (double)c->width, heads = (double)c->heads, kv = (double)c->kv_heads;
	double attention = width * (double)c->head_dim * (2 * heads + 2 * kv);
	double mlp = width * (double)c->mlp_width * (c->gated ? 3 : 2);

	return (double)c->layers * (attention + mlp) + width * (double)c->vocabulary;
}

int bdx_config_dtype(const struct bdx_config *config, const struct bdx_source *source,
		     enum bd_dtype *dtype, struct bd_error *err)
{
	struct bdx_weight weight;
	char name[256];

	snprintf(name, sizeof(name), config->names->down, 0u);
	if (!bdx_source_find(source, name, &weight))
		return bd_error_set(err, -EINVAL, "%s: there is no tensor %s", bdx_source_name(source),
				    name);
	*dtype = weight.tensor->dtype;
	if (!bd_dtype_is_weight(*dtype))
		return bd_error_set(err, -ENOTSUP, "%s: tensor %s has the type %s; the engine takes "
				    "BF16, F16 and F32", bdx_source_name(source), name,
				    bd_dtype_name(*dtype));
	return 0;
}

/* ---- Progress ---- */

static void phase_progress(void *context, unsigned long long done, unsigned long long total)
{
	const struct bdx_phase *p = context;
	double share = total ? (double)done / (double)total : 1;

	p->outer->progress(p->outer->context,
			   (unsigned long long)(p->from + share * (p->to - p->from)), 1000);
}

static void phase_note(void *context, const char *text)
{
	const struct bdx_phase *p = context;

	p->outer->note(p->outer->context, text);
}

void bdx_phase_begin(struct bdx_phase *phase, const struct bd_watch *outer, double from, double to)
{
	*phase = (struct bdx_phase){ .outer = outer, .from = from, .to = to };
	phase->watch = (struct bd_watch){
		.progress = outer->progress ? phase_progress : NULL,
		.note = outer->note ? phase_note : NULL,
		.context = phase,
		.cancel = outer->cancel,
	};
}

bool bdx_is_cancelled(const struct bd_watch *watch)
{
	return watch && watch->cancel && *watch->cancel;
}

int bdx_check_cancel(const struct bd_watch *watch, struct bd_error *err)
{
	return bdx_is_cancelled(watch) ? bd_error_set(err, -EINTR, "interrupted") : 0;
}

void bdx_progress(const struct bd_watch *watch, uint64_t done, uint64_t total)
{
	if (watch && watch->progress)
		watch->progress(watch->context, done, total);
}

void bdx_note(const struct bd_watch *watch, const char *format, ...)
{
	char text[sizeof(((struct bd_error *)0)->text)];
	va_list args;

	if (!watch || !watch->note)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	watch->note(watch->context, text);
}

double bdx_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
