/* models.c: what a mount shows, see models.h. */
#include "models.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel.h"
#include "summary.h"

/* Views that nobody uses are kept, this many of them: loaders open the same files several times. */
#define IDLE_VIEWS 32
/* Less of them where they are large. */
#define IDLE_BYTES ((size_t)64 << 20)
#define MAX_TOLD 20 /* bad deltas that one scan puts into the log */

/* One item of deltas=: a directory, or one file in it. */
struct bdfs_source {
	char *path;  /* absolute, of the directory */
	char *real;  /* where the descriptor led to when it was opened */
	int fd;      /* of the directory */
	char *only;  /* the one file that was given by name; NULL: all *.bdelta */
	char *problem; /* a sentence: the directory that has the path now cannot be opened; else NULL */
	int64_t scanned; /* the directory's mtime when it was last looked at, in ns */
	_Atomic int64_t shown; /* the same, of what the tree shows */
};

static const char suffix[] = ".bdelta";

static int no_memory(struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "out of memory for the list of models");
}

/* Being out of memory or descriptors is no fault of the file that was to be opened. */
static bool is_transient(int code)
{
	return code == -ENOMEM || code == -EMFILE || code == -ENFILE;
}

/* To tell two apart: times after 2262 wrap. */
static int64_t nanoseconds(struct timespec t)
{
	return (int64_t)((uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec);
}

static bool is_later(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Is it the file that was examined, with what it held then? A new owner, mode or link explains a new
 * status change time, as in bd_file_check. */
static bool same_file(const struct stat *was, const struct stat *now)
{
	return now->st_dev == was->st_dev && now->st_ino == was->st_ino &&
	       now->st_size == was->st_size && same_time(now->st_mtim, was->st_mtim) &&
	       (same_time(now->st_ctim, was->st_ctim) || now->st_mode != was->st_mode ||
		now->st_uid != was->st_uid || now->st_gid != was->st_gid ||
		now->st_nlink != was->st_nlink);
}

/* The daemon leaves the caller's working directory. */
static char *absolute(const char *path)
{
	char *cwd, *result = NULL;

	if (*path == '/')
		return strdup(path);
	cwd = getcwd(NULL, 0);
	if (cwd && asprintf(&result, "%s/%s", strcmp(cwd, "/") ? cwd : "", path) < 0)
		result = NULL;
	free(cwd);
	return result;
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

static int base_open(struct bdfs_base **out, const char *path, struct bd_error *err)
{
	struct bdfs_base *b = calloc(1, sizeof(*b));
	const struct bd_checkpoint *c;
	int r;

	if (!b)
		return no_memory(err);
	atomic_init(&b->users, 1);
	b->path = absolute(path);
	r = b->path ? bd_base_open(&b->base, path, err) : no_memory(err);
	if (r < 0) {
		free(b->path);
		free(b);
		return r;
	}
	c = b->base->checkpoint;
	for (size_t i = 0; i < c->shard_count; i++)
		b->bytes += c->shards[i].file->size;
	for (size_t i = 0; i < c->sidecar_count; i++)
		b->bytes += size_below(c->path, c->sidecars[i]);
	*out = b;
	return 0;
}

static void base_put(struct bdfs_base *b)
{
	if (!b || atomic_fetch_sub(&b->users, 1) != 1)
		return;
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
	base_put(m->base);
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

/* The base's file that has just the bytes of file F of a delta; NULL: none. Such a file has the header of a
 * shard, and every tensor of it is that shard's. */
static struct bd_file *verbatim(const struct bd_delta_file *f, const struct bd_base *base)
{
	const struct bd_shard *shard = NULL;

	for (size_t i = 0; i < f->st->count; i++) {
		const struct bd_base_tensor *b;

		if (f->entries[i].encoding != BD_SAME)
			return NULL;
		b = bd_base_find(base, f->st->tensors[i].name);
		if (shard && b->shard != shard)
			return NULL;
		shard = b->shard;
	}
	return shard && shard->st->header_size == f->st->header_size &&
	       shard->file->size == f->size &&
	       !memcmp(shard->st->header, f->st->header, f->st->header_size) ? shard->file : NULL;
}

static int describe_files(struct bdfs_model *m, const struct bd_delta *d)
{
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
		/* What the parsed header and the entries of the manifest take, about. */
		m->view_bytes += 8 * from->st->header_size;
		f->real = verbatim(from, m->base->base);
		for (size_t e = 0; e < from->st->count; e++) {
			f->encodings |= 1u << from->entries[e].encoding;
			f->stored += bd_summary_stored(&from->entries[e]);
		}
	}
	return 0;
}

/* The model of a view; ENTRY in SOURCE is its delta. */
static int model_of_view(struct bdfs_model **out, const struct bd_view *view, struct bdfs_base *base,
			 const struct bdfs_source *source, const char *entry,
			 enum bdfs_layout layout, struct bd_error *err)
{
	const struct bd_delta *d = view->delta;
	struct bdfs_model *m = model_new(d->name, d->file->path, layout, base, d->file_count);
	const char *hash = bd_safetensors_metadata(d->st, "manifest_xxh128");

	int r = -ENOMEM;

	if (m && describe_files(m, d) == 0 && (m->entry = strdup(entry)))
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

/* The base itself as a model: its shards, and its other files. */
static int model_of_base(struct bdfs_model **out, struct bdfs_base *base, enum bdfs_layout layout,
			 struct bd_error *err)
{
	const struct bd_checkpoint *c = base->base->checkpoint;
	size_t n = strlen(c->label), count = 0;
	char *name = malloc(2 * n + 1), *to = name;
	struct bdfs_model *m = NULL;
	int r = 0;

	for (const char *p = c->label; name && *p; p++) { /* as the hub names it: org--name */
		if (*p == '/')
			*to++ = '-';
		*to++ = *p == '/' ? '-' : *p;
	}
	if (name) {
		*to = '\0';
		m = model_new(name, base->path, layout, base, c->shard_count + c->sidecar_count);
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
	for (size_t s = 0, o = 0; r == 0 && s + o < c->shard_count + c->sidecar_count; ) {
		bool shard = o == c->sidecar_count || (s < c->shard_count &&
						       strcmp(c->shards[s].name, c->sidecars[o]) < 0);
		struct bdfs_file *f = &m->files[count++];
		char *path = NULL;

		f->name = strdup(shard ? c->shards[s].name : c->sidecars[o]);
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

/* Which base a delta belongs to: the one with the digest that it names, or else one that has all tensors it
 * needs. */
static int find_base(struct bdfs_base *const *bases, size_t count, const struct bd_delta *d,
		     struct bdfs_base **base, struct bd_error *err)
{
	int r;

	for (size_t i = 0; i < count; i++)
		if (!strcmp(bases[i]->base->digest, d->base_digest)) {
			*base = bases[i];
			return bd_delta_check_base(d, (*base)->base, err);
		}
	for (size_t i = 0; i < count; i++) {
		*base = bases[i];
		r = bd_delta_check_base(d, (*base)->base, err);
		if (r == 0 || count == 1)
			return r;
	}
	return bd_error_set(err, -EINVAL, "%s was made from base '%s', which is none of the %zu bases of "
			    "this mount; add it with base=", d->file->path, d->base_label, count);
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
	if (r < 0)
		bd_delta_close(d);
	return r;
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

	if (models->idle <= IDLE_VIEWS && models->idle_bytes <= IDLE_BYTES)
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

/* --- scanning --- */

/* What a scan finds; becomes the models' when it is complete. */
struct scan {
	struct bdfs_models *models;
	struct bdfs_base **bases;   /* references of their own, base_count of them */
	struct bdfs_model **list;   /* references of their own */
	size_t count, capacity;
	struct bdfs_rejected *rejected;
	size_t rejected_count, rejected_capacity;
	bool first;                 /* the mount is being made: deltas given by name must be good */
	bool retry;
	bool changed, unsettled;
	unsigned told; /* of those that were rejected, to the log */
};

static void rejected_clear(struct bdfs_rejected *list, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		free(list[i].path);
		free(list[i].reason);
	}
	free(list);
}

static void scan_clear(struct scan *s)
{
	for (size_t i = 0; i < s->count; i++)
		bdfs_model_put(s->models, s->list[i]);
	free(s->list);
	rejected_clear(s->rejected, s->rejected_count);
	for (size_t i = 0; s->bases && i < s->models->base_count; i++)
		base_put(s->bases[i]);
	free(s->bases);
}

/* Takes the reference. */
static int scan_add(struct scan *s, struct bdfs_model *m, struct bd_error *err)
{
	if (s->count == s->capacity) {
		size_t capacity = s->capacity ? 2 * s->capacity : 16;
		struct bdfs_model **list = reallocarray(s->list, capacity, sizeof(*list));

		if (!list) {
			bdfs_model_put(s->models, m);
			return no_memory(err);
		}
		s->list = list;
		s->capacity = capacity;
	}
	s->list[s->count++] = m;
	return 0;
}

static int scan_reject(struct scan *s, const struct bdfs_source *source, const char *path,
		       const struct stat *st, const char *reason, bool transient,
		       struct bd_error *err)
{
	struct bdfs_rejected *r;

	if (s->rejected_count == s->rejected_capacity) {
		size_t capacity = s->rejected_capacity ? 2 * s->rejected_capacity : 16;

		r = reallocarray(s->rejected, capacity, sizeof(*r));
		if (!r)
			return no_memory(err);
		s->rejected = r;
		s->rejected_capacity = capacity;
	}
	r = &s->rejected[s->rejected_count];
	*r = (struct bdfs_rejected){ .source = source, .transient = transient };
	if (st)
		r->frozen = *st;
	r->path = strdup(path);
	r->reason = strdup(reason);
	if (!r->path || !r->reason) {
		free(r->path);
		free(r->reason);
		return no_memory(err);
	}
	s->rejected_count++;
	return 0;
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct bdfs_rejected *)a)->path, ((const struct bdfs_rejected *)b)->path);
}

static const struct bdfs_rejected *find_rejected(const struct bdfs_models *models, const char *path)
{
	const struct bdfs_rejected wanted = { .path = (char *)path };

	if (!models->rejected_count)
		return NULL;
	return bsearch(&wanted, models->rejected, models->rejected_count, sizeof(wanted), by_path);
}

/* Reject, and say so where it was not known. */
static int scan_fault(struct scan *s, const struct bdfs_source *source, const char *path,
		      const struct stat *st, const char *reason, bool transient,
		      struct bd_error *err)
{
	const struct bdfs_rejected *known = find_rejected(s->models, path);

	if (!known || strcmp(known->reason, reason)) {
		/* Whoever mounts reads all; later, others decide how many there are. */
		if (s->first || s->told++ < MAX_TOLD)
			bdfs_log_write(s->models->log, LOG_WARNING, "left out: %s", reason);
		s->changed = true;
	}
	return scan_reject(s, source, path, st, reason, transient, err);
}

static struct bdfs_base *current_base(const struct scan *s, const struct bdfs_base *base)
{
	for (size_t i = 0; i < s->models->base_count; i++)
		if (s->bases[i] == base)
			return s->bases[i];
	return NULL;
}

static int compare_entry(const struct bdfs_source *source, const char *entry,
			 const struct bdfs_model *m)
{
	if (source != m->source)
		return source < m->source ? -1 : 1;
	return strcmp(entry, m->entry);
}

static int by_place(const void *a, const void *b)
{
	const struct bdfs_model *x = *(struct bdfs_model *const *)a, *y = *(struct bdfs_model *const *)b;

	return compare_entry(x->source, x->entry, y);
}

/* The model that was found at this place before. `known` is in order of place. */
static struct bdfs_model *find_known(struct bdfs_model *const *known, size_t count,
				     const struct bdfs_source *source, const char *entry)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = compare_entry(source, entry, known[middle]);

		if (order == 0)
			return known[middle];
		*(order < 0 ? &high : &low) = order < 0 ? middle : middle + 1;
	}
	return NULL;
}

static int examine(struct scan *s, const struct bdfs_source *source, const char *entry,
		   const char *path, struct bdfs_model **model, struct bd_error *err)
{
	struct bdfs_base *base = NULL;
	struct bd_view *view = NULL;
	struct bd_delta *d;
	int r = bd_delta_open_at(&d, source->fd, entry, path, err);

	if (r < 0)
		return r;
	if (!bd_name_is_component(d->name, strlen(d->name)) || !strcmp(d->name, ".bitdelta"))
		r = bd_error_set(err, -EINVAL, "%s: \"%s\" cannot be the name of a directory; rename the "
				 "file", path, d->name);
	if (r == 0)
		r = find_base(s->bases, s->models->base_count, d, &base, err);
	if (r == 0)
		r = bd_view_open(&view, d, base->base, err);
	if (r < 0) {
		bd_delta_close(d);
		return r;
	}
	r = model_of_view(model, view, base, source, entry, s->models->layout, err);
	bd_view_close(view);
	return r;
}

static bool is_link(const struct bdfs_source *source, const char *entry)
{
	struct stat st;

	return fstatat(source->fd, entry, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
}

/* A file that may be a delta, and what came of it. */
struct candidate {
	const struct bdfs_source *source;
	const char *entry;  /* borrowed */
	char *path;         /* NULL: there is no such file any more */
	struct stat st;
	struct bdfs_model *known; /* what was found here before, borrowed */
	bool examined;
	struct bdfs_model *model; /* if result is 0 */
	struct bd_error why;
	int result;
};

struct examination {
	struct scan *scan;
	struct candidate *candidates;
};

static int examine_candidate(void *context, size_t index, struct bd_error *err)
{
	const struct examination *x = context;
	struct candidate *c = &x->candidates[index];

	(void)err; /* one bad file must not keep others from being examined */
	if (c->path && !c->model && !c->examined) {
		c->result = examine(x->scan, c->source, c->entry, c->path, &c->model, &c->why);
		c->examined = true;
	}
	return 0;
}

/* Is there something, and is it what it was? Sets path, st, known and for a model that stays `model`. */
static int look_at(struct scan *s, struct candidate *c, struct bdfs_model *const *known,
		   size_t known_count, struct bd_error *err)
{
	const struct bdfs_source *source = c->source;
	bool must = s->first && source->only;
	const struct bdfs_rejected *was;

	/* Gone since the directory was listed, or a file that was given by name? */
	if (fstatat(source->fd, c->entry, &c->st, 0) < 0 && errno == ENOENT && !must &&
	    fstatat(source->fd, c->entry, &c->st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	if (asprintf(&c->path, "%s/%s", strcmp(source->path, "/") ? source->path : "", c->entry) < 0) {
		c->path = NULL;
		return no_memory(err);
	}
	c->known = find_known(known, known_count, source, c->entry);
	if (c->known && same_file(&c->known->file->frozen, &c->st) && current_base(s, c->known->base)) {
		c->model = c->known;
		bdfs_model_get(c->model);
		return 0;
	}
	was = find_rejected(s->models, c->path);
	/* A new mode or owner may be what was missing, so here the same means all of it. */
	if (was && !was->transient && !s->retry && was->source == source &&
	    bd_file_same(&was->frozen, &c->st)) {
		c->examined = true;
		c->result = -EINVAL;
		bd_error_set(&c->why, -EINVAL, "%s", was->reason);
	}
	return 0;
}

/* Take it up, or say why not. */
static int settle(struct scan *s, struct candidate *c, struct bd_error *err)
{
	struct bdfs_model *m = c->model;
	bool passing; /* a fault that may go away by itself */

	if (!c->path)
		return 0;
	c->model = NULL;
	if (c->result == 0)
		return scan_add(s, m, err);
	if (s->first && (c->source->only || is_transient(c->result))) {
		if (err)
			*err = c->why;
		return c->result;
	}
	if (c->result == -ENOENT && !S_ISLNK(c->st.st_mode))
		return 0;
	passing = is_transient(c->result) || c->result == -EIO || c->result == -ESTALE;
	s->unsettled |= passing;
	if (passing && c->known && current_base(s, c->known->base)) {
		/* Its successor cannot be read just now. */
		bdfs_model_get(c->known);
		return scan_add(s, c->known, err);
	}
	if (c->result == -EACCES && is_link(c->source, c->entry))
		bd_error_set(&c->why, c->result, "%s: is a link to a file that may not be read (one that "
			     "came later and leads out of the directories of the mount is followed "
			     "after mounting again, or with nosandbox)", c->path);
	return scan_fault(s, c->source, c->path, &c->st, c->why.text, passing, err);
}

static int scan_entries(struct scan *s, const struct bdfs_source *source, const char *const *entries,
			size_t count, struct bdfs_model *const *known, size_t known_count,
			struct bd_error *err)
{
	struct candidate *candidates = calloc(count ? count : 1, sizeof(*candidates));
	struct examination x = { s, candidates };
	const struct bd_parallel parallel = { .count = count, .work = examine_candidate, .context = &x };
	int r = 0;

	if (!candidates)
		return no_memory(err);
	for (size_t i = 0; i < count && r == 0; i++) {
		candidates[i].source = source;
		candidates[i].entry = entries[i];
		r = look_at(s, &candidates[i], known, known_count, err);
	}
	/* Where there are no threads to be had, and for a few, this one does it. */
	if (r == 0 && count > 8)
		bd_parallel_run(&parallel, NULL);
	for (size_t i = 0; i < count && r == 0; i++) {
		examine_candidate(&x, i, NULL);
		r = settle(s, &candidates[i], err);
	}
	for (size_t i = 0; i < count; i++) {
		bdfs_model_put(s->models, candidates[i].model);
		free(candidates[i].path);
	}
	free(candidates);
	return r;
}

static bool is_delta(const char *name)
{
	size_t n = strlen(name);

	return *name != '.' && n > strlen(suffix) && !strcmp(name + n - strlen(suffix), suffix);
}

static int is_delta_entry(const struct dirent *entry)
{
	return is_delta(entry->d_name);
}

/* Where an open directory is now; NULL: nobody can tell. */
static char *place_of(int fd)
{
	char name[64], place[PATH_MAX];
	ssize_t n;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	n = readlink(name, place, sizeof(place) - 1);
	return n < 0 ? NULL : strndup(place, (size_t)n);
}

static int open_directory(const struct bdfs_source *source)
{
	/* A file that was given by name need not lie where one may list. */
	return open(source->path, (source->only ? O_PATH : O_RDONLY) | O_DIRECTORY | O_CLOEXEC);
}

/* Where the directory was deleted or moved away, the one that has its path now is meant. Comparing places
 * and not inodes: what has the path may also be the mount itself, which covers the directory. */
static void follow_path(struct bdfs_source *source)
{
	char *place = place_of(source->fd);
	struct stat st;
	int fd;

	free(source->problem);
	source->problem = NULL;
	if (fstat(source->fd, &st) < 0 ||
	    (st.st_nlink > 0 && (!place || !source->real || !strcmp(place, source->real)))) {
		free(place);
		return;
	}
	free(place);
	fd = open_directory(source);
	if (fd < 0) {
		if (asprintf(&source->problem, "%s: was deleted or moved, and what has its place now cannot "
			     "be opened (%s); mount again to use it", source->path, strerror(errno)) < 0)
			source->problem = NULL;
		return;
	}
	dup3(fd, source->fd, O_CLOEXEC); /* the number stays: others may be using it */
	close(fd);
	free(source->real);
	source->real = place_of(source->fd);
}

static int scan_source(struct scan *s, struct bdfs_source *source, struct bdfs_model *const *known,
		       size_t known_count, struct bd_error *err)
{
	struct dirent **entries;
	struct bd_error why = { 0 };
	const char **names;
	struct stat st;
	int n, r = 0;

	if (s->retry)
		follow_path(source);
	if (source->problem)
		r = scan_fault(s, source, source->path, NULL, source->problem, false, err);
	if (r < 0)
		return r;
	if (fstat(source->fd, &st) == 0) /* before listing: what comes later is seen by the next scan */
		source->scanned = nanoseconds(st.st_mtim);
	if (source->only)
		return scan_entries(s, source, (const char *const *)&source->only, 1, known, known_count,
				    err);
	n = scandirat(source->fd, ".", &entries, is_delta_entry, alphasort);
	if (n < 0 && errno == ENOENT)
		return 0; /* the directory was deleted */
	if (n < 0) {
		r = -errno;
		if (s->first)
			return bd_error_set(err, r, "%s: cannot read the directory: %s", source->path,
					    strerror(-r));
		bd_error_set(&why, r, "%s: cannot read the directory: %s; its models stay as they were",
			     source->path, strerror(-r));
		r = scan_fault(s, source, source->path, NULL, why.text, true, err);
		for (size_t i = 0; r == 0 && i < known_count; i++)
			if (known[i]->source == source) {
				bdfs_model_get(known[i]);
				r = scan_add(s, known[i], err);
			}
		return r;
	}
	names = malloc(((size_t)n + 1) * sizeof(*names));
	for (int i = 0; names && i < n; i++)
		names[i] = entries[i]->d_name;
	r = names ? scan_entries(s, source, names, (size_t)n, known, known_count, err) : no_memory(err);
	for (int i = 0; i < n; i++)
		free(entries[i]);
	free(entries);
	free(names);
	return r;
}

static int by_directory(const void *a, const void *b)
{
	const struct bdfs_model *x = *(struct bdfs_model *const *)a, *y = *(struct bdfs_model *const *)b;
	int order = strcmp(x->directory, y->directory);

	/* Of two with one name the one that was given first stays; a base comes last. */
	if (order == 0)
		order = x->is_base - y->is_base;
	if (order == 0)
		order = x->is_base ? strcmp(x->path, y->path) : by_place(a, b);
	return order;
}

/* Sort, and reject those whose name is taken. */
static int scan_sort(struct scan *s, struct bd_error *err)
{
	size_t kept = 0;
	int r = 0;

	if (s->count)
		qsort(s->list, s->count, sizeof(*s->list), by_directory);
	for (size_t i = 0; i < s->count; i++) {
		struct bdfs_model *m = s->list[i], *taken = kept ? s->list[kept - 1] : NULL;
		struct bd_error why = { 0 };

		if (!taken || strcmp(taken->directory, m->directory)) {
			s->list[kept++] = m;
			continue;
		}
		bd_error_set(&why, -EEXIST, "%s and %s would both be the directory \"%s\"; rename one or "
			     "leave it out", taken->path, m->path, m->directory);
		if (s->first && !m->is_base && m->source->only && taken->source->only && r == 0) {
			r = -EEXIST;
			if (err)
				*err = why;
		} else if (r == 0) {
			r = scan_fault(s, m->source, m->path, m->file ? &m->file->frozen : NULL, why.text, true, err);
		}
		bdfs_model_put(s->models, m);
	}
	s->count = kept;
	return r;
}

/* Bases that changed and are, opened again, what they were. */
static int scan_bases(struct scan *s, struct bd_error *err)
{
	struct bdfs_models *models = s->models;

	s->bases = calloc(models->base_count ? models->base_count : 1, sizeof(*s->bases));
	if (!s->bases)
		return no_memory(err);
	for (size_t i = 0; i < models->base_count; i++) {
		struct bdfs_base *old = models->bases[i], *new = NULL;
		struct bd_error why = { 0 };

		if (s->retry && bd_base_check(old->base, &why) < 0 &&
		    base_open(&new, old->path, &why) == 0) {
			if (strcmp(new->base->digest, old->base->digest)) {
				bdfs_log_write(models->log, LOG_WARNING, "%s: is another base now; its models "
					       "cannot be read until it is put back", old->path);
				base_put(new);
				new = NULL;
			} else {
				s->changed = true;
			}
		}
		if (!new) {
			new = old;
			atomic_fetch_add(&new->users, 1);
		}
		s->bases[i] = new;
	}
	return 0;
}

static int scan_base_models(struct scan *s, struct bd_error *err)
{
	struct bdfs_models *models = s->models;
	int r = 0;

	for (size_t i = 0; models->base_models && r == 0 && i < models->base_count; i++) {
		struct bdfs_model *m = models->base_models[i];

		if (m && m->base == s->bases[i]) {
			bdfs_model_get(m);
		} else {
			struct bd_error why = { 0 };

			r = model_of_base(&m, s->bases[i], models->layout, &why);
			if (r < 0 && !s->first) { /* the fine-tunes are not to suffer */
				bdfs_log_limited(models->log, LOG_WARNING, "%s: cannot be shown any more: %s",
						 s->bases[i]->path, why.text);
				r = 0;
				continue;
			}
			if (r < 0) {
				if (err)
					*err = why;
				return r;
			}
			bdfs_model_put(models, models->base_models[i]);
			models->base_models[i] = m;
			bdfs_model_get(m);
		}
		r = scan_add(s, m, err);
	}
	return r;
}

static bool same_list(const struct scan *s)
{
	const struct bdfs_models *models = s->models;

	if (s->count != models->count || s->rejected_count != models->rejected_count)
		return false;
	for (size_t i = 0; i < s->count; i++)
		if (s->list[i] != models->list[i])
			return false;
	return true;
}

static int scan(struct bdfs_models *models, bool first, bool retry, bool *changed,
		struct bd_error *err)
{
	struct scan s = { .models = models, .first = first, .retry = retry };
	struct bdfs_model **known, **list;
	struct bdfs_rejected *rejected;
	struct bdfs_base **bases;
	size_t known_count = 0, count, rejected_count;
	int r;

	known = malloc((models->count + 1) * sizeof(*known));
	if (!known)
		return no_memory(err);
	for (size_t i = 0; i < models->count; i++)
		if (!models->list[i]->is_base)
			known[known_count++] = models->list[i];
	if (known_count)
		qsort(known, known_count, sizeof(*known), by_place);
	r = scan_bases(&s, err);
	if (r == 0)
		r = scan_base_models(&s, err);
	for (size_t i = 0; r == 0 && i < models->source_count; i++)
		r = scan_source(&s, &models->sources[i], known, known_count, err);
	free(known);
	if (r == 0)
		r = scan_sort(&s, err);
	if (r < 0) {
		scan_clear(&s);
		return r;
	}
	if (s.rejected_count)
		qsort(s.rejected, s.rejected_count, sizeof(*s.rejected), by_path);
	if (s.told > MAX_TOLD)
		bdfs_log_write(models->log, LOG_WARNING, "%u more were left out; bitdelta status lists them",
			       s.told - MAX_TOLD);
	*changed = s.changed || !same_list(&s);
	atomic_store(&models->unsettled, s.unsettled);

	pthread_mutex_lock(&models->lock);
	bases = models->bases;
	list = models->list;
	count = models->count;
	rejected = models->rejected;
	rejected_count = models->rejected_count;
	models->bases = s.bases;
	models->list = s.list;
	models->count = s.count;
	models->rejected = s.rejected;
	models->rejected_count = s.rejected_count;
	pthread_mutex_unlock(&models->lock);

	s = (struct scan){ .models = models, .bases = bases, .list = list, .count = count,
			   .rejected = rejected, .rejected_count = rejected_count };
	scan_clear(&s);
	if (*changed && !first)
		bdfs_count(&models->reloads, 1);
	return 0;
}

int bdfs_models_scan(struct bdfs_models *models, bool retry, bool *changed, struct bd_error *err)
{
	return scan(models, false, retry, changed, err);
}

bool bdfs_models_is_stale(const struct bdfs_models *models)
{
	struct stat st;

	for (size_t i = 0; i < models->source_count; i++)
		if (fstat(models->sources[i].fd, &st) == 0 &&
		    nanoseconds(st.st_mtim) != atomic_load(&models->sources[i].shown))
			return true;
	return false;
}

void bdfs_models_shown(struct bdfs_models *models)
{
	for (size_t i = 0; i < models->source_count; i++)
		atomic_store(&models->sources[i].shown, models->sources[i].scanned);
}

const char *bdfs_models_directory(const struct bdfs_models *models, size_t index, int *fd)
{
	if (index >= models->source_count)
		return NULL;
	*fd = models->sources[index].fd;
	return models->sources[index].path;
}

/* --- the beginning and the end --- */

static int add_source(struct bdfs_models *models, const char *path, struct bd_error *err)
{
	struct bdfs_source *source = &models->sources[models->source_count];
	char *whole, *slash;
	struct stat st;

	if (!*path)
		return bd_error_set(err, -EINVAL, "the name of a delta is empty");
	if (stat(path, &st) < 0)
		return bd_error_set(err, -errno, "the deltas %s: %s", path, strerror(errno));
	whole = absolute(path);
	if (!whole)
		return no_memory(err);
	while ((slash = strrchr(whole, '/')) && slash != whole && !slash[1])
		*slash = '\0';
	if (!S_ISDIR(st.st_mode)) {
		slash = strrchr(whole, '/');
		source->only = strdup(slash + 1);
		slash[slash == whole] = '\0';
		if (!source->only) {
			free(whole);
			return no_memory(err);
		}
	}
	source->path = whole;
	source->fd = open_directory(source);
	source->real = source->fd < 0 ? NULL : place_of(source->fd);
	models->source_count++;
	if (source->fd < 0)
		return bd_error_set(err, -errno, "%s: cannot read the directory: %s", whole,
				    strerror(errno));
	return 0;
}

int bdfs_models_open(struct bdfs_models **out, const struct bdfs_config *config,
		     struct bdfs_log *log, struct bd_error *err)
{
	struct bdfs_models *m = calloc(1, sizeof(*m));
	bool changed;
	int r = 0;

	*out = NULL;
	if (!m)
		return no_memory(err);
	m->log = log;
	m->layout = config->layout;
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
		r = base_open(&m->bases[i], config->bases[i], err);
		if (r == 0)
			m->base_count++;
	}
	for (size_t i = 0; r == 0 && i < config->delta_count; i++)
		r = add_source(m, config->deltas[i], err);
	if (r == 0)
		r = scan(m, true, false, &changed, err);
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
	rejected_clear(m->rejected, m->rejected_count);
	for (size_t i = 0; i < m->base_count; i++)
		base_put(m->bases[i]);
	free(m->bases);
	for (size_t i = 0; i < m->source_count; i++) {
		if (m->sources[i].fd >= 0)
			close(m->sources[i].fd);
		free(m->sources[i].path);
		free(m->sources[i].real);
		free(m->sources[i].problem);
		free(m->sources[i].only);
	}
	free(m->sources);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->views);
	pthread_cond_destroy(&m->opened);
	free(m);
}
