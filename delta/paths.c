/* SPDX-License-Identifier: Apache-2.0 */
/* paths.c: names of files below a model's directory, see paths.h. */
#include "paths.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

bool bd_name_is_component(const char *name, size_t length)
{
	if (length == 0 || length > NAME_MAX || memchr(name, '/', length) ||
	    !bd_utf8_is_plain(name, length))
		return false;
	return !(name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')));
}

/* Letters without case; '/' before all else, so that what is below a directory follows a file of its name. */
static int rank(char c)
{
	if (c == '/')
		return 1;
	return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : (unsigned char)c;
}

bool bd_name_is_git(const char *name, size_t length)
{
	static const char git[] = ".git";

	/* Not by strcasecmp, which follows the locale: in Turkish I is no capital of i. */
	for (size_t i = 0; i < length && i < strlen(git); i++)
		if (rank(name[i]) != git[i])
			return false;
	return length == strlen(git);
}

bool bd_path_is_safe(const char *path, size_t length)
{
	const char *end = path + length, *slash = memchr(path, '/', length);
	unsigned depth = 1;

	if (!slash)
		return bd_name_is_component(path, length);
	if (length > BD_MAX_PATH)
		return false;
	for (; ; path = slash + 1, depth++) {
		size_t n;

		slash = memchr(path, '/', (size_t)(end - path));
		n = (size_t)((slash ? slash : end) - path);
		if (depth > BD_MAX_DEPTH || !bd_name_is_component(path, n) ||
		    bd_name_is_git(path, n))
			return false;
		if (!slash)
			return true;
	}
}

const char *bd_path_last(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

size_t bd_path_next_directory(const char *path, const char *before, size_t last)
{
	/* What lies below one directory is consecutive. */
	for (const char *p = path + last + 1; *path && (p = strchr(p, '/')); p++)
		if (strncmp(before, path, (size_t)(p - path) + 1) != 0)
			return (size_t)(p - path);
	return 0;
}

static int by_rank(const void *left, const void *right)
{
	const char *a = *(const char *const *)left, *b = *(const char *const *)right;

	while (*a && rank(*a) == rank(*b))
		a++, b++;
	return rank(*a) - rank(*b);
}

/* Of neighbours in order of rank. */
static bool are_twins(const char *a, const char *b)
{
	size_t n = 0;
	bool other_case = false;

	for (; a[n] && rank(a[n]) == rank(b[n]); n++) {
		if (a[n] == '/' && other_case)
			return true; /* the directory that both are in is written in two ways */
		other_case |= a[n] != b[n];
	}
	return !a[n] && (!b[n] || b[n] == '/');
}

int bd_paths_find_twins(const char *const *paths, size_t count, const char **one,
			const char **other)
{
	const char **sorted = calloc(count + 1, sizeof(*sorted));

	*one = *other = NULL;
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		sorted[i] = paths[i];
	qsort(sorted, count, sizeof(*sorted), by_rank);
	for (size_t i = 1; i < count && !*one; i++)
		if (are_twins(sorted[i - 1], sorted[i])) {
			*one = sorted[i - 1];
			*other = sorted[i];
		}
	free(sorted);
	return 0;
}
