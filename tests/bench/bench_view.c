/* SPDX-License-Identifier: Apache-2.0 */
/* bench_view BASE DELTA [THREADS]: speed of bd_view_read over a base and a delta in the page cache,
 * with maps and with pread, beside memcpy from a map of the base's largest file.
 *
 * Prints lines "name value ratio": GB/s of 1 MiB requests one after the other (threads take turns,
 * as those of a mount do), and microseconds for each random request of 4 KiB; the ratio is to
 * memcpy's speed. All kinds are timed in turns, and the median over the rounds is printed. At the
 * end the process's resident memory. For a pair:
 *
 *     make_pair DIR 2048 8 1 && bitdelta import --base DIR/base DIR/fine0 -o DIR/fine0.bdelta
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "guard.h"
#include "view.h"

enum { ROUNDS = 9, MAX_THREADS = 64, LARGE = 1 << 20, SMALL = 4096, SMALL_READS = 4000 };
enum kind { COPY, PREAD, MAP, KINDS };

static const char *const names[KINDS] = { "memcpy", "pread", "map" };
static struct bd_view *views[KINDS];
static const uint8_t *plain;
static size_t file;       /* index of the largest one in the views */
static uint64_t size;     /* of the part of it that is read: as much as `plain` has */
static unsigned threads = 1;
static struct bd_error err;

struct turn {
	enum kind kind;
	size_t request;
	atomic_uint_fast64_t next; /* request to be taken */
};

static void die(const char *what)
{
	fprintf(stderr, "bench_view: %s\n", what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *read_requests(void *argument)
{
	struct turn *t = argument;
	struct bd_scratch *scratch = bd_scratch_new();
	char *buffer = aligned_alloc(4096, t->request);
	uint64_t count = t->request == LARGE ? size / LARGE : SMALL_READS, i;

	if (!scratch || !buffer)
		die("out of memory");
	memset(buffer, 0, t->request);
	while ((i = atomic_fetch_add(&t->next, 1)) < count) {
		uint64_t at = (t->request == LARGE ? i : i * 0x9e3779b97f4a7c15 % (size / SMALL)) *
			      t->request;

		if (t->kind == COPY)
			memcpy(buffer, plain + at, t->request);
		else if (bd_view_read(views[t->kind], file, buffer, t->request, at, scratch, &err) < 0)
			die(err.text);
		__asm__ volatile("" : : "r"(buffer) : "memory");
	}
	free(buffer);
	bd_scratch_free(scratch);
	return NULL;
}

/* Seconds */
static double measure(enum kind kind, size_t request)
{
	struct turn turn = { .kind = kind, .request = request };
	pthread_t thread[MAX_THREADS];
	double begin = now();

	for (unsigned i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, read_requests, &turn))
			die("no thread");
	for (unsigned i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return now() - begin;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void print_resident(void)
{
	char line[256];
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "VmRSS", 5) || !strncmp(line, "RssFile", 7) || !strncmp(line, "VmPTE", 5))
			fputs(line, stdout);
	if (f)
		fclose(f);
}

static void open_view(enum kind kind, char **argv)
{
	struct bd_base *base;
	struct bd_delta *delta;

	if (bd_base_open(&base, argv[1], &err) || bd_delta_open(&delta, argv[2], &err) ||
	    bd_view_open(&views[kind], delta, base, &err))
		die(err.text);
}

int main(int argc, char **argv)
{
	static double seconds[2][KINDS][ROUNDS];
	struct bd_file *source = NULL;
	double copy;

	if (argc > 3)
		threads = (unsigned)atoi(argv[3]);
	if (argc < 3 || threads < 1 || threads > MAX_THREADS) {
		fprintf(stderr, "Usage: bench_view BASE DELTA [THREADS]\n");
		return 1;
	}
	open_view(PREAD, argv);
	if (bd_guard_install() < 0)
		die("no handler of SIGBUS");
	open_view(MAP, argv);
	for (size_t i = 0; i < views[MAP]->file_count; i++)
		if (views[MAP]->files[i].size > views[MAP]->files[file].size)
			file = i;
	for (size_t i = 0; i < views[MAP]->base->checkpoint->shard_count; i++) {
		struct bd_file *f = views[MAP]->base->checkpoint->shards[i].file;

		if (!source || f->size > source->size)
			source = f;
	}
	size = views[MAP]->files[file].size < source->size ? views[MAP]->files[file].size : source->size;
	if (size < LARGE)
		die("the files are too small");
	plain = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, source->fd, 0);
	if (plain == MAP_FAILED)
		die("cannot map the base");
	for (int round = -1; round < ROUNDS; round++) /* the first one only warms up */
		for (int kind = 0; kind < KINDS; kind++)
			for (int small = 0; small < 2; small++)
				seconds[small][kind][round < 0 ? 0 : round] =
					measure((enum kind)kind, small ? SMALL : LARGE);
	for (int small = 0; small < 2; small++)
		for (int kind = 0; kind < KINDS; kind++)
			qsort(seconds[small][kind], ROUNDS, sizeof(double), ascending);
	for (int kind = 0; kind < KINDS; kind++) {
		double s = seconds[0][kind][ROUNDS / 2];

		copy = seconds[0][COPY][ROUNDS / 2];
		printf("%-12s 1M %7.2f GB/s %6.2f\n", names[kind], (double)size / s / 1e9, copy / s);
	}
	for (int kind = 0; kind < KINDS; kind++) {
		double s = seconds[1][kind][ROUNDS / 2];

		copy = seconds[1][COPY][ROUNDS / 2];
		printf("%-12s 4K %7.2f us   %6.2f\n", names[kind], s / SMALL_READS * threads * 1e6, copy / s);
	}
	munmap((void *)plain, size);
	print_resident();
	for (int kind = PREAD; kind < KINDS; kind++) {
		struct bd_base *base = views[kind]->base;

		bd_view_close(views[kind]);
		bd_base_close(base);
	}
	return 0;
}
