/* SPDX-License-Identifier: Apache-2.0 */
/* storm.c: replace a delta below a mount again and again while its files are read.
 *
 *     storm [-r ROUNDS] [-n READERS] [-p PID] MOUNTPOINT DIRECTORY NAME [DELTA TRUTH]...
 *
 * In each of ROUNDS (1000) rounds a copy of another DELTA becomes DIRECTORY/NAME.bdelta by renaming; every
 * tenth, PID gets SIGHUP. A file of MOUNTPOINT/NAME that is opened must have the bytes that the directory
 * TRUTH of one DELTA holds, and keep to that one for as long as it is open, also in mappings and after the
 * kernel has forgotten them. This process reads between the rounds, and READERS (4) others
 * all the time. Every 25 rounds it waits until the newest delta is seen.
 * Prints steps as the scripts do; exit status 1 where one failed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dice.h"

#define TUNES 8
#define FILES 16
#define PAGE 4096u
#define LARGEST 65536u
#define HELD 6          /* files that a process keeps open */
#define PATIENCE 30.0   /* seconds until a delta that was replaced must be seen */

struct truth {
	const char *data;
	size_t size;
};

/* In shared memory, of one process: what it has done. */
struct record {
	uint64_t opens, reads, missed;
	bool wrong;
	char text[300];
};

struct held {
	int fd;
	unsigned file, tunes; /* bit i: equal to that of tune i so far */
	char *map;
};

static unsigned tune_count, file_count;
static char *names[FILES];
static struct truth truths[TUNES][FILES];
static const char *deltas[TUNES];
static char *mounted;
static struct record *own;
__attribute__((format(printf, 1, 2)))
static void wrong(const char *format, ...)
{
	va_list arguments;

	if (own->wrong)
		return;
	va_start(arguments, format);
	vsnprintf(own->text, sizeof(own->text), format, arguments);
	va_end(arguments);
	own->wrong = true;
}

static void on_bus_error(int signal)
{
	(void)signal;
	wrong("SIGBUS while a mapping was read");
	_exit(1);
}

/* A whole file, by mapping it. */
static struct truth map_file(const char *path)
{
	struct truth t = { 0 };
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	t.size = (size_t)st.st_size;
	t.data = mmap(NULL, t.size, PROT_READ, MAP_SHARED, fd, 0);
	if (t.data == MAP_FAILED)
		die(path);
	close(fd);
	return t;
}

static void add_tune(const char *delta, const char *directory)
{
	char path[4096];

	if (tune_count == 0) {
		DIR *d = opendir(directory);
		struct dirent *entry;

		if (!d)
			die(directory);
		while ((entry = readdir(d)))
			if (entry->d_name[0] != '.' && file_count < FILES)
				names[file_count++] = strdup(entry->d_name);
		closedir(d);
	}
	for (unsigned i = 0; i < file_count; i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		truths[tune_count][i] = map_file(path);
	}
	deltas[tune_count++] = delta;
}

static void close_held(struct held *h)
{
	if (h->fd < 0)
		return;
	if (h->map)
		munmap(h->map, truths[0][h->file].size);
	close(h->fd);
	h->fd = -1;
	h->map = NULL;
}

static void open_held(struct held *h)
{
	char path[4096];
	size_t size;

	h->file = (unsigned)dice(file_count);
	h->tunes = (1u << tune_count) - 1;
	size = truths[0][h->file].size;
	snprintf(path, sizeof(path), "%s/%s", mounted, names[h->file]);
	h->fd = open(path, O_RDONLY | O_CLOEXEC | (dice(3) == 0 ? O_DIRECT : 0));
	own->opens++;
	if (h->fd < 0) {
		/* Between two looks at a directory that changes all the time. */
		if (errno == ENOENT || errno == ESTALE)
			own->missed++;
		else
			wrong("%s: cannot be opened: %s", path, strerror(errno));
		return;
	}
	if (dice(2)) {
		h->map = mmap(NULL, size, PROT_READ, dice(2) ? MAP_SHARED : MAP_PRIVATE, h->fd, 0);
		if (h->map == MAP_FAILED)
			wrong("%s: cannot be mapped: %s", path, strerror(errno));
	}
}

