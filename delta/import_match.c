/* SPDX-License-Identifier: Apache-2.0 */
/* import_match.c: which base tensor each tensor of a fine-tune is compared with, and what to say of weights that
 * have none. See import_impl.h.
 *
 * A weight without a counterpart is stored whole. Most often the two only use other names: another prefix, for
 * which a rename is found here, or fused experts and projections. */
#include "import_impl.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "units.h"

#define MAX_RENAMES 3 /* that are proposed */
#define MAX_TRIED 32  /* tensors that are looked at for one of them */
#define NAME "%.160s" /* in messages, which have room for some of these */

struct proposal {
	const char *name, *base; /* of a pair that shows it */
	size_t from, to;         /* bytes of the prefixes in these two */
	size_t tensors;
	uint64_t bytes;
};

struct report {
	const struct bd_plan *plan;
	struct bd_item **orphans; /* weights without a counterpart */
	bool *found;              /* for each of them: a proposal finds it */
	size_t count, worthy;     /* of orphans, and of all weights that would be signs */
	uint64_t bytes, worthy_bytes;
	bool *used;               /* for each tensor of the base: something is compared with it, or it is a copy */
	struct proposal proposals[MAX_RENAMES];
	size_t proposal_count;
};

/* ---- Renames ---- */

static bool begins(const char *name, const char *prefix, size_t length)
{
	return strncmp(name, prefix, length) == 0;
}

/* The base's tensor that NAME is with its first `cut` bytes replaced by those of `to`; NULL: none. */
static const struct bd_base_tensor *find_renamed(const struct bd_base *base, const char *name, size_t cut,
						 const char *to, size_t to_length)
{
	char renamed[BD_MAX_NAME + 1];
	int n = snprintf(renamed, sizeof(renamed), "%.*s%s", (int)to_length, to, name + cut);

	return n > 0 && (size_t)n < sizeof(renamed) ? bd_base_find(base, renamed) : NULL;
}

/* The rename with the longest prefix of NAME; of equal ones the last. */
static const struct bd_rename *rename_of(const struct bd_import_options *o, const char *name)
{
	const struct bd_rename *best = NULL;

	for (size_t i = 0; i < o->rename_count; i++) {
		const struct bd_rename *r = &o->renames[i];

		if (begins(name, r->from, strlen(r->from)) && (!best || strlen(r->from) >= strlen(best->from)))
			best = r;
	}
	return best;
}

const struct bd_base_tensor *bd_match_find(const struct bd_plan *plan, const char *name)
{
	const struct bd_rename *r = rename_of(plan->options, name);
	const struct bd_base_tensor *b = NULL;

	if (r)
		b = find_renamed(plan->base, name, strlen(r->from), r->to, strlen(r->to));
	return b ? b : bd_base_find(plan->base, name);
}

/* ---- Options that have no effect are mistakes ---- */

static int check_rule(const struct bd_plan *plan, const struct bd_rule *rule, struct bd_error *err)
{
	for (size_t i = 0; i < plan->item_count; i++)
		if (fnmatch(rule->glob, plan->items[i].entry->tensor->name, 0) == 0)
			return 0;
	return bd_error_set(err, -EINVAL, "--%s '" NAME "' matches no tensor of %s, whose names are such as '"
			    NAME "'", rule->sign ? "sign" : "raw", rule->glob, plan->options->fine,
			    plan->item_count ? plan->items[0].entry->tensor->name : "");
}

static int check_rename(const struct bd_plan *plan, const struct bd_rename *r, struct bd_error *err)
{
	const char *example = NULL;

	for (size_t i = 0; i < plan->item_count; i++) {
		const char *name = plan->items[i].entry->tensor->name;

		if (rename_of(plan->options, name) != r)
			continue;
		if (find_renamed(plan->base, name, strlen(r->from), r->to, strlen(r->to)))
			return 0;
		example = example ? example : name;
	}
	if (!example)
		return bd_error_set(err, -EINVAL, "--rename '" NAME "=" NAME "' renames no tensor of %s, whose "
				    "names are such as '" NAME "'", r->from, r->to, plan->options->fine,
				    plan->item_count ? plan->items[0].entry->tensor->name : "");
	return bd_error_set(err, -EINVAL, "--rename '" NAME "=" NAME "' finds no tensor in the base %s: it has no '"
			    NAME NAME "', for one", r->from, r->to, plan->options->base, r->to,
			    example + strlen(r->from));
}

int bd_match_check_options(const struct bd_plan *plan, struct bd_error *err)
{
	const struct bd_import_options *o = plan->options;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < o->rule_count; i++)
		rc = check_rule(plan, &o->rules[i], err);
	for (size_t i = 0; rc == 0 && i < o->rename_count; i++)
		rc = check_rename(plan, &o->renames[i], err);
	return rc;
}

/* ---- Finding renames ---- */

