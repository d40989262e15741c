/* import.c: `bitdelta import`. */
#include "import.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cli.h"

static const char help[] =
"Usage: bitdelta import --base BASE FINE [-o OUT.bdelta] [OPTIONS]\n"
"Keep the fine-tune FINE as a .bdelta file: what it changed of BASE, one bit per weight.\n"
"\n"
"BASE and FINE are directories with model.safetensors, or with shards and\n"
"model.safetensors.index.json, or entries of a Hugging Face cache.\n"
"\n"
"  --base BASE          the checkpoint that FINE was made from\n"
"  -o, --output FILE    the file to write; default: FINE's name with .bdelta, here\n"
"  --scale KIND         tensor, row or rank1 (row x column, the default)\n"
"  --attenuation F      factor on the closed-form scales (default 1.4)\n"
"  --sign GLOB          also code tensors of these names by signs; may repeat\n"
"  --raw GLOB           keep tensors of these names exact; may repeat, the last match decides\n"
"  --force              import although the configurations name different architectures\n"
"  --threads N          default: one per core\n"
"  --json               progress on stderr and result on stdout as JSON\n"
"  -q, --quiet          no progress, no table\n"
"  -h, --help           this text\n"
"\n"
"Tensors that are bit-identical to BASE's cost nothing; embeddings, output heads, norms, biases\n"
"and small tensors are kept exactly; the other weights become signs and scales, which is lossy.\n"
"An import that fails or is interrupted leaves the old FILE or nothing.\n";

struct arguments {
	struct bd_import_options options;
	struct bd_rule *rules;
	char *default_out;
	const char *scale, *attenuation, *threads; /* as given; NULL if not */
	bool json, quiet;
};

static int parse_number(const char *text, double low, double high, double *value)
{
	char *rest;

	*value = strtod(text, &rest);
	return *text && !*rest && *value >= low && *value <= high ? 0 : -1;
}

/* OUT for an import without -o: the last component of FINE ("org/name" of a cache entry: name). */
static char *default_output(const char *fine)
{
	struct bd_checkpoint *c;
	const char *slash;
	char *out = NULL;

	if (bd_checkpoint_open(&c, fine, NULL) < 0)
		return strdup("fine-tune.bdelta"); /* the import will say what is wrong with FINE */
	slash = strrchr(c->label, '/');
	if (asprintf(&out, "%s.bdelta", slash ? slash + 1 : c->label) < 0)
		out = NULL;
	bd_checkpoint_close(c);
	return out;
}

static int out_of_memory(const struct command *command)
{
	return command_fail(command, &(struct bd_error){ -ENOMEM, "out of memory" });
}

static void take_sign(void *context, const char *glob)
{
	struct arguments *a = context;

	a->rules[a->options.rule_count++] = (struct bd_rule){ true, glob };
}

static void take_raw(void *context, const char *glob)
{
	struct arguments *a = context;

	a->rules[a->options.rule_count++] = (struct bd_rule){ false, glob };
}

/* The values that are more than names, and what is missing. Returns the exit status. */
static int settle(const struct command *command, int argc, char **argv, struct arguments *a)
{
	struct bd_import_options *o = &a->options;
	double number;

	if (a->scale && !bd_scale_parse(a->scale, &o->scale))
		return command_usage(command, "--scale is tensor, row or rank1, not '%s'",
				     a->scale);
	if (a->attenuation && parse_number(a->attenuation, 1e-6, 1e6, &o->attenuation) < 0)
		return command_usage(command, "--attenuation needs a positive number, not '%s'",
				     a->attenuation);
	if (a->threads) {
		if (parse_number(a->threads, 1, 1024, &number) < 0 || number != (unsigned)number)
			return command_usage(command, "--threads needs a whole number from 1 to "
					     "1024, not '%s'", a->threads);
		o->threads = (unsigned)number;
	}
	if (!o->base)
		return command_usage(command, "--base BASE is missing");
	if (argc - optind != 1)
		return command_usage(command, "one fine-tune is needed, %d given", argc - optind);
	o->fine = argv[optind];
	if (!o->out)
		o->out = a->default_out = default_output(o->fine);
	return o->out ? EXIT_OK : out_of_memory(command);
}

/* False as command_parse. */
static bool parse(const struct command *command, int argc, char **argv, struct arguments *a,
		  int *status)
{
	struct bd_import_options *o = &a->options;
	const struct command_option options[] = {
		{ "base", .value = &o->base },
		{ "output", 'o', .value = &o->out },
		{ "scale", .value = &a->scale },
		{ "attenuation", .value = &a->attenuation },
		{ "sign", .take = take_sign, .context = a },
		{ "raw", .take = take_raw, .context = a },
		{ "force", .flag = &o->force },
		{ "threads", .value = &a->threads },
		{ "json", .flag = &a->json },
		{ "quiet", 'q', .flag = &a->quiet },
		{ 0 },
	};

	o->scale = BD_SCALE_RANK1;
	o->attenuation = BD_ATTENUATION;
	o->rules = a->rules = calloc((size_t)argc, sizeof(*a->rules));
	if (!a->rules) {
		*status = out_of_memory(command);
		return false;
	}
	if (!command_parse(command, argc, argv, options, status))
		return false;
	*status = settle(command, argc, argv, a);
	return *status == EXIT_OK;
}

static int json_report(const char *out, const struct bd_delta *delta, double seconds,
		       uint64_t memory, struct bd_error *err)
{
	struct json j;
	cJSON *o = json_begin(&j);
	int rc;

	json_string(&j, o, "output", out);
	rc = json_summary(&j, o, delta, err);
	if (rc < 0) {
		json_drop(&j);
		return rc;
	}
	json_number(&j, o, "seconds", "%.3f", seconds);
	json_number(&j, o, "peak_memory", "%" PRIu64, memory);
	return json_print(&j, stdout, err);
}

static int report(const struct arguments *a, double seconds, struct bd_error *err)
{
	const char *out = a->options.out;
	struct bd_delta *delta;
	struct rusage usage;
	uint64_t memory;
	char text[32];
	int rc;

	if (a->quiet && !a->json)
		return 0;
	rc = bd_delta_open(&delta, out, err);
	if (rc < 0)
		return rc;
	getrusage(RUSAGE_SELF, &usage);
	memory = (uint64_t)usage.ru_maxrss * 1024;
	if (a->json) {
		rc = json_report(out, delta, seconds, memory, err);
	} else {
		printf("%s\n", out);
		rc = print_summary(delta, err);
		printf("  %.1f s, at most %s of memory\n", seconds, format_bytes(memory, text));
	}
	bd_delta_close(delta);
	return rc;
}

static int run(const struct command *command, int argc, char **argv)
{
	struct arguments a = { 0 };
	struct progress progress;
	struct bd_error err = { 0 };
	double seconds;
	int status = EXIT_OK, rc;

	if (parse(command, argc, argv, &a, &status)) {
		progress_begin(&progress, &a.options.watch, "importing", a.json, a.quiet);
		rc = bd_import(&a.options, &err);
		seconds = progress_end(&progress);
		if (rc == 0)
			rc = report(&a, seconds, &err);
		if (rc < 0)
			status = command_fail(command, &err);
	}
	free(a.rules);
	free(a.default_out);
	return status;
}

const struct command command_import = {
	"import", "keep a fine-tune as a .bdelta file", help, run,
};
