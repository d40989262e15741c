/* SPDX-License-Identifier: Apache-2.0 */
/* models_impl.h: what models.c and scan.c share: how models are made. */
#ifndef BDFS_MODELS_IMPL_H
#define BDFS_MODELS_IMPL_H

#include "models.h"
#include "sources.h"

/* Open the base at PATH; *base has one reference. Errors: those of bd_base_open. */
int bdfs_base_open(struct bdfs_base **base, const char *path, struct bd_error *err);
void bdfs_base_put(struct bdfs_base *base); /* NULL allowed */

/* The model of a view; ENTRY in SOURCE is its delta. *model has one reference. -ENOMEM, -EMFILE. */
int bdfs_model_of_view(struct bdfs_model **model, const struct bd_view *view, struct bdfs_base *base,
		       const struct bdfs_source *source, const char *entry, enum bdfs_layout layout,
		       struct bd_error *err);
/* The base itself as a model: its shards, and its other files. Errors: those of bd_file_open. */
int bdfs_model_of_base(struct bdfs_model **model, struct bdfs_base *base, enum bdfs_layout layout,
		       struct bd_error *err);

/* The scan that makes the list for the first time: what must be good and is not is an error, and so is
 * what cannot be known. Errors: see bdfs_models_open. */
int bdfs_models_scan_first(struct bdfs_models *models, struct bd_error *err);
void bdfs_rejected_clear(struct bdfs_rejected *list, size_t count);

#endif
