/* SPDX-License-Identifier: Apache-2.0 */
/* test_model.c: sources, configurations, and decoders of every architecture on the C reference: students
 * against the checkpoints that they stand for, gradients against finite differences, decoders that
 * keep keys and values against whole passes, and everything that must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"
#include "testdata.h"
#include "testdelta.h"

static struct bd_error err;

static void must(int rc)
{
	if (rc < 0)
		fail_msg("%d: %s", rc, err.text);
}

/* ---- Models ---- */

struct shape {
	const char *name;
	const char *type;            /* model_type */
	const char *more;            /* of config.json */
	uint64_t layers, width, heads, kv_heads, head_dim, mlp, vocabulary, base_vocabulary;
	bool head_norms, biases, tied;
};

static const struct shape shapes[] = {
	{ .name = "llama", .type = "llama", .layers = 2, .width = 12, .heads = 3, .kv_heads = 3,
	  .head_dim = 4, .mlp = 17, .vocabulary = 23, .more = "\"rope_theta\": 100.0" },
	{ .name = "llama 3, biases", .type = "llama", .layers = 2, .width = 10, .heads = 4,
	  .kv_heads = 2, .head_dim = 6, .mlp = 9, .vocabulary = 19, .base_vocabulary = 17,
	  .biases = true,
	  .more = "\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 500.0, "
		  "\"factor\": 4.0, \"low_freq_factor\": 1, \"high_freq_factor\": 4.0, "
		  "\"original_max_position_embeddings\": 16}, \"hidden_act\": \"gelu_new\"" },
	{ .name = "mistral", .type = "mistral", .layers = 2, .width = 8, .heads = 3, .kv_heads = 1,
	  .head_dim = 4, .mlp = 11, .vocabulary = 21, .more = "\"sliding_window\": 3" },
	{ .name = "qwen2", .type = "qwen2", .layers = 3, .width = 8, .heads = 4, .kv_heads = 2,
	  .head_dim = 2, .mlp = 7, .vocabulary = 13, .tied = true, .biases = true,
	  .more = "\"use_sliding_window\": true, \"sliding_window\": 4, \"layer_types\": "
		  "[\"full_attention\", \"sliding_attention\", \"full_attention\"]" },
	{ .name = "qwen3", .type = "qwen3", .layers = 2, .width = 9, .heads = 4, .kv_heads = 2,
	  .head_dim = 6, .mlp = 10, .vocabulary = 15, .head_norms = true, .more = "\"a\": 1" },
	{ .name = "mpt", .type = "mpt", .layers = 2, .width = 12, .heads = 3, .kv_heads = 3,
	  .head_dim = 4, .mlp = 48, .vocabulary = 20, .tied = true, .more = "\"max_seq_len\": 99" },
	{ .name = "mpt, other settings", .type = "mpt", .layers = 1, .width = 14, .heads = 7,
	  .kv_heads = 7, .head_dim = 2, .mlp = 28, .vocabulary = 12, .biases = true, .tied = true,
	  .more = "\"expansion_ratio\": 2, \"logit_scale\": \"inv_sqrt_d_model\", \"attn_config\": "
		  "{\"softmax_scale\": 0.7, \"alibi\": true, \"alibi_bias_max\": 4}" },
};

#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static char *config_text(const struct shape *s)
{
	if (strcmp(s->type, "mpt") == 0)
		return td_format("{\"model_type\": \"mpt\", \"d_model\": %d, \"n_heads\": %d, "
				 "\"n_layers\": %d, \"vocab_size\": %d, %s}", (int)s->width,
				 (int)s->heads, (int)s->layers, (int)s->vocabulary, s->more);
	return td_format("{\"model_type\": \"%s\", \"hidden_size\": %d, \"num_attention_heads\": %d, "
			 "\"num_key_value_heads\": %d, \"head_dim\": %d, \"num_hidden_layers\": %d, "
			 "\"intermediate_size\": %d, \"vocab_size\": %d, \"tie_word_embeddings\": %s, "
			 "\"bos_token_id\": 1, \"eos_token_id\": [2, 5], %s}", s->type, (int)s->width,
			 (int)s->heads, (int)s->kv_heads, (int)s->head_dim, (int)s->layers,
			 (int)s->mlp, (int)s->vocabulary, s->tied ? "true" : "false", s->more);
}

struct made { /* a fine-tune in both forms */
	struct ts_model m;
	struct ts_tensor tensors[128];
	char *fine;
};

static struct ts_tensor *add(struct made *made, char *name, enum ts_kind kind, uint64_t rows,
			     uint64_t cols)
{
	static const enum bd_dtype types[] = { BD_BF16, BD_F32, BD_F16 };
	struct ts_tensor *t = &made->tensors[made->m.count];

	assert_true(made->m.count < 128);
	*t = (struct ts_tensor){ .name = name, .dtype = types[made->m.count % 3], .kind = kind,
				 .dims = cols ? 2 : 1, .shape = { rows, cols } };
	/* A base of another type, now and then. */
	if (made->m.count % 5 == 4 && kind == TS_SIGN) {
		t->other_base_dtype = true;
		t->base_dtype = types[(made->m.count + 1) % 3];
	}
	made->m.count++;
	return t;
}

/* A matrix of the decoder: mostly one plane of signs, so that there are all mixtures within q, k and v. */
static void add_linear(struct made *made, const struct shape *s, const char *name, uint64_t rows,
		       uint64_t cols)
{
	struct ts_tensor *t = add(made, td_format("%s.weight", name), TS_SIGN, rows, cols);
	size_t n = made->m.count;

	if (n % 7 == 3)
		t->kind = TS_RAW;
	else if (n % 11 == 5)
		t->planes = 2;
	else if (n % 13 == 6)
		t->kind = TS_SAME;
	if (s->biases)
		add(made, td_format("%s.bias", name), TS_RAW, rows, 0);
}

static void add_norm(struct made *made, const struct shape *s, const char *name)
{
	add(made, td_format("%s.weight", name), TS_RAW, s->width, 0);
	if (s->biases && strcmp(s->type, "mpt") == 0)
		add(made, td_format("%s.bias", name), TS_SAME, s->width, 0);
}

static void add_usual_layer(struct made *made, const struct shape *s, unsigned l)
{
	const char *at = td_format("model.layers.%u.", l);
	uint64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;

	add_norm(made, s, td_format("%sinput_layernorm", at));
	add_linear(made, s, td_format("%sself_attn.q_proj", at), q, s->width);
	add_linear(made, s, td_format("%sself_attn.k_proj", at), kv, s->width);
	add_linear(made, s, td_format("%sself_attn.v_proj", at), kv, s->width);
	if (s->head_norms) {
		add(made, td_format("%sself_attn.q_norm.weight", at), TS_RAW, s->head_dim, 0);
		add(made, td_format("%sself_attn.k_norm.weight", at), TS_RAW, s->head_dim, 0);
	}
	add_linear(made, s, td_format("%sself_attn.o_proj", at), s->width, q);
	add_norm(made, s, td_format("%spost_attention_layernorm", at));
	add_linear(made, s, td_format("%smlp.gate_proj", at), s->mlp, s->width);
	add_linear(made, s, td_format("%smlp.up_proj", at), s->mlp, s->width);
	add_linear(made, s, td_format("%smlp.down_proj", at), s->width, s->mlp);
}

