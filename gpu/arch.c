/* SPDX-License-Identifier: Apache-2.0 */
/* arch.c: the architectures that the engine knows, and reading one from config.json, see arch.h.
 *
 * To add an architecture, add an entry to `descriptions`: what its config.json calls things, its
 * defaults, the names of its tensors. Biases need no mention: they are added where there are
 * tensors of them. Settings that would change the arithmetic in a way that the engine does not have
 * belong in `conditions`. */
#include "arch.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "settings.h"

/* Bounds of what strangers may claim: far above all models, and no product of two overflows. */
#define MAX_LAYERS 4096
#define MAX_WIDTH (1u << 20)
#define MAX_HEADS (1u << 16)
#define MAX_MLP (1u << 24)
#define MAX_VOCABULARY (1u << 28)
#define MAX_POSITIONS (1ull << 40)

#define MAX_KEY 128 /* of those that are put together here */
#define PIECE ((uint64_t)1 << 20) /* bytes of two tensors that are compared at a time */

/* A setting, and its only values that the engine has: as in JSON but without quotes, separated by
 * '|'. Where it is absent or null all is well. */
struct condition {
	const char *key, *values;
};

/* Where config.json has it (settings.h says how keys are written). NULL: it has no such setting. */
struct keys {
	const char *layers, *width, *heads, *kv_heads, *head_dim, *vocabulary, *positions, *epsilon;
	const char *mlp_width, *mlp_ratio;   /* the one, or the other: as a multiple of the width */
	const char *activation, *attention_scale, *logit_scale, *alibi_max;
	const char *rope_homes[3];           /* objects with settings of rope; NULL ends them */
	const char *rope_theta, *rope_part;  /* outside of them; part: of each head, how much turns */
};

struct description {
	const char *name;                    /* model_type */
	const char *class_name;              /* in `architectures`, for files without model_type */
	const struct keys *keys;
	const struct condition *conditions;  /* up to one without a key; NULL: none */
	enum bdx_norm norm;
	bool gated, rope, alibi;
	struct {                             /* sliding windows; width_key NULL: none */
		const char *width_key;
		const char *switch_key;      /* only where this is true */
		const char *from_key;        /* only from this layer on */
		const char *types_key;       /* a list that says for each layer whether */
		uint64_t width, from;        /* where there are no such keys */
	} window;
	/* What counts where config.json is silent: */
	const char *activation;
	uint64_t head_dim;                   /* 0: width / heads */
	uint64_t positions;
	double epsilon;
	bool tied;                           /* false: tied if there is no tensor of the head */
	int32_t bos, eos;                    /* -1: none */
	struct bdx_names names;
};

/* What most architectures call things. */
static const struct keys usual_keys = {
	.layers = "num_hidden_layers", .width = "hidden_size", .heads = "num_attention_heads",
	.kv_heads = "num_key_value_heads", .head_dim = "head_dim", .vocabulary = "vocab_size",
	.positions = "max_position_embeddings",
	.epsilon = "rms_norm_eps|layer_norm_eps|norm_epsilon",
	.mlp_width = "intermediate_size", .activation = "hidden_act",
	.rope_homes = { "rope_scaling", "rope_parameters" }, .rope_theta = "rope_theta",
	.rope_part = "partial_rotary_factor",
};

#define USUAL_NAMES \
	.embedding = "model.embed_tokens.weight", \
	.final_norm = "model.norm.weight", \
	.head = "lm_head.weight", \
	.attention_norm = "model.layers.%u.input_layernorm.weight", \
	.mlp_norm = "model.layers.%u.post_attention_layernorm.weight", \
	.query_key_value = { "model.layers.%u.self_attn.q_proj.weight", \
			     "model.layers.%u.self_attn.k_proj.weight", \
			     "model.layers.%u.self_attn.v_proj.weight" }, \
	.attention_out = "model.layers.%u.self_attn.o_proj.weight", \
	.gate_up = { "model.layers.%u.mlp.gate_proj.weight", \
		     "model.layers.%u.mlp.up_proj.weight" }, \
	.down = "model.layers.%u.mlp.down_proj.weight"

