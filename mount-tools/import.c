/* SPDX-License-Identifier: Apache-2.0 */
/* import.c: `bitdelta import`. */
#include "import.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "device.h"
#include "engine.h"
#include "output.h"

static const char help[] =
"Usage: bitdelta import --base BASE FINE [-o OUT.bdelta] [OPTIONS]\n"
"Keep the fine-tune FINE as a .bdelta file: what it changed of BASE, one bit per weight.\n"
"\n"
"BASE and FINE are directories with model.safetensors, or with shards and\n"
"model.safetensors.index.json, or entries of a Hugging Face cache.\n"
"\n"
"  --base BASE          the checkpoint that FINE was made from\n"
"  -o, --output FILE    the file to write; default: FINE's name with .bdelta, here\n"
"  --exact              keep all of FINE bit for bit, in more bytes; then nothing is left to distil\n"
"  --scale KIND         tensor, row or rank1 (row x column, the default)\n"
"  --attenuation F      factor on the closed-form scales (default: what fits each tensor, up to 1.4)\n"
"  --sign GLOB          also code tensors of these names by signs; may repeat\n"
"  --raw GLOB           keep tensors of these names exact; may repeat, the last match decides\n"
"  --keep GLOB          also keep files whose path in FINE matches, such as 'original' or 'onnx/*';\n"
"                       may repeat\n"
"  --omit GLOB          leave such files out; of both the last match decides\n"
"  --rename OLD=NEW     look for the tensors of FINE that begin with OLD under NEW in BASE, if only\n"
"                       the prefix differs; either may be empty; may repeat, the longest OLD decides\n"
"  --no-clobber         keep a FILE that is there: refuse to replace it\n"
"  --force              import although the configurations name different architectures, or most\n"
"                       weights have no counterpart in BASE\n"
"  --device DEVICE      where to distil: auto (the default), cpu, cuda or cuda:N\n"
"  --steps N            of distillation (default 200); 0: none, closed-form scales\n"
"  --calib FILE         text, JSON lines or token numbers to distil with\n"
"  --loss KIND          both (the default), mse of the logits, or kl\n"
"  --seed N             for the choice and the order of that text (default 0)\n"
"  --threads N          default: one per core\n"
"  --json               progress on stderr and result on stdout as JSON\n"
"  -q, --quiet          no progress, no table\n"
"  -h, --help           this text\n"
"\n"
"Tensors that are bit-identical to BASE's cost nothing; embeddings, output heads, norms, biases,\n"
"small tensors and quantised weights are kept exactly; the other weights become signs and\n"
"scales, which is lossy. With --exact nothing is.\n"
"The other files of FINE are kept exactly, subdirectories too, but for second copies of the weights,\n"
"the state of its training and what is larger than 64 MiB.\n"
"An import that fails or is interrupted leaves the old FILE or nothing. Once FILE is there its scales\n"
"are refined until its outputs are close to FINE's, on a GPU where there is one, or on the processor\n"
"within an hour (how long is said); interrupted then, FILE stays, with closed-form scales. What\n"
"others put in its place meanwhile is left alone. Permissions of a file that is replaced stay.\n";

struct arguments {
	struct bd_import_options options;
	struct bd_rule *rules;
	struct bd_file_rule *files;
	struct bd_rename *renames;
	const char *wrong_rename; /* the first that is not OLD=NEW */
	char *default_out;
	const char *scale, *attenuation; /* as given; NULL if not */
	struct engine_arguments engine;
	struct bdx_distill_options distill;
	struct bdx_distill_report report;
	struct bd_occupant imported; /* the file, before it is distilled */
	bool json, quiet;
};

/* A copy of the name of the link that FINE is, without slashes after it; NULL: it is none, or has the name of a cache
 * entry, which is no name of a model. */
static char *link_name(const char *fine)
{
	size_t length = strlen(fine);
	struct stat st;
	char *path, *slash, *name = NULL;

	while (length > 1 && fine[length - 1] == '/')
		length--;
	path = strndup(fine, length);
	if (path && lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
		slash = strrchr(path, '/');
		name = strdup(slash ? slash + 1 : path);
	}
	free(path);
	if (name && strncmp(name, "models--", strlen("models--")) != 0)
		return name;
	free(name);
	return NULL;
}

