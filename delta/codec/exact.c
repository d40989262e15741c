/* SPDX-License-Identifier: Apache-2.0 */
/* exact.c: coding and decoding whole tensors bit for bit, see exact.h. */
#include "codec/exact.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PLANES 2
#define SAMPLED_CHUNKS 64 /* at least, where a tensor has more */

enum kind { NOTHING, RAW, CODED };

/* How a tensor is cut into planes and chunks. */
struct layout {
	struct bd_exact_shape shape;
	size_t element, base_element; /* bytes; base_element 0: no base */
	uint64_t elements, chunks;
	size_t chunk_elements;
	unsigned planes;
	unsigned units;               /* of an element in each plane */
	bool split;                   /* elements are halves that lie in two planes */
	struct bd_exact_model kinds[PLANES];
};

/* ---- Layout ---- */

bool bd_exact_has_dtype(enum bd_dtype dtype)
{
	return bd_dtype_bits(dtype) % 8 == 0;
}

bool bd_exact_has_base(enum bd_dtype dtype, enum bd_dtype base)
{
	return dtype == base || (bd_dtype_is_weight(dtype) && bd_dtype_is_weight(base));
}

/* Units that are numbers with `bits` bits of mantissa and `mask` the exponents, the base's exponent as context. */
static struct bd_exact_model by_base(unsigned unit, unsigned bits, unsigned mask)
{
	return (struct bd_exact_model){
		.unit = (uint8_t)unit, .ordered = true, .by = BD_EXACT_BY_BASE, .shift = (uint8_t)bits,
		.mask = (uint16_t)mask,
	};
}

static struct bd_exact_model by_place(unsigned unit, unsigned contexts)
{
	return (struct bd_exact_model){
		.unit = (uint8_t)unit, .by = BD_EXACT_BY_PLACE, .contexts = (uint8_t)contexts,
	};
}

static void choose_kinds(struct layout *l)
{
	enum bd_dtype dtype = l->shape.dtype;

	l->planes = 1;
	l->units = 1;
	if (l->base_element == 0)
		dtype = BD_DTYPES;
	switch (dtype) {
	case BD_BF16:
		l->kinds[0] = by_base(2, 7, 255);
		break;
	case BD_F16:
		l->kinds[0] = by_base(2, 10, 31);
		break;
	case BD_F8_E4M3:
	case BD_F8_E4M3FNUZ:
		l->kinds[0] = by_base(1, 3, 15);
		break;
	case BD_F8_E5M2:
	case BD_F8_E5M2FNUZ:
		l->kinds[0] = by_base(1, 2, 31);
		break;
	case BD_F32: /* the upper halves are BF16; the lower ones are noise, or 0 where BF16 was widened */
		l->planes = 2;
		l->split = true;
		l->kinds[0] = by_base(2, 7, 255);
		l->kinds[1] = by_place(2, 1);
		break;
	default: /* bytes, each at its place in the element */
		l->units = (unsigned)l->element;
		l->kinds[0] = by_place(1, l->units);
	}
}

static void lay_out(struct layout *l, const struct bd_exact_shape *shape)
{
	*l = (struct layout){ .shape = *shape };
	l->element = bd_dtype_bits(shape->dtype) / 8;
	l->base_element = shape->base_dtype == BD_DTYPES ? 0 : bd_dtype_bits(shape->base_dtype) / 8;
	l->elements = shape->rows * shape->cols;
	l->chunk_elements = BD_EXACT_CHUNK / l->element;
	l->chunks = (l->elements + l->chunk_elements - 1) / l->chunk_elements;
	choose_kinds(l);
}

static size_t chunk_elements(const struct layout *l, uint64_t chunk)
{
	uint64_t first = chunk * l->chunk_elements;

	return l->elements - first < l->chunk_elements ? (size_t)(l->elements - first) : l->chunk_elements;
}

/* The units of a chunk in each plane, without its base. */
static struct bd_exact_run chunk_run(const struct layout *l, uint64_t chunk)
{
	return (struct bd_exact_run){
		.first = chunk * l->chunk_elements * l->units, .count = chunk_elements(l, chunk) * l->units,
	};
}

