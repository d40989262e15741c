/* SPDX-License-Identifier: Apache-2.0 */
/* container.h: writing a safetensors file in one sweep, before its header is known.
 *
 * Room for the header is left at the front, from an upper bound, and what is over is filled with
 * spaces, which safetensors allows. Tensors get their places in the order in which they are asked
 * for; the caller keeps wider types first, so that all are aligned. The file appears when it is
 * finished and not before (output.h).
 * Placing is for one thread at a time; writing to places that were given is for any number. */
#ifndef BD_CONTAINER_H
#define BD_CONTAINER_H

#include "output.h"
#include "safetensors.h"

struct bd_placed {
	char *name;
	enum bd_dtype dtype;
	unsigned dims;
	uint64_t shape[BD_MAX_DIMS];
	uint64_t offset, size; /* offset from the start of the data */
};

struct bd_container {
	struct bd_output *output;
	uint64_t reserved;  /* bytes for the header, its length included; a multiple of 8 */
	uint64_t data_size; /* bytes placed so far */
	struct bd_placed *placed;
	size_t count, capacity;
};

/* Bytes of one tensor's part of the header at most, for data of at most `data` bytes in all. `name`
 * are the bytes of its name as a JSON string, `shape` those of its shape's text. */
size_t bd_container_entry_bound(size_t name, enum bd_dtype dtype, size_t shape, uint64_t data);
/* Bytes of NAME as a JSON string, quotes included. */
size_t bd_container_name_bound(const char *name);

/* Begin the file PATH with `bound` bytes for its header, metadata and length included. */
int bd_container_open(struct bd_container **c, const char *path, uint64_t bound,
		      struct bd_error *err);
/* A place for `size` bytes of tensor KIND/NAME (KIND alone where NAME is empty); *offset is from the
 * start of the file. */
int bd_container_place(struct bd_container *c, const char *kind, const char *name,
		       enum bd_dtype dtype, unsigned dims, const uint64_t *shape, uint64_t size,
		       uint64_t *offset, struct bd_error *err);
/* Place and write a U8 vector. */
int bd_container_add(struct bd_container *c, const char *kind, const char *name, const void *data,
		     uint64_t size, struct bd_error *err);
/* Write the header; METADATA is the text of the __metadata__ object. -E2BIG where the bound or the
 * format's limit is exceeded. The file is then complete, but has no name yet: bd_output_commit. */
int bd_container_finish(struct bd_container *c, const char *metadata, struct bd_error *err);
void bd_container_close(struct bd_container *c); /* NULL allowed; uncommitted bytes are gone */

#endif
