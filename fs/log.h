/* SPDX-License-Identifier: Apache-2.0 */
/* log.h: where the daemon's messages go: a file, syslog, the journal, or a function of the program.
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

enum bdfs_log_kind { BDFS_LOG_SINK, BDFS_LOG_FILE, BDFS_LOG_STDERR, BDFS_LOG_JOURNAL, BDFS_LOG_SYSLOG };

struct bdfs_log {
	struct bdfs_sink sink;
	enum bdfs_log_kind kind;
	int fd;              /* of a file, standard error or the journal's socket, else -1 */
	bool attached;       /* the program is still listening, and gets what is for syslog or the journal */
	pthread_mutex_t lock; /* guards the rest */
	time_t since;        /* start of the period, CLOCK_MONOTONIC */
	unsigned lines;      /* in this period, also those dropped */
};

/* WHERE is "syslog", "journal", "stderr" or a file to append to. NULL: to SINK, from bdfs_log_detach on to
 * syslog. What is for syslog or the journal goes to SINK before bdfs_log_detach, because it concerns the
 * user who mounts. Connections are made here and last, whatever the process gives up later.
 * Errors: those of open(2); -ENOENT and others where the journal is not there. */
int bdfs_log_open(struct bdfs_log **log, const char *where, struct bdfs_sink sink,
		  struct bd_error *err);
void bdfs_log_close(struct bdfs_log *log); /* NULL allowed */

/* The mount is there. BACKGROUND: from now on without the program's sink, the process becomes a daemon. */
void bdfs_log_detach(struct bdfs_log *log, bool background);

void bdfs_log_write(struct bdfs_log *log, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* For what a reader can cause at will: at most 20 lines in 10 seconds, then how many were left out. */
void bdfs_log_limited(struct bdfs_log *log, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
