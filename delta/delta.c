/* SPDX-License-Identifier: Apache-2.0 */
/* delta.c: opening a .bdelta file and matching it with a base, see delta.h. */
#include "delta.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "manifest.h"
#include "utf8.h"

/* Inflate a stored zlib stream whose contents have `size` bytes, which somebody found possible. */
static int inflate_stored(const struct bd_delta *d, const struct bd_tensor *t, uint64_t size,
			  char **data, struct bd_error *err)
{
	char *packed = NULL, *plain = NULL;
	uLongf plain_size, packed_size;
	int rc;

	packed = malloc((size_t)t->size + 1);
	plain = malloc((size_t)size + 1);
	if (!packed || !plain) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory for '%s'", d->file->path, t->name);
		goto out;
	}
	rc = bd_file_read(d->file, packed, (size_t)t->size, t->offset, err);
	if (rc == 0)
		rc = bd_file_check(d->file, err);
	if (rc < 0)
		goto out;
	plain_size = (uLongf)size + 1;
	packed_size = (uLong)t->size;
	rc = uncompress2((Bytef *)plain, &plain_size, (Bytef *)packed, &packed_size);
	if (rc == Z_MEM_ERROR) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory for '%s'", d->file->path, t->name);
		goto out;
	}
	if (rc != Z_OK || plain_size != size || packed_size != t->size) {
		rc = bd_error_set(err, -EINVAL, "%s: '%s' is damaged (does not inflate to %" PRIu64
				  " bytes)", d->file->path, t->name, size);
		goto out;
	}
	plain[size] = '\0';
	*data = plain;
	plain = NULL;
	rc = 0;
out:
	free(packed);
	free(plain);
	return rc;
}

/* The values in __metadata__ that say what the file is. */
static int check_metadata(const struct bd_delta *d, uint64_t *size, const char **hash,
			  struct bd_error *err)
{
	const char *format = bd_safetensors_metadata(d->st, "format");
	const char *version = bd_safetensors_metadata(d->st, "version");
	const char *digits = bd_safetensors_metadata(d->st, "manifest_size");

	*hash = bd_safetensors_metadata(d->st, "manifest_xxh128");
	if (!format || strcmp(format, "bdelta") != 0)
		return bd_error_set(err, -EINVAL, "%s: a safetensors file, but not a .bdelta file (its "
				    "metadata has no \"format\": \"bdelta\"); `bitdelta import` makes one "
				    "of the directory of a fine-tune", d->file->path);
	if (!version || strcmp(version, "1") != 0)
		return bd_error_set(err, -EINVAL, "%s: format version '%.40s', this program reads version "
				    "1: a newer bitdelta is needed", d->file->path,
				    version && bd_utf8_is_plain(version, strlen(version)) ? version : "?");
	if (!digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 18 ||
	    !*digits || !*hash || !bd_hash_is_text(*hash))
		return bd_error_set(err, -EINVAL, "%s: manifest_size or manifest_xxh128 is missing or "
				    "malformed", d->file->path);
	*size = strtoull(digits, NULL, 10);
	return 0;
}

static int set_name(struct bd_delta *d, const char *path)
{
	const char *slash = strrchr(path, '/');
	const char *base = slash ? slash + 1 : path;
	size_t length = strlen(base);

	if (length > 7 && strcmp(base + length - 7, ".bdelta") == 0)
		length -= 7;
	d->name = strndup(base, length);
	return d->name ? 0 : -ENOMEM;
}

int bd_delta_open(struct bd_delta **out, const char *path, struct bd_error *err)
{
	return bd_delta_open_at(out, AT_FDCWD, path, path, err);
}

int bd_delta_open_at(struct bd_delta **out, int dirfd, const char *name, const char *path,
		     struct bd_error *err)
{
	struct bd_file *file;
	struct stat st;
	int rc = bd_file_open_at(&file, dirfd, name, path, err);

	if (rc == -EINVAL && fstatat(dirfd, name, &st, 0) == 0 && S_ISDIR(st.st_mode))
		bd_error_set(err, rc, "%s: is a directory and not a .bdelta file; `bitdelta import` makes one "
			     "of the directory of a fine-tune", path);
	return rc < 0 ? rc : bd_delta_open_file(out, file, err);
}

