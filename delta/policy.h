/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h: which tensors an import codes by signs, by name and kind.
 *
 * Signs are for linear weights, as in the published method. Embeddings, output heads, norms, biases
 * and routers stay exact: small, or ruined by one bit. A user's rules come after the defaults, and
 * the last rule whose glob matches the whole name decides. */
#ifndef BD_POLICY_H
#define BD_POLICY_H

#include "safetensors.h"

struct bd_rule {
	bool sign;        /* else exact */
	const char *glob; /* fnmatch(3); '*' also matches '.' and '/' */
};

enum bd_wish { BD_WISH_EXACT, BD_WISH_SIGN };

/* What is wanted for a tensor, if its base allows it. *by_rule (may be NULL): did a user's rule
 * decide? */
enum bd_wish bd_policy_wish(const struct bd_tensor *t, const struct bd_rule *rules, size_t count,
			    bool *by_rule);
/* Is it a table with a row per token, which may have grown or shrunk? */
bool bd_policy_is_vocabulary(const char *name);

#endif
