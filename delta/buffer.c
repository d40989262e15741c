/* SPDX-License-Identifier: Apache-2.0 */
/* buffer.c: the growing buffer, see buffer.h. */
#include "buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` bytes and a NUL. */
static bool reserve(struct bd_buffer *b, size_t more)
{
	size_t capacity = b->capacity ? b->capacity : 64;
	char *data;

	if (b->failed)
		return false;
	if (b->size + more < b->capacity)
		return true;
	/* Far below SIZE_MAX / 2, so that doubling cannot wrap. */
	if (more > SIZE_MAX / 4 || b->size > SIZE_MAX / 4) {
		b->failed = true;
		return false;
	}
	while (capacity <= b->size + more)
		capacity *= 2;
	data = realloc(b->data, capacity);
	if (!data) {
		b->failed = true;
		return false;
	}
	b->data = data;
	b->capacity = capacity;
	return true;
}

void bd_buffer_append(struct bd_buffer *b, const void *data, size_t size)
{
	if (!reserve(b, size))
		return;
	if (size)
		memcpy(b->data + b->size, data, size);
	b->size += size;
	b->data[b->size] = '\0';
}

void bd_buffer_printf(struct bd_buffer *b, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (n < 0) {
		b->failed = true;
		return;
	}
	if (!reserve(b, (size_t)n))
		return;
	va_start(args, format);
	vsnprintf(b->data + b->size, (size_t)n + 1, format, args);
	va_end(args);
	b->size += (size_t)n;
}

void bd_buffer_json_string(struct bd_buffer *b, const char *text, size_t length)
{
	size_t kept = 0;

	bd_buffer_append(b, "\"", 1);
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= 0x20 && c != 0x7f && c != '"' && c != '\\')
			continue;
		bd_buffer_append(b, text + kept, i - kept);
		kept = i + 1;
		if (c == '"' || c == '\\')
			bd_buffer_printf(b, "\\%c", c);
		else
			bd_buffer_printf(b, "\\u%04x", c);
	}
	bd_buffer_append(b, text + kept, length - kept);
	bd_buffer_append(b, "\"", 1);
}

void bd_buffer_free(struct bd_buffer *b)
{
	free(b->data);
	memset(b, 0, sizeof(*b));
}
