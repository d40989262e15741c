/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.h: a model directory: its shards and its tensors by name (sidecars.h: its other files).
 *
 * A checkpoint is a directory with model.safetensors, or with model.safetensors.index.json and the
 * shards that it lists, or an entry of a Hugging Face cache: `models--org--name` (then the snapshot
 * that refs/main names) or one of its snapshots, whose files are links into ../../blobs (hub.h).
 * The index says which files are shards. What they hold counts whether it lists them or not, as transformers
 * loads it; where several shards have a tensor of one name, the one counts that lies where the index says, else
 * the last. A shard that is missing or cut short is an error, other differences are `notes`.
 * All shards are opened, parsed and frozen (file.h) by bd_checkpoint_open; a checkpoint is then
 * immutable and may be read from any thread. */
#ifndef BD_CHECKPOINT_H
#define BD_CHECKPOINT_H

#include "safetensors.h"

#define BD_CHECKPOINT_SINGLE "model.safetensors"
#define BD_CHECKPOINT_INDEX  "model.safetensors.index.json"

struct bd_shard {
	char *name; /* one path component */
	struct bd_file *file;
	struct bd_safetensors *st;
	uint64_t first; /* tensors in the shards before this one */
};

struct bd_checkpoint {
	char *path;     /* the directory that holds the files, after resolving a cache entry */
	char *label;    /* "org/name" for a cache entry, else the last component of path */
	char *revision; /* commit of a cache entry, else NULL */
	struct bd_shard *shards; /* in order of name */
	size_t shard_count;
	uint64_t tensor_count, tensor_bytes;
	bool indexed;      /* the index lists the shards; else there is the single file */
	char **notes;      /* where the index and the shards differ, a line each */
	size_t note_count;
	bool has_copies;             /* private */
	struct bd_name_table *names; /* private: name -> number, counted through all shards */
};

/* Errors: -ENOENT no such directory; -EINVAL not a checkpoint, or an incomplete or damaged one;
 * others from the system (-EACCES, -EMFILE: one descriptor is kept per shard). The sentence says
 * what was found instead and what to do (`.bin` files: convert; adapter_config.json: merge the
 * adapter; a single .safetensors or .gguf file: give the directory). */
int bd_checkpoint_open(struct bd_checkpoint **c, const char *path, struct bd_error *err);
void bd_checkpoint_close(struct bd_checkpoint *c); /* NULL allowed */

/* Constant time (but for the logarithm of the number of shards). NULL where there is none; *shard
 * (may be NULL) says where it lies. */
const struct bd_tensor *bd_checkpoint_find(const struct bd_checkpoint *c, const char *name,
					   const struct bd_shard **shard);
/* Is a tensor of one of its shards there only besides another of its name, which counts? */
bool bd_checkpoint_is_copy(const struct bd_checkpoint *c, const struct bd_tensor *tensor);

#endif
