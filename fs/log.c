/* log.c: where the daemon's messages go, see log.h. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PERIOD 10 /* seconds */
#define LINES 20

int bdfs_log_open(struct bdfs_log **log, const char *path, struct bdfs_sink sink,
		  struct bd_error *err)
{
	struct bdfs_log *l = calloc(1, sizeof(*l));

	*log = NULL;
	if (!l)
		return bd_error_set(err, -ENOMEM, "out of memory for the log");
	l->sink = sink;
	l->fd = -1;
	if (path) {
		l->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
		if (l->fd < 0) {
			int code = -errno;

			free(l);
			return bd_error_set(err, code, "cannot write the log %s: %s", path,
					    strerror(-code));
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

void bdfs_log_detach(struct bdfs_log *log)
{
	log->to_syslog = log->fd < 0;
	if (log->to_syslog)
		openlog("bitdelta", LOG_PID, LOG_DAEMON);
}

/* Messages name files, and files are named by strangers: keep the log one line per message. */
static void defuse(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			*text = '?';
}

static void emit(struct bdfs_log *log, int priority, char *text)
{
	char line[1400], stamp[32] = "";
	struct tm tm;
	time_t now;
	int n;

	defuse(text);
	if (log->fd >= 0) {
		now = time(NULL);
		if (gmtime_r(&now, &tm))
			strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", &tm);
		n = snprintf(line, sizeof(line), "%s bitdelta[%d]: %s\n", stamp, (int)getpid(), text);
		if (n >= (int)sizeof(line)) {
			n = sizeof(line) - 1;
			line[n - 1] = '\n';
		}
		if (write(log->fd, line, (size_t)n) < 0)
			return; /* a full disk: there is nobody left to tell */
	} else if (log->to_syslog) {
		syslog(priority, "%s", text);
	} else if (log->sink.message) {
		log->sink.message(log->sink.context, priority, text);
	}
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