/* Convert elements to another dtype by the rounding of the format. */
static void convert(const void *from, enum bd_dtype is, void *to, enum bd_dtype becomes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint16_t half;
		float f;

		if (is == BD_F32) {
			memcpy(&f, (const char *)from + 4 * i, 4);
		} else {
			memcpy(&half, (const char *)from + 2 * i, 2);
			f = is == BD_BF16 ? bd_bf16_to_float(half) : bd_f16_to_float(half);
		}
		if (becomes == BD_F32) {
			uint32_t bits = 0x7FC00000; /* as the format writes what is not a number */

			if (!isnan(f))
				memcpy(&bits, &f, 4);
			memcpy((char *)to + 4 * i, &bits, 4);
		} else {
			half = becomes == BD_BF16 ? bd_bf16_from_float(f) : bd_f16_from_float(f);
			memcpy((char *)to + 2 * i, &half, 2);
		}
	}
}

/* Plane P of elements: themselves, or halves of them in `out`. */
static const uint8_t *plane_of(const struct layout *l, unsigned p, const uint8_t *elements, size_t count,
			       uint8_t *out)
{
	const uint8_t *from = elements + (p == 0 ? 2 : 0);

	if (!l->split)
		return elements;
	for (size_t i = 0; i < count; i++)
		memcpy(out + 2 * i, from + 4 * i, 2);
	return out;
}

/* ---- Writing ---- */

struct bd_exact_plan {
	struct layout layout;
	struct bd_exact_model model[PLANES];
	uint8_t *row_offset;   /* by row */
	double size;           /* estimated */
};

/* A chunk of both sides while it is looked at or coded. */
struct window {
	const struct layout *layout;
	const struct bd_exact_input *input;
	uint8_t *fine, *base, *read, *half[2]; /* BD_EXACT_CHUNK each; read: 8 bytes an element for 2 of ours */
	uint64_t chunk;
	size_t elements;
};

static void window_close(struct window *w)
{
	free(w->fine);
	free(w->base);
	free(w->read);
	free(w->half[0]);
	free(w->half[1]);
}

static int window_open(struct window *w, const struct layout *l, const struct bd_exact_input *input,
		       struct bd_error *err)
{
	*w = (struct window){ .layout = l, .input = input };
	w->fine = malloc(BD_EXACT_CHUNK);
	w->base = malloc(BD_EXACT_CHUNK);
	w->read = malloc(4 * BD_EXACT_CHUNK);
	w->half[0] = malloc(BD_EXACT_CHUNK);
	w->half[1] = malloc(BD_EXACT_CHUNK);
	if (w->fine && w->base && w->read && w->half[0] && w->half[1])
		return 0;
	window_close(w);
	return bd_error_set(err, -ENOMEM, "out of memory");
}

/* Read a chunk, and its base as elements of the same dtype. */
static int window_read(struct window *w, uint64_t chunk, struct bd_error *err)
{
	const struct layout *l = w->layout;
	uint64_t first = chunk * l->chunk_elements;
	bool same = l->shape.base_dtype == l->shape.dtype;
	int rc;

	if (w->input->stop && *w->input->stop)
		return bd_error_set(err, -EINTR, "interrupted");
	w->chunk = chunk;
	w->elements = chunk_elements(l, chunk);
	rc = w->input->fine(w->input->context, first * l->element, w->elements * l->element, w->fine, err);
	if (rc < 0 || !l->base_element)
		return rc;
	rc = w->input->base(w->input->context, first * l->base_element, w->elements * l->base_element,
			    same ? w->base : w->read, err);
	if (rc == 0 && !same)
		convert(w->read, l->shape.base_dtype, w->base, l->shape.dtype, w->elements);
	return rc;
}

/* Plane P of the chunk: its units, those of the base in *run. */
static const uint8_t *window_plane(struct window *w, unsigned p, struct bd_exact_run *run)
{
	const struct layout *l = w->layout;

	*run = chunk_run(l, w->chunk);
	if (l->base_element)
		run->base = plane_of(l, p, w->base, w->elements, w->half[0]);
	return plane_of(l, p, w->fine, w->elements, w->half[1]);
}

