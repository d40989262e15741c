/* SPDX-License-Identifier: Apache-2.0 */
/* glob.h: what names of files and tensors look like. */
#ifndef BD_GLOB_H
#define BD_GLOB_H

#include <stdbool.h>
#include <stddef.h>

/* Does one of the patterns match all of NAME? As in fnmatch(3) without flags: '*' matches dots and slashes, too. */
bool bd_glob_any(const char *const *globs, size_t count, const char *name);
#define BD_GLOB_ANY(globs, name) bd_glob_any(globs, sizeof(globs) / sizeof(*(globs)), name)

/* Does NAME end in, or consist of, END? */
bool bd_glob_ends(const char *name, const char *end);

#endif
