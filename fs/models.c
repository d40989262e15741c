/* models.c: the base and the deltas of a mount, see models.h. */
#include "models.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char suffix[] = ".bdelta";

static int no_memory(struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "out of memory while opening deltas");
}

static int add_delta(struct bdfs_models *models, const char *path, struct bd_error *err)
{
	struct bd_view *view, **views;
	struct bd_delta *delta;
	int r;

	r = bd_delta_open(&delta, path, err);
	if (r < 0)
		return r;
	if (!bd_name_is_component(delta->name, strlen(delta->name))) {
		r = bd_error_set(err, -EINVAL, "%s: \"%s\" cannot be the name of a directory; "
				 "rename the file", path, delta->name);
		goto out;
	}
	r = bd_view_open(&view, delta, models->base, err);
	if (r < 0)
		goto out;
	delta = NULL; /* now the view's */
	views = reallocarray(models->views, models->count + 1, sizeof(*views));
	if (!views) {
		bd_view_close(view);
		return no_memory(err);
	}
	models->views = views;
	views[models->count++] = view;
out:
	bd_delta_close(delta);
	return r;
}

static int is_delta(const struct dirent *entry)
{
	size_t n = strlen(entry->d_name);

	return entry->d_name[0] != '.' && n > strlen(suffix) &&
	       !strcmp(entry->d_name + n - strlen(suffix), suffix);
}

/* What is wrong with one delta of a directory must not keep the others from being mounted; being
 * out of memory or of file descriptors is nobody's fault and does. */
static bool is_fault_of_file(int code)
{
	return code != -ENOMEM && code != -EMFILE && code != -ENFILE;
}

static int add_directory(struct bdfs_models *models, const char *path, size_t *skipped,
			 struct bdfs_log *log, struct bd_error *err)
{
	struct dirent **entries;
	int n, r = 0;

	n = scandir(path, &entries, is_delta, alphasort);
	if (n < 0)
		return bd_error_set(err, -errno, "%s: cannot read the directory: %s", path,
				    strerror(errno));
	for (int i = 0; i < n; i++) {
		struct bd_error why = { 0 };
		char *name = NULL;

		if (r == 0 && asprintf(&name, "%s%s%s", path,
				       path[strlen(path) - 1] == '/' ? "" : "/",
				       entries[i]->d_name) < 0)
			r = no_memory(err);
		if (r == 0) {
			r = add_delta(models, name, &why);
			if (r < 0 && err)
				*err = why; /* kept for when nothing is left */
			if (r < 0 && is_fault_of_file(r)) {
				bdfs_log_write(log, LOG_WARNING, "left out: %s", why.text);
				++*skipped;
				r = 0;
			}
			free(name);
		}
		free(entries[i]);
	}
	free(entries);
	return r;
}

static int add_path(struct bdfs_models *models, const char *path, size_t *skipped,
		    struct bdfs_log *log, struct bd_error *err)
{
	struct stat st;

	if (!*path)
		return bd_error_set(err, -EINVAL, "the name of a delta is empty");
	if (stat(path, &st) < 0)
		return bd_error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return add_directory(models, path, skipped, log, err);
	return add_delta(models, path, err);
}

static int compare_views(const void *a, const void *b)
{
	return strcmp((*(struct bd_view *const *)a)->name, (*(struct bd_view *const *)b)->name);
}

int bdfs_models_open(struct bdfs_models **models, const char *base, char *const *paths,
		     size_t count, struct bdfs_log *log, struct bd_error *err)
{
	struct bdfs_models *m = calloc(1, sizeof(*m));
	struct bd_error last = { 0 };
	size_t skipped = 0;
	int r;

	*models = NULL;
	if (!m)
		return no_memory(err);
	r = bd_base_open(&m->base, base, err);
	for (size_t i = 0; i < count && r == 0; i++) {
		r = add_path(m, paths[i], &skipped, log, &last);
		if (r < 0 && err)
			*err = last;
	}
	if (r < 0)
		goto fail;
	if (!m->count && skipped) {
		r = bd_error_set(err, -EINVAL, "all %zu deltas had to be left out and nothing "
				 "remains to be mounted; the last: %s", skipped, last.text);
		goto fail;
	}
	if (m->count)
		qsort(m->views, m->count, sizeof(*m->views), compare_views);
	for (size_t i = 1; i < m->count; i++)
		if (!strcmp(m->views[i - 1]->name, m->views[i]->name)) {
			r = bd_error_set(err, -EEXIST, "%s and %s would both be the directory \"%s\"; "
					 "rename one or leave it out",
					 m->views[i - 1]->delta->file->path,
					 m->views[i]->delta->file->path, m->views[i]->name);
			goto fail;
		}
	*models = m;
	return 0;
fail:
	bdfs_models_close(m);
	return r;
}

void bdfs_models_close(struct bdfs_models *models)
{
	if (!models)
		return;
	for (size_t i = 0; i < models->count; i++)
		bd_view_close(models->views[i]);
	free(models->views);
	bd_base_close(models->base);
	free(models);
}
