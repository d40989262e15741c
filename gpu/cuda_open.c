/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_open.c: finds and opens bitdelta-cuda.so, which holds the CUDA backend. */
#include "cuda.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "bitdelta-cuda.so"

/* Where the library lies: BITDELTA_CUDA names it (then nothing else is tried), else beside the
 * program, else in ../lib/bitdelta. Empty where there is none. */
static void find(char path[2 * PATH_MAX])
{
	static const char *const places[] = { "", "../lib/bitdelta/" };
	const char *named = secure_getenv("BITDELTA_CUDA");
	char folder[PATH_MAX];
	ssize_t length;
	size_t i;

	path[0] = '\0';
	if (named && *named) {
		snprintf(path, 2 * PATH_MAX, "%s", named);
		return;
	}
	length = readlink("/proc/self/exe", folder, sizeof(folder) - 1);
	if (length <= 0)
		return;
	folder[length] = '\0';
	folder[strrchr(folder, '/') - folder + 1] = '\0';
	for (i = 0; i < sizeof(places) / sizeof(*places); i++) {
		snprintf(path, 2 * PATH_MAX, "%s%s" LIBRARY, folder, places[i]);
		if (!access(path, R_OK))
			return;
	}
	path[0] = '\0';
}

int bdx_ops_cuda_open(struct bdx_ops **ops, unsigned index, enum bd_dtype operand,
		      struct bd_error *err)
{
	int (*open)(struct bdx_ops **, size_t, unsigned, enum bd_dtype, struct bd_error *);
	char path[2 * PATH_MAX];
	void *library, *symbol;

	*ops = NULL;
	find(path);
	if (!path[0])
		return bd_error_set(
			err, -ENODEV,
			"this program was built without CUDA: there is no " LIBRARY
			" beside it or in ../lib/bitdelta; build it where nvcc is on the PATH");
	/* It stays open until the process ends: threads and exit handlers of CUDA outlive a
	 * table. */
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return bd_error_set(err, -ENODEV, "the CUDA backend cannot be opened: %s",
				    dlerror());
	symbol = dlsym(library, "bdx_ops_cuda_new");
	if (!symbol)
		return bd_error_set(err, -ENODEV, "%s is no CUDA backend of bitdelta", path);
	memcpy(&open, &symbol, sizeof(open));
	return open(ops, sizeof(**ops), index, operand, err);
}
