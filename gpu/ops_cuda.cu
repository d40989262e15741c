/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cuda.cu: the CUDA backend: opening a device, its memory, transfers and errors. */
#include "cuda.cuh"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a process needs of the device besides what is allocated: kernels, their stacks, cuBLAS. */
#define RESERVE ((size_t)256 << 20)

void bdx_cuda_fail(struct bdx_cuda *c, int code, const char *format, ...)
{
	char text[sizeof(c->error.text)];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	pthread_mutex_lock(&c->lock);
	if (!c->failed)
		bd_error_set(&c->error, code, "%s: %s", c->name, text);
	c->failed = true;
	pthread_mutex_unlock(&c->lock);
}

bool bdx_cuda_check(struct bdx_cuda *c, cudaError_t status, const char *what)
{
	if (status == cudaSuccess)
		return true;
	bdx_cuda_fail(c, status == cudaErrorMemoryAllocation ? -ENOMEM : -EIO, "%s failed: %s",
		      what, cudaGetErrorString(status));
	return false;
}

void bdx_cuda_launched(struct bdx_cuda *c, const char *what)
{
	bdx_cuda_check(c, cudaGetLastError(), what);
}

bool bdx_cuda_begin(struct bdx_cuda *c)
{
	return !c->failed && bdx_cuda_check(c, cudaSetDevice(c->index), "choosing the device");
}

/* The failure that is remembered; 0: none. */
static int remembered(struct bdx_cuda *c, struct bd_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&c->lock);
	if (c->failed)
		ret = bd_error_set(err, c->error.code, "%s", c->error.text);
	pthread_mutex_unlock(&c->lock);
	return ret;
}

/* ---- Memory ---- */

/* With the lock held: bytes that are left. */
static size_t left(struct bdx_cuda *c)
{
	size_t available, total, allowed = c->limit > c->used ? c->limit - c->used : 0;

	if (cudaMemGetInfo(&available, &total) != cudaSuccess) {
		cudaGetLastError();
		return 0;
	}
	available = available > RESERVE ? available - RESERVE : 0;
	return available < allowed ? available : allowed;
}

int bdx_cuda_take(struct bdx_cuda *c, void **memory, size_t bytes, struct bd_error *err)
{
	struct bdx_block *blocks;
	cudaError_t status = cudaErrorMemoryAllocation;
	bool within;
	int ret = 0;

	*memory = NULL;
	if (!bytes)
		bytes = 1;
	pthread_mutex_lock(&c->lock);
	if (c->block_count == c->block_room) {
		blocks = (struct bdx_block *)realloc(c->blocks,
						     (2 * c->block_room + 64) * sizeof(*blocks));
		if (!blocks) {
			ret = bd_error_set(err, -ENOMEM, "not enough memory");
			goto out;
		}
		c->blocks = blocks;
		c->block_room = 2 * c->block_room + 64;
	}
	within = c->used <= c->limit && bytes <= c->limit - c->used;
	if (within)
		status = cudaMalloc(memory, bytes);
	if (status == cudaErrorMemoryAllocation) {
		cudaGetLastError();
		ret = bd_error_set(
			err, -ENOMEM,
			"%s: %zu MiB of GPU memory are wanted, %zu MiB are free, %zu MiB "
			"in use here%s",
			c->name, (bytes + (1 << 20) - 1) >> 20, left(c) >> 20, c->used >> 20,
			within ? "" : " (BITDELTA_GPU_MEMORY limits it)");
		goto out;
	}
	if (status != cudaSuccess) {
		ret = bd_error_set(err, -EIO, "%s: allocating memory failed: %s", c->name,
				   cudaGetErrorString(status));
		goto out;
	}
	c->blocks[c->block_count++] = { *memory, bytes };
	c->used += bytes;
	if (c->peak < c->used)
		c->peak = c->used;
out:
	pthread_mutex_unlock(&c->lock);
	return ret;
}

void bdx_cuda_release(struct bdx_cuda *c, void *memory)
{
	size_t i;

	if (!memory)
		return;
	pthread_mutex_lock(&c->lock);
	for (i = 0; i < c->block_count && c->blocks[i].memory != memory; i++)
		;
	if (i < c->block_count) {
		c->used -= c->blocks[i].size;
		c->blocks[i] = c->blocks[--c->block_count];
	}
	pthread_mutex_unlock(&c->lock);
	/* Waits for the operations that use it. */
	bdx_cuda_check(c, cudaFree(memory), "freeing memory");
}

