/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h: which tensors an import codes by signs, by what they are called and what they stand beside.
 *
 * Signs are for linear weights, as in the published method. Embeddings, output heads, positions,
 * buffers, norms, biases and routers stay exact: small, or ruined by one bit. So does all that
 * belongs to a quantised weight: an integer means nothing without its exact scale. A user's rules come
 * after the defaults, and the last rule whose glob matches the whole name decides. */
#ifndef BD_POLICY_H
#define BD_POLICY_H

#include "config.h"

struct bd_rule {
	bool sign;        /* else exact */
	const char *glob; /* fnmatch(3); '*' also matches '.' and '/' */
};

/* With nothing but rules, names alone decide. */
struct bd_policy {
	const struct bd_rule *rules; /* borrowed */
	size_t rule_count;
	/* Private, see policy.c: */
	uint64_t *sizes;   /* of vocabularies, ascending */
	size_t size_count;
	bool quantised;    /* the configuration says so */
	struct bd_name_table *module_names; /* to numbers of modules that hold integers */
	struct bd_module *modules;
	size_t module_count;
};

enum bd_wish { BD_WISH_EXACT, BD_WISH_SIGN };

/* Look at both models and what they say of themselves. The two checkpoints must outlive the policy.
 * Errors: -ENOMEM; then, too, it is to be freed. */
int bd_policy_learn(struct bd_policy *p, const struct bd_checkpoint *base,
		    const struct bd_config *base_config, const struct bd_checkpoint *fine,
		    const struct bd_config *fine_config, struct bd_error *err);
void bd_policy_free(struct bd_policy *p);

/* What is wanted for a tensor of the fine-tune, if its base allows it. *by_rule (may be NULL): did a
 * user's rule decide? */
enum bd_wish bd_policy_wish(const struct bd_policy *p, const struct bd_tensor *t, bool *by_rule);
/* Are these, of fine-tune and base, a table with a row per token, which may have grown or shrunk? */
bool bd_policy_is_vocabulary(const struct bd_policy *p, const struct bd_tensor *fine,
			     const struct bd_tensor *base);
/* Is it a quantised weight, or does it belong to one? */
bool bd_policy_is_quantised(const struct bd_policy *p, const struct bd_tensor *t);

#endif
