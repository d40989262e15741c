/* import.c: planning an import, running it in order on all cores and writing the file. See import.h.
 *
 * The file is written in one sweep: room for its header is left at the front, from an upper bound,
 * and filled up with spaces, which safetensors allows. Wider types come first, so that every stored tensor
 * is aligned to its elements without holes:
 *
 *     header | raw 8-byte | sign planes | scales | raw 4-byte | raw 2-byte | raw 1-byte | files | manifest
 *
 * Planes are multiples of 8 bytes and scales of 4. Workers look at tensors in parallel, but take
 * turns to choose the place of what they store, so the file does not depend on their speed. */
#include "import.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "buffer.h"
#include "import_impl.h"
#include "json.h"
#include "manifest.h"
#include "output.h"

#define MAX_CONFIG ((size_t)16 << 20)
#define MAX_SIDECAR ((size_t)256 << 20)
#define MANIFEST_BOUND 65536 /* of its own, without headers and what grows with them */
/* Above this, base and fine-tune are not relatives and one bit will not do. */
#define UNRELATED 0.5

enum phase { LOOK_WIDE, LOOK_SIGN, LOOK_REST }; /* LOOK_REST runs once per size of element */

struct stored { /* a tensor of the container */
	char *name;
	enum bd_dtype dtype;
	unsigned dims;
	uint64_t shape[BD_MAX_DIMS];
	uint64_t offset, size; /* from the start of the data */
};

struct import {
	const struct bd_import_options *options;
	struct bd_base *base;
	struct bd_checkpoint *fine;
	struct bd_delta *delta; /* being built: its files' headers are borrowed from `fine` */
	struct bd_output *output;
	struct bd_item *items;
	size_t item_count;
	struct bd_look look;
	atomic_ullong done;
	struct stored *stored;
	size_t stored_count, stored_capacity;
	uint64_t reserved;      /* bytes left for the header, its length included */
	uint64_t data_size;     /* bytes stored so far */
	float *scales;
	uint64_t scale_count;

	struct bd_item **queue; /* of the phase that runs */
	size_t queue_size;
	pthread_mutex_t lock;   /* guards what follows, and everything above that storing changes */
	pthread_cond_t turned;
	size_t turn;            /* queue index whose turn it is to store */
	bool aborted;
};

const char *bd_scale_name(enum bd_scale scale)
{
	static const char *const names[] = { "tensor", "row", "rank1" };

	return names[scale];
}

bool bd_scale_parse(const char *name, enum bd_scale *scale)
{
	for (int i = BD_SCALE_TENSOR; i <= BD_SCALE_RANK1; i++)
		if (strcmp(name, bd_scale_name((enum bd_scale)i)) == 0) {
			*scale = (enum bd_scale)i;
			return true;
		}
	return false;
}

