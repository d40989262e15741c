/* SPDX-License-Identifier: Apache-2.0 */
/* mountstats.c: reading MOUNTPOINT/.bitdelta/stats.json, see mountstats.h.
 *
 * A request to a filesystem whose daemon is stopped waits until somebody kills the waiting process, and
 * one that the daemon has taken and does not answer outlives even that. So a child does all that
 * touches the mount; it is killed when time is up, and not waited for if it does not end. */
#include "mountstats.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "buffer.h"
#include "json.h"

/* --- the document --- */

enum kind {
	TEXT,     /* char * */
	OPTIONAL, /* char *; NULL where it is null or missing */
	COUNT,    /* uint64_t */
	REAL,     /* double */
	FLAG,     /* bool */
	OBJECT,   /* members of the same struct */
	ARRAY,    /* of objects: a pointer and a size_t */
	OPTIONAL_ARRAY, /* the same; empty where it is missing, as daemons of older versions leave it */
};

struct shape;
struct member {
	const char *name;
	enum kind kind;
	size_t at, count_at;
	const struct shape *shape;
};
struct shape {
	size_t size; /* of the items of an array */
	const struct member *members;
};

#define AT(type, name, kind, field) { name, kind, offsetof(struct type, field), 0, NULL }

static const struct member base_members[] = {
	AT(mountstats_base, "name", TEXT, name),
	AT(mountstats_base, "path", TEXT, path),
	AT(mountstats_base, "digest", TEXT, digest),
	AT(mountstats_base, "tensors", COUNT, tensors),
	AT(mountstats_base, "bytes", COUNT, bytes),
	AT(mountstats_base, "models", COUNT, models),
	AT(mountstats_base, "problem", OPTIONAL, problem),
	{ 0 },
};
static const struct member model_members[] = {
	AT(mountstats_model, "name", TEXT, name),
	AT(mountstats_model, "delta", OPTIONAL, delta),
	AT(mountstats_model, "base", TEXT, base),
	AT(mountstats_model, "virtual_bytes", COUNT, virtual_bytes),
	AT(mountstats_model, "stored_bytes", COUNT, stored_bytes),
	AT(mountstats_model, "files", COUNT, files),
	AT(mountstats_model, "distilled", FLAG, distilled),
	AT(mountstats_model, "open_files", COUNT, open_files),
	AT(mountstats_model, "opens", COUNT, opens),
	AT(mountstats_model, "reads", COUNT, reads),
	AT(mountstats_model, "bytes", COUNT, bytes),
	AT(mountstats_model, "base_bytes", COUNT, base_bytes),
	AT(mountstats_model, "delta_bytes", COUNT, delta_bytes),
	AT(mountstats_model, "errors", COUNT, errors),
	{ 0 },
};
static const struct member rejected_members[] = {
	AT(mountstats_rejected, "delta", TEXT, delta),
	AT(mountstats_rejected, "reason", TEXT, reason),
	{ 0 },
};
static const struct member note_members[] = {
	AT(mountstats_note, "text", TEXT, text),
	{ 0 },
};
static const struct member in_use_members[] = {
	AT(mountstats, "readahead_kib", COUNT, in_use.readahead),
	AT(mountstats, "passthrough", FLAG, in_use.passthrough),
	AT(mountstats, "mapped", FLAG, in_use.mapped),
	AT(mountstats, "cpu", TEXT, in_use.cpu),
	AT(mountstats, "sandbox", TEXT, in_use.sandbox),
	AT(mountstats, "user", TEXT, in_use.user),
	AT(mountstats, "watch", TEXT, in_use.watch),
	{ 0 },
};
static const struct member totals_members[] = {
	AT(mountstats, "virtual_bytes", COUNT, totals.virtual_bytes),
	AT(mountstats, "stored_bytes", COUNT, totals.stored_bytes),
	AT(mountstats, "opens", COUNT, totals.opens),
	AT(mountstats, "reads", COUNT, totals.reads),
	AT(mountstats, "bytes", COUNT, totals.bytes),
	AT(mountstats, "base_bytes", COUNT, totals.base_bytes),
	AT(mountstats, "delta_bytes", COUNT, totals.delta_bytes),
	AT(mountstats, "errors", COUNT, totals.errors),
	AT(mountstats, "reloads", COUNT, totals.reloads),
	{ 0 },
};
static const struct member latency_members[] = {
	AT(mountstats, "count", COUNT, latency.count),
	AT(mountstats, "p50", REAL, latency.p50),
	AT(mountstats, "p90", REAL, latency.p90),
	AT(mountstats, "p99", REAL, latency.p99),
	AT(mountstats, "max", REAL, latency.max),
	{ 0 },
};

#define LIST_OF(kind, name, type, field, number, members) \
	{ name, kind, offsetof(struct mountstats, field), offsetof(struct mountstats, number), \
	  &(const struct shape){ sizeof(struct type), members } }
#define OBJECT_OF(name, members) { name, OBJECT, 0, 0, &(const struct shape){ 0, members } }

