/* file.h: an input file whose identity is frozen when it is opened.
 *
 * Bases and deltas are read with pread and never mapped: a mapping would let anybody who truncates
 * the file kill the process with SIGBUS. Device, inode, size, mtime and ctime are remembered; a
 * read that finds any of them changed fails with -EIO, so that old and new contents are never
 * mixed. A file that was deleted, replaced or truncated therefore gives errors, not other bytes.
 * The limit: a writer in the same clock tick (some milliseconds) as the last change before the
 * open, who keeps the size, goes unnoticed.
 * All functions may be called from several threads on one file. */
#ifndef BD_FILE_H
#define BD_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "error.h"

struct bd_file {
	char *path;        /* as given, for messages; owned */
	int fd;
	uint64_t size;     /* at open */
	struct stat frozen; /* at open */
};

/* Open a regular file for reading (never hangs on a FIFO, follows symbolic links).
 * *file is owned by the caller: bd_file_close.
 * Errors: those of open(2); -EINVAL where PATH is no regular file. */
int bd_file_open(struct bd_file **file, const char *path, struct bd_error *err);
/* NULL is allowed. */
void bd_file_close(struct bd_file *file);

/* Read exactly `size` bytes at `offset` into `buf`, without looking at the identity.
 * -EIO where the file ends early or the device fails. */
int bd_file_read(struct bd_file *file, void *buf, size_t size, uint64_t offset,
		 struct bd_error *err);

/* 0 while the file is the one that was opened, else -EIO with what changed. Call it after a read
 * and before its bytes are given to anybody. */
int bd_file_check(struct bd_file *file, struct bd_error *err);

/* Read a whole small file (at most `limit` bytes, else -EFBIG) and check it. *data is malloced, and
 * a NUL byte follows its *size bytes; NULL after an error. */
int bd_file_slurp(const char *path, size_t limit, char **data, size_t *size, struct bd_error *err);

#endif
