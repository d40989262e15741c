/* SPDX-License-Identifier: Apache-2.0 */
/* view.c: computing a fine-tune's bytes from its base and its delta, see view.h. */
#include "view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/exact_file.h"
#include "guard.h"
#include "sign.h"

/* Elements rebuilt at a time from copies: base, bits and output together stay within a core's L2
 * cache. Nothing is copied from maps. */
#define BLOCK ((uint64_t)1 << 17)
#define MAP_BLOCK ((uint64_t)1 << 20)
/* Bytes of a base from which on a map is faster: below, bringing pages in and out costs more than
 * copying. */
#define MAP_MIN ((uint64_t)32 << 10)
/* Wider matrices are rebuilt in pieces of a row, so that memory does not follow a file's claims. */
#define MAX_COLS ((uint64_t)1 << 17)
#define MAX_ROWS ((uint64_t)1 << 14) /* rows that a block may touch */
#define CHUNK ((uint64_t)512)        /* column scales read at a time */
#define CHUNKS (MAX_COLS / CHUNK)
#define LANES 16

_Static_assert(BD_FILE_SLACK >= BD_SIGN_SLACK, "bits may end at the end of the file");

/* Bytes of all open files that are kept in memory, of all views: it is the process's memory. */
static atomic_uint_fast64_t inflated;

/* Where the bytes of a piece come from: the header in memory, the delta, or shard SOURCE - SHARD of the base. */
enum { HEADER, DELTA, SHARD };

/* Models have hundreds of thousands of these. */
struct bd_piece {
	uint64_t offset; /* in the virtual file; the next one's is the end */
	uint64_t at;     /* offset in its source */
	uint32_t source;
	uint32_t coded;  /* 1 + the number of its tensor, if that is computed: `at` is then the base's; 0: not */
};

/* What tensors that are computed have in common with others, as the pool keeps it. Without planes they are exact,
 * with BD_DTYPES as the dtype of a base that they do not need. */
struct kind {
	uint64_t rows, cols, planes, base_dtype, dtype;
};

struct bd_coded {
	uint64_t bits;           /* offset of its planes, or of what is stored of an exact one, in the delta */
	union {
		uint64_t scales; /* number of its first one */
		uint64_t size;   /* of what is stored of an exact one */
	};
	const struct kind *kind;
};

struct bd_scratch {
	char *memory;
	size_t capacity;
	uint64_t base, delta; /* bytes that were read */
	struct bd_exact_cache *exact; /* NULL until it is needed */
	/* Which column scales are there: of the columns from `start` on of this tensor of this view. */
	struct {
		uint64_t serial, scales, start;
		uint64_t have[CHUNKS / 64]; /* bit i: chunk i, of all planes */
	} columns;
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
	bd_exact_cache_free(scratch->exact);
	free(scratch->memory);
	free(scratch);
}

void bd_scratch_take_counts(struct bd_scratch *scratch, uint64_t *base, uint64_t *delta)
{
	*base = scratch->base;
	*delta = scratch->delta;
	scratch->base = scratch->delta = 0;
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
		memset(&s->columns, 0, sizeof(s->columns));
		s->memory = aligned_alloc(64, (need + 63) / 64 * 64);
		if (!s->memory)
			return bd_error_set(err, -ENOMEM, "out of memory for reading");
		s->capacity = need;
	}
	/* Columns outlive a call: the number of planes does not move them. */
	parts->base = s->memory;
	parts->cols = (float *)(s->memory + base);
	parts->rows = (float *)(s->memory + base + cols);
	parts->bits = (uint8_t *)s->memory + base + cols + rows;
	return 0;
}

static uint32_t source_of(const struct bd_view *v, const struct bd_shard *shard)
{
	return SHARD + (uint32_t)(shard - v->base->checkpoint->shards);
}

static struct bd_file *file_of(const struct bd_view *v, const struct bd_piece *p)
{
	return p->source == DELTA ? v->delta->file : v->base->checkpoint->shards[p->source - SHARD].file;
}

