/* SPDX-License-Identifier: Apache-2.0 */
/* import_plan.c: what to try for each tensor of a fine-tune, decided from names, types and shapes
 * alone. See import_impl.h. */
#include "import_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "codec/exact.h"
#include "container.h"
#include "manifest.h"
#include "paths.h"

#define MANIFEST_BOUND 65536 /* of its own, without headers and what grows with them */

/* What a fine-tune has in common with its base. */
enum { RELATED_VECTOR = 1, RELATED_WEIGHT = 2 };

#define NUMBER 14 /* bytes of the shape of a vector: 10^12 bytes at most */

/* Do both say that they are of one kind? */
static int check_architecture(const struct bd_plan *plan, const char *base, const char *fine,
			      struct bd_error *err)
{
	const struct bd_import_options *o = plan->options;

	if (!base || !fine || strcmp(base, fine) == 0)
		return 0;
	if (!o->force)
		return bd_error_set(err, -EINVAL, "wrong architecture: the base %s is '%.100s', the fine-tune %s "
				    "is '%.100s' (model_type in config.json); give the base that the "
				    "fine-tune was made from, or --force", o->base, base, o->fine, fine);
	bd_import_note(o, "%s is '%.100s', %s is '%.100s': imported all the same, as forced", o->base, base,
		       o->fine, fine);
	return 0;
}

/* A configuration that cannot be read to its end is no reason to refuse a model, but is said. */
static int read_config(const struct bd_import_options *o, struct bd_config *config,
		       const struct bd_checkpoint *c, struct bd_error *err)
{
	int rc = bd_config_read(config, c, err);

	if (rc == 0 && config->fault.code < 0)
		bd_import_note(o, "%s: %s", config->fault.text, config->model_type ?
			       "what stands after that is not known" :
			       "it is not known whether base and fine-tune have the same architecture");
	return rc;
}

/* Learn from what both models say of themselves. */
static int read_configurations(struct bd_plan *plan, struct bd_error *err)
{
	struct bd_config base = { 0 }, fine = { 0 };
	int rc = read_config(plan->options, &base, plan->base->checkpoint, err);

	if (rc == 0)
		rc = read_config(plan->options, &fine, plan->fine, err);
	if (rc == 0)
		rc = check_architecture(plan, base.model_type, fine.model_type, err);
	plan->policy.rules = plan->options->rules;
	plan->policy.rule_count = plan->options->rule_count;
	if (rc == 0)
		rc = bd_policy_learn(&plan->policy, plan->base->checkpoint, &base, plan->fine, &fine, err);
	bd_config_free(&base);
	bd_config_free(&fine);
	return rc;
}

static bool shapes_agree_from(const struct bd_tensor *a, const struct bd_tensor *b, unsigned from)
{
	if (a->dims != b->dims)
		return false;
	for (unsigned d = from; d < a->dims; d++)
		if (a->shape[d] != b->shape[d])
			return false;
	return true;
}

/* Would signs be smaller than the tensor itself? Not for tiny or narrow ones. */
static bool pays(const struct bd_tensor *t, uint64_t rows, uint64_t cols)
{
	return bd_manifest_plane_bytes(1, rows * cols) + (rows + cols) * sizeof(float) < t->size;
}

static void keep_base(struct bd_item *item, const struct bd_base_tensor *b, uint64_t head)
{
	struct bd_entry *e = item->entry;

	item->base = b;
	item->head = head;
	if (strcmp(e->tensor->name, b->tensor->name) != 0)
		e->base_name = (char *)b->tensor->name; /* borrowed, as the headers are */
	e->base_dtype = b->tensor->dtype;
	e->base_dims = b->tensor->dims;
	e->base_shape = b->tensor->shape;
	e->base_sample = b->sample;
}

/* The option that keeps a tensor whole. A name that a shell or fnmatch(3) would take for something else is not
 * proposed, nor a long one, of which messages have no more than the beginning. */
static const char *raw_option(const char *name, char text[200])
{
	if (strlen(name) > 160 || strpbrk(name, "'*?[\\"))
		return "--raw and a pattern of its name";
	snprintf(text, 200, "--raw '%s'", name);
	return text;
}

/* DeepSpeed's ZeRO-3 leaves empty tensors in place of the weights that lie on other ranks. */
static int refuse_empty(const struct bd_plan *plan, const struct bd_tensor *fine, const struct bd_tensor *base,
			struct bd_error *err)
{
	const struct bd_import_options *o = plan->options;
	char have[200], want[200], option[200];

