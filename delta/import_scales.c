/* SPDX-License-Identifier: Apache-2.0 */
/* import_scales.c: the closed-form scales of one tensor. See import_impl.h.
 *
 * They are means of |d|, d = fine - base, times a factor that follows from the change. With
 * u = |d| / (row * col), the variance of u divided by the square of its mean is
 *
 *     0              where d is plus or minus row x column, as an export of signs has it: factor 1
 *     0.40 .. 0.62   where training made d (pi/2 - 1 = 0.571 is that of normal numbers): factor 1.4
 *
 * and between them the factor grows in proportion. Where |d| is not much more than a unit in the last
 * place of the fine-tune's number (0.3 % of the weight is less than one in BF16), rounding spoils u, and
 * makes the means of |d| too small or too large. So only elements that are small enough to be exact
 * count, and where they are few:
 *
 *   - the factor is multiplied by the mean of u, which is what rounding took from the means of |d|;
 *   - scales of a change that seems to be row x column are fitted by least squares instead, each
 *     element weighted by how exact it is. The smallest weights of a row tell its scale to some 0.3 %. */
#include "import_impl.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sign.h"

#define SAMPLED 65536      /* elements on which u is looked at, in ... */
#define SAMPLED_ROWS 16    /* ... at least so many rows */
#define SAMPLED_LEAST 64   /* elements that count and say enough ... */
#define SAMPLED_MORE 16    /* ... else so many times the rows are looked at */
#define NEARLY_ALL 0.9     /* of the elements are exact: then the means are, too */
#define ROUNDING 0.125     /* most half units in the last place, in row * col, of an element that counts */
#define SPREAD_PLAIN 0.02  /* of u: up to this it is rounding alone */
#define SPREAD_TRAINED 0.4 /* from this on it is training */
#define SPREAD_FITTED 0.35 /* below this a fit may show that it is rounding */
#define FIT_ROUNDS 4
#define FIT_EXACT 64.0     /* elements more exact than row * col / 64 weigh alike */

/* A tensor at work: its rows are read into `fine` and `base`, which have room for one. */
struct work {
	const struct bd_item *item;
	const struct bd_look *look;
	char *fine, *base;
	double *row, *col;              /* scales without the factor */
	double *size, *weight;          /* [cols] of one row: |d|, exactness */
	double *numerator, *denominator; /* [cols] */
};

/* The half of a unit in the last place of a number of that type. */
static double half_unit(float value, enum bd_dtype dtype)
{
	float power, least = dtype == BD_F16 ? 0x1p-14f : 0x1p-126f; /* of normal numbers */
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	bits &= 0x7F800000;
	memcpy(&power, &bits, sizeof(power));
	power = power > least ? power : least;
	return (double)power * (dtype == BD_F32 ? 0x1p-24 : dtype == BD_F16 ? 0x1p-11 : 0x1p-8);
}

/* Means of |d| from their sums. */
static void take_means(struct work *k, const double *row_abs, const double *col_abs)
{
	const struct bd_entry *e = k->item->entry;
	double total = 0, mean;

	for (uint64_t i = 0; i < e->rows; i++)
		total += row_abs[i];
	mean = total / ((double)e->rows * (double)e->cols);
	for (uint64_t i = 0; i < e->rows; i++)
		k->row[i] = k->look->scale == BD_SCALE_TENSOR ? mean : row_abs[i] / (double)e->cols;
	for (uint64_t j = 0; j < e->cols; j++)
		k->col[j] = k->look->scale == BD_SCALE_RANK1 && mean > 0 ?
				    col_abs[j] / (double)e->rows / mean : 1;
}

static int read_row(struct work *k, uint64_t i, struct bd_error *err)
{
	return bd_item_read_rows(k->item, i, 1, k->fine, k->base, err);
}

/* |d| of element j of the row that was read, and how far rounding may have moved it. */
static double change(const struct work *k, uint64_t j, double *rounding)
{
	const struct bd_entry *e = k->item->entry;
	float w = bd_sign_element(k->fine, j, e->tensor->dtype);

	*rounding = half_unit(w, e->tensor->dtype);
	return fabs((double)w - (double)bd_sign_element(k->base, j, e->base_dtype));
}

/* How u is distributed, on some rows. Without enough elements that count it is as training has it. */
struct spread {
	double variance; /* by the square of the mean */
	double mean;     /* 1 where nearly all elements count */
};

/* u of the elements that count, in `rows` of the tensor's. */
struct tally {
	double sum, squares, count, seen;
};

static int count_rows(struct work *k, uint64_t rows, struct tally *tally, struct bd_error *err)
{
	const struct bd_entry *e = k->item->entry;
	double rounding;

	rows = rows < e->rows ? rows : e->rows;
	*tally = (struct tally){ .seen = (double)rows * (double)e->cols };
	for (uint64_t r = 0; r < rows; r++) {
		uint64_t i = bd_item_sampled_row(e->rows, rows, r);
		int rc = read_row(k, i, err);

		if (rc < 0)
			return rc;
		for (uint64_t j = 0; j < e->cols; j++) {
			double scale = k->row[i] * k->col[j], d = change(k, j, &rounding);

			if (!(rounding <= ROUNDING * scale))
				continue;
			tally->sum += d / scale;
			tally->squares += d / scale * (d / scale);
			tally->count++;
		}
	}
	return 0;
}