/* Append what comes at byte *offset. Bytes that continue the piece before belong to it. */
static void add_piece(struct bd_view_file *f, uint32_t source, uint64_t at, uint64_t size, uint32_t coded,
		      uint64_t *offset)
{
	const struct bd_piece *last = f->piece_count ? &f->pieces[f->piece_count - 1] : NULL;
	uint64_t from = *offset;

	*offset += size;
	if (size == 0 || (last && last->source == source && !coded && !last->coded &&
			  last->at + (from - last->offset) == at))
		return;
	f->pieces[f->piece_count++] =
		(struct bd_piece){ .offset = from, .at = at, .source = source, .coded = coded };
}

/* 1 + its number; 0: out of memory. */
static uint32_t add_coded(struct bd_view *v, struct bd_coded coded, const struct kind *kind)
{
	const uint64_t *kept = bd_shapes_add(&v->kinds, &kind->rows, sizeof(*kind) / sizeof(uint64_t));

	if (v->coded_count == v->coded_room) {
		size_t room = v->coded_room ? 2 * v->coded_room : 64;
		struct bd_coded *more = reallocarray(v->coded, room, sizeof(*more));

		if (!more)
			return 0;
		v->coded = more;
		v->coded_room = room;
	}
	if (!kept)
		return 0;
	coded.kind = (const struct kind *)kept;
	v->coded[v->coded_count++] = coded;
	return (uint32_t)v->coded_count;
}

static uint32_t add_sign(struct bd_view *v, const struct bd_entry *e)
{
	return add_coded(v, (struct bd_coded){ .bits = e->sign->offset, .scales = e->scales },
			 &(struct kind){ e->rows, e->cols, e->planes, e->base_dtype, e->tensor->dtype });
}

static uint32_t add_exact(struct bd_view *v, const struct bd_entry *e)
{
	struct bd_exact_shape s = bd_exact_tensor_of(v->delta, e, v->base).shape;

	return add_coded(v, (struct bd_coded){ .bits = e->exact->offset, .size = e->exact->size },
			 &(struct kind){ s.rows, s.cols, 0, s.base_dtype, s.dtype });
}

static int add_entry(struct bd_view *v, struct bd_view_file *f, const struct bd_entry *e, uint64_t *offset)
{
	const struct bd_tensor *t = e->tensor;
	uint64_t head = t->size;
	uint32_t coded = 0;

	if (e->encoding == BD_RAW)
		head = 0;
	else if (e->encoding == BD_ROWS)
		head = t->size / t->shape[0] * e->shared;
	if (e->head == BD_SIGN)
		coded = add_sign(v, e);
	else if (e->head == BD_EXACT)
		coded = add_exact(v, e);
	if (!coded && (e->head == BD_SIGN || e->head == BD_EXACT))
		return -ENOMEM;
	if (head && !bd_entry_has_base(e)) {
		add_piece(f, DELTA, 0, head, coded, offset);
	} else if (head) {
		const struct bd_base_tensor *b = bd_base_find(v->base, bd_entry_base(e));

		add_piece(f, source_of(v, b->shard), b->tensor->offset, head, coded, offset);
	}
	if (head < t->size)
		add_piece(f, DELTA, e->raw->offset, t->size - head, 0, offset);
	return 0;
}

/* The shard of the base that begins with the same header; NULL: none, as far as one looks. Fine-tunes mostly
 * have their base's shards, and then the header is read from there. */
static const struct bd_shard *same_header(const struct bd_view *v, const struct bd_delta_file *d)
{
	const struct bd_base_tensor *b = NULL;
	size_t size = d->st->header_size;
	char part[4096];

	for (size_t i = 0; !b && i < d->st->count; i++)
		if (bd_entry_has_base(&d->entries[i]))
			b = bd_base_find(v->base, bd_entry_base(&d->entries[i]));
	if (!b || b->shard->st->header_size != size)
		return NULL;
	for (size_t at = 0, n; at < size; at += n) {
		n = size - at < sizeof(part) ? size - at : sizeof(part);
		if (bd_file_read(b->shard->file, part, n, at, NULL) < 0 ||
		    memcmp(part, d->st->header + at, n) != 0)
			return NULL;
	}
	return b->shard;
}

