/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c: a handler of SIGBUS that jumps back, see guard.h. */
#include "guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct section {
	sigjmp_buf back;
	const struct bd_guard_range *ranges;
	size_t count;
	const void *volatile fault;
};

/* Of this thread's section; no lazily allocated storage, which a signal handler must not touch. */
static __thread struct section *volatile current __attribute__((tls_model("initial-exec")));
static atomic_bool installed;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	struct section *s = current;
	struct sigaction standard = { .sa_handler = SIG_DFL };
	const ucontext_t *interrupted = context;

	/* si_code <= 0: sent by a process, with no address. */
	for (size_t i = 0; s && info->si_code > 0 && i < s->count; i++) {
		uintptr_t start = (uintptr_t)s->ranges[i].start, at = (uintptr_t)info->si_addr;

		if (at >= start && at - start < s->ranges[i].size) {
			s->fault = info->si_addr;
			/* The jump alone would leave the handler's mask. */
			pthread_sigmask(SIG_SETMASK, &interrupted->uc_sigmask, NULL);
			siglongjmp(s->back, 1);
		}
	}
	/* Not ours: what would have happened without us. The instruction that failed runs again; a
	 * signal that was sent has none, and is sent again. */
	sigaction(number, &standard, NULL);
	if (info->si_code <= 0)
		raise(number);
}

int bd_guard_install(void)
{
	struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER };
	const char *map = getenv("BITDELTA_MAP");

	if (map && strcmp(map, "0") == 0)
		return 0;
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, NULL) < 0)
		return -errno;
	atomic_store(&installed, true);
	return 0;
}

bool bd_guard_installed(void)
{
	return atomic_load_explicit(&installed, memory_order_relaxed);
}

const void *bd_guard_run(void (*work)(void *), void *context, const struct bd_guard_range *ranges,
			 size_t count)
{
	struct section s = { .ranges = ranges, .count = count };

	if (sigsetjmp(s.back, 0) == 0) {
		current = &s;
		work(context);
	}
	current = NULL;
	return s.fault;
}
