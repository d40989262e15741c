/* SPDX-License-Identifier: Apache-2.0 */
/* exact.h: a tensor kept bit for bit, as what the coder of exact_coder.h needs besides the base's.
 *
 * A tensor is one plane of units, or two (the upper and the lower halves of F32), cut into chunks of
 * BD_EXACT_CHUNK bytes that are stored independently: as coded, raw, or as nothing where they equal the
 * base's (without a base: where they are 0). What is stored, all little endian:
 *
 *     u32 size of what comes before the index, a multiple of 8 | u8 planes | 3 bytes 0
 *     for each plane: its table (bd_exact_table_print), then, by row, a byte for each row
 *     0 to 7 bytes 0
 *     index: for each plane, for each chunk, u64: 4 * end + kind (0 nothing, 1 raw, 2 coded)
 *     chunks, each from the end of the one before it; ends count from the end of the index
 *     0 to 7 bytes 0, so that the size is a multiple of 8
 *
 * Where the base has another dtype its elements are converted first, as FORMAT.md section 4 rounds. FORMAT.md section 6
 * is the whole description. */
#ifndef BD_EXACT_H
#define BD_EXACT_H

#include <stdatomic.h>

#include "codec/exact_coder.h"
#include "error.h"

#define BD_EXACT_CHUNK ((size_t)128 << 10)
/* Rows of a table with contexts by row at most: readers keep a byte for each. */
#define BD_EXACT_MAX_ROWS ((uint64_t)1 << 21)

/* What is coded: all of a tensor, or slices of it. */
struct bd_exact_shape {
	enum bd_dtype dtype, base_dtype; /* BD_DTYPES: no base */
	uint64_t rows, cols;             /* elements; neither is 0 */
};

/* True if tensors of this dtype can be coded: its elements are whole bytes. */
bool bd_exact_has_dtype(enum bd_dtype dtype);
/* True if the base can be converted to the tensor's dtype, or needs no conversion. */
bool bd_exact_has_base(enum bd_dtype dtype, enum bd_dtype base);

/* ---- Writing ---- */

/* Reads `size` bytes at `at` of the tensor or of its base. */
typedef int bd_exact_read(void *context, uint64_t at, size_t size, void *out, struct bd_error *err);
struct bd_exact_input {
	bd_exact_read *base, *fine; /* base is not called where there is none */
	void *context;
	const atomic_int *stop;     /* polled between chunks; may be NULL */
};

/* How a tensor will be coded. */
struct bd_exact_plan;
/* Look at a tensor, at a sample of it where it is large; `by_row`: also try contexts by row, which pay for tables
 * with a row per token and need two passes. -ENODATA: less than 5 % would be saved. Others: those of reading,
 * -EINTR, -ENOMEM. */
int bd_exact_plan_new(struct bd_exact_plan **plan, const struct bd_exact_shape *shape, bool by_row,
		      const struct bd_exact_input *input, struct bd_error *err);
void bd_exact_plan_free(struct bd_exact_plan *plan); /* NULL allowed */
/* Bytes that will be stored, within 1 % (and some hundred bytes). */
uint64_t bd_exact_plan_size(const struct bd_exact_plan *plan);
/* Code the tensor: *stored is malloced. The same bytes on every machine. */
int bd_exact_plan_code(struct bd_exact_plan *plan, const struct bd_exact_input *input, uint8_t **stored,
		       size_t *size, struct bd_error *err);

/* ---- Reading ---- */

/* What is known of a stored tensor before its chunks are: its models. Immutable; for any number of threads. */
struct bd_exact;
/* Bytes that bd_exact_open needs of the beginning of the stored ones, which are `size`: 0 where `first`, the first
 * eight, cannot be right. */
uint64_t bd_exact_head_size(const struct bd_exact_shape *shape, const uint8_t first[8], uint64_t size);
/* `head` are the first head_size bytes, copied. -EINVAL: they are damaged; the sentence says what is wrong, without
 * a name. -ENOMEM. */
int bd_exact_open(struct bd_exact **x, const struct bd_exact_shape *shape, const uint8_t *head,
		  uint64_t head_size, uint64_t size, struct bd_error *err);
void bd_exact_close(struct bd_exact *x); /* NULL allowed */
size_t bd_exact_memory(const struct bd_exact *x); /* bytes that it takes */

/* Where a chunk's parts lie in what is stored. */
struct bd_exact_place {
	struct {
		uint64_t at;
		uint32_t size;
		uint8_t kind;
	} part[2];
};
/* Entries of the index for chunk I: `count` words of 8 bytes at *at, for each plane; the word before, if I is not 0,
 * and its own. */
unsigned bd_exact_planes(const struct bd_exact *x);
uint64_t bd_exact_index_at(const struct bd_exact *x, unsigned plane, uint64_t chunk, unsigned *words);
/* index[p]: the words that bd_exact_index_at asks for. False: damaged. */
bool bd_exact_locate(const struct bd_exact *x, uint64_t chunk, const uint64_t index[2][2],
		     struct bd_exact_place *place);

/* Memory for decoding by one thread at a time. */
struct bd_exact_scratch;
struct bd_exact_scratch *bd_exact_scratch_new(void); /* NULL: out of memory */
void bd_exact_scratch_free(struct bd_exact_scratch *scratch);

/* The first `wanted` bytes of chunk CHUNK (whole elements) into `out`, which has room for the whole chunk: base are
 * the bytes of the base's elements of the chunk, part[p] those that `place` names. False: damaged, as far as can be
 * told without the tensor's hash. */
bool bd_exact_decode_chunk(const struct bd_exact *x, uint64_t chunk, const struct bd_exact_place *place,
			   const void *base, const uint8_t *const part[2], size_t wanted, void *out,
			   struct bd_exact_scratch *scratch);
/* The same at a given level (which must be supported). */
bool bd_exact_decode_chunk_at(enum bd_cpu cpu, const struct bd_exact *x, uint64_t chunk,
			      const struct bd_exact_place *place, const void *base,
			      const uint8_t *const part[2], size_t wanted, void *out,
			      struct bd_exact_scratch *scratch);

#endif
