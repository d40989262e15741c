/* SPDX-License-Identifier: Apache-2.0 */
/* bitdelta.c: the public interface, see bitdelta.h. */
#include "bitdelta.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "view.h"

_Static_assert(sizeof(((struct bitdelta_error *)0)->text) == sizeof(((struct bd_error *)0)->text),
	       "no sentence is cut off");

/* Memory of reads, kept for the next: as many as ever went on at the same time. */
struct idle {
	struct bd_scratch *scratch;
	struct idle *next;
};

struct bitdelta_base {
	struct bd_base *base;
};

struct bitdelta {
	struct bd_view *view;
	struct bitdelta_file *files;
	struct bitdelta_tensor *tensors;
	size_t tensor_count;
	struct bd_name_table *names; /* tensor name -> number */
	pthread_mutex_t lock;        /* guards the rest */
	bool *held;                  /* per file: acquired, until the end */
	struct idle *idle;
};

/* Hand the inner sentence to the caller and return its code. */
static int report(struct bitdelta_error *err, int code, const struct bd_error *why)
{
	if (err && code < 0)
		snprintf(err->text, sizeof(err->text), "%s", why->text);
	return code;
}

const char *bitdelta_version(void)
{
	return BD_VERSION;
}

int bitdelta_base_open(struct bitdelta_base **out, const char *path, struct bitdelta_error *err)
{
	struct bitdelta_base *b = calloc(1, sizeof(*b));
	struct bd_error why = { 0 };
	int rc;

	*out = NULL;
	rc = b ? bd_base_open(&b->base, path, &why) :
		 bd_error_set(&why, -ENOMEM, "%s: out of memory", path);
	if (rc < 0)
		free(b);
	else
		*out = b;
	return report(err, rc, &why);
}

void bitdelta_base_close(struct bitdelta_base *base)
{
	if (!base)
		return;
	bd_base_close(base->base);
	free(base);
}

static bool is_lossy(const struct bd_entry *e)
{
	return e->encoding == BD_SIGN || (e->encoding == BD_ROWS && e->head == BD_SIGN);
}

static int add_tensors(struct bitdelta *d, size_t file)
{
	const struct bd_delta_file *f = &d->view->delta->files[file];

	for (size_t i = 0; f->st && i < f->st->count; i++) {
		const struct bd_entry *e = &f->entries[i];
		int rc;

		if (e->copy) /* no loader takes it: only its file has it */
			continue;
		rc = bd_name_table_add(d->names, e->tensor->name, (uint32_t)d->tensor_count);
		if (rc < 0)
			return rc;
		d->tensors[d->tensor_count++] = (struct bitdelta_tensor){
			.name = e->tensor->name,
			.dtype = bd_dtype_name(e->tensor->dtype),
			.dims = e->tensor->dims,
			.shape = e->tensor->shape,
			.size = e->tensor->size,
			.file = file,
			.offset = e->tensor->offset,
			.encoding = bd_encoding_name(e->encoding),
			.lossy = is_lossy(e),
		};
	}
	return 0;
}

/* Fill in what the caller sees. -ENOMEM. */
static int list(struct bitdelta *d)
{
	const struct bd_view *v = d->view;
	size_t tensors = 0;
	int rc = 0;

	for (size_t i = 0; i < v->file_count; i++)
		if (v->delta->files[i].st)
			tensors += v->delta->files[i].st->count;
	d->files = calloc(v->file_count + 1, sizeof(*d->files));
	d->held = calloc(v->file_count + 1, sizeof(*d->held));
	d->tensors = calloc(tensors + 1, sizeof(*d->tensors));
	d->names = bd_name_table_new(tensors);
	if (!d->files || !d->held || !d->tensors || !d->names)
		return -ENOMEM;
	for (size_t i = 0; rc == 0 && i < v->file_count; i++) {
		d->files[i] = (struct bitdelta_file){
			.name = v->files[i].name,
			.size = v->files[i].size,
			.safetensors = v->files[i].safetensors,
		};
		rc = add_tensors(d, i);
	}
	return rc;
}

int bitdelta_open(struct bitdelta **out, struct bitdelta_base *base, const char *path,
		  struct bitdelta_error *err)
{
	struct bitdelta *d = calloc(1, sizeof(*d));
	struct bd_delta *delta = NULL;
	struct bd_error why = { 0 };
	int rc;

	*out = NULL;
	if (!d)
		return report(err, bd_error_set(&why, -ENOMEM, "%s: out of memory", path), &why);
	pthread_mutex_init(&d->lock, NULL);
	rc = bd_delta_open(&delta, path, &why);
	if (rc == 0)
		rc = bd_view_open(&d->view, delta, base->base, &why);
	if (rc < 0) {
		bd_delta_close(delta);
	} else {
		rc = list(d);
		if (rc < 0)
			bd_error_set(&why, rc, "%s: out of memory", path);
	}
	if (rc < 0)
		bitdelta_close(d);
	else
		*out = d;
	return report(err, rc, &why);
}

