/* SPDX-License-Identifier: Apache-2.0 */
/* sidecars.h: the files of a model's directory besides its checkpoint: which belong to the model.
 *
 * All do, in subdirectories too, up to BD_MAX_SIDECAR bytes each, but for
 *   - what is no part of a model: .git, .cache, lock files, unfinished downloads, .bdelta files;
 *   - a second copy of the weights (consolidated*, pytorch_model*.bin beside safetensors, *.gguf, original/, ...);
 *   - the state of a training that nobody loads with a model (optimizer.pt, checkpoint-500/, ...).
 * A user's rules decide otherwise, but not of the first. Links to files are followed; those to directories where
 * they lead to another place in the directory, or elsewhere by a rule that says so. Empty directories are none. */
#ifndef BD_SIDECARS_H
#define BD_SIDECARS_H

#include "checkpoint.h"

#define BD_MAX_SIDECAR (64u << 20)

/* The last rule whose glob matches the path of a file, or of a directory that it is in, decides. */
struct bd_file_rule {
	bool keep;        /* else leave out */
	const char *glob; /* fnmatch(3); '*' also matches '/'. A '/' at its end has no meaning */
};

struct bd_sidecars {
	char **paths; /* below the directory, safe (paths.h), ascending */
	size_t count;
	char **notes; /* "FILES (SIZE): why" for what is not taken and no rule left out, a line for each reason */
	size_t note_count;
	char *lost;   /* a sentence on the first file that belongs to the model and cannot be had, as a link to
		       * nowhere or a pointer of Git LFS; NULL: there is none */
};

/* Errors: -EINVAL a rule matches nothing, or there are more files than a model can have; -ENOMEM; those of
 * reading directories. */
int bd_sidecars_list(struct bd_sidecars *s, const struct bd_checkpoint *c, const struct bd_file_rule *rules,
		     size_t rule_count, struct bd_error *err);
void bd_sidecars_free(struct bd_sidecars *s);

#endif
