/* SPDX-License-Identifier: Apache-2.0 */
/* store.c: the parts of a .bdelta file on their way into its container, see store.h. */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "buffer.h"
#include "hash.h"
#include "manifest.h"

#define CHUNK ((size_t)4 << 20) /* bytes read at a time */

static int out_of_memory(const struct bd_container *c, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", c->output->path);
}

int bd_store_check_name(const char *path, struct bd_error *err)
{
	size_t length = strlen(path);

	if (length < 8 || strcmp(path + length - 7, ".bdelta") != 0 || path[length - 8] == '/')
		return bd_error_set(err, -EINVAL, "%s: the output must be named SOMETHING.bdelta", path);
	return 0;
}

int bd_store_copy(struct bd_container *c, struct bd_file *file, uint64_t from, uint64_t size,
		  uint64_t to, enum bd_dtype dtype, uint64_t *special, const atomic_int *stop,
		  char xxh128[BD_HASH], struct bd_error *err)
{
	XXH3_state_t *hash = XXH3_createState();
	char *buf = malloc(CHUNK);
	int rc = 0;

	if (!hash || !buf) {
		rc = out_of_memory(c, err);
		goto out;
	}
	XXH3_128bits_reset(hash);
	for (uint64_t at = 0; at < size; at += CHUNK) {
		size_t n = size - at < CHUNK ? (size_t)(size - at) : CHUNK;

		rc = bd_file_read(file, buf, n, from + at, err);
		if (rc == 0 && stop && *stop)
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc == 0)
			rc = bd_output_write(c->output, buf, n, to + at, err);
		if (rc < 0)
			goto out;
		XXH3_128bits_update(hash, buf, n);
		if (special)
			*special += bd_dtype_count_special(dtype, buf, n);
	}
	bd_hash_text(XXH3_128bits_digest(hash), xxh128);
out:
	XXH3_freeState(hash);
	free(buf);
	return rc;
}

int bd_store_scales(struct bd_container *c, const float *scales, uint64_t count,
		    struct bd_error *err)
{
	uint64_t offset, size = count * sizeof(*scales);
	int rc;

	if (count == 0)
		return 0;
	rc = bd_container_place(c, "scales", "", BD_F32, 1, &count, size, &offset, err);
	return rc < 0 ? rc : bd_output_write(c->output, scales, size, offset, err);
}

static int deflate_bytes(const struct bd_container *c, const char *plain, size_t size,
			 char **packed, uint64_t *packed_size, struct bd_error *err)
{
	uLongf n = compressBound(size);

	*packed = malloc(n);
	if (!*packed || compress2((Bytef *)*packed, &n, (const Bytef *)plain, size, 6) != Z_OK) {
		free(*packed);
		*packed = NULL;
		return out_of_memory(c, err);
	}
	*packed_size = n;
	return 0;
}

int bd_store_file(struct bd_container *c, const char *name, const char *data, size_t size,
		  struct bd_error *err)
{
	char *packed = NULL;
	uint64_t packed_size = 0;
	int rc = deflate_bytes(c, data, size, &packed, &packed_size, err);

	if (rc == 0)
		rc = bd_container_add(c, "file", name, packed, packed_size, err);
	free(packed);
	return rc;
}

int bd_store_manifest(struct bd_container *c, const struct bd_delta *delta, const char *source,
		      struct bd_error *err)
{
	struct bd_buffer text = { 0 };
	char hash[BD_HASH], metadata[200], *packed = NULL;
	uint64_t packed_size = 0;
	int rc;

	bd_manifest_print(delta, &text);
	if (text.failed) {
		rc = out_of_memory(c, err);
		goto out;
	}
	bd_hash_data(text.data, text.size, hash);
	rc = deflate_bytes(c, text.data, text.size, &packed, &packed_size, err);
	if (rc == 0 && !bd_manifest_size_is_possible(packed_size, text.size))
		rc = bd_error_set(err, -E2BIG, "%s: its safetensors headers are too large to be kept (%zu "
				  "bytes with the manifest), or padded too much", source, text.size);
	if (rc == 0)
		rc = bd_container_add(c, "manifest", "", packed, packed_size, err);
	snprintf(metadata, sizeof(metadata), "{\"format\":\"bdelta\",\"version\":\"1\","
		 "\"manifest_size\":\"%zu\",\"manifest_xxh128\":\"%s\"}", text.size, hash);
	if (rc == 0)
		rc = bd_container_finish(c, metadata, err);
out:
	free(packed);
	bd_buffer_free(&text);
	return rc;
}
