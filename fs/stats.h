/* SPDX-License-Identifier: Apache-2.0 */
/* stats.h: what the daemon has done, counted while it does it.
 *
 * Relaxed atomics: any thread may add, and a reader sees each figure as it was at about the same time. */
#ifndef BDFS_STATS_H
#define BDFS_STATS_H

#include <stdatomic.h>
#include <stdint.h>

struct bdfs_counters {
	_Atomic uint64_t opens;
	_Atomic uint64_t open_files;  /* now */
	_Atomic uint64_t reads;       /* requests answered with bytes */
	_Atomic uint64_t bytes;       /* given out */
	_Atomic uint64_t base_bytes;  /* of the base that were touched for them */
	_Atomic uint64_t delta_bytes; /* of the delta */
	_Atomic uint64_t errors;      /* requests to open or read that failed */
};

/* How long reads took: eight buckets for each power of two nanoseconds. */
#define BDFS_BUCKETS 320 /* up to 2^40 ns, some 18 minutes */
struct bdfs_latency {
	_Atomic uint64_t buckets[BDFS_BUCKETS];
	_Atomic uint64_t longest; /* ns */
};

/* What percentile of a distribution lies at or below; microseconds, at most an eighth too high. */
struct bdfs_percentiles {
	uint64_t count;
	double p50, p90, p99, max;
};

static inline void bdfs_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t bdfs_counted(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t bdfs_now(void);
void bdfs_latency_add(struct bdfs_latency *latency, uint64_t ns);
void bdfs_latency_percentiles(const struct bdfs_latency *latency, struct bdfs_percentiles *result);

#endif
