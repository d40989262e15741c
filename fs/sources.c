/* SPDX-License-Identifier: Apache-2.0 */
/* sources.c: where deltas come from, see sources.h. */
#include "sources.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *bdfs_absolute(const char *path)
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

/* Places are compared and not inodes: what has the path may also be the mount itself, which covers the
 * directory. */
void bdfs_source_follow(struct bdfs_source *source)
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

int bdfs_source_open(struct bdfs_source *source, const char *path, struct bd_error *err)
{
	char *whole, *slash;
	struct stat st;

	source->fd = -1;
	if (!*path)
		return bd_error_set(err, -EINVAL, "the name of a delta is empty");
	if (stat(path, &st) < 0)
		return bd_error_set(err, -errno, "the deltas %s: %s", path, strerror(errno));
	whole = bdfs_absolute(path);
	if (!whole)
		return bd_error_set(err, -ENOMEM, "out of memory for %s", path);
	while ((slash = strrchr(whole, '/')) && slash != whole && !slash[1])
		*slash = '\0';
	if (!S_ISDIR(st.st_mode)) {
		slash = strrchr(whole, '/');
		source->only = strdup(slash + 1);
		slash[slash == whole] = '\0';
		if (!source->only) {
			free(whole);
			return bd_error_set(err, -ENOMEM, "out of memory for %s", path);
		}
	}
	source->path = whole;
	source->fd = open_directory(source);
	source->real = source->fd < 0 ? NULL : place_of(source->fd);
	if (source->fd < 0)
		return bd_error_set(err, -errno, "%s: cannot read the directory: %s", whole,
				    strerror(errno));
	return 0;
}

void bdfs_source_close(struct bdfs_source *source)
{
	if (source->fd >= 0)
		close(source->fd);
	free(source->path);
	free(source->real);
	free(source->only);
	free(source->problem);
}
