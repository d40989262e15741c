/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.c: opening a model directory, see checkpoint.h. */
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hub.h"
#include "json.h"
#include "names.h"
#include "paths.h"
#include "utf8.h"

#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"
#define INDEX_MAX (256u << 20)

/* Files that hold weights, or pickled training state that nobody loads with a model. */
static const char *const weight_suffixes[] = {
	".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".ot",
	".npz",
};

/* What model.safetensors.index.json says. */
struct index {
	char *names;      /* of the tensors, one after the other with their NUL bytes */
	size_t names_size;
	struct bd_name_table *tensors;    /* name -> number of its shard */
	char **shards;    /* in order of appearance */
	size_t shard_count, shard_room;
	struct bd_name_table *shard_names; /* name -> number */
	double total_size; /* bytes of all tensors, as metadata says; 0: it does not say */
};

struct load {
	struct bd_checkpoint *c;
	struct dirent **entries; /* in order of name */
	int entry_count;
	bool indexed;            /* model.safetensors.index.json is used */
	struct index index;
	struct bd_error *err;
};

static int no_memory(const struct load *l)
{
	return bd_error_set(l->err, -ENOMEM, "%s: out of memory", l->c->path);
}

static bool ends_with(const char *name, const char *end)
{
	size_t length = strlen(name), tail = strlen(end);

	return length > tail && strcmp(name + length - tail, end) == 0;
}

static const char *weight_suffix(const char *name)
{
	for (size_t i = 0; i < sizeof(weight_suffixes) / sizeof(weight_suffixes[0]); i++)
		if (ends_with(name, weight_suffixes[i]))
			return weight_suffixes[i];
	return NULL;
}

/* The index of weights in several files: "WEIGHTS.index.json", "WEIGHTS.index.fp16.json". */
static bool is_weight_index(const char *name)
{
	const char *dot = strstr(name, ".index.");
	char weights[NAME_MAX + 1];

	if (!dot || !ends_with(name, ".json"))
		return false;
	snprintf(weights, sizeof(weights), "%.*s", (int)(dot - name), name);
	return weight_suffix(weights) != NULL;
}

static int entry_by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int entry_filter(const struct dirent *entry)
{
	return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* The first entry whose name ends, or begins, in a certain way; NULL where there is none. */
static const char *find_suffix(const struct load *l, const char *suffix)
{
	for (int i = 0; i < l->entry_count; i++)
		if (ends_with(l->entries[i]->d_name, suffix))
			return l->entries[i]->d_name;
	return NULL;
}

static const char *find_prefix(const struct load *l, const char *prefix)
{
	for (int i = 0; i < l->entry_count; i++)
		if (strncmp(l->entries[i]->d_name, prefix, strlen(prefix)) == 0)
			return l->entries[i]->d_name;
	return NULL;
}

static bool has_entry(const struct load *l, const char *name)
{
	for (int i = 0; i < l->entry_count; i++)
		if (strcmp(l->entries[i]->d_name, name) == 0)
			return true;
	return false;
}

/* Say what lies in a directory without a checkpoint, and what to do with it. */
static int explain_no_weights(const struct load *l)
{
	static const char *const pickled[] = { ".bin", ".pt", ".pth", ".ckpt" };
	const char *path = l->c->path, *found = find_prefix(l, "adapter_model.");

	if (has_entry(l, "adapter_config.json"))
		found = "adapter_config.json";
	if (found)
		return bd_error_set(l->err, -EINVAL, "%s: holds a LoRA adapter (%s); merge it into "
				    "its base first (peft: merge_and_unload, then save_pretrained) "
				    "and import the merged model", path, found);
	found = find_prefix(l, "models--");
	if (found)
		return bd_error_set(l->err, -EINVAL, "%s: is a Hugging Face cache; give one of its "
				    "entries, such as %s/%s", path, path, found);
	found = find_suffix(l, ".safetensors");
	if (found)
		return bd_error_set(l->err, -EINVAL, "%s: holds %s, but neither " SINGLE " nor "
				    INDEX "; the download may be incomplete, or the file has "
				    "another name than loaders expect", path, found);
	for (size_t i = 0; i < sizeof(pickled) / sizeof(pickled[0]); i++) {
		found = find_suffix(l, pickled[i]);
		if (found)
			return bd_error_set(l->err, -EINVAL, "%s: has weights only in pickled form "
					    "(%s); convert them to safetensors first (e.g. load "
					    "the model with transformers and save_pretrained(..., "
					    "safe_serialization=True))", path, found);
	}
	found = find_suffix(l, ".gguf");
	if (found)
		return bd_error_set(l->err, -EINVAL, "%s: holds GGUF weights (%s), which are not "
				    "supported as a source; give the directory of the safetensors "
				    "checkpoint that they were made from", path, found);
	for (int i = 0; i < l->entry_count; i++)
		if (weight_suffix(l->entries[i]->d_name))
			return bd_error_set(l->err, -EINVAL, "%s: has no safetensors weights, only "
					    "%s; convert them to safetensors first", path,
					    l->entries[i]->d_name);
	if (has_entry(l, "model_index.json"))
		return bd_error_set(l->err, -EINVAL, "%s: is a pipeline of several models; give "
				    "the directory of one of them", path);
	return bd_error_set(l->err, -EINVAL, "%s: holds neither " SINGLE " nor " INDEX, path);
}

/* Say why a file that must be there cannot be opened (-ENOENT). */
static int explain_absent(const struct load *l, const char *path)
{
	char target[PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target));

	if (n >= 0)
		return bd_error_set(l->err, -EINVAL, "%s: is a link to %.*s, which is not there; "
				    "download the model again", path, (int)n, target);
	return bd_error_set(l->err, -EINVAL, "%s: is missing, although " INDEX " lists it; the "
			    "download is not complete", path);
}

