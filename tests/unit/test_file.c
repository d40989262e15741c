/* SPDX-License-Identifier: Apache-2.0 */
/* test_file.c: input files and the detection of everything that happens to them while in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "file.h"
#include "testdata.h"

static struct bd_error err;

static struct bd_file *opened(const char *path)
{
	struct bd_file *f;

	if (bd_file_open(&f, path, &err))
		fail_msg("%s", err.text);
	return f;
}

/* PATH must not open, with this error, and be named in the message. */
static void refused(const char *path, int code, const char *message)
{
	struct bd_file *f = (struct bd_file *)1;

	memset(&err, 0, sizeof(err));
	assert_int_equal(bd_file_open(&f, path, &err), code);
	assert_null(f);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, path) || !strstr(err.text, message))
		fail_msg("message is: %s", err.text);
}

static void opens(void **state)
{
	char *dir = td_dir(), *path = td_write(dir, "file", "0123456789", 10);
	struct bd_file *f;

	(void)state;
	f = opened(path);
	assert_string_equal(f->path, path);
	assert_int_equal(f->size, 10);
	assert_int_equal(fcntl(f->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(bd_file_check(f, &err), 0);
	bd_file_close(f);
	f = opened(td_link(dir, "link", "file"));
	assert_int_equal(f->size, 10);
	bd_file_close(f);
	f = opened(td_write(dir, "empty", "", 0));
	assert_int_equal(f->size, 0);
	bd_file_close(f);
	bd_file_close(NULL);
}

static void refuses(void **state)
{
	char *dir = td_dir(), *path;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int s;

	(void)state;
	refused(td_path(dir, "none"), -ENOENT, "No such file");
	refused(dir, -EINVAL, "is a directory");
	path = td_path(dir, "fifo");
	assert_int_equal(mkfifo(path, 0600), 0);
	alarm(300); /* a plain open would wait for a writer for ever */
	refused(path, -EINVAL, "is a FIFO");
	alarm(0);
	refused("/dev/null", -EINVAL, "is a device");
	refused(td_link(dir, "loop", "loop"), -ELOOP, "cannot be opened");
	refused(td_link(dir, "dangling", "nowhere"), -ENOENT, "cannot be opened");
	path = td_path(dir, "socket");
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	s = socket(AF_UNIX, SOCK_STREAM, 0);
	if (s >= 0 && bind(s, (struct sockaddr *)&address, sizeof(address)) == 0)
		refused(path, -ENXIO, "cannot be opened");
	if (s >= 0)
		close(s);
	/* Without an error object. */
	assert_int_equal(bd_file_open(&(struct bd_file *){ NULL }, dir, NULL), -EINVAL);
}

static void reads(void **state)
{
	char *path = td_write(td_dir(), "file", "0123456789", 10), buf[16] = "";
	struct bd_file *f = opened(path);

	(void)state;
	assert_int_equal(bd_file_read(f, buf, 10, 0, &err), 0);
	assert_string_equal(buf, "0123456789");
	assert_int_equal(bd_file_read(f, buf, 3, 7, &err), 0);
	assert_memory_equal(buf, "789", 3);
	assert_int_equal(bd_file_read(f, buf, 0, 10, &err), 0);
	assert_int_equal(bd_file_read(f, buf, 11, 0, &err), -EIO);
	assert_non_null(strstr(err.text, "ends at offset 10, where 1 more"));
	assert_int_equal(bd_file_read(f, buf, 1, 10, &err), -EIO);
	assert_int_equal(bd_file_read(f, buf, 1, UINT64_MAX, &err), -EIO);
	assert_int_equal(bd_file_read(f, buf, SIZE_MAX, 1, &err), -EIO);
	assert_int_equal(bd_file_read(f, buf, 1, INT64_MAX, &err), -EIO);
	bd_file_close(f);
}

/* Sizes are never believed: a sparse file of 8 TiB costs nothing. */
static void reads_sparse(void **state)
{
	char *path = td_write(td_dir(), "sparse", "", 0), byte = 1;
	struct bd_file *f;

	(void)state;
	if (truncate(path, (off_t)1 << 43) < 0)
		skip();
	f = opened(path);
	assert_int_equal(bd_file_read(f, &byte, 1, ((uint64_t)1 << 43) - 1, &err), 0);
	assert_int_equal(byte, 0);
	bd_file_close(f);
}

static void settle(const char *path)
{
	struct timespec past[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
	struct stat before, after;
	char *probe = td_format("%s.probe", path);

	/* Times advance in ticks: go on only when a change has another ctime than this one. */
	assert_int_equal(utimensat(AT_FDCWD, path, past, 0), 0);
	assert_int_equal(stat(path, &before), 0);
	do {
		FILE *f = fopen(probe, "w");

		assert_non_null(f);
		fclose(f);
		assert_int_equal(stat(probe, &after), 0);
		unlink(probe);
	} while (after.st_ctim.tv_sec == before.st_ctim.tv_sec &&
		 after.st_ctim.tv_nsec == before.st_ctim.tv_nsec);
}

enum change {
	GROW, SHRINK, OVERWRITE, OVERWRITE_SAME_MTIME, RENAME, TOUCH, WRITE_AND_CHMOD, /* errors */
	CHMOD, CHOWN, LINK, UNLINK, REPLACE, CHANGES
};

static void apply(enum change change, char *dir, char *path)
{
	struct timespec past[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
	int fd = open(path, O_WRONLY);

	assert_true(fd >= 0);
	switch (change) {
	case GROW: assert_int_equal(pwrite(fd, "x", 1, 10), 1); break;
	case SHRINK: assert_int_equal(ftruncate(fd, 4), 0); break;
	case OVERWRITE: assert_int_equal(pwrite(fd, "x", 1, 0), 1); break;
	case OVERWRITE_SAME_MTIME:
		assert_int_equal(pwrite(fd, "x", 1, 0), 1);
		assert_int_equal(futimens(fd, past), 0);
		break;
	case RENAME: assert_int_equal(rename(path, td_path(dir, "other")), 0); break;
	case TOUCH: assert_int_equal(futimens(fd, past), 0); break;
	case WRITE_AND_CHMOD:
		assert_int_equal(pwrite(fd, "x", 1, 0), 1);
		assert_int_equal(fchmod(fd, 0400), 0);
		break;
	case CHMOD: assert_int_equal(fchmod(fd, 0400), 0); break;
	case CHOWN: assert_int_equal(fchown(fd, 1, 2), 0); break;
	case LINK: assert_int_equal(link(path, td_path(dir, "link")), 0); break;
	case UNLINK: assert_int_equal(unlink(path), 0); break;
	case REPLACE:
		assert_int_equal(rename(td_write(dir, "new", "0123456789", 10), path), 0);
		break;
	default: break;
	}
	close(fd);
}

static void detects_changes(void **state)
{
	static const char *const says[CHANGES] = {
		[GROW] = "it had 10 bytes and has 11", [SHRINK] = "it had 10 bytes and has 4",
		[OVERWRITE] = "modification time", [OVERWRITE_SAME_MTIME] = "status change time",
		[RENAME] = "status change time", [TOUCH] = "status change time",
		[WRITE_AND_CHMOD] = "modification time",
	};

	(void)state;
	for (enum change change = 0; says[change]; change++) {
		char *dir = td_dir(), *path = td_write(dir, "file", "0123456789", 10);
		struct bd_file *f;

		settle(path);
		f = opened(path);
		assert_int_equal(bd_file_check(f, &err), 0);
		apply(change, dir, path);
		memset(&err, 0, sizeof(err));
		if (bd_file_check(f, &err) != -EIO || !strstr(err.text, says[change]) ||
		    !strstr(err.text, path) || !strstr(err.text, "remount"))
			fail_msg("change %d: %s", (int)change, err.text);
		/* It stays so, whatever comes. */
		assert_int_equal(bd_file_check(f, NULL), -EIO);
		bd_file_close(f);
	}
}

/* What leaves the contents alone is accepted, again and again; writing afterwards is not. */
static void accepts_changes(void **state)
{
	(void)state;
	for (enum change change = CHMOD; change < CHANGES; change++) {
		char *dir = td_dir(), *path = td_write(dir, "file", "0123456789", 10), buf[11] = "";
		int fd = open(path, O_WRONLY);
		struct bd_file *f;
		struct stat before, after;

		if (change == CHOWN && geteuid() != 0) {
			close(fd);
			continue;
		}
		settle(path);
		f = opened(path);
		assert_int_equal(fstat(f->fd, &before), 0);
		apply(change, dir, path);
		for (int i = 0; i < 2; i++)
			if (bd_file_check(f, &err))
				fail_msg("change %d: %s", (int)change, err.text);
		assert_int_equal(fstat(f->fd, &after), 0);
		assert_false(bd_file_same(&before, &after));
		assert_true(bd_file_same(&before, &f->frozen));
		assert_int_equal(bd_file_is_gone(f), change == UNLINK || change == REPLACE);
		assert_int_equal(bd_file_read(f, buf, 10, 0, &err), 0);
		assert_string_equal(buf, "0123456789");
		settle(path = td_write(dir, "clock", "", 0));
		assert_int_equal(fchmod(fd, 0604), 0);
		assert_int_equal(bd_file_check(f, &err), 0);
		settle(path);
		assert_int_equal(fchmod(fd, 0604), 0); /* nothing that would explain a new ctime */
		assert_int_equal(bd_file_check(f, &err), -EIO);
		assert_non_null(strstr(err.text, "status change time"));
		assert_int_equal(fchmod(fd, 0600), 0); /* too late */
		assert_int_equal(bd_file_check(f, &err), -EIO);
		assert_int_equal(pwrite(fd, "x", 1, 0), 1);
		assert_int_equal(bd_file_check(f, &err), -EIO);
		assert_non_null(strstr(err.text, "modification time"));
		close(fd);
		bd_file_close(f);
	}
}

struct checker {
	struct bd_file *file;
	atomic_bool *stop;
	unsigned long good, bad;
};

static void *check_always(void *argument)
{
	struct checker *c = argument;

	while (!atomic_load(c->stop))
		if (bd_file_check(c->file, NULL))
			c->bad++;
		else
			c->good++;
	return NULL;
}

/* Many threads check while mode and links change all the time. */
static void checks_in_threads(void **state)
{
	enum { THREADS = 4, ROUNDS = 400 };
	char *dir = td_dir(), *path = td_write(dir, "file", "0123456789", 10);
	struct checker checkers[THREADS];
	pthread_t threads[THREADS];
	atomic_bool stop = false;
	struct bd_file *f;

	(void)state;
	settle(path);
	f = opened(path);
	for (int i = 0; i < THREADS; i++) {
		checkers[i] = (struct checker){ f, &stop, 0, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, check_always, &checkers[i]), 0);
	}
	for (unsigned i = 0; i < ROUNDS; i++) {
		/* Another mode each time, or a change would go back before anybody looked. */
		assert_int_equal(chmod(path, 0400 | (i & 0377)), 0);
		sched_yield();
	}
	assert_int_equal(unlink(path), 0);
	assert_int_equal(bd_file_check(f, &err), 0);
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(checkers[i].bad, 0);
	}
	bd_file_close(f);
}

/* Relative to a directory; the path is only for messages. */
static void opens_at(void **state)
{
	char *dir = td_dir();
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	struct bd_file *f;

	(void)state;
	td_write(dir, "file", "0123456789", 10);
	assert_int_equal(bd_file_open_at(&f, fd, "file", "some/name", &err), 0);
	assert_string_equal(f->path, "some/name");
	assert_int_equal(f->size, 10);
	bd_file_close(f);
	assert_int_equal(bd_file_open_at(&f, fd, "none", "some/name", &err), -ENOENT);
	assert_non_null(strstr(err.text, "some/name: cannot be opened"));
	assert_int_equal(bd_file_open_at(&f, AT_FDCWD, td_path(dir, "file"), "x", &err), 0);
	bd_file_close(f);
	close(fd);
}

static void slurps(void **state)
{
	char *path = td_write(td_dir(), "file", "0123456789", 10), *data;
	size_t size;

	(void)state;
	assert_int_equal(bd_file_slurp(path, 10, &data, &size, &err), 0);
	assert_int_equal(size, 10);
	assert_string_equal(data, "0123456789");
	free(data);
	assert_int_equal(bd_file_slurp(path, 9, &data, &size, &err), -EFBIG);
	assert_null(data);
	assert_non_null(strstr(err.text, "10 bytes, at most 9"));
	assert_int_equal(bd_file_slurp("/nonexistent/x", 9, &data, &size, &err), -ENOENT);
	path = td_write(td_dir(), "empty", "", 0);
	assert_int_equal(bd_file_slurp(path, 0, &data, &size, &err), 0);
	assert_string_equal(data, "");
	assert_int_equal(size, 0);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(opens),
		cmocka_unit_test(refuses),
		cmocka_unit_test(reads),
		cmocka_unit_test(reads_sparse),
		cmocka_unit_test(detects_changes),
		cmocka_unit_test(accepts_changes),
		cmocka_unit_test(checks_in_threads),
		cmocka_unit_test(opens_at),
		cmocka_unit_test(slurps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