static const struct keys mpt_keys = {
	.layers = "n_layers|num_hidden_layers", .width = "d_model|hidden_size",
	.heads = "n_heads|num_attention_heads", .vocabulary = "vocab_size",
	.positions = "max_seq_len", .epsilon = "layer_norm_epsilon", .mlp_ratio = "expansion_ratio",
	.attention_scale = "attn_config.softmax_scale", .logit_scale = "logit_scale",
	.alibi_max = "attn_config.alibi_bias_max",
};

static const struct condition mpt_conditions[] = {
	{ "attn_config.alibi", "true" },
	{ "attn_config.attn_type", "multihead_attention" },
	{ "attn_config.clip_qkv", "0|0.0" },
	{ "attn_config.prefix_lm", "false" },
	{ "attn_config.qk_ln", "false" },
	{ "attn_config.rope", "false" },
	{ "norm_type", "low_precision_layernorm|layernorm" },
	{ 0 },
};

/* Settings that no description has. */
static const struct condition common_conditions[] = {
	{ "quantization_config", "" },
	{ 0 },
};

static const struct description descriptions[] = {
	{
		.name = "llama", .class_name = "LlamaForCausalLM", .keys = &usual_keys,
		.norm = BDX_RMS_NORM, .gated = true, .rope = true,
		.activation = "silu", .positions = 2048, .epsilon = 1e-6, .bos = 1, .eos = 2,
		.names = { USUAL_NAMES },
	},
	{
		.name = "mistral", .class_name = "MistralForCausalLM", .keys = &usual_keys,
		.norm = BDX_RMS_NORM, .gated = true, .rope = true,
		.window = { .width_key = "sliding_window", .width = 4096 },
		.activation = "silu", .positions = 131072, .epsilon = 1e-6, .bos = 1, .eos = 2,
		.names = { USUAL_NAMES },
	},
	{
		.name = "qwen2", .class_name = "Qwen2ForCausalLM", .keys = &usual_keys,
		.norm = BDX_RMS_NORM, .gated = true, .rope = true,
		.window = { .width_key = "sliding_window", .switch_key = "use_sliding_window",
			    .from_key = "max_window_layers", .types_key = "layer_types",
			    .width = 4096, .from = 28 },
		.activation = "silu", .positions = 32768, .epsilon = 1e-6, .bos = -1, .eos = -1,
		.names = { USUAL_NAMES },
	},
	{
		.name = "qwen3", .class_name = "Qwen3ForCausalLM", .keys = &usual_keys,
		.norm = BDX_RMS_NORM, .gated = true, .rope = true,
		.window = { .width_key = "sliding_window", .switch_key = "use_sliding_window",
			    .from_key = "max_window_layers", .types_key = "layer_types",
			    .width = 4096, .from = 28 },
		.activation = "silu", .head_dim = 128, .positions = 32768, .epsilon = 1e-6,
		.bos = -1, .eos = -1,
		.names = {
			USUAL_NAMES,
			.query_norm = "model.layers.%u.self_attn.q_norm.weight",
			.key_norm = "model.layers.%u.self_attn.k_norm.weight",
		},
	},
	{
		.name = "mpt", .class_name = "MptForCausalLM|MPTForCausalLM", .keys = &mpt_keys,
		.conditions = mpt_conditions, .norm = BDX_LAYER_NORM, .alibi = true,
		.activation = "gelu", .positions = 2048, .epsilon = 1e-5, .tied = true,
		.bos = -1, .eos = -1,
		.names = {
			.embedding = "transformer.wte.weight",
			.final_norm = "transformer.norm_f.weight",
			.head = "lm_head.weight",
			.attention_norm = "transformer.blocks.%u.norm_1.weight",
			.mlp_norm = "transformer.blocks.%u.norm_2.weight",
			.query_key_value = { "transformer.blocks.%u.attn.Wqkv.weight" },
			.attention_out = "transformer.blocks.%u.attn.out_proj.weight",
			.gate_up = { "transformer.blocks.%u.ffn.up_proj.weight" },
			.down = "transformer.blocks.%u.ffn.down_proj.weight",
		},
	},
};

