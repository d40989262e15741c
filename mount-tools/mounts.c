/* SPDX-License-Identifier: Apache-2.0 */
/* mounts.c: the mounts of bitdelta on this machine, see mounts.h. */
#include "mounts.h"

#include <errno.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PATIENCE 5.0 /* seconds */

const char *mount_state_name(enum mount_state state)
{
	static const char *const names[] = {
		[MOUNT_UNKNOWN] = "unknown", [MOUNT_ALIVE] = "alive", [MOUNT_DEAD] = "dead",
		[MOUNT_STUCK] = "stuck", [MOUNT_DENIED] = "denied", [MOUNT_SILENT] = "silent",
		[MOUNT_COVERED] = "covered", [MOUNT_PART] = "part",
	};

	return names[state];
}

static void explain(struct mount_entry *e, enum mount_state state, const char *remedy,
		    const char *problem, ...) __attribute__((format(printf, 4, 5)));
static void explain(struct mount_entry *e, enum mount_state state, const char *remedy,
		    const char *problem, ...)
{
	va_list args;

	e->state = state;
	va_start(args, problem);
	vsnprintf(e->problem, sizeof(e->problem), problem, args);
	va_end(args);
	snprintf(e->remedy, sizeof(e->remedy), "%s", remedy);
}

static int take(void *context, const struct bdfs_mountinfo *info)
{
	struct mounts *m = context;
	struct mount_entry *list;

	for (size_t i = 0; i < m->count; i++) {
		struct mount_entry *e = &m->list[i];

		if (strcmp(e->info.point, info->point) == 0)
			explain(e, MOUNT_COVERED, "", "covered by what is mounted at the same place");
	}
	if (!bdfs_mountinfo_is_ours(info))
		return 0;
	list = reallocarray(m->list, m->count + 1, sizeof(*list));
	if (!list)
		return -ENOMEM;
	m->list = list;
	list += m->count;
	memset(list, 0, sizeof(*list));
	if (bdfs_mountinfo_copy(&list->info, info) < 0)
		return -ENOMEM;
	m->count++;
	if (strcmp(info->root, "/") != 0)
		explain(list, MOUNT_PART, "ask where all of it is mounted", "shows only %s of a mount",
			info->root);
	return 0;
}

int mounts_list(struct mounts *mounts, struct bd_error *err)
{
	int rc;

	*mounts = (struct mounts){ .patience = PATIENCE };
	rc = bdfs_mountinfo_each(take, mounts, err);
	if (rc < 0)
		mounts_free(mounts);
	return rc;
}

void mounts_free(struct mounts *mounts)
{
	for (size_t i = 0; i < mounts->count; i++) {
		bdfs_mountinfo_clear(&mounts->list[i].info);
		mountstats_free(mounts->list[i].stats);
	}
	free(mounts->list);
	*mounts = (struct mounts){ 0 };
}

static struct mount_entry *find_exactly(struct mounts *mounts, const char *path)
{
	for (size_t i = mounts->count; i > 0; i--)
		if (strcmp(mounts->list[i - 1].info.point, path) == 0)
			return &mounts->list[i - 1];
	return NULL;
}

/* The path from the root, without slashes and dots too many; malloced. Looks at no file. */
static char *absolute(const char *path)
{
	char *directory = *path == '/' ? strdup("") : getcwd(NULL, 0), *result = NULL, *in, *out;

	if (!directory || asprintf(&result, "%s/%s", directory, path) < 0) {
		free(directory);
		return NULL;
	}
	free(directory);
	for (in = out = result; *in; ) {
		while (in[0] == '/' && (in[1] == '/' || !in[1] ||
					(in[1] == '.' && (in[2] == '/' || !in[2]))))
			in += in[1] == '.' ? 2 : 1;
		if (*in)
			*out++ = *in++;
		while (*in && *in != '/')
			*out++ = *in++;
	}
	*out = '\0';
	return result;
}

