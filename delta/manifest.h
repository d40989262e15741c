/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.h: the manifest of a .bdelta file, read and written (FORMAT.md section 2). Private to
 * this library. */
#ifndef BD_MANIFEST_H
#define BD_MANIFEST_H

#include "delta.h"
#include "buffer.h"

/* Read the manifest into a delta whose container (file, st) is open, and bind every entry to its
 * tensor in its file's header and to what is stored for it; all rules of FORMAT.md that need
 * neither planes nor base are held. On failure the delta may be partly filled: bd_delta_close. */
int bd_manifest_parse(struct bd_delta *delta, const char *text, size_t size, struct bd_error *err);

/* Append the manifest of a delta. Uses everything but file, st and what points into them, so that an
 * importer can fill a delta by hand. */
void bd_manifest_print(const struct bd_delta *delta, struct bd_buffer *out);

/* May a stream of `packed` bytes be the manifest, or another file, of `plain` bytes? Deltas come from
 * strangers, and a stream can claim a thousand times its size: manifests are full of hashes, which do not
 * shrink, and files that import takes are small. */
bool bd_manifest_size_is_possible(uint64_t packed, uint64_t plain);
bool bd_manifest_file_size_is_possible(uint64_t packed, uint64_t plain);

/* Two files that cannot lie in one directory everywhere (bd_paths_find_twins). Errors: -ENOMEM. */
int bd_manifest_find_twins(const struct bd_delta *delta, const char **one, const char **other);

/* How many directories the files, in order, lie in: at most BD_MAX_DIRECTORIES are allowed. */
size_t bd_manifest_count_directories(const struct bd_delta *delta);

/* What precedes NAME in the name of a tensor of the container: KIND, or KIND.N for a copy, written to
 * `text`. */
#define BD_COPY_KIND 24
const char *bd_manifest_kind(const struct bd_entry *e, const char *kind, char text[BD_COPY_KIND]);

/* Bytes of the sign planes of `count` elements, as stored. */
uint64_t bd_manifest_plane_bytes(unsigned planes, uint64_t count);

#endif
