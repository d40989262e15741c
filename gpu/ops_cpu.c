/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu.c: opening the C reference, and its memory; see ops.h. */
#include "ops_cpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sign.h"

#define ALIGNMENT 256
#define MIB (1u << 20)

/* What alloc() puts before each piece of memory. */
struct header {
	void *start;  /* what calloc() returned */
	size_t bytes; /* as wanted */
};

/* ---- What is free ---- */

/* The number after `key` in a text file of the system, SIZE_MAX where there is none. */
static size_t number_in(const char *path, const char *key)
{
	FILE *file = fopen(path, "re");
	char line[256];
	unsigned long long number = SIZE_MAX;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)) &&
		    sscanf(line + strlen(key), "%llu", &number) == 1)
			break;
	if (file)
		fclose(file);
	return (size_t)number;
}

/* Of the machine, or of the container where that has a limit. Pages of files do not count: the
 * kernel gives them up. */
static size_t free_memory(void)
{
	size_t bytes = number_in("/proc/meminfo", "MemAvailable:");
	size_t limit = number_in("/sys/fs/cgroup/memory.max", "");
	size_t taken = number_in("/sys/fs/cgroup/memory.stat", "anon");

	bytes = bytes > SIZE_MAX / 1024 ? SIZE_MAX : bytes * 1024;
	if (limit == SIZE_MAX || taken == SIZE_MAX)
		return bytes;
	limit = limit > taken ? limit - taken : 0;
	return limit < bytes ? limit : bytes;
}

/* ---- Failure, threads, scratch ---- */

static int out_of_memory(struct bd_error *err, size_t bytes, size_t available)
{
	return bd_error_set(err, -ENOMEM, "not enough memory: %zu MiB wanted, %zu MiB free; close "
			    "other programs or use a machine with more",
			    bytes / MIB + 1, available / MIB);
}

struct job {
	const atomic_int *cancel;
	void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread);
	void *context;
};

static bool is_cancelled(const atomic_int *cancel)
{
	return cancel && *cancel;
}

static void work_unless_cancelled(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct job *job = context;

	if (!is_cancelled(job->cancel))
		job->work(job->context, first, end, thread);
}

void bdx_ops_cpu_cancel(struct bdx_ops *ops, const atomic_int *cancel)
{
	bdx_cpu(ops)->cancel = cancel;
}

void bdx_cpu_run(struct bdx_cpu *cpu, uint64_t count, uint64_t grain,
		 void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread),
		 void *context)
{
	struct job job = { cpu->cancel, work, context };

	if (cpu->failure.code)
		return;
	bdx_pool_run(cpu->pool, count, grain, work_unless_cancelled, &job);
	if (is_cancelled(cpu->cancel))
		bd_error_set(&cpu->failure, -EINTR, "interrupted");
}

static void account(struct bdx_cpu *cpu, size_t bytes)
{
	cpu->used += bytes;
	if (cpu->used > cpu->peak)
		cpu->peak = cpu->used;
}

void *bdx_cpu_scratch(struct bdx_cpu *cpu, size_t count, size_t bytes)
{
	size_t size, available;

	if (cpu->failure.code)
		return NULL;
	if (__builtin_mul_overflow(count, bytes, &size))
		size = SIZE_MAX;
	if (size <= cpu->scratch_size)
		return cpu->scratch;
	free(cpu->scratch);
	cpu->used -= cpu->scratch_size;
	cpu->scratch_size = 0;
	available = free_memory();
	cpu->scratch = size > available ? NULL
		: aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
	if (!cpu->scratch) {
		out_of_memory(&cpu->failure, size, available);
		return NULL;
	}
	cpu->scratch_size = size;
	account(cpu, size);
	return cpu->scratch;
}

/* ---- Memory ---- */

static struct header *header_of(void *memory)
{
	return (struct header *)((char *)memory - sizeof(struct header));
}

static void *cpu_alloc(struct bdx_ops *ops, size_t bytes, struct bd_error *err)
{
	/* Whoever reads sign bits may read past them. */
	const size_t extra = 2 * ALIGNMENT + BD_SIGN_SLACK;
	struct bdx_cpu *cpu = bdx_cpu(ops);
	size_t available;
	char *start = NULL, *memory;

	if (cpu->failure.code) {
		bd_error_set(err, cpu->failure.code == -EINTR ? -EINTR : -EIO, "%s",
			     cpu->failure.text);
		return NULL;
	}
	/* The kernel promises more than it has, and ends the process when it cannot keep that.
	 * Small pieces come from what the C library holds anyway. */
	available = bytes < MIB ? SIZE_MAX : free_memory();
	if (bytes <= SIZE_MAX - extra && bytes <= available)
		start = calloc(1, bytes + extra);
	if (!start) {
		out_of_memory(err, bytes, free_memory());
		return NULL;
	}
	memory = start + sizeof(struct header);
	memory += -(uintptr_t)memory % ALIGNMENT;
	*header_of(memory) = (struct header){ start, bytes };
	account(cpu, bytes);
	return memory;
}

static void cpu_free(struct bdx_ops *ops, void *memory)
{
	if (!memory)
		return;
	bdx_cpu(ops)->used -= header_of(memory)->bytes;
	free(header_of(memory)->start);
}

