/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c: defaults and rules for the choice of encodings, see policy.h. */
#include "policy.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "glob.h"
#include "names.h"

/* Tables with a row per token, as Llama, GPT-2, MPT, GPT-NeoX, BLOOM, T5 and others name them. */
static const char *const vocabulary[] = {
	"*embed*", "*wte*", "*lm_head*", "output.weight", "shared.weight",
};

/* Those among them that tell how many tokens there are; others may have a row per position or patch. */
static const char *const token_tables[] = {
	"*embed_tokens.weight", "*wte.weight", "*word_embeddings.weight", "*tok_embeddings.weight",
	"*embed_in.weight", "*embed_out.weight", "*lm_head.weight", "output.weight", "shared.weight",
};

/* Further weights of two or more dimensions that stay exact: positions, buffers, norms, biases, what
 * quantisation calls its numbers, exponents of state spaces, and the small matrices that route
 * tokens to experts or end in classes, where one wrong sign is a wrong answer. */
static const char *const exact[] = {
	"*wpe*", "*pos_emb*", "*positional*", "*position_ids*", "*rel_pos*", "*relative_position*",
	"*relative_attention_bias*", "*pos_bias*", "*bias_table", "*alibi*", "*rotary*",
	"*inv_freq*", "*freqs_cis*", "*cos_cache*", "*sin_cache*", "*_mask", "*masked_bias*",
	"*running_mean*", "*running_var*",
	"*norm*", "*.ln_*", "*.bias", "*_bias",
	"*scale", "*scales", "*scale_inv", "*scale_[0-9]", "*zero_point", "*zero_points", "*zeros",
	"*absmax", "*quant_map", "*centroids*", "*codebooks*", "*lookup_table*", "*.A_log",
	"*router*", "*.gate.weight", "*.wg.weight", "score.weight", "classifier.*", "*.v_head.*",
};

/* Numbers of tokens from which on tables are padded, and to what multiples. */
#define PADDED_FROM 1024
static const uint64_t paddings[] = { 8, 16, 32, 64, 128, 256, 512, 1024 };

/* Sizes of vocabularies that are remembered: far more than models have, and few enough to look at all. */
#define MAX_SIZES 1024

/* A number that so many matrices without a table's name have as a dimension is a width of the model,
 * though it may be that of the vocabulary too. */
#define WIDTH 12

/* A module, "model.layers.0.mlp.up_proj", that holds integers; or a tensor of integers whose name
 * begins those of others, "model.layers.0.mlp.up_proj.weight" with ".absmax". */
struct bd_module {
	char *name;
	uint64_t size; /* bytes of the largest tensor of integers */
	bool scaled;   /* there are numbers that may be its scales */
};

static int out_of_memory(struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "out of memory");
}

/* Run `visit` on all tensors of a checkpoint until it fails. */
static int each_tensor(struct bd_policy *p, const struct bd_checkpoint *c,
		       int (*visit)(struct bd_policy *, const struct bd_tensor *))
{
	int rc = 0;

	for (size_t s = 0; rc == 0 && s < c->shard_count; s++)
		for (size_t i = 0; rc == 0 && i < c->shards[s].st->count; i++)
			rc = visit(p, &c->shards[s].st->tensors[i]);
	return rc;
}

/* ---- Vocabularies ---- */

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static bool is_size(const struct bd_policy *p, uint64_t n)
{
	return p->size_count && bsearch(&n, p->sizes, p->size_count, sizeof(n), by_size);
}

static int add_size(struct bd_policy *p, uint64_t n)
{
	uint64_t *grown;
	size_t at = 0;

	if (n == 0 || p->size_count == MAX_SIZES || is_size(p, n))
		return 0;
	grown = realloc(p->sizes, (p->size_count + 1) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	p->sizes = grown;
	while (at < p->size_count && grown[at] < n)
		at++;
	memmove(grown + at + 1, grown + at, (p->size_count - at) * sizeof(*grown));
	grown[at] = n;
	p->size_count++;
	return 0;
}

static int add_configured(struct bd_policy *p, const struct bd_config *config)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < config->vocabulary_count; i++) {
		uint64_t n = config->vocabularies[i];

		rc = add_size(p, n);
		for (size_t k = 0; rc == 0 && n >= PADDED_FROM && k < sizeof(paddings) / sizeof(*paddings); k++)
			rc = add_size(p, (n + paddings[k] - 1) / paddings[k] * paddings[k]);
	}
	return rc;
}

