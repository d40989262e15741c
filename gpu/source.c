/* SPDX-License-Identifier: Apache-2.0 */
/* source.c: a checkpoint or a delta's view as one thing to load a model from, see source.h. */
#include "source.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidecars.h"
#include "sign.h"

#define MAX_IDLE 64 /* scratches that are kept for the next read */
/* What bdx_source_match looks at: */
#define SMALL ((uint64_t)1 << 20) /* bytes of a tensor that is compared as a whole, at most */
#define SAMPLED 128               /* tensors of which a part is, about so many */
#define SAMPLE 1024               /* elements of each */
#define TELLING 256               /* elements that changed, without which samples tell nothing */
#define WRONG_SHARE 20            /* one in so many may have changed otherwise: refined scales that
                                   * became negative are allowed for */

struct bdx_source {
	struct bd_checkpoint *checkpoint; /* owned; NULL for a view */
	struct bd_view *view;             /* borrowed; NULL for a checkpoint */
	pthread_mutex_t lock;             /* guards what follows */
	struct bd_scratch *idle[MAX_IDLE];
	unsigned idle_count;
};

static struct bdx_source *new_source(struct bd_error *err)
{
	struct bdx_source *s = calloc(1, sizeof(*s));

	if (s)
		pthread_mutex_init(&s->lock, NULL);
	else
		bd_error_set(err, -ENOMEM, "out of memory");
	return s;
}

int bdx_source_open(struct bdx_source **source, const char *path, struct bd_error *err)
{
	struct bdx_source *s = new_source(err);
	int rc;

	if (!s)
		return -ENOMEM;
	rc = bd_checkpoint_open(&s->checkpoint, path, err);
	if (rc < 0) {
		bdx_source_close(s);
		return rc;
	}
	*source = s;
	return 0;
}

int bdx_source_view(struct bdx_source **source, struct bd_view *view, struct bd_error *err)
{
	struct bdx_source *s = new_source(err);

	if (!s)
		return -ENOMEM;
	s->view = view;
	*source = s;
	return 0;
}

void bdx_source_close(struct bdx_source *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->idle_count; i++)
		bd_scratch_free(s->idle[i]);
	bd_checkpoint_close(s->checkpoint);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

const char *bdx_source_name(const struct bdx_source *s)
{
	return s->view ? s->view->delta->file->path : s->checkpoint->path;
}

bool bdx_source_find(const struct bdx_source *s, const char *name, struct bdx_weight *weight)
{
	const struct bd_shard *shard;

	if (s->checkpoint) {
		weight->tensor = bd_checkpoint_find(s->checkpoint, name, &shard);
		weight->where = weight->tensor ? shard : NULL;
		return weight->tensor != NULL;
	}
	for (size_t i = 0; i < s->view->file_count; i++) {
		const struct bd_delta_file *file = &s->view->delta->files[i];

		weight->tensor = file->st ? bd_safetensors_find(file->st, name) : NULL;
		if (weight->tensor && !file->entries[weight->tensor - file->st->tensors].copy) {
			weight->where = &s->view->files[i];
			return true;
		}
	}
	weight->tensor = NULL;
	return false;
}

static struct bd_scratch *take_scratch(struct bdx_source *s)
{
	struct bd_scratch *scratch = NULL;

	pthread_mutex_lock(&s->lock);
	if (s->idle_count > 0)
		scratch = s->idle[--s->idle_count];
	pthread_mutex_unlock(&s->lock);
	return scratch ? scratch : bd_scratch_new();
}

