/* SPDX-License-Identifier: Apache-2.0 */
/* import.c: running an import on all cores and writing the file in order. See import.h.
 *
 * The file is written in one sweep (container.h), in an order that aligns every stored tensor to
 * its elements without holes:
 *
 *     header | exact | raw 8-byte | sign planes | scales | raw 4-, 2-, 1-byte | files | manifest
 *
 * Planes and what codes exact tensors are multiples of 8 bytes, scales of 4. Workers look at tensors in
 * parallel, but take turns to choose the place of what they store, so the file does not depend on their
 * speed. */
#include "import.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "container.h"
#include "import_impl.h"
#include "manifest.h"
#include "origin.h"
#include "store.h"
#include "utf8.h"

/* Above this, base and fine-tune are not relatives and one bit will not do. */
#define UNRELATED 0.5

struct import {
	const struct bd_import_options *options;
	struct bd_plan plan;
	struct bd_container *container;
	struct bd_look look;
	atomic_ullong done;
	float *scales;
	uint64_t scale_count;

	struct bd_item **queue; /* of the phase that runs */
	size_t queue_size;
	pthread_mutex_t lock;   /* guards what follows, and all that storing changes */
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

void bd_import_note(const struct bd_import_options *options, const char *format, ...)
{
	char text[sizeof(((struct bd_error *)0)->text)];
	va_list args;

	if (!options->watch.note)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	options->watch.note(options->watch.context, text);
}

static int out_of_memory(const struct import *im, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", im->options->out);
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
		watch->progress(watch->context, atomic_load(&im->done), im->plan.fine->tensor_bytes);
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
	if ((encoding == BD_SAME || encoding == BD_SIGN) && bd_item_is_resized(item)) {
		e->encoding = BD_ROWS;
		e->shared = item->head;
	}
	if (!bd_entry_has_base(e))
		e->base_name = NULL; /* nobody needs it, and it would be a feature (FORMAT.md section 2) */
	e->planes = encoding == BD_SIGN ? 1 : 0;
	if (encoding != BD_SIGN) {
		e->rows = e->cols = 0;
		e->error = -1;
	}
	item->settled = true;
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
			rc = bd_container_place(im->container, "sign", e->tensor->name, BD_U8, 1, &size,
						size, &offset, err);
	}
	pass_turn(im);
	if (rc == 0 && e->planes)
		rc = bd_output_write(im->container->output, item->bits, size, offset, err);
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

	if (!from)
		item->special = 0; /* counted anew */
	return bd_store_copy(im->container, item->file, t->offset + start, t->size - start, offset, t->dtype,
			     &item->special, im->look.stop, from ? item->entry->tail_xxh128 : item->entry->xxh128, err);
}

/* Any item where nothing may be lost; those that are raw, and the tails of tables, are stored later. */
static int work_coded(void *context, size_t index, struct bd_error *err)
{
	struct import *im = context;
	struct bd_item *item = im->queue[index];
	struct bd_entry *e = item->entry;
	uint64_t size, offset = 0;
	char kind[BD_COPY_KIND];
	int rc = 0;

	if (item->base && e->base_dtype == e->tensor->dtype)
		rc = bd_item_look_same(item, &im->look, err);
	if (rc == 0 && !item->same)
		rc = bd_item_code(item, &im->look, err);
	atomic_fetch_add(&im->done, e->tensor->size);
	if (rc == 0)
		rc = take_turn(im, index, err);
	if (rc < 0)
		goto out;
	settle(item, item->same ? BD_SAME : item->coded ? BD_EXACT : BD_RAW);
	size = item->coded_size;
	if (item->coded)
		rc = bd_container_place(im->container, bd_manifest_kind(e, "exact", kind), e->tensor->name, BD_U8, 1,
					&size, size, &offset, err);
	pass_turn(im);
	if (rc == 0 && item->coded)
		rc = bd_output_write(im->container->output, item->coded, size, offset, err);
out:
	bd_item_drop(item);
	return rc;
}

