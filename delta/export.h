/* SPDX-License-Identifier: Apache-2.0 */
/* export.h: a fine-tune written out as a plain directory: nobody is locked in. */
#ifndef BD_EXPORT_H
#define BD_EXPORT_H

#include "parallel.h"
#include "view.h"

/* Write every file of the view into the directory OUT, byte for byte what a mount shows. OUT must
 * not exist or be empty; it appears when all files in it are complete and on the disk. All cores.
 * Errors: -EEXIST OUT holds something; -EINTR; those of reading and writing. */
int bd_export(struct bd_view *view, const char *out, const struct bd_watch *watch,
	      struct bd_error *err);

#endif
