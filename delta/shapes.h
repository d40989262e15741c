/* SPDX-License-Identifier: Apache-2.0 */
/* shapes.h: a pool of tensor shapes, each kept about once.
 *
 * Models have many tensors and few shapes: a tensor points to its shape in place of holding eight
 * numbers. What was added stays where it is until the pool is freed. Adding needs the pool for itself. */
#ifndef BD_SHAPES_H
#define BD_SHAPES_H

#include <stdint.h>

#define BD_RECENT_SHAPES 16

struct bd_shapes {
	struct bd_shapes_block *blocks; /* private, as is all; zeros are an empty pool */
	struct { const uint64_t *shape; unsigned dims; } recent[BD_RECENT_SHAPES];
	unsigned next; /* in `recent`, to be overwritten */
};

/* The `dims` numbers of SHAPE as the pool keeps them, for as long as it lives. Shapes added lately are
 * found again. NULL: out of memory. */
const uint64_t *bd_shapes_add(struct bd_shapes *pool, const uint64_t *shape, unsigned dims);
void bd_shapes_free(struct bd_shapes *pool);

#endif
