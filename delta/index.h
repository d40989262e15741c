/* SPDX-License-Identifier: Apache-2.0 */
/* index.h: what model.safetensors.index.json says. Private to checkpoint.c.
 *
 * It decides which files are shards, and of a tensor that lies in several of them which one counts. What
 * it says beyond that may be out of date: programs write wrong sums, and forget or keep names. */
#ifndef BD_INDEX_H
#define BD_INDEX_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "names.h"

struct bd_index {
	char *names;      /* of the tensors, one after the other with their NUL bytes */
	size_t names_size;
	char **shards;    /* in order of appearance */
	size_t shard_count;
	double total_size; /* bytes of all tensors, as metadata says; 0: it does not say */
	/* private: */
	size_t shard_room;
	struct bd_name_table *tensors;     /* name -> number of its shard */
	struct bd_name_table *shard_names; /* name -> number */
};

/* Errors: -ENOENT; -EINVAL not such an index: no JSON, a key that comes twice, a shard's name that is
 * not one path component ending in .safetensors, no shards. */
int bd_index_read(struct bd_index *x, const char *path, struct bd_error *err);
void bd_index_free(struct bd_index *x);

/* The shard that a tensor is in, as the index says; NULL: it does not know the tensor. */
const char *bd_index_shard(const struct bd_index *x, const char *tensor);
bool bd_index_has_shard(const struct bd_index *x, const char *shard);

#endif
