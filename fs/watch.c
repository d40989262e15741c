/* SPDX-License-Identifier: Apache-2.0 */
/* watch.c: keeping a mount in step with its directories of deltas, see watch.h. */
#include "watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "ops.h"

#define EVENTS (IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ATTRIB | \
		IN_CREATE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
/* A copy of many files raises many events: look once when there was none for so long, or at the latest
 * after that many waits. */
#define SETTLE 20  /* ms */
#define WAITS 10
/* How often to compare the directories' times, with and without inotify. */
#define SELDOM 5000 /* ms */
#define OFTEN 500   /* ms */

struct bdfs_watch {
	struct bdfs_models *models;
	struct bdfs_tree *tree;
	struct fuse_session *session;
	struct bdfs_log *log;
	pthread_t thread, teller;
	_Atomic int inotify; /* -1: none */
	int wake;    /* eventfd: SIGHUP, refresh, stop */
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t done;
	uint64_t asked, answered; /* refreshes */
	struct bdfs_names names;  /* that the kernel is to be told of */
	bool quit;
};

/* A signal handler gets no context. */
static atomic_bool hangup;
static _Atomic int hangup_fd = -1;

static void on_hangup(int number)
{
	int code = errno, fd = atomic_load(&hangup_fd);
	const uint64_t one = 1;

	(void)number;
	atomic_store(&hangup, true);
	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		errno = code; /* full: the thread is awake already */
	errno = code;
}

int bdfs_watch_catch_hangup(struct bd_error *err)
{
	struct sigaction action = { .sa_handler = on_hangup, .sa_flags = SA_RESTART }, old;

	if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler == SIG_IGN)
		return 0; /* nohup */
	if (sigaction(SIGHUP, &action, NULL) < 0)
		return bd_error_set(err, -errno, "cannot handle SIGHUP: %s", strerror(errno));
	return 0;
}

/* All directories, by descriptor: their names may be covered by the mount. Adding again what is watched
 * changes nothing. */
static bool add_watches(struct bdfs_watch *w)
{
	const char *name;
	char path[64];
	int fd;

	if (w->inotify < 0)
		return false;
	for (size_t i = 0; (name = bdfs_models_directory(w->models, i, &fd)); i++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (inotify_add_watch(w->inotify, path, EVENTS) < 0) {
			bdfs_log_write(w->log, LOG_NOTICE, "%s cannot be watched (%s); looking at it every "
				       "%d ms instead", name, strerror(errno), OFTEN);
			close(w->inotify);
			w->inotify = -1;
			return false;
		}
	}
	return true;
}

/* Wait for something to do. True where a scan is due; *retry where SIGHUP came. */
static bool wait_for_events(struct bdfs_watch *w, bool *retry)
{
	int inotify = w->inotify, timeout = inotify < 0 ? OFTEN : SELDOM, n;
	struct pollfd fds[] = { { .fd = w->wake, .events = POLLIN },
				{ .fd = inotify, .events = POLLIN } };
	bool due = false;
	char events[4096];

	for (int waits = 0; waits < WAITS; waits++) {
		n = poll(fds, 2, timeout);
		if (n < 0)
			return false; /* EINTR */
		if (n == 0)
			break;
		if (fds[1].revents)
			while (read(inotify, events, sizeof(events)) > 0)
				due = true;
		if (fds[0].revents) { /* somebody is waiting */
			uint64_t count;

			if (read(w->wake, &count, sizeof(count)) > 0)
				due = true;
			break;
		}
		timeout = SETTLE;
	}
	*retry = atomic_exchange(&hangup, false);
	return due || *retry || bdfs_models_is_stale(w->models) ||
	       atomic_load(&w->models->unsettled);
}

/* Names are looked up anew each time, so nobody depends on this; but what the kernel has forgotten can be
 * freed, and with it the disk space of a deleted delta. A thread of its own, because the kernel
 * answers only after look-ups that may be waiting for the other one. */
static void *tell_kernel(void *context)
{
	struct bdfs_watch *w = context;
	struct bdfs_names names;
	bool quit;

	do {
		pthread_mutex_lock(&w->lock);
		while (!w->names.count && !w->quit)
			pthread_cond_wait(&w->done, &w->lock);
		names = w->names;
		w->names = (struct bdfs_names){ 0 };
		quit = w->quit;
		pthread_mutex_unlock(&w->lock);
		/* -ENOENT: the kernel knew nothing of it. Other errors mean that the mount is ending. */
		for (size_t i = 0; i < names.count && !quit; i++)
			fuse_lowlevel_notify_inval_entry(w->session, names.names[i].directory,
							 names.names[i].name,
							 strlen(names.names[i].name));
		bdfs_names_free(&names);
	} while (!quit);
	return NULL;
}

