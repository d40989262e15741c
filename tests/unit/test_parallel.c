/* SPDX-License-Identifier: Apache-2.0 */
/* test_parallel.c: work on all cores: order, the error that is reported, cancelling, waking. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "parallel.h"

#define MOST 5000

struct job {
	size_t count;
	atomic_uint done[MOST];
	atomic_size_t begun;      /* pieces begun so far */
	atomic_bool out_of_order; /* one thread must not be; several may be, by a little */
	atomic_uint alive, most_alive;
	size_t fail_from;         /* pieces from here on fail */
	unsigned ticks, aborts;
	pthread_t caller;
	atomic_bool wrong_thread;
	/* For pieces that wait. */
	pthread_mutex_t lock;
	pthread_cond_t woken;
	bool aborted;
	atomic_int cancel;
};

static struct job *new_job(size_t count)
{
	struct job *j = calloc(1, sizeof(*j));

	assert_non_null(j);
	j->count = count;
	j->fail_from = SIZE_MAX;
	j->caller = pthread_self();
	pthread_mutex_init(&j->lock, NULL);
	pthread_cond_init(&j->woken, NULL);
	return j;
}

static int count_piece(void *context, size_t index, struct bd_error *err)
{
	struct job *j = context;
	size_t before = atomic_fetch_add(&j->begun, 1);
	unsigned alive = atomic_fetch_add(&j->alive, 1) + 1;

	if (before != index)
		atomic_store(&j->out_of_order, true);
	if (alive > atomic_load(&j->most_alive))
		atomic_store(&j->most_alive, alive);
	if (pthread_equal(pthread_self(), j->caller))
		atomic_store(&j->wrong_thread, true);
	atomic_fetch_add(&j->done[index], 1);
	if (index % 7 == 0)
		sched_yield();
	atomic_fetch_sub(&j->alive, 1);
	if (index >= j->fail_from)
		return bd_error_set(err, -EIO, "piece %zu", index);
	return 0;
}

static void tick(void *context)
{
	struct job *j = context;

	j->ticks++;
	if (!pthread_equal(pthread_self(), j->caller))
		atomic_store(&j->wrong_thread, true);
}

static void every_piece_once(void **state)
{
	static const unsigned threads[] = { 0, 1, 2, 3, 7, 16, 64, 65, 1000 };
	static const size_t counts[] = { 0, 1, 2, 63, 64, 65, MOST };

	(void)state;
	for (size_t t = 0; t < sizeof(threads) / sizeof(*threads); t++)
		for (size_t c = 0; c < sizeof(counts) / sizeof(*counts); c++) {
			struct job *j = new_job(counts[c]);
			struct bd_error err = { .text = "untouched" };
			struct bd_parallel p = {
				.count = counts[c], .threads = threads[t], .work = count_piece, .tick = tick,
				.context = j,
			};

			assert_int_equal(bd_parallel_run(&p, &err), 0);
			assert_string_equal(err.text, "untouched");
			for (size_t i = 0; i < counts[c]; i++)
				assert_int_equal(j->done[i], 1);
			assert_int_equal(j->begun, counts[c]);
			if (threads[t] == 1)
				assert_false(j->out_of_order);
			assert_false(j->wrong_thread);
			assert_true(j->ticks > 0);
			if (threads[t])
				assert_true(j->most_alive <= threads[t]);
			assert_true(j->most_alive <= 64);
			free(j);
		}
	assert_true(bd_parallel_cores() >= 1);
}

/* With all pieces from some number on failing, the first of them is reported. */
static void lowest_error(void **state)
{
	(void)state;
	for (unsigned threads = 1; threads <= 64; threads += threads < 8 ? 1 : 14)
		for (size_t from = 0; from < 300; from += 37) {
			struct job *j = new_job(300);
			struct bd_error err = { 0 };
			struct bd_parallel p = {
				.count = 300, .threads = threads, .work = count_piece, .context = j,
			};
			char text[32];

			j->fail_from = from;
			assert_int_equal(bd_parallel_run(&p, &err), -EIO);
			assert_int_equal(err.code, -EIO);
			snprintf(text, sizeof(text), "piece %zu", from);
			assert_string_equal(err.text, text);
			/* No more pieces are begun than were in work. */
			assert_true(j->begun <= from + threads + 1 || threads > 1);
			assert_int_equal(bd_parallel_run(&p, NULL), -EIO);
			free(j);
		}
}

