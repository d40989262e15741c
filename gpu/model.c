/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: the forward pass of a decoder, and the memory of a pass; see model.h. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_impl.h"

/* ---- Linear layers ---- */

#define LINEARS 4 /* of a layer */

static struct bdx_linear *linear_of(const struct bdx_model *m, uint64_t layer, int which)
{
	struct bdx_layer *l = &m->layers[layer];
	struct bdx_linear *all[LINEARS] = { &l->query_key_value, &l->attention_out, &l->gate_up,
					    &l->down };

	return all[which];
}

uint64_t bdx_model_largest(const struct bdx_model *m)
{
	uint64_t largest = 0;

	for (uint64_t l = 0; l < m->config->layers; l++)
		for (int i = 0; i < LINEARS; i++) {
			const struct bdx_linear *linear = linear_of(m, l, i);

			if (linear->coded && linear->rows * linear->cols > largest)
				largest = linear->rows * linear->cols;
		}
	return largest;
}

const void *bdx_linear_weight(struct bdx_model *m, const struct bdx_linear *linear, void *scratch)
{
	if (!linear->coded)
		return linear->weight;
	if (linear->kept)
		scratch = linear->kept;
	for (unsigned i = 0; i < linear->count; i++) {
		const struct bdx_part *part = &linear->parts[i];
		void *to = bdx_operand(m->ops, scratch, part->first * linear->cols);

		if (part->coded)
			m->ops->rebuild(m->ops, &part->sign, to);
		else
			m->ops->copy(m->ops, to, part->plain,
				     part->rows * linear->cols * bdx_operand_size(m->ops));
	}
	return scratch;
}

void bdx_linear_forward(struct bdx_model *m, const struct bdx_linear *linear, void *scratch,
			const void *in, uint64_t rows, bool add, void *out)
{
	const void *weight = bdx_linear_weight(m, linear, scratch);

	m->ops->gemm(m->ops, false, true, rows, linear->rows, linear->cols, 1, in, linear->cols,
		     weight, linear->cols, add, out, BDX_REAL, linear->rows);
	if (linear->bias)
		m->ops->add_bias(m->ops, out, linear->bias, rows, linear->rows, linear->rows);
}

/* ---- The memory of a pass ---- */

static void lay_out_layer(const struct bdx_model *m, struct bdx_layout *to,
			  const struct bdx_workspace *w, struct bdx_kept *k)
{
	const struct bdx_config *c = m->config;
	uint64_t tokens = w->batch * w->length, real = tokens * bdx_real_size(m->ops);
	uint64_t operand = tokens * bdx_operand_size(m->ops);

	*k = (struct bdx_kept){
		.residual = bdx_place(to, c->width * real),
		.attention_input = bdx_place(to, c->width * operand),
		.mlp_input = bdx_place(to, c->width * operand),
		.attention_statistics = bdx_place(to, 2 * real),
		.mlp_statistics = bdx_place(to, 2 * real),
		.raw = bdx_place(to, bdx_heads_width(c) * real),
		.attended = bdx_place(to, bdx_query_width(c) * operand),
		.gate_up = bdx_place(to, bdx_gates_width(c) * real),
		.activated = bdx_place(to, c->mlp_width * operand),
	};
	k->middle = k->residual;
	k->turned = k->raw;
	if (c->names->query_norm)
		k->query_statistics = bdx_place(to, 2 * c->heads * real);
	if (c->names->key_norm)
		k->key_statistics = bdx_place(to, 2 * c->kv_heads * real);
	if (!w->training)
		return;
	k->middle = bdx_place(to, c->width * real);
	k->probabilities = bdx_place(to, c->heads * w->length * real);
	if (c->names->query_norm)
		k->turned = bdx_place(to, bdx_heads_width(c) * real);
}

/* Places for rebuilt matrices, as far as the memory for them goes. */
static void lay_out_matrices(const struct bdx_model *m, struct bdx_layout *to, bool training)
{
	size_t left = training ? m->work->keep : 0;

	for (uint64_t l = 0; l < m->config->layers; l++)
		for (int i = 0; i < LINEARS; i++) {
			struct bdx_linear *linear = linear_of(m, l, i);
			size_t bytes = linear->rows * linear->cols * bdx_operand_size(m->ops);
			bool fits = linear->coded && bytes <= left;
			void *place = fits ? bdx_place(to, bytes) : NULL;

			left -= fits ? bytes : 0;
			if (to->memory)
				linear->kept = place;
		}
}