	bd_tensor_shape_text(fine, have, sizeof(have));
	bd_tensor_shape_text(base, want, sizeof(want));
	if (fine->count)
		return bd_error_set(err, -EINVAL, "tensor '%s' is empty (shape %s) in the base %s and has shape %s in "
				    "the fine-tune %s: give a whole base, or keep the tensor whole with %s",
				    fine->name, want, o->base, have, o->fine, raw_option(fine->name, option));
	return bd_error_set(err, -EINVAL, "tensor '%s' is empty (shape %s) in the fine-tune %s and has shape %s in the "
			    "base %s: DeepSpeed ZeRO-3 saves such placeholders; run its zero_to_fp32.py, or train with "
			    "stage3_gather_16bit_weights_on_model_save, and import the whole weights", fine->name,
			    have, o->fine, want, o->base);
}

/* Bytes that precede the name of a tensor where the container has it, at most. */
static size_t kind_size(const struct bd_plan *plan, const struct bd_entry *e)
{
	return e->copy ? BD_COPY_KIND : strlen(plan->options->exact ? "exact/" : "sign/");
}

/* Is the tensor worth comparing with that one of the base, whatever they are to become? */
static bool is_comparable(const struct bd_plan *plan, const struct bd_tensor *t, const struct bd_tensor *b)
{
	return t->dtype == b->dtype ||
	       (plan->options->exact && bd_tensor_same_shape(t, b) && bd_exact_has_base(t->dtype, b->dtype));
}

/* A copy is exact: it may hold anything, and whoever reads it does not do as the index says. */
static void plan_copy(const struct bd_plan *plan, struct bd_item *item)
{
	const struct bd_tensor *t = item->entry->tensor;
	const struct bd_base_tensor *b = item->match;

	if (b && t->count && bd_tensor_same_shape(t, b->tensor) && is_comparable(plan, t, b->tensor))
		keep_base(item, b, t->dims ? t->shape[0] : 1);
}

/* Decide what to try for one tensor. Exact without a look at the base (item->base NULL) is the
 * default. */
static int plan_tensor(struct bd_plan *plan, struct bd_item *item, struct bd_error *err)
{
	const struct bd_import_options *o = plan->options;
	struct bd_entry *e = item->entry;
	const struct bd_tensor *t = e->tensor;
	const struct bd_base_tensor *b = bd_match_find(plan, t->name);
	char have[200], want[200], option[200];
	bool by_rule, may_sign, grown, table;
	enum bd_wish wish = bd_policy_wish(&plan->policy, t, &by_rule);
	uint64_t slices;

	e->encoding = e->head = BD_RAW;
	e->error = -1;
	if (strlen(t->name) > BD_MAX_NAME - kind_size(plan, e))
		return bd_error_set(err, -EINVAL, "%s: the name of tensor '%.64s...' has %zu bytes, and at most "
				    "%zu can be kept", o->fine, t->name, strlen(t->name),
				    BD_MAX_NAME - kind_size(plan, e));
	item->match = b;
	if (e->copy) {
		plan_copy(plan, item);
		return 0;
	}
	item->worthy = wish == BD_WISH_SIGN && t->dims >= 2 && t->count && bd_dtype_is_weight(t->dtype) &&
		       pays(t, t->count / bd_tensor_cols(t), bd_tensor_cols(t));
	if (b && (t->count == 0) != (b->tensor->count == 0) && !(by_rule && wish == BD_WISH_EXACT))
		return refuse_empty(plan, t, b->tensor, err);
	if (!b || t->count == 0)
		return 0;
	grown = !bd_tensor_same_shape(t, b->tensor);
	if (!grown || shapes_agree_from(t, b->tensor, 1))
		plan->related |= t->dims >= 2 ? RELATED_WEIGHT : RELATED_VECTOR;
	may_sign = wish == BD_WISH_SIGN && t->dims >= 1 && bd_dtype_is_weight(t->dtype) &&
		   bd_dtype_is_weight(b->tensor->dtype);
	table = bd_policy_is_vocabulary(&plan->policy, t, b->tensor);
	item->table = table;
	/* What is exact anyway may have any shape. A table may not: its width is the model's. */
	if (grown && (t->dims < 2 || (wish == BD_WISH_EXACT && (by_rule || !table))))
		return 0;
	if (grown && (!shapes_agree_from(t, b->tensor, 1) || !(table || by_rule)))
		return bd_error_set(err, -EINVAL, "tensor '%s' has shape %s in the base %s and %s in the "
				    "fine-tune %s: give the base that the fine-tune was made from, or keep "
				    "the tensor whole with %s", t->name,
				    bd_tensor_shape_text(b->tensor, have, sizeof(have)), o->base,
				    bd_tensor_shape_text(t, want, sizeof(want)), o->fine,
				    raw_option(t->name, option));
	slices = t->dims == 0 ? 1 : t->shape[0];
	if (grown && b->tensor->shape[0] < slices)
		slices = b->tensor->shape[0];
	/* Kept whole where slices are not whole bytes, as in F4 with an odd number of columns. */
	if (slices == 0 || (grown && t->size % t->shape[0] != 0))
		return 0;
	if (may_sign && !o->exact) {
		e->cols = bd_tensor_cols(t);
		e->rows = t->dims == 1 ? 1 : t->count / t->shape[0] * slices / e->cols;
		item->sign = pays(t, e->rows, e->cols);
	}
	if (item->sign || is_comparable(plan, t, b->tensor))
		keep_base(item, b, slices);
	return 0;
}