static void add_mpt_layer(struct made *made, const struct shape *s, unsigned l)
{
	const char *at = td_format("transformer.blocks.%u.", l);

	add_norm(made, s, td_format("%snorm_1", at));
	add_linear(made, s, td_format("%sattn.Wqkv", at), 3 * s->width, s->width);
	add_linear(made, s, td_format("%sattn.out_proj", at), s->width, s->width);
	add_norm(made, s, td_format("%snorm_2", at));
	add_linear(made, s, td_format("%sffn.up_proj", at), s->mlp, s->width);
	add_linear(made, s, td_format("%sffn.down_proj", at), s->width, s->mlp);
}

static void list_tensors(struct made *made, const struct shape *s)
{
	bool mpt = strcmp(s->type, "mpt") == 0;
	struct ts_tensor *t;

	t = add(made, mpt ? "transformer.wte.weight" : "model.embed_tokens.weight", TS_RAW, s->vocabulary,
		s->width);
	if (s->base_vocabulary) {
		t->kind = TS_ROWS_SIGN;
		t->base_rows = s->base_vocabulary;
	}
	for (unsigned l = 0; l < s->layers; l++) {
		if (mpt)
			add_mpt_layer(made, s, l);
		else
			add_usual_layer(made, s, l);
	}
	add_norm(made, s, mpt ? "transformer.norm_f" : "model.norm");
	if (!s->tied)
		add(made, "lm_head.weight", TS_SIGN, s->vocabulary, s->width);
}

static struct made *make(const struct shape *s)
{
	struct made *made = calloc(1, sizeof(*made));
	char *dir = td_dir();

	assert_non_null(made);
	made->m.tensors = made->tensors;
	made->m.files[made->m.file_count++] =
		(struct ts_file){ .name = "config.json", .text = config_text(s) };
	list_tensors(made, s);
	ts_build(&made->m, dir);
	made->fine = ts_write_fine(&made->m, dir, "fine");
	return made;
}

struct opened {
	struct bdx_ops *ops;
	struct bd_base *base;
	struct bd_view *view;
	struct bdx_source *source;
	struct bdx_config *config;
	struct bdx_model *model;
};

static struct bdx_ops *open_ops(enum bd_dtype real)
{
	struct bdx_ops *ops;

	must(bdx_ops_cpu_open(&ops, real, 2, &err));
	return ops;
}

static struct opened open_plain(const char *dir, enum bd_dtype real)
{
	struct opened o = { .ops = open_ops(real) };

	must(bdx_source_open(&o.source, dir, &err));
	must(bdx_config_read(&o.config, o.source, &err));
	must(bdx_model_open(&o.model, o.ops, o.config, o.source, NULL, &err));
	return o;
}

static void open_view(struct opened *o, const struct made *made)
{
	struct bd_delta *delta;

	must(bd_base_open(&o->base, made->m.base_path, &err));
	must(bd_delta_open(&delta, made->m.delta_path, &err));
	must(bd_view_open(&o->view, delta, o->base, &err));
	must(bdx_source_view(&o->source, o->view, &err));
	must(bdx_config_read(&o->config, o->source, &err));
}

static struct opened open_student(const struct made *made, enum bd_dtype real)
{
	struct opened o = { .ops = open_ops(real) };

	open_view(&o, made);
	must(bdx_model_open_student(&o.model, o.ops, o.config, o.view, NULL, &err));
	return o;
}

static void closed(struct opened *o)
{
	bdx_model_close(o->model);
	bdx_config_free(o->config);
	bdx_source_close(o->source);
	bd_view_close(o->view);
	bd_base_close(o->base);
	bdx_ops_close(o->ops);
}

/* ---- Numbers ---- */

static int32_t *some_tokens(uint64_t count, uint64_t vocabulary)
{
	int32_t *tokens = ts_memory(count * sizeof(*tokens));
	uint64_t seed = 7;

	for (uint64_t i = 0; i < count; i++)
		tokens[i] = (int32_t)(ts_random(&seed) % vocabulary);
	return tokens;
}

static double *get(struct bdx_ops *ops, const void *reals, uint64_t count)
{
	double *values = ts_memory(count * sizeof(*values));
	float *floats = (float *)values;

	ops->download(ops, values, reals, count * bdx_real_size(ops));
	must(ops->finish(ops, &err));
	if (ops->real == BD_F32)
		for (uint64_t i = count; i-- > 0;)
			values[i] = floats[i];
	return values;
}

static void put(struct bdx_ops *ops, void *reals, const double *values, uint64_t count)
{
	char *host = ts_memory(count * sizeof(double));

	for (uint64_t i = 0; i < count; i++) {
		if (ops->real == BD_F32)
			((float *)host)[i] = (float)values[i];
		else
			((double *)host)[i] = values[i];
	}
	must(ops->finish(ops, &err));
	ops->upload(ops, reals, host, count * bdx_real_size(ops));
}

/* All logits of one pass: [batch, length, vocabulary]. */
static double *logits_of(struct opened *o, const int32_t *tokens, uint64_t batch, uint64_t length)
{
	uint64_t rows = batch * length, vocabulary = o->config->vocabulary;
	void *hidden = o->ops->alloc(o->ops, rows * o->config->width * bdx_operand_size(o->ops), &err);
	void *logits = o->ops->alloc(o->ops, rows * vocabulary * bdx_real_size(o->ops), &err);
	double *values;

	assert_true(hidden && logits);
	must(bdx_model_forward(o->model, tokens, batch, length, false, hidden, &err));
	bdx_model_logits(o->model, logits, hidden, rows);
	values = get(o->ops, logits, rows * vocabulary);
	o->ops->free(o->ops, hidden);
	o->ops->free(o->ops, logits);
	return values;
}

/* The largest difference, relative to the largest of b. */
static double distance(const double *a, const double *b, uint64_t count)
{
	double largest = 0, difference = 0;

	for (uint64_t i = 0; i < count; i++) {
		assert_true(isfinite(a[i]) && isfinite(b[i]));
		largest = fmax(largest, fabs(b[i]));
		difference = fmax(difference, fabs(a[i] - b[i]));
	}
	assert_true(largest > 0);
	return difference / largest;
}

/* ---- Students and plain models ---- */

/* In float the reference rounds as the mount does: a student and the checkpoint that it stands for, read as
 * files or through the view, are the same to the bit. */
static void student_is_the_checkpoint(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		const struct shape *s = &shapes[i];
		struct made *made = make(s);
		struct opened student = open_student(made, BD_F32), plain = open_plain(made->fine, BD_F32);
		struct opened viewed = { .ops = open_ops(BD_F32) };
		int32_t *tokens = some_tokens(2 * 9, s->vocabulary);
		uint64_t count = 2 * 9 * s->vocabulary;
		double *a, *b, *c;

		open_view(&viewed, made);
		must(bdx_model_open(&viewed.model, viewed.ops, viewed.config, viewed.source, NULL, &err));
		a = logits_of(&student, tokens, 2, 9);
		b = logits_of(&plain, tokens, 2, 9);
		c = logits_of(&viewed, tokens, 2, 9);
		if (distance(a, b, count) > 0 || distance(c, b, count) > 0)
			fail_msg("%s: a student differs by %g, a view by %g", s->name,
				 distance(a, b, count), distance(c, b, count));
		assert_string_equal(bdx_source_name(viewed.source), made->m.delta_path);
		must(bdx_source_check(viewed.source, &err));
		closed(&student);
		closed(&plain);
		closed(&viewed);
		free(made);
	}
}

