/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.c: table of element types, see dtype.h. */
#include "dtype.h"

#include <string.h>

static const struct {
	const char *name;
	unsigned bits;
} types[BD_DTYPES] = {
	[BD_BOOL] = { "BOOL", 8 },
	[BD_F4] = { "F4", 4 },
	[BD_F6_E2M3] = { "F6_E2M3", 6 },
	[BD_F6_E3M2] = { "F6_E3M2", 6 },
	[BD_U8] = { "U8", 8 },
	[BD_I8] = { "I8", 8 },
	[BD_F8_E5M2] = { "F8_E5M2", 8 },
	[BD_F8_E4M3] = { "F8_E4M3", 8 },
	[BD_F8_E8M0] = { "F8_E8M0", 8 },
	[BD_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8 },
	[BD_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8 },
	[BD_I16] = { "I16", 16 },
	[BD_U16] = { "U16", 16 },
	[BD_F16] = { "F16", 16 },
	[BD_BF16] = { "BF16", 16 },
	[BD_I32] = { "I32", 32 },
	[BD_U32] = { "U32", 32 },
	[BD_F32] = { "F32", 32 },
	[BD_C64] = { "C64", 64 },
	[BD_F64] = { "F64", 64 },
	[BD_I64] = { "I64", 64 },
	[BD_U64] = { "U64", 64 },
};

enum bd_dtype bd_dtype_parse(const char *name, size_t length)
{
	for (int i = 0; i < BD_DTYPES; i++)
		if (strlen(types[i].name) == length && memcmp(types[i].name, name, length) == 0)
			return (enum bd_dtype)i;
	return BD_DTYPES;
}

const char *bd_dtype_name(enum bd_dtype dtype)
{
	return types[dtype].name;
}

unsigned bd_dtype_bits(enum bd_dtype dtype)
{
	return types[dtype].bits;
}

bool bd_dtype_is_weight(enum bd_dtype dtype)
{
	return dtype == BD_BF16 || dtype == BD_F16 || dtype == BD_F32;
}
