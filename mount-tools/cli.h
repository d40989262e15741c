/* cli.h: what the subcommands of `bitdelta` share. */
#ifndef BD_CLI_H
#define BD_CLI_H

#include <stdbool.h>
#include <stdint.h>

#include "delta.h"
#include "parallel.h"

/* Exit statuses. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

struct command {
	const char *name;
	const char *summary; /* one line for `bitdelta --help` */
	const char *help;    /* all of `bitdelta NAME --help` */
	/* argv[0] is the command's name. Returns the exit status. */
	int (*run)(const struct command *command, int argc, char **argv);
};

extern const struct command command_import, command_export, command_info, command_verify,
	command_mount, command_umount;

/* "bitdelta NAME: SENTENCE" on stderr, and the exit status that suits the code. */
int command_fail(const struct command *command, const struct bd_error *err);
/* "bitdelta NAME: MESSAGE (see bitdelta NAME --help)" on stderr; EXIT_USAGE. */
int command_usage(const struct command *command, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Handle --help: print the help and return true. */
bool command_wants_help(const struct command *command, int argc, char **argv);

/* How long work is shown: a bar with the time left on a terminal, otherwise a line every ten
 * seconds, JSON lines with `json`, nothing with `quiet`. Sets watch->progress, note and cancel; SIGINT and
 * SIGTERM then cancel. `verb` is what the bar says: "importing". All goes to stderr. */
struct progress {
	const char *verb;
	bool json, quiet, terminal;
	double started, shown;
};
void progress_begin(struct progress *p, struct bd_watch *watch, const char *verb, bool json,
		    bool quiet);
/* Remove the bar. Returns the seconds since the beginning. */
double progress_end(struct progress *p);

/* "13.5 GB": decimal units into buf, which is returned. */
char *format_bytes(uint64_t bytes, char buf[32]);
/* Print text as a JSON string. */
void print_json_string(const char *text);
/* The table (or the members of a JSON object, without braces) that import and info end with. */
int print_summary(const struct bd_delta *delta, bool json, struct bd_error *err);

#endif
