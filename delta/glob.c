/* SPDX-License-Identifier: Apache-2.0 */
/* glob.c: see glob.h. */
#include "glob.h"

#include <fnmatch.h>
#include <string.h>

bool bd_glob_any(const char *const *globs, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (fnmatch(globs[i], name, 0) == 0)
			return true;
	return false;
}

bool bd_glob_ends(const char *name, const char *end)
{
	size_t length = strlen(name), tail = strlen(end);

	return length >= tail && strcmp(name + length - tail, end) == 0;
}
