/* SPDX-License-Identifier: Apache-2.0 */
/* remount.h: `mount -o remount` of a mount that is there. */
#ifndef BDFS_REMOUNT_H
#define BDFS_REMOUNT_H

#include "options.h"

/* Make the daemon look for deltas anew, as SIGHUP does. Nothing else of a mount can be changed: ARGV (as
 * for bdfs_options_parse, which has made COMMAND of it) may repeat how it was mounted, as mount(8) does from
 * fstab, but not differ. Errors: -EINVAL nothing of ours is mounted there, or an option differs;
 * -ENOTCONN its daemon is dead; -ETIMEDOUT it is stuck; -ESRCH it is not visible from here; -EPERM,
 * -EACCES. */
int bdfs_remount(const struct bdfs_command *command, int argc, char *const *argv,
		 struct bd_error *err);

#endif