static int add_table(struct bd_policy *p, const struct bd_tensor *t)
{
	return t->dims == 2 && BD_GLOB_ANY(token_tables, t->name) ? add_size(p, t->shape[0]) : 0;
}

static bool is_named_exact(const struct bd_tensor *t)
{
	return BD_GLOB_ANY(vocabulary, t->name) || BD_GLOB_ANY(exact, t->name);
}

/* Rows as tables have them, or columns, as heads that are stored the other way round. */
static bool has_size(const struct bd_policy *p, const struct bd_tensor *t)
{
	return t->dims >= 2 && (is_size(p, t->shape[0]) || is_size(p, t->shape[t->dims - 1]));
}

/* Forget sizes that are widths. */
static int drop_widths(struct bd_policy *p, const struct bd_checkpoint *c)
{
	unsigned *uses = calloc(p->size_count + 1, sizeof(*uses));
	size_t kept = 0;

	if (!uses)
		return -ENOMEM;
	for (size_t s = 0; s < c->shard_count; s++)
		for (size_t i = 0; i < c->shards[s].st->count; i++) {
			const struct bd_tensor *t = &c->shards[s].st->tensors[i];

			if (!has_size(p, t) || is_named_exact(t))
				continue;
			for (size_t k = 0; k < p->size_count; k++)
				uses[k] += t->shape[0] == p->sizes[k] ||
					   t->shape[t->dims - 1] == p->sizes[k];
		}
	for (size_t k = 0; k < p->size_count; k++)
		if (uses[k] <= WIDTH)
			p->sizes[kept++] = p->sizes[k];
	p->size_count = kept;
	free(uses);
	return 0;
}

bool bd_policy_is_vocabulary(const struct bd_policy *p, const struct bd_tensor *fine,
			     const struct bd_tensor *base)
{
	return BD_GLOB_ANY(vocabulary, fine->name) ||
	       (fine->dims >= 2 && base->dims >= 2 && is_size(p, fine->shape[0]) &&
		is_size(p, base->shape[0]));
}

/* ---- Quantised weights ---- */

/* Whole numbers of 64 bits are indices and shapes. */
static bool is_quantised_dtype(enum bd_dtype dtype)
{
	return dtype != BD_BOOL && !bd_dtype_is_weight(dtype) && bd_dtype_bits(dtype) <= 32;
}

/* Bytes of the module in a tensor's name, without the dot; 0 where there is none. */
static size_t module_length(const char *name, size_t length)
{
	while (length > 0 && name[length - 1] != '.')
		length--;
	return length > 0 ? length - 1 : 0;
}

static struct bd_module *find_module(const struct bd_policy *p, const char *name, size_t length)
{
	char text[BD_MAX_NAME + 1];
	uint32_t number;

	if (length == 0 || length > BD_MAX_NAME || !p->module_names)
		return NULL;
	memcpy(text, name, length);
	text[length] = '\0';
	return bd_name_table_find(p->module_names, text, &number) ? &p->modules[number] : NULL;
}

static int add_module(struct bd_policy *p, const char *name, size_t length, uint64_t size)
{
	struct bd_module *m = find_module(p, name, length);

	if (m)
		m->size = m->size > size ? m->size : size;
	if (m || length == 0)
		return 0;
	if ((p->module_count & (p->module_count - 1)) == 0) { /* full: the room is a power of two */
		m = realloc(p->modules, (p->module_count ? 2 * p->module_count : 1) * sizeof(*m));
		if (!m)
			return -ENOMEM;
		p->modules = m;
	}
	m = &p->modules[p->module_count];
	*m = (struct bd_module){ .name = strndup(name, length), .size = size };
	if (!m->name)
		return -ENOMEM;
	return bd_name_table_add(p->module_names, m->name, (uint32_t)p->module_count++);
}

static int add_integers(struct bd_policy *p, const struct bd_tensor *t)
{
	size_t length = strlen(t->name);
	int rc;

	if (!is_quantised_dtype(t->dtype) || t->dims == 0)
		return 0;
	rc = add_module(p, t->name, module_length(t->name, length), t->size);
	return rc < 0 ? rc : add_module(p, t->name, length, t->size);
}

