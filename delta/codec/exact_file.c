/* SPDX-License-Identifier: Apache-2.0 */
/* exact_file.c: exact tensors in a .bdelta file, see exact_file.h. */
#include "codec/exact_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MOST_OPEN 32
#define MAX_ELEMENTS ((uint64_t)1 << 56) /* so that no product overflows */
#define MAX_BASE (2 * BD_EXACT_CHUNK)    /* bytes of the base that a chunk needs: F32 under a type of 2 bytes */

/* ---- Entries ---- */

static struct bd_exact_shape shape_of(const struct bd_entry *e)
{
	return (struct bd_exact_shape){
		.dtype = e->tensor->dtype, .base_dtype = bd_entry_has_base(e) ? e->base_dtype : BD_DTYPES,
		.rows = bd_tensor_rows(e->tensor), .cols = bd_tensor_cols(e->tensor),
	};
}

const char *bd_exact_entry_fault(const struct bd_entry *e)
{
	struct bd_exact_shape shape = shape_of(e);

	if (e->tensor->count == 0 || e->tensor->count > MAX_ELEMENTS || !bd_exact_has_dtype(shape.dtype) ||
	    (shape.base_dtype != BD_DTYPES && !bd_exact_has_base(shape.dtype, shape.base_dtype)))
		return "cannot be exact";
	if (e->exact->size < 16 || e->exact->size % 8 != 0)
		return "cannot be stored in that many bytes";
	return NULL;
}

struct bd_exact_tensor bd_exact_tensor_of(const struct bd_delta *delta, const struct bd_entry *e,
					  const struct bd_base *base)
{
	const struct bd_base_tensor *b = bd_entry_has_base(e) ? bd_base_find(base, bd_entry_base(e)) : NULL;

	return (struct bd_exact_tensor){
		.shape = shape_of(e), .delta = delta->file, .at = e->exact->offset, .size = e->exact->size,
		.base = b ? b->shard->file : NULL, .base_at = b ? b->tensor->offset : 0,
	};
}

/* ---- Reading ---- */

struct opened {
	struct bd_exact *x;
	uint64_t serial, at; /* of its tensor */
	uint64_t used;       /* when, by the cache's clock */
};

struct buffers {
	struct bd_exact_scratch *scratch;
	uint8_t base[MAX_BASE];
	uint8_t part[2][4 * BD_EXACT_CHUNK + 4096]; /* more than bd_exact_bound of a chunk of bytes, which locating holds */
	uint8_t chunk[BD_EXACT_CHUNK];
};

struct bd_exact_cache {
	struct opened opened[MOST_OPEN];
	unsigned count;
	size_t bytes;                  /* of all that are open */
	uint64_t clock;
	struct buffers *buffers;
	uint64_t serial, at, number;   /* of what `chunk` holds */
	bool filled;
};

struct bd_exact_cache *bd_exact_cache_new(void)
{
	return calloc(1, sizeof(struct bd_exact_cache));
}

void bd_exact_cache_free(struct bd_exact_cache *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->count; i++)
		bd_exact_close(c->opened[i].x);
	if (c->buffers)
		bd_exact_scratch_free(c->buffers->scratch);
	free(c->buffers);
	free(c);
}

static int out_of_memory(const struct bd_exact_tensor *t, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", t->delta->path);
}

static int is_damaged(const struct bd_exact_tensor *t, const char *why, struct bd_error *err)
{
	return bd_error_set(err, -EIO, "%s: the exact tensor at byte %" PRIu64 " is damaged (%s): import the file again",
			    t->delta->path, t->at, why);
}

static int need_buffers(struct bd_exact_cache *c, const struct bd_exact_tensor *t, struct bd_error *err)
{
	if (c->buffers)
		return 0;
	/* Most of it is never touched. */
	c->buffers = malloc(sizeof(*c->buffers));
	if (!c->buffers)
		return out_of_memory(t, err);
	c->buffers->scratch = bd_exact_scratch_new();
	if (c->buffers->scratch)
		return 0;
	free(c->buffers);
	c->buffers = NULL;
	return out_of_memory(t, err);
}

static void close_oldest(struct bd_exact_cache *c)
{
	unsigned oldest = 0;

	for (unsigned i = 1; i < c->count; i++)
		if (c->opened[i].used < c->opened[oldest].used)
			oldest = i;
	c->bytes -= bd_exact_memory(c->opened[oldest].x);
	bd_exact_close(c->opened[oldest].x);
	c->opened[oldest] = c->opened[--c->count];
}