static void note(const struct import *im, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void note(const struct import *im, const char *format, ...)
{
	char text[sizeof(((struct bd_error *)0)->text)];
	va_list args;

	if (!im->options->watch.note)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	im->options->watch.note(im->options->watch.context, text);
}

/* ---- Planning ---- */

/* "model_type" of config.json, malloced; NULL where there is none. */
static char *model_type(const struct bd_checkpoint *c)
{
	char *path = NULL, *text = NULL, key[256], value[256], *found = NULL;
	struct bd_json j;
	size_t size;
	int rc;

	if (asprintf(&path, "%s/config.json", c->path) < 0)
		return NULL;
	rc = bd_file_slurp(path, MAX_CONFIG, &text, &size, NULL);
	if (rc == 0) {
		bd_json_init(&j, text, size, path, 0, NULL);
		rc = bd_json_object(&j);
		while (rc == 0 && (rc = bd_json_member(&j, key, sizeof(key), NULL)) > 0) {
			if (strcmp(key, "model_type") == 0 && bd_json_peek(&j) == BD_JSON_STRING &&
			    !found) {
				rc = bd_json_string(&j, value, sizeof(value), NULL);
				found = rc == 0 ? strdup(value) : NULL;
			} else {
				rc = bd_json_skip(&j);
			}
		}
	}
	free(text);
	free(path);
	return found;
}

static int check_architecture(struct import *im, struct bd_error *err)
{
	const struct bd_import_options *o = im->options;
	char *base = model_type(im->base->checkpoint), *fine = model_type(im->fine);
	int rc = 0;

	if (base && fine && strcmp(base, fine) != 0) {
		if (o->force)
			note(im, "%s is '%s', %s is '%s': imported all the same, as forced", o->base, base,
			     o->fine, fine);
		else
			rc = bd_error_set(err, -EINVAL, "wrong architecture: the base %s is '%s', the "
					  "fine-tune %s is '%s' (model_type in config.json); give the base "
					  "that the fine-tune was made from, or --force", o->base, base,
					  o->fine, fine);
	}
	free(base);
	free(fine);
	return rc;
}

static bool shapes_agree_from(const struct bd_tensor *a, const struct bd_tensor *b, unsigned from)
{
	if (a->dims != b->dims)
		return false;
	for (unsigned d = from; d < a->dims; d++)
		if (a->shape[d] != b->shape[d])
			return false;
	return true;
}

/* Would signs be smaller than the tensor itself? Not for tiny or narrow ones. */
static bool pays(const struct bd_tensor *t, uint64_t rows, uint64_t cols)
{
	return bd_manifest_plane_bytes(1, rows * cols) + (rows + cols) * sizeof(float) < t->size;
}

static void keep_base(struct bd_item *item, const struct bd_base_tensor *b, uint64_t head)
{
	struct bd_entry *e = item->entry;

	item->base = b;
	item->head = head;
	e->base_dtype = b->tensor->dtype;
	e->base_dims = b->tensor->dims;
	memcpy(e->base_shape, b->tensor->shape, sizeof(e->base_shape));
	e->base_sample = b->sample;
}

/* Decide what to try for one tensor. Exact without a look at the base is the default: item->base NULL. */
static int plan_tensor(struct import *im, struct bd_item *item, struct bd_error *err)
{
	const struct bd_import_options *o = im->options;
	struct bd_entry *e = item->entry;
	const struct bd_tensor *t = e->tensor;
	const struct bd_base_tensor *b = bd_base_find(im->base, t->name);
	char have[200], want[200];
	bool by_rule, may_sign, grown;
	enum bd_wish wish = bd_policy_wish(t, o->rules, o->rule_count, &by_rule);
	uint64_t slices;

	e->encoding = e->head = BD_RAW;
	e->error = -1;
	if (!b || t->count == 0)
		return 0;
	grown = !bd_tensor_same_shape(t, b->tensor);
	may_sign = wish == BD_WISH_SIGN && t->dims >= 1 && bd_dtype_is_weight(t->dtype) &&
		   bd_dtype_is_weight(b->tensor->dtype);
	if (grown && (t->dims < 2 || (by_rule && wish == BD_WISH_EXACT)))
		return 0;
	if (grown && (!shapes_agree_from(t, b->tensor, 1) ||
		      !(bd_policy_is_vocabulary(t->name) || by_rule)))
		return bd_error_set(err, -EINVAL, "tensor '%s' has shape %s in the base %s and %s in the "
				    "fine-tune %s: give the base that the fine-tune was made from, or keep "
				    "the tensor whole with --raw '%s'", t->name,
				    bd_tensor_shape_text(b->tensor, have, sizeof(have)), o->base,
				    bd_tensor_shape_text(t, want, sizeof(want)), o->fine, t->name);
	slices = t->dims == 0 ? 1 : t->shape[0];
	if (grown && b->tensor->shape[0] < slices)
		slices = b->tensor->shape[0];
	if (slices == 0)
		return 0;
	if (may_sign) {
		e->cols = bd_tensor_cols(t);
		e->rows = t->dims == 1 ? 1 : t->count / t->shape[0] * slices / e->cols;
		item->sign = pays(t, e->rows, e->cols);
	}
	if (item->sign || t->dtype == b->tensor->dtype)
		keep_base(item, b, slices);
	return 0;
}

static int out_of_memory(const struct import *im, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", im->options->out);
}

static int by_file_name(const void *a, const void *b)
{
	const struct bd_delta_file *x = a, *y = b;

	return strcmp(x->name, y->name);
}

/* The directory's files, ascending; safetensors files borrow their header from the checkpoint. */
static int plan_files(struct import *im, struct bd_error *err)
{
	struct bd_checkpoint *fine = im->fine;
	struct bd_delta *d = im->delta;

	d->files = calloc(fine->shard_count + fine->sidecar_count, sizeof(*d->files));
	if (!d->files)
		return out_of_memory(im, err);
	for (size_t i = 0; i < fine->shard_count + fine->sidecar_count; i++) {
		struct bd_delta_file *f = &d->files[d->file_count++];
		bool shard = i < fine->shard_count;

		f->name = strdup(shard ? fine->shards[i].name : fine->sidecars[i - fine->shard_count]);
		if (!f->name)
			return out_of_memory(im, err);
		if (!shard)
			continue;
		f->st = fine->shards[i].st;
		f->size = f->st->file_size;
		f->entries = calloc(f->st->count ? f->st->count : 1, sizeof(*f->entries));
		if (!f->entries)
			return out_of_memory(im, err);
		for (size_t t = 0; t < f->st->count; t++)
			f->entries[t].tensor = &f->st->tensors[t];
	}
	qsort(d->files, d->file_count, sizeof(*d->files), by_file_name);
	return 0;
}

static struct bd_file *shard_file(const struct import *im, const char *name)
{
	for (size_t s = 0; s < im->fine->shard_count; s++)
		if (strcmp(im->fine->shards[s].name, name) == 0)
			return im->fine->shards[s].file;
	return NULL;
}

static int plan(struct import *im, struct bd_error *err)
{
	struct bd_delta *d = im->delta;
	size_t related = 0;
	int rc = plan_files(im, err);

	if (rc < 0)
		return rc;
	im->items = calloc(im->fine->tensor_count ? im->fine->tensor_count : 1, sizeof(*im->items));
	if (!im->items)
		return out_of_memory(im, err);
	for (size_t f = 0; f < d->file_count; f++) {
		struct bd_file *file = d->files[f].st ? shard_file(im, d->files[f].name) : NULL;

		for (size_t t = 0; file && t < d->files[f].st->count; t++) {
			struct bd_item *item = &im->items[im->item_count++];

			item->entry = &d->files[f].entries[t];
			item->file = file;
			rc = plan_tensor(im, item, err);
			if (rc < 0)
				return rc;
			related += item->base && item->entry->tensor->dims >= 2;
		}
	}
	if (related == 0)
		return bd_error_set(err, -EINVAL, "%s has no weight in common with the base %s (no tensor of "
				    "the same name and shape): give the base that it was made from",
				    im->options->fine, im->options->base);
	return 0;
}

static bool is_resized(const struct bd_item *item)
{
	return item->base && !bd_tensor_same_shape(item->entry->tensor, item->base->tensor);
}

/* ---- The container ---- */

static unsigned digits(uint64_t n)
{
	unsigned count = 1;

	while (n >= 10) {
		n /= 10;
		count++;
	}
	return count;
}

static size_t name_bound(const char *name)
{
	struct bd_buffer b = { 0 };
	size_t size;

	bd_buffer_json_string(&b, name, strlen(name));
	size = b.failed ? 6 * strlen(name) + 2 : b.size;
	bd_buffer_free(&b);
	return size;
}

/* A bound of one tensor's part of the header: `,"NAME":{"dtype":"...","shape":[...],"data_offsets":[a,b]}`. */
static size_t entry_bound(size_t name, const char *dtype, size_t shape, unsigned offset)
{
	return 43 + name + strlen(dtype) + shape + 2 * offset;
}

/* An upper bound of the header that write_header will make. */
static void reserve_header(struct import *im)
{
	uint64_t data = im->fine->tensor_bytes + MANIFEST_BOUND, extra;
	unsigned offset;
	struct stat st;

	/* Whatever is stored is no longer than this: for each file its zlib stream, for all tensors together raw. */
	for (size_t i = 0; i < im->delta->file_count; i++) {
		const struct bd_delta_file *f = &im->delta->files[i];
		char *path;

		data += f->st ? 8 * f->st->header_size : 0;
		if (f->st || asprintf(&path, "%s/%s", im->fine->path, f->name) < 0)
			continue;
		data += stat(path, &st) == 0 ? compressBound((uLong)st.st_size) : 0;
		free(path);
	}
	offset = digits(data);
	im->reserved = 8 + 140 + offset + entry_bound(8, "U8", offset, offset) +
		       entry_bound(6, "F32", offset, offset);
	for (size_t i = 0; i < im->delta->file_count; i++)
		if (!im->delta->files[i].st)
			im->reserved += entry_bound(name_bound(im->delta->files[i].name) + 5, "U8", offset,
						    offset);
	for (size_t i = 0; i < im->item_count; i++) {
		const struct bd_item *item = &im->items[i];
		const struct bd_tensor *t = item->entry->tensor;
		size_t name = name_bound(t->name) + 5;
		char shape[200];
		size_t raw = entry_bound(name, bd_dtype_name(t->dtype),
					 strlen(bd_tensor_shape_text(t, shape, sizeof(shape))), offset);
		size_t sign = !item->sign ? 0 : entry_bound(name, "U8", digits(
			bd_manifest_plane_bytes(1, item->entry->rows * item->entry->cols)), offset);

		extra = sign > raw ? sign : raw;
		im->reserved += is_resized(item) ? sign + raw : extra;
	}
	im->reserved = (im->reserved + 7) / 8 * 8;
}

/* Note a tensor of the container and its place. Call with the lock held or alone. */
static int store(struct import *im, const char *kind, const char *name, enum bd_dtype dtype,
		 unsigned dims, const uint64_t *shape, uint64_t size, uint64_t *offset,
		 struct bd_error *err)
{
	struct stored *s;

	if (im->stored_count == im->stored_capacity) {
		size_t capacity = im->stored_capacity ? 2 * im->stored_capacity : 256;
		struct stored *grown = realloc(im->stored, capacity * sizeof(*grown));

		if (!grown)
			return out_of_memory(im, err);
		im->stored = grown;
		im->stored_capacity = capacity;
	}
	s = &im->stored[im->stored_count];
	*s = (struct stored){ .dtype = dtype, .dims = dims, .offset = im->data_size, .size = size };
	memcpy(s->shape, shape, dims * sizeof(*shape));
	if (asprintf(&s->name, "%s%s%s", kind, *name ? "/" : "", name) < 0)
		return out_of_memory(im, err);
	im->stored_count++;
	im->data_size += size;
	*offset = im->reserved + s->offset;
	return 0;
}

/* Store a vector of bytes that is at hand. */
static int store_bytes(struct import *im, const char *kind, const char *name, const void *data,
		       uint64_t size, struct bd_error *err)
{
	uint64_t offset;
	int rc = store(im, kind, name, BD_U8, 1, &size, size, &offset, err);

	return rc < 0 ? rc : bd_output_write(im->output, data, size, offset, err);
}

static int write_header(struct import *im, uint64_t manifest_size, const char *manifest_hash,
			struct bd_error *err)
{
	struct bd_buffer b = { 0 };
	uint64_t length = im->reserved - 8;
	int rc;

	for (int i = 0; i < 8; i++)
		bd_buffer_append(&b, &(char){ (char)(length >> 8 * i) }, 1);
	bd_buffer_printf(&b, "{\"__metadata__\":{\"format\":\"bdelta\",\"version\":\"1\","
			 "\"manifest_size\":\"%" PRIu64 "\",\"manifest_xxh128\":\"%s\"}",
			 manifest_size, manifest_hash);
	for (size_t i = 0; i < im->stored_count; i++) {
		const struct stored *s = &im->stored[i];

		bd_buffer_printf(&b, ",");
		bd_buffer_json_string(&b, s->name, strlen(s->name));
		bd_buffer_printf(&b, ":{\"dtype\":\"%s\",\"shape\":[", bd_dtype_name(s->dtype));
		for (unsigned d = 0; d < s->dims; d++)
			bd_buffer_printf(&b, "%s%" PRIu64, d ? "," : "", s->shape[d]);
		bd_buffer_printf(&b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", s->offset,
				 s->offset + s->size);
	}
	bd_buffer_printf(&b, "}");
	while (!b.failed && b.size < im->reserved)
		bd_buffer_append(&b, " ", 1);
	if (b.failed)
		rc = out_of_memory(im, err);
	else if (b.size > im->reserved || length > BD_MAX_HEADER)
		rc = bd_error_set(err, -E2BIG, "%s: too many tensors for one safetensors header",
				  im->options->out);
	else
		rc = bd_output_write(im->output, b.data, b.size, 0, err);
	bd_buffer_free(&b);
	return rc;
}

/* ---- Running ---- */

/* Wait until all items before this one have stored what they will. */
static int take_turn(struct import *im, size_t index, struct bd_error *err)
{
	pthread_mutex_lock(&im->lock);
	while (im->turn != index && !im->aborted)
		pthread_cond_wait(&im->turned, &im->lock);
	if (!im->aborted)
		return 0;
	pthread_mutex_unlock(&im->lock);
	return bd_error_set(err, -EINTR, "interrupted");
}

static void pass_turn(struct import *im)
{
	im->turn++;
	pthread_cond_broadcast(&im->turned);
	pthread_mutex_unlock(&im->lock);
}

static void abort_phase(void *context)
{
	struct import *im = context;

	pthread_mutex_lock(&im->lock);
	im->aborted = true;
	pthread_cond_broadcast(&im->turned);
	pthread_mutex_unlock(&im->lock);
}

static void show_progress(void *context)
{
	struct import *im = context;
	const struct bd_watch *watch = &im->options->watch;

	if (watch->progress)
		watch->progress(watch->context, atomic_load(&im->done), im->fine->tensor_bytes);
}

static bool has_tail(const struct bd_item *item)
{
	const struct bd_tensor *t = item->entry->tensor;

	return item->base && t->dims && item->head < t->shape[0];
}

/* The entry of an item whose head is `encoding`. */
static void settle(struct bd_item *item, enum bd_encoding encoding)
{
	struct bd_entry *e = item->entry;

	e->encoding = e->head = encoding;
	if (encoding != BD_RAW && is_resized(item)) {
		e->encoding = BD_ROWS;
		e->shared = item->head;
	}
	e->planes = encoding == BD_SIGN ? 1 : 0;
	if (encoding != BD_SIGN) {
		e->rows = e->cols = 0;
		e->error = -1;
	}
}

static int append_scales(struct import *im, const struct bd_item *item, struct bd_error *err)
{
	uint64_t count = item->entry->rows + item->entry->cols;
	float *grown = realloc(im->scales, (im->scale_count + count) * sizeof(*grown));

	if (!grown)
		return out_of_memory(im, err);
	memcpy(grown + im->scale_count, item->scales, count * sizeof(*grown));
	im->scales = grown;
	im->scale_count += count;
	return 0;
}

static int work_sign(void *context, size_t index, struct bd_error *err)
{
	struct import *im = context;
	struct bd_item *item = im->queue[index];
	struct bd_entry *e = item->entry;
	uint64_t size = bd_manifest_plane_bytes(1, e->rows * e->cols), offset = 0;
	int rc = bd_item_look_sign(item, &im->look, err);

	if (rc == 0 && item->usable)
		bd_hash_data(item->bits, size, e->xxh128);
	if (rc == 0)
		rc = take_turn(im, index, err);
	if (rc < 0)
		goto out;
	settle(item, item->same ? BD_SAME : item->usable ? BD_SIGN : BD_RAW);
	if (e->planes) {
		rc = append_scales(im, item, err);
		if (rc == 0)
			rc = store(im, "sign", e->tensor->name, BD_U8, 1, &size, size, &offset, err);
	}
	pass_turn(im);
	if (rc == 0 && e->planes)
		rc = bd_output_write(im->output, item->bits, size, offset, err);
out:
	bd_item_drop(item);
	return rc;
}

/* Copy slices from `from` on of the fine-tune's tensor to the output, hashing them. */
static int copy_raw(struct import *im, struct bd_item *item, uint64_t from, uint64_t offset,
		    struct bd_error *err)
{
	const struct bd_tensor *t = item->entry->tensor;
	uint64_t start = from ? t->size / t->shape[0] * from : 0;
	XXH3_state_t *hash = XXH3_createState();
	char *buf = malloc(BD_IMPORT_CHUNK);
	int rc = 0;

	if (!hash || !buf) {
		rc = out_of_memory(im, err);
		goto out;
	}
	XXH3_128bits_reset(hash);
	for (uint64_t at = start; at < t->size; at += BD_IMPORT_CHUNK) {
		size_t n = t->size - at < BD_IMPORT_CHUNK ? (size_t)(t->size - at) : BD_IMPORT_CHUNK;

		rc = bd_file_read(item->file, buf, n, t->offset + at, err);
		if (rc == 0 && im->look.stop && *im->look.stop)
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc == 0)
			rc = bd_output_write(im->output, buf, n, offset + at - start, err);
		if (rc < 0)
			goto out;
		XXH3_128bits_update(hash, buf, n);
	}
	bd_hash_text(XXH3_128bits_digest(hash),
		     from ? item->entry->tail_xxh128 : item->entry->xxh128);
out:
	XXH3_freeState(hash);
	free(buf);
	return rc;
}

