/* SPDX-License-Identifier: Apache-2.0 */
/* model_load.c: from a source's tensors to a model's weights in backend memory, see model.h.
 *
 * The decoder is walked through twice: first to find every tensor, check its shape and add up the
 * memory, then to give each its place. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "model_impl.h"
#include "sign.h"

enum { HEAD, BODY, PLACES };

struct plan {
	struct bdx_model *model;
	struct bd_view *view;      /* of a student, else NULL */
	struct bdx_layout places[PLACES];
	bool measuring;
	struct bdx_load load;      /* what goes where, once that is known */
};

/* ---- Finding tensors ---- */

/* "%u" in a name of arch.h stands for the layer; a bias has its own ending. */
static int make_name(char *name, size_t capacity, const char *pattern, uint64_t layer, bool bias)
{
	static const char weight_end[] = ".weight";
	const char *at = strstr(pattern, "%u");
	size_t length = strlen(pattern);
	int n;

	if (bias)
		length -= strlen(weight_end);
	if (at)
		n = snprintf(name, capacity, "%.*s%" PRIu64 "%.*s", (int)(at - pattern), pattern,
			     layer, (int)(length - (size_t)(at - pattern) - 2), at + 2);
	else
		n = snprintf(name, capacity, "%.*s", (int)length, pattern);
	if (bias)
		n += snprintf(name + n, capacity - (size_t)n, ".bias");
	return n;
}

/* Find a tensor of shape [rows, cols], or [rows] where cols is 0: 1; 0 where there is none. */
static int look_up(struct plan *p, const char *pattern, uint64_t layer, bool bias, uint64_t rows,
		   uint64_t cols, struct bdx_weight *w, struct bd_error *err)
{
	char name[BD_MAX_NAME], shape[256], expected[64];
	const struct bd_tensor *t;

	make_name(name, sizeof(name), pattern, layer, bias);
	if (!bdx_source_find(p->load.source, name, w))
		return 0;
	t = w->tensor;
	if (t->dims != (cols ? 2 : 1) || t->shape[0] != rows || (cols && t->shape[1] != cols)) {
		if (cols)
			snprintf(expected, sizeof(expected), "[%" PRIu64 ", %" PRIu64 "]", rows,
				 cols);
		else
			snprintf(expected, sizeof(expected), "[%" PRIu64 "]", rows);
		return bd_error_set(err, -EINVAL, "%s: tensor '%s' has shape %s, but config.json "
				    "says %s", bdx_source_name(p->load.source), name,
				    bd_tensor_shape_text(t, shape, sizeof(shape)), expected);
	}
	if (!bd_dtype_is_weight(t->dtype) && t->dtype != BD_F64)
		return bd_error_set(err, -ENOTSUP, "%s: tensor '%s' is of type %s, which the "
				    "engine cannot calculate with",
				    bdx_source_name(p->load.source), name, bd_dtype_name(t->dtype));
	return 1;
}

static int find(struct plan *p, const char *pattern, uint64_t layer, uint64_t rows, uint64_t cols,
		struct bdx_weight *w, struct bd_error *err)
{
	char name[BD_MAX_NAME];
	int rc = look_up(p, pattern, layer, false, rows, cols, w, err);

	if (rc != 0)
		return rc < 0 ? rc : 0;
	make_name(name, sizeof(name), pattern, layer, false);
	return bd_error_set(err, -EINVAL, "%s: tensor '%s' is missing, which config.json asks for",
			    bdx_source_name(p->load.source), name);
}

/* The entry of a tensor that is kept as signs, or NULL. */
static const struct bd_entry *coded_entry(const struct plan *p, const struct bdx_weight *w)
{
	const struct bd_view_file *file = w->where;
	const struct bd_delta_file *d;
	const struct bd_entry *e;

	if (!p->view)
		return NULL;
	d = &p->view->delta->files[file - p->view->files];
	e = &d->entries[w->tensor - d->st->tensors];
	return e->encoding == BD_SIGN && e->planes == 1 ? e : NULL;
}

/* ---- Places ---- */

/* NULL while measuring. */
static void *inside(void *start, uint64_t bytes)
{
	return start ? (char *)start + bytes : NULL;
}

static int add_item(struct plan *p, const struct bdx_item *item, struct bd_error *err)
{
	return p->measuring ? 0 : bdx_load_add(&p->load, item, err);
}

