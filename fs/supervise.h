/* SPDX-License-Identifier: Apache-2.0 */
/* supervise.h: the process that keeps a mount, while its child, the daemon, serves it.
 *
 * The daemon may have given up the right to unmount, or be killed. Its parent opens nothing and reads
 * nothing that others wrote; it waits, passes signals on, and unmounts at the end. */
#ifndef BDFS_SUPERVISE_H
#define BDFS_SUPERVISE_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "mountpoint.h"

/* How signals were before; bdfs_signals_hold blocks those that the supervisor waits for, and the
 * daemon is forked with them blocked, so that none is lost. */
struct bdfs_signals {
	sigset_t mask;
	struct sigaction child, pipe;
};
void bdfs_signals_hold(struct bdfs_signals *old);
void bdfs_signals_restore(const struct bdfs_signals *old);
/* By whoever started us (nohup, a shell in the background): then it stays so. */
bool bdfs_signal_is_ignored(int number);

/* What a process tells its parent through a socket: code 0 when all is well, a negative errno with what
 * is wrong, or the number of the signal that ends it. False: nobody listens. */
bool bdfs_report_send(int fd, const struct bd_error *report);
bool bdfs_report_receive(int fd, struct bd_error *report);

struct bdfs_supervisor {
	pid_t daemon;
	int report_fd; /* on which the daemon tells that it is about to end; the supervisor's */
	const struct bdfs_mounted *mounted;
	struct bdfs_log *log;
	bool terminal; /* end when the terminal is gone */
	bool auto_unmount;
};

/* Wait for the end of the daemon, with signals held. SIGTERM and SIGINT end it, SIGHUP is passed on. Then unmount, unless that
 * is why it ended. A mount whose daemon was killed stays, and gives errors instead of an empty directory,
 * unless auto_unmount.
 * 0 after an orderly end, otherwise what the daemon reported; -EIO where it was killed. */
int bdfs_supervise(const struct bdfs_supervisor *supervisor, struct bd_error *err);

/* For the daemon: be killed when the parent is, which was PARENT. False: it is gone already. */
bool bdfs_die_with(pid_t parent);
/* For the daemon, when it has served: say why it ends, and return when the mount is gone, so that whoever
 * sees no daemon sees no mount either. */
void bdfs_say_goodbye(int report_fd, const struct bd_error *report);

#endif
