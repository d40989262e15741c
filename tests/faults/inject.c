/* SPDX-License-Identifier: Apache-2.0 */
/* inject.c: a library for LD_PRELOAD that makes the N-th call of a function fail, counted over all threads.
 *
 *     INJECT_CALL=pwrite|pread|fsync|linkat|renameat|openat|open|fstat|malloc|thread
 *     INJECT_AT=N         the first that fails; 0: none
 *     INJECT_ERRNO=28
 *     INJECT_ALL=1        all later ones fail, too
 *     INJECT_SHORT=1      pwrite: writes half instead of failing
 *     INJECT_TOUCH=FILE   instead of failing, FILE gets a new modification time
 *     INJECT_FROM=FILE INJECT_TO=FILE   instead of failing, the first is renamed to the second (or, where
 *                         only the first is given, removed)
 *     INJECT_COUNT=FILE   gets the number of calls at exit
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);

static const char *wanted = "";
static long at;
static bool count_all, half;
static int code;
static const char *touch, *from, *to, *count_file;
static atomic_long calls;
static atomic_bool ready;

__attribute__((constructor))
static void begin(void)
{
	const char *text;

	wanted = getenv("INJECT_CALL") ? getenv("INJECT_CALL") : "";
	at = (text = getenv("INJECT_AT")) ? atol(text) : 0;
	code = (text = getenv("INJECT_ERRNO")) ? atoi(text) : EIO;
	count_all = getenv("INJECT_ALL") != NULL;
	half = getenv("INJECT_SHORT") != NULL;
	touch = getenv("INJECT_TOUCH");
	from = getenv("INJECT_FROM");
	to = getenv("INJECT_TO");
	count_file = getenv("INJECT_COUNT");
	atomic_store(&ready, true);
}

__attribute__((destructor))
static void end(void)
{
	char text[32];
	int fd, n = snprintf(text, sizeof(text), "%ld\n", atomic_load(&calls));

	atomic_store(&ready, false);
	if (!count_file)
		return;
	fd = open(count_file, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	if (fd >= 0 && write(fd, text, (size_t)n) == n)
		close(fd);
}

/* Is this the call that fails? */
static int strikes(const char *call)
{
	long n;

	if (!atomic_load(&ready) || strcmp(call, wanted) != 0)
		return 0;
	n = atomic_fetch_add(&calls, 1) + 1;
	if (at == 0 || n < at || (n > at && !count_all))
		return 0;
	if (touch || from) {
		if (n == at && touch)
			utimensat(AT_FDCWD, touch, NULL, 0);
		else if (n == at && (to ? rename(from, to) : unlink(from)) < 0)
			_exit(99);
		return 0;
	}
	errno = code;
	return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *buf, size_t size, off64_t offset)
{
	if (strikes("pwrite")) {
		if (!half)
			return -1;
		size = (size + 1) / 2;
	}
	return REAL(pwrite64)(fd, buf, size, offset);
}

ssize_t pread64(int fd, void *buf, size_t size, off64_t offset)
{
	return strikes("pread") ? -1 : REAL(pread64)(fd, buf, size, offset);
}

int fsync(int fd)
{
	return strikes("fsync") ? -1 : REAL(fsync)(fd);
}

int linkat(int a_dir, const char *a, int b_dir, const char *b, int flags)
{
	return strikes("linkat") ? -1 : REAL(linkat)(a_dir, a, b_dir, b, flags);
}

int renameat(int a_dir, const char *a, int b_dir, const char *b)
{
	return strikes("renameat") ? -1 : REAL(renameat)(a_dir, a, b_dir, b);
}

int openat64(int dir, const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = va_arg(args, mode_t);
	va_end(args);
	return strikes("openat") ? -1 : REAL(openat64)(dir, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = va_arg(args, mode_t);
	va_end(args);
	return strikes("open") ? -1 : REAL(open64)(path, flags, mode);
}

int fstat64(int fd, struct stat64 *st)
{
	return strikes("fstat") ? -1 : REAL(fstat64)(fd, st);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	return strikes("thread") ? EAGAIN : REAL(pthread_create)(thread, attributes, start, argument);
}

void *malloc(size_t size)
{
	return strikes("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	return strikes("malloc") ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	return strikes("malloc") ? NULL : __libc_realloc(p, size);
}
