/* SPDX-License-Identifier: Apache-2.0 */
/* device.h: choosing where the engine runs. */
#ifndef BDX_DEVICE_H
#define BDX_DEVICE_H

#include "arch.h"
#include "ops.h"
#include "parallel.h"

/* Is TEXT "auto", "cpu", "cuda" or "cuda:N"? */
bool bdx_device_is_valid(const char *text);

/* Open what TEXT names, for a model whose weights are of `dtype`. "auto": the first CUDA device
 * where there is one that works, else the CPU; *why_not (may be NULL; `size` bytes) then says
 * why there is no GPU. */
int bdx_device_open(struct bdx_ops **ops, const char *text, enum bd_dtype dtype, unsigned threads,
		    char *why_not, size_t size, struct bd_error *err);
/* 0 where TEXT names a device that can be opened, to be known before other work; "auto" always is. */
int bdx_device_check(const char *text, struct bd_error *err);
bool bdx_device_is_cpu(const struct bdx_ops *ops);
/* Work on the CPU, whose operations may take long, then stops inside of one when `watch` (which
 * must live as long) is cancelled: everything after that fails with -EINTR. Without meaning for
 * a GPU. */
void bdx_device_watch(struct bdx_ops *ops, const struct bd_watch *watch);

/* Seconds that `ops` would need for this many floating-point operations of matrix products, from
 * a short measurement of one product. */
int bdx_device_estimate(struct bdx_ops *ops, double operations, double *seconds,
			struct bd_error *err);
/* Longest estimate, in seconds, that an import waits for without being asked to. */
#define BDX_PATIENCE 3600.0
/* "40 s", "12 minutes", "3 hours", "5 days" */
void bdx_device_duration(double seconds, char text[32]);

/* Weights in the products of one pass over a token. */
double bdx_config_products(const struct bdx_config *config);
/* The type of most of a model's weights: the operands that its products take. -EINVAL where
 * there are none, -ENOTSUP where they are not BF16, F16 or F32. */
int bdx_config_dtype(const struct bdx_config *config, const struct bdx_source *source,
		     enum bd_dtype *dtype, struct bd_error *err);

/* The share of a longer work's progress that one phase of it has: shown as parts of a thousand. */
struct bdx_phase {
	const struct bd_watch *outer;
	double from, to;        /* of 1000 */
	struct bd_watch watch;  /* to be given to the phase */
};
void bdx_phase_begin(struct bdx_phase *phase, const struct bd_watch *outer, double from, double to);
bool bdx_is_cancelled(const struct bd_watch *watch);
/* -EINTR "interrupted" where it is, else 0. */
int bdx_check_cancel(const struct bd_watch *watch, struct bd_error *err);
void bdx_progress(const struct bd_watch *watch, uint64_t done, uint64_t total);
void bdx_note(const struct bd_watch *watch, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
double bdx_now(void); /* seconds, monotonic */

#endif
