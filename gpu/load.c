/* SPDX-License-Identifier: Apache-2.0 */
/* load.c: reading into backend memory in parallel, see load.h. */
#include "load.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define PIECE ((uint64_t)8 << 20) /* bytes that are read at a time; whole elements of all types */
#define MAX_READERS 16

struct buffer { /* a reader's */
	void *host;
	void *staging; /* in the backend, as large */
	struct buffer *next;
};

struct run {
	const struct bdx_load *load;
	size_t *first;        /* number of each item's first piece */
	pthread_mutex_t lock; /* guards `free`, and operations but uploads */
	struct buffer *free;
	atomic_uint_fast64_t done;
	uint64_t total;
};

int bdx_load_add(struct bdx_load *l, const struct bdx_item *item, struct bd_error *err)
{
	if (item->size == 0)
		return 0;
	if (l->count == l->room) {
		size_t room = l->room ? 2 * l->room : 256;
		struct bdx_item *larger = reallocarray(l->items, room, sizeof(*larger));

		if (!larger)
			return bd_error_set(err, -ENOMEM, "out of memory");
		l->items = larger;
		l->room = room;
	}
	l->items[l->count++] = *item;
	return 0;
}

void bdx_load_free(struct bdx_load *l)
{
	free(l->items);
	l->items = NULL;
	l->count = l->room = 0;
}

/* The item that a piece belongs to: the last one that begins at or before it. */
static size_t item_of(const struct run *r, size_t piece)
{
	size_t low = 0, high = r->load->count;

	while (high - low > 1) {
		size_t middle = (low + high) / 2;

		if (r->first[middle] <= piece)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static struct buffer *take_buffer(struct run *r)
{
	struct buffer *b;

	pthread_mutex_lock(&r->lock);
	b = r->free; /* there is one for each thread */
	r->free = b->next;
	pthread_mutex_unlock(&r->lock);
	return b;
}

static void put_buffer(struct run *r, struct buffer *b)
{
	pthread_mutex_lock(&r->lock);
	b->next = r->free;
	r->free = b;
	pthread_mutex_unlock(&r->lock);
}

/* `size` bytes that are in b->host go to byte `at` of the item as stored. */
static int deliver(struct run *r, const struct bdx_item *item, struct buffer *b, uint64_t at,
		   uint64_t size, struct bd_error *err)
{
	struct bdx_ops *ops = r->load->ops;
	size_t from = bd_dtype_bits(item->from) / 8, to = bd_dtype_bits(item->to_type) / 8;
	int rc;

	if (item->from == item->to_type) {
		ops->upload(ops, (char *)item->to + at, b->host, (size_t)size);
		return 0;
	}
	ops->upload(ops, b->staging, b->host, (size_t)size);
	pthread_mutex_lock(&r->lock);
	ops->convert(ops, (char *)item->to + at / from * to, item->to_type, b->staging, item->from,
		     size / from);
	rc = ops->finish(ops, err); /* the next upload to `staging` would not wait */
	pthread_mutex_unlock(&r->lock);
	return rc;
}

static int read_piece(void *context, size_t index, struct bd_error *err)
{
	struct run *r = context;
	size_t i = item_of(r, index);
	const struct bdx_item *item = &r->load->items[i];
	uint64_t at = (index - r->first[i]) * PIECE;
	uint64_t size = item->size - at < PIECE ? item->size - at : PIECE;
	struct buffer *b = take_buffer(r);
	int rc;

	if (item->file)
		rc = bd_file_read(item->file, b->host, (size_t)size, item->offset + at, err);
	else
		rc = bdx_source_read(r->load->source, &item->weight, b->host, at, (size_t)size,
				     err);
	if (rc == 0)
		rc = deliver(r, item, b, at, size, err);
	put_buffer(r, b);
	atomic_fetch_add(&r->done, size);
	return rc;
}

static void tick(void *context)
{
	struct run *r = context;
	const struct bd_watch *watch = r->load->watch;

	if (watch && watch->progress)
		watch->progress(watch->context, atomic_load(&r->done), r->total);
}

static int get_buffers(struct run *r, struct buffer *buffers, unsigned count, size_t size,
		       struct bd_error *err)
{
	struct bdx_ops *ops = r->load->ops;

	for (unsigned i = 0; i < count; i++) {
		struct bd_error e = { .code = -ENOMEM };

		buffers[i].staging = ops->alloc(ops, size, &e);
		buffers[i].host = buffers[i].staging ? ops->host_alloc(ops, size) : NULL;
		if (!buffers[i].host)
			return bd_error_set(err, e.code, "%s", buffers[i].staging ?
					    "out of memory for reading" : e.text);
		buffers[i].next = r->free;
		r->free = &buffers[i];
	}
	return 0;
}

int bdx_load_run(struct bdx_load *l, struct bd_error *err)
{
	struct run r = { .load = l };
	struct buffer buffers[MAX_READERS] = { 0 };
	unsigned readers = bd_parallel_cores();
	uint64_t largest = 1;
	size_t pieces = 0;
	int rc;

	r.first = calloc(l->count + 1, sizeof(*r.first));
	if (!r.first)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < l->count; i++) {
		r.first[i] = pieces;
		pieces += (size_t)((l->items[i].size + PIECE - 1) / PIECE);
		r.total += l->items[i].size;
		if (l->items[i].size > largest)
			largest = l->items[i].size;
	}
	readers = readers > MAX_READERS ? MAX_READERS : readers;
	pthread_mutex_init(&r.lock, NULL);
	rc = get_buffers(&r, buffers, readers, (size_t)(largest > PIECE ? PIECE : largest), err);
	/* alloc() may still be clearing memory, and uploads do not wait for that. */
	if (rc == 0)
		rc = l->ops->finish(l->ops, err);
	if (rc == 0)
		rc = bd_parallel_run(&(struct bd_parallel){
			.count = pieces, .threads = readers, .work = read_piece, .tick = tick,
			.context = &r, .cancel = l->watch ? l->watch->cancel : NULL }, err);
	if (rc == 0)
		rc = l->ops->finish(l->ops, err);
	for (unsigned i = 0; i < readers; i++) {
		if (buffers[i].staging)
			l->ops->free(l->ops, buffers[i].staging);
		if (buffers[i].host)
			l->ops->host_free(l->ops, buffers[i].host);
	}
	pthread_mutex_destroy(&r.lock);
	free(r.first);
	return rc;
}
