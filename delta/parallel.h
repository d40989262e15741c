/* SPDX-License-Identifier: Apache-2.0 */
/* parallel.h: run numbered pieces of work on all cores.
 *
 * The calling thread does not work; it wakes five times a second for `tick`, so that progress can
 * be shown and an interruption noticed without the workers knowing of either. */
#ifndef BD_PARALLEL_H
#define BD_PARALLEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* How a program follows and stops long work (import, export, verify). All members may be NULL. */
struct bd_watch {
	/* Called from the thread that started the work: bytes done so far and in all. */
	void (*progress)(void *context, unsigned long long done, unsigned long long total);
	/* A sentence worth showing that is no error. */
	void (*note)(void *context, const char *text);
	void *context;
	/* Becomes non-zero, from a signal handler perhaps, when the work should stop: -EINTR. */
	const atomic_int *cancel;
};

struct bd_parallel {
	size_t count;     /* pieces, numbered 0 .. count-1; begun in this order */
	unsigned threads; /* 0: one per core */
	/* Returns 0 or a negative errno; the first failure stops the start of further pieces. */
	int (*work)(void *context, size_t index, struct bd_error *err);
	/* A piece has failed or the work is to stop: wake workers that wait for each other. May be
	 * NULL. */
	void (*abort)(void *context);
	/* Now and then, and at the end, from the calling thread. NULL allowed. */
	void (*tick)(void *context);
	void *context;
	const atomic_int *cancel;
};

/* The error of the piece with the lowest number among those that failed first, or -EINTR. */
int bd_parallel_run(const struct bd_parallel *p, struct bd_error *err);

/* Cores that this process may use. */
unsigned bd_parallel_cores(void);

#endif
