/* SPDX-License-Identifier: Apache-2.0 */
/* model_backward.c: the backward pass of a student, from its final hidden states to the gradients
 * of its scales; see model.h. Nothing else of it is trained, so only gradients of activations and
 * of sign-coded matrices are computed. */
#include <errno.h>

#include "model_impl.h"

/* `count` reals as operands: themselves where these are the same. */
static const void *as_operand(struct bdx_model *m, void *to, const void *real, uint64_t count)
{
	if (m->ops->real == m->ops->operand)
		return real;
	m->ops->convert(m->ops, to, m->ops->operand, real, m->ops->real, count);
	return to;
}

/* From the gradient of a linear layer's output and from its input, both operands: add to the
 * gradients of its scales; then, unless NULL, in_gradient, real [tokens, cols], is written. */
static void linear_backward(struct bdx_model *m, const struct bdx_linear *linear,
			    const void *gradient, const void *in, void *in_gradient)
{
	struct bdx_workspace *w = m->work;
	uint64_t tokens = w->batch * w->length, rows = linear->rows, cols = linear->cols;
	struct bdx_ops *ops = m->ops;

	if (linear->coded)
		ops->gemm(ops, true, false, rows, cols, tokens, 1, gradient, rows, in, cols, 0,
			  w->weight_gradient, BDX_OPERAND, cols);
	for (unsigned i = 0; i < linear->count; i++) {
		const struct bdx_part *part = &linear->parts[i];
		void *row_gradient = bdx_real(ops, m->scale_gradient, part->scales);

		if (part->coded)
			ops->scale_gradient(ops, &part->sign,
					    bdx_operand(ops, w->weight_gradient,
							part->first * cols),
					    row_gradient, bdx_real(ops, row_gradient, part->rows));
	}
	if (in_gradient)
		ops->gemm(ops, false, false, tokens, cols, rows, 1, gradient, rows,
			  linear->kept ? linear->kept : bdx_linear_weight(m, linear, w->weight),
			  cols, 0, in_gradient, BDX_REAL, cols);
}

/* gradient: real [tokens, width], of what the layer adds to and of what it made of it. */
static void mlp_backward(struct bdx_model *m, uint64_t index, void *gradient)
{
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_config *c = m->config;
	struct bdx_workspace *w = m->work;
	const struct bdx_kept *k = &w->kept[index];
	uint64_t tokens = w->batch * w->length;
	struct bdx_ops *ops = m->ops;

	linear_backward(m, &layer->down, as_operand(m, w->operand, gradient, tokens * c->width),
			k->activated, w->activation);
	ops->activate_backward(ops, c->activation, w->gates,
			       c->gated ? bdx_operand(ops, w->gates, c->mlp_width) : NULL,
			       w->activation, k->gate_up,
			       c->gated ? bdx_real(ops, k->gate_up, c->mlp_width) : NULL, tokens,
			       c->mlp_width, bdx_gates_width(c));
	linear_backward(m, &layer->gate_up, w->gates, k->mlp_input, w->normed);
	ops->norm_backward(ops, c->norm, gradient, true, NULL, w->normed, k->middle,
			   layer->mlp_norm, k->mlp_statistics, tokens, c->width, 1, c->width);
}

/* From w->attention, the gradient of what attention gave, to w->heads. */
static void heads_backward(struct bdx_model *m, uint64_t index)
{
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_config *c = m->config;
	struct bdx_workspace *w = m->work;
	const struct bdx_kept *k = &w->kept[index];
	uint64_t query = bdx_query_width(c), key = bdx_key_width(c), stride = query + 2 * key;
	uint64_t tokens = w->batch * w->length;
	struct bdx_ops *ops = m->ops;
	void *query_gradient = w->heads, *key_gradient = bdx_real(ops, w->heads, query);
	struct bdx_attention a = {
		.batch = w->batch, .query_length = w->length, .key_length = w->length,
		.query_stride = stride, .key_stride = stride, .key_capacity = w->length,
		.heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
		.scale = c->attention_scale, .window = c->windows[index], .slopes = m->slopes,
	};

	ops->attention_backward(ops, &a, query_gradient, key_gradient,
				bdx_real(ops, w->heads, query + key), w->attention,
				k->probabilities, k->turned, bdx_real(ops, k->turned, query),
				bdx_real(ops, k->raw, query + key));
	if (c->rope)
		ops->rope(ops, w->heads, m->rope_table, tokens, w->length, 0,
			  c->heads + c->kv_heads, c->head_dim, c->rotated, stride, true);
	if (layer->query_norm)
		ops->norm_backward(ops, c->norm, query_gradient, false, NULL, query_gradient,
				   k->raw, layer->query_norm, k->query_statistics,
				   tokens * c->heads, c->head_dim, c->heads, stride);
	if (layer->key_norm)
		ops->norm_backward(ops, c->norm, key_gradient, false, NULL, key_gradient,
				   bdx_real(ops, k->raw, query), layer->key_norm, k->key_statistics,
				   tokens * c->kv_heads, c->head_dim, c->kv_heads, stride);
}

/* gradient as in mlp_backward; `last`: it is not needed afterwards. */
static void attention_backward(struct bdx_model *m, uint64_t index, void *gradient, bool last)
{
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_config *c = m->config;
	struct bdx_workspace *w = m->work;
	const struct bdx_kept *k = &w->kept[index];
	uint64_t tokens = w->batch * w->length;

	linear_backward(m, &layer->attention_out,
			as_operand(m, w->operand, gradient, tokens * c->width), k->attended,
			w->attention);
	heads_backward(m, index);
	linear_backward(m, &layer->query_key_value,
			as_operand(m, w->heads_operand, w->heads, tokens * bdx_heads_width(c)),
			k->attention_input, last ? NULL : w->normed);
	if (!last)
		m->ops->norm_backward(m->ops, c->norm, gradient, true, NULL, w->normed, k->residual,
				      layer->attention_norm, k->attention_statistics, tokens,
				      c->width, 1, c->width);
}

static bool is_coded(const struct bdx_layer *layer)
{
	return layer->query_key_value.coded || layer->attention_out.coded || layer->gate_up.coded ||
		layer->down.coded;
}

int bdx_model_backward(struct bdx_model *m, void *hidden_gradient, struct bd_error *err)
{
	const struct bdx_config *c = m->config;
	struct bdx_workspace *w = m->work;
	uint64_t lowest = 0;

	if (!w->complete)
		return bd_error_set(err, -EINVAL, "a backward pass needs a training pass before "
				    "it");
	while (lowest < c->layers && !is_coded(&m->layers[lowest]))
		lowest++;
	m->ops->norm_backward(m->ops, c->norm, hidden_gradient, false, NULL, hidden_gradient,
			      w->last, m->final_norm, w->final_statistics, w->batch * w->length,
			      c->width, 1, c->width);
	for (uint64_t l = c->layers; l-- > lowest;) {
		mlp_backward(m, l, hidden_gradient);
		attention_backward(m, l, hidden_gradient, l == lowest);
	}
	return 0;
}

void bdx_model_logits_backward(struct bdx_model *m, void *hidden_gradient,
			       const void *logits_gradient, uint64_t rows)
{
	const struct bdx_linear *head = m->head;

	m->ops->gemm(m->ops, false, false, rows, head->cols, head->rows, m->config->logit_scale,
		     logits_gradient, head->rows, head->weight, head->cols, 0, hidden_gradient,
		     BDX_REAL, head->cols);
}
