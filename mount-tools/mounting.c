/* mounting.c: `bitdelta mount` and `bitdelta umount`, thin covers of what fs/ does. */
#include <getopt.h>
#include <stdio.h>

#include "../fs/command.h"
#include "cli.h"
#include "mount.h"

static const char umount_help[] =
"Usage: bitdelta umount MOUNTPOINT [-l]\n"
"Unmount what `bitdelta mount` or `mount -t bitdelta` mounted, also when its daemon is dead.\n"
"\n"
"  -l, --lazy           detach now, end when the last file is closed\n"
"  -h, --help           this text\n";

static const struct option umount_options[] = {
	{ "lazy", no_argument, NULL, 'l' },
	{ 0 },
};

static int run_mount(const struct command *command, int argc, char **argv)
{
	(void)command; /* it explains itself: bdfs_command_main knows --help */
	return bdfs_command_main("bitdelta mount", argc - 1, argv + 1);
}

static int run_umount(const struct command *command, int argc, char **argv)
{
	struct bd_error err = { 0 };
	bool lazy = false;
	int c;

	if (command_wants_help(command, argc, argv))
		return EXIT_OK;
	optind = opterr = 0;
	while ((c = getopt_long(argc, argv, "l", umount_options, NULL)) != -1) {
		if (c != 'l')
			return command_usage(command, "unknown option: '%s'", argv[optind - 1]);
		lazy = true;
	}
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
