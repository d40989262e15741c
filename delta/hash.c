/* SPDX-License-Identifier: Apache-2.0 */
/* hash.c: hashes as text, see hash.h. */
#include "hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool is_hex(const char *text, size_t digits)
{
	return strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

void bd_hash_text(XXH128_hash_t hash, char text[BD_HASH])
{
	snprintf(text, BD_HASH, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
		 (uint64_t)hash.low64);
}

void bd_hash_data(const void *data, size_t size, char text[BD_HASH])
{
	bd_hash_text(XXH3_128bits(data, size), text);
}

void bd_hash64_text(uint64_t hash, char text[17])
{
	snprintf(text, 17, "%016" PRIx64, hash);
}

bool bd_hash64_parse(const char *text, uint64_t *hash)
{
	return is_hex(text, 16) && sscanf(text, "%16" SCNx64, hash) == 1;
}

bool bd_hash_is_text(const char *text)
{
	return is_hex(text, 32);
}
