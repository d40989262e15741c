/* SPDX-License-Identifier: Apache-2.0 */
/* import.h: from a base and a fine-tune to a .bdelta file.
 *
 * Both checkpoints are read once, tensor by tensor on all cores (where all is exact, up to three times); memory
 * stays at some MiB per core plus, of the tensors in work, one bit per weight or all that codes them exactly, and
 * all scales. The same inputs give the same bytes on every machine and with any number of threads.
 * The output is atomic and durable (output.h): the old file or nothing until all is done. */
#ifndef BD_IMPORT_H
#define BD_IMPORT_H

#include "delta.h"
#include "parallel.h"
#include "policy.h"
#include "sidecars.h"

enum bd_scale {
	BD_SCALE_TENSOR, /* one scale: mean |d|, as published (BitDelta, section 3.1) */
	BD_SCALE_ROW,    /* one per row: the row's mean |d| */
	BD_SCALE_RANK1,  /* row x column: the row's mean times (the column's mean / the mean) */
};
const char *bd_scale_name(enum bd_scale scale);
/* False where there is no such kind. */
bool bd_scale_parse(const char *name, enum bd_scale *scale);

/* The factor on mean |d| for changes as training makes them. mean |d| minimises the error of the
 * weights; a coherent change is attenuated by about 2/pi when only its signs are kept, so the function
 * needs more. Measured optimum for rank1 on all model pairs: 1.4. A change that already is plus or minus
 * row x column needs none: import_scales.c. */
#define BD_ATTENUATION 1.4

/* The fine-tune's tensors whose names begin with `from` are the base's with `to` in its place. The longest `from`
 * decides; where the base has no such tensor, the name stays. */
struct bd_rename {
	const char *from, *to;
};

struct bd_import_options {
	const char *base, *fine, *out; /* out must end in ".bdelta" */
	enum bd_scale scale;
	double attenuation; /* 0: for each tensor what fits its change, BD_ATTENUATION at most */
	const struct bd_rule *rules; /* after the defaults of policy.h, the last match decides */
	size_t rule_count;
	const struct bd_file_rule *file_rules; /* after the defaults of sidecars.h */
	size_t file_rule_count;
	const struct bd_rename *renames;
	size_t rename_count;
	bool exact;       /* all bit for bit: nothing is coded by signs, whatever the rules say */
	unsigned threads; /* 0: one per core */
	bool force;       /* import although the two configurations name different architectures, or most weights
			   * have no counterpart in the base */
	bool no_clobber;  /* a file that is there stays: -EEXIST, or -ECANCELED as in bd_output_replace */
	struct bd_watch watch;
};

/* Errors: -EINVAL the inputs do not fit together (the sentence names the tensor, both shapes and
 * what to do), or a rule or a rename concerns no tensor; -EINTR cancelled; those of reading and writing. */
int bd_import(const struct bd_import_options *options, struct bd_error *err);

#endif
