/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_f64.c: the operations of the C reference in double, for finite differences. */
#include <math.h>

typedef double real;

static inline real exponential(real x)
{
	return exp(x);
}

#define REAL_DTYPE BD_F64
#define REAL_ROUNDS false
#define REAL_GEMM dgemm
#define REAL_GEMV dgemv
#define REAL_TABLE bdx_ops_cpu_f64
#include "ops_cpu_impl.h"