/* Items that were not settled, and what is left of those that were. */
static int work_exact(void *context, size_t index, struct bd_error *err)
{
	struct import *im = context;
	struct bd_item *item = im->queue[index];
	struct bd_entry *e = item->entry;
	struct bd_tensor part = *e->tensor;
	uint64_t from = 0, offset = 0, shape[BD_MAX_DIMS];
	char kind[BD_COPY_KIND];
	bool wanted;
	int rc = 0;

	if (!item->settled) {
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
		memcpy(shape, part.shape, part.dims * sizeof(*shape));
		shape[0] -= from;
		part.shape = shape;
		part.size -= part.size / e->tensor->shape[0] * from;
	}
	if (wanted)
		rc = bd_container_place(im->container, bd_manifest_kind(e, "raw", kind), part.name,
					part.dtype, part.dims, part.shape, part.size, &offset, err);
	pass_turn(im);
	return rc == 0 && wanted ? copy_raw(im, item, from, offset, err) : rc;
}

/* Tensors of at least `low` and less than `high` bits an element that are not settled, and what settling the others
 * left over. */
static bool is_exact(const struct bd_item *item, unsigned low, unsigned high)
{
	unsigned bits = bd_dtype_bits(item->entry->tensor->dtype);
	enum bd_encoding encoding = item->entry->encoding;

	return bits >= low && bits < high &&
	       (!item->settled || encoding == BD_RAW || (encoding == BD_ROWS && has_tail(item)));
}

/* Run `work` on the items in the queue. */
static int run_phase(struct import *im, int (*work)(void *, size_t, struct bd_error *),
		     struct bd_error *err)
{
	struct bd_parallel job = {
		.count = im->queue_size,
		.threads = im->options->threads,
		.work = work,
		.abort = abort_phase,
		.tick = show_progress,
		.context = im,
		.cancel = im->options->watch.cancel,
	};

	im->turn = 0;
	return bd_parallel_run(&job, err);
}

static int run_sign(struct import *im, struct bd_error *err)
{
	im->queue_size = 0;
	for (size_t i = 0; i < im->plan.item_count; i++)
		if (im->plan.items[i].sign)
			im->queue[im->queue_size++] = &im->plan.items[i];
	return run_phase(im, work_sign, err);
}

static int run_coded(struct import *im, struct bd_error *err)
{
	im->queue_size = 0;
	for (size_t i = 0; i < im->plan.item_count; i++)
		im->queue[im->queue_size++] = &im->plan.items[i];
	return run_phase(im, work_coded, err);
}

static int run_exact(struct import *im, unsigned low, unsigned high, struct bd_error *err)
{
	im->queue_size = 0;
	for (size_t i = 0; i < im->plan.item_count; i++)
		if (is_exact(&im->plan.items[i], low, high))
			im->queue[im->queue_size++] = &im->plan.items[i];
	return run_phase(im, work_exact, err);
}

/* The mean factor of all weights that are signs. */
static void describe_attenuation(struct import *im)
{
	double first = im->options->attenuation ? im->options->attenuation : BD_ATTENUATION;
	double more = 0, weights = 0;

	for (size_t i = 0; i < im->plan.item_count; i++) {
		const struct bd_item *item = &im->plan.items[i];

		if (item->entry->planes == 0)
			continue;
		first = weights > 0 ? first : item->attenuation;
		weights += (double)item->entry->rows * (double)item->entry->cols;
		more += (item->attenuation - first) * (double)item->entry->rows * (double)item->entry->cols;
	}
	im->plan.delta->attenuation = first + (weights > 0 ? more / weights : 0);
}

static int store_scales(struct import *im, struct bd_error *err)
{
	if (im->scale_count)
		bd_hash_data(im->scales, im->scale_count * sizeof(*im->scales),
			     im->plan.delta->scales_xxh128);
	return bd_store_scales(im->container, im->scales, im->scale_count, err);
}

/* A file that is too large for memory, as it is. */
static int store_plain(struct import *im, struct bd_delta_file *f, const char *path, struct bd_error *err)
{
	struct bd_file *file;
	uint64_t offset = 0;
	int rc = bd_file_open(&file, path, err);

	if (rc < 0)
		return rc;
	f->size = file->size;
	rc = bd_container_place(im->container, "plain", f->name, BD_U8, 1, &f->size, f->size, &offset, err);
	if (rc == 0)
		rc = bd_store_copy(im->container, file, 0, f->size, offset, BD_U8, NULL, im->look.stop,
				   f->xxh128, err);
	if (rc == 0)
		rc = bd_file_check(file, err);
	bd_file_close(file);
	return rc;
}

