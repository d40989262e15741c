/* SPDX-License-Identifier: Apache-2.0 */
/* error.c: the error object, see error.h. */
#include "error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Names of files and tensors come from strangers; a terminal must not obey them. */
static void clean(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7F)
			*text = '?';
}

int bd_error_set(struct bd_error *err, int code, const char *format, ...)
{
	va_list args;

	if (!err)
		return code;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	clean(err->text);
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
	clean(prefix);
	memcpy(old, err->text, sizeof(old));
	n = strlen(prefix);
	memcpy(err->text, prefix, n + 1);
	strncat(err->text, ": ", sizeof(err->text) - 1 - n);
	n = strlen(err->text);
	strncat(err->text, old, sizeof(err->text) - 1 - n);
	return err->code;
}