static int build_file(struct bd_view *v, struct bd_view_file *f, const struct bd_delta_file *d)
{
	const struct bd_shard *shard;
	struct bd_piece *pieces;
	uint64_t offset = 0;

	f->name = d->name;
	f->size = d->size;
	f->safetensors = d->st != NULL;
	f->packed = !d->st && !d->plain;
	if (f->packed)
		return 0;
	f->pieces = malloc((2 + (d->st ? 2 * d->st->count : 0)) * sizeof(*f->pieces));
	if (!f->pieces)
		return -ENOMEM;
	if (d->plain) {
		add_piece(f, DELTA, d->stored->offset, d->size, 0, &offset);
		f->pieces[f->piece_count].offset = offset;
		return 0;
	}
	shard = same_header(v, d);
	f->header = shard ? NULL : d->st->header;
	add_piece(f, shard ? source_of(v, shard) : HEADER, 0, d->st->header_size, 0, &offset);
	for (size_t i = 0; i < d->st->count; i++)
		if (add_entry(v, f, &d->entries[i], &offset) < 0)
			return -ENOMEM;
	f->pieces[f->piece_count].offset = offset;
	pieces = realloc(f->pieces, (f->piece_count + 1) * sizeof(*pieces));
	f->pieces = pieces ? pieces : f->pieces;
	return 0;
}

int bd_view_open(struct bd_view **out, struct bd_delta *delta, struct bd_base *base,
		 struct bd_error *err)
{
	static atomic_uint_fast64_t views;
	struct bd_view *v;
	int rc = bd_delta_check_base(delta, base, err);

	if (rc < 0)
		return rc;
	v = calloc(1, sizeof(*v));
	if (!v)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", delta->file->path);
	pthread_mutex_init(&v->lock, NULL);
	v->serial = atomic_fetch_add(&views, 1) + 1;
	v->name = delta->name;
	v->delta = delta;
	v->base = base;
	v->scales_at = delta->scales ? delta->scales->offset : 0;
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
	if (v->coded_count) {
		struct bd_coded *fit = realloc(v->coded, v->coded_count * sizeof(*fit));

		v->coded = fit ? fit : v->coded;
	}
	bd_file_map(delta->file);
	*out = v;
	return 0;
}

void bd_view_close(struct bd_view *v)
{
	if (!v)
		return;
	for (size_t i = 0; i < v->file_count; i++) {
		free(v->files[i].pieces);
		if (v->slim)
			free(v->files[i].header);
		if (v->files[i].users) /* was never released */
			atomic_fetch_sub(&inflated, v->files[i].size);
		free(v->files[i].data);
	}
	free(v->files);
	free(v->coded);
	bd_shapes_free(&v->kinds);
	pthread_mutex_destroy(&v->lock);
	bd_delta_close(v->delta);
	free(v);
}

void bd_view_slim(struct bd_view *v)
{
	if (v->slim)
		return;
	for (size_t i = 0; i < v->file_count; i++)
		if (v->files[i].header)
			v->delta->files[i].st->header = NULL; /* is the view's from now on */
	v->slim = true;
	bd_delta_forget_tensors(v->delta);
}

size_t bd_view_bytes(const struct bd_view *v)
{
	size_t bytes = v->coded_count * sizeof(*v->coded);

	for (size_t i = 0; i < v->file_count; i++) {
		const struct bd_view_file *f = &v->files[i];

		bytes += sizeof(*f) + sizeof(struct bd_delta_file) + strlen(f->name);
		if (!f->packed)
			bytes += (f->piece_count + 1) * sizeof(*f->pieces);
		if (f->header)
			bytes += f->pieces[1].offset;
	}
	return bytes;
}

struct bd_file *bd_view_verbatim(const struct bd_view *v, size_t index)
{
	const struct bd_view_file *f = &v->files[index];
	struct bd_file *file;

	if (!f->safetensors || f->piece_count != 1 || f->pieces->source < SHARD || f->pieces->coded)
		return NULL;
	file = file_of(v, f->pieces);
	return f->pieces->at == 0 && file->size == f->size ? file : NULL;
}

/* With the lock held. */
static int inflate(struct bd_view *v, size_t index, struct bd_error *err)
{
	struct bd_view_file *f = &v->files[index];
	int rc = f->data ? 0 : bd_delta_inflate(v->delta, &v->delta->files[index], &f->data, err);

	f->good |= rc == 0;
	return rc;
}

