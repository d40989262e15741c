/* SPDX-License-Identifier: Apache-2.0 */
/* error.h: the one way in which functions below the programs report failure.
 *
 * A function that can fail returns 0 (or a count) on success and a negative errno on failure, and
 * then leaves one sentence in the caller's bd_error: which file, which tensor, at which offset,
 * what was expected and, where there is one, the remedy. Nothing here prints or exits.
 * A NULL bd_error is allowed everywhere: the sentence is then dropped. */
#ifndef BD_ERROR_H
#define BD_ERROR_H

#include <stdarg.h>

struct bd_error {
	int code;        /* the negative errno that was returned, 0 if none */
	char text[1024]; /* one sentence without a final full stop or newline, NUL-terminated */
};

/* Record a sentence and return `code` (a negative errno), so that callers write
 * `return bd_error_set(err, -EINVAL, "%s: ...", path);`. Overwrites an earlier sentence. */
int bd_error_set(struct bd_error *err, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Put "PREFIX: " in front of the sentence that is there (a caller that knows more context).
 * Returns err->code, or -EIO where err is NULL. */
int bd_error_prefix(struct bd_error *err, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

#endif
