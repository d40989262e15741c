/* import.c: `bitdelta import`. */
#include "import.h"

#include <errno.h>
#include <getopt.h>
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

enum { OPT_BASE = 256, OPT_SCALE, OPT_ATTENUATION, OPT_SIGN, OPT_RAW, OPT_FORCE, OPT_THREADS, OPT_JSON };

static const struct option long_options[] = {
	{ "base", required_argument, NULL, OPT_BASE },
	{ "output", required_argument, NULL, 'o' },
	{ "scale", required_argument, NULL, OPT_SCALE },
	{ "attenuation", required_argument, NULL, OPT_ATTENUATION },
	{ "sign", required_argument, NULL, OPT_SIGN },
	{ "raw", required_argument, NULL, OPT_RAW },
	{ "force", no_argument, NULL, OPT_FORCE },
	{ "threads", required_argument, NULL, OPT_THREADS },
	{ "json", no_argument, NULL, OPT_JSON },
	{ "quiet", no_argument, NULL, 'q' },
	{ 0 },
};

struct arguments {
	struct bd_import_options options;
	struct bd_rule *rules;
	char *out; /* owned, when it is the default */
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

static int parse(const struct command *command, int argc, char **argv, struct arguments *a)
{
	struct bd_import_options *o = &a->options;
	double number;
	int c;

	o->scale = BD_SCALE_RANK1;
	o->attenuation = BD_ATTENUATION;
	a->rules = calloc((size_t)argc, sizeof(*a->rules));
	if (!a->rules)
		return out_of_memory(command);
	o->rules = a->rules;
	optind = 0; /* begin anew, with argv[0] the command's name */
	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:q", long_options, NULL)) != -1) {
		switch (c) {
		case OPT_BASE:
			o->base = optarg;
			break;
		case 'o':
			o->out = optarg;
			break;
		case OPT_SCALE:
			if (!bd_scale_parse(optarg, &o->scale))
				return command_usage(command, "--scale is tensor, row or rank1, not '%s'",
						     optarg);
			break;
		case OPT_ATTENUATION:
			if (parse_number(optarg, 1e-6, 1e6, &o->attenuation) < 0)
				return command_usage(command, "--attenuation needs a positive number, not '%s'",
						     optarg);
			break;
		case OPT_SIGN:
		case OPT_RAW:
			a->rules[o->rule_count++] = (struct bd_rule){ c == OPT_SIGN, optarg };
			break;
		case OPT_FORCE:
			o->force = true;
			break;
		case OPT_THREADS:
			if (parse_number(optarg, 1, 1024, &number) < 0 || number != (unsigned)number)
				return command_usage(command, "--threads needs a whole number from 1 to "
						     "1024, not '%s'", optarg);
			o->threads = (unsigned)number;
			break;
		case OPT_JSON:
			a->json = true;
			break;
		case 'q':
			a->quiet = true;
			break;
		default:
			return command_usage(command, "unknown option or missing value: '%s'",
					     argv[optind - 1]);
		}
	}
	if (!o->base)
		return command_usage(command, "--base BASE is missing");
	if (argc - optind != 1)
		return command_usage(command, "one fine-tune is needed, %d given", argc - optind);
	o->fine = argv[optind];
	if (!o->out)
		o->out = a->out = default_output(o->fine);
	return o->out ? EXIT_OK : out_of_memory(command);
}

static int report(const struct arguments *a, double seconds, struct bd_error *err)
{
	const struct bd_import_options *o = &a->options;
	struct bd_delta *delta;
	struct rusage usage;
	char memory[32];
	int rc;

	if (a->quiet && !a->json)
		return 0;
	rc = bd_delta_open(&delta, o->out, err);
	if (rc < 0)
		return rc;
	getrusage(RUSAGE_SELF, &usage);
	if (a->json) {
		printf("{\"output\":");
		print_json_string(o->out);
		printf(",");
		rc = print_summary(delta, true, err);
		printf(",\"seconds\":%.3f,\"peak_memory\":%llu}\n", seconds,
		       (unsigned long long)usage.ru_maxrss * 1024);
	} else {
		printf("%s\n", o->out);
		rc = print_summary(delta, false, err);
		printf("  %.1f s, at most %s of memory\n", seconds,
		       format_bytes((uint64_t)usage.ru_maxrss * 1024, memory));
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
	int status, rc;

	if (command_wants_help(command, argc, argv))
		return EXIT_OK;
	status = parse(command, argc, argv, &a);
	if (status == EXIT_OK) {
		progress_begin(&progress, &a.options.watch, "importing", a.json, a.quiet);
		rc = bd_import(&a.options, &err);
		seconds = progress_end(&progress);
		if (rc == 0)
			rc = report(&a, seconds, &err);
		if (rc < 0)
			status = command_fail(command, &err);
	}
	free(a.rules);
	free(a.out);
	return status;
}

const struct command command_import = {
	"import", "keep a fine-tune as a .bdelta file", help, run,
};
