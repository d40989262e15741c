/* SPDX-License-Identifier: Apache-2.0 */
/* parallel.c: a pool of threads for the length of one job, see parallel.h. */
#include "parallel.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_THREADS 64

struct pool {
	const struct bd_parallel *job;
	pthread_mutex_t lock;
	pthread_cond_t idle;  /* a worker ended */
	size_t next;
	unsigned running;
	int failure;
	size_t failed_index;
	struct bd_error error;
};

unsigned bd_parallel_cores(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
		return (unsigned)CPU_COUNT(&set);
	return 1;
}

/* Call with the lock held. */
static void fail(struct pool *pool, size_t index, int code, const struct bd_error *error)
{
	/* Pieces that gave up because another one failed (-EINTR) do not hide why. */
	if (pool->failure && (pool->failed_index <= index || code == -EINTR))
		return;
	pool->failure = code;
	pool->failed_index = index;
	pool->error = *error;
}

static void *worker(void *argument)
{
	struct pool *pool = argument;
	struct bd_error error = { 0 };

	pthread_mutex_lock(&pool->lock);
	while (!pool->failure && pool->next < pool->job->count) {
		size_t index = pool->next++;
		int rc;

		pthread_mutex_unlock(&pool->lock);
		rc = pool->job->work(pool->job->context, index, &error);
		pthread_mutex_lock(&pool->lock);
		if (rc >= 0)
			continue;
		fail(pool, index, rc, &error); /* before others are woken and fail, too */
		pthread_mutex_unlock(&pool->lock);
		if (pool->job->abort)
			pool->job->abort(pool->job->context);
		pthread_mutex_lock(&pool->lock);
	}
	pool->running--;
	pthread_cond_signal(&pool->idle);
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static void watch(struct pool *pool)
{
	const struct bd_parallel *job = pool->job;
	struct bd_error error;

	while (pool->running > 0) {
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += 200 * 1000 * 1000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&pool->idle, &pool->lock, &until);
		if (job->cancel && *job->cancel && !pool->failure) {
			bd_error_set(&error, -EINTR, "interrupted");
			fail(pool, 0, -EINTR, &error);
			if (job->abort)
				job->abort(job->context);
		}
		pthread_mutex_unlock(&pool->lock);
		if (job->tick)
			job->tick(job->context);
		pthread_mutex_lock(&pool->lock);
	}
}

int bd_parallel_run(const struct bd_parallel *job, struct bd_error *err)
{
	unsigned threads = job->threads ? job->threads : bd_parallel_cores();
	pthread_t ids[MAX_THREADS];
	unsigned started = 0;
	struct pool pool = { .job = job };
	pthread_condattr_t attributes;
	int rc = 0;

	if (threads > MAX_THREADS)
		threads = MAX_THREADS;
	if (threads > job->count)
		threads = job->count ? (unsigned)job->count : 1;
	pthread_mutex_init(&pool.lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&pool.idle, &attributes);
	pthread_condattr_destroy(&attributes);

	pthread_mutex_lock(&pool.lock);
	while (started < threads && rc == 0) {
		rc = pthread_create(&ids[started], NULL, worker, &pool);
		if (rc == 0) {
			started++;
			pool.running++;
		}
	}
	/* Fewer threads than wanted still do the work; none at all cannot. */
	if (started > 0)
		watch(&pool);
	else
		bd_error_set(&pool.error, pool.failure = -rc, "cannot start a thread: %s", strerror(rc));
	pthread_mutex_unlock(&pool.lock);
	for (unsigned i = 0; i < started; i++)
		pthread_join(ids[i], NULL);
	pthread_cond_destroy(&pool.idle);
	pthread_mutex_destroy(&pool.lock);
	if (pool.failure && err)
		*err = pool.error;
	return pool.failure;
}