/* The number of a shard that the index names, adding it where it is new. */
static int index_shard(struct load *l, struct bd_json *j, const char *name, size_t length,
		       uint32_t *number)
{
	struct index *x = &l->index;

	if (bd_name_table_find(x->shard_names, name, number))
		return 0;
	if (!bd_name_is_component(name, length) || !ends_with(name, ".safetensors"))
		return bd_json_fail(j, "\"%s\" is no file name of a shard (one component that ends "
				    "in .safetensors)", name);
	if (x->shard_count == x->shard_room) {
		size_t room = x->shard_room ? x->shard_room * 2 : 64;
		char **shards = realloc(x->shards, room * sizeof(*shards));

		if (!shards)
			return no_memory(l);
		x->shards = shards;
		x->shard_room = room;
	}
	x->shards[x->shard_count] = strdup(name);
	if (!x->shards[x->shard_count])
		return no_memory(l);
	*number = (uint32_t)x->shard_count++;
	if (bd_name_table_add(x->shard_names, x->shards[*number], *number))
		return no_memory(l);
	return 0;
}

/* "weight_map": { tensor name: shard name, ... } */
static int read_weight_map(struct load *l, struct bd_json *j)
{
	struct index *x = &l->index;
	char shard[NAME_MAX + 1];
	int rc = bd_json_object(j);

	for (;;) {
		char *name = x->names + x->names_size;
		size_t length, shard_length;
		uint32_t number;

		if (rc == 0)
			rc = bd_json_member(j, name, BD_MAX_NAME + 1, &length);
		if (rc <= 0)
			return rc;
		if (length == 0 || !bd_utf8_is_plain(name, length))
			return bd_json_fail(j, "tensor name that is empty or has control "
					    "characters");
		rc = bd_json_string(j, shard, sizeof(shard), &shard_length);
		if (rc == 0)
			rc = index_shard(l, j, shard, shard_length, &number);
		if (rc)
			return rc;
		/* No name comes twice: bd_json_check saw to it. */
		if (bd_name_table_add(x->tensors, name, number))
			return no_memory(l);
		x->names_size += length + 1;
	}
}

/* The metadata of an index, of which only total_size has a meaning. */
static int read_metadata(struct index *x, struct bd_json *j)
{
	char key[BD_MAX_NAME + 1];
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, "total_size") == 0 && bd_json_peek(j) == BD_JSON_NUMBER)
			rc = bd_json_number(j, &x->total_size);
		else
			rc = bd_json_skip(j);
	}
	return rc;
}

