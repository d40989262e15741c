/* SPDX-License-Identifier: Apache-2.0 */
/* remount.c: `mount -o remount`, see remount.h. */
#include "remount.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mountinfo.h"
#include "mountpoint.h"

#define ARGUMENTS 256
#define LIMIT ((size_t)16 << 20) /* bytes; whoever mounted there need not be a friend */

/* All of a file, with a NUL after it, or NULL with errno. It is read to its end, because files in /proc and
 * in .bitdelta claim to be empty. */
static char *read_all(const char *path, size_t *size)
{
	size_t capacity = 0;
	char *text = NULL, *longer;
	ssize_t n = 1;
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), code;

	if (fd < 0)
		return NULL;
	for (*size = 0; n > 0; *size += (size_t)n) {
		if (*size > LIMIT) {
			errno = EFBIG;
			break;
		}
		if (capacity - *size < 2) {
			capacity = capacity ? 2 * capacity : 65536;
			longer = realloc(text, capacity);
			if (!longer)
				break;
			text = longer;
		}
		n = read(fd, text + *size, capacity - *size - 1);
		if (n < 0)
			break;
	}
	code = errno;
	close(fd);
	if (n != 0) {
		free(text);
		errno = code;
		return NULL;
	}
	text[*size] = '\0';
	return text;
}

static int daemon_of(const char *mountpoint, pid_t *pid, struct bd_error *err)
{
	static const char key[] = "\"pid\":";
	char *path, *text = NULL, *at;
	size_t size;
	int r = 0;

	if (asprintf(&path, "%s/.bitdelta/stats.json", mountpoint) < 0)
		return bd_error_set(err, -ENOMEM, "out of memory for a path");
	text = read_all(path, &size);
	if (!text) {
		r = bd_error_set(err, -errno, "%s: %s", mountpoint, errno == ENOTCONN ?
				 "the daemon is dead: mount it again instead" : strerror(errno));
	} else {
		at = strstr(text, key);
		*pid = at ? atoi(at + strlen(key)) : 0;
		if (*pid <= 0)
			r = bd_error_set(err, -EINVAL, "%s does not tell who serves it", path);
	}
	free(text);
	free(path);
	return r;
}

/* How process PID was called. *TEXT, to be freed, holds what *COMMAND was made of. */
static int running_command(pid_t pid, struct bdfs_command *command, struct bd_error *err)
{
	char path[64], *text, *argv[ARGUMENTS], *name;
	size_t size = 0;
	int argc = 0, skip = 1, r = -ESRCH;

	memset(command, 0, sizeof(*command));
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	text = read_all(path, &size);
	for (char *p = text; text && p < text + size && argc < ARGUMENTS; p += strlen(p) + 1)
		argv[argc++] = p;
	if (argc > 1 && argc < ARGUMENTS) {
		name = strrchr(argv[0], '/');
		if (!strcmp(name ? name + 1 : argv[0], "bitdelta"))
			skip = 2; /* bitdelta mount ... */
		r = bdfs_options_parse(command, argc - skip, argv + skip, NULL);
	}
	free(text);
	if (r == 0 && command->request == BDFS_MOUNT)
		return 0;
	return bd_error_set(err, -ESRCH, "the daemon, process %d, is not to be seen from here", (int)pid);
}

int bdfs_remount(const struct bdfs_command *command, int argc, char *const *argv,
		 struct bd_error *err)
{
	const char *mountpoint = command->options.mountpoint;
	struct bdfs_mountinfo info = { 0 };
	struct bdfs_command running = { 0 };
	char *path;
	pid_t pid = 0;
	int r = bdfs_mountpoint_check(mountpoint, err);

	if (r < 0)
		return r;
	path = realpath(mountpoint, NULL);
	if (!path)
		return bd_error_set(err, -errno, "%s: %s", mountpoint, errno == ENOTCONN ?
				    "the daemon is dead: mount it again instead" : strerror(errno));
	r = bdfs_mountinfo_find(&info, path, err);
	if (r == 0 && !bdfs_mountinfo_is_ours(&info))
		r = bd_error_set(err, -EINVAL, "what is mounted on %s is of type %s, not fuse.bitdelta",
				 path, info.type);
	else if (r == -ENOENT)
		r = bd_error_set(err, -EINVAL, "nothing is mounted on %s, so there is nothing to remount",
				 path);
	if (r == 0)
		r = daemon_of(path, &pid, err);
	if (r == 0)
		r = running_command(pid, &running, err);
	if (r == 0)
		r = bdfs_options_check_remount(&running, info.source, argc, argv, err);
	if (r == 0 && kill(pid, SIGHUP) < 0)
		r = bd_error_set(err, -errno, "cannot signal the daemon, process %d: %s", (int)pid,
				 strerror(errno));
	bdfs_options_clear(&running);
	bdfs_mountinfo_clear(&info);
	free(path);
	return r;
}
