/* SPDX-License-Identifier: Apache-2.0 */
/* df.c: `bitdelta df`. */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"
#include "file.h"
#include "mounts.h"
#include "sidecars.h"
#include "summary.h"

static const char help[] =
"Usage: bitdelta df [MOUNTPOINT|DIRECTORY|X.bdelta...] [--base BASE]... [--json]\n"
"Show what fine-tunes take as deltas and would take as plain copies: those of all mounts, or those\n"
"of the mounts, directories of .bdelta files and .bdelta files that are named.\n"
"\n"
"  --base BASE          count this base too (may be repeated); a mount's bases always count\n"
"  --json               one JSON object\n"
"  -h, --help           this text\n"
"\n"
"A base is counted once, however many fine-tunes it has, and so is a delta that is named twice.\n"
"Exit status 0: all were read; 1: some could not be; 2: wrong usage.\n";

/* A model or a base. */
struct row {
	char *name, *path; /* owned; the file or directory that stores it */
	char *base;        /* of a model: the base's label; owned */
	char *mountpoint;  /* where it is shown, or NULL; owned */
	uint64_t shown, stored;
	size_t number;     /* in the list */
	bool again;        /* a row before it has the same path */
};

struct rows {
	struct row *list;
	size_t count, capacity;
};

struct df {
	const struct command *command;
	struct rows models, bases;
	struct mounts mounts;
	char **base_paths;
	size_t base_count;
	int status;
};

static void fail(struct df *df, const struct bd_error *err)
{
	df->status = command_fail(df->command, err);
}

static void add(struct df *df, struct rows *rows, const struct row *from)
{
	struct bd_error err = { 0 };
	struct row *r = rows->list;

	if (rows->count == rows->capacity) {
		rows->capacity = rows->capacity ? 2 * rows->capacity : 64;
		r = reallocarray(r, rows->capacity, sizeof(*r));
	}
	if (r) {
		rows->list = r;
		r += rows->count;
		*r = (struct row){
			.name = strdup(from->name), .path = strdup(from->path),
			.base = from->base ? strdup(from->base) : NULL,
			.mountpoint = from->mountpoint ? strdup(from->mountpoint) : NULL,
			.shown = from->shown, .stored = from->stored, .number = rows->count,
		};
		rows->count++;
	}
	if (!r || !r->name || !r->path || (from->base && !r->base) ||
	    (from->mountpoint && !r->mountpoint)) {
		bd_error_set(&err, -ENOMEM, "out of memory");
		exit(command_fail(df->command, &err));
	}
}

static void clear(struct rows *rows)
{
	for (size_t i = 0; i < rows->count; i++) {
		free(rows->list[i].name);
		free(rows->list[i].path);
		free(rows->list[i].base);
		free(rows->list[i].mountpoint);
	}
	free(rows->list);
}

static void add_mount(struct df *df, struct mount_entry *e, bool named)
{
	struct bd_error err = { 0 };

	mounts_ask(&df->mounts, e);
	if (e->state != MOUNT_ALIVE) {
		if (named || mount_is_broken(e)) {
			bd_error_set(&err, -EIO, "%s: %s%s%s", e->info.point, e->problem,
				     *e->remedy ? "; " : "", e->remedy);
			fail(df, &err);
		}
		return;
	}
	for (size_t i = 0; i < e->stats->model_count; i++) {
		const struct mountstats_model *m = &e->stats->models[i];

		if (m->delta && m->stored_bytes > 0) /* else it is a base, which counts as such */
			add(df, &df->models, &(struct row){
				.name = m->name, .path = m->delta, .base = m->base,
				.mountpoint = e->info.point,
				.shown = m->virtual_bytes, .stored = m->stored_bytes,
			});
	}
	for (size_t i = 0; i < e->stats->base_count; i++) {
		const struct mountstats_base *b = &e->stats->bases[i];

		add(df, &df->bases, &(struct row){
			.name = b->name, .path = b->path, .mountpoint = e->info.point,
			.shown = b->bytes, .stored = b->bytes,
		});
	}
}

static void add_file(struct df *df, const char *path)
{
	struct bd_error err = { 0 };
	struct bd_delta *delta = NULL;
	struct bd_summary s;
	char *real;

	if (bd_delta_open(&delta, path, &err) < 0 || bd_summary_of(delta, &s, &err) < 0) {
		fail(df, &err);
	} else {
		real = realpath(path, NULL);
		add(df, &df->models, &(struct row){
			.name = delta->name, .path = real ? real : (char *)path,
			.base = delta->base_label, .shown = s.fine_bytes, .stored = s.delta_bytes,
		});
		free(real);
	}
	bd_delta_close(delta);
}

