/* verify.c: `bitdelta verify`. */
#include "verify.h"

#include <getopt.h>
#include <stdio.h>

#include "cli.h"

static const char help[] =
"Usage: bitdelta verify X.bdelta... [--base BASE] [OPTIONS]\n"
"Check all that the files store against the hashes taken at import.\n"
"\n"
"  --base BASE          also check every base tensor that they need, completely\n"
"  --json               progress on stderr and results on stdout as JSON\n"
"  -q, --quiet          print failures only\n"
"  -h, --help           this text\n"
"\n"
"The hashes (XXH3) find damage; they are no protection against somebody who forges a file.\n"
"Exit status 0: all is well; 1: damaged, missing or another base; 2: wrong usage.\n";

static const struct option long_options[] = {
	{ "base", required_argument, NULL, 'b' },
	{ "json", no_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ 0 },
};

static void print_result(const char *path, const struct bd_error *err, bool with_base, bool json,
			 bool quiet)
{
	if (json) {
		printf("{\"file\":");
		print_json_string(path);
		printf(",\"ok\":%s,\"base\":%s", err ? "false" : "true", with_base ? "true" : "false");
		if (err) {
			printf(",\"error\":");
			print_json_string(err->text);
		}
		printf("}\n");
	} else if (!err && !quiet) {
		printf("%s: ok%s\n", path, with_base ? ", and so is what it needs of the base" : "");
	}
}

static int run(const struct command *command, int argc, char **argv)
{
	const char *base_path = NULL;
	bool json = false, quiet = false;
	struct bd_base *base = NULL;
	struct bd_error err = { 0 };
	int c, status = EXIT_OK;

	if (command_wants_help(command, argc, argv))
		return EXIT_OK;
	optind = opterr = 0;
	while ((c = getopt_long(argc, argv, "q", long_options, NULL)) != -1) {
		if (c == 'b')
			base_path = optarg;
		else if (c == 'j')
			json = true;
		else if (c == 'q')
			quiet = true;
		else
			return command_usage(command, "unknown option or missing value: '%s'",
					     argv[optind - 1]);
	}
	if (argc - optind < 1)
		return command_usage(command, "a .bdelta file is needed");
	if (base_path && bd_base_open(&base, base_path, &err) < 0)
		return command_fail(command, &err);
	for (int i = optind; i < argc && status != EXIT_INTERRUPTED; i++) {
		struct bd_delta *delta = NULL;
		struct progress progress;
		struct bd_watch watch;
		int rc;

		progress_begin(&progress, &watch, "verifying", json, quiet);
		rc = bd_delta_open(&delta, argv[i], &err);
		if (rc == 0)
			rc = bd_verify(delta, base, &watch, &err);
		progress_end(&progress);
		if (rc < 0)
			status = command_fail(command, &err);
		print_result(argv[i], rc < 0 ? &err : NULL, base != NULL, json, quiet);
		bd_delta_close(delta);
	}
	bd_base_close(base);
	return status;
}

const struct command command_verify = {
	"verify", "check a .bdelta file, and its base, against the hashes", help, run,
};
