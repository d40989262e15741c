/* SPDX-License-Identifier: Apache-2.0 */
/* status.c: `bitdelta status`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "mounts.h"

static const char help[] =
"Usage: bitdelta status [MOUNTPOINT...] [--json]\n"
"Show how the mounts of bitdelta are: all that are there, or those named.\n"
"\n"
"  --json               one JSON object per mount\n"
"  -h, --help           this text\n"
"\n"
"For each: its daemon, bases and models, what was read and how fast, what the system lets it use,\n"
"and the deltas that it could not show, with the reasons. A daemon that does not answer is given\n"
"five seconds.\n"
"Exit status 0: all is well; 1: a mount is dead, stuck or unreadable, a base has a problem, a delta\n"
"was rejected, or a named path is no mount of bitdelta or somebody else's; 2: wrong usage.\n";

static void print_line(const char *label, const char *text)
{
	printf("  %-9s ", label);
	print_plain(text);
	putchar('\n');
}

static char *format_duration(double seconds, char buf[64])
{
	/* Below 0 where somebody has set the clock. */
	unsigned long long s = seconds > 0 && seconds < 1e15 ? (unsigned long long)seconds : 0;

	if (s >= 86400)
		snprintf(buf, 64, "%llu d %llu h", s / 86400, s / 3600 % 24);
	else if (s >= 3600)
		snprintf(buf, 64, "%llu h %llu min", s / 3600, s / 60 % 60);
	else if (s >= 60)
		snprintf(buf, 64, "%llu min %llu s", s / 60, s % 60);
	else
		snprintf(buf, 64, "%llu s", s);
	return buf;
}

static const char *plural(uint64_t n)
{
	return n == 1 ? "" : "s";
}

static void print_bases(const struct mountstats *s)
{
	char size[32];

	for (size_t i = 0; i < s->base_count; i++) {
		const struct mountstats_base *b = &s->bases[i];

		printf("  %-9s ", "base");
		print_plain(b->name);
		printf(": %s in %" PRIu64 " tensors, %" PRIu64 " model%s, ",
		       format_bytes(b->bytes, size), b->tensors, b->models, plural(b->models));
		print_plain(b->path);
		putchar('\n');
		if (b->problem)
			print_line("  problem", b->problem);
	}
}

static void print_stats(const struct mountstats *s)
{
	char a[32], b[32], c[32], t[64];

	printf(": %zu model%s, %s shown, %s stored\n", s->model_count, plural(s->model_count),
	       format_bytes(s->totals.virtual_bytes, a), format_bytes(s->totals.stored_bytes, b));
	print_line("source", s->source);
	printf("  %-9s process %" PRIu64 " of ", "daemon", s->pid);
	print_plain(s->in_use.user);
	printf(", %" PRIu64 " threads, bitdelta ", s->threads);
	print_plain(s->version);
	printf(", mounted for %s\n", format_duration(s->uptime, t));
	print_bases(s);
	printf("  %-9s %" PRIu64 " read%s, %s given out, from %s of bases and %s of deltas, "
	       "%" PRIu64 " error%s\n", "reads", s->totals.reads, plural(s->totals.reads),
	       format_bytes(s->totals.bytes, a), format_bytes(s->totals.base_bytes, b),
	       format_bytes(s->totals.delta_bytes, c), s->totals.errors, plural(s->totals.errors));
	if (s->latency.count)
		printf("  %-9s median %.0f us, 90 %% below %.0f us, 99 %% below %.0f us, longest "
		       "%.0f us\n", "latency", s->latency.p50, s->latency.p90, s->latency.p99,
		       s->latency.max);
	printf("  %-9s ", "in use");
	if (s->in_use.readahead)
		printf("readahead %" PRIu64 " KiB, ", s->in_use.readahead);
	else
		printf("the kernel's own readahead, ");
	printf("passthrough %s, inputs %s, cpu ", s->in_use.passthrough ? "on" : "off",
	       s->in_use.mapped ? "mapped" : "read");
	print_plain(s->in_use.cpu);
	printf(", sandbox ");
	print_plain(s->in_use.sandbox);
	printf(", watching by ");
	print_plain(s->in_use.watch);
	printf(", layout ");
	print_plain(s->layout);
	putchar('\n');
	for (size_t i = 0; i < s->rejected_count; i++) {
		const struct mountstats_rejected *r = &s->rejected[i];

		/* Most reasons begin with the path already. */
		printf("  %-9s ", "rejected");
		if (strncmp(r->reason, r->delta, strlen(r->delta)) != 0) {
			print_plain(r->delta);
			printf(": ");
		}
		print_plain(r->reason);
		putchar('\n');
	}
	for (size_t i = 0; i < s->note_count; i++)
		print_line("note", s->notes[i].text);
}

static int print_mount(const struct mount_entry *e, bool json, struct bd_error *err)
{
	struct json j;
	cJSON *o;

	if (json) {
		o = json_begin(&j);
		json_string(&j, o, "mountpoint", e->info.point);
		json_string(&j, o, "source", e->info.source);
		json_string(&j, o, "state", mount_state_name(e->state));
		if (e->state != MOUNT_ALIVE) {
			json_string(&j, o, "problem", e->problem);
			json_string(&j, o, "remedy", e->remedy);
		} else {
			json_raw(&j, o, "stats", e->stats->text);
		}
		return json_print(&j, stdout, err);
	}
	print_plain(e->info.point);
	if (e->state == MOUNT_ALIVE) {
		print_stats(e->stats);
		return 0;
	}
	printf(": ");
	print_plain(e->problem);
	putchar('\n');
	print_line("source", e->info.source);
	if (*e->remedy)
		print_line("remedy", e->remedy);
	return 0;
}

static int show(const struct command *command, struct mounts *mounts, struct mount_entry *e, bool json)
{
	struct bd_error err = { 0 };

	mounts_ask(mounts, e);
	if (print_mount(e, json, &err) < 0)
		return command_fail(command, &err);
	return mount_is_broken(e) ? EXIT_FAILED : EXIT_OK;
}

static int run(const struct command *command, int argc, char **argv)
{
	bool json = false;
	const struct command_option options[] = {
		{ "json", .flag = &json },
		{ 0 },
	};
	struct bd_error err = { 0 };
	struct mounts mounts;
	struct mount_entry *e;
	int status = EXIT_OK;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (mounts_list(&mounts, &err) < 0)
		return command_fail(command, &err);
	for (size_t i = 0; optind == argc && i < mounts.count; i++)
		if (show(command, &mounts, &mounts.list[i], json) != EXIT_OK)
			status = EXIT_FAILED;
	if (optind == argc && mounts.count == 0 && !json)
		printf("nothing is mounted\n");
	for (int i = optind; i < argc; i++) {
		e = mounts_find(&mounts, argv[i], &err);
		if (!e)
			status = command_fail(command, &err);
		else if (show(command, &mounts, e, json) != EXIT_OK || e->state != MOUNT_ALIVE)
			status = EXIT_FAILED;
	}
	mounts_free(&mounts);
	return status;
}

const struct command command_status = {
	"status", "show how the mounts are", help, run,
};