#define DESCRIPTIONS (sizeof(descriptions) / sizeof(descriptions[0]))

static const struct {
	const char *name;
	enum bdx_activation activation;
} activations[] = {
	{ "silu|swish", BDX_SILU },
	{ "gelu", BDX_GELU },
	{ "gelu_new|gelu_fast|gelu_pytorch_tanh", BDX_GELU_TANH },
};

static const struct description *find_description(struct bdx_settings *s)
{
	char type[128] = "", known[256] = "";
	bool by_class = false;
	struct bd_json j;

	if (!bdx_settings_text(s, "model_type", type, sizeof(type)) &&
	    bdx_settings_find(s, "architectures", &j) == BD_JSON_ARRAY) {
		by_class = true;
		if (bd_json_array(&j) == 0 && bd_json_item(&j) > 0)
			bd_json_string(&j, type, sizeof(type), NULL);
		s->failed = s->failed ? s->failed : j.failed;
	}
	for (size_t i = 0; i < DESCRIPTIONS; i++) {
		const struct description *d = &descriptions[i];

		if (bdx_is_one_of(type, strlen(type), by_class ? d->class_name : d->name))
			return d;
		if (i)
			strcat(known, ", ");
		strcat(known, d->name);
	}
	bdx_settings_fail(s, -ENOTSUP, "the engine does not know the architecture '%s' (it knows "
			  "%s)", type, known);
	return NULL;
}

static void check_conditions(struct bdx_settings *s, const struct condition *conditions)
{
	for (const struct condition *c = conditions; c && c->key; c++) {
		struct bd_json j;
		enum bd_json_kind kind = bdx_settings_find(s, c->key, &j);
		const char *text = "";
		size_t n = 0;

		if (kind == BD_JSON_BAD || kind == BD_JSON_NULL)
			continue;
		if (kind != BD_JSON_OBJECT && kind != BD_JSON_ARRAY) {
			bd_json_skip(&j);
			text = j.text + j.token;
			n = j.at - j.token;
			if (kind == BD_JSON_STRING) {
				text++;
				n -= 2;
			}
			if (bdx_is_one_of(text, n, c->values))
				continue;
		}
		bdx_settings_fail(s, -ENOTSUP, "the engine does not know the setting %s%s%.*s",
				  c->key, n ? " = " : "", (int)(n < 64 ? n : 64), text);
	}
}

static void need_count(struct bdx_settings *s, const char *key, uint64_t max, uint64_t *value)
{
	if (!bdx_settings_count(s, key, 1, max, value)) {
		*value = 1; /* nobody divides by zero before the failure is noticed */
		bdx_settings_missing(s, key);
	}
}

static void need_number(struct bdx_settings *s, const char *key, double *value)
{
	*value = 1;
	if (!bdx_settings_number(s, key, 1e-6, 1e12, value))
		bdx_settings_missing(s, key);
}

static void read_sizes(struct bdx_settings *s, const struct description *d, struct bdx_config *c)
{
	const struct keys *k = d->keys;
	double ratio = 4;

	need_count(s, k->layers, MAX_LAYERS, &c->layers);
	need_count(s, k->width, MAX_WIDTH, &c->width);
	need_count(s, k->heads, MAX_HEADS, &c->heads);
	need_count(s, k->vocabulary, MAX_VOCABULARY, &c->vocabulary);
	if (k->mlp_width) {
		need_count(s, k->mlp_width, MAX_MLP, &c->mlp_width);
	} else {
		bdx_settings_number(s, k->mlp_ratio, 1.0 / MAX_WIDTH, MAX_MLP / MAX_WIDTH, &ratio);
		c->mlp_width = (uint64_t)(ratio * (double)c->width);
	}
	c->positions = d->positions;
	bdx_settings_count(s, k->positions, 1, MAX_POSITIONS, &c->positions);
	c->kv_heads = c->heads;
	bdx_settings_count(s, k->kv_heads, 1, MAX_HEADS, &c->kv_heads);
	if (c->heads % c->kv_heads)
		bdx_settings_fail(s, -EINVAL, "%" PRIu64 " attention heads cannot share %" PRIu64
				  " key and value heads evenly", c->heads, c->kv_heads);
	c->head_dim = c->width / c->heads;
	if (d->head_dim && bdx_settings_find(s, k->head_dim, NULL) == BD_JSON_BAD)
		c->head_dim = d->head_dim;
	bdx_settings_count(s, k->head_dim, 1, MAX_WIDTH, &c->head_dim);
	if (c->mlp_width == 0 || c->head_dim == 0 || c->heads * c->head_dim > MAX_WIDTH)
		bdx_settings_fail(s, -EINVAL, "%" PRIu64 " heads in a width of %" PRIu64
				  " make no sense", c->heads, c->width);
}