static int read_head(const struct bd_exact_tensor *t, struct bd_exact **x, struct bd_exact_counts *counts,
		     struct bd_error *err)
{
	struct bd_error why = { 0 };
	uint8_t first[8], *head;
	uint64_t size;
	int rc = bd_file_read(t->delta, first, sizeof(first), t->at, err);

	if (rc < 0)
		return rc;
	size = bd_exact_head_size(&t->shape, first, t->size);
	if (size == 0)
		return is_damaged(t, "the size of its tables is wrong", err);
	head = malloc((size_t)size);
	if (!head)
		return out_of_memory(t, err);
	rc = bd_file_read(t->delta, head, (size_t)size, t->at, err);
	counts->delta += size;
	if (rc == 0 && (rc = bd_exact_open(x, &t->shape, head, size, t->size, &why)) < 0)
		rc = rc == -ENOMEM ? out_of_memory(t, err) : is_damaged(t, why.text, err);
	free(head);
	return rc;
}

/* The tensor's models: *x is the cache's. */
static int open_tensor(struct bd_exact_cache *c, const struct bd_exact_tensor *t, const struct bd_exact **x,
		       struct bd_exact_counts *counts, struct bd_error *err)
{
	struct bd_exact *found = NULL;
	int rc;

	c->clock++;
	for (unsigned i = 0; i < c->count; i++)
		if (c->opened[i].serial == t->serial && c->opened[i].at == t->at) {
			c->opened[i].used = c->clock;
			*x = c->opened[i].x;
			return 0;
		}
	rc = read_head(t, &found, counts, err);
	if (rc < 0)
		return rc;
	while (c->count && (c->count == MOST_OPEN || c->bytes + bd_exact_memory(found) > BD_EXACT_OPEN))
		close_oldest(c);
	c->bytes += bd_exact_memory(found);
	c->opened[c->count++] = (struct opened){ found, t->serial, t->at, c->clock };
	*x = found;
	return 0;
}

static int locate(const struct bd_exact_tensor *t, const struct bd_exact *x, uint64_t chunk,
		  struct bd_exact_place *place, struct bd_error *err)
{
	uint64_t index[2][2] = { { 0 } };

	for (unsigned p = 0; p < bd_exact_planes(x); p++) {
		unsigned words;
		uint64_t at = bd_exact_index_at(x, p, chunk, &words);
		int rc = bd_file_read(t->delta, index[p], words * sizeof(uint64_t), t->at + at, err);

		if (rc < 0)
			return rc;
	}
	return bd_exact_locate(x, chunk, (const uint64_t(*)[2])index, place) ? 0 :
		is_damaged(t, "its index is wrong", err);
}

/* True if the chunk is the base's, byte for byte. */
static bool is_base(const struct bd_exact_tensor *t, const struct bd_exact *x, const struct bd_exact_place *place)
{
	for (unsigned p = 0; p < bd_exact_planes(x); p++)
		if (place->part[p].size)
			return false;
	return t->base && t->shape.base_dtype == t->shape.dtype;
}

/* Decode chunk CHUNK, of `size` bytes, into `out`. */
static int decode(struct bd_exact_cache *c, const struct bd_exact_tensor *t, uint64_t chunk, size_t size,
		  uint8_t *out, struct bd_exact_counts *counts, struct bd_error *err)
{
	struct buffers *b = c->buffers;
	const uint8_t *part[2] = { b->part[0], b->part[1] };
	const struct bd_exact *x;
	struct bd_exact_place place;
	bool plain; /* nothing to decode */
	int rc = open_tensor(c, t, &x, counts, err);

	if (rc == 0)
		rc = locate(t, x, chunk, &place, err);
	if (rc < 0)
		return rc;
	plain = is_base(t, x, &place);
	if (t->base) {
		size_t element = bd_dtype_bits(t->shape.dtype) / 8, base = bd_dtype_bits(t->shape.base_dtype) / 8;
		uint64_t first = chunk * (BD_EXACT_CHUNK / element);

		rc = bd_file_read(t->base, plain ? out : b->base, size / element * base, t->base_at + first * base, err);
		counts->base += size / element * base;
	}
	for (unsigned p = 0; rc == 0 && p < bd_exact_planes(x); p++) {
		if (place.part[p].size)
			rc = bd_file_read(t->delta, b->part[p], place.part[p].size, t->at + place.part[p].at, err);
		counts->delta += place.part[p].size;
	}
	if (rc < 0 || plain)
		return rc;
	return bd_exact_decode_chunk(x, chunk, &place, b->base, part, size, out, b->scratch) ? 0 :
		is_damaged(t, "a chunk cannot be decoded over this base", err);
}

