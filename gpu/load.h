/* SPDX-License-Identifier: Apache-2.0 */
/* load.h: pieces of files into backend memory, read by all cores at once, converted on arrival.
 *
 *     struct bdx_load load = { .ops = ops, .source = source, .watch = watch };
 *     rc = bdx_load_add(&load, &item, err);    ... for everything
 *     rc = bdx_load_run(&load, err);
 *     bdx_load_free(&load); */
#ifndef BDX_LOAD_H
#define BDX_LOAD_H

#include "ops.h"
#include "parallel.h"
#include "source.h"

struct bdx_item {
	struct bdx_weight weight;  /* all of a tensor of the source; or, where file is not NULL, */
	struct bd_file *file;      /* `size` bytes of it from `offset` on */
	uint64_t offset;
	uint64_t size;             /* in bytes as stored */
	enum bd_dtype from, to_type; /* F64, F32, BF16 or F16; or the same, for bytes as they are */
	void *to;                  /* in backend memory that no operation uses */
};

struct bdx_load {
	struct bdx_ops *ops;
	struct bdx_source *source;
	const struct bd_watch *watch; /* NULL allowed; progress in bytes */
	/* private: */
	struct bdx_item *items;
	size_t count, room;
};

int bdx_load_add(struct bdx_load *load, const struct bdx_item *item, struct bd_error *err);
/* Everything is there when this returns 0. Errors: of reading; of the backend; -EINTR. */
int bdx_load_run(struct bdx_load *load, struct bd_error *err);
void bdx_load_free(struct bdx_load *load);

#endif
