/* SPDX-License-Identifier: Apache-2.0 */
/* test_policy.c: which tensors are wanted as signs: by name, by rules, by what the model says of itself
 * and by what stands beside them. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "policy.h"
#include "testdata.h"

static enum bd_wish wish(const char *name, unsigned dims)
{
	struct bd_tensor t = { .name = name, .dtype = BD_BF16, .dims = dims, .shape = (const uint64_t[]){ 8, 8, 8 } };
	static const struct bd_policy names_alone;
	bool by_rule = true;
	enum bd_wish found = bd_policy_wish(&names_alone, &t, &by_rule);

	assert_false(by_rule);
	assert_int_equal(bd_policy_wish(&names_alone, &t, NULL), found);
	return found;
}

static bool is_table(const char *name)
{
	static const struct bd_policy names_alone;
	struct bd_tensor fine = { .name = name, .dims = 2, .shape = (const uint64_t[]){ 9, 8 } };
	struct bd_tensor base = { .name = name, .dims = 2, .shape = (const uint64_t[]){ 8, 8 } };

	return bd_policy_is_vocabulary(&names_alone, &fine, &base);
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
		assert_false(is_table(names[i]));
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
		"vit.pos_embed", "blocks.0.attn.rel_pos_h", "layers.0.attn.relative_position_bias_table",
		"model.layers.0.self_attn.rotary_emb.cos_cached", "model.rotary_emb.inv_freq",
		"h.0.attn.masked_bias", "bn1.running_mean", "model.layers.0.mlp.up_proj.scales",
		"model.layers.0.mlp.experts.3.up_proj.weight_scale_inv", "mixer.A_log",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (wish(names[i], 2) != BD_WISH_EXACT)
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
		assert_true(is_table(are[i]));
	for (size_t i = 0; i < sizeof(are_not) / sizeof(*are_not); i++)
		assert_false(is_table(are_not[i]));
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

	const struct bd_policy policy = { .rules = rules, .rule_count = 6 };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct bd_tensor t = { .name = cases[i].name, .dims = cases[i].dims,
				       .shape = (const uint64_t[]){ 8, 8 } };
		bool by_rule = false;

		if (bd_policy_wish(&policy, &t, &by_rule) != cases[i].wish)
			fail_msg("%s", cases[i].name);
		assert_true(by_rule);
	}
	/* Rules that match nothing change nothing. */
	{
		struct bd_tensor t = { .name = "model.layers.0.q_proj.weight", .dims = 2,
				       .shape = (const uint64_t[]){ 8, 8 } };
		struct bd_rule none[] = { { false, "q_proj" }, { false, "" }, { false, "[" } };
		struct bd_policy matches_nothing = { .rules = none, .rule_count = 3 };
		bool by_rule = true;

		assert_int_equal(bd_policy_wish(&matches_nothing, &t, &by_rule), BD_WISH_SIGN);
		assert_false(by_rule);
	}
}

/* ---- What a model says of itself, and what stands beside what ---- */

enum { SIGN, EXACT, QUANTISED }; /* QUANTISED is exact, and counted as such */

struct row {
	const char *name;
	enum bd_dtype dtype;
	unsigned dims;
	uint64_t shape[3];
	int expected;
};

struct model {
	char *base, *fine;
	struct bd_checkpoint *checkpoint[2];
	struct bd_config config[2];
	struct bd_policy policy;
};

static struct bd_error err;

