/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c: defaults and rules for the choice of encodings, see policy.h. */
#include "policy.h"

#include <fnmatch.h>

/* Tables with a row per token, as Llama, GPT-2, MPT, GPT-NeoX, BLOOM, T5 and others name them. */
static const char *const vocabulary[] = {
	"*embed*", "*wte*", "*lm_head*", "output.weight", "shared.weight",
};

/* Further weights of two or more dimensions that stay exact: positions, norms, biases, and the
 * small matrices that route tokens to experts or end in classes, where one wrong sign is a wrong
 * answer. */
static const char *const exact[] = {
	"*wpe*", "*norm*", "*.ln_*", "*.bias", "*_bias", "*router*", "*.gate.weight", "*.wg.weight",
	"score.weight", "classifier.*", "*.v_head.*",
};

static bool matches_any(const char *const *globs, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (fnmatch(globs[i], name, 0) == 0)
			return true;
	return false;
}

#define MATCHES_ANY(globs, name) matches_any(globs, sizeof(globs) / sizeof(*(globs)), name)

bool bd_policy_is_vocabulary(const char *name)
{
	return MATCHES_ANY(vocabulary, name);
}

enum bd_wish bd_policy_wish(const struct bd_tensor *t, const struct bd_rule *rules, size_t count,
			    bool *by_rule)
{
	enum bd_wish wish = BD_WISH_EXACT;

	if (t->dims >= 2 && !MATCHES_ANY(vocabulary, t->name) && !MATCHES_ANY(exact, t->name))
		wish = BD_WISH_SIGN;
	if (by_rule)
		*by_rule = false;
	for (size_t i = 0; i < count; i++)
		if (fnmatch(rules[i].glob, t->name, 0) == 0) {
			wish = rules[i].sign ? BD_WISH_SIGN : BD_WISH_EXACT;
			if (by_rule)
				*by_rule = true;
		}
	return wish;
}
