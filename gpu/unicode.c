/* SPDX-License-Identifier: Apache-2.0 */
/* unicode.c: characters and their properties, as the tokenizers need them; see tokenizer_impl.h.
 *
 * The properties and decompositions are those of utf8proc. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "tokenizer_impl.h"
#include "utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define MAX_DECOMPOSITION 32       /* characters that one character decomposes to; Unicode has 18 */

/* The length of the longest part of text that begins like a character but is none: what one U+FFFD
 * stands for (Unicode, chapter 3.9, "substitution of maximal subparts"). */
static size_t broken_length(const unsigned char *text, size_t size)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t length, i;

	if (text[0] >= 0xc2 && text[0] <= 0xdf)
		length = 2;
	else if (text[0] >= 0xe0 && text[0] <= 0xef)
		length = 3;
	else if (text[0] >= 0xf0 && text[0] <= 0xf4)
		length = 4;
	else
		return 1;
	switch (text[0]) {
	case 0xe0: low = 0xa0; break;
	case 0xed: high = 0x9f; break;
	case 0xf0: low = 0x90; break;
	case 0xf4: high = 0x8f; break;
	}
	for (i = 1; i < length && i < size; i++) {
		if (text[i] < low || text[i] > high)
			break;
		low = 0x80;
		high = 0xbf;
	}
	return i;
}

void bdx_unicode_append(struct bd_buffer *b, const char *bytes, size_t size)
{
	size_t done = 0, at = 0;
	uint32_t code;

	bd_buffer_append(b, "", 0);
	while (at < size) {
		unsigned length = bd_utf8_decode(bytes + at, size - at, &code);

		if (length) {
			at += length;
			continue;
		}
		bd_buffer_append(b, bytes + done, at - done);
		bd_buffer_append(b, REPLACEMENT, 3);
		at += broken_length((const unsigned char *)bytes + at, size - at);
		done = at;
	}
	if (at > done)
		bd_buffer_append(b, bytes + done, at - done);
}

void bdx_unicode_append_code(struct bd_buffer *b, uint32_t code)
{
	char bytes[4];

	bd_buffer_append(b, bytes, bd_utf8_encode(code, bytes));
}

