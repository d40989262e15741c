/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c: complete checks of a delta and its base, see verify.h. */
#include "verify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "codec/exact_file.h"

#define CHUNK ((size_t)4 << 20)

/* One run of bytes with the hash it should have. */
struct check {
	struct bd_file *file;
	uint64_t offset, size;
	const char *wanted; /* 32 digits */
	const char *kind, *name;
	const struct bd_delta_file *inflate; /* instead: inflate this file */
	const struct bd_entry *rebuild;      /* or: rebuild this exact tensor */
	bool finite;        /* binary32 numbers that must be finite */
};

struct verification {
	struct bd_delta *delta;
	struct bd_base *base; /* NULL: not checked */
	struct check *checks;
	size_t count;
	uint64_t total;
	atomic_ullong done;
	const struct bd_watch *watch;
};

static void add(struct verification *v, struct bd_file *file, const struct bd_tensor *t,
		const char *wanted, const char *kind)
{
	v->checks[v->count++] = (struct check){
		.file = file, .offset = t->offset, .size = t->size, .wanted = wanted,
		.kind = kind, .name = t->name,
	};
	v->total += t->size;
}

static int collect(struct verification *v, struct bd_error *err)
{
	struct bd_delta *d = v->delta;
	const struct bd_base *base = v->base;
	size_t capacity = 1;

	for (size_t f = 0; f < d->file_count; f++)
		capacity += d->files[f].st ? 3 * d->files[f].st->count : 1;
	v->checks = calloc(capacity, sizeof(*v->checks));
	if (!v->checks)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", d->file->path);
	if (d->scales) {
		add(v, d->file, d->scales, d->scales_xxh128, "scales");
		v->checks[v->count - 1].finite = true;
	}
	for (size_t f = 0; f < d->file_count; f++) {
		if (d->files[f].plain) {
			add(v, d->file, d->files[f].stored, d->files[f].xxh128, "file");
			continue;
		}
		if (!d->files[f].st) {
			v->checks[v->count++].inflate = &d->files[f];
			continue;
		}
		for (size_t i = 0; i < d->files[f].st->count; i++) {
			const struct bd_entry *e = &d->files[f].entries[i];
			const struct bd_base_tensor *b = NULL;

			if (e->sign)
				add(v, d->file, e->sign, e->xxh128, "sign planes");
			if (e->raw)
				add(v, d->file, e->raw,
				    e->encoding == BD_ROWS ? e->tail_xxh128 : e->xxh128, "raw tensor");
			if (base && bd_entry_has_base(e))
				b = bd_base_find(base, bd_entry_base(e));
			if (b)
				add(v, b->shard->file, b->tensor, e->base_xxh128, "base tensor");
			if (e->exact && (base || !bd_entry_has_base(e))) {
				v->checks[v->count++].rebuild = e;
				v->total += e->tensor->size;
			}
		}
	}
	return 0;
}

static bool all_finite(const char *data, size_t size)
{
	uint32_t bad = 0;

	for (size_t i = 0; i + 4 <= size; i += 4) {
		uint32_t u;

		memcpy(&u, data + i, sizeof(u));
		bad |= (u & 0x7F800000) == 0x7F800000;
	}
	return !bad;
}

static int work(void *context, size_t index, struct bd_error *err)
{
	struct verification *v = context;
	const struct check *c = &v->checks[index];
	XXH3_state_t *hash = NULL;
	char *buf = NULL, found[BD_HASH];
	int rc = 0;

	if (c->inflate) {
		rc = bd_delta_inflate(v->delta, c->inflate, &buf, err);
		free(buf);
		return rc;
	}
	if (c->rebuild)
		return bd_exact_entry_verify(v->delta, c->rebuild, v->base, &v->done, v->watch->cancel, err);
	hash = XXH3_createState();
	buf = malloc(CHUNK);
	if (!hash || !buf) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", c->file->path);
		goto out;
	}
	XXH3_128bits_reset(hash);
	for (uint64_t at = 0; at < c->size; at += CHUNK) {
		size_t n = c->size - at < CHUNK ? (size_t)(c->size - at) : CHUNK;

		rc = bd_file_read(c->file, buf, n, c->offset + at, err);
		if (rc == 0 && v->watch->cancel && *v->watch->cancel)
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc == 0 && c->finite && !all_finite(buf, n))
			rc = bd_error_set(err, -EIO, "%s: a scale is not finite", c->file->path);
		if (rc < 0)
			goto out;
		XXH3_128bits_update(hash, buf, n);
		atomic_fetch_add(&v->done, n);
	}
	rc = bd_file_check(c->file, err);
	if (rc < 0)
		goto out;
	bd_hash_text(XXH3_128bits_digest(hash), found);
	if (strcmp(found, c->wanted) != 0)
		rc = bd_error_set(err, -EIO, "%s: %s '%s' at byte %" PRIu64 " is damaged or another one: its "
				  "hash is %s, expected %s", c->file->path, c->kind, c->name, c->offset,
				  found, c->wanted);
out:
	if (rc < 0 && c->file != v->delta->file) /* several deltas may have one base */
		bd_error_prefix(err, "%s", v->delta->file->path);
	XXH3_freeState(hash);
	free(buf);
	return rc;
}

static void tick(void *context)
{
	struct verification *v = context;

	if (v->watch->progress)
		v->watch->progress(v->watch->context, atomic_load(&v->done), v->total);
}

int bd_verify(struct bd_delta *delta, struct bd_base *base, const struct bd_watch *watch,
	      struct bd_error *err)
{
	struct verification v = { .delta = delta, .base = base, .watch = watch };
	struct bd_parallel job = { .work = work, .tick = tick, .context = &v, .cancel = watch->cancel };
	int rc = base ? bd_delta_check_base(delta, base, err) : 0;

	if (rc == 0)
		rc = collect(&v, err);
	job.count = v.count;
	if (rc == 0)
		rc = bd_parallel_run(&job, err);
	free(v.checks);
	return rc;
}
