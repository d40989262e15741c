/* SPDX-License-Identifier: Apache-2.0 */
/* error.c: the error object, see error.h. */
#include "error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

int bd_error_set(struct bd_error *err, int code, const char *format, ...)
{
	va_list args;

	if (!err)
		return code;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	bd_utf8_make_plain(err->text);
	return code;
}

int bd_error_prefix(struct bd_error *err, const char *format, ...)
{
	char prefix[sizeof(err->text)], old[sizeof(err->text)];
	va_list args;
	size_t n;

	if (!err)
		return -EIO;
	va_start(args, format);
	vsnprintf(prefix, sizeof(prefix), format, args);
	va_end(args);
	bd_utf8_make_plain(prefix);
	memcpy(old, err->text, sizeof(old));
	n = strlen(prefix);
	memcpy(err->text, prefix, n + 1);
	strncat(err->text, ": ", sizeof(err->text) - 1 - n);
	n = strlen(err->text);
	strncat(err->text, old, sizeof(err->text) - 1 - n);
	return err->code;
}
