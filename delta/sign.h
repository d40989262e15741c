/* SPDX-License-Identifier: Apache-2.0 */
/* sign.h: the arithmetic of sign encoding, as the file format promises it (FORMAT.md section 4).
 *
 *     acc = float(base)
 *     for each plane:  acc = acc + (bit ? +(row * col) : -(row * col))
 *     out = round_to_nearest_even_to_dtype(acc)          every NaN becomes the canonical one
 *
 * Each multiplication, addition and rounding is a separate IEEE-754 binary32 operation with
 * subnormals kept. sign.c holds the plain C definition; sign_avx2.c and sign_avx512.c give the same
 * bits and are chosen when the process starts to use them. Everything here is reentrant. */
#ifndef BD_SIGN_H
#define BD_SIGN_H

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

/* Most planes that a tensor may have (FORMAT.md). */
#define BD_MAX_PLANES 8
/* Bytes that the vector code may read (never write) past the end of `bits`: callers pad. */
#define BD_SIGN_SLACK 64

enum bd_cpu { BD_CPU_SCALAR, BD_CPU_AVX2, BD_CPU_AVX512, BD_CPU_AVX512_BF16, BD_CPUS };

/* Best level that this processor and this build support; the environment variable
 * BITDELTA_CPU=scalar|avx2|avx512|avx512bf16 lowers it (for tests and for comparing). */
enum bd_cpu bd_cpu_best(void);
const char *bd_cpu_name(enum bd_cpu cpu);

/* A run of consecutive elements of one tensor in row-major order. */
struct bd_sign_run {
	uint64_t cols;    /* columns of the tensor, > 0 */
	uint64_t first;   /* column of the first element, < cols */
	uint64_t count;   /* elements; may span any number of rows */
	unsigned planes;  /* 1 .. BD_MAX_PLANES */
	enum bd_dtype base_dtype, out_dtype; /* BF16, F16 or F32 each */
	/* Per plane: */
	const uint8_t *bits[BD_MAX_PLANES];  /* bit k of byte k/8 (least significant first); readable
					      * for BD_SIGN_SLACK bytes past the last one needed */
	uint64_t bit[BD_MAX_PLANES];         /* index in bits of the first element's bit */
	const float *row[BD_MAX_PLANES];     /* scale of the row of the first element, then onwards */
	const float *col[BD_MAX_PLANES];     /* all `cols` column scales */
};

/* Rebuild run->count elements from base into out. Any alignment. out == base is allowed where the
 * two dtypes have the same size; otherwise they must not overlap. */
void bd_sign_rebuild(const struct bd_sign_run *run, void *out, const void *base);
/* The same at a given level (which must be supported). */
void bd_sign_rebuild_at(enum bd_cpu cpu, const struct bd_sign_run *run, void *out,
			const void *base);

/* What import needs to know of whole rows of fine - base, accumulated over calls. */
struct bd_sign_stats {
	double *row_abs; /* [rows]: sum over columns of |d|; written */
	float *col_abs;  /* [cols]: sum over the rows of this call of |d|; added to */
};

/* For `rows` whole rows of `cols` elements: d = float(fine) - float(base) in binary32; write the
 * sign bits (1 where d > 0) starting at bit index `bit` of `bits` (bits before it are kept, and
 * the caller zeroed the rest), and add to the statistics. Non-finite d makes row_abs non-finite.
 * Every level sums in the same order (16 lanes per row, then pairwise), so that imports are the
 * same on every machine. */
void bd_sign_extract(const void *fine, enum bd_dtype fine_dtype, const void *base,
		     enum bd_dtype base_dtype, uint64_t rows, uint64_t cols, uint8_t *bits,
		     uint64_t bit, struct bd_sign_stats *stats);
void bd_sign_extract_at(enum bd_cpu cpu, const void *fine, enum bd_dtype fine_dtype,
			const void *base, enum bd_dtype base_dtype, uint64_t rows, uint64_t cols,
			uint8_t *bits, uint64_t bit, struct bd_sign_stats *stats);

/* Scalar conversions, the definition of "float()" and "round" above. */
float bd_bf16_to_float(uint16_t h);
float bd_f16_to_float(uint16_t h);
uint16_t bd_bf16_from_float(float f);
uint16_t bd_f16_from_float(float f);
/* Element `index` of an array of BF16, F16 or F32 at any alignment. */
float bd_sign_element(const void *data, uint64_t index, enum bd_dtype dtype);

#endif
