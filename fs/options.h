/* SPDX-License-Identifier: Apache-2.0 */
/* options.h: the command line of mount.bitdelta, which `bitdelta mount` shares:
 *
 *     SOURCE TARGET [-sfnvrwd] [-N namespace] [-t type] [-o options] [--base BASE] [--deltas LIST]
 *
 * as mount(8) calls its helpers and people type it. Commas inside a value are written `\,` or the
 * value is put in double quotes; a colon inside a path of deltas= is written `\:`, a backslash `\\`.
 * --base and --deltas are base= and deltas=; where TARGET alone is given, the first --base is SOURCE.
 * -f stays in the foreground, as in all programs of libfuse; but from mount(8) it means "fake". */
#ifndef BDFS_OPTIONS_H
#define BDFS_OPTIONS_H

#include "mount.h"

#define BDFS_READAHEAD 1024 /* KiB, unless readahead= says otherwise */

enum bdfs_request { BDFS_MOUNT, BDFS_HELP, BDFS_VERSION };

struct bdfs_command {
	enum bdfs_request request; /* the rest counts for BDFS_MOUNT only */
	bool verbose;
	struct bdfs_options options;
};

/* ARGV without the program's name. *command is to be cleared in any case: bdfs_options_clear.
 * Errors: -EINVAL with what is wrong with the command line; -ENOMEM. */
int bdfs_options_parse(struct bdfs_command *command, int argc, char *const *argv,
		       struct bd_error *err);
/* ARGV asks for a remount. -EINVAL where it wants something other than RUNNING, which shows SOURCE. */
int bdfs_options_check_remount(const struct bdfs_command *running, const char *source, int argc,
			       char *const *argv, struct bd_error *err);
void bdfs_options_clear(struct bdfs_command *command);

#endif