static void lay_out_gradients(const struct bdx_model *m, struct bdx_layout *to,
			      struct bdx_workspace *w, uint64_t largest)
{
	const struct bdx_config *c = m->config;
	uint64_t tokens = w->batch * w->length, real = tokens * bdx_real_size(m->ops);
	uint64_t operand = tokens * bdx_operand_size(m->ops);

	w->weight_gradient = bdx_place(to, largest * bdx_operand_size(m->ops));
	w->operand = bdx_place(to, c->width * operand);
	w->normed = bdx_place(to, c->width * real);
	w->activation = bdx_place(to, c->mlp_width * real);
	w->gates = bdx_place(to, bdx_gates_width(c) * operand);
	w->attention = bdx_place(to, bdx_query_width(c) * real);
	w->heads = bdx_place(to, bdx_heads_width(c) * real);
	w->heads_operand = bdx_place(to, bdx_heads_width(c) * operand);
}

/* For the pass that `w` says; w->kept may be NULL while measuring. */
static void lay_out(const struct bdx_model *m, struct bdx_layout *to, struct bdx_workspace *w)
{
	const struct bdx_config *c = m->config;
	uint64_t tokens = w->batch * w->length, largest = bdx_model_largest(m);
	struct bdx_kept k;

	for (unsigned i = 0; i < BDX_TOKEN_SLOTS; i++)
		w->tokens[i] = bdx_place(to, tokens * sizeof(*w->tokens[i]));
	w->final_statistics = bdx_place(to, 2 * tokens * bdx_real_size(m->ops));
	w->weight = bdx_place(to, largest * bdx_operand_size(m->ops));
	for (uint64_t l = 0; l < c->layers; l++) {
		if (l == 0 || w->training)
			lay_out_layer(m, to, w, &k);
		if (w->kept)
			w->kept[l] = k;
	}
	lay_out_matrices(m, to, w->training);
	w->last = k.residual;
	if (!w->training)
		return;
	w->last = bdx_place(to, c->width * tokens * bdx_real_size(m->ops));
	lay_out_gradients(m, to, w, largest);
}

void bdx_model_keep_weights(struct bdx_model *m, size_t bytes)
{
	struct bdx_workspace *w = m->work;

	w->keep = bytes;
	w->batch = w->length = 0; /* what is there must be laid out anew */
	w->complete = false;
}

size_t bdx_model_pass_bytes(const struct bdx_model *m, uint64_t tokens, uint64_t length,
			    bool training)
{
	struct bdx_workspace w = { .batch = (tokens + length - 1) / length, .length = length,
				   .training = training };
	struct bdx_layout measure = { 0 };

	lay_out(m, &measure, &w);
	return measure.used;
}

/* Make the workspace fit. */
static int prepare(struct bdx_model *m, uint64_t batch, uint64_t length, bool training,
		   struct bd_error *err)
{
	struct bdx_workspace *w = m->work;
	struct bdx_layout layout = { 0 };
	struct bd_error e = { 0 };
	size_t bytes;
	int rc;

	w->complete = false;
	if (w->memory && w->batch == batch && w->length == length && w->training == training &&
	    w->slot < BDX_TOKEN_SLOTS)
		return 0;
	rc = m->ops->finish(m->ops, err);
	if (rc < 0)
		return rc;
	w->slot = 0;
	bytes = bdx_model_pass_bytes(m, batch * length, length, training);
	if (!w->kept)
		w->kept = calloc(m->config->layers, sizeof(*w->kept));
	if (!w->kept)
		return bd_error_set(err, -ENOMEM, "out of memory");
	if (bytes > w->bytes) {
		if (w->memory)
			m->ops->free(m->ops, w->memory);
		w->bytes = 0;
		w->memory = m->ops->alloc(m->ops, bytes, &e);
		rc = w->memory ? m->ops->finish(m->ops, &e) : e.code;
		if (rc < 0) {
			if (err)
				*err = e;
			return rc;
		}
		w->bytes = bytes;
	}
	w->batch = batch;
	w->length = length;
	w->training = training;
	layout.memory = w->memory;
	lay_out(m, &layout, w);
	return 0;
}