static void read_arithmetic(struct bdx_settings *s, const struct description *d,
			    struct bdx_config *c)
{
	const struct keys *k = d->keys;
	char activation[64] = "", scale[64];
	struct bd_json j;
	size_t i = 0;

	c->norm = d->norm;
	c->gated = d->gated;
	c->epsilon = d->epsilon;
	bdx_settings_number(s, k->epsilon, 0, 1, &c->epsilon);
	if (!bdx_settings_text(s, k->activation, activation, sizeof(activation)))
		strcpy(activation, d->activation);
	while (i < sizeof(activations) / sizeof(activations[0]) &&
	       !bdx_is_one_of(activation, strlen(activation), activations[i].name))
		i++;
	if (i < sizeof(activations) / sizeof(activations[0]))
		c->activation = activations[i].activation;
	else
		bdx_settings_fail(s, -ENOTSUP, "the engine does not know the activation '%s'",
				  activation);
	c->attention_scale = 1 / sqrt((double)c->head_dim);
	bdx_settings_number(s, k->attention_scale, 1e-6, 1e6, &c->attention_scale);
	c->logit_scale = 1;
	if (bdx_settings_find(s, k->logit_scale, &j) != BD_JSON_STRING)
		bdx_settings_number(s, k->logit_scale, -1e6, 1e6, &c->logit_scale);
	else if (bdx_settings_text(s, k->logit_scale, scale, sizeof(scale))) {
		c->logit_scale = 1 / sqrt((double)c->width);
		if (strcmp(scale, "inv_sqrt_d_model") != 0)
			bdx_settings_fail(s, -ENOTSUP, "the engine does not know the logit scale "
					  "'%s'", scale);
	}
}

/* Which layers have a window: those that a list names, or all from one on. */
static void read_windows(struct bdx_settings *s, const struct description *d, struct bdx_config *c)
{
	uint64_t width = d->window.width, from = d->window.from, listed = 0;
	enum bd_json_kind kind;
	bool on = true;
	struct bd_json j;

	if (!d->window.width_key)
		return;
	if (d->window.switch_key) {
		on = false;
		bdx_settings_bool(s, d->window.switch_key, &on);
	}
	if (!on || bdx_settings_find(s, d->window.width_key, NULL) == BD_JSON_NULL)
		return;
	bdx_settings_count(s, d->window.width_key, 1, MAX_POSITIONS, &width);
	bdx_settings_count(s, d->window.from_key, 0, MAX_POSITIONS, &from);
	for (uint64_t l = from; l < c->layers; l++)
		c->windows[l] = width;
	kind = bdx_settings_find(s, d->window.types_key, &j);
	if (kind == BD_JSON_BAD || kind == BD_JSON_NULL)
		return;
	bd_json_array(&j);
	while (bd_json_item(&j) > 0) {
		char type[64];

		if (bd_json_string(&j, type, sizeof(type), NULL) < 0)
			break;
		if (strcmp(type, "full_attention") != 0 && strcmp(type, "sliding_attention") != 0)
			bdx_settings_fail(s, -ENOTSUP, "the engine does not know the layer type "
					  "'%s'", type);
		if (listed < c->layers)
			c->windows[listed] = type[0] == 's' ? width : 0;
		listed++;
	}
	if (j.failed)
		s->failed = j.failed;
	else if (listed != c->layers)
		bdx_settings_fail(s, -EINVAL, "%s lists %" PRIu64 " of %" PRIu64 " layers",
				  d->window.types_key, listed, c->layers);
}