/* Items that were not sign-coded, and what is left of those that were. */
static int work_exact(void *context, size_t index, struct bd_error *err)
{
	struct import *im = context;
	struct bd_item *item = im->queue[index];
	struct bd_entry *e = item->entry;
	struct bd_tensor part = *e->tensor;
	uint64_t from = 0, offset = 0;
	bool wanted;
	int rc = 0;

	if (!item->sign) {
		if (item->base)
			rc = bd_item_look_same(item, &im->look, err);
		settle(item, item->base && item->same ? BD_SAME : BD_RAW);
		atomic_fetch_add(&im->done, e->tensor->size);
	}
	if (rc == 0)
		rc = take_turn(im, index, err);
	if (rc < 0)
		return rc;
	wanted = e->encoding == BD_RAW || (e->encoding == BD_ROWS && has_tail(item));
	if (wanted && e->encoding == BD_ROWS) {
		from = item->head;
		part.shape[0] -= from;
		part.size -= part.size / e->tensor->shape[0] * from;
	}
	if (wanted)
		rc = store(im, "raw", part.name, part.dtype, part.dims, part.shape, part.size, &offset,
			   err);
	pass_turn(im);
	return rc == 0 && wanted ? copy_raw(im, item, from, offset, err) : rc;
}

static bool belongs(const struct bd_item *item, enum phase phase, unsigned low, unsigned high)
{
	unsigned bits = bd_dtype_bits(item->entry->tensor->dtype);

	switch (phase) {
	case LOOK_WIDE:
		return !item->sign && bits >= 64;
	case LOOK_SIGN:
		return item->sign;
	case LOOK_REST:
		/* What the sign phase left over, too. */
		return bits >= low && bits < high &&
		       (!item->sign || item->entry->encoding == BD_RAW ||
			(item->entry->encoding == BD_ROWS && has_tail(item)));
	}
	return false;
}

