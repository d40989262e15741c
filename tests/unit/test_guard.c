/* SPDX-License-Identifier: Apache-2.0 */
/* test_guard.c: reading maps of files that lose their pages meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "file.h"
#include "guard.h"
#include "testdata.h"

#define SIZE (1 << 20)
#define PAGE 4096

static struct bd_error err;

static struct bd_file *opened(const char *path)
{
	struct bd_file *f;

	/* cmocka puts a handler of its own in place for each test. */
	if (bd_guard_installed())
		assert_int_equal(bd_guard_install(), 0);
	if (bd_file_open(&f, path, &err))
		fail_msg("%s", err.text);
	return f;
}

static char *filled(void)
{
	char *data = malloc(SIZE), *path;

	assert_non_null(data);
	memset(data, 'x', SIZE);
	path = td_write(td_dir(), "file", data, SIZE);
	free(data);
	return path;
}

struct sum {
	const uint8_t *from;
	size_t size;
	uint64_t sum;
};

static void add_up(void *context)
{
	struct sum *s = context;
	uint64_t sum = 0;

	for (size_t i = 0; i < s->size; i++)
		sum += ((const volatile uint8_t *)s->from)[i];
	s->sum = sum;
}

static const void *run(struct sum *s)
{
	struct bd_guard_range range = { s->from, s->size };

	return bd_guard_run(add_up, s, &range, 1);
}

/* Nothing is mapped unless the program handles what may come. */
static void needs_handler(void **state)
{
	struct bd_file *f = opened(filled());

	(void)state;
	bd_file_map(f);
	assert_null(f->map);
	bd_file_close(f);
	assert_int_equal(bd_guard_install(), 0);
	assert_true(bd_guard_installed());
}

static void maps(void **state)
{
	char *path = filled();
	struct bd_file *f = opened(path);
	struct sum s;

	(void)state;
	bd_file_map(f);
	assert_non_null(f->map);
	s = (struct sum){ f->map, SIZE + BD_FILE_SLACK, 0 };
	assert_null(run(&s));
	assert_int_equal(s.sum, (uint64_t)SIZE * 'x');
	assert_true(bd_file_is_cached(f, SIZE, 0));
	bd_file_used(f, SIZE, 0);
	bd_file_used(f, 10, SIZE - 10);
	assert_null(run(&s));
	assert_int_equal(s.sum, (uint64_t)SIZE * 'x');
	bd_file_close(f);
	f = opened(td_write(td_dir(), "empty", "", 0));
	bd_file_map(f);
	assert_null(f->map);
	bd_file_close(f);
}

static size_t mapped_memory(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[200];
	size_t kib = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "RssFile: %zu", &kib) == 1)
			break;
	fclose(f);
	return kib * 1024;
}

/* However much is read from maps, the process stays small. */
static void stays_small(void **state)
{
	const size_t size = 2 * BD_FILE_RESIDENT + SIZE;
	char *path = filled();
	struct bd_file *files[2];
	size_t before, most = 0;

	(void)state;
	assert_int_equal(truncate(path, (off_t)size), 0);
	before = mapped_memory();
	for (int i = 0; i < 2; i++) {
		files[i] = opened(path);
		bd_file_map(files[i]);
		assert_non_null(files[i]->map);
	}
	for (size_t at = 0; at < 2 * size; at += SIZE) {
		struct bd_file *f = files[at >= size];
		struct sum s = { f->map + at % size, SIZE, 0 };
		size_t now;

		assert_null(run(&s));
		bd_file_used(f, SIZE, at % size);
		now = mapped_memory();
		most = now > most ? now : most;
	}
	assert_true(most > before);
	assert_true(most - before <= BD_FILE_RESIDENT + 4 * SIZE);
	for (int i = 0; i < 2; i++)
		bd_file_close(files[i]);
}

