/* SPDX-License-Identifier: Apache-2.0 */
/* readers.c: many processes read files of a mount in every way, and every byte is compared.
 *
 *     readers [-n READERS] [-s SECONDS] [-k] MOUNTED TRUTH
 *
 * MOUNTED and TRUTH are directories with the same files, at any depth. Each of READERS (64)
 * processes reads for SECONDS (60) at random offsets and lengths, aligned and not, also across
 * the end; it opens files anew and empties the kernel's cache of them now and then. With -k the
 * readers are killed by SIGKILL from half of the time on, and none may stay behind.
 * Prints steps as the scripts do; exit status 1 where one failed. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dice.h"

#define LARGEST (1u << 20)
#define PAGE 4096u
#define STALL 30.0 /* seconds; a read that takes longer is one that hung */

enum way { PREAD, READV, SEQUENTIAL, DIRECT, SENDFILE, MAP_SHARING, MAP_COPYING, MAP_FILLED, WAYS };
static const char *const way_names[WAYS] = {
	"pread", "readv", "read", "O_DIRECT", "sendfile", "mmap shared", "mmap private",
	"mmap populated",
};

struct file {
	char *mounted;
	const char *truth; /* mapped */
	size_t size;
	int fd, direct;    /* of a reader; -1: not open */
};

/* One reader's, in shared memory: what it has done. */
struct record {
	uint64_t count[WAYS], bytes;
	double longest[WAYS];
	bool wrong;
	char text[300];
};

static struct file *files;
static size_t file_count;
static const char *mounted_root, *truth_root;
static struct record *own;
__attribute__((format(printf, 1, 2), noreturn))
static void wrong(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(own->text, sizeof(own->text), format, arguments);
	va_end(arguments);
	own->wrong = true;
	_exit(1);
}

static void on_bus_error(int signal, siginfo_t *info, void *context)
{
	static const char text[] = "SIGBUS while a mapping was read";

	(void)signal;
	(void)info;
	(void)context;
	memcpy(own->text, text, sizeof(text));
	own->wrong = true;
	_exit(1);
}

static int add_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	struct file f = { .size = (size_t)st->st_size, .fd = -1, .direct = -1 };
	int fd;

	(void)ftw;
	if (type != FTW_F || f.size == 0)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	f.truth = mmap(NULL, f.size, PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || f.truth == MAP_FAILED)
		die(path);
	close(fd);
	if (asprintf(&f.mounted, "%s%s", mounted_root, path + strlen(truth_root)) < 0)
		die("asprintf");
	files = reallocarray(files, file_count + 1, sizeof(*files));
	if (!files)
		die("reallocarray");
	files[file_count++] = f;
	return 0;
}

static int reopen(struct file *f, int *fd, int flags)
{
	if (*fd >= 0 && dice(16) == 0) {
		close(*fd);
		*fd = -1;
	}
	if (*fd < 0)
		*fd = open(f->mounted, O_RDONLY | O_CLOEXEC | flags);
	if (*fd < 0)
		wrong("%s: cannot be opened: %s", f->mounted, strerror(errno));
	if (dice(8) == 0)
		posix_fadvise(*fd, 0, 0, POSIX_FADV_DONTNEED);
	return *fd;
}

static void compare(const struct file *f, enum way way, const char *got, ssize_t n, size_t offset,
		    size_t length)
{
	size_t want = offset >= f->size ? 0 : f->size - offset < length ? f->size - offset : length;

	if (n < 0)
		wrong("%s: %s of %zu bytes at %zu: %s", f->mounted, way_names[way], length, offset,
		      strerror(errno));
	if ((size_t)n != want)
		wrong("%s: %s of %zu bytes at %zu gave %zd, expected %zu", f->mounted, way_names[way],
		      length, offset, n, want);
	if (memcmp(got, f->truth + offset, want) != 0) {
		size_t i = 0;

		while (got[i] == f->truth[offset + i])
			i++;
		wrong("%s: %s of %zu bytes at %zu: wrong bytes from %zu on", f->mounted,
		      way_names[way], length, offset, offset + i);
	}
	own->bytes += want;
}

