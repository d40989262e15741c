/* SPDX-License-Identifier: Apache-2.0 */
/* control.h: what the mount says about itself, as the files of .bitdelta and for `bitdelta status`. */
#ifndef BDFS_CONTROL_H
#define BDFS_CONTROL_H

#include "tree.h"

struct bdfs_watch;

/* What a mount really uses. Filled in by mount.c before the first request, but for `passthrough`. */
struct bdfs_in_use {
	const char *source, *mountpoint; /* borrowed; the latter absolute */
	unsigned threads;                /* most that serve requests */
	unsigned readahead;              /* KiB; 0: the kernel's own */
	char sandbox[32];                /* "landlock 7", or "none" */
	char user[64];                   /* name of the user that the daemon runs as, or its number */
	const struct bdfs_watch *watch;  /* NULL: none */
	atomic_bool passthrough;         /* real files are read by the kernel; see ops.c */
	bool mapped;                     /* inputs are mapped and not read */
	time_t mounted_at;
	uint64_t started;                /* the same as bdfs_now() counts */
};

/* The contents of a file of .bitdelta at this time; *text is malloced.
 * Errors: -ENOMEM. */
int bdfs_control_text(enum bdfs_control file, struct bdfs_models *models,
		      const struct bdfs_in_use *use, char **text, size_t *size);

#endif
