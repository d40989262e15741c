/* SPDX-License-Identifier: Apache-2.0 */
/* pattern.c: the regular expressions of tokenizer.json, by PCRE2; see tokenizer_impl.h.
 *
 * They are written for Oniguruma, whose syntax means other things in places: `^` and `$` are
 * those of lines, `x{1,3}+` is not possessive, `\h` is a hexadecimal digit, `\s` and `\w` follow
 * Unicode, `\p{Han}` is a script and not a script extension. A pattern is therefore taken apart and
 * written anew in PCRE2's syntax; what is not known here is refused and not guessed at. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer_impl.h"

#define MAX_PATTERN ((size_t)16 << 10)
#define MAX_GROUPS 64
#define NO_ATOM SIZE_MAX

#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX "0-9A-Fa-f"

/* Steps that may be taken from one starting point: what linear patterns need, and no more. */
#define STEPS_FREE 1000000
#define STEPS_PER_BYTE 16
#define HEAP_KIB (512u << 10)
/* What may be done at most before the clock is looked at. */
#define STEPS_UNWATCHED ((uint64_t)1 << 28)
#define MATCHES_UNWATCHED 16

struct bdx_pattern {
	pcre2_code *code;
};

struct group {
	size_t start;  /* in the output */
	bool implicit; /* opened by an option such as (?i) and closed with the group around it */
};

struct translation {
	const char *in;
	size_t size, at;
	struct bd_buffer out;
	size_t atom; /* where in the output the thing that a quantifier would repeat begins */
	struct group groups[MAX_GROUPS];
	unsigned depth;
	const char *name;
	struct bd_error *err;
};

static int refuse(struct translation *t, const char *what)
{
	return bd_error_set(t->err, -ENOTSUP,
			    "%s: the pattern '%.*s' has %s, which is not supported", t->name,
			    (int)(t->size < 200 ? t->size : 200), t->in, what);
}

static void put(struct translation *t, const char *text)
{
	bd_buffer_append(&t->out, text, strlen(text));
}

/* The next byte but `ahead`, or NUL past the end. */
static char peek(const struct translation *t, size_t ahead)
{
	return t->size - t->at > ahead ? t->in[t->at + ahead] : '\0';
}

