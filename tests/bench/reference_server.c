/* SPDX-License-Identifier: Apache-2.0 */
/* reference_server MOUNTPOINT THREADS copy FILE | zero SIZE: the same FUSE loop as the daemon's with
 * the least work that a server can do for a read, for tests/bench.sh.
 *
 *   copy FILE   copies the bytes out of memory, where FILE was read to before mounting: what a
 *               daemon without any arithmetic reaches
 *   zero SIZE   answers with a buffer that was never touched again: what FUSE itself costs
 *
 * The root has the files "0" to "999", each of the same content, none of them listed. Stays in the
 * foreground and ends when it is unmounted. Settings are those of fs/mount.c and fs/ops.c: a buffer of a
 * thread's own, aligned to pages; idle threads kept; no clone_fd; as many requests in flight. Readahead
 * belongs to the mount and is set by who mounts. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#define FOREVER 86400.0 /* seconds */
#define FILES 1000
#define FIRST (FUSE_ROOT_ID + 1) /* inode number of the file "0" */
#define BUFFER (1u << 20)

static const char *content; /* NULL: zero */
static uint64_t size;
static unsigned threads;

static void die(const char *what)
{
	fprintf(stderr, "reference_server: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	if (conn->max_background < 2 * threads)
		conn->max_background = 2 * threads;
}

static struct stat attributes(fuse_ino_t ino)
{
	struct stat st = { .st_ino = ino, .st_mode = S_IFDIR | 0555, .st_nlink = 2 };

	if (ino != FUSE_ROOT_ID) {
		st.st_mode = S_IFREG | 0444;
		st.st_nlink = 1;
		st.st_size = (off_t)size;
		st.st_blocks = (blkcnt_t)((size + 511) / 512);
	}
	return st;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .attr_timeout = FOREVER, .entry_timeout = FOREVER };
	char *end;
	unsigned long n = strtoul(name, &end, 10);

	if (parent != FUSE_ROOT_ID || end == name || *end || n >= FILES) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	entry.ino = FIRST + n;
	entry.attr = attributes(entry.ino);
	fuse_reply_entry(req, &entry);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st = attributes(ino);

	(void)fi;
	fuse_reply_attr(req, &st, FOREVER);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t wanted, off_t offset,
		    struct fuse_file_info *fi)
{
	static _Thread_local char *buffer;
	static _Thread_local size_t capacity;

	(void)ino, (void)fi;
	if ((uint64_t)offset >= size)
		wanted = 0;
	else if (wanted > size - (uint64_t)offset)
		wanted = (size_t)(size - (uint64_t)offset);
	if (wanted > capacity) { /* the first time */
		free(buffer);
		capacity = wanted > BUFFER ? wanted : BUFFER;
		buffer = aligned_alloc(4096, (capacity + 4095) / 4096 * 4096);
		if (!buffer)
			die("memory");
		memset(buffer, 0, capacity);
	}
	if (content && wanted)
		memcpy(buffer, content + offset, wanted);
	fuse_reply_buf(req, buffer, wanted);
}

static const struct fuse_lowlevel_ops operations = {
	.init = op_init,
	.lookup = op_lookup,
	.getattr = op_getattr,
	.open = op_open,
	.read = op_read,
};

/* Memory of our own, not a mapping: pages that are mapped cannot be dropped from the page cache, which
 * the benchmark does to the file. */
static const char *load(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	uint64_t done = 0;
	ssize_t n;
	char *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	size = (uint64_t)st.st_size;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("memory");
	while (done < size && (n = read(fd, p + done, size - done)) > 0)
		done += (uint64_t)n;
	if (done < size)
		die(path);
	close(fd);
	return p;
}

int main(int argc, char **argv)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	struct fuse_session *session;
	int r;

	if (argc != 5 || (strcmp(argv[3], "copy") && strcmp(argv[3], "zero")) || !config) {
		fprintf(stderr, "Usage: reference_server MOUNTPOINT THREADS copy FILE | zero SIZE\n");
		return 1;
	}
	threads = (unsigned)strtoul(argv[2], NULL, 10);
	if (!strcmp(argv[3], "copy"))
		content = load(argv[4]);
	else
		size = strtoull(argv[4], NULL, 10);

	if (fuse_opt_add_arg(&args, "reference_server") || fuse_opt_add_arg(&args, "-o") ||
	    fuse_opt_add_arg(&args, "ro,nosuid,nodev,noexec,default_permissions,fsname=reference"))
		die("memory");
	session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
	if (!session || fuse_set_signal_handlers(session) < 0 ||
	    fuse_session_mount(session, argv[1]) < 0)
		die(argv[1]);
	fuse_loop_cfg_set_clone_fd(config, 0);
	fuse_loop_cfg_set_max_threads(config, threads);
	fuse_loop_cfg_set_idle_threads(config, threads);
	r = fuse_session_loop_mt(session, config);
	fuse_session_unmount(session);
	fuse_remove_signal_handlers(session);
	fuse_session_destroy(session);
	fuse_loop_cfg_destroy(config);
	fuse_opt_free_args(&args);
	return r < 0 ? 1 : 0;
}
