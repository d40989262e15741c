/* SPDX-License-Identifier: Apache-2.0 */
/* command.h: the program part of mounting, for mount.bitdelta and `bitdelta mount`. */
#ifndef BDFS_COMMAND_H
#define BDFS_COMMAND_H

/* Parse the command line (options.h; ARGV without the program's name), mount, and say what went wrong on
 * stderr, each line beginning with "PROGRAM: ". Returns the exit status, which is mount(8)'s: 0 where it is
 * mounted (with -f: and unmounted again) or remounted, or where help or version were printed. */
enum {
	BDFS_STATUS_USAGE = 1,  /* wrong usage */
	BDFS_STATUS_SYSTEM = 2, /* the system lacks something: memory, processes, file descriptors */
	BDFS_STATUS_MOUNT = 32, /* the mount failed */
};
int bdfs_command_main(const char *program, int argc, char *const *argv);

#endif
