/* SPDX-License-Identifier: Apache-2.0 */
/* hub.h: where a model lies: a directory, or an entry of the local Hugging Face cache.
 *
 *     models--org--name/refs/main             the commit that "main" was when it was downloaded
 *     models--org--name/snapshots/COMMIT/     the files, as links into ../../blobs
 *
 * Nothing here uses the network. */
#ifndef BD_HUB_H
#define BD_HUB_H

#include <stdbool.h>

#include "error.h"

struct bd_hub_place {
	char *directory; /* absolute, without links: the one that holds the files */
	char *label;     /* "org/name" for a cache entry, else the last component of directory */
	char *revision;  /* the commit of a cache entry, else NULL */
};

/* Find the directory that PATH means: itself, or the snapshot of a cache entry. *place is owned by
 * the caller: bd_hub_place_free (also after an error, where it is empty).
 * Errors: -ENOENT no such directory; -EINVAL a file, or a cache entry whose snapshot is not clear;
 * other errors of realpath(3). The sentence says what to give instead. */
int bd_hub_resolve(struct bd_hub_place *place, const char *path, struct bd_error *err);
void bd_hub_place_free(struct bd_hub_place *place);

/* "org/name", as models are called on the hub. */
bool bd_hub_is_name(const char *path);

#endif