static void put_scratch(struct bdx_source *s, struct bd_scratch *scratch)
{
	pthread_mutex_lock(&s->lock);
	if (s->idle_count < MAX_IDLE) {
		s->idle[s->idle_count++] = scratch;
		scratch = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	bd_scratch_free(scratch);
}

static int read_view(struct bdx_source *s, size_t index, void *to, uint64_t offset, size_t size,
		     struct bd_error *err)
{
	struct bd_scratch *scratch = take_scratch(s);
	ssize_t n;
	int rc;

	if (!scratch)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", bdx_source_name(s));
	rc = bd_view_acquire(s->view, index, err);
	if (rc == 0) {
		n = bd_view_read(s->view, index, to, size, offset, scratch, err);
		bd_view_release(s->view, index);
		if (n < 0)
			rc = (int)n;
		else if ((size_t)n < size)
			rc = bd_error_set(err, -EIO, "%s: file '%s' in it ends early",
					  bdx_source_name(s), s->view->files[index].name);
	}
	put_scratch(s, scratch);
	return rc;
}

int bdx_source_read(struct bdx_source *s, const struct bdx_weight *weight, void *to,
		    uint64_t offset, size_t size, struct bd_error *err)
{
	const struct bd_view_file *file = weight->where;
	const struct bd_shard *shard = weight->where;

	offset += weight->tensor->offset;
	if (s->view)
		return read_view(s, (size_t)(file - s->view->files), to, offset, size, err);
	return bd_file_read(shard->file, to, size, offset, err);
}

static int no_file(const struct bdx_source *s, const char *name, struct bd_error *err)
{
	return bd_error_set(err, -ENOENT, "%s: there is no %s in it", bdx_source_name(s), name);
}

static int slurp(struct bdx_source *s, const char *name, char **data, size_t *size,
		 struct bd_error *err)
{
	const struct bd_checkpoint *c = s->checkpoint;
	char *path;
	int rc;

	for (size_t i = 0; i < c->shard_count; i++) /* they are tensors, as in a view */
		if (strcmp(c->shards[i].name, name) == 0)
			return no_file(s, name, err);
	if (asprintf(&path, "%s/%s", c->path, name) < 0)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", c->path);
	rc = bd_file_slurp(path, BD_MAX_SIDECAR, data, size, err);
	free(path);
	return rc == -ENOENT ? no_file(s, name, err) : rc;
}

int bdx_source_file(struct bdx_source *s, const char *name, char **data, size_t *size,
		    struct bd_error *err)
{
	size_t i = 0;
	int rc;

	*data = NULL;
	if (s->checkpoint)
		return slurp(s, name, data, size, err);
	while (i < s->view->file_count &&
	       (s->view->files[i].safetensors || strcmp(s->view->files[i].name, name) != 0))
		i++;
	if (i == s->view->file_count)
		return no_file(s, name, err);
	if (s->view->files[i].size > BD_MAX_SIDECAR)
		return bd_error_set(err, -EFBIG, "%s: file '%s' in it has more than %u bytes",
				    bdx_source_name(s), name, BD_MAX_SIDECAR);
	*size = (size_t)s->view->files[i].size;
	*data = malloc(*size + 1);
	if (!*data)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", bdx_source_name(s));
	(*data)[*size] = '\0';
	rc = read_view(s, i, *data, 0, *size, err);
	if (rc < 0) {
		free(*data);
		*data = NULL;
	}
	return rc;
}

/* Has the source the tensor of a raw or exact entry, with the same bytes? 1 or 0. */
static int has_kept(struct bdx_source *s, const struct bd_entry *entry, struct bd_error *err)
{
	size_t size = entry->tensor->size;
	struct bdx_weight weight;
	char hash[BD_HASH], *data;
	int rc;

	if (!bdx_source_find(s, entry->tensor->name, &weight) || weight.tensor->size != size ||
	    weight.tensor->dtype != entry->tensor->dtype)
		return 0;
	data = malloc(size + 1);
	if (!data)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", bdx_source_name(s));
	rc = bdx_source_read(s, &weight, data, 0, size, err);
	if (rc == 0) {
		bd_hash_data(data, size, hash);
		rc = strcmp(hash, entry->xxh128) == 0;
	}
	free(data);
	return rc;
}

/* Elements of samples, by how they changed: as the view shows them, and otherwise. */
struct directions {
	uint64_t as_shown, otherwise;
};

/* Which of the elements of `to` are larger than those of `from`? */
static void find_larger(const void *to, const void *from, enum bd_dtype dtype, uint64_t count,
			uint8_t bits[SAMPLE / 8])
{
	double row;
	float cols[SAMPLE] = { 0 };
	struct bd_sign_stats stats = { &row, cols };

	memset(bits, 0, SAMPLE / 8);
	bd_sign_extract(to, dtype, from, dtype, 1, count, bits, 0, &stats);
}

/* Compare elements of the base, of the view and of the fine-tune. What the view rounds to the base's own
 * number tells nothing. */
static void count_directions(struct directions *d, const void *base, const void *shown,
			     const void *fine, enum bd_dtype dtype, uint64_t count)
{
	uint8_t up[SAMPLE / 8], down[SAMPLE / 8], fine_up[SAMPLE / 8];

	find_larger(shown, base, dtype, count, up);
	find_larger(base, shown, dtype, count, down);
	find_larger(fine, base, dtype, count, fine_up);
	for (size_t i = 0; i < SAMPLE / 8; i++) {
		unsigned wrong = (up[i] & ~fine_up[i]) | (down[i] & fine_up[i]);

		d->otherwise += (uint64_t)__builtin_popcount(wrong);
		d->as_shown += (uint64_t)__builtin_popcount((up[i] | down[i]) & ~wrong);
	}
}

/* Look at a part of a tensor that is coded by signs. */
static int sample(struct bdx_source *s, struct bdx_source *shown, const struct bd_view *view,
		  const struct bd_entry *e, struct directions *d, struct bd_error *err)
{
	const struct bd_base_tensor *base = bd_base_find(view->base, bd_entry_base(e));
	enum bd_dtype dtype = e->tensor->dtype;
	size_t width = bd_dtype_bits(dtype) / 8;
	uint64_t all = e->rows * e->cols, count = all < SAMPLE ? all : SAMPLE;
	uint64_t at = (all - count) / 2 * width, size = count * width;
	char buffers[3][SAMPLE * sizeof(float)];
	struct bdx_weight theirs, ours;
	int rc;

	if (all == 0 || dtype != e->base_dtype || !bdx_source_find(shown, e->tensor->name, &ours) ||
	    !bdx_source_find(s, e->tensor->name, &theirs) || theirs.tensor->dtype != dtype ||
	    theirs.tensor->size != e->tensor->size)
		return 0;
	rc = bd_file_read(base->shard->file, buffers[0], size, base->tensor->offset + at, err);
	if (rc == 0)
		rc = bdx_source_read(shown, &ours, buffers[1], at, size, err);
	if (rc == 0)
		rc = bdx_source_read(s, &theirs, buffers[2], at, size, err);
	if (rc == 0)
		count_directions(d, buffers[0], buffers[1], buffers[2], dtype, count);
	return rc;
}

static int match(struct bdx_source *s, struct bdx_source *shown, const struct bd_view *view,
		 struct directions *d, struct bd_error *err)
{
	const struct bd_delta *delta = view->delta;
	size_t coded = 0, step = 1;
	int rc = 0;

	for (size_t f = 0; f < delta->file_count; f++)
		for (size_t t = 0; delta->files[f].st && t < delta->files[f].st->count; t++)
			step += delta->files[f].entries[t].planes == 1;
	step = (step + SAMPLED - 1) / SAMPLED;
	for (size_t f = 0; f < delta->file_count; f++)
		for (size_t t = 0; delta->files[f].st && t < delta->files[f].st->count; t++) {
			const struct bd_entry *e = &delta->files[f].entries[t];

			if (e->copy)
				continue;
			if (e->planes == 1 && coded++ % step == 0)
				rc = sample(s, shown, view, e, d, err);
			if (rc < 0)
				return rc;
			if ((e->encoding != BD_RAW && e->encoding != BD_EXACT) || e->tensor->size > SMALL)
				continue;
			rc = has_kept(s, e, err);
			if (rc < 0)
				return rc;
			if (rc == 0)
				return bd_error_set(err, -EINVAL, "%s is not the fine-tune that %s was made "
						    "from: their tensors %s differ", bdx_source_name(s),
						    delta->file->path, e->tensor->name);
		}
	return 0;
}

int bdx_source_match(struct bdx_source *s, struct bd_view *view, struct bd_error *err)
{
	struct directions d = { 0 };
	struct bdx_source *shown;
	uint64_t seen;
	int rc = bdx_source_view(&shown, view, err);

	if (rc < 0)
		return rc;
	rc = match(s, shown, view, &d, err);
	bdx_source_close(shown);
	seen = d.as_shown + d.otherwise;
	if (rc == 0 && seen >= TELLING && d.otherwise > seen / WRONG_SHARE)
		rc = bd_error_set(err, -EINVAL, "%s is not the fine-tune that %s was made from: %.0f of 100 "
				  "weights changed in another direction", bdx_source_name(s),
				  view->delta->file->path, 100 * (double)d.otherwise / (double)seen);
	return rc < 0 ? rc : 0;
}

int bdx_source_check(struct bdx_source *s, struct bd_error *err)
{
	int rc = 0;

	if (s->view) {
		rc = bd_file_check(s->view->delta->file, err);
		return rc < 0 ? rc : bd_base_check(s->view->base, err);
	}
	for (size_t i = 0; rc == 0 && i < s->checkpoint->shard_count; i++)
		rc = bd_file_check(s->checkpoint->shards[i].file, err);
	return rc;
}
