/* SPDX-License-Identifier: Apache-2.0 */
/* verify.h: checking every byte of a delta, and of what it needs of its base, against the hashes. */
#ifndef BD_VERIFY_H
#define BD_VERIFY_H

#include "delta.h"
#include "parallel.h"

/* Hash everything that the delta stores and, where `base` is not NULL, every base tensor that it needs (after
 * bd_delta_check_base). 0 when all is as it was at import; -EIO with the first damaged tensor;
 * -EINTR; -EINVAL for a wrong base. Uses all cores. */
int bd_verify(struct bd_delta *delta, struct bd_base *base, const struct bd_watch *watch,
	      struct bd_error *err);

#endif
