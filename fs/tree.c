/* SPDX-License-Identifier: Apache-2.0 */
/* tree.c: the directories and files that a mount shows, see tree.h. */
#include "tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "paths.h"

struct bdfs_branch {
	uint64_t users; /* the kernel's look-ups, open handles, 1 for being listed; guarded by the lock */
	bool listed;
	struct bdfs_model *model;
	size_t count;
	char *text; /* where the next name of a directory goes, after the nodes */
	struct bdfs_node nodes[]; /* the directory of the root first */
};

enum { CONTROL_NODES = 5 }; /* .bitdelta, its files, version.txt */

struct bdfs_tree {
	struct bdfs_models *models;
	struct bdfs_tree_options options;
	struct bdfs_node root, control[CONTROL_NODES];
	pthread_mutex_t lock; /* guards the rest */
	struct bdfs_branch **list; /* in ascending order of name */
	size_t count;
	struct bdfs_node **table; /* by number, chained; a power of two */
	size_t mask, numbered;
	size_t lingering;         /* branches that are not listed any more */
	struct timespec changed;  /* when the root was made or changed last */
};

/* --- numbers --- */

static uint64_t hash_text(uint64_t hash, const char *text)
{
	/* FNV-1a, with the final NUL, so that ("ab", "c") and ("a", "bc") differ. */
	do {
		hash ^= (unsigned char)*text;
		hash *= 0x100000001b3u;
	} while (*text++);
	return hash;
}

/* Of a node: its own name, those above it, and the contents of the model. */
static uint64_t node_hash(const struct bdfs_node *node)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (const struct bdfs_node *n = node; n != n->parent; n = n->parent)
		hash = hash_text(hash, n->name);
	if (node->model)
		hash = hash_text(hash, node->model->revision);
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93u;
	hash ^= hash >> 32;
	return hash & INT64_MAX; /* some programs keep inode numbers in signed integers */
}

static struct bdfs_node **slot_of(const struct bdfs_tree *tree, uint64_t ino)
{
	return &tree->table[(size_t)(ino * 0x9e3779b97f4a7c15u >> 20) & tree->mask];
}

static struct bdfs_node *find(const struct bdfs_tree *tree, uint64_t ino)
{
	struct bdfs_node *node = *slot_of(tree, ino);

	while (node && node->ino != ino)
		node = node->next;
	return node;
}

static void insert(struct bdfs_tree *tree, struct bdfs_node *node)
{
	struct bdfs_node **slot = slot_of(tree, node->ino);

	node->next = *slot;
	*slot = node;
	tree->numbered++;
}

static int reserve(struct bdfs_tree *tree, size_t more)
{
	size_t slots = tree->table ? tree->mask + 1 : 64, old = tree->table ? slots : 0;
	struct bdfs_node **table = tree->table, *node, *next;

	while (slots < tree->numbered + more)
		slots *= 2;
	if (slots == old)
		return 0;
	tree->table = calloc(slots, sizeof(*tree->table));
	if (!tree->table) {
		tree->table = table;
		return -ENOMEM;
	}
	tree->mask = slots - 1;
	tree->numbered = 0;
	for (size_t i = 0; i < old; i++)
		for (node = table[i]; node; node = next) {
			next = node->next;
			insert(tree, node);
		}
	free(table);
	return 0;
}

/* Where the number is taken, by a model with the same contents that the kernel still knows or by
 * chance, the next free one will do. */
static void number(struct bdfs_tree *tree, struct bdfs_node *node)
{
	uint64_t ino = node_hash(node);

	while (ino <= BDFS_ROOT_INO || find(tree, ino))
		ino = (ino + 1) & INT64_MAX;
	node->ino = ino;
	insert(tree, node);
}

static void unnumber(struct bdfs_tree *tree, const struct bdfs_node *node)
{
	struct bdfs_node **at = slot_of(tree, node->ino);

	while (*at != node)
		at = &(*at)->next;
	*at = node->next;
	tree->numbered--;
}

/* --- branches --- */

static struct bdfs_node *add_node(struct bdfs_branch *b, const struct bdfs_node *parent,
				  const char *name, bool directory)
{
	struct bdfs_node *node = &b->nodes[b->count++];

	*node = (struct bdfs_node){
		.name = name, .parent = parent, .branch = b, .model = b->model,
		.directory = directory,
	};
	return node;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct bdfs_node *)a)->name, ((const struct bdfs_node *)b)->name);
}

