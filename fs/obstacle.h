/* SPDX-License-Identifier: Apache-2.0 */
/* obstacle.h: what keeps this user from mounting on this machine, and what helps: for `bitdelta doctor`,
 * and for the message of a mount that failed. Looks only, and changes nothing. */
#ifndef BDFS_OBSTACLE_H
#define BDFS_OBSTACLE_H

#include <limits.h>
#include <stdbool.h>

/* In order, something works less well, or only for some; this user cannot mount. */
enum bdfs_level { BDFS_OK, BDFS_NOTE, BDFS_PROBLEM };

struct bdfs_finding {
	enum bdfs_level level;
	const char *what;        /* what was looked at */
	char state[PATH_MAX + 128];
	char remedy[256];        /* "" where there is nothing to do */
};

/* What this process is and may do. */
struct bdfs_caller {
	bool admin;        /* CAP_SYS_ADMIN: mounts without fusermount3 */
	bool no_new_privs; /* setuid programs stay without privileges */
	bool confined;     /* AppArmor's profile for containers */
};

void bdfs_caller_find(struct bdfs_caller *caller);

void bdfs_check_device(struct bdfs_finding *f);
/* May this user mount at all? Without CAP_SYS_ADMIN root depends on fusermount3 like anybody. */
void bdfs_check_privileges(const struct bdfs_caller *caller, struct bdfs_finding *f);
void bdfs_check_fusermount(const struct bdfs_caller *caller, struct bdfs_finding *f);

/* What explains that mounting failed. False where nothing is known. */
bool bdfs_obstacle_find(struct bdfs_finding *f);

#endif
