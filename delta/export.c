/* SPDX-License-Identifier: Apache-2.0 */
/* export.c: writing a view to a directory, see export.h. */
#include "export.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "output.h"
#include "paths.h"
#include "permissions.h"

#define CHUNK ((uint64_t)8 << 20)

/* A file on its way. Only those that threads work at are open and inflated: there may be more files than
 * descriptors, and more bytes than memory. */
struct target {
	int fd;      /* -1: not created yet, or whole */
	bool acquired;
	size_t left; /* chunks to come */
};

struct export {
	struct bd_view *view;
	const struct bd_watch *watch;
	char *temporary; /* directory beside the final one */
	char **directories; /* those in it, parents first */
	size_t directory_count;
	bool replaces;   /* an empty directory, */
	struct stat old; /* whose permissions the new one gets */
	struct target *targets; /* the files in it */
	pthread_mutex_t lock;   /* guards these */
	size_t *first;   /* number of each file's first chunk, and one past the last */
	uint64_t total;
	atomic_ullong done;
};

static int file_error(const struct export *x, size_t i, const char *what, struct bd_error *err)
{
	return bd_error_set(err, -errno, "%s/%s: cannot %s: %s", x->temporary, x->view->files[i].name,
			    what, strerror(errno));
}

/* The path of something in the temporary directory; NULL: out of memory. */
static char *inside(const struct export *x, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", x->temporary, name) < 0 ? NULL : path;
}

static int create_file(struct export *x, size_t i, struct bd_error *err)
{
	struct target *t = &x->targets[i];
	char *path;
	int rc = t->acquired ? 0 : bd_view_acquire(x->view, i, err); /* it is where creating it failed before */

	if (rc < 0)
		return rc;
	t->acquired = true;
	path = inside(x, x->view->files[i].name);
	if (!path)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", x->view->name);
	t->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	free(path);
	return t->fd < 0 ? file_error(x, i, "create", err) : 0;
}

static int begin_chunk(struct export *x, size_t i, struct bd_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&x->lock);
	if (x->targets[i].fd < 0)
		rc = create_file(x, i, err);
	pthread_mutex_unlock(&x->lock);
	return rc;
}

static void close_file(struct export *x, size_t i)
{
	struct target *t = &x->targets[i];

	if (t->fd >= 0)
		close(t->fd);
	t->fd = -1;
	if (t->acquired)
		bd_view_release(x->view, i);
	t->acquired = false;
}

static int end_chunk(struct export *x, size_t i, struct bd_error *err)
{
	bool last;

	pthread_mutex_lock(&x->lock);
	last = --x->targets[i].left == 0;
	pthread_mutex_unlock(&x->lock);
	if (!last)
		return 0;
	if (fsync(x->targets[i].fd) < 0)
		return file_error(x, i, "write to the disk", err);
	close_file(x, i);
	return 0;
}

