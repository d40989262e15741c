/* SPDX-License-Identifier: Apache-2.0 */
/* exact_coder.h: the entropy coder of exact deltas.
 *
 * It codes a plane, an array of units of one or two bytes, given the units of the base at the same
 * places. What is coded of a unit is the difference of two ordinals, since a fine-tune moves a weight
 * by a few steps; how many depends on the size of the step, so the exponent of the base's unit is the
 * context, and the frequencies of the differences in each context are the model, one for the plane.
 * Chunks of a plane are coded independently by 32 interleaved rANS states.
 *
 * Integers only: the same bytes on every machine. exact_decode.c is the definition, exact_avx2.c and
 * exact_avx512.c give the same bytes and refuse the same chunks. Everything here is reentrant. */
#ifndef BD_EXACT_CODER_H
#define BD_EXACT_CODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sign.h"

#define BD_EXACT_CONTEXTS 32
#define BD_EXACT_SYMBOLS 257 /* 256 and the escape */
#define BD_EXACT_ESCAPE 256
#define BD_EXACT_BITS 10     /* frequencies of a context add up to 2^10 */
#define BD_EXACT_LANES 32

/* Where the context of a unit comes from. */
enum bd_exact_by {
	BD_EXACT_BY_BASE,  /* the base's unit: (unit >> shift & mask) - offset, clamped */
	BD_EXACT_BY_ROW,   /* the same with an offset for each row */
	BD_EXACT_BY_PLACE, /* the unit's index modulo the number of contexts, 1, 2, 4 or 8 */
};

/* How a plane is coded. */
struct bd_exact_model {
	uint8_t unit;    /* bytes: 1 or 2 */
	bool ordered;    /* units have a sign and a magnitude, as floating-point numbers do */
	uint8_t by;      /* enum bd_exact_by */
	uint8_t contexts;
	uint8_t shift;
	uint16_t mask, offset;
	uint64_t cols;             /* by row: units of a row */
	const uint8_t *row_offset; /* by row: borrowed */
	uint16_t frequency[BD_EXACT_CONTEXTS][BD_EXACT_SYMBOLS];
};

/* Consecutive units of a plane. */
struct bd_exact_run {
	const void *base; /* `count` units; NULL: all are 0 */
	uint64_t first;   /* index of the first one, a multiple of BD_EXACT_LANES */
	size_t count;
};

/* ---- Models ---- */

/* What a plane looks like: counts of symbols by context, before these are merged to few. */
struct bd_exact_stats;

/* For planes of `unit` bytes, `by` and `ordered` as in the model. shift and mask give a context by base
 * its exponent, and for one by row twice that (a bit of the mantissa more). `cols` and `row_class`, by row:
 * of each row the logarithm of its mean change in halves, bd_exact_row_class; borrowed. NULL: out of memory. */
struct bd_exact_stats *bd_exact_stats_new(const struct bd_exact_model *kind, const uint8_t *row_class);
void bd_exact_stats_free(struct bd_exact_stats *stats); /* NULL allowed */
void bd_exact_stats_add(struct bd_exact_stats *stats, const struct bd_exact_run *run, const void *fine);
/* The class of a row whose changes have this mean: round(2 log2(mean)) + 254, within 0 .. 255. */
uint8_t bd_exact_row_class(double mean);

/* Choose the contexts and their frequencies. `sampled`: units that were not added may hold what was not seen.
 * By row, row_offset (as many bytes as rows; may be the array of classes itself) is filled in. Returns the bits
 * that the symbols and escapes of the units that were added take, without the table and BD_EXACT_FRAME for
 * each chunk; with these the sum is right within 1 %. Negative: out of memory. Infinite:
 * the rows are such that coding by row makes no sense. */
#define BD_EXACT_FRAME (8 * (4 + 3 * BD_EXACT_LANES)) /* bits; a state holds about 8 of the symbols' own 32 */
double bd_exact_fit(struct bd_exact_stats *stats, bool sampled, struct bd_exact_model *model,
		    uint8_t *row_offset, uint64_t rows);

/* The model without row offsets as bytes. At most BD_EXACT_TABLE_BOUND; returns their number. */
#define BD_EXACT_TABLE_BOUND (16 + 2 * BD_EXACT_CONTEXTS * BD_EXACT_SYMBOLS)
size_t bd_exact_table_print(const struct bd_exact_model *model, uint8_t *out);
/* The reverse: leaves cols and row_offset alone. Returns the number of bytes read, 0 where they are no
 * model. */
size_t bd_exact_table_parse(struct bd_exact_model *model, const uint8_t *in, size_t size);

/* ---- Coding ---- */

struct bd_exact_encoder;
struct bd_exact_encoder *bd_exact_encoder_new(const struct bd_exact_model *model, size_t max_count);
void bd_exact_encoder_free(struct bd_exact_encoder *encoder); /* NULL allowed */
/* Most bytes of a coded chunk of `count` units. */
size_t bd_exact_bound(size_t count);
/* Code a chunk of at most max_count units; returns its bytes. Each encoder serves one thread. */
size_t bd_exact_encode(struct bd_exact_encoder *encoder, const struct bd_exact_run *run, const void *fine,
		       uint8_t *out);

/* ---- Decoding ---- */

/* Tables to look up, 4 KiB for each context; any number of threads may use one. Borrows the model. */
struct bd_exact_decoder;
struct bd_exact_decoder *bd_exact_decoder_new(const struct bd_exact_model *model);
void bd_exact_decoder_free(struct bd_exact_decoder *decoder); /* NULL allowed */
size_t bd_exact_decoder_size(const struct bd_exact_decoder *decoder);

/* Decode the first `wanted` units of a chunk of run->count units into `out`, which has room for wanted
 * rounded up to BD_EXACT_LANES (but for no more than run->count) and does not overlap the base. False where the
 * chunk is damaged as far as can be told; then nothing of `out` may be used. CPU must be supported. */
bool bd_exact_decode_at(enum bd_cpu cpu, const struct bd_exact_decoder *decoder,
			const struct bd_exact_run *run, const uint8_t *stored, size_t size, size_t wanted,
			void *out);

#endif
