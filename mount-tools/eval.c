/* SPDX-License-Identifier: Apache-2.0 */
/* eval.c: `bitdelta eval`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "engine.h"
#include "evaluate.h"

static const char help[] =
"Usage: bitdelta eval X.bdelta --base BASE --fine FINE [OPTIONS]\n"
"Measure how close X.bdelta comes to FINE, beside how close BASE is.\n"
"\n"
"  --base BASE          the base checkpoint\n"
"  --fine FINE          the fine-tune that X.bdelta was made from\n"
"  --text FILE          text, JSON lines or token numbers; default: by FINE, and built in\n"
"  --length N           tokens a window (default 128)\n"
"  --windows N          of each text, however long that takes; default: as many as --seconds allow,\n"
"                       at most 256\n"
"  --seconds N          that it may take, about (default 60)\n"
"  --device DEVICE      auto (the default), cpu, cuda or cuda:N\n"
"  --threads N          default: one per core\n"
"  --json               progress on stderr and result on stdout as JSON\n"
"  -q, --quiet          no progress\n"
"  -h, --help           this text\n"
"\n"
"kl: how far the probabilities of the next token are from FINE's, 0 is the same (nats a token).\n"
"top-1: for how many tokens the likeliest next one is FINE's. mse: of the logits. perplexity: how\n"
"well the text is predicted, lower is better; FINE's own is the last line.\n";

struct arguments {
	struct bdx_evaluate_options options;
	const char *device, *length, *windows, *seconds, *threads;
	bool json, quiet;
};

/* Averages over all texts that both base and delta were held against. */
struct total {
	double base_kl, delta_kl, base_top1, delta_top1;
	uint64_t tokens, left_out; /* left out: for the base, which does not have some of them */
};

static struct total add_up(const struct bdx_evaluation *e)
{
	struct total t = { 0 };

	for (unsigned i = 0; i < e->count; i++) {
		const struct bdx_quality *base = &e->texts[i].base, *delta = &e->texts[i].delta;
		double tokens = (double)delta->tokens;

		t.left_out += delta->tokens - base->tokens;
		if (!base->tokens)
			continue;
		t.tokens += delta->tokens;
		t.base_kl += base->kl * tokens;
		t.delta_kl += delta->kl * tokens;
		t.base_top1 += base->top1 * tokens;
		t.delta_top1 += delta->top1 * tokens;
	}
	if (t.tokens) {
		t.base_kl /= (double)t.tokens;
		t.delta_kl /= (double)t.tokens;
		t.base_top1 /= (double)t.tokens;
		t.delta_top1 /= (double)t.tokens;
	}
	return t;
}

static void json_quality(struct json *j, cJSON *object, const char *name,
			 const struct bdx_quality *q)
{
	cJSON *o = json_object(j, object, name);

	json_number(j, o, "tokens", "%" PRIu64, q->tokens);
	engine_json_real(j, o, "kl", q->kl);
	engine_json_real(j, o, "top1", q->top1);
	engine_json_real(j, o, "mse", q->mse);
	engine_json_real(j, o, "perplexity", q->perplexity);
}

static int json_report(const struct arguments *a, const struct bdx_evaluation *e, double seconds,
		       struct bd_error *err)
{
	struct json j;
	cJSON *o = json_begin(&j), *texts;
	struct total total = add_up(e);

	json_string(&j, o, "file", a->options.delta);
	json_string(&j, o, "device", e->device);
	texts = json_array(&j, o, "texts");
	for (unsigned i = 0; i < e->count; i++) {
		const struct bdx_text_quality *t = &e->texts[i];
		cJSON *text = json_element(&j, texts), *fine;

		json_string(&j, text, "name", t->name);
		json_number(&j, text, "windows", "%" PRIu64, t->windows);
		json_number(&j, text, "tokens", "%" PRIu64, t->delta.tokens);
		json_quality(&j, text, "base", &t->base);
		json_quality(&j, text, "delta", &t->delta);
		fine = json_object(&j, text, "fine");
		engine_json_real(&j, fine, "perplexity", t->perplexity_fine);
	}
	if (total.base_kl > 0)
		engine_json_real(&j, o, "closed", 1 - total.delta_kl / total.base_kl);
	json_number(&j, o, "seconds", "%.3f", seconds);
	return json_print(&j, stdout, err);
}

static void print_quality(const char *name, const struct bdx_quality *q)
{
	if (!q->tokens) {
		printf("    %-9s  lacks tokens that are in all of it\n", name);
		return;
	}
	printf("    %-9s  %9.4f  %6.1f %%  %11.4g  %10.4g\n", name, q->kl, 100 * q->top1, q->mse,
	       q->perplexity);
}

