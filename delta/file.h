/* SPDX-License-Identifier: Apache-2.0 */
/* file.h: an input file whose contents are frozen when it is opened.
 *
 * Device, inode, size, mtime and ctime are remembered, and bd_file_check fails with -EIO where they
 * say that the contents may have changed, so that old and new contents are never mixed:
 *   - size or mtime changed, or the descriptor stands for another file: always;
 *   - only ctime changed: unless mode, owner, group or number of links changed as well. These explain
 *     it (chmod, chown, link, unlink), and the new state is what later checks compare with.
 * A file that was deleted or renamed over is therefore still good: the open descriptor keeps its
 * bytes. Renaming the file itself leaves no such trace and is an error, as is setting its times.
 * The limits: a writer in the same clock tick (some milliseconds) as the last change before the
 * open, who keeps the size, goes unnoticed, and so does one who sets mtime back and changes mode,
 * owner or links before the next check.
 * All functions may be called from several threads on one file. */
#ifndef BD_FILE_H
#define BD_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "error.h"

struct bd_file {
	char *path;        /* as given, for messages; owned */
	int fd;
	uint64_t size;     /* at open */
	struct stat frozen; /* at open; never changed afterwards */
	const uint8_t *map; /* all of it (bd_file_map), else NULL */
	/* private: */
	void *mapping;      /* what is to be unmapped, `map` inside it */
	size_t mapping_size;
	atomic_bool used;   /* pages may be in the map */
	struct bd_file *next, *previous; /* of all that are mapped */
	atomic_uint_fast64_t ctime; /* accepted last, in nanoseconds */
	pthread_mutex_t lock;       /* guards what follows */
	struct stat accepted;       /* mode, owner, group and links of that time */
	bool altered;               /* ctime changed once without a reason */
};

/* Open a regular file for reading (never hangs on a FIFO, follows symbolic links).
 * *file is owned by the caller: bd_file_close.
 * Errors: those of open(2); -EINVAL where PATH is no regular file. */
int bd_file_open(struct bd_file **file, const char *path, struct bd_error *err);
/* The same for NAME below the open directory DIRFD (or AT_FDCWD), as openat(2) takes them; PATH is
 * what messages call the file. */
int bd_file_open_at(struct bd_file **file, int dirfd, const char *name, const char *path,
		    struct bd_error *err);
/* The same file with a descriptor of its own and what was frozen when FILE was opened, although its
 * name may be gone. Errors: -EMFILE, -ENOMEM. */
int bd_file_dup(struct bd_file **copy, struct bd_file *file, struct bd_error *err);
/* NULL is allowed. */
void bd_file_close(struct bd_file *file);

/* Read exactly `size` bytes at `offset` into `buf`, without looking at the identity.
 * -EIO where the file ends early or the device fails. */
int bd_file_read(struct bd_file *file, void *buf, size_t size, uint64_t offset,
		 struct bd_error *err);

/* Make file->map point to the whole file, followed by BD_FILE_SLACK readable bytes, where that can be
 * done and survived: bd_guard_install was called, and the address space has no limit. Elsewhere it
 * stays NULL. Call it before the file is shared between threads. Reading from the map is for
 * bd_guard_run only. */
#define BD_FILE_SLACK 64
void bd_file_map(struct bd_file *file);

/* Does the page cache have these bytes (at least one)? Only both ends are looked at. Where it has not,
 * bd_file_read is better than the map, for it reads ahead. */
bool bd_file_is_cached(struct bd_file *file, size_t size, uint64_t offset);
/* After reading these bytes from the map. Their pages stay in it, where they count as the process's memory
 * and make the next reading cheaper, until all maps together may hold BD_FILE_RESIDENT bytes; then all are
 * taken out at once (and stay in the page cache). */
#define BD_FILE_RESIDENT ((size_t)128 << 20)
void bd_file_used(struct bd_file *file, size_t size, uint64_t offset);

/* 0 while the contents are those that were opened, else -EIO with what changed. Call it after a read
 * and before its bytes are given to anybody. */
int bd_file_check(struct bd_file *file, struct bd_error *err);

/* Has the file no name any more (deleted or replaced)? Its contents stay readable. */
bool bd_file_is_gone(struct bd_file *file);

/* Do two results of stat(2) mean the same file, not written to: device, inode, size, mtime? */
bool bd_file_unwritten(const struct stat *then, const struct stat *now);
/* The same and ctime. */
bool bd_file_same(const struct stat *frozen, const struct stat *now);

/* Is it a pointer of Git LFS, which stands for the file where that was not fetched, that begins with these bytes? */
#define BD_LFS_POINTER "a Git LFS pointer and not the file itself; run `git lfs pull` in its repository"
#define BD_LFS_POINTER_BEGIN "version https://git-lfs.github.com/spec/"
bool bd_file_is_pointer(const char *data, size_t size);

/* Read a whole small file (at most `limit` bytes, else -EFBIG) and check it. *data is malloced, and
 * a NUL byte follows its *size bytes; NULL after an error. */
int bd_file_slurp(const char *path, size_t limit, char **data, size_t *size, struct bd_error *err);

#endif