int bdx_model_reals(struct bdx_model *m, void **to, const double *values, uint64_t count,
		    struct bd_error *err)
{
	struct bdx_ops *ops = m->ops;
	size_t size = count * bdx_real_size(ops);
	float *floats = ops->real == BD_F32 ? malloc(size) : NULL;
	struct bd_error e = { 0 };
	void *memory;
	int rc;

	if (ops->real == BD_F32 && !floats)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (uint64_t i = 0; floats && i < count; i++)
		floats[i] = (float)values[i];
	memory = ops->alloc(ops, size, &e);
	/* Nothing may still clear the new memory, or use the old. */
	rc = memory ? ops->finish(ops, &e) : e.code;
	if (rc == 0) {
		ops->upload(ops, memory, floats ? (const void *)floats : values, size);
		if (*to)
			ops->free(ops, *to);
		*to = memory;
	} else {
		bd_error_set(err, rc, "%s", e.text);
		if (memory)
			ops->free(ops, memory);
	}
	free(floats);
	return rc;
}

int bdx_model_reach(struct bdx_model *m, uint64_t positions, struct bd_error *err)
{
	const struct bdx_config *c = m->config;
	uint64_t pairs = c->rotated / 2, rows = (positions + 255) / 256 * 256;
	double *table;
	int rc;

	if (!c->rope || positions <= m->work->rope_positions)
		return 0;
	table = calloc(rows * pairs, 2 * sizeof(*table));
	if (!table)
		return bd_error_set(err, -ENOMEM, "out of memory");
	for (uint64_t i = 0; i < rows * pairs; i++) {
		/* The angle in float: see arch.c. */
		float angle = (float)(i / pairs) * (float)c->frequencies[i % pairs];

		table[2 * i] = cos(angle) * c->rope_factor;
		table[2 * i + 1] = sin(angle) * c->rope_factor;
	}
	rc = bdx_model_reals(m, &m->rope_table, table, rows * pairs * 2, err);
	if (rc == 0)
		m->work->rope_positions = rows;
	free(table);
	return rc;
}

/* ---- Layers ---- */

/* From k->raw to k->turned: norms of heads, then rope. */
static void turn(struct bdx_model *m, const struct bdx_layer *layer, const struct bdx_kept *k)
{
	const struct bdx_config *c = m->config;
	uint64_t tokens = m->work->batch * m->work->length, stride = bdx_heads_width(c);
	uint64_t keys = bdx_query_width(c);
	struct bdx_ops *ops = m->ops;

	if (layer->query_norm)
		ops->norm(ops, c->norm, k->turned, BDX_REAL, k->query_statistics, k->raw,
			  layer->query_norm, NULL, tokens * c->heads, c->head_dim, c->heads, stride,
			  c->epsilon);
	if (layer->key_norm)
		ops->norm(ops, c->norm, bdx_real(ops, k->turned, keys), BDX_REAL, k->key_statistics,
			  bdx_real(ops, k->raw, keys), layer->key_norm, NULL, tokens * c->kv_heads,
			  c->head_dim, c->kv_heads, stride, c->epsilon);
	/* Queries and keys lie side by side. */
	if (c->rope)
		ops->rope(ops, k->turned, m->rope_table, tokens, m->work->length, 0,
			  c->heads + c->kv_heads, c->head_dim, c->rotated, stride, false);
}

static void attend(struct bdx_model *m, uint64_t index, const struct bdx_kept *k)
{
	const struct bdx_config *c = m->config;
	const struct bdx_workspace *w = m->work;
	uint64_t query = bdx_query_width(c), key = bdx_key_width(c);
	struct bdx_attention a = {
		.batch = w->batch, .query_length = w->length, .key_length = w->length,
		.query_stride = query + 2 * key, .key_stride = query + 2 * key,
		.key_capacity = w->length, .heads = c->heads, .kv_heads = c->kv_heads,
		.head_dim = c->head_dim, .scale = c->attention_scale, .window = c->windows[index],
		.slopes = m->slopes,
	};

	m->ops->attention(m->ops, &a, k->attended, k->probabilities, k->turned,
			  bdx_real(m->ops, k->turned, query),
			  bdx_real(m->ops, k->raw, query + key));
}