/* The object that has the settings of rope: the first of these that is there and not empty. The
 * other one then does not count at all, as transformers 5 has it. NULL: there is none. */
static const char *rope_home(struct bdx_settings *s, const char *const *homes)
{
	for (; *homes && !s->failed; homes++) {
		struct bd_json j;
		enum bd_json_kind kind = bdx_settings_find(s, *homes, &j);

		if (kind == BD_JSON_BAD || kind == BD_JSON_NULL)
			continue;
		if (bd_json_object(&j) == 0 && bd_json_member(&j, NULL, 0, NULL) > 0)
			return *homes;
		s->failed = j.failed;
	}
	return NULL;
}

/* The key of a setting in it, in `key`; NULL where there is no home. */
static const char *inside(char key[MAX_KEY], const char *home, const char *name)
{
	if (home)
		snprintf(key, MAX_KEY, "%s.%s", home, name);
	return home ? key : NULL;
}

/* Llama 3.1's rule for a longer context: slow rotations are stretched, fast ones kept, and those
 * between blended. In float as transformers has it. */
static void stretch_llama3(struct bdx_settings *s, const char *home, struct bdx_config *c)
{
	double factor, low, high, original = (double)c->positions;
	char key[MAX_KEY];

	need_number(s, inside(key, home, "factor"), &factor);
	need_number(s, inside(key, home, "low_freq_factor"), &low);
	need_number(s, inside(key, home, "high_freq_factor"), &high);
	bdx_settings_number(s, inside(key, home, "original_max_position_embeddings"), 1, MAX_POSITIONS,
			    &original);
	if (high <= low)
		bdx_settings_fail(s, -EINVAL, "high_freq_factor is not above low_freq_factor");
	for (uint64_t i = 0; i < c->rotated / 2; i++) {
		float f = (float)c->frequencies[i], length = (float)(2 * M_PI) / f;
		float blend = ((float)original / length - (float)low) / (float)(high - low);

		if (length > (float)(original / low))
			f = f / (float)factor;
		else if (length >= (float)(original / high))
			f = (1 - blend) * f / (float)factor + blend * f;
		c->frequencies[i] = f;
	}
}

static void read_rope(struct bdx_settings *s, const struct description *d, struct bdx_config *c)
{
	static const char *const kinds[] = { "full_attention", "sliding_attention" };
	const struct keys *k = d->keys;
	const char *home = rope_home(s, k->rope_homes);
	double theta = 10000, part = 1, factor;
	char key[MAX_KEY], type[64] = "default";

	c->rope = true;
	c->rope_factor = 1;
	for (size_t i = 0; home && i < sizeof(kinds) / sizeof(*kinds); i++) {
		enum bd_json_kind kind = bdx_settings_find(s, inside(key, home, kinds[i]), NULL);

		if (kind != BD_JSON_BAD && kind != BD_JSON_NULL)
			bdx_settings_fail(s, -ENOTSUP, "the engine does not know the setting %s (angles for "
					  "each kind of layer)", key);
	}
	if (!bdx_settings_number(s, inside(key, home, "rope_theta"), 1, 1e15, &theta))
		bdx_settings_number(s, k->rope_theta, 1, 1e15, &theta);
	if (!bdx_settings_number(s, inside(key, home, "partial_rotary_factor"), 0, 1, &part))
		bdx_settings_number(s, k->rope_part, 0, 1, &part);
	if (!bdx_settings_text(s, inside(key, home, "rope_type"), type, sizeof(type)))
		bdx_settings_text(s, inside(key, home, "type"), type, sizeof(type));
	c->rotated = (uint64_t)((double)c->head_dim * part);
	if (c->rotated == 0 || c->rotated % 2)
		bdx_settings_fail(s, -EINVAL, "%" PRIu64 " elements of a head cannot be rotated in "
				  "pairs", c->rotated);
	c->frequencies = calloc(c->rotated / 2 + 1, sizeof(*c->frequencies));
	if (!c->frequencies) {
		bdx_settings_fail(s, -ENOMEM, "out of memory");
		return;
	}
	/* In float: at far positions its rounding is what a model has seen. */
	for (uint64_t i = 0; i < c->rotated / 2; i++)
		c->frequencies[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)c->rotated);
	if (strcmp(type, "linear") == 0) {
		need_number(s, inside(key, home, "factor"), &factor);
		for (uint64_t i = 0; i < c->rotated / 2; i++)
			c->frequencies[i] = (float)c->frequencies[i] / (float)factor;
	} else if (strcmp(type, "llama3") == 0) {
		stretch_llama3(s, home, c);
	} else if (strcmp(type, "default") != 0) {
		bdx_settings_fail(s, -ENOTSUP, "the engine does not know the rope type '%s'", type);
	}
}

