/* SPDX-License-Identifier: Apache-2.0 */
/* exact_file.h: exact tensors in a .bdelta file (FORMAT.md section 6): which entries may be such, and any bytes of
 * them out of the file and its base.
 *
 * Chunks are decoded whole. A cache keeps the last one, so that small reads one after another decode it once, and
 * the models of the tensors that were read lately. */
#ifndef BD_EXACT_FILE_H
#define BD_EXACT_FILE_H

#include <stdatomic.h>

#include "codec/exact.h"
#include "delta.h"

/* What is wrong with an entry whose base and stored bytes are bound; NULL: nothing. The text goes after the
 * tensor's name. */
const char *bd_exact_entry_fault(const struct bd_entry *e);

/* A tensor and where its parts lie. */
struct bd_exact_tensor {
	struct bd_exact_shape shape;
	uint64_t serial;         /* of what is open; with `at` it tells tensors apart */
	struct bd_file *delta;
	uint64_t at, size;       /* of what is stored, there */
	struct bd_file *base;    /* NULL: coded without one */
	uint64_t base_at;        /* of the base tensor, there */
};

/* `base` may be NULL where the entry needs none. */
struct bd_exact_tensor bd_exact_tensor_of(const struct bd_delta *delta, const struct bd_entry *e,
					  const struct bd_base *base);

/* For one thread at a time. At most 2 MiB, and BD_EXACT_OPEN of models (or one that is larger), allocated when first
 * needed. */
#define BD_EXACT_OPEN ((size_t)4 << 20)
struct bd_exact_cache;
struct bd_exact_cache *bd_exact_cache_new(void); /* NULL: out of memory */
void bd_exact_cache_free(struct bd_exact_cache *cache); /* NULL allowed */

/* Bytes that were read of bases and deltas. */
struct bd_exact_counts {
	uint64_t base, delta;
};

/* Read `size` bytes of the rebuilt tensor from byte `at` on; all lie within it. What was read is added to *counts.
 * -EIO: damaged, as far as can be told without the hash of the whole; -ENOMEM; those of reading. */
int bd_exact_tensor_read(struct bd_exact_cache *cache, const struct bd_exact_tensor *t, uint64_t at, size_t size,
			 void *out, struct bd_exact_counts *counts, struct bd_error *err);

/* Rebuild all of an entry's tensor and compare it with its hash; *done grows by its bytes. Errors: as above, -EIO the
 * hash is another one, -EINTR where `stop`, which may be NULL, became non-zero. */
int bd_exact_entry_verify(const struct bd_delta *delta, const struct bd_entry *e, const struct bd_base *base,
			  atomic_ullong *done, const atomic_int *stop, struct bd_error *err);

#endif
