/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h: what the subcommands of `bitdelta` share. */
#ifndef BD_CLI_H
#define BD_CLI_H

#include <stdbool.h>
#include <stdint.h>

#include "delta.h"
#include "jsonout.h"
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

extern const struct command command_import, command_distill, command_eval, command_generate,
	command_export, command_info, command_verify, command_mount, command_umount, command_status,
	command_df, command_doctor;

/* "bitdelta NAME: SENTENCE" on stderr, and the exit status that suits the code. */
int command_fail(const struct command *command, const struct bd_error *err);
/* "bitdelta NAME: MESSAGE (see bitdelta NAME --help)" on stderr; EXIT_USAGE. */
int command_usage(const struct command *command, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* One option of a subcommand; exactly one of flag, value and take is set. { 0 } ends a list. */
struct command_option {
	const char *name;   /* --name */
	char letter;        /* -l, or 0 */
	bool *flag;         /* set to true */
	const char **value; /* set to the value; the last one decides */
	void (*take)(void *context, const char *value); /* called for each value, in order */
	void *context;
	bool may_be_empty;  /* other values may not: mostly, a variable of a script has none */
};

/* Read the options (and -h, --help, which every command has); then optind is the first of the other
 * arguments, which getopt_long has moved to the end. False where there is nothing left to do: help
 * was printed, or on stderr what is wrong; *status is then the exit status. */
bool command_parse(const struct command *command, int argc, char **argv,
		   const struct command_option *options, int *status);

/* The value of OPTION ("--threads") as a whole number, or as any, from low to high; it stays as it is where
 * TEXT is NULL. Returns the exit status: EXIT_USAGE where it is none, which was said. */
int command_whole(const struct command *command, const char *option, const char *text, uint64_t low,
		  uint64_t high, uint64_t *value);
int command_real(const struct command *command, const char *option, const char *text, double low,
		 double high, double *value);

/* How long work is shown: a bar with the time left on a terminal, otherwise a line every ten
 * seconds, JSON lines with `json`, nothing with `quiet`. Sets watch->progress, note and cancel;
 * SIGINT, SIGTERM and SIGHUP then cancel, unless the caller has them ignored. A file size limit
 * becomes an error of writing. `verb` is what the bar says: "importing". All goes to stderr. */
struct progress {
	const char *verb;
	bool json, quiet, terminal;
	bool share_only; /* done and total are no bytes: to be set after progress_begin */
	double started, shown;
};
void progress_begin(struct progress *p, struct bd_watch *watch, const char *verb, bool json,
		    bool quiet);
/* Remove the bar. Returns the seconds since the beginning. */
double progress_end(struct progress *p);

/* "13.5 GB": decimal units into buf, which is returned. */
char *format_bytes(uint64_t bytes, char buf[32]);
/* Text that a stranger may have chosen, such as the name of a file, on stdout, as bd_utf8_make_plain
 * makes it: it can neither break lines nor steer a terminal. */
void print_plain(const char *text);
/* The same for text of several lines: line feeds and tabs are printed too. */
void print_lines(const char *text, size_t size);
/* The table that import and info end with (`errors`: of weights, too), and the same as members of a JSON
 * object. */
int print_summary(const struct bd_delta *delta, bool errors, struct bd_error *err);
int json_summary(struct json *j, cJSON *object, const struct bd_delta *delta, struct bd_error *err);

#endif
