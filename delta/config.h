/* SPDX-License-Identifier: Apache-2.0 */
/* config.h: what a model says of itself in config.json and the files beside it, as far as an import
 * needs it. A text that a strict reader does not like is no reason to refuse a model: what stands
 * before its fault counts. */
#ifndef BD_CONFIG_H
#define BD_CONFIG_H

#include "checkpoint.h"

#define BD_CONFIG_VOCABULARIES 32

struct bd_config {
	char *model_type; /* owned; NULL: not said */
	char *name_or_path; /* the same: _name_or_path, what it was loaded from when it was saved */
	/* Sizes of vocabularies, of the parts of a model too (text_config and the like); where the
	 * configuration names none, what the tokenizer has. */
	uint64_t vocabularies[BD_CONFIG_VOCABULARIES];
	size_t vocabulary_count;
	bool quantised;   /* it says how its weights are quantised */
	struct bd_error fault; /* why config.json was not read to its end; zeroed where it was */
};

/* Errors: -ENOMEM, those of reading a file that is there. What is no file or too large to be read is a fault. */
int bd_config_read(struct bd_config *config, const struct bd_checkpoint *c, struct bd_error *err);
void bd_config_free(struct bd_config *config); /* zeroed is allowed */

#endif