/* True if nothing need be stored of these units. */
static bool is_same(const struct bd_exact_run *run, const uint8_t *fine, unsigned unit)
{
	size_t size = run->count * unit;

	if (run->base)
		return memcmp(run->base, fine, size) == 0;
	return size == 0 || (fine[0] == 0 && memcmp(fine, fine + 1, size - 1) == 0);
}

static double as_number(const uint8_t *p, enum bd_dtype dtype)
{
	uint16_t half;

	memcpy(&half, p, sizeof(half));
	return (double)(dtype == BD_BF16 ? bd_bf16_to_float(half) : bd_f16_to_float(half));
}

/* The class of each row: how much it changed. One pass over all of it. */
static int classify_rows(struct window *w, uint8_t *row_class, struct bd_error *err)
{
	const struct layout *l = w->layout;
	uint64_t row = 0, col = 0;
	double sum = 0;

	for (uint64_t c = 0; c < l->chunks; c++) {
		int rc = window_read(w, c, err);

		if (rc < 0)
			return rc;
		for (size_t i = 0; i < w->elements; i++) {
			double d = fabs(as_number(w->fine + 2 * i, l->shape.dtype) -
					as_number(w->base + 2 * i, l->shape.dtype));

			sum += isfinite(d) ? d : 0;
			if (++col == l->shape.cols) {
				row_class[row++] = bd_exact_row_class(sum / (double)l->shape.cols);
				col = 0;
				sum = 0;
			}
		}
	}
	return 0;
}

/* Counts of a sample: what it holds, and how much it is of what the plane holds. */
struct sample {
	struct bd_exact_stats *stats[PLANES];
	uint64_t chunks, counted[PLANES];
};

static int take_sample(struct window *w, struct sample *s, struct bd_error *err)
{
	const struct layout *l = w->layout;
	uint64_t stride = l->chunks / SAMPLED_CHUNKS;

	stride = stride ? stride : 1;
	for (uint64_t c = stride / 2; c < l->chunks; c += stride) {
		int rc = window_read(w, c, err);

		if (rc < 0)
			return rc;
		s->chunks++;
		for (unsigned p = 0; p < l->planes; p++) {
			struct bd_exact_run run;
			const uint8_t *fine = window_plane(w, p, &run);

			if (is_same(&run, fine, l->kinds[p].unit))
				continue;
			s->counted[p]++;
			bd_exact_stats_add(s->stats[p], &run, fine);
		}
	}
	return 0;
}

/* Models of all planes of this layout; *size are the bytes that they need. */
static int fit(struct window *w, const uint8_t *row_class, uint8_t *row_offset, struct bd_exact_model *model,
	       double *size, struct bd_error *err)
{
	const struct layout *l = w->layout;
	struct sample s = { 0 };
	int rc = 0;

	for (unsigned p = 0; p < l->planes; p++) {
		s.stats[p] = bd_exact_stats_new(&l->kinds[p], row_class);
		if (!s.stats[p])
			rc = -ENOMEM;
	}
	if (rc == 0)
		rc = take_sample(w, &s, err);
	else
		bd_error_set(err, rc, "out of memory");
	*size = 16 + 8.0 * (double)l->chunks * l->planes;
	for (unsigned p = 0; rc == 0 && p < l->planes; p++) {
		double share = (double)l->chunks / (double)s.chunks, raw = (double)(BD_EXACT_CHUNK / l->planes);
		uint8_t table[BD_EXACT_TABLE_BOUND];
		double bits = bd_exact_fit(s.stats[p], s.chunks < l->chunks, &model[p], row_offset, l->shape.rows);
		double need = bits / 8 + BD_EXACT_FRAME / 8 * (double)s.counted[p];

		if (bits < 0) {
			rc = bd_error_set(err, -ENOMEM, "out of memory");
			break;
		}
		raw *= (double)s.counted[p];
		if (l->chunks == 1)
			raw *= (double)l->elements / (double)l->chunk_elements;
		*size += share * (need < raw ? need : raw) + (double)bd_exact_table_print(&model[p], table);
		if (model[p].by == BD_EXACT_BY_ROW)
			*size += (double)l->shape.rows;
	}
	for (unsigned p = 0; p < l->planes; p++)
		bd_exact_stats_free(s.stats[p]);
	return rc;
}

