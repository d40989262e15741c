/* SPDX-License-Identifier: Apache-2.0 */
/* mount.c: mount.bitdelta, which `mount -t bitdelta` and fstab run. All of it is in fs/. */
#include <string.h>

#include "command.h"

int main(int argc, char **argv)
{
	const char *name = argc > 0 ? strrchr(argv[0], '/') : NULL;

	/* mount.fuse.bitdelta, by which `mount -t fuse.bitdelta` knows us, is a link to this program. */
	name = name ? name + 1 : argc > 0 ? argv[0] : "mount.bitdelta";
	return bdfs_command_main(name, argc > 0 ? argc - 1 : 0, argv + (argc > 0));
}
