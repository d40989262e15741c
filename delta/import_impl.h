/* import_impl.h: what import.c (plan, order, writing) and import_tensor.c (looking at one tensor)
 * share. Private. */
#ifndef BD_IMPORT_IMPL_H
#define BD_IMPORT_IMPL_H

#include <stdatomic.h>

#include "import.h"

#define BD_IMPORT_CHUNK ((size_t)4 << 20) /* bytes read at a time */

/* One tensor of the fine-tune on its way. */
struct bd_item {
	struct bd_entry *entry;              /* of the delta being built; entry->tensor is the fine-tune's */
	struct bd_file *file;                /* where that lies, at entry->tensor->offset */
	const struct bd_base_tensor *base;   /* to be compared with; NULL: exact without looking */
	bool sign;                           /* to be sign-coded, unless it turns out to be the same */
	uint64_t head;                       /* slices of the first dimension to be compared; the whole
					      * tensor where shapes agree */
	/* Found by looking: */
	uint8_t *bits;                       /* sign planes, bd_manifest_plane_bytes of them; malloced */
	float *scales;                       /* rows then cols; malloced */
	bool usable;                         /* signs and scales are finite and may be stored */
	bool same;                           /* the head is bit-identical to the base's */
	double change;                       /* ||fine - base|| / ||base|| on the sampled rows */
};

struct bd_look {
	enum bd_scale scale;
	double attenuation;
	atomic_ullong *done;                 /* bytes of the fine-tune read so far */
	const volatile sig_atomic_t *stop;   /* polled between chunks; may be NULL */
};

/* Read a tensor's head against its base and fill in what was found: `same`, or bits, scales,
 * entry->error and `usable`; always the base's hash where the result needs it. */
int bd_item_look_sign(struct bd_item *item, const struct bd_look *look, struct bd_error *err);
/* Compare only: `same` and the base's hash. Stops at the first difference. */
int bd_item_look_same(struct bd_item *item, const struct bd_look *look, struct bd_error *err);
/* Free bits and scales. */
void bd_item_drop(struct bd_item *item);

#endif
