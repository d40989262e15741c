/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.h: the strict reader of safetensors headers; serves bases, fine-tunes and deltas.
 *
 * File: u64 little-endian header length N, N bytes of JSON, then the tensors' bytes. Accepted is
 * what the reference parser accepts, less what nobody writes and attackers like (listed in
 * safetensors.c): tensors must cover the data area exactly, without holes or overlaps.
 * A parsed header is immutable and may be used from any thread. */
#ifndef BD_SAFETENSORS_H
#define BD_SAFETENSORS_H

#include "dtype.h"
#include "error.h"
#include "file.h"
#include "shapes.h"

#define BD_MAX_DIMS 8
#define BD_MAX_NAME 1024                /* bytes of a tensor name */
#define BD_MAX_HEADER (100u * 1000 * 1000)

struct bd_tensor {
	const char *name; /* UTF-8, NUL-terminated, 1 to BD_MAX_NAME bytes, no control characters */
	enum bd_dtype dtype;
	unsigned dims;
	const uint64_t *shape; /* `dims` numbers, each at most INT64_MAX */
	uint64_t count;  /* elements; rows, columns and bits fit in 64 bits as well */
	uint64_t offset; /* of its first byte, from the start of the FILE */
	uint64_t size;   /* in bytes */
};

struct bd_metadata {
	const char *key;   /* UTF-8, NUL-terminated, no control characters */
	const char *value; /* UTF-8, NUL-terminated, no NUL inside */
};

struct bd_safetensors {
	struct bd_tensor *tensors; /* by offset; empty ones at their place, in header order */
	size_t count;
	struct bd_metadata *metadata; /* in header order */
	size_t metadata_count;
	char *header;        /* the first 8 + N bytes of the file, verbatim; NULL if slim */
	size_t header_size;  /* 8 + N */
	uint64_t file_size;
	struct bd_name_table *names; /* private: name -> index in tensors */
	struct bd_name_table *keys;  /* private: key -> index in metadata */
	char *text;                  /* private: all strings */
	struct bd_shapes shapes;     /* private */
};

/* Parse the first `size` bytes of a file (they must hold the whole header) that is `file_size`
 * bytes long in all. `what` names it in messages. Costs memory and time linear in the header.
 * Errors: -EINVAL (the file is bad: offset and reason), -ENOMEM. */
int bd_safetensors_parse(struct bd_safetensors **st, const char *data, size_t size,
			 uint64_t file_size, const char *what, struct bd_error *err);
/* Read and parse the header of an open file. */
int bd_safetensors_read(struct bd_safetensors **st, struct bd_file *file, struct bd_error *err);
void bd_safetensors_free(struct bd_safetensors *st); /* NULL allowed */
/* Give up the text of the header and what finds tensors by name, more than half of what ST takes. */
void bd_safetensors_slim(struct bd_safetensors *st);

/* Constant time. NULL where there is none; of a tensor also if st is slim. Borrowed from st. */
const struct bd_tensor *bd_safetensors_find(const struct bd_safetensors *st, const char *name);
const char *bd_safetensors_metadata(const struct bd_safetensors *st, const char *key);

/* Rows and columns as sign encoding sees a tensor: the leading dimensions are flattened into rows.
 * Scalars are 1 x 1, vectors 1 x n. */
uint64_t bd_tensor_rows(const struct bd_tensor *t);
uint64_t bd_tensor_cols(const struct bd_tensor *t);
bool bd_tensor_same_shape(const struct bd_tensor *a, const struct bd_tensor *b);
/* "[4096, 11008]" into buf; returns buf. */
char *bd_tensor_shape_text(const struct bd_tensor *t, char *buf, size_t capacity);

#endif
