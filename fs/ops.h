/* SPDX-License-Identifier: Apache-2.0 */
/* ops.h: the answers to the kernel's requests.
 *
 * No lock is held while a file is read: every thread of the loop has its own buffer, and models and
 * views do not change. The kernel's page cache is the cache (keep_cache, never direct_io for models,
 * which would break shared mappings). What is below a model's directory never changes and is valid for
 * a day; names in the root are looked up each time. */
#ifndef BDFS_OPS_H
#define BDFS_OPS_H

#include <pthread.h>
#include <stdatomic.h>

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 312
#endif
#include <fuse_lowlevel.h>

#include "control.h"
#include "log.h"
#include "tree.h"
#include "watch.h"

/* The userdata of the session. */
struct bdfs_ops {
	struct bdfs_models *models;   /* borrowed, as are the next three */
	struct bdfs_tree *tree;
	struct bdfs_log *log;
	struct bdfs_watch *watch;     /* NULL: none */
	int device;                   /* the session's descriptor; to be filled before the loop */
	struct bdfs_in_use use;       /* to be filled before the loop */
	pthread_key_t worker;         /* private: struct worker of a thread */
	pthread_mutex_t backings;     /* private: guards `handles` and `backing` of all files */
	pthread_mutex_t opened;       /* private: guards the list of what is open */
	struct handle *handles;
	atomic_uint waiting;          /* private: requests that wait for the tree to be renewed */
};

int bdfs_ops_init(struct bdfs_ops *ops, struct bdfs_models *models, struct bdfs_tree *tree,
		  struct bdfs_log *log, struct bd_error *err);
void bdfs_ops_end(struct bdfs_ops *ops); /* after the last thread of the loop has ended */

extern const struct fuse_lowlevel_ops bdfs_ops_table;

#endif