/* OUT for an import without -o: the last component of FINE ("org/name" of a cache entry: name). */
static char *default_output(const char *fine)
{
	struct bd_checkpoint *c;
	const char *slash, *name;
	char *out = NULL, *of_link = link_name(fine);

	if (bd_checkpoint_open(&c, fine, NULL) < 0) {
		free(of_link);
		return strdup("fine-tune.bdelta"); /* the import will say what is wrong with FINE */
	}
	slash = strrchr(c->label, '/');
	name = of_link ? of_link : slash ? slash + 1 : c->label;
	if (asprintf(&out, "%s.bdelta", name) < 0)
		out = NULL;
	bd_checkpoint_close(c);
	free(of_link);
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

static void take_keep(void *context, const char *glob)
{
	struct arguments *a = context;

	a->files[a->options.file_rule_count++] = (struct bd_file_rule){ true, glob };
}

static void take_omit(void *context, const char *glob)
{
	struct arguments *a = context;

	a->files[a->options.file_rule_count++] = (struct bd_file_rule){ false, glob };
}

static void take_raw(void *context, const char *glob)
{
	struct arguments *a = context;

	a->rules[a->options.rule_count++] = (struct bd_rule){ false, glob };
}

static void take_rename(void *context, const char *text)
{
	struct arguments *a = context;
	const char *equals = strchr(text, '=');
	char *from = equals ? strndup(text, (size_t)(equals - text)) : NULL;

	if (from && strcmp(from, equals + 1) != 0) {
		a->renames[a->options.rename_count++] = (struct bd_rename){ from, equals + 1 };
		return;
	}
	free(from);
	a->wrong_rename = a->wrong_rename ? a->wrong_rename : text;
}

/* An option that says something about signs or their scales, which an exact import has not; NULL: none was given. */
static const char *lossy_option(const struct arguments *a)
{
	for (size_t i = 0; i < a->options.rule_count; i++)
		if (a->rules[i].sign)
			return "--sign";
	return a->scale ? "--scale" : a->attenuation ? "--attenuation" : a->engine.calib ? "--calib" :
	       a->engine.loss ? "--loss" : a->engine.device ? "--device" :
	       a->engine.steps && strcmp(a->engine.steps, "0") != 0 ? "--steps" : NULL;
}

/* The values that are more than names, and what is missing. Returns the exit status. */
static int settle(const struct command *command, int argc, char **argv, struct arguments *a)
{
	struct bd_import_options *o = &a->options;
	int status;

	if (a->scale && !bd_scale_parse(a->scale, &o->scale))
		return command_usage(command, "--scale is tensor, row or rank1, not '%s'",
				     a->scale);
	if (a->wrong_rename)
		return command_usage(command, "--rename is OLD=NEW, two different prefixes of names, not '%s'",
				     a->wrong_rename);
	if (o->exact && lossy_option(a))
		return command_usage(command, "--exact keeps all bit for bit, so %s has nothing to say",
				     lossy_option(a));
	status = command_real(command, "--attenuation", a->attenuation, 1e-6, 1e6, &o->attenuation);
	if (status == EXIT_OK)
		status = engine_settle(command, &a->engine, 0, &a->distill);
	if (status != EXIT_OK)
		return status;
	o->threads = a->distill.threads;
	if (o->exact)
		a->distill.steps = 0;
	if (!o->base)
		return command_usage(command, "--base BASE is missing");
	if (argc - optind != 1)
		return command_usage(command, "one fine-tune is needed, %d given", argc - optind);
	o->fine = argv[optind];
	if (!o->out)
		o->out = a->default_out = default_output(o->fine);
	if (!o->out)
		return out_of_memory(command);
	a->distill.base = o->base;
	a->distill.fine = o->fine;
	a->distill.delta = a->distill.out = o->out;
	return EXIT_OK;
}

/* False as command_parse. */
static bool parse(const struct command *command, int argc, char **argv, struct arguments *a,
		  int *status)
{
	struct bd_import_options *o = &a->options;
	const struct command_option options[] = {
		{ "base", .value = &o->base },
		{ "output", 'o', .value = &o->out },
		{ "exact", .flag = &o->exact },
		{ "scale", .value = &a->scale },
		{ "attenuation", .value = &a->attenuation },
		{ "sign", .take = take_sign, .context = a },
		{ "raw", .take = take_raw, .context = a },
		{ "keep", .take = take_keep, .context = a },
		{ "omit", .take = take_omit, .context = a },
		{ "rename", .take = take_rename, .context = a },
		{ "no-clobber", .flag = &o->no_clobber },
		{ "force", .flag = &o->force },
		{ "device", .value = &a->engine.device },
		{ "steps", .value = &a->engine.steps },
		{ "calib", .value = &a->engine.calib },
		{ "loss", .value = &a->engine.loss },
		{ "seed", .value = &a->engine.seed },
		{ "threads", .value = &a->engine.threads },
		{ "json", .flag = &a->json },
		{ "quiet", 'q', .flag = &a->quiet },
		{ 0 },
	};

	o->scale = BD_SCALE_RANK1;
	bdx_distill_defaults(&a->distill);
	o->rules = a->rules = calloc((size_t)argc, sizeof(*a->rules));
	o->file_rules = a->files = calloc((size_t)argc, sizeof(*a->files));
	o->renames = a->renames = calloc((size_t)argc, sizeof(*a->renames));
	if (!a->rules || !a->files || !a->renames) {
		*status = out_of_memory(command);
		return false;
	}
	if (!command_parse(command, argc, argv, options, status))
		return false;
	*status = settle(command, argc, argv, a);
	return *status == EXIT_OK;
}

/* Refine the file that an import has just completed. It stays good whatever happens, so a failure counts
 * only where the user asked for what failed, or where somebody else took the file away. Returns the exit
 * status; other than EXIT_OK, there is no more to say. */
static int distill(const struct command *command, struct arguments *a)
{
	struct bdx_distill_options *o = &a->distill;
	bool asked = o->calib || (a->engine.device && strcmp(o->device, "auto") != 0);
	struct bd_error err = { 0 }, said;
	struct progress progress;
	int rc, status;

	engine_begin(&progress, &o->watch, "distilling", a->json, a->quiet);
	rc = bdx_distill(o, &a->report, &err);
	progress_end(&progress);
	if (rc == 0 && !a->report.done) {
		char note[sizeof(a->report.why) + 64];

		snprintf(note, sizeof(note), "not distilled, the scales are the closed form: %s",
			 a->report.why);
		o->watch.note(o->watch.context, note);
	}
	if (rc == 0)
		return EXIT_OK;
	if (!bd_output_still(&a->imported, o->out))
		return command_fail(command, &err);
	bd_error_set(&said, rc, "%.500s; %.400s is complete, with closed-form scales", err.text, o->out);
	status = command_fail(command, &said);
	if (rc == -EINTR)
		return status;
	snprintf(a->report.why, sizeof(a->report.why), "%.500s", err.text);
	return asked ? EXIT_FAILED : EXIT_OK;
}

static int json_report(const struct arguments *a, const struct bd_delta *delta, double seconds,
		       uint64_t memory, struct bd_error *err)
{
	struct json j;
	cJSON *o = json_begin(&j);
	int rc;

	json_string(&j, o, "output", a->options.out);
	rc = json_summary(&j, o, delta, err);
	if (rc < 0) {
		json_drop(&j);
		return rc;
	}
	if (a->distill.steps)
		engine_json_distillation(&j, json_object(&j, o, "distillation"), &a->report);
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
		rc = json_report(a, delta, seconds, memory, err);
	} else {
		print_plain(out);
		putchar('\n');
		rc = print_summary(delta, !a->report.done, err);
		engine_print_distillation(&a->report);
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
		rc = a.distill.steps ? bdx_device_check(a.distill.device, &err) : 0;
		if (rc == 0)
			rc = bd_import(&a.options, &err);
		seconds = progress_end(&progress);
		if (rc == 0 && a.distill.steps)
			rc = bd_output_note(&a.imported, a.options.out, &err);
		if (rc == 0 && a.distill.steps)
			status = distill(command, &a);
		if (rc == 0 && status == EXIT_OK)
			rc = report(&a, seconds + a.report.seconds_total, &err);
		if (rc < 0)
			status = command_fail(command, &err);
	}
	for (size_t i = 0; i < a.options.rename_count; i++)
		free((char *)a.renames[i].from);
	free(a.renames);
	free(a.files);
	free(a.rules);
	free(a.default_out);
	return status;
}

const struct command command_import = {
	"import", "keep a fine-tune as a .bdelta file", help, run,
};
