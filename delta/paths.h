/* SPDX-License-Identifier: Apache-2.0 */
/* paths.h: what the files of a model may be called: paths below its directory (FORMAT.md section 2). */
#ifndef BD_PATHS_H
#define BD_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

#define BD_MAX_PATH 1018 /* bytes, with room for "plain/" in the name of a container's tensor */
#define BD_MAX_DEPTH 32  /* components */
#define BD_MAX_DIRECTORIES 4096 /* of a model */

/* True where NAME can be one file in a directory that we show: one component, valid UTF-8, 1 to
 * 255 bytes, not "." or "..", no '/', NUL or control characters. */
bool bd_name_is_component(const char *name, size_t length);

/* ".git", in any case of ASCII letters. */
bool bd_name_is_git(const char *name, size_t length);

/* True where PATH leads to a file below a model's directory and nowhere else: such a component, or
 * several with one '/' between them, none of which is git's: it may run what is written there. */
bool bd_path_is_safe(const char *path, size_t length);

/* A file's own name. */
const char *bd_path_last(const char *path);

/* Directories that paths in ascending order need, parents first: the length of the next one of PATH after the one of
 * `last` bytes (0: none yet) that BEFORE, the path before it, does not have; 0: there is none. */
size_t bd_path_next_directory(const char *path, const char *before, size_t last);

/* Two paths that cannot both be files of one directory wherever it may be copied to: equal but for the
 * case of ASCII letters, one below the other, or below directories that differ in such case. *one and
 * *other are a pair of them, NULL where there is none. Errors: -ENOMEM. */
int bd_paths_find_twins(const char *const *paths, size_t count, const char **one,
			const char **other);

#endif
