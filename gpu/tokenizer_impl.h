/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer_impl.h: what the files of the tokenizer share; only they and their test include
 * it.
 *
 * A text goes through these stages, in each of which it is one buffer cut into pieces:
 *
 *     added.c        takes out the added tokens that are looked for in the text as it is
 *     normalize.c    rewrites each of the other pieces
 *     added.c        takes out the added tokens that are looked for in normalized text
 *     pretokenize.c  cuts the rest into words
 *     bpe.c          turns each word into tokens
 *
 * tokenizer_json.c and tokenizer_parts.c read the file, pattern.c has the regular expressions,
 * decode.c is the way back. Nothing in struct bdx_tokenizer changes after opening; what a call
 * needs is in its own bdx_run. */
#ifndef BDX_TOKENIZER_IMPL_H
#define BDX_TOKENIZER_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "buffer.h"
#include "error.h"
#include "json.h"
#include "tokenizer.h"

#define BDX_MAX_TOKEN ((int32_t)1 << 24) /* numbers of tokens are below; bounds every table */

/* --- What a call works on --- */

/* A part of a text: a match of a pattern, or what lies between two matches. */
struct bdx_span {
	size_t start, end;
	bool match;
};

struct bdx_spans {
	struct bdx_span *data;
	size_t count, capacity;
};

/* A part of run->text. */
struct bdx_piece {
	size_t start, end;
	int32_t token; /* an added token that was found there, or -1 */
	bool first;    /* does it begin where the whole text begins? */
};

struct bdx_pieces {
	struct bdx_piece *data;
	size_t count, capacity;
};

struct bdx_ids {
	int32_t *data;
	size_t count, capacity;
};

struct bdx_symbol; /* bpe.c */
struct bdx_candidate;

/* One call of encode or decode. A stage reads text and pieces; where it changes them, it builds
 * other_text and other_pieces and swaps (bdx_run_swap_*). */
struct bdx_run {
	const char *name; /* of the tokenizer, for messages */
	struct bd_error *err;
	struct bd_buffer text, other_text;
	struct bdx_pieces pieces, other_pieces;
	struct bdx_spans spans;
	struct bdx_ids ids;
	struct bdx_symbol *symbols;
	struct bdx_candidate *heap;
	size_t symbols_capacity;
	size_t text_limit; /* a hostile file could make a text grow without end */
	time_t deadline;   /* or have work without end; CLOCK_MONOTONIC, seconds */
};

void bdx_run_init(struct bdx_run *run, const struct bdx_tokenizer *t, size_t size,
		  struct bd_error *err);
void bdx_run_free(struct bdx_run *run);
void bdx_run_swap_texts(struct bdx_run *run);
void bdx_run_swap_pieces(struct bdx_run *run);
int bdx_run_add_piece(struct bdx_run *run, struct bdx_piece piece); /* to other_pieces */
int bdx_run_add_id(struct bdx_run *run, int32_t token);
/* Is the buffer complete and not larger than a text may become? */
int bdx_run_check(struct bdx_run *run, const struct bd_buffer *b);
int bdx_run_nomem(struct bdx_run *run);
/* -EINVAL once the deadline has passed. Whatever can take longer than a pass over the text asks. */
int bdx_run_clock(struct bdx_run *run);
/* Room for one more item of `size` bytes in an array: the array, perhaps moved, or NULL. */
void *bdx_grow(void *data, size_t count, size_t *capacity, size_t size);

/* --- Characters (unicode.c) --- */

/* Append bytes with U+FFFD in the place of each maximal part that is not UTF-8. */
void bdx_unicode_append(struct bd_buffer *b, const char *bytes, size_t size);
void bdx_unicode_append_code(struct bd_buffer *b, uint32_t code);
/* The character at text[0] of valid UTF-8, and its length. */
unsigned bdx_unicode_next(const char *text, uint32_t *code);
/* Where the character that ends before text[end] begins. */
size_t bdx_unicode_previous(const char *text, size_t end);
bool bdx_unicode_is_space(uint32_t code);       /* White_Space */
bool bdx_unicode_is_number(uint32_t code);      /* N */
bool bdx_unicode_is_punctuation(uint32_t code); /* P, and ASCII that is no letter or digit */
bool bdx_unicode_is_mark(uint32_t code);        /* M */
/* The printable character that stands for a byte, and back (or -1). */
uint32_t bdx_unicode_byte_char(unsigned char byte);
int bdx_unicode_char_byte(uint32_t code);
enum bdx_form { BDX_NFC, BDX_NFD, BDX_NFKC, BDX_NFKD };
/* Append `text` in a normalization form. -ENOMEM. */
int bdx_unicode_normalize(struct bd_buffer *b, const char *text, size_t size, enum bdx_form form);
/* Append `text` in small letters. */
void bdx_unicode_lower(struct bd_buffer *b, const char *text, size_t size);

