/* SPDX-License-Identifier: Apache-2.0 */
/* generate.c: `bitdelta generate`. */
#include <getopt.h>
#include <stdio.h>
#include <unistd.h>

#include "engine.h"
#include "generate.h"

static const char help[] =
"Usage: bitdelta generate MODEL [--base BASE] [-p TEXT] [OPTIONS]\n"
"Print text that a model writes. MODEL is a directory, mounted or not, or a .bdelta file.\n"
"\n"
"  --base BASE          the base checkpoint of a .bdelta file\n"
"  -p, --prompt TEXT    what the text is to continue; default: from the beginning\n"
"  -n, --tokens N       at most so many (default 200); the model may end earlier\n"
"  --temperature T      0: always the likeliest token; 1 (the default): as the model says\n"
"  --seed N             another text (default 0)\n"
"  --device DEVICE      auto (the default), cpu, cuda or cuda:N\n"
"  --threads N          default: one per core\n"
"  -h, --help           this text\n"
"\n"
"This is for a look at a model, not for serving it: it is not fast.\n";

struct arguments {
	struct bdx_generate_options options;
	const char *device, *tokens, *temperature, *seed, *threads;
};

struct output {
	bool terminal;
	char last; /* byte that was printed; 0: none */
};

static void print(void *context, const char *text, size_t size)
{
	struct output *o = context;

	if (size == 0)
		return;
	if (o->terminal)
		print_lines(text, size);
	else
		fwrite(text, 1, size, stdout);
	o->last = text[size - 1];
	fflush(stdout);
}

static int settle(const struct command *command, struct arguments *a, int argc, char **argv)
{
	struct bdx_generate_options *o = &a->options;
	int status = engine_device(command, a->device, &o->device);

	if (status == EXIT_OK)
		status = engine_threads(command, a->threads, &o->threads);
	if (status == EXIT_OK)
		status = command_whole(command, "--tokens", a->tokens, 1, 1 << 20, &o->tokens);
	if (status == EXIT_OK)
		status = command_real(command, "--temperature", a->temperature, 0, 100, &o->temperature);
	if (status == EXIT_OK)
		status = command_whole(command, "--seed", a->seed, 0, UINT64_MAX, &o->seed);
	if (status == EXIT_OK && argc - optind != 1)
		status = command_usage(command, "one model is needed, %d given", argc - optind);
	if (status == EXIT_OK && !o->base && bdx_generate_is_delta(argv[optind]))
		status = command_usage(command, "%s is a delta: --base BASE is missing", argv[optind]);
	return status;
}

static int run(const struct command *command, int argc, char **argv)
{
	struct arguments a = { 0 };
	const struct command_option options[] = {
		{ "base", .value = &a.options.base },
		{ "prompt", 'p', .value = &a.options.prompt, .may_be_empty = true },
		{ "tokens", 'n', .value = &a.tokens },
		{ "temperature", .value = &a.temperature },
		{ "seed", .value = &a.seed },
		{ "device", .value = &a.device },
		{ "threads", .value = &a.threads },
		{ 0 },
	};
	struct output output = { .terminal = isatty(STDOUT_FILENO) };
	struct bd_error err = { 0 };
	struct progress progress;
	int status, rc;

	bdx_generate_defaults(&a.options);
	if (!command_parse(command, argc, argv, options, &status))
		return status;
	status = settle(command, &a, argc, argv);
	if (status != EXIT_OK)
		return status;
	a.options.model = argv[optind];
	a.options.write = print;
	a.options.write_context = &output;
	engine_begin(&progress, &a.options.watch, "generating", false, false);
	a.options.watch.progress = NULL; /* the text shows it */
	rc = bdx_generate(&a.options, &err);
	if (output.last && output.last != '\n')
		putchar('\n');
	fflush(stdout);
	return rc < 0 ? command_fail(command, &err) : EXIT_OK;
}

const struct command command_generate = {
	"generate", "print text that a model or a .bdelta file writes", help, run,
};
