/* SPDX-License-Identifier: Apache-2.0 */
/* json.h: a strict pull reader for JSON that strangers wrote.
 *
 * RFC 8259 to the letter: UTF-8 checked (no surrogates, no overlong forms, no BOM), no control
 * characters in strings, no leading zeros, no trailing commas or garbage, \u escapes decoded with
 * their surrogate pairs complete. Integers are uint64_t and never rounded. One pass, no tree: the
 * memory is what the caller keeps. Every failure is -EINVAL with the byte offset in the file.
 * White space (space, tab, CR, LF) is allowed between tokens, also before the first one.
 *
 * What programs in Python write for people (config.json) may hold NaN, Infinity and -Infinity. A
 * reader takes them for numbers where `constants` is set, right after bd_json_init.
 *
 *     struct bd_json j;
 *     bd_json_init(&j, text, size, "model.safetensors", 8, err);
 *     rc = bd_json_object(&j);
 *     while (rc == 0 && (rc = bd_json_member(&j, key, sizeof(key), &length)) > 0)
 *             rc = bd_json_u64(&j, &value);
 *     if (rc == 0) rc = bd_json_end(&j);
 *
 * A reader that has failed stays failed: later calls return the same error. */
#ifndef BD_JSON_H
#define BD_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define BD_JSON_DEPTH 32 /* deepest nesting that any of our documents may have */

enum bd_json_kind {
	BD_JSON_BAD, BD_JSON_OBJECT, BD_JSON_ARRAY, BD_JSON_STRING, BD_JSON_NUMBER, BD_JSON_TRUE,
	BD_JSON_FALSE, BD_JSON_NULL
};

struct bd_json {
	const char *text; /* borrowed: lives as long as the reader */
	size_t size, at;
	size_t token;      /* where the token that was read last begins; errors point there */
	const char *what;  /* file name for messages, borrowed */
	uint64_t origin;   /* offset of text in that file */
	bool constants;    /* NaN, Infinity and -Infinity are numbers */
	struct bd_error *err;
	int failed;        /* 0 or the error that stopped the reader */
	unsigned depth;
	bool first[BD_JSON_DEPTH + 1]; /* per level: no member read yet */
};

void bd_json_init(struct bd_json *j, const char *text, size_t size, const char *what,
		  uint64_t origin, struct bd_error *err);

/* What the next value is, without consuming it. */
enum bd_json_kind bd_json_peek(struct bd_json *j);

/* Enter an object or an array. */
int bd_json_object(struct bd_json *j);
int bd_json_array(struct bd_json *j);
/* The next member's key into dst (NUL-terminated; keys that do not fit in capacity, NUL included,
 * are -EINVAL; dst NULL: checked and dropped): 1, or 0 at the closing brace, which is consumed. */
int bd_json_member(struct bd_json *j, char *dst, size_t capacity, size_t *length);
/* 1 where another item follows, 0 at the closing bracket, which is consumed. */
int bd_json_item(struct bd_json *j);

/* A string, decoded into dst with a NUL after it. Fails where it does not fit. *length may differ
 * from strlen(dst): strings may contain U+0000. */
int bd_json_string(struct bd_json *j, char *dst, size_t capacity, size_t *length);
/* The same, malloced. */
int bd_json_string_dup(struct bd_json *j, char **out, size_t *length);
/* A non-negative integer without sign, fraction or exponent that fits in 64 bits. */
int bd_json_u64(struct bd_json *j, uint64_t *value);
/* Any number, as strtod reads it in the C locale; finite, but for `constants`. */
int bd_json_number(struct bd_json *j, double *value);
int bd_json_bool(struct bd_json *j, bool *value);
/* Read past any value, checking it. */
int bd_json_skip(struct bd_json *j);
/* Nothing but white space may follow. */
int bd_json_end(struct bd_json *j);

/* Fail the reader with a message about the token that it read last: `WHAT: at byte N: MESSAGE`.
 * Control characters in the message (it may quote the document) become '?'. Returns -EINVAL, or
 * the earlier error of a reader that has failed already. */
int bd_json_fail(struct bd_json *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Check a whole document before its members are used. Objects with the same key twice, of which
 * other readers might take the other, and strings with U+0000, which C strings would cut short, are
 * refused too. */
int bd_json_check(const char *text, size_t size, const char *what, struct bd_error *err);
/* The same with `constants`. */
int bd_json_check_constants(const char *text, size_t size, const char *what, struct bd_error *err);

#endif