static ssize_t read_parts(int fd, char *buffer, size_t offset, size_t length)
{
	struct iovec parts[8];
	unsigned n = 0;
	size_t done = 0;

	while (n < 7 && done < length) {
		size_t part = 1 + dice(length - done);

		parts[n++] = (struct iovec){ buffer + done, part };
		done += part;
	}
	if (done < length)
		parts[n++] = (struct iovec){ buffer + done, length - done };
	if (dice(2))
		return preadv(fd, parts, (int)n, (off_t)offset);
	lseek(fd, (off_t)offset, SEEK_SET);
	return readv(fd, parts, (int)n);
}

static ssize_t read_on(int fd, char *buffer, size_t offset, size_t length)
{
	size_t done = 0;

	lseek(fd, (off_t)offset, SEEK_SET);
	while (done < length) {
		size_t part = 1 + dice(length - done);
		ssize_t n = read(fd, buffer + done, part);

		if (n <= 0)
			return n < 0 ? n : (ssize_t)done;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static ssize_t send_file(int fd, int memory, char *buffer, size_t offset, size_t length)
{
	off_t at = (off_t)offset;
	size_t done = 0;

	lseek(memory, 0, SEEK_SET);
	while (done < length) {
		ssize_t n = sendfile(memory, fd, &at, length - done);

		if (n < 0)
			return n;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return pread(memory, buffer, done, 0);
}

static void read_mapped(const struct file *f, int fd, enum way way, size_t offset, size_t length)
{
	size_t start = dice(2) ? 0 : offset / PAGE * PAGE;
	size_t end = dice(2) ? f->size : offset + length;
	int flags = way == MAP_SHARING ? MAP_SHARED : MAP_PRIVATE;
	char *p;

	if (way == MAP_FILLED)
		flags |= MAP_POPULATE;
	p = mmap(NULL, end - start, PROT_READ | (way == MAP_COPYING ? PROT_WRITE : 0), flags, fd,
		 (off_t)start);
	if (p == MAP_FAILED)
		wrong("%s: %s: %s", f->mounted, way_names[way], strerror(errno));
	if (dice(2))
		madvise(p, end - start, MADV_RANDOM);
	compare(f, way, p + (offset - start), (ssize_t)length, offset, length);
	if (way == MAP_COPYING)
		p[offset - start] ^= 1; /* stays with this process */
	munmap(p, end - start);
}

static void read_once(char *buffer, int memory)
{
	struct file *f = &files[dice(file_count)];
	enum way way = (enum way)dice(WAYS);
	size_t length = 1 + dice((uint64_t)1 << (3 + dice(18))); /* few are long */
	size_t offset = dice(f->size);
	ssize_t n = 0;
	double start;
	int fd;

	if (dice(4) == 0)
		offset = offset / PAGE * PAGE;
	if (dice(16) == 0)
		offset = f->size - dice(f->size < 9000 ? f->size : 9000);
	if (length > LARGEST)
		length = LARGEST;
	if (way >= MAP_SHARING && length > f->size - offset)
		length = f->size - offset;
	fd = way == DIRECT ? reopen(f, &f->direct, O_DIRECT) : reopen(f, &f->fd, 0);
	if (length == 0)
		return;
	start = now();
	switch (way) {
	case DIRECT:
		if (dice(4)) { /* as programs do; FUSE asks for no alignment */
			offset = offset / PAGE * PAGE;
			length = (length + PAGE - 1) / PAGE * PAGE;
		}
		/* fall through */
	case PREAD:
		n = pread(fd, buffer, length, (off_t)offset);
		break;
	case READV:
		n = read_parts(fd, buffer, offset, length);
		break;
	case SEQUENTIAL:
		n = read_on(fd, buffer, offset, length);
		break;
	case SENDFILE:
		n = send_file(fd, memory, buffer, offset, length);
		break;
	default:
		read_mapped(f, fd, way, offset, length);
	}
	if (way < MAP_SHARING)
		compare(f, way, buffer, n, offset, length);
	own->count[way]++;
	if (now() - start > own->longest[way])
		own->longest[way] = now() - start;
}

__attribute__((noreturn))
static void read_until(double end)
{
	struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };
	char *buffer = mmap(NULL, LARGEST + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	int memory = memfd_create("sent", MFD_CLOEXEC);

	if (buffer == MAP_FAILED || memory < 0)
		wrong("no memory: %s", strerror(errno));
	sigaction(SIGBUS, &action, NULL);
	while (now() < end)
		read_once(buffer, memory);
	_exit(0);
}

/* SIGKILL for all, some milliseconds apart: how many were gone soon. */
static long kill_all(const pid_t *children, long count)
{
	double end;
	long gone = 0;

	for (long i = 0; i < count; i++) {
		kill(children[i], SIGKILL);
		usleep((useconds_t)dice(10000));
	}
	end = now() + STALL;
	for (long i = 0; i < count; i++)
		while (waitpid(children[i], NULL, WNOHANG) != children[i]) {
			if (now() > end)
				return gone;
			usleep(1000);
		}
	return count;
}

int main(int argc, char **argv)
{
	long readers = 64, bad = 0, gone;
	double seconds = 60, longest = 0, end;
	uint64_t reads = 0, bytes = 0, least = UINT64_MAX, most = 0, count[WAYS] = { 0 };
	bool killing = false;
	struct record *records;
	pid_t *children;
	int option, status;

	while ((option = getopt(argc, argv, "n:s:k")) != -1)
		switch (option) {
		case 'n': readers = strtol(optarg, NULL, 10); break;
		case 's': seconds = strtod(optarg, NULL); break;
		case 'k': killing = true; break;
		default: return 2;
		}
	if (argc - optind != 2 || readers < 1) {
		fprintf(stderr, "Usage: readers [-n READERS] [-s SECONDS] [-k] MOUNTED TRUTH\n");
		return 2;
	}
	mounted_root = argv[optind];
	truth_root = argv[optind + 1];
	if (nftw(truth_root, add_file, 16, FTW_PHYS) != 0 || !file_count)
		die(truth_root);
	records = mmap(NULL, (size_t)readers * sizeof(*records), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	children = calloc((size_t)readers, sizeof(*children));
	if (records == MAP_FAILED || !children)
		die("no memory");
	dice_state = 88172645463325252u;
	end = now() + seconds;
	for (long i = 0; i < readers; i++) {
		children[i] = fork();
		if (children[i] < 0)
			die("fork");
		if (children[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			own = &records[i];
			dice_state += (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u;
			read_until(killing ? end + 600 : end);
		}
	}
	if (killing) {
		usleep((useconds_t)(seconds * 5e5));
		gone = kill_all(children, readers);
		if (gone < readers)
			printf("not ok %ld readers killed while they read: only %ld ended within %.0f s\n",
			       readers, gone, STALL);
		else
			printf("ok %ld readers killed while they read\n", readers);
		bad += gone < readers;
	} else {
		for (long i = 0; i < readers; i++)
			if (waitpid(children[i], &status, 0) < 0 ||
			    (status != 0 && !records[i].wrong)) {
				records[i].wrong = true;
				snprintf(records[i].text, sizeof(records[i].text),
					 "it ended with status %d", status);
			}
	}
	for (long i = 0; i < readers; i++) {
		if (records[i].wrong && bad++ < 5)
			printf("not ok reader %ld: %s\n", i, records[i].text);
		for (int w = 0; w < WAYS; w++) {
			count[w] += records[i].count[w];
			reads += records[i].count[w];
			if (records[i].longest[w] > longest)
				longest = records[i].longest[w];
		}
		bytes += records[i].bytes;
		least = records[i].bytes < least ? records[i].bytes : least;
		most = records[i].bytes > most ? records[i].bytes : most;
	}
	for (int w = 0; w < WAYS; w++)
		printf("# %s: %llu\n", way_names[w], (unsigned long long)count[w]);
	printf("# %llu reads of %.1f MB; %.1f to %.1f MB by one reader; the longest took %.3f s\n",
	       (unsigned long long)reads, (double)bytes / 1e6, (double)least / 1e6, (double)most / 1e6,
	       longest);
	if (longest > STALL) {
		printf("not ok no read stalls: one took %.1f s\n", longest);
		bad++;
	}
	if (!bad)
		printf("ok every byte of %ld readers is right\n", readers);
	return bad != 0;
}
