/* view.c: computing a fine-tune's bytes from its base and its delta, see view.h. */
#include "view.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sign.h"

/* Elements rebuilt at a time: base, bits and output together stay within a core's L2 cache. */
#define BLOCK ((uint64_t)1 << 17)
/* Wider matrices are rebuilt in pieces of a row, so that memory does not follow a file's claims. */
#define MAX_COLS ((uint64_t)1 << 15)
#define MAX_ROWS ((uint64_t)1 << 14) /* rows that a block may touch */

enum source { FROM_MEMORY, FROM_FILE, FROM_SIGN };

struct bd_piece {
	uint64_t offset, size; /* in the virtual file */
	enum source source;
	const char *data;      /* FROM_MEMORY; borrowed from the delta */
	struct bd_file *file;  /* FROM_FILE: where the bytes lie; FROM_SIGN: the base's shard */
	uint64_t at;           /* offset in that file */
	const struct bd_entry *entry; /* FROM_SIGN */
};

struct bd_scratch {
	char *memory;
	size_t capacity;
};

/* Where a read finds its things; `planes` decides how large the parts are. */
struct parts {
	uint8_t *bits;
	float *rows, *cols;
	char *base;
};

#define BITS_STRIDE ((size_t)(BLOCK / 8 + 8 + BD_SIGN_SLACK + 56))

struct bd_scratch *bd_scratch_new(void)
{
	return calloc(1, sizeof(struct bd_scratch));
}

void bd_scratch_free(struct bd_scratch *scratch)
{
	if (!scratch)
		return;
	free(scratch->memory);
	free(scratch);
}

static int lay_out(struct bd_scratch *s, unsigned planes, struct parts *parts, struct bd_error *err)
{
	size_t bits = planes * BITS_STRIDE;
	size_t rows = planes * (size_t)MAX_ROWS * sizeof(float);
	size_t cols = planes * (size_t)MAX_COLS * sizeof(float);
	size_t base = (size_t)BLOCK * sizeof(float);
	size_t need = (bits + 63) / 64 * 64 + rows + cols + base;

	if (s->capacity < need) {
		free(s->memory);
		s->capacity = 0;
		s->memory = aligned_alloc(64, (need + 63) / 64 * 64);
		if (!s->memory)
			return bd_error_set(err, -ENOMEM, "out of memory for reading");
		s->capacity = need;
	}
	parts->base = s->memory;
	parts->cols = (float *)(s->memory + base);
	parts->rows = (float *)(s->memory + base + cols);
	parts->bits = (uint8_t *)s->memory + base + cols + rows;
	return 0;
}

static struct bd_piece *add_piece(struct bd_view_file *f, enum source source, uint64_t *offset,
				  uint64_t size)
{
	struct bd_piece *p = &f->pieces[f->piece_count];

	if (size == 0)
		return NULL;
	*p = (struct bd_piece){ .offset = *offset, .size = size, .source = source };
	f->piece_count++;
	*offset += size;
	return p;
}

static void add_entry(struct bd_view *v, struct bd_view_file *f, const struct bd_entry *e,
		      uint64_t *offset)
{
	const struct bd_tensor *t = e->tensor;
	const struct bd_base_tensor *b = NULL;
	uint64_t head = t->size;
	struct bd_piece *p = NULL;

	if (e->encoding == BD_RAW)
		head = 0;
	else if (e->encoding == BD_ROWS)
		head = t->size / t->shape[0] * e->shared;
	if (head) {
		b = bd_base_find(v->base, t->name);
		p = add_piece(f, e->head == BD_SIGN ? FROM_SIGN : FROM_FILE, offset, head);
		p->file = b->shard->file;
		p->at = b->tensor->offset;
		p->entry = e;
	}
	p = add_piece(f, FROM_FILE, offset, t->size - head);
	if (p) {
		p->file = v->delta->file;
		p->at = e->raw->offset;
	}
}

static int build_file(struct bd_view *v, struct bd_view_file *f, const struct bd_delta_file *d)
{
	uint64_t offset = 0;
	struct bd_piece *p;

	f->name = d->name;
	f->size = d->size;
	f->safetensors = d->st != NULL;
	if (!d->st)
		return 0;
	f->pieces = calloc(1 + 2 * d->st->count, sizeof(*f->pieces));
	if (!f->pieces)
		return -ENOMEM;
	p = add_piece(f, FROM_MEMORY, &offset, d->st->header_size);
	p->data = d->st->header;
	for (size_t i = 0; i < d->st->count; i++)
		add_entry(v, f, &d->entries[i], &offset);
	return 0;
}

