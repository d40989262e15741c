/* SPDX-License-Identifier: Apache-2.0 */
/* k_loss.cu: comparing logits, sampling from them, and the optimiser. A block takes a row of
 * logits. */
#include "cuda.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)

/* ---- Reductions over a block ---- */

/* The largest value and where it is first. */
struct peak {
	float value;
	uint32_t at;
};

static __device__ inline struct peak higher(struct peak a, struct peak b)
{
	return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

static __device__ inline struct peak block_peak(struct peak x)
{
	__shared__ struct peak part[WARPS];

	for (int step = 16; step; step /= 2)
		x = higher(x, { __shfl_xor_sync(0xffffffffu, x.value, step),
				__shfl_xor_sync(0xffffffffu, x.at, step) });
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	x = part[0];
	for (int i = 1; i < WARPS; i++)
		x = higher(x, part[i]);
	return x;
}

static __device__ inline double block_sum(double x)
{
	__shared__ double part[WARPS];

	x = bdx_warp_sum(x);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	x = part[0];
	for (int i = 1; i < WARPS; i++)
		x += part[i];
	return x;
}

/* ---- Comparing ---- */

/* What a thread knows of the logits that it has seen: the sum of exp(x - top), relative to its
 * own top. In double: the divergence of two models that are almost equal is a difference of such
 * sums. */
struct soft {
	struct peak top;
	double sum;
};

/* Take V more logits; *factor is what sums relative to the old top must be multiplied by. */
template <int V>
static __device__ inline void extend(struct soft *s, const bdx_pack<float, V> &x, uint64_t at,
				     bdx_pack<float, V> *weight, float *factor)
{
	struct peak top = s->top;
	float sum = 0;

#pragma unroll
	for (int j = 0; j < V; j++)
		if (x.v[j] > top.value)
			top = { x.v[j], (uint32_t)at + j };
	*factor = top.value > s->top.value ? expf(s->top.value - top.value) : 1;
#pragma unroll
	for (int j = 0; j < V; j++) {
		weight->v[j] = expf(x.v[j] - top.value);
		sum += weight->v[j];
	}
	s->top = top;
	s->sum = s->sum * *factor + sum;
}

struct compare {
	struct bdx_comparison *results;
	const float *student, *teacher;
	uint64_t student_stride, teacher_stride, vocabulary;
	const int32_t *targets;
	float mse_factor,
		kl_factor; /* of the gradient: of (student - teacher), of (p_student - p_teacher) */
};

template <class T, int V>
static __global__ void __launch_bounds__(THREADS)
k_compare(struct compare a, T *gradient)
{
	uint64_t r = blockIdx.x, i;
	const float *student = a.student + r * a.student_stride;
	const float *teacher = a.teacher + r * a.teacher_stride;
	struct soft s = { { -INFINITY, UINT32_MAX }, 0 }, t = s;
	struct peak student_top, teacher_top;
	double cross = 0; /* sum of exp(teacher - top) * (teacher - student) */
	double square = 0, student_sum, teacher_sum, student_log, teacher_log;
	float student_factor, teacher_factor;
	bool one_pass = gradient && !a.kl_factor;

	for (i = (uint64_t)threadIdx.x * V; i < a.vocabulary; i += THREADS * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(student + i),
				   y = bdx_load<float, V>(teacher + i);
		bdx_pack<float, V> weight;
		bdx_pack<T, V> out;
		float factor, difference = 0, part = 0;

		extend<V>(&s, x, i, &weight, &factor);
		extend<V>(&t, y, i, &weight, &factor);
#pragma unroll
		for (int j = 0; j < V; j++) {
			float d = x.v[j] - y.v[j];

			difference = fmaf(weight.v[j], -d, difference);
			part = fmaf(d, d, part);
			bdx_round(&out.v[j], a.mse_factor * d);
		}
		cross = cross * factor + difference;
		square += part;
		if (one_pass)
			bdx_store<T, V>(gradient + r * a.vocabulary + i, out);
	}
	student_top = block_peak(s.top);
	teacher_top = block_peak(t.top);
	/* A thread that saw no logit has a top of -infinity, and contributes 0. */
	student_sum = block_sum(s.sum * expf(s.top.value - student_top.value));
	teacher_factor = expf(t.top.value - teacher_top.value);
	teacher_sum = block_sum(t.sum * teacher_factor);
	cross = block_sum(cross * teacher_factor) / teacher_sum;
	square = block_sum(square);
	student_log = student_top.value + log(student_sum);
	teacher_log = teacher_top.value + log(teacher_sum);
	if (threadIdx.x == 0) {
		struct bdx_comparison *to = &a.results[r];
		int32_t target = a.targets ? a.targets[r] : -1;

		to->mse = square / a.vocabulary;
		to->kl = cross - (teacher_log - student_log);
		to->nll_student = target < 0 ? 0 : student_log - student[target];
		to->nll_teacher = target < 0 ? 0 : teacher_log - teacher[target];
		to->agree = student_top.at == teacher_top.at;
		to->pad = 0;
	}
	if (!gradient || one_pass)
		return;
	student_factor = (float)(a.kl_factor / student_sum);
	teacher_factor = (float)(a.kl_factor / teacher_sum);
	for (i = (uint64_t)threadIdx.x * V; i < a.vocabulary; i += THREADS * V) {
		bdx_pack<float, V> x = bdx_load<float, V>(student + i),
				   y = bdx_load<float, V>(teacher + i);
		bdx_pack<T, V> out;

#pragma unroll
		for (int j = 0; j < V; j++)
			bdx_round(&out.v[j],
				  a.mse_factor * (x.v[j] - y.v[j]) +
					  student_factor * expf(x.v[j] - student_top.value) -
					  teacher_factor * expf(y.v[j] - teacher_top.value));
		bdx_store<T, V>(gradient + r * a.vocabulary + i, out);
	}
}

static void op_compare(struct bdx_ops *ops, struct bdx_comparison *results, void *logits_gradient,
		       const void *student, uint64_t student_stride, const void *teacher,
		       uint64_t teacher_stride, const int32_t *targets, uint64_t rows,
		       uint64_t vocabulary, double mse_weight, double kl_weight, double factor)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	struct compare a = {};

	if (!bdx_cuda_begin(c) || !rows || !vocabulary)
		return;
	a.results = results;
	a.student = (const float *)student;
	a.teacher = (const float *)teacher;
	a.student_stride = student_stride;
	a.teacher_stride = teacher_stride;
	a.vocabulary = vocabulary;
	a.targets = targets;
	a.mse_factor = (float)(factor * mse_weight * 2 / (double)vocabulary);
	a.kl_factor = (float)(factor * kl_weight);
	bdx_with(ops->operand, [=](auto operand) {
		using T = typename decltype(operand)::type;
		T *gradient = (T *)logits_gradient;

		if (vocabulary % 4 == 0 && student_stride % 4 == 0 && teacher_stride % 4 == 0 &&
		    bdx_aligned(a.student, a.teacher, (const T *)gradient))
			k_compare<T, 4><<<(unsigned)rows, THREADS, 0, c->stream>>>(a, gradient);
		else
			k_compare<T, 1><<<(unsigned)rows, THREADS, 0, c->stream>>>(a, gradient);
	});
	bdx_cuda_launched(c, "comparing logits");
}

