/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu.h: what the files of the C reference share. Private to them.
 *
 * ops_cpu.c has the table's memory; ops_cpu_f32.c and ops_cpu_f64.c have the operations, both from
 * ops_cpu_impl.h. */
#ifndef BDX_OPS_CPU_H
#define BDX_OPS_CPU_H

#include <stdatomic.h>

#include "blas.h"
#include "ops.h"
#include "pool.h"

struct bdx_cpu {
	struct bdx_ops ops; /* first, so that a pointer to it is one to this */
	char name[64];
	struct bdx_pool *pool;
	struct bdx_blas blas;
	size_t used, peak; /* bytes */
	void *scratch;
	size_t scratch_size;
	struct bd_error failure; /* code 0: none yet */
	const atomic_int *cancel; /* NULL allowed */
};

/* The operations, without what concerns memory, in float and in double. */
extern const struct bdx_ops bdx_ops_cpu_f32, bdx_ops_cpu_f64;

static inline struct bdx_cpu *bdx_cpu(struct bdx_ops *ops)
{
	return (struct bdx_cpu *)ops;
}

/* Once *cancel is not zero, the operation that runs is left unfinished, which is a failure:
 * -EINTR. */
void bdx_ops_cpu_cancel(struct bdx_ops *ops, const atomic_int *cancel);

/* bdx_pool_run(), unless something failed before. */
void bdx_cpu_run(struct bdx_cpu *cpu, uint64_t count, uint64_t grain,
		 void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread),
		 void *context);

/* `count` times `bytes` of memory with any content, for one operation: valid until the next call.
 * NULL after a failure, which is remembered. */
void *bdx_cpu_scratch(struct bdx_cpu *cpu, size_t count, size_t bytes);

#endif