static void float_and_double_agree(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened f = open_plain(made->fine, BD_F32), d = open_plain(made->fine, BD_F64);
		int32_t *tokens = some_tokens(3 * 8, shapes[i].vocabulary);
		double off = distance(logits_of(&f, tokens, 3, 8), logits_of(&d, tokens, 3, 8),
				      24 * shapes[i].vocabulary);

		if (!(off < 1e-5))
			fail_msg("%s: %g", shapes[i].name, off);
		closed(&f);
		closed(&d);
		free(made);
	}
}

/* A sequence does not see its neighbours, what follows, or the passes before. */
static void sequences_are_apart(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		uint64_t v = shapes[i].vocabulary;
		struct made *made = make(&shapes[i]);
		struct opened o = open_plain(made->fine, BD_F64);
		int32_t *tokens = some_tokens(3 * 10, v);
		double *together = logits_of(&o, tokens, 3, 10), *alone;

		alone = logits_of(&o, tokens + 10, 1, 10);
		assert_true(distance(alone, together + 10 * v, 10 * v) < 1e-12);
		alone = logits_of(&o, tokens + 20, 1, 6);
		assert_true(distance(alone, together + 20 * v, 6 * v) < 1e-12);
		closed(&o);
		free(made);
	}
}

/* ---- Gradients ---- */

struct pass {
	struct opened *o;
	const int32_t *tokens;
	uint64_t batch, length;
	double *factors; /* [rows, vocabulary]: the loss is the sum of factor * logit */
	void *hidden, *logits, *gradient, *hidden_gradient;
};

static struct pass new_pass(struct opened *o, uint64_t batch, uint64_t length)
{
	struct pass p = { .o = o, .batch = batch, .length = length };
	uint64_t rows = batch * length, seed = 3, v = o->config->vocabulary;
	struct bdx_ops *ops = o->ops;

	p.tokens = some_tokens(rows, v);
	p.factors = ts_memory(rows * v * sizeof(double));
	for (uint64_t i = 0; i < rows * v; i++)
		p.factors[i] = (double)(int64_t)ts_random(&seed) / 0x1p63;
	p.hidden = ops->alloc(ops, rows * o->config->width * bdx_operand_size(ops), &err);
	p.logits = ops->alloc(ops, rows * v * bdx_real_size(ops), &err);
	p.gradient = ops->alloc(ops, rows * v * bdx_real_size(ops), &err);
	p.hidden_gradient = ops->alloc(ops, rows * o->config->width * bdx_real_size(ops), &err);
	assert_true(p.hidden && p.logits && p.gradient && p.hidden_gradient);
	put(ops, p.gradient, p.factors, rows * v);
	return p;
}

static void end_pass(struct pass *p)
{
	struct bdx_ops *ops = p->o->ops;

	ops->free(ops, p->hidden);
	ops->free(ops, p->logits);
	ops->free(ops, p->gradient);
	ops->free(ops, p->hidden_gradient);
}

static double loss_of(struct pass *p)
{
	uint64_t rows = p->batch * p->length, count = rows * p->o->config->vocabulary;
	double *logits = malloc(count * sizeof(*logits)), loss = 0;

	assert_non_null(logits);
	must(bdx_model_forward(p->o->model, p->tokens, p->batch, p->length, false, p->hidden, &err));
	bdx_model_logits(p->o->model, p->logits, p->hidden, rows);
	p->o->ops->download(p->o->ops, logits, p->logits, count * sizeof(*logits));
	for (uint64_t i = 0; i < count; i++)
		loss += p->factors[i] * logits[i];
	free(logits);
	return loss;
}

static double *gradients_of(struct pass *p)
{
	struct bdx_model *m = p->o->model;

	m->ops->zero(m->ops, m->scale_gradient, m->scale_count * bdx_real_size(m->ops));
	must(bdx_model_forward(m, p->tokens, p->batch, p->length, true, p->hidden, &err));
	bdx_model_logits_backward(m, p->hidden_gradient, p->gradient, p->batch * p->length);
	must(bdx_model_backward(m, p->hidden_gradient, &err));
	return get(m->ops, m->scale_gradient, m->scale_count);
}

/* Every scale of every architecture, in double. */
static void gradients_are_differences(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened o = open_student(made, BD_F64);
		struct bdx_model *m = o.model;
		struct pass p = new_pass(&o, 2, 6);
		double *gradient = gradients_of(&p), *scales = get(o.ops, m->scales, m->scale_count);
		double largest = 0, worst = 0;
		uint64_t trained = 0, step = TD_SLOWNESS > 1 ? 7 : 1;

		for (uint64_t s = 0; s < m->scale_count; s++)
			largest = fmax(largest, fabs(gradient[s]));
		assert_true(largest > 0);
		for (uint64_t s = 0; s < m->scale_count; s++) {
			double h = 1e-5, up, value;

			trained += m->trained[s];
			if (!m->trained[s])
				assert_true(gradient[s] == 0);
			if (!m->trained[s] || s % step)
				continue;
			value = scales[s] + h;
			o.ops->upload(o.ops, bdx_real(o.ops, m->scales, s), &value, sizeof(value));
			up = loss_of(&p);
			value = scales[s] - h;
			o.ops->upload(o.ops, bdx_real(o.ops, m->scales, s), &value, sizeof(value));
			worst = fmax(worst, fabs((up - loss_of(&p)) / (2 * h) - gradient[s]));
			o.ops->upload(o.ops, bdx_real(o.ops, m->scales, s), &scales[s], sizeof(value));
		}
		assert_true(trained > 0);
		if (!(worst < 1e-7 * largest))
			fail_msg("%s: %g, where gradients reach %g", shapes[i].name, worst, largest);
		end_pass(&p);
		closed(&o);
		free(made);
	}
}

/* What is trained is just what the delta has as one plane of signs in a matrix of the decoder. */
static void trained_scales(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened o = open_student(made, BD_F64);
		uint64_t at = 0;

		for (size_t t = 0; t < made->m.count; t++) {
			const struct ts_tensor *x = &made->tensors[t];
			bool trained = x->kind == TS_SIGN && x->planes == 1 && x->dims == 2 &&
				!strstr(x->name, "lm_head");

			for (size_t s = 0; s < x->scale_count; s++, at++)
				if (o.model->trained[at] != trained)
					fail_msg("%s: %s", shapes[i].name, x->name);
		}
		assert_int_equal(at, o.model->scale_count);
		closed(&o);
		free(made);
	}
}

/* The same calls give the same bits; gradients add up; float agrees with double. */
static void passes_repeat(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened f = open_student(made, BD_F32), d = open_student(made, BD_F64);
		struct pass p = new_pass(&f, 3, 7), q = new_pass(&d, 3, 7);
		uint64_t count = f.model->scale_count;
		double *once = gradients_of(&p), *again, *exact = gradients_of(&q), *twice;

		loss_of(&q); /* another shape of workspace between */
		again = gradients_of(&p);
		assert_memory_equal(once, again, count * sizeof(double));
		/* Rounding to the types of the file is all that differs much. */
		assert_true(distance(once, exact, count) < 3e-2);
		bdx_model_forward(f.model, p.tokens, 3, 7, true, p.hidden, &err);
		bdx_model_logits_backward(f.model, p.hidden_gradient, p.gradient, 21);
		must(bdx_model_backward(f.model, p.hidden_gradient, &err));
		twice = get(f.ops, f.model->scale_gradient, count);
		for (uint64_t s = 0; s < count; s++)
			twice[s] /= 2;
		assert_true(distance(twice, once, count) < 1e-6);
		end_pass(&p);
		end_pass(&q);
		closed(&f);
		closed(&d);
		free(made);
	}
}