/* Bytes at the end that two names have in common, whole components only: what stands between dots. */
static size_t common_end(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b), n = 0, whole = 0;

	while (n < la && n < lb && a[la - n - 1] == b[lb - n - 1]) {
		n++;
		if ((n == la || a[la - n - 1] == '.') && (n == lb || b[lb - n - 1] == '.'))
			whole = n;
	}
	return whole;
}

static bool can_be_signs(const struct bd_tensor *fine, const struct bd_base_tensor *b)
{
	return b && bd_dtype_is_weight(b->tensor->dtype) && bd_tensor_same_shape(fine, b->tensor);
}

/* The orphans that a proposal would find; marked as found where `take`. */
static void count_found(const struct report *r, struct proposal *p, bool take)
{
	p->tensors = 0;
	p->bytes = 0;
	for (size_t i = 0; i < r->count; i++) {
		const struct bd_tensor *t = r->orphans[i]->entry->tensor;

		if (r->found[i] || !begins(t->name, p->name, p->from) ||
		    !can_be_signs(t, find_renamed(r->plan->base, t->name, p->from, p->base, p->to)))
			continue;
		p->tensors++;
		p->bytes += t->size;
		r->found[i] = take || r->found[i];
	}
}

/* The unused tensor of the base whose name ends most like that of an orphan; NULL: none of this shape does. */
static const char *most_alike(const struct report *r, const struct bd_tensor *t, size_t *common)
{
	const struct bd_base *base = r->plan->base;
	const char *best = NULL;

	*common = 0;
	for (size_t i = 0; i < base->checkpoint->tensor_count; i++) {
		const char *name = base->tensors[i].tensor->name;
		size_t n = r->used[i] || !can_be_signs(t, &base->tensors[i]) ? 0 : common_end(t->name, name);

		if (n > *common) {
			*common = n;
			best = name;
		}
	}
	return best;
}

/* Whoever copies a proposal to a shell must not run what a stranger has put into a name. */
static bool can_be_quoted(const struct proposal *p)
{
	return !memchr(p->name, '\'', p->from) && !memchr(p->base, '\'', p->to);
}

/* The rename that finds the most bytes of what is not found yet; false: none finds any. */
static bool propose(struct report *r)
{
	struct proposal *best = &r->proposals[r->proposal_count];
	size_t step = r->count / MAX_TRIED + 1;

	*best = (struct proposal){ 0 };
	for (size_t i = 0; i < r->count; i += step) {
		struct proposal p = { .name = r->orphans[i]->entry->tensor->name };
		size_t common;

		p.base = r->found[i] ? NULL : most_alike(r, r->orphans[i]->entry->tensor, &common);
		if (!p.base)
			continue;
		p.from = strlen(p.name) - common;
		p.to = strlen(p.base) - common;
		/* "weight" alone says nothing. */
		if ((p.from && p.to && !strchr(p.name + p.from, '.')) || !can_be_quoted(&p))
			continue;
		if (best->name && p.from == best->from && begins(p.name, best->name, p.from) &&
		    p.to == best->to && begins(p.base, best->base, p.to))
			continue;
		count_found(r, &p, false);
		if (p.bytes > best->bytes)
			*best = p;
	}
	if (best->tensors < 2 && best->tensors < r->count)
		return false;
	count_found(r, best, true);
	r->proposal_count++;
	return true;
}

/* ---- Fused tensors ---- */

/* Matrices of one side below a prefix that the other lacks. */
struct branch {
	const char *example;
	size_t tensors;
	uint64_t numbers;
};

static void add_to_branch(struct branch *b, const struct bd_tensor *t, const char *prefix, size_t length)
{
	if (t->dims < 2 || !begins(t->name, prefix, length))
		return;
	b->example = b->example ? b->example : t->name;
	b->tensors++;
	b->numbers += t->count;
}

/* Do both sides have as many numbers below a common prefix of an orphan, in another number of tensors? */
static bool find_fused(const struct report *r, struct branch *fine, struct branch *base)
{
	const struct bd_plan *plan = r->plan;
	const char *name = NULL;

	for (size_t i = 0; i < r->count && !name; i++)
		if (!r->found[i] && !r->orphans[i]->match)
			name = r->orphans[i]->entry->tensor->name;
	for (size_t n = name ? strlen(name) : 0; n > 0; n--) {
		if (name[n - 1] != '.')
			continue;
		*fine = *base = (struct branch){ 0 };
		for (size_t i = 0; i < plan->item_count; i++)
			if (!plan->items[i].match)
				add_to_branch(fine, plan->items[i].entry->tensor, name, n);
		for (size_t i = 0; i < plan->base->checkpoint->tensor_count; i++)
			if (!r->used[i])
				add_to_branch(base, plan->base->tensors[i].tensor, name, n);
		if (base->numbers == fine->numbers && base->tensors != fine->tensors)
			return true;
	}
	return false;
}

/* ---- What to say ---- */

static size_t depth(const char *name)
{
	size_t dots = 0;

	for (; *name; name++)
		dots += *name == '.';
	return dots;
}

/* A tensor of the base to show how its names look: a deep one, of those that nothing is compared with if there are
 * such. */