static void wake_all(void *context)
{
	struct job *j = context;

	pthread_mutex_lock(&j->lock);
	j->aborted = true;
	j->aborts++;
	pthread_cond_broadcast(&j->woken);
	pthread_mutex_unlock(&j->lock);
}

/* The last piece fails; all others wait until they are woken, and then fail because of that. */
static int wait_or_fail(void *context, size_t index, struct bd_error *err)
{
	struct job *j = context;

	if (index + 1 == j->count) {
		while (atomic_load(&j->begun) + 1 < j->count)
			sched_yield();
		return bd_error_set(err, -ENOSPC, "the disk is full");
	}
	atomic_fetch_add(&j->begun, 1);
	pthread_mutex_lock(&j->lock);
	while (!j->aborted)
		pthread_cond_wait(&j->woken, &j->lock);
	pthread_mutex_unlock(&j->lock);
	return bd_error_set(err, -EINTR, "interrupted");
}

/* Those that only gave up because another failed do not hide why. */
static void abort_wakes(void **state)
{
	(void)state;
	for (unsigned threads = 2; threads <= 32; threads *= 2)
		for (int round = 0; round < 20; round++) {
			struct job *j = new_job(threads);
			struct bd_error err = { 0 };
			struct bd_parallel p = {
				.count = threads, .threads = threads, .work = wait_or_fail,
				.abort = wake_all, .context = j,
			};

			assert_int_equal(bd_parallel_run(&p, &err), -ENOSPC);
			assert_string_equal(err.text, "the disk is full");
			assert_true(j->aborts > 0);
			free(j);
		}
}

static int wait_for_abort(void *context, size_t index, struct bd_error *err)
{
	struct job *j = context;

	(void)index;
	atomic_fetch_add(&j->begun, 1);
	pthread_mutex_lock(&j->lock);
	while (!j->aborted)
		pthread_cond_wait(&j->woken, &j->lock);
	pthread_mutex_unlock(&j->lock);
	return bd_error_set(err, -EINTR, "interrupted");
}

/* As a signal handler would, which no sanitizer minds. */
__attribute__((no_sanitize_thread))
static void *cancel_soon(void *context)
{
	struct job *j = context;
	struct timespec t = { .tv_nsec = 20 * 1000 * 1000 };

	nanosleep(&t, NULL);
	j->cancel = 1;
	return NULL;
}

static void cancelled(void **state)
{
	struct timespec before, after;

	(void)state;
	for (int early = 0; early < 2; early++) {
		struct job *j = new_job(1000);
		struct bd_error err = { 0 };
		struct bd_parallel p = {
			.count = 1000, .threads = 4, .work = wait_for_abort, .abort = wake_all,
			.tick = tick, .context = j, .cancel = &j->cancel,
		};
		pthread_t thread;

		clock_gettime(CLOCK_MONOTONIC, &before);
		if (early)
			j->cancel = 1;
		else
			pthread_create(&thread, NULL, cancel_soon, j);
		assert_int_equal(bd_parallel_run(&p, &err), -EINTR);
		if (!early)
			pthread_join(thread, NULL);
		clock_gettime(CLOCK_MONOTONIC, &after);
		assert_int_equal(err.code, -EINTR);
		assert_string_equal(err.text, "interrupted");
		assert_true(j->begun <= 4);
		assert_true(after.tv_sec - before.tv_sec < 10);
		free(j);
	}
}

/* A failure without `abort`, and a cancel that comes too late: the work is done. */
static void too_late(void **state)
{
	struct job *j = new_job(10);
	struct bd_parallel p = {
		.count = 10, .threads = 3, .work = count_piece, .context = j, .cancel = &j->cancel,
	};

	(void)state;
	assert_int_equal(bd_parallel_run(&p, NULL), 0);
	j->cancel = 1;
	for (int i = 0; i < 10; i++)
		assert_int_equal(j->done[i], 1);
	free(j);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_piece_once),
		cmocka_unit_test(lowest_error),
		cmocka_unit_test(abort_wakes),
		cmocka_unit_test(cancelled),
		cmocka_unit_test(too_late),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
