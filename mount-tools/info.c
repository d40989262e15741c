/* info.c: `bitdelta info`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "cli.h"
#include "summary.h"

static const char help[] =
"Usage: bitdelta info X.bdelta... [--tensors] [--json]\n"
"Show what a .bdelta file holds: its base, encodings, sizes, and how much was lost.\n"
"\n"
"  --tensors            a line per tensor\n"
"  --json               one JSON object per file\n"
"  -h, --help           this text\n"
"\n"
"The error of the weights coded by signs is ||kept - fine|| / ||fine - base||, measured at import\n"
"on up to 128 rows of each tensor: 0 is exact, 1 is as far from the fine-tune as the base. It says\n"
"how far the weights are off, not the outputs: the default attenuation trades the one for the other.\n";

static const struct option long_options[] = {
	{ "tensors", no_argument, NULL, 't' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

static void print_base_shape(const struct bd_entry *e, char *buf, size_t capacity)
{
	struct bd_tensor base = { .dims = e->base_dims };

	for (unsigned d = 0; d < e->base_dims; d++)
		base.shape[d] = e->base_shape[d];
	bd_tensor_shape_text(&base, buf, capacity);
}

static void print_tensor_json(const struct bd_delta_file *file, const struct bd_entry *e)
{
	char shape[200];

	printf("{\"name\":");
	print_json_string(e->tensor->name);
	printf(",\"file\":");
	print_json_string(file->name);
	printf(",\"dtype\":\"%s\",\"shape\":%s,\"encoding\":\"%s\",\"bytes\":%" PRIu64
	       ",\"stored\":%" PRIu64, bd_dtype_name(e->tensor->dtype),
	       bd_tensor_shape_text(e->tensor, shape, sizeof(shape)), bd_encoding_name(e->encoding),
	       e->tensor->size, bd_summary_stored(e));
	if (e->encoding == BD_ROWS)
		printf(",\"shared\":%" PRIu64 ",\"head\":\"%s\"", e->shared, bd_encoding_name(e->head));
	if (e->planes)
		printf(",\"planes\":%u,\"rows\":%" PRIu64 ",\"cols\":%" PRIu64, e->planes, e->rows,
		       e->cols);
	if (e->planes && e->error >= 0)
		printf(",\"error\":%.4g", e->error);
	if (e->encoding != BD_RAW) {
		print_base_shape(e, shape, sizeof(shape));
		printf(",\"base\":{\"dtype\":\"%s\",\"shape\":%s,\"xxh128\":\"%s\"}",
		       bd_dtype_name(e->base_dtype), shape, e->base_xxh128);
	}
	printf("}");
}

static void print_tensor(const struct bd_entry *e)
{
	char shape[200], a[32], b[32];

	printf("  %-4s %-4s %-16s %10s -> %10s", bd_encoding_name(e->encoding),
	       bd_dtype_name(e->tensor->dtype), bd_tensor_shape_text(e->tensor, shape, sizeof(shape)),
	       format_bytes(e->tensor->size, a), format_bytes(bd_summary_stored(e), b));
	if (e->planes && e->error >= 0)
		printf("  error %.3f", e->error);
	else
		printf("  %11s", "");
	printf("  %s\n", e->tensor->name);
}

static void print_tensors(const struct bd_delta *d, bool json)
{
	const char *comma = "";

	for (size_t f = 0; f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++) {
			if (json) {
				fputs(comma, stdout);
				comma = ",";
				print_tensor_json(&d->files[f], &d->files[f].entries[i]);
			} else {
				print_tensor(&d->files[f].entries[i]);
			}
		}
}

static int print_delta(const struct bd_delta *d, bool tensors, bool json, struct bd_error *err)
{
	int rc;

	if (json) {
		printf("{\"file\":");
		print_json_string(d->file->path);
		printf(",\"name\":");
		print_json_string(d->name);
		printf(",\"version\":1,\"producer\":");
		print_json_string(d->producer ? d->producer : "");
		printf(",\"base\":{\"label\":");
		print_json_string(d->base_label);
		if (d->base_revision) {
			printf(",\"revision\":");
			print_json_string(d->base_revision);
		}
		printf(",\"digest\":\"%s\"},", d->base_digest);
		if (d->scale_kind) {
			printf("\"import\":{\"scale\":");
			print_json_string(d->scale_kind);
			printf(",\"attenuation\":%.9g,\"distilled\":%s},", d->attenuation,
			       d->distilled ? "true" : "false");
		}
		rc = print_summary(d, true, err);
		if (tensors) {
			printf(",\"tensors\":[");
			print_tensors(d, true);
			printf("]");
		}
		printf("}\n");
		return rc;
	}
	printf("%s\n  base   %s%s%s, identity %s\n", d->file->path, d->base_label,
	       d->base_revision ? " at " : "", d->base_revision ? d->base_revision : "",
	       d->base_digest);
	if (d->scale_kind)
		printf("  scales %s, %s, attenuation %g\n", d->scale_kind,
		       d->distilled ? "distilled" : "closed form", d->attenuation);
	if (tensors)
		print_tensors(d, false);
	return print_summary(d, false, err);
}

static int run(const struct command *command, int argc, char **argv)
{
	bool tensors = false, json = false;
	int c, status = EXIT_OK;

	if (command_wants_help(command, argc, argv))
		return EXIT_OK;
	optind = opterr = 0;
	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (c == 't')
			tensors = true;
		else if (c == 'j')
			json = true;
		else
			return command_usage(command, "unknown option: '%s'", argv[optind - 1]);
	}
	if (argc - optind < 1)
		return command_usage(command, "a .bdelta file is needed");
	for (int i = optind; i < argc; i++) {
		struct bd_error err = { 0 };
		struct bd_delta *delta = NULL;
		int rc = bd_delta_open(&delta, argv[i], &err);

		if (rc == 0)
			rc = print_delta(delta, tensors, json, &err);
		if (rc < 0)
			status = command_fail(command, &err);
		bd_delta_close(delta);
	}
	return status;
}

const struct command command_info = {
	"info", "show what a .bdelta file holds", help, run,
};