/* One past the last file of those from `first` on that lie in the same subdirectory of the directory of
 * `skip` bytes. Paths ascend, so these are consecutive. */
static size_t run_end(const struct bdfs_model *m, size_t first, size_t end, size_t skip)
{
	const char *path = m->files[first].name, *slash = strchr(path + skip, '/');
	size_t next = first + 1;

	while (slash && next < end && !strncmp(m->files[next].name, path, (size_t)(slash - path) + 1))
		next++;
	return next;
}

/* Add files [first, end) of the model, which lie below `directory`; its path is `skip` bytes of theirs. */
static void add_files(struct bdfs_branch *b, struct bdfs_node *directory, size_t first, size_t end,
		      size_t skip)
{
	const struct bdfs_model *m = b->model;
	struct bdfs_node *children = &b->nodes[b->count];
	size_t count = 0;

	for (size_t i = first; i < end; i = run_end(m, i, end, skip), count++) {
		const char *name = m->files[i].name + skip, *slash = strchr(name, '/');
		struct bdfs_node *node;

		if (slash) {
			memcpy(b->text, name, (size_t)(slash - name));
			name = b->text;
			b->text += strlen(name) + 1;
		}
		node = add_node(b, directory, name, slash != NULL);
		node->file = i;
		node->size = slash ? 0 : m->files[i].size;
		node->stored = slash ? 0 : m->files[i].stored;
	}
	directory->children = children;
	directory->child_count = count;
	/* A directory's path, with its slash, has another place in the order than its name. */
	qsort(children, count, sizeof(*children), by_name);
	for (size_t i = 0; i < count; i++)
		if (children[i].directory)
			add_files(b, &children[i], children[i].file,
				  run_end(m, children[i].file, end, skip),
				  skip + strlen(children[i].name) + 1);
}

/* How many directories the files need, and the bytes of their names. */
static size_t count_directories(const struct bdfs_model *m, size_t *text)
{
	const char *before = "";
	size_t count = 0;

	*text = 0;
	for (size_t i = 0; i < m->file_count; before = m->files[i++].name)
		for (size_t n = 0, last = 0; (n = bd_path_next_directory(m->files[i].name, before, last));
		     last = n, count++)
			*text += n - last + 1;
	return count;
}

static uint64_t overhead(const struct bdfs_model *m)
{
	uint64_t files = 0;

	for (size_t i = 0; i < m->file_count; i++)
		files += m->files[i].stored;
	return m->stored_bytes > files ? m->stored_bytes - files : 0;
}

/* NULL: out of memory. */
static struct bdfs_branch *branch_new(const struct bdfs_node *root, struct bdfs_model *m,
				      bool hub)
{
	size_t text, count = m->file_count + count_directories(m, &text) + 5;
	struct bdfs_branch *b = calloc(1, sizeof(*b) + count * sizeof(*b->nodes) + text);
	struct bdfs_node *top, *refs, *snapshots, *main_ref, *revision;

	if (!b)
		return NULL;
	b->users = 1;
	b->text = (char *)&b->nodes[count];
	b->model = m;
	bdfs_model_get(m);
	top = add_node(b, root, m->directory, true);
	top->stored = overhead(m); /* what the delta has besides its files */
	if (!hub) {
		add_files(b, top, 0, m->file_count, 0);
		return b;
	}
	refs = add_node(b, top, "refs", true);
	snapshots = add_node(b, top, "snapshots", true);
	top->children = refs;
	top->child_count = 2;
	main_ref = add_node(b, refs, "main", false);
	main_ref->file = SIZE_MAX;
	main_ref->size = strlen(m->revision);
	refs->children = main_ref;
	refs->child_count = 1;
	revision = add_node(b, snapshots, m->revision, true);
	snapshots->children = revision;
	snapshots->child_count = 1;
	add_files(b, revision, 0, m->file_count, 0);
	return b;
}

static void branch_free(struct bdfs_tree *tree, struct bdfs_branch *b)
{
	bdfs_model_put(tree->models, b->model);
	free(b);
}

/* With the lock held. True where the branch has gone out of the table and is to be freed. */
static bool branch_put(struct bdfs_tree *tree, struct bdfs_branch *b, uint64_t count)
{
	b->users -= count < b->users ? count : b->users;
	if (b->users)
		return false;
	tree->lingering -= !b->listed;
	for (size_t i = 0; i < b->count; i++)
		unnumber(tree, &b->nodes[i]);
	return true;
}