static int find_spread(struct work *k, struct spread *spread, struct bd_error *err)
{
	uint64_t rows = SAMPLED / k->item->entry->cols;
	struct tally t;
	double mean;
	int rc;

	rows = rows > SAMPLED_ROWS ? rows : SAMPLED_ROWS;
	rc = count_rows(k, rows, &t, err);
	if (rc == 0 && t.count < SAMPLED_LEAST && rows < k->item->entry->rows)
		rc = count_rows(k, SAMPLED_MORE * rows, &t, err);
	*spread = (struct spread){ SPREAD_TRAINED, 1 };
	if (rc < 0 || t.count < SAMPLED_LEAST || !(t.sum > 0) || !isfinite(t.squares))
		return rc;
	mean = t.sum / t.count;
	spread->variance = fmax(t.squares / t.count / (mean * mean) - 1, 0);
	if (t.count < NEARLY_ALL * t.seen)
		spread->mean = mean;
	return 0;
}

/* One round of least squares: each row's scale from the columns', then the columns' from all rows. */
static int fit_round(struct work *k, struct bd_error *err)
{
	const struct bd_entry *e = k->item->entry;
	double total = 0, total_weight = 0;

	for (uint64_t j = 0; j < e->cols; j++)
		k->numerator[j] = k->denominator[j] = 0;
	for (uint64_t i = 0; i < e->rows; i++) {
		double above = 0, below = 0;
		int rc = read_row(k, i, err);

		if (rc == 0 && k->look->stop && *k->look->stop)
			rc = bd_error_set(err, -EINTR, "interrupted");
		if (rc < 0)
			return rc;
		for (uint64_t j = 0; j < e->cols; j++) {
			double rounding, c = k->col[j], part = k->row[i] * c / FIT_EXACT;

			k->size[j] = change(k, j, &rounding);
			k->weight[j] = 1 / (rounding * rounding + part * part);
			above += k->weight[j] * k->size[j] * c;
			below += k->weight[j] * c * c;
		}
		total += above;
		total_weight += below;
		if (k->look->scale != BD_SCALE_TENSOR && below > 0)
			k->row[i] = above / below;
		for (uint64_t j = 0; j < e->cols; j++) {
			k->numerator[j] += k->weight[j] * k->size[j] * k->row[i];
			k->denominator[j] += k->weight[j] * k->row[i] * k->row[i];
		}
	}
	for (uint64_t i = 0; k->look->scale == BD_SCALE_TENSOR && i < e->rows; i++)
		k->row[i] = total_weight > 0 ? total / total_weight : k->row[i];
	for (uint64_t j = 0; k->look->scale == BD_SCALE_RANK1 && j < e->cols; j++)
		if (k->denominator[j] > 0)
			k->col[j] = k->numerator[j] / k->denominator[j];
	return 0;
}

/* The factor that fits the change; where it is row x column already, these instead of the means, too. */
static int choose_factor(struct work *k, const double *row_abs, const double *col_abs, double *factor,
			 struct bd_error *err)
{
	struct spread means, fitted;
	double way;
	int rc = find_spread(k, &means, err);

	if (rc == 0 && means.variance < SPREAD_FITTED) {
		for (int round = 0; rc == 0 && round < FIT_ROUNDS; round++)
			rc = fit_round(k, err);
		if (rc == 0)
			rc = find_spread(k, &fitted, err);
		if (rc == 0 && fitted.variance <= SPREAD_PLAIN) {
			*factor = 1;
			return 0;
		}
		take_means(k, row_abs, col_abs);
	}
	way = fmin(fmax(means.variance - SPREAD_PLAIN, 0) / (SPREAD_TRAINED - SPREAD_PLAIN), 1);
	*factor = (way < 1 ? 1 + (BD_ATTENUATION - 1) * way : BD_ATTENUATION) * means.mean;
	return rc;
}

/* As they are stored. False where one is not finite. */
static bool store_scales(const struct work *k, double factor)
{
	const struct bd_entry *e = k->item->entry;
	float *to = k->item->scales;
	bool finite = true;

	for (uint64_t i = 0; i < e->rows; i++) {
		to[i] = (float)(factor * k->row[i]);
		finite &= isfinite(to[i]) != 0;
	}
	for (uint64_t j = 0; j < e->cols; j++) {
		to[e->rows + j] = (float)k->col[j];
		finite &= isfinite(to[e->rows + j]) != 0;
	}
	return finite;
}

int bd_item_make_scales(struct bd_item *item, const struct bd_look *look, const double *row_abs,
			const double *col_abs, char *fine, char *base, struct bd_error *err)
{
	uint64_t rows = item->entry->rows, cols = item->entry->cols;
	double *numbers = malloc((rows + 5 * cols) * sizeof(*numbers));
	struct work k = { .item = item, .look = look, .fine = fine, .base = base };
	int rc = 0;

	if (!numbers)
		return bd_item_out_of_memory(item, err);
	k.row = numbers;
	k.col = k.row + rows;
	k.size = k.col + cols;
	k.weight = k.size + cols;
	k.numerator = k.weight + cols;
	k.denominator = k.numerator + cols;
	take_means(&k, row_abs, col_abs);
	item->attenuation = look->attenuation;
	item->usable = store_scales(&k, 1);
	if (item->usable && look->attenuation == 0)
		rc = choose_factor(&k, row_abs, col_abs, &item->attenuation, err);
	item->usable = rc == 0 && item->usable && store_scales(&k, item->attenuation);
	free(numbers);
	return rc;
}
