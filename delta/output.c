/* SPDX-License-Identifier: Apache-2.0 */
/* output.c: atomic, durable files, see output.h. */
#include "output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "file.h"
#include "permissions.h"

#define TEMPORARY_SUFFIX ".tmp"
#define RANDOM_DIGITS 6
#define PATIENCE 1000 /* ms for others to look for leftovers */
#define ASIDE 99 /* names for what could not take its own */
#define EARLY_WRITEBACK ((size_t)1 << 20) /* bytes of a write that is worth starting at once */

/* Is NAME one of the temporary files that an interrupted writer of `o` may have left? */
static int is_leftover(const struct bd_output *o, const char *name)
{
	size_t n = strlen(o->name);

	return name[0] == '.' && strncmp(name + 1, o->name, n) == 0 && name[1 + n] == '.' &&
	       strspn(name + 2 + n, "0123456789abcdef") == RANDOM_DIGITS &&
	       strcmp(name + 2 + n + RANDOM_DIGITS, TEMPORARY_SUFFIX) == 0;
}

/* Best effort: a leftover that a living writer holds is locked, as is a directory in which one exchanges
 * names. */
static void remove_leftovers(struct bd_output *o)
{
	DIR *dir;
	struct dirent *entry;

	if (flock(o->directory_fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
		return;
	dir = opendir(o->directory);
	while (dir && (entry = readdir(dir))) {
		int fd;

		if (!is_leftover(o, entry->d_name))
			continue;
		fd = openat(o->directory_fd, entry->d_name,
			    O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
		if (fd < 0)
			continue;
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			unlinkat(o->directory_fd, entry->d_name, 0);
		close(fd);
	}
	if (dir)
		closedir(dir);
	flock(o->directory_fd, LOCK_UN);
}

static int choose_temporary(struct bd_output *o, struct bd_error *err)
{
	unsigned number = 0;

	free(o->temporary);
	o->temporary = NULL;
	if (getrandom(&number, sizeof(number), 0) < 0)
		number = (unsigned)getpid();
	if (asprintf(&o->temporary, ".%s.%06x" TEMPORARY_SUFFIX, o->name, number & 0xFFFFFF) < 0) {
		o->temporary = NULL;
		return bd_error_set(err, -ENOMEM, "%s: out of memory", o->path);
	}
	return 0;
}

static const char *descriptor_path(const struct bd_output *o, char path[64])
{
	snprintf(path, 64, "/proc/self/fd/%d", o->fd);
	return path;
}

/* No file has the temporary's name: forget it, and report errno. */
static int fail_unnamed(struct bd_output *o, const char *what, struct bd_error *err)
{
	int code = errno;

	free(o->temporary);
	o->temporary = NULL;
	return bd_error_set(err, -code, "%s: %s: %s", o->path, what, strerror(code));
}

/* Nobody else may read what will have somebody's permissions. */
static mode_t first_mode(const struct bd_output *o)
{
	return o->replaces ? 0600 : 0666;
}

/* A file without a name, where the filesystem has such and /proc is there to name it in the end. */
static bool open_unnamed(struct bd_output *o)
{
	char source[64];

	o->fd = openat(o->directory_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, first_mode(o));
	if (o->fd < 0)
		return false;
	if (access(descriptor_path(o, source), F_OK) == 0)
		return true;
	close(o->fd);
	o->fd = -1;
	return false;
}

static int open_named(struct bd_output *o, struct bd_error *err)
{
	struct stat st;

	for (int attempt = 0; attempt < 100; attempt++) {
		int rc = choose_temporary(o, err);

		if (rc < 0)
			return rc;
		o->fd = openat(o->directory_fd, o->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
			       first_mode(o));
		if (o->fd < 0 && errno != EEXIST)
			break;
		if (o->fd < 0)
			continue;
		/* Another writer's remove_leftovers may have come before the lock. Not every
		 * filesystem has locks. */
		if ((flock(o->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) &&
		    fstat(o->fd, &st) == 0 && st.st_nlink > 0)
			return 0;
		close(o->fd);
		o->fd = -1;
	}
	return fail_unnamed(o, "cannot create a temporary file in the directory", err);
}

/* In a sticky directory others may not replace a file, which would otherwise be found out at the end. */
static bool is_kept_from_us(const struct bd_output *o)
{
	struct stat directory, entry;
	uid_t us = geteuid();

	return us != 0 && fstat(o->directory_fd, &directory) == 0 && directory.st_mode & S_ISVTX &&
	       directory.st_uid != us && fstatat(o->directory_fd, o->name, &entry, AT_SYMLINK_NOFOLLOW) == 0 &&
	       entry.st_uid != us;
}

int bd_output_open(struct bd_output **out, const char *path, struct bd_error *err)
{
	struct bd_output *o = calloc(1, sizeof(*o));
	const char *slash = strrchr(path, '/');
	int rc = 0;

	if (!o)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
	o->fd = o->directory_fd = -1;
	o->path = strdup(path);
	o->name = strdup(slash ? slash + 1 : path);
	o->directory = !slash ? strdup(".") : slash == path ? strdup("/") :
							      strndup(path, (size_t)(slash - path));
	if (!o->path || !o->name || !o->directory) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	o->directory_fd = open(o->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (o->directory_fd < 0) {
		rc = bd_error_set(err, -errno, "%s: cannot open the directory '%s': %s", path,
				  o->directory, strerror(errno));
		goto out;
	}
	o->replaces = fstatat(o->directory_fd, o->name, &o->old, 0) == 0;
	if (!*o->name || (o->replaces && !S_ISREG(o->old.st_mode))) {
		rc = bd_error_set(err, -EINVAL, "%s: not a file name, or something that is no regular "
				  "file has it", path);
		goto out;
	}
	if (is_kept_from_us(o)) {
		rc = bd_error_set(err, -EPERM, "%s: belongs to another user, in a directory (sticky) where only "
				  "owners replace files", path);
		goto out;
	}
	/* The temporary name must fit as well, which would otherwise be found out at the end. */
	if (strlen(o->name) > NAME_MAX - strlen("..") - RANDOM_DIGITS - strlen(TEMPORARY_SUFFIX)) {
		rc = bd_error_set(err, -ENAMETOOLONG, "%s: the file name is longer than %zu bytes", path,
				  NAME_MAX - strlen("..") - RANDOM_DIGITS - strlen(TEMPORARY_SUFFIX));
		goto out;
	}
	remove_leftovers(o);
	rc = open_unnamed(o) ? 0 : open_named(o, err);
	if (rc < 0)
		goto out;
	/* Held until the end: tells remove_leftovers of another writer that this one is alive. */
	flock(o->fd, LOCK_EX | LOCK_NB);
	*out = o;
	o = NULL;
out:
	bd_output_close(o);
	return rc;
}

int bd_output_write(struct bd_output *o, const void *data, size_t size, uint64_t offset,
		    struct bd_error *err)
{
	const char *p = data;
	size_t whole = size;

	while (size > 0) {
		ssize_t n = pwrite(o->fd, p, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return bd_error_set(err, n < 0 ? -errno : -EIO, "%s: cannot write: %s", o->path,
					    strerror(n < 0 ? errno : EIO));
		p += n;
		size -= (size_t)n;
		offset += (uint64_t)n;
	}
	/* Let the disk begin at once, so that the fsync at the end has little left to wait for. */
	if (whole >= EARLY_WRITEBACK)
		sync_file_range(o->fd, (off_t)(offset - whole), (off_t)whole, SYNC_FILE_RANGE_WRITE);
	return 0;
}

/* Name a file that has none, as a temporary: link(2) cannot replace the old file, rename(2) can. */
static int link_temporary(struct bd_output *o, struct bd_error *err)
{
	char source[64];

	descriptor_path(o, source);
	for (int attempt = 0; attempt < 100; attempt++) {
		int rc = choose_temporary(o, err);

		if (rc < 0)
			return rc;
		if (linkat(AT_FDCWD, source, o->directory_fd, o->temporary, AT_SYMLINK_FOLLOW) == 0)
			return 0;
		if (errno != EEXIST)
			break;
	}
	return fail_unnamed(o, "cannot name the finished file", err);
}

/* PATH has its name by now. Some network filesystems cannot sync directories, and need not. */
static int sync_directory(int fd, const char *path, struct bd_error *err)
{
	if (fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP)
		return 0;
	return bd_error_set(err, -errno, "%s: is written, but may not survive a crash: its directory "
			    "cannot be written to the disk: %s", path, strerror(errno));
}

static void take_permissions(struct bd_output *o)
{
	struct stat st;

	/* As they are now; of a file that has been removed, as they were. */
	if (fstatat(o->directory_fd, o->name, &st, 0) == 0 && S_ISREG(st.st_mode)) {
		o->old = st;
		o->replaces = true;
	}
	if (o->replaces)
		bd_permissions_take(o->fd, o->path, &o->old);
}

/* All that is to be done before the file has its name. */
static int complete(struct bd_output *o, struct bd_error *err)
{
	take_permissions(o);
	/* A failed fsync is final: the kernel may have dropped the dirty pages, so never retry. */
	if (fsync(o->fd) < 0)
		return bd_error_set(err, -errno, "%s: cannot write to the disk: %s", o->path,
				    strerror(errno));
	return o->temporary ? 0 : link_temporary(o, err);
}

static int rename_temporary(struct bd_output *o, const char *name)
{
	return renameat(o->directory_fd, o->temporary, o->directory_fd, name) < 0 ? -errno : 0;
}

static int fail_rename(const struct bd_output *o, int code, struct bd_error *err)
{
	return bd_error_set(err, code, "%s: cannot rename the finished file: %s", o->path,
			    strerror(-code));
}

static int end_commit(struct bd_output *o, struct bd_error *err)
{
	free(o->temporary);
	o->temporary = NULL;
	return sync_directory(o->directory_fd, o->path, err);
}

int bd_output_commit(struct bd_output *o, struct bd_error *err)
{
	int rc = complete(o, err);

	if (rc < 0)
		return rc;
	rc = rename_temporary(o, o->name);
	return rc < 0 ? fail_rename(o, rc, err) : end_commit(o, err);
}

/* ---- Only in the place of a certain file ---- */

static int look(int dirfd, const char *name, struct bd_occupant *occupant)
{
	occupant->there = fstatat(dirfd, name, &occupant->st, AT_SYMLINK_NOFOLLOW) == 0;
	return occupant->there || errno == ENOENT ? 0 : -errno;
}

int bd_output_note(struct bd_occupant *occupant, const char *path, struct bd_error *err)
{
	int rc = look(AT_FDCWD, path, occupant);

	return rc < 0 ? bd_error_set(err, rc, "%s: %s", path, strerror(-rc)) : 0;
}

static bool same_occupant(const struct bd_occupant *a, const struct bd_occupant *b)
{
	return a->there == b->there && (!a->there || bd_file_unwritten(&a->st, &b->st));
}

bool bd_output_still(const struct bd_occupant *was, const char *path)
{
	struct bd_occupant now;

	return look(AT_FDCWD, path, &now) == 0 && same_occupant(was, &now);
}

/* Old kernels and some filesystems know no flags. */
static bool has_no_flags(int code)
{
	return code == -EINVAL || code == -ENOSYS || code == -EOPNOTSUPP;
}

static int rename_flagged(struct bd_output *o, const char *name, unsigned flags)
{
	return renameat2(o->directory_fd, o->temporary, o->directory_fd, name, flags) < 0 ? -errno : 0;
}

/* Rename to a NAME that nobody has, else -EEXIST. */
static int rename_to_free(struct bd_output *o, const char *name)
{
	struct bd_occupant now;
	int rc = rename_flagged(o, name, RENAME_NOREPLACE);

	if (!has_no_flags(rc))
		return rc;
	rc = look(o->directory_fd, name, &now);
	if (rc == 0)
		rc = now.there ? -EEXIST : rename_temporary(o, name);
	return rc;
}

/* After an exchange: HELD, which has the temporary name, came meanwhile and gets its own name back; but if
 * yet another came, that is the one that stays, as if we had never been there. */
static int give_back(struct bd_output *o, struct bd_occupant held)
{
	struct bd_occupant put = { true, { 0 } }, out;
	int rc = fstat(o->fd, &put.st) < 0 ? -errno : 0;

	while (rc == 0) {
		rc = rename_flagged(o, o->name, RENAME_EXCHANGE);
		if (rc == -ENOENT) /* what came was removed, under the name that we have given away */
			return 0;
		if (rc == 0)
			rc = look(o->directory_fd, o->temporary, &out);
		if (rc == 0 && same_occupant(&out, &put))
			return 0;
		put = held;
		held = out;
	}
	return rc;
}

/* Until the end: what an exchange gives a temporary name is no leftover. */
static void keep_leftovers(const struct bd_output *o)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	for (int i = 0; i < PATIENCE && flock(o->directory_fd, LOCK_SH | LOCK_NB) < 0 &&
	     errno == EWOULDBLOCK; i++)
		nanosleep(&pause, NULL);
}

/* 0: the file has its name. -ECANCELED: WAS has it no more, and we not either. */
static int take_name(struct bd_output *o, const struct bd_occupant *was, struct bd_error *err)
{
	struct bd_occupant now, out;
	int rc;

	if (!was->there) {
		rc = rename_to_free(o, o->name);
		return rc == -EEXIST ? -ECANCELED : rc < 0 ? fail_rename(o, rc, err) : 0;
	}
	keep_leftovers(o);
	rc = look(o->directory_fd, o->name, &now);
	if (rc == 0 && !same_occupant(&now, was))
		return -ECANCELED;
	if (rc == 0)
		rc = rename_flagged(o, o->name, RENAME_EXCHANGE);
	if (has_no_flags(rc)) {
		rc = rename_temporary(o, o->name);
		return rc < 0 ? fail_rename(o, rc, err) : 0;
	}
	if (rc < 0)
		return rc == -ENOENT ? -ECANCELED : fail_rename(o, rc, err);
	rc = look(o->directory_fd, o->temporary, &out);
	if (rc == 0 && same_occupant(&out, was)) {
		unlinkat(o->directory_fd, o->temporary, 0);
		return 0;
	}
	if (rc == 0)
		rc = give_back(o, out);
	if (rc == 0)
		return -ECANCELED;
	rc = bd_error_set(err, rc, "%s: another file came in its place meanwhile and cannot be put back: "
			  "%s; it is %s/%s", o->path, strerror(-rc), o->directory, o->temporary);
	free(o->temporary); /* bd_output_close would remove it */
	o->temporary = NULL;
	return rc;
}

/* The new file, which has the temporary name, gets one that people understand. */
static int keep_aside(struct bd_output *o, const char *reason, struct bd_error *err)
{
	struct stat ours, there;
	char *name = NULL;
	int rc = -ENOENT;

	/* Three writers at once may have cost it its name. */
	if (fstat(o->fd, &ours) == 0 &&
	    fstatat(o->directory_fd, o->temporary, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
	    ours.st_dev == there.st_dev && ours.st_ino == there.st_ino)
		rc = -EEXIST;
	for (int i = 1; i <= ASIDE && rc == -EEXIST; i++) {
		free(name);
		if ((i == 1 ? asprintf(&name, "%s.new", o->name) :
			      asprintf(&name, "%s.new-%d", o->name, i)) < 0) {
			name = NULL;
			rc = -ENOMEM;
			break;
		}
		rc = rename_to_free(o, name);
	}
	if (rc == 0) {
		end_commit(o, NULL);
		bd_error_set(err, -ECANCELED, "%s: %s; what was to take its place is %.*s%s", o->path,
			     reason, (int)(strlen(o->path) - strlen(o->name)), o->path, name);
	} else {
		bd_error_set(err, -ECANCELED, "%s: %s; what was to take its place could not be kept: %s",
			     o->path, reason, strerror(-rc));
	}
	free(name);
	return -ECANCELED;
}

int bd_output_replace(struct bd_output *o, const struct bd_occupant *was, struct bd_error *err)
{
	struct bd_occupant now;
	int rc = complete(o, err);

	if (rc == 0)
		rc = take_name(o, was, err);
	if (rc == 0)
		return end_commit(o, err);
	if (rc != -ECANCELED)
		return rc;
	if (look(o->directory_fd, o->name, &now) == 0 && !now.there)
		return keep_aside(o, "was removed meanwhile and stays so", err);
	return keep_aside(o, was->there ? "another file came in its place meanwhile, and stays" :
			  "a file came there meanwhile, and stays", err);
}

void bd_output_close(struct bd_output *o)
{
	if (!o)
		return;
	if (o->temporary)
		unlinkat(o->directory_fd, o->temporary, 0);
	if (o->fd >= 0)
		close(o->fd);
	if (o->directory_fd >= 0)
		close(o->directory_fd);
	free(o->temporary);
	free(o->path);
	free(o->directory);
	free(o->name);
	free(o);
}

int bd_output_sync_directory(const char *path, struct bd_error *err)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc;

	if (fd < 0)
		return bd_error_set(err, -errno, "%s: cannot open the directory: %s", path,
				    strerror(errno));
	rc = sync_directory(fd, path, err);
	close(fd);
	return rc;
}