static int add_weight(struct plan *p, const struct bdx_weight *w, enum bd_dtype to_type, void *to,
		      struct bd_error *err)
{
	return add_item(p, &(struct bdx_item){ .weight = *w, .size = w->tensor->size, .to = to,
					   .from = w->tensor->dtype, .to_type = to_type }, err);
}

/* A vector of reals. Where it may be absent and is, *to is NULL. */
static int add_vector(struct plan *p, const char *pattern, uint64_t layer, bool bias,
		      uint64_t count, void **to, struct bd_error *err)
{
	struct bdx_weight w;
	int rc;

	*to = NULL;
	if (!pattern)
		return 0;
	if (bias) {
		rc = look_up(p, pattern, layer, true, count, 0, &w, err);
		if (rc <= 0)
			return rc;
	} else {
		rc = find(p, pattern, layer, count, 0, &w, err);
		if (rc < 0)
			return rc;
	}
	*to = bdx_place(&p->places[BODY], count * bdx_real_size(p->model->ops));
	return add_weight(p, &w, p->model->ops->real, *to, err);
}

static int add_norm(struct plan *p, const char *pattern, uint64_t layer, void **weight, void **bias,
		    struct bd_error *err)
{
	uint64_t width = p->model->config->width;
	int rc = add_vector(p, pattern, layer, false, width, weight, err);

	return rc < 0 ? rc : add_vector(p, pattern, layer, true, width, bias, err);
}

static int add_coded(struct plan *p, struct bdx_part *part, const struct bd_entry *e,
		     struct bd_error *err)
{
	const struct bd_base_tensor *base = bd_base_find(p->view->base, bd_entry_base(e));
	struct bdx_model *m = p->model;
	void *bytes = bdx_place(&p->places[BODY], base->tensor->size);
	void *bits = bdx_place(&p->places[BODY], e->sign->size + BD_SIGN_SLACK);
	int rc;

	part->coded = true;
	part->scales = e->scales;
	part->sign = (struct bdx_signed){
		.base = bytes, .bits = bits, .base_dtype = e->base_dtype,
		.out_dtype = e->tensor->dtype, .rows = e->rows, .cols = e->cols,
		.row = bdx_real(m->ops, m->scales, e->scales),
		.col = bdx_real(m->ops, m->scales, e->scales + e->rows),
	};
	rc = add_item(p, &(struct bdx_item){
		.file = base->shard->file, .offset = base->tensor->offset,
		.size = base->tensor->size, .to = bytes }, err);
	if (rc == 0)
		rc = add_item(p, &(struct bdx_item){
			.file = p->view->delta->file, .offset = e->sign->offset,
			.size = e->sign->size, .to = bits }, err);
	if (rc == 0 && !p->measuring)
		for (uint64_t i = 0; i < e->rows + e->cols; i++)
			m->trained[e->scales + i] = true;
	return rc;
}

/* A matrix of `count` tensors, one below the other. */
static int add_linear(struct plan *p, struct bdx_linear *linear, int place,
		      const char *const *patterns, const uint64_t *rows, unsigned count,
		      uint64_t cols, uint64_t layer, struct bd_error *err)
{
	struct bdx_ops *ops = p->model->ops;
	const struct bd_entry *entries[BDX_MAX_PARTS] = { 0 };
	struct bdx_weight weights[BDX_MAX_PARTS], bias[BDX_MAX_PARTS];
	bool has_bias[BDX_MAX_PARTS], biased = false;
	int rc;

	*linear = (struct bdx_linear){ .cols = cols, .count = count };
	for (unsigned i = 0; i < count; i++) {
		rc = find(p, patterns[i], layer, rows[i], cols, &weights[i], err);
		if (rc < 0)
			return rc;
		rc = look_up(p, patterns[i], layer, true, rows[i], 0, &bias[i], err);
		if (rc < 0)
			return rc;
		has_bias[i] = rc > 0;
		biased |= has_bias[i];
		linear->parts[i] = (struct bdx_part){ .first = linear->rows, .rows = rows[i] };
		linear->rows += rows[i];
		if (place == BODY)
			entries[i] = coded_entry(p, &weights[i]);
		linear->coded |= entries[i] != NULL;
	}
	if (!linear->coded)
		linear->weight = bdx_place(&p->places[place],
					   linear->rows * cols * bdx_operand_size(ops));
	if (biased)
		linear->bias = bdx_place(&p->places[place], linear->rows * bdx_real_size(ops));
	rc = 0;
	for (unsigned i = 0; rc == 0 && i < count; i++) {
		struct bdx_part *part = &linear->parts[i];

		if (entries[i]) {
			rc = add_coded(p, part, entries[i], err);
		} else if (linear->coded) {
			part->plain = bdx_place(&p->places[place],
						rows[i] * cols * bdx_operand_size(ops));
			rc = add_weight(p, &weights[i], ops->operand, part->plain, err);
		} else {
			rc = add_weight(p, &weights[i], ops->operand,
					inside(linear->weight,
					       part->first * cols * bdx_operand_size(ops)), err);
		}
		if (rc == 0 && has_bias[i])
			rc = add_weight(p, &bias[i], ops->real,
					inside(linear->bias, part->first * bdx_real_size(ops)),
					err);
	}
	return rc;
}

