/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c: `bitdelta verify`. */
#include "verify.h"

#include <getopt.h>
#include <stdio.h>

#include "cli.h"

static const char help[] =
"Usage: bitdelta verify X.bdelta... [--base BASE] [OPTIONS]\n"
"Check all that the files store against the hashes taken at import.\n"
"\n"
"  --base BASE          also check every base tensor that they need, completely, and rebuild what is\n"
"                       exact\n"
"  --json               progress on stderr and results on stdout as JSON\n"
"  -q, --quiet          print failures only\n"
"  -h, --help           this text\n"
"\n"
"The hashes (XXH3) find damage; they are no protection against somebody who forges a file.\n"
"Exit status 0: all is well; 1: damaged, missing or another base; 2: wrong usage.\n";

/* Tensors that can only be checked by rebuilding them from the base. */
static size_t count_exact(const struct bd_delta *d)
{
	size_t count = 0;

	for (size_t f = 0; f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++)
			count += d->files[f].entries[i].exact && bd_entry_has_base(&d->files[f].entries[i]);
	return count;
}

/* FAILED is NULL where all is well; UNCHECKED tensors were not looked at. Returns 0, or an error of its own. */
static int report(const char *path, const struct bd_error *failed, bool with_base, size_t unchecked, bool json,
		  bool quiet, struct bd_error *err)
{
	struct json j;
	cJSON *o;

	if (json) {
		o = json_begin(&j);
		json_string(&j, o, "file", path);
		json_bool(&j, o, "ok", !failed);
		json_bool(&j, o, "base", with_base);
		if (unchecked)
			json_number(&j, o, "unchecked", "%zu", unchecked);
		if (failed)
			json_string(&j, o, "error", failed->text);
		return json_print(&j, stdout, err);
	}
	if (!failed && !quiet) {
		print_plain(path);
		printf(": ok%s", with_base ? ", and so is what it needs of the base" : "");
		if (unchecked)
			printf(", but for %zu exact tensors, which only --base can check", unchecked);
		putchar('\n');
	}
	return 0;
}

static int run(const struct command *command, int argc, char **argv)
{
	const char *base_path = NULL;
	bool json = false, quiet = false;
	const struct command_option options[] = {
		{ "base", .value = &base_path },
		{ "json", .flag = &json },
		{ "quiet", 'q', .flag = &quiet },
		{ 0 },
	};
	struct bd_base *base = NULL;
	struct bd_error err = { 0 }, late;
	int base_rc = 0, status = EXIT_OK;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (argc - optind < 1)
		return command_usage(command, "a .bdelta file is needed");
	if (base_path) {
		base_rc = bd_base_open(&base, base_path, &err);
		if (base_rc < 0)
			status = command_fail(command, &err);
	}
	for (int i = optind; i < argc && status != EXIT_INTERRUPTED; i++) {
		struct bd_delta *delta = NULL;
		struct progress progress;
		struct bd_watch watch;
		int rc = base_rc; /* without its base no file is well, and each of them says so */

		if (rc == 0) {
			progress_begin(&progress, &watch, "verifying", json, quiet);
			rc = bd_delta_open(&delta, argv[i], &err);
			if (rc == 0)
				rc = bd_verify(delta, base, &watch, &err);
			progress_end(&progress);
			if (rc < 0)
				status = command_fail(command, &err);
		}
		if (report(argv[i], rc < 0 ? &err : NULL, base != NULL, rc == 0 && !base ? count_exact(delta) : 0, json,
			   quiet, &late) < 0)
			status = command_fail(command, &late);
		bd_delta_close(delta);
	}
	bd_base_close(base);
	return status;
}

const struct command command_verify = {
	"verify", "check a .bdelta file, and its base, against the hashes", help, run,
};
