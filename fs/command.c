/* SPDX-License-Identifier: Apache-2.0 */
/* command.c: the program part of mounting, see command.h. The only file of fs/ that prints. */
#include "command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "delta.h"
#include "options.h"
#include "ops.h"
#include "remount.h"
#include "utf8.h"

static void print_help(const char *program)
{
	printf("Usage: %s BASE MOUNTPOINT -o deltas=PATH[:PATH...][,option...]\n"
	       "\n"
	       "Show the fine-tunes of a base model, kept as .bdelta files, as read-only directories.\n"
	       "BASE is the directory of the base checkpoint, also an entry of a Hugging Face cache;\n"
	       "each PATH is a .bdelta file or a directory of them, which is watched.\n"
	       "\n"
	       "  --base BASE          the base, if MOUNTPOINT stands alone; else a further one\n"
	       "  --deltas PATH[:PATH...]  as -o deltas=\n"
	       "  -f                   stay in the foreground (but from mount(8): check, do not mount)\n"
	       "  -v                   say what was mounted\n"
	       "  -d, -o debug         print every request; implies -f\n"
	       "  -o delta=, deltas=   may be repeated; \\: is a colon in a path; DIR/** takes\n"
	       "                       the subdirectories of DIR too\n"
	       "  -o base=PATH         a further base; may be repeated, with \"none\" for BASE\n"
	       "  -o show_base         show the bases too\n"
	       "  -o layout=hub        as a Hugging Face cache, for HF_HUB_CACHE; else layout=dirs\n"
	       "  -o blocks=stored     let du show what the deltas take; else blocks=full\n"
	       "  -o allow_other       let other users in (as a user: see user_allow_other, fuse.conf)\n"
	       "  -o uid=,gid=         owner of the files, by name or number\n"
	       "  -o umask=            octal permissions to take away; fmask= of files, dmask= of\n"
	       "                       directories\n"
	       "  -o threads=N         serve at most N requests at a time\n"
	       "  -o readahead=KIB     what the kernel reads ahead, if root mounts (%d; 0: leave it)\n"
	       "  -o log=WHERE         syslog, journal, stderr or a file\n"
	       "  -o drop_privileges   serve without capabilities; setuid=USER: as this user\n"
	       "  -o nosandbox         do not confine the daemon to what it has to read\n"
	       "  -o auto_unmount      unmount also when the daemon is killed\n"
	       "  -o remount           look for new deltas in a mount that is there\n"
	       "  -s -n -r -w -t -N    as mount(8) gives them to its helpers\n"
	       "  -h, --help           this text\n"
	       "  -V, --version        versions of this program and of libfuse\n"
	       "\n"
	       "Unmount with: bitdelta umount MOUNTPOINT (or umount; as a user, fusermount3 -u)\n",
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
		return BDFS_STATUS_SYSTEM;
	default:
		return parsed ? BDFS_STATUS_MOUNT : BDFS_STATUS_USAGE;
	}
}

struct listener {
	const char *program;
	bool verbose; /* also what is only good to know */
};

/* A line on stderr, fit for a terminal. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	char *line;
	va_list args;
	int n;

	va_start(args, format);
	n = vasprintf(&line, format, args);
	va_end(args);
	if (n < 0)
		return;
	bd_utf8_make_plain(line);
	fprintf(stderr, "%s\n", line);
	free(line);
}

static void print_message(void *context, int priority, const char *text)
{
	const struct listener *listener = context;
	const char *kind = priority == LOG_WARNING ? "warning: " : "";

	if (priority <= LOG_NOTICE || listener->verbose)
		say("%s: %s%s", listener->program, kind, text);
}

int bdfs_command_main(const char *program, int argc, char *const *argv)
{
	struct listener listener = { .program = program };
	const struct bdfs_sink sink = { print_message, &listener };
	const struct bdfs_options *o;
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
		o = &command.options;
		listener.verbose = command.verbose || o->debug;
		if (command.verbose && o->foreground)
			say("%s: mounting %s on %s", program, o->source, o->mountpoint);
		r = o->remount ? bdfs_remount(&command, argc, argv, &err) : bdfs_mount(o, sink, &err);
		if (r == 0 && command.verbose && !o->foreground)
			say("%s: %s %s mounted on %s", program, o->source,
			    o->fake ? "could be" : o->remount ? "is still" : "is", o->mountpoint);
	}
	if (r < 0 && parsed)
		say("%s: %s", program, err.text);
	else if (r < 0)
		say("%s: %s (see %s --help)", program, err.text, program);
	bdfs_options_clear(&command);
	return status_of(r, parsed);
}
