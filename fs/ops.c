/* SPDX-License-Identifier: Apache-2.0 */
/* ops.c: the answers to the kernel's requests, see ops.h. */
#include "ops.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FOREVER 86400.0    /* seconds; for what never changes, but who knows what asks for 10^9 */
#define BUFFER (1u << 20)  /* the largest read that kernels send unless told otherwise */
#define PAGE 4096
#define BLOCK 4096         /* of statfs */

/* What a thread of the loop keeps between requests. */
struct worker {
	char *buffer;
	size_t capacity;
	struct bd_scratch *scratch;
};

static void worker_free(void *data)
{
	struct worker *w = data;

	bd_scratch_free(w->scratch);
	free(w->buffer);
	free(w);
}

/* The calling thread's worker with room for SIZE bytes; NULL: out of memory. */
static struct worker *worker_get(struct bdfs_ops *ops, size_t size)
{
	struct worker *w = pthread_getspecific(ops->worker);

	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w)
			return NULL;
		w->scratch = bd_scratch_new();
		if (!w->scratch || pthread_setspecific(ops->worker, w)) {
			bd_scratch_free(w->scratch);
			free(w);
			return NULL;
		}
	}
	if (size > w->capacity) {
		size_t capacity = size > BUFFER ? size : BUFFER;
		void *buffer;

		if (posix_memalign(&buffer, PAGE, capacity))
			return NULL;
		free(w->buffer);
		w->buffer = buffer;
		w->capacity = capacity;
	}
	return w;
}

static struct bdfs_ops *ops_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
/* The kernel's condition for passthrough: not in a user's mount, nor after drop_privileges. */
static bool is_admin(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = { 0 };

	return syscall(SYS_capget, &header, caps) == 0 && caps[0].effective & 1u << CAP_SYS_ADMIN;
}
#endif

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct bdfs_ops *ops = userdata;

	/* NFS servers look up "." and ".." by inode number, which is what our node ids are. */
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	fuse_set_feature_flag(conn, FUSE_CAP_EXPORT_SUPPORT);
	/* Files that equal real ones are then read from these by the kernel, without us. Not where they
	 * lie on a stacked filesystem, whose price would be that none can be stacked on this mount: an
	 * overlayfs over a model is how people make it writable. */
	ops->use.passthrough = is_admin() && fuse_set_feature_flag(conn, FUSE_CAP_PASSTHROUGH);
	conn->max_backing_stack_depth = FUSE_BACKING_STACKED_UNDER;
#else
	conn->want |= conn->capable & FUSE_CAP_EXPORT_SUPPORT;
#endif
	/* The kernel takes the smaller of this and what was set in sysfs. */
	if (ops->use.readahead)
		conn->max_readahead = ops->use.readahead << 10;
	/* The default of 12 readahead requests in flight would leave threads of a large machine idle. */
	if (conn->max_background < 2 * ops->use.threads)
		conn->max_background = 2 * ops->use.threads;
}

/* What is below a model's directory is what it is. The root's names come and go: they are looked up each
 * time, so that whoever replaces a delta and then opens a file gets the new one. */
static double valid_for(const struct bdfs_node *node)
{
	return node->parent->model ? FOREVER : 0;
}

static void fill_entry(struct bdfs_tree *tree, const struct bdfs_node *node,
		       struct fuse_entry_param *entry)
{
	memset(entry, 0, sizeof(*entry));
	entry->ino = node->ino;
	entry->generation = 1;
	entry->attr_timeout = node->model ? FOREVER : 0;
	entry->entry_timeout = valid_for(node);
	bdfs_tree_stat(tree, node, &entry->attr);
}

static bool is_root(const struct bdfs_node *node)
{
	return node->parent == node;
}

/* Before the root is looked at: what was renamed into place a moment ago should be seen. But not all threads
 * may wait for that, or nobody would be left to serve files that are open. */
