/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_gemm.cu: matrix products through cuBLASLt. Each shape is planned once, by a fixed rule
 * from what cuBLASLt proposes: timing several would let two runs choose differently, and differ. */
#include "cuda.cuh"

#include <cublasLt.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE ((size_t)64 << 20)
#define PROPOSALS 16
#define SHORT 1024

/* As cuBLASLt sees it, column-major: D[m,n] = op(A)[m,k] op(B)[k,n]. Compared as bytes. */
struct shape {
	uint64_t m, n, k, lda, ldb, ldc;
	uint32_t transpose_a, transpose_b;
	uint32_t c_kind;
	uint32_t align_a, align_b, align_c;
};

struct plan {
	struct shape shape;
	cublasLtMatmulDesc_t product;
	cublasLtMatrixLayout_t a, b, c;
	cublasLtMatmulAlgo_t algorithm;
};

struct bdx_gemm {
	cublasLtHandle_t handle;
	void *workspace;
	struct plan *plans;
	size_t count, room;
};

static bool check(struct bdx_cuda *c, cublasStatus_t status, const char *what)
{
	if (status == CUBLAS_STATUS_SUCCESS)
		return true;
	bdx_cuda_fail(c, status == CUBLAS_STATUS_ALLOC_FAILED ? -ENOMEM : -EIO, "%s failed: %s",
		      what, cublasLtGetStatusString(status));
	return false;
}

static cudaDataType_t type_of(enum bd_dtype dtype)
{
	return dtype == BD_BF16 ? CUDA_R_16BF : dtype == BD_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static void drop(struct plan *p)
{
	if (p->a)
		cublasLtMatrixLayoutDestroy(p->a);
	if (p->b)
		cublasLtMatrixLayoutDestroy(p->b);
	if (p->c)
		cublasLtMatrixLayoutDestroy(p->c);
	if (p->product)
		cublasLtMatmulDescDestroy(p->product);
}

/* As stored, column-major: `rows` consecutive elements in each of `cols` columns. */
static bool layout(struct bdx_cuda *c, cublasLtMatrixLayout_t *to, enum bd_dtype dtype,
		   uint64_t rows, uint64_t cols, uint64_t ld)
{
	return check(c, cublasLtMatrixLayoutCreate(to, type_of(dtype), rows, cols, (int64_t)ld),
		     "describing a matrix");
}

static bool describe(struct bdx_cuda *c, struct plan *p)
{
	const struct shape *s = &p->shape;
	cublasOperation_t transpose = CUBLAS_OP_T;
	enum bd_dtype operand = c->ops.operand;

	return check(c, cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
		     "describing a product") &&
	       (!s->transpose_a ||
		check(c, cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA,
							&transpose, sizeof(transpose)),
		      "describing a product")) &&
	       (!s->transpose_b ||
		check(c, cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSB,
							&transpose, sizeof(transpose)),
		      "describing a product")) &&
	       layout(c, &p->a, operand, s->transpose_a ? s->k : s->m, s->transpose_a ? s->m : s->k,
		      s->lda) &&
	       layout(c, &p->b, operand, s->transpose_b ? s->n : s->k, s->transpose_b ? s->k : s->n,
		      s->ldb) &&
	       layout(c, &p->c, s->c_kind == BDX_REAL ? BD_F32 : operand, s->m, s->n, s->ldc);
}

static bool prefer(struct bdx_cuda *c, cublasLtMatmulPreference_t preference,
		   cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size)
{
	return check(c, cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size),
		     "planning a product");
}

/* The first proposal with tiles of this size, or NULL. */
static const cublasLtMatmulHeuristicResult_t *
tiled(const cublasLtMatmulHeuristicResult_t *proposals, int count, uint32_t tile)
{
	uint32_t has;
	size_t written;
	int i;

	for (i = 0; i < count; i++)
		if (proposals[i].state == CUBLAS_STATUS_SUCCESS &&
		    cublasLtMatmulAlgoConfigGetAttribute(
			    &proposals[i].algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &has, sizeof(has),
			    &written) == CUBLAS_STATUS_SUCCESS &&
		    has == tile)
			return &proposals[i];
	return NULL;
}

/* cuBLASLt puts the best first, but for sums as short as those of weight gradients over a few
 * hundred tokens it proposes large tiles, which take long to store: smaller ones, of which two
 * fit on a multiprocessor, are up to a fifth faster there (H200, 512 tokens). */
static const cublasLtMatmulHeuristicResult_t *
preferred(const struct shape *s, const cublasLtMatmulHeuristicResult_t *proposals, int count)
{
	const cublasLtMatmulHeuristicResult_t *found = NULL;

	if (s->k <= SHORT && s->m > SHORT && s->n > SHORT) {
		found = tiled(proposals, count, CUBLASLT_MATMUL_TILE_128x160);
		if (!found)
			found = tiled(proposals, count, CUBLASLT_MATMUL_TILE_128x128);
	}
	return found ? found : proposals;
}

