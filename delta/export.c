/* SPDX-License-Identifier: Apache-2.0 */
/* export.c: writing a view to a directory, see export.h. */
#include "export.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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

struct export {
	struct bd_view *view;
	const struct bd_watch *watch;
	char *temporary; /* directory beside the final one */
	char **directories; /* those in it, parents first */
	size_t directory_count;
	bool replaces;   /* an empty directory, */
	struct stat old; /* whose permissions the new one gets */
	int *fds;        /* of the files in it */
	bool *acquired;
	size_t *first;   /* number of each file's first chunk, and one past the last */
	uint64_t total;
	atomic_ullong done;
};

static int file_error(const struct export *x, size_t i, const char *what, struct bd_error *err)
{
	return bd_error_set(err, -errno, "%s/%s: cannot %s: %s", x->temporary, x->view->files[i].name,
			    what, strerror(errno));
}

/* One chunk of one file. */
static int work(void *context, size_t index, struct bd_error *err)
{
	struct export *x = context;
	size_t file = 0;
	uint64_t offset, at = 0;
	struct bd_scratch *scratch = bd_scratch_new();
	char *buf = malloc(CHUNK);
	ssize_t size = 0;
	int rc = 0;

	while (x->first[file + 1] <= index)
		file++;
	offset = (index - x->first[file]) * CHUNK;
	if (!scratch || !buf) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", x->view->name);
		goto out;
	}
	size = bd_view_read(x->view, file, buf, CHUNK, offset, scratch, err);
	if (size < 0)
		rc = (int)size;
	while (rc == 0 && at < (uint64_t)size) {
		ssize_t n = pwrite(x->fds[file], buf + at, (size_t)((uint64_t)size - at),
				   (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = file_error(x, file, "write", err);
		else
			at += (uint64_t)n;
	}
	atomic_fetch_add(&x->done, at);
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

/* The path of something in the temporary directory; NULL: out of memory. */
static char *inside(const struct export *x, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", x->temporary, name) < 0 ? NULL : path;
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

static int create_files(struct export *x, struct bd_error *err)
{
	struct bd_view *v = x->view;

	for (size_t i = 0; i < v->file_count; i++) {
		char *path;
		int rc = bd_view_acquire(v, i, err);

		if (rc < 0)
			return rc;
		x->acquired[i] = true;
		path = inside(x, v->files[i].name);
		if (!path)
			return bd_error_set(err, -ENOMEM, "%s: out of memory", v->name);
		x->fds[i] = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		free(path);
		if (x->fds[i] < 0)
			return file_error(x, i, "create", err);
		x->first[i + 1] = x->first[i] + (size_t)((v->files[i].size + CHUNK - 1) / CHUNK);
		x->total += v->files[i].size;
	}
	return 0;
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

	for (size_t i = 0; i < x->view->file_count; i++)
		if (fsync(x->fds[i]) < 0) {
			free(parent);
			return file_error(x, i, "write to the disk", err);
		}
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
	x.fds = calloc(view->file_count + 1, sizeof(*x.fds));
	x.acquired = calloc(view->file_count + 1, sizeof(*x.acquired));
	x.first = calloc(view->file_count + 1, sizeof(*x.first));
	if (!out || !x.fds || !x.acquired || !x.first ||
	    asprintf(&x.temporary, "%s.partial-%d", out, getpid()) < 0) {
		x.temporary = NULL;
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	memset(x.fds, -1, (view->file_count + 1) * sizeof(*x.fds));
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
	if (rc == 0)
		rc = create_files(&x, err);
	job.count = x.first[view->file_count];
	if (rc == 0)
		rc = bd_parallel_run(&job, err);
	if (rc == 0)
		rc = finish(&x, out, err);
out:
	for (size_t i = 0; x.fds && x.acquired && i < view->file_count; i++) {
		if (x.acquired[i])
			bd_view_release(view, i);
		if (x.fds[i] >= 0)
			close(x.fds[i]);
	}
	if (rc < 0 && created)
		remove_temporary(&x);
	for (size_t i = 0; i < x.directory_count; i++)
		free(x.directories[i]);
	free(x.directories);
	free(x.temporary);
	free(x.acquired);
	free(x.first);
	free(x.fds);
	free(out);
	return rc;
}
