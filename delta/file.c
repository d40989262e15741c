/* SPDX-License-Identifier: Apache-2.0 */
/* file.c: reading input files whose identity is frozen at open, see file.h. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

/* Of x86-64 and most others: what one page of the page table covers, and a huge page. Maps are aligned
 * to it so that huge pages of the page cache fit into them. */
#define REGION ((uintptr_t)2 << 20)

/* All maps of the process, since they share its memory: used by those who called bd_guard_install, which is
 * the process's as well. */
static struct bd_file *maps;
static pthread_mutex_t maps_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_size_t resident; /* bytes that were used since pages were last taken out */

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

static int irregular(const struct bd_file *f, struct bd_error *err)
{
	return bd_error_set(err, -EINVAL, "%s: is %s, expected a regular file", f->path,
			    kind_of(f->frozen.st_mode));
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* One number for an atomic variable; that it wraps after 584 years is no matter. */
static uint64_t nanoseconds(struct timespec t)
{
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int bd_file_open(struct bd_file **file, const char *path, struct bd_error *err)
{
	return bd_file_open_at(file, AT_FDCWD, path, path, err);
}

int bd_file_open_at(struct bd_file **file, int dirfd, const char *name, const char *path,
		    struct bd_error *err)
{
	struct bd_file *f = calloc(1, sizeof(*f));
	int rc;

	*file = NULL;
	if (!f)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
	f->fd = -1;
	pthread_mutex_init(&f->lock, NULL);
	f->path = strdup(path);
	if (!f->path) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	/* Some devices do something when they are opened, and a link to one may lie among deltas. */
	if (fstatat(dirfd, name, &f->frozen, 0) == 0 &&
	    (S_ISCHR(f->frozen.st_mode) || S_ISBLK(f->frozen.st_mode))) {
		rc = irregular(f, err);
		goto out;
	}
	/* O_NONBLOCK: opening a FIFO returns instead of waiting for a writer. */
	f->fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
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
		rc = irregular(f, err);
		goto out;
	}
	f->size = (uint64_t)f->frozen.st_size;
	f->accepted = f->frozen;
	atomic_init(&f->ctime, nanoseconds(f->frozen.st_ctim));
	*file = f;
	return 0;
out:
	bd_file_close(f);
	return rc;
}

int bd_file_dup(struct bd_file **copy, struct bd_file *file, struct bd_error *err)
{
	struct bd_file *f = calloc(1, sizeof(*f));
	int rc;

	*copy = NULL;
	if (!f)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", file->path);
	pthread_mutex_init(&f->lock, NULL);
	f->path = strdup(file->path);
	f->fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
	if (!f->path || f->fd < 0) {
		rc = f->path ? -errno : -ENOMEM;
		bd_error_set(err, rc, "%s: cannot be opened again: %s", file->path, strerror(-rc));
		bd_file_close(f);
		return rc;
	}
	f->size = file->size;
	f->frozen = file->frozen;
	pthread_mutex_lock(&file->lock);
	f->accepted = file->accepted;
	atomic_init(&f->ctime, nanoseconds(f->accepted.st_ctim));
	pthread_mutex_unlock(&file->lock);
	*copy = f;
	return 0;
}

static void unmap(struct bd_file *file)
{
	pthread_mutex_lock(&maps_lock);
	if (file->next)
		file->next->previous = file->previous;
	*(file->previous ? &file->previous->next : &maps) = file->next;
	pthread_mutex_unlock(&maps_lock);
	munmap(file->mapping, file->mapping_size);
}

void bd_file_close(struct bd_file *file)
{
	if (!file)
		return;
	if (file->mapping)
		unmap(file);
	if (file->fd >= 0)
		close(file->fd);
	pthread_mutex_destroy(&file->lock);
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

void bd_file_map(struct bd_file *file)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct rlimit limit;
	size_t size;
	uint8_t *p;

	if (file->map || !bd_guard_installed() || file->size == 0 || file->size > SIZE_MAX / 4)
		return;
	/* Under a limit, threads and their buffers need the address space more. */
	if (getrlimit(RLIMIT_AS, &limit) < 0 || limit.rlim_cur != RLIM_INFINITY)
		return;
	/* First the whole place, zeros, then the file over it: what remains is the slack. */
	size = (size_t)file->size + REGION + page + BD_FILE_SLACK;
	file->mapping = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (file->mapping == MAP_FAILED) {
		file->mapping = NULL;
		return;
	}
	file->mapping_size = size;
	p = (uint8_t *)(((uintptr_t)file->mapping + REGION - 1) / REGION * REGION);
	if (mmap(p, (size_t)file->size, PROT_READ, MAP_SHARED | MAP_FIXED, file->fd, 0) == MAP_FAILED) {
		munmap(file->mapping, size); /* a filesystem that cannot map */
		file->mapping = NULL;
		return;
	}
	file->map = p;
	pthread_mutex_lock(&maps_lock);
	file->next = maps;
	if (maps)
		maps->previous = file;
	maps = file;
	pthread_mutex_unlock(&maps_lock);
}

/* Also true where nobody can tell. */
static bool has_byte(struct bd_file *file, uint64_t offset)
{
	char byte;
	struct iovec v = { .iov_base = &byte, .iov_len = 1 };

	return preadv2(file->fd, &v, 1, (off_t)offset, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

bool bd_file_is_cached(struct bd_file *file, size_t size, uint64_t offset)
{
	return has_byte(file, offset) && has_byte(file, offset + size - 1);
}

/* A handful of pages may bring a huge one, so whole regions count. */
static size_t regions(uint64_t offset, size_t size)
{
	return ((offset + size - 1) / REGION - offset / REGION + 1) * REGION;
}

static void take_pages_out(void)
{
	pthread_mutex_lock(&maps_lock);
	/* Unless another thread did while we waited. */
	if (atomic_load_explicit(&resident, memory_order_relaxed) > BD_FILE_RESIDENT) {
		atomic_store_explicit(&resident, 0, memory_order_relaxed);
		/* Who still reads there gets the pages back by faults. */
		for (struct bd_file *f = maps; f; f = f->next)
			if (atomic_exchange_explicit(&f->used, false, memory_order_relaxed))
				madvise((void *)f->map, (size_t)f->size, MADV_DONTNEED);
	}
	pthread_mutex_unlock(&maps_lock);
}

void bd_file_used(struct bd_file *file, size_t size, uint64_t offset)
{
	size_t n = regions(offset, size);

	if (!atomic_load_explicit(&file->used, memory_order_relaxed))
		atomic_store_explicit(&file->used, true, memory_order_relaxed);
	if (atomic_fetch_add_explicit(&resident, n, memory_order_relaxed) + n > BD_FILE_RESIDENT)
		take_pages_out();
}

/* What can be told from the results of one fstat: 0, or -EIO; *later: ctime is not the one that was
 * accepted last. */
static int examine(struct bd_file *file, struct stat *now, bool *later, struct bd_error *err)
{
	const struct stat *was = &file->frozen;

	if (fstat(file->fd, now) < 0)
		return bd_error_set(err, -EIO, "%s: cannot be examined any more: %s", file->path,
				    strerror(errno));
	if (now->st_dev != was->st_dev || now->st_ino != was->st_ino)
		return bd_error_set(err, -EIO, "%s: became another file (device or inode number "
				    "changed) while it was in use; remount or start again to use "
				    "it as it is now", file->path);
	if (now->st_size != was->st_size)
		return bd_error_set(err, -EIO, "%s: changed while it was in use (it had %lld bytes "
				    "and has %lld); remount or start again to use it as it is now",
				    file->path, (long long)was->st_size, (long long)now->st_size);
	if (!same_time(now->st_mtim, was->st_mtim))
		return bd_error_set(err, -EIO, "%s: was written to while it was in use "
				    "(modification time changed); remount or start again to use it "
				    "as it is now", file->path);
	*later = nanoseconds(now->st_ctim) != atomic_load_explicit(&file->ctime, memory_order_acquire);
	return 0;
}

static bool explains_ctime(const struct stat *was, const struct stat *now)
{
	return now->st_mode != was->st_mode || now->st_uid != was->st_uid ||
	       now->st_gid != was->st_gid || now->st_nlink != was->st_nlink;
}

int bd_file_check(struct bd_file *file, struct bd_error *err)
{
	struct timespec pause = { .tv_nsec = 1000000 };
	struct stat now;
	bool later;
	int rc = examine(file, &now, &later, err);

	if (rc < 0 || !later)
		return rc;
	pthread_mutex_lock(&file->lock);
	/* Again, because another thread may have accepted what is newer than our `now`; and then a few
	 * times, because kernels set ctime a little before what explains it. */
	rc = examine(file, &now, &later, err);
	while (rc == 0 && later && !file->altered && !explains_ctime(&file->accepted, &now)) {
		file->altered = pause.tv_nsec > 64000000;
		nanosleep(&pause, NULL);
		pause.tv_nsec *= 2;
		rc = examine(file, &now, &later, err);
	}
	/* A writer can set mtime back but not ctime. */
	if (rc == 0 && file->altered) {
		rc = bd_error_set(err, -EIO, "%s: was altered while it was in use (status change time "
				  "changed: written, renamed, or its times set); remount or start again "
				  "to use it as it is now", file->path);
	} else if (rc == 0 && later) {
		file->accepted = now;
		atomic_store_explicit(&file->ctime, nanoseconds(now.st_ctim), memory_order_release);
	}
	pthread_mutex_unlock(&file->lock);
	return rc;
}

bool bd_file_is_gone(struct bd_file *file)
{
	struct stat now;

	/* A server of a network filesystem that deleted the file says ESTALE. */
	return fstat(file->fd, &now) < 0 || now.st_nlink == 0;
}

bool bd_file_unwritten(const struct stat *then, const struct stat *now)
{
	return then->st_dev == now->st_dev && then->st_ino == now->st_ino &&
	       then->st_size == now->st_size && same_time(then->st_mtim, now->st_mtim);
}

bool bd_file_same(const struct stat *frozen, const struct stat *now)
{
	return bd_file_unwritten(frozen, now) && same_time(frozen->st_ctim, now->st_ctim);
}

bool bd_file_is_pointer(const char *data, size_t size)
{
	const size_t length = strlen(BD_LFS_POINTER_BEGIN);

	return size >= length && memcmp(data, BD_LFS_POINTER_BEGIN, length) == 0;
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