static int store_packed(struct import *im, struct bd_delta_file *f, const char *path, struct bd_error *err)
{
	char *plain = NULL;
	size_t size;
	int rc = bd_file_slurp(path, BD_MAX_SIDECAR, &plain, &size, err);

	if (rc == 0) {
		f->size = size;
		bd_hash_data(plain, size, f->xxh128);
		rc = bd_store_file(im->container, f->name, plain, size, err);
	}
	free(plain);
	return rc;
}

static int store_sidecar(struct import *im, struct bd_delta_file *f, struct bd_error *err)
{
	char *path;
	int rc;

	if (asprintf(&path, "%s/%s", im->plan.fine->path, f->name) < 0)
		return out_of_memory(im, err);
	rc = f->plain ? store_plain(im, f, path, err) : store_packed(im, f, path, err);
	free(path);
	return rc;
}

/* Nobody may have written to the inputs meanwhile, or base and delta would not belong together. */
static int check_inputs(const struct import *im, struct bd_error *err)
{
	int rc = bd_base_check(im->plan.base, err);

	for (size_t s = 0; rc == 0 && s < im->plan.fine->shard_count; s++)
		rc = bd_file_check(im->plan.fine->shards[s].file, err);
	return rc;
}

static void note_unrelated(const struct import *im)
{
	size_t far = 0, coded = 0;

	for (size_t i = 0; i < im->plan.item_count; i++)
		if (im->plan.items[i].entry->planes) {
			coded++;
			far += im->plan.items[i].change > UNRELATED;
		}
	if (far * 2 > coded)
		bd_import_note(im->options, "most weights differ from the base's by more than half of "
			       "their size: is %s really the base of %s? One bit per weight will not "
			       "keep such a difference", im->options->base, im->options->fine);
}

static void note_special(const struct import *im)
{
	const struct bd_item *first = NULL;
	uint64_t count = 0;
	size_t tensors = 0;

	for (size_t i = 0; i < im->plan.item_count; i++)
		if (im->plan.items[i].special) {
			first = first ? first : &im->plan.items[i];
			count += im->plan.items[i].special;
			tensors++;
		}
	if (first)
		bd_import_note(im->options, "%s has numbers that are infinite or not a number: %" PRIu64 " in %zu of its "
			       "tensors, the first in '%s'; they are kept as they are, but a model with such weights is "
			       "broken", im->options->fine, count, tensors, first->entry->tensor->name);
}

static void note_quantised(const struct import *im)
{
	size_t kept = 0;
	uint64_t bytes = 0;

	for (size_t i = 0; i < im->plan.item_count; i++) {
		const struct bd_entry *e = im->plan.items[i].entry;

		if (e->encoding == BD_SAME || e->encoding == BD_EXACT ||
		    !bd_policy_is_quantised(&im->plan.policy, e->tensor))
			continue;
		kept++;
		bytes += e->tensor->size;
	}
	if (kept)
		bd_import_note(im->options, "quantised weights do not shrink here: %zu tensors, scales among "
			       "them, are kept bit for bit (%.1f MB). The checkpoint that %s was quantised "
			       "from would shrink", kept, (double)bytes / 1e6, im->options->fine);
}

static int commit(struct import *im, struct bd_error *err)
{
	static const struct bd_occupant nothing;

	return im->options->no_clobber ? bd_output_replace(im->container->output, &nothing, err) :
					 bd_output_commit(im->container->output, err);
}

