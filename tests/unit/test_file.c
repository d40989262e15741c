/* test_file.c: input files and the detection of everything that happens to them while in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
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
	alarm(20); /* a plain open would wait for a writer for ever */
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

enum change { GROW, SHRINK, OVERWRITE, OVERWRITE_SAME_MTIME, CHMOD, RENAME, REPLACE, UNLINK, CHANGES };

static void detects_changes(void **state)
{
	static const char *const says[CHANGES] = {
		[GROW] = "it had 10 bytes and has 11", [SHRINK] = "it had 10 bytes and has 4",
		[OVERWRITE] = "modification time", [OVERWRITE_SAME_MTIME] = "status change time",
		[CHMOD] = "status change time", [RENAME] = "status change time",
		[REPLACE] = "deleted or replaced", [UNLINK] = "deleted or replaced",
	};

	(void)state;
	for (enum change change = 0; change < CHANGES; change++) {
		struct timespec past[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
		char *dir = td_dir(), *path = td_write(dir, "file", "0123456789", 10);
		struct bd_file *f;
		int fd;

		settle(path);
		f = opened(path);
		assert_int_equal(bd_file_check(f, &err), 0);
		fd = open(path, O_WRONLY);
		assert_true(fd >= 0);
		switch (change) {
		case GROW: assert_int_equal(pwrite(fd, "x", 1, 10), 1); break;
		case SHRINK: assert_int_equal(ftruncate(fd, 4), 0); break;
		case OVERWRITE: assert_int_equal(pwrite(fd, "x", 1, 0), 1); break;
		case OVERWRITE_SAME_MTIME:
			assert_int_equal(pwrite(fd, "x", 1, 0), 1);
			assert_int_equal(futimens(fd, past), 0);
			break;
		case CHMOD: assert_int_equal(fchmod(fd, 0400), 0); break;
		case RENAME: assert_int_equal(rename(path, td_path(dir, "other")), 0); break;
		case REPLACE:
			assert_int_equal(rename(td_write(dir, "new", "0123456789", 10), path), 0);
			break;
		case UNLINK: assert_int_equal(unlink(path), 0); break;
		default: break;
		}
		close(fd);
		memset(&err, 0, sizeof(err));
		if (bd_file_check(f, &err) != -EIO || !strstr(err.text, says[change]) ||
		    !strstr(err.text, path) || !strstr(err.text, "remount"))
			fail_msg("change %d: %s", (int)change, err.text);
		/* It stays so. */
		assert_int_equal(bd_file_check(f, NULL), -EIO);
		bd_file_close(f);
	}
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
		cmocka_unit_test(slurps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