int bd_view_open(struct bd_view **out, struct bd_delta *delta, struct bd_base *base,
		 struct bd_error *err)
{
	struct bd_view *v;
	int rc = bd_delta_check_base(delta, base, err);

	if (rc < 0)
		return rc;
	v = calloc(1, sizeof(*v));
	if (!v)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", delta->file->path);
	pthread_mutex_init(&v->lock, NULL);
	v->name = delta->name;
	v->delta = delta;
	v->base = base;
	v->files = calloc(delta->file_count ? delta->file_count : 1, sizeof(*v->files));
	if (!v->files)
		rc = -ENOMEM;
	for (size_t i = 0; rc == 0 && i < delta->file_count; i++)
		rc = build_file(v, &v->files[v->file_count++], &delta->files[i]);
	if (rc < 0) {
		v->delta = NULL; /* still the caller's */
		bd_view_close(v);
		return bd_error_set(err, rc, "%s: out of memory", delta->file->path);
	}
	*out = v;
	return 0;
}

void bd_view_close(struct bd_view *v)
{
	if (!v)
		return;
	for (size_t i = 0; i < v->file_count; i++) {
		free(v->files[i].pieces);
		free(v->files[i].data);
	}
	free(v->files);
	pthread_mutex_destroy(&v->lock);
	bd_delta_close(v->delta);
	free(v);
}

int bd_view_acquire(struct bd_view *v, size_t index, struct bd_error *err)
{
	struct bd_view_file *f = &v->files[index];
	int rc = 0;

	if (f->safetensors)
		return 0;
	pthread_mutex_lock(&v->lock);
	if (f->users == 0)
		rc = bd_delta_inflate(v->delta, &v->delta->files[index], &f->data, err);
	if (rc == 0)
		f->users++;
	pthread_mutex_unlock(&v->lock);
	return rc;
}

void bd_view_release(struct bd_view *v, size_t index)
{
	struct bd_view_file *f = &v->files[index];

	if (f->safetensors)
		return;
	pthread_mutex_lock(&v->lock);
	if (--f->users == 0) {
		free(f->data);
		f->data = NULL;
	}
	pthread_mutex_unlock(&v->lock);
}

static int read_scales(struct bd_view *v, const struct bd_entry *e, uint64_t index, uint64_t count,
		       float *out, struct bd_error *err)
{
	struct bd_delta *d = v->delta;
	uint32_t bad = 0;
	int rc = bd_file_read(d->file, out, (size_t)count * sizeof(*out),
			      d->scales->offset + index * sizeof(*out), err);

	if (rc < 0)
		return rc;
	for (uint64_t i = 0; i < count; i++) {
		uint32_t u;

		memcpy(&u, &out[i], sizeof(u));
		bad |= (u & 0x7F800000) == 0x7F800000;
	}
	if (bad)
		return bd_error_set(err, -EIO, "%s: tensor '%s' has a scale that is not finite: the file "
				    "is damaged, import it again", d->file->path, e->tensor->name);
	return 0;
}

