/* SPDX-License-Identifier: Apache-2.0 */
/* settings.c: looking up settings in a config.json, see settings.h. */
#include "settings.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Larger ones are no model's. */
#define MAX_SIZE ((size_t)4 << 20)
#define MAX_KEY 256

int bdx_settings_open(struct bdx_settings *s, struct bdx_source *source, const char *file,
		      struct bd_error *err)
{
	int rc;

	*s = (struct bdx_settings){ .err = err };
	rc = bdx_source_file(source, file, &s->text, &s->size, err);
	if (rc == 0 && asprintf(&s->what, "%s/%s", bdx_source_name(source), file) < 0) {
		s->what = NULL;
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", file);
	}
	if (rc == 0 && s->size > MAX_SIZE)
		rc = bd_error_set(err, -EINVAL, "%s: larger than %zu bytes", s->what, MAX_SIZE);
	if (rc == 0)
		rc = bd_json_check_constants(s->text, s->size, s->what, err);
	if (rc == 0) {
		struct bd_json j;

		bd_json_init(&j, s->text, s->size, s->what, 0, err);
		rc = bd_json_object(&j);
	}
	if (rc < 0)
		bdx_settings_close(s);
	s->failed = rc;
	return rc;
}

void bdx_settings_close(struct bdx_settings *s)
{
	free(s->text);
	free(s->what);
	s->text = s->what = NULL;
}

void bdx_settings_fail(struct bdx_settings *s, int code, const char *format, ...)
{
	char message[512];
	va_list args;

	if (s->failed)
		return;
	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	s->failed = bd_error_set(s->err, code, "%s: %s", s->what, message);
}

void bdx_settings_missing(struct bdx_settings *s, const char *key)
{
	char names[MAX_KEY] = "";
	size_t used = 0, n;

	for (; key && used < sizeof(names); key = key[n] ? key + n + 1 : NULL) {
		n = strcspn(key, "|");
		used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%.*s",
					 !used ? "" : key[n] ? ", " : " or ", (int)n, key);
	}
	bdx_settings_fail(s, -EINVAL, "%s is missing", names);
}

bool bdx_is_one_of(const char *word, size_t length, const char *list)
{
	for (;;) {
		size_t n = strcspn(list, "|");

		if (n == length && memcmp(list, word, n) == 0)
			return true;
		if (list[n] == '\0')
			return false;
		list += n + 1;
	}
}

/* Move a reader that stands before an object to the member `name`. False where there is none. */
static bool enter(struct bd_json *j, const char *name, size_t length)
{
	char key[MAX_KEY];
	size_t n;

	if (bd_json_peek(j) != BD_JSON_OBJECT || bd_json_object(j) < 0)
		return false;
	while (bd_json_member(j, key, sizeof(key), &n) > 0) {
		if (n == length && memcmp(key, name, n) == 0)
			return true;
		bd_json_skip(j);
	}
	return false;
}

/* One path, the `length` bytes at `path`. */
static enum bd_json_kind find_path(struct bdx_settings *s, const char *path, size_t length,
				   struct bd_json *j)
{
	const char *end = path + length;

	bd_json_init(j, s->text, s->size, s->what, 0, s->err);
	j->constants = true;
	for (;;) {
		const char *dot = memchr(path, '.', (size_t)(end - path));
		size_t n = (size_t)((dot ? dot : end) - path);

		if (!enter(j, path, n)) {
			s->failed = j->failed;
			return BD_JSON_BAD;
		}
		if (!dot)
			return bd_json_peek(j);
		path = dot + 1;
	}
}

/* As bdx_settings_find; *name is then the alternative that was found, up to '|' or the end. */
static enum bd_json_kind find_named(struct bdx_settings *s, const char *key, struct bd_json *value,
				    const char **name)
{
	enum bd_json_kind found = BD_JSON_BAD;

	while (key && !s->failed) {
		size_t n = strcspn(key, "|");
		struct bd_json j;
		enum bd_json_kind kind = find_path(s, key, n, &j);

		if (kind != BD_JSON_BAD && kind != BD_JSON_NULL) {
			if (value)
				*value = j;
			*name = key;
			return kind;
		}
		if (kind == BD_JSON_NULL)
			found = kind;
		key = key[n] ? key + n + 1 : NULL;
	}
	return found;
}

enum bd_json_kind bdx_settings_find(struct bdx_settings *s, const char *key, struct bd_json *value)
{
	const char *name;

	return find_named(s, key, value, &name);
}

static bool is_there(enum bd_json_kind kind)
{
	return kind != BD_JSON_BAD && kind != BD_JSON_NULL;
}

bool bdx_settings_number(struct bdx_settings *s, const char *key, double min, double max,
			 double *value)
{
	const char *name;
	struct bd_json j;
	double number = 0;

	if (!is_there(find_named(s, key, &j, &name)))
		return false;
	if (bd_json_number(&j, &number) == 0 && !(number >= min && number <= max))
		bd_json_fail(&j, "%.*s is %g, which is not from %g to %g", (int)strcspn(name, "|"), name,
			     number, min, max);
	s->failed = j.failed;
	if (s->failed)
		return false;
	*value = number;
	return true;
}

bool bdx_settings_count(struct bdx_settings *s, const char *key, uint64_t min, uint64_t max,
			uint64_t *value)
{
	const char *name;
	struct bd_json j;
	double number = 0;

	if (!is_there(find_named(s, key, &j, &name)))
		return false;
	/* Python writes some of them as 4096.0. All bounds are far below 2^53. */
	if (bd_json_number(&j, &number) == 0 &&
	    !(number >= (double)min && number <= (double)max && number == floor(number)))
		bd_json_fail(&j, "%.*s is %g, which is not a whole number from %" PRIu64 " to %"
			     PRIu64, (int)strcspn(name, "|"), name, number, min, max);
	s->failed = j.failed;
	if (s->failed)
		return false;
	*value = (uint64_t)number;
	return true;
}

bool bdx_settings_bool(struct bdx_settings *s, const char *key, bool *value)
{
	struct bd_json j;

	if (!is_there(bdx_settings_find(s, key, &j)))
		return false;
	s->failed = bd_json_bool(&j, value);
	return !s->failed;
}

bool bdx_settings_text(struct bdx_settings *s, const char *key, char *value, size_t capacity)
{
	struct bd_json j;

	if (!is_there(bdx_settings_find(s, key, &j)))
		return false;
	s->failed = bd_json_string(&j, value, capacity, NULL);
	return !s->failed;
}