static int run_phase(struct import *im, enum phase phase, unsigned low, unsigned high,
		     struct bd_error *err)
{
	struct bd_parallel job = {
		.threads = im->options->threads,
		.work = phase == LOOK_SIGN ? work_sign : work_exact,
		.abort = abort_phase,
		.tick = show_progress,
		.context = im,
		.cancel = im->options->watch.cancel,
	};

	im->queue_size = im->turn = 0;
	for (size_t i = 0; i < im->item_count; i++)
		if (belongs(&im->items[i], phase, low, high))
			im->queue[im->queue_size++] = &im->items[i];
	job.count = im->queue_size;
	return bd_parallel_run(&job, err);
}

static int store_scales(struct import *im, struct bd_error *err)
{
	uint64_t offset, size = im->scale_count * sizeof(*im->scales);
	int rc;

	if (im->scale_count == 0)
		return 0;
	bd_hash_data(im->scales, size, im->delta->scales_xxh128);
	rc = store(im, "scales", "", BD_F32, 1, &im->scale_count, size, &offset, err);
	return rc < 0 ? rc : bd_output_write(im->output, im->scales, size, offset, err);
}

static int deflate_bytes(const struct import *im, const char *plain, size_t size, char **packed,
			 uint64_t *packed_size, struct bd_error *err)
{
	uLongf n = compressBound(size);

	*packed = malloc(n);
	if (!*packed || compress2((Bytef *)*packed, &n, (const Bytef *)plain, size, 9) != Z_OK) {
		free(*packed);
		*packed = NULL;
		return out_of_memory(im, err);
	}
	*packed_size = n;
	return 0;
}

