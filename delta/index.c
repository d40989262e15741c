/* SPDX-License-Identifier: Apache-2.0 */
/* index.c: reading model.safetensors.index.json, see index.h. */
#include "index.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"
#include "paths.h"
#include "safetensors.h"
#include "utf8.h"

#define INDEX_MAX (256u << 20)

static const char suffix[] = ".safetensors";

static int no_memory(const struct bd_json *j)
{
	return bd_error_set(j->err, -ENOMEM, "%s: out of memory", j->what);
}

static bool is_shard_name(const char *name, size_t length)
{
	return bd_name_is_component(name, length) && length > strlen(suffix) &&
	       strcmp(name + length - strlen(suffix), suffix) == 0;
}

/* The number of a shard that the index names, adding it where it is new. */
static int shard_number(struct bd_index *x, struct bd_json *j, const char *name, size_t length,
		       uint32_t *number)
{
	if (bd_name_table_find(x->shard_names, name, number))
		return 0;
	if (!is_shard_name(name, length))
		return bd_json_fail(j, "\"%s\" is no file name of a shard (one component that ends "
				    "in .safetensors)", name);
	if (x->shard_count == x->shard_room) {
		size_t room = x->shard_room ? x->shard_room * 2 : 64;
		char **shards = realloc(x->shards, room * sizeof(*shards));

		if (!shards)
			return no_memory(j);
		x->shards = shards;
		x->shard_room = room;
	}
	x->shards[x->shard_count] = strdup(name);
	if (!x->shards[x->shard_count])
		return no_memory(j);
	*number = (uint32_t)x->shard_count++;
	if (bd_name_table_add(x->shard_names, x->shards[*number], *number))
		return no_memory(j);
	return 0;
}

/* "weight_map": { tensor name: shard name, ... } */
static int read_weight_map(struct bd_index *x, struct bd_json *j)
{
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
			rc = shard_number(x, j, shard, shard_length, &number);
		if (rc)
			return rc;
		/* No name comes twice: bd_json_check saw to it. */
		if (bd_name_table_add(x->tensors, name, number))
			return no_memory(j);
		x->names_size += length + 1;
	}
}

/* The metadata of an index, of which only total_size has a meaning. */
static int read_metadata(struct bd_index *x, struct bd_json *j)
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

static int parse(struct bd_index *x, const char *text, size_t size, const char *path,
		 struct bd_error *err)
{
	char key[BD_MAX_NAME + 1];
	struct bd_json j;
	size_t length;
	bool mapped = false;
	int rc;

	bd_json_init(&j, text, size, path, 0, err);
	rc = bd_json_object(&j);
	while (rc == 0 && (rc = bd_json_member(&j, key, sizeof(key), &length)) > 0) {
		if (strcmp(key, "weight_map") == 0) {
			mapped = true;
			rc = read_weight_map(x, &j);
		} else if (strcmp(key, "metadata") == 0 && bd_json_peek(&j) == BD_JSON_OBJECT) {
			rc = read_metadata(x, &j);
		} else {
			rc = bd_json_skip(&j);
		}
	}
	if (rc == 0)
		rc = bd_json_end(&j);
	if (rc == 0 && (!mapped || x->shard_count == 0))
		rc = bd_error_set(err, -EINVAL, "%s: has no weight_map, or an empty one", path);
	return rc;
}

int bd_index_read(struct bd_index *x, const char *path, struct bd_error *err)
{
	char *text = NULL;
	size_t size;
	int rc = bd_file_slurp(path, INDEX_MAX, &text, &size, err);

	*x = (struct bd_index){ 0 };
	if (rc == 0 && bd_file_is_pointer(text, size))
		rc = bd_error_set(err, -EINVAL, "%s: is " BD_LFS_POINTER, path);
	if (rc == 0)
		/* Also refuses keys that occur twice, at any level. */
		rc = bd_json_check(text, size, path, err);
	if (rc)
		goto out;
	/* Names are never longer than their text; BD_MAX_NAME more, so that each may be read
	 * with that limit. */
	x->names = malloc(size + BD_MAX_NAME + 1);
	x->tensors = bd_name_table_new(0);
	x->shard_names = bd_name_table_new(0);
	rc = x->names && x->tensors && x->shard_names ? parse(x, text, size, path, err) :
		bd_error_set(err, -ENOMEM, "%s: out of memory", path);
out:
	free(text);
	return rc;
}

void bd_index_free(struct bd_index *x)
{
	for (size_t i = 0; i < x->shard_count; i++)
		free(x->shards[i]);
	free(x->shards);
	bd_name_table_free(x->shard_names);
	bd_name_table_free(x->tensors);
	free(x->names);
}

const char *bd_index_shard(const struct bd_index *x, const char *tensor)
{
	uint32_t number;

	return bd_name_table_find(x->tensors, tensor, &number) ? x->shards[number] : NULL;
}

bool bd_index_has_shard(const struct bd_index *x, const char *shard)
{
	return bd_name_table_find(x->shard_names, shard, NULL);
}
