/* SPDX-License-Identifier: Apache-2.0 */
/* permissions.c: mode, owner, group and access control list of what is replaced, see permissions.h. */
#include "permissions.h"

#include <errno.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <sys/xattr.h>
#include <unistd.h>

mode_t bd_permissions_mode(mode_t mode, bool owner, bool group, bool list)
{
	mode_t both;

	/* The old owner is now one of the group or of the others. */
	if (!owner)
		mode &= 07700 | (mode >> 3 & 0070) | (mode >> 6 & 0007);
	/* Members of the old group are others now, and some of the others are the group. */
	if (!group) {
		both = mode >> 3 & mode & 0007;
		mode = (mode & 0700) | both << 3 | both;
	}
	return list ? mode : mode & 0700;
}

/* A list speaks of "the owner" and "the group" without naming them, so it is given only with them: ALLOWED.
 * A new file may have one that its directory says, and is to have none where the old one has none. */
static bool take_list(int fd, const char *path, const char *name, bool allowed)
{
	char *list = malloc(XATTR_SIZE_MAX);
	ssize_t size = list ? getxattr(path, name, list, XATTR_SIZE_MAX) : -1;
	bool none = list && size < 0 && (errno == ENODATA || errno == EOPNOTSUPP), taken = false;

	if (size >= 0)
		taken = allowed && fsetxattr(fd, name, list, (size_t)size, 0) == 0;
	else if (none)
		taken = fremovexattr(fd, name) == 0 || errno == ENODATA || errno == EOPNOTSUPP;
	free(list);
	return taken;
}

void bd_permissions_take(int fd, const char *path, const struct stat *old)
{
	mode_t all = S_ISDIR(old->st_mode) ? 07777 : 0777;
	bool owner, group, list;
	struct stat now;

	if (fstat(fd, &now) < 0 || ((now.st_mode ^ old->st_mode) & S_IFMT))
		return;
	/* The group first: who has given the file away may not change it any more. */
	group = now.st_gid == old->st_gid || fchown(fd, (uid_t)-1, old->st_gid) == 0;
	owner = now.st_uid == old->st_uid || fchown(fd, old->st_uid, (gid_t)-1) == 0;
	list = take_list(fd, path, "system.posix_acl_access", owner && group);
	if (S_ISDIR(old->st_mode))
		take_list(fd, path, "system.posix_acl_default", owner && group);
	/* Where this fails, the file stays closed. */
	fchmod(fd, bd_permissions_mode(old->st_mode & all, owner, group, list));
}
