/* SPDX-License-Identifier: Apache-2.0 */
/* mounts.h: the mounts of bitdelta on this machine, and how each of them is. */
#ifndef BD_MOUNTS_H
#define BD_MOUNTS_H

#include "mountinfo.h"
#include "mountstats.h"

enum mount_state {
	MOUNT_UNKNOWN, /* not asked yet */
	MOUNT_ALIVE,
	MOUNT_DEAD,    /* its daemon has ended */
	MOUNT_STUCK,   /* its daemon does not answer */
	MOUNT_DENIED,  /* somebody else's */
	MOUNT_SILENT,  /* no statistics, or none that can be understood */
	MOUNT_COVERED, /* another mount lies above it */
	MOUNT_PART,    /* a bind mount of a directory inside */
};
const char *mount_state_name(enum mount_state state);

struct mount_entry {
	struct bdfs_mountinfo info;
	enum mount_state state;
	struct mountstats *stats; /* MOUNT_ALIVE: owned; else NULL */
	char problem[4200];       /* else: what is wrong */
	char remedy[4400];        /* and what to do about it; "" if nothing */
};

struct mounts {
	struct mount_entry *list; /* in the order of /proc/self/mountinfo */
	size_t count;
	double patience; /* private: seconds to wait for the next answer */
};

/* All mounts of type fuse.bitdelta that this process sees; none is touched.
 * Errors: -ENOMEM; those of opening /proc/self/mountinfo. */
int mounts_list(struct mounts *mounts, struct bd_error *err);
void mounts_free(struct mounts *mounts);

/* The topmost one at PATH, which is taken from the working directory and may lead through symbolic
 * links. NULL and a sentence where there is none: -ENOENT, or -ETIMEDOUT where a filesystem on the way
 * does not answer. */
struct mount_entry *mounts_find(struct mounts *mounts, const char *path, struct bd_error *err);

/* Find out how it is, once: sets the state and what belongs to it. Takes at most five seconds, and a
 * second for each mount after the first that did not answer. */
void mounts_ask(struct mounts *mounts, struct mount_entry *entry);

/* Is something wrong with it? Not with one that is merely somebody else's, or covered. */
bool mount_is_broken(const struct mount_entry *entry);

#endif
