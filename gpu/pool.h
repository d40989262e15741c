/* SPDX-License-Identifier: Apache-2.0 */
/* pool.h: threads that stay, for the many short operations of the C reference.
 *
 * delta/parallel.h starts its threads anew for each job, which is right for jobs of seconds; here
 * a job may take some microseconds. */
#ifndef BDX_POOL_H
#define BDX_POOL_H

#include <stdint.h>

#include "error.h"

struct bdx_pool;

/* The calling thread is one of `threads`; 0: one per core. Error: -ENOMEM. */
int bdx_pool_open(struct bdx_pool **pool, unsigned threads, struct bd_error *err);
void bdx_pool_close(struct bdx_pool *pool); /* NULL allowed */
unsigned bdx_pool_threads(const struct bdx_pool *pool);

/* Cut 0 .. count-1 into pieces of `grain` (the last may be shorter) and return when work() was
 * called for each: first is a multiple of grain, end the index after the last, thread a number
 * below bdx_pool_threads() that no other call running at the same time has. Which thread gets which
 * piece is left to chance; the pieces themselves do not depend on the number of threads. One run
 * at a time. */
void bdx_pool_run(struct bdx_pool *pool, uint64_t count, uint64_t grain,
		  void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread),
		  void *context);

#endif