/* Compare some of a held file with what it may be. */
static void read_held(struct held *h, char *buffer, bool whole)
{
	size_t size = truths[0][h->file].size;
	size_t offset = whole ? 0 : dice(size);
	size_t length = whole ? size : 1 + dice(LARGEST), done = 0;
	unsigned before = h->tunes;
	const char *got = buffer;

	if (length > size - offset)
		length = size - offset;
	if (dice(3) == 0) {
		if (h->map)
			madvise(h->map, size, MADV_DONTNEED);
		posix_fadvise(h->fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	if (h->map) {
		got = h->map + offset;
	} else {
		while (done < length) {
			ssize_t n = pread(h->fd, buffer + done, length - done, (off_t)(offset + done));

			if (n <= 0) {
				wrong("%s: %zu bytes at %zu: %s", names[h->file], length - done,
				      offset + done, n < 0 ? strerror(errno) : "end of file");
				return;
			}
			done += (size_t)n;
		}
	}
	for (unsigned i = 0; i < tune_count; i++)
		if (h->tunes & 1u << i && memcmp(got, truths[i][h->file].data + offset, length) != 0)
			h->tunes &= ~(1u << i);
	if (!h->tunes)
		wrong("%s: wrong bytes or a mixture: %zu bytes%s at %zu (fits %#x, before %#x)",
		      names[h->file], length, h->map ? " of a mapping" : "", offset, h->tunes,
		      before);
	own->reads++;
}

static void one_turn(struct held *held, char *buffer)
{
	struct held *h = &held[dice(HELD)];

	if (h->fd >= 0 && dice(6) == 0)
		close_held(h);
	if (h->fd < 0)
		open_held(h);
	if (h->fd >= 0)
		read_held(h, buffer, dice(8) == 0);
}

static char *get_ready(struct held *held)
{
	char *buffer = mmap(NULL, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffer == MAP_FAILED)
		die("no memory");
	for (unsigned i = 0; i < HELD; i++)
		held[i] = (struct held){ .fd = -1 };
	signal(SIGBUS, on_bus_error);
	return buffer;
}

/* Is what can be opened now that of TUNE? */
static bool is_seen(unsigned tune, char *buffer)
{
	char path[4096];
	unsigned f = 0;
	ssize_t n;
	int fd;

	while (strcmp(names[f], "name.txt") != 0)
		f++; /* differs in every byte; the caller has made sure of it */
	snprintf(path, sizeof(path), "%s/%s", mounted, names[f]);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, buffer, 100);
	close(fd);
	return n > 0 && memcmp(buffer, truths[tune][f].data, (size_t)n) == 0;
}

static void replace(const char *directory, const char *name, const struct truth *delta)
{
	char temporary[4096], final[4096];
	int fd;

	snprintf(temporary, sizeof(temporary), "%s/.%s.new", directory, name);
	snprintf(final, sizeof(final), "%s/%s.bdelta", directory, name);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, delta->data, delta->size) != (ssize_t)delta->size || close(fd) < 0 ||
	    rename(temporary, final) < 0)
		die(final);
}

int main(int argc, char **argv)
{
	long rounds = 1000, readers = 4, daemon = 0, bad = 0;
	struct truth images[TUNES];
	struct record *records;
	struct held held[HELD];
	double start, longest = 0, waited;
	uint64_t opens = 0, reads = 0, missed = 0;
	unsigned tune = 0;
	pid_t *children;
	char *buffer;
	int option, status;

	while ((option = getopt(argc, argv, "r:n:p:")) != -1)
		switch (option) {
		case 'r': rounds = strtol(optarg, NULL, 10); break;
		case 'n': readers = strtol(optarg, NULL, 10); break;
		case 'p': daemon = strtol(optarg, NULL, 10); break;
		default: return 2;
		}
	argv += optind;
	argc -= optind;
	if (argc < 7 || argc % 2 == 0 || argc > 3 + 2 * TUNES) {
		fprintf(stderr, "Usage: storm [-r ROUNDS] [-n READERS] [-p PID] MOUNTPOINT DIRECTORY NAME "
			"DELTA TRUTH DELTA TRUTH...\n");
		return 2;
	}
	for (int i = 3; i < argc; i += 2)
		add_tune(argv[i], argv[i + 1]);
	for (unsigned i = 0; i < tune_count; i++)
		images[i] = map_file(deltas[i]);
	if (asprintf(&mounted, "%s/%s", argv[0], argv[2]) < 0)
		die("asprintf");
	records = mmap(NULL, (size_t)(readers + 1) * sizeof(*records), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	children = calloc((size_t)readers + 1, sizeof(*children));
	if (records == MAP_FAILED || !children)
		die("no memory");
	dice_state = 88172645463325252u;
	start = now();
	for (long i = 1; i <= readers; i++) {
		children[i] = fork();
		if (children[i] < 0)
			die("fork");
		if (children[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			own = &records[i];
			dice_state += (uint64_t)i * 0x9e3779b97f4a7c15u;
			buffer = get_ready(held);
			while (!own->wrong) {
				one_turn(held, buffer);
				usleep((useconds_t)dice(2000));
			}
			_exit(1);
		}
	}
	own = &records[0];
	buffer = get_ready(held);
	for (long r = 0; r < rounds && !own->wrong; r++) {
		tune = (tune + 1 + (unsigned)dice(tune_count - 1)) % tune_count;
		replace(argv[1], argv[2], &images[tune]);
		if (daemon && r % 10 == 3)
			kill((pid_t)daemon, SIGHUP);
		for (int i = 0; i < 4; i++)
			one_turn(held, buffer);
		if (r % 25 != 24)
			continue;
		waited = now();
		while (!is_seen(tune, buffer) && now() - waited < PATIENCE)
			usleep(2000);
		waited = now() - waited;
		if (waited > PATIENCE)
			wrong("round %ld: what was renamed into place is not seen", r);
		longest = waited > longest ? waited : longest;
	}
	for (unsigned i = 0; i < HELD; i++)
		close_held(&held[i]);
	for (long i = 0; i <= readers; i++) {
		if (i > 0) {
			kill(children[i], SIGKILL);
			waitpid(children[i], &status, 0);
		}
		if (records[i].wrong) {
			bad++;
			printf("not ok storm, process %ld: %s\n", i, records[i].text);
		}
		opens += records[i].opens;
		reads += records[i].reads;
		missed += records[i].missed;
	}
	printf("# %ld rounds in %.1f s: %llu opens, %llu reads; %llu times there was nothing to open; "
	       "a new delta was seen after at most %.3f s\n", rounds, now() - start,
	       (unsigned long long)opens, (unsigned long long)reads, (unsigned long long)missed, longest);
	if (missed * 50 > opens) {
		bad++;
		printf("not ok a delta that is replaced stays there: it was missing %llu times\n",
		       (unsigned long long)missed);
	}
	if (!bad)
		printf("ok %ld rounds of replacing and reading\n", rounds);
	return bad != 0;
}