static bool is_hex(char c)
{
	return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

static bool is_alnum(char c)
{
	return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

static pcre2_code *compile(const char *text, size_t size, uint32_t options, int *error)
{
	pcre2_compile_context *context = pcre2_compile_context_create(NULL);
	PCRE2_SIZE offset;
	pcre2_code *code;

	if (!context) {
		*error = PCRE2_ERROR_NOMEMORY;
		return NULL;
	}
	pcre2_set_newline(context, PCRE2_NEWLINE_LF);
	code = pcre2_compile((PCRE2_SPTR)text, size, options | PCRE2_UTF | PCRE2_USE_OFFSET_LIMIT,
			     error, &offset, context);
	pcre2_compile_context_free(context);
	return code;
}

static bool is_script(const char *name)
{
	char text[64];
	int error, length = snprintf(text, sizeof(text), "\\p{sc:%s}", name);
	pcre2_code *code;

	if (length < 0 || (size_t)length >= sizeof(text))
		return false;
	code = compile(text, (size_t)length, PCRE2_UCP, &error);
	pcre2_code_free(code);
	return code != NULL;
}

/* \p{NAME}, from its brace. */
static int put_property(struct translation *t, char letter)
{
	bool negate = letter == 'P';
	char name[40];
	size_t length = 0;

	if (peek(t, 0) != '{')
		return refuse(t, "\\p without a brace");
	t->at++;
	if (peek(t, 0) == '^') {
		negate = !negate;
		t->at++;
	}
	while (peek(t, 0) != '}') {
		if ((!is_alnum(peek(t, 0)) && !strchr("_ -&", peek(t, 0))) || !peek(t, 0) ||
		    length + 1 == sizeof(name))
			return refuse(t, "a property with a strange name");
		name[length++] = t->in[t->at++];
	}
	t->at++;
	name[length] = '\0';
	put(t, negate ? "\\P{" : "\\p{");
	if (length > 2 && is_script(name))
		put(t, "sc:");
	put(t, name);
	put(t, "}");
	return 0;
}

/* \xHH, \x{H...} and \uHHHH, from the digits. */
static int put_code(struct translation *t, char letter)
{
	char text[16];
	bool brace = letter == 'x' && peek(t, 0) == '{';
	size_t digits = 0, most = letter == 'u' ? 4 : brace ? 6 : 2;
	unsigned long code;

	t->at += brace;
	while (digits < most && is_hex(peek(t, 0)))
		text[digits++] = t->in[t->at++];
	text[digits] = '\0';
	code = strtoul(text, NULL, 16);
	if (digits == 0 || (letter == 'u' && digits < 4) || (brace && peek(t, 0) != '}') ||
	    (letter == 'x' && !brace && code >= 0x80))
		return refuse(t, "a character by a number that is not one");
	t->at += brace;
	snprintf(text, sizeof(text), "\\x{%lx}", code);
	put(t, text);
	return 0;
}

/* An escape, from the character after its backslash. */
static int put_escape(struct translation *t, bool in_class)
{
	char c = peek(t, 0), same[3] = { '\\', c, '\0' };

	if (t->at >= t->size)
		return refuse(t, "a backslash at its end");
	t->at++;
	switch (c) {
	case 'd': put(t, "\\p{Nd}"); return 0;
	case 'D': put(t, "\\P{Nd}"); return 0;
	case 's': put(t, "\\p{White_Space}"); return 0;
	case 'S': put(t, "\\P{White_Space}"); return 0;
	case 'w': put(t, in_class ? WORD : "[" WORD "]"); return 0;
	case 'h': put(t, in_class ? HEX : "[" HEX "]"); return 0;
	case 'v': put(t, "\\x0b"); return 0;
	case 'p': case 'P': return put_property(t, c);
	case 'x': case 'u': return put_code(t, c);
	case 'n': case 'r': case 't': case 'f': case 'a': case 'e': put(t, same); return 0;
	}
	if (in_class && c == 'b') {
		put(t, "\\x08");
		return 0;
	}
	if (!in_class) {
		switch (c) {
		case 'W': put(t, "[^" WORD "]"); return 0;
		case 'H': put(t, "[^" HEX "]"); return 0;
		case 'A': case 'z': case 'Z': put(t, same); return 0;
		case 'b':
			put(t, "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))");
			return 0;
		case 'B':
			put(t, "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))");
			return 0;
		}
	}
	if (is_alnum(c))
		return refuse(t, "an unusual escape");
	if ((unsigned char)c < 0x80)
		put(t, same);
	else
		t->at--; /* a character that needs no escape */
	return 0;
}

/* [...], from after the bracket. */
static int put_class(struct translation *t)
{
	bool begin = true;

	put(t, "[");
	if (peek(t, 0) == '^') {
		put(t, "^");
		t->at++;
	}
	for (;; begin = false) {
		char c = peek(t, 0);
		int rc;

		if (t->at >= t->size)
			return refuse(t, "a set without an end");
		t->at++;
		if (c == ']' && !begin)
			break;
		if (c == '[')
			return refuse(t, "a set inside a set");
		if (c == '&' && peek(t, 0) == '&')
			return refuse(t, "an intersection of sets");
		if (c == ']') {
			put(t, "\\]");
		} else if (c == '\\') {
			rc = put_escape(t, true);
			if (rc)
				return rc;
		} else {
			bd_buffer_append(&t->out, &c, 1);
		}
	}
	put(t, "]");
	return 0;
}

static int push_group(struct translation *t, size_t start, bool implicit)
{
	if (t->depth == MAX_GROUPS)
		return refuse(t, "too many groups inside each other");
	t->groups[t->depth++] = (struct group){ .start = start, .implicit = implicit };
	return 0;
}

/* Close the groups that options opened inside the present group. */
static void close_implicit(struct translation *t)
{
	while (t->depth && t->groups[t->depth - 1].implicit) {
		put(t, ")");
		t->depth--;
	}
}

/* (..., from after the parenthesis. Groups are not captured: nothing could refer to them. */
static int put_group(struct translation *t)
{
	static const char *const kinds[] = { "?:", "?=", "?!", "?>", "?<=", "?<!" };
	size_t start = t->out.size;
	const char *options = t->in + t->at + 1;
	size_t length = 0;
	bool implicit;

	t->atom = NO_ATOM;
	if (peek(t, 0) != '?') {
		put(t, "(?:");
		return push_group(t, start, false);
	}
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		size_t n = strlen(kinds[i]);

		if (t->size - t->at >= n && memcmp(t->in + t->at, kinds[i], n) == 0) {
			put(t, "(");
			put(t, kinds[i]);
			t->at += n;
			return push_group(t, start, false);
		}
	}
	/* Options: of a group, or from here to the end of the group around them. */
	t->at++;
	while (peek(t, length) == 'i' || peek(t, length) == '-')
		length++;
	if (length == 0 || length > 2 || (peek(t, length) != ':' && peek(t, length) != ')'))
		return refuse(t, "an unusual group");
	implicit = peek(t, length) == ')';
	put(t, "(?");
	bd_buffer_append(&t->out, options, length);
	put(t, ":");
	t->at += length + 1;
	return push_group(t, start, implicit);
}

/* How long the {n,m} is that begins at the present byte, or 0 where it is none. */
static size_t interval_length(const struct translation *t, bool *from_zero)
{
	size_t i = 1, low = 0, high = 0;
	bool comma;

	for (; peek(t, i) >= '0' && peek(t, i) <= '9'; i++)
		low++;
	comma = peek(t, i) == ',';
	i += comma;
	for (; comma && peek(t, i) >= '0' && peek(t, i) <= '9'; i++)
		high++;
	*from_zero = low == 0;
	return peek(t, i) == '}' && (low || high) ? i + 1 : 0;
}

/* A quantifier, `length` bytes from the present one, and what may follow it. */
static int put_quantifier(struct translation *t, size_t length, bool interval, bool from_zero)
{
	char mark = peek(t, length);
	size_t tail;

	if (t->atom == NO_ATOM)
		return refuse(t, "a quantifier with nothing to repeat");
	if (interval && mark == '?' && !memchr(t->in + t->at, ',', length))
		return refuse(t, "an interval with a question mark");
	if (interval && mark == '+') {
		/* Not possessive: the whole is repeated. Wrap what is there already. */
		put(t, "(?:");
		if (t->out.failed)
			return 0;
		tail = t->out.size - 3 - t->atom;
		memmove(t->out.data + t->atom + 3, t->out.data + t->atom, tail);
		memcpy(t->out.data + t->atom, "(?:", 3);
	}
	if (from_zero) {
		put(t, "{0");
		bd_buffer_append(&t->out, t->in + t->at + 1, length - 1);
	} else {
		bd_buffer_append(&t->out, t->in + t->at, length);
	}
	t->at += length;
	if (interval && mark == '+')
		put(t, ")");
	if (mark == '?' || mark == '+') {
		bd_buffer_append(&t->out, &mark, 1);
		t->at++;
	}
	t->atom = NO_ATOM;
	return 0;
}

static int translate(struct translation *t)
{
	int rc = 0;

	while (rc == 0 && t->at < t->size) {
		char c = t->in[t->at];
		size_t length = 1;
		bool from_zero = false;

		if (c == '{')
			length = interval_length(t, &from_zero);
		if (c == '*' || c == '+' || c == '?' || (c == '{' && length)) {
			rc = put_quantifier(t, length, c == '{', c == '{' && from_zero);
			continue;
		}
		t->at++;
		switch (c) {
		case '\\':
			t->atom = t->out.size;
			rc = put_escape(t, false);
			break;
		case '[':
			t->atom = t->out.size;
			rc = put_class(t);
			break;
		case '(':
			rc = put_group(t);
			break;
		case ')':
			close_implicit(t);
			if (t->depth == 0)
				return refuse(t, "a parenthesis too many");
			t->atom = t->groups[--t->depth].start;
			put(t, ")");
			break;
		case '|': case '^': case '$':
			t->atom = NO_ATOM;
			bd_buffer_append(&t->out, &c, 1);
			break;
		case '{': case '}': case ']':
			t->atom = t->out.size;
			put(t, "\\");
			bd_buffer_append(&t->out, &c, 1);
			break;
		default:
			if (((unsigned char)c & 0xc0) != 0x80) /* the first byte of a character */
				t->atom = t->out.size;
			bd_buffer_append(&t->out, &c, 1);
		}
	}
	if (rc)
		return rc;
	close_implicit(t);
	return t->depth ? refuse(t, "a group without an end") : 0;
}

int bdx_pattern_open(struct bdx_pattern **pattern, const char *text, size_t size, bool literal,
		     const char *name, struct bd_error *err)
{
	struct translation t = {
		.in = text, .size = size, .name = name, .err = err, .atom = NO_ATOM
	};
	struct bdx_pattern *p = NULL;
	PCRE2_UCHAR why[128];
	int error = 0, rc = 0;

	*pattern = NULL;
	if (size > MAX_PATTERN)
		return bd_error_set(err, -ENOTSUP, "%s: a pattern of %zu bytes is too long", name,
				    size);
	bd_buffer_append(&t.out, literal ? text : "", literal ? size : 0);
	if (!literal)
		rc = translate(&t);
	if (rc)
		goto out;
	p = calloc(1, sizeof(*p));
	if (!p || t.out.failed) {
		rc = bd_error_set(err, -ENOMEM, "%s: out of memory", name);
		goto out;
	}
	p->code = compile(t.out.data, t.out.size, literal ? PCRE2_LITERAL :
			  PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
			  &error);
	if (!p->code) {
		if (pcre2_get_error_message(error, why, sizeof(why)) < 0)
			why[0] = '\0';
		rc = bd_error_set(err, error == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -ENOTSUP,
				  "%s: the pattern '%.*s' cannot be used: %s", name,
				  (int)(size < 200 ? size : 200), text, (const char *)why);
		goto out;
	}
	/* Without it, or where pages may not be executed, patterns are interpreted: only slower. */
	(void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
	*pattern = p;
	p = NULL;
out:
	bdx_pattern_close(p);
	bd_buffer_free(&t.out);
	return rc;
}

void bdx_pattern_close(struct bdx_pattern *pattern)
{
	if (!pattern)
		return;
	pcre2_code_free(pattern->code);
	free(pattern);
}

int bdx_add_span(struct bdx_run *run, size_t start, size_t end, bool match)
{
	struct bdx_spans *spans = &run->spans;
	struct bdx_span *data = bdx_grow(spans->data, spans->count, &spans->capacity,
					 sizeof(*data));

	if (!data)
		return bdx_run_nomem(run);
	spans->data = data;
	data[spans->count++] = (struct bdx_span){ .start = start, .end = end, .match = match };
	return 0;
}

static int fail_match(struct bdx_run *run, int error)
{
	PCRE2_UCHAR why[128];

	if (error == PCRE2_ERROR_NOMEMORY)
		return bdx_run_nomem(run);
	if (pcre2_get_error_message(error, why, sizeof(why)) < 0)
		why[0] = '\0';
	return bd_error_set(run->err, -EINVAL,
			    "%s: a pattern of this tokenizer cannot be applied to this text: %s",
			    run->name, (const char *)why);
}

/* A search through one text. */
struct search {
	const struct bdx_pattern *pattern;
	struct bdx_run *run;
	const char *text;
	size_t size;
	size_t points; /* from which it may start before the clock is looked at */
	pcre2_match_data *data;
	pcre2_match_context *context;
};

/* The first place after `at` where a character begins. */
static size_t next_character(const struct search *s, size_t at)
{
	do
		at++;
	while (at < s->size && ((unsigned char)s->text[at] & 0xc0) == 0x80);
	return at;
}

/* The first match that begins at `at` or later: 1, or 0 where there is none. */
static int find(const struct search *s, size_t at)
{
	int rc;

	while (at <= s->size) {
		pcre2_set_offset_limit(s->context, at + s->points);
		rc = pcre2_match(s->pattern->code, (PCRE2_SPTR)s->text, s->size, at,
				 PCRE2_NO_UTF_CHECK, s->data, s->context);
		if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
			rc = pcre2_match(s->pattern->code, (PCRE2_SPTR)s->text, s->size, at,
					 PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->data, s->context);
		if (rc >= 0)
			return 1;
		if (rc != PCRE2_ERROR_NOMATCH)
			return fail_match(s->run, rc);
		if (s->size - at <= s->points)
			return 0;
		rc = bdx_run_clock(s->run);
		if (rc)
			return rc;
		at = next_character(s, at + s->points);
	}
	return 0;
}

int bdx_pattern_split(const struct bdx_pattern *pattern, struct bdx_run *run, const char *text,
		      size_t size)
{
	struct search s = {
		.pattern = pattern, .run = run, .text = text, .size = size,
		.data = pcre2_match_data_create(1, NULL),
		.context = pcre2_match_context_create(NULL),
	};
	uint64_t steps = STEPS_FREE + (uint64_t)STEPS_PER_BYTE * size;
	size_t done = 0, at = 0, last = SIZE_MAX;
	PCRE2_SIZE *ends;
	int rc;

	run->spans.count = 0;
	if (!s.data || !s.context) {
		rc = bdx_run_nomem(run);
		goto out;
	}
	steps = steps < UINT32_MAX ? steps : UINT32_MAX;
	s.points = STEPS_UNWATCHED / steps + 1;
	pcre2_set_match_limit(s.context, (uint32_t)steps);
	pcre2_set_heap_limit(s.context, HEAP_KIB);
	ends = pcre2_get_ovector_pointer(s.data);
	while ((rc = find(&s, at)) > 0) {
		/* An empty match right after a match does not count. Matches end where they begin
		 * or later, as \K is refused. */
		if (ends[0] == ends[1] && ends[1] == last) {
			at = next_character(&s, at);
			continue;
		}
		rc = done < ends[0] ? bdx_add_span(run, done, ends[0], false) : 0;
		if (rc == 0)
			rc = bdx_add_span(run, ends[0], ends[1], true);
		if (rc == 0 && run->spans.count % MATCHES_UNWATCHED == 0)
			rc = bdx_run_clock(run);
		if (rc)
			goto out;
		done = at = last = ends[1];
	}
	if (rc == 0 && done < size)
		rc = bdx_add_span(run, done, size, false);
out:
	pcre2_match_data_free(s.data);
	pcre2_match_context_free(s.context);
	return rc;
}