/* ---- Sampling ---- */

static __global__ void __launch_bounds__(THREADS)
k_sample(int32_t *tokens, const float *logits, const float *uniform, uint64_t vocabulary,
	 double temperature)
{
	__shared__ double before[THREADS];
	__shared__ uint32_t chosen;
	uint64_t each = (vocabulary + THREADS - 1) / THREADS, i;
	uint64_t first = threadIdx.x * each < vocabulary ? threadIdx.x * each : vocabulary;
	uint64_t end = first + each < vocabulary ? first + each : vocabulary;
	struct peak top = { -INFINITY, UINT32_MAX };
	float inverse = temperature > 0 ? (float)(1 / temperature) : 0;
	double sum = 0, total, wanted;

	logits += blockIdx.x * vocabulary;
	for (i = threadIdx.x; i < vocabulary; i += THREADS)
		top = higher(top, { logits[i], (uint32_t)i });
	top = block_peak(top);
	if (temperature <= 0) {
		if (threadIdx.x == 0)
			tokens[blockIdx.x] = (int32_t)top.at;
		return;
	}
	/* A thread has a run of neighbouring tokens, so that sums over threads are cumulated
	 * ones. */
	for (i = first; i < end; i++)
		sum += expf((logits[i] - top.value) * inverse);
	before[threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.x == 0) {
		total = 0;
		for (i = 0; i < THREADS; i++) {
			double part = before[i];

			before[i] = total;
			total += part;
		}
		wanted = uniform[blockIdx.x] * total;
		for (i = THREADS - 1; i > 0 && before[i] > wanted; i--)
			;
		chosen = (uint32_t)i;
		before[i] -= wanted;
	}
	__syncthreads();
	if (threadIdx.x != chosen)
		return;
	/* Rounding may leave the sum of the run short of what was found: then it is its last
	 * token. */
	sum = before[threadIdx.x];
	for (i = first; i + 1 < end; i++) {
		sum += expf((logits[i] - top.value) * inverse);
		if (sum > 0)
			break;
	}
	tokens[blockIdx.x] = (int32_t)i;
}