/* Other bytes than the index promises are a download that broke off, or shards of two versions. */
static int check_total_size(const struct load *l)
{
	double found = (double)l->c->tensor_bytes, said = l->index.total_size;

	if (!l->indexed || said == 0 || said == found)
		return 0;
	return bd_error_set(l->err, -EINVAL, "%s/" INDEX ": metadata.total_size is %.0f, but the shards "
			    "hold %.0f bytes of tensors; download the model again, or, if the shards "
			    "are right, correct total_size or remove it", l->c->path, said, found);
}

static int read_index(struct load *l)
{
	struct index *x = &l->index;
	char *path = NULL, *text = NULL, key[BD_MAX_NAME + 1];
	struct bd_json j;
	size_t size, length;
	bool mapped = false;
	int rc;

	if (asprintf(&path, "%s/" INDEX, l->c->path) < 0) {
		path = NULL;
		rc = no_memory(l);
		goto out;
	}
	rc = bd_file_slurp(path, INDEX_MAX, &text, &size, l->err);
	if (rc == -ENOENT)
		rc = explain_absent(l, path);
	if (rc == 0)
		/* Also refuses keys that occur twice, at any level. */
		rc = bd_json_check(text, size, path, l->err);
	if (rc)
		goto out;
	/* Names are never longer than their text; BD_MAX_NAME more, so that each may be read
	 * with that limit. */
	x->names = malloc(size + BD_MAX_NAME + 1);
	x->tensors = bd_name_table_new(0);
	x->shard_names = bd_name_table_new(0);
	if (!x->names || !x->tensors || !x->shard_names) {
		rc = no_memory(l);
		goto out;
	}
	bd_json_init(&j, text, size, path, 0, l->err);
	rc = bd_json_object(&j);
	while (rc == 0 && (rc = bd_json_member(&j, key, sizeof(key), &length)) > 0) {
		if (strcmp(key, "weight_map") == 0) {
			mapped = true;
			rc = read_weight_map(l, &j);
		} else if (strcmp(key, "metadata") == 0 && bd_json_peek(&j) == BD_JSON_OBJECT) {
			rc = read_metadata(x, &j);
		} else {
			rc = bd_json_skip(&j);
		}
	}
	if (rc == 0)
		rc = bd_json_end(&j);
	if (rc == 0 && (!mapped || x->shard_count == 0))
		rc = bd_error_set(l->err, -EINVAL, "%s: has no weight_map, or an empty one", path);
out:
	free(text);
	free(path);
	return rc;
}

static int open_shard(struct load *l, struct bd_shard *shard)
{
	char *path;
	int rc;

	if (asprintf(&path, "%s/%s", l->c->path, shard->name) < 0)
		return no_memory(l);
	rc = bd_file_open(&shard->file, path, l->err);
	if (rc == -ENOENT)
		rc = explain_absent(l, path);
	else if (rc == 0)
		rc = bd_safetensors_read(&shard->st, shard->file, l->err);
	free(path);
	return rc;
}

static int shard_by_name(const void *a, const void *b)
{
	return strcmp(((const struct bd_shard *)a)->name, ((const struct bd_shard *)b)->name);
}

/* Open all shards and collect their tensors. */
static int open_shards(struct load *l)
{
	struct bd_checkpoint *c = l->c;
	size_t n = l->indexed ? l->index.shard_count : 1;
	int rc;

	c->shards = calloc(n, sizeof(*c->shards));
	if (!c->shards)
		return no_memory(l);
	for (; c->shard_count < n; c->shard_count++) {
		struct bd_shard *shard = &c->shards[c->shard_count];

		shard->name = strdup(l->indexed ? l->index.shards[c->shard_count] : SINGLE);
		if (!shard->name)
			return no_memory(l);
	}
	qsort(c->shards, n, sizeof(*c->shards), shard_by_name);
	for (size_t i = 0; i < n; i++) {
		struct bd_shard *shard = &c->shards[i];

		rc = open_shard(l, shard);
		if (rc)
			return rc;
		shard->first = c->tensor_count;
		c->tensor_count += shard->st->count;
		c->tensor_bytes += shard->file->size - shard->st->header_size;
	}
	if (c->tensor_count > UINT32_MAX)
		return bd_error_set(l->err, -EINVAL, "%s: has too many tensors", c->path);
	return 0;
}

