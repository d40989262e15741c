/* SPDX-License-Identifier: Apache-2.0 */
/* mountpoint.c: the directory to mount on, see mountpoint.h. */
#include "mountpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mount.h"
#include "mountinfo.h"

#define PATIENCE 5000 /* ms */
#define LAYERS 16 /* dead mounts above each other; more are no accident */

static bool is_dead(int code)
{
	return code == -ENOTCONN || code == -ECONNABORTED;
}

static int resolve(const char *path, char **resolved)
{
	struct statvfs fs;
	struct stat st;
	int code;

	*resolved = realpath(path, NULL);
	/* A dead filesystem may still answer stat() from the kernel's cache, but not statvfs(). */
	if (*resolved && stat(*resolved, &st) == 0 && statvfs(*resolved, &fs) == 0) {
		if (S_ISDIR(st.st_mode))
			return 0;
		errno = ENOTDIR;
	}
	code = -errno;
	free(*resolved);
	*resolved = NULL;
	return code;
}

/* Looking at a directory whose filesystem is stuck never ends, and cannot be interrupted but by SIGKILL: let
 * somebody else do it. */
static bool answers(const char *path)
{
	struct pollfd wait = { .events = POLLIN };
	pid_t child = fork();
	bool done;
	char *unused;

	if (child < 0)
		return true; /* then we find out ourselves */
	if (child == 0) {
		resolve(path, &unused);
		_exit(0);
	}
	wait.fd = (int)syscall(SYS_pidfd_open, child, 0);
	done = wait.fd < 0 || poll(&wait, 1, PATIENCE) != 0;
	if (!done)
		kill(child, SIGKILL);
	if (wait.fd >= 0)
		close(wait.fd);
	waitpid(child, NULL, 0);
	return done;
}

int bdfs_mountpoint_check(const char *path, struct bd_error *err)
{
	if (answers(path))
		return 0;
	return bd_error_set(err, -ETIMEDOUT, "%s: what is mounted there does not answer; unmount it first: "
			    "bitdelta umount --lazy %s", path, path);
}

static int check_mounted(const char *path, const char *source, struct bd_error *err)
{
	struct bdfs_mountinfo info;
	int r = 0;

	if (bdfs_mountinfo_find(&info, path, NULL) < 0)
		return 0; /* nothing is mounted, or there is no table to tell */
	if (bdfs_mountinfo_is_ours(&info) && !strcmp(info.source, source))
		r = bd_error_set(err, -EBUSY, "%s is already mounted on %s; new deltas appear there by "
				 "themselves, for other changes unmount it first", source, path);
	bdfs_mountinfo_clear(&info);
	return r;
}

int bdfs_mountpoint_find(const char *path, const char *source, bool keep, struct bdfs_sink sink,
			 char **resolved, struct bd_error *err)
{
	struct bd_error why = { 0 };
	char text[1200];
	int r;

	r = bdfs_mountpoint_check(path, err);
	if (r < 0)
		return r;
	for (int layer = 0; ; layer++) {
		r = resolve(path, resolved);
		if (!is_dead(r) || keep || layer == LAYERS)
			break;
		if (bdfs_umount(path, true, &why) < 0)
			return bd_error_set(err, r, "%s: the filesystem mounted there has lost its "
					    "daemon and cannot be replaced: %s", path, why.text);
		snprintf(text, sizeof(text), "%s: replacing a mount that had lost its daemon", path);
		if (sink.message)
			sink.message(sink.context, LOG_NOTICE, text);
	}
	switch (r) {
	case 0:
		r = check_mounted(*resolved, source, err);
		if (r < 0) {
			free(*resolved);
			*resolved = NULL;
		}
		return r;
	case -ENOTCONN:
	case -ECONNABORTED:
		return bd_error_set(err, r, "%s: the filesystem mounted there has lost its daemon; "
				    "unmount it first: bitdelta umount %s", path, path);
	case -ENOENT:
		return bd_error_set(err, r, "the mount point %s does not exist; make it first: mkdir -p %s",
				    path, path);
	case -ENOTDIR:
		return bd_error_set(err, r, "the mount point %s is not a directory", path);
	default:
		return bd_error_set(err, r, "the mount point %s: %s", path, strerror(-r));
	}
}

void bdfs_mountpoint_note(struct bdfs_mounted *m)
{
	struct bdfs_mountinfo info;

	if (bdfs_mountinfo_find(&info, m->path, NULL) < 0)
		return;
	m->major = info.major;
	m->minor = info.minor;
	bdfs_mountinfo_clear(&info);
}

static bool is_on_top(const struct bdfs_mounted *m)
{
	struct bdfs_mountinfo info;
	bool same;

	if (!m->major && !m->minor)
		return true; /* no table of mounts: then nobody can tell */
	if (bdfs_mountinfo_find(&info, m->path, NULL) < 0)
		return false;
	same = info.major == m->major && info.minor == m->minor;
	bdfs_mountinfo_clear(&info);
	return same;
}

int bdfs_mountpoint_detach(const struct bdfs_mounted *m, struct bd_error *err)
{
	if (!is_on_top(m) || umount2(m->path, UMOUNT_NOFOLLOW | MNT_DETACH) == 0)
		return 0;
	return bdfs_umount(m->path, true, err); /* a user's way */
}

void bdfs_mountpoint_abort(const struct bdfs_mounted *m)
{
	char path[64];
	int fd;

	if (is_on_top(m) && umount2(m->path, UMOUNT_NOFOLLOW | MNT_FORCE) == 0)
		return;
	/* MNT_FORCE aborts the connection even where it cannot unmount, but only for root. */
	snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%llu/abort",
		 (unsigned long long)makedev(m->major, m->minor));
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "1", 1) < 0)
		errno = 0; /* it has ended meanwhile */
	close(fd);
}

bool bdfs_mountpoint_readahead(const struct bdfs_mounted *m, unsigned kib)
{
	char path[64], text[16];
	bool done;
	int fd, n;

	if (!m->major && !m->minor)
		return false;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", m->major, m->minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = snprintf(text, sizeof(text), "%u\n", kib);
	done = write(fd, text, (size_t)n) == n;
	close(fd);
	return done;
}