static int store_sidecar(struct import *im, struct bd_delta_file *f, struct bd_error *err)
{
	char *path = NULL, *plain = NULL, *packed = NULL;
	uint64_t packed_size;
	size_t size;
	int rc;

	if (asprintf(&path, "%s/%s", im->fine->path, f->name) < 0)
		return out_of_memory(im, err);
	rc = bd_file_slurp(path, MAX_SIDECAR, &plain, &size, err);
	if (rc == 0)
		rc = deflate_bytes(im, plain, size, &packed, &packed_size, err);
	if (rc == 0) {
		f->size = size;
		bd_hash_data(plain, size, f->xxh128);
		rc = store_bytes(im, "file", f->name, packed, packed_size, err);
	}
	free(packed);
	free(plain);
	free(path);
	return rc;
}

static int store_manifest(struct import *im, struct bd_error *err)
{
	struct bd_buffer text = { 0 };
	char hash[BD_HASH], *packed = NULL;
	uint64_t packed_size;
	int rc;

	bd_manifest_print(im->delta, &text);
	if (text.failed) {
		rc = out_of_memory(im, err);
		goto out;
	}
	bd_hash_data(text.data, text.size, hash);
	rc = deflate_bytes(im, text.data, text.size, &packed, &packed_size, err);
	if (rc == 0)
		rc = store_bytes(im, "manifest", "", packed, packed_size, err);
	if (rc == 0)
		rc = write_header(im, text.size, hash, err);
out:
	free(packed);
	bd_buffer_free(&text);
	return rc;
}

