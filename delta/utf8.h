/* SPDX-License-Identifier: Apache-2.0 */
/* utf8.h: which bytes are UTF-8 text, and which text is fit to be a name. */
#ifndef BD_UTF8_H
#define BD_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The character that starts at text[0], from at most `size` bytes: its length (1 to 4) with its
 * code point in *code, or 0 where the bytes are not UTF-8 (RFC 3629: no overlong forms, no
 * surrogates, nothing above U+10FFFF, nothing cut short). */
unsigned bd_utf8_decode(const char *text, size_t size, uint32_t *code);

/* Write a code point (a valid one) as UTF-8 into dst, which has room for 4 bytes; its length. */
unsigned bd_utf8_encode(uint32_t code, char *dst);

/* True for text that can be shown on a terminal and kept as a C string: UTF-8 without control
 * characters (U+0000 to U+001F, U+007F to U+009F). The empty string is such a text. */
bool bd_utf8_is_plain(const char *text, size_t size);

/* Make text such a text, in place: what a terminal might obey, and what is not UTF-8, becomes '?'.
 * Names of files and tensors come from strangers, so all messages go through this. */
void bd_utf8_make_plain(char *text);

/* The length, at least 1, of what text[0] begins: a character that is plain, or what is not. size is
 * not 0. */
unsigned bd_utf8_step(const char *text, size_t size, bool *plain);

#endif
