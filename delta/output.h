/* SPDX-License-Identifier: Apache-2.0 */
/* output.h: a file that appears under its name whole and durable, or not at all.
 *
 * The bytes go to a file without a name (O_TMPFILE), which a crash or a kill cannot leave behind;
 * where the filesystem has none, to a locked `.NAME.XXXXXX.tmp`, and leftovers of that kind are
 * removed by the next bd_output_open of the same name. Commit: fsync, name, rename, fsync of the directory.
 * What replaces a file gets its permissions (permissions.h), and until then only we may read it. */
#ifndef BD_OUTPUT_H
#define BD_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "error.h"

struct bd_output {
	char *path, *directory, *name; /* owned */
	char *temporary;               /* name in the directory; NULL while there is none */
	int fd, directory_fd;
	bool replaces;                 /* a regular file had the name, or has it */
	struct stat old;               /* that file, behind links */
};

/* What a name stood for at some time, which may be nothing. */
struct bd_occupant {
	bool there;
	struct stat st;                /* of a link itself */
};

/* Errors: those of open(2) on the directory; -EINVAL what is no regular file has the name; -ENAMETOOLONG; -EPERM
 * it may not be replaced. */
int bd_output_open(struct bd_output **o, const char *path, struct bd_error *err);
/* Write all of it at an offset; any thread. -ENOSPC, -EIO, …: the sentence names the file. */
int bd_output_write(struct bd_output *o, const void *data, size_t size, uint64_t offset,
		    struct bd_error *err);
/* Give the file its name, replacing a regular file that is there. Afterwards the old or the new
 * contents survive any crash, and the new ones once this has returned 0. */
int bd_output_commit(struct bd_output *o, struct bd_error *err);

/* Note what is at PATH, for bd_output_replace. Errors: those of lstat(2), without -ENOENT. */
int bd_output_note(struct bd_occupant *occupant, const char *path, struct bd_error *err);
/* Is PATH still what it WAS? */
bool bd_output_still(const struct bd_occupant *was, const char *path);
/* As bd_output_commit, but only while PATH still is WAS: the same file, not written to since, or still
 * nothing. -ECANCELED: it is not. What came meanwhile then keeps the name, and the new file is beside it,
 * called PATH.new (or .new-2, ...), which the sentence says. Nobody can come in between, except where
 * the filesystem cannot exchange two names. */
int bd_output_replace(struct bd_output *o, const struct bd_occupant *was, struct bd_error *err);
/* Ends it; uncommitted bytes are gone. NULL allowed. */
void bd_output_close(struct bd_output *o);

/* fsync the directory at PATH. */
int bd_output_sync_directory(const char *path, struct bd_error *err);

#endif
