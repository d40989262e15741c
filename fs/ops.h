/* ops.h: the answers to the kernel's requests.
 *
 * No lock is held while a file is read: every thread of the loop has its own buffer, and trees and
 * views do not change. The kernel's page cache is the cache (keep_cache, never direct_io, which
 * would break shared mappings), and names and attributes are valid for a day. */
#ifndef BDFS_OPS_H
#define BDFS_OPS_H

#include <pthread.h>
#include <stdatomic.h>

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 312
#endif
#include <fuse_lowlevel.h>

#include "log.h"
#include "tree.h"

/* The userdata of the session. */
struct bdfs_ops {
	const struct bdfs_tree *tree; /* borrowed */
	struct bdfs_log *log;         /* borrowed */
	unsigned threads;             /* of the loop, for the kernel's limits */
	unsigned readahead;           /* KiB; 0 leaves it alone */
	unsigned major, minor;        /* device number of the mount, once it is mounted */
	atomic_bool tuned;            /* private: the readahead was set */
	pthread_key_t worker;         /* private: struct worker of a thread */
};

int bdfs_ops_init(struct bdfs_ops *ops, const struct bdfs_tree *tree, struct bdfs_log *log,
		  struct bd_error *err);
void bdfs_ops_end(struct bdfs_ops *ops); /* after the last thread of the loop has ended */

extern const struct fuse_lowlevel_ops bdfs_ops_table;

#endif
