/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer_parts.c: reading the components of tokenizer.json: normalizer, pre-tokenizer, decoder
 * and post-processor; see tokenizer_impl.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"

#define MAX_STEPS 256

enum member {
	TYPE, PATTERN, CONTENT, PREPEND, LEFT, RIGHT, BEHAVIOR, INVERT, ADD_PREFIX_SPACE, USE_REGEX,
	REPLACEMENT, SCHEME, SPLIT, INDIVIDUAL, START, STOP, NORMALIZERS, PRETOKENIZERS, DECODERS,
	MEMBERS
};

static const char *const member_names[MEMBERS] = {
	[TYPE] = "type", [PATTERN] = "pattern", [CONTENT] = "content", [PREPEND] = "prepend",
	[LEFT] = "strip_left", [RIGHT] = "strip_right", [BEHAVIOR] = "behavior",
	[INVERT] = "invert",
	[ADD_PREFIX_SPACE] = "add_prefix_space", [USE_REGEX] = "use_regex",
	[REPLACEMENT] = "replacement", [SCHEME] = "prepend_scheme", [SPLIT] = "split",
	[INDIVIDUAL] = "individual_digits", [START] = "start", [STOP] = "stop",
	[NORMALIZERS] = "normalizers", [PRETOKENIZERS] = "pretokenizers", [DECODERS] = "decoders",
};

/* The patterns that two components have built in: those of GPT-2 and of words. */
static const char gpt2_pattern[] =
	"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char word_pattern[] =
	"[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]+|"
	"[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}\\s]+";

/* One of some words. */
static int read_word(struct bd_json *mark, const char *const *words, size_t count, unsigned *word)
{
	char text[64];
	int rc = bd_json_string(mark, text, sizeof(text), NULL);

	for (size_t i = 0; i < count && rc == 0; i++)
		if (strcmp(words[i], text) == 0) {
			*word = (unsigned)i;
			return 0;
		}
	return rc ? rc : bd_json_fail(mark, "unknown word \"%s\"", text);
}

/* {"String": TEXT} or {"Regex": TEXT}. */
static int read_pattern(struct bdx_reader *r, struct bd_json *object, struct bd_json *mark,
			struct bdx_step *step)
{
	static const char *const keys[] = { "String", "Regex" };
	struct bd_json marks[2];
	char *text = NULL;
	size_t size;
	int rc = bdx_json_need(object, mark, "pattern");

	if (rc == 0)
		rc = bdx_json_mark(mark, keys, marks, 2);
	if (rc == 0 && !marks[0].text == !marks[1].text)
		rc = bd_json_fail(mark, "a pattern is either a String or a Regex");
	if (rc == 0)
		rc = bdx_json_string(&marks[!marks[0].text], &text, &size);
	if (rc == 0)
		rc = bdx_pattern_open(&step->pattern, text, size, marks[0].text != NULL, r->t->name,
				      r->err);
	free(text);
	return rc;
}

/* A string that is one character. */
static int read_character(struct bd_json *object, struct bd_json *mark, const char *key,
			  struct bdx_step *step)
{
	uint32_t code;
	int rc = bdx_json_need(object, mark, key);

	if (rc == 0)
		rc = bdx_json_string(mark, &step->text, &step->size);
	if (rc == 0 && (step->size == 0 || bdx_unicode_next(step->text, &code) != step->size))
		rc = bd_json_fail(mark, "\"%s\" must be one character", key);
	return rc;
}

static int read_metaspace(struct bd_json *j, struct bd_json marks[MEMBERS], struct bdx_step *step)
{
	static const char *const schemes[] = { "always", "first", "never" };
	unsigned scheme = BDX_PREPEND_ALWAYS;
	bool add = true;
	int rc = read_character(j, &marks[REPLACEMENT], "replacement", step);

	step->split = true;
	if (rc == 0)
		rc = bdx_json_bool(&marks[SPLIT], &step->split);
	if (rc == 0)
		rc = bdx_json_bool(&marks[ADD_PREFIX_SPACE], &add); /* older files have only this */
	if (rc == 0 && marks[SCHEME].text)
		rc = read_word(&marks[SCHEME], schemes, 3, &scheme);
	step->prepend = add ? (enum bdx_prepend)scheme : BDX_PREPEND_NEVER;
	return rc;
}