static void op_sample(struct bdx_ops *ops, int32_t *tokens, const void *logits, const void *uniform,
		      uint64_t rows, uint64_t vocabulary, double temperature)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);

	if (!bdx_cuda_begin(c) || !rows || !vocabulary)
		return;
	k_sample<<<(unsigned)rows, THREADS, 0, c->stream>>>(tokens, (const float *)logits,
							    (const float *)uniform, vocabulary,
							    temperature);
	bdx_cuda_launched(c, "sampling");
}

/* ---- The optimiser ---- */

struct adam {
	float beta1, beta2, epsilon, rate, gradient_factor;
	float rest1, rest2;       /* 1 - beta, which is exacter in double */
	float correct1, correct2; /* 1 / (1 - beta^step) */
};

static __global__ void k_adam(struct adam a, float *parameter, const float *gradient,
			      const float *unit, float *m, float *v, uint64_t count)
{
	uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
	float g;

	if (i >= count)
		return;
	g = gradient[i] * a.gradient_factor * unit[i];
	m[i] = a.beta1 * m[i] + a.rest1 * g;
	v[i] = a.beta2 * v[i] + a.rest2 * g * g;
	parameter[i] -=
		a.rate * unit[i] * (m[i] * a.correct1) / (sqrtf(v[i] * a.correct2) + a.epsilon);
}

static void op_adam(struct bdx_ops *ops, const struct bdx_adam *settings, void *parameter,
		    const void *gradient, const void *unit, void *m, void *v, uint64_t count)
{
	struct bdx_cuda *c = bdx_cuda_of(ops);
	struct adam a = {};

	if (!bdx_cuda_begin(c) || !count)
		return;
	a.beta1 = (float)settings->beta1;
	a.beta2 = (float)settings->beta2;
	a.rest1 = (float)(1 - settings->beta1);
	a.rest2 = (float)(1 - settings->beta2);
	a.epsilon = (float)settings->epsilon;
	a.rate = (float)settings->rate;
	a.gradient_factor = (float)settings->gradient_factor;
	a.correct1 = (float)(1 / (1 - pow(settings->beta1, (double)settings->step)));
	a.correct2 = (float)(1 / (1 - pow(settings->beta2, (double)settings->step)));
	k_adam<<<bdx_blocks(count, 256), 256, 0, c->stream>>>(
		a, (float *)parameter, (const float *)gradient, (const float *)unit, (float *)m,
		(float *)v, count);
	bdx_cuda_launched(c, "the optimiser");
}

void bdx_loss_table(struct bdx_ops *ops)
{
	ops->compare = op_compare;
	ops->sample = op_sample;
	ops->adam = op_adam;
}