/* The module of integers that a tensor's numbers belong to. They are fewer than the integers: a mask or
 * an index beside a matrix does not make that a scale. NULL: none. */
static struct bd_module *owner(const struct bd_policy *p, const struct bd_tensor *t)
{
	size_t length = module_length(t->name, strlen(t->name));
	struct bd_module *m;

	if (is_quantised_dtype(t->dtype))
		return NULL;
	m = find_module(p, t->name, length);
	if (!m && p->quantised) /* "up_proj.centroids.weight" */
		m = find_module(p, t->name, module_length(t->name, length));
	return m && t->size <= m->size ? m : NULL;
}

static int mark_scaled(struct bd_policy *p, const struct bd_tensor *t)
{
	struct bd_module *m = owner(p, t);

	if (m && t->count > 1)
		m->scaled = true;
	return 0;
}

/* Is it one of the numbers beside quantised integers? In a model that says that it is quantised,
 * whatever is not called a matrix: the integers may be elsewhere. */
static bool is_companion(const struct bd_policy *p, const struct bd_tensor *t)
{
	return bd_dtype_is_weight(t->dtype) &&
	       (owner(p, t) || (p->quantised && !bd_glob_ends(t->name, "weight") &&
				!bd_glob_ends(t->name, "proj")));
}

bool bd_policy_is_quantised(const struct bd_policy *p, const struct bd_tensor *t)
{
	size_t length = strlen(t->name);
	const struct bd_module *m;

	if (!is_quantised_dtype(t->dtype))
		return t->dims >= 2 && is_companion(p, t);
	if (p->quantised || bd_dtype_bits(t->dtype) < 8 ||
	    (t->dtype >= BD_F8_E5M2 && t->dtype <= BD_F8_E5M2FNUZ))
		return true;
	m = find_module(p, t->name, length);
	if (!m || !m->scaled)
		m = find_module(p, t->name, module_length(t->name, length));
	return m && m->scaled;
}

/* ---- Both ---- */

int bd_policy_learn(struct bd_policy *p, const struct bd_checkpoint *base,
		    const struct bd_config *base_config, const struct bd_checkpoint *fine,
		    const struct bd_config *fine_config, struct bd_error *err)
{
	int rc;

	p->quantised = base_config->quantised || fine_config->quantised;
	p->module_names = bd_name_table_new(0);
	rc = p->module_names ? add_configured(p, base_config) : -ENOMEM;
	if (rc == 0)
		rc = add_configured(p, fine_config);
	if (rc == 0)
		rc = each_tensor(p, base, add_table);
	if (rc == 0)
		rc = each_tensor(p, fine, add_table);
	if (rc == 0)
		rc = drop_widths(p, base);
	if (rc == 0)
		rc = drop_widths(p, fine);
	if (rc == 0)
		rc = each_tensor(p, fine, add_integers);
	if (rc == 0)
		rc = each_tensor(p, fine, mark_scaled);
	return rc < 0 ? out_of_memory(err) : 0;
}

void bd_policy_free(struct bd_policy *p)
{
	bd_name_table_free(p->module_names);
	for (size_t i = 0; i < p->module_count; i++)
		free(p->modules[i].name);
	free(p->modules);
	free(p->sizes);
	*p = (struct bd_policy){ 0 };
}

/* Leading dimensions of 1, as masks, tables of positions and of cosines have them. */
static bool is_buffer(const struct bd_tensor *t)
{
	return t->dims >= 3 && t->shape[0] == 1;
}

enum bd_wish bd_policy_wish(const struct bd_policy *p, const struct bd_tensor *t, bool *by_rule)
{
	enum bd_wish wish = BD_WISH_EXACT;

	if (t->dims >= 2 && !is_named_exact(t) && !has_size(p, t) && !is_buffer(t) &&
	    !is_companion(p, t))
		wish = BD_WISH_SIGN;
	if (by_rule)
		*by_rule = false;
	for (size_t i = 0; i < p->rule_count; i++)
		if (fnmatch(p->rules[i].glob, t->name, 0) == 0) {
			wish = p->rules[i].sign ? BD_WISH_SIGN : BD_WISH_EXACT;
			if (by_rule)
				*by_rule = true;
		}
	return wish;
}