static void rescan(struct bdfs_watch *w, bool retry, struct bdfs_names *names)
{
	struct bd_error err = { 0 };
	bool changed;

	if (retry)
		bdfs_log_write(w->log, LOG_INFO, "SIGHUP: looking at all deltas again");
	if (bdfs_models_scan(w->models, retry, &changed, &err) < 0 ||
	    (changed && bdfs_tree_update(w->tree, names, &err) < 0))
		bdfs_log_limited(w->log, LOG_ERR, "the list of models stays as it is: %s", err.text);
	else
		bdfs_models_shown(w->models);
	add_watches(w); /* a directory may have been made anew */
	for (size_t i = 0; i < names->count; i++)
		bdfs_log_limited(w->log, LOG_INFO, "%s: changed", names->names[i].name);
}

static void *run(void *context)
{
	struct bdfs_watch *w = context;
	bool retry, quit;

	for (;;) {
		struct bdfs_names names = { 0 };
		uint64_t asked;
		bool due = wait_for_events(w, &retry), idle;

		pthread_mutex_lock(&w->lock);
		asked = w->asked;
		quit = w->quit;
		idle = !w->names.count;
		pthread_mutex_unlock(&w->lock);
		if (quit)
			break;
		if (due)
			rescan(w, retry, &names);
		if (idle) /* else the kernel is slow and may keep some for longer */
			bdfs_tree_lingering(w->tree, &names);

		pthread_mutex_lock(&w->lock);
		w->answered = asked;
		if (idle) {
			w->names = names;
			names = (struct bdfs_names){ 0 };
		}
		pthread_cond_broadcast(&w->done);
		pthread_mutex_unlock(&w->lock);
		bdfs_names_free(&names);
	}
	return NULL;
}

static void wake(struct bdfs_watch *w)
{
	const uint64_t one = 1;

	while (write(w->wake, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void ask_to_quit(struct bdfs_watch *w)
{
	pthread_mutex_lock(&w->lock);
	w->quit = true;
	pthread_cond_broadcast(&w->done);
	pthread_mutex_unlock(&w->lock);
	wake(w);
}

void bdfs_watch_refresh(struct bdfs_watch *w)
{
	struct timespec end;
	uint64_t mine;

	if (!w)
		return;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 2;
	pthread_mutex_lock(&w->lock);
	mine = ++w->asked;
	wake(w);
	while (w->answered < mine && !w->quit &&
	       pthread_cond_timedwait(&w->done, &w->lock, &end) == 0)
		;
	pthread_mutex_unlock(&w->lock);
}

const char *bdfs_watch_method(const struct bdfs_watch *w)
{
	return !w ? "off" : w->inotify >= 0 ? "inotify" : "polling";
}

static void watch_free(struct bdfs_watch *w)
{
	if (w->inotify >= 0)
		close(w->inotify);
	if (w->wake >= 0)
		close(w->wake);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->done);
	free(w);
}

int bdfs_watch_start(struct bdfs_watch **out, struct bdfs_models *models, struct bdfs_tree *tree,
		     struct fuse_session *session, struct bdfs_log *log, struct bd_error *err)
{
	struct bdfs_watch *w = calloc(1, sizeof(*w));
	pthread_condattr_t monotonic;
	sigset_t all, old;
	int r;

	if (!w)
		return bd_error_set(err, -ENOMEM, "out of memory for watching directories");
	w->models = models;
	w->tree = tree;
	w->session = session;
	w->log = log;
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&w->done, &monotonic);
	pthread_condattr_destroy(&monotonic);
	w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (w->inotify < 0)
		bdfs_log_write(log, LOG_NOTICE, "no inotify (%s); looking at the directories every %d ms "
			       "instead", strerror(errno), OFTEN);
	add_watches(w);
	r = w->wake < 0 ? errno : 0;
	if (r == 0) {
		atomic_store(&hangup_fd, w->wake);
		/* Signals are for the main thread, which the end of the loop waits for. */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = pthread_create(&w->thread, NULL, run, w);
		if (r == 0) {
			r = pthread_create(&w->teller, NULL, tell_kernel, w);
			if (r) {
				ask_to_quit(w);
				pthread_join(w->thread, NULL);
			}
		}
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (r) {
		atomic_store(&hangup_fd, -1);
		watch_free(w);
		return bd_error_set(err, -r, "cannot watch directories: %s", strerror(r));
	}
	wake(w); /* what happened since the deltas were opened, and an early SIGHUP */
	*out = w;
	return 0;
}

void bdfs_watch_stop(struct bdfs_watch *w)
{
	if (!w)
		return;
	atomic_store(&hangup_fd, -1);
	ask_to_quit(w);
	pthread_join(w->thread, NULL);
	pthread_join(w->teller, NULL);
	bdfs_names_free(&w->names);
	watch_free(w);
}