static const char *example_of_base(const struct report *r)
{
	const struct bd_base *base = r->plan->base;
	const char *best = "";
	size_t most = 0;

	for (size_t i = 0; i < base->checkpoint->tensor_count; i++) {
		const struct bd_tensor *t = base->tensors[i].tensor;
		size_t score = 1 + depth(t->name) + (!r->used[i] && t->dims >= 2 ? BD_MAX_NAME : 0);

		if (score > most) {
			most = score;
			best = t->name;
		}
	}
	return best;
}

/* Both names and the remedy, as the end of a sentence. */
static void explain(struct report *r, char *text, size_t room)
{
	const struct bd_item *first = r->orphans[0];
	const char *name = first->entry->tensor->name;
	struct branch fine, base;
	size_t n, found = 0;
	char amount[32];
	uint64_t bytes = 0;

	while (r->proposal_count < MAX_RENAMES && propose(r)) {
		found += r->proposals[r->proposal_count - 1].tensors;
		bytes += r->proposals[r->proposal_count - 1].bytes;
	}
	if (r->proposal_count) {
		const struct proposal *p = r->proposals;

		n = (size_t)snprintf(text, room, "'" NAME "' looks like the base's '" NAME "':", p->name, p->base);
		for (size_t i = 0; i < r->proposal_count && n < room; i++, p++)
			n += (size_t)snprintf(text + n, room - n, " --rename '%.*s=%.*s'", (int)p->from, p->name,
					      (int)p->to, p->base);
		if (n < room)
			snprintf(text + n, room - n, " finds %zu of them, %s", found, bd_units_bytes(bytes, amount));
	} else if (first->match) {
		snprintf(text, room, "the base has '" NAME "' as %s, and signs need BF16, F16 or F32: give the base "
			 "as it was before it was quantised", first->match->tensor->name,
			 bd_dtype_name(first->match->tensor->dtype));
	} else if (find_fused(r, &fine, &base)) {
		snprintf(text, room, "'" NAME "' and its like (%zu) have as many numbers as the base's '" NAME "' and its "
			 "like (%zu), so one of the two fuses experts or projections: save one with the library that "
			 "wrote the other", fine.example, fine.tensors, base.example, base.tensors);
	} else {
		snprintf(text, room, "names like '" NAME "' are not in the base, which has such as '" NAME "'", name,
			 example_of_base(r));
	}
}

static int collect(struct report *r)
{
	const struct bd_plan *plan = r->plan;
	const struct bd_checkpoint *base = plan->base->checkpoint;

	r->orphans = calloc(plan->item_count + 1, sizeof(*r->orphans));
	r->found = calloc(plan->item_count + 1, sizeof(*r->found));
	r->used = calloc(base->tensor_count + 1, sizeof(*r->used));
	if (!r->orphans || !r->found || !r->used)
		return -ENOMEM;
	for (size_t i = 0; i < base->tensor_count; i++)
		r->used[i] = bd_checkpoint_is_copy(base, plan->base->tensors[i].tensor);
	for (size_t i = 0; i < plan->item_count; i++) {
		struct bd_item *item = &plan->items[i];
		const struct bd_base_tensor *b = item->match;

		if (b)
			r->used[b - plan->base->tensors] = true;
		if (!item->worthy)
			continue;
		r->worthy++;
		r->worthy_bytes += item->entry->tensor->size;
		if (b && bd_dtype_is_weight(b->tensor->dtype))
			continue;
		r->orphans[r->count++] = item;
		r->bytes += item->entry->tensor->size;
	}
	return 0;
}

int bd_match_report(const struct bd_plan *plan, bool related, struct bd_error *err)
{
	const struct bd_import_options *o = plan->options;
	struct report r = { .plan = plan };
	char why[800] = "", part[32], whole[32];
	int rc = collect(&r);

	if (rc < 0) {
		bd_error_set(err, rc, "%s: out of memory", o->fine);
		goto out;
	}
	if (r.count)
		explain(&r, why, sizeof(why));
	if (!related)
		rc = bd_error_set(err, -EINVAL, "%s has nothing in common with the base %s (no tensor of the same "
				  "name and shape)%s%s%s", o->fine, o->base, *why ? ": " : "", why,
				  r.proposal_count ? "" : "; give the base that it was made from");
	else if (r.bytes * 2 > r.worthy_bytes && !o->force)
		rc = bd_error_set(err, -EINVAL, "%zu of %zu weights of %s (%s of %s) have no counterpart in the base "
				  "%s and would be kept whole: %s; --force imports it all the same", r.count,
				  r.worthy, o->fine, bd_units_bytes(r.bytes, part),
				  bd_units_bytes(r.worthy_bytes, whole), o->base, why);
	else if (r.count)
		bd_import_note(o, "%zu of %zu weights (%s of %s) have no counterpart in the base and are kept "
			       "whole: %s", r.count, r.worthy, bd_units_bytes(r.bytes, part),
			       bd_units_bytes(r.worthy_bytes, whole), why);
out:
	free(r.orphans);
	free(r.found);
	free(r.used);
	return rc;
}