/* Base and fine-tune alike, each tensor in the shard that its number says: odd and even ones apart. */
static void model_begin(struct model *m, const struct row *rows, size_t count, const char *file,
			const char *text)
{
	char *dirs[2] = { td_dir(), td_dir() };

	*m = (struct model){ .base = dirs[0], .fine = dirs[1] };
	for (int d = 0; d < 2; d++) {
		char *index = td_format("{\"weight_map\":{");

		for (size_t s = 0; s < 2; s++) {
			struct td_tensor shard[64];
			size_t n = 0;

			for (size_t i = s; i < count; i += 2) {
				shard[n++] = (struct td_tensor){
					.name = rows[i].name, .dtype = rows[i].dtype, .dims = rows[i].dims,
					.shape = { rows[i].shape[0], rows[i].shape[1], rows[i].shape[2] },
				};
				index = td_format("%s%s\"%s\":\"%zu.safetensors\"", index,
						  i > 1 || n > 1 || s ? "," : "", rows[i].name, s);
			}
			td_safetensors(dirs[d], td_format("%zu.safetensors", s), shard, n, NULL);
		}
		td_text(dirs[d], "model.safetensors.index.json", td_format("%s}}", index));
		if (file)
			td_text(dirs[d], file, text);
		if (bd_checkpoint_open(&m->checkpoint[d], dirs[d], &err) ||
		    bd_config_read(&m->config[d], m->checkpoint[d], &err))
			fail_msg("%s", err.text);
	}
	if (bd_policy_learn(&m->policy, m->checkpoint[0], &m->config[0], m->checkpoint[1], &m->config[1], &err))
		fail_msg("%s", err.text);
}

static void model_end(struct model *m)
{
	bd_policy_free(&m->policy);
	for (int d = 0; d < 2; d++) {
		bd_config_free(&m->config[d]);
		bd_checkpoint_close(m->checkpoint[d]);
	}
}

static void check(const struct row *rows, size_t count, const char *file, const char *text)
{
	struct model m;

	model_begin(&m, rows, count, file, text);
	for (size_t i = 0; i < count; i++) {
		const struct bd_tensor *t = bd_checkpoint_find(m.checkpoint[1], rows[i].name, NULL);
		bool sign = bd_dtype_is_weight(t->dtype) &&
			    bd_policy_wish(&m.policy, t, NULL) == BD_WISH_SIGN;

		if (sign != (rows[i].expected == SIGN) ||
		    bd_policy_is_quantised(&m.policy, t) != (rows[i].expected == QUANTISED))
			fail_msg("%s of %s", rows[i].name, text ? text : "a model without a word");
	}
	model_end(&m);
}

#define CHECK(rows, file, text) check(rows, sizeof(rows) / sizeof(*(rows)), file, text)

static void tables_by_size(void **state)
{
	static const struct row heads[] = {
		{ "transformer.output_layer.weight", BD_BF16, 2, { 1552, 64 }, EXACT }, /* ChatGLM */
		{ "model.transformer.ff_out.weight", BD_BF16, 2, { 1552, 64 }, EXACT },
		{ "model.transformer.blocks.0.ff_out.weight", BD_BF16, 2, { 64, 160 }, SIGN },
		{ "emb.weight", BD_BF16, 2, { 1552, 64 }, EXACT },
		{ "cls.predictions.decoder.weight", BD_BF16, 2, { 1552, 64 }, EXACT },
		{ "decoder.codebooks_head.weight", BD_BF16, 3, { 3, 64, 1552 }, EXACT },
		{ "blocks.0.att.key.weight", BD_BF16, 2, { 64, 64 }, SIGN },
	};
	static const struct row padded[] = {
		{ "head.weight", BD_BF16, 2, { 1600, 64 }, EXACT },
		{ "unpadded.weight", BD_BF16, 2, { 1550, 64 }, EXACT },
		{ "a.weight", BD_BF16, 2, { 1580, 64 }, SIGN },
	};
	static const struct row beside[] = {
		{ "transformer.wte.weight", BD_BF16, 2, { 777, 64 }, EXACT },
		{ "transformer.ff_out.weight", BD_BF16, 2, { 777, 64 }, EXACT },
		{ "vision.patch_embed.weight", BD_BF16, 2, { 96, 64 }, EXACT },
		{ "vision.blocks.0.weight", BD_BF16, 2, { 96, 64 }, SIGN },
	};
	static const struct row tokens[] = {
		{ "head.weight", BD_BF16, 2, { 7, 64 }, EXACT },
		{ "a.weight", BD_BF16, 2, { 6, 64 }, SIGN },
	};
	static const struct row buffers[] = {
		{ "rope.table", BD_F32, 3, { 1, 32, 64 }, EXACT },
		{ "conv.weight", BD_F32, 3, { 32, 32, 4 }, SIGN },
	};

	(void)state;
	CHECK(heads, "config.json", "{\"model_type\":\"x\",\"vocab_size\":1550,\"padded_vocab_size\":1552}");
	CHECK(heads, "config.json", "{\"a\":[{}],\"text_config\":{\"b\":{},\"vocab_size\":1552},\"c\":NULL}");
	CHECK(heads, "config.json", "{\"llm_config\":{\"text\":{\"n_vocab\":1552}}}");
	CHECK(padded, "config.json", "{\"vocab_size\":1550}");
	CHECK(beside, NULL, NULL);
	CHECK(tokens, "tokenizer.json", "{\"added_tokens\":[{\"id\":6,\"content\":\"c\"}],\"model\":{\"type\":"
	      "\"BPE\",\"vocab\":{\"a\":0,\"vocab\":1},\"merges\":[]}}");
	CHECK(tokens, "tokenizer.json", "{\"added_tokens\":[],\"model\":{\"vocab\":[[\"a\",0.5],[\"b\",-1],"
	      "[\"c\",0],[\"d\",0],[\"e\",0],[\"f\",0],[\"g\",0]]}}");
	CHECK(buffers, NULL, NULL);
}

