/* SPDX-License-Identifier: Apache-2.0 */
/* source.h: where a model's weights and files come from: a checkpoint directory, or a .bdelta file
 * over its base, read as the mount would show it. Any thread may read. */
#ifndef BDX_SOURCE_H
#define BDX_SOURCE_H

#include "checkpoint.h"
#include "view.h"

struct bdx_source; /* opaque */

struct bdx_weight { /* a tensor of it */
	const struct bd_tensor *tensor;
	const void *where; /* private */
};

/* A directory as bd_checkpoint_open takes it. *source is the caller's: bdx_source_close. */
int bdx_source_open(struct bdx_source **source, const char *path, struct bd_error *err);
/* What a delta stands for. Borrows the view, which must live longer. */
int bdx_source_view(struct bdx_source **source, struct bd_view *view, struct bd_error *err);
void bdx_source_close(struct bdx_source *source); /* NULL allowed */

/* What messages call it. */
const char *bdx_source_name(const struct bdx_source *source);
/* False where there is no tensor of that name. */
bool bdx_source_find(const struct bdx_source *source, const char *name, struct bdx_weight *weight);
/* `size` bytes of a tensor from byte `offset` on. */
int bdx_source_read(struct bdx_source *source, const struct bdx_weight *weight, void *to,
		    uint64_t offset, size_t size, struct bd_error *err);
/* A whole small file (config.json, tokenizer.json): malloced, with a NUL byte after its *size
 * bytes. -ENOENT where there is none. */
int bdx_source_file(struct bdx_source *source, const char *name, char **data, size_t *size,
		    struct bd_error *err);
/* Is it what the view's delta was made from? -EINVAL where it is not, as far as can be told from small
 * tensors that a delta keeps exactly, which must be the same, and from samples of the others, which
 * must have changed in the directions that the delta says. */
int bdx_source_match(struct bdx_source *source, struct bd_view *view, struct bd_error *err);
/* 0 while no file that it reads has changed (bd_file_check). */
int bdx_source_check(struct bdx_source *source, struct bd_error *err);

#endif