/* A small delta can hold a lot of zeros, and anybody may open its files. */
static int reserve(const struct bd_view *v, const struct bd_view_file *f, struct bd_error *err)
{
	if (atomic_fetch_add(&inflated, f->size) + f->size <= BD_VIEW_INFLATED)
		return 0;
	atomic_fetch_sub(&inflated, f->size);
	return bd_error_set(err, -ENOMEM, "%s: file '%s' in it has %" PRIu64 " bytes, and those that are open "
			    "already take too much memory", v->delta->file->path, f->name, f->size);
}

int bd_view_acquire(struct bd_view *v, size_t index, struct bd_error *err)
{
	struct bd_view_file *f = &v->files[index];
	int rc = 0;

	if (!f->packed)
		return 0;
	pthread_mutex_lock(&v->lock);
	if (f->users == 0)
		rc = reserve(v, f, err);
	if (rc == 0 && !f->good) {
		rc = inflate(v, index, err);
		if (rc < 0)
			atomic_fetch_sub(&inflated, f->size);
	}
	if (rc == 0)
		f->users++;
	pthread_mutex_unlock(&v->lock);
	return rc;
}

void bd_view_release(struct bd_view *v, size_t index)
{
	struct bd_view_file *f = &v->files[index];

	if (!f->packed)
		return;
	pthread_mutex_lock(&v->lock);
	if (--f->users == 0) {
		free(f->data);
		f->data = NULL;
		atomic_fetch_sub(&inflated, f->size);
	}
	pthread_mutex_unlock(&v->lock);
}

/* Of one number: not 0 where it is not finite. */
static uint32_t not_finite(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return (u & 0x7F800000) == 0x7F800000;
}

static bool all_finite(const float *f, uint64_t count)
{
	uint32_t bad[LANES] = { 0 };
	uint64_t i;

	/* Lanes, and loops of fixed length: compilers turn these into vector instructions. */
	for (i = 0; i + LANES <= count; i += LANES)
		for (unsigned k = 0; k < LANES; k++)
			bad[k] |= not_finite(f[i + k]);
	for (; i < count; i++)
		bad[0] |= not_finite(f[i]);
	for (unsigned k = 1; k < LANES; k++)
		bad[0] |= bad[k];
	return bad[0] == 0;
}

static int read_scales(struct bd_view *v, uint64_t index, uint64_t count, float *out,
		       struct bd_scratch *scratch, struct bd_error *err)
{
	struct bd_file *file = v->delta->file;
	int rc = bd_file_read(file, out, (size_t)count * sizeof(*out), v->scales_at + index * sizeof(*out),
			      err);

	if (rc < 0)
		return rc;
	scratch->delta += count * sizeof(*out);
	if (!all_finite(out, count))
		return bd_error_set(err, -EIO, "%s: one of the scales %" PRIu64 " to %" PRIu64 " is not finite: "
				    "the file is damaged, import it again", file->path, index,
				    index + count - 1);
	return 0;
}

/* What a call of rebuild() works on. */
struct job {
	struct bd_view *view;
	struct bd_file *base;       /* where the tensor lies from byte `at` on */
	uint64_t at;
	const struct bd_coded *coded;
	const struct kind *kind;    /* of it */
	size_t base_size, out_size; /* bytes of an element */
	struct bd_scratch *scratch;
	struct parts parts;
	struct bd_sign_run run;
};

/* Index in the container's scales of the first one of plane K: those of its rows, then of its columns. */
static uint64_t scales_of(const struct job *j, unsigned k)
{
	return j->coded->scales + k * (j->kind->rows + j->kind->cols);
}

static bool has_chunk(const struct bd_scratch *s, uint64_t chunk)
{
	return s->columns.have[chunk / 64] >> (chunk % 64) & 1;
}

/* Read those scales of columns first .. end - 1 that are not there yet, whole chunks of them; columns
 * count from `start`, where there are `width` of them. */
static int need_columns(struct job *j, uint64_t start, uint64_t width, uint64_t first, uint64_t end,
			struct bd_error *err)
{
	struct bd_scratch *s = j->scratch;
	uint64_t chunk = first / CHUNK, last = (end + CHUNK - 1) / CHUNK, next;