/* Matrices that stay for the backward pass: all, some, none; and passes of another kind between. */
static void kept_matrices(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened o = open_student(made, BD_F32);
		struct pass p = new_pass(&o, 2, 5);
		uint64_t count = o.model->scale_count;
		double *scales = get(o.ops, o.model->scales, count), *before[2], *after;
		static const size_t bytes[] = { SIZE_MAX / 2, 3000, 0, 1000 };
		size_t plain = bdx_model_pass_bytes(o.model, 10, 5, true);

		for (int k = 0; k < 2; k++) {
			before[k] = gradients_of(&p);
			for (uint64_t s = 0; s < count; s++)
				scales[s] *= 1.25;
			put(o.ops, o.model->scales, scales, count);
		}
		for (size_t b = 0; b < 4; b++) {
			bdx_model_keep_weights(o.model, bytes[b]);
			assert_int_equal(bdx_model_backward(o.model, p.hidden_gradient, &err), -EINVAL);
			assert_true(b > 0 ||
				    bdx_model_pass_bytes(o.model, 10, 5, true) > plain);
			assert_true(bdx_model_pass_bytes(o.model, 10, 5, true) <= plain + bytes[b] + 65536);
			for (uint64_t s = 0; s < count; s++)
				scales[s] /= 1.25 * 1.25;
			for (int k = 0; k < 2; k++) {
				put(o.ops, o.model->scales, scales, count);
				after = gradients_of(&p);
				assert_memory_equal(after, before[k], count * sizeof(double));
				must(bdx_model_forward(o.model, p.tokens, 1, 3, false, p.hidden, &err));
				for (uint64_t s = 0; s < count; s++)
					scales[s] *= 1.25;
			}
		}
		end_pass(&p);
		closed(&o);
		free(made);
	}
}

static void backward_needs_training(void **state)
{
	struct made *made = make(&shapes[0]);
	struct opened o = open_student(made, BD_F32);
	struct pass p = new_pass(&o, 1, 4);

	(void)state;
	assert_int_equal(bdx_model_backward(o.model, p.hidden_gradient, &err), -EINVAL);
	must(bdx_model_forward(o.model, p.tokens, 1, 4, false, p.hidden, &err));
	assert_int_equal(bdx_model_backward(o.model, p.hidden_gradient, &err), -EINVAL);
	assert_non_null(strstr(err.text, "training pass"));
	end_pass(&p);
	closed(&o);
	free(made);
}

/* More passes of different tokens than there are places for tokens, none waited for. */
static void many_passes(void **state)
{
	struct made *made = make(&shapes[0]);
	struct opened o = open_plain(made->fine, BD_F64);
	uint64_t v = shapes[0].vocabulary, width = shapes[0].width;
	int32_t *tokens = some_tokens(40 * 3, v);
	char *hidden = o.ops->alloc(o.ops, 40 * 3 * width * sizeof(double), &err);
	double *all, *one = ts_memory(3 * width * sizeof(double));

	(void)state;
	assert_non_null(hidden);
	for (size_t i = 0; i < 40; i++)
		must(bdx_model_forward(o.model, tokens + 3 * i, 1, 3, false,
				       hidden + i * 3 * width * sizeof(double), &err));
	all = get(o.ops, hidden, 40 * 3 * width);
	for (size_t i = 0; i < 40; i++) {
		must(bdx_model_forward(o.model, tokens + 3 * i, 1, 3, false, hidden, &err));
		one = get(o.ops, hidden, 3 * width);
		assert_memory_equal(one, all + i * 3 * width, 3 * width * sizeof(double));
	}
	o.ops->free(o.ops, hidden);
	closed(&o);
	free(made);
}

/* ---- Decoders ---- */

static void *to_device(struct bdx_ops *ops, const int32_t *tokens, uint64_t batch, uint64_t length,
		       uint64_t first, uint64_t count)
{
	int32_t *rows = ts_memory(batch * count * sizeof(*rows));
	void *device = ops->alloc(ops, batch * count * sizeof(*rows), &err);

	assert_non_null(device);
	for (uint64_t b = 0; b < batch; b++)
		memcpy(rows + b * count, tokens + b * length + first, count * sizeof(*rows));
	must(ops->finish(ops, &err));
	ops->upload(ops, device, rows, batch * count * sizeof(*rows));
	return device;
}

/* Append `tokens` in pieces of the given sizes, and compare after each with a whole pass. */
static void decode(struct opened *o, struct bdx_decoder *decoder, uint64_t batch, uint64_t length,
		   const uint64_t *pieces)
{
	uint64_t v = o->config->vocabulary, done = 0;
	int32_t *tokens = some_tokens(batch * length, v);
	double *whole = logits_of(o, tokens, batch, length), *logits;

	for (; done < length; pieces++) {
		void *device = to_device(o->ops, tokens, batch, length, done, *pieces), *out;

		must(bdx_decoder_append(decoder, device, *pieces, &out, &err));
		done += *pieces;
		logits = get(o->ops, out, batch * v);
		for (uint64_t b = 0; b < batch; b++) {
			double off = distance(logits + b * v, whole + (b * length + done - 1) * v, v);

			if (!(off < 1e-11))
				fail_msg("%s: %g at token %d of sequence %d", o->config->architecture, off,
					 (int)done, (int)b);
		}
		o->ops->free(o->ops, device);
	}
}

static void decoders_agree(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened models[] = { open_plain(made->fine, BD_F64), open_student(made, BD_F64) };

		for (int k = 0; k < 2; k++) {
			struct opened *o = &models[k];
			struct bdx_decoder *decoder;
			void *device, *logits;

			must(bdx_decoder_open(&decoder, o->model, 3, 12, &err));
			decode(o, decoder, 3, 12, (uint64_t[]){ 5, 1, 1, 4, 1 });
			device = to_device(o->ops, some_tokens(3, 5), 3, 1, 0, 1);
			assert_int_equal(bdx_decoder_append(decoder, device, 1, &logits, &err), -EINVAL);
			assert_int_equal(bdx_decoder_append(decoder, device, 0, &logits, &err), -EINVAL);
			bdx_decoder_reset(decoder);
			decode(o, decoder, 3, 9, (uint64_t[]){ 1, 1, 7 });
			bdx_decoder_close(decoder);
			o->ops->free(o->ops, device);
			closed(o);
		}
		free(made);
	}
}

/* So many tokens that they are worked on in parts. */
static void long_prompts(void **state)
{
	struct made *made = make(&shapes[2]);
	struct opened o = open_plain(made->fine, BD_F64);
	struct bdx_decoder *decoder;

	(void)state;
	must(bdx_decoder_open(&decoder, o.model, 3, 400, &err));
	decode(&o, decoder, 3, 400, (uint64_t[]){ 1, 350, 49 });
	bdx_decoder_close(decoder);
	must(bdx_decoder_open(&decoder, o.model, 600, 4, &err));
	decode(&o, decoder, 600, 4, (uint64_t[]){ 3, 1 });
	bdx_decoder_close(decoder);
	closed(&o);
	free(made);
}