static int out_of_memory(const struct bd_plan *plan, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", plan->options->out);
}

static int by_file_name(const void *a, const void *b)
{
	const struct bd_delta_file *x = a, *y = b;

	return strcmp(x->name, y->name);
}

/* What a file has now; what it has when it is stored is found then. */
static int sidecar_size(const struct bd_checkpoint *c, struct bd_delta_file *f, struct bd_error *err)
{
	struct stat st;
	char *path;
	int rc = 0;

	if (asprintf(&path, "%s/%s", c->path, f->name) < 0)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", c->path);
	if (stat(path, &st) < 0)
		rc = bd_error_set(err, -errno, "%s: %s", path, strerror(errno));
	else
		f->size = (uint64_t)st.st_size;
	f->plain = f->size > BD_MAX_SIDECAR;
	free(path);
	return rc;
}

/* The directory's files, ascending; safetensors files borrow their header from the checkpoint. */
static int plan_files(struct bd_plan *plan, struct bd_error *err)
{
	struct bd_checkpoint *fine = plan->fine;
	const struct bd_sidecars *sidecars = &plan->sidecars;
	struct bd_delta *d = plan->delta;
	const char *one, *other;
	int rc;

	d->files = calloc(fine->shard_count + sidecars->count, sizeof(*d->files));
	if (!d->files)
		return out_of_memory(plan, err);
	for (size_t i = 0; i < fine->shard_count + sidecars->count; i++) {
		struct bd_delta_file *f = &d->files[d->file_count++];
		bool shard = i < fine->shard_count;

		f->name = strdup(shard ? fine->shards[i].name : sidecars->paths[i - fine->shard_count]);
		if (!f->name)
			return out_of_memory(plan, err);
		if (!shard) {
			rc = sidecar_size(fine, f, err);
			if (rc < 0)
				return rc;
			continue;
		}
		f->st = fine->shards[i].st;
		f->size = f->st->file_size;
		f->entries = calloc(f->st->count ? f->st->count : 1, sizeof(*f->entries));
		if (!f->entries)
			return out_of_memory(plan, err);
		for (size_t t = 0; t < f->st->count; t++)
			f->entries[t].tensor = &f->st->tensors[t];
	}
	qsort(d->files, d->file_count, sizeof(*d->files), by_file_name);
	if (bd_manifest_count_directories(d) > BD_MAX_DIRECTORIES)
		return bd_error_set(err, -EINVAL, "%s: has more than %d directories; leave some out with --omit",
				    plan->options->fine, BD_MAX_DIRECTORIES);
	rc = bd_manifest_find_twins(d, &one, &other);
	if (rc < 0)
		return out_of_memory(plan, err);
	return !one ? 0 : bd_error_set(err, -EINVAL, "%s: files '%s' and '%s' cannot lie in one directory (upper "
				       "and lower case are not told apart everywhere); rename one, or leave it "
				       "out with --omit", plan->options->fine, one, other);
}