static int add_layer(struct plan *p, uint64_t index, struct bd_error *err)
{
	const struct bdx_config *c = p->model->config;
	const struct bdx_names *n = c->names;
	struct bdx_layer *layer = &p->model->layers[index];
	uint64_t query = bdx_query_width(c), key = bdx_key_width(c), fused = bdx_heads_width(c);
	uint64_t gates = bdx_gates_width(c);
	unsigned halves = n->gate_up[1] ? 2 : 1;
	int rc;

	rc = add_norm(p, n->attention_norm, index, &layer->attention_norm,
		      &layer->attention_norm_bias, err);
	if (rc == 0)
		rc = add_norm(p, n->mlp_norm, index, &layer->mlp_norm, &layer->mlp_norm_bias, err);
	if (rc == 0)
		rc = add_vector(p, n->query_norm, index, false, c->head_dim, &layer->query_norm,
				err);
	if (rc == 0)
		rc = add_vector(p, n->key_norm, index, false, c->head_dim, &layer->key_norm, err);
	if (rc == 0 && n->query_key_value[1])
		rc = add_linear(p, &layer->query_key_value, BODY, n->query_key_value,
				(uint64_t[]){ query, key, key }, 3, c->width, index, err);
	else if (rc == 0)
		rc = add_linear(p, &layer->query_key_value, BODY, n->query_key_value, &fused, 1,
				c->width, index, err);
	if (rc == 0)
		rc = add_linear(p, &layer->attention_out, BODY, &n->attention_out, &c->width, 1,
				query, index, err);
	if (rc == 0)
		rc = add_linear(p, &layer->gate_up, BODY, n->gate_up,
				(uint64_t[]){ gates / halves, gates / halves }, halves, c->width,
				index, err);
	if (rc == 0)
		rc = add_linear(p, &layer->down, BODY, &n->down, &c->width, 1, c->mlp_width, index,
				err);
	return rc;
}

/* All weights: find them, and give them places where the layouts have memory. */
static int walk(struct plan *p, struct bd_error *err)
{
	struct bdx_model *m = p->model;
	const struct bdx_config *c = m->config;
	struct bdx_weight embedding;
	int rc;

	rc = find(p, c->embedding, 0, c->vocabulary, c->width, &embedding, err);
	if (rc < 0)
		return rc;
	m->embedding = bdx_place(&p->places[c->tied ? HEAD : BODY],
				 c->vocabulary * c->width * bdx_operand_size(m->ops));
	rc = add_weight(p, &embedding, m->ops->operand, m->embedding, err);
	for (uint64_t i = 0; rc == 0 && i < c->layers; i++)
		rc = add_layer(p, i, err);
	if (rc == 0)
		rc = add_norm(p, c->names->final_norm, 0, &m->final_norm, &m->final_norm_bias, err);
	if (rc == 0 && c->tied)
		*m->head = (struct bdx_linear){ .rows = c->vocabulary, .cols = c->width,
						.weight = m->embedding };
	else if (rc == 0)
		rc = add_linear(p, m->head, HEAD, &c->names->head, &c->vocabulary, 1, c->width, 0,
				err);
	return rc;
}

/* ---- Models ---- */

static int get_memory(struct bdx_model *m, void **memory, uint64_t bytes, struct bd_error *err)
{
	struct bd_error e = { 0 };

	*memory = m->ops->alloc(m->ops, (size_t)(bytes ? bytes : 1), &e);
	return *memory ? 0 : bd_error_set(err, e.code, "%s", e.text);
}

