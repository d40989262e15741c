/* export.c: `bitdelta export`. */
#include "export.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

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

static const struct option long_options[] = {
	{ "base", required_argument, NULL, 'b' }, { "output", required_argument, NULL, 'o' },
	{ "json", no_argument, NULL, 'j' },       { "quiet", no_argument, NULL, 'q' },
	{ 0 },
};

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
	uint64_t bytes = 0;
	char size[32];
	double seconds;
	int c, rc;

	if (command_wants_help(command, argc, argv))
		return EXIT_OK;
	optind = opterr = 0;
	while ((c = getopt_long(argc, argv, "o:q", long_options, NULL)) != -1) {
		if (c == 'b')
			base_path = optarg;
		else if (c == 'o')
			out = optarg;
		else if (c == 'j')
			json = true;
		else if (c == 'q')
			quiet = true;
		else
			return command_usage(command, "unknown option or missing value: '%s'",
					     argv[optind - 1]);
	}
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
	for (size_t i = 0; rc == 0 && i < view->file_count; i++)
		bytes += view->files[i].size;
	if (rc == 0 && json) {
		printf("{\"output\":");
		print_json_string(out);
		printf(",\"files\":%zu,\"bytes\":%llu,\"seconds\":%.3f}\n", view->file_count,
		       (unsigned long long)bytes, seconds);
	} else if (rc == 0 && !quiet) {
		printf("%s: %zu files, %s, %.1f s\n", out, view->file_count, format_bytes(bytes, size),
		       seconds);
	}
	bd_view_close(view);
	bd_delta_close(delta);
	bd_base_close(base);
	return rc < 0 ? command_fail(command, &err) : EXIT_OK;
}

const struct command command_export = {
	"export", "write a fine-tune as a plain directory", help, run,
};
