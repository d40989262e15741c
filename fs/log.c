/* SPDX-License-Identifier: Apache-2.0 */
/* log.c: where the daemon's messages go, see log.h. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "utf8.h"

#define PERIOD 10 /* seconds */
#define LINES 20

static int open_file(const char *path, struct bd_error *err)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);

	return fd >= 0 ? fd : bd_error_set(err, -errno, "cannot write the log %s: %s", path,
					   strerror(errno));
}

static int open_journal(struct bd_error *err)
{
	const struct sockaddr_un journal = { AF_UNIX, "/run/systemd/journal/socket" };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), code;

	if (fd >= 0 && connect(fd, (const struct sockaddr *)&journal, sizeof(journal)) == 0)
		return fd;
	code = -errno;
	if (fd >= 0)
		close(fd);
	return bd_error_set(err, code, "there is no journal to log to (%s: %s)", journal.sun_path,
			    strerror(-code));
}

static int open_stderr(struct bd_error *err)
{
	int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);

	return fd >= 0 ? fd : bd_error_set(err, -errno, "cannot log to standard error: %s",
					   strerror(errno));
}

int bdfs_log_open(struct bdfs_log **log, const char *where, struct bdfs_sink sink,
		  struct bd_error *err)
{
	struct bdfs_log *l = calloc(1, sizeof(*l));

	*log = NULL;
	if (!l)
		return bd_error_set(err, -ENOMEM, "out of memory for the log");
	l->sink = sink;
	l->attached = true;
	l->fd = -1;
	if (!where) {
		l->kind = BDFS_LOG_SINK;
	} else if (!strcmp(where, "syslog")) {
		l->kind = BDFS_LOG_SYSLOG;
	} else {
		l->kind = !strcmp(where, "journal") ? BDFS_LOG_JOURNAL :
			  !strcmp(where, "stderr") ? BDFS_LOG_STDERR : BDFS_LOG_FILE;
		l->fd = l->kind == BDFS_LOG_JOURNAL ? open_journal(err) :
			l->kind == BDFS_LOG_STDERR ? open_stderr(err) : open_file(where, err);
		if (l->fd < 0) {
			int code = l->fd;

			free(l);
			return code;
		}
	}
	pthread_mutex_init(&l->lock, NULL);
	*log = l;
	return 0;
}

void bdfs_log_close(struct bdfs_log *log)
{
	if (!log)
		return;
	if (log->fd >= 0)
		close(log->fd);
	pthread_mutex_destroy(&log->lock);
	free(log);
}

void bdfs_log_detach(struct bdfs_log *log, bool background)
{
	if (background && log->kind == BDFS_LOG_SINK)
		log->kind = BDFS_LOG_SYSLOG;
	if (log->kind == BDFS_LOG_SYSLOG)
		openlog("bitdelta", LOG_PID | LOG_NDELAY, LOG_DAEMON);
	log->attached = false;
}

static void emit(struct bdfs_log *log, int priority, char *text)
{
	enum bdfs_log_kind kind = log->kind;
	char line[1400], stamp[32] = "";
	struct tm tm;
	time_t now;
	int n;

	bd_utf8_make_plain(text); /* so that each message is one line, too */
	if (kind == BDFS_LOG_SINK ||
	    (log->attached && (kind == BDFS_LOG_SYSLOG || kind == BDFS_LOG_JOURNAL))) {
		if (log->sink.message)
			log->sink.message(log->sink.context, priority, text);
		return;
	}
	switch (kind) {
	case BDFS_LOG_SYSLOG:
		syslog(priority, "%s", text);
		return;
	case BDFS_LOG_JOURNAL:
		n = snprintf(line, sizeof(line), "PRIORITY=%d\nSYSLOG_FACILITY=%d\nSYSLOG_IDENTIFIER="
			     "bitdelta\nMESSAGE=%s\n", priority, LOG_DAEMON >> 3, text);
		break;
	case BDFS_LOG_STDERR:
		n = snprintf(line, sizeof(line), "bitdelta: %s\n", text);
		break;
	default:
		now = time(NULL);
		if (gmtime_r(&now, &tm))
			strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", &tm);
		n = snprintf(line, sizeof(line), "%s bitdelta[%d]: %s\n", stamp, (int)getpid(), text);
	}
	if (n >= (int)sizeof(line)) {
		n = sizeof(line) - 1;
		line[n - 1] = '\n';
	}
	if (write(log->fd, line, (size_t)n) < 0)
		return; /* a full disk, a journal that ended: there is nobody left to tell */
}

void bdfs_log_write(struct bdfs_log *log, int priority, const char *format, ...)
{
	char text[1280];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	emit(log, priority, text);
}

void bdfs_log_limited(struct bdfs_log *log, int priority, const char *format, ...)
{
	char text[1280];
	struct timespec now;
	unsigned dropped = 0;
	va_list args;
	bool pass;

	clock_gettime(CLOCK_MONOTONIC, &now);
	pthread_mutex_lock(&log->lock);
	if (!log->lines || now.tv_sec - log->since >= PERIOD) {
		dropped = log->lines > LINES ? log->lines - LINES : 0;
		log->since = now.tv_sec;
		log->lines = 0;
	}
	pass = log->lines++ < LINES;
	pthread_mutex_unlock(&log->lock);
	if (dropped)
		bdfs_log_write(log, priority, "%u further messages were left out", dropped);
	if (!pass)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	emit(log, priority, text);
}
