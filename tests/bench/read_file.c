/* SPDX-License-Identifier: Apache-2.0 */
/* read_file HOW FILE...: read files in one way and print what was measured, for tests/bench.sh.
 *
 *   drop             forget the page cache of the files and check that it is gone; prints nothing
 *   read             read(2) of 1 MiB, one after the other
 *   mmap             copy 1 MiB at a time out of a private mapping
 *   direct:MIB:N     O_DIRECT reads of MIB MiB by N threads, each in its own part of the file
 *   together         a process for each file, read(2) of 1 MiB, all starting at once
 *   faults           touch one byte of each of 20,000 pages in random order, with MADV_RANDOM
 *   faults-plain     touch 500 random pages without advice
 *   open             open and close each file 20 times, in turns
 *   range:FROM:SIZE  read exactly these bytes of each file with pread, readahead off
 *   folios           how much of the page cache of the files is in folios of more than a page (root)
 *
 * read, mmap, direct and range print `SECONDS BYTES`; together prints `SECONDS BYTES SLOWEST FASTEST`, the
 * last two in seconds of one process; faults and open print `P50 P99` in microseconds; folios prints a
 * fraction. Opening and mapping are within the time, buffers are touched before it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define PAGE 4096ul
#define FAULTS 20000ul
#define FAULTS_PLAIN 500ul /* each brings in some 256 pages: few enough that most touches are misses */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *path, const char *what)
{
	fprintf(stderr, "read_file: %s: %s: %s\n", path, what, strerror(errno));
	exit(1);
}

static void *touched(size_t size)
{
	char *p;

	size = (size + PAGE - 1) / PAGE * PAGE;
	p = aligned_alloc(PAGE, size);
	if (!p)
		die("buffer", "memory");
	memset(p, 0, size);
	return p;
}

static int open_sized(const char *path, int flags, uint64_t *size)
{
	int fd = open(path, O_RDONLY | flags);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path, "open");
	*size = (uint64_t)st.st_size;
	return fd;
}

static const char *map(int fd, const char *path, uint64_t size)
{
	const char *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);

	if (p == MAP_FAILED)
		die(path, "mmap");
	return p;
}

/* Pages of the file in the page cache; 0 where the kernel cannot tell (before 6.5). */
static uint64_t cached_pages(int fd, uint64_t size)
{
	struct { uint64_t offset, size; } range = { 0, size };
	struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } stat = { 0 };
	const long cachestat = 451; /* newer than some headers */

	return syscall(cachestat, fd, &range, &stat, 0) < 0 ? 0 : stat.cached;
}

static void drop(const char *path)
{
	uint64_t size;
	int fd = open_sized(path, 0, &size);

	/* A page that some processor has just put to use may need a second call; one that is mapped
	 * stays until the process that has it mapped, perhaps a daemon about to end, is gone. */
	for (int i = 0; i < 50; i++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		if (cached_pages(fd, size) <= size / PAGE / 100)
			break;
		if (i == 49)
			fprintf(stderr, "read_file: %s: stays in the page cache\n", path);
		usleep(20000);
	}
	close(fd);
}

static uint64_t by_read(const char *path, char *buffer)
{
	uint64_t size, total = 0;
	int fd = open_sized(path, 0, &size);
	ssize_t n;

	while ((n = read(fd, buffer, MIB)) > 0)
		total += (uint64_t)n;
	if (n < 0)
		die(path, "read");
	close(fd);
	return total;
}

static uint64_t by_mmap(const char *path, char *buffer)
{
	uint64_t size;
	int fd = open_sized(path, 0, &size);
	const char *p = map(fd, path, size);

	for (uint64_t i = 0, n; i < size; i += n) {
		n = size - i < MIB ? size - i : MIB;
		memcpy(buffer, p + i, n);
		__asm__ volatile("" : : "r"(buffer) : "memory");
	}
	munmap((void *)p, size);
	close(fd);
	return size;
}

struct part {
	pthread_t thread;
	const char *path;
	char *buffer;
	size_t block;
	uint64_t from, to;
};

