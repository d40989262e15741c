/* SPDX-License-Identifier: Apache-2.0 */
/* watch.h: keeping a mount in step with its directories of deltas.
 *
 * A thread waits for inotify and SIGHUP, looks at the directories again, changes the tree and tells the
 * kernel which names mean something else now. Where inotify is not to be had or does not see what
 * happens (network filesystems), it looks at the directories' times now and then. */
#ifndef BDFS_WATCH_H
#define BDFS_WATCH_H

#include "tree.h"

struct bdfs_watch;
struct fuse_session;

/* Catch SIGHUP from now on, unless it is ignored: until a watch is started it is remembered. */
int bdfs_watch_catch_hangup(struct bd_error *err);

/* Start the thread. SESSION is mounted. All arguments are borrowed until bdfs_watch_stop. */
int bdfs_watch_start(struct bdfs_watch **watch, struct bdfs_models *models, struct bdfs_tree *tree,
		     struct fuse_session *session, struct bdfs_log *log, struct bd_error *err);
/* NULL allowed. Should the kernel keep a thread waiting for an answer that nobody gives any more, it returns
 * when the connection is aborted, for which the supervisor sees. */
void bdfs_watch_stop(struct bdfs_watch *watch);

/* Look again now, and wait until the tree shows what is there, or for two seconds. For requests that find that
 * something is out of date; must not be called with any lock held. NULL allowed. */
void bdfs_watch_refresh(struct bdfs_watch *watch);

/* "inotify", "polling" or "off" (NULL). */
const char *bdfs_watch_method(const struct bdfs_watch *watch);

#endif
