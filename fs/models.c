/* SPDX-License-Identifier: Apache-2.0 */
/* models.c: the bases and models of a mount, see models.h. */
#include "models_impl.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "summary.h"

/* Views that nobody uses are kept, this many of them: loaders open the same files several times. */
#define IDLE_VIEWS 32
/* Less of them where they are large, but always the one that was used last: a loader that opens one file
 * after the other must not wait for the delta to be parsed each time. */
#define IDLE_BYTES ((size_t)64 << 20)
/* Parsing takes several times what stays. The C library would keep that for itself. */
#define TRIM_FROM ((size_t)128 << 10)
/* Bytes that take a while to be inflated. */
#define LARGE_FILE ((uint64_t)256 << 10)

static int no_memory(struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "out of memory for a model");
}

static bool is_later(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

/* --- bases --- */

/* 0 where that is not there. */
static uint64_t size_below(const char *directory, const char *name)
{
	struct stat st = { 0 };
	char *path;

	if (asprintf(&path, "%s/%s", directory, name) < 0)
		return 0;
	if (stat(path, &st) < 0)
		st.st_size = 0;
	free(path);
	return (uint64_t)st.st_size;
}

int bdfs_base_open(struct bdfs_base **out, const char *path, struct bd_error *err)
{
	struct bdfs_base *b = calloc(1, sizeof(*b));
	const struct bd_checkpoint *c;
	int r;

	if (!b)
		return no_memory(err);
	atomic_init(&b->users, 1);
	b->path = bdfs_absolute(path);
	r = b->path ? bd_base_open(&b->base, path, err) : no_memory(err);
	if (r == 0)
		/* The fine-tunes need none of them. */
		r = bd_sidecars_list(&b->sidecars, b->base->checkpoint, NULL, 0, &b->unlisted) == -ENOMEM ?
			no_memory(err) : 0;
	if (r < 0) {
		bdfs_base_put(b);
		return r;
	}
	c = b->base->checkpoint;
	for (size_t i = 0; i < c->shard_count; i++)
		b->bytes += c->shards[i].file->size;
	for (size_t i = 0; i < b->sidecars.count; i++)
		b->bytes += size_below(c->path, b->sidecars.paths[i]);
	*out = b;
	return 0;
}

void bdfs_base_put(struct bdfs_base *b)
{
	if (!b || atomic_fetch_sub(&b->users, 1) != 1)
		return;
	bd_sidecars_free(&b->sidecars);
	bd_base_close(b->base);
	free(b->path);
	free(b);
}

/* --- models --- */

static void model_free(struct bdfs_model *m)
{
	for (size_t i = 0; i < m->file_count; i++) {
		free(m->files[i].name);
		if (m->files[i].owned)
			bd_file_close(m->files[i].real);
	}
	free(m->files);
	free(m->name);
	free(m->directory);
	free(m->path);
	free(m->entry);
	bd_file_close(m->file);
	bdfs_base_put(m->base);
	free(m);
}

static void idle_remove(struct bdfs_models *models, struct bdfs_model *m)
{
	*(m->older ? &m->older->newer : &models->oldest) = m->newer;
	*(m->newer ? &m->newer->older : &models->newest) = m->older;
	m->older = m->newer = NULL;
	models->idle--;
	models->idle_bytes -= m->view_bytes;
}

void bdfs_model_get(struct bdfs_model *model)
{
	atomic_fetch_add(&model->users, 1);
}

void bdfs_model_put(struct bdfs_models *models, struct bdfs_model *m)
{
	if (!m || atomic_fetch_sub(&m->users, 1) != 1)
		return;
	pthread_mutex_lock(&models->views);
	if (m->view)
		idle_remove(models, m);
	pthread_mutex_unlock(&models->views);
	bd_view_close(m->view);
	model_free(m);
}

static struct bdfs_model *model_new(const char *name, const char *path, enum bdfs_layout layout,
				    struct bdfs_base *base, size_t files)
{
	struct bdfs_model *m = calloc(1, sizeof(*m));
	const char *prefix = layout == BDFS_HUB && strncmp(name, "models--", 8) ? "models--" : "";

	if (!m)
		return NULL;
	atomic_init(&m->users, 1);
	m->base = base;
	atomic_fetch_add(&base->users, 1);
	m->name = strdup(name);
	m->path = strdup(path);
	m->files = calloc(files ? files : 1, sizeof(*m->files));
	if (asprintf(&m->directory, "%s%s", prefix, name) < 0)
		m->directory = NULL;
	if (m->name && m->path && m->files && m->directory)
		return m;
	model_free(m);
	return NULL;
}

static int describe_files(struct bdfs_model *m, const struct bd_view *view)
{
	const struct bd_delta *d = view->delta;

	for (size_t i = 0; i < d->file_count; i++) {
		const struct bd_delta_file *from = &d->files[i];
		struct bdfs_file *f = &m->files[i];

		f->name = strdup(from->name);
		m->file_count++;
		if (!f->name)
			return -ENOMEM;
		f->size = from->size;
		m->virtual_bytes += f->size;
		if (!from->st) {
			f->stored = from->stored->size;
			continue;
		}
		f->real = bd_view_verbatim(view, i);
		for (size_t e = 0; e < from->st->count; e++) {
			f->encodings |= 1u << from->entries[e].encoding;
			f->stored += bd_summary_stored(&from->entries[e]);
		}
	}
	return 0;
}

int bdfs_model_of_view(struct bdfs_model **out, const struct bd_view *view, struct bdfs_base *base,
			 const struct bdfs_source *source, const char *entry,
			 enum bdfs_layout layout, struct bd_error *err)
{
	const struct bd_delta *d = view->delta;
	struct bdfs_model *m = model_new(d->name, d->file->path, layout, base, d->file_count);
	const char *hash = bd_safetensors_metadata(d->st, "manifest_xxh128");

	int r = -ENOMEM;

	if (m && describe_files(m, view) == 0 && (m->entry = strdup(entry)))
		r = bd_file_dup(&m->file, d->file, err);
	else
		no_memory(err);
	if (r < 0) {
		if (m)
			model_free(m);
		return r;
	}
	snprintf(m->revision, sizeof(m->revision), "%.32s%.8s", hash, d->base_digest);
	m->source = source;
	m->mtime = m->file->frozen.st_mtim;
	m->stored_bytes = d->file->size;
	m->distilled = d->distilled;
	*out = m;
	return 0;
}

int bdfs_model_of_base(struct bdfs_model **out, struct bdfs_base *base, enum bdfs_layout layout,
			 struct bd_error *err)
{
	const struct bd_checkpoint *c = base->base->checkpoint;
	const struct bd_sidecars *sidecars = &base->sidecars;
	size_t n = strlen(c->label), count = 0;
	char *name = malloc(2 * n + 1), *to = name;
	struct bdfs_model *m = NULL;
	int r = base->unlisted.code;

	if (r < 0) {
		free(name);
		if (err)
			*err = base->unlisted;
		return r;
	}
	for (const char *p = c->label; name && *p; p++) { /* as the hub names it: org--name */
		if (*p == '/')
			*to++ = '-';
		*to++ = *p == '/' ? '-' : *p;
	}
	if (name) {
		*to = '\0';
		m = model_new(name, base->path, layout, base, c->shard_count + sidecars->count);
	}
	free(name);
	if (!m)
		return no_memory(err);
	m->is_base = true;
	if (c->revision && strlen(c->revision) == BDFS_REVISION - 1)
		strcpy(m->revision, c->revision);
	else
		snprintf(m->revision, sizeof(m->revision), "%.32s%.8s", base->base->digest,
			 base->base->digest);
	/* Two ascending lists become one. */
	for (size_t s = 0, o = 0; r == 0 && s + o < c->shard_count + sidecars->count; ) {
		bool shard = o == sidecars->count || (s < c->shard_count &&
						       strcmp(c->shards[s].name, sidecars->paths[o]) < 0);
		struct bdfs_file *f = &m->files[count++];
		char *path = NULL;

		f->name = strdup(shard ? c->shards[s].name : sidecars->paths[o]);
		m->file_count = count;
		if (!f->name)
			r = no_memory(err);
		else if (shard)
			f->real = c->shards[s].file;
		else if (asprintf(&path, "%s/%s", c->path, f->name) < 0)
			r = no_memory(err);
		else if ((r = bd_file_open(&f->real, path, err)) == 0)
			f->owned = true;
		free(path);
		if (r == 0) {
			f->size = f->stored = f->real->size;
			f->encodings = shard ? 1u << BD_SAME : 0;
			m->virtual_bytes += f->size;
			if (is_later(f->real->frozen.st_mtim, m->mtime))
				m->mtime = f->real->frozen.st_mtim;
		}
		*(shard ? &s : &o) += 1;
	}
	if (r < 0) {
		model_free(m);
		return r;
	}
	*out = m;
	return 0;
}

/* Inflate the index and whatever else is large, yet no larger than the headers that were just parsed, so that
 * opening it needs no longer than opening others. What is damaged says so when it is opened. */
static void look_at_large(struct bd_view *v)
{
	uint64_t headers = 0;

	for (size_t i = 0; i < v->file_count; i++)
		headers += v->files[i].safetensors ? v->delta->files[i].st->header_size : 0;
	for (size_t i = 0; i < v->file_count; i++)
		if (!v->files[i].safetensors && v->files[i].size >= LARGE_FILE && v->files[i].size <= headers &&
		    bd_view_acquire(v, i, NULL) == 0)
			bd_view_release(v, i);
}

static int open_view(struct bd_view **view, struct bdfs_model *m, struct bd_error *err)
{
	struct bd_file *file;
	struct bd_delta *d;
	int r = bd_file_dup(&file, m->file, err);

	if (r == 0)
		r = bd_delta_open_file(&d, file, err);
	if (r < 0)
		return r;
	r = bd_view_open(view, d, m->base->base, err);
	if (r < 0) {
		bd_delta_close(d);
		return r;
	}
	look_at_large(*view);
	bd_view_slim(*view);
	if (bd_view_bytes(*view) >= TRIM_FROM)
		malloc_trim(0);
	return 0;
}

int bdfs_model_acquire(struct bdfs_models *models, struct bdfs_model *m, size_t index,
		       struct bd_view **view, struct bd_error *err)
{
	struct bd_view *v = NULL;
	int r = 0;

	if (bd_file_check(m->file, err) < 0)
		return -ESTALE;
	pthread_mutex_lock(&models->views);
	while (m->opening)
		pthread_cond_wait(&models->opened, &models->views);
	if (m->view) {
		if (m->view_users++ == 0)
			idle_remove(models, m);
	} else {
		/* Without the lock: another model's directory may be slower. */
		m->opening = true;
		pthread_mutex_unlock(&models->views);
		r = open_view(&v, m, err);
		pthread_mutex_lock(&models->views);
		m->opening = false;
		m->view = v;
		m->view_bytes = v ? bd_view_bytes(v) : 0;
		m->view_users = v ? 1 : 0;
		pthread_cond_broadcast(&models->opened);
	}
	pthread_mutex_unlock(&models->views);
	if (r < 0)
		return r;
	r = bd_view_acquire(m->view, index, err);
	if (r < 0) {
		bdfs_model_release(models, m, SIZE_MAX);
		return r;
	}
	*view = m->view;
	return 0;
}

/* An idle view that is one too many, for the caller to close; NULL: none is. */
static struct bd_view *take_surplus(struct bdfs_models *models)
{
	struct bdfs_model *last = models->oldest;
	struct bd_view *view;

	if (models->idle <= 1 || (models->idle <= IDLE_VIEWS && models->idle_bytes <= models->idle_limit))
		return NULL;
	view = last->view;
	last->view = NULL;
	idle_remove(models, last);
	return view;
}

void bdfs_model_release(struct bdfs_models *models, struct bdfs_model *m, size_t index)
{
	struct bd_view *surplus;

	if (index != SIZE_MAX) /* the view alone, where the file could not be acquired */
		bd_view_release(m->view, index);
	pthread_mutex_lock(&models->views);
	if (--m->view_users == 0) {
		m->older = models->newest;
		m->newer = NULL;
		*(m->older ? &m->older->newer : &models->oldest) = m;
		models->newest = m;
		models->idle++;
		models->idle_bytes += m->view_bytes;
	}
	while ((surplus = take_surplus(models))) {
		pthread_mutex_unlock(&models->views);
		bd_view_close(surplus);
		pthread_mutex_lock(&models->views);
	}
	pthread_mutex_unlock(&models->views);
}

const char *bdfs_models_directory(const struct bdfs_models *models, size_t index, int *fd)
{
	if (index >= models->source_count)
		return NULL;
	*fd = models->sources[index]->fd;
	return models->sources[index]->path;
}

int bdfs_models_note(const struct bdfs_models *models, size_t index, char *text, size_t size)
{
	return index >= models->source_count ? -1 : bdfs_source_note(models->sources[index], text, size);
}

/* --- the beginning and the end --- */

static void note_base(struct bdfs_models *m, const struct bd_checkpoint *c)
{
	for (size_t i = 0; i < c->note_count; i++)
		bdfs_log_write(m->log, LOG_NOTICE, "%s", c->notes[i]);
}

int bdfs_models_open(struct bdfs_models **out, const struct bdfs_config *config,
		     struct bdfs_log *log, struct bd_error *err)
{
	struct bdfs_models *m = calloc(1, sizeof(*m));
	int r = 0;

	*out = NULL;
	if (!m)
		return no_memory(err);
	m->log = log;
	m->layout = config->layout;
	m->idle_limit = IDLE_BYTES;
	pthread_mutex_init(&m->lock, NULL);
	pthread_mutex_init(&m->views, NULL);
	pthread_cond_init(&m->opened, NULL);
	m->bases = calloc(config->base_count ? config->base_count : 1, sizeof(*m->bases));
	m->sources = calloc(config->delta_count ? config->delta_count : 1, sizeof(*m->sources));
	if (config->show_base)
		m->base_models = calloc(config->base_count ? config->base_count : 1,
					sizeof(*m->base_models));
	if (!m->bases || !m->sources || (config->show_base && !m->base_models))
		r = no_memory(err);
	for (size_t i = 0; r == 0 && i < config->base_count; i++) {
		r = bdfs_base_open(&m->bases[i], config->bases[i], err);
		if (r == 0)
			note_base(m, m->bases[m->base_count++]->base->checkpoint);
	}
	for (size_t i = 0; r == 0 && i < config->delta_count; i++) {
		struct bdfs_source *source = calloc(1, sizeof(*source));

		if (!source) {
			r = no_memory(err);
			break;
		}
		source->listed = true;
		m->sources[m->source_count++] = source;
		r = bdfs_source_open(source, config->deltas[i], err);
	}
	if (r == 0)
		r = bdfs_models_scan_first(m, err);
	bdfs_models_shown(m);
	if (r < 0) {
		bdfs_models_close(m);
		return r;
	}
	*out = m;
	return 0;
}

void bdfs_models_close(struct bdfs_models *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->count; i++)
		bdfs_model_put(m, m->list[i]);
	free(m->list);
	for (size_t i = 0; m->base_models && i < m->base_count; i++)
		bdfs_model_put(m, m->base_models[i]);
	free(m->base_models);
	bdfs_rejected_clear(m->rejected, m->rejected_count);
	for (size_t i = 0; i < m->base_count; i++)
		bdfs_base_put(m->bases[i]);
	free(m->bases);
	for (size_t i = 0; i < m->source_count; i++)
		bdfs_source_free(m->sources[i]);
	free(m->sources);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->views);
	pthread_cond_destroy(&m->opened);
	free(m);
}