/* Try contexts by row, and keep them if they pay. */
static int try_rows(struct bd_exact_plan *plan, struct window *w, struct bd_error *err)
{
	struct layout rows = plan->layout;
	const struct bd_exact_shape *shape = &rows.shape;
	struct bd_exact_model *model = malloc(sizeof(*model));
	uint8_t *row_class = malloc((size_t)shape->rows);
	double size = 0;
	int rc;

	rows.kinds[0].by = BD_EXACT_BY_ROW;
	rows.kinds[0].shift--;
	rows.kinds[0].mask = (uint16_t)(rows.kinds[0].mask << 1);
	rows.kinds[0].cols = shape->cols;
	if (!model || !row_class) {
		rc = bd_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	w->layout = &rows;
	rc = classify_rows(w, row_class, err);
	if (rc == 0)
		rc = fit(w, row_class, row_class, model, &size, err);
	if (rc < 0 || size >= plan->size)
		goto out;
	plan->layout = rows;
	plan->model[0] = *model;
	plan->size = size;
	plan->row_offset = row_class;
	row_class = NULL;
out:
	w->layout = &plan->layout;
	free(model);
	free(row_class);
	return rc;
}

int bd_exact_plan_new(struct bd_exact_plan **out, const struct bd_exact_shape *shape, bool by_row,
		      const struct bd_exact_input *input, struct bd_error *err)
{
	struct bd_exact_plan *plan = calloc(1, sizeof(*plan));
	struct window w;
	int rc;

	*out = NULL;
	if (!plan)
		return bd_error_set(err, -ENOMEM, "out of memory");
	lay_out(&plan->layout, shape);
	rc = window_open(&w, &plan->layout, input, err);
	if (rc < 0) {
		free(plan);
		return rc;
	}
	rc = fit(&w, NULL, NULL, plan->model, &plan->size, err);
	if (rc == 0 && by_row && plan->layout.planes == 1 && plan->layout.kinds[0].unit == 2 && shape->rows > 1 &&
	    shape->rows <= BD_EXACT_MAX_ROWS)
		rc = try_rows(plan, &w, err);
	window_close(&w);
	if (rc == 0 && plan->size > 0.95 * (double)(plan->layout.elements * plan->layout.element))
		rc = bd_error_set(err, -ENODATA, "coding it would save less than 5 %%");
	if (rc < 0)
		bd_exact_plan_free(plan);
	else
		*out = plan;
	return rc;
}

void bd_exact_plan_free(struct bd_exact_plan *plan)
{
	if (!plan)
		return;
	free(plan->row_offset);
	free(plan);
}

uint64_t bd_exact_plan_size(const struct bd_exact_plan *plan)
{
	return (uint64_t)plan->size;
}

/* Bytes that grow. */
struct output {
	uint8_t *data;
	size_t size, capacity;
};

/* Room for `more` bytes at the end; NULL: out of memory. */
static uint8_t *reserve(struct output *o, size_t more)
{
	if (o->capacity - o->size < more) {
		size_t capacity = o->size + more + o->capacity / 2;
		uint8_t *grown = realloc(o->data, capacity);

		if (!grown)
			return NULL;
		o->data = grown;
		o->capacity = capacity;
	}
	return o->data + o->size;
}

/* What comes before the index, and room for the index. */
static int put_head(const struct bd_exact_plan *plan, struct output *o)
{
	const struct layout *l = &plan->layout;
	size_t rows = plan->row_offset ? (size_t)l->shape.rows : 0, index = (size_t)(8 * l->chunks * l->planes);
	uint8_t *start = reserve(o, 16 + PLANES * (BD_EXACT_TABLE_BOUND + rows) + index), *p = start;
	uint32_t size;

	if (!start)
		return -ENOMEM;
	memset(p, 0, 8);
	p[4] = (uint8_t)l->planes;
	p += 8;
	for (unsigned i = 0; i < l->planes; i++) {
		p += bd_exact_table_print(&plan->model[i], p);
		if (plan->model[i].by == BD_EXACT_BY_ROW) {
			memcpy(p, plan->row_offset, rows);
			p += rows;
		}
	}
	for (; (p - start) % 8; p++)
		*p = 0;
	size = (uint32_t)(p - start);
	memcpy(start, &size, sizeof(size));
	memset(p, 0, index);
	o->size = size + index;
	return 0;
}

/* One plane of a chunk. */
static enum kind put_chunk(struct bd_exact_encoder *e, const struct bd_exact_run *run, const uint8_t *fine,
			   unsigned unit, struct output *o)
{
	size_t raw = run->count * unit, size;
	uint8_t *p = o->data + o->size; /* reserved by the caller */

	if (is_same(run, fine, unit))
		return NOTHING;
	size = bd_exact_encode(e, run, fine, p);
	if (size < raw) {
		o->size += size;
		return CODED;
	}
	memcpy(p, fine, raw);
	o->size += raw;
	return RAW;
}

int bd_exact_plan_code(struct bd_exact_plan *plan, const struct bd_exact_input *input, uint8_t **stored,
		       size_t *size, struct bd_error *err)
{
	const struct layout *l = &plan->layout;
	struct bd_exact_encoder *encoder[PLANES] = { 0 };
	struct output o = { 0 };
	struct window w;
	size_t count = l->chunk_elements * l->units, start;
	int rc = window_open(&w, l, input, err);

	if (rc < 0)
		return rc;
	for (unsigned p = 0; p < l->planes; p++) {
		encoder[p] = bd_exact_encoder_new(&plan->model[p], count);
		if (!encoder[p])
			rc = -ENOMEM;
	}
	if (rc == 0)
		rc = put_head(plan, &o);
	start = o.size;
	for (unsigned p = 0; rc == 0 && p < l->planes; p++)
		for (uint64_t c = 0; rc == 0 && c < l->chunks; c++) {
			struct bd_exact_run run;
			const uint8_t *fine;
			uint64_t entry;

			if (!reserve(&o, bd_exact_bound(count))) {
				rc = -ENOMEM;
				break;
			}
			rc = window_read(&w, c, err);
			if (rc < 0)
				break;
			fine = window_plane(&w, p, &run);
			entry = put_chunk(encoder[p], &run, fine, l->kinds[p].unit, &o);
			entry |= 4 * (uint64_t)(o.size - start);
			memcpy(o.data + start - 8 * (l->planes * l->chunks - p * l->chunks - c), &entry,
			       sizeof(entry));
		}
	for (unsigned p = 0; p < l->planes; p++)
		bd_exact_encoder_free(encoder[p]);
	window_close(&w);
	if (rc == 0 && !reserve(&o, 8))
		rc = -ENOMEM;
	for (; rc == 0 && o.size % 8; o.size++)
		o.data[o.size] = 0;
	if (rc < 0) {
		free(o.data);
		return rc == -ENOMEM ? bd_error_set(err, rc, "out of memory") : rc;
	}
	*stored = o.data;
	*size = o.size;
	return 0;
}

/* ---- Reading ---- */

struct bd_exact {
	struct layout layout;
	uint64_t data, data_size; /* of the chunks, in what is stored */
	uint8_t *row_offset;
	struct bd_exact_decoder *decoder[PLANES];
	struct bd_exact_model model[PLANES];
};

uint64_t bd_exact_head_size(const struct bd_exact_shape *shape, const uint8_t first[8], uint64_t size)
{
	uint64_t rows = shape->rows < BD_EXACT_MAX_ROWS ? shape->rows : BD_EXACT_MAX_ROWS;
	uint64_t most = 16 + PLANES * (BD_EXACT_TABLE_BOUND + rows);
	uint32_t head;

	memcpy(&head, first, sizeof(head));
	return head < 8 || head % 8 || head > most || head > size ? 0 : head;
}

/* True if a model is one for the plane of this kind. */
static bool fits(const struct bd_exact_model *m, const struct bd_exact_model *kind, const struct layout *l)
{
	if (m->unit != kind->unit || m->ordered != kind->ordered)
		return false;
	if (m->by == BD_EXACT_BY_PLACE)
		return kind->by == BD_EXACT_BY_PLACE && m->contexts == kind->contexts;
	return l->base_element != 0 && (m->by == BD_EXACT_BY_BASE || l->planes == 1);
}

static int parse_head(struct bd_exact *x, const uint8_t *head, uint64_t size, struct bd_error *err)
{
	const struct layout *l = &x->layout;
	const uint8_t *p = head + 8, *end = head + size;

	if (head[4] != l->planes || head[5] || head[6] || head[7])
		return bd_error_set(err, -EINVAL, "it has %u planes instead of %u", head[4], l->planes);
	for (unsigned i = 0; i < l->planes; i++) {
		struct bd_exact_model *m = &x->model[i];
		size_t n = bd_exact_table_parse(m, p, (size_t)(end - p));

		p += n;
		if (n == 0 || !fits(m, &l->kinds[i], l))
			return bd_error_set(err, -EINVAL, "its table %u is damaged", i);
		if (m->by == BD_EXACT_BY_ROW) {
			if (l->shape.rows > BD_EXACT_MAX_ROWS || (uint64_t)(end - p) < l->shape.rows)
				return bd_error_set(err, -EINVAL, "its rows are cut off");
			x->row_offset = malloc((size_t)l->shape.rows);
			if (!x->row_offset)
				return bd_error_set(err, -ENOMEM, "out of memory");
			memcpy(x->row_offset, p, (size_t)l->shape.rows);
			m->row_offset = x->row_offset;
			m->cols = l->shape.cols;
			p += l->shape.rows;
		}
		x->decoder[i] = bd_exact_decoder_new(m);
		if (!x->decoder[i])
			return bd_error_set(err, -ENOMEM, "out of memory");
	}
	for (; p < end; p++)
		if (*p || end - p > 7)
			return bd_error_set(err, -EINVAL, "it has bytes that nothing needs");
	return 0;
}

int bd_exact_open(struct bd_exact **out, const struct bd_exact_shape *shape, const uint8_t *head,
		  uint64_t head_size, uint64_t size, struct bd_error *err)
{
	struct bd_exact *x = calloc(1, sizeof(*x));
	uint64_t index;
	int rc;

	*out = NULL;
	if (!x)
		return bd_error_set(err, -ENOMEM, "out of memory");
	lay_out(&x->layout, shape);
	index = 8 * x->layout.planes * x->layout.chunks;
	rc = parse_head(x, head, head_size, err);
	if (rc == 0 && size - head_size < index)
		rc = bd_error_set(err, -EINVAL, "its index is cut off");
	if (rc < 0) {
		bd_exact_close(x);
		return rc;
	}
	x->data = head_size + index;
	x->data_size = size - x->data;
	*out = x;
	return 0;
}

void bd_exact_close(struct bd_exact *x)
{
	if (!x)
		return;
	for (unsigned p = 0; p < PLANES; p++)
		bd_exact_decoder_free(x->decoder[p]);
	free(x->row_offset);
	free(x);
}

size_t bd_exact_memory(const struct bd_exact *x)
{
	size_t size = sizeof(*x) + (x->row_offset ? (size_t)x->layout.shape.rows : 0);

	for (unsigned p = 0; p < x->layout.planes; p++)
		size += bd_exact_decoder_size(x->decoder[p]);
	return size;
}

unsigned bd_exact_planes(const struct bd_exact *x)
{
	return x->layout.planes;
}

uint64_t bd_exact_index_at(const struct bd_exact *x, unsigned plane, uint64_t chunk, unsigned *words)
{
	uint64_t entry = plane * x->layout.chunks + chunk, entries = x->layout.planes * x->layout.chunks;

	*words = entry ? 2 : 1;
	return x->data - 8 * (entries - entry) - (entry ? 8 : 0);
}

bool bd_exact_locate(const struct bd_exact *x, uint64_t chunk, const uint64_t index[2][2],
		     struct bd_exact_place *place)
{
	const struct layout *l = &x->layout;
	struct bd_exact_run run = chunk_run(l, chunk);

	for (unsigned p = 0; p < l->planes; p++) {
		bool first = p == 0 && chunk == 0, last = p == l->planes - 1 && chunk == l->chunks - 1;
		uint64_t from = first ? 0 : index[p][0] / 4, entry = index[p][first ? 0 : 1], to = entry / 4;
		uint64_t raw = run.count * x->model[p].unit;
		enum kind kind = (enum kind)(entry % 4);

		if (to < from || to > x->data_size || kind > CODED || to - from > bd_exact_bound(run.count) ||
		    (kind == NOTHING && to != from) || (kind == RAW && to - from != raw) ||
		    (last && x->data_size - to > 7))
			return false;
		place->part[p].at = x->data + from;
		place->part[p].size = (uint32_t)(to - from);
		place->part[p].kind = (uint8_t)kind;
	}
	return true;
}

struct bd_exact_scratch {
	uint8_t base[BD_EXACT_CHUNK];                        /* converted */
	uint8_t base_half[BD_EXACT_CHUNK / 2];
	uint8_t half[PLANES][BD_EXACT_CHUNK / 2];
};

struct bd_exact_scratch *bd_exact_scratch_new(void)
{
	return malloc(sizeof(struct bd_exact_scratch));
}

void bd_exact_scratch_free(struct bd_exact_scratch *scratch)
{
	free(scratch);
}

/* The first `wanted` units of plane P, rounded up to whole groups where it is coded. */
static bool decode_part(enum bd_cpu cpu, const struct bd_exact *x, unsigned p, const struct bd_exact_run *run, enum kind kind,
			const uint8_t *part, size_t size, size_t wanted, uint8_t *out)
{
	size_t bytes = wanted * x->model[p].unit;

	if (kind == CODED)
		return bd_exact_decode_at(cpu, x->decoder[p], run, part, size, wanted, out);
	if (kind == RAW)
		memcpy(out, part, bytes);
	else if (run->base)
		memcpy(out, run->base, bytes);
	else
		memset(out, 0, bytes);
	return true;
}

bool bd_exact_decode_chunk_at(enum bd_cpu cpu, const struct bd_exact *x, uint64_t chunk,
			      const struct bd_exact_place *place, const void *base,
			      const uint8_t *const part[2], size_t wanted, void *out,
			      struct bd_exact_scratch *s)
{
	const struct layout *l = &x->layout;
	size_t elements = wanted / l->element;
	const uint8_t *from = base;

	if (l->base_element && l->shape.base_dtype != l->shape.dtype) {
		/* Whole groups, as they are decoded. */
		size_t more = (elements + BD_EXACT_LANES - 1) / BD_EXACT_LANES * BD_EXACT_LANES;
		size_t all = chunk_elements(l, chunk);

		convert(base, l->shape.base_dtype, s->base, l->shape.dtype, more < all ? more : all);
		from = s->base;
	}
	for (unsigned p = 0; p < l->planes; p++) {
		struct bd_exact_run run = chunk_run(l, chunk);

		if (l->base_element)
			run.base = plane_of(l, p, from, run.count / l->units, s->base_half);
		if (!decode_part(cpu, x, p, &run, (enum kind)place->part[p].kind, part[p], place->part[p].size,
				 elements * l->units, l->split ? s->half[p] : out))
			return false;
	}
	for (size_t i = 0; l->split && i < elements; i++) {
		memcpy((uint8_t *)out + 4 * i + 2, s->half[0] + 2 * i, 2);
		memcpy((uint8_t *)out + 4 * i, s->half[1] + 2 * i, 2);
	}
	return true;
}

bool bd_exact_decode_chunk(const struct bd_exact *x, uint64_t chunk, const struct bd_exact_place *place,
			   const void *base, const uint8_t *const part[2], size_t wanted, void *out,
			   struct bd_exact_scratch *scratch)
{
	return bd_exact_decode_chunk_at(bd_cpu_best(), x, chunk, place, base, part, wanted, out, scratch);
}
