/* SPDX-License-Identifier: Apache-2.0 */
/* hash.h: the hashes of the format (FORMAT.md section 1): XXH3, as hexadecimal text. */
#ifndef BD_HASH_H
#define BD_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <xxhash.h>

#define BD_HASH 33 /* 32 hexadecimal digits and a NUL */

/* Canonical (big-endian) digits of a 128-bit hash. */
void bd_hash_text(XXH128_hash_t hash, char text[BD_HASH]);
/* Hash of a buffer. */
void bd_hash_data(const void *data, size_t size, char text[BD_HASH]);
/* 16 digits <-> a 64-bit hash; parsing returns false unless it is exactly 16 lower-case digits. */
void bd_hash64_text(uint64_t hash, char text[17]);
bool bd_hash64_parse(const char *text, uint64_t *hash);
/* Exactly 32 lower-case hexadecimal digits? */
bool bd_hash_is_text(const char *text);

#endif
