/* SPDX-License-Identifier: Apache-2.0 */
/* settings.h: a config.json as settings that are looked up by name.
 *
 * A key is a path, "attn_config.alibi", or several of which the first that is there counts:
 * "n_layers|num_hidden_layers". A setting that is null is not there. The document comes from
 * strangers: it is checked when it is opened, and every number has bounds.
 *
 * A failure is kept in `failed` (a negative errno, its sentence in the caller's bd_error); all
 * look-ups after it find nothing, so that callers need to ask only once. */
#ifndef BDX_SETTINGS_H
#define BDX_SETTINGS_H

#include "json.h"
#include "source.h"

struct bdx_settings {
	char *text, *what; /* owned; what: the file's name for messages */
	size_t size;
	struct bd_error *err;
	int failed;
};

/* -ENOENT where the source has no such file; -EINVAL where it is no JSON object. */
int bdx_settings_open(struct bdx_settings *s, struct bdx_source *source, const char *file,
		      struct bd_error *err);
void bdx_settings_close(struct bdx_settings *s); /* zeroed, or opened and failed: allowed */

/* What is at `key`: BD_JSON_BAD where nothing is, BD_JSON_NULL where there is only null. Otherwise
 * *value (may be NULL) reads it. key NULL: nothing. */
enum bd_json_kind bdx_settings_find(struct bdx_settings *s, const char *key, struct bd_json *value);

/* True where it is there; *value then is it. Outside of the bounds, or of another type: -EINVAL. */
bool bdx_settings_number(struct bdx_settings *s, const char *key, double min, double max,
			 double *value);
bool bdx_settings_count(struct bdx_settings *s, const char *key, uint64_t min, uint64_t max,
			uint64_t *value);
bool bdx_settings_bool(struct bdx_settings *s, const char *key, bool *value);
bool bdx_settings_text(struct bdx_settings *s, const char *key, char *value, size_t capacity);

/* Fail with "FILE: MESSAGE". */
void bdx_settings_fail(struct bdx_settings *s, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* Fail with "FILE: KEY is missing", or "A, B or C is missing". */
void bdx_settings_missing(struct bdx_settings *s, const char *key);

/* Is `word` (of `length` bytes) one of the alternatives in `list`, "a|b|c"? */
bool bdx_is_one_of(const char *word, size_t length, const char *list);

#endif