/* --- Patterns (pattern.c) --- */

struct bdx_pattern; /* opaque */

/* PATTERN as tokenizer.json has it: an Oniguruma regular expression, or literal text. -ENOTSUP for
 * what cannot be matched in the same way here. */
int bdx_pattern_open(struct bdx_pattern **pattern, const char *text, size_t size, bool literal,
		     const char *name, struct bd_error *err);
void bdx_pattern_close(struct bdx_pattern *pattern); /* NULL allowed */
/* Cut text into matches and what lies between them: run->spans. */
int bdx_pattern_split(const struct bdx_pattern *pattern, struct bdx_run *run, const char *text,
		      size_t size);

/* --- Steps of normalizers, pre-tokenizers and decoders --- */

enum bdx_step_kind {
	/* normalizers */
	BDX_PREPEND, BDX_REPLACE, BDX_NORMALIZE, BDX_LOWERCASE, BDX_STRIP, BDX_STRIP_ACCENTS,
	/* pre-tokenizers */
	BDX_SPLIT, BDX_BYTE_LEVEL, BDX_METASPACE, BDX_DIGITS, BDX_PUNCTUATION, BDX_WHITESPACE_SPLIT,
	/* decoders; BDX_REPLACE, BDX_BYTE_LEVEL and BDX_METASPACE are, too */
	BDX_BYTE_FALLBACK, BDX_FUSE, BDX_STRIP_CHARACTER,
};

enum bdx_behavior { /* what becomes of the matches of a split */
	BDX_REMOVED, BDX_ISOLATED, BDX_MERGED_WITH_PREVIOUS, BDX_MERGED_WITH_NEXT, BDX_CONTIGUOUS
};

enum bdx_prepend { BDX_PREPEND_ALWAYS, BDX_PREPEND_FIRST, BDX_PREPEND_NEVER };

/* One component; sequences are flattened into arrays of these. */
struct bdx_step {
	enum bdx_step_kind kind;
	struct bdx_pattern *pattern; /* REPLACE, SPLIT; BYTE_LEVEL that splits */
	char *text;                  /* PREPEND, REPLACE, METASPACE, STRIP_CHARACTER */
	size_t size;
	enum bdx_form form;          /* NORMALIZE */
	enum bdx_behavior behavior;  /* SPLIT, PUNCTUATION */
	enum bdx_prepend prepend;    /* METASPACE */
	bool invert;                 /* SPLIT */
	bool add_prefix_space;       /* BYTE_LEVEL */
	bool split;                  /* METASPACE */
	bool individual;             /* DIGITS */
	bool left, right;            /* STRIP */
	size_t start, stop;          /* STRIP_CHARACTER: at most so many */
};

struct bdx_steps {
	struct bdx_step *data;
	size_t count, capacity;
};

void bdx_steps_free(struct bdx_steps *steps);
/* Rewrite run->text[piece] into the end of run->other_text; *first may become false. */
int bdx_normalize(const struct bdx_steps *steps, struct bdx_run *run, const char *text, size_t size,
		  bool *first);
/* Cut all pieces of the run into words. */
int bdx_pretokenize(const struct bdx_steps *steps, struct bdx_run *run);

/* --- Added tokens (added.c) --- */

struct bdx_added {
	char *text;
	size_t size;
	int32_t token;
	bool single_word, lstrip, rstrip, normalized, special;
};

struct bdx_added_text; /* what to look for */

struct bdx_added_set {
	struct bdx_added_text *texts; /* sorted */
	size_t count;
	bool first[256]; /* bytes with which one begins */
};

struct bdx_added_tokens {
	struct bdx_added *data;       /* sorted by text once indexed */
	struct bdx_added **by_number; /* the same, sorted by number */
	size_t count, capacity;
	struct bdx_added_set raw, normalized;
	struct bdx_pattern *word; /* one character of a word; only where a token is single_word */
};

/* After all are there: sort them and build the sets. */
int bdx_added_index(struct bdx_added_tokens *added, const struct bdx_steps *normalizer,
		    struct bdx_run *run);
void bdx_added_free(struct bdx_added_tokens *added);
const struct bdx_added *bdx_added_find(const struct bdx_added_tokens *added, const char *text,
				       size_t size);
