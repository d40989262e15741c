/* SPDX-License-Identifier: Apache-2.0 */
/* import_tensor.c: looking at one tensor of a fine-tune beside its base: is it the same, which
 * signs and scales does it have, how far off will they be. See import_impl.h. */
#include "import_impl.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "manifest.h"
#include "sign.h"

#define SAMPLED_ROWS 128 /* rows on which the error is measured */

int bd_item_out_of_memory(const struct bd_item *item, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: tensor '%s': out of memory", item->file->path,
			    item->entry->tensor->name);
}

int bd_item_read_rows(const struct bd_item *item, uint64_t row, uint64_t count, char *fine, char *base,
		      struct bd_error *err)
{
	const struct bd_entry *e = item->entry;
	size_t size = e->cols * (bd_dtype_bits(e->tensor->dtype) / 8);
	size_t base_size = e->cols * (bd_dtype_bits(e->base_dtype) / 8);
	int rc = bd_file_read(item->file, fine, count * size, e->tensor->offset + row * size, err);

	return rc < 0 ? rc : bd_file_read(item->base->shard->file, base, count * base_size,
					  item->base->tensor->offset + row * base_size, err);
}

uint64_t bd_item_sampled_row(uint64_t rows, uint64_t samples, uint64_t sample)
{
	return samples == rows ? sample : (uint64_t)((double)sample * (double)rows / (double)samples);
}

static bool stopped(const struct bd_look *look)
{
	return look->stop && *look->stop;
}

/* The largest absolute value among `count` elements, found in their bits: without its sign, a number of
 * any of the three types is ordered as an integer. NaN and infinity come out as infinity. */
static float largest(const char *p, enum bd_dtype dtype, uint64_t count)
{
	uint32_t most = 0;
	uint16_t most_half = 0;

	for (uint64_t i = 0; dtype == BD_F32 && i < count; i++) {
		uint32_t u;

		memcpy(&u, p + 4 * i, sizeof(u));
		u &= 0x7FFFFFFF;
		most = u > most ? u : most;
	}
	for (uint64_t i = 0; dtype != BD_F32 && i < count; i++) {
		uint16_t u;

		memcpy(&u, p + 2 * i, sizeof(u));
		u &= 0x7FFF;
		most_half = u > most_half ? u : most_half;
	}
	if (dtype == BD_F32)
		return most >= 0x7F800000 ? INFINITY : bd_sign_element(&most, 0, BD_F32);
	return isnan(bd_sign_element(&most_half, 0, dtype)) ? INFINITY :
							      bd_sign_element(&most_half, 0, dtype);
}

/* Could base + scale leave the range of the dtype anywhere? `most` is the largest |base|. */
static bool may_overflow(const struct bd_item *item, float most)
{
	const struct bd_entry *e = item->entry;
	double limit = e->tensor->dtype == BD_F16 ? 65504.0 : 3.3895e38; /* F16's and BF16's largest */
	double row = largest((const char *)item->scales, BD_F32, e->rows);
	double col = largest((const char *)(item->scales + e->rows), BD_F32, e->cols);

	return most + row * col >= limit;
}

/* The honest error: rebuild rows with the arithmetic of the format and compare; some rows, or all where a
 * number might overflow. `fine`, `base` and `out` have room for a row each. */
static int measure(struct bd_item *item, float most, char *fine, char *base, char *out,
		   struct bd_error *err)
{
	struct bd_entry *e = item->entry;
	const struct bd_tensor *t = e->tensor;
	bool all = e->rows < SAMPLED_ROWS || may_overflow(item, most);
	uint64_t rows = all ? e->rows : SAMPLED_ROWS;
	double off = 0, moved = 0, size = 0;

	for (uint64_t k = 0; k < rows; k++) {
		uint64_t i = bd_item_sampled_row(e->rows, rows, k);
		struct bd_sign_run run = {
			.cols = e->cols, .count = e->cols, .planes = 1,
			.base_dtype = e->base_dtype, .out_dtype = t->dtype,
			.bits = { item->bits }, .bit = { i * e->cols },
			.row = { item->scales + i }, .col = { item->scales + e->rows },
		};
		int rc = bd_item_read_rows(item, i, 1, fine, base, err);

		if (rc < 0)
			return rc;
		bd_sign_rebuild(&run, out, base);
		for (uint64_t j = 0; j < e->cols; j++) {
			double w = bd_sign_element(fine, j, t->dtype);
			double b = bd_sign_element(base, j, e->base_dtype);
			double s = bd_sign_element(out, j, t->dtype);

			off += (s - w) * (s - w);
			moved += (w - b) * (w - b);
			size += b * b;
		}
	}
	if (!isfinite(off)) { /* a rebuilt number overflows: no finite weight may become infinite */
		item->usable = false;
		return 0;
	}
	e->error = moved > 0 ? sqrt(off / moved) : off > 0 ? 1 : 0;
	item->change = size > 0 ? sqrt(moved / size) : 0;
	return 0;
}

/* Hash bytes [from, end) of the base tensor into `hash`. */
static int hash_base(struct bd_item *item, const struct bd_look *look, XXH3_state_t *hash,
		     uint64_t from, char *buf, struct bd_error *err)
{
	const struct bd_tensor *b = item->base->tensor;

	while (from < b->size) {
		size_t n = b->size - from < BD_IMPORT_CHUNK ? (size_t)(b->size - from) :
							      BD_IMPORT_CHUNK;
		int rc = bd_file_read(item->base->shard->file, buf, n, b->offset + from, err);

		if (rc < 0)
			return rc;
		if (stopped(look))
			return bd_error_set(err, -EINTR, "interrupted");
		XXH3_128bits_update(hash, buf, n);
		from += n;
	}
	return 0;
}