/* --- the tree --- */

static const char hub_version[] = "1";

static void make_control(struct bdfs_tree *tree)
{
	static const struct { const char *name; enum bdfs_control control; } files[] = {
		{ "stats.json", BDFS_STATS }, { "status", BDFS_STATUS },
		{ "version", BDFS_VERSION_FILE },
	};
	const size_t count = sizeof(files) / sizeof(*files);
	struct bdfs_node *c = tree->control;

	c[0] = (struct bdfs_node){ .name = ".bitdelta", .parent = &tree->root, .directory = true,
				   .children = c + 1, .child_count = count };
	for (size_t i = 0; i < count; i++)
		c[i + 1] = (struct bdfs_node){ .name = files[i].name, .parent = c,
					       .control = files[i].control };
	c[count + 1] = (struct bdfs_node){ .name = "version.txt", .parent = &tree->root,
					   .control = BDFS_HUB_VERSION, .size = strlen(hub_version) };
	for (size_t i = 0; i < CONTROL_NODES; i++)
		number(tree, &c[i]);
}

int bdfs_tree_new(struct bdfs_tree **out, struct bdfs_models *models,
		  const struct bdfs_tree_options *options, struct bd_error *err)
{
	struct bdfs_tree *tree = calloc(1, sizeof(*tree));
	struct bdfs_names names = { 0 };
	int r;

	*out = NULL;
	if (!tree)
		return bd_error_set(err, -ENOMEM, "out of memory for the names");
	tree->models = models;
	tree->options = *options;
	pthread_mutex_init(&tree->lock, NULL);
	tree->root = (struct bdfs_node){ .ino = BDFS_ROOT_INO, .name = "", .parent = &tree->root,
					 .directory = true };
	r = reserve(tree, 1 + CONTROL_NODES);
	if (r == 0) {
		insert(tree, &tree->root);
		make_control(tree);
		r = bdfs_tree_update(tree, &names, err);
		bdfs_names_free(&names);
	} else {
		bd_error_set(err, r, "out of memory for the names");
	}
	if (r < 0) {
		bdfs_tree_free(tree);
		return r;
	}
	*out = tree;
	return 0;
}

void bdfs_tree_free(struct bdfs_tree *tree)
{
	if (!tree)
		return;
	/* Also those that are not listed any more: all have their first node in the table. */
	for (size_t i = 0; tree->table && i <= tree->mask; i++) {
		struct bdfs_node *node = tree->table[i];

		while (node && (!node->branch || node != node->branch->nodes))
			node = node->next;
		if (!node)
			continue;
		node->branch->users = 0;
		branch_put(tree, node->branch, 0);
		branch_free(tree, node->branch);
		i--; /* the chain may hold another */
	}
	free(tree->table);
	free(tree->list);
	pthread_mutex_destroy(&tree->lock);
	free(tree);
}

void bdfs_names_free(struct bdfs_names *names)
{
	for (size_t i = 0; i < names->count; i++)
		free(names->names[i].name);
	free(names->names);
	*names = (struct bdfs_names){ 0 };
}

static int add_name(struct bdfs_names *names, uint64_t directory, const char *name)
{
	if (!(names->count & (names->count - 1))) { /* full at every power of two */
		struct bdfs_name *more = reallocarray(names->names, names->count ? 2 * names->count : 1,
						      sizeof(*more));

		if (!more)
			return -ENOMEM;
		names->names = more;
	}
	names->names[names->count] = (struct bdfs_name){ directory, strdup(name) };
	return names->names[names->count].name ? (names->count++, 0) : -ENOMEM;
}

void bdfs_tree_lingering(struct bdfs_tree *tree, struct bdfs_names *names)
{
	pthread_mutex_lock(&tree->lock);
	for (size_t i = 0; tree->lingering && i <= tree->mask; i++)
		for (const struct bdfs_node *n = tree->table[i]; n; n = n->next)
			if (n->branch && !n->branch->listed && n != n->branch->nodes)
				add_name(names, n->parent->ino, n->name);
	pthread_mutex_unlock(&tree->lock);
}

static bool later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

