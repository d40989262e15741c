/* SPDX-License-Identifier: Apache-2.0 */
/* utf8.c: decoding and encoding of UTF-8, see utf8.h. */
#include "utf8.h"

#include <string.h>

unsigned bd_utf8_decode(const char *text, size_t size, uint32_t *code)
{
	const unsigned char *p = (const unsigned char *)text;
	uint32_t c, least;
	unsigned length;

	if (size == 0)
		return 0;
	if (p[0] < 0x80) {
		*code = p[0];
		return 1;
	}
	if (p[0] >= 0xc2 && p[0] <= 0xdf) {
		length = 2;
		c = p[0] & 0x1f;
		least = 0x80;
	} else if ((p[0] & 0xf0) == 0xe0) {
		length = 3;
		c = p[0] & 0x0f;
		least = 0x800;
	} else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
		length = 4;
		c = p[0] & 0x07;
		least = 0x10000;
	} else {
		return 0;
	}
	if (size < length)
		return 0;
	for (unsigned i = 1; i < length; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if (c < least || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	*code = c;
	return length;
}

unsigned bd_utf8_encode(uint32_t code, char *dst)
{
	if (code < 0x80) {
		dst[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		dst[0] = (char)(0xc0 | code >> 6);
		dst[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000) {
		dst[0] = (char)(0xe0 | code >> 12);
		dst[1] = (char)(0x80 | (code >> 6 & 0x3f));
		dst[2] = (char)(0x80 | (code & 0x3f));
		return 3;
	}
	dst[0] = (char)(0xf0 | code >> 18);
	dst[1] = (char)(0x80 | (code >> 12 & 0x3f));
	dst[2] = (char)(0x80 | (code >> 6 & 0x3f));
	dst[3] = (char)(0x80 | (code & 0x3f));
	return 4;
}

unsigned bd_utf8_step(const char *text, size_t size, bool *plain)
{
	uint32_t code;
	unsigned length = bd_utf8_decode(text, size, &code);

	*plain = length > 0 && code >= 0x20 && (code < 0x7f || code > 0x9f);
	return length ? length : 1;
}

bool bd_utf8_is_plain(const char *text, size_t size)
{
	bool plain = true;

	for (size_t i = 0; i < size && plain;)
		i += bd_utf8_step(text + i, size - i, &plain);
	return plain;
}

void bd_utf8_make_plain(char *text)
{
	size_t left = strlen(text);
	char *to = text;
	bool plain;

	while (left > 0) {
		unsigned length = bd_utf8_step(text, left, &plain);

		if (plain) {
			memmove(to, text, length);
			to += length;
		} else {
			*to++ = '?';
		}
		text += length;
		left -= length;
	}
	*to = '\0';
}