const struct bdx_added *bdx_added_by_number(const struct bdx_added_tokens *added, int32_t token);
/* Cut the added tokens of a set out of the pieces of a run. */
int bdx_added_split(const struct bdx_added_tokens *added, const struct bdx_added_set *set,
		    struct bdx_run *run);

/* --- The model (bpe.c) --- */

struct bdx_token {
	const char *text; /* in the arena */
	uint32_t size;
	int32_t number;
};

struct bdx_merge {
	uint64_t pair; /* left << 32 | right; UINT64_MAX in a slot that is free */
	uint32_t rank;
	int32_t token;
};

struct bdx_bpe {
	char *arena;
	struct bdx_token *tokens; /* sorted by number once indexed */
	size_t count, capacity;
	uint32_t *slots;          /* by text: index in tokens plus 1, or 0 */
	size_t slot_mask;
	struct bdx_merge *merges; /* by pair */
	size_t merge_mask;
	uint64_t seed;            /* of the hashes: nobody can prepare texts that collide */
	int32_t *characters;      /* tokens of the characters below BDX_DIRECT, or -1 */
	int32_t bytes[256];       /* tokens "<0x00>" and so on, or -1 */
	char *unk_text;           /* NULL: none */
	int32_t unk;              /* its number, or -1 where it is not in the vocabulary */
	bool fuse_unk, byte_fallback, ignore_merges;
};

/* After all tokens are there: the tables by text and by number. */
int bdx_bpe_index(struct bdx_bpe *bpe, const char *name, struct bd_error *err);
/* The table of merges from `count` of them, in the order of their ranks. */
int bdx_bpe_index_merges(struct bdx_bpe *bpe, const struct bdx_merge *merges, size_t count,
			 const char *name, struct bd_error *err);
void bdx_bpe_free(struct bdx_bpe *bpe);
int32_t bdx_bpe_find(const struct bdx_bpe *bpe, const char *text, size_t size);
const struct bdx_token *bdx_bpe_token(const struct bdx_bpe *bpe, int32_t number);
/* Append the tokens of a word to run->ids. */
int bdx_bpe_encode(const struct bdx_bpe *bpe, struct bdx_run *run, const char *text, size_t size);

/* --- All of it --- */

struct bdx_tokenizer {
	char *name;
	struct bdx_steps normalizer, pretokenizer, decoder;
	bool has_decoder;
	struct bdx_added_tokens added;
	struct bdx_bpe bpe;
	struct bdx_ids before, after; /* what the template puts around a sequence */
	uint32_t size;
};

/* From the texts of tokens to text: run->text holds them one after the other, run->pieces says where
 * each lies, and the steps change both. */
int bdx_decode(const struct bdx_steps *steps, struct bdx_run *run);

/* --- Reading tokenizer.json (tokenizer_json.c, tokenizer_parts.c) --- */

#define BDX_MAX_KEY 256

struct bdx_reader {
	struct bdx_tokenizer *t;
	struct bd_error *err;
	size_t size; /* of the file */
};

/* Fill in a tokenizer from its file. Where it fails, the caller frees what is there already. */
int bdx_tokenizer_read(struct bdx_tokenizer *t, const char *json, size_t size,
		       struct bd_error *err);

/* Read past an object and note where the values of the members KEYS begin; the mark of a member
 * that is absent or null has no text. */
int bdx_json_mark(struct bd_json *j, const char *const *keys, struct bd_json *marks, size_t count);
/* A mark that must be there. */
int bdx_json_need(struct bd_json *object, struct bd_json *mark, const char *key);
/* A boolean; *value stays as it is where the member is absent. */
int bdx_json_bool(struct bd_json *mark, bool *value);
/* A string, malloced; NULL where the member is absent. */
int bdx_json_string(struct bd_json *mark, char **text, size_t *size);
/* A token's number. */
int bdx_json_token(struct bd_json *j, int32_t *token);
/* Refuse WHAT of a type that is not known. */
int bdx_json_unsupported(struct bdx_reader *r, const char *what, const char *type);

enum bdx_part { BDX_NORMALIZER, BDX_PRETOKENIZER, BDX_DECODER };

/* A component, or a sequence of them, as steps. */
int bdx_parts_read(struct bdx_reader *r, struct bd_json *j, enum bdx_part part,
		   struct bdx_steps *steps);
/* What the post-processor puts around a text. */
int bdx_parts_read_post_processor(struct bdx_reader *r, struct bd_json *j);

/* Append to run->spans. -ENOMEM, remembered in the run. */
int bdx_add_span(struct bdx_run *run, size_t start, size_t end, bool match);

#endif