	if (s->columns.serial != j->view->serial || s->columns.scales != j->coded->scales ||
	    s->columns.start != start) {
		memset(&s->columns, 0, sizeof(s->columns));
		s->columns.serial = j->view->serial;
		s->columns.scales = j->coded->scales;
		s->columns.start = start;
	}
	for (; chunk < last; chunk = next) {
		uint64_t from = chunk * CHUNK, to;

		next = chunk + 1;
		if (has_chunk(s, chunk))
			continue;
		while (next < last && !has_chunk(s, next))
			next++;
		to = next * CHUNK < width ? next * CHUNK : width;
		for (unsigned k = 0; k < j->kind->planes; k++) {
			int rc = read_scales(j->view, scales_of(j, k) + j->kind->rows + start + from,
					     to - from, j->parts.cols + k * MAX_COLS + from, s, err);

			if (rc < 0)
				return rc;
		}
		for (; chunk < next; chunk++)
			s->columns.have[chunk / 64] |= (uint64_t)1 << (chunk % 64);
	}
	return 0;
}

/* All the scales that the run needs; its first element is that one of the tensor. */
static int need_scales(struct job *j, uint64_t first, struct bd_error *err)
{
	const struct kind *kind = j->kind;
	struct bd_sign_run *run = &j->run;
	uint64_t rows = (run->first + run->count + run->cols - 1) / run->cols;
	/* Of a matrix too wide, the run sees only the columns from here on. */
	uint64_t start = first % kind->cols - run->first;
	uint64_t end = run->first + run->count; /* as if there were one row */
	int rc;

	/* Columns first: what comes after them in memory overwrites those of tensors with more planes. */
	if (rows == 1) {
		rc = need_columns(j, start, run->cols, run->first, end, err);
	} else if (rows == 2 && end - run->cols < run->first) {
		rc = need_columns(j, start, run->cols, run->first, run->cols, err);
		if (rc == 0)
			rc = need_columns(j, start, run->cols, 0, end - run->cols, err);
	} else {
		rc = need_columns(j, start, run->cols, 0, run->cols, err);
	}
	for (unsigned k = 0; rc == 0 && k < kind->planes; k++)
		rc = read_scales(j->view, scales_of(j, k) + first / kind->cols, rows,
				 j->parts.rows + k * MAX_ROWS, j->scratch, err);
	return rc;
}

/* Offset in the delta of the byte with the bit of element `first` of plane K; *bit: which bit. */
static uint64_t bits_of(const struct job *j, unsigned k, uint64_t first, uint64_t *bit)
{
	uint64_t index = k * j->kind->rows * j->kind->cols + first;

	*bit = index % 8;
	return j->coded->bits + index / 8;
}

struct mapped_work {
	const struct bd_sign_run *run;
	void *out;
	const void *base;
};

static void rebuild_guarded(void *context)
{
	const struct mapped_work *w = context;

	bd_sign_rebuild(w->run, w->out, w->base);
}

/* Rebuild the run out of maps of base and delta. 1: not all is in the page cache, and nothing was
 * done. */
