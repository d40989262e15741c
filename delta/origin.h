/* SPDX-License-Identifier: Apache-2.0 */
/* origin.h: how people find a base again: what tells where it came from, besides its name.
 *
 * Nothing depends on it: bases are recognised by content (base.h). Files are given to strangers, so of a path only
 * the end is told. */
#ifndef BD_ORIGIN_H
#define BD_ORIGIN_H

#include "checkpoint.h"

struct bd_origin { /* each may be NULL: not known */
	char *revision; /* commit on the hub: of a cache entry, or of a download with --local-dir that is unchanged */
	char *path;     /* of a plain directory: "models/Llama-2-7b", or "~/Llama-2-7b" below a home directory */
	char *hub;      /* of a plain directory: "org/name" by the fine-tune's own account: base_model of its
			 * README.md, or _name_or_path where both configurations have the same */
};

/* The strings, fit for a terminal, are the caller's to free, also after an error. Errors: -ENOMEM. What cannot be
 * read is not known. */
int bd_origin_find(struct bd_origin *origin, const struct bd_checkpoint *base, const struct bd_checkpoint *fine,
		   struct bd_error *err);

#endif