unsigned bdx_unicode_next(const char *text, uint32_t *code)
{
	const unsigned char *p = (const unsigned char *)text;

	if (p[0] < 0x80) {
		*code = p[0];
		return 1;
	}
	if (p[0] < 0xe0) {
		*code = (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
		return 2;
	}
	if (p[0] < 0xf0) {
		*code = (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 |
			(p[2] & 0x3f);
		return 3;
	}
	*code = (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 |
		(uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
	return 4;
}

size_t bdx_unicode_previous(const char *text, size_t end)
{
	do {
		end--;
	} while (((unsigned char)text[end] & 0xc0) == 0x80);
	return end;
}

bool bdx_unicode_is_space(uint32_t code)
{
	switch (code) {
	case 0x09 ... 0x0d:
	case 0x20:
	case 0x85:
	case 0xa0:
	case 0x1680:
	case 0x2000 ... 0x200a:
	case 0x2028:
	case 0x2029:
	case 0x202f:
	case 0x205f:
	case 0x3000:
		return true;
	}
	return false;
}

static bool category_in(uint32_t code, utf8proc_category_t from, utf8proc_category_t to)
{
	utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);

	return category >= from && category <= to;
}

bool bdx_unicode_is_number(uint32_t code)
{
	return category_in(code, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}

bool bdx_unicode_is_mark(uint32_t code)
{
	return category_in(code, UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME);
}

bool bdx_unicode_is_punctuation(uint32_t code)
{
	if (code < 0x80)
		return code > 0x20 && code < 0x7f && !(code >= '0' && code <= '9') &&
		       !((code | 0x20) >= 'a' && (code | 0x20) <= 'z');
	return category_in(code, UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO);
}

/* Printable bytes of Latin-1 stand for themselves, the 68 others for U+0100 and on, in order. */
uint32_t bdx_unicode_byte_char(unsigned char byte)
{
	if (byte <= 0x20)
		return 0x100u + byte;
	if (byte >= 0x7f && byte <= 0xa0)
		return 0x100u + byte - 0x7f + 0x21;
	return byte == 0xad ? 0x143 : byte;
}

int bdx_unicode_char_byte(uint32_t code)
{
	if (code == 0x143)
		return 0xad;
	if (code >= 0x121 && code <= 0x142)
		return (int)(code - 0x121 + 0x7f);
	if (code >= 0x100 && code <= 0x120)
		return (int)(code - 0x100);
	if (code > 0xff || bdx_unicode_byte_char((unsigned char)code) != code)
		return -1;
	return (int)code;
}

/* --- Normalization forms --- */

struct codes {
	utf8proc_int32_t *data;
	size_t count, capacity;
};

/* Sort marks by their combining class and keep the order within each: by counting, as hostile text
 * may have a million marks in a row. */
static void sort_marks(utf8proc_int32_t *marks, utf8proc_int32_t *copy, size_t count)
{
	size_t begin[257] = { 0 };

	memcpy(copy, marks, count * sizeof(*marks));
	for (size_t i = 0; i < count; i++)
		begin[utf8proc_get_property(copy[i])->combining_class + 1]++;
	for (size_t c = 0; c < 256; c++)
		begin[c + 1] += begin[c];
	for (size_t i = 0; i < count; i++)
		marks[begin[utf8proc_get_property(copy[i])->combining_class]++] = copy[i];
}

/* Canonical ordering (Unicode, definition D109). */
static int order_marks(struct codes *codes)
{
	utf8proc_int32_t *copy = NULL;
	size_t copied = 0;

	for (size_t i = 0; i < codes->count;) {
		utf8proc_propval_t class, last = 0;
		bool sorted = true;
		size_t end = i;

		for (; end < codes->count; end++) {
			class = utf8proc_get_property(codes->data[end])->combining_class;
			if (class == 0)
				break;
			sorted = sorted && class >= last;
			last = class;
		}
		if (!sorted) {
			if (end - i > copied) {
				free(copy);
				copied = 2 * (end - i);
				copy = malloc(copied * sizeof(*copy));
				if (!copy)
					return -ENOMEM;
			}
			sort_marks(codes->data + i, copy, end - i);
		}
		i = end + 1;
	}
	free(copy);
	return 0;
}

/* Text below this character is in the form already. */
static uint32_t plain_below(enum bdx_form form)
{
	switch (form) {
	case BDX_NFC: return 0x300;
	case BDX_NFD: return 0xc0;
	default: return 0xa0;
	}
}

int bdx_unicode_normalize(struct bd_buffer *b, const char *text, size_t size, enum bdx_form form)
{
	bool compose = form == BDX_NFC || form == BDX_NFKC;
	utf8proc_option_t options = UTF8PROC_STABLE;
	struct codes codes = { 0 };
	utf8proc_ssize_t count;
	uint32_t code, largest = 0;
	int rc = -ENOMEM;

	for (size_t i = 0; i < size; i += bdx_unicode_next(text + i, &code))
		codes.capacity++;
	for (size_t i = 0; i < size;) {
		i += bdx_unicode_next(text + i, &code);
		if (code > largest)
			largest = code;
	}
	if (largest < plain_below(form)) {
		bd_buffer_append(b, text, size);
		return b->failed ? -ENOMEM : 0;
	}
	options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
	if (form == BDX_NFKC || form == BDX_NFKD)
		options |= UTF8PROC_COMPAT;
	codes.capacity += MAX_DECOMPOSITION;
	codes.data = malloc(codes.capacity * sizeof(*codes.data));
	if (!codes.data)
		goto out;
	for (size_t i = 0; i < size;) {
		utf8proc_int32_t parts[MAX_DECOMPOSITION];
		int boundary = 0;

		i += bdx_unicode_next(text + i, &code);
		count = utf8proc_decompose_char((utf8proc_int32_t)code, parts, MAX_DECOMPOSITION,
						options, &boundary);
		if (count < 0 || count > MAX_DECOMPOSITION) {
			parts[0] = (utf8proc_int32_t)code;
			count = 1;
		}
		for (utf8proc_ssize_t k = 0; k < count; k++) {
			utf8proc_int32_t *data = bdx_grow(codes.data, codes.count, &codes.capacity,
							  sizeof(*codes.data));

			if (!data)
				goto out;
			codes.data = data;
			codes.data[codes.count++] = parts[k];
		}
	}
	rc = order_marks(&codes);
	if (rc)
		goto out;
	count = (utf8proc_ssize_t)codes.count;
	if (compose)
		count = utf8proc_normalize_utf32(codes.data, count, options);
	for (utf8proc_ssize_t i = 0; i < count; i++)
		bdx_unicode_append_code(b, (uint32_t)codes.data[i]);
	rc = b->failed ? -ENOMEM : 0;
out:
	free(codes.data);
	return rc;
}

void bdx_unicode_lower(struct bd_buffer *b, const char *text, size_t size)
{
	uint32_t code;

	for (size_t i = 0; i < size;) {
		i += bdx_unicode_next(text + i, &code);
		if (code == 0x130) /* the one letter whose small form is two characters */
			bd_buffer_append(b, "i\xcc\x87", 3);
		else
			bdx_unicode_append_code(
				b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)code));
	}
}