/* The first page that is missing is the one that is named, and the rest stays readable. */
static void truncated(void **state)
{
	char *path = filled();
	struct bd_file *f = opened(path);
	struct sum s;

	(void)state;
	bd_file_map(f);
	s = (struct sum){ f->map, SIZE, 0 };
	assert_null(run(&s));
	assert_int_equal(truncate(path, 5 * PAGE), 0);
	for (int i = 0; i < 3; i++)
		assert_ptr_equal(run(&s), f->map + 5 * PAGE);
	s.size = 5 * PAGE;
	assert_null(run(&s));
	assert_int_equal(s.sum, (uint64_t)s.size * 'x');
	bd_file_close(f);
}

struct reader {
	struct bd_file *file;
	atomic_bool *stop;
	unsigned long whole, cut, wrong;
};

static void *read_always(void *argument)
{
	struct reader *r = argument;

	while (!atomic_load(r->stop)) {
		struct sum s = { r->file->map, SIZE, 0 };
		const uint8_t *fault = run(&s);

		bd_file_used(r->file, SIZE, 0);
		if (fault ? fault < r->file->map || fault >= r->file->map + SIZE :
		    s.sum > (uint64_t)SIZE * 'x')
			r->wrong++;
		else if (fault)
			r->cut++;
		else
			r->whole++;
	}
	return NULL;
}

/* Several threads read while the file loses its pages and gets them back. */
static void truncated_in_threads(void **state)
{
	enum { THREADS = 4 };
	char *path = filled();
	struct bd_file *f = opened(path);
	struct reader readers[THREADS];
	pthread_t threads[THREADS];
	atomic_bool stop = false;

	(void)state;
	bd_file_map(f);
	for (int i = 0; i < THREADS; i++) {
		readers[i] = (struct reader){ f, &stop, 0, 0, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, read_always, &readers[i]), 0);
	}
	for (int i = 0; i < 50; i++) {
		assert_int_equal(truncate(path, i % 7 * PAGE), 0);
		usleep(2000);
		assert_int_equal(truncate(path, SIZE), 0);
		usleep(2000);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].wrong, 0);
		assert_true(readers[i].whole + readers[i].cut > 0);
	}
	bd_file_close(f);
}

/* A limited address space belongs to others. */
static void limited_memory(void **state)
{
	struct rlimit old, few = { .rlim_cur = (rlim_t)1 << 46 };
	struct bd_file *f = opened(filled());

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	few.rlim_max = old.rlim_max;
	if (setrlimit(RLIMIT_AS, &few) < 0)
		skip();
	bd_file_map(f);
	assert_null(f->map);
	setrlimit(RLIMIT_AS, &old);
	bd_file_close(f);
}

static void read_outside(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct bd_file *f = opened(path);
	volatile char *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	struct bd_guard_range range = { f->path, 1 };
	struct sum s = { (const uint8_t *)p, 1, 0 };

	if (truncate(path, 0) == 0)
		bd_guard_run(add_up, &s, &range, 1);
}

static void read_unguarded(const char *path)
{
	int fd = open(path, O_RDONLY);
	volatile char *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	if (truncate(path, 0) == 0)
		(void)*p;
}

static void sent(const char *path)
{
	(void)path;
	kill(getpid(), SIGBUS);
	pause();
}

/* What is not ours ends the process as it would without us. */
static void others(void **state)
{
	void (*const work[])(const char *) = { read_outside, read_unguarded, sent };

	(void)state;
	for (size_t i = 0; i < sizeof(work) / sizeof(*work); i++) {
		char *path = filled();
		int status;
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0) {
			struct rlimit none = { 0 };

			setrlimit(RLIMIT_CORE, &none);
			bd_guard_install();
			alarm(300);
			work[i](path);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
			fail_msg("case %zu: status %x", i, (unsigned)status);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(needs_handler),
		cmocka_unit_test(maps),
		cmocka_unit_test(stays_small),
		cmocka_unit_test(truncated),
		cmocka_unit_test(truncated_in_threads),
		cmocka_unit_test(limited_memory),
		cmocka_unit_test(others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
