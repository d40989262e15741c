/* SPDX-License-Identifier: Apache-2.0 */
/* generate.h: text from a model, to look at. */
#ifndef BDX_GENERATE_H
#define BDX_GENERATE_H

#include <stdint.h>

#include "parallel.h"

struct bdx_generate_options {
	const char *model;      /* a directory, or a .bdelta file (then with base) */
	const char *base;
	const char *prompt;     /* NULL: from BOS */
	uint64_t tokens;        /* at most so many new ones; stops at an end token */
	double temperature;     /* 0: always the likeliest */
	uint64_t seed;
	const char *device;
	unsigned threads;
	struct bd_watch watch;
	/* Text as it grows: pieces of valid UTF-8. */
	void (*write)(void *context, const char *text, size_t size);
	void *write_context;
};

/* True for what is a delta by its name, which needs a base. */
bool bdx_generate_is_delta(const char *model);

void bdx_generate_defaults(struct bdx_generate_options *options);
/* Errors: as bdx_evaluate; -EINVAL a prompt of more tokens than the model has positions. */
int bdx_generate(const struct bdx_generate_options *options, struct bd_error *err);

#endif
