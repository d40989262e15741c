/* SPDX-License-Identifier: Apache-2.0 */
/* sandbox.c: fewer rights for the daemon, see sandbox.h. */
#include "sandbox.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "glob.h"
#include "hub.h"
#include "sources.h"

#define LEVELS 16 /* of directories in a base, more than anybody has */

/* --- what may be read --- */

/* Is it among what is noted, with all below it? */
static bool is_noted(const struct bdfs_sandbox *s, const struct stat *wanted)
{
	for (size_t i = 0; i < s->count; i++)
		if (s->list[i].dev == wanted->st_dev && s->list[i].ino == wanted->st_ino)
			return true;
	return false;
}

/* Takes FD, unless it was noted before. */
static int add(struct bdfs_sandbox *s, int fd, const struct stat *st)
{
	struct bdfs_readable *list;

	if (is_noted(s, st)) {
		close(fd);
		return 0;
	}
	list = reallocarray(s->list, s->count + 1, sizeof(*list));
	if (!list) {
		close(fd);
		return -ENOMEM;
	}
	s->list = list;
	list[s->count++] = (struct bdfs_readable){ fd, S_ISDIR(st->st_mode), st->st_dev, st->st_ino };
	return 0;
}

/* PATH for noting, else -1; *r is 0 where it just cannot be had. */
static int open_path(const char *path, int flags, struct stat *st, int *r)
{
	int fd = open(path, O_PATH | O_CLOEXEC | flags);

	*r = fd >= 0 || (errno != EMFILE && errno != ENFILE && errno != ENOMEM) ? 0 : -errno;
	if (fd >= 0 && fstat(fd, st) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int allow(struct bdfs_sandbox *s, const char *directory)
{
	struct stat st;
	int r, fd = open_path(directory, O_DIRECTORY, &st, &r);

	return fd < 0 ? r : add(s, fd, &st);
}

static bool is_root(const struct stat *st)
{
	struct stat root;

	return stat("/", &root) == 0 && root.st_dev == st->st_dev && root.st_ino == st->st_ino;
}

/* The root of whatever is mounted; where the kernel does not tell, it has no Landlock either. */
static bool is_mount_root(int fd)
{
	struct statx x;

	return statx(fd, "", AT_EMPTY_PATH, 0, &x) < 0 || x.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

/* The regular file that PATH means when all links are followed, and the directory of such files that it
 * is in. */
static int allow_target(struct bdfs_sandbox *s, const char *path)
{
	char *target = realpath(path, NULL), *slash;
	struct stat file, parent, entry;
	int r = 0, fd = -1, directory = -1;

	if (!target)
		return errno == ENOMEM ? -errno : 0; /* a link that leads nowhere */
	fd = open_path(target, O_NOFOLLOW, &file, &r);
	if (fd < 0 || !S_ISREG(file.st_mode))
		goto out;
	slash = strrchr(target, '/');
	*slash = '\0';
	directory = open_path(slash == target ? "/" : target, O_DIRECTORY | O_NOFOLLOW, &parent, &r);
	if (directory < 0)
		goto out;
	/* It is covered already, or else is the file still in that directory? */
	if (is_noted(s, &parent))
		goto out;
	if ((bd_glob_ends(slash + 1, ".bdelta") || bd_glob_ends(slash + 1, ".safetensors")) &&
	    !is_root(&parent) && !is_mount_root(directory) &&
	    fstatat(directory, slash + 1, &entry, AT_SYMLINK_NOFOLLOW) == 0 &&
	    entry.st_dev == file.st_dev && entry.st_ino == file.st_ino) {
		r = add(s, directory, &parent);
		directory = -1;
	} else {
		r = add(s, fd, &file);
		fd = -1;
	}
out:
	if (fd >= 0)
		close(fd);
	if (directory >= 0)
		close(directory);
	free(target);
	return r;
}

/* DT_LNK, DT_DIR or something else; links are not followed. */
static unsigned char type_of(DIR *dir, const struct dirent *entry)
{
	struct stat st;

	if (entry->d_type != DT_UNKNOWN)
		return entry->d_type;
	return fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? DT_UNKNOWN :
	       IFTODT(st.st_mode);
}

/* What the links in a directory, with names ending with SUFFIX, lead to; and in those below it, DEPTH levels
 * down. */
static int allow_links(struct bdfs_sandbox *s, const char *path, const char *suffix, unsigned depth)
{
	const struct dirent *entry;
	unsigned char type;
	char *name;
	DIR *dir = opendir(path);
	int r = 0;

	while (dir && r == 0 && (entry = readdir(dir))) {
		type = type_of(dir, entry);
		if (!(type == DT_LNK && bd_glob_ends(entry->d_name, suffix)) &&
		    !(type == DT_DIR && depth && *entry->d_name != '.'))
			continue;
		if (asprintf(&name, "%s/%s", path, entry->d_name) < 0) {
			r = -ENOMEM;
			break;
		}
		r = type == DT_LNK ? allow_target(s, name) : allow_links(s, name, suffix, depth - 1);
		free(name);
	}
	if (dir)
		closedir(dir);
	return r;
}

/* In an ENTRY of a Hugging Face cache, which may be a data set's, the files below ENTRY/snapshots are links
 * into ENTRY/blobs, and so are those that are downloaded later. DIRECTORY is absolute and without links. */
static int allow_blobs(struct bdfs_sandbox *s, const char *directory)
{
	static const char snapshots[] = "/snapshots/";
	int r = 0;

	for (const char *at = directory; r == 0 && (at = strstr(at, snapshots)); at++) {
		struct stat st;
		char *blobs, *entry;
		int fd;

		if (asprintf(&blobs, "%.*s/blobs", (int)(at - directory), directory) < 0)
			return -ENOMEM;
		blobs[at - directory] = '\0';
		entry = strrchr(blobs, '/');
		if (entry && strstr(entry, "--")) {
			blobs[at - directory] = '/';
			fd = open_path(blobs, O_DIRECTORY | O_NOFOLLOW, &st, &r);
			if (fd >= 0)
				r = add(s, fd, &st);
		}
		free(blobs);
	}
	return r;
}

/* .../models--org--name/snapshots/COMMIT: the entry may get another commit, so all of it. */
static int allow_base(struct bdfs_sandbox *s, const char *path)
{
	struct bd_hub_place place;
	struct bd_error err = { 0 };
	char *slash;
	int r;

	if (bd_hub_resolve(&place, path, &err) < 0)
		return err.code == -ENOMEM ? -ENOMEM : 0;
	r = allow(s, place.directory);
	if (r == 0 && place.revision) {
		char *entry = strdup(place.directory);

		for (int i = 0; entry && i < 2; i++) {
			slash = strrchr(entry, '/');
			if (slash && slash != entry)
				*slash = '\0';
		}
		r = entry ? allow(s, entry) : -ENOMEM;
		free(entry);
	}
	if (r == 0)
		r = allow_blobs(s, place.directory);
	if (r == 0)
		r = allow_links(s, place.directory, "", LEVELS);
	bd_hub_place_free(&place);
	return r;
}

/* PATH, a directory of deltas, or of one that was given by name. */
static int allow_deltas(struct bdfs_sandbox *s, const char *path)
{
	char *real = realpath(path, NULL);
	int r = real ? allow(s, real) : errno == ENOMEM ? -ENOMEM : 0;

	if (real && r == 0)
		r = allow_blobs(s, real);
	free(real);
	return r;
}

static int allow_delta(struct bdfs_sandbox *s, const char *path)
{
	const char *slash = strrchr(path, '/');
	size_t deep = bdfs_deep_length(path);
	struct stat st;
	char *parent;
	int r;

	if (deep) {
		parent = strndup(path, deep);
		r = parent ? allow_deltas(s, parent) : -ENOMEM;
		if (r == 0)
			r = allow_links(s, parent, ".bdelta", LEVELS);
		free(parent);
		return r;
	}
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
		r = allow_deltas(s, path);
		return r < 0 ? r : allow_links(s, path, ".bdelta", 0);
	}
	/* Where the file is replaced, if it is a link to elsewhere; but for one file not all there is. */
	parent = !slash ? strdup(".") : strndup(path, slash == path ? 1 : (size_t)(slash - path));
	if (!parent)
		return -ENOMEM;
	r = stat(parent, &st) == 0 && !is_root(&st) ? allow_deltas(s, parent) : 0;
	free(parent);
	return r < 0 ? r : allow_target(s, path);
}

int bdfs_sandbox_prepare(struct bdfs_sandbox *s, char *const *bases, size_t base_count,
			 char *const *deltas, size_t delta_count, struct bd_error *err)
{
	int r = 0;

	*s = (struct bdfs_sandbox){ 0 };
	for (size_t i = 0; i < base_count && r == 0; i++)
		r = allow_base(s, bases[i]);
	for (size_t i = 0; i < delta_count && r == 0; i++)
		r = allow_delta(s, deltas[i]);
	if (r < 0)
		return bd_error_set(err, r, "cannot note what the sandbox is to leave readable: %s",
				    strerror(-r));
	return 0;
}

void bdfs_sandbox_clear(struct bdfs_sandbox *s)
{
	for (size_t i = 0; i < s->count; i++)
		close(s->list[i].fd);
	free(s->list);
	*s = (struct bdfs_sandbox){ 0 };
}

/* --- Landlock, by system calls: it is younger than many C libraries and kernel headers --- */

#define SYS_RULESET  444 /* the same numbers on all architectures */
#define SYS_RULE     445
#define SYS_RESTRICT 446
#define VERSION_FLAG 1u
#define RULE_PATH    1

struct ruleset {
	uint64_t fs, net, scoped; /* what is forbidden unless a rule allows it */
};
struct path_rule {
	uint64_t allowed;
	int32_t fd;
} __attribute__((packed));

#define READ_FILE (UINT64_C(1) << 2)
#define READ_DIR  (UINT64_C(1) << 3)

/* All that version ABI can forbid; a newer one forbids no more than what is known here. */
static struct ruleset everything(int abi, size_t *size)
{
	struct ruleset all = { .fs = (UINT64_C(1) << 13) - 1 };

	*size = sizeof(uint64_t);
	if (abi >= 2)
		all.fs |= UINT64_C(1) << 13; /* to link and rename across directories */
	if (abi >= 3)
		all.fs |= UINT64_C(1) << 14; /* to truncate */
	if (abi >= 5)
		all.fs |= UINT64_C(1) << 15; /* ioctl on devices opened later */
	if (abi >= 4) {
		all.net = 3; /* to bind and connect TCP */
		*size = 2 * sizeof(uint64_t);
	}
	if (abi >= 6) {
		all.scoped = 3; /* abstract sockets and signals of others */
		*size = 3 * sizeof(uint64_t);
	}
	return all;
}

/* The version, or -errno. */
static int landlock(const struct bdfs_sandbox *s)
{
	int abi = (int)syscall(SYS_RULESET, NULL, 0, VERSION_FLAG), ruleset, r = 0;
	struct ruleset all;
	size_t size;

	if (abi < 0)
		return -errno;
	all = everything(abi, &size);
	ruleset = (int)syscall(SYS_RULESET, &all, size, 0);
	if (ruleset < 0)
		return -errno;
	for (size_t i = 0; i < s->count && r == 0; i++) {
		const struct bdfs_readable *p = &s->list[i];
		const struct path_rule rule = { p->directory ? READ_FILE | READ_DIR : READ_FILE, p->fd };

		if (syscall(SYS_RULE, ruleset, RULE_PATH, &rule, 0) < 0)
			r = -errno;
	}
	if (r == 0 && syscall(SYS_RESTRICT, ruleset, 0) < 0)
		r = -errno;
	close(ruleset);
	return r < 0 ? r : abi;
}

/* A sanitizer writes its report, and runs a program for it, when all is over. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

void bdfs_sandbox_enter(const struct bdfs_sandbox *s, struct bdfs_log *log, char *text, size_t size)
{
	int r;

	snprintf(text, size, "none");
	if (SANITIZED) {
		bdfs_log_write(log, LOG_INFO, "no sandbox: a sanitizer needs its freedom");
		return;
	}
	/* What the C library loads when a thread is cancelled, which is too late; and its time zone. */
	if (!dlopen("libgcc_s.so.1", RTLD_NOW | RTLD_NODELETE)) {
		bdfs_log_write(log, LOG_INFO, "no sandbox: %s", dlerror());
		return;
	}
	tzset();
	r = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : landlock(s);
	if (r < 0)
		bdfs_log_write(log, LOG_INFO, "no sandbox: this system has no Landlock (%s)",
			       strerror(-r));
	else
		snprintf(text, size, "landlock %d", r);
}

/* --- privileges --- */

int bdfs_user_find(struct bdfs_user *user, const char *name, struct bd_error *err)
{
	const struct passwd *entry = getpwnam(name);
	char *end;
	unsigned long n;

	*user = (struct bdfs_user){ 0 };
	if (!entry) {
		errno = 0;
		n = strtoul(name, &end, 10);
		if (errno || end == name || *end || *name < '0' || *name > '9' || n >= UINT_MAX)
			return bd_error_set(err, -EINVAL, "there is no user %s", name);
		user->uid = (uid_t)n;
		user->gid = (gid_t)n;
		entry = getpwuid(user->uid);
	}
	if (entry) {
		user->uid = entry->pw_uid;
		user->gid = entry->pw_gid;
		user->name = strdup(entry->pw_name);
		if (!user->name)
			return bd_error_set(err, -ENOMEM, "out of memory for the user %s", name);
	}
	if (geteuid() != 0 && geteuid() != user->uid)
		return bd_error_set(err, -EPERM, "only root can serve as another user (setuid=%s)", name);
	return 0;
}

static int become(const struct bdfs_user *user, struct bd_error *err)
{
	if (geteuid() == user->uid && getuid() == user->uid)
		return 0;
	if ((user->name ? initgroups(user->name, user->gid) : setgroups(0, NULL)) < 0 ||
	    setresgid(user->gid, user->gid, user->gid) < 0 ||
	    setresuid(user->uid, user->uid, user->uid) < 0)
		return bd_error_set(err, -errno, "cannot become user %u: %s", (unsigned)user->uid,
				    strerror(errno));
	return 0;
}

int bdfs_privileges_drop(const struct bdfs_user *user, struct bd_error *err)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };
	int r;

	/* While we may; a user's process may not and has none to lose. */
	for (int i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno != EPERM)
			return bd_error_set(err, -errno, "cannot drop capabilities: %s", strerror(errno));
	r = user ? become(user, err) : 0;
	if (r < 0)
		return r;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); /* the next call would do, too */
	if (syscall(SYS_capset, &header, none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return bd_error_set(err, -errno, "cannot drop privileges: %s", strerror(errno));
	return 0;
}
