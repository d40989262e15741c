/* error.c: the error object, see error.h. */
#include "error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int bd_error_set(struct bd_error *err, int code, const char *format, ...)
{
	va_list args;

	if (!err)
		return code;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	return code;
}

int bd_error_prefix(struct bd_error *err, const char *format, ...)
{
	char old[sizeof(err->text)];
	va_list args;
	int n;

	if (!err)
		return -EIO;
	memcpy(old, err->text, sizeof(old));
	va_start(args, format);
	n = vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	if (n >= 0 && (size_t)n < sizeof(err->text))
		snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", old);
	return err->code;
}