static size_t cpu_available(struct bdx_ops *ops)
{
	(void)ops;
	return free_memory();
}

static size_t cpu_peak(struct bdx_ops *ops)
{
	return bdx_cpu(ops)->peak;
}

static void *cpu_host_alloc(struct bdx_ops *ops, size_t bytes)
{
	(void)ops;
	return malloc(bytes ? bytes : 1);
}

static void cpu_host_free(struct bdx_ops *ops, void *memory)
{
	(void)ops;
	free(memory);
}

/* Called from any thread, so not even the failure is looked at. */
static void cpu_upload(struct bdx_ops *ops, void *to, const void *host, size_t bytes)
{
	(void)ops;
	if (bytes)
		memcpy(to, host, bytes);
}

static void cpu_copy(struct bdx_ops *ops, void *to, const void *from, size_t bytes)
{
	if (bytes && !bdx_cpu(ops)->failure.code)
		memcpy(to, from, bytes);
}

static void cpu_zero(struct bdx_ops *ops, void *memory, size_t bytes)
{
	if (bytes && !bdx_cpu(ops)->failure.code)
		memset(memory, 0, bytes);
}

static int cpu_finish(struct bdx_ops *ops, struct bd_error *err)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);

	if (cpu->failure.code && err)
		*err = cpu->failure;
	return cpu->failure.code;
}

/* ---- Conversion ---- */

struct conversion {
	void *to;
	const void *from;
	enum bd_dtype to_dtype, from_dtype;
};

/* To binary32 so that rounding this again, to fewer digits, is as good as rounding once: what is
 * not exact becomes odd. */
static float round_to_odd(double x)
{
	float f = (float)x;
	uint32_t bits;

	if ((double)f == x || x != x)
		return f;
	memcpy(&bits, &f, sizeof(bits));
	if (__builtin_fabs((double)f) > __builtin_fabs(x))
		bits--;
	bits |= 1;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

static void convert_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct conversion *c = context;
	uint64_t i;

	(void)thread;
	for (i = first; i < end; i++) {
		double x;

		switch (c->from_dtype) {
		case BD_F64:
			x = ((const double *)c->from)[i];
			break;
		case BD_F32:
			x = ((const float *)c->from)[i];
			break;
		case BD_BF16:
			x = bd_bf16_to_float(((const uint16_t *)c->from)[i]);
			break;
		default:
			x = bd_f16_to_float(((const uint16_t *)c->from)[i]);
		}
		switch (c->to_dtype) {
		case BD_F64:
			((double *)c->to)[i] = x;
			break;
		case BD_F32:
			((float *)c->to)[i] = (float)x;
			break;
		case BD_BF16:
			((uint16_t *)c->to)[i] = bd_bf16_from_float(round_to_odd(x));
			break;
		default:
			((uint16_t *)c->to)[i] = bd_f16_from_float(round_to_odd(x));
		}
	}
}

static void cpu_convert(struct bdx_ops *ops, void *to, enum bd_dtype to_dtype, const void *from,
			enum bd_dtype from_dtype, uint64_t count)
{
	struct conversion c = { to, from, to_dtype, from_dtype };

	if (to_dtype == from_dtype)
		cpu_copy(ops, to, from, count * (bd_dtype_bits(to_dtype) / 8));
	else
		bdx_cpu_run(bdx_cpu(ops), count, 1 << 14, convert_piece, &c);
}

/* ---- The table ---- */

static void cpu_close(struct bdx_ops *ops)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);

	bdx_pool_close(cpu->pool);
	bdx_blas_close(&cpu->blas);
	free(cpu->scratch);
	free(cpu);
}

int bdx_ops_cpu_open(struct bdx_ops **ops, enum bd_dtype real, unsigned threads,
		     struct bd_error *err)
{
	struct bdx_cpu *cpu = calloc(1, sizeof(*cpu));
	int rc;

	if (!cpu)
		return bd_error_set(err, -ENOMEM, "not enough memory");
	rc = bdx_pool_open(&cpu->pool, threads, err);
	if (rc) {
		free(cpu);
		return rc;
	}
	bdx_blas_open(&cpu->blas);
	threads = bdx_pool_threads(cpu->pool);
	snprintf(cpu->name, sizeof(cpu->name), "CPU (%s%s, %u thread%s)",
		 real == BD_F64 ? "double precision, " : "",
		 cpu->blas.library ? "OpenBLAS" : "no OpenBLAS", threads, threads == 1 ? "" : "s");
	cpu->ops = real == BD_F64 ? bdx_ops_cpu_f64 : bdx_ops_cpu_f32;
	cpu->ops.name = cpu->name;
	cpu->ops.alloc = cpu_alloc;
	cpu->ops.free = cpu_free;
	cpu->ops.available = cpu_available;
	cpu->ops.peak = cpu_peak;
	cpu->ops.host_alloc = cpu_host_alloc;
	cpu->ops.host_free = cpu_host_free;
	cpu->ops.upload = cpu_upload;
	cpu->ops.download = cpu_copy;
	cpu->ops.copy = cpu_copy;
	cpu->ops.zero = cpu_zero;
	cpu->ops.convert = cpu_convert;
	cpu->ops.finish = cpu_finish;
	cpu->ops.close = cpu_close;
	*ops = &cpu->ops;
	return 0;
}