/* ---- Memory ---- */

static void memory_is_as_announced(void **state)
{
	struct made *made = make(&shapes[4]);
	struct opened o = open_student(made, BD_F32);
	uint64_t width = shapes[4].width;
	size_t before, announced = bdx_model_pass_bytes(o.model, 4 * 64, 64, true);
	void *hidden = o.ops->alloc(o.ops, 256 * width * sizeof(float), &err);
	int32_t *tokens = some_tokens(256, 15);

	(void)state;
	assert_true(bdx_model_pass_bytes(o.model, 4 * 64, 64, false) < announced);
	must(bdx_model_forward(o.model, tokens, 1, 64, false, hidden, &err)); /* the table of angles */
	before = o.ops->peak(o.ops);
	must(bdx_model_forward(o.model, tokens, 4, 64, true, hidden, &err));
	assert_true(o.ops->peak(o.ops) <= before + announced + 4096);
	o.ops->free(o.ops, hidden);
	closed(&o);
	free(made);
}

static void heads_stay(void **state)
{
	(void)state;
	for (size_t i = 0; i < SHAPES; i++) {
		struct made *made = make(&shapes[i]);
		struct opened o = open_plain(made->fine, BD_F64);
		struct pass p = new_pass(&o, 1, 5);
		uint64_t count = 5 * o.config->vocabulary;
		double *before, *after;

		loss_of(&p);
		before = get(o.ops, p.logits, count);
		bdx_model_keep_head(o.model);
		o.ops->zero(o.ops, p.logits, count * sizeof(double));
		bdx_model_logits(o.model, p.logits, p.hidden, 5);
		after = get(o.ops, p.logits, count);
		assert_memory_equal(before, after, count * sizeof(double));
		end_pass(&p);
		closed(&o);
		free(made);
	}
}

/* ---- Configurations ---- */

/* A directory with this config.json, and one tensor so that it is a checkpoint. */
static char *config_dir(const char *config)
{
	struct td_tensor t = { .name = "lm_head.weight", .dtype = BD_F32, .dims = 1, .shape = { 1 } };
	char *dir = td_dir();

	td_safetensors(dir, "model.safetensors", &t, 1, NULL);
	td_text(dir, "config.json", config);
	return dir;
}

static struct bdx_config *read_config(const char *dir)
{
	struct bdx_source *source;
	struct bdx_config *config;

	must(bdx_source_open(&source, dir, &err));
	must(bdx_config_read(&config, source, &err));
	bdx_source_close(source);
	return config;
}

#define SIZES "\"hidden_size\": 64, \"num_attention_heads\": 4, \"num_hidden_layers\": 4, " \
	"\"intermediate_size\": 96, \"vocab_size\": 100"
#define MPT_SIZES "\"model_type\": \"mpt\", \"d_model\": 64, \"n_heads\": 4, \"n_layers\": 2, " \
	"\"vocab_size\": 100"

static void settings_are_read(void **state)
{
	struct bdx_config *c;
	char *dir;

	(void)state;
	dir = config_dir("{\"architectures\": [\"LlamaForCausalLM\"], " SIZES ", \"rms_norm_eps\": 1e-5, "
			 "\"num_key_value_heads\": null, \"rope_scaling\": null, \"eos_token_id\": 7, "
			 "\"max_position_embeddings\": 4096.0}");
	td_text(dir, "generation_config.json", "{\"eos_token_id\": [7, 8, 1000, -1], "
		"\"bos_token_id\": 3}");
	c = read_config(dir);
	assert_string_equal(c->architecture, "llama");
	assert_true(c->kv_heads == 4 && c->head_dim == 16 && c->positions == 4096 && c->rotated == 16);
	assert_true(c->epsilon == 1e-5 && c->gated && c->rope && !c->alibi && !c->tied);
	assert_true(c->norm == BDX_RMS_NORM && c->activation == BDX_SILU);
	assert_true(c->attention_scale == 0.25 && c->logit_scale == 1);
	assert_true(c->bos == 3 && c->eos_count == 2 && c->eos[0] == 7 && c->eos[1] == 8);
	assert_true(c->frequencies[0] == 1 && fabs(c->frequencies[4] - 0.01) < 1e-8);
	bdx_config_free(c);

	/* As Python writes what is no number. */
	c = read_config(config_dir("{\"a\": Infinity, \"model_type\": \"llama\", \"b\": [NaN, -Infinity], "
				   SIZES "}"));
	assert_true(c->layers == 4);
	bdx_config_free(c);

	/* What was not said. */
	c = read_config(config_dir("{\"model_type\": \"mistral\", " SIZES "}"));
	assert_true(c->windows[0] == 4096 && c->windows[3] == 4096 && c->bos == 1 && c->eos[0] == 2);
	bdx_config_free(c);
	c = read_config(config_dir("{\"model_type\": \"mistral\", " SIZES ", \"sliding_window\": null, "
				   "\"bos_token_id\": null, \"eos_token_id\": null}"));
	assert_true(c->windows[0] == 0 && c->bos == -1 && c->eos_count == 0);
	bdx_config_free(c);
	c = read_config(config_dir("{\"model_type\": \"qwen3\", " SIZES "}"));
	assert_true(c->head_dim == 128 && c->windows[0] == 0);
	bdx_config_free(c);

	/* Windows of some layers. */
	c = read_config(config_dir("{\"model_type\": \"qwen2\", " SIZES ", \"sliding_window\": 9, "
				   "\"use_sliding_window\": true, \"max_window_layers\": 3}"));
	assert_true(c->windows[2] == 0 && c->windows[3] == 9);
	bdx_config_free(c);
	c = read_config(config_dir("{\"model_type\": \"qwen2\", " SIZES ", \"sliding_window\": 9, "
				   "\"use_sliding_window\": false, \"max_window_layers\": 0}"));
	assert_true(c->windows[0] == 0 && c->windows[3] == 0);
	bdx_config_free(c);

	/* Slopes of twelve heads: even exponents of 16, then odd ones. */
	c = read_config(config_dir("{\"model_type\": \"mpt\", \"d_model\": 48, \"n_heads\": 12, "
				   "\"n_layers\": 1, \"vocab_size\": 9}"));
	assert_true(c->alibi && c->tied && !c->gated && c->mlp_width == 192 && c->activation == BDX_GELU);
	assert_true(c->slopes[0] == 0.5 && c->slopes[7] == exp2(-8) && c->slopes[8] == exp2(-0.5) &&
		    c->slopes[11] == exp2(-3.5));
	bdx_config_free(c);
}

