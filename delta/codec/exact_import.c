/* SPDX-License-Identifier: Apache-2.0 */
/* exact_import.c: coding one tensor of a fine-tune bit for bit. See import_impl.h. */
#include "codec/exact.h"

#include <errno.h>
#include <stdlib.h>

#include "import_impl.h"

/* A tensor and its base while they are coded. Coding reads each first in order, so the hashes cost no reading. */
struct source {
	struct bd_item *item;
	XXH3_state_t *fine, *base;
	uint64_t fine_hashed, base_hashed; /* bytes from the beginning */
};

static int read_fine(void *context, uint64_t at, size_t size, void *out, struct bd_error *err)
{
	struct source *s = context;
	const struct bd_tensor *t = s->item->entry->tensor;
	int rc = bd_file_read(s->item->file, out, size, t->offset + at, err);

	if (rc == 0 && s->fine && at == s->fine_hashed) {
		XXH3_128bits_update(s->fine, out, size);
		s->fine_hashed += size;
		s->item->special += bd_dtype_count_special(t->dtype, out, size);
	}
	return rc;
}

static int read_base(void *context, uint64_t at, size_t size, void *out, struct bd_error *err)
{
	struct source *s = context;
	int rc = bd_file_read(s->item->base->shard->file, out, size, s->item->base->tensor->offset + at, err);

	if (rc == 0 && s->base && at == s->base_hashed) {
		XXH3_128bits_update(s->base, out, size);
		s->base_hashed += size;
	}
	return rc;
}

/* The better of coding over the base, if it is one, and without. -ENODATA: neither pays. */
static int make_plan(struct source *s, const struct bd_exact_input *input, struct bd_exact_plan **plan,
		     bool *over_base, struct bd_error *err)
{
	const struct bd_item *item = s->item;
	const struct bd_tensor *t = item->entry->tensor;
	struct bd_exact_shape shape = { t->dtype, BD_DTYPES, bd_tensor_rows(t), bd_tensor_cols(t) };
	struct bd_exact_plan *alone = NULL;
	int rc;

	*plan = NULL;
	*over_base = item->base && !bd_item_is_resized(item) && bd_exact_has_base(t->dtype, item->base->tensor->dtype);
	if (*over_base) {
		shape.base_dtype = item->base->tensor->dtype;
		rc = bd_exact_plan_new(plan, &shape, item->table, input, err);
		if ((rc < 0 && rc != -ENODATA) || (rc == 0 && bd_exact_plan_size(*plan) < t->size / 2))
			return rc;
		shape.base_dtype = BD_DTYPES;
	}
	/* A base that is none of this tensor's only adds noise. */
	rc = bd_exact_plan_new(&alone, &shape, false, input, err);
	if (rc == -ENODATA && *plan)
		return 0;
	if (rc == 0 && (!*plan || bd_exact_plan_size(alone) < bd_exact_plan_size(*plan))) {
		bd_exact_plan_free(*plan);
		*plan = alone;
		*over_base = false;
		return 0;
	}
	bd_exact_plan_free(alone);
	return rc;
}

int bd_item_code(struct bd_item *item, const struct bd_look *look, struct bd_error *err)
{
	struct bd_entry *e = item->entry;
	struct source s = { .item = item };
	const struct bd_exact_input input = { read_base, read_fine, &s, look->stop };
	struct bd_exact_plan *plan = NULL;
	bool over_base = false;
	int rc;

	item->special = 0; /* counted anew */
	e->base_xxh128[0] = '\0';
	if (e->tensor->count == 0 || !bd_exact_has_dtype(e->tensor->dtype))
		return 0;
	rc = make_plan(&s, &input, &plan, &over_base, err);
	if (rc == 0) {
		s.fine = XXH3_createState();
		s.base = XXH3_createState();
		if (!s.fine || !s.base) {
			rc = -ENOMEM;
			goto out;
		}
		XXH3_128bits_reset(s.fine);
		XXH3_128bits_reset(s.base);
		rc = bd_exact_plan_code(plan, &input, &item->coded, &item->coded_size, err);
	}
	if (rc == 0 && item->coded_size >= e->tensor->size) { /* the sample was too kind */
		bd_item_drop(item);
		item->special = 0;
	} else if (rc == 0) {
		bd_hash_text(XXH3_128bits_digest(s.fine), e->xxh128);
		if (over_base)
			bd_hash_text(XXH3_128bits_digest(s.base), e->base_xxh128);
	}
out:
	bd_exact_plan_free(plan);
	XXH3_freeState(s.fine);
	XXH3_freeState(s.base);
	if (rc == -ENOMEM)
		return bd_item_out_of_memory(item, err);
	return rc == -ENODATA ? 0 : rc;
}