static void print_report(const struct arguments *a, const struct bdx_evaluation *e, double seconds)
{
	struct total total = add_up(e);

	print_plain(a->options.delta);
	printf(", on ");
	print_plain(e->device);
	printf(", %.1f s\n", seconds);
	for (unsigned i = 0; i < e->count; i++) {
		const struct bdx_text_quality *t = &e->texts[i];

		printf("  ");
		print_plain(t->name);
		printf(", %" PRIu64 " tokens in %" PRIu64 " windows\n    %-9s  %9s  %8s  %11s  %10s\n",
		       t->delta.tokens, t->windows, "", "kl", "top-1", "mse", "perplexity");
		print_quality("base", &t->base);
		print_quality("delta", &t->delta);
		printf("    %-9s  %9s  %8s  %11s  %10.4g\n", "fine-tune", "", "", "",
		       t->perplexity_fine);
	}
	if (total.left_out)
		printf("The base does not have all of the fine-tune's tokens: it is held against\n"
		       "the windows without them, which leaves out %" PRIu64 " tokens.\n",
		       total.left_out);
	if (!total.tokens)
		return;
	if (total.base_kl <= 0) {
		printf("The base answers as the fine-tune does here: there is nothing to keep.\n");
		return;
	}
	if (total.delta_kl > total.base_kl) {
		printf("The delta is further from the fine-tune (kl %.4g) than the base itself (%.4g): it is of no\n"
		       "use for such text.\n", total.delta_kl, total.base_kl);
		return;
	}
	if (total.delta_kl == 0) { /* as of an exact one */
		printf("The delta answers just as the fine-tune does: nothing is lost when that is deleted, unless it is\n"
		       "itself what a mount or an export of the delta gave.\n");
		return;
	}
	printf("The delta closes %.1f %% of the distance (kl) from the base to the fine-tune, and\n"
	       "gives its likeliest next token for %.1f %% of all (the base: %.1f %%). The rest is\n"
	       "lost when the fine-tune is deleted%s.\n",
	       100 * (1 - total.delta_kl / total.base_kl), 100 * total.delta_top1,
	       100 * total.base_top1,
	       a->options.text ? "" : "; what it means for your own use, --text FILE can tell");
}

static int settle(const struct command *command, struct arguments *a, int argc)
{
	struct bdx_evaluate_options *o = &a->options;
	int status = engine_device(command, a->device, &o->device);

	if (status == EXIT_OK)
		status = engine_threads(command, a->threads, &o->threads);
	if (status == EXIT_OK)
		status = command_whole(command, "--length", a->length, 2, 1 << 20, &o->length);
	if (status == EXIT_OK)
		status = command_whole(command, "--windows", a->windows, 1, 1 << 20, &o->windows);
	if (a->windows)
		o->seconds = 0;
	if (status == EXIT_OK)
		status = command_real(command, "--seconds", a->seconds, 1, 1e9, &o->seconds);
	if (status == EXIT_OK && (!o->base || !o->fine || argc - optind != 1))
		status = command_usage(command, "one .bdelta file, --base and --fine are needed");
	return status;
}

static int run(const struct command *command, int argc, char **argv)
{
	struct arguments a = { 0 };
	const struct command_option options[] = {
		{ "base", .value = &a.options.base },
		{ "fine", .value = &a.options.fine },
		{ "text", .value = &a.options.text },
		{ "length", .value = &a.length },
		{ "windows", .value = &a.windows },
		{ "seconds", .value = &a.seconds },
		{ "device", .value = &a.device },
		{ "threads", .value = &a.threads },
		{ "json", .flag = &a.json },
		{ "quiet", 'q', .flag = &a.quiet },
		{ 0 },
	};
	struct bdx_evaluation result;
	struct bd_error err = { 0 };
	struct progress progress;
	double seconds;
	int status, rc;

	bdx_evaluate_defaults(&a.options);
	if (!command_parse(command, argc, argv, options, &status))
		return status;
	status = settle(command, &a, argc);
	if (status != EXIT_OK)
		return status;
	a.options.delta = argv[optind];
	engine_begin(&progress, &a.options.watch, "comparing", a.json, a.quiet);
	rc = bdx_evaluate(&a.options, &result, &err);
	seconds = progress_end(&progress);
	if (rc == 0 && a.json)
		rc = json_report(&a, &result, seconds, &err);
	else if (rc == 0)
		print_report(&a, &result, seconds);
	return rc < 0 ? command_fail(command, &err) : EXIT_OK;
}

const struct command command_eval = {
	"eval", "measure how close a .bdelta file is to its fine-tune", help, run,
};
