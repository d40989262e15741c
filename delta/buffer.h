/* SPDX-License-Identifier: Apache-2.0 */
/* buffer.h: bytes that grow, for building headers and JSON documents.
 *
 *     struct bd_buffer b = { 0 };
 *     bd_buffer_printf(&b, "{\"rows\":%u,\"name\":", rows);
 *     bd_buffer_json_string(&b, name, strlen(name));
 *     bd_buffer_append(&b, "}", 1);
 *     if (b.failed) ... -ENOMEM
 *
 * Failure is looked at once, at the end: after the first failed allocation everything later is
 * dropped. One buffer belongs to one thread at a time. */
#ifndef BD_BUFFER_H
#define BD_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

struct bd_buffer {
	char *data;            /* malloced; a NUL byte follows data[size - 1]; NULL while empty */
	size_t size, capacity; /* size does not count that NUL */
	bool failed;           /* out of memory: data is incomplete */
};

void bd_buffer_append(struct bd_buffer *b, const void *data, size_t size);
void bd_buffer_printf(struct bd_buffer *b, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Append TEXT (valid UTF-8) as a JSON string with its quotes; control characters, quotes and
 * backslashes are escaped, everything else is kept as it is. */
void bd_buffer_json_string(struct bd_buffer *b, const char *text, size_t length);
/* Free the bytes and make the buffer empty and usable again. */
void bd_buffer_free(struct bd_buffer *b);

#endif