/* Powers of 2^(-max / n) for n, the next power of two of the heads; where that is more than there
 * are heads, first those with even exponents, then the others (as MPT has it). */
static void read_alibi(struct bdx_settings *s, const struct description *d, struct bdx_config *c)
{
	double max = 8;
	uint64_t n = 1;

	c->alibi = true;
	bdx_settings_number(s, d->keys->alibi_max, 0, 1024, &max);
	c->slopes = calloc(c->heads, sizeof(*c->slopes));
	if (!c->slopes) {
		bdx_settings_fail(s, -ENOMEM, "out of memory");
		return;
	}
	while (n < c->heads)
		n *= 2;
	for (uint64_t h = 0; h < c->heads; h++) {
		uint64_t exponent = h + 1;

		if (n != c->heads)
			exponent = h < n / 2 ? 2 * h + 2 : 2 * (h - n / 2) + 1;
		c->slopes[h] = exp2(-max * (double)exponent / (double)n);
	}
}

/* Do two tensors hold the same numbers? A negative errno where they cannot be read. */
static int are_equal(struct bdx_source *source, const struct bdx_weight *a,
		     const struct bdx_weight *b, struct bd_error *err)
{
	uint64_t size = a->tensor->size;
	char *buffer;
	int rc = 1;

	if (a->tensor->dtype != b->tensor->dtype || size != b->tensor->size)
		return 0;
	buffer = malloc(2 * PIECE);
	if (!buffer)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (uint64_t at = 0, n; rc == 1 && at < size; at += n) {
		n = size - at < PIECE ? size - at : PIECE;
		rc = bdx_source_read(source, a, buffer, at, (size_t)n, err);
		if (rc == 0)
			rc = bdx_source_read(source, b, buffer + PIECE, at, (size_t)n, err);
		if (rc == 0)
			rc = memcmp(buffer, buffer + PIECE, (size_t)n) == 0;
	}
	free(buffer);
	return rc;
}

/* Where head and embedding are tied although both are stored and differ, transformers 5 takes both
 * as they are stored (earlier versions the embedding for both). */
static void read_head(struct bdx_settings *s, const struct description *d, struct bdx_config *c,
		      struct bdx_source *source)
{
	struct bdx_weight head, embedding;
	bool has_head = bdx_source_find(source, d->names.head, &head);
	bool has_embedding = bdx_source_find(source, d->names.embedding, &embedding);
	int rc;

	c->embedding = d->names.embedding;
	c->tied = d->tied || !has_head;
	bdx_settings_bool(s, "tie_word_embeddings", &c->tied);
	if (s->failed || !c->tied || !has_head)
		return;
	if (!has_embedding) {
		c->embedding = d->names.head;
		return;
	}
	rc = are_equal(source, &head, &embedding, s->err);
	if (rc < 0)
		s->failed = rc;
	if (rc != 0)
		return;
	c->tied = false;
	snprintf(c->note, sizeof(c->note), "%s differs from %s although tie_word_embeddings says that "
		 "they are one: both are used, as transformers 5 does (4 uses the second only)",
		 d->names.head, d->names.embedding);
}

static void add_eos(struct bdx_config *c, double token)
{
	/* Numbers that no token has never end anything. */
	if (token >= 0 && token < (double)c->vocabulary && token == floor(token) &&
	    !bdx_config_is_end(c, (int32_t)token) &&
	    c->eos_count < sizeof(c->eos) / sizeof(c->eos[0]))
		c->eos[c->eos_count++] = (int32_t)token;
}