/* A model that has as many tokens as its layers are wide. */
static void widths_are_no_tables(void **state)
{
	struct row rows[20];

	(void)state;
	for (int i = 0; i < 20; i++)
		rows[i] = (struct row){ td_format("layers.%d.weight", i), BD_BF16, 2, { 384, 384 }, SIGN };
	rows[0] = (struct row){ "shared.weight", BD_BF16, 2, { 384, 384 }, EXACT };
	check(rows, 20, "config.json", "{\"vocab_size\":384}");
	for (int i = 1; i < 6; i++)
		rows[i].expected = EXACT;
	check(rows, 6, "config.json", "{\"vocab_size\":384}");
}

static void resized_tables(void **state)
{
	static const struct row rows[] = {
		{ "transformer.output_layer.weight", BD_BF16, 2, { 50, 64 }, EXACT },
		{ "a.weight", BD_BF16, 2, { 20, 64 }, SIGN },
	};
	struct bd_tensor grown = { .name = "transformer.output_layer.weight", .dims = 2,
				   .shape = (const uint64_t[]){ 53, 64 } };
	struct bd_config config = { .vocabularies = { 53 }, .vocabulary_count = 1 };
	struct model m;

	(void)state;
	model_begin(&m, rows, 2, "config.json", "{\"vocab_size\":50}");
	assert_false(bd_policy_is_vocabulary(&m.policy, &grown,
					     bd_checkpoint_find(m.checkpoint[0], grown.name, NULL)));
	bd_policy_free(&m.policy);
	assert_int_equal(bd_policy_learn(&m.policy, m.checkpoint[0], &m.config[0], m.checkpoint[1], &config,
					 &err), 0);
	assert_true(bd_policy_is_vocabulary(&m.policy, &grown,
					    bd_checkpoint_find(m.checkpoint[0], grown.name, NULL)));
	grown.name = "a.weight";
	assert_false(bd_policy_is_vocabulary(&m.policy, &grown,
					     bd_checkpoint_find(m.checkpoint[0], grown.name, NULL)));
	model_end(&m);
}

