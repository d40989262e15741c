/* SPDX-License-Identifier: Apache-2.0 */
/* json.c: the strict pull reader for JSON, see json.h.
 *
 * Strings are decoded straight into the caller's memory and are never longer than their text in
 * the document, which bounds every buffer by the document. */
#include "json.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "utf8.h"

/* Longest number that is converted: longer ones are read past, but have no value. */
#define NUMBER_MAX 512

void bd_json_init(struct bd_json *j, const char *text, size_t size, const char *what,
		  uint64_t origin, struct bd_error *err)
{
	*j = (struct bd_json){
		.text = text, .size = size, .what = what, .origin = origin, .err = err,
	};
}

static int fail(struct bd_json *j, int code, const char *format, va_list args)
{
	char message[512];

	if (j->failed)
		return j->failed;
	vsnprintf(message, sizeof(message), format, args);
	for (char *p = message; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	j->failed = bd_error_set(j->err, code, "%s: at byte %llu: %s", j->what,
				 (unsigned long long)(j->origin + j->token), message);
	return j->failed;
}

int bd_json_fail(struct bd_json *j, const char *format, ...)
{
	va_list args;
	int rc;

	va_start(args, format);
	rc = fail(j, -EINVAL, format, args);
	va_end(args);
	return rc;
}

/* Fail at the present byte. */
__attribute__((format(printf, 2, 3)))
static int fail_here(struct bd_json *j, const char *format, ...)
{
	va_list args;
	int rc;

	j->token = j->at;
	va_start(args, format);
	rc = fail(j, -EINVAL, format, args);
	va_end(args);
	return rc;
}

__attribute__((format(printf, 3, 4)))
static int fail_code(struct bd_json *j, int code, const char *format, ...)
{
	va_list args;
	int rc;

	va_start(args, format);
	rc = fail(j, code, format, args);
	va_end(args);
	return rc;
}

/* Skip white space; the next byte, or -1 at the end. A token begins there. */
static int next(struct bd_json *j)
{
	while (j->at < j->size) {
		char c = j->text[j->at];

		if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
			break;
		j->at++;
	}
	j->token = j->at;
	return j->at < j->size ? (unsigned char)j->text[j->at] : -1;
}

static enum bd_json_kind kind_of(const struct bd_json *j, int c)
{
	switch (c) {
	case 'N': case 'I': return j->constants ? BD_JSON_NUMBER : BD_JSON_BAD;
	case '{': return BD_JSON_OBJECT;
	case '[': return BD_JSON_ARRAY;
	case '"': return BD_JSON_STRING;
	case 't': return BD_JSON_TRUE;
	case 'f': return BD_JSON_FALSE;
	case 'n': return BD_JSON_NULL;
	case '-':
	case '0': case '1': case '2': case '3': case '4':
	case '5': case '6': case '7': case '8': case '9': return BD_JSON_NUMBER;
	default: return BD_JSON_BAD;
	}
}

enum bd_json_kind bd_json_peek(struct bd_json *j)
{
	return j->failed ? BD_JSON_BAD : kind_of(j, next(j));
}

static int fail_expected(struct bd_json *j, const char *expected)
{
	static const char *const found[] = {
		[BD_JSON_OBJECT] = "an object", [BD_JSON_ARRAY] = "an array",
		[BD_JSON_STRING] = "a string", [BD_JSON_NUMBER] = "a number",
		[BD_JSON_TRUE] = "true", [BD_JSON_FALSE] = "false", [BD_JSON_NULL] = "null",
	};
	int c = next(j);

	if (c < 0)
		return bd_json_fail(j, "expected %s, found the end", expected);
	if (kind_of(j, c) != BD_JSON_BAD)
		return bd_json_fail(j, "expected %s, found %s", expected, found[kind_of(j, c)]);
	if (c > 0x20 && c < 0x7f)
		return bd_json_fail(j, "expected %s, found '%c'", expected, c);
	return bd_json_fail(j, "expected %s, found byte 0x%02x", expected, (unsigned)c);
}

static int enter(struct bd_json *j, char bracket, const char *expected)
{
	if (j->failed)
		return j->failed;
	if (next(j) != bracket)
		return fail_expected(j, expected);
	if (j->depth == BD_JSON_DEPTH)
		return bd_json_fail(j, "nested more than %d deep", BD_JSON_DEPTH);
	j->at++;
	j->first[++j->depth] = true;
	return 0;
}

int bd_json_object(struct bd_json *j)
{
	return enter(j, '{', "an object");
}

int bd_json_array(struct bd_json *j)
{
	return enter(j, '[', "an array");
}

/* Between the members or items of a container: 1 where another one follows, 0 past its end. */
static int advance(struct bd_json *j, char close)
{
	int c;

	if (j->failed)
		return j->failed;
	c = next(j);
	if (c == close) {
		j->at++;
		j->depth--;
		return 0;
	}
	if (j->first[j->depth]) {
		j->first[j->depth] = false;
		return 1;
	}
	if (c != ',')
		return fail_expected(j, close == '}' ? "',' or '}'" : "',' or ']'");
	j->at++;
	if (next(j) == close)
		return bd_json_fail(j, "nothing follows the last comma");
	return 1;
}

int bd_json_item(struct bd_json *j)
{
	return advance(j, ']');
}

/* Four hexadecimal digits at j->at. */
static int read_hex(struct bd_json *j, uint32_t *value)
{
	uint32_t v = 0;

	for (int i = 0; i < 4; i++) {
		char c = j->at < j->size ? j->text[j->at] : '\0';

		if (c >= '0' && c <= '9')
			v = v << 4 | (uint32_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (uint32_t)(c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			v = v << 4 | (uint32_t)(c - 'A' + 10);
		else
			return fail_here(j, "\\u needs four hexadecimal digits");
		j->at++;
	}
	*value = v;
	return 0;
}

/* The escape whose backslash is at j->at, as a code point. */
static int read_escape(struct bd_json *j, uint32_t *code)
{
	static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
	char letter = j->at + 1 < j->size ? j->text[j->at + 1] : '\0';
	const char *known = letter ? strchr(letters, letter) : NULL;
	uint32_t low = 0;
	int rc;

	if (known) {
		*code = (unsigned char)meanings[known - letters];
		j->at += 2;
		return 0;
	}
	if (letter != 'u')
		return fail_here(j, "unknown escape in a string");
	j->at += 2;
	rc = read_hex(j, code);
	if (rc || *code < 0xd800 || *code > 0xdfff)
		return rc;
	/* A surrogate: only a high one with its low one right after it means a character. */
	if (*code > 0xdbff || j->size - j->at < 2 || memcmp(j->text + j->at, "\\u", 2) != 0)
		return fail_here(j, "half of a surrogate pair in a string");
	j->at += 2;
	rc = read_hex(j, &low);
	if (rc)
		return rc;
	if (low < 0xdc00 || low > 0xdfff)
		return fail_here(j, "half of a surrogate pair in a string");
	*code = 0x10000 + ((*code - 0xd800) << 10) + (low - 0xdc00);
	return 0;
}

/* Bytes that stand for themselves in a string. */
static const bool is_ordinary[256] = {
	[0x20 ... '"' - 1] = true, ['"' + 1 ... '\\' - 1] = true, ['\\' + 1 ... 0x7f] = true,
};

/* Read a string into dst, or only check it where dst is NULL. */
static int read_string(struct bd_json *j, char *dst, size_t capacity, size_t *length,
		       const char *expected)
{
	size_t start, used = 0;

	if (j->failed)
		return j->failed;
	if (next(j) != '"')
		return fail_expected(j, expected);
	start = j->at++;
	for (;;) {
		char escaped[4];
		const char *piece = j->text + j->at;
		size_t from = j->at, size;
		uint32_t code;
		unsigned char c;

		while (j->at < j->size && is_ordinary[(unsigned char)j->text[j->at]])
			j->at++;
		size = j->at - from;
		if (size == 0) {
			c = j->at < j->size ? (unsigned char)j->text[j->at] : 0;
			if (c == '"')
				break;
			if (c == '\\') {
				int rc = read_escape(j, &code);

				if (rc)
					return rc;
				piece = escaped;
				size = bd_utf8_encode(code, escaped);
			} else if (j->at == j->size) {
				j->token = start;
				return bd_json_fail(j, "string without an end");
			} else if (c < 0x20) {
				return fail_here(j, "control character 0x%02x in a string", c);
			} else {
				size = bd_utf8_decode(piece, j->size - j->at, &code);
				if (size == 0)
					return fail_here(j, "byte 0x%02x is not valid UTF-8", c);
				j->at += size;
			}
		}
		if (dst) {
			if (size >= capacity || used >= capacity - size) {
				j->token = start;
				return bd_json_fail(j, "string longer than %zu bytes",
						    capacity ? capacity - 1 : 0);
			}
			memcpy(dst + used, piece, size);
		}
		used += size;
	}
	j->at++;
	j->token = start;
	if (dst) {
		if (capacity == 0)
			return bd_json_fail(j, "no room for a string");
		dst[used] = '\0';
	}
	if (length)
		*length = used;
	return 0;
}

int bd_json_string(struct bd_json *j, char *dst, size_t capacity, size_t *length)
{
	return read_string(j, dst, capacity, length, "a string");
}

int bd_json_string_dup(struct bd_json *j, char **out, size_t *length)
{
	struct bd_json ahead = *j;
	size_t size;
	char *copy;
	int rc;

	*out = NULL;
	/* Measure first: a document of one long string must not cost more than that string. */
	ahead.err = NULL;
	if (read_string(&ahead, NULL, 0, &size, "a string") == 0) {
		copy = malloc(size + 1);
		if (!copy)
			return fail_code(j, -ENOMEM, "out of memory for a string of %zu bytes",
					 size);
	} else {
		size = 0;
		copy = NULL;
	}
	rc = read_string(j, copy, size + 1, length, "a string");
	if (rc) {
		free(copy);
		return rc;
	}
	*out = copy;
	return 0;
}

int bd_json_member(struct bd_json *j, char *dst, size_t capacity, size_t *length)
{
	size_t key;
	int rc = advance(j, '}');

	if (rc <= 0)
		return rc;
	rc = read_string(j, dst, capacity, length, "a string as key");
	if (rc)
		return rc;
	key = j->token;
	if (next(j) != ':')
		return fail_expected(j, "':'");
	j->at++;
	j->token = key;
	return 1;
}

static bool is_digit(const struct bd_json *j, size_t at)
{
	return at < j->size && j->text[at] >= '0' && j->text[at] <= '9';
}

/* Read past one or more digits. */
static int skip_digits(struct bd_json *j)
{
	if (!is_digit(j, j->at))
		return fail_here(j, "a digit is missing in a number");
	while (is_digit(j, j->at))
		j->at++;
	return 0;
}

/* Read past NaN, Infinity or -Infinity, where they are allowed: true. */
static bool skip_constant(struct bd_json *j)
{
	static const char *const words[] = { "NaN", "Infinity", "-Infinity" };

	for (size_t i = 0; j->constants && i < sizeof(words) / sizeof(*words); i++) {
		size_t length = strlen(words[i]);

		if (j->size - j->at >= length && memcmp(j->text + j->at, words[i], length) == 0) {
			j->at += length;
			return true;
		}
	}
	return false;
}

/* Read past a number; it is then the bytes from j->token to j->at. *integer tells whether it is
 * digits only. */
static int skip_number(struct bd_json *j, const char *expected, bool *integer)
{
	size_t start;
	int rc;

	if (j->failed)
		return j->failed;
	if (kind_of(j, next(j)) != BD_JSON_NUMBER)
		return fail_expected(j, expected);
	start = j->at;
	*integer = false;
	if (skip_constant(j))
		return 0;
	*integer = true;
	if (j->text[j->at] == '-') {
		*integer = false;
		j->at++;
	}
	if (is_digit(j, j->at) && j->text[j->at] == '0' && is_digit(j, j->at + 1))
		return fail_here(j, "a number begins with 0");
	rc = skip_digits(j);
	if (rc)
		return rc;
	if (j->at < j->size && j->text[j->at] == '.') {
		*integer = false;
		j->at++;
		rc = skip_digits(j);
		if (rc)
			return rc;
	}
	if (j->at < j->size && (j->text[j->at] == 'e' || j->text[j->at] == 'E')) {
		*integer = false;
		j->at++;
		if (j->at < j->size && (j->text[j->at] == '+' || j->text[j->at] == '-'))
			j->at++;
		rc = skip_digits(j);
		if (rc)
			return rc;
	}
	j->token = start;
	return 0;
}

int bd_json_u64(struct bd_json *j, uint64_t *value)
{
	uint64_t v = 0;
	bool integer;
	int rc = skip_number(j, "a non-negative integer", &integer);

	if (rc)
		return rc;
	if (!integer)
		return bd_json_fail(j, "expected a non-negative integer without sign, fraction or "
				    "exponent");
	for (size_t i = j->token; i < j->at; i++)
		if (__builtin_mul_overflow(v, (uint64_t)10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(j->text[i] - '0'), &v))
			return bd_json_fail(j, "integer does not fit in 64 bits");
	*value = v;
	return 0;
}

int bd_json_number(struct bd_json *j, double *value)
{
	char digits[NUMBER_MAX + 1];
	locale_t c_locale;
	size_t length;
	bool integer;
	int rc = skip_number(j, "a number", &integer);

	if (rc)
		return rc;
	length = j->at - j->token;
	if (length > NUMBER_MAX)
		return bd_json_fail(j, "number of more than %d characters", NUMBER_MAX);
	memcpy(digits, j->text + j->token, length);
	digits[length] = '\0';
	/* The program may run in a locale with a decimal comma. */
	c_locale = newlocale(LC_ALL_MASK, "C", NULL);
	if (!c_locale)
		return fail_code(j, -ENOMEM, "out of memory");
	*value = strtod_l(digits, NULL, c_locale);
	freelocale(c_locale);
	if (!isfinite(*value) && !j->constants)
		return bd_json_fail(j, "number too large");
	return 0;
}

static int skip_word(struct bd_json *j, const char *word)
{
	size_t length = strlen(word);

	if (j->size - j->at < length || memcmp(j->text + j->at, word, length) != 0)
		return bd_json_fail(j, "expected %s", word);
	j->at += length;
	return 0;
}

int bd_json_bool(struct bd_json *j, bool *value)
{
	switch (bd_json_peek(j)) {
	case BD_JSON_TRUE:
		*value = true;
		return skip_word(j, "true");
	case BD_JSON_FALSE:
		*value = false;
		return skip_word(j, "false");
	default:
		return j->failed ? j->failed : fail_expected(j, "true or false");
	}
}

/* Read past a value that is no object or array. */
static int skip_scalar(struct bd_json *j)
{
	bool integer;

	switch (bd_json_peek(j)) {
	case BD_JSON_STRING: return read_string(j, NULL, 0, NULL, "a string");
	case BD_JSON_NUMBER: return skip_number(j, "a number", &integer);
	case BD_JSON_TRUE: return skip_word(j, "true");
	case BD_JSON_FALSE: return skip_word(j, "false");
	case BD_JSON_NULL: return skip_word(j, "null");
	default: return j->failed ? j->failed : fail_expected(j, "a value");
	}
}

int bd_json_skip(struct bd_json *j)
{
	bool object[BD_JSON_DEPTH + 1];
	unsigned outside = j->depth;
	int rc;

	do {
		enum bd_json_kind kind = bd_json_peek(j);

		if (kind == BD_JSON_OBJECT || kind == BD_JSON_ARRAY) {
			rc = enter(j, kind == BD_JSON_OBJECT ? '{' : '[', "a value");
			if (rc)
				return rc;
			object[j->depth] = kind == BD_JSON_OBJECT;
		} else {
			rc = skip_scalar(j);
			if (rc)
				return rc;
		}
		/* Leave what ends here, up to the next value inside the one that we skip. */
		rc = 0;
		while (rc == 0 && j->depth > outside)
			rc = object[j->depth] ? bd_json_member(j, NULL, 0, NULL) : bd_json_item(j);
		if (rc < 0)
			return rc;
	} while (j->depth > outside);
	return 0;
}

int bd_json_end(struct bd_json *j)
{
	if (j->failed)
		return j->failed;
	if (next(j) >= 0)
		return bd_json_fail(j, "something follows the end of the document");
	return 0;
}

/* An object or array that bd_json_check is inside of. */
struct level {
	struct bd_name_table *keys; /* NULL until there is one */
	size_t keys_at;             /* its keys begin here in the stack of keys */
	bool object;
};

/* A C string would be cut short. */
static int check_string(struct bd_json *j, const char *string, size_t length)
{
	if (strlen(string) != length)
		return bd_json_fail(j, "U+0000 in a string");
	return 0;
}

/* One step inside the container `level`: like bd_json_member and bd_json_item. */
static int check_step(struct bd_json *j, struct level *level, char *keys, size_t *used)
{
	size_t length;
	int rc;

	if (!level->object)
		return bd_json_item(j);
	rc = bd_json_member(j, keys + *used, j->size + 1 - *used, &length);
	if (rc <= 0)
		return rc;
	rc = check_string(j, keys + *used, length);
	if (rc)
		return rc;
	if (!level->keys)
		level->keys = bd_name_table_new(0);
	rc = level->keys ? bd_name_table_add(level->keys, keys + *used, 0) : -ENOMEM;
	if (rc == -EEXIST)
		return bd_json_fail(j, "key \"%.80s\" for the second time in one object",
				    keys + *used);
	if (rc)
		return fail_code(j, rc, "out of memory");
	*used += length + 1;
	return 1;
}

static int check(const char *text, size_t size, const char *what, bool constants,
		 struct bd_error *err)
{
	struct level levels[BD_JSON_DEPTH + 1] = { 0 };
	struct bd_json j;
	size_t used = 0, length;
	char *keys;
	int rc;

	bd_json_init(&j, text, size, what, 0, err);
	j.constants = constants;
	/* The keys of all objects that are open, innermost last; then room for one string. Each
	 * is shorter than its text, so all fit; and pages that are not used cost nothing. */
	keys = malloc(size + 1);
	if (!keys)
		return fail_code(&j, -ENOMEM, "out of memory for %zu bytes", size);
	do {
		enum bd_json_kind kind = bd_json_peek(&j);

		if (kind == BD_JSON_OBJECT || kind == BD_JSON_ARRAY) {
			rc = enter(&j, kind == BD_JSON_OBJECT ? '{' : '[', "a value");
			if (rc)
				goto out;
			levels[j.depth] = (struct level){
				.object = kind == BD_JSON_OBJECT, .keys_at = used,
			};
		} else if (kind == BD_JSON_STRING) {
			rc = bd_json_string(&j, keys + used, size + 1 - used, &length);
			if (rc == 0)
				rc = check_string(&j, keys + used, length);
			if (rc)
				goto out;
		} else {
			rc = skip_scalar(&j);
			if (rc)
				goto out;
		}
		rc = 0;
		while (rc == 0 && j.depth > 0) {
			struct level *level = &levels[j.depth];

			rc = check_step(&j, level, keys, &used);
			if (rc == 0) {
				used = level->keys_at;
				bd_name_table_free(level->keys);
				level->keys = NULL;
			}
		}
		if (rc < 0)
			goto out;
	} while (j.depth > 0);
	rc = bd_json_end(&j);
out:
	for (unsigned i = 0; i <= BD_JSON_DEPTH; i++)
		bd_name_table_free(levels[i].keys);
	free(keys);
	return rc;
}

int bd_json_check(const char *text, size_t size, const char *what, struct bd_error *err)
{
	return check(text, size, what, false, err);
}

int bd_json_check_constants(const char *text, size_t size, const char *what, struct bd_error *err)
{
	return check(text, size, what, true, err);
}
