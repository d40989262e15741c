/* SPDX-License-Identifier: Apache-2.0 */
/* mount.h: mount, serve and unmount. The whole daemon behind two functions. */
#ifndef BDFS_MOUNT_H
#define BDFS_MOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"
#include "log.h"
#include "models.h"

/* What to mount, where and how; options.h fills it from a command line. Relative paths count from
 * the working directory of the caller. */
struct bdfs_options {
	char *source;      /* as the user wrote it: what `mount` and `df` show */
	char **bases;      /* base checkpoints, as bd_base_open takes them */
	size_t base_count;
	char *mountpoint;
	char **deltas;     /* files and directories */
	size_t delta_count;
	enum bdfs_layout layout;
	bool show_base;    /* the bases are directories too */
	bool stored_blocks; /* st_blocks says what is stored, and not what is shown */
	uid_t uid;         /* owner of all files */
	gid_t gid;
	mode_t file_mask, directory_mask; /* taken off 0444 and 0755 */
	unsigned threads;  /* most threads that serve requests; 0: some more than processors */
	unsigned readahead; /* KiB, set where root may; 0: as the kernel has it */
	bool foreground;   /* return when the mount has ended */
	bool allow_other;  /* other users too, as the permissions say */
	bool auto_unmount; /* unmount, and do not leave a dead mount, when the daemon is killed */
	bool drop_privileges; /* serve without any capability, and as the user SETUID if there is one */
	char *setuid;      /* name or number; NULL: stay who we are */
	bool sandbox;      /* serve in a sandbox (sandbox.h), as far as the system has one */
	bool debug;        /* libfuse prints every request on stderr; needs foreground */
	bool fake;         /* open and check everything, but do not mount */
	bool remount;      /* look for new deltas in a mount that is there; what is given must be as it is */
	char *log;         /* where to (log.h); NULL: syslog, in the foreground the sink */
	char *kernel;      /* further options for the kernel (context=...), escaped; NULL: none */
	char *namespace;   /* mount namespace (a file of /proc/PID/ns) to mount in; NULL: the caller's */
};

/* Mount. The bases and all deltas are opened and checked first; what can go wrong goes wrong here and
 * not in a daemon that nobody hears. Then two processes are started: the daemon that serves, in a
 * sandbox, and its parent, which unmounts when it ends (supervise.h). The call returns as soon as the
 * mount answers, or (foreground) is itself that parent and returns after the mount has ended. The
 * mount is always read-only, nosuid, nodev, noexec and checks permissions. SIGTERM and SIGINT unmount
 * and end it, as in the foreground does a terminal that hangs up; another SIGHUP makes it look for
 * deltas anew. A dead mount of ours that is there is replaced.
 *
 * SINK gets warnings: deltas of a directory that were left out. In the foreground it also gets
 * the log, in the daemon's process and from any thread.
 *
 * Must be called before the process creates threads. Raises the soft limit of open files to the
 * hard one (a base shard and a delta take one each) and, in the foreground, takes the three
 * signals while it runs.
 *
 * The daemon, once it is done, runs exit handlers and ends; the call never returns in it.
 * Errors: those of bdfs_models_open; -ENOENT, -ENOTDIR, -ENOTCONN, -EBUSY for the mount point; -EIO with
 * libfuse's words where mounting is refused; -EINVAL, -EPERM for the user to become; -ENOMEM, -EMFILE,
 * -EAGAIN for the system. */
int bdfs_mount(const struct bdfs_options *options, struct bdfs_sink sink, struct bd_error *err);

/* Open /dev/null as those of the descriptors 0, 1 and 2 that are closed: otherwise the next file
 * that is opened becomes one of them, and messages are written into it. For the beginning of a
 * program; bdfs_mount does it too. */
void bdfs_fill_standard_descriptors(void);

/* Unmount what is mounted at MOUNTPOINT if it is ours, also when its daemon is dead. LAZY detaches
 * it now and ends it when the last open file is closed.
 * Errors: -EINVAL not a mount point, or of another type; -EBUSY; -EPERM. */
int bdfs_umount(const char *mountpoint, bool lazy, struct bd_error *err);

/* Run CALL with the process's standard error going to memory, and leave what was written there in TEXT, as
 * one line. For libraries and programs that explain themselves on stderr only. */
int bdfs_mount_capture(int (*call)(void *), void *context, char *text, size_t capacity);

#endif
