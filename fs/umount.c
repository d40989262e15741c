/* SPDX-License-Identifier: Apache-2.0 */
/* umount.c: bdfs_umount of mount.h. */
#include "mount.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mountinfo.h"
#include "obstacle.h"

extern char **environ;

/* realpath() that does not look at the last component, which may be a dead mount, unless it has to
 * (a symbolic link, or "." and the like). readlink() tells links without asking the daemon, for which
 * lstat() would wait. */
static char *resolve(const char *path)
{
	char *copy = strdup(path), *slash, *directory, *result = NULL, target;
	const char *name;
	size_t n;

	if (!copy)
		return NULL;
	for (n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
		copy[n - 1] = '\0';
	slash = strrchr(copy, '/');
	name = slash ? slash + 1 : copy;
	if (!*name || !strcmp(name, ".") || !strcmp(name, "..") ||
	    readlink(copy, &target, 1) >= 0) {
		free(copy);
		return realpath(path, NULL);
	}
	if (slash)
		*slash = '\0';
	directory = realpath(!slash ? "." : slash == copy ? "/" : copy, NULL);
	if (directory && asprintf(&result, "%s/%s", strcmp(directory, "/") ? directory : "", name) < 0)
		result = NULL;
	free(directory);
	free(copy);
	return result;
}

struct command {
	const char *path;
	bool lazy;
	int status;
};

static int run_fusermount(void *context)
{
	struct command *c = context;
	char *argv[] = { "fusermount3", c->lazy ? "-uz" : "-u", "--", (char *)c->path, NULL };
	pid_t pid;
	int r = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);

	if (r)
		return -r;
	while (waitpid(pid, &c->status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int busy(const char *path, struct bd_error *err)
{
	return bd_error_set(err, -EBUSY, "%s is in use: end the programs that use it (fuser -vm %s "
			    "lists them), or detach it: bitdelta umount --lazy %s", path, path, path);
}

static int umount_as_user(const char *path, bool lazy, struct bd_error *err)
{
	struct command c = { .path = path, .lazy = lazy };
	struct bdfs_caller caller;
	struct bdfs_finding f;
	char text[512];
	int r = bdfs_mount_capture(run_fusermount, &c, text, sizeof(text));

	if (r == 0 && c.status == 0)
		return 0;
	if (r == 0 && strstr(text, "busy"))
		return busy(path, err);
	bdfs_caller_find(&caller);
	bdfs_check_fusermount(&caller, &f);
	if (f.level == BDFS_PROBLEM || (r < 0 && f.level == BDFS_NOTE))
		return bd_error_set(err, r < 0 ? r : -EPERM, "cannot unmount %s: fusermount3: %s; what helps: "
				    "%s", path, f.state, f.remedy);
	if (r < 0)
		return bd_error_set(err, r, "cannot run fusermount3, which unmounts for users: %s",
				    strerror(-r));
	return bd_error_set(err, -EPERM, "cannot unmount %s: %s", path,
			    *text ? text : "fusermount3 failed");
}

int bdfs_umount(const char *mountpoint, bool lazy, struct bd_error *err)
{
	struct bdfs_mountinfo info = { 0 };
	char *path = resolve(mountpoint);
	int r;

	if (!path)
		return bd_error_set(err, -errno, "%s: %s", mountpoint, strerror(errno));
	r = bdfs_mountinfo_find(&info, path, err);
	if (r < 0) {
		if (r == -ENOENT)
			r = bd_error_set(err, -EINVAL, "nothing is mounted on %s", path);
		goto out;
	}
	if (!bdfs_mountinfo_is_ours(&info)) {
		r = bd_error_set(err, -EINVAL, "what is mounted on %s is of type %s, not fuse.bitdelta",
				 path, info.type);
		goto out;
	}
	if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		r = 0;
	else if (errno == EPERM)
		r = umount_as_user(path, lazy, err);
	else if (errno == EBUSY)
		r = busy(path, err);
	else
		r = bd_error_set(err, -errno, "cannot unmount %s: %s", path, strerror(errno));
out:
	bdfs_mountinfo_clear(&info);
	free(path);
	return r;
}
