/* SPDX-License-Identifier: Apache-2.0 */
/* refine.c: copying a .bdelta file but for its scales, see refine.h. */
#include "refine.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "manifest.h"
#include "store.h"

/* Bytes that the manifest may be longer than it was: other members, another compressor. */
#define MANIFEST_BOUND ((uint64_t)64 << 20)
#define METADATA_BOUND 160

struct refinement {
	const struct bd_delta *delta;
	const float *scales;
	struct bd_delta refined;  /* a copy whose `import` and scales_xxh128 are the new ones; the rest is
				   * the delta's */
	const char **wanted;      /* for each tensor of the container its hash; NULL: none is known */
	struct bd_container *container;
	const atomic_int *stop;
};

static int out_of_memory(const struct refinement *r, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", r->delta->file->path);
}

int bd_refine_check(const char *path, struct bd_error *err)
{
	struct bd_output *output;
	int rc = bd_store_check_name(path, err);

	if (rc == 0)
		rc = bd_output_open(&output, path, err);
	if (rc == 0)
		bd_output_close(output);
	return rc;
}

static int check_scales(const struct refinement *r, struct bd_error *err)
{
	const struct bd_delta *d = r->delta;

	if (!d->scales)
		return bd_error_set(err, -EINVAL, "%s: no tensor in it is kept as signs, so it has no scales",
				    d->file->path);
	for (uint64_t i = 0; i < d->scales->count; i++)
		if (!isfinite(r->scales[i]))
			return bd_error_set(err, -EINVAL, "%s: the new scale %" PRIu64 " is not a finite "
					    "number", d->file->path, i);
	return 0;
}

/* What the manifest is to say. */
static int describe(struct refinement *r, struct bd_error *err)
{
	const char *kind = r->delta->scale_kind;

	/* A kind that only a later version knows stays. */
	if (!kind || strcmp(kind, "tensor") == 0 || strcmp(kind, "row") == 0)
		kind = "rank1";
	r->refined = *r->delta;
	r->refined.scale_kind = strdup(kind);
	if (!r->refined.scale_kind)
		return out_of_memory(r, err);
	r->refined.distilled = true;
	bd_hash_data(r->scales, r->delta->scales->size, r->refined.scales_xxh128);
	return 0;
}

static int collect_hashes(struct refinement *r, struct bd_error *err)
{
	const struct bd_tensor *stored = r->delta->st->tensors;

	r->wanted = calloc(r->delta->st->count, sizeof(*r->wanted));
	if (!r->wanted)
		return out_of_memory(r, err);
	for (size_t f = 0; f < r->delta->file_count; f++) {
		const struct bd_delta_file *file = &r->delta->files[f];

		if (file->plain)
			r->wanted[file->stored - stored] = file->xxh128;
		for (size_t i = 0; file->st && i < file->st->count; i++) {
			const struct bd_entry *e = &file->entries[i];

			if (e->sign)
				r->wanted[e->sign - stored] = e->xxh128;
			if (e->raw)
				r->wanted[e->raw - stored] =
					e->encoding == BD_ROWS ? e->tail_xxh128 : e->xxh128;
		}
	}
	return 0;
}

/* Room for the header of the same tensors, whose data may end a little later. */
static uint64_t header_bound(const struct bd_delta *d)
{
	uint64_t data = d->file->size + MANIFEST_BOUND, bound = 8 + METADATA_BOUND;

	for (size_t i = 0; i < d->st->count; i++) {
		const struct bd_tensor *t = &d->st->tensors[i];
		struct bd_tensor longest = *t;
		char shape[200];

		if (strcmp(t->name, "manifest") == 0)
			longest.shape = &data;
		bound += bd_container_entry_bound(
			bd_container_name_bound(t->name), t->dtype,
			strlen(bd_tensor_shape_text(&longest, shape, sizeof(shape))), data);
	}
	return bound;
}

static int copy_tensor(struct refinement *r, const struct bd_tensor *t, struct bd_error *err)
{
	const char *wanted = r->wanted[t - r->delta->st->tensors];
	char found[BD_HASH];
	uint64_t offset;
	int rc = bd_container_place(r->container, t->name, "", t->dtype, t->dims, t->shape, t->size,
				    &offset, err);

	if (rc == 0)
		rc = bd_store_copy(r->container, r->delta->file, t->offset, t->size, offset, t->dtype,
				   NULL, r->stop, found, err);
	if (rc == 0 && wanted && strcmp(found, wanted) != 0)
		rc = bd_error_set(err, -EIO, "%s: '%s' at byte %" PRIu64 " is damaged: its hash is %s, "
				  "expected %s", r->delta->file->path, t->name, t->offset, found, wanted);
	return rc;
}

/* The hashes of packed files are those of the inflated bytes. */
static int check_files(const struct refinement *r, struct bd_error *err)
{
	for (size_t f = 0; f < r->delta->file_count; f++) {
		char *data = NULL;
		int rc = r->delta->files[f].st || r->delta->files[f].plain ? 0 :
			bd_delta_inflate(r->delta, &r->delta->files[f], &data, err);

		free(data);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* In the order of the old file, in which wider types come first; the manifest is the last. */
static int write_all(struct refinement *r, struct bd_error *err)
{
	const struct bd_safetensors *st = r->delta->st;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < st->count; i++) {
		const struct bd_tensor *t = &st->tensors[i];

		if (t == r->delta->scales)
			rc = bd_store_scales(r->container, r->scales, t->count, err);
		else if (strcmp(t->name, "manifest") != 0)
			rc = copy_tensor(r, t, err);
	}
	if (rc == 0)
		rc = check_files(r, err);
	if (rc == 0)
		rc = bd_store_manifest(r->container, &r->refined, r->delta->file->path, err);
	return rc;
}

int bd_refine(const struct bd_delta *delta, const float *scales, const char *path,
	      const struct bd_occupant *was, const atomic_int *stop, struct bd_error *err)
{
	struct refinement r = { .delta = delta, .scales = scales, .stop = stop };
	int rc = bd_store_check_name(path, err);

	if (rc == 0)
		rc = check_scales(&r, err);
	if (rc == 0)
		rc = describe(&r, err);
	if (rc == 0)
		rc = collect_hashes(&r, err);
	if (rc == 0)
		rc = bd_container_open(&r.container, path, header_bound(delta), err);
	if (rc == 0)
		rc = write_all(&r, err);
	if (rc == 0)
		rc = bd_file_check(delta->file, err);
	if (rc == 0)
		rc = was ? bd_output_replace(r.container->output, was, err) :
			   bd_output_commit(r.container->output, err);
	bd_container_close(r.container);
	free(r.wanted);
	free(r.refined.scale_kind);
	return rc;
}
