/* SPDX-License-Identifier: Apache-2.0 */
/* guard.h: reading mapped files without dying of SIGBUS.
 *
 * A page of a mapping that cannot be had, because somebody truncated the file or the disk failed,
 * raises SIGBUS. Between its start and its end bd_guard_run turns that into a result. A program has
 * to ask for this, since signal handlers belong to programs and not to libraries: where
 * bd_guard_install was not called, nothing is mapped and files are read with pread. */
#ifndef BD_GUARD_H
#define BD_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Handle SIGBUS in the whole process from now on. Call it before other threads start and before
 * bases and deltas are opened. With BITDELTA_MAP=0 in the environment it does nothing (for tests and
 * for comparing). 0, or -errno of sigaction(2). */
int bd_guard_install(void);
/* Was it installed? */
bool bd_guard_installed(void);

struct bd_guard_range {
	const void *start;
	size_t size;
};

/* Call work(context), which reads from the given ranges. NULL, or the address in one of them that
 * could not be read; `work` was then left half-way, so it must hold no lock and own nothing. Any
 * other SIGBUS ends the process as usual. Calls do not nest. */
const void *bd_guard_run(void (*work)(void *context), void *context,
			 const struct bd_guard_range *ranges, size_t count);

#endif