static int read_behavior(struct bd_json *mark, struct bdx_step *step)
{
	static const char *const behaviors[] = {
		[BDX_REMOVED] = "Removed", [BDX_ISOLATED] = "Isolated",
		[BDX_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
		[BDX_MERGED_WITH_NEXT] = "MergedWithNext", [BDX_CONTIGUOUS] = "Contiguous",
	};
	unsigned behavior = BDX_REMOVED;
	int rc = read_word(mark, behaviors, 5, &behavior);

	if (rc == 0)
		step->behavior = (enum bdx_behavior)behavior;
	return rc;
}

static int read_count(struct bd_json *object, struct bd_json *mark, const char *key, size_t *count)
{
	uint64_t value = 0;
	int rc = bdx_json_need(object, mark, key);

	if (rc == 0)
		rc = bd_json_u64(mark, &value);
	*count = value < SIZE_MAX ? (size_t)value : SIZE_MAX;
	return rc;
}

static int read_replace(struct bdx_reader *r, struct bd_json *j, struct bd_json marks[MEMBERS],
			struct bdx_step *step)
{
	int rc = bdx_json_need(j, &marks[CONTENT], "content");

	step->kind = BDX_REPLACE;
	if (rc == 0)
		rc = bdx_json_string(&marks[CONTENT], &step->text, &step->size);
	return rc ? rc : read_pattern(r, j, &marks[PATTERN], step);
}

static int read_normalizer(struct bdx_reader *r, struct bd_json *j, struct bd_json marks[MEMBERS],
			   const char *type, struct bdx_step *step)
{
	static const char *const forms[] = { "NFC", "NFD", "NFKC", "NFKD" };
	int rc;

	for (unsigned i = 0; i < 4; i++)
		if (strcmp(type, forms[i]) == 0) {
			step->kind = BDX_NORMALIZE;
			step->form = (enum bdx_form)i;
			return 0;
		}
	if (strcmp(type, "Replace") == 0)
		return read_replace(r, j, marks, step);
	if (strcmp(type, "Prepend") == 0) {
		step->kind = BDX_PREPEND;
		rc = bdx_json_need(j, &marks[PREPEND], "prepend");
		return rc ? rc : bdx_json_string(&marks[PREPEND], &step->text, &step->size);
	}
	if (strcmp(type, "Strip") == 0) {
		step->kind = BDX_STRIP;
		rc = bdx_json_bool(&marks[LEFT], &step->left);
		return rc ? rc : bdx_json_bool(&marks[RIGHT], &step->right);
	}
	if (strcmp(type, "Lowercase") == 0)
		step->kind = BDX_LOWERCASE;
	else if (strcmp(type, "StripAccents") == 0)
		step->kind = BDX_STRIP_ACCENTS;
	else
		return bdx_json_unsupported(r, "normalizer", type);
	return 0;
}

static int read_pretokenizer(struct bdx_reader *r, struct bd_json *j, struct bd_json marks[MEMBERS],
			     const char *type, struct bdx_step *step)
{
	bool use_regex = true;
	int rc;

	if (strcmp(type, "Split") == 0) {
		step->kind = BDX_SPLIT;
		rc = bdx_json_need(j, &marks[BEHAVIOR], "behavior");
		if (rc == 0)
			rc = read_behavior(&marks[BEHAVIOR], step);
		if (rc == 0)
			rc = bdx_json_bool(&marks[INVERT], &step->invert);
		return rc ? rc : read_pattern(r, j, &marks[PATTERN], step);
	}
	if (strcmp(type, "ByteLevel") == 0) {
		step->kind = BDX_BYTE_LEVEL;
		step->add_prefix_space = true;
		rc = bdx_json_bool(&marks[ADD_PREFIX_SPACE], &step->add_prefix_space);
		if (rc == 0)
			rc = bdx_json_bool(&marks[USE_REGEX], &use_regex);
		if (rc || !use_regex)
			return rc;
		return bdx_pattern_open(&step->pattern, gpt2_pattern, sizeof(gpt2_pattern) - 1,
					false, r->t->name, r->err);
	}
	if (strcmp(type, "Metaspace") == 0) {
		step->kind = BDX_METASPACE;
		return read_metaspace(j, marks, step);
	}
	if (strcmp(type, "Digits") == 0) {
		step->kind = BDX_DIGITS;
		return bdx_json_bool(&marks[INDIVIDUAL], &step->individual);
	}
	if (strcmp(type, "Punctuation") == 0) {
		step->kind = BDX_PUNCTUATION;
		step->behavior = BDX_ISOLATED;
		return marks[BEHAVIOR].text ? read_behavior(&marks[BEHAVIOR], step) : 0;
	}
	if (strcmp(type, "WhitespaceSplit") == 0) {
		step->kind = BDX_WHITESPACE_SPLIT;
		return 0;
	}
	if (strcmp(type, "Whitespace") == 0) {
		step->kind = BDX_SPLIT;
		step->behavior = BDX_REMOVED;
		step->invert = true;
		return bdx_pattern_open(&step->pattern, word_pattern, sizeof(word_pattern) - 1,
					false, r->t->name, r->err);
	}
	return bdx_json_unsupported(r, "pre-tokenizer", type);
}

static int read_decoder(struct bdx_reader *r, struct bd_json *j, struct bd_json marks[MEMBERS],
			const char *type, struct bdx_step *step)
{
	int rc;

	if (strcmp(type, "Replace") == 0)
		return read_replace(r, j, marks, step);
	if (strcmp(type, "Metaspace") == 0) {
		step->kind = BDX_METASPACE;
		return read_metaspace(j, marks, step);
	}
	if (strcmp(type, "Strip") == 0) {
		step->kind = BDX_STRIP_CHARACTER;
		rc = read_character(j, &marks[CONTENT], "content", step);
		if (rc == 0)
			rc = read_count(j, &marks[START], "start", &step->start);
		return rc ? rc : read_count(j, &marks[STOP], "stop", &step->stop);
	}
	if (strcmp(type, "ByteLevel") == 0)
		step->kind = BDX_BYTE_LEVEL;
	else if (strcmp(type, "ByteFallback") == 0)
		step->kind = BDX_BYTE_FALLBACK;
	else if (strcmp(type, "Fuse") == 0)
		step->kind = BDX_FUSE;
	else
		return bdx_json_unsupported(r, "decoder", type);
	return 0;
}

/* What differs between the three kinds of components. */
struct component {
	enum member sequence; /* the member of a Sequence that holds its parts */
	int (*read)(struct bdx_reader *r, struct bd_json *j, struct bd_json marks[MEMBERS],
		    const char *type, struct bdx_step *step);
};

/* A component, or a Sequence of them, added to the steps. The depth of the reader bounds that of
 * this function. */
static int read_component(struct bdx_reader *r, struct bd_json *j,
			  const struct component *component, struct bdx_steps *steps)
{
	struct bd_json marks[MEMBERS];
	struct bdx_step *data;
	char type[BDX_MAX_KEY];
	int rc = bdx_json_mark(j, member_names, marks, MEMBERS);

	if (rc == 0)
		rc = bdx_json_need(j, &marks[TYPE], "type");
	if (rc == 0)
		rc = bd_json_string(&marks[TYPE], type, sizeof(type), NULL);
	if (rc)
		return rc;
	if (strcmp(type, "Sequence") == 0) {
		struct bd_json *parts = &marks[component->sequence];

		rc = bdx_json_need(j, parts, member_names[component->sequence]);
		if (rc == 0)
			rc = bd_json_array(parts);
		while (rc == 0 && (rc = bd_json_item(parts)) > 0)
			rc = read_component(r, parts, component, steps);
		return rc;
	}
	if (steps->count == MAX_STEPS)
		return bd_json_fail(j, "more than %d components in a sequence", MAX_STEPS);
	data = bdx_grow(steps->data, steps->count, &steps->capacity, sizeof(*data));
	if (!data)
		return bd_error_set(r->err, -ENOMEM, "%s: out of memory", r->t->name);
	steps->data = data;
	data[steps->count] = (struct bdx_step){ .text = NULL };
	return component->read(r, j, marks, type, &data[steps->count++]);
}

int bdx_parts_read(struct bdx_reader *r, struct bd_json *j, enum bdx_part part,
		   struct bdx_steps *steps)
{
	static const struct component components[] = {
		[BDX_NORMALIZER] = { NORMALIZERS, read_normalizer },
		[BDX_PRETOKENIZER] = { PRETOKENIZERS, read_pretokenizer },
		[BDX_DECODER] = { DECODERS, read_decoder },
	};

	return read_component(r, j, &components[part], steps);
}

/* --- Post-processor --- */

static int add_template_id(struct bdx_reader *r, struct bdx_ids *ids, int32_t token)
{
	int32_t *data = bdx_grow(ids->data, ids->count, &ids->capacity, sizeof(*data));

	if (!data)
		return bd_error_set(r->err, -ENOMEM, "%s: out of memory", r->t->name);
	ids->data = data;
	data[ids->count++] = token;
	return 0;
}

/* The numbers of the special token NAME of a template. */
static int read_template_token(struct bdx_reader *r, struct bd_json special, const char *name,
			       struct bdx_ids *ids)
{
	static const char *const keys[] = { "ids" };
	struct bd_json mark;
	char key[BDX_MAX_KEY];
	int32_t token;
	int rc = bd_json_object(&special);

	while (rc == 0 && (rc = bd_json_member(&special, key, sizeof(key), NULL)) > 0) {
		if (strcmp(key, name) != 0) {
			rc = bd_json_skip(&special);
			continue;
		}
		rc = bdx_json_mark(&special, keys, &mark, 1);
		if (rc == 0)
			rc = bdx_json_need(&special, &mark, "ids");
		if (rc == 0)
			rc = bd_json_array(&mark);
		while (rc == 0 && (rc = bd_json_item(&mark)) > 0) {
			rc = bdx_json_token(&mark, &token);
			if (rc == 0)
				rc = add_template_id(r, ids, token);
		}
		return rc;
	}
	if (rc)
		return rc;
	return bd_json_fail(&special, "the template's token \"%s\" is not among its special_tokens",
			    name);
}

/* TemplateProcessing: what it puts around one sequence. */
static int read_template(struct bdx_reader *r, struct bd_json *j)
{
	static const char *const keys[] = { "single", "special_tokens" };
	static const char *const kinds[] = { "SpecialToken", "Sequence" };
	static const char *const id[] = { "id" };
	struct bdx_ids *ids = &r->t->before;
	struct bd_json marks[2], pieces[2], name;
	char text[BDX_MAX_KEY];
	bool found = false;
	int rc = bdx_json_mark(j, keys, marks, 2);

	if (rc == 0)
		rc = bdx_json_need(j, &marks[0], "single");
	if (rc == 0)
		rc = bd_json_array(&marks[0]);
	while (rc == 0 && (rc = bd_json_item(&marks[0])) > 0) {
		rc = bdx_json_mark(&marks[0], kinds, pieces, 2);
		if (rc == 0 && !pieces[0].text == !pieces[1].text)
			rc = bd_json_fail(&marks[0],
					  "a template consists of SpecialToken and Sequence");
		if (rc == 0)
			rc = bdx_json_mark(&pieces[!pieces[0].text], id, &name, 1);
		if (rc == 0)
			rc = bdx_json_need(&marks[0], &name, "id");
		if (rc == 0)
			rc = bd_json_string(&name, text, sizeof(text), NULL);
		if (rc)
			return rc;
		if (pieces[0].text) {
			rc = bdx_json_need(j, &marks[1], "special_tokens");
			if (rc == 0)
				rc = read_template_token(r, marks[1], text, ids);
			continue;
		}
		if (found || strcmp(text, "A") != 0)
			return bdx_json_unsupported(r, "template with the sequence", text);
		found = true;
		ids = &r->t->after;
	}
	if (rc == 0 && !found)
		rc = bd_json_fail(j, "the template has no sequence");
	return rc;
}

int bdx_parts_read_post_processor(struct bdx_reader *r, struct bd_json *j)
{
	static const char *const keys[] = { "type", "processors" };
	struct bd_json marks[2], object = *j;
	char type[BDX_MAX_KEY];
	int rc = bdx_json_mark(j, keys, marks, 2);

	if (rc == 0)
		rc = bdx_json_need(j, &marks[0], "type");
	if (rc == 0)
		rc = bd_json_string(&marks[0], type, sizeof(type), NULL);
	if (rc)
		return rc;
	if (strcmp(type, "ByteLevel") == 0) /* changes offsets, which nobody asks for here */
		return 0;
	if (strcmp(type, "TemplateProcessing") == 0) {
		if (r->t->before.count || r->t->after.count)
			return bdx_json_unsupported(r, "post-processor",
						    "Sequence with two templates");
		return read_template(r, &object);
	}
	if (strcmp(type, "Sequence") != 0)
		return bdx_json_unsupported(r, "post-processor", type);
	rc = bdx_json_need(j, &marks[1], "processors");
	if (rc == 0)
		rc = bd_json_array(&marks[1]);
	while (rc == 0 && (rc = bd_json_item(&marks[1])) > 0)
		rc = bdx_parts_read_post_processor(r, &marks[1]);
	return rc;
}