static const struct bd_shard *shard_of(const struct bd_checkpoint *c, uint32_t number)
{
	size_t low = 0, high = c->shard_count;

	/* Ends at the last shard that begins at or before the number: not an empty one. */
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (c->shards[middle].first <= number)
			low = middle;
		else
			high = middle;
	}
	return &c->shards[low];
}

/* Hold one tensor of a shard against the index. */
static int check_listed(const struct load *l, const struct bd_shard *shard, const char *name)
{
	uint32_t number;

	if (!bd_name_table_find(l->index.tensors, name, &number))
		return bd_error_set(l->err, -EINVAL, "%s/%s: tensor %s is not listed in " INDEX,
				    l->c->path, shard->name, name);
	if (strcmp(l->index.shards[number], shard->name) != 0)
		return bd_error_set(l->err, -EINVAL, "%s/%s: holds tensor %s, which according to "
				    INDEX " is in %s", l->c->path, shard->name, name,
				    l->index.shards[number]);
	return 0;
}

/* Make the tensors findable; their names must be unique and those of the index. */
static int name_tensors(struct load *l)
{
	struct bd_checkpoint *c = l->c;
	const char *name = l->index.names;
	int rc;

	c->names = bd_name_table_new((size_t)c->tensor_count);
	if (!c->names)
		return no_memory(l);
	for (size_t i = 0; i < c->shard_count; i++) {
		const struct bd_shard *shard = &c->shards[i];

		for (size_t k = 0; k < shard->st->count; k++) {
			const char *tensor = shard->st->tensors[k].name;

			rc = l->indexed ? check_listed(l, shard, tensor) : 0;
			if (rc)
				return rc;
			/* Cannot be there already: within a shard the parser sees to it, and
			 * the index gives every name to one shard. */
			if (bd_name_table_add(c->names, tensor, (uint32_t)(shard->first + k)))
				return no_memory(l);
		}
	}
	if (!l->indexed)
		return 0;
	for (; name < l->index.names + l->index.names_size; name += strlen(name) + 1) {
		uint32_t number;

		if (bd_name_table_find(c->names, name, NULL))
			continue;
		bd_name_table_find(l->index.tensors, name, &number);
		return bd_error_set(l->err, -EINVAL, "%s/%s: tensor %s is missing, although " INDEX
				    " lists it there", c->path, l->index.shards[number], name);
	}
	return 0;
}

/* Why a file is not taken, judged by its name; NULL where it may be. */
static const char *why_not_name(const struct load *l, const char *name)
{
	const char *suffix = weight_suffix(name);

	if (!bd_name_is_component(name, strlen(name)))
		return "not a valid name (UTF-8 without control characters)";
	if (name[0] == '.' && ends_with(name, ".lock"))
		return "lock file";
	if (ends_with(name, ".incomplete"))
		return "unfinished download";
	if (ends_with(name, ".bdelta")) /* perhaps of this very model */
		return "a .bdelta file";
	if (suffix && strcmp(suffix, ".safetensors") == 0)
		return l->indexed ? "weights that " INDEX " does not list" :
				    "weights besides " SINGLE;
	if (suffix)
		return "weights or training state in another format";
	if (strcmp(name, INDEX) == 0)
		return l->indexed ? NULL : "index of shards, but " SINGLE " is there";
	if (is_weight_index(name))
		return "index of weights that are not taken";
	return NULL;
}

/* The same after a look at the file. A dangling link is remembered: of a base nobody needs the file,
 * of a fine-tune it would be lost. */
static int why_not_file(struct load *l, const char *name, const char **why)
{
	char *path;
	struct stat st;
	int rc;

	*why = NULL;
	if (asprintf(&path, "%s/%s", l->c->path, name) < 0)
		return no_memory(l);
	rc = stat(path, &st) < 0 ? -errno : 0;
	if (rc == -ENOENT || rc == -ELOOP) {
		*why = "link to a file that is not there";
		rc = 0;
		if (!l->c->dangling) {
			l->c->dangling = path;
			return 0;
		}
	} else if (rc) {
		bd_error_set(l->err, rc, "%s: cannot be examined: %s", path, strerror(-rc));
	} else if (S_ISDIR(st.st_mode)) {
		*why = "directory";
	} else if (!S_ISREG(st.st_mode)) {
		*why = "not a regular file";
	} else if (st.st_size > (off_t)BD_MAX_SIDECAR) {
		*why = "larger than 64 MiB";
	}
	free(path);
	return rc;
}