static int run(struct import *im, struct bd_error *err)
{
	int rc = im->options->exact ? run_coded(im, err) : 0;

	if (rc == 0)
		rc = run_exact(im, 64, 65, err);
	if (rc == 0)
		rc = run_sign(im, err);
	describe_attenuation(im);
	if (rc == 0)
		rc = store_scales(im, err);
	if (rc == 0)
		rc = run_exact(im, 32, 64, err);
	if (rc == 0)
		rc = run_exact(im, 16, 32, err);
	if (rc == 0)
		rc = run_exact(im, 0, 16, err);
	for (size_t i = 0; rc == 0 && i < im->plan.delta->file_count; i++)
		if (!im->plan.delta->files[i].st)
			rc = store_sidecar(im, &im->plan.delta->files[i], err);
	if (rc == 0)
		rc = bd_store_manifest(im->container, im->plan.delta, im->options->fine, err);
	if (rc == 0)
		rc = check_inputs(im, err);
	if (rc == 0 && im->look.stop && *im->look.stop)
		rc = bd_error_set(err, -EINTR, "interrupted");
	if (rc == 0)
		rc = commit(im, err);
	if (rc < 0)
		return rc;
	note_special(im);
	note_unrelated(im);
	note_quantised(im);
	return 0;
}

/* ---- Beginning and end ---- */

/* A directory may have any name, a label only text that can be shown. */
static char *plain_copy(const char *name)
{
	char *copy = strdup(name);

	if (copy)
		bd_utf8_make_plain(copy);
	return copy;
}

static int describe(struct import *im, struct bd_error *err)
{
	struct bd_delta *d = im->plan.delta;
	struct bd_origin origin;
	int rc = bd_origin_find(&origin, im->plan.base->checkpoint, im->plan.fine, err);

	d->base_revision = origin.revision;
	d->base_path = origin.path;
	d->base_hub = origin.hub;
	if (rc < 0)
		return rc;
	d->base_label = plain_copy(im->plan.base->checkpoint->label);
	d->producer = strdup("bitdelta " BD_VERSION);
	d->scale_kind = im->options->exact ? NULL : strdup(bd_scale_name(im->options->scale));
	memcpy(d->base_digest, im->plan.base->digest, sizeof(d->base_digest));
	if (!d->base_label || !d->producer || (!d->scale_kind && !im->options->exact))
		return out_of_memory(im, err);
	return 0;
}

/* Distilling took time, and what is replaced does not come back. */
static void note_replaced(const struct bd_import_options *o)
{
	struct bd_delta *old;

	if (bd_delta_open(&old, o->out, NULL) < 0)
		return;
	if (old->distilled)
		bd_import_note(o, "%s is there and distilled, and will be replaced (--no-clobber keeps it)", o->out);
	bd_delta_close(old);
}

/* The value of an attribute that a mount gives its directories (mount.bitdelta(8)), and that copies may keep;
 * false: none. */
static bool get_attribute(const struct bd_checkpoint *c, const char *name, char *value, size_t room)
{
	ssize_t n = getxattr(c->path, name, value, room - 1);

	if (n < 0)
		return false;
	value[n] = '\0';
	bd_utf8_make_plain(value);
	return true;
}

/* Models that a mount shows are what signs and scales give. */
static void note_mounted(const struct import *im)
{
	const struct bd_import_options *o = im->options;
	char delta[PATH_MAX], encodings[64];

	if (get_attribute(im->plan.fine, "user.bitdelta.delta", delta, sizeof(delta)) &&
	    get_attribute(im->plan.fine, "user.bitdelta.encoding", encodings, sizeof(encodings)) &&
	    strstr(encodings, bd_encoding_name(BD_SIGN)))
		bd_import_note(o, "%s is what bitdelta makes of %s, not the original fine-tune: copy that file, or "
			       "import the original, and nothing more is lost", o->fine, delta);
	if (get_attribute(im->plan.base->checkpoint, "user.bitdelta.delta", delta, sizeof(delta)))
		bd_import_note(o, "the base %s is what bitdelta makes of %s: %s will need just that file, as it is now",
			       o->base, delta, o->out);
}

/* So are those that an export gave, which say it by their weights only. */
static void note_exported(const struct import *im)
{
	const struct bd_import_options *o = im->options;
	size_t plain = 0, coded = 0;
	char delta[PATH_MAX];

	for (size_t i = 0; i < im->plan.item_count; i++)
		if (im->plan.items[i].entry->planes) {
			coded++;
			plain += im->plan.items[i].attenuation == 1;
		}
	if (o->attenuation == 0 && plain * 2 > coded &&
	    !get_attribute(im->plan.fine, "user.bitdelta.delta", delta, sizeof(delta)))
		bd_import_note(o, "%zu of %zu matrices of %s are the base's plus or minus row x column, as an export of "
			       "a delta gives them: the copy is true, but if there is an original fine-tune, import that",
			       plain, coded, o->fine);
}

