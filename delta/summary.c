/* SPDX-License-Identifier: Apache-2.0 */
/* summary.c: adding up a delta, see summary.h. */
#include "summary.h"

#include <errno.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

uint64_t bd_summary_stored(const struct bd_entry *e)
{
	uint64_t bytes = e->planes * (e->rows + e->cols) * sizeof(float);

	if (e->sign)
		bytes += e->sign->size;
	if (e->raw)
		bytes += e->raw->size;
	if (e->exact)
		bytes += e->exact->size;
	return bytes;
}

int bd_summary_of(const struct bd_delta *d, struct bd_summary *s, struct bd_error *err)
{
	double *errors;
	size_t count = 0, tensors = 1;

	*s = (struct bd_summary){ .delta_bytes = d->file->size, .error_median = -1, .error_worst = -1 };
	for (size_t f = 0; f < d->file_count; f++)
		tensors += d->files[f].st ? d->files[f].st->count : 0;
	errors = malloc(tensors * sizeof(*errors));
	if (!errors)
		return bd_error_set(err, -ENOMEM, "%s: out of memory", d->file->path);
	for (size_t f = 0; f < d->file_count; f++) {
		const struct bd_delta_file *file = &d->files[f];

		s->fine_bytes += file->size;
		if (!file->st) {
			s->other_files.tensors++;
			s->other_files.bytes += file->size;
			s->other_files.stored += file->stored->size;
			continue;
		}
		for (size_t i = 0; i < file->st->count; i++) {
			const struct bd_entry *e = &file->entries[i];
			struct bd_encoding_summary *sum = &s->encodings[e->encoding];

			sum->tensors++;
			sum->bytes += e->tensor->size;
			sum->stored += bd_summary_stored(e);
			s->weights += e->rows * e->cols;
			if (e->planes == 0 || e->error < 0)
				continue;
			errors[count++] = e->error;
			if (e->error > s->error_worst) {
				s->error_worst = e->error;
				s->worst = e->tensor->name;
			}
		}
	}
	qsort(errors, count, sizeof(*errors), by_value);
	if (count)
		s->error_median = errors[count / 2];
	free(errors);
	return 0;
}
