/* SPDX-License-Identifier: Apache-2.0 */
/* faulty_fs.c: a directory shown a second time, by a disk that can be told to fail.
 *
 *     faulty_fs DIRECTORY MOUNTPOINT
 *
 * Read-only. The file .control at the root takes commands: "fail" makes every read give EIO, "fail TEXT"
 * those of files whose path holds TEXT, and "well" ends that. Each command also makes the kernel
 * forget what it has cached, mapped pages included, when the write returns. Reading .control gives
 * the number of reads that failed since the last command. Stays until it is unmounted. */
#define FUSE_USE_VERSION 35
#include <fuse.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char control[] = "/.control";
static int root;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the rest */
static bool failing;
static char pattern[200];
static unsigned long failures;
static char *opened[1000];
static size_t opened_count;

static const char *below(const char *path)
{
	return path[1] ? path + 1 : ".";
}

static int do_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	(void)fi;
	if (strcmp(path, control) == 0) {
		*st = (struct stat){ .st_mode = S_IFREG | 0644, .st_nlink = 1 };
		return 0;
	}
	return fstatat(root, below(path), st, 0) < 0 ? -errno : 0;
}

static int do_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
		      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
	int fd = openat(root, below(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	(void)offset;
	(void)fi;
	(void)flags;
	if (!d)
		return -errno;
	while ((entry = readdir(d)))
		fill(buffer, entry->d_name, NULL, 0, 0);
	closedir(d);
	return 0;
}

static int do_open(const char *path, struct fuse_file_info *fi)
{
	size_t i = 0;
	int fd;

	if (strcmp(path, control) == 0) {
		fi->direct_io = 1;
		return 0;
	}
	fd = openat(root, below(path), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	fi->fh = (uint64_t)fd;
	fi->keep_cache = 1;
	pthread_mutex_lock(&lock);
	while (i < opened_count && strcmp(opened[i], path) != 0)
		i++;
	if (i == opened_count && i < sizeof(opened) / sizeof(*opened))
		opened[opened_count++] = strdup(path);
	pthread_mutex_unlock(&lock);
	return 0;
}

static int do_release(const char *path, struct fuse_file_info *fi)
{
	if (!path || strcmp(path, control) != 0)
		close((int)fi->fh);
	return 0;
}

static int do_read(const char *path, char *buffer, size_t size, off_t offset,
		   struct fuse_file_info *fi)
{
	bool fails;
	ssize_t n;

	pthread_mutex_lock(&lock);
	if (strcmp(path, control) == 0) {
		n = offset ? 0 : snprintf(buffer, size, "%lu\n", failures);
		pthread_mutex_unlock(&lock);
		return (int)n;
	}
	fails = failing && strstr(path, pattern);
	failures += fails;
	pthread_mutex_unlock(&lock);
	if (fails)
		return -EIO;
	n = pread((int)fi->fh, buffer, size, offset);
	return n < 0 ? -errno : (int)n;
}

static int do_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
	(void)size;
	(void)fi;
	return strcmp(path, control) == 0 ? 0 : -EROFS;
}

static int do_write(const char *path, const char *text, size_t size, off_t offset,
		    struct fuse_file_info *fi)
{
	size_t n = size;

	(void)path;
	(void)offset;
	(void)fi;
	while (n && text[n - 1] == '\n')
		n--;
	pthread_mutex_lock(&lock);
	failing = n >= 4 && memcmp(text, "fail", 4) == 0;
	snprintf(pattern, sizeof(pattern), "%.*s", failing && n > 5 ? (int)n - 5 : 0, text + 5);
	failures = 0;
	n = opened_count; /* names are only ever added */
	pthread_mutex_unlock(&lock);
	for (size_t i = 0; i < n; i++)
		fuse_invalidate_path(fuse_get_context()->fuse, opened[i]);
	return (int)size;
}

static void *do_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	(void)conn;
	config->use_ino = 1;
	config->hard_remove = 1;
	return NULL;
}

static const struct fuse_operations operations = {
	.init = do_init, .getattr = do_getattr, .readdir = do_readdir, .open = do_open,
	.release = do_release, .read = do_read, .truncate = do_truncate, .write = do_write,
};

int main(int argc, char **argv)
{
	char *arguments[] = { argv[0], NULL, "-o", "fsname=faulty,subtype=faulty_fs", NULL };

	if (argc != 3) {
		fprintf(stderr, "Usage: faulty_fs DIRECTORY MOUNTPOINT\n");
		return 2;
	}
	root = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0) {
		perror(argv[1]);
		return 1;
	}
	arguments[1] = argv[2];
	return fuse_main(4, arguments, &operations, NULL);
}
