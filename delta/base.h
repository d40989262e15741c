/* SPDX-License-Identifier: Apache-2.0 */
/* base.h: a checkpoint in the role of a base: its identity (FORMAT.md section 5).
 *
 * Immutable after bd_base_open; any thread may use it. Several deltas share one base. */
#ifndef BD_BASE_H
#define BD_BASE_H

#include "checkpoint.h"
#include "hash.h"

#define BD_SAMPLE 4096 /* bytes of a sample */

struct bd_base_tensor {
	const struct bd_tensor *tensor;
	struct bd_shard *shard;
	uint64_t sample; /* XXH3-64 */
};

struct bd_base {
	struct bd_checkpoint *checkpoint; /* owned */
	struct bd_base_tensor *tensors;   /* as the checkpoint numbers them, copies (checkpoint.h) too */
	size_t count;                     /* without copies */
	char digest[BD_HASH];
};

/* Open the checkpoint at PATH and read the samples of all its tensors. Its shards are slim
 * (bd_safetensors_slim): bases are open for long. */
int bd_base_open(struct bd_base **base, const char *path, struct bd_error *err);
void bd_base_close(struct bd_base *base); /* NULL allowed */

/* Constant time, as bd_checkpoint_find. NULL where there is none. */
const struct bd_base_tensor *bd_base_find(const struct bd_base *base, const char *name);

/* 0 while the contents of no file of the base have changed since it was opened (bd_file_check), else
 * -EIO and which. */
int bd_base_check(const struct bd_base *base, struct bd_error *err);

#endif