/* The file that has a chunk. */
static size_t file_of(const struct export *x, size_t chunk)
{
	size_t low = 0, high = x->view->file_count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (x->first[middle] <= chunk)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* One chunk of one file. */
static int work(void *context, size_t index, struct bd_error *err)
{
	struct export *x = context;
	size_t file = file_of(x, index);
	uint64_t offset = (index - x->first[file]) * CHUNK, at = 0;
	struct bd_scratch *scratch = bd_scratch_new();
	char *buf = malloc(CHUNK);
	ssize_t size = 0;
	int rc = 0;

	if (!scratch || !buf)
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", x->view->name);
	if (rc == 0)
		rc = begin_chunk(x, file, err);
	if (rc < 0)
		goto out;
	size = bd_view_read(x->view, file, buf, CHUNK, offset, scratch, err);
	if (size < 0)
		rc = (int)size;
	while (rc == 0 && at < (uint64_t)size) {
		ssize_t n = pwrite(x->targets[file].fd, buf + at, (size_t)((uint64_t)size - at),
				   (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = file_error(x, file, "write", err);
		else
			at += (uint64_t)n;
	}
	atomic_fetch_add(&x->done, at);
	if (rc == 0)
		rc = end_chunk(x, file, err);
out:
	bd_scratch_free(scratch);
	free(buf);
	return rc;
}

static void tick(void *context)
{
	struct export *x = context;

	if (x->watch->progress)
		x->watch->progress(x->watch->context, atomic_load(&x->done), x->total);
}

/* The directories that the files need. */
static int list_directories(struct export *x, struct bd_error *err)
{
	const struct bd_view *v = x->view;
	const char *before = "";

	for (size_t i = 0; i < v->file_count; before = v->files[i++].name)
		for (size_t n = 0; (n = bd_path_next_directory(v->files[i].name, before, n)); ) {
			char **grown = reallocarray(x->directories, x->directory_count + 1, sizeof(*grown));

			if (grown) {
				x->directories = grown;
				grown[x->directory_count] = strndup(v->files[i].name, n);
			}
			if (!grown || !grown[x->directory_count])
				return bd_error_set(err, -ENOMEM, "%s: out of memory", v->name);
			x->directory_count++;
		}
	return 0;
}

static int create_directories(struct export *x, struct bd_error *err)
{
	int rc = list_directories(x, err);

	for (size_t i = 0; rc == 0 && i < x->directory_count; i++) {
		char *path = inside(x, x->directories[i]);

		if (!path)
			rc = bd_error_set(err, -ENOMEM, "%s: out of memory", x->view->name);
		else if (mkdir(path, 0777) < 0)
			rc = bd_error_set(err, -errno, "%s: cannot create the directory: %s", path,
					  strerror(errno));
		free(path);
	}
	return rc;
}

/* Number the chunks. An empty file has one, too. */
static void plan_chunks(struct export *x)
{
	for (size_t i = 0; i < x->view->file_count; i++) {
		uint64_t size = x->view->files[i].size;

		x->targets[i] = (struct target){ .fd = -1, .left = size ? (size_t)((size + CHUNK - 1) / CHUNK) : 1 };
		x->first[i + 1] = x->first[i] + x->targets[i].left;
		x->total += size;
	}
}

static void take_permissions(struct export *x, const char *out)
{
	struct stat st;
	int fd;

	/* As they are now, also of an empty directory that came meanwhile. */
	if (lstat(out, &st) == 0 && S_ISDIR(st.st_mode)) {
		x->old = st;
		x->replaces = true;
	}
	fd = x->replaces ? open(x->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	bd_permissions_take(fd, out, &x->old);
	close(fd);
}

static int finish(struct export *x, const char *out, struct bd_error *err)
{
	char *parent = strdup(out), *slash;
	int rc = 0;

	for (size_t i = x->directory_count; rc == 0 && i-- > 0; ) {
		char *path = inside(x, x->directories[i]);

		rc = path ? bd_output_sync_directory(path, err)
			  : bd_error_set(err, -ENOMEM, "%s: out of memory", x->view->name);
		free(path);
	}
	if (rc == 0)
		rc = bd_output_sync_directory(x->temporary, err);
	/* Last, because they may forbid what comes before. */
	if (rc == 0)
		take_permissions(x, out);
	if (rc == 0 && rename(x->temporary, out) < 0) /* replaces an empty directory */
		rc = bd_error_set(err, -errno, "%s: cannot rename the finished directory: %s", out,
				  strerror(errno));
	if (rc == 0 && parent) {
		slash = strrchr(parent, '/');
		if (slash)
			slash[slash == parent] = '\0';
		rc = bd_output_sync_directory(slash ? parent : ".", err);
	}
	free(parent);
	return rc;
}

static void remove_temporary(const struct export *x)
{
	chmod(x->temporary, 0700);
	for (size_t i = 0; i < x->view->file_count; i++) {
		char *path = inside(x, x->view->files[i].name);

		if (path)
			unlink(path);
		free(path);
	}
	for (size_t i = x->directory_count; i-- > 0; ) {
		char *path = inside(x, x->directories[i]);

		if (path)
			rmdir(path);
		free(path);
	}
	rmdir(x->temporary);
}

/* May OUT be created, or filled because it is empty? */
static int check_target(const char *out, struct bd_error *err)
{
	DIR *dir = opendir(out);
	struct dirent *entry;
	bool empty = true;
	struct stat st;

	/* The finished directory is renamed to OUT, which therefore must be one or nothing itself. */
	if (!*out || strcmp(out, ".") == 0 || strcmp(out, "..") == 0 ||
	    (lstat(out, &st) == 0 && S_ISLNK(st.st_mode))) {
		if (dir)
			closedir(dir);
		return bd_error_set(err, -EINVAL, "%s: give the name of a directory to be created, no "
				    "link or dot", out);
	}
	if (!dir)
		return errno == ENOENT ? 0 : bd_error_set(err, -errno, "%s: %s", out, strerror(errno));
	while (empty && (entry = readdir(dir)))
		empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
	closedir(dir);
	return empty ? 0 : bd_error_set(err, -EEXIST, "%s: the directory is not empty", out);
}

int bd_export(struct bd_view *view, const char *path, const struct bd_watch *watch,
	      struct bd_error *err)
{
	struct export x = { .view = view, .watch = watch };
	struct bd_parallel job = { .work = work, .tick = tick, .context = &x, .cancel = watch->cancel };
	char *out = strdup(path);
	bool created = false;
	int rc;

	while (out && strlen(out) > 1 && out[strlen(out) - 1] == '/')
		out[strlen(out) - 1] = '\0';
	pthread_mutex_init(&x.lock, NULL);
	x.targets = calloc(view->file_count + 1, sizeof(*x.targets));
	x.first = calloc(view->file_count + 1, sizeof(*x.first));
	if (!out || !x.targets || !x.first ||
	    asprintf(&x.temporary, "%s.partial-%d", out, getpid()) < 0) {
		x.temporary = NULL;
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	plan_chunks(&x);
	rc = check_target(out, err);
	if (rc < 0)
		goto out;
	x.replaces = stat(out, &x.old) == 0;
	if (mkdir(x.temporary, x.replaces ? 0700 : 0777) < 0) {
		rc = bd_error_set(err, -errno, "%s: cannot create the directory: %s", x.temporary,
				  strerror(errno));
		goto out;
	}
	created = true;
	rc = create_directories(&x, err);
	job.count = x.first[view->file_count];
	if (rc == 0)
		rc = bd_parallel_run(&job, err);
	if (rc == 0)
		rc = finish(&x, out, err);
out:
	for (size_t i = 0; job.count && i < view->file_count; i++)
		close_file(&x, i);
	if (rc < 0 && created)
		remove_temporary(&x);
	for (size_t i = 0; i < x.directory_count; i++)
		free(x.directories[i]);
	free(x.directories);
	free(x.temporary);
	free(x.first);
	free(x.targets);
	pthread_mutex_destroy(&x.lock);
	free(out);
	return rc;
}