void *bdx_cuda_scratch(struct bdx_cuda *c, size_t bytes)
{
	struct bd_error err;
	int ret;

	if (bytes <= c->scratch_size)
		return c->scratch;
	bdx_cuda_release(c, c->scratch);
	c->scratch_size = 0;
	ret = bdx_cuda_take(c, &c->scratch, bytes, &err);
	if (ret) {
		bdx_cuda_fail(c, ret, "%s", err.text);
		return NULL;
	}
	c->scratch_size = bytes;
	return c->scratch;
}

static void *op_alloc(struct bdx_ops *ops, size_t bytes, struct bd_error *err)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	void *memory;

	bdx_cuda_begin(c);
	if (remembered(c, err) || bdx_cuda_take(c, &memory, bytes, err))
		return NULL;
	/* Wait: uploads into it go through streams of their own. */
	if (!bdx_cuda_check(c, cudaMemsetAsync(memory, 0, bytes, c->stream), "zeroing memory") ||
	    !bdx_cuda_check(c, cudaStreamSynchronize(c->stream), "an operation")) {
		remembered(c, err);
		bdx_cuda_release(c, memory);
		return NULL;
	}
	return memory;
}

static void op_free(struct bdx_ops *ops, void *memory)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	cudaSetDevice(c->index);
	bdx_cuda_release(c, memory);
}

static size_t op_available(struct bdx_ops *ops)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	size_t bytes;

	if (!bdx_cuda_begin(c))
		return 0;
	pthread_mutex_lock(&c->lock);
	bytes = left(c);
	pthread_mutex_unlock(&c->lock);
	return bytes;
}

static size_t op_peak(struct bdx_ops *ops)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	size_t bytes;

	pthread_mutex_lock(&c->lock);
	bytes = c->peak;
	pthread_mutex_unlock(&c->lock);
	return bytes;
}

static void *op_host_alloc(struct bdx_ops *ops, size_t bytes)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	void *memory;

	if (cudaSetDevice(c->index) != cudaSuccess ||
	    cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable) != cudaSuccess) {
		cudaGetLastError();
		return NULL;
	}
	return memory;
}

static void op_host_free(struct bdx_ops *ops, void *memory)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (memory && cudaSetDevice(c->index) == cudaSuccess)
		cudaFreeHost(memory);
}

/* ---- Transfers ---- */

static void op_upload(struct bdx_ops *ops, void *to, const void *host, size_t bytes)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	cudaStream_t stream;
	bool failed;

	if (!bytes)
		return;
	pthread_mutex_lock(&c->lock);
	while (!c->idle && !c->failed)
		pthread_cond_wait(&c->upload_idle, &c->lock);
	failed = c->failed;
	stream = failed ? NULL : c->uploads[--c->idle];
	pthread_mutex_unlock(&c->lock);
	if (failed)
		return;
	if (bdx_cuda_check(c, cudaSetDevice(c->index), "choosing the device") &&
	    bdx_cuda_check(c, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream),
			   "uploading"))
		bdx_cuda_check(c, cudaStreamSynchronize(stream), "uploading");
	pthread_mutex_lock(&c->lock);
	c->uploads[c->idle++] = stream;
	pthread_cond_broadcast(&c->upload_idle);
	pthread_mutex_unlock(&c->lock);
}

static void op_download(struct bdx_ops *ops, void *host, const void *from, size_t bytes)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (bdx_cuda_begin(c) && bytes &&
	    bdx_cuda_check(c, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, c->stream),
			   "downloading"))
		bdx_cuda_check(c, cudaStreamSynchronize(c->stream), "an operation");
}

static void op_copy(struct bdx_ops *ops, void *to, const void *from, size_t bytes)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (bdx_cuda_begin(c) && bytes)
		bdx_cuda_check(
			c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, c->stream),
			"copying");
}

static void op_zero(struct bdx_ops *ops, void *memory, size_t bytes)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (bdx_cuda_begin(c) && bytes)
		bdx_cuda_check(c, cudaMemsetAsync(memory, 0, bytes, c->stream), "zeroing");
}

static int op_finish(struct bdx_ops *ops, struct bd_error *err)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (bdx_cuda_begin(c))
		bdx_cuda_check(c, cudaStreamSynchronize(c->stream), "an operation");
	return remembered(c, err);
}

/* ---- Opening and closing ---- */

static void op_close(struct bdx_ops *ops)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	unsigned i;

	cudaSetDevice(c->index);
	if (c->stream)
		cudaStreamSynchronize(c->stream);
	bdx_gemm_close(c);
	while (c->block_count)
		bdx_cuda_release(c, c->blocks[c->block_count - 1].memory);
	for (i = 0; i < c->idle; i++)
		cudaStreamDestroy(c->uploads[i]);
	if (c->stream)
		cudaStreamDestroy(c->stream);
	pthread_cond_destroy(&c->upload_idle);
	pthread_mutex_destroy(&c->lock);
	free(c->blocks);
	free(c);
}

