/* SPDX-License-Identifier: Apache-2.0 */
/* tree.h: the directories and files that a mount shows, and which of them the kernel knows.
 *
 * The root holds one branch per model: its directory with everything below. A branch never changes; the
 * root's list of branches follows the models. Inode numbers are hashes of names and contents: the same
 * model has the same numbers in every mount, a replaced one has others, and they serve as the
 * kernel's node ids too. A branch that is listed no more lives until the kernel has forgotten its
 * nodes and the last handle is closed. All functions may be called from any thread; none waits for
 * anything but a short lock. */
#ifndef BDFS_TREE_H
#define BDFS_TREE_H

#include <sys/stat.h>

#include "models.h"

#define BDFS_ROOT_INO 1 /* what FUSE prescribes */

enum bdfs_control { BDFS_NO_CONTROL, BDFS_STATUS, BDFS_STATS, BDFS_VERSION_FILE, BDFS_HUB_VERSION };

struct bdfs_branch;

struct bdfs_node {
	uint64_t ino;
	const char *name;               /* "" for the root */
	const struct bdfs_node *parent; /* the root is its own */
	struct bdfs_branch *branch;     /* NULL for the root and what is below .bdelta */
	struct bdfs_model *model;       /* NULL as well; pinned by the branch */
	bool directory;
	size_t file;                    /* of a file: its index in the model; SIZE_MAX for refs/main; of a
					 * subdirectory: that of the first file in it */
	enum bdfs_control control;      /* of a file in .bitdelta, and of version.txt */
	uint64_t size, stored;
	const struct bdfs_node *children; /* in ascending order of name; not the root's */
	size_t child_count;
	struct bdfs_node *next;         /* private: in the table of numbers */
};

struct bdfs_tree_options {
	uid_t uid;
	gid_t gid;
	mode_t file_mask, directory_mask; /* taken off 0444 and 0755: what is copied can be deleted */
	bool stored_blocks;               /* st_blocks says what is stored and not what is shown */
};

struct bdfs_tree;

int bdfs_tree_new(struct bdfs_tree **tree, struct bdfs_models *models,
		  const struct bdfs_tree_options *options, struct bd_error *err);
/* NULL allowed. The kernel's references count no more. */
void bdfs_tree_free(struct bdfs_tree *tree);

/* Names that the kernel should forget: in the root those that came, went or stand for something else
 * now, elsewhere those of branches that are listed no more. bdfs_names_free. */
struct bdfs_names {
	struct bdfs_name {
		uint64_t directory; /* its number */
		char *name;
	} *names;
	size_t count;
};
void bdfs_names_free(struct bdfs_names *names);

/* Make the root what the models are now. On -ENOMEM all is as before. By one thread at a time. */
int bdfs_tree_update(struct bdfs_tree *tree, struct bdfs_names *changed, struct bd_error *err);

/* Append the names in branches that are listed no more and that the kernel still knows: it keeps a name that
 * was in use when its directory went for as long as it has memory. Some may be missing where memory is short. */
void bdfs_tree_lingering(struct bdfs_tree *tree, struct bdfs_names *names);

/* The node with a number, with a reference that ends with bdfs_tree_put; NULL where there is none. */
const struct bdfs_node *bdfs_tree_get(struct bdfs_tree *tree, uint64_t ino);
/* The child of a directory; knows ".", ".." and, in the root, what is not listed: ".bitdelta" and, with
 * layout=hub, "version.txt", by which transformers knows the layout of a cache. */
const struct bdfs_node *bdfs_tree_lookup(struct bdfs_tree *tree, const struct bdfs_node *directory,
					 const char *name);
/* One more reference to a node that the caller has one to. */
void bdfs_tree_hold(struct bdfs_tree *tree, const struct bdfs_node *node);
void bdfs_tree_put(struct bdfs_tree *tree, const struct bdfs_node *node, uint64_t count);

/* What a directory holds at this time, with a reference to every node: "." and ".." first. */
struct bdfs_listing {
	size_t count;
	const struct bdfs_node *nodes[];
};
/* NULL: out of memory. */
struct bdfs_listing *bdfs_tree_list(struct bdfs_tree *tree, const struct bdfs_node *directory);
void bdfs_listing_free(struct bdfs_tree *tree, struct bdfs_listing *listing);

void bdfs_tree_stat(struct bdfs_tree *tree, const struct bdfs_node *node, struct stat *st);
/* Of everything listed: bytes of all files, number of nodes. */
void bdfs_tree_totals(struct bdfs_tree *tree, uint64_t *bytes, uint64_t *nodes);
/* The fixed contents of refs/main and version.txt. */
const char *bdfs_tree_text(const struct bdfs_node *node);

#endif
