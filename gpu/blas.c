/* SPDX-License-Identifier: Apache-2.0 */
/* blas.c: finding OpenBLAS, see blas.h. */
#include "blas.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void bdx_blas_open(struct bdx_blas *blas)
{
	const char *wanted = getenv("BITDELTA_BLAS");
	void (*set_threads)(int);

	memset(blas, 0, sizeof(*blas));
	if (wanted && !strcmp(wanted, "0"))
		return;
	/* NODELETE: its threads and buffers do not survive being unloaded and loaded again. */
	blas->library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!blas->library)
		return;
	/* POSIX promises that an object pointer of dlsym can stand for a function. */
	*(void **)&blas->sgemm = dlsym(blas->library, "cblas_sgemm");
	*(void **)&blas->dgemm = dlsym(blas->library, "cblas_dgemm");
	*(void **)&blas->sgemv = dlsym(blas->library, "cblas_sgemv");
	*(void **)&blas->dgemv = dlsym(blas->library, "cblas_dgemv");
	*(void **)&set_threads = dlsym(blas->library, "openblas_set_num_threads");
	if (!blas->sgemm || !blas->dgemm || !blas->sgemv || !blas->dgemv || !set_threads) {
		bdx_blas_close(blas);
		return;
	}
	set_threads(1);
}

void bdx_blas_close(struct bdx_blas *blas)
{
	if (blas->library)
		dlclose(blas->library);
	memset(blas, 0, sizeof(*blas));
}
