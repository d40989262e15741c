/* SPDX-License-Identifier: Apache-2.0 */
/* sources.h: where deltas come from: a directory, or one file in it; where DIR and two stars were
 * given, every directory below DIR is a source too. Private to models.c and scan.c, but for bdfs_deep_length. */
#ifndef BDFS_SOURCES_H
#define BDFS_SOURCES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct bdfs_source {
	char *path;    /* absolute, of the directory */
	char *real;    /* where the descriptor led to when it was opened; NULL: nobody could tell */
	int fd;        /* of the directory */
	char *only;    /* the one file that was given by name; NULL: all *.bdelta */
	char *problem; /* a sentence: the directory that has the path now cannot be opened; else NULL */
	bool deep;     /* the directories in it are sources as well */
	const struct bdfs_source *above; /* that it is in; NULL: it was given by name */
	char *prefix;  /* of the names of its models: org-- of DIR/org; NULL: none */
	unsigned level; /* below the one that was given */
	unsigned order; /* private to scan.c, as are the next: among all sources */
	bool listed, seen;
	_Atomic size_t unseen; /* deltas below a directory that is not deep, when it was last counted */
	/* For bdfs_models_is_stale: */
	int64_t scanned;       /* the directory's mtime when it was last looked at, in ns */
	_Atomic int64_t shown; /* the same, of what the tree shows */
};

/* Fill in a source that is all zeros from an item of deltas=; bdfs_source_free in any case.
 * Errors: those of stat(2) and open(2); -EINVAL for an empty name; -ENOMEM. */
int bdfs_source_open(struct bdfs_source *source, const char *path, struct bd_error *err);
void bdfs_source_free(struct bdfs_source *source);

/* The directory NAME in one that is deep, as a source to be freed. No link, nor what is mounted there,
 * which may be slow, dead or our own. -EXDEV, -ELOOP, -ENOTDIR, -ENOENT: not there; others: it cannot be
 * opened. */
int bdfs_source_below(struct bdfs_source **source, const struct bdfs_source *above, const char *name);
/* A descriptor of such a directory, or such an error. */
int bdfs_open_below(int dirfd, const char *name);

/* "3 deltas lie ...": what should be known of a source; false where there is nothing. */
bool bdfs_source_note(const struct bdfs_source *source, char *text, size_t size);

/* Bytes of PATH before a slash and two stars at its end; 0: it has none there. */
size_t bdfs_deep_length(const char *path);

/* Where the directory was deleted or moved away, take the one that has its path now, or set `problem`. */
void bdfs_source_follow(struct bdfs_source *source);

/* PATH from the root on, because the daemon leaves the caller's working directory; links stay. Malloced;
 * NULL: out of memory, or there is no working directory. */
char *bdfs_absolute(const char *path);

#endif
