/* models.h: the base and the deltas of a mount, opened and checked against each other. */
#ifndef BDFS_MODELS_H
#define BDFS_MODELS_H

#include "log.h"
#include "view.h"

struct bdfs_models {
	struct bd_base *base;   /* owned, as are the views */
	struct bd_view **views; /* in ascending order of name */
	size_t count;
};

/* Open the base at BASE and the deltas at PATHS, each a `.bdelta` file or a directory of them.
 * A delta given by name must be good. One found in a directory that is damaged or belongs to
 * another base becomes a warning in LOG and is left out, unless nothing would be left at all: an
 * empty directory is fine, a directory of nothing but bad deltas is not. Entries of a directory
 * that start with a dot are not looked at.
 * Errors: those of bd_base_open, bd_delta_open and bd_view_open; -EEXIST where two deltas have one
 * name. */
int bdfs_models_open(struct bdfs_models **models, const char *base, char *const *paths,
		     size_t count, struct bdfs_log *log, struct bd_error *err);
void bdfs_models_close(struct bdfs_models *models); /* NULL allowed */

#endif
