/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.h: the element types of safetensors, their names and sizes. */
#ifndef BD_DTYPE_H
#define BD_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bd_dtype {
	BD_BOOL, BD_F4, BD_F6_E2M3, BD_F6_E3M2, BD_U8, BD_I8,
	BD_F8_E5M2, BD_F8_E4M3, BD_F8_E8M0, BD_F8_E4M3FNUZ, BD_F8_E5M2FNUZ,
	BD_I16, BD_U16, BD_F16, BD_BF16, BD_I32, BD_U32, BD_F32, BD_C64, BD_F64, BD_I64, BD_U64,
	BD_DTYPES /* their number; also "no such type" */
};

/* The type that safetensors spells NAME (exactly, in upper case), or BD_DTYPES. */
enum bd_dtype bd_dtype_parse(const char *name, size_t length);
const char *bd_dtype_name(enum bd_dtype dtype);
/* Size in bits, since three types take less than a byte. */
unsigned bd_dtype_bits(enum bd_dtype dtype);
/* True for the types that sign encoding rebuilds: BF16, F16 and F32. */
bool bd_dtype_is_weight(enum bd_dtype dtype);

/* How many of the numbers in `size` bytes are infinite or not a number (of complex ones, each part counts). 0 for
 * types that have no such numbers, and for F8_E8M0 and the FNUZ types, whose one NaN is not looked for. */
uint64_t bd_dtype_count_special(enum bd_dtype dtype, const void *data, size_t size);

#endif