/* Nobody may have written to the inputs meanwhile, or base and delta would not belong together. */
static int check_inputs(const struct import *im, struct bd_error *err)
{
	int rc = bd_base_check(im->base, err);

	for (size_t s = 0; rc == 0 && s < im->fine->shard_count; s++)
		rc = bd_file_check(im->fine->shards[s].file, err);
	return rc;
}

static void note_unrelated(const struct import *im)
{
	size_t far = 0, coded = 0;

	for (size_t i = 0; i < im->item_count; i++)
		if (im->items[i].entry->planes) {
			coded++;
			far += im->items[i].change > UNRELATED;
		}
	if (far * 2 > coded)
		note(im, "most weights differ from the base's by more than half of their size: is %s really "
		     "the base of %s? One bit per weight will not keep such a difference",
		     im->options->base, im->options->fine);
}

static int run(struct import *im, struct bd_error *err)
{
	int rc = run_phase(im, LOOK_WIDE, 64, 65, err);

	if (rc == 0)
		rc = run_phase(im, LOOK_SIGN, 0, 65, err);
	if (rc == 0)
		rc = store_scales(im, err);
	if (rc == 0)
		rc = run_phase(im, LOOK_REST, 32, 64, err);
	if (rc == 0)
		rc = run_phase(im, LOOK_REST, 16, 32, err);
	if (rc == 0)
		rc = run_phase(im, LOOK_REST, 0, 16, err);
	for (size_t i = 0; rc == 0 && i < im->delta->file_count; i++)
		if (!im->delta->files[i].st)
			rc = store_sidecar(im, &im->delta->files[i], err);
	if (rc == 0)
		rc = store_manifest(im, err);
	if (rc == 0)
		rc = check_inputs(im, err);
	if (rc == 0 && im->look.stop && *im->look.stop)
		rc = bd_error_set(err, -EINTR, "interrupted");
	if (rc == 0)
		rc = bd_output_commit(im->output, err);
	if (rc == 0)
		note_unrelated(im);
	return rc;
}

