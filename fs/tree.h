/* tree.h: the directories and files that a mount shows.
 *
 * The root holds one directory per view, named after its delta, and each directory the files of
 * that view. A tree is built once and never changes, so any thread may look at it without a lock.
 * Inode numbers are hashes of the names: the same file has the same number in every mount, and
 * they serve as the kernel's node ids too. */
#ifndef BDFS_TREE_H
#define BDFS_TREE_H

#include <sys/stat.h>

#include "view.h"

#define BDFS_ROOT_INO 1 /* what FUSE prescribes */

struct bdfs_node {
	uint64_t ino;
	const char *name;               /* borrowed from the view; "" for the root */
	const struct bdfs_node *parent; /* the root is its own */
	struct bd_view *view;           /* borrowed; NULL for the root */
	size_t file;                    /* of a file: its index in the view */
	bool directory;
	uint64_t size;
	struct timespec mtime;          /* of the delta; of the newest delta for the root */
	const struct bdfs_node *children; /* in ascending order of name */
	size_t child_count;
};

struct bdfs_tree {
	struct bdfs_node *nodes; /* the root first */
	size_t count;
	uint64_t bytes;          /* sizes of all files together */
	uid_t uid;
	gid_t gid;
	mode_t umask;
	const struct bdfs_node **by_ino; /* private: open addressing, a power of two of slots */
	size_t mask;
};

/* VIEWS are in ascending order of name, no two alike, and must outlive the tree. -ENOMEM. */
int bdfs_tree_new(struct bdfs_tree **tree, struct bd_view **views, size_t count, uid_t uid,
		  gid_t gid, mode_t umask, struct bd_error *err);
void bdfs_tree_free(struct bdfs_tree *tree); /* NULL allowed */

/* Constant time. NULL where no node has that number. */
const struct bdfs_node *bdfs_tree_find(const struct bdfs_tree *tree, uint64_t ino);
/* Logarithmic in the size of the directory; knows "." and "..". NULL where there is none. */
const struct bdfs_node *bdfs_tree_lookup(const struct bdfs_node *directory, const char *name);

void bdfs_tree_stat(const struct bdfs_tree *tree, const struct bdfs_node *node, struct stat *st);

#endif