/* The root is as old as its newest model when it is made, and changes when its names do. */
static void touch_root(struct bdfs_tree *tree, bool names)
{
	bool first = tree->changed.tv_sec == 0;

	for (size_t i = 0; first && i < tree->count; i++)
		if (later(&tree->list[i]->model->mtime, &tree->changed))
			tree->changed = tree->list[i]->model->mtime;
	if (first ? !tree->count : names)
		clock_gettime(CLOCK_REALTIME, &tree->changed);
}

int bdfs_tree_update(struct bdfs_tree *tree, struct bdfs_names *changed, struct bd_error *err)
{
	/* Only this thread changes the lists, so reading them needs no lock. */
	struct bdfs_models *m = tree->models;
	size_t room = m->count, more = 0, old_count = tree->count, dead = 0;
	struct bdfs_branch **list = calloc(room ? room : 1, sizeof(*list)), **old = tree->list;
	bool *kept = calloc(old_count ? old_count : 1, sizeof(*kept));
	int r = list && kept ? 0 : -ENOMEM;

	*changed = (struct bdfs_names){ 0 };
	for (size_t i = 0, o = 0; r == 0 && (i < room || o < old_count); ) {
		struct bdfs_model *model = i < room ? m->list[i] : NULL;
		struct bdfs_branch *was = o < old_count ? old[o] : NULL;
		int order = !model ? 1 : !was ? -1 : strcmp(model->directory, was->model->directory);

		if (order == 0 && was->model == model) {
			kept[o++] = true;
			list[i++] = was;
			continue;
		}
		r = add_name(changed, BDFS_ROOT_INO, order <= 0 ? model->directory
								: was->model->directory);
		if (order >= 0)
			o++;
		if (order <= 0) {
			list[i] = branch_new(&tree->root, model, m->layout == BDFS_HUB);
			if (!list[i])
				r = -ENOMEM;
			else
				more += list[i]->count;
			i++;
		}
	}
	pthread_mutex_lock(&tree->lock);
	if (r == 0)
		r = reserve(tree, more);
	if (r == 0) {
		for (size_t i = 0; i < room; i++) {
			for (size_t n = 0; !list[i]->listed && n < list[i]->count; n++)
				number(tree, &list[i]->nodes[n]);
			list[i]->listed = true;
		}
		tree->list = list;
		tree->count = room;
		touch_root(tree, changed->count);
		for (size_t o = 0; o < old_count; o++)
			if (!kept[o]) {
				old[o]->listed = false;
				tree->lingering++;
				if (branch_put(tree, old[o], 1))
					old[dead++] = old[o];
			}
	}
	pthread_mutex_unlock(&tree->lock);
	if (r < 0) {
		for (size_t i = 0; list && i < room; i++)
			if (list[i] && !list[i]->listed)
				branch_free(tree, list[i]);
		free(list);
		bdfs_names_free(changed);
		bd_error_set(err, r, "out of memory for the names of %zu models", room);
	} else {
		for (size_t o = 0; o < dead; o++)
			branch_free(tree, old[o]);
		free(old);
	}
	free(kept);
	return r;
}

const struct bdfs_node *bdfs_tree_get(struct bdfs_tree *tree, uint64_t ino)
{
	struct bdfs_node *node;

	pthread_mutex_lock(&tree->lock);
	node = find(tree, ino);
	if (node && node->branch)
		node->branch->users++;
	pthread_mutex_unlock(&tree->lock);
	return node;
}

void bdfs_tree_hold(struct bdfs_tree *tree, const struct bdfs_node *node)
{
	if (!node->branch)
		return;
	pthread_mutex_lock(&tree->lock);
	node->branch->users++;
	pthread_mutex_unlock(&tree->lock);
}

void bdfs_tree_put(struct bdfs_tree *tree, const struct bdfs_node *node, uint64_t count)
{
	struct bdfs_branch *b = node ? node->branch : NULL;
	bool dead;

	if (!b)
		return;
	pthread_mutex_lock(&tree->lock);
	dead = branch_put(tree, b, count);
	pthread_mutex_unlock(&tree->lock);
	if (dead)
		branch_free(tree, b);
}

static int compare_name(const void *name, const void *node)
{
	return strcmp(name, ((const struct bdfs_node *)node)->name);
}

static int compare_branch(const void *name, const void *branch)
{
	return strcmp(name, (*(struct bdfs_branch *const *)branch)->nodes[0].name);
}

