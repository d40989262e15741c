/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.c: opening a model directory, see checkpoint.h. */
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "glob.h"
#include "hub.h"
#include "index.h"
#include "names.h"
#include "paths.h"
#include "utf8.h"

#define SINGLE BD_CHECKPOINT_SINGLE
#define INDEX  BD_CHECKPOINT_INDEX

/* Files that hold weights, or pickled training state that nobody loads with a model. */
static const char *const weight_suffixes[] = {
	".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".ot",
	".npz",
};

struct load {
	struct bd_checkpoint *c;
	struct dirent **entries; /* in order of name */
	int entry_count;
	struct bd_index index;
	struct bd_error *err;
};

static int no_memory(const struct load *l)
{
	return bd_error_set(l->err, -ENOMEM, "%s: out of memory", l->c->path);
}

static const char *weight_suffix(const char *name)
{
	for (size_t i = 0; i < sizeof(weight_suffixes) / sizeof(weight_suffixes[0]); i++)
		if (bd_glob_ends(name, weight_suffixes[i]))
			return weight_suffixes[i];
	return NULL;
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
		if (bd_glob_ends(l->entries[i]->d_name, suffix))
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

/* One of several shards, by its name, that the index does not list; NULL: there is none. */
static const char *find_unlisted(const struct load *l)
{
	for (int i = 0; i < l->entry_count; i++) {
		const char *name = l->entries[i]->d_name;

		if (bd_glob_ends(name, ".safetensors") && strstr(name, "-of-") &&
		    !bd_index_has_shard(&l->index, name))
			return name;
	}
	return NULL;
}

/* Say why a file that is listed cannot be opened (-ENOENT): it is no file, or a link to nowhere. */
static int explain_dangling(const struct load *l, const char *path)
{
	char target[PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target));

	if (n >= 0)
		return bd_error_set(l->err, -EINVAL, "%s: is a link to %.*s, which is not there; "
				    "download the model again", path, (int)n, target);
	return bd_error_set(l->err, -EINVAL, "%s: is not there any more", path);
}

/* The same of a shard. */
static int explain_absent(const struct load *l, const char *path)
{
	const char *other = l->c->indexed ? find_unlisted(l) : NULL;
	struct stat st;

	if (!l->c->indexed || lstat(path, &st) == 0)
		return explain_dangling(l, path);
	if (other)
		return bd_error_set(l->err, -EINVAL, "%s: is not there, although " INDEX " lists it, and %s, "
				    "which is there, is not listed; the index is out of date: save or "
				    "download the model again into an empty directory", path, other);
	return bd_error_set(l->err, -EINVAL, "%s: is missing, although " INDEX " lists it; the "
			    "download is not complete", path);
}