/* The device's properties, or why it cannot be used. */
static int examine(unsigned index, struct cudaDeviceProp *properties, struct bd_error *err)
{
	int count = 0, driver = 0;
	cudaError_t status = cudaGetDeviceCount(&count);

	if (status == cudaErrorInsufficientDriver) {
		cudaDriverGetVersion(&driver);
		return bd_error_set(
			err, -ENODEV,
			driver ? "the NVIDIA driver supports CUDA %d.%d, this program needs "
				 "%d.%d: install a newer driver" :
				 "no NVIDIA driver is installed",
			driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
			CUDART_VERSION % 1000 / 10);
	}
	if (status == cudaErrorNoDevice || (status == cudaSuccess && !count))
		return bd_error_set(err, -ENODEV, "there is no NVIDIA GPU that CUDA can use");
	if (status != cudaSuccess)
		return bd_error_set(err, -ENODEV, "CUDA cannot start: %s",
				    cudaGetErrorString(status));
	if (index >= (unsigned)count)
		return bd_error_set(err, -ENODEV, "there is no CUDA device %u: the last is %d",
				    index, count - 1);
	status = cudaGetDeviceProperties(properties, (int)index);
	if (status != cudaSuccess)
		return bd_error_set(err, -EIO, "CUDA device %u: %s", index,
				    cudaGetErrorString(status));
	if (properties->major < 8)
		return bd_error_set(err, -ENODEV,
				    "%s is too old: it has compute capability %d.%d, 8.0 is needed",
				    properties->name, properties->major, properties->minor);
	return 0;
}

static int memory_limit(size_t *limit, struct bd_error *err)
{
	const char *text = getenv("BITDELTA_GPU_MEMORY");
	char *end;

	*limit = SIZE_MAX;
	if (!text || !*text)
		return 0;
	errno = 0;
	*limit = strtoull(text, &end, 10);
	if (*end || errno || *text < '0' || *text > '9')
		return bd_error_set(err, -EINVAL,
				    "BITDELTA_GPU_MEMORY is not a number of bytes: %s", text);
	return 0;
}

static int start(struct bdx_cuda *c)
{
	if (!bdx_cuda_check(c, cudaSetDevice(c->index), "choosing the device") ||
	    !bdx_cuda_check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
			    "creating a stream"))
		return -1;
	for (; c->idle < BDX_UPLOADS; c->idle++)
		if (!bdx_cuda_check(c, cudaStreamCreateWithFlags(&c->uploads[c->idle],
								  cudaStreamNonBlocking),
				    "creating a stream"))
			return -1;
	return 0;
}

extern "C" int bdx_ops_cuda_new(struct bdx_ops **ops, size_t table_size, unsigned index,
				enum bd_dtype operand, struct bd_error *err)
{
	struct cudaDeviceProp properties;
	struct bdx_cuda *c;
	size_t limit;
	int ret;

	*ops = NULL;
	if (table_size != sizeof(**ops))
		return bd_error_set(
			err, -ENODEV,
			"bitdelta-cuda.so is of another version: install it anew");
	if (!bd_dtype_is_weight(operand))
		return bd_error_set(err, -EINVAL, "operands can be BF16, F16 or F32, not %s",
				    bd_dtype_name(operand));
	ret = memory_limit(&limit, err);
	if (!ret)
		ret = examine(index, &properties, err);
	if (ret)
		return ret;

	c = (struct bdx_cuda *)calloc(1, sizeof(*c));
	if (!c)
		return bd_error_set(err, -ENOMEM, "not enough memory");
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->upload_idle, NULL);
	c->index = (int)index;
	c->limit = limit;
	snprintf(c->name, sizeof(c->name), "%s", properties.name);
	c->ops.name = c->name;
	c->ops.real = BD_F32;
	c->ops.operand = operand;
	c->ops.rounds = true;
	c->ops.alloc = op_alloc;
	c->ops.free = op_free;
	c->ops.available = op_available;
	c->ops.peak = op_peak;
	c->ops.host_alloc = op_host_alloc;
	c->ops.host_free = op_host_free;
	c->ops.upload = op_upload;
	c->ops.download = op_download;
	c->ops.copy = op_copy;
	c->ops.zero = op_zero;
	c->ops.finish = op_finish;
	c->ops.close = op_close;
	bdx_gemm_table(&c->ops);
	bdx_weights_table(&c->ops);
	bdx_layers_table(&c->ops);
	bdx_attention_table(&c->ops);
	bdx_loss_table(&c->ops);
	ret = start(c) ? remembered(c, err) : bdx_gemm_open(c, err);
	if (ret)
		op_close(&c->ops);
	else
		*ops = &c->ops;
	return ret;
}
