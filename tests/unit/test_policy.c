/* SPDX-License-Identifier: Apache-2.0 */
/* test_policy.c: which tensors are wanted as signs, by default and by rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "policy.h"

static enum bd_wish wish(const char *name, unsigned dims)
{
	struct bd_tensor t = { .name = name, .dtype = BD_BF16, .dims = dims, .shape = (const uint64_t[]){ 8, 8, 8 } };
	bool by_rule = true;
	enum bd_wish found = bd_policy_wish(&t, NULL, 0, &by_rule);

	assert_false(by_rule);
	assert_int_equal(bd_policy_wish(&t, NULL, 0, NULL), found);
	return found;
}

/* Names as published checkpoints have them. */
static void linear_weights(void **state)
{
	static const char *const names[] = {
		"model.layers.0.self_attn.q_proj.weight", "model.layers.31.mlp.down_proj.weight",
		"model.layers.0.mlp.gate_proj.weight", "transformer.h.0.attn.c_attn.weight",
		"transformer.blocks.0.ffn.up_proj.weight", "gpt_neox.layers.0.attention.dense.weight",
		"model.layers.0.block_sparse_moe.experts.7.w1.weight",
		"model.decoder.layers.0.fc1.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
		"vision_model.conv1.weight",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (wish(names[i], 2) != BD_WISH_SIGN)
			fail_msg("%s", names[i]);
		assert_int_equal(wish(names[i], 3), BD_WISH_SIGN);
		assert_int_equal(wish(names[i], 1), BD_WISH_EXACT);
		assert_int_equal(wish(names[i], 0), BD_WISH_EXACT);
		assert_false(bd_policy_is_vocabulary(names[i]));
	}
}

static void exact_weights(void **state)
{
	static const char *const names[] = {
		"model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight",
		"transformer.wpe.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
		"transformer.h.0.ln_1.weight", "model.layers.0.self_attn.q_proj.bias",
		"model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight",
		"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
		"gpt_neox.embed_in.weight", "embed_out.weight", "shared.weight", "output.weight",
		"score.weight", "transformer.word_embeddings.weight", "model.layers.0.router.weight",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (wish(names[i], 2) != BD_WISH_EXACT &&
		    strcmp(names[i], "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"))
			fail_msg("%s", names[i]);
}

static void vocabularies(void **state)
{
	static const char *const are[] = {
		"model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight",
		"shared.weight", "output.weight", "gpt_neox.embed_out.weight",
	};
	static const char *const are_not[] = {
		"model.norm.weight", "attention.output.weight", "x.shared.weight", "transformer.wpe.weight",
		"model.layers.0.mlp.gate.weight", "",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(are) / sizeof(*are); i++)
		assert_true(bd_policy_is_vocabulary(are[i]));
	for (size_t i = 0; i < sizeof(are_not) / sizeof(*are_not); i++)
		assert_false(bd_policy_is_vocabulary(are_not[i]));
}

static void last_rule_wins(void **state)
{
	static const struct bd_rule rules[] = {
		{ true, "*" }, { false, "model.*" }, { true, "model.layers.[0-3].*" },
		{ false, "model.layers.2.*" }, { true, "a?c" }, { false, "literally\\*" },
	};
	static const struct { const char *name; unsigned dims; enum bd_wish wish; } cases[] = {
		{ "lm_head.weight", 2, BD_WISH_SIGN }, { "norm", 1, BD_WISH_SIGN },
		{ "scalar", 0, BD_WISH_SIGN }, { "model.x/y.z", 2, BD_WISH_EXACT },
		{ "model.layers.1.q", 2, BD_WISH_SIGN }, { "model.layers.2.q", 2, BD_WISH_EXACT },
		{ "model.layers.12.q", 2, BD_WISH_EXACT }, { "abc", 2, BD_WISH_SIGN },
		{ "literally*", 2, BD_WISH_EXACT }, { "literallyx", 2, BD_WISH_SIGN },
		{ "xmodel.", 2, BD_WISH_SIGN }, /* a glob is for the whole name */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct bd_tensor t = { .name = cases[i].name, .dims = cases[i].dims };
		bool by_rule = false;

		if (bd_policy_wish(&t, rules, 6, &by_rule) != cases[i].wish)
			fail_msg("%s", cases[i].name);
		assert_true(by_rule);
	}
	/* Rules that match nothing change nothing. */
	{
		struct bd_tensor t = { .name = "model.layers.0.q_proj.weight", .dims = 2 };
		struct bd_rule none[] = { { false, "q_proj" }, { false, "" }, { false, "[" } };
		bool by_rule = true;

		assert_int_equal(bd_policy_wish(&t, none, 3, &by_rule), BD_WISH_SIGN);
		assert_false(by_rule);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(linear_weights),
		cmocka_unit_test(exact_weights),
		cmocka_unit_test(vocabularies),
		cmocka_unit_test(last_rule_wins),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