static int rebuild_mapped(struct job *j, uint64_t first, char *out, struct bd_error *err)
{
	struct bd_file *base = j->base, *delta = j->view->delta->file;
	struct bd_guard_range ranges[1 + BD_MAX_PLANES];
	uint64_t at = j->at + first * j->base_size, bits[BD_MAX_PLANES];
	size_t size = (size_t)j->run.count * j->base_size, bits_size[BD_MAX_PLANES];
	struct mapped_work work = { &j->run, out, base->map + at };
	const uint8_t *fault;
	int rc;

	if (!bd_file_is_cached(base, size, at))
		return 1;
	ranges[0] = (struct bd_guard_range){ base->map + at, size };
	for (unsigned k = 0; k < j->run.planes; k++) {
		bits[k] = bits_of(j, k, first, &j->run.bit[k]);
		bits_size[k] = (size_t)((j->run.bit[k] + j->run.count + 7) / 8);
		if (!bd_file_is_cached(delta, bits_size[k], bits[k]))
			return 1;
		j->run.bits[k] = delta->map + bits[k];
		ranges[1 + k] = (struct bd_guard_range){ j->run.bits[k], bits_size[k] + BD_SIGN_SLACK };
	}
	rc = need_scales(j, first, err);
	if (rc < 0)
		return rc;
	fault = bd_guard_run(rebuild_guarded, &work, ranges, 1 + j->run.planes);
	bd_file_used(base, size, at);
	j->scratch->base += size;
	for (unsigned k = 0; k < j->run.planes; k++) {
		bd_file_used(delta, bits_size[k], bits[k]);
		j->scratch->delta += bits_size[k];
	}
	if (fault) {
		struct bd_file *file = fault >= base->map + at && fault < base->map + at + size ?
				       base : delta;

		rc = bd_file_check(file, err);
		if (rc == 0)
			rc = bd_error_set(err, -EIO, "%s: cannot read the page at offset %" PRIu64 " (an "
					  "error of the disk or of the filesystem under it)", file->path,
					  (uint64_t)(fault - file->map));
	}
	return rc;
}

/* Rebuild the run, of at most BLOCK elements, out of copies. */
static int rebuild_copied(struct job *j, uint64_t first, char *out, struct bd_error *err)
{
	struct bd_sign_run *run = &j->run;
	char *base = j->base_size == j->out_size ? out : j->parts.base;
	size_t size = (size_t)run->count * j->base_size;
	int rc = need_scales(j, first, err);

	for (unsigned k = 0; rc == 0 && k < run->planes; k++) {
		uint8_t *bits = j->parts.bits + k * BITS_STRIDE;
		uint64_t at = bits_of(j, k, first, &run->bit[k]);
		size_t bits_size = (size_t)((run->bit[k] + run->count + 7) / 8);

		run->bits[k] = bits;
		rc = bd_file_read(j->view->delta->file, bits, bits_size, at, err);
		j->scratch->delta += bits_size;
	}
	if (rc == 0)
		rc = bd_file_read(j->base, base, size, j->at + first * j->base_size, err);
	if (rc < 0)
		return rc;
	j->scratch->base += size;
	bd_sign_rebuild(run, out, base);
	return 0;
}

/* Let the run be as many of the `count` elements from `first` on as can be done at a time, at most
 * `block`. */
static void set_run(struct job *j, uint64_t first, uint64_t count, uint64_t block)
{
	uint64_t cols = j->kind->cols, col = first % cols, n = count < block ? count : block;

	if (cols > MAX_COLS) { /* part of one row, whose columns are taken MAX_COLS at a time */
		uint64_t start = col / MAX_COLS * MAX_COLS;

		j->run.cols = cols - start < MAX_COLS ? cols - start : MAX_COLS;
		j->run.first = col - start;
		n = n < j->run.cols - j->run.first ? n : j->run.cols - j->run.first;
	} else {
		j->run.cols = cols;
		j->run.first = col;
		n = n < (MAX_ROWS - 1) * cols ? n : (MAX_ROWS - 1) * cols;
	}
	j->run.count = n;
}

/* Rebuild `count` elements of a sign-coded piece from element `first` on. */
static int rebuild(struct bd_view *v, const struct bd_piece *p, uint64_t first, uint64_t count,
		   char *out, struct bd_scratch *scratch, struct bd_error *err)
{
	const struct bd_coded *coded = &v->coded[p->coded - 1];
	const struct kind *kind = coded->kind;
	struct bd_file *base = file_of(v, p);
	bool mapped = base->map && v->delta->file->map;
	struct job j = {
		.view = v, .base = base, .at = p->at, .coded = coded, .kind = kind, .scratch = scratch,
		.base_size = bd_dtype_bits((enum bd_dtype)kind->base_dtype) / 8,
		.out_size = bd_dtype_bits((enum bd_dtype)kind->dtype) / 8,
		.run = {
			.planes = (unsigned)kind->planes, .base_dtype = (enum bd_dtype)kind->base_dtype,
			.out_dtype = (enum bd_dtype)kind->dtype,
		},
	};
	int rc = lay_out(scratch, j.run.planes, &j.parts, err);

	for (unsigned k = 0; rc == 0 && k < j.run.planes; k++) {
		j.run.row[k] = j.parts.rows + k * MAX_ROWS;
		j.run.col[k] = j.parts.cols + k * MAX_COLS;
	}
	while (rc == 0 && count > 0) {
		rc = 1;
		set_run(&j, first, count, MAP_BLOCK);
		if (mapped && j.run.count * j.base_size >= MAP_MIN)
			rc = rebuild_mapped(&j, first, out, err);
		if (rc == 1) {
			set_run(&j, first, count, BLOCK);
			rc = rebuild_copied(&j, first, out, err);
		}
		first += j.run.count;
		count -= j.run.count;
		out += j.run.count * j.out_size;
	}
	return rc;
}

