/* SPDX-License-Identifier: Apache-2.0 */
/* mountinfo.h: what is mounted at a path, as /proc/self/mountinfo tells it.
 *
 * Never touches the mounted filesystem itself, so it works where a daemon is stuck or dead. */
#ifndef BDFS_MOUNTINFO_H
#define BDFS_MOUNTINFO_H

#include <stdbool.h>

#include "error.h"

struct bdfs_mountinfo {
	unsigned major, minor; /* of the device number */
	char *root;            /* what of the filesystem is shown: "/" unless it is a bind mount */
	char *point;           /* the mount point */
	char *type, *source;
	char *options;         /* of the filesystem: "ro,user_id=1000,..." */
};

/* Call TAKE for every mount, until it returns something other than 0, which is then returned. A later
 * mount lies above an earlier one at the same point. The strings are lent for the call. */
int bdfs_mountinfo_each(int (*take)(void *context, const struct bdfs_mountinfo *info), void *context,
			struct bd_error *err);

/* The topmost mount at PATH, which is absolute and without symbolic links.
 * 0; -ENOENT where nothing is mounted exactly there (*info is then empty).
 * The strings are the caller's, to be freed with bdfs_mountinfo_clear. */
int bdfs_mountinfo_find(struct bdfs_mountinfo *info, const char *path, struct bd_error *err);
/* A copy with strings of its own, for bdfs_mountinfo_clear. 0 or -ENOMEM. */
int bdfs_mountinfo_copy(struct bdfs_mountinfo *to, const struct bdfs_mountinfo *from);
void bdfs_mountinfo_clear(struct bdfs_mountinfo *info);

/* Is it a filesystem of ours (fuse.bitdelta)? */
bool bdfs_mountinfo_is_ours(const struct bdfs_mountinfo *info);

#endif