/* "NAME: why", fit for a terminal. */
static char *skip_text(const char *name, const char *why)
{
	char *text;

	if (asprintf(&text, "%s: %s", name, why) < 0)
		return NULL;
	bd_utf8_make_plain(text);
	return text;
}

/* Sort the other files into those that belong to the model and those that do not. */
static int collect_files(struct load *l)
{
	struct bd_checkpoint *c = l->c;
	size_t n = (size_t)l->entry_count;

	c->sidecars = calloc(n, sizeof(*c->sidecars));
	c->skipped = calloc(n, sizeof(*c->skipped));
	if (!c->sidecars || !c->skipped)
		return no_memory(l);
	for (size_t i = 0; i < n; i++) {
		struct bd_shard wanted = { .name = l->entries[i]->d_name };
		const char *name = wanted.name, *why = why_not_name(l, name);
		char **slot;
		int rc = 0;

		if (bsearch(&wanted, c->shards, c->shard_count, sizeof(wanted), shard_by_name))
			continue;
		if (!why)
			rc = why_not_file(l, name, &why);
		if (rc)
			return rc;
		slot = why ? &c->skipped[c->skipped_count] : &c->sidecars[c->sidecar_count];
		*slot = why ? skip_text(name, why) : strdup(name);
		if (!*slot)
			return no_memory(l);
		if (why)
			c->skipped_count++;
		else
			c->sidecar_count++;
	}
	return 0;
}

static int load(struct load *l, const char *path)
{
	struct bd_checkpoint *c = l->c;
	struct bd_hub_place place;
	int rc = bd_hub_resolve(&place, path, l->err);

	if (rc)
		return rc;
	c->path = place.directory;
	c->label = place.label;
	c->revision = place.revision;
	l->entry_count = scandir(c->path, &l->entries, entry_filter, entry_by_name);
	if (l->entry_count < 0) {
		rc = -errno;
		return bd_error_set(l->err, rc, "%s: cannot be listed: %s", c->path, strerror(-rc));
	}
	if (!has_entry(l, SINGLE)) {
		if (!has_entry(l, INDEX))
			return explain_no_weights(l);
		l->indexed = true;
		rc = read_index(l);
	}
	if (rc == 0)
		rc = open_shards(l);
	if (rc == 0)
		rc = name_tensors(l);
	if (rc == 0)
		rc = check_total_size(l);
	if (rc == 0)
		rc = collect_files(l);
	return rc;
}

int bd_checkpoint_open(struct bd_checkpoint **c, const char *path, struct bd_error *err)
{
	struct load l = { .err = err };
	int rc;

	*c = NULL;
	l.c = calloc(1, sizeof(*l.c));
	if (!l.c)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
	rc = load(&l, path);
	for (int i = 0; i < l.entry_count; i++)
		free(l.entries[i]);
	free(l.entries);
	for (size_t i = 0; i < l.index.shard_count; i++)
		free(l.index.shards[i]);
	free(l.index.shards);
	bd_name_table_free(l.index.shard_names);
	bd_name_table_free(l.index.tensors);
	free(l.index.names);
	if (rc)
		bd_checkpoint_close(l.c);
	else
		*c = l.c;
	return rc;
}

void bd_checkpoint_close(struct bd_checkpoint *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < c->shard_count; i++) {
		bd_safetensors_free(c->shards[i].st);
		bd_file_close(c->shards[i].file);
		free(c->shards[i].name);
	}
	for (size_t i = 0; i < c->sidecar_count; i++)
		free(c->sidecars[i]);
	for (size_t i = 0; i < c->skipped_count; i++)
		free(c->skipped[i]);
	bd_name_table_free(c->names);
	free(c->dangling);
	free(c->shards);
	free(c->sidecars);
	free(c->skipped);
	free(c->path);
	free(c->label);
	free(c->revision);
	free(c);
}

const struct bd_tensor *bd_checkpoint_find(const struct bd_checkpoint *c, const char *name,
					   const struct bd_shard **shard)
{
	const struct bd_shard *s;
	uint32_t number;

	if (!bd_name_table_find(c->names, name, &number))
		return NULL;
	s = shard_of(c, number);
	if (shard)
		*shard = s;
	return &s->st->tensors[number - s->first];
}
