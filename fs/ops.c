/* ops.c: the answers to the kernel's requests, see ops.h. */
#include "ops.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define FOREVER 86400.0    /* seconds; contents never change, but who knows what asks for 10^9 */
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

static const struct bdfs_node *node_of(fuse_req_t req, fuse_ino_t ino)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);

	return bdfs_tree_find(ops->tree, ino);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct bdfs_ops *ops = userdata;

	/* NFS servers look up "." and ".." by inode number, which is what our node ids are. */
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	fuse_set_feature_flag(conn, FUSE_CAP_EXPORT_SUPPORT);
#else
	conn->want |= conn->capable & FUSE_CAP_EXPORT_SUPPORT;
#endif
	/* The default of 12 readahead requests in flight would leave threads of a large machine idle. */
	if (conn->max_background < 2 * ops->threads)
		conn->max_background = 2 * ops->threads;
}

/* The kernel reads 128 KiB ahead, which costs a fifth of the speed. INIT can only lower that; root
 * can raise it here, and only after INIT was answered: hence at the first request that follows. */
static void tune(struct bdfs_ops *ops)
{
	char path[64], text[16];
	int fd, n;

	if (!ops->readahead || atomic_exchange(&ops->tuned, true))
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", ops->major, ops->minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* not root, or no sysfs: slower, not wrong */
	n = snprintf(text, sizeof(text), "%u\n", ops->readahead);
	if (write(fd, text, (size_t)n) != n)
		bdfs_log_write(ops->log, LOG_INFO, "cannot set the readahead in %s: %s", path,
			       strerror(errno));
	close(fd);
}

static void fill_entry(const struct bdfs_tree *tree, const struct bdfs_node *node,
		       struct fuse_entry_param *entry)
{
	memset(entry, 0, sizeof(*entry));
	entry->ino = node->ino;
	entry->attr_timeout = entry->entry_timeout = FOREVER;
	bdfs_tree_stat(tree, node, &entry->attr);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);
	const struct bdfs_node *directory = node_of(req, parent), *node;
	struct fuse_entry_param entry = { .entry_timeout = FOREVER };

	if (!directory) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	if (!directory->directory) {
		fuse_reply_err(req, ENOTDIR);
		return;
	}
	node = bdfs_tree_lookup(directory, name);
	if (node)
		fill_entry(ops->tree, node, &entry);
	fuse_reply_entry(req, &entry); /* inode 0: there is none, and the kernel remembers that */
}

/* The tree outlives every reference that the kernel holds. */
static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	(void)ino;
	(void)count;
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	(void)count;
	(void)forgets;
	fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);
	const struct bdfs_node *node = node_of(req, ino);
	struct stat st;

	(void)fi;
	tune(ops);
	if (!node) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	bdfs_tree_stat(ops->tree, node, &st);
	fuse_reply_attr(req, &st, FOREVER);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct bdfs_node *node = node_of(req, ino);

	if (!node || !node->directory) {
		fuse_reply_err(req, node ? ENOTDIR : ESTALE);
		return;
	}
	fi->cache_readdir = 1;
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

/* Entries are numbered 0 for ".", 1 for "..", then the children; an entry's offset is the number of the
 * next one. */
static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, bool plus)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);
	const struct bdfs_node *directory = node_of(req, ino), *node;
	struct fuse_entry_param entry;
	struct worker *w = worker_get(ops, size);
	size_t used = 0, n;
	const char *name;

	if (!directory || !directory->directory || !w) {
		fuse_reply_err(req, !w ? ENOMEM : directory ? ENOTDIR : ESTALE);
		return;
	}
	for (uint64_t i = (uint64_t)offset; i < directory->child_count + 2; i++) {
		node = i == 0 ? directory : i == 1 ? directory->parent : &directory->children[i - 2];
		name = i == 0 ? "." : i == 1 ? ".." : node->name;
		fill_entry(ops->tree, node, &entry);
		if (plus) {
			if (i < 2)
				entry.ino = 0; /* these two take no reference */
			n = fuse_add_direntry_plus(req, w->buffer + used, size - used, name, &entry,
						   (off_t)(i + 1));
		} else {
			n = fuse_add_direntry(req, w->buffer + used, size - used, name,
					      &entry.attr, (off_t)(i + 1));
		}
		if (n > size - used)
			break; /* it did not fit and was not added */
		used += n;
	}
	fuse_reply_buf(req, w->buffer, used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		       struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, offset, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
			   struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, offset, true);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}