int bd_delta_open_file(struct bd_delta **out, struct bd_file *file, struct bd_error *err)
{
	struct bd_delta *d = calloc(1, sizeof(*d));
	const char *path = file->path, *wanted = NULL;
	const struct bd_tensor *manifest;
	char *text = NULL, hash[BD_HASH];
	uint64_t size = 0;
	int rc;

	if (!d) {
		bd_file_close(file);
		return bd_error_set(err, -ENOMEM, "out of memory for a delta");
	}
	d->file = file;
	rc = set_name(d, path) < 0 ? bd_error_set(err, -ENOMEM, "%s: out of memory", path)
				   : bd_safetensors_read(&d->st, file, err);
	if (rc == 0)
		rc = check_metadata(d, &size, &wanted, err);
	if (rc < 0)
		goto out;
	manifest = bd_safetensors_find(d->st, "manifest");
	if (!manifest) {
		rc = bd_error_set(err, -EINVAL, "%s: no tensor 'manifest'", path);
		goto out;
	}
	rc = bd_manifest_size_is_possible(manifest->size, size) ? 0 :
		bd_error_set(err, -EINVAL, "%s: the manifest claims an impossible size", path);
	if (rc == 0)
		rc = inflate_stored(d, manifest, size, &text, err);
	if (rc < 0)
		goto out;
	bd_hash_data(text, (size_t)size, hash);
	if (strcmp(hash, wanted) != 0) {
		rc = bd_error_set(err, -EINVAL, "%s: the manifest is damaged (hash %s, expected %s)",
				  path, hash, wanted);
		goto out;
	}
	rc = bd_manifest_parse(d, text, (size_t)size, err);
	if (rc < 0)
		goto out;
	d->kept = calloc(d->file_count + 1, sizeof(*d->kept));
	if (!d->kept) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	*out = d;
	d = NULL;
out:
	free(text);
	bd_delta_close(d);
	return rc;
}

void bd_delta_forget_tensors(struct bd_delta *d)
{
	for (size_t i = 0; i < d->file_count; i++) {
		struct bd_delta_file *f = &d->files[i];

		for (size_t t = 0; f->st && f->entries && t < f->st->count; t++)
			free(f->entries[t].base_name);
		free(f->entries);
		f->entries = NULL;
		bd_safetensors_free(f->st);
		f->st = NULL;
		if (f->stored && d->kept) {
			d->kept[i] = *f->stored;
			d->kept[i].name = f->name;
			d->kept[i].shape = &d->kept[i].size; /* of bytes, all are */
			f->stored = &d->kept[i];
		}
	}
	bd_shapes_free(&d->shapes);
	bd_safetensors_free(d->st);
	d->st = NULL;
	d->scales = NULL;
}

void bd_delta_close(struct bd_delta *d)
{
	if (!d)
		return;
	bd_delta_forget_tensors(d);
	for (size_t i = 0; i < d->file_count; i++)
		free(d->files[i].name);
	free(d->files);
	free(d->name);
	free(d->base_label);
	free(d->base_revision);
	free(d->base_path);
	free(d->base_hub);
	free(d->producer);
	free(d->scale_kind);
	free(d->kept);
	bd_file_close(d->file);
	free(d);
}

bool bd_entry_has_base(const struct bd_entry *e)
{
	return e->encoding != BD_RAW && *e->base_xxh128;
}

const char *bd_entry_base(const struct bd_entry *e)
{
	return e->base_name ? e->base_name : e->tensor->name;
}

static int check_tensor(const struct bd_delta *d, const struct bd_entry *e,
			const struct bd_base *base, struct bd_error *err)
{
	const char *name = bd_entry_base(e);
	const struct bd_base_tensor *b = bd_base_find(base, name);
	const struct bd_tensor wanted = { .dims = e->base_dims, .shape = e->base_shape };
	const char *label = base->checkpoint->path;
	char have[200], want[200];

	bd_tensor_shape_text(&wanted, want, sizeof(want));
	if (!b)
		return bd_error_set(err, -EINVAL, "%s was made from base '%s', and '%s' is another one: "
				    "it has no tensor '%s'", d->file->path, d->base_label, label, name);
	if (b->tensor->dtype != e->base_dtype || !bd_tensor_same_shape(b->tensor, &wanted))
		return bd_error_set(err, -EINVAL, "%s was made from base '%s', and '%s' is another one: "
				    "tensor '%s' is %s %s there, expected %s %s", d->file->path,
				    d->base_label, label, name,
				    bd_dtype_name(b->tensor->dtype),
				    bd_tensor_shape_text(b->tensor, have, sizeof(have)),
				    bd_dtype_name(e->base_dtype), want);
	if (b->sample != e->base_sample)
		return bd_error_set(err, -EINVAL, "%s was made from base '%s', and '%s' is another one: "
				    "the contents of tensor '%s' differ", d->file->path, d->base_label,
				    label, name);
	return 0;
}

int bd_delta_check_base(const struct bd_delta *d, const struct bd_base *base, struct bd_error *err)
{
	/* Not even for an equal digest are the tensors skipped: the delta may lie about them, and
	 * bd_view relies on their shapes. */
	for (size_t f = 0; f < d->file_count; f++)
		for (size_t i = 0; d->files[f].st && i < d->files[f].st->count; i++) {
			const struct bd_entry *e = &d->files[f].entries[i];
			int rc = bd_entry_has_base(e) ? check_tensor(d, e, base, err) : 0;

			if (rc < 0)
				return rc;
		}
	return 0;
}

int bd_delta_inflate(const struct bd_delta *d, const struct bd_delta_file *file, char **data,
		     struct bd_error *err)
{
	char hash[BD_HASH];
	int rc = inflate_stored(d, file->stored, file->size, data, err);

	if (rc < 0)
		return rc;
	bd_hash_data(*data, (size_t)file->size, hash);
	if (strcmp(hash, file->xxh128) == 0)
		return 0;
	free(*data);
	*data = NULL;
	return bd_error_set(err, -EIO, "%s: file '%s' in it is damaged (hash %s, expected %s)",
			    d->file->path, file->name, hash, file->xxh128);
}