/* What quantisers write, without a word in the configuration; odd and even rows are in two shards. */
static void beside_integers(void **state)
{
	static const struct row rows[] = {
		{ "gptq.qweight", BD_I32, 2, { 32, 256 }, QUANTISED },
		{ "gptq.qzeros", BD_I32, 2, { 4, 32 }, QUANTISED },
		{ "gptq.s", BD_F16, 2, { 32, 256 }, QUANTISED },
		{ "mlx.weight", BD_U32, 2, { 256, 32 }, QUANTISED },
		{ "mlx.multipliers", BD_BF16, 2, { 256, 16 }, QUANTISED },
		{ "mlx.biases", BD_BF16, 2, { 256, 16 }, QUANTISED },
		{ "fp8.weight", BD_F8_E4M3, 2, { 256, 256 }, QUANTISED },
		{ "fp8.blocks", BD_F32, 2, { 16, 16 }, QUANTISED },
		{ "nf4.weight", BD_U8, 2, { 8192, 1 }, QUANTISED },
		{ "nf4.weight.values", BD_F32, 2, { 16, 16 }, QUANTISED },
		{ "mlp.experts.gate_up_proj_blocks", BD_U8, 3, { 4, 64, 64 }, QUANTISED },
		{ "mlp.experts.gate_up_proj_exponents", BD_F32, 3, { 4, 16, 16 }, QUANTISED },
		{ "hqq.W_q", BD_U8, 2, { 64, 64 }, QUANTISED },
		{ "hqq.zero", BD_F16, 2, { 64, 16 }, QUANTISED },
		/* Not quantised: */
		{ "lm.weight", BD_BF16, 2, { 64, 64 }, SIGN },
		{ "embeddings.position_ids", BD_I64, 2, { 1, 512 }, EXACT },
		{ "embeddings.weight", BD_BF16, 2, { 8, 64 }, EXACT },
		{ "gpt2.attn.mask", BD_BOOL, 2, { 64, 64 }, EXACT },
		{ "gpt2.attn.weight", BD_BF16, 2, { 16, 64 }, SIGN },
		{ "gpt2.attn.c_proj.weight", BD_BF16, 2, { 16, 64 }, SIGN },
		{ "index.ids", BD_I32, 1, { 16 }, EXACT },
		{ "index.weight", BD_BF16, 2, { 64, 64 }, SIGN },
	};

	(void)state;
	CHECK(rows, NULL, NULL);
}

/* The configuration says it: what is not called a matrix is exact, whatever stands beside it. */
static void said_to_be_quantised(void **state)
{
	static const struct row rows[] = {
		{ "experts.0.down_proj.weight_block", BD_F32, 2, { 56, 16 }, QUANTISED },
		{ "up_proj.indices", BD_I16, 2, { 128, 64 }, QUANTISED },
		{ "up_proj.centroids.weight", BD_F16, 2, { 64, 16 }, QUANTISED },
		{ "codes", BD_U8, 2, { 64, 64 }, QUANTISED },
		{ "kept.q_proj.weight", BD_BF16, 2, { 64, 64 }, SIGN },
		{ "kept.experts.gate_up_proj", BD_BF16, 3, { 4, 64, 64 }, SIGN },
		{ "lm_head.weight", BD_BF16, 2, { 96, 64 }, EXACT },
	};
	static const struct row plain[] = {
		{ "experts.0.down_proj.weight_block", BD_F32, 2, { 56, 16 }, SIGN },
		{ "codes", BD_U8, 2, { 64, 64 }, EXACT },
	};

	(void)state;
	CHECK(rows, "config.json", "{\"quantization_config\":{\"quant_method\":\"fp8\"}}");
	CHECK(rows, "config.json", "{\"quantization\":{\"group_size\":64,\"bits\":4}}");
	CHECK(rows, "config.json", "{\"text_config\":{\"quantization_config\":{\"bits\":4}}}");
	CHECK(rows, "hf_quant_config.json", "{}");
	CHECK(plain, "config.json", "{\"quantization_config\":null}");
	CHECK(plain, NULL, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(linear_weights),
		cmocka_unit_test(exact_weights),
		cmocka_unit_test(vocabularies),
		cmocka_unit_test(last_rule_wins),
		cmocka_unit_test(tables_by_size),
		cmocka_unit_test(widths_are_no_tables),
		cmocka_unit_test(resized_tables),
		cmocka_unit_test(beside_integers),
		cmocka_unit_test(said_to_be_quantised),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
