/* SPDX-License-Identifier: Apache-2.0 */
/* sandbox.h: fewer rights for the daemon, once it has opened what it needs.
 *
 * A .bdelta file may come from a stranger. Should one ever lead the daemon astray, the daemon can
 * do little: it may read what it has to read anyway, and nothing else.
 *
 * Both functions work on the calling thread and those that it starts later, so they are called before the
 * first thread is. What they take away is gone for good; among it is the right to unmount. */
#ifndef BDFS_SANDBOX_H
#define BDFS_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"
#include "log.h"

/* A file, or a directory with all below it, that stays readable: a descriptor, since the mount may cover
 * the name. */
struct bdfs_readable {
	int fd;
	bool directory;
	dev_t dev;
	ino_t ino;
};

struct bdfs_sandbox {
	struct bdfs_readable *list;
	size_t count;
};

/* Note what bases and deltas are read from: of a base its directory, or the whole entry of a Hugging Face
 * cache; of a delta the directory it is in, and the blobs of such an entry. Whoever fills these directories
 * can put symbolic links into them, so these open little: a regular file that one leads to at this time, and
 * beside it only a directory of models, where the file may be replaced: if that is the file of a model by
 * its name, and in no root of a filesystem. Links to directories open nothing. Before mounting. What does not
 * exist is left out. -ENOMEM, -EMFILE. */
int bdfs_sandbox_prepare(struct bdfs_sandbox *sandbox, char *const *bases, size_t base_count,
			 char *const *deltas, size_t delta_count, struct bd_error *err);
void bdfs_sandbox_clear(struct bdfs_sandbox *sandbox);

/* Enter: no new privileges, and where the kernel has Landlock no files but those to be read, no TCP,
 * no signals to others. As far as the system can; TEXT, of SIZE bytes, says what came of it: "landlock 7"
 * (the version of its interface) or "none", and LOG why. */
void bdfs_sandbox_enter(const struct bdfs_sandbox *sandbox, struct bdfs_log *log, char *text,
			size_t size);

/* Whom to become. */
struct bdfs_user {
	uid_t uid;
	gid_t gid;
	char *name; /* owned, NULL where the user has none */
};

/* NAME is a name or a number. -EINVAL: nobody. -EPERM: only root can become somebody else. */
int bdfs_user_find(struct bdfs_user *user, const char *name, struct bd_error *err);

/* Give up all capabilities for good, and become USER (NULL: stay). Errors of the system calls. */
int bdfs_privileges_drop(const struct bdfs_user *user, struct bd_error *err);

#endif
