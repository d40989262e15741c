/* command.c: the program part of mounting, see command.h. The only file of fs/ that prints. */
#include "command.h"

#include <errno.h>
#include <stdio.h>

#include "delta.h"
#include "options.h"
#include "ops.h"

enum { STATUS_USAGE = 1, STATUS_SYSTEM = 2, STATUS_MOUNT = 32 };

static void print_help(const char *program)
{
	printf("usage: %s BASE MOUNTPOINT -o deltas=PATH[:PATH...][,option...]\n"
	       "\n"
	       "Show the fine-tunes of a base model, kept as .bdelta files, as read-only directories.\n"
	       "BASE is the directory of the base checkpoint, also an entry of a Hugging Face cache;\n"
	       "each PATH is a .bdelta file or a directory of them.\n"
	       "\n"
	       "  -f                   stay in the foreground\n"
	       "  -v                   say what was mounted\n"
	       "  -d, -o debug         print every request; implies -f\n"
	       "  -o delta=, deltas=   may be repeated; \\: is a colon in a path\n"
	       "  -o allow_other       let other users in (as a user: see user_allow_other, fuse.conf)\n"
	       "  -o uid=,gid=,umask=  owner of the files, and octal permissions to take away\n"
	       "  -o threads=N         serve at most N requests at a time\n"
	       "  -o readahead=KIB     what the kernel reads ahead, if root mounts (%d; 0: leave it)\n"
	       "  -o log=FILE          the daemon's messages, instead of syslog\n"
	       "  -s -n -r -w -t -N    as mount(8) gives them to its helpers\n"
	       "  --help, --version\n"
	       "\n"
	       "Unmount with: umount MOUNTPOINT, as a user: fusermount3 -u MOUNTPOINT\n",
	       program, BDFS_READAHEAD);
}

/* The one place that knows mount(8)'s exit statuses. */
static int status_of(int code, bool parsed)
{
	switch (code) {
	case 0:
		return 0;
	case -ENOMEM:
	case -EMFILE:
	case -ENFILE:
	case -EAGAIN:
		return STATUS_SYSTEM;
	default:
		return parsed ? STATUS_MOUNT : STATUS_USAGE;
	}
}

static void print_message(void *context, int priority, const char *text)
{
	const char *kind = priority == LOG_WARNING ? "warning: " : "";

	fprintf(stderr, "%s: %s%s\n", (const char *)context, kind, text);
}

int bdfs_command_main(const char *program, int argc, char *const *argv)
{
	struct bdfs_sink sink = { print_message, (void *)program };
	struct bdfs_command command;
	struct bd_error err = { 0 };
	bool parsed = false;
	int r;

	r = bdfs_options_parse(&command, argc, argv, &err);
	if (r == 0 && command.request == BDFS_HELP) {
		print_help(program);
	} else if (r == 0 && command.request == BDFS_VERSION) {
		printf("%s %s (libfuse %s)\n", program, BD_VERSION, fuse_pkgversion());
	} else if (r == 0) {
		parsed = true;
		if (command.verbose && command.options.foreground)
			fprintf(stderr, "%s: mounting %s on %s\n", program, command.options.base,
				command.options.mountpoint);
		r = bdfs_mount(&command.options, sink, &err);
		if (r == 0 && command.verbose && !command.options.foreground)
			fprintf(stderr, "%s: %s is mounted on %s\n", program, command.options.base,
				command.options.mountpoint);
	}
	if (r < 0)
		fprintf(stderr, "%s: %s\n", program, err.text);
	if (r < 0 && !parsed)
		fprintf(stderr, "Try \"%s --help\".\n", program);
	bdfs_options_clear(&command);
	return status_of(r, parsed);
}