/* ---- Beginning and end ---- */

static int describe(struct import *im, struct bd_error *err)
{
	struct bd_delta *d = im->delta;
	const struct bd_checkpoint *c = im->base->checkpoint;

	d->base_label = strdup(c->label);
	d->base_revision = c->revision ? strdup(c->revision) : NULL;
	d->producer = strdup("bitdelta " BD_VERSION);
	d->scale_kind = strdup(bd_scale_name(im->options->scale));
	d->attenuation = im->options->attenuation;
	memcpy(d->base_digest, im->base->digest, sizeof(d->base_digest));
	if (!d->base_label || (c->revision && !d->base_revision) || !d->producer || !d->scale_kind)
		return out_of_memory(im, err);
	return 0;
}

static int check_options(const struct bd_import_options *o, struct bd_error *err)
{
	size_t length = strlen(o->out);

	if (length < 8 || strcmp(o->out + length - 7, ".bdelta") != 0 || o->out[length - 8] == '/')
		return bd_error_set(err, -EINVAL, "%s: the output must be named SOMETHING.bdelta", o->out);
	if (!(o->attenuation > 0) || !isfinite(o->attenuation))
		return bd_error_set(err, -EINVAL, "the attenuation must be a positive number");
	return 0;
}

static void end(struct import *im)
{
	for (size_t i = 0; i < im->item_count; i++)
		bd_item_drop(&im->items[i]);
	for (size_t i = 0; im->delta && i < im->delta->file_count; i++)
		im->delta->files[i].st = NULL; /* the checkpoint's */
	for (size_t i = 0; i < im->stored_count; i++)
		free(im->stored[i].name);
	free(im->stored);
	free(im->scales);
	free(im->items);
	free(im->queue);
	bd_delta_close(im->delta);
	bd_output_close(im->output);
	bd_checkpoint_close(im->fine);
	bd_base_close(im->base);
	pthread_mutex_destroy(&im->lock);
	pthread_cond_destroy(&im->turned);
}

