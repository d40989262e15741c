/* SPDX-License-Identifier: Apache-2.0 */
/* scan.c: making the list of models what the directories hold now, see models.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models_impl.h"
#include "parallel.h"
#include "paths.h"

#define MAX_TOLD 20 /* bad deltas that one scan puts into the log */
#define MAX_LEVELS 16 /* of directories below one */
#define MAX_SOURCES 1000u /* each directory takes a descriptor, and a moment whenever the root is looked at */
#define MAX_COUNTED 1000u /* directories that are looked into for what is not shown */

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

/* A fault that may go away by itself. */
static bool is_passing(int code)
{
	return is_transient(code) || code == -EIO || code == -ESTALE;
}

/* To tell two apart: times after 2262 wrap. */
static int64_t nanoseconds(struct timespec t)
{
	return (int64_t)((uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec);
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

/* What a scan finds; becomes the models' when it is complete. */
struct scan {
	struct bdfs_models *models;
	struct bdfs_base **bases;   /* references of their own, base_count of them */
	struct bdfs_model **list;   /* references of their own */
	size_t count, capacity;
	struct bdfs_rejected *rejected;
	size_t rejected_count, rejected_capacity;
	struct bdfs_source **sources;
	size_t source_count, source_capacity;
	bool too_many;              /* sources */
	bool first;                 /* the mount is being made: deltas given by name must be good */
	bool retry;
	bool changed, unsettled;
	unsigned told; /* of those that were rejected, to the log */
};

void bdfs_rejected_clear(struct bdfs_rejected *list, size_t count)
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
	bdfs_rejected_clear(s->rejected, s->rejected_count);
	for (size_t i = 0; s->bases && i < s->models->base_count; i++)
		bdfs_base_put(s->bases[i]);
	free(s->bases);
	for (size_t i = 0; i < s->source_count; i++)
		if (!s->sources[i]->listed)
			bdfs_source_free(s->sources[i]);
	free(s->sources);
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
	if (source != m->source) {
		if (source->order != m->source->order)
			return source->order < m->source->order ? -1 : 1;
		return source < m->source ? -1 : 1; /* one of them goes */
	}
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

static int examine(struct scan *s, const struct bdfs_source *source, const char *entry,
		   const char *path, struct bdfs_model **model, struct bd_error *err)
{
	struct bdfs_base *base = NULL;
	struct bd_view *view = NULL;
	struct bd_delta *d;
	int r = bd_delta_open_at(&d, source->fd, entry, path, err);

	if (r < 0)
		return r;
	if (source->prefix) {
		char *name = NULL;

		if (asprintf(&name, "%s%s", source->prefix, d->name) < 0) {
			bd_delta_close(d);
			return no_memory(err);
		}
		free(d->name);
		d->name = name;
	}
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
	r = bdfs_model_of_view(model, view, base, source, entry, s->models->layout, err);
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
	bool passing;

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
	passing = is_passing(c->result);
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

/* What may be a directory to look into: hidden ones are left alone. */
static int is_directory(const struct dirent *entry)
{
	return *entry->d_name != '.' && (entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN);
}

static int is_delta_entry(const struct dirent *entry)
{
	return is_delta(entry->d_name);
}

/* How many deltas lie in the directories below, of at most *budget of these. */
static size_t count_below(int fd, unsigned level, unsigned *budget)
{
	const struct dirent *entry;
	size_t count = 0;
	DIR *dir = fdopendir(fd);

	if (!dir) {
		close(fd);
		return 0;
	}
	while ((entry = readdir(dir))) {
		int below;

		count += level > 0 && is_delta(entry->d_name);
		if (!is_directory(entry) || level == MAX_LEVELS || *budget == 0)
			continue;
		below = bdfs_open_below(fd, entry->d_name);
		if (below < 0)
			continue;
		--*budget;
		count += count_below(below, level + 1, budget);
	}
	closedir(dir);
	return count;
}

/* What is in subdirectories is easily overlooked. */
static void note_unseen(const struct scan *s, struct bdfs_source *source)
{
	unsigned budget = MAX_COUNTED;
	int fd = bdfs_open_below(source->fd, ".");
	char text[BDFS_LONGEST_NOTE];
	size_t count;

	if (fd < 0)
		return;
	count = count_below(fd, 0, &budget);
	if (atomic_exchange(&source->unseen, count) != count && bdfs_source_note(source, text, sizeof(text)))
		bdfs_log_write(s->models->log, LOG_NOTICE, "%s", text);
}

/* --- sources --- */

/* Before anything in it is listed, directories or deltas: what comes later is seen by the next scan. */
static int add_source(struct scan *s, struct bdfs_source *source, struct bd_error *err)
{
	struct stat st;

	if (s->source_count == s->source_capacity) {
		size_t capacity = s->source_capacity ? 2 * s->source_capacity : 16;
		struct bdfs_source **more = reallocarray(s->sources, capacity, sizeof(*more));

		if (!more) {
			if (!source->listed)
				bdfs_source_free(source);
			return no_memory(err);
		}
		s->sources = more;
		s->source_capacity = capacity;
	}
	if (fstat(source->fd, &st) == 0)
		source->scanned = nanoseconds(st.st_mtim);
	source->seen = true;
	source->order = (unsigned)s->source_count;
	s->sources[s->source_count++] = source;
	return 0;
}

static bool same_directory(const struct bdfs_source *a, const struct bdfs_source *b)
{
	struct stat x, y;

	return fstat(a->fd, &x) == 0 && fstat(b->fd, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static struct bdfs_source *known_below(const struct bdfs_models *models, const struct bdfs_source *above,
				       const char *name)
{
	for (size_t i = 0; i < models->source_count; i++)
		if (models->sources[i]->above == above &&
		    !strcmp(strrchr(models->sources[i]->path, '/') + 1, name))
			return models->sources[i];
	return NULL;
}

static int find_below(struct scan *s, const struct bdfs_source *above, struct bd_error *err);

static int find_directory(struct scan *s, const struct bdfs_source *above, const char *name,
			  struct bd_error *err)
{
	struct bdfs_source *known, *source;
	struct bd_error why = { 0 };
	int r;

	if (s->source_count >= MAX_SOURCES) {
		if (s->too_many)
			return 0;
		s->too_many = true;
		bd_error_set(&why, -EMFILE, "%s: there are more than %u directories of deltas; the others are "
			     "not looked at", above->path, MAX_SOURCES);
		return scan_fault(s, above, above->path, NULL, why.text, false, err);
	}
	known = known_below(s->models, above, name);
	r = bdfs_source_below(&source, above, name);
	if (r == -ENOENT || r == -ENOTDIR || r == -ELOOP || (r == -EXDEV && !known))
		return 0;
	if (r < 0 && !known) {
		bd_error_set(&why, r, "%s/%s: cannot be opened: %s", above->path, name, strerror(-r));
		s->unsettled |= is_passing(r);
		return scan_fault(s, above, above->path, NULL, why.text, true, err);
	}
	/* The mount may cover it now; or its successor cannot be opened just now. */
	if (r == 0 && known && same_directory(known, source)) {
		bdfs_source_free(source);
		source = known;
	} else if (r < 0) {
		source = known;
	}
	r = add_source(s, source, err);
	return r < 0 ? r : find_below(s, source, err);
}

static int find_below(struct scan *s, const struct bdfs_source *above, struct bd_error *err)
{
	struct dirent **entries;
	int n, r = 0;

	if (!above->deep || above->level == MAX_LEVELS)
		return 0;
	n = scandirat(above->fd, ".", &entries, is_directory, alphasort);
	if (n < 0 && errno == ENOENT)
		return 0;
	for (size_t i = 0; n < 0 && r == 0 && i < s->models->source_count; i++) /* they stay as they are */
		if (s->models->sources[i]->above == above) {
			r = add_source(s, s->models->sources[i], err);
			if (r == 0)
				r = find_below(s, s->models->sources[i], err);
		}
	for (int i = 0; i < n; i++) {
		if (r == 0)
			r = find_directory(s, above, entries[i]->d_name, err);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	return r;
}

/* All that were given, and the directories below those that are deep. */
static int find_sources(struct scan *s, struct bd_error *err)
{
	struct bdfs_models *models = s->models;
	int r = 0;

	for (size_t i = 0; i < models->source_count; i++)
		models->sources[i]->seen = false;
	for (size_t i = 0; r == 0 && i < models->source_count; i++) {
		struct bdfs_source *source = models->sources[i];

		if (source->above)
			continue;
		if (s->retry)
			bdfs_source_follow(source);
		r = add_source(s, source, err);
		if (r == 0)
			r = find_below(s, source, err);
		if (r == 0 && !source->only && !source->deep && (s->first || s->retry))
			note_unseen(s, source);
	}
	return r;
}

static int scan_source(struct scan *s, struct bdfs_source *source, struct bdfs_model *const *known,
		       size_t known_count, struct bd_error *err)
{
	struct dirent **entries;
	struct bd_error why = { 0 };
	const char **names;
	int n, r = 0;

	if (source->problem)
		r = scan_fault(s, source, source->path, NULL, source->problem, false, err);
	if (r < 0)
		return r;
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
		s->unsettled |= is_passing(r);
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
		    bdfs_base_open(&new, old->path, &why) == 0) {
			if (strcmp(new->base->digest, old->base->digest)) {
				bdfs_log_write(models->log, LOG_WARNING, "%s: is another base now; its models "
					       "cannot be read until it is put back", old->path);
				bdfs_base_put(new);
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

			r = bdfs_model_of_base(&m, s->bases[i], models->layout, &why);
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
	struct bdfs_source **sources;
	size_t known_count = 0, count, rejected_count, source_count;
	int r;

	known = malloc((models->count + 1) * sizeof(*known));
	r = known ? find_sources(&s, err) : no_memory(err);
	if (r < 0) {
		free(known);
		scan_clear(&s);
		return r;
	}
	for (size_t i = 0; i < models->count; i++)
		if (!models->list[i]->is_base)
			known[known_count++] = models->list[i];
	if (known_count)
		qsort(known, known_count, sizeof(*known), by_place);
	r = scan_bases(&s, err);
	if (r == 0)
		r = scan_base_models(&s, err);
	for (size_t i = 0; r == 0 && i < s.source_count; i++)
		r = scan_source(&s, s.sources[i], known, known_count, err);
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
	sources = models->sources;
	source_count = models->source_count;
	models->sources = s.sources;
	models->source_count = s.source_count;
	for (size_t i = 0; i < source_count; i++)
		sources[i]->listed = sources[i]->seen; /* else it goes, below */
	for (size_t i = 0; i < models->source_count; i++)
		models->sources[i]->listed = true;
	pthread_mutex_unlock(&models->lock);

	s = (struct scan){ .models = models, .bases = bases, .list = list, .count = count,
			   .rejected = rejected, .rejected_count = rejected_count,
			   .sources = sources, .source_count = source_count };
	scan_clear(&s);
	if (*changed || first)
		malloc_trim(0); /* examining took much more than what stays */
	if (*changed && !first)
		bdfs_count(&models->reloads, 1);
	return 0;
}

int bdfs_models_scan_first(struct bdfs_models *models, struct bd_error *err)
{
	bool changed;

	return scan(models, true, false, &changed, err);
}

int bdfs_models_scan(struct bdfs_models *models, bool retry, bool *changed, struct bd_error *err)
{
	return scan(models, false, retry, changed, err);
}

bool bdfs_models_is_stale(struct bdfs_models *models)
{
	bool stale = false;
	struct stat st;

	pthread_mutex_lock(&models->lock);
	for (size_t i = 0; i < models->source_count && !stale; i++)
		stale = fstat(models->sources[i]->fd, &st) == 0 &&
			nanoseconds(st.st_mtim) != atomic_load(&models->sources[i]->shown);
	pthread_mutex_unlock(&models->lock);
	return stale;
}

void bdfs_models_shown(struct bdfs_models *models)
{
	for (size_t i = 0; i < models->source_count; i++)
		atomic_store(&models->sources[i]->shown, models->sources[i]->scanned);
}