int bd_exact_tensor_read(struct bd_exact_cache *c, const struct bd_exact_tensor *t, uint64_t at, size_t size,
			 void *out, struct bd_exact_counts *counts, struct bd_error *err)
{
	uint64_t total = t->shape.rows * t->shape.cols * (bd_dtype_bits(t->shape.dtype) / 8);
	uint8_t *to = out;
	int rc = need_buffers(c, t, err);

	while (rc == 0 && size > 0) {
		uint64_t chunk = at / BD_EXACT_CHUNK, start = chunk * BD_EXACT_CHUNK;
		size_t whole = total - start < BD_EXACT_CHUNK ? (size_t)(total - start) : BD_EXACT_CHUNK;
		size_t skip = (size_t)(at - start), n = whole - skip < size ? whole - skip : size;

		if (c->filled && c->serial == t->serial && c->at == t->at && c->number == chunk) {
			memcpy(to, c->buffers->chunk + skip, n);
		} else if (n == whole) {
			rc = decode(c, t, chunk, whole, to, counts, err);
		} else {
			c->filled = false;
			rc = decode(c, t, chunk, whole, c->buffers->chunk, counts, err);
			if (rc < 0)
				break;
			c->filled = true;
			c->serial = t->serial;
			c->at = t->at;
			c->number = chunk;
			memcpy(to, c->buffers->chunk + skip, n);
		}
		at += n;
		to += n;
		size -= n;
	}
	return rc;
}

/* ---- Complete checks ---- */

static int rebuild_and_hash(struct bd_exact_cache *c, const struct bd_exact_tensor *t, XXH3_state_t *hash,
			    uint64_t size, uint8_t *chunk, atomic_ullong *done, const atomic_int *stop,
			    struct bd_error *err)
{
	struct bd_exact_counts counts = { 0 };

	for (uint64_t at = 0; at < size; at += BD_EXACT_CHUNK) {
		size_t n = size - at < BD_EXACT_CHUNK ? (size_t)(size - at) : BD_EXACT_CHUNK;
		int rc = bd_exact_tensor_read(c, t, at, n, chunk, &counts, err);

		if (rc == 0 && stop && *stop)
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc < 0)
			return rc;
		XXH3_128bits_update(hash, chunk, n);
		atomic_fetch_add(done, n);
	}
	return 0;
}

int bd_exact_entry_verify(const struct bd_delta *delta, const struct bd_entry *e, const struct bd_base *base,
			  atomic_ullong *done, const atomic_int *stop, struct bd_error *err)
{
	struct bd_exact_tensor t = bd_exact_tensor_of(delta, e, base);
	struct bd_exact_cache *c = bd_exact_cache_new();
	XXH3_state_t *hash = XXH3_createState();
	uint8_t *chunk = malloc(BD_EXACT_CHUNK);
	char found[BD_HASH];
	int rc;

	if (!c || !hash || !chunk) {
		rc = out_of_memory(&t, err);
		goto out;
	}
	XXH3_128bits_reset(hash);
	rc = rebuild_and_hash(c, &t, hash, e->tensor->size, chunk, done, stop, err);
	if (rc == 0)
		rc = bd_file_check(t.delta, err);
	if (rc == 0 && t.base)
		rc = bd_file_check(t.base, err);
	if (rc < 0)
		goto out;
	bd_hash_text(XXH3_128bits_digest(hash), found);
	if (strcmp(found, e->xxh128) != 0)
		rc = bd_error_set(err, -EIO, "%s: '%s' at byte %" PRIu64 " gives another tensor '%s': its hash is %s, "
				  "expected %s", t.delta->path, e->exact->name, t.at, e->tensor->name, found, e->xxh128);
out:
	XXH3_freeState(hash);
	bd_exact_cache_free(c);
	free(chunk);
	return rc;
}
