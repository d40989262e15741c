/* SPDX-License-Identifier: Apache-2.0 */
/* mountpoint.h: the directory to mount on, before and after. */
#ifndef BDFS_MOUNTPOINT_H
#define BDFS_MOUNTPOINT_H

#include <stdbool.h>

#include "error.h"
#include "log.h"

/* A mount of ours, told from what may be mounted at the same place later. */
struct bdfs_mounted {
	char *path;            /* absolute, without links; owned by whoever has the struct */
	unsigned major, minor; /* device number; 0, 0 where it is not known */
};

/* -ETIMEDOUT where looking at PATH has not ended after some seconds: what is mounted there is stuck, and
 * so would be whoever looks. Else 0, also where there is no PATH or its daemon is dead. */
int bdfs_mountpoint_check(const char *path, struct bd_error *err);

/* Find the directory that PATH means: to *RESOLVED, absolute, to be freed. A mount of ours that is there
 * and has lost its daemon is detached, and SINK told; with KEEP it is an error.
 * Errors: -ENOENT, -ENOTDIR; -ENOTCONN where a dead mount is somebody else's or cannot be detached;
 * -EBUSY where SOURCE is mounted there already by us and answers; that of bdfs_mountpoint_check; others
 * of stat(2). */
int bdfs_mountpoint_find(const char *path, const char *source, bool keep, struct bdfs_sink sink,
			 char **resolved, struct bd_error *err);

/* Look for the mount that was just made at m->path, and note its device number. */
void bdfs_mountpoint_note(struct bdfs_mounted *m);

/* Detach the mount. 0 also where it is gone, or where something else covers it. */
int bdfs_mountpoint_detach(const struct bdfs_mounted *m, struct bd_error *err);

/* End the connection to the daemon, which may be stuck: all who wait for it get an error. As far as we may. */
void bdfs_mountpoint_abort(const struct bdfs_mounted *m);

/* Set what the kernel reads ahead. It stays if the answer to INIT, which comes later, asks for
 * as much. False where we may not: only root may, and there is not always a sysfs. */
bool bdfs_mountpoint_readahead(const struct bdfs_mounted *m, unsigned kib);

#endif
