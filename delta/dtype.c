/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.c: table of element types, see dtype.h. */
#include "dtype.h"

#include <string.h>

static const struct {
	const char *name;
	unsigned bits;
	uint64_t special; /* added to a number's bits without its sign, gives the sign to those that are infinite or
			   * not a number; 0: the type has none */
} types[BD_DTYPES] = {
	[BD_BOOL] = { "BOOL", 8 },
	[BD_F4] = { "F4", 4 },
	[BD_F6_E2M3] = { "F6_E2M3", 6 },
	[BD_F6_E3M2] = { "F6_E3M2", 6 },
	[BD_U8] = { "U8", 8 },
	[BD_I8] = { "I8", 8 },
	[BD_F8_E5M2] = { "F8_E5M2", 8, 0x04 },
	[BD_F8_E4M3] = { "F8_E4M3", 8, 0x01 },
	[BD_F8_E8M0] = { "F8_E8M0", 8 },
	[BD_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8 },
	[BD_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8 },
	[BD_I16] = { "I16", 16 },
	[BD_U16] = { "U16", 16 },
	[BD_F16] = { "F16", 16, 0x0400 },
	[BD_BF16] = { "BF16", 16, 0x0080 },
	[BD_I32] = { "I32", 32 },
	[BD_U32] = { "U32", 32 },
	[BD_F32] = { "F32", 32, 0x00800000 },
	[BD_C64] = { "C64", 64, 0x00800000 },
	[BD_F64] = { "F64", 64, 0x0010000000000000 },
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

#define LANES 32
#define LANES_PER_LOOK 64 /* so that most data is only looked at, a block at a time */

/* Count by the type's bits: loops of fixed length, which compilers turn into vector instructions, look whether a block
 * has any; few have. */
#define COUNT_SPECIAL(name, type)                                                                  \
	static bool is_special_##name(const char *p, type special)                                 \
	{                                                                                          \
		type u;                                                                            \
                                                                                                   \
		memcpy(&u, p, sizeof(u));                                                          \
		return (type)((u & (type)~top_##name) + special) & top_##name;                     \
	}                                                                                          \
                                                                                                   \
	static uint64_t count_##name(const char *p, size_t n, type special)                        \
	{                                                                                          \
		uint64_t count = 0;                                                                \
                                                                                                   \
		while (n > 0) {                                                                    \
			size_t block = n < LANES * LANES_PER_LOOK ? n : LANES * LANES_PER_LOOK;    \
			type any[LANES] = { 0 }, all = 0;                                          \
                                                                                                   \
			for (size_t i = 0; i + LANES <= block; i += LANES)                         \
				for (unsigned k = 0; k < LANES; k++) {                             \
					type u;                                                    \
                                                                                                   \
					memcpy(&u, p + (i + k) * sizeof(u), sizeof(u));            \
					any[k] |= (type)((u & (type)~top_##name) + special);       \
				}                                                                  \
			for (unsigned k = 0; k < LANES; k++)                                       \
				all |= any[k];                                                     \
			for (size_t i = all & top_##name ? 0 : block / LANES * LANES; i < block; i++) \
				count += is_special_##name(p + i * sizeof(type), special);         \
			p += block * sizeof(type);                                                 \
			n -= block;                                                                \
		}                                                                                  \
		return count;                                                                      \
	}

static const uint8_t top_8 = 0x80;
static const uint16_t top_16 = 0x8000;
static const uint32_t top_32 = 0x80000000;
static const uint64_t top_64 = 0x8000000000000000;

COUNT_SPECIAL(8, uint8_t)
COUNT_SPECIAL(16, uint16_t)
COUNT_SPECIAL(32, uint32_t)
COUNT_SPECIAL(64, uint64_t)

uint64_t bd_dtype_count_special(enum bd_dtype dtype, const void *data, size_t size)
{
	uint64_t special = types[dtype].special;

	if (!special)
		return 0;
	if (types[dtype].bits == 8)
		return count_8(data, size, (uint8_t)special);
	if (types[dtype].bits == 16)
		return count_16(data, size / 2, (uint16_t)special);
	if (dtype == BD_F64)
		return count_64(data, size / 8, special);
	return count_32(data, size / 4, (uint32_t)special);
}
