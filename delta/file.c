/* file.c: reading input files whose identity is frozen at open, see file.h. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *kind_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR: return "a directory";
	case S_IFIFO: return "a FIFO";
	case S_IFSOCK: return "a socket";
	case S_IFCHR:
	case S_IFBLK: return "a device";
	default: return "something else";
	}
}

int bd_file_open(struct bd_file **file, const char *path, struct bd_error *err)
{
	struct bd_file *f = calloc(1, sizeof(*f));
	int rc;

	*file = NULL;
	if (!f)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
	f->fd = -1;
	f->path = strdup(path);
	if (!f->path) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	/* O_NONBLOCK: opening a FIFO returns instead of waiting for a writer. */
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (f->fd < 0) {
		rc = -errno;
		bd_error_set(err, rc, "%s: cannot be opened: %s", path, strerror(-rc));
		goto out;
	}
	if (fstat(f->fd, &f->frozen) < 0) {
		rc = -errno;
		bd_error_set(err, rc, "%s: cannot be examined: %s", path, strerror(-rc));
		goto out;
	}
	if (!S_ISREG(f->frozen.st_mode)) {
		rc = bd_error_set(err, -EINVAL, "%s: is %s, expected a regular file", path,
				  kind_of(f->frozen.st_mode));
		goto out;
	}
	f->size = (uint64_t)f->frozen.st_size;
	*file = f;
	return 0;
out:
	bd_file_close(f);
	return rc;
}

void bd_file_close(struct bd_file *file)
{
	if (!file)
		return;
	if (file->fd >= 0)
		close(file->fd);
	free(file->path);
	free(file);
}

int bd_file_read(struct bd_file *file, void *buf, size_t size, uint64_t offset,
		 struct bd_error *err)
{
	size_t done = 0;

	/* Also keeps offset + size within off_t. */
	if (offset > INT64_MAX || size > INT64_MAX - offset)
		return bd_error_set(err, -EIO, "%s: no %zu bytes at offset %" PRIu64, file->path,
				    size, offset);
	while (done < size) {
		ssize_t n = pread(file->fd, (char *)buf + done, size - done,
				  (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return bd_error_set(err, -EIO, "%s: cannot read %zu bytes at offset %"
					    PRIu64 ": %s", file->path, size - done, offset + done,
					    strerror(errno));
		if (n == 0)
			return bd_error_set(err, -EIO, "%s: ends at offset %" PRIu64 ", where %zu "
					    "more bytes are needed", file->path, offset + done,
					    size - done);
		done += (size_t)n;
	}
	return 0;
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

int bd_file_check(struct bd_file *file, struct bd_error *err)
{
	const struct stat *was = &file->frozen;
	struct stat now;

	if (fstat(file->fd, &now) < 0)
		return bd_error_set(err, -EIO, "%s: cannot be examined any more: %s", file->path,
				    strerror(errno));
	if (now.st_dev != was->st_dev || now.st_ino != was->st_ino)
		return bd_error_set(err, -EIO, "%s: became another file (device or inode number "
				    "changed) while it was in use; remount or start again to use "
				    "it as it is now", file->path);
	if (now.st_nlink == 0)
		return bd_error_set(err, -EIO, "%s: was deleted or replaced while it was in use; "
				    "put it back and remount or start again", file->path);
	if (now.st_size != was->st_size)
		return bd_error_set(err, -EIO, "%s: changed while it was in use (it had %lld bytes "
				    "and has %lld); remount or start again to use it as it is now",
				    file->path, (long long)was->st_size, (long long)now.st_size);
	if (!same_time(now.st_mtim, was->st_mtim))
		return bd_error_set(err, -EIO, "%s: was written to while it was in use "
				    "(modification time changed); remount or start again to use it "
				    "as it is now", file->path);
	/* A writer can set mtime back but not ctime. chmod, rename or a new hard link end here
	 * as well, which is the price. */
	if (!same_time(now.st_ctim, was->st_ctim))
		return bd_error_set(err, -EIO, "%s: was altered while it was in use (status change "
				    "time changed: written, renamed, linked, or its owner or mode "
				    "set); remount or start again to use it as it is now",
				    file->path);
	return 0;
}

int bd_file_slurp(const char *path, size_t limit, char **data, size_t *size, struct bd_error *err)
{
	struct bd_file *file = NULL;
	char *buf = NULL;
	int rc;

	*data = NULL;
	*size = 0;
	rc = bd_file_open(&file, path, err);
	if (rc)
		return rc;
	if (file->size > limit) {
		rc = bd_error_set(err, -EFBIG, "%s: has %" PRIu64 " bytes, at most %zu are "
				  "expected", path, file->size, limit);
		goto out;
	}
	buf = malloc((size_t)file->size + 1);
	if (!buf) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu64 " bytes", path,
				  file->size);
		goto out;
	}
	rc = bd_file_read(file, buf, (size_t)file->size, 0, err);
	if (rc == 0)
		rc = bd_file_check(file, err);
	if (rc)
		goto out;
	buf[file->size] = '\0';
	*data = buf;
	*size = (size_t)file->size;
	buf = NULL;
out:
	free(buf);
	bd_file_close(file);
	return rc;
}
