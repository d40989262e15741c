/* tree.c: the directories and files that a mount shows, see tree.h. */
#include "tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t hash_text(uint64_t hash, const char *text)
{
	/* FNV-1a, with the final NUL, so that ("ab", "c") and ("a", "bc") differ. */
	do {
		hash ^= (unsigned char)*text;
		hash *= 0x100000001b3u;
	} while (*text++);
	return hash;
}

static uint64_t name_ino(const char *directory, const char *file)
{
	uint64_t hash = hash_text(0xcbf29ce484222325u, directory);

	if (file)
		hash = hash_text(hash, file);
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93u;
	hash ^= hash >> 32;
	return hash & INT64_MAX; /* some programs keep inode numbers in signed integers */
}

static size_t slot_of(const struct bdfs_tree *tree, uint64_t ino)
{
	return (size_t)(ino * 0x9e3779b97f4a7c15u >> 20) & tree->mask;
}

const struct bdfs_node *bdfs_tree_find(const struct bdfs_tree *tree, uint64_t ino)
{
	size_t slot = slot_of(tree, ino);

	for (; tree->by_ino[slot]; slot = (slot + 1) & tree->mask)
		if (tree->by_ino[slot]->ino == ino)
			return tree->by_ino[slot];
	return NULL;
}

/* Give the node the number INO, or where that is taken the next free one. Nodes come in the order
 * of their names, so that the outcome depends on the names alone. */
static void number(struct bdfs_tree *tree, struct bdfs_node *node, uint64_t ino)
{
	size_t slot;

	while (ino <= BDFS_ROOT_INO || bdfs_tree_find(tree, ino)) {
		if (node == tree->nodes)
			break;
		ino = (ino + 1) & INT64_MAX;
	}
	node->ino = ino;
	slot = slot_of(tree, ino);
	while (tree->by_ino[slot])
		slot = (slot + 1) & tree->mask;
	tree->by_ino[slot] = node;
}

static bool later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

static void fill_directory(struct bdfs_tree *tree, struct bdfs_node *directory,
			   struct bdfs_node *children, struct bd_view *view)
{
	directory->name = view->name;
	directory->parent = tree->nodes;
	directory->view = view;
	directory->directory = true;
	directory->mtime = view->delta->file->frozen.st_mtim;
	directory->children = children;
	directory->child_count = view->file_count;
	number(tree, directory, name_ino(view->name, NULL));
	for (size_t i = 0; i < view->file_count; i++) {
		struct bdfs_node *node = &children[i];

		node->name = view->files[i].name;
		node->parent = directory;
		node->view = view;
		node->file = i;
		node->size = view->files[i].size;
		node->mtime = directory->mtime;
		tree->bytes += node->size;
		number(tree, node, name_ino(view->name, node->name));
	}
}

int bdfs_tree_new(struct bdfs_tree **tree, struct bd_view **views, size_t count, uid_t uid,
		  gid_t gid, mode_t umask, struct bd_error *err)
{
	struct bdfs_tree *t = calloc(1, sizeof(*t));
	struct bdfs_node *root, *next;
	size_t slots = 16;

	*tree = NULL;
	if (!t)
		goto no_memory;
	t->uid = uid;
	t->gid = gid;
	t->umask = umask;
	t->count = 1 + count;
	for (size_t i = 0; i < count; i++)
		t->count += views[i]->file_count;
	while (slots < 2 * t->count)
		slots *= 2;
	t->mask = slots - 1;
	t->nodes = calloc(t->count, sizeof(*t->nodes));
	t->by_ino = calloc(slots, sizeof(*t->by_ino));
	if (!t->nodes || !t->by_ino)
		goto no_memory;

	root = t->nodes;
	root->name = "";
	root->parent = root;
	root->directory = true;
	root->children = root + 1;
	root->child_count = count;
	number(t, root, BDFS_ROOT_INO);
	next = root + 1 + count;
	for (size_t i = 0; i < count; i++) {
		fill_directory(t, root + 1 + i, next, views[i]);
		next += views[i]->file_count;
		if (later(&root[1 + i].mtime, &root->mtime))
			root->mtime = root[1 + i].mtime;
	}
	if (!count)
		clock_gettime(CLOCK_REALTIME, &root->mtime);
	*tree = t;
	return 0;

no_memory:
	bdfs_tree_free(t);
	return bd_error_set(err, -ENOMEM, "out of memory for the names of %zu deltas", count);
}

void bdfs_tree_free(struct bdfs_tree *tree)
{
	if (!tree)
		return;
	free(tree->by_ino);
	free(tree->nodes);
	free(tree);
}

static int compare_name(const void *name, const void *node)
{
	return strcmp(name, ((const struct bdfs_node *)node)->name);
}

const struct bdfs_node *bdfs_tree_lookup(const struct bdfs_node *directory, const char *name)
{
	if (!strcmp(name, "."))
		return directory;
	if (!strcmp(name, ".."))
		return directory->parent;
	if (!directory->child_count)
		return NULL;
	return bsearch(name, directory->children, directory->child_count,
		       sizeof(*directory->children), compare_name);
}

void bdfs_tree_stat(const struct bdfs_tree *tree, const struct bdfs_node *node, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = node->ino;
	st->st_mode = node->directory ? S_IFDIR | (0555 & ~tree->umask)
				      : S_IFREG | (0444 & ~tree->umask);
	st->st_nlink = 1;
	if (node->directory)
		st->st_nlink = 2 + (node->view ? 0 : node->child_count);
	st->st_uid = tree->uid;
	st->st_gid = tree->gid;
	st->st_size = (off_t)node->size;
	/* Full, not what the delta takes: a small number would make cp and tar look for holes. */
	st->st_blocks = (blkcnt_t)((node->size + 511) / 512);
	st->st_blksize = 1024 * 1024; /* programs that ask how much to read at a time get a whole request */
	st->st_atim = st->st_mtim = st->st_ctim = node->mtime;
}