static int read_index(struct load *l)
{
	char *path;
	int rc;

	if (asprintf(&path, "%s/" INDEX, l->c->path) < 0)
		return no_memory(l);
	rc = bd_index_read(&l->index, path, l->err);
	if (rc == -ENOENT)
		rc = explain_dangling(l, path);
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
	size_t n = l->c->indexed ? l->index.shard_count : 1;
	int rc;

	c->shards = calloc(n, sizeof(*c->shards));
	if (!c->shards)
		return no_memory(l);
	for (; c->shard_count < n; c->shard_count++) {
		struct bd_shard *shard = &c->shards[c->shard_count];

		shard->name = strdup(l->c->indexed ? l->index.shards[c->shard_count] : SINGLE);
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

/* Something that is odd and no error, in one line. */
__attribute__((format(printf, 2, 3)))
static int note(struct load *l, const char *format, ...)
{
	struct bd_checkpoint *c = l->c;
	char **grown = reallocarray(c->notes, c->note_count + 1, sizeof(*grown));
	va_list args;
	char *text;
	int n;

	if (!grown)
		return no_memory(l);
	c->notes = grown;
	va_start(args, format);
	n = vasprintf(&text, format, args);
	va_end(args);
	if (n < 0)
		return no_memory(l);
	bd_utf8_make_plain(text);
	c->notes[c->note_count++] = text;
	return 0;
}

/* Where index and shards differ: how often, and the first name of each kind. */
struct differences {
	size_t unlisted, twice, elsewhere, missing;
	const char *first_unlisted, *first_twice, *first_elsewhere, *first_missing;
};

static void count(size_t *number, const char **first, const char *name)
{
	if ((*number)++ == 0)
		*first = name;
}

/* Make tensor K of a shard findable. Of several with one name the one counts that lies where the index
 * says, else the last. */
static int name_tensor(struct load *l, const struct bd_shard *shard, size_t k,
		       struct differences *found)
{
	struct bd_checkpoint *c = l->c;
	const char *name = shard->st->tensors[k].name, *listed = NULL;
	uint32_t number = (uint32_t)(shard->first + k), before;

	if (l->c->indexed) {
		listed = bd_index_shard(&l->index, name);
		if (!listed)
			count(&found->unlisted, &found->first_unlisted, name);
	}
	if (!bd_name_table_find(c->names, name, &before)) {
		if (bd_name_table_add(c->names, name, number))
			return no_memory(l);
		return 0;
	}
	count(&found->twice, &found->first_twice, name);
	c->has_copies = true;
	if (!listed || strcmp(shard_of(c, before)->name, listed) != 0)
		bd_name_table_replace(c->names, name, number);
	return 0;
}

/* Tensors that the index lists and that lie elsewhere, or nowhere. */
static void hold_against_index(const struct load *l, struct differences *found)
{
	const struct bd_index *x = &l->index;
	const char *name = x->names;

	for (; name < x->names + x->names_size; name += strlen(name) + 1) {
		uint32_t number;

		if (!bd_name_table_find(l->c->names, name, &number))
			count(&found->missing, &found->first_missing, name);
		else if (strcmp(shard_of(l->c, number)->name, bd_index_shard(x, name)) != 0)
			count(&found->elsewhere, &found->first_elsewhere, name);
	}
}

static int note_differences(struct load *l, const struct differences *found)
{
	const char *path = l->c->path;
	double bytes = (double)l->c->tensor_bytes, said = l->index.total_size;
	int rc = 0;

	/* What comes below is reason enough for another sum. */
	if (said != 0 && said != bytes && !found->unlisted && !found->twice && !found->missing)
		rc = note(l, "%s/" INDEX ": metadata.total_size is %.15g, but the shards hold %.0f bytes of "
			  "tensors; the shards count", path, said, bytes);
	if (rc == 0 && found->unlisted)
		rc = note(l, "%s/" INDEX ": does not list tensors that its shards hold (%zu, such as %s); "
			  "they count like the others", path, found->unlisted, found->first_unlisted);
	if (rc == 0 && found->elsewhere)
		rc = note(l, "%s/" INDEX ": tensors lie in other shards than it says (%zu, such as %s); they "
			  "count where they are", path, found->elsewhere, found->first_elsewhere);
	if (rc == 0 && found->twice)
		rc = note(l, "%s: tensors lie in more than one shard (%zu, such as %s); the ones count that lie "
			  "where " INDEX " says", path, found->twice, found->first_twice);
	if (rc == 0 && found->missing)
		rc = note(l, "%s/" INDEX ": lists tensors that its shards do not have (%zu, such as %s); the "
			  "index is out of date, or a shard is another model's", path, found->missing,
			  found->first_missing);
	return rc;
}

/* Make the tensors findable. */
static int name_tensors(struct load *l)
{
	struct bd_checkpoint *c = l->c;
	struct differences found = { 0 };

	c->names = bd_name_table_new((size_t)c->tensor_count);
	if (!c->names)
		return no_memory(l);
	for (size_t i = 0; i < c->shard_count; i++)
		for (size_t k = 0; k < c->shards[i].st->count; k++) {
			int rc = name_tensor(l, &c->shards[i], k, &found);

			if (rc)
				return rc;
		}
	if (!l->c->indexed)
		return 0;
	hold_against_index(l, &found);
	return note_differences(l, &found);
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
		l->c->indexed = true;
		rc = read_index(l);
	}
	if (rc == 0)
		rc = open_shards(l);
	if (rc == 0)
		rc = name_tensors(l);
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
	bd_index_free(&l.index);
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
	for (size_t i = 0; i < c->note_count; i++)
		free(c->notes[i]);
	bd_name_table_free(c->names);
	free(c->notes);
	free(c->shards);
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

bool bd_checkpoint_is_copy(const struct bd_checkpoint *c, const struct bd_tensor *tensor)
{
	return c->has_copies && bd_checkpoint_find(c, tensor->name, NULL) != tensor;
}
