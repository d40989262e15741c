/* SPDX-License-Identifier: Apache-2.0 */
/* command.h: the program part of mounting, for mount.bitdelta and `bitdelta mount`. */
#ifndef BDFS_COMMAND_H
#define BDFS_COMMAND_H

/* Parse the command line (options.h; ARGV without the program's name), mount, and say what went wrong on
 * stderr, each line beginning with "PROGRAM: ". Returns the exit status, which is mount(8)'s:
 *
 *     0   mounted (with -f: and unmounted again) or remounted, or help or version printed
 *     1   wrong usage
 *     2   the system lacks something: memory, processes, file descriptors
 *     32  the mount failed
 */
int bdfs_command_main(const char *program, int argc, char *const *argv);

#endif