static void refresh(struct bdfs_ops *ops)
{
	if (!bdfs_models_is_stale(ops->models))
		return;
	if (atomic_fetch_add(&ops->waiting, 1) < ops->use.threads / 2)
		bdfs_watch_refresh(ops->watch);
	atomic_fetch_sub(&ops->waiting, 1);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *directory = bdfs_tree_get(ops->tree, parent), *node = NULL;
	struct fuse_entry_param entry = { 0 };

	/* "." of a file: a handle to it is opened, of an NFS server mostly, that the kernel has forgotten. */
	if (!directory || (!directory->directory && strcmp(name, ".") != 0)) {
		fuse_reply_err(req, directory ? ENOTDIR : ESTALE);
		goto out;
	}
	if (is_root(directory))
		refresh(ops);
	node = bdfs_tree_lookup(ops->tree, directory, name);
	if (node)
		fill_entry(ops->tree, node, &entry);
	else /* inode 0: there is none, and the kernel remembers that */
		entry.entry_timeout = is_root(directory) ? 0 : FOREVER;
	if (fuse_reply_entry(req, &entry) < 0 && node) /* interrupted: the kernel keeps no reference */
		bdfs_tree_put(ops->tree, node, 1);
out:
	bdfs_tree_put(ops->tree, directory, 1);
}

static void forget(struct bdfs_ops *ops, fuse_ino_t ino, uint64_t count)
{
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);

	bdfs_tree_put(ops->tree, node, count + 1);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	forget(ops_of(req), ino, count);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		forget(ops_of(req), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);
	struct stat st;

	(void)fi;
	if (!node) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	bdfs_tree_stat(ops->tree, node, &st);
	fuse_reply_attr(req, &st, node->model ? FOREVER : 0);
	bdfs_tree_put(ops->tree, node, 1);
}

/* An open file or directory. Exactly one of view, real, text and listing says where its contents come from. */
struct handle {
	struct handle *next, *previous; /* of all that are open */
	const struct bdfs_node *node;   /* with a reference */
	struct bdfs_listing *listing;   /* of a directory */
	struct bd_view *view;
	struct bd_file *real;
	const char *text;
	char *owned;                    /* text that is this handle's */
	uint64_t size;
	struct bdfs_file *shared;       /* counts this handle, see pass_through; NULL: none does */
};

/* NULL: out of memory. */
static struct handle *handle_new(struct bdfs_ops *ops, const struct bdfs_node *node)
{
	struct handle *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->node = node;
	bdfs_tree_hold(ops->tree, node);
	pthread_mutex_lock(&ops->opened);
	h->next = ops->handles;
	if (h->next)
		h->next->previous = h;
	ops->handles = h;
	pthread_mutex_unlock(&ops->opened);
	return h;
}

static void handle_free(struct bdfs_ops *ops, struct handle *h)
{
	pthread_mutex_lock(&ops->opened);
	if (h->next)
		h->next->previous = h->previous;
	*(h->previous ? &h->previous->next : &ops->handles) = h->next;
	pthread_mutex_unlock(&ops->opened);
	bdfs_listing_free(ops->tree, h->listing);
	if (h->view)
		bdfs_model_release(ops->models, h->node->model, h->node->file);
	bdfs_tree_put(ops->tree, h->node, 1);
	free(h->owned);
	free(h);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);
	struct handle *h = NULL;

	if (!node || !node->directory) {
		fuse_reply_err(req, node ? ENOTDIR : ESTALE);
		goto out;
	}
	if (is_root(node))
		refresh(ops);
	h = handle_new(ops, node);
	if (h)
		h->listing = bdfs_tree_list(ops->tree, node);
	if (h && h->listing) {
		fi->fh = (uintptr_t)h;
		fi->cache_readdir = fi->keep_cache = node->model != NULL;
		if (fuse_reply_open(req, fi) == 0)
			goto out;
	} else {
		fuse_reply_err(req, ENOMEM);
	}
	if (h)
		handle_free(ops, h);
out:
	bdfs_tree_put(ops->tree, node, 1);
}

