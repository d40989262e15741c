/* mountinfo.h: what is mounted at a path, as /proc/self/mountinfo tells it.
 *
 * Never touches the mounted filesystem itself, so it works where a daemon is stuck or dead. */
#ifndef BDFS_MOUNTINFO_H
#define BDFS_MOUNTINFO_H

#include <stdbool.h>

#include "error.h"

struct bdfs_mountinfo {
	unsigned major, minor; /* of the device number */
	char *type, *source;   /* owned: bdfs_mountinfo_clear */
};

/* The topmost mount at PATH, which is absolute and without symbolic links.
 * 0; -ENOENT where nothing is mounted exactly there (*info is then empty). */
int bdfs_mountinfo_find(struct bdfs_mountinfo *info, const char *path, struct bd_error *err);
void bdfs_mountinfo_clear(struct bdfs_mountinfo *info);

/* Is it a filesystem of ours (fuse.bitdelta)? */
bool bdfs_mountinfo_is_ours(const struct bdfs_mountinfo *info);

#endif