/* The layer's output goes to `out`. */
static void run_layer(struct bdx_model *m, uint64_t index, void *out)
{
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_config *c = m->config;
	const struct bdx_kept *k = &m->work->kept[index];
	uint64_t tokens = m->work->batch * m->work->length;
	size_t stream = c->width * tokens * bdx_real_size(m->ops);
	struct bdx_ops *ops = m->ops;

	ops->norm(ops, c->norm, k->attention_input, BDX_OPERAND, k->attention_statistics,
		  k->residual, layer->attention_norm, layer->attention_norm_bias, tokens, c->width,
		  1, c->width, c->epsilon);
	bdx_linear_forward(m, &layer->query_key_value, m->work->weight, k->attention_input, tokens,
			   false, k->raw);
	turn(m, layer, k);
	attend(m, index, k);
	if (k->middle != k->residual)
		ops->copy(ops, k->middle, k->residual, stream);
	bdx_linear_forward(m, &layer->attention_out, m->work->weight, k->attended, tokens, true,
			   k->middle);

	ops->norm(ops, c->norm, k->mlp_input, BDX_OPERAND, k->mlp_statistics, k->middle,
		  layer->mlp_norm, layer->mlp_norm_bias, tokens, c->width, 1, c->width, c->epsilon);
	bdx_linear_forward(m, &layer->gate_up, m->work->weight, k->mlp_input, tokens, false,
			   k->gate_up);
	ops->activate(ops, c->activation, k->activated, k->gate_up,
		      c->gated ? bdx_real(ops, k->gate_up, c->mlp_width) : NULL, tokens,
		      c->mlp_width, bdx_gates_width(c));
	if (out != k->middle)
		ops->copy(ops, out, k->middle, stream);
	bdx_linear_forward(m, &layer->down, m->work->weight, k->activated, tokens, true, out);
}

int bdx_model_forward(struct bdx_model *m, const int32_t *tokens, uint64_t batch, uint64_t length,
		      bool training, void *hidden, struct bd_error *err)
{
	const struct bdx_config *c = m->config;
	struct bdx_workspace *w = m->work;
	struct bdx_ops *ops = m->ops;
	int32_t *on_device;
	int rc;

	for (uint64_t i = 0; i < batch * length; i++)
		if (tokens[i] < 0 || (uint64_t)tokens[i] >= c->vocabulary)
			return bd_error_set(err, -EINVAL, "token %" PRId32 " is not in the model's "
					    "vocabulary of %" PRIu64, tokens[i], c->vocabulary);
	rc = bdx_model_reach(m, length, err);
	if (rc == 0)
		rc = prepare(m, batch, length, training, err);
	if (rc < 0)
		return rc;
	on_device = w->tokens[w->slot++];
	ops->upload(ops, on_device, tokens, batch * length * sizeof(*tokens));
	ops->embed(ops, w->kept[0].residual, m->embedding, on_device, batch * length, c->width);
	for (uint64_t l = 0; l < c->layers; l++)
		run_layer(m, l, l + 1 < c->layers ? w->kept[l + 1].residual : w->last);
	ops->norm(ops, c->norm, hidden, BDX_OPERAND, w->final_statistics, w->last, m->final_norm,
		  m->final_norm_bias, batch * length, c->width, 1, c->width, c->epsilon);
	w->complete = training;
	return 0;
}

void bdx_model_logits(struct bdx_model *m, void *logits, const void *hidden, uint64_t rows)
{
	const struct bdx_linear *head = m->head;

	m->ops->gemm(m->ops, false, true, rows, head->rows, head->cols, m->config->logit_scale,
		     hidden, head->cols, head->weight, head->cols, 0, logits, BDX_REAL, head->rows);
	if (head->bias)
		m->ops->add_bias(m->ops, logits, head->bias, rows, head->rows, head->rows);
}