/* Any bytes of a sign-coded piece: whole elements go straight to the caller, a part of one at
 * either end through a buffer. */
static int read_sign(struct bd_view *v, const struct bd_piece *p, uint64_t at, size_t size,
		     char *out, struct bd_scratch *scratch, struct bd_error *err)
{
	size_t unit = bd_dtype_bits((enum bd_dtype)v->coded[p->coded - 1].kind->dtype) / 8;
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

/* Any bytes of an exact piece. */
static int read_exact(struct bd_view *v, const struct bd_piece *p, uint64_t at, size_t size, char *out,
		      struct bd_scratch *scratch, struct bd_error *err)
{
	const struct bd_coded *coded = &v->coded[p->coded - 1];
	const struct kind *kind = coded->kind;
	const struct bd_exact_tensor t = {
		.shape = { (enum bd_dtype)kind->dtype, (enum bd_dtype)kind->base_dtype, kind->rows, kind->cols },
		.serial = v->serial, .delta = v->delta->file, .at = coded->bits, .size = coded->size,
		.base = p->source == DELTA ? NULL : file_of(v, p), .base_at = p->at,
	};
	struct bd_exact_counts counts = { 0 };
	int rc;

	if (!scratch->exact)
		scratch->exact = bd_exact_cache_new();
	if (!scratch->exact)
		return bd_error_set(err, -ENOMEM, "out of memory for reading");
	rc = bd_exact_tensor_read(scratch->exact, &t, at, size, out, &counts, err);
	scratch->base += counts.base;
	scratch->delta += counts.delta;
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
	struct bd_file *delta = v->delta->file, *base = NULL;
	const struct bd_piece *p;
	size_t done = 0;
	int rc = 0;

	if (offset >= f->size)
		return 0;
	if (size > f->size - offset)
		size = (size_t)(f->size - offset);
	if (f->packed) {
		pthread_mutex_lock(&v->lock);
		rc = inflate(v, index, err);
		pthread_mutex_unlock(&v->lock);
		if (rc < 0)
			return rc;
		memcpy(buf, f->data + offset, size);
		return (ssize_t)size;
	}
	p = find_piece(f, offset);
	for (; rc == 0 && done < size; p++) {
		uint64_t at = offset + done - p->offset;
		size_t n = size - done;
		char *out = (char *)buf + done;

		if (n > p[1].offset - p->offset - at)
			n = (size_t)(p[1].offset - p->offset - at);
		/* Files are checked only after reading: what was read before a file changed is good, what
		 * came after is not. The delta comes last. */
		if (p->source >= SHARD && file_of(v, p) != base) {
			if (base)
				rc = bd_file_check(base, err);
			base = file_of(v, p);
		}
		if (rc < 0)
			break;
		if (p->coded && v->coded[p->coded - 1].kind->planes == 0) {
			rc = read_exact(v, p, at, n, out, scratch, err);
		} else if (p->coded) {
			rc = read_sign(v, p, at, n, out, scratch, err);
		} else if (p->source == HEADER) {
			memcpy(out, f->header + p->at + at, n);
		} else {
			rc = bd_file_read(file_of(v, p), out, n, p->at + at, err);
			*(p->source == DELTA ? &scratch->delta : &scratch->base) += n;
		}
		done += n;
	}
	if (rc == 0 && base)
		rc = bd_file_check(base, err);
	if (rc == 0)
		rc = bd_file_check(delta, err);
	return rc < 0 ? rc : (ssize_t)done;
}
