/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.cuh: what the files of the CUDA backend share: the state behind a table, how they launch and
 * report, and element types on the device. Private to gpu/ *.cu. */
#ifndef BDX_CUDA_CUH
#define BDX_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pthread.h>
#include <string.h>

extern "C" {
#include "cuda.h"
}

struct bdx_gemm;

#define BDX_UPLOADS 8

struct bdx_block {
	void *memory;
	size_t size;
};

struct bdx_cuda {
	struct bdx_ops ops; /* first: a pointer to the table is one to this */
	int index;
	char name[256];
	cudaStream_t stream; /* of all operations */
	bool failed; /* `error` is set; read without the lock by the one thread of the table */
	struct bdx_gemm *gemm;
	void *scratch;       /* for one operation at a time */
	size_t scratch_size;

	pthread_mutex_t lock; /* all below, and the setting of `failed` */
	pthread_cond_t upload_idle;
	struct bd_error error;
	struct bdx_block *blocks;
	size_t block_count, block_room;
	size_t used, peak, limit;
	cudaStream_t uploads[BDX_UPLOADS];
	unsigned idle; /* the first `idle` of `uploads` are free */
};

static inline struct bdx_cuda *bdx_cuda_of(struct bdx_ops *ops)
{
	return (struct bdx_cuda *)ops;
}

/* ---- ops_cuda.cu ---- */
/* Make the device this thread's; false after a failure: the operation then does nothing. */
bool bdx_cuda_begin(struct bdx_cuda *c);
/* Remember the first failure. */
void bdx_cuda_fail(struct bdx_cuda *c, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* True where `status` is success; else remembers "WHAT failed". */
bool bdx_cuda_check(struct bdx_cuda *c, cudaError_t status, const char *what);
/* After a kernel launch. */
void bdx_cuda_launched(struct bdx_cuda *c, const char *what);
/* At least `bytes` of memory for the operation that asks, until the next one that does; NULL:
 * failed. */
void *bdx_cuda_scratch(struct bdx_cuda *c, size_t bytes);
/* Uninitialised device memory within the limit. 0, or -ENOMEM or -EIO. */
int bdx_cuda_take(struct bdx_cuda *c, void **memory, size_t bytes, struct bd_error *err);
void bdx_cuda_release(struct bdx_cuda *c, void *memory);

/* ---- cuda_gemm.cu ---- */
int bdx_gemm_open(struct bdx_cuda *c, struct bd_error *err);
void bdx_gemm_close(struct bdx_cuda *c);

/* ---- Each file sets the entries of the table that it implements. ---- */
void bdx_gemm_table(struct bdx_ops *ops);
void bdx_weights_table(struct bdx_ops *ops);
void bdx_layers_table(struct bdx_ops *ops);
void bdx_attention_table(struct bdx_ops *ops);
void bdx_loss_table(struct bdx_ops *ops);

/* ---- Types ---- */
template <class T> struct bdx_type {
	using type = T;
};

/* Call f(bdx_type<T>()) with the type that stands for a weight's dtype. */
template <class F> static inline void bdx_with(enum bd_dtype dtype, F f)
{
	if (dtype == BD_BF16)
		f(bdx_type<__nv_bfloat16>());
	else if (dtype == BD_F16)
		f(bdx_type<__half>());
	else
		f(bdx_type<float>());
}

/* N elements that are loaded and stored together. */
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) bdx_pack {
	T v[N];
};

template <class T, int N> static __device__ inline bdx_pack<T, N> bdx_load(const T *p)
{
	return *reinterpret_cast<const bdx_pack<T, N> *>(p);
}

/* The same of what is not needed again soon. */
template <class T, int N> static __device__ inline bdx_pack<T, N> bdx_load_once(const T *p)
{
	constexpr size_t SIZE = sizeof(bdx_pack<T, N>);
	bdx_pack<T, N> x;

	if constexpr (SIZE % 16 == 0) {
		uint4 parts[SIZE / 16];

#pragma unroll
		for (unsigned i = 0; i < SIZE / 16; i++)
			parts[i] = __ldcs(reinterpret_cast<const uint4 *>(p) + i);
		memcpy(&x, parts, SIZE);
	} else {
		x = bdx_load<T, N>(p);
	}
	return x;
}

/* To memory of the device only. The intrinsics stay whole: where elements are chosen by
 * conditions, as NaNs are, the compiler else stores them one by one, at half the speed. */
template <class T, int N> static __device__ inline void bdx_store(T *p, const bdx_pack<T, N> &x)
{
	constexpr size_t SIZE = sizeof(x);

	if constexpr (SIZE % 16 == 0) {
		uint4 parts[SIZE / 16];

		memcpy(parts, &x, SIZE);
#pragma unroll
		for (unsigned i = 0; i < SIZE / 16; i++)
			__stwb(reinterpret_cast<uint4 *>(p) + i, parts[i]);
	} else if constexpr (SIZE == 8) {
		uint2 whole;

		memcpy(&whole, &x, SIZE);
		__stwb(reinterpret_cast<uint2 *>(p), whole);
	} else {
		*p = x.v[0];
	}
}

/* x, or -x where bit `i` of `plus` is 0. */
static __device__ inline float bdx_signed_by(float x, uint32_t plus, int i)
{
	return __uint_as_float(__float_as_uint(x) ^ (~plus << (31 - i) & 0x80000000));
}

static __device__ inline float bdx_float(float x) { return x; }
static __device__ inline float bdx_float(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ inline float bdx_float(__half x) { return __half2float(x); }

/* Round to nearest even; the only NaN is the canonical one of delta/sign.c. */
static __device__ inline void bdx_round(float *to, float x)
{
	*to = x != x ? __uint_as_float(0x7fc00000) : x;
}

static __device__ inline void bdx_round(__nv_bfloat16 *to, float x)
{
	*to = x != x ? __ushort_as_bfloat16(0x7fc0) : __float2bfloat16_rn(x);
}

static __device__ inline void bdx_round(__half *to, float x)
{
	*to = x != x ? __ushort_as_half(0x7e00) : __float2half_rn(x);
}

/* ---- Sums in an order that does not depend on timing ---- */
template <class T> static __device__ inline T bdx_warp_sum(T x)
{
	for (int step = 16; step; step /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, step);
	return x;
}

/* Sum over the THREADS threads of a row, which is a warp, or the block of 256; all get it. */
template <int THREADS> static __device__ inline float bdx_row_sum(float x)
{
	__shared__ float part[8];

	x = bdx_warp_sum(x);
	if (THREADS == 32)
		return x;
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	x = part[0];
	for (int i = 1; i < 8; i++)
		x += part[i];
	return x;
}

/* ---- Launching ---- */
static inline unsigned bdx_blocks(uint64_t count, uint64_t each)
{
	return (unsigned)((count + each - 1) / each);
}

/* Whether all of `pointers` (NULL allowed) lie at 16 bytes. */
template <class... P> static inline bool bdx_aligned(const P *...pointers)
{
	return !((((uintptr_t)pointers) | ...) % 16);
}

#endif