static const struct member members[] = {
	AT(mountstats, "version", TEXT, version),
	AT(mountstats, "pid", COUNT, pid),
	AT(mountstats, "mounted_at", REAL, mounted_at),
	AT(mountstats, "uptime_s", REAL, uptime),
	AT(mountstats, "source", TEXT, source),
	AT(mountstats, "mountpoint", TEXT, mountpoint),
	AT(mountstats, "layout", TEXT, layout),
	AT(mountstats, "threads", COUNT, threads),
	OBJECT_OF("in_use", in_use_members),
	LIST_OF(ARRAY, "bases", mountstats_base, bases, base_count, base_members),
	LIST_OF(ARRAY, "models", mountstats_model, models, model_count, model_members),
	LIST_OF(ARRAY, "rejected", mountstats_rejected, rejected, rejected_count, rejected_members),
	LIST_OF(OPTIONAL_ARRAY, "notes", mountstats_note, notes, note_count, note_members),
	OBJECT_OF("totals", totals_members),
	OBJECT_OF("latency_us", latency_members),
	{ 0 },
};

static int read_object(struct bd_json *j, const struct member *list, char *out);

static int read_array(struct bd_json *j, const struct member *m, char *out)
{
	char **items = (char **)(out + m->at), *larger;
	size_t *count = (size_t *)(out + m->count_at), capacity = 0;
	int rc = bd_json_array(j);

	while (rc == 0 && (rc = bd_json_item(j)) > 0) {
		if (*count == capacity) {
			capacity = capacity ? 2 * capacity : 16;
			larger = reallocarray(*items, capacity, m->shape->size);
			if (!larger)
				return -ENOMEM;
			*items = larger;
		}
		memset(*items + *count * m->shape->size, 0, m->shape->size);
		++*count;
		rc = read_object(j, m->shape->members, *items + (*count - 1) * m->shape->size);
	}
	return rc;
}

static int read_member(struct bd_json *j, const struct member *m, char *out)
{
	void *at = out + m->at;

	switch (m->kind) {
	case OPTIONAL:
		if (bd_json_peek(j) == BD_JSON_NULL)
			return bd_json_skip(j);
		/* fall through */
	case TEXT:
		return bd_json_string_dup(j, at, NULL);
	case COUNT:
		return bd_json_u64(j, at);
	case REAL:
		return bd_json_number(j, at);
	case FLAG:
		return bd_json_bool(j, at);
	case OBJECT:
		return read_object(j, m->shape->members, out);
	case ARRAY:
	case OPTIONAL_ARRAY:
		return read_array(j, m, out);
	}
	return 0;
}

static int read_object(struct bd_json *j, const struct member *list, char *out)
{
	unsigned seen = 0;
	char key[64];
	int rc = bd_json_object(j), i;

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		for (i = 0; list[i].name && strcmp(list[i].name, key) != 0; i++)
			;
		seen |= 1u << i;
		rc = list[i].name ? read_member(j, &list[i], out) : bd_json_skip(j);
	}
	for (i = 0; rc == 0 && list[i].name; i++)
		if (list[i].kind != OPTIONAL && list[i].kind != OPTIONAL_ARRAY && !(seen >> i & 1))
			rc = bd_json_fail(j, "'%s' is missing", list[i].name);
	return rc;
}

static void free_object(const struct member *list, char *out)
{
	for (; list->name; list++) {
		if (list->kind == TEXT || list->kind == OPTIONAL) {
			free(*(char **)(out + list->at));
		} else if (list->kind == OBJECT) {
			free_object(list->shape->members, out);
		} else if (list->kind == ARRAY || list->kind == OPTIONAL_ARRAY) {
			char *items = *(char **)(out + list->at);
			size_t count = *(size_t *)(out + list->count_at);

			for (size_t i = 0; i < count; i++)
				free_object(list->shape->members, items + i * list->shape->size);
			free(items);
		}
	}
}

void mountstats_free(struct mountstats *stats)
{
	if (!stats)
		return;
	free_object(members, (char *)stats);
	free(stats->text);
	free(stats);
}

int mountstats_parse(struct mountstats **stats, const char *text, size_t size, const char *where,
		     struct bd_error *err)
{
	struct mountstats *s;
	struct bd_json j;
	int rc;

	*stats = NULL;
	rc = bd_json_check(text, size, where, err);
	if (rc < 0)
		return rc;
	s = calloc(1, sizeof(*s));
	if (s)
		s->text = strndup(text, size);
	rc = s && s->text ? 0 : -ENOMEM;
	if (rc == 0) {
		for (char *c = s->text; *c; c++) /* line ends stand between tokens only */
			if (*c == '\n' || *c == '\r')
				*c = ' ';
		bd_json_init(&j, s->text, size, where, 0, err);
		rc = read_object(&j, members, (char *)s);
	}
	if (rc == -ENOMEM)
		bd_error_set(err, rc, "out of memory for %s", where);
	if (rc == 0)
		*stats = s;
	else
		mountstats_free(s);
	return rc;
}

