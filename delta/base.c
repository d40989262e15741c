/* SPDX-License-Identifier: Apache-2.0 */
/* base.c: the identity of a base, see base.h. */
#include "base.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b)
{
	const struct bd_base_tensor *const *x = a, *const *y = b;

	return strcmp((*x)->tensor->name, (*y)->tensor->name);
}

static int read_sample(struct bd_base_tensor *t, struct bd_error *err)
{
	char buf[BD_SAMPLE];
	uint64_t size = t->tensor->size, at = 0;
	int rc;

	if (size > BD_SAMPLE) {
		at = (size - BD_SAMPLE) / 2 / 8 * 8;
		size = BD_SAMPLE;
	}
	rc = bd_file_read(t->shard->file, buf, (size_t)size, t->tensor->offset + at, err);
	if (rc == 0)
		t->sample = XXH3_64bits(buf, (size_t)size);
	return rc;
}

static int compute_digest(struct bd_base *base, XXH3_state_t *state)
{
	const struct bd_checkpoint *c = base->checkpoint;
	const struct bd_base_tensor **sorted = malloc((c->tensor_count + 1) * sizeof(*sorted));

	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < c->tensor_count; i++)
		if (!bd_checkpoint_is_copy(c, base->tensors[i].tensor))
			sorted[base->count++] = &base->tensors[i];
	qsort(sorted, base->count, sizeof(*sorted), by_name);
	XXH3_128bits_reset(state);
	for (size_t i = 0; i < base->count; i++) {
		const struct bd_tensor *t = sorted[i]->tensor;
		char line[16 + 24 * (BD_MAX_DIMS + 2)];
		size_t n;

		XXH3_128bits_update(state, t->name, strlen(t->name));
		n = (size_t)snprintf(line, sizeof(line), "\t%s\t", bd_dtype_name(t->dtype));
		for (unsigned d = 0; d < t->dims; d++)
			n += (size_t)snprintf(line + n, sizeof(line) - n, "%s%" PRIu64, d ? "," : "",
					      t->shape[d]);
		n += (size_t)snprintf(line + n, sizeof(line) - n, "\t%016" PRIx64 "\n",
				      sorted[i]->sample);
		XXH3_128bits_update(state, line, n);
	}
	bd_hash_text(XXH3_128bits_digest(state), base->digest);
	free(sorted);
	return 0;
}

int bd_base_open(struct bd_base **out, const char *path, struct bd_error *err)
{
	struct bd_base *base = calloc(1, sizeof(*base));
	XXH3_state_t *state = XXH3_createState();
	struct bd_checkpoint *c;
	size_t n = 0;
	int rc = -ENOMEM;

	if (!base || !state) {
		bd_error_set(err, rc, "%s: out of memory", path);
		goto out;
	}
	rc = bd_checkpoint_open(&base->checkpoint, path, err);
	if (rc < 0)
		goto out;
	c = base->checkpoint;
	base->tensors = calloc(c->tensor_count ? c->tensor_count : 1, sizeof(*base->tensors));
	if (!base->tensors) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	for (size_t s = 0; s < c->shard_count; s++)
		for (size_t i = 0; i < c->shards[s].st->count; i++)
			base->tensors[n++] = (struct bd_base_tensor){
				.tensor = &c->shards[s].st->tensors[i], .shard = &c->shards[s],
			};
	for (size_t i = 0; i < n; i++) {
		rc = read_sample(&base->tensors[i], err);
		if (rc < 0)
			goto out;
	}
	rc = bd_base_check(base, err);
	if (rc < 0)
		goto out;
	if (compute_digest(base, state) < 0) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	for (size_t i = 0; i < c->shard_count; i++) {
		bd_safetensors_slim(c->shards[i].st);
		bd_file_map(c->shards[i].file);
	}
	*out = base;
	base = NULL;
out:
	XXH3_freeState(state);
	bd_base_close(base);
	return rc;
}

void bd_base_close(struct bd_base *base)
{
	if (!base)
		return;
	bd_checkpoint_close(base->checkpoint);
	free(base->tensors);
	free(base);
}

const struct bd_base_tensor *bd_base_find(const struct bd_base *base, const char *name)
{
	const struct bd_shard *shard;
	const struct bd_tensor *t = bd_checkpoint_find(base->checkpoint, name, &shard);

	return t ? &base->tensors[shard->first + (size_t)(t - shard->st->tensors)] : NULL;
}

int bd_base_check(const struct bd_base *base, struct bd_error *err)
{
	for (size_t s = 0; s < base->checkpoint->shard_count; s++) {
		int rc = bd_file_check(base->checkpoint->shards[s].file, err);

		if (rc < 0)
			return rc;
	}
	return 0;
}