static int check_options(const struct bd_import_options *o, struct bd_error *err)
{
	struct bd_occupant there;
	int rc = bd_store_check_name(o->out, err);

	if (rc < 0)
		return rc;
	if (o->no_clobber && bd_output_note(&there, o->out, NULL) == 0 && there.there)
		return bd_error_set(err, -EEXIST, "%s: is there already, and stays (--no-clobber)", o->out);
	if (!(o->attenuation >= 0) || !isfinite(o->attenuation))
		return bd_error_set(err, -EINVAL, "the attenuation must be a positive number");
	return 0;
}

static void end(struct import *im)
{
	for (size_t i = 0; i < im->plan.item_count; i++)
		bd_item_drop(&im->plan.items[i]);
	for (size_t i = 0; im->plan.delta && i < im->plan.delta->file_count; i++)
		im->plan.delta->files[i].st = NULL; /* the checkpoint's; so the base's names stay too */
	free(im->scales);
	bd_policy_free(&im->plan.policy);
	free(im->plan.items);
	free(im->queue);
	bd_delta_close(im->plan.delta);
	bd_container_close(im->container);
	bd_sidecars_free(&im->plan.sidecars);
	bd_checkpoint_close(im->plan.fine);
	bd_base_close(im->plan.base);
	pthread_mutex_destroy(&im->lock);
	pthread_cond_destroy(&im->turned);
}

static void note_all(const struct bd_import_options *options, const char *role,
		     const struct bd_checkpoint *c)
{
	for (size_t i = 0; i < c->note_count; i++)
		bd_import_note(options, "%s: %s", role, c->notes[i]);
}

static int list_sidecars(struct import *im, struct bd_error *err)
{
	const struct bd_import_options *o = im->options;
	struct bd_sidecars *s = &im->plan.sidecars;
	int rc = bd_sidecars_list(s, im->plan.fine, o->file_rules, o->file_rule_count, err);

	if (rc == 0 && s->lost)
		rc = bd_error_set(err, -EINVAL, "%s", s->lost);
	if (rc < 0) {
		bd_error_prefix(err, "fine-tune");
		return rc;
	}
	for (size_t i = 0; i < s->note_count; i++)
		bd_import_note(o, "not taken: %s", s->notes[i]);
	return 0;
}

int bd_import(const struct bd_import_options *options, struct bd_error *err)
{
	struct import im = { .options = options, .plan.options = options };
	int rc = check_options(options, err);

	if (rc < 0)
		return rc;
	pthread_mutex_init(&im.lock, NULL);
	pthread_cond_init(&im.turned, NULL);
	im.look = (struct bd_look){
		.scale = options->scale, .attenuation = options->attenuation, .done = &im.done,
		.stop = options->watch.cancel,
	};
	im.plan.delta = calloc(1, sizeof(*im.plan.delta));
	rc = im.plan.delta ? bd_base_open(&im.plan.base, options->base, err) : out_of_memory(&im, err);
	if (rc < 0) {
		bd_error_prefix(err, "base");
		goto out;
	}
	note_all(options, "base", im.plan.base->checkpoint);
	rc = bd_checkpoint_open(&im.plan.fine, options->fine, err);
	if (rc < 0) {
		bd_error_prefix(err, "fine-tune");
		goto out;
	}
	note_all(options, "fine-tune", im.plan.fine);
	rc = list_sidecars(&im, err);
	if (rc < 0)
		goto out;
	note_replaced(options);
	note_mounted(&im);
	rc = describe(&im, err);
	if (rc == 0)
		rc = bd_plan_make(&im.plan, err);
	if (rc < 0)
		goto out;
	im.queue = calloc(im.plan.item_count + 1, sizeof(*im.queue));
	if (!im.queue) {
		rc = out_of_memory(&im, err);
		goto out;
	}
	rc = bd_container_open(&im.container, options->out, bd_plan_header_bound(&im.plan), err);
	if (rc == 0)
		rc = run(&im, err);
	if (rc == 0)
		note_exported(&im);
out:
	end(&im);
	return rc;
}
