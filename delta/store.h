/* SPDX-License-Identifier: Apache-2.0 */
/* store.h: what the writers of .bdelta files share: import.c, which makes them from a fine-tune, and
 * refine.c, which makes them from older ones. Private to these.
 *
 * All store into a container (container.h) that is not finished yet; the file appears with
 * bd_output_commit. Errors: those of writing and reading, -ENOMEM, and what is said. */
#ifndef BD_STORE_H
#define BD_STORE_H

#include <stdatomic.h>

#include "container.h"
#include "delta.h"

/* -EINVAL unless PATH is named SOMETHING.bdelta, as mounts want it. */
int bd_store_check_name(const char *path, struct bd_error *err);

/* Copy `size` bytes of FILE from the offset `from` to the offset `to` of the output, which has
 * been given (bd_container_place); their hash goes to xxh128. Numbers of the
 * type `dtype` among them that are infinite or not a number are added to *special, unless that is NULL. For any
 * number of threads. -EINTR where `stop`, which may be NULL, became non-zero. */
int bd_store_copy(struct bd_container *c, struct bd_file *file, uint64_t from, uint64_t size,
		  uint64_t to, enum bd_dtype dtype, uint64_t *special, const atomic_int *stop,
		  char xxh128[BD_HASH], struct bd_error *err);

/* Place and write all scales; none where there are none. */
int bd_store_scales(struct bd_container *c, const float *scales, uint64_t count,
		    struct bd_error *err);

/* Place and write the zlib stream of a file that is not safetensors. */
int bd_store_file(struct bd_container *c, const char *name, const char *data, size_t size,
		  struct bd_error *err);

/* Place and write the manifest of `delta` as bd_manifest_print gives it, then the header: the
 * last to be stored. -E2BIG where no reader would take it; SOURCE names in that sentence where
 * it came from. */
int bd_store_manifest(struct bd_container *c, const struct bd_delta *delta, const char *source,
		      struct bd_error *err);

#endif