/* --- the child --- */

struct task {
	/* Runs in the child: writes to OUT. Returns 0 or an errno, which becomes the exit status. */
	int (*work)(const struct task *task, int out);
	const char *path;
	uint64_t device;
};

static int write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0)
			return errno;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

static int copy_document(const struct task *task, int out)
{
	static char block[65536];
	struct statx st;
	struct statfs fs;
	struct stat file;
	size_t total = 0;
	ssize_t n;
	int root, directory, fd, rc = 0;

	/* Step by step, because a filesystem of somebody else may hold links to anything. */
	root = open(task->path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (root < 0 || statx(root, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &st) < 0)
		return errno;
	if (task->device && makedev(st.stx_dev_major, st.stx_dev_minor) != task->device)
		return ESTALE;
	/* The kernel may know without asking that there is no .bitdelta; this it always asks. */
	if (fstatfs(root, &fs) < 0)
		return errno;
	directory = openat(root, ".bitdelta", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0)
		return errno;
	fd = openat(directory, "stats.json", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &file) < 0)
		return errno;
	if (!S_ISREG(file.st_mode))
		return EINVAL;
	while (rc == 0 && (n = read(fd, block, sizeof(block))) != 0) {
		if (n < 0)
			return errno;
		total += (size_t)n;
		rc = total > MOUNTSTATS_MAX ? EFBIG : write_all(out, block, (size_t)n);
	}
	return rc;
}

static int write_realpath(const struct task *task, int out)
{
	char *path = realpath(task->path, NULL);

	return path ? write_all(out, path, strlen(path)) : errno;
}

static void run_child(const struct task *task, int out)
{
	int null = open("/dev/null", O_RDWR);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Nobody must wait for the end of a file that only a child that hangs keeps open. */
	for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(null, i);
	dup2(out, STDERR_FILENO + 1);
	close_range(STDERR_FILENO + 2, ~0u, 0);
	_exit(task->work(task, STDERR_FILENO + 1));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* All that comes through FD until its end or END; 0, -ETIMEDOUT or another error. */
static int receive(int fd, struct bd_buffer *b, double end)
{
	static char block[65536];
	struct pollfd p = { .fd = fd, .events = POLLIN };

	for (;;) {
		double left = end - now();
		int r = left > 0 ? poll(&p, 1, (int)(left * 1000) + 1) : 0;
		ssize_t n;

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return r < 0 ? -errno : -ETIMEDOUT;
		n = read(fd, block, sizeof(block));
		if (n < 0)
			return -errno;
		if (n == 0)
			return b->failed ? -ENOMEM : 0;
		bd_buffer_append(b, block, (size_t)n);
	}
}

/* 0 or the negative errno that the child ended with; -ETIMEDOUT where it does not end. */
static int reap(pid_t pid, double end)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	int status;
	pid_t r;

	while ((r = waitpid(pid, &status, WNOHANG)) == 0 || (r < 0 && errno == EINTR)) {
		if (now() > end)
			return -ETIMEDOUT;
		nanosleep(&pause, NULL);
	}
	if (r < 0)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

static int run_task(const struct task *task, double seconds, struct bd_buffer *b)
{
	double end = now() + seconds;
	int fds[2], rc;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	fflush(NULL);
	pid = fork();
	if (pid < 0) {
		rc = -errno;
		close(fds[0]);
		close(fds[1]);
		return rc;
	}
	if (pid == 0)
		run_child(task, fds[1]);
	close(fds[1]);
	rc = receive(fds[0], b, end);
	close(fds[0]);
	if (rc == 0)
		rc = reap(pid, end);
	if (rc == -ETIMEDOUT || rc == -ENOMEM) {
		kill(pid, SIGKILL);
		reap(pid, now() + 0.2);
	}
	return rc;
}

int mountstats_read(struct mountstats **stats, const char *directory, uint64_t device,
		    double seconds, struct bd_error *err)
{
	struct task task = { copy_document, directory, device };
	struct bd_buffer b = { 0 };
	char where[PATH_MAX + 32];
	int rc = run_task(&task, seconds, &b);

	*stats = NULL;
	snprintf(where, sizeof(where), "%s/.bitdelta/stats.json", directory);
	if (rc < 0)
		bd_error_set(err, rc, "%s: %s", where, strerror(-rc));
	else
		rc = mountstats_parse(stats, b.size ? b.data : "", b.size, where, err);
	bd_buffer_free(&b);
	return rc;
}

int mountstats_realpath(char **resolved, const char *path, double seconds)
{
	struct task task = { write_realpath, path, 0 };
	struct bd_buffer b = { 0 };
	int rc = run_task(&task, seconds, &b);

	*resolved = rc == 0 && b.size > 0 ? strndup(b.data, b.size) : NULL;
	bd_buffer_free(&b);
	return rc < 0 || *resolved ? rc : -ENOMEM;
}