void bitdelta_close(struct bitdelta *d)
{
	if (!d)
		return;
	while (d->idle) {
		struct idle *next = d->idle->next;

		bd_scratch_free(d->idle->scratch);
		free(d->idle);
		d->idle = next;
	}
	for (size_t i = 0; d->held && i < d->view->file_count; i++)
		if (d->held[i])
			bd_view_release(d->view, i);
	bd_name_table_free(d->names);
	free(d->tensors);
	free(d->held);
	free(d->files);
	bd_view_close(d->view);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

const char *bitdelta_name(const struct bitdelta *d)
{
	return d->view->name;
}

size_t bitdelta_file_count(const struct bitdelta *d)
{
	return d->view->file_count;
}

const struct bitdelta_file *bitdelta_file_at(const struct bitdelta *d, size_t index)
{
	return index < d->view->file_count ? &d->files[index] : NULL;
}

ssize_t bitdelta_find_file(const struct bitdelta *d, const char *name)
{
	for (size_t i = 0; i < d->view->file_count; i++)
		if (strcmp(d->files[i].name, name) == 0)
			return (ssize_t)i;
	return -ENOENT;
}

size_t bitdelta_tensor_count(const struct bitdelta *d)
{
	return d->tensor_count;
}

const struct bitdelta_tensor *bitdelta_tensor_at(const struct bitdelta *d, size_t index)
{
	return index < d->tensor_count ? &d->tensors[index] : NULL;
}

ssize_t bitdelta_find_tensor(const struct bitdelta *d, const char *name)
{
	uint32_t number;

	return bd_name_table_find(d->names, name, &number) ? (ssize_t)number : -ENOENT;
}

/* Make a file ready for reading, and find memory for one read. */
static int begin_read(struct bitdelta *d, size_t file, struct idle **memory, struct bd_error *why)
{
	struct idle *m;
	int rc = 0;

	pthread_mutex_lock(&d->lock);
	if (!d->held[file]) {
		rc = bd_view_acquire(d->view, file, why);
		d->held[file] = rc == 0;
	}
	m = d->idle;
	if (rc == 0 && m)
		d->idle = m->next;
	pthread_mutex_unlock(&d->lock);
	if (rc < 0)
		return rc;
	if (!m) {
		m = calloc(1, sizeof(*m));
		if (m)
			m->scratch = bd_scratch_new();
		if (!m || !m->scratch) {
			free(m);
			return bd_error_set(why, -ENOMEM, "out of memory for reading");
		}
	}
	*memory = m;
	return 0;
}

static void end_read(struct bitdelta *d, struct idle *memory)
{
	pthread_mutex_lock(&d->lock);
	memory->next = d->idle;
	d->idle = memory;
	pthread_mutex_unlock(&d->lock);
}

static ssize_t read_at(struct bitdelta *d, size_t file, void *buf, size_t size, uint64_t offset,
		       struct bitdelta_error *err)
{
	struct bd_error why = { 0 };
	struct idle *memory = NULL;
	ssize_t n = begin_read(d, file, &memory, &why);

	if (n == 0) {
		n = bd_view_read(d->view, file, buf, size, offset, memory->scratch, &why);
		end_read(d, memory);
	}
	if (n < 0)
		report(err, (int)n, &why);
	return n;
}

static ssize_t no_such(const struct bitdelta *d, const char *what, size_t index,
		       struct bitdelta_error *err)
{
	struct bd_error why;

	return report(err, bd_error_set(&why, -EINVAL, "%s: there is no %s number %zu",
					d->view->delta->file->path, what, index), &why);
}

ssize_t bitdelta_read_file(struct bitdelta *d, size_t file, void *buf, size_t size,
			   uint64_t offset, struct bitdelta_error *err)
{
	if (file >= d->view->file_count)
		return no_such(d, "file", file, err);
	return read_at(d, file, buf, size, offset, err);
}

ssize_t bitdelta_read_tensor(struct bitdelta *d, size_t tensor, void *buf, size_t size,
			     uint64_t offset, struct bitdelta_error *err)
{
	const struct bitdelta_tensor *t;

	if (tensor >= d->tensor_count)
		return no_such(d, "tensor", tensor, err);
	t = &d->tensors[tensor];
	if (offset >= t->size)
		return 0;
	if (size > t->size - offset)
		size = (size_t)(t->size - offset);
	return read_at(d, t->file, buf, size, t->offset + offset, err);
}
