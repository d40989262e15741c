/* SPDX-License-Identifier: Apache-2.0 */
/* cli.c: messages, progress and tables of the subcommands, see cli.h. */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "summary.h"
#include "units.h"
#include "utf8.h"

#define BAR 30 /* characters */
#define MAX_OPTIONS 32
#define LONG 256 /* what getopt_long calls the first long option: above all letters */

static atomic_int cancelled; /* set by signal handlers, read by workers */

int command_fail(const struct command *command, const struct bd_error *err)
{
	fprintf(stderr, "bitdelta %s: %s\n", command->name, err->text);
	return err->code == -EINTR ? EXIT_INTERRUPTED : EXIT_FAILED;
}

int command_usage(const struct command *command, const char *format, ...)
{
	struct bd_error err;
	char text[sizeof(err.text)];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	bd_error_set(&err, -EINVAL, "%s", text);
	fprintf(stderr, "bitdelta %s: %s (see bitdelta %s --help)\n", command->name, err.text,
		command->name);
	return EXIT_USAGE;
}

/* C is what getopt_long returned for it. */
static int wrong_option(const struct command *command, int c, char **argv,
			const struct option *long_options)
{
	const char *problem = c == ':' ? "needs a value" : "takes no value";

	if (optopt >= LONG)
		return command_usage(command, "--%s %s", long_options[optopt - LONG].name, problem);
	if (c == ':')
		return command_usage(command, "-%c %s", optopt, problem);
	/* In a cluster such as -zq, optind still counts the argument before it. */
	if (optopt > ' ' && optopt < 0x7f)
		return command_usage(command, "unknown option: '-%c'", optopt);
	if (optopt)
		return command_usage(command, "unknown option: a letter that is not ASCII");
	return command_usage(command, "unknown option: '%s'", argv[optind - 1]);
}