/* Whatever can be known to fail fails here: loaders map files, and for them a failing read is a
 * signal without a message. */
static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);
	const struct bdfs_node *node = node_of(req, ino);
	struct bd_error err = { 0 };
	struct bd_view *view;
	int r;

	if (!node || node->directory) {
		fuse_reply_err(req, node ? EISDIR : ESTALE);
		return;
	}
	if ((fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC)) {
		fuse_reply_err(req, EROFS);
		return;
	}
	view = node->view;
	r = bd_file_check(view->delta->file, &err);
	if (r == 0)
		r = bd_base_check(view->base, &err);
	if (r == 0)
		r = bd_view_acquire(view, node->file, &err);
	if (r < 0) {
		bdfs_log_limited(ops->log, LOG_ERR, "%s/%s: cannot be opened: %s", view->name,
				 node->name, err.text);
		fuse_reply_err(req, r == -ENOMEM ? ENOMEM : EIO);
		return;
	}
	fi->fh = (uintptr_t)node;
	fi->keep_cache = 1;
	if (fuse_reply_open(req, fi) == -ENOENT) /* interrupted: there will be no release */
		bd_view_release(view, node->file);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct bdfs_node *node = (const struct bdfs_node *)(uintptr_t)fi->fh;

	(void)ino;
	bd_view_release(node->view, node->file);
	fuse_reply_err(req, 0);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		    struct fuse_file_info *fi)
{
	struct bdfs_ops *ops = fuse_req_userdata(req);
	const struct bdfs_node *node = (const struct bdfs_node *)(uintptr_t)fi->fh;
	struct bd_error err = { 0 };
	struct worker *w;
	ssize_t n;

	(void)ino;
	if (offset < 0 || (uint64_t)offset >= node->size) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	if (size > node->size - (uint64_t)offset)
		size = (size_t)(node->size - (uint64_t)offset);
	w = worker_get(ops, size);
	if (!w) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	n = bd_view_read(node->view, node->file, w->buffer, size, (uint64_t)offset, w->scratch, &err);
	if (n >= 0 && (size_t)n != size)
		n = bd_error_set(&err, -EIO, "only %zd bytes came", n); /* never a short read */
	if (n < 0) {
		bdfs_log_limited(ops->log, LOG_ERR, "%s/%s: cannot read %zu bytes at %lld: %s",
				 node->view->name, node->name, size, (long long)offset, err.text);
		fuse_reply_err(req, (int)-n);
		return;
	}
	fuse_reply_buf(req, w->buffer, size);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	const struct bdfs_ops *ops = fuse_req_userdata(req);
	struct statvfs st = {
		.f_bsize = BLOCK,
		.f_frsize = BLOCK,
		.f_blocks = (ops->tree->bytes + BLOCK - 1) / BLOCK,
		.f_files = ops->tree->count,
		.f_namemax = 255,
	};

	(void)ino;
	fuse_reply_statfs(req, &st);
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
 * checks, default_permissions), flush and fsync (nothing to do), getxattr and listxattr (readers get
 * ENOTSUP, which cp -a and tar know), lseek (there are no holes), locks (the kernel keeps them). */
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
	.removexattr = op_removexattr,
};

int bdfs_ops_init(struct bdfs_ops *ops, const struct bdfs_tree *tree, struct bdfs_log *log,
		  struct bd_error *err)
{
	int r;

	memset(ops, 0, sizeof(*ops));
	ops->tree = tree;
	ops->log = log;
	atomic_init(&ops->tuned, false);
	r = pthread_key_create(&ops->worker, worker_free);
	if (r)
		return bd_error_set(err, -r, "cannot create a thread key: %s", strerror(r));
	return 0;
}

void bdfs_ops_end(struct bdfs_ops *ops)
{
	pthread_key_delete(ops->worker);
}
