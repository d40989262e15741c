/* SPDX-License-Identifier: Apache-2.0 */
/* bitdelta.c: the command line program: finds the subcommand and runs it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "mount.h"

static const struct command *const commands[] = {
	&command_import, &command_distill, &command_eval, &command_generate, &command_mount,
	&command_umount, &command_status, &command_df, &command_info, &command_verify,
	&command_export, &command_doctor,
};

#define COMMANDS (sizeof(commands) / sizeof(*commands))

static void print_help(FILE *out)
{
	fprintf(out, "Usage: bitdelta COMMAND [ARGUMENTS]\n"
		"Keep fine-tunes of one base checkpoint as one-bit deltas and mount them as model "
		"directories.\n\n");
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(out, "  %-8s  %s\n", commands[i]->name, commands[i]->summary);
	fprintf(out, "\n`bitdelta COMMAND --help` explains a command. `-V` or `--version` prints the\n"
		"version, `-h` or `--help` this text.\n"
		"Sign deltas are lossy: `bitdelta eval` measures by how much.\n");
}

static int run(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
		print_help(stdout);
		return EXIT_OK;
	}
	if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
		printf("bitdelta %s\n", BD_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < COMMANDS; i++)
		if (strcmp(name, commands[i]->name) == 0)
			return commands[i]->run(commands[i], argc - 1, argv + 1);
	if (*name) {
		struct bd_error err;

		bd_error_set(&err, -EINVAL, "no command '%s'", name);
		fprintf(stderr, "bitdelta: %s\n\n", err.text);
	}
	print_help(stderr);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	int status;

	bdfs_fill_standard_descriptors();
	status = run(argc, argv);
	errno = 0;
	if (fflush(stdout) || ferror(stdout)) { /* a full disk must not look like a short answer */
		fprintf(stderr, "bitdelta: cannot write to standard output: %s\n",
			errno ? strerror(errno) : "some of it is lost");
		if (status == EXIT_OK)
			status = EXIT_FAILED;
	}
	return status;
}
