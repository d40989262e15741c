/* read_file HOW FILE...: read files in one way and print `SECONDS BYTES`, for tests/bench.sh.
 *
 *   drop     forget the page cache of the files; prints nothing
 *   read     read(2) of 1 MiB, one after the other
 *   mmap     copy 1 MiB at a time out of a private mapping
 *   direct   O_DIRECT reads of 1 MiB
 *
 * Opening and mapping are within the time. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1 << 20)

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

static uint64_t by_read(int fd, const char *path, char *buffer)
{
	uint64_t total = 0;
	ssize_t n;
	while ((n = read(fd, buffer, BLOCK)) > 0)
		total += (uint64_t)n;
	if (n < 0)
		die(path, "read");
	return total;
}

static uint64_t by_mmap(int fd, const char *path, uint64_t size, char *buffer)
{
	char *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		die(path, "mmap");
	for (uint64_t i = 0, n; i < size; i += n) {
		n = size - i < BLOCK ? size - i : BLOCK;
		memcpy(buffer, p + i, n);
		__asm__ volatile("" : : "r"(buffer) : "memory");
	}
	munmap(p, size);
	return size;
}

int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[1] : "";
	int drop = !strcmp(how, "drop"), map = !strcmp(how, "mmap"), direct = !strcmp(how, "direct");
	if (!drop && !map && !direct && strcmp(how, "read") != 0) {
		fprintf(stderr, "usage: read_file drop|read|mmap|direct FILE...\n");
		return 1;
	}
	char *buffer = aligned_alloc(4096, BLOCK);
	if (!buffer)
		die("buffer", "memory");
	memset(buffer, 0, BLOCK); /* its page faults are not what is measured */
	uint64_t total = 0;
	double start = now();
	for (int i = 2; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY | (direct ? O_DIRECT : 0));
		struct stat st;
		if (fd < 0 || fstat(fd, &st) != 0)
			die(argv[i], "open");
		if (drop)
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		else if (map)
			total += by_mmap(fd, argv[i], (uint64_t)st.st_size, buffer);
		else
			total += by_read(fd, argv[i], buffer);
		close(fd);
	}
	if (!drop)
		printf("%.6f %" PRIu64 "\n", now() - start, total);
	free(buffer);
	return 0;
}
