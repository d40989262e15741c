/* SPDX-License-Identifier: Apache-2.0 */
/* import_impl.h: what import.c (order, writing), import_plan.c (what to try), import_match.c
 * (what belongs together) and import_tensor.c (looking at one tensor) share. Private. */
#ifndef BD_IMPORT_IMPL_H
#define BD_IMPORT_IMPL_H

#include <stdatomic.h>

#include "import.h"

#define BD_IMPORT_CHUNK ((size_t)4 << 20) /* bytes read at a time */

/* One tensor of the fine-tune on its way. */
struct bd_item {
	struct bd_entry *entry;            /* of the delta being built; its tensor is the fine-tune's */
	struct bd_file *file;              /* where that lies, at entry->tensor->offset */
	const struct bd_base_tensor *match; /* the base's tensor of this name, renamed; NULL: none */
	bool worthy;                       /* would be signs over a base tensor of its shape */
	const struct bd_base_tensor *base; /* to be compared with; NULL: exact without looking */
	bool sign;                         /* to be sign-coded, unless it turns out to be the same */
	bool table;                        /* has a row per token */
	uint64_t head;                     /* slices of the first dimension to be compared; all where
					    * the shapes agree */
	bool settled;                      /* the entry says how it is stored; what is raw need not be yet */
	/* Found by looking: */
	uint8_t *bits;                     /* bd_manifest_plane_bytes of sign planes; malloced */
	float *scales;                     /* rows then cols; malloced */
	double attenuation;                /* the factor on the means of |d| that the scales have */
	uint8_t *coded;                    /* what codes it exactly; NULL: nothing that pays; malloced */
	size_t coded_size;
	bool usable;                       /* signs and scales are finite and may be stored */
	bool same;                         /* the head is bit-identical to the base's */
	uint64_t special;                  /* numbers that are infinite or not a number */
	double change;                     /* ||fine - base|| / ||base|| on the sampled rows */
};

/* Has the tensor another first dimension than in the base? */
bool bd_item_is_resized(const struct bd_item *item);

struct bd_plan {
	const struct bd_import_options *options;
	struct bd_base *base;
	struct bd_checkpoint *fine;
	struct bd_sidecars sidecars; /* of the fine-tune */
	struct bd_policy policy; /* to be freed, whatever becomes of the plan */
	struct bd_delta *delta;  /* being built; the headers of its files are borrowed from `fine` */
	struct bd_item *items;   /* all tensors in the order of the manifest; malloced */
	size_t item_count;
	unsigned related;        /* what has a counterpart in the base: see import_plan.c */
};

/* Fill delta->files and items. Errors: -EINVAL the two do not belong together. */
int bd_plan_make(struct bd_plan *plan, struct bd_error *err);
/* An upper bound of the header of what the plan can lead to. */
uint64_t bd_plan_header_bound(const struct bd_plan *plan);

/* import_match.c: the base's tensor that the fine-tune's NAME is compared with, by the renames; NULL: none. */
const struct bd_base_tensor *bd_match_find(const struct bd_plan *plan, const char *name);
/* Errors: -EINVAL a rule or a rename concerns no tensor. */
int bd_match_check_options(const struct bd_plan *plan, struct bd_error *err);
/* Tell of weights without a counterpart in the base. Errors: -EINVAL they are more than half of all, or nothing is
 * `related`. */
int bd_match_report(const struct bd_plan *plan, bool related, struct bd_error *err);

/* Tell the program something that is no error. */
void bd_import_note(const struct bd_import_options *options, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

struct bd_look {
	enum bd_scale scale;
	double attenuation;       /* 0: that which fits the tensor */
	atomic_ullong *done;                 /* bytes of the fine-tune read so far */
	const atomic_int *stop;   /* polled between chunks; may be NULL */
};

/* Read a tensor's head against its base and fill in what was found: `same`, or bits, scales,
 * entry->error and `usable`; always the base's hash where the result needs it. */
int bd_item_look_sign(struct bd_item *item, const struct bd_look *look, struct bd_error *err);
/* Compare only: `same` and the base's hash. Stops at the first difference. */
int bd_item_look_same(struct bd_item *item, const struct bd_look *look, struct bd_error *err);
/* import_scales.c: from the sums of |d| of rows and columns to item->scales, item->attenuation and, where
 * they are finite, item->usable. `fine` and `base` have room for a row each. */
int bd_item_make_scales(struct bd_item *item, const struct bd_look *look, const double *row_abs,
			const double *col_abs, char *fine, char *base, struct bd_error *err);
/* Read `count` rows of both tensors from `row` on. */
int bd_item_read_rows(const struct bd_item *item, uint64_t row, uint64_t count, char *fine, char *base,
		      struct bd_error *err);
/* The row that a sample stands for. */
uint64_t bd_item_sampled_row(uint64_t rows, uint64_t samples, uint64_t sample);
int bd_item_out_of_memory(const struct bd_item *item, struct bd_error *err);
/* codec/exact_import.c: find what codes a tensor that differs from its base, bit for bit: item->coded, and the
 * hashes of its entry. */
int bd_item_code(struct bd_item *item, const struct bd_look *look, struct bd_error *err);
/* Free bits, scales and what is coded. */
void bd_item_drop(struct bd_item *item);

#endif
