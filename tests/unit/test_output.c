/* SPDX-License-Identifier: Apache-2.0 */
/* test_output.c: files that appear whole or not at all, and what writers leave behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "output.h"
#include "permissions.h"
#include "testdata.h"

static struct bd_error err;

/* What somebody else does just before the N-th rename with flags, from 1, and after each; and filesystems that
 * know none. */
static void (*meanwhile)(int n);
static void (*afterwards)(void);
static int renames;
static bool no_flags;

int renameat2(int from, const char *a, int to, const char *b, unsigned flags)
{
	int r;

	if (no_flags) {
		errno = EINVAL;
		return -1;
	}
	if (meanwhile)
		meanwhile(++renames);
	r = (int)syscall(SYS_renameat2, from, a, to, b, flags);
	if (afterwards)
		afterwards();
	return r;
}

static struct bd_output *opened(const char *path)
{
	struct bd_output *o;

	if (bd_output_open(&o, path, &err))
		fail_msg("%s", err.text);
	return o;
}

static unsigned entries(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(d);
	return n;
}

static void holds(const char *path, const char *text)
{
	size_t size;
	char *data = td_read(path, &size);

	assert_int_equal(size, strlen(text));
	assert_string_equal(data, text);
}

static void put(struct bd_output *o, const char *text, uint64_t offset)
{
	if (bd_output_write(o, text, strlen(text), offset, &err))
		fail_msg("%s", err.text);
}

static void commits(void **state)
{
	char *dir = td_dir(), *path = td_path(dir, "file");
	struct bd_output *o = opened(path);
	struct stat st;
	mode_t mask = umask(027);

	(void)state;
	bd_output_close(o);
	o = opened(path);
	/* In any order, with a hole. */
	put(o, "world", 7);
	put(o, "hello, ", 0);
	put(o, "", 100);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(bd_output_commit(o, &err), 0);
	holds(path, "hello, world");
	bd_output_close(o);
	holds(path, "hello, world");
	assert_int_equal(entries(dir), 1);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0640);
	umask(mask);
	assert_int_equal(bd_output_sync_directory(dir, &err), 0);
	assert_int_equal(bd_output_sync_directory(path, &err), -ENOTDIR);
	assert_non_null(strstr(err.text, path));
	bd_output_close(NULL);
}

static void replaces(void **state)
{
	char *dir = td_dir(), *path = td_text(dir, "file", "old"), buf[8] = "";
	int old = open(path, O_RDONLY);
	struct bd_output *o = opened(path), *other;

	(void)state;
	put(o, "newer", 0);
	holds(path, "old");
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	holds(path, "newer");
	/* Who has the old one open keeps it. */
	assert_int_equal(read(old, buf, sizeof(buf)), 3);
	assert_string_equal(buf, "old");
	close(old);
	/* Given up. */
	o = opened(path);
	put(o, "never", 0);
	bd_output_close(o);
	holds(path, "newer");
	assert_int_equal(entries(dir), 1);
	/* Two at once: each whole, the last one wins. */
	o = opened(path);
	other = opened(path);
	put(o, "one", 0);
	put(other, "two", 0);
	assert_int_equal(bd_output_commit(other, &err), 0);
	holds(path, "two");
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	bd_output_close(other);
	holds(path, "one");
	assert_int_equal(entries(dir), 1);
	/* Through a link: the link is replaced, not what it points to. */
	td_text(dir, "target", "mine");
	td_link(dir, "link", "target");
	o = opened(td_path(dir, "link"));
	put(o, "linked", 0);
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	holds(td_path(dir, "target"), "mine");
	holds(td_path(dir, "link"), "linked");
	/* Relative names, also without a directory. */
	{
		int here = open(".", O_RDONLY | O_DIRECTORY);

		assert_int_equal(chdir(dir), 0);
		o = opened("plain");
		put(o, "x", 0);
		assert_int_equal(bd_output_commit(o, &err), 0);
		bd_output_close(o);
		holds(td_path(dir, "plain"), "x");
		assert_int_equal(fchdir(here), 0);
		close(here);
	}
}