/* An entry's offset is the number of the next one. */
static void list(fuse_req_t req, size_t size, off_t offset, const struct fuse_file_info *fi,
		 bool plus)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_listing *listing = ((const struct handle *)(uintptr_t)fi->fh)->listing;
	struct worker *w = worker_get(ops, size);
	struct fuse_entry_param entry;
	size_t used = 0, n, end;

	if (!w) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	for (end = (size_t)offset; end < listing->count; end++) {
		const struct bdfs_node *node = listing->nodes[end];
		const char *name = end == 0 ? "." : end == 1 ? ".." : node->name;

		fill_entry(ops->tree, node, &entry);
		if (plus) {
			if (end < 2)
				entry.ino = 0; /* these two take no reference */
			n = fuse_add_direntry_plus(req, w->buffer + used, size - used, name, &entry,
						   (off_t)(end + 1));
		} else {
			n = fuse_add_direntry(req, w->buffer + used, size - used, name,
					      &entry.attr, (off_t)(end + 1));
		}
		if (n > size - used)
			break; /* it did not fit and was not added */
		if (plus && end >= 2)
			bdfs_tree_hold(ops->tree, node);
		used += n;
	}
	if (fuse_reply_buf(req, w->buffer, used) < 0 && plus)
		for (size_t i = (size_t)offset < 2 ? 2 : (size_t)offset; i < end; i++)
			bdfs_tree_put(ops->tree, listing->nodes[i], 1);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		       struct fuse_file_info *fi)
{
	(void)ino;
	list(req, size, offset, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
			   struct fuse_file_info *fi)
{
	(void)ino;
	list(req, size, offset, fi, true);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	handle_free(ops_of(req), (struct handle *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
/* Let the kernel read a real file by itself, if it will. It wants all handles of one file to be alike:
 * to have the same backing, or none. So the first decides, and the last ends it.
 *
 * What a handle passed through reads is what the real file holds at that time. Opening it checks that this
 * is what it held when we were mounted; who then overwrites the real file in place changes what handles
 * already open read, as those of the real file do. Without passthrough that would be an error. */
static void pass_through(fuse_req_t req, struct handle *h, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = ops_of(req);
	struct bdfs_file *f = &h->node->model->files[h->node->file];

	pthread_mutex_lock(&ops->backings);
	if (!f->handles++ && ops->use.passthrough) {
		f->backing = fuse_passthrough_open(req, h->real->fd);
		if (f->backing <= 0) { /* libfuse has logged why */
			f->backing = 0;
			ops->use.passthrough = false; /* others would fare no better, and log as much */
			bdfs_log_write(ops->log, LOG_INFO, "%s: the kernel will not read it by itself; "
				       "no more passthrough in this mount", h->real->path);
		}
	}
	h->shared = f;
	if (f->backing) {
		fi->backing_id = f->backing;
		fi->keep_cache = 0; /* there is no cache of ours; the kernel would refuse */
		/* The real file would insist on aligned reads, which our other files do not, and go to the
		 * disk for what is cached. So reads of such a handle come to us, and only maps do not. */
		fi->direct_io = (fi->flags & O_DIRECT) != 0;
	}
	pthread_mutex_unlock(&ops->backings);
}

/* libfuse's fuse_passthrough_close wants a request, which is gone where opening was interrupted. */
#define BACKING_CLOSE _IOW(229, 2, uint32_t) /* FUSE_DEV_IOC_BACKING_CLOSE of Linux 6.9 */

static void end_pass_through(struct bdfs_ops *ops, struct handle *h)
{
	uint32_t backing;

	pthread_mutex_lock(&ops->backings);
	backing = (uint32_t)h->shared->backing;
	if (!--h->shared->handles && backing) {
		if (ioctl(ops->device, BACKING_CLOSE, &backing) < 0)
			bdfs_log_limited(ops->log, LOG_WARNING, "%s: the kernel does not let go of it: %s",
					 h->real->path, strerror(errno));
		h->shared->backing = 0;
	}
	pthread_mutex_unlock(&ops->backings);
}
#endif

static void handle_close(struct bdfs_ops *ops, struct handle *h)
{
	struct bdfs_model *m = h->node->model;

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	if (h->shared)
		end_pass_through(ops, h);
#endif
	if (m) {
		atomic_fetch_sub_explicit(&m->counters.open_files, 1, memory_order_relaxed);
		atomic_fetch_sub_explicit(&ops->models->totals.open_files, 1, memory_order_relaxed);
	}
	handle_free(ops, h);
}

/* Whatever can be known to fail fails here: loaders map files, and for them a failing read is a
 * signal without a message. */
static int handle_fill(fuse_req_t req, struct handle *h, struct fuse_file_info *fi,
		       struct bd_error *err)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = h->node;
	struct bdfs_model *m = node->model;
	size_t size;
	int r;

	h->size = node->size;
	if (node->control && node->control != BDFS_HUB_VERSION) {
		fi->direct_io = 1; /* its size is known only now */
		r = bdfs_control_text(node->control, ops->models, &ops->use, &h->owned, &size);
		h->text = h->owned;
		h->size = r < 0 ? 0 : size;
		return r;
	}
	fi->keep_cache = 1;
	if (!m || node->file == SIZE_MAX) {
		h->text = bdfs_tree_text(node);
		return 0;
	}
	r = bd_base_check(m->base->base, err);
	if (r < 0)
		return r;
	h->real = m->files[node->file].real;
	if (!h->real)
		return bdfs_model_acquire(ops->models, m, node->file, &h->view, err);
	r = bd_file_check(h->real, err);
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	if (r == 0)
		pass_through(req, h, fi);
#endif
	return r;
}

/* What messages call a file in its model's directory. */
static const char *path_of(const struct bdfs_node *node)
{
	return node->model && node->file != SIZE_MAX ? node->model->files[node->file].name : node->name;
}

static void count_error(struct bdfs_ops *ops, struct bdfs_model *model)
{
	bdfs_count(&ops->models->totals.errors, 1);
	if (model)
		bdfs_count(&model->counters.errors, 1);
}

/* The delta was overwritten in place. Is there, once the tree has followed, another model in its place? */
static bool is_superseded(struct bdfs_ops *ops, const struct bdfs_model *model)
{
	const struct bdfs_node *root = bdfs_tree_get(ops->tree, BDFS_ROOT_INO), *node;
	bool other;

	bdfs_watch_refresh(ops->watch);
	node = bdfs_tree_lookup(ops->tree, root, model->directory);
	other = node && node->model != model;
	bdfs_tree_put(ops->tree, node, 1);
	return other;
}

static int handle_open(fuse_req_t req, const struct bdfs_node *node, struct fuse_file_info *fi,
		       struct handle **handle)
{
	struct bdfs_ops *ops = ops_of(req);
	struct bdfs_model *m = node->model;
	struct handle *h = handle_new(ops, node);
	struct bd_error err = { 0 };
	int r;

	if (!h)
		return -ENOMEM;
	if (m) {
		bdfs_count(&m->counters.open_files, 1);
		bdfs_count(&ops->models->totals.open_files, 1);
	}
	r = handle_fill(req, h, fi, &err);
	if (r == 0) {
		if (m) {
			bdfs_count(&m->counters.opens, 1);
			bdfs_count(&ops->models->totals.opens, 1);
		}
		*handle = h;
		return 0;
	}
	handle_close(ops, h);
	if (r == -ESTALE && is_superseded(ops, m))
		return r; /* the kernel looks the name up again and opens what has taken its place */
	count_error(ops, m);
	bdfs_log_limited(ops->log, LOG_ERR, "%s/%s: cannot be opened: %s", m ? m->directory : "",
			 path_of(node), err.text);
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE ? r : -EIO;
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);
	struct handle *h;
	int r;

	if (!node || node->directory)
		r = node ? -EISDIR : -ESTALE;
	else if ((fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC))
		r = -EROFS;
	else
		r = handle_open(req, node, fi, &h);
	if (r < 0) {
		fuse_reply_err(req, -r);
	} else {
		fi->fh = (uintptr_t)h;
		if (fuse_reply_open(req, fi) < 0) /* interrupted: there will be no release */
			handle_close(ops, h);
	}
	bdfs_tree_put(ops->tree, node, 1);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	handle_close(ops_of(req), (struct handle *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

/* Fill the worker's buffer with a part of a file that is not text. 0, or a negative errno. */
static int read_model(const struct handle *h, struct worker *w, size_t size, uint64_t offset,
		      struct bd_error *err)
{
	ssize_t n;
	int r;

	if (h->real) {
		r = bd_file_read(h->real, w->buffer, size, offset, err);
		return r < 0 ? r : bd_file_check(h->real, err);
	}
	n = bd_view_read(h->view, h->node->file, w->buffer, size, offset, w->scratch, err);
	if (n >= 0 && (size_t)n != size)
		return bd_error_set(err, -EIO, "only %zd bytes came", n); /* never a short read */
	return n < 0 ? (int)n : 0;
}

static void count_read(struct bdfs_ops *ops, const struct handle *h, struct worker *w, size_t size,
		       uint64_t started)
{
	struct bdfs_counters *counters[] = { &h->node->model->counters, &ops->models->totals };
	uint64_t base = size, delta = 0;

	if (!h->real)
		bd_scratch_take_counts(w->scratch, &base, &delta);
	for (size_t i = 0; i < 2; i++) {
		bdfs_count(&counters[i]->reads, 1);
		bdfs_count(&counters[i]->bytes, size);
		bdfs_count(&counters[i]->base_bytes, base);
		bdfs_count(&counters[i]->delta_bytes, delta);
	}
	bdfs_latency_add(&ops->models->latency, bdfs_now() - started);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		    struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct handle *h = (const struct handle *)(uintptr_t)fi->fh;
	uint64_t started = bdfs_now();
	struct bd_error err = { 0 };
	struct worker *w;
	int r;

	(void)ino;
	if (offset < 0 || (uint64_t)offset >= h->size) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	if (size > h->size - (uint64_t)offset)
		size = (size_t)(h->size - (uint64_t)offset);
	w = worker_get(ops, size);
	if (!w && h->text) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	if (h->text) {
		/* Not out of the handle: as soon as the reader has its bytes, another thread may close it. */
		memcpy(w->buffer, h->text + offset, size);
		fuse_reply_buf(req, w->buffer, size);
		return;
	}
	r = w ? read_model(h, w, size, (uint64_t)offset, &err)
	      : bd_error_set(&err, -ENOMEM, "out of memory for reading");
	if (r < 0) {
		count_error(ops, h->node->model);
		bdfs_log_limited(ops->log, LOG_ERR, "%s/%s: cannot read %zu bytes at %lld: %s",
				 h->node->model->directory, path_of(h->node), size, (long long)offset,
				 err.text);
		fuse_reply_err(req, -r);
		return;
	}
	count_read(ops, h, w, size, started);
	fuse_reply_buf(req, w->buffer, size);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct bdfs_ops *ops = ops_of(req);
	struct statvfs st = { .f_bsize = BLOCK, .f_frsize = BLOCK, .f_namemax = 255 };
	uint64_t bytes, nodes;

	(void)ino;
	bdfs_tree_totals(ops->tree, &bytes, &nodes);
	st.f_blocks = (bytes + BLOCK - 1) / BLOCK;
	st.f_files = nodes;
	fuse_reply_statfs(req, &st);
}

/* --- extended attributes: what a model is made of --- */

static void encoding_text(unsigned encodings, char *text, size_t capacity)
{
	size_t used = 0;

	for (unsigned e = 0; e < BD_ENCODINGS; e++)
		if (encodings & 1u << e)
			used += (size_t)snprintf(text + used, capacity - used, "%s%s", used ? "," : "",
						 bd_encoding_name(e));
}

/* The value of an attribute of a model's directory or file; NULL: it has none of that name. */
static const char *attribute(const struct bdfs_node *node, const char *name, char text[64])
{
	const struct bdfs_model *m = node->model;
	const struct bdfs_file *f = m && !node->directory && node->file != SIZE_MAX
				  ? &m->files[node->file] : NULL;
	unsigned encodings = 0;
	uint64_t stored;

	if (!m)
		return NULL;
	if (!strcmp(name, "user.bitdelta.base"))
		return m->base->base->checkpoint->label;
	if (m->is_base)
		return NULL;
	if (!strcmp(name, "user.bitdelta.delta"))
		return m->path;
	if (!strcmp(name, "user.bitdelta.encoding")) {
		for (size_t i = 0; !f && i < m->file_count; i++)
			encodings |= m->files[i].encodings;
		encodings |= f ? f->encodings : 0;
		if (!encodings)
			return NULL; /* a file without tensors */
		encoding_text(encodings, text, 64);
		return text;
	}
	if (!strcmp(name, "user.bitdelta.ratio")) {
		stored = f ? f->stored : m->stored_bytes;
		snprintf(text, 64, "%.2f", (double)(f ? f->size : m->virtual_bytes) /
			 (double)(stored ? stored : 1));
		return text;
	}
	return NULL;
}

static void reply_bytes(fuse_req_t req, const char *data, size_t length, size_t room)
{
	if (!room)
		fuse_reply_xattr(req, length);
	else if (length > room)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, data, length);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);
	const char *value;
	char text[64];

	value = node ? attribute(node, name, text) : NULL;
	if (value)
		reply_bytes(req, value, strlen(value), size);
	else
		fuse_reply_err(req, node ? ENODATA : ESTALE);
	bdfs_tree_put(ops->tree, node, 1);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	static const char *const names[] = {
		"user.bitdelta.base", "user.bitdelta.delta", "user.bitdelta.encoding",
		"user.bitdelta.ratio",
	};
	struct bdfs_ops *ops = ops_of(req);
	const struct bdfs_node *node = bdfs_tree_get(ops->tree, ino);
	char list[128], text[64];
	size_t used = 0;

	for (size_t i = 0; node && i < sizeof(names) / sizeof(*names); i++)
		if (attribute(node, names[i], text)) {
			memcpy(list + used, names[i], strlen(names[i]) + 1);
			used += strlen(names[i]) + 1;
		}
	if (node)
		reply_bytes(req, list, used, size);
	else
		fuse_reply_err(req, ESTALE);
	bdfs_tree_put(ops->tree, node, 1);
}

/* Everything that would change something. The mount is read-only, so the kernel refuses most of it
 * by itself; `mount -o remount,rw` would let it through to here. */
static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int set,
		       struct fuse_file_info *fi)
{
	(void)ino, (void)attr, (void)set, (void)fi;
	fuse_reply_err(req, EROFS);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	(void)parent, (void)name, (void)mode, (void)rdev;
	fuse_reply_err(req, EROFS);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)parent, (void)name, (void)mode;
	fuse_reply_err(req, EROFS);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent, (void)name;
	fuse_reply_err(req, EROFS);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	(void)target, (void)parent, (void)name;
	fuse_reply_err(req, EROFS);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
		      const char *new_name, unsigned flags)
{
	(void)parent, (void)name, (void)new_parent, (void)new_name, (void)flags;
	fuse_reply_err(req, EROFS);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
	(void)ino, (void)new_parent, (void)new_name;
	fuse_reply_err(req, EROFS);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	(void)parent, (void)name, (void)mode, (void)fi;
	fuse_reply_err(req, EROFS);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *fi)
{
	(void)ino, (void)data, (void)size, (void)offset, (void)fi;
	fuse_reply_err(req, EROFS);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *fi)
{
	(void)ino, (void)mode, (void)offset, (void)length, (void)fi;
	fuse_reply_err(req, EROFS);
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
			size_t size, int flags)
{
	(void)ino, (void)name, (void)value, (void)size, (void)flags;
	fuse_reply_err(req, EROFS);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	(void)ino, (void)name;
	fuse_reply_err(req, EROFS);
}

/* Absent on purpose; the kernel asks once, gets ENOSYS and never asks again: access (the kernel
 * checks, default_permissions), flush and fsync (nothing to do), lseek (there are no holes), locks (the
 * kernel keeps them). */
const struct fuse_lowlevel_ops bdfs_ops_table = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.open = op_open,
	.release = op_release,
	.read = op_read,
	.statfs = op_statfs,
	.setattr = op_setattr,
	.mknod = op_mknod,
	.mkdir = op_mkdir,
	.unlink = op_unlink,
	.rmdir = op_unlink,
	.symlink = op_symlink,
	.rename = op_rename,
	.link = op_link,
	.create = op_create,
	.write = op_write,
	.fallocate = op_fallocate,
	.setxattr = op_setxattr,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.removexattr = op_removexattr,
};

int bdfs_ops_init(struct bdfs_ops *ops, struct bdfs_models *models, struct bdfs_tree *tree,
		  struct bdfs_log *log, struct bd_error *err)
{
	int r;

	memset(ops, 0, sizeof(*ops));
	ops->models = models;
	ops->tree = tree;
	ops->log = log;
	ops->use.mounted_at = time(NULL);
	ops->use.started = bdfs_now();
	pthread_mutex_init(&ops->backings, NULL);
	pthread_mutex_init(&ops->opened, NULL);
	r = pthread_key_create(&ops->worker, worker_free);
	if (r)
		return bd_error_set(err, -r, "cannot create a thread key: %s", strerror(r));
	return 0;
}

void bdfs_ops_end(struct bdfs_ops *ops)
{
	/* Files that were open when the connection ended: the kernel tells nobody of their end. */
	while (ops->handles)
		handle_free(ops, ops->handles);
	pthread_key_delete(ops->worker);
	pthread_mutex_destroy(&ops->backings);
	pthread_mutex_destroy(&ops->opened);
}
