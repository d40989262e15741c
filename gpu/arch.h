/* SPDX-License-Identifier: Apache-2.0 */
/* arch.h: what a model looks like: from config.json to the shape of a decoder.
 *
 * arch.c holds one description per architecture: the keys of its config.json, the names of its
 * tensors, its norms, positions and activations. To add an architecture, add a description there;
 * nothing else knows their names. */
#ifndef BDX_ARCH_H
#define BDX_ARCH_H

#include "ops.h"
#include "parallel.h"
#include "source.h"

#define BDX_MAX_PARTS 3

/* Names of tensors; "%u" stands for the layer. NULL: this architecture has none. */
struct bdx_names {
	const char *embedding, *final_norm, *head;
	const char *attention_norm, *mlp_norm;         /* before attention, before the MLP */
	const char *query_key_value[BDX_MAX_PARTS];    /* one fused tensor, or q, k, v */
	const char *query_norm, *key_norm;             /* of each head */
	const char *attention_out;
	const char *gate_up[2];                        /* gate and up, or only the first for a plain MLP */
	const char *down;
	/* ".weight" is part of the names above; a bias has ".bias" in its place. */
};

struct bdx_config { /* one model, all settled */
	const char *architecture;  /* the description's name: "llama"; static */
	const struct bdx_names *names; /* static */
	uint64_t layers, width, heads, kv_heads, head_dim, mlp_width, vocabulary;
	uint64_t positions;        /* longest sequence it was made for */
	enum bdx_norm norm;
	double epsilon;
	enum bdx_activation activation;
	bool gated;                /* MLP: down(f(gate(x)) * up(x)), else down(f(up(x))) */
	double attention_scale;
	double logit_scale;        /* factor on the logits, 1 for most */
	double clip;               /* q, k and v are clipped to +-clip (MPT); 0: not */
	uint64_t *windows;         /* per layer: sliding window or 0; owned */
	bool rope;
	uint64_t rotated;          /* elements of a head that turn */
	double *frequencies;       /* [rotated / 2] radians per position, after any scaling; owned */
	double rope_factor;        /* factor on cos and sin (yarn), 1 for most */
	bool alibi;
	double *slopes;            /* [heads]; owned */
	bool tied;                 /* the head is the embedding */
	const char *embedding;     /* the embedding's name: names->embedding, or names->head where
	                            * they are tied and only that one is stored; static */
	int32_t bos;               /* -1: none */
	int32_t eos[16];           /* that end texts, all within the vocabulary */
	unsigned eos_count;
	char note[256];            /* for bdx_config_tell */
};

/* Read config.json (and generation_config.json for more end tokens, or another first one) of a
 * source; tensors decide what config.json leaves open (a head of its own, biases), and whether
 * it is true that head and embedding are the same. -ENOTSUP for
 * an architecture, or a setting of it, that the engine does not know; the sentence names it. */
int bdx_config_read(struct bdx_config **config, struct bdx_source *source, struct bd_error *err);
void bdx_config_free(struct bdx_config *config); /* NULL allowed */
/* Note what users may not expect of it, if there is anything. */
void bdx_config_tell(const struct bdx_config *config, const struct bdx_source *source,
		     const struct bd_watch *watch);
/* How many tokens the windows of a text may have, of so many that are wanted: no more than the model has
 * positions, which is noted. */
uint64_t bdx_config_length(const struct bdx_config *config, const struct bdx_source *source, uint64_t wanted,
			   const struct bd_watch *watch);

/* Does this token end texts? */
bool bdx_config_is_end(const struct bdx_config *config, int32_t token);

#endif