static bool all_finite(const double *numbers, uint64_t count)
{
	bool finite = true;

	for (uint64_t i = 0; i < count; i++)
		finite &= isfinite(numbers[i]) != 0;
	return finite;
}

int bd_item_look_sign(struct bd_item *item, const struct bd_look *look, struct bd_error *err)
{
	struct bd_entry *e = item->entry;
	const struct bd_tensor *t = e->tensor;
	size_t row_size = e->cols * (bd_dtype_bits(t->dtype) / 8);
	size_t base_row = e->cols * (bd_dtype_bits(e->base_dtype) / 8);
	uint64_t chunk = BD_IMPORT_CHUNK / (row_size > base_row ? row_size : base_row);
	XXH3_state_t *hash = XXH3_createState();
	char *fine = NULL, *base = NULL, *out = NULL;
	double *row_abs = NULL, *col_abs = NULL;
	float *col_part = NULL, most = 0;
	bool same = e->base_dtype == t->dtype;
	struct bd_sign_stats stats;
	int rc = 0;

	chunk = chunk ? chunk : 1;
	chunk = chunk < e->rows ? chunk : e->rows;
	fine = malloc(chunk * row_size);
	base = malloc(chunk * base_row > BD_IMPORT_CHUNK ? chunk * base_row : BD_IMPORT_CHUNK);
	out = malloc(row_size);
	row_abs = malloc(e->rows * sizeof(*row_abs));
	col_abs = calloc(e->cols, sizeof(*col_abs));
	col_part = malloc(e->cols * sizeof(*col_part));
	item->bits = calloc(1, bd_manifest_plane_bytes(1, e->rows * e->cols) + BD_SIGN_SLACK);
	item->scales = malloc((e->rows + e->cols) * sizeof(*item->scales));
	if (!hash || !fine || !base || !out || !row_abs || !col_abs || !col_part || !item->bits ||
	    !item->scales) {
		rc = bd_item_out_of_memory(item, err);
		goto out;
	}
	XXH3_128bits_reset(hash);
	for (uint64_t i = 0; i < e->rows; i += chunk) {
		uint64_t n = e->rows - i < chunk ? e->rows - i : chunk;

		rc = bd_item_read_rows(item, i, n, fine, base, err);
		if (rc == 0 && stopped(look))
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc < 0)
			goto out;
		XXH3_128bits_update(hash, base, n * base_row);
		same = same && memcmp(fine, base, n * row_size) == 0;
		most = fmaxf(most, largest(base, e->base_dtype, n * e->cols));
		/* Sums in binary32 over one chunk only, so that tall matrices lose nothing. */
		memset(col_part, 0, e->cols * sizeof(*col_part));
		stats = (struct bd_sign_stats){ .row_abs = row_abs + i, .col_abs = col_part };
		bd_sign_extract(fine, t->dtype, base, e->base_dtype, n, e->cols, item->bits,
				i * e->cols, &stats);
		for (uint64_t j = 0; j < e->cols; j++)
			col_abs[j] += col_part[j];
		/* A number that is not finite makes the sum of its row such a one. */
		if (!all_finite(row_abs + i, n))
			item->special += bd_dtype_count_special(t->dtype, fine, n * row_size);
		atomic_fetch_add(look->done, n * row_size);
	}
	rc = hash_base(item, look, hash, e->rows * base_row, base, err);
	if (rc < 0)
		goto out;
	bd_hash_text(XXH3_128bits_digest(hash), e->base_xxh128);
	item->same = same;
	if (!same)
		rc = bd_item_make_scales(item, look, row_abs, col_abs, fine, base, err);
	if (rc == 0 && item->usable)
		rc = measure(item, most, fine, base, out, err);
out:
	XXH3_freeState(hash);
	free(fine);
	free(base);
	free(out);
	free(row_abs);
	free(col_abs);
	free(col_part);
	return rc;
}

int bd_item_look_same(struct bd_item *item, const struct bd_look *look, struct bd_error *err)
{
	const struct bd_tensor *t = item->entry->tensor, *b = item->base->tensor;
	uint64_t size = t->dims ? t->size / (t->shape[0] ? t->shape[0] : 1) * item->head : t->size;
	XXH3_state_t *hash = XXH3_createState();
	char *fine = malloc(BD_IMPORT_CHUNK), *base = malloc(BD_IMPORT_CHUNK);
	int rc = 0;

	if (!hash || !fine || !base) {
		rc = bd_item_out_of_memory(item, err);
		goto out;
	}
	XXH3_128bits_reset(hash);
	item->same = true;
	for (uint64_t at = 0; at < size; at += BD_IMPORT_CHUNK) {
		size_t n = size - at < BD_IMPORT_CHUNK ? (size_t)(size - at) : BD_IMPORT_CHUNK;

		rc = bd_file_read(item->file, fine, n, t->offset + at, err);
		if (rc == 0)
			rc = bd_file_read(item->base->shard->file, base, n, b->offset + at, err);
		if (rc == 0 && stopped(look))
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc < 0)
			goto out;
		if (memcmp(fine, base, n) != 0) {
			item->same = false;
			goto out;
		}
		item->special += bd_dtype_count_special(t->dtype, fine, n);
		XXH3_128bits_update(hash, base, n);
	}
	rc = hash_base(item, look, hash, size, base, err);
	if (rc == 0)
		bd_hash_text(XXH3_128bits_digest(hash), item->entry->base_xxh128);
out:
	XXH3_freeState(hash);
	free(fine);
	free(base);
	return rc;
}

void bd_item_drop(struct bd_item *item)
{
	free(item->bits);
	free(item->scales);
	free(item->coded);
	item->bits = item->coded = NULL;
	item->scales = NULL;
}
