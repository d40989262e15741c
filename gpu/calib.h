/* SPDX-License-Identifier: Apache-2.0 */
/* calib.h: the windows of tokens that distillation learns from and is judged by. */
#ifndef BDX_CALIB_H
#define BDX_CALIB_H

#include "model.h"
#include "tokenizer.h"

struct bdx_windows {
	uint64_t count, length;
	int32_t *tokens; /* [count, length]; owned */
};
void bdx_windows_free(struct bdx_windows *windows); /* an empty one is allowed */
/* Put them in an order that the seed decides. */
void bdx_windows_shuffle(struct bdx_windows *windows, uint64_t seed);
/* Append `count` windows of `from`, which has the same length, from number `first` on. */
int bdx_windows_append(struct bdx_windows *to, const struct bdx_windows *from, uint64_t first,
		       uint64_t count, struct bd_error *err);
/* Leave out the windows with tokens that are not below `vocabulary`. */
void bdx_windows_restrict(struct bdx_windows *windows, uint64_t vocabulary);

/* A random number in [0, 1) from a counter: the same on every machine. */
double bdx_uniform(uint64_t seed, uint64_t index);

/* How many of `count` sequences of `length` tokens are written at once: at most BDX_TOGETHER, and as
 * memory allows. */
#define BDX_TOGETHER 64
uint64_t bdx_together(struct bdx_model *model, uint64_t count, uint64_t length);

/* `count` windows of text that the model writes itself at temperature 1: half of them begin with
 * the BOS token (where there is one), half with a token drawn evenly from those of the tokenizer
 * that are text, some of these with the control tokens that the source's chat template mentions.
 * tokenizer and source may be NULL. */
int bdx_generate_windows(struct bdx_windows *windows, struct bdx_model *model,
			 struct bdx_source *source, const struct bdx_tokenizer *tokenizer,
			 uint64_t count, uint64_t length, uint64_t seed,
			 const struct bd_watch *watch, struct bd_error *err);

/* `count` windows at random places of the general text that the program carries, of tokens below
 * `vocabulary`; fewer, perhaps none, where the tokenizer makes too few such tokens of it. */
int bdx_general_windows(struct bdx_windows *windows, const struct bdx_tokenizer *tokenizer,
			uint64_t vocabulary, uint64_t count, uint64_t length, uint64_t seed,
			const struct bd_watch *watch, struct bd_error *err);

/* All tokens of a user's file, each within the vocabulary: UTF-8 text; JSON lines (.jsonl,
 * .json) whose objects have a "text" or "tokens", an array of token numbers; or little-endian
 * int32 token numbers (.tokens, .bin). *tokens is malloced. */
int bdx_file_tokens(int32_t **tokens, uint64_t *count, const char *path,
		    const struct bdx_tokenizer *tokenizer, uint64_t vocabulary,
		    const struct bd_watch *watch, struct bd_error *err);
/* `count` windows at random places of a run of tokens. NAME is what messages call it. -EINVAL
 * where it is shorter than one. */
int bdx_cut_windows(struct bdx_windows *windows, const int32_t *tokens, uint64_t available,
		    uint64_t count, uint64_t length, uint64_t seed, const char *name,
		    struct bd_error *err);

#endif