static void refused(const char *path, int code)
{
	struct bd_output *o = NULL;
	int rc;

	memset(&err, 0, sizeof(err));
	rc = bd_output_open(&o, path, &err);
	if (rc != code || err.code != code || !strstr(err.text, path))
		fail_msg("%s: %d: %s", path, rc, err.text);
}

static void refuses(void **state)
{
	char *dir = td_dir(), *fifo = td_path(dir, "fifo");

	(void)state;
	td_mkdir(dir, "sub");
	refused(td_path(dir, "sub"), -EINVAL);
	refused(td_path(dir, "sub/"), -EINVAL);
	refused(td_path(dir, "none/file"), -ENOENT);
	refused(td_path(td_text(dir, "text", ""), "file"), -ENOTDIR);
	refused("/dev/null", -EINVAL);
	refused(td_link(dir, "to-sub", "sub"), -EINVAL);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	refused(fifo, -EINVAL);
	refused("", -EINVAL);
	assert_int_equal(entries(dir), 4);
	if (geteuid() != 0) {
		assert_int_equal(chmod(td_path(dir, "sub"), 0500), 0);
		refused(td_path(dir, "sub/file"), -EACCES);
	}
	/* A name so long that the temporary one would not fit is refused before the work. */
	refused(td_format("%s/%0255d", dir, 1), -ENAMETOOLONG);
	refused(td_format("%s/%0256d", dir, 1), -ENAMETOOLONG);
}

/* Temporary files of writers that died go away with the next writer of that name; those of living
 * ones stay, and so does everything that only looks similar. */
static void leftovers(void **state)
{
	static const char *const stay[] = {
		".file.12345.tmp", ".file.1234567.tmp", ".file.123456.tm", "file.123456.tmp",
		".other.123456.tmp", ".file.x.123456.tmp", ".filex123456.tmp", ".file.sunday.tmp",
		".file.12345G.tmp", ".file.123456.TMP",
	};
	char *dir = td_dir(), *path = td_path(dir, "file");
	size_t n = sizeof(stay) / sizeof(*stay);
	struct bd_output *o;
	int alive;

	(void)state;
	for (size_t i = 0; i < n; i++)
		td_text(dir, stay[i], "");
	td_text(dir, ".file.123456.tmp", "dead");
	td_text(dir, ".file.abcdef.tmp", "dead");
	td_text(dir, ".file.00ff00.tmp", "alive");
	td_mkdir(dir, ".file.111111.tmp");
	td_link(dir, ".file.222222.tmp", "nowhere");
	assert_int_equal(mkfifo(td_path(dir, ".file.333333.tmp"), 0600), 0);
	alive = open(td_path(dir, ".file.00ff00.tmp"), O_RDONLY);
	assert_int_equal(flock(alive, LOCK_EX), 0);
	o = opened(path);
	for (size_t i = 0; i < n; i++)
		if (access(td_path(dir, stay[i]), F_OK) < 0)
			fail_msg("%s was removed", stay[i]);
	assert_int_equal(access(td_path(dir, ".file.123456.tmp"), F_OK), -1);
	assert_int_equal(access(td_path(dir, ".file.abcdef.tmp"), F_OK), -1);
	holds(td_path(dir, ".file.00ff00.tmp"), "alive");
	assert_int_equal(access(td_path(dir, ".file.111111.tmp"), F_OK), 0);
	close(alive);
	bd_output_close(o);
	bd_output_close(opened(path));
	assert_int_equal(access(td_path(dir, ".file.00ff00.tmp"), F_OK), -1);
}

