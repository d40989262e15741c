/* SPDX-License-Identifier: Apache-2.0 */
/* model_decode.c: sequences that grow token by token, with their keys and values kept; see model.h.
 *
 * The products for keys and values write straight into the cache: its rows are a stride apart, so
 * no copying is needed. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "model_impl.h"

/* New tokens of all sequences together that are worked on at a time. */
#define MAX_ROWS 512

struct bdx_decoder {
	struct bdx_model *model;
	uint64_t batch, capacity;
	uint64_t length;      /* tokens in each sequence */
	uint64_t chunk;       /* most new tokens of a sequence at a time */
	/* In the backend: */
	void *memory;
	void *cache;          /* real [layers, batch, capacity, keys + values] */
	void *residual;       /* real [rows, width] */
	void *normed;         /* operand [rows, width] */
	void *statistics;     /* real [rows * heads, 2] */
	void *query;          /* real [rows, q] */
	void *attended;       /* operand [rows, q] */
	void *gate_up;        /* real [rows, gate + up] */
	void *activated;      /* operand [rows, mlp_width] */
	void *logits;         /* real [batch, vocabulary] */
	void *weight;         /* operand: a matrix that was rebuilt */
};

static void lay_out(struct bdx_decoder *d, struct bdx_layout *to)
{
	const struct bdx_config *c = d->model->config;
	struct bdx_ops *ops = d->model->ops;
	size_t real = bdx_real_size(ops), operand = bdx_operand_size(ops);
	uint64_t rows;

	d->chunk = d->batch < MAX_ROWS ? MAX_ROWS / d->batch : 1;
	d->chunk = d->chunk < d->capacity ? d->chunk : d->capacity;
	rows = d->batch * d->chunk;
	d->cache = bdx_place(to, c->layers * d->batch * d->capacity * 2 * bdx_key_width(c) * real);
	d->residual = bdx_place(to, rows * c->width * real);
	d->normed = bdx_place(to, rows * c->width * operand);
	d->statistics = bdx_place(to, rows * c->heads * 2 * real);
	d->query = bdx_place(to, rows * bdx_query_width(c) * real);
	d->attended = bdx_place(to, rows * bdx_query_width(c) * operand);
	d->gate_up = bdx_place(to, rows * bdx_gates_width(c) * real);
	d->activated = bdx_place(to, rows * c->mlp_width * operand);
	d->logits = bdx_place(to, d->batch * c->vocabulary * real);
	d->weight = bdx_place(to, bdx_model_largest(d->model) * operand);
}

size_t bdx_decoder_bytes(const struct bdx_model *model, uint64_t batch, uint64_t capacity)
{
	struct bdx_decoder d = { .model = (struct bdx_model *)model, .batch = batch,
				 .capacity = capacity };
	struct bdx_layout measure = { 0 };

	lay_out(&d, &measure);
	return measure.used;
}

int bdx_decoder_open(struct bdx_decoder **decoder, struct bdx_model *model, uint64_t batch,
		     uint64_t capacity, struct bd_error *err)
{
	struct bdx_decoder *d = calloc(1, sizeof(*d));
	struct bdx_layout layout = { 0 };
	struct bd_error e = { 0 };
	int rc;

	if (!d)
		return bd_error_set(err, -ENOMEM, "out of memory");
	d->model = model;
	d->batch = batch;
	d->capacity = capacity;
	rc = bdx_model_reach(model, capacity, &e);
	if (rc == 0) {
		d->memory = model->ops->alloc(model->ops,
					      bdx_decoder_bytes(model, batch, capacity), &e);
		rc = d->memory ? 0 : e.code;
	}
	if (rc < 0) {
		bdx_decoder_close(d);
		if (err)
			*err = e;
		return rc;
	}
	layout.memory = d->memory;
	lay_out(d, &layout);
	*decoder = d;
	return 0;
}

void bdx_decoder_close(struct bdx_decoder *d)
{
	if (!d)
		return;
	if (d->memory)
		d->model->ops->free(d->model->ops, d->memory);
	free(d);
}

void bdx_decoder_reset(struct bdx_decoder *d)
{
	d->length = 0;
}

/* Queries, or keys with values. */
struct projection {
	uint64_t first, rows; /* of the fused matrix */
	uint64_t heads;       /* that turn: not the values */
	const void *norm;     /* of these heads; NULL: none */
};

/* Rows of `in`, sequences of `count` tokens, into `out` with `stride` from token to token. */
static void project(struct bdx_decoder *d, const struct bdx_linear *linear, const void *weight,
		    const struct projection *p, const void *in, uint64_t tokens, uint64_t count,
		    void *out, uint64_t stride)
{
	const struct bdx_config *c = d->model->config;
	struct bdx_ops *ops = d->model->ops;

	ops->gemm(ops, false, true, tokens, p->rows, c->width, 1, in, c->width,
		  bdx_operand(ops, weight, p->first * c->width), c->width, 0, out, BDX_REAL,
		  stride);
	if (linear->bias)
		ops->add_bias(ops, out, bdx_real(ops, linear->bias, p->first), tokens, p->rows,
			      stride);
	if (p->norm)
		ops->norm(ops, c->norm, out, BDX_REAL, d->statistics, out, p->norm, NULL,
			  tokens * p->heads, c->head_dim, p->heads, stride, c->epsilon);
	if (c->rope)
		ops->rope(ops, out, d->model->rope_table, tokens, count, d->length, p->heads,
			  c->head_dim, c->rotated, stride, false);
}

