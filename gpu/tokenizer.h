/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.h: text to token numbers and back, as tokenizer.json says.
 *
 * BPE on bytes (Llama 3, Qwen, MPT: split pattern, byte-level alphabet) and BPE in the style of SentencePiece with
 * byte fallback (Llama 2, Mistral), with normalizers, pre-tokenizers, added tokens, decoders. The results
 * are those of the `tokenizers` package with add_special_tokens=False, without truncation and padding.
 * Immutable after opening; any thread may use it. */
#ifndef BDX_TOKENIZER_H
#define BDX_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct bdx_tokenizer; /* opaque */

/* From the text of a tokenizer.json (untrusted). NAME is what messages call it. -ENOTSUP for a component
 * that is not known (the sentence names it), -EINVAL for a damaged one. */
int bdx_tokenizer_open(struct bdx_tokenizer **tokenizer, const char *json, size_t size,
		       const char *name, struct bd_error *err);
void bdx_tokenizer_close(struct bdx_tokenizer *tokenizer); /* NULL allowed */

/* One more than the largest token number. */
uint32_t bdx_tokenizer_size(const struct bdx_tokenizer *tokenizer);
/* Is it an added token that is marked special (a control token, not text)? */
bool bdx_tokenizer_is_special(const struct bdx_tokenizer *tokenizer, int32_t token);
/* The number of an added or ordinary token by its exact text, or -1. */
int32_t bdx_tokenizer_find(const struct bdx_tokenizer *tokenizer, const char *text);

/* Encode `size` bytes of text (what is not UTF-8 counts as U+FFFD). *tokens is malloced. Added tokens in the
 * text are recognised. Time grows about linearly with the text, whatever it holds.
 * with_special: as the package's add_special_tokens=True (the post-processor's TemplateProcessing for one
 * sequence: BOS and so on). */
int bdx_tokenizer_encode(const struct bdx_tokenizer *tokenizer, const char *text, size_t size,
			 bool with_special, int32_t **tokens, size_t *count, struct bd_error *err);
/* The text of tokens: malloced, NUL-terminated, *size may be NULL; unknown numbers give nothing.
 * skip_special: leave special tokens out. Equal to the package's decode(). */
int bdx_tokenizer_decode(const struct bdx_tokenizer *tokenizer, const int32_t *tokens, size_t count,
			 bool skip_special, char **text, size_t *size, struct bd_error *err);

#endif