int bd_import(const struct bd_import_options *options, struct bd_error *err)
{
	struct import im = { .options = options };
	int rc = check_options(options, err);

	if (rc < 0)
		return rc;
	pthread_mutex_init(&im.lock, NULL);
	pthread_cond_init(&im.turned, NULL);
	im.look = (struct bd_look){
		.scale = options->scale, .attenuation = options->attenuation, .done = &im.done,
		.stop = options->watch.cancel,
	};
	im.delta = calloc(1, sizeof(*im.delta));
	rc = im.delta ? bd_base_open(&im.base, options->base, err) : out_of_memory(&im, err);
	if (rc < 0) {
		bd_error_prefix(err, "base");
		goto out;
	}
	rc = bd_checkpoint_open(&im.fine, options->fine, err);
	if (rc < 0) {
		bd_error_prefix(err, "fine-tune");
		goto out;
	}
	for (size_t i = 0; i < im.fine->skipped_count; i++)
		note(&im, "not taken: %s", im.fine->skipped[i]);
	rc = check_architecture(&im, err);
	if (rc == 0)
		rc = describe(&im, err);
	if (rc == 0)
		rc = plan(&im, err);
	if (rc < 0)
		goto out;
	im.queue = calloc(im.item_count + 1, sizeof(*im.queue));
	if (!im.queue) {
		rc = out_of_memory(&im, err);
		goto out;
	}
	reserve_header(&im);
	rc = bd_output_open(&im.output, options->out, err);
	if (rc == 0)
		rc = run(&im, err);
out:
	end(&im);
	return rc;
}
