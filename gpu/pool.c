/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c: threads that stay and take pieces of one job after another, see pool.h. */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "parallel.h"

#define MAX_THREADS 64

struct job {
	uint64_t count, grain;
	void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread);
	void *context;
	_Atomic uint64_t next; /* piece */
};

struct helper {
	struct bdx_pool *pool;
	pthread_t id;
	unsigned number; /* 1 .. threads-1; the calling thread is 0 */
};

struct bdx_pool {
	pthread_mutex_t lock;
	pthread_cond_t wanted, idle;
	struct job job;
	unsigned seats;  /* helpers that may still join the job */
	unsigned active; /* helpers at work on it */
	bool closing;
	unsigned threads;
	struct helper helpers[MAX_THREADS];
};

static void work_on(struct job *job, unsigned thread)
{
	uint64_t pieces = (job->count + job->grain - 1) / job->grain, piece;

	while ((piece = atomic_fetch_add(&job->next, 1)) < pieces) {
		uint64_t first = piece * job->grain;
		uint64_t end = job->count - first < job->grain ? job->count : first + job->grain;

		job->work(job->context, first, end, thread);
	}
}

static void *help(void *argument)
{
	struct helper *helper = argument;
	struct bdx_pool *pool = helper->pool;

	pthread_mutex_lock(&pool->lock);
	while (!pool->closing) {
		if (!pool->seats) {
			pthread_cond_wait(&pool->wanted, &pool->lock);
			continue;
		}
		pool->seats--;
		pool->active++;
		pthread_mutex_unlock(&pool->lock);
		work_on(&pool->job, helper->number);
		pthread_mutex_lock(&pool->lock);
		if (!--pool->active)
			pthread_cond_signal(&pool->idle);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

int bdx_pool_open(struct bdx_pool **out, unsigned threads, struct bd_error *err)
{
	struct bdx_pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return bd_error_set(err, -ENOMEM, "not enough memory for a pool of threads");
	if (!threads)
		threads = bd_parallel_cores();
	if (threads > MAX_THREADS)
		threads = MAX_THREADS;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wanted, NULL);
	pthread_cond_init(&pool->idle, NULL);
	for (pool->threads = 1; pool->threads < threads; pool->threads++) {
		struct helper *helper = &pool->helpers[pool->threads];

		helper->pool = pool;
		helper->number = pool->threads;
		if (pthread_create(&helper->id, NULL, help, helper))
			break; /* fewer threads do the work as well */
	}
	*out = pool;
	return 0;
}

void bdx_pool_close(struct bdx_pool *pool)
{
	unsigned i;

	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->closing = true;
	pthread_cond_broadcast(&pool->wanted);
	pthread_mutex_unlock(&pool->lock);
	for (i = 1; i < pool->threads; i++)
		pthread_join(pool->helpers[i].id, NULL);
	pthread_cond_destroy(&pool->idle);
	pthread_cond_destroy(&pool->wanted);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

unsigned bdx_pool_threads(const struct bdx_pool *pool)
{
	return pool->threads;
}

void bdx_pool_run(struct bdx_pool *pool, uint64_t count, uint64_t grain,
		  void (*work)(void *context, uint64_t first, uint64_t end, unsigned thread),
		  void *context)
{
	uint64_t pieces = (count + grain - 1) / grain;
	struct job *job = &pool->job;
	unsigned seats, i;

	pthread_mutex_lock(&pool->lock); /* helpers read the job after taking the lock */
	job->count = count;
	job->grain = grain;
	job->work = work;
	job->context = context;
	atomic_store(&job->next, 0);
	seats = pieces < pool->threads ? (unsigned)(pieces ? pieces - 1 : 0) : pool->threads - 1;
	pool->seats = seats;
	for (i = 0; i < seats; i++)
		pthread_cond_signal(&pool->wanted);
	pthread_mutex_unlock(&pool->lock);

	work_on(job, 0);

	pthread_mutex_lock(&pool->lock);
	pool->seats = 0; /* who has not woken up yet finds nothing left to do */
	while (pool->active)
		pthread_cond_wait(&pool->idle, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}