static struct bd_file *shard_file(const struct bd_plan *plan, const char *name)
{
	for (size_t s = 0; s < plan->fine->shard_count; s++)
		if (strcmp(plan->fine->shards[s].name, name) == 0)
			return plan->fine->shards[s].file;
	return NULL;
}

static bool has_weight(const struct bd_checkpoint *c)
{
	for (size_t s = 0; s < c->shard_count; s++)
		for (size_t i = 0; i < c->shards[s].st->count; i++)
			if (c->shards[s].st->tensors[i].dims >= 2)
				return true;
	return false;
}

int bd_plan_make(struct bd_plan *plan, struct bd_error *err)
{
	struct bd_delta *d = plan->delta;
	bool related;
	int rc = read_configurations(plan, err);

	if (rc == 0)
		rc = plan_files(plan, err);
	if (rc < 0)
		return rc;
	plan->items = calloc(plan->fine->tensor_count ? plan->fine->tensor_count : 1, sizeof(*plan->items));
	if (!plan->items)
		return out_of_memory(plan, err);
	for (size_t f = 0; f < d->file_count; f++) {
		struct bd_file *file = d->files[f].st ? shard_file(plan, d->files[f].name) : NULL;

		for (size_t t = 0; file && t < d->files[f].st->count; t++) {
			struct bd_item *item = &plan->items[plan->item_count++];

			item->entry = &d->files[f].entries[t];
			if (bd_checkpoint_is_copy(plan->fine, item->entry->tensor))
				item->entry->copy = (unsigned)f + 1;
			item->file = file;
			rc = plan_tensor(plan, item, err);
			if (rc < 0)
				return rc;
		}
	}
	/* A norm that nobody trained has the same name and shape in models of every kind. */
	related = plan->related != 0 && (plan->related != RELATED_VECTOR || !has_weight(plan->fine));
	rc = bd_match_check_options(plan, err);
	return rc < 0 ? rc : bd_match_report(plan, related, err);
}

bool bd_item_is_resized(const struct bd_item *item)
{
	return item->base && !bd_tensor_same_shape(item->entry->tensor, item->base->tensor);
}

/* Bytes of the text of the shape of an entry's sign planes. */
static size_t plane_shape(const struct bd_entry *e)
{
	const uint64_t bytes = bd_manifest_plane_bytes(1, e->rows * e->cols);
	const struct bd_tensor plane = { .dims = 1, .shape = &bytes };
	char text[200];

	return strlen(bd_tensor_shape_text(&plane, text, sizeof(text)));
}

uint64_t bd_plan_header_bound(const struct bd_plan *plan)
{
	uint64_t data = plan->fine->tensor_bytes + MANIFEST_BOUND, bound;

	/* Whatever is stored is no longer than this: all tensors raw, and for each file its stream. */
	for (size_t i = 0; i < plan->delta->file_count; i++) {
		const struct bd_delta_file *f = &plan->delta->files[i];

		data += f->st ? 8 * f->st->header_size : compressBound((uLong)f->size);
	}
	for (size_t i = 0; i < plan->item_count; i++)
		if (plan->items[i].entry->base_name)
			data += bd_container_name_bound(plan->items[i].entry->base_name);
	bound = 8 + 160 + bd_container_entry_bound(10, BD_U8, NUMBER, data) +
		bd_container_entry_bound(8, BD_F32, NUMBER, data);
	for (size_t i = 0; i < plan->delta->file_count; i++)
		if (!plan->delta->files[i].st)
			bound += bd_container_entry_bound(
				bd_container_name_bound(plan->delta->files[i].name) + strlen("plain/"), BD_U8,
				NUMBER, data);
	for (size_t i = 0; i < plan->item_count; i++) {
		const struct bd_item *item = &plan->items[i];
		const struct bd_tensor *t = item->entry->tensor;
		size_t name = bd_container_name_bound(t->name) + kind_size(plan, item->entry), raw, sign = 0;
		char shape[200];

		raw = bd_container_entry_bound(
			name, t->dtype, strlen(bd_tensor_shape_text(t, shape, sizeof(shape))), data);
		if (item->sign)
			sign = bd_container_entry_bound(name, BD_U8, plane_shape(item->entry), data);
		else if (plan->options->exact)
			sign = bd_container_entry_bound(name, BD_U8, NUMBER, data);
		bound += bd_item_is_resized(item) ? sign + raw : sign > raw ? sign : raw;
	}
	return bound;
}
