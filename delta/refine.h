/* SPDX-License-Identifier: Apache-2.0 */
/* refine.h: a .bdelta file with better scales: everything else stays, byte for byte. */
#ifndef BD_REFINE_H
#define BD_REFINE_H

#include <stdatomic.h>

#include "delta.h"
#include "output.h"

/* Write to PATH (which may be the delta's own: it is then replaced, atomically and durably,
 * output.h) the file `delta` with `scales` (as many as delta->scales has, all finite) in place
 * of its own; the manifest says that they are distilled, and `scale_kind` "rank1", for rows and
 * columns now differ. Members of the manifest that FORMAT.md does not name are not kept. The
 * same inputs give the same bytes. The stored planes and tensors are copied and checked against
 * their hashes on the way. Errors: -EINVAL a scale is not finite, there are none, or PATH is not
 * named SOMETHING.bdelta; -EIO a hash does not fit, or the delta was written to meanwhile;
 * -EINTR where `stop`, which may be NULL, became non-zero; those of reading and writing;
 * -ECANCELED where PATH is not `was` any more (bd_output_replace; NULL: whatever is there is replaced).
 * Whatever was at PATH is then still there. */
int bd_refine(const struct bd_delta *delta, const float *scales, const char *path,
	      const struct bd_occupant *was, const atomic_int *stop, struct bd_error *err);

/* Could bd_refine write to PATH? Its name, and that its directory is there and takes files: to
 * be known before the work and not after it. */
int bd_refine_check(const char *path, struct bd_error *err);

#endif
