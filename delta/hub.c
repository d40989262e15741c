/* SPDX-License-Identifier: Apache-2.0 */
/* hub.c: resolving a model's path, see hub.h. */
#include "hub.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "buffer.h"
#include "file.h"
#include "glob.h"
#include "paths.h"

static const char entry_prefix[] = "models--";

static int no_memory(struct bd_error *err, const char *path)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
}

static const char *last_component(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash && slash[1] ? slash + 1 : path;
}

static bool is_directory(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool bd_hub_is_name(const char *path)
{
	const char *slash = strchr(path, '/');

	if (!slash || !slash[1] || strchr(slash + 1, '/') || !isalnum((unsigned char)*path))
		return false;
	for (const char *p = path; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("/-_.", *p))
			return false;
	return true;
}

static int explain_missing(const char *path, struct bd_error *err)
{
	const char *slash = strchr(path, '/');

	if (!bd_hub_is_name(path))
		return bd_error_set(err, -ENOENT, "%s: no such directory", path);
	return bd_error_set(err, -ENOENT, "%s: no such directory; nothing is downloaded here, so "
			    "give a local path: after a download with the Hugging Face tools that "
			    "is ~/.cache/huggingface/hub/%s%.*s--%s", path, entry_prefix,
			    (int)(slash - path), path, slash + 1);
}

static int explain_file(const char *path, struct bd_error *err)
{
	if (bd_glob_ends(path, ".gguf"))
		return bd_error_set(err, -EINVAL, "%s: GGUF files are not supported as a source; "
				    "give the directory of the safetensors checkpoint that it was "
				    "made from", path);
	return bd_error_set(err, -EINVAL, "%s: is a file; give the directory that holds the model",
			    path);
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* The only snapshot of the cache entry at `entry`. */
static int sole_snapshot(const char *entry, const char *snapshots, char **revision,
			 struct bd_error *err)
{
	struct bd_buffer names = { 0 };
	struct dirent **list = NULL;
	int rc = 0, n = scandir(snapshots, &list, is_visible, by_name);

	if (n < 0) {
		rc = -errno;
		return bd_error_set(err, rc, "%s: cannot be listed: %s", snapshots, strerror(-rc));
	}
	if (n == 0) {
		rc = bd_error_set(err, -EINVAL, "%s: a cache entry without snapshots; download the "
				  "model", entry);
	} else if (n == 1) {
		*revision = strdup(list[0]->d_name);
		if (!*revision)
			rc = no_memory(err, entry);
	} else {
		for (int i = 0; i < n; i++)
			bd_buffer_printf(&names, "%s%s", i ? ", " : "", list[i]->d_name);
		rc = bd_error_set(err, -EINVAL, "%s: a cache entry with %d snapshots and no "
				  "refs/main; give one of them: %s/ followed by %s", entry, n,
				  snapshots, names.failed ? "its name" : names.data);
	}
	for (int i = 0; i < n; i++)
		free(list[i]);
	free(list);
	bd_buffer_free(&names);
	return rc;
}

/* The commit that refs/main of a cache entry names, or its only snapshot. */
static int find_revision(const char *entry, const char *snapshots, char **revision,
			 struct bd_error *err)
{
	char *ref = NULL, *snapshot = NULL, *text = NULL;
	struct stat st;
	size_t size;
	int rc;

	if (asprintf(&ref, "%s/refs/main", entry) < 0) {
		ref = NULL;
		rc = no_memory(err, entry);
		goto out;
	}
	if (stat(ref, &st) < 0 && errno == ENOENT) {
		rc = sole_snapshot(entry, snapshots, revision, err);
		goto out;
	}
	rc = bd_file_slurp(ref, 4096, &text, &size, err);
	if (rc)
		goto out;
	while (size && isspace((unsigned char)text[size - 1]))
		text[--size] = '\0';
	if (!bd_name_is_component(text, size)) {
		rc = bd_error_set(err, -EINVAL, "%s: does not name a snapshot", ref);
		goto out;
	}
	if (asprintf(&snapshot, "%s/%s", snapshots, text) < 0) {
		snapshot = NULL;
		rc = no_memory(err, entry);
		goto out;
	}
	if (!is_directory(snapshot)) {
		rc = bd_error_set(err, -EINVAL, "%s: names snapshot %s, which is not there; "
				  "download the model again or give a snapshot directory", ref,
				  text);
		goto out;
	}
	*revision = text;
	text = NULL;
out:
	free(text);
	free(snapshot);
	free(ref);
	return rc;
}

/* "models--org--name" as "org/name". */
static char *label_of_entry(const char *entry)
{
	const char *name = last_component(entry) + strlen(entry_prefix);
	const char *dashes = strstr(name, "--");
	char *label;

	if (!dashes)
		return strdup(name);
	if (asprintf(&label, "%.*s/%s", (int)(dashes - name), name, dashes + 2) < 0)
		return NULL;
	return label;
}

/* A snapshot directory by its path: cuts ".../models--org--name/snapshots/COMMIT" in place, so that
 * only the cache entry is left, and returns COMMIT; NULL and nothing is changed where PATH has
 * another form. */
static char *cut_snapshot(char *path)
{
	char *revision = strrchr(path, '/'), *snapshots;

	if (!revision || revision == path)
		return NULL;
	*revision = '\0';
	snapshots = strrchr(path, '/');
	if (snapshots && strcmp(snapshots, "/snapshots") == 0) {
		*snapshots = '\0';
		if (strncmp(last_component(path), entry_prefix, strlen(entry_prefix)) == 0)
			return revision + 1;
		*snapshots = '/';
	}
	*revision = '/';
	return NULL;
}

int bd_hub_resolve(struct bd_hub_place *place, const char *path, struct bd_error *err)
{
	char *real, *snapshots = NULL, *revision;
	int rc = 0;

	*place = (struct bd_hub_place){ 0 };
	real = realpath(path, NULL);
	if (!real) {
		rc = -errno;
		if (rc == -ENOENT || rc == -ENOTDIR)
			return explain_missing(path, err);
		return bd_error_set(err, rc, "%s: cannot be found: %s", path, strerror(-rc));
	}
	if (!is_directory(real)) {
		rc = explain_file(path, err);
		goto out;
	}
	if (asprintf(&snapshots, "%s/snapshots", real) < 0) {
		snapshots = NULL;
		rc = no_memory(err, path);
		goto out;
	}
	if (strncmp(last_component(real), entry_prefix, strlen(entry_prefix)) == 0 &&
	    is_directory(snapshots)) {
		rc = find_revision(real, snapshots, &place->revision, err);
		if (rc)
			goto out;
		place->label = label_of_entry(real);
		if (asprintf(&place->directory, "%s/%s", snapshots, place->revision) < 0)
			place->directory = NULL;
	} else {
		place->directory = strdup(real);
		revision = cut_snapshot(real);
		place->revision = revision ? strdup(revision) : NULL;
		place->label = revision ? label_of_entry(real) : strdup(last_component(real));
		if (revision && !place->revision)
			rc = no_memory(err, path);
	}
	if (!place->directory || !place->label)
		rc = no_memory(err, path);
out:
	if (rc)
		bd_hub_place_free(place);
	free(snapshots);
	free(real);
	return rc;
}

void bd_hub_place_free(struct bd_hub_place *place)
{
	free(place->directory);
	free(place->label);
	free(place->revision);
	*place = (struct bd_hub_place){ 0 };
}