static void attend(struct bdx_decoder *d, uint64_t index, uint64_t count)
{
	struct bdx_model *m = d->model;
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_linear *linear = &layer->query_key_value;
	const struct bdx_config *c = m->config;
	struct bdx_ops *ops = m->ops;
	uint64_t query = bdx_query_width(c), key = bdx_key_width(c);
	const void *weight = bdx_linear_weight(m, linear, d->weight);
	char *cache = bdx_real(ops, d->cache, index * d->batch * d->capacity * 2 * key);
	char *end = bdx_real(ops, cache, d->length * 2 * key); /* of the first sequence */
	struct projection queries = { 0, query, c->heads, layer->query_norm };
	struct projection keys = { query, 2 * key, c->kv_heads, layer->key_norm };
	struct bdx_attention a = {
		.batch = d->batch, .query_length = count, .key_length = d->length + count,
		.query_stride = query, .key_stride = 2 * key, .key_capacity = d->capacity,
		.heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
		.scale = c->attention_scale, .window = c->windows[index], .slopes = m->slopes,
	};

	project(d, linear, weight, &queries, d->normed, d->batch * count, count, d->query, query);
	if (count == 1)
		project(d, linear, weight, &keys, d->normed, d->batch, 1, end,
			d->capacity * 2 * key);
	else
		for (uint64_t b = 0; b < d->batch; b++)
			project(d, linear, weight, &keys,
				bdx_operand(ops, d->normed, b * count * c->width), count, count,
				bdx_real(ops, end, b * d->capacity * 2 * key), 2 * key);
	ops->attention(ops, &a, d->attended, NULL, d->query, cache, bdx_real(ops, cache, key));
}

static void run_layer(struct bdx_decoder *d, uint64_t index, uint64_t count)
{
	struct bdx_model *m = d->model;
	const struct bdx_layer *layer = &m->layers[index];
	const struct bdx_config *c = m->config;
	struct bdx_ops *ops = m->ops;
	uint64_t rows = d->batch * count;

	ops->norm(ops, c->norm, d->normed, BDX_OPERAND, d->statistics, d->residual,
		  layer->attention_norm, layer->attention_norm_bias, rows, c->width, 1, c->width,
		  c->epsilon);
	attend(d, index, count);
	bdx_linear_forward(m, &layer->attention_out, d->weight, d->attended, rows, true,
			   d->residual);
	ops->norm(ops, c->norm, d->normed, BDX_OPERAND, d->statistics, d->residual, layer->mlp_norm,
		  layer->mlp_norm_bias, rows, c->width, 1, c->width, c->epsilon);
	bdx_linear_forward(m, &layer->gate_up, d->weight, d->normed, rows, false, d->gate_up);
	ops->activate(ops, c->activation, d->activated, d->gate_up,
		      c->gated ? bdx_real(ops, d->gate_up, c->mlp_width) : NULL, rows, c->mlp_width,
		      bdx_gates_width(c));
	bdx_linear_forward(m, &layer->down, d->weight, d->activated, rows, true, d->residual);
}

int bdx_decoder_append(struct bdx_decoder *d, const int32_t *tokens, uint64_t count, void **logits,
		       struct bd_error *err)
{
	struct bdx_model *m = d->model;
	const struct bdx_config *c = m->config;
	struct bdx_ops *ops = m->ops;
	uint64_t done = 0, n = 0, last;

	if (count == 0 || count > d->capacity - d->length)
		return bd_error_set(err, -EINVAL, "%" PRIu64 " more tokens do not fit: %" PRIu64
				    " of %" PRIu64 " are there", count, d->length, d->capacity);
	for (; done < count; done += n) {
		n = count - done < d->chunk ? count - done : d->chunk;
		if (n == count)
			ops->embed(ops, d->residual, m->embedding, tokens, d->batch * n, c->width);
		else
			for (uint64_t b = 0; b < d->batch; b++)
				ops->embed(ops, bdx_real(ops, d->residual, b * n * c->width),
					   m->embedding, tokens + b * count + done, n, c->width);
		for (uint64_t l = 0; l < c->layers; l++)
			run_layer(d, l, n);
		d->length += n;
	}
	/* Only the last token of each sequence. */
	last = (n - 1) * c->width;
	ops->norm(ops, c->norm, bdx_operand(ops, d->normed, last), BDX_OPERAND, d->statistics,
		  bdx_real(ops, d->residual, last), m->final_norm, m->final_norm_bias, d->batch,
		  c->width, 1, n * c->width, c->epsilon);
	ops->gemm(ops, false, true, d->batch, c->vocabulary, c->width, c->logit_scale,
		  bdx_operand(ops, d->normed, last), n * c->width, m->head->weight, c->width, 0,
		  d->logits, BDX_REAL, c->vocabulary);
	if (m->head->bias)
		ops->add_bias(ops, d->logits, m->head->bias, d->batch, c->vocabulary,
			      c->vocabulary);
	*logits = d->logits;
	return 0;
}
