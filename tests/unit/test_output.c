/* SPDX-License-Identifier: Apache-2.0 */
/* test_output.c: files that appear whole or not at all, and what writers leave behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "output.h"
#include "testdata.h"

static struct bd_error err;

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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