static void *read_part(void *data)
{
	struct part *p = data;
	uint64_t size;
	int fd = open_sized(p->path, O_DIRECT, &size);

	while (p->from < p->to) {
		ssize_t n = pread(fd, p->buffer, p->block, (off_t)p->from);

		if (n <= 0)
			die(p->path, "read");
		p->from += (uint64_t)n;
	}
	close(fd);
	return NULL;
}

static double by_direct(const char *path, size_t block, unsigned threads, uint64_t *size)
{
	struct part *parts = touched(threads * sizeof(*parts));
	uint64_t blocks;
	double start;

	close(open_sized(path, 0, size));
	blocks = (*size + block - 1) / block;
	for (unsigned i = 0; i < threads; i++) {
		parts[i].path = path;
		parts[i].buffer = touched(block);
		parts[i].block = block;
		parts[i].from = blocks * i / threads * block;
		parts[i].to = i + 1 < threads ? blocks * (i + 1) / threads * block : *size;
	}
	start = now();
	for (unsigned i = 0; i < threads; i++)
		if (pthread_create(&parts[i].thread, NULL, read_part, &parts[i]))
			die(path, "thread");
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(parts[i].thread, NULL);
		free(parts[i].buffer);
	}
	free(parts);
	return now() - start;
}

static void together(char **files, int count)
{
	struct { double seconds; uint64_t bytes; } *done; /* of each process */
	double start, slowest = 0, fastest = 1e9;
	uint64_t bytes = 0;
	int gate[2], status;
	char c;

	done = mmap(NULL, (size_t)count * sizeof(*done), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (done == MAP_FAILED || pipe(gate) < 0)
		die("together", "memory");
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("together", "fork");
		if (pid == 0) {
			char *buffer = touched(MIB);

			close(gate[1]);
			if (read(gate[0], &c, 1) < 0) /* until the gate opens: end of file */
				_exit(1);
			start = now();
			done[i].bytes = by_read(files[i], buffer);
			done[i].seconds = now() - start;
			_exit(0);
		}
	}
	usleep(200000); /* all of them stand at the gate */
	start = now();
	close(gate[1]);
	for (int i = 0; i < count; i++)
		if (wait(&status) < 0 || status)
			die("together", "a reader failed");
	start = now() - start;
	for (int i = 0; i < count; i++) {
		bytes += done[i].bytes;
		slowest = done[i].seconds > slowest ? done[i].seconds : slowest;
		fastest = done[i].seconds < fastest ? done[i].seconds : fastest;
	}
	printf("%.6f %" PRIu64 " %.6f %.6f\n", start, bytes, slowest, fastest);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void faults(const char *path, bool advised)
{
	uint64_t size, pages, count, state = 88172645463325252;
	int fd = open_sized(path, 0, &size);
	const volatile char *p = map(fd, path, size);
	uint32_t *order;
	double *us;

	pages = size / PAGE;
	count = advised ? FAULTS : FAULTS_PLAIN;
	count = count < pages ? count : pages;
	order = touched(pages * sizeof(*order));
	us = touched(count * sizeof(*us));
	for (uint64_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (uint64_t i = 0; i < count; i++) { /* distinct pages: the head of a shuffled list */
		uint64_t k;
		uint32_t page;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		k = i + state % (pages - i);
		page = order[k];
		order[k] = order[i];
		order[i] = page;
	}
	if (advised && madvise((void *)p, size, MADV_RANDOM) < 0)
		die(path, "madvise");
	for (uint64_t i = 0; i < count; i++) {
		double start = now();

		(void)p[order[i] * PAGE];
		us[i] = 1e6 * (now() - start);
	}
	qsort(us, count, sizeof(*us), ascending);
	printf("%.2f %.2f\n", us[count / 2], us[count * 99 / 100]);
	munmap((void *)p, size);
	close(fd);
	free(order);
	free(us);
}

static void opens(char **files, int count)
{
	enum { TURNS = 20 };
	size_t done = 0, all = (size_t)count * TURNS;
	double *us = touched(all * sizeof(*us));

	for (int turn = 0; turn < TURNS; turn++)
		for (int i = 0; i < count; i++) {
			double start = now();
			int fd = open(files[i], O_RDONLY);

			us[done++] = 1e6 * (now() - start);
			if (fd < 0)
				die(files[i], "open");
			close(fd);
		}
	qsort(us, all, sizeof(*us), ascending);
	printf("%.2f %.2f\n", us[all / 2], us[all * 99 / 100]);
	free(us);
}

static uint64_t by_range(const char *path, uint64_t from, uint64_t wanted)
{
	char *buffer = touched(wanted);
	uint64_t size, done = 0;
	int fd = open_sized(path, 0, &size);
	ssize_t n;

	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	while (done < wanted &&
	       (n = pread(fd, buffer + done, wanted - done, (off_t)(from + done))) > 0)
		done += (uint64_t)n;
	close(fd);
	free(buffer);
	return done;
}

static void folios(char **files, int count)
{
	uint64_t total = 0, large = 0;
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	int kpageflags = open("/proc/kpageflags", O_RDONLY);

	if (pagemap < 0 || kpageflags < 0)
		die("/proc/kpageflags", "open");
	for (int i = 0; i < count; i++) {
		uint64_t size, entry, flags;
		int fd = open_sized(files[i], 0, &size);
		const volatile char *p = map(fd, files[i], size);

		for (uint64_t at = 0; at < size; at += PAGE) {
			(void)p[at];
			/* pagemap: bit 63 present, bits 0-54 the frame, which only root sees;
			 * kpageflags: bits 15 and 16 head and tail of a compound page. */
			if (pread(pagemap, &entry, 8, (off_t)((uintptr_t)(p + at) / PAGE * 8)) != 8 ||
			    !(entry >> 63))
				continue;
			entry &= (1ul << 55) - 1;
			if (!entry || pread(kpageflags, &flags, 8, (off_t)(entry * 8)) != 8) {
				errno = EPERM;
				die("/proc/kpageflags", "read");
			}
			total++;
			large += (flags >> 15 & 3) != 0;
		}
		munmap((void *)p, size);
		close(fd);
	}
	printf("%.2f\n", total ? (double)large / (double)total : 0);
}

int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[1] : "";
	uint64_t total = 0, size, from = 0, wanted = 0;
	unsigned mib = 0, threads = 0;
	double seconds = 0, start;
	char *buffer;
	int i;

	if (!strcmp(how, "together")) {
		together(argv + 2, argc - 2);
		return 0;
	}
	if (!strcmp(how, "folios")) {
		folios(argv + 2, argc - 2);
		return 0;
	}
	if (!strcmp(how, "open")) {
		opens(argv + 2, argc - 2);
		return 0;
	}
	if (strcmp(how, "drop") && strcmp(how, "read") && strcmp(how, "mmap") &&
	    strcmp(how, "faults") && strcmp(how, "faults-plain") &&
	    (sscanf(how, "direct:%u:%u", &mib, &threads) != 2 || !mib || !threads) &&
	    sscanf(how, "range:%" SCNu64 ":%" SCNu64, &from, &wanted) != 2) {
		fprintf(stderr, "Usage: read_file HOW FILE..., HOW being drop, read, mmap, direct:MIB:N, "
			"together, faults, faults-plain, open, range:FROM:SIZE or folios\n");
		return 1;
	}
	buffer = touched(MIB);
	for (i = 2; i < argc; i++) {
		start = now();
		if (!strcmp(how, "drop")) {
			drop(argv[i]);
		} else if (!strncmp(how, "faults", 6)) {
			faults(argv[i], !strcmp(how, "faults"));
		} else if (threads) {
			seconds += by_direct(argv[i], mib * MIB, threads, &size);
			total += size;
		} else {
			total += !strcmp(how, "read") ? by_read(argv[i], buffer)
			       : !strcmp(how, "mmap") ? by_mmap(argv[i], buffer)
			       : by_range(argv[i], from, wanted);
			seconds += now() - start;
		}
	}
	if (total)
		printf("%.6f %" PRIu64 "\n", seconds, total);
	free(buffer);
	return 0;
}