static int add_scales(struct plan *p, struct bd_error *err)
{
	const struct bd_delta *delta = p->view->delta;
	struct bdx_model *m = p->model;
	uint64_t size;
	int rc;

	m->scale_count = delta->scales ? delta->scales->count : 0;
	size = m->scale_count * bdx_real_size(m->ops);
	m->trained = calloc(m->scale_count + 1, sizeof(*m->trained));
	if (!m->trained)
		return bd_error_set(err, -ENOMEM, "out of memory");
	rc = get_memory(m, &m->scales, size, err);
	if (rc == 0)
		rc = get_memory(m, &m->scale_gradient, size, err);
	if (rc == 0 && delta->scales)
		rc = bdx_load_add(&p->load, &(struct bdx_item){
			.file = delta->file, .offset = delta->scales->offset,
			.size = delta->scales->size, .from = BD_F32, .to_type = m->ops->real,
			.to = m->scales }, err);
	return rc;
}

/* Find everything, get the memory for it, and fill that. */
static int load(struct plan *p, struct bd_error *err)
{
	struct bdx_model *m = p->model;
	int rc = p->view ? add_scales(p, err) : 0;

	p->measuring = true;
	if (rc == 0)
		rc = walk(p, err);
	if (rc == 0)
		rc = get_memory(m, &m->work->head_memory, p->places[HEAD].used, err);
	if (rc == 0)
		rc = get_memory(m, &m->work->body_memory, p->places[BODY].used, err);
	if (rc < 0)
		return rc;
	p->places[HEAD] = (struct bdx_layout){ .memory = m->work->head_memory };
	p->places[BODY] = (struct bdx_layout){ .memory = m->work->body_memory };
	p->measuring = false;
	rc = walk(p, err);
	if (rc == 0)
		rc = bdx_load_run(&p->load, err);
	if (rc == 0 && m->config->alibi)
		rc = bdx_model_reals(m, &m->slopes, m->config->slopes, m->config->heads, err);
	if (rc == 0)
		rc = bdx_source_check(p->load.source, err);
	return rc;
}

static int open_model(struct bdx_model **model, struct plan *p, struct bdx_ops *ops,
		      const struct bdx_config *config, struct bd_error *err)
{
	struct bdx_model *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return bd_error_set(err, -ENOMEM, "out of memory");
	p->model = m;
	m->ops = ops;
	m->config = config;
	m->layers = calloc(config->layers, sizeof(*m->layers));
	m->head = calloc(1, sizeof(*m->head));
	m->work = calloc(1, sizeof(*m->work));
	if (m->layers && m->head && m->work)
		rc = load(p, err);
	else
		rc = bd_error_set(err, -ENOMEM, "out of memory");
	bdx_load_free(&p->load);
	if (rc < 0)
		bdx_model_close(m);
	else
		*model = m;
	return rc;
}

int bdx_model_open(struct bdx_model **model, struct bdx_ops *ops, const struct bdx_config *config,
		   struct bdx_source *source, const struct bd_watch *watch, struct bd_error *err)
{
	struct plan p = { .load = { .ops = ops, .source = source, .watch = watch } };

	return open_model(model, &p, ops, config, err);
}

int bdx_model_open_student(struct bdx_model **model, struct bdx_ops *ops,
			   const struct bdx_config *config, struct bd_view *view,
			   const struct bd_watch *watch, struct bd_error *err)
{
	struct plan p = { .view = view, .load = { .ops = ops, .watch = watch } };
	int rc = bdx_source_view(&p.load.source, view, err);

	if (rc < 0)
		return rc;
	rc = open_model(model, &p, ops, config, err);
	bdx_source_close(p.load.source);
	return rc;
}

static void release(struct bdx_ops *ops, void **memory)
{
	if (*memory)
		ops->free(ops, *memory);
	*memory = NULL;
}

void bdx_model_keep_head(struct bdx_model *m)
{
	struct bdx_workspace *w = m->work;

	release(m->ops, &w->body_memory);
	release(m->ops, &w->memory);
	release(m->ops, &m->rope_table);
	release(m->ops, &m->slopes);
	release(m->ops, &m->scales);
	release(m->ops, &m->scale_gradient);
	free(w->kept);
	w->kept = NULL;
	w->bytes = 0;
	w->rope_positions = 0;
	free(m->layers);
	m->layers = NULL;
}

void bdx_model_close(struct bdx_model *m)
{
	if (!m)
		return;
	if (m->work) {
		bdx_model_keep_head(m);
		release(m->ops, &m->work->head_memory);
	}
	free(m->work);
	free(m->layers);
	free(m->head);
	free(m->trained);
	free(m);
}
