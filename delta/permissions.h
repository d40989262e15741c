/* SPDX-License-Identifier: Apache-2.0 */
/* permissions.h: who may read what takes the place of something else.
 *
 * A file that replaces another keeps its mode, owner, group and access control list. Where we may not
 * give it owner, group or list, the mode loses what these would have bounded, so that nobody but us can
 * do more with the new file than with the old one. */
#ifndef BD_PERMISSIONS_H
#define BD_PERMISSIONS_H

#include <stdbool.h>
#include <sys/stat.h>

/* Give the file or directory FD, which nobody else may open yet (mode 0600 or 0700), the permissions of
 * OLD, which is at PATH. What cannot be given is taken away; nothing happens where the two are of
 * different types. */
void bd_permissions_take(int fd, const char *path, const struct stat *old);

/* The mode to give where MODE was the old one: OWNER, GROUP, LIST say what the new file has of it. */
mode_t bd_permissions_mode(mode_t mode, bool owner, bool group, bool list);

#endif
