/* SPDX-License-Identifier: Apache-2.0 */
/* stats.c: what the daemon has done, see stats.h. */
#include "stats.h"

#include <time.h>

uint64_t bdfs_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Values below 8 have a bucket each; above, the top four bits choose: the highest one the power of two,
 * the three below it an eighth of that. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned top, bucket;

	if (ns < 8)
		return (unsigned)ns;
	top = 63 - (unsigned)__builtin_clzll(ns);
	bucket = (top - 2) * 8 + (unsigned)(ns >> (top - 3) & 7);
	return bucket < BDFS_BUCKETS ? bucket : BDFS_BUCKETS - 1;
}

/* The largest value that falls into a bucket. */
static uint64_t bucket_end(unsigned bucket)
{
	unsigned top = bucket / 8 + 2;

	if (bucket < 8)
		return bucket;
	return ((uint64_t)(8 + bucket % 8 + 1) << (top - 3)) - 1;
}

void bdfs_latency_add(struct bdfs_latency *latency, uint64_t ns)
{
	uint64_t longest = bdfs_counted(&latency->longest);

	bdfs_count(&latency->buckets[bucket_of(ns)], 1);
	while (ns > longest && !atomic_compare_exchange_weak_explicit(
		       &latency->longest, &longest, ns, memory_order_relaxed, memory_order_relaxed))
		;
}

void bdfs_latency_percentiles(const struct bdfs_latency *latency, struct bdfs_percentiles *result)
{
	uint64_t copy[BDFS_BUCKETS], seen = 0, longest = bdfs_counted(&latency->longest);
	const struct { double part; double *value; } wanted[] = {
		{ 0.50, &result->p50 }, { 0.90, &result->p90 }, { 0.99, &result->p99 },
	};
	unsigned next = 0;

	*result = (struct bdfs_percentiles){ .max = (double)longest / 1000 };
	for (unsigned i = 0; i < BDFS_BUCKETS; i++) {
		copy[i] = bdfs_counted(&latency->buckets[i]);
		result->count += copy[i];
	}
	for (unsigned i = 0; i < BDFS_BUCKETS && next < 3; i++) {
		uint64_t end = bucket_end(i) < longest ? bucket_end(i) : longest;

		seen += copy[i];
		while (next < 3 && seen && (double)seen >= wanted[next].part * (double)result->count)
			*wanted[next++].value = (double)end / 1000;
	}
}