const struct bdfs_node *bdfs_tree_lookup(struct bdfs_tree *tree, const struct bdfs_node *directory,
					 const char *name)
{
	const struct bdfs_node *node = NULL;
	struct bdfs_branch **branch;

	if (!strcmp(name, "."))
		node = directory;
	else if (!strcmp(name, ".."))
		node = directory->parent;
	else if (directory == &tree->root && !strcmp(name, tree->control[0].name))
		node = &tree->control[0];
	else if (directory == &tree->root && tree->models->layout == BDFS_HUB &&
		 !strcmp(name, tree->control[CONTROL_NODES - 1].name))
		node = &tree->control[CONTROL_NODES - 1];
	else if (directory != &tree->root && directory->child_count)
		node = bsearch(name, directory->children, directory->child_count, sizeof(*node),
			       compare_name);
	pthread_mutex_lock(&tree->lock);
	if (!node && directory == &tree->root && tree->count) {
		branch = bsearch(name, tree->list, tree->count, sizeof(*tree->list), compare_branch);
		node = branch ? &(*branch)->nodes[0] : NULL;
	}
	if (node && node->branch)
		node->branch->users++;
	pthread_mutex_unlock(&tree->lock);
	return node;
}

struct bdfs_listing *bdfs_tree_list(struct bdfs_tree *tree, const struct bdfs_node *directory)
{
	bool root = directory == &tree->root;
	struct bdfs_listing *l;
	size_t count;

	pthread_mutex_lock(&tree->lock);
	count = root ? tree->count : directory->child_count;
	l = malloc(sizeof(*l) + (count + 2) * sizeof(*l->nodes));
	if (l) {
		l->count = count + 2;
		l->nodes[0] = directory;
		l->nodes[1] = directory->parent;
		for (size_t i = 0; i < count; i++)
			l->nodes[i + 2] = root ? &tree->list[i]->nodes[0] : &directory->children[i];
		for (size_t i = 0; i < l->count; i++)
			if (l->nodes[i]->branch)
				l->nodes[i]->branch->users++;
	}
	pthread_mutex_unlock(&tree->lock);
	return l;
}

void bdfs_listing_free(struct bdfs_tree *tree, struct bdfs_listing *listing)
{
	if (!listing)
		return;
	for (size_t i = 0; i < listing->count; i++)
		bdfs_tree_put(tree, listing->nodes[i], 1);
	free(listing);
}

static size_t subdirectories(const struct bdfs_node *directory)
{
	size_t n = 0;

	for (size_t i = 0; i < directory->child_count; i++)
		n += directory->children[i].directory;
	return n;
}

void bdfs_tree_stat(struct bdfs_tree *tree, const struct bdfs_node *node, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = node->ino;
	st->st_mode = node->directory ? S_IFDIR | (0755 & ~tree->options.directory_mask)
				      : S_IFREG | (0444 & ~tree->options.file_mask);
	st->st_nlink = node->directory ? 2 + subdirectories(node) : 1;
	st->st_uid = tree->options.uid;
	st->st_gid = tree->options.gid;
	st->st_size = (off_t)node->size;
	/* Full unless asked for otherwise: a small number makes cp and tar look for holes. */
	st->st_blocks = (blkcnt_t)(((tree->options.stored_blocks ? node->stored : node->size) + 511) / 512);
	st->st_blksize = 1024 * 1024; /* programs that ask how much to read at a time get a whole request */
	if (node->model) {
		st->st_mtim = node->model->mtime;
	} else {
		pthread_mutex_lock(&tree->lock);
		st->st_mtim = tree->changed;
		if (node == &tree->root)
			st->st_nlink = 2 + tree->count;
		pthread_mutex_unlock(&tree->lock);
	}
	st->st_atim = st->st_ctim = st->st_mtim;
}

void bdfs_tree_totals(struct bdfs_tree *tree, uint64_t *bytes, uint64_t *nodes)
{
	pthread_mutex_lock(&tree->lock);
	*bytes = 0;
	*nodes = 1 + CONTROL_NODES;
	for (size_t i = 0; i < tree->count; i++) {
		*bytes += tree->list[i]->model->virtual_bytes;
		*nodes += tree->list[i]->count;
	}
	pthread_mutex_unlock(&tree->lock);
}

const char *bdfs_tree_text(const struct bdfs_node *node)
{
	return node->model ? node->model->revision : hub_version;
}
