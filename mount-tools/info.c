/* SPDX-License-Identifier: Apache-2.0 */
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

static void json_tensor(struct json *j, cJSON *array, const struct bd_delta_file *file,
			const struct bd_entry *e)
{
	cJSON *o = json_element(j, array), *base;
	const struct bd_tensor of_base = { .dims = e->base_dims, .shape = e->base_shape };
	char shape[200];

	json_string(j, o, "name", e->tensor->name);
	json_string(j, o, "file", file->name);
	if (e->copy)
		json_bool(j, o, "copy", true);
	json_string(j, o, "dtype", bd_dtype_name(e->tensor->dtype));
	json_raw(j, o, "shape", bd_tensor_shape_text(e->tensor, shape, sizeof(shape)));
	json_string(j, o, "encoding", bd_encoding_name(e->encoding));
	json_number(j, o, "bytes", "%" PRIu64, e->tensor->size);
	json_number(j, o, "stored", "%" PRIu64, bd_summary_stored(e));
	if (e->encoding == BD_ROWS) {
		json_number(j, o, "shared", "%" PRIu64, e->shared);
		json_string(j, o, "head", bd_encoding_name(e->head));
	}
	if (e->planes) {
		json_number(j, o, "planes", "%u", e->planes);
		json_number(j, o, "rows", "%" PRIu64, e->rows);
		json_number(j, o, "cols", "%" PRIu64, e->cols);
	}
	if (e->planes && e->error >= 0)
		json_number(j, o, "error", "%.4g", e->error);
	if (bd_entry_has_base(e)) {
		base = json_object(j, o, "base");
		if (e->base_name)
			json_string(j, base, "name", e->base_name);
		json_string(j, base, "dtype", bd_dtype_name(e->base_dtype));
		json_raw(j, base, "shape", bd_tensor_shape_text(&of_base, shape, sizeof(shape)));
		json_string(j, base, "xxh128", e->base_xxh128);
	}
}

/* A file without tensors. */
static void json_file(struct json *j, cJSON *array, const struct bd_delta_file *file)
{
	cJSON *o = json_element(j, array);

	json_string(j, o, "name", file->name);
	json_number(j, o, "bytes", "%" PRIu64, file->size);
	json_number(j, o, "stored", "%" PRIu64, file->stored->size);
}

static int json_delta(const struct bd_delta *d, bool tensors, struct bd_error *err)
{
	struct json j;
	cJSON *o = json_begin(&j), *part;
	int rc;

	json_string(&j, o, "file", d->file->path);
	json_string(&j, o, "name", d->name);
	json_number(&j, o, "version", "1");
	json_string(&j, o, "producer", d->producer ? d->producer : "");
	part = json_object(&j, o, "base");
	json_string(&j, part, "label", d->base_label);
	if (d->base_revision)
		json_string(&j, part, "revision", d->base_revision);
	if (d->base_path)
		json_string(&j, part, "path", d->base_path);
	if (d->base_hub)
		json_string(&j, part, "hub", d->base_hub);
	json_string(&j, part, "digest", d->base_digest);
	if (d->scale_kind) {
		part = json_object(&j, o, "import");
		json_string(&j, part, "scale", d->scale_kind);
		json_number(&j, part, "attenuation", "%.9g", d->attenuation);
		json_bool(&j, part, "distilled", d->distilled);
	}
	rc = json_summary(&j, o, d, err);
	if (rc < 0) {
		json_drop(&j);
		return rc;
	}
	if (tensors) {
		part = json_array(&j, o, "tensors");
		for (size_t f = 0; f < d->file_count; f++)
			for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++)
				json_tensor(&j, part, &d->files[f], &d->files[f].entries[i]);
		part = json_array(&j, o, "files");
		for (size_t f = 0; f < d->file_count; f++)
			if (!d->files[f].st)
				json_file(&j, part, &d->files[f]);
	}
	return json_print(&j, stdout, err);
}

static void print_tensor(const struct bd_entry *e)
{
	char shape[200], a[32], b[32];

	printf("  %-5s %-4s %-16s %10s -> %10s", bd_encoding_name(e->encoding),
	       bd_dtype_name(e->tensor->dtype), bd_tensor_shape_text(e->tensor, shape, sizeof(shape)),
	       format_bytes(e->tensor->size, a), format_bytes(bd_summary_stored(e), b));
	if (e->planes && e->error >= 0)
		printf("  error %.3f", e->error);
	else
		printf("  %11s", "");
	printf("  %s%s%s%s\n", e->tensor->name, e->base_name ? ", in the base " : "",
	       e->base_name ? e->base_name : "", e->copy ? ", a copy that does not count" : "");
}

static void print_file(const struct bd_delta_file *file)
{
	char a[32], b[32];

	printf("  %-26s %10s -> %10s  %11s  %s\n", "file", format_bytes(file->size, a),
	       format_bytes(file->stored->size, b), "", file->name);
}

static int print_delta(const struct bd_delta *d, bool tensors, struct bd_error *err)
{
	print_plain(d->file->path);
	printf("\n  base   %s%s%s, identity %s\n", d->base_label,
	       d->base_revision ? " at " : "", d->base_revision ? d->base_revision : "",
	       d->base_digest);
	if (d->base_path)
		printf("  from   %s\n", d->base_path);
	if (d->base_hub)
		printf("  hub    %s, by what the fine-tune says\n", d->base_hub);
	if (d->scale_kind)
		printf("  scales %s, %s, attenuation %g\n", d->scale_kind,
		       d->distilled ? "distilled" : "closed form", d->attenuation);
	for (size_t f = 0; tensors && f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++)
			print_tensor(&d->files[f].entries[i]);
	for (size_t f = 0; tensors && f < d->file_count; f++)
		if (!d->files[f].st)
			print_file(&d->files[f]);
	return print_summary(d, true, err);
}

static int run(const struct command *command, int argc, char **argv)
{
	bool tensors = false, json = false;
	const struct command_option options[] = {
		{ "tensors", .flag = &tensors },
		{ "json", .flag = &json },
		{ 0 },
	};
	int status = EXIT_OK;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (argc - optind < 1)
		return command_usage(command, "a .bdelta file is needed");
	for (int i = optind; i < argc; i++) {
		struct bd_error err = { 0 };
		struct bd_delta *delta = NULL;
		int rc = bd_delta_open(&delta, argv[i], &err);

		if (rc == 0)
			rc = json ? json_delta(delta, tensors, &err) :
				    print_delta(delta, tensors, &err);
		if (rc < 0)
			status = command_fail(command, &err);
		bd_delta_close(delta);
	}
	return status;
}

const struct command command_info = {
	"info", "show what a .bdelta file holds", help, run,
};