bool command_parse(const struct command *command, int argc, char **argv,
		   const struct command_option *options, int *status)
{
	struct option long_options[MAX_OPTIONS + 2] = { 0 };
	char letters[2 * MAX_OPTIONS + 3] = ":h"; /* ':': tell apart what lacks its value */
	char *l = letters + 2;
	int c, i, count = 0;

	for (; options[count].name && count < MAX_OPTIONS; count++) {
		int argument = options[count].flag ? no_argument : required_argument;

		long_options[count].name = options[count].name;
		long_options[count].has_arg = argument;
		long_options[count].val = LONG + count;
		if (options[count].letter)
			*l++ = options[count].letter;
		if (options[count].letter && argument == required_argument)
			*l++ = ':';
	}
	long_options[count] = (struct option){ "help", no_argument, NULL, LONG + count };
	optind = 0; /* begin anew, with argv[0] the command's name */
	opterr = 0;
	while ((c = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
		if (c == 'h' || c == LONG + count) {
			fputs(command->help, stdout);
			*status = EXIT_OK;
			return false;
		}
		if (c == '?' || c == ':') {
			*status = wrong_option(command, c, argv, long_options);
			return false;
		}
		i = c - LONG;
		if (c < LONG)
			for (i = 0; options[i].letter != c; )
				i++;
		if (!options[i].flag && !*optarg && !options[i].may_be_empty) {
			*status = command_usage(command, "the value of --%s is empty", options[i].name);
			return false;
		}
		if (options[i].flag)
			*options[i].flag = true;
		else if (options[i].value)
			*options[i].value = optarg;
		else
			options[i].take(options[i].context, optarg);
	}
	for (i = optind; i < argc; i++)
		if (!*argv[i]) {
			*status = command_usage(command, "an argument is empty");
			return false;
		}
	return true;
}

int command_whole(const struct command *command, const char *option, const char *text, uint64_t low,
		  uint64_t high, uint64_t *value)
{
	size_t digits = text ? strspn(text, "0123456789") : 0;
	unsigned long long number;

	if (!text)
		return EXIT_OK;
	errno = 0;
	number = strtoull(text, NULL, 10);
	if (digits == 0 || text[digits] || errno || number < low || number > high)
		return command_usage(command, "%s needs a whole number from %" PRIu64 " to %" PRIu64
				     ", not '%s'", option, low, high, text);
	*value = number;
	return EXIT_OK;
}

int command_real(const struct command *command, const char *option, const char *text, double low,
		 double high, double *value)
{
	char *rest;
	double number;

	if (!text)
		return EXIT_OK;
	number = strtod(text, &rest);
	if (!*text || *rest || !(number >= low && number <= high))
		return command_usage(command, "%s needs a number from %g to %g, not '%s'", option, low,
				     high, text);
	*value = number;
	return EXIT_OK;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void on_signal(int number)
{
	(void)number;
	cancelled = 1;
}

/* What is ignored stays so: nohup means that the work outlives its terminal. */
static void cancel_on(int number)
{
	struct sigaction old, action = { .sa_handler = on_signal };

	if (sigaction(number, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
		sigaction(number, &action, NULL);
}

static void clear_line(const struct progress *p)
{
	if (p->terminal && !p->json && p->shown > 0)
		fputs("\r\033[K", stderr);
}

static void show_progress(void *context, unsigned long long done, unsigned long long total)
{
	struct progress *p = context;
	double t = now() - p->started, share = total ? (double)done / (double)total : 1;
	char have[32], all[32];
	int left = share > 0.01 ? (int)(t / share - t + 0.5) : -1;

	if (p->quiet || t - p->shown < (p->terminal ? 0.1 : 10))
		return;
	p->shown = t;
	if (p->json) {
		struct json j;
		cJSON *o = json_begin(&j);

		json_number(&j, o, "progress", "%.4f", share);
		if (!p->share_only) {
			json_number(&j, o, "done", "%llu", done);
			json_number(&j, o, "total", "%llu", total);
		}
		json_number(&j, o, "seconds", "%.1f", t);
		json_print(&j, stderr, NULL); /* without memory, a line less */
		return;
	}
	format_bytes(done, have);
	format_bytes(total, all);
	if (!p->terminal) {
		fprintf(stderr, "%s: %.0f%%", p->verb, 100 * share);
		if (!p->share_only)
			fprintf(stderr, " (%s of %s)", have, all);
		else if (left >= 0)
			fprintf(stderr, ", %d:%02d left", left / 60, left % 60);
		fputc('\n', stderr);
		return;
	}
	fprintf(stderr, "\r\033[K%s [", p->verb);
	for (int i = 0; i < BAR; i++)
		fputc(i < (int)(share * BAR) ? '#' : '.', stderr);
	fprintf(stderr, "] %3.0f%%", 100 * share);
	if (!p->share_only)
		fprintf(stderr, "  %s of %s", have, all);
	if (left >= 0)
		fprintf(stderr, "  %d:%02d left", left / 60, left % 60);
	fflush(stderr);
}

static void print_safely(FILE *out, const char *text, size_t left, const char *allowed)
{
	bool plain;

	while (left > 0) {
		unsigned n = bd_utf8_step(text, left, &plain);

		if (plain || (*text && strchr(allowed, *text)))
			fwrite(text, 1, n, out);
		else
			fputc('?', out);
		text += n;
		left -= n;
	}
}

static void show_note(void *context, const char *text)
{
	struct progress *p = context;

	if (p->quiet)
		return;
	clear_line(p);
	if (p->json) {
		struct json j;
		cJSON *o = json_begin(&j);

		json_string(&j, o, "note", text);
		json_print(&j, stderr, NULL);
	} else {
		fprintf(stderr, "note: ");
		print_safely(stderr, text, strlen(text), "");
		fputc('\n', stderr);
	}
}

void progress_begin(struct progress *p, struct bd_watch *watch, const char *verb, bool json,
		    bool quiet)
{
	*p = (struct progress){ .verb = verb, .json = json, .quiet = quiet, .started = now() };
	p->terminal = isatty(STDERR_FILENO);
	*watch = (struct bd_watch){
		.progress = show_progress, .note = show_note, .context = p, .cancel = &cancelled,
	};
	cancel_on(SIGINT);
	cancel_on(SIGTERM);
	cancel_on(SIGHUP);
	signal(SIGXFSZ, SIG_IGN); /* then writing gives EFBIG, which is reported and cleaned up after */
}

double progress_end(struct progress *p)
{
	clear_line(p);
	return now() - p->started;
}

char *format_bytes(uint64_t bytes, char buf[32])
{
	return bd_units_bytes(bytes, buf);
}

void print_plain(const char *text)
{
	print_safely(stdout, text, strlen(text), "");
}

void print_lines(const char *text, size_t size)
{
	print_safely(stdout, text, size, "\n\t");
}

/* What tensors or files of one kind take. */
static void json_sizes(struct json *j, cJSON *object, const char *name, const char *counted,
		       const struct bd_encoding_summary *e)
{
	cJSON *o = json_object(j, object, name);

	json_number(j, o, counted, "%" PRIu64, e->tensors);
	json_number(j, o, "bytes", "%" PRIu64, e->bytes);
	json_number(j, o, "stored", "%" PRIu64, e->stored);
}

int json_summary(struct json *j, cJSON *object, const struct bd_delta *delta, struct bd_error *err)
{
	struct bd_summary s;
	int rc = bd_summary_of(delta, &s, err);
	cJSON *o;

	if (rc < 0)
		return rc;
	json_number(j, object, "fine_bytes", "%" PRIu64, s.fine_bytes);
	json_number(j, object, "delta_bytes", "%" PRIu64, s.delta_bytes);
	json_number(j, object, "ratio", "%.4f", (double)s.fine_bytes / (double)s.delta_bytes);
	json_number(j, object, "sign_weights", "%" PRIu64, s.weights);
	o = json_object(j, object, "encodings");
	for (int i = 0; i < BD_ENCODINGS; i++)
		json_sizes(j, o, bd_encoding_name((enum bd_encoding)i), "tensors", &s.encodings[i]);
	json_sizes(j, object, "other_files", "files", &s.other_files);
	if (s.worst) {
		o = json_object(j, object, "error");
		json_number(j, o, "median", "%.4g", s.error_median);
		json_number(j, o, "worst", "%.4g", s.error_worst);
		json_string(j, o, "worst_tensor", s.worst);
	}
	return 0;
}

static void print_row(const char *name, const char *unit, const struct bd_encoding_summary *e)
{
	char a[32], b[32];

	if (e->tensors)
		printf("  %-6s %6" PRIu64 " %-8s %10s -> %10s\n", name, e->tensors, unit,
		       format_bytes(e->bytes, a), format_bytes(e->stored, b));
}

int print_summary(const struct bd_delta *delta, bool errors, struct bd_error *err)
{
	struct bd_summary s;
	char a[32], b[32];
	int rc = bd_summary_of(delta, &s, err);

	if (rc < 0)
		return rc;
	for (int i = 0; i < BD_ENCODINGS; i++)
		print_row(bd_encoding_name((enum bd_encoding)i), "tensors", &s.encodings[i]);
	print_row("files", "others", &s.other_files);
	printf("  %-6s %6s %-8s %10s -> %10s   ratio %.2f\n", "whole", "", "",
	       format_bytes(s.fine_bytes, a), format_bytes(s.delta_bytes, b),
	       (double)s.fine_bytes / (double)s.delta_bytes);
	if (s.weights == 0)
		printf("  exact: all of it is the fine-tune's, bit for bit\n");
	if (errors && s.worst) {
		printf("  changes coded by signs are off by %.3f of their size%s (median; at most %.3f,\n  ",
		       s.error_median, delta->distilled ? " before distillation" : "", s.error_worst);
		print_plain(s.worst);
		printf("); what this means for the outputs, bitdelta eval measures\n");
	}
	return 0;
}
