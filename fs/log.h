/* log.h: where the daemon's messages go: a file, syslog, or a function of the program.
 *
 * All functions may be called from several threads. */
#ifndef BDFS_LOG_H
#define BDFS_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <syslog.h>
#include <time.h>

#include "error.h"

/* Takes one line without a newline; PRIORITY is LOG_ERR, LOG_WARNING, ... of syslog.h. */
struct bdfs_sink {
	void (*message)(void *context, int priority, const char *text); /* NULL: dropped */
	void *context;
};

struct bdfs_log {
	struct bdfs_sink sink;
	int fd;              /* of a log file, else -1 */
	bool to_syslog;
	pthread_mutex_t lock; /* guards the rest */
	time_t since;        /* start of the period, CLOCK_MONOTONIC */
	unsigned lines;      /* in this period, also those dropped */
};

/* PATH is a file to append to, or NULL: then to SINK until bdfs_log_detach, then to syslog. */
int bdfs_log_open(struct bdfs_log **log, const char *path, struct bdfs_sink sink,
		  struct bd_error *err);
void bdfs_log_close(struct bdfs_log *log); /* NULL allowed */

/* From now on without the program's sink: the process has become a daemon. */
void bdfs_log_detach(struct bdfs_log *log);

void bdfs_log_write(struct bdfs_log *log, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* For what a reader can cause at will: at most 20 lines in 10 seconds, then how many were left out. */
void bdfs_log_limited(struct bdfs_log *log, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
