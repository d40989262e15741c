/* SPDX-License-Identifier: Apache-2.0 */
/* blas.h: OpenBLAS, found when the program runs; nothing is linked against it. */
#ifndef BDX_BLAS_H
#define BDX_BLAS_H

enum { BDX_ROW_MAJOR = 101, BDX_AS_IT_IS = 111, BDX_TRANSPOSED = 112 }; /* of the CBLAS interface */

/* C[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C, in the calling thread; any number of threads
 * may call at once. */
struct bdx_blas {
	void *library; /* NULL: there is none, and the functions are NULL, too */
	void (*sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
		      const float *a, int lda, const float *b, int ldb, float beta, float *c,
		      int ldc);
	void (*dgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k,
		      double alpha, const double *a, int lda, const double *b, int ldb,
		      double beta, double *c, int ldc);
	/* y = alpha * op(A) x + beta * y, A[m,n]: for products of one row, which gemm makes as slow as
	 * those of several. */
	void (*sgemv)(int order, int transpose, int m, int n, float alpha, const float *a, int lda,
		      const float *x, int incx, float beta, float *y, int incy);
	void (*dgemv)(int order, int transpose, int m, int n, double alpha, const double *a, int lda,
		      const double *x, int incx, double beta, double *y, int incy);
};

/* Look for the library, not where the environment has BITDELTA_BLAS=0 (for tests and for
 * comparing). Finding none is no error. Sets OpenBLAS, for the whole process, to compute in the
 * thread that calls: its own threads would make results depend on their number. */
void bdx_blas_open(struct bdx_blas *blas);
void bdx_blas_close(struct bdx_blas *blas);

#endif