static int is_delta(const struct dirent *entry)
{
	const char *dot = strrchr(entry->d_name, '.');

	return dot && dot != entry->d_name && entry->d_name[0] != '.' && strcmp(dot, ".bdelta") == 0;
}

static void add_directory(struct df *df, const char *path)
{
	struct dirent **entries = NULL;
	struct bd_error err = { 0 };
	char *file;
	int n = scandir(path, &entries, is_delta, alphasort);

	if (n <= 0) {
		bd_error_set(&err, n < 0 ? -errno : -ENOENT, "%s: %s", path, n < 0 ? strerror(errno) :
			     "there are no .bdelta files in it, and no mount of bitdelta is there");
		fail(df, &err);
	}
	for (int i = 0; i < n; i++) {
		if (asprintf(&file, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/",
			     entries[i]->d_name) >= 0) {
			add_file(df, file);
			free(file);
		}
		free(entries[i]);
	}
	free(entries);
}

static void add_argument(struct df *df, const char *path)
{
	struct bd_error err = { 0 };
	struct mount_entry *e = mounts_find(&df->mounts, path, &err);
	struct stat st;

	if (e)
		add_mount(df, e, true);
	else if (err.code == -ETIMEDOUT)
		fail(df, &err);
	else if (*path && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		add_directory(df, path);
	else
		add_file(df, path);
}

static void add_base(struct df *df, const char *path)
{
	struct bd_checkpoint *c = NULL;
	struct bd_sidecars sidecars = { 0 };
	struct bd_error err = { 0 };
	struct row row = { 0 };
	struct stat st;
	char *file, *real;

	if (bd_checkpoint_open(&c, path, &err) < 0 || bd_sidecars_list(&sidecars, c, NULL, 0, &err) < 0) {
		bd_checkpoint_close(c);
		fail(df, &err);
		return;
	}
	for (size_t i = 0; i < c->shard_count; i++)
		row.shown += c->shards[i].file->size;
	for (size_t i = 0; i < sidecars.count; i++) {
		if (asprintf(&file, "%s/%s", c->path, sidecars.paths[i]) < 0)
			continue;
		if (stat(file, &st) == 0)
			row.shown += (uint64_t)st.st_size;
		free(file);
	}
	bd_sidecars_free(&sidecars);
	real = realpath(c->path, NULL);
	row.stored = row.shown;
	row.name = c->label;
	row.path = real ? real : c->path;
	add(df, &df->bases, &row);
	free(real);
	bd_checkpoint_close(c);
}

static int by_path(const void *a, const void *b)
{
	const struct row *x = *(const struct row *const *)a, *y = *(const struct row *const *)b;
	int order = strcmp(x->path, y->path);

	return order ? order : x->number < y->number ? -1 : 1;
}

/* Mark what is there again, and sum up the rest. */
static bool sum(struct rows *rows, struct row *total)
{
	struct row **sorted = calloc(rows->count + 1, sizeof(*sorted));

	if (!sorted)
		return false;
	for (size_t i = 0; i < rows->count; i++)
		sorted[i] = &rows->list[i];
	qsort(sorted, rows->count, sizeof(*sorted), by_path);
	for (size_t i = 0; i < rows->count; i++) {
		sorted[i]->again = i > 0 && strcmp(sorted[i]->path, sorted[i - 1]->path) == 0;
		if (sorted[i]->again)
			continue;
		total->shown += sorted[i]->shown;
		total->stored += sorted[i]->stored;
		total->number++;
	}
	free(sorted);
	return true;
}

static double ratio(uint64_t shown, uint64_t stored)
{
	return stored ? (double)shown / (double)stored : 0;
}

static void print_row(const struct row *r)
{
	char a[32], b[32];

	printf("%10s %10s %7.2f  ", format_bytes(r->shown, a), format_bytes(r->stored, b),
	       ratio(r->shown, r->stored));
}

static void print_all(const struct df *df, const struct row *models, const struct row *bases)
{
	uint64_t plain = models->shown + bases->stored, kept = models->stored + bases->stored;
	char a[32], b[32];

	if (df->models.count + df->bases.count == 0) {
		if (df->status == EXIT_OK)
			printf("nothing is mounted, or nothing in it; .bdelta files and directories of "
			       "them may be named\n");
		return;
	}
	printf("%10s %10s %7s  %s\n", "as a copy", "stored", "ratio", "model");
	for (size_t i = 0; i < df->models.count; i++) {
		if (df->models.list[i].again)
			continue;
		print_row(&df->models.list[i]);
		print_plain(df->models.list[i].name);
		putchar('\n');
	}
	print_row(models);
	printf("%zu model%s\n", models->number, models->number == 1 ? "" : "s");
	for (size_t i = 0; i < df->bases.count; i++) {
		if (df->bases.list[i].again)
			continue;
		print_row(&df->bases.list[i]);
		printf("base: ");
		print_plain(df->bases.list[i].name);
		putchar('\n');
	}
	if (bases->number == 0)
		printf("The base is not counted: add --base BASE.\n");
	else if (kept > 0)
		printf("All as plain copies: %s. As base%s and deltas: %s, %.1f %% of that.\n",
		       format_bytes(plain, a), bases->number == 1 ? "" : "s", format_bytes(kept, b),
		       100 * (double)kept / (double)(plain ? plain : 1));
}

static void json_row(struct json *j, cJSON *array, const struct row *r, bool model)
{
	cJSON *o = json_element(j, array);

	json_string(j, o, "name", r->name);
	json_string(j, o, "path", r->path);
	if (r->mountpoint)
		json_string(j, o, "mountpoint", r->mountpoint);
	if (model) {
		json_string(j, o, "base", r->base);
		json_number(j, o, "virtual_bytes", "%" PRIu64, r->shown);
		json_number(j, o, "stored_bytes", "%" PRIu64, r->stored);
		json_number(j, o, "ratio", "%.4f", ratio(r->shown, r->stored));
	} else {
		json_number(j, o, "bytes", "%" PRIu64, r->stored);
	}
}

static int print_json(const struct df *df, const struct row *models, const struct row *bases,
		      struct bd_error *err)
{
	struct json j;
	cJSON *o = json_begin(&j), *part;

	part = json_array(&j, o, "models");
	for (size_t i = 0; i < df->models.count; i++)
		if (!df->models.list[i].again)
			json_row(&j, part, &df->models.list[i], true);
	part = json_array(&j, o, "bases");
	for (size_t i = 0; i < df->bases.count; i++)
		if (!df->bases.list[i].again)
			json_row(&j, part, &df->bases.list[i], false);
	part = json_object(&j, o, "totals");
	json_number(&j, part, "models", "%zu", models->number);
	json_number(&j, part, "bases", "%zu", bases->number);
	json_number(&j, part, "virtual_bytes", "%" PRIu64, models->shown);
	json_number(&j, part, "stored_bytes", "%" PRIu64, models->stored);
	json_number(&j, part, "base_bytes", "%" PRIu64, bases->stored);
	json_number(&j, part, "as_copies", "%" PRIu64, models->shown + bases->stored);
	json_number(&j, part, "as_deltas", "%" PRIu64, models->stored + bases->stored);
	return json_print(&j, stdout, err);
}

static void take_base(void *context, const char *value)
{
	struct df *df = context;

	df->base_paths[df->base_count++] = (char *)value;
}

static int run(const struct command *command, int argc, char **argv)
{
	struct df df = { .command = command, .status = EXIT_OK };
	struct row models = { 0 }, bases = { 0 };
	struct bd_error err = { 0 };
	bool json = false;
	const struct command_option options[] = {
		{ "base", .take = take_base, .context = &df },
		{ "json", .flag = &json },
		{ 0 },
	};
	int status = EXIT_OK;

	df.base_paths = calloc((size_t)argc + 1, sizeof(*df.base_paths)); /* there cannot be more */
	if (!df.base_paths) {
		bd_error_set(&err, -ENOMEM, "out of memory");
		return command_fail(command, &err);
	}
	if (!command_parse(command, argc, argv, options, &status)) {
		free(df.base_paths);
		return status;
	}
	if (mounts_list(&df.mounts, &err) < 0)
		fail(&df, &err); /* files can still be looked at */
	for (size_t i = 0; optind == argc && i < df.mounts.count; i++)
		add_mount(&df, &df.mounts.list[i], false);
	for (int i = optind; i < argc; i++)
		add_argument(&df, argv[i]);
	for (size_t i = 0; i < df.base_count; i++)
		add_base(&df, df.base_paths[i]);
	if (!sum(&df.models, &models) || !sum(&df.bases, &bases)) {
		bd_error_set(&err, -ENOMEM, "out of memory");
		fail(&df, &err);
	} else if (!json) {
		print_all(&df, &models, &bases);
	} else if (print_json(&df, &models, &bases, &err) < 0) {
		fail(&df, &err);
	}
	clear(&df.models);
	clear(&df.bases);
	mounts_free(&df.mounts);
	free(df.base_paths);
	return df.status;
}

const struct command command_df = {
	"df", "show what fine-tunes take, and would take as copies", help, run,
};
