/* SPDX-License-Identifier: Apache-2.0 */
/* mounting.c: `bitdelta mount` and `bitdelta umount`, thin covers of what fs/ does. */
#include <getopt.h>
#include <stdio.h>

#include "cli.h"
#include "command.h"
#include "mount.h"

static const char umount_help[] =
"Usage: bitdelta umount MOUNTPOINT [-l]\n"
"Unmount what `bitdelta mount` or `mount -t bitdelta` mounted, also when its daemon is dead.\n"
"\n"
"  -l, --lazy           detach now, end when the last file is closed\n"
"  -h, --help           this text\n";

static int run_mount(const struct command *command, int argc, char **argv)
{
	(void)command; /* it explains itself: bdfs_command_main knows --help */
	/* mount(8) has statuses of its own; all commands of this program have the same. */
	switch (bdfs_command_main("bitdelta mount", argc - 1, argv + 1)) {
	case 0:
		return EXIT_OK;
	case BDFS_STATUS_USAGE:
		return EXIT_USAGE;
	default:
		return EXIT_FAILED;
	}
}

static int run_umount(const struct command *command, int argc, char **argv)
{
	struct bd_error err = { 0 };
	bool lazy = false;
	const struct command_option options[] = {
		{ "lazy", 'l', .flag = &lazy },
		{ 0 },
	};
	int status;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (argc - optind != 1)
		return command_usage(command, "one mount point is needed");
	return bdfs_umount(argv[optind], lazy, &err) < 0 ? command_fail(command, &err) : EXIT_OK;
}

const struct command command_mount = {
	"mount", "mount a base with its .bdelta files", NULL, run_mount,
};

const struct command command_umount = {
	"umount", "unmount", umount_help, run_umount,
};
