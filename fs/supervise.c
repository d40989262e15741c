/* SPDX-License-Identifier: Apache-2.0 */
/* supervise.c: the process that keeps a mount, see supervise.h. */
#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE 5000 /* ms from a signal to the end of the connection */

static const int held[] = { SIGTERM, SIGINT, SIGHUP, SIGCHLD };

static void held_set(sigset_t *set)
{
	sigemptyset(set);
	for (size_t i = 0; i < sizeof(held) / sizeof(*held); i++)
		sigaddset(set, held[i]);
}

void bdfs_signals_hold(struct bdfs_signals *old)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t set;

	held_set(&set);
	sigprocmask(SIG_BLOCK, &set, &old->mask);
	sigaction(SIGCHLD, &action, &old->child); /* where it is ignored, nobody can be waited for */
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, &old->pipe);
}

bool bdfs_signal_is_ignored(int number)
{
	struct sigaction action;

	return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

void bdfs_signals_restore(const struct bdfs_signals *old)
{
	sigaction(SIGCHLD, &old->child, NULL);
	sigaction(SIGPIPE, &old->pipe, NULL);
	sigprocmask(SIG_SETMASK, &old->mask, NULL);
}

bool bdfs_report_send(int fd, const struct bd_error *report)
{
	return send(fd, report, sizeof(*report), MSG_NOSIGNAL) == (ssize_t)sizeof(*report);
}

bool bdfs_report_receive(int fd, struct bd_error *report)
{
	ssize_t n;

	do
		n = read(fd, report, sizeof(*report)); /* of a SOCK_SEQPACKET: all or nothing */
	while (n < 0 && errno == EINTR);
	report->text[sizeof(report->text) - 1] = '\0';
	return n == (ssize_t)sizeof(*report);
}

bool bdfs_die_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return getppid() == parent;
}

void bdfs_say_goodbye(int report_fd, const struct bd_error *report)
{
	struct pollfd hangup = { .fd = report_fd };

	if (bdfs_report_send(report_fd, report))
		while (poll(&hangup, 1, PATIENCE) < 0 && errno == EINTR)
			;
}

/* A terminal that hung up cannot be opened any more. */
static bool terminal_is_gone(void)
{
	int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return true;
	close(fd);
	return false;
}

/* What there is to do about a signal. True: the daemon was told to end. */
static bool pass_on(const struct bdfs_supervisor *s, int number)
{
	if (number == SIGCHLD || bdfs_signal_is_ignored(number))
		return false;
	if (number == SIGHUP && (!s->terminal || !terminal_is_gone())) {
		kill(s->daemon, SIGHUP);
		return false;
	}
	kill(s->daemon, SIGTERM);
	return true;
}

struct outcome {
	int status; /* of waitpid */
	bool asked; /* the daemon was told to end */
	bool told;  /* it said why it ends: */
	struct bd_error report;
};

/* Code 0: it ends because it was unmounted, and what is there by now is somebody else's. */
static void take_report(const struct bdfs_supervisor *s, struct outcome *o, int *fd,
			struct bd_error *why)
{
	o->told = bdfs_report_receive(*fd, &o->report);
	if (o->told && o->report.code != 0)
		bdfs_mountpoint_detach(s->mounted, why);
	close(*fd);
	*fd = -1;
}

/* Is there a connection that ought to end? Not any more where the daemon found it gone: its number may be
 * that of a newer mount by now. */
static bool is_ending(const struct outcome *o)
{
	return o->told ? o->report.code != 0 : o->asked;
}

static void wait_for_daemon(const struct bdfs_supervisor *s, struct outcome *o, struct bd_error *why)
{
	struct pollfd fds[2] = { { .events = POLLIN }, { .fd = s->report_fd, .events = POLLIN } };
	struct signalfd_siginfo info;
	bool aborted = false;
	sigset_t set;

	held_set(&set);
	fds[0].fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	while (waitpid(s->daemon, &o->status, fds[0].fd < 0 ? 0 : WNOHANG) == 0) {
		if (poll(fds, 2, is_ending(o) && !aborted ? PATIENCE : -1) == 0) {
			/* Its last thread may wait for the kernel, and the kernel for an answer of another. */
			bdfs_log_write(s->log, LOG_WARNING, "the daemon does not end: closing its "
				       "connection");
			bdfs_mountpoint_abort(s->mounted);
			bdfs_mountpoint_detach(s->mounted, NULL);
			aborted = true;
		}
		while (read(fds[0].fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
			if (pass_on(s, (int)info.ssi_signo))
				o->asked = true;
		if (fds[1].fd >= 0 && fds[1].revents)
			take_report(s, o, &fds[1].fd, why);
	}
	if (fds[1].fd >= 0)
		take_report(s, o, &fds[1].fd, why);
	if (fds[0].fd >= 0)
		close(fds[0].fd);
}

int bdfs_supervise(const struct bdfs_supervisor *s, struct bd_error *err)
{
	struct outcome o = { 0 };
	struct bd_error why = { 0 };
	bool killed;
	int r = 0;

	wait_for_daemon(s, &o, &why);
	killed = WIFSIGNALED(o.status) && !o.asked && !o.told;
	if (killed)
		r = bd_error_set(err, -EIO, "the daemon was killed by signal %d (%s)%s%s%s",
				 WTERMSIG(o.status), strsignal(WTERMSIG(o.status)),
				 s->auto_unmount ? "" : "; ",
				 s->auto_unmount ? "" : s->mounted->path, s->auto_unmount ? "" :
				 " answers with errors until it is mounted again or unmounted");
	else if (o.report.code < 0)
		r = bd_error_set(err, o.report.code, "%s", o.report.text);
	if (killed ? s->auto_unmount : !o.told)
		bdfs_mountpoint_detach(s->mounted, &why);
	return r == 0 && why.code < 0 ? bd_error_set(err, why.code, "%s", why.text) : r;
}