static bool choose(struct bdx_cuda *c, struct plan *p)
{
	const struct shape *s = &p->shape;
	cublasLtMatmulPreference_t preference = NULL;
	cublasLtMatmulHeuristicResult_t found[PROPOSALS];
	size_t workspace = WORKSPACE;
	/* Parts of a sum are added by a kernel of their own, in order. */
	uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	int count = 0;
	bool good;

	memset(found, 0, sizeof(found));
	good = check(c, cublasLtMatmulPreferenceCreate(&preference), "planning a product") &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
		      sizeof(workspace)) &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
		      sizeof(reduction)) &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &s->align_a,
		      sizeof(s->align_a)) &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &s->align_b,
		      sizeof(s->align_b)) &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &s->align_c,
		      sizeof(s->align_c)) &&
	       prefer(c, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &s->align_c,
		      sizeof(s->align_c)) &&
	       check(c,
		     cublasLtMatmulAlgoGetHeuristic(c->gemm->handle, p->product, p->a, p->b, p->c,
						    p->c, preference, PROPOSALS, found, &count),
		     "planning a product") &&
	       check(c, count ? found[0].state : CUBLAS_STATUS_NOT_SUPPORTED, "planning a product");
	if (good)
		p->algorithm = preferred(s, found, count)->algo;
	if (preference)
		cublasLtMatmulPreferenceDestroy(preference);
	return good;
}

static const struct plan *plan_for(struct bdx_cuda *c, const struct shape *shape)
{
	struct bdx_gemm *g = c->gemm;
	struct plan *plans;
	size_t i;

	for (i = 0; i < g->count; i++)
		if (!memcmp(&g->plans[i].shape, shape, sizeof(*shape)))
			return &g->plans[i];
	if (g->count == g->room) {
		plans = (struct plan *)realloc(g->plans, (2 * g->room + 32) * sizeof(*plans));
		if (!plans) {
			bdx_cuda_fail(c, -ENOMEM, "not enough memory");
			return NULL;
		}
		g->plans = plans;
		g->room = 2 * g->room + 32;
	}
	memset(&g->plans[i], 0, sizeof(*g->plans));
	g->plans[i].shape = *shape;
	if (!describe(c, &g->plans[i]) || !choose(c, &g->plans[i])) {
		drop(&g->plans[i]);
		return NULL;
	}
	g->count++;
	return &g->plans[i];
}

/* The largest power of two up to 256 that divides the address. */
static uint32_t alignment(const void *p)
{
	return (uint32_t)(((uintptr_t)p | 256) & -((uintptr_t)p | 256));
}

static void op_gemm(struct bdx_ops *ops, bool transpose_a, bool transpose_b, uint64_t m, uint64_t n,
		    uint64_t k, double alpha, const void *a, uint64_t lda, const void *b,
		    uint64_t ldb, double beta, void *to, enum bdx_kind c_kind, uint64_t ldc)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	float factor = (float)alpha, keep = (float)beta;
	const struct plan *p;
	struct shape shape;

	if (!m || !n || !bdx_cuda_begin(c))
		return;
	/* Row-major C is column-major C^T = op(B)^T op(A)^T: the operands change places. */
	memset(&shape, 0, sizeof(shape));
	shape.m = n;
	shape.n = m;
	shape.k = k;
	shape.lda = ldb;
	shape.ldb = lda;
	shape.ldc = ldc;
	shape.transpose_a = transpose_b;
	shape.transpose_b = transpose_a;
	shape.c_kind = c_kind;
	shape.align_a = alignment(b);
	shape.align_b = alignment(a);
	shape.align_c = alignment(to);
	p = plan_for(c, &shape);
	if (p)
		check(c,
		      cublasLtMatmul(c->gemm->handle, p->product, &factor, b, p->a, a, p->b, &keep,
				     to, p->c, to, p->c, &p->algorithm, c->gemm->workspace,
				     WORKSPACE, c->stream),
		      "a matrix product");
}

int bdx_gemm_open(struct bdx_cuda *c, struct bd_error *err)
{
	cublasStatus_t status;

	c->gemm = (struct bdx_gemm *)calloc(1, sizeof(*c->gemm));
	if (!c->gemm)
		return bd_error_set(err, -ENOMEM, "not enough memory");
	status = cublasLtCreate(&c->gemm->handle);
	if (status != CUBLAS_STATUS_SUCCESS)
		return bd_error_set(err, -EIO, "%s: cuBLASLt cannot start: %s", c->name,
				    cublasLtGetStatusString(status));
	return bdx_cuda_take(c, &c->gemm->workspace, WORKSPACE, err);
}

void bdx_gemm_close(struct bdx_cuda *c)
{
	size_t i;

	if (!c->gemm)
		return;
	for (i = 0; i < c->gemm->count; i++)
		drop(&c->gemm->plans[i]);
	if (c->gemm->handle)
		cublasLtDestroy(c->gemm->handle);
	free(c->gemm->plans);
	free(c->gemm);
	c->gemm = NULL;
}

void bdx_gemm_table(struct bdx_ops *ops)
{
	ops->gemm = op_gemm;
}