/* False where the file says nothing of end tokens. */
static bool read_tokens(struct bdx_settings *s, struct bdx_config *c)
{
	enum bd_json_kind kind;
	uint64_t bos = 0;
	struct bd_json j;
	double token;

	if (bdx_settings_find(s, "bos_token_id", NULL) == BD_JSON_NULL)
		c->bos = -1;
	else if (bdx_settings_count(s, "bos_token_id", 0, INT32_MAX, &bos))
		c->bos = bos < c->vocabulary ? (int32_t)bos : -1;
	kind = bdx_settings_find(s, "eos_token_id", &j);
	if (kind == BD_JSON_ARRAY) {
		bd_json_array(&j);
		while (bd_json_item(&j) > 0 && bd_json_number(&j, &token) == 0)
			add_eos(c, token);
		s->failed = j.failed;
	} else if (bdx_settings_number(s, "eos_token_id", -1, INT32_MAX, &token)) {
		add_eos(c, token);
	}
	return kind != BD_JSON_BAD;
}

static int read_generation(struct bdx_config *c, struct bdx_source *source, struct bd_error *err)
{
	struct bdx_settings s;
	int rc = bdx_settings_open(&s, source, "generation_config.json", err);

	if (rc == -ENOENT) {
		if (err)
			*err = (struct bd_error){ 0 };
		return 0;
	}
	if (rc < 0)
		return rc;
	read_tokens(&s, c);
	bdx_settings_close(&s);
	return s.failed;
}

int bdx_config_read(struct bdx_config **config, struct bdx_source *source, struct bd_error *err)
{
	const struct description *d;
	struct bdx_config *c = NULL;
	struct bdx_settings s;
	int rc = bdx_settings_open(&s, source, "config.json", err);

	if (rc < 0)
		return rc;
	d = find_description(&s);
	if (!d)
		goto out;
	check_conditions(&s, common_conditions);
	check_conditions(&s, d->conditions);
	c = calloc(1, sizeof(*c));
	if (!c) {
		bdx_settings_fail(&s, -ENOMEM, "out of memory");
		goto out;
	}
	c->architecture = d->name;
	c->names = &d->names;
	read_sizes(&s, d, c);
	c->windows = calloc(c->layers, sizeof(*c->windows));
	if (!c->windows) {
		bdx_settings_fail(&s, -ENOMEM, "out of memory");
		goto out;
	}
	read_arithmetic(&s, d, c);
	read_windows(&s, d, c);
	if (d->rope)
		read_rope(&s, d, c);
	if (d->alibi)
		read_alibi(&s, d, c);
	read_head(&s, d, c, source);
	c->bos = d->bos;
	if (!read_tokens(&s, c))
		add_eos(c, d->eos);
	if (!s.failed)
		s.failed = read_generation(c, source, err);
out:
	bdx_settings_close(&s);
	if (s.failed) {
		bdx_config_free(c);
		return s.failed;
	}
	*config = c;
	return 0;
}

void bdx_config_free(struct bdx_config *c)
{
	if (!c)
		return;
	free(c->windows);
	free(c->frequencies);
	free(c->slopes);
	free(c);
}

void bdx_config_tell(const struct bdx_config *c, const struct bdx_source *source,
		     const struct bd_watch *watch)
{
	if (*c->note)
		bdx_note(watch, "%s: %s", bdx_source_name(source), c->note);
}

uint64_t bdx_config_length(const struct bdx_config *c, const struct bdx_source *source, uint64_t wanted,
			   const struct bd_watch *watch)
{
	uint64_t most = c->positions < 2 ? 2 : c->positions; /* a token, and the next one */

	if (wanted <= most)
		return wanted;
	bdx_note(watch, "windows of %" PRIu64 " tokens instead of %" PRIu64 ": %s has no more positions", most, wanted,
		 bdx_source_name(source));
	return most;
}

bool bdx_config_is_end(const struct bdx_config *c, int32_t token)
{
	for (unsigned i = 0; i < c->eos_count; i++)
		if (c->eos[i] == token)
			return true;
	return false;
}
