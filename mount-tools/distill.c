/* SPDX-License-Identifier: Apache-2.0 */
/* distill.c: `bitdelta distill`. */
#include "distill.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine.h"
#include "refine.h"

static const char help[] =
"Usage: bitdelta distill X.bdelta --base BASE --fine FINE [OPTIONS]\n"
"Refine the scales of X.bdelta until its outputs are close to those of FINE, as import does.\n"
"\n"
"  --base BASE          the base checkpoint\n"
"  --fine FINE          the fine-tune that X.bdelta was made from\n"
"  -o, --output FILE    the file to write; default: X.bdelta, which is replaced when all is done\n"
"  --device DEVICE      auto (the default), cpu, cuda or cuda:N\n"
"  --steps N            default 200\n"
"  --calib FILE         text, JSON lines or token numbers; default: half written by FINE, the\n"
"                       rest by BASE and built in\n"
"  --loss KIND          both (the default), mse of the logits, or kl\n"
"  --seed N             for the choice and the order of the text (default 0)\n"
"  --batch N            sequences a step (default 4)\n"
"  --length N           tokens a sequence (default 128)\n"
"  --rate F             size of the first steps, relative to the scales\n"
"  --threads N          default: one per core\n"
"  --json               progress on stderr and result on stdout as JSON\n"
"  -q, --quiet          no progress, no result line\n"
"  -h, --help           this text\n"
"\n"
"The outputs are compared on text that is held out, before and after, and the best scales are kept:\n"
"nothing becomes worse. Whatever fails leaves X.bdelta as it was. Exit status 1 also where there was\n"
"nothing to be improved, and where another file came in its place meanwhile, which stays: the refined\n"
"one is then X.bdelta.new.\n";

struct arguments {
	struct engine_arguments engine;
	struct bdx_distill_options options;
	char *target; /* the file that X.bdelta is, behind symbolic links */
	bool json, quiet;
};

static int report(const struct arguments *a, const struct bdx_distill_report *r,
		  struct bd_error *err)
{
	struct json j;
	cJSON *o;

	if (a->json) {
		o = json_begin(&j);
		json_string(&j, o, "output", a->options.out);
		engine_json_distillation(&j, o, r);
		return json_print(&j, stdout, err);
	}
	if (!a->quiet && r->done) {
		print_plain(a->options.out);
		putchar('\n');
		engine_print_distillation(r);
	}
	return 0;
}

/* Where the result goes, found out before the work. */
static int settle_output(struct arguments *a, struct bd_error *err)
{
	struct bdx_distill_options *o = &a->options;

	/* Replacing X.bdelta must not replace a link to it. */
	if (!o->out)
		o->out = a->target = realpath(o->delta, NULL);
	if (!o->out)
		return bd_error_set(err, -errno, "%s: %m", o->delta);
	return bd_refine_check(o->out, err);
}

static int distill(const struct command *command, struct arguments *a)
{
	struct bdx_distill_report r = { 0 };
	struct bd_error err = { 0 };
	struct progress progress;
	int rc = settle_output(a, &err);

	if (rc < 0)
		return command_fail(command, &err);
	engine_begin(&progress, &a->options.watch, "distilling", a->json, a->quiet);
	rc = bdx_distill(&a->options, &r, &err);
	progress_end(&progress);
	if (rc == 0)
		rc = report(a, &r, &err);
	if (rc == 0 && !r.done)
		rc = bd_error_set(&err, -ENOTSUP, "%s: not refined: %s", a->options.delta, r.why);
	return rc < 0 ? command_fail(command, &err) : EXIT_OK;
}

static int run(const struct command *command, int argc, char **argv)
{
	struct arguments a = { 0 };
	const struct command_option options[] = {
		{ "base", .value = &a.options.base },
		{ "fine", .value = &a.options.fine },
		{ "output", 'o', .value = &a.options.out },
		{ "device", .value = &a.engine.device },
		{ "steps", .value = &a.engine.steps },
		{ "calib", .value = &a.engine.calib },
		{ "loss", .value = &a.engine.loss },
		{ "seed", .value = &a.engine.seed },
		{ "batch", .value = &a.engine.batch },
		{ "length", .value = &a.engine.length },
		{ "rate", .value = &a.engine.rate },
		{ "threads", .value = &a.engine.threads },
		{ "json", .flag = &a.json },
		{ "quiet", 'q', .flag = &a.quiet },
		{ 0 },
	};
	int status;

	bdx_distill_defaults(&a.options);
	if (!command_parse(command, argc, argv, options, &status))
		return status;
	status = engine_settle(command, &a.engine, 1, &a.options);
	if (status != EXIT_OK)
		return status;
	if (!a.options.base || !a.options.fine || argc - optind != 1)
		return command_usage(command, "one .bdelta file, --base and --fine are needed");
	a.options.delta = argv[optind];
	status = distill(command, &a);
	free(a.target);
	return status;
}

const struct command command_distill = {
	"distill", "refine the scales of a .bdelta file", help, run,
};