/* Rebuild `count` elements of a sign-coded piece from element `first` on. */
static int rebuild(struct bd_view *v, const struct bd_piece *p, uint64_t first, uint64_t count,
		   char *out, struct bd_scratch *scratch, struct bd_error *err)
{
	const struct bd_entry *e = p->entry;
	uint64_t elements = e->rows * e->cols;
	size_t out_size = bd_dtype_bits(e->tensor->dtype) / 8;
	size_t base_size = bd_dtype_bits(e->base_dtype) / 8;
	bool wide = e->cols > MAX_COLS;
	struct bd_sign_run run = {
		.planes = e->planes, .base_dtype = e->base_dtype, .out_dtype = e->tensor->dtype,
	};
	struct parts parts = { 0 };
	int rc = lay_out(scratch, e->planes, &parts, err);

	for (unsigned k = 0; rc == 0 && k < e->planes; k++) {
		run.row[k] = parts.rows + k * MAX_ROWS;
		run.col[k] = parts.cols + k * MAX_COLS;
		if (!wide)
			rc = read_scales(v, e, e->scales + k * (e->rows + e->cols) + e->rows, e->cols,
					 parts.cols + k * MAX_COLS, err);
	}
	while (rc == 0 && count > 0) {
		uint64_t row = first / e->cols, col = first % e->cols;
		uint64_t n = count < BLOCK ? count : BLOCK, rows;
		char *base = base_size == out_size ? out : parts.base;

		if (wide) { /* part of one row, which is then a matrix of its own */
			n = n < MAX_COLS ? n : MAX_COLS;
			n = n < e->cols - col ? n : e->cols - col;
			run.cols = n;
			run.first = 0;
			rows = 1;
		} else {
			if (n > (MAX_ROWS - 1) * e->cols)
				n = (MAX_ROWS - 1) * e->cols;
			run.cols = e->cols;
			run.first = col;
			rows = (col + n + e->cols - 1) / e->cols;
		}
		run.count = n;
		for (unsigned k = 0; rc == 0 && k < e->planes; k++) {
			uint64_t bit = k * elements + first, scales = e->scales + k * (e->rows + e->cols);
			uint8_t *bits = parts.bits + k * BITS_STRIDE;

			run.bits[k] = bits;
			run.bit[k] = bit % 8;
			rc = bd_file_read(v->delta->file, bits, (size_t)((bit % 8 + n + 7) / 8),
					  e->sign->offset + bit / 8, err);
			if (rc == 0)
				rc = read_scales(v, e, scales + row, rows, parts.rows + k * MAX_ROWS, err);
			if (rc == 0 && wide)
				rc = read_scales(v, e, scales + e->rows + col, n,
						 parts.cols + k * MAX_COLS, err);
		}
		if (rc == 0)
			rc = bd_file_read(p->file, base, (size_t)n * base_size,
					  p->at + first * base_size, err);
		if (rc < 0)
			break;
		bd_sign_rebuild(&run, out, base);
		first += n;
		count -= n;
		out += n * out_size;
	}
	return rc;
}

/* Any bytes of a sign-coded piece: whole elements go straight to the caller, a part of one at
 * either end through a buffer. */
static int read_sign(struct bd_view *v, const struct bd_piece *p, uint64_t at, size_t size,
		     char *out, struct bd_scratch *scratch, struct bd_error *err)
{
	size_t unit = bd_dtype_bits(p->entry->tensor->dtype) / 8;
	int rc = 0;

	while (rc == 0 && size > 0) {
		size_t skip = (size_t)(at % unit), n = size / unit * unit;

		if (skip || size < unit) {
			char element[sizeof(float)];

			n = unit - skip < size ? unit - skip : size;
			rc = rebuild(v, p, at / unit, 1, element, scratch, err);
			if (rc == 0)
				memcpy(out, element + skip, n);
		} else {
			rc = rebuild(v, p, at / unit, n / unit, out, scratch, err);
		}
		at += n;
		out += n;
		size -= n;
	}
	return rc;
}

/* The piece that holds byte `offset`, which lies in the file. */
static const struct bd_piece *find_piece(const struct bd_view_file *f, uint64_t offset)
{
	size_t low = 0, high = f->piece_count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (f->pieces[middle].offset <= offset)
			low = middle;
		else
			high = middle;
	}
	return &f->pieces[low];
}

ssize_t bd_view_read(struct bd_view *v, size_t index, void *buf, size_t size, uint64_t offset,
		     struct bd_scratch *scratch, struct bd_error *err)
{
	const struct bd_view_file *f = &v->files[index];
	const struct bd_piece *p;
	size_t done = 0;
	int rc = 0;

	if (offset >= f->size)
		return 0;
	if (size > f->size - offset)
		size = (size_t)(f->size - offset);
	if (!f->safetensors) {
		memcpy(buf, f->data + offset, size);
		return (ssize_t)size;
	}
	p = find_piece(f, offset);
	for (; rc == 0 && done < size; p++) {
		uint64_t at = offset + done - p->offset;
		size_t n = size - done;
		char *out = (char *)buf + done;

		if (n > p->size - at)
			n = (size_t)(p->size - at);
		switch (p->source) {
		case FROM_MEMORY:
			memcpy(out, p->data + at, n);
			break;
		case FROM_FILE:
			rc = bd_file_read(p->file, out, n, p->at + at, err);
			break;
		case FROM_SIGN:
			rc = read_sign(v, p, at, n, out, scratch, err);
			break;
		}
		/* Only now: what was read before the file changed is good, what came after is not. */
		if (rc == 0 && p->source != FROM_MEMORY)
			rc = bd_file_check(p->file, err);
		done += n;
	}
	if (rc == 0)
		rc = bd_file_check(v->delta->file, err);
	return rc < 0 ? rc : (ssize_t)done;
}