static void write_errors(void **state)
{
	char *dir = td_dir(), *path = td_text(dir, "file", "old");
	struct bd_output *o = opened(path);
	struct rlimit old, small = { 4096, RLIM_INFINITY };
	char *big = calloc(1, 1 << 20);

	(void)state;
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(bd_output_write(o, big, 1 << 20, 0, &err), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_non_null(strstr(err.text, path));
	assert_non_null(strstr(err.text, "cannot write"));
	assert_true(bd_output_write(o, big, 1, UINT64_MAX / 2, &err) < 0);
	bd_output_close(o);
	holds(path, "old");
	assert_int_equal(entries(dir), 1);
	/* The descriptor fails. */
	o = opened(path);
	close(o->fd);
	o->fd = open("/dev/null", O_RDONLY);
	assert_int_equal(bd_output_write(o, big, 1, 0, &err), -EBADF);
	assert_true(bd_output_commit(o, &err) < 0);
	bd_output_close(o);
	holds(path, "old");
	assert_int_equal(entries(dir), 1);
	/* The target became a directory meanwhile. */
	o = opened(path);
	unlink(path);
	td_mkdir(dir, "file");
	assert_int_equal(bd_output_commit(o, &err), -EISDIR);
	assert_non_null(strstr(err.text, path));
	bd_output_close(o);
	assert_int_equal(entries(dir), 1);
	free(big);
}

/* No room: a device that is always full, where there is none a small tmpfs would do as well. */
static void full_device(void **state)
{
	char *path = td_path(td_dir(), "file");
	struct bd_output *o = opened(path);

	(void)state;
	close(o->fd);
	o->fd = open("/dev/full", O_RDWR);
	if (o->fd < 0)
		skip();
	assert_int_equal(bd_output_write(o, "x", 1, 0, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "No space left"));
	bd_output_close(o);
	assert_int_equal(access(path, F_OK), -1);
}

/* Killed at any moment: the old or the new file, and at most a leftover that the next one removes. */
static void killed(void **state)
{
	char *dir = td_dir(), *path = td_text(dir, "file", "old");
	struct bd_output *o;

	(void)state;
	for (int i = 0; i < 60; i++) {
		int status;
		pid_t pid = fork();
		size_t size;
		char *data;

		if (pid == 0) {
			for (;;) {
				if (bd_output_open(&o, path, NULL) < 0)
					_exit(1);
				bd_output_write(o, "new ", 4, 0, NULL);
				bd_output_write(o, "file", 4, 4, NULL);
				if (bd_output_commit(o, NULL) < 0)
					_exit(2);
				bd_output_close(o);
			}
		}
		usleep((useconds_t)(i * 37 % 3000));
		kill(pid, SIGKILL);
		assert_true(waitpid(pid, &status, 0) == pid);
		assert_true(WIFSIGNALED(status));
		data = td_read(path, &size);
		assert_true(strcmp(data, "old") == 0 || strcmp(data, "new file") == 0);
		assert_true(entries(dir) <= 2);
	}
	bd_output_close(opened(path));
	assert_int_equal(entries(dir), 1);
}

/* --- in the place of a certain file --- */

static char *place; /* the file's name */

static void comes(const char *text)
{
	char *elsewhere = td_text(td_dir(), "elsewhere", text);

	assert_int_equal(rename(elsewhere, place), 0);
}

/* Write "new" in the place of what is there now, and say what came of it. BEFORE happens before the commit. */
static int replaced(void (*before)(void))
{
	struct bd_occupant was;
	struct bd_output *o;
	int rc;

	assert_int_equal(bd_output_note(&was, place, &err), 0);
	o = opened(place);
	put(o, "new", 0);
	if (before)
		before();
	memset(&err, 0, sizeof(err));
	renames = 0;
	rc = bd_output_replace(o, &was, &err);
	assert_int_equal(err.code, rc);
	bd_output_close(o);
	meanwhile = NULL;
	afterwards = NULL;
	return rc;
}

static char *fresh(const char *text)
{
	char *dir = td_dir();

	place = text ? td_text(dir, "file", text) : td_path(dir, "file");
	return dir;
}

/* What came meanwhile stays, and the new file is beside it. */
static void kept(const char *dir, const char *text, const char *aside)
{
	if (text)
		holds(place, text);
	else
		assert_int_equal(access(place, F_OK), -1);
	holds(td_path(dir, aside), "new");
	assert_non_null(strstr(err.text, td_path(dir, aside)));
	assert_int_equal(entries(dir), text ? 2 : 1);
}

static void another_comes(void) { comes("another"); }
static void it_goes(void) { assert_int_equal(unlink(place), 0); }
static void it_is_moved(void) { assert_int_equal(rename(place, td_path(td_dir(), "moved")), 0); }
static void it_is_written_to(void)
{
	FILE *f = fopen(place, "a");

	assert_non_null(f);
	assert_true(fputs("!", f) >= 0);
	fclose(f);
}
static void it_is_closed(void) { assert_int_equal(chmod(place, 0600), 0); }

static void replaces_one(void **state)
{
	char *dir;

	(void)state;
	for (int simple = 0; simple < 2; simple++) {
		no_flags = simple;
		dir = fresh("old");
		assert_int_equal(replaced(NULL), 0);
		holds(place, "new");
		assert_int_equal(entries(dir), 1);
		/* Permissions are no contents. */
		dir = fresh("old");
		assert_int_equal(replaced(it_is_closed), 0);
		holds(place, "new");
		dir = fresh(NULL);
		assert_int_equal(replaced(NULL), 0);
		holds(place, "new");
		assert_int_equal(entries(dir), 1);

		dir = fresh("old");
		assert_int_equal(replaced(another_comes), -ECANCELED);
		assert_non_null(strstr(err.text, "another file came"));
		kept(dir, "another", "file.new");
		dir = fresh("old");
		assert_int_equal(replaced(it_is_written_to), -ECANCELED);
		kept(dir, "old!", "file.new");
		dir = fresh("old");
		assert_int_equal(replaced(it_goes), -ECANCELED);
		assert_non_null(strstr(err.text, "was removed"));
		kept(dir, NULL, "file.new");
		dir = fresh("old");
		assert_int_equal(replaced(it_is_moved), -ECANCELED);
		kept(dir, NULL, "file.new");
		dir = fresh(NULL);
		assert_int_equal(replaced(another_comes), -ECANCELED);
		assert_non_null(strstr(err.text, "a file came there"));
		kept(dir, "another", "file.new");
		/* Where that name is taken, too. */
		td_text(dir, "file.new", "mine");
		assert_int_equal(replaced(another_comes), -ECANCELED);
		holds(td_path(dir, "file.new"), "mine");
		holds(td_path(dir, "file.new-2"), "new");
		holds(place, "another");
	}
	no_flags = false;
}

/* Others who come between looking and renaming. */
static void first_comes(int n) { if (n == 1) comes("first"); }
static void two_come(int n) { if (n <= 2) comes(n == 1 ? "first" : "second"); }
static void three_come(int n) { if (n <= 3) comes(td_format("number %d", n)); }
static void first_goes(int n) { if (n == 1) it_goes(); }
static void comes_and_goes(int n) { if (n == 1) comes("first"); else if (n == 2) it_goes(); }

/* Another writer begins, and removes what dead ones left. */
static void others_begin(void) { bd_output_close(opened(place)); }

static void races(void **state)
{
	char *dir = fresh("old");

	(void)state;
	afterwards = others_begin;
	assert_int_equal(replaced(NULL), 0);
	holds(place, "new");
	assert_int_equal(entries(dir), 1);
	dir = fresh("old");
	meanwhile = first_comes;
	afterwards = others_begin;
	assert_int_equal(replaced(NULL), -ECANCELED);
	kept(dir, "first", "file.new");
	dir = fresh("old");
	meanwhile = first_comes;
	assert_int_equal(replaced(NULL), -ECANCELED);
	kept(dir, "first", "file.new");
	dir = fresh(NULL);
	meanwhile = first_comes;
	assert_int_equal(replaced(NULL), -ECANCELED);
	kept(dir, "first", "file.new");
	dir = fresh("old");
	meanwhile = first_goes;
	assert_int_equal(replaced(NULL), -ECANCELED);
	kept(dir, NULL, "file.new");
	/* The last one stays; ours, which had the name for a moment, is overwritten by it. */
	dir = fresh("old");
	meanwhile = two_come;
	assert_int_equal(replaced(NULL), -ECANCELED);
	holds(place, "second");
	assert_non_null(strstr(err.text, "could not be kept"));
	assert_int_equal(entries(dir), 1);
	dir = fresh("old");
	meanwhile = three_come;
	assert_int_equal(replaced(NULL), -ECANCELED);
	holds(place, "number 3");
	assert_int_equal(entries(dir), 1);
	/* Removed under the name that we had taken. */
	dir = fresh("old");
	meanwhile = comes_and_goes;
	assert_int_equal(replaced(NULL), -ECANCELED);
	assert_int_equal(entries(dir), 0);
}

/* --- permissions --- */

static void narrows(void **state)
{
	static const struct { mode_t mode; bool owner, group, list; mode_t wanted; } cases[] = {
		{ 0640, true, true, true, 0640 }, { 0600, true, true, true, 0600 },
		{ 0664, false, true, true, 0664 }, { 0640, true, false, true, 0600 },
		{ 0644, true, false, true, 0644 }, { 0604, true, false, true, 0600 },
		{ 0664, false, false, true, 0644 }, { 0640, false, false, true, 0600 },
		{ 0444, false, false, true, 0444 }, { 0464, false, true, true, 0444 },
		{ 0644, true, true, false, 0600 }, { 0044, false, true, true, 0000 },
		{ 02775, true, true, true, 02775 }, { 02775, true, false, true, 0755 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		if (bd_permissions_mode(cases[i].mode, cases[i].owner, cases[i].group, cases[i].list) !=
		    cases[i].wanted)
			fail_msg("case %zu: not %03o", i, (unsigned)cases[i].wanted);
}

static void has(const char *path, uid_t uid, gid_t gid, mode_t mode)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, mode);
	assert_int_equal(st.st_uid, uid);
	assert_int_equal(st.st_gid, gid);
}

/* Replace FILE of USER, GROUP and MODE, in a directory that anybody may write to. Nobody can read more of the
 * temporary file than of the old one at any time. CLOSED: one of mode 0400 comes in its place. */
static char *replace_of(uid_t uid, gid_t gid, mode_t mode, bool closed)
{
	char *dir = td_dir(), *path = td_text(dir, "file", "old");
	struct bd_output *o;
	struct stat st;

	assert_int_equal(chmod(dir, 0777), 0);
	assert_int_equal(chown(path, uid, gid), 0);
	assert_int_equal(chmod(path, mode), 0);
	o = opened(path);
	assert_int_equal(fstat(o->fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	put(o, "new", 0);
	if (closed) {
		assert_int_equal(unlink(path), 0);
		td_text(dir, "file", "other");
		assert_int_equal(chmod(path, 0400), 0);
	}
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	holds(path, "new");
	return path;
}

static void keeps_permissions(void **state)
{
	char *dir, *path, *link;
	struct bd_output *o;
	mode_t mask = umask(022);
	int status;
	pid_t pid;

	(void)state;
	has(replace_of(geteuid(), getegid(), 0600, false), geteuid(), getegid(), 0600);
	has(replace_of(geteuid(), getegid(), 0664, false), geteuid(), getegid(), 0664);
	has(replace_of(geteuid(), getegid(), 04755, false), geteuid(), getegid(), 0755);
	/* As it is in the end, not at the beginning. */
	has(replace_of(geteuid(), getegid(), 0664, true), geteuid(), getegid(), 0400);
	/* A link that is replaced: who could not read through it cannot read now. */
	path = td_text(td_dir(), "target", "old");
	assert_int_equal(chmod(path, 0600), 0);
	link = td_link(td_dir(), "link", path);
	o = opened(link);
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	has(link, geteuid(), getegid(), 0600);
	if (geteuid() == 0) {
		has(replace_of(1234, 4321, 0600, false), 1234, 4321, 0600);
		has(replace_of(1234, 4321, 0640, false), 1234, 4321, 0640);
		/* A user who may write to the directory, and give neither owner nor group. */
		dir = td_dir();
		path = td_text(dir, "file", "old");
		assert_int_equal(chmod(dir, 0777), 0);
		assert_int_equal(chown(path, 1234, 4321), 0);
		assert_int_equal(chmod(path, 0640), 0);
		pid = fork();
		if (pid == 0) {
			if (chdir(dir) || setgroups(0, NULL) || setgid(77) || setuid(77) ||
			    bd_output_open(&o, "file", NULL) || bd_output_commit(o, NULL))
				_exit(1);
			bd_output_close(o);
			_exit(0);
		}
		assert_true(waitpid(pid, &status, 0) == pid);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		has(path, 77, 77, 0600);
	}
	umask(mask);
}

#define ACL "system.posix_acl_access"
#define DEFAULT_ACL "system.posix_acl_default"

/* Entries of a list: tag, permissions, id. */
static size_t make_acl(unsigned char *list, const uint32_t (*entries_of)[3], size_t count)
{
	uint32_t version = 2;

	memcpy(list, &version, 4);
	for (size_t i = 0; i < count; i++) {
		const uint16_t head[2] = { (uint16_t)entries_of[i][0], (uint16_t)entries_of[i][1] };

		memcpy(list + 4 + 8 * i, head, 4);
		memcpy(list + 8 + 8 * i, &entries_of[i][2], 4);
	}
	return 4 + 8 * count;
}

static void keeps_lists(void **state)
{
	/* user::rw- user:1234:r-- group::--- mask::r-- other::--- */
	static const uint32_t given[][3] = {
		{ 1, 6, ~0u }, { 2, 4, 1234 }, { 4, 0, ~0u }, { 16, 4, ~0u }, { 32, 0, ~0u },
	};
	unsigned char list[64], found[64];
	size_t size = make_acl(list, given, 5);
	char *dir = td_dir(), *path = td_text(dir, "file", "old");
	struct bd_output *o;

	(void)state;
	if (setxattr(path, ACL, list, size, 0) < 0)
		skip();
	o = opened(path);
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	has(path, geteuid(), getegid(), 0640);
	assert_int_equal(getxattr(path, ACL, found, sizeof(found)), size);
	assert_memory_equal(found, list, size);
	/* The directory's own for new files lets nobody into one that replaces a file without a list. */
	dir = td_dir();
	assert_int_equal(setxattr(dir, DEFAULT_ACL, list, size, 0), 0);
	path = td_text(dir, "file", "old");
	removexattr(path, ACL);
	assert_int_equal(chmod(path, 0640), 0);
	o = opened(path);
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	has(path, geteuid(), getegid(), 0640);
	assert_int_equal(getxattr(path, ACL, found, sizeof(found)), -1);
	/* A new file has what the directory says. */
	o = opened(td_path(dir, "another"));
	assert_int_equal(bd_output_commit(o, &err), 0);
	bd_output_close(o);
	assert_true(getxattr(td_path(dir, "another"), ACL, found, sizeof(found)) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(commits),
		cmocka_unit_test(replaces),
		cmocka_unit_test(refuses),
		cmocka_unit_test(leftovers),
		cmocka_unit_test(write_errors),
		cmocka_unit_test(full_device),
		cmocka_unit_test(killed),
		cmocka_unit_test(replaces_one),
		cmocka_unit_test(races),
		cmocka_unit_test(narrows),
		cmocka_unit_test(keeps_permissions),
		cmocka_unit_test(keeps_lists),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