/* Which of rope_scaling and rope_parameters counts: as transformers 5 resolves them. */
static void rope_settings(void **state)
{
	static const struct {
		const char *more;
		double theta, factor; /* that all frequencies are divided by */
	} cases[] = {
		{ "", 1e4, 1 },
		{ "\"rope_theta\": 100.0", 100, 1 },
		{ "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 100.0}", 100, 1 },
		{ "\"rope_theta\": 50, \"rope_parameters\": {\"rope_theta\": 100.0}", 100, 1 },
		{ "\"rope_theta\": 50, \"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2}", 50, 2 },
		{ "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}", 1e4, 4 },
		/* Where both are there, the old one counts, and alone. */
		{ "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 100.0}, "
		  "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}", 1e4, 4 },
		{ "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0, \"rope_theta\": 7}, \"rope_theta\": 50, "
		  "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2, \"rope_theta\": 100.0}", 7, 4 },
		{ "\"rope_scaling\": {\"rope_type\": \"default\"}, \"rope_parameters\": {\"rope_type\": \"linear\", "
		  "\"factor\": 2, \"rope_theta\": 100.0}, \"rope_theta\": 50", 50, 1 },
		{ "\"rope_scaling\": {\"rope_type\": \"linear\", \"type\": \"dynamic\", \"factor\": 8}", 1e4, 8 },
		/* Empty or null: not there. */
		{ "\"rope_scaling\": {}, \"rope_parameters\": {\"type\": \"linear\", \"factor\": 2, "
		  "\"rope_theta\": 100.0}", 100, 2 },
		{ "\"rope_scaling\": null, \"rope_parameters\": {\"rope_theta\": 100.0}", 100, 1 },
		/* Its length is that of the configuration where it says none, so that nothing is stretched. */
		{ "\"max_position_embeddings\": 100000000, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, "
		  "\"low_freq_factor\": 1, \"high_freq_factor\": 4}", 1e4, 1 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *text = td_format("{\"model_type\": \"llama\", " SIZES "%s%s}", *cases[i].more ? ", " : "",
				       cases[i].more);
		struct bdx_config *c = read_config(config_dir(text));

		for (uint64_t f = 0; f < c->rotated / 2; f++) {
			double want = pow(cases[i].theta, -2.0 * (double)f / (double)c->rotated) / cases[i].factor;

			if (fabs(c->frequencies[f] / want - 1) > 1e-5)
				fail_msg("%s: frequency %d is %g, not %g", text, (int)f, c->frequencies[f], want);
		}
		bdx_config_free(c);
	}
}

static void settings_are_refused(void **state)
{
	static const struct {
		const char *config;
		int code;
		const char *text;
	} cases[] = {
		{ "{\"model_type\": \"bert\"}", -ENOTSUP, "the architecture 'bert' (it knows llama, " },
		{ "{\"architectures\": [\"MixtralForCausalLM\"]}", -ENOTSUP, "'MixtralForCausalLM'" },
		{ "{}", -ENOTSUP, "''" },
		{ "[]", -EINVAL, "config.json" },
		{ "{\"model_type\": \"llama\"", -EINVAL, "config.json" },
		{ "{\"model_type\": \"llama\", \"model_type\": \"mpt\"}", -EINVAL, "second time" },
		{ "{\"model_type\": 3}", -EINVAL, "expected a string" },
		{ "{\"model_type\": \"llama\"}", -EINVAL, "num_hidden_layers is missing" },
		{ "{\"model_type\": \"llama\", \"num_hidden_layers\": 1e9}", -EINVAL,
		  "num_hidden_layers is 1e+09" },
		{ "{\"model_type\": \"mpt\"}", -EINVAL,
		  "config.json: n_layers or num_hidden_layers is missing" },
		{ "{\"model_type\": \"mpt\", \"num_hidden_layers\": 1e9}", -EINVAL,
		  ": num_hidden_layers is 1e+09" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"type\": \"linear\", "
		  "\"factor\": 0}}", -EINVAL, ": rope_scaling.factor is 0, " },
		{ "{\"model_type\": \"llama\", \"num_hidden_layers\": -1}", -EINVAL, "is -1" },
		{ "{\"model_type\": \"llama\", \"num_hidden_layers\": 2.5}", -EINVAL, "whole number" },
		{ "{\"model_type\": \"llama\", \"num_hidden_layers\": \"2\"}", -EINVAL, "a number" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"head_dim\": 1000000}", -EINVAL, "no sense" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"head_dim\": 7}", -EINVAL, "in pairs" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"num_key_value_heads\": 3}", -EINVAL, "evenly" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"num_key_value_heads\": 0}", -EINVAL, "is 0" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"hidden_act\": \"relu\"}", -ENOTSUP, "'relu'" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rms_norm_eps\": 1e300}", -EINVAL, "1e+300" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_theta\": -1}", -EINVAL, "rope_theta" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_theta\": Infinity}", -EINVAL,
		  "rope_theta is inf" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rms_norm_eps\": NaN}", -EINVAL, "is nan" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"head_dim\": -Infinity}", -EINVAL, "is -inf" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"type\": \"yarn\"}}",
		  -ENOTSUP, "rope type 'yarn'" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_parameters\": {\"rope_type\": "
		  "\"dynamic\"}}", -ENOTSUP, "rope type 'dynamic'" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_parameters\": {\"rope_type\": \"default\"}, "
		  "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}}", -ENOTSUP, "rope type 'yarn'" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_parameters\": {\"rope_type\": \"default\"}, "
		  "\"rope_scaling\": {\"full_attention\": {}}}", -ENOTSUP, "rope_scaling.full_attention" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": \"linear\"}", -EINVAL, "an object" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"type\": \"linear\"}}",
		  -EINVAL, "factor is missing" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_scaling\": {\"rope_type\": \"llama3\", "
		  "\"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
		  "\"original_max_position_embeddings\": 10}}", -EINVAL, "high_freq_factor" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"rope_parameters\": {\"full_attention\": "
		  "{\"rope_type\": \"default\"}}}", -ENOTSUP, "rope_parameters.full_attention" },
		{ "{\"model_type\": \"llama\", " SIZES ", \"quantization_config\": {\"bits\": 4}}",
		  -ENOTSUP, "quantization_config" },
		{ "{\"model_type\": \"mistral\", " SIZES ", \"sliding_window\": 0}", -EINVAL,
		  "sliding_window" },
		{ "{\"model_type\": \"qwen2\", " SIZES ", \"use_sliding_window\": true, \"layer_types\": "
		  "[\"sliding_attention\"]}", -EINVAL, "lists 1 of 4" },
		{ "{\"model_type\": \"qwen2\", " SIZES ", \"use_sliding_window\": true, \"layer_types\": "
		  "[\"linear_attention\"]}", -ENOTSUP, "'linear_attention'" },
		{ "{\"model_type\": \"qwen2\", " SIZES ", \"use_sliding_window\": true, \"layer_types\": "
		  "[3]}", -EINVAL, "expected a string" },
		{ "{" MPT_SIZES ", \"attn_config\": {\"qk_ln\": true}}", -ENOTSUP,
		  "attn_config.qk_ln = true" },
		{ "{" MPT_SIZES ", \"attn_config\": {\"clip_qkv\": 6}}", -ENOTSUP, "clip_qkv = 6" },
		{ "{" MPT_SIZES ", \"attn_config\": {\"alibi\": false}}", -ENOTSUP, "alibi = false" },
		{ "{" MPT_SIZES ", \"attn_config\": {\"attn_type\": \"multiquery_attention\"}}", -ENOTSUP,
		  "attn_type = multiquery_attention" },
		{ "{" MPT_SIZES ", \"norm_type\": \"rmsnorm\"}", -ENOTSUP, "norm_type = rmsnorm" },
		{ "{" MPT_SIZES ", \"expansion_ratio\": 1e9}", -EINVAL, "expansion_ratio" },
		{ "{" MPT_SIZES ", \"logit_scale\": \"big\"}", -ENOTSUP, "logit scale 'big'" },
		{ "{" MPT_SIZES ", \"eos_token_id\": [1, \"2\"]}", -EINVAL, "a number" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct bdx_source *source;
		struct bdx_config *config = NULL;
		int rc;

		must(bdx_source_open(&source, config_dir(cases[i].config), &err));
		err.text[0] = '\0';
		rc = bdx_config_read(&config, source, &err);
		if (rc != cases[i].code || !strstr(err.text, cases[i].text) || strchr(err.text, '|'))
			fail_msg("%s: %d, %s", cases[i].config, rc, err.text);
		bdx_source_close(source);
	}
}

/* Any byte of a configuration changed: an answer, or a failure with a sentence. */
static void damaged_settings(void **state)
{
	char *text = config_text(&shapes[1]);
	char *dir = config_dir(text);
	size_t length = strlen(text);
	uint64_t seed = 5;
	struct bdx_source *source;

	(void)state;
	must(bdx_source_open(&source, dir, &err));
	for (int i = 0; i < 1500 / TD_SLOWNESS; i++) {
		char *copy = strdup(text);
		struct bdx_config *config = NULL;
		int rc;

		assert_non_null(copy);
		copy[ts_random(&seed) % length] = "0189e-.\"{}[],x"[ts_random(&seed) % 14];
		td_text(dir, "config.json", copy);
		err.text[0] = '\0';
		rc = bdx_config_read(&config, source, &err);
		assert_true(rc == 0 || ((rc == -EINVAL || rc == -ENOTSUP) && err.text[0]));
		bdx_config_free(rc == 0 ? config : NULL);
		free(copy);
	}
	bdx_source_close(source);
}

/* ---- Sources and loading ---- */

static void sources_have_files(void **state)
{
	struct made *made = make(&shapes[0]);
	struct opened o = { 0 };
	struct bdx_source *plain;
	struct bdx_weight a, b;
	char *text, x[64], y[64];
	size_t size;

	(void)state;
	must(bdx_source_open(&plain, made->fine, &err));
	open_view(&o, made);
	for (int i = 0; i < 2; i++) {
		struct bdx_source *s = i ? plain : o.source;

		must(bdx_source_file(s, "config.json", &text, &size, &err));
		assert_string_equal(text, config_text(&shapes[0]));
		assert_int_equal(size, strlen(text));
		free(text);
		assert_int_equal(bdx_source_file(s, "tokenizer.json", &text, &size, &err), -ENOENT);
		assert_non_null(strstr(err.text, "tokenizer.json"));
		assert_int_equal(bdx_source_file(s, "model.safetensors", &text, &size, &err), -ENOENT);
		assert_false(bdx_source_find(s, "no.such.tensor", &a));
	}
	assert_true(bdx_source_find(plain, "model.layers.1.mlp.up_proj.weight", &a));
	assert_true(bdx_source_find(o.source, "model.layers.1.mlp.up_proj.weight", &b));
	must(bdx_source_read(plain, &a, x, 11, sizeof(x), &err));
	must(bdx_source_read(o.source, &b, y, 11, sizeof(y), &err));
	assert_memory_equal(x, y, sizeof(x));
	bdx_source_close(plain);
	closed(&(struct opened){ .base = o.base, .view = o.view, .source = o.source,
				 .config = o.config, .ops = open_ops(BD_F32) });
	assert_int_equal(bdx_source_open(&plain, "/nonexistent", &err), -ENOENT);
	free(made);
}

static int open_result(const char *dir)
{
	struct bdx_ops *ops = open_ops(BD_F32);
	struct bdx_source *source;
	struct bdx_config *config;
	struct bdx_model *model = NULL;
	int rc;

	must(bdx_source_open(&source, dir, &err));
	must(bdx_config_read(&config, source, &err));
	rc = bdx_model_open(&model, ops, config, source, NULL, &err);
	if (rc == 0)
		bdx_model_close(model);
	bdx_config_free(config);
	bdx_source_close(source);
	bdx_ops_close(ops);
	return rc;
}

static void expect(const char *dir, int code, const char *text)
{
	int rc = open_result(dir);

	if (rc != code || !strstr(err.text, text))
		fail_msg("%d: %s", rc, err.text);
}

/* The shape's checkpoint, with one tensor otherwise. */
static char *altered(const struct shape *s, const char *name, const char *new_name,
		     enum bd_dtype dtype, uint64_t rows)
{
	struct td_tensor tensors[128];
	struct made *made = calloc(1, sizeof(*made));
	char *dir = td_dir();
	size_t i;

	assert_non_null(made);
	made->m.tensors = made->tensors;
	list_tensors(made, s);
	for (i = 0; i < made->m.count; i++) {
		const struct ts_tensor *t = &made->tensors[i];

		tensors[i] = (struct td_tensor){ .name = t->name, .dtype = t->dtype, .dims = t->dims };
		memcpy(tensors[i].shape, t->shape, sizeof(t->shape));
		if (strcmp(t->name, name) == 0) {
			tensors[i].name = new_name;
			tensors[i].dtype = dtype;
			tensors[i].shape[0] = rows ? rows : t->shape[0];
		}
	}
	td_safetensors(dir, "model.safetensors", tensors, made->m.count, NULL);
	td_text(dir, "config.json", config_text(s));
	free(made);
	return dir;
}

static void tensors_are_checked(void **state)
{
	const char *key = "model.layers.1.self_attn.k_proj.weight", *bias, *norm = "model.norm.weight";

	(void)state;
	assert_int_equal(open_result(altered(&shapes[0], "", "", BD_F32, 0)), 0);
	assert_int_equal(open_result(altered(&shapes[0], norm, norm, BD_F64, 0)), 0);
	expect(altered(&shapes[0], key, "other", BD_F32, 0), -EINVAL,
	       "tensor 'model.layers.1.self_attn.k_proj.weight' is missing");
	expect(altered(&shapes[0], key, key, BD_F32, 13), -EINVAL,
	       "k_proj.weight' has shape [13, 12], but config.json says [12, 12]");
	expect(altered(&shapes[0], key, key, BD_I8, 0), -ENOTSUP, "k_proj.weight' is of type I8");
	expect(altered(&shapes[0], norm, norm, BD_F32, 11), -EINVAL,
	       "'model.norm.weight' has shape [11], but config.json says [12]");
	expect(altered(&shapes[0], norm, "norm", BD_F32, 0), -EINVAL, "'model.norm.weight' is missing");
	expect(altered(&shapes[0], "lm_head.weight", "head", BD_F32, 0), -EINVAL,
	       "'lm_head.weight' is missing");
	expect(altered(&shapes[0], "model.embed_tokens.weight", "e", BD_F32, 0), -EINVAL,
	       "'model.embed_tokens.weight' is missing");
	expect(altered(&shapes[4], "model.layers.0.self_attn.q_norm.weight", "n", BD_F32, 0), -EINVAL,
	       "q_norm.weight' is missing");
	bias = "model.layers.0.mlp.down_proj.bias";
	expect(altered(&shapes[1], bias, bias, BD_F32, 3), -EINVAL, "down_proj.bias' has shape [3]");
	/* A bias may be there for q and not for k. */
	bias = "model.layers.0.self_attn.k_proj.bias";
	assert_int_equal(open_result(altered(&shapes[1], bias, "unused", BD_F32, 0)), 0);
}

/* tie_word_embeddings, against what is stored. */
static void heads_and_embeddings(void **state)
{
	static const char *const configs[] = { "true", "false" };
	static const struct {
		bool head, embedding, equal, tied[2]; /* tied: under each of the configurations */
		enum bd_dtype head_type;
	} cases[] = {
		{ true, true, true, { true, false }, BD_BF16 },
		{ true, true, false, { false, false }, BD_BF16 },
		{ true, true, true, { false, false }, BD_F32 },
		{ false, true, false, { true, false }, BD_BF16 },
		{ true, false, false, { true, false }, BD_BF16 },
	};
	const char *head = "lm_head.weight", *embedding = "model.embed_tokens.weight";
	char *data = calloc(2, (size_t)8300 * 64 * 4), *other; /* more than is compared at a time */

	(void)state;
	assert_non_null(data);
	other = data + (size_t)8300 * 64 * 4;
	other[(size_t)8300 * 64 * 2 - 1] = 1;
	for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
		struct td_tensor t[2] = {
			{ .name = head, .dtype = cases[i / 2].head_type, .dims = 2, .shape = { 8300, 64 },
			  .data = cases[i / 2].equal ? data : other },
			{ .name = embedding, .dtype = BD_BF16, .dims = 2, .shape = { 8300, 64 }, .data = data },
		};
		char *dir = td_dir();
		struct bdx_config *c;
		bool tied = cases[i / 2].tied[i % 2];

		td_safetensors(dir, "model.safetensors", t + !cases[i / 2].head,
			       (size_t)cases[i / 2].head + cases[i / 2].embedding, NULL);
		td_text(dir, "config.json", td_format("{\"model_type\": \"llama\", " SIZES ", "
						      "\"tie_word_embeddings\": %s}", configs[i % 2]));
		c = read_config(dir);
		assert_int_equal(c->tied, tied);
		assert_string_equal(c->embedding, tied && !cases[i / 2].embedding ? head : embedding);
		assert_int_equal(*c->note != 0, i % 2 == 0 && !tied);
		bdx_config_free(c);
	}
	free(data);
	/* Only the head is stored of two that are one. */
	assert_int_equal(open_result(altered(&shapes[3], embedding, head, BD_F32, 0)), 0);
}

static void tokens_are_checked(void **state)
{
	struct made *made = make(&shapes[0]);
	struct opened o = open_plain(made->fine, BD_F32);
	struct pass p = new_pass(&o, 1, 2);

	(void)state;
	assert_int_equal(bdx_model_forward(o.model, (int32_t[]){ 1, 23 }, 1, 2, false, p.hidden, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "token 23 is not in the model's vocabulary of 23"));
	assert_int_equal(bdx_model_forward(o.model, (int32_t[]){ -1, 2 }, 1, 2, false, p.hidden, NULL),
			 -EINVAL);
	must(bdx_model_forward(o.model, (int32_t[]){ 0, 22 }, 1, 2, false, p.hidden, &err));
	end_pass(&p);
	closed(&o);
	free(made);
}

static void note_progress(void *context, unsigned long long done, unsigned long long total)
{
	unsigned long long *last = context;

	assert_true(done >= *last && done <= total);
	*last = done;
}

static void loading_is_watched(void **state)
{
	struct made *made = make(&shapes[3]);
	struct opened o = { .ops = open_ops(BD_F32) };
	unsigned long long last = 0;
	atomic_int cancel = 0;
	struct bd_watch watch = { .progress = note_progress, .context = &last, .cancel = &cancel };

	(void)state;
	open_view(&o, made);
	must(bdx_model_open_student(&o.model, o.ops, o.config, o.view, &watch, &err));
	assert_true(last > 0);
	bdx_model_close(o.model);
	o.model = NULL;
	cancel = 1;
	last = 0;
	/* So little is loaded that it may be over before anybody looks. */
	if (bdx_model_open_student(&o.model, o.ops, o.config, o.view, &watch, &err) < 0)
		assert_int_equal(err.code, -EINTR);
	closed(&o);
	free(made);
}

/* Tensors that are read in several pieces, as they are and converted. */
static void large_tensors(void **state)
{
	static const enum bd_dtype types[] = { BD_F32, BD_BF16 };
	struct shape s = { .type = "llama", .layers = 1, .width = 26, .heads = 1, .kv_heads = 1,
			   .head_dim = 26, .mlp = 3, .vocabulary = 170001, .tied = true,
			   .more = "\"a\": 1" };

	(void)state;
	for (int i = 0; i < 2; i++) {
		char *dir = altered(&s, "model.embed_tokens.weight", "model.embed_tokens.weight", types[i],
				    0);
		struct opened o = open_plain(dir, BD_F32);
		size_t size, count = s.vocabulary * s.width;
		float *loaded = ts_memory(count * sizeof(*loaded));
		struct bdx_weight w;
		char *stored;

		assert_true(bdx_source_find(o.source, "model.embed_tokens.weight", &w));
		size = w.tensor->size;
		stored = ts_memory(size);
		must(bdx_source_read(o.source, &w, stored, 0, size, &err));
		assert_true(size > (i ? 8u : 16u) << 20);
		o.ops->download(o.ops, loaded, o.model->embedding, count * sizeof(*loaded));
		must(o.ops->finish(o.ops, &err));
		for (size_t k = 0; k < count; k++)
			if (loaded[k] != ts_to_float(stored + k * size / count, types[i]))
				fail_msg("type %d, element %zu", i, k);
		closed(&o);
	}
}

/* A shard that was changed meanwhile is noticed. */
static void changes_are_noticed(void **state)
{
	struct made *made = make(&shapes[0]);
	struct bdx_ops *ops = open_ops(BD_F32);
	struct bdx_source *source;
	struct bdx_config *config;
	struct bdx_model *model;
	char *path = td_path(made->fine, "model.safetensors");

	(void)state;
	must(bdx_source_open(&source, made->fine, &err));
	must(bdx_config_read(&config, source, &err));
	assert_int_equal(truncate(path, 3000), 0);
	assert_int_equal(bdx_source_check(source, &err), -EIO);
	assert_int_equal(bdx_model_open(&model, ops, config, source, NULL, &err), -EIO);
	bdx_config_free(config);
	bdx_source_close(source);
	bdx_ops_close(ops);
	free(made);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(settings_are_read),
		cmocka_unit_test(rope_settings),
		cmocka_unit_test(settings_are_refused),
		cmocka_unit_test(damaged_settings),
		cmocka_unit_test(sources_have_files),
		cmocka_unit_test(tensors_are_checked),
		cmocka_unit_test(heads_and_embeddings),
		cmocka_unit_test(tokens_are_checked),
		cmocka_unit_test(student_is_the_checkpoint),
		cmocka_unit_test(float_and_double_agree),
		cmocka_unit_test(sequences_are_apart),
		cmocka_unit_test(gradients_are_differences),
		cmocka_unit_test(trained_scales),
		cmocka_unit_test(passes_repeat),
		cmocka_unit_test(kept_matrices),
		cmocka_unit_test(backward_needs_training),
		cmocka_unit_test(many_passes),
		cmocka_unit_test(decoders_agree),
		cmocka_unit_test(long_prompts),
		cmocka_unit_test(memory_is_as_announced),
		cmocka_unit_test(heads_stay),
		cmocka_unit_test(large_tensors),
		cmocka_unit_test(loading_is_watched),
		cmocka_unit_test(changes_are_noticed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