struct mount_entry *mounts_find(struct mounts *mounts, const char *path, struct bd_error *err)
{
	struct mount_entry *entry = NULL;
	char *full = absolute(path);
	int rc = 0;

	if (full)
		entry = find_exactly(mounts, full);
	free(full);
	if (!entry && mounts->count > 0) {
		rc = mountstats_realpath(&full, path, mounts->patience);
		if (rc == 0)
			entry = find_exactly(mounts, full);
		free(full);
	}
	if (rc == -ETIMEDOUT)
		bd_error_set(err, rc, "%s: a filesystem on the way does not answer; name its mount point "
			     "without links", path);
	else if (!entry)
		bd_error_set(err, -ENOENT, "%s is no mount point of bitdelta", path);
	return entry;
}

/* Who mounted it: the option user_id= of FUSE; -1: not known. */
static long owner_of(const struct mount_entry *e)
{
	const char *option = strstr(e->info.options, "user_id=");

	return option ? strtol(option + strlen("user_id="), NULL, 10) : -1;
}

static void explain_denied(struct mount_entry *e)
{
	static const char remedy[] = "ask as that user, or mount with allow_other";
	long owner = owner_of(e);
	struct passwd *user = owner < 0 ? NULL : getpwuid((uid_t)owner);

	if (owner < 0 || owner == (long)geteuid())
		explain(e, MOUNT_DENIED, "ask as a user who may",
			"a directory above it may not be searched");
	else if (user)
		explain(e, MOUNT_DENIED, remedy, "mounted by user %s for themselves alone",
			user->pw_name);
	else
		explain(e, MOUNT_DENIED, remedy, "mounted by user %ld for themselves alone", owner);
}

static void explain_error(struct mount_entry *e, int rc, const struct bd_error *err)
{
	char remedy[sizeof(e->remedy)];

	switch (rc) {
	case -ENOTCONN:
	case -ECONNABORTED:
		snprintf(remedy, sizeof(remedy), "bitdelta umount %s, then mount again", e->info.point);
		explain(e, MOUNT_DEAD, remedy, "dead: its daemon has ended");
		break;
	case -ETIMEDOUT:
		snprintf(remedy, sizeof(remedy), "kill -CONT the daemon if it is stopped (ps -C "
			 "mount.bitdelta,bitdelta), or detach it: bitdelta umount -l %s", e->info.point);
		explain(e, MOUNT_STUCK, remedy, "stuck: its daemon does not answer");
		break;
	case -EACCES:
	case -EPERM:
		explain_denied(e);
		break;
	case -ESTALE:
		explain(e, MOUNT_COVERED, "", "covered by another mount");
		break;
	case -ENOENT:
		explain(e, MOUNT_SILENT, "mount it again",
			"it has no statistics, so its daemon is of another version");
		break;
	default:
		explain(e, MOUNT_SILENT, "if its daemon is of another version than this program, mount "
			"it again", "its statistics cannot be read: %s", err->text);
	}
}

void mounts_ask(struct mounts *mounts, struct mount_entry *e)
{
	struct bd_error err = { 0 };
	int rc;

	if (e->state != MOUNT_UNKNOWN)
		return;
	rc = mountstats_read(&e->stats, e->info.point, makedev(e->info.major, e->info.minor),
			     mounts->patience, &err);
	if (rc == 0)
		e->state = MOUNT_ALIVE;
	else
		explain_error(e, rc, &err);
	if (e->state == MOUNT_STUCK)
		mounts->patience = 1;
}

bool mount_is_broken(const struct mount_entry *e)
{
	if (e->state != MOUNT_ALIVE)
		return e->state == MOUNT_DEAD || e->state == MOUNT_STUCK || e->state == MOUNT_SILENT;
	for (size_t i = 0; i < e->stats->base_count; i++)
		if (e->stats->bases[i].problem)
			return true;
	return e->stats->rejected_count > 0;
}
