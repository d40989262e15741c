/* SPDX-License-Identifier: Apache-2.0 */
/* export.c: `bitdelta export`. */
#include "export.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "cli.h"

static const char help[] =
"Usage: bitdelta export X.bdelta --base BASE -o DIR [OPTIONS]\n"
"Write the fine-tune in X.bdelta as a plain model directory, with the same bytes as in a mount.\n"
"\n"
"  --base BASE          the base checkpoint\n"
"  -o, --output DIR     must not exist or be empty; appears when it is complete\n"
"  --json               progress on stderr and result on stdout as JSON\n"
"  -q, --quiet          no progress\n"
"  -h, --help           this text\n";

static int report(const struct bd_view *view, const char *out, double seconds, bool json,
		  bool quiet, struct bd_error *err)
{
	uint64_t bytes = 0;
	char size[32];
	struct json j;
	cJSON *o;

	for (size_t i = 0; i < view->file_count; i++)
		bytes += view->files[i].size;
	if (json) {
		o = json_begin(&j);
		json_string(&j, o, "output", out);
		json_number(&j, o, "files", "%zu", view->file_count);
		json_number(&j, o, "bytes", "%" PRIu64, bytes);
		json_number(&j, o, "seconds", "%.3f", seconds);
		return json_print(&j, stdout, err);
	}
	if (!quiet) {
		print_plain(out);
		printf(": %zu files, %s, %.1f s\n", view->file_count, format_bytes(bytes, size), seconds);
	}
	return 0;
}

static int run(const struct command *command, int argc, char **argv)
{
	const char *base_path = NULL, *out = NULL;
	bool json = false, quiet = false;
	struct bd_base *base = NULL;
	struct bd_delta *delta = NULL;
	struct bd_view *view = NULL;
	struct bd_error err = { 0 };
	struct progress progress;
	struct bd_watch watch;
	const struct command_option options[] = {
		{ "base", .value = &base_path },
		{ "output", 'o', .value = &out },
		{ "json", .flag = &json },
		{ "quiet", 'q', .flag = &quiet },
		{ 0 },
	};
	double seconds;
	int rc, status;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (!base_path || !out || argc - optind != 1)
		return command_usage(command, "one .bdelta file, --base and -o are needed");
	progress_begin(&progress, &watch, "exporting", json, quiet);
	rc = bd_base_open(&base, base_path, &err);
	if (rc == 0)
		rc = bd_delta_open(&delta, argv[optind], &err);
	if (rc == 0)
		rc = bd_view_open(&view, delta, base, &err);
	if (rc == 0)
		delta = NULL; /* the view's now */
	if (rc == 0)
		rc = bd_export(view, out, &watch, &err);
	seconds = progress_end(&progress);
	if (rc == 0)
		rc = report(view, out, seconds, json, quiet, &err);
	bd_view_close(view);
	bd_delta_close(delta);
	bd_base_close(base);
	return rc < 0 ? command_fail(command, &err) : EXIT_OK;
}

const struct command command_export = {
	"export", "write a fine-tune as a plain directory", help, run,
};
