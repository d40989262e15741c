/* cli.c: messages, progress and tables of the subcommands, see cli.h. */
#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "buffer.h"
#include "summary.h"

#define BAR 30 /* characters */

static atomic_int cancelled; /* set by signal handlers, read by workers */

int command_fail(const struct command *command, const struct bd_error *err)
{
	fprintf(stderr, "bitdelta %s: %s\n", command->name, err->text);
	return err->code == -EINTR ? EXIT_INTERRUPTED : EXIT_FAILED;
}

int command_usage(const struct command *command, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "bitdelta %s: ", command->name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (see bitdelta %s --help)\n", command->name);
	return EXIT_USAGE;
}

bool command_wants_help(const struct command *command, int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			fputs(command->help, stdout);
			return true;
		}
	return false;
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
		fprintf(stderr, "{\"progress\":%.4f,\"done\":%llu,\"total\":%llu,\"seconds\":%.1f}\n",
			share, done, total, t);
		return;
	}
	format_bytes(done, have);
	format_bytes(total, all);
	if (!p->terminal) {
		fprintf(stderr, "%s: %.0f%% (%s of %s)\n", p->verb, 100 * share, have, all);
		return;
	}
	fprintf(stderr, "\r\033[K%s [", p->verb);
	for (int i = 0; i < BAR; i++)
		fputc(i < (int)(share * BAR) ? '#' : '.', stderr);
	fprintf(stderr, "] %3.0f%%  %s of %s", 100 * share, have, all);
	if (left >= 0)
		fprintf(stderr, "  %d:%02d left", left / 60, left % 60);
	fflush(stderr);
}

static void show_note(void *context, const char *text)
{
	struct progress *p = context;

	if (p->quiet)
		return;
	clear_line(p);
	if (p->json) {
		struct bd_buffer b = { 0 };

		bd_buffer_json_string(&b, text, strlen(text));
		fprintf(stderr, "{\"note\":%s}\n", b.failed ? "\"\"" : b.data);
		bd_buffer_free(&b);
	} else {
		fprintf(stderr, "note: %s\n", text);
	}
}

void progress_begin(struct progress *p, struct bd_watch *watch, const char *verb, bool json,
		    bool quiet)
{
	struct sigaction action = { .sa_handler = on_signal };

	*p = (struct progress){ .verb = verb, .json = json, .quiet = quiet, .started = now() };
	p->terminal = isatty(STDERR_FILENO);
	*watch = (struct bd_watch){
		.progress = show_progress, .note = show_note, .context = p, .cancel = &cancelled,
	};
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

double progress_end(struct progress *p)
{
	clear_line(p);
	return now() - p->started;
}

char *format_bytes(uint64_t bytes, char buf[32])
{
	static const char units[] = " kMGTPE";
	double value = (double)bytes;
	int unit = 0;

	while (value >= 999.5 && units[unit + 1]) {
		value /= 1000;
		unit++;
	}
	if (unit == 0)
		snprintf(buf, 32, "%d B", (int)bytes);
	else
		snprintf(buf, 32, "%.*f %cB", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value,
			 units[unit]);
	return buf;
}

void print_json_string(const char *text)
{
	struct bd_buffer b = { 0 };

	bd_buffer_json_string(&b, text, strlen(text));
	fputs(b.failed ? "\"\"" : b.data, stdout);
	bd_buffer_free(&b);
}

static void print_json(const struct bd_summary *s)
{
	printf("\"fine_bytes\":%" PRIu64 ",\"delta_bytes\":%" PRIu64 ",\"ratio\":%.4f,"
	       "\"sign_weights\":%" PRIu64 ",\"encodings\":{", s->fine_bytes, s->delta_bytes,
	       (double)s->fine_bytes / (double)s->delta_bytes, s->weights);
	for (int i = 0; i < BD_ENCODINGS; i++)
		printf("%s\"%s\":{\"tensors\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"stored\":%" PRIu64 "}",
		       i ? "," : "", bd_encoding_name((enum bd_encoding)i), s->encodings[i].tensors,
		       s->encodings[i].bytes, s->encodings[i].stored);
	printf("},\"other_files\":{\"files\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"stored\":%" PRIu64 "}",
	       s->other_files.tensors, s->other_files.bytes, s->other_files.stored);
	if (s->worst) {
		printf(",\"error\":{\"median\":%.4g,\"worst\":%.4g,\"worst_tensor\":", s->error_median,
		       s->error_worst);
		print_json_string(s->worst);
		printf("}");
	}
}

static void print_row(const char *name, const char *unit, const struct bd_encoding_summary *e)
{
	char a[32], b[32];

	if (e->tensors)
		printf("  %-6s %6" PRIu64 " %-8s %10s -> %10s\n", name, e->tensors, unit,
		       format_bytes(e->bytes, a), format_bytes(e->stored, b));
}

static void print_table(const struct bd_summary *s)
{
	char a[32], b[32];

	for (int i = 0; i < BD_ENCODINGS; i++)
		print_row(bd_encoding_name((enum bd_encoding)i), "tensors", &s->encodings[i]);
	print_row("files", "others", &s->other_files);
	printf("  %-6s %6s %-8s %10s -> %10s   ratio %.2f\n", "whole", "", "", format_bytes(s->fine_bytes, a),
	       format_bytes(s->delta_bytes, b), (double)s->fine_bytes / (double)s->delta_bytes);
	if (s->worst)
		printf("  error of weights coded by signs: median %.3f, worst %.3f (%s)\n",
		       s->error_median, s->error_worst, s->worst);
}

int print_summary(const struct bd_delta *delta, bool json, struct bd_error *err)
{
	struct bd_summary summary;
	int rc = bd_summary_of(delta, &summary, err);

	if (rc < 0)
		return rc;
	if (json)
		print_json(&summary);
	else
		print_table(&summary);
	return 0;
}
