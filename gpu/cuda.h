/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.h: the one symbol of bitdelta-cuda.so. */
#ifndef BDX_CUDA_H
#define BDX_CUDA_H

#include "ops.h"

/* What bdx_ops_cuda_open does once the library is there. `table_size` is the program's size of
 * struct bdx_ops: the library may be of another build, with another table. */
int bdx_ops_cuda_new(struct bdx_ops **ops, size_t table_size, unsigned index,
		     enum bd_dtype operand, struct bd_error *err)
	__attribute__((visibility("default")));

#endif
