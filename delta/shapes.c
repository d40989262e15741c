/* SPDX-License-Identifier: Apache-2.0 */
/* shapes.c: a pool of tensor shapes, see shapes.h. */
#include "shapes.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BLOCK 32 /* numbers; each block is twice as large as the one before, up to the next */
#define LAST_BLOCK 8192

struct bd_shapes_block {
	struct bd_shapes_block *next;
	size_t used, size;
	uint64_t numbers[];
};

/* Room for COUNT numbers. */
static uint64_t *take(struct bd_shapes *pool, unsigned count)
{
	struct bd_shapes_block *b = pool->blocks;

	if (!b || b->size - b->used < count) {
		size_t size = !b ? FIRST_BLOCK : b->size < LAST_BLOCK ? 2 * b->size : LAST_BLOCK;

		b = malloc(sizeof(*b) + size * sizeof(*b->numbers));
		if (!b)
			return NULL;
		*b = (struct bd_shapes_block){ .next = pool->blocks, .size = size };
		pool->blocks = b;
	}
	b->used += count;
	return b->numbers + b->used - count;
}

const uint64_t *bd_shapes_add(struct bd_shapes *pool, const uint64_t *shape, unsigned dims)
{
	size_t size = dims * sizeof(*shape);
	uint64_t *kept;

	for (unsigned i = 0; i < BD_RECENT_SHAPES && pool->recent[i].shape; i++)
		if (pool->recent[i].dims == dims && !memcmp(pool->recent[i].shape, shape, size))
			return pool->recent[i].shape;
	kept = take(pool, dims);
	if (!kept)
		return NULL;
	memcpy(kept, shape, size);
	pool->recent[pool->next].shape = kept;
	pool->recent[pool->next].dims = dims;
	pool->next = (pool->next + 1) % BD_RECENT_SHAPES;
	return kept;
}

void bd_shapes_free(struct bd_shapes *pool)
{
	struct bd_shapes_block *b = pool->blocks, *next;

	for (; b; b = next) {
		next = b->next;
		free(b);
	}
	*pool = (struct bd_shapes){ 0 };
}
