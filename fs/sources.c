/* SPDX-License-Identifier: Apache-2.0 */
/* sources.c: where deltas come from, see sources.h. */
#include "sources.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
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

size_t bdfs_deep_length(const char *path)
{
	size_t n = strlen(path);

	return n > 3 && !strcmp(path + n - 3, "/**") ? n - 3 : 0;
}

int bdfs_source_open(struct bdfs_source *source, const char *path, struct bd_error *err)
{
	char *whole, *slash;
	struct stat st;

	source->fd = -1;
	if (!*path)
		return bd_error_set(err, -EINVAL, "the name of a delta is empty");
	whole = bdfs_absolute(path);
	if (!whole)
		return bd_error_set(err, -ENOMEM, "out of memory for %s", path);
	if (bdfs_deep_length(whole)) {
		whole[bdfs_deep_length(whole)] = '\0';
		source->deep = true;
	}
	if (stat(whole, &st) < 0 || (source->deep && !S_ISDIR(st.st_mode) && (errno = ENOTDIR))) {
		free(whole);
		return bd_error_set(err, -errno, "the deltas %s: %s", path, strerror(errno));
	}
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

int bdfs_open_below(int dirfd, const char *name)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	const struct open_how how = { .flags = (uint64_t)flags, .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS };
	int fd = (int)syscall(SYS_openat2, dirfd, name, &how, sizeof(how));
	struct stat st, above;

	if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
		return fd < 0 ? -errno : fd;
	/* Linux before 5.6, or a container that does not know the call. */
	fd = openat(dirfd, name, flags);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) == 0 && fstat(dirfd, &above) == 0 && st.st_dev == above.st_dev)
		return fd;
	close(fd);
	return -EXDEV;
}

int bdfs_source_below(struct bdfs_source **out, const struct bdfs_source *above, const char *name)
{
	struct bdfs_source *s = calloc(1, sizeof(*s));
	int r;

	*out = NULL;
	if (!s)
		return -ENOMEM;
	s->deep = true;
	s->above = above;
	s->level = above->level + 1;
	r = s->fd = bdfs_open_below(above->fd, name);
	if (r >= 0) {
		r = asprintf(&s->path, "%s/%s", strcmp(above->path, "/") ? above->path : "", name) < 0 ||
		    asprintf(&s->prefix, "%s%s--", above->prefix ? above->prefix : "", name) < 0 ? -ENOMEM : 0;
		s->real = place_of(s->fd);
	}
	if (r < 0) {
		bdfs_source_free(s);
		return r;
	}
	*out = s;
	return 0;
}

bool bdfs_source_note(const struct bdfs_source *source, char *text, size_t size)
{
	size_t n = atomic_load(&source->unseen);

	snprintf(text, size, "%s: %zu delta%s in its subdirectories %s not shown; deltas=%s/** shows them too",
		 source->path, n, n == 1 ? "" : "s", n == 1 ? "is" : "are", source->path);
	return n > 0;
}

void bdfs_source_free(struct bdfs_source *source)
{
	if (source->fd >= 0)
		close(source->fd);
	free(source->path);
	free(source->real);
	free(source->only);
	free(source->problem);
	free(source->prefix);
	free(source);
}
