/* SPDX-License-Identifier: Apache-2.0 */
/* sources.h: where deltas come from: a directory, or one file in it. Private to models.c and scan.c. */
#ifndef BDFS_SOURCES_H
#define BDFS_SOURCES_H

#include <stdatomic.h>
#include <stdint.h>

#include "error.h"

struct bdfs_source {
	char *path;    /* absolute, of the directory */
	char *real;    /* where the descriptor led to when it was opened; NULL: nobody could tell */
	int fd;        /* of the directory */
	char *only;    /* the one file that was given by name; NULL: all *.bdelta */
	char *problem; /* a sentence: the directory that has the path now cannot be opened; else NULL */
	/* For bdfs_models_is_stale: */
	int64_t scanned;       /* the directory's mtime when it was last looked at, in ns */
	_Atomic int64_t shown; /* the same, of what the tree shows */
};

/* Fill in a source that is all zeros from an item of deltas=; bdfs_source_close in any case.
 * Errors: those of stat(2) and open(2); -EINVAL for an empty name; -ENOMEM. */
int bdfs_source_open(struct bdfs_source *source, const char *path, struct bd_error *err);
void bdfs_source_close(struct bdfs_source *source);

/* Where the directory was deleted or moved away, take the one that has its path now, or set `problem`. */
void bdfs_source_follow(struct bdfs_source *source);

/* PATH from the root on, because the daemon leaves the caller's working directory; links stay. Malloced;
 * NULL: out of memory, or there is no working directory. */
char *bdfs_absolute(const char *path);

#endif
