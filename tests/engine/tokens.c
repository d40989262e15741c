/* SPDX-License-Identifier: Apache-2.0 */
/* tokens.c: the tokenizer for a test that speaks another language.
 *
 *     tokens TOKENIZER.JSON encode|special|decode|text <records >records
 *
 * A record is a length in bytes (32 bits, little-endian) and so many bytes: a text, or tokens of 32
 * bits each. `special` encodes with the template's tokens; `decode` leaves special tokens out,
 * `text` keeps them. A text that cannot be encoded or decoded ends the program with its message. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

static void fail(const char *message)
{
	fprintf(stderr, "tokens: %s\n", message);
	exit(1);
}

/* The next record, malloced; false at the end of the input. */
static bool read_record(char **data, uint32_t *size)
{
	if (fread(size, 1, sizeof(*size), stdin) != sizeof(*size))
		return false;
	*data = malloc(*size + 1u);
	if (!*data || fread(*data, 1, *size, stdin) != *size)
		fail("a record is cut short");
	return true;
}

static void write_record(const void *data, size_t size)
{
	uint32_t length = (uint32_t)size;

	if (fwrite(&length, sizeof(length), 1, stdout) != 1 ||
	    fwrite(data, 1, size, stdout) != size)
		fail("cannot write");
}

static char *read_file(const char *path, size_t *size)
{
	FILE *f = fopen(path, "rb");
	char *text = NULL;

	*size = 0;
	while (f && !feof(f)) {
		text = realloc(text, *size + 65536);
		if (!text)
			fail("out of memory");
		*size += fread(text + *size, 1, 65536, f);
		if (ferror(f))
			break;
	}
	if (!f || ferror(f))
		fail("cannot read the tokenizer");
	fclose(f);
	return text;
}

int main(int argc, char **argv)
{
	struct bdx_tokenizer *t;
	struct bd_error err = { 0 };
	uint32_t size;
	size_t count;
	char *json, *data, *text;
	bool decode, with_special, skip;
	int32_t *tokens;

	if (argc != 3)
		fail("Usage: tokens TOKENIZER.JSON encode|special|decode|text");
	decode = strcmp(argv[2], "decode") == 0 || strcmp(argv[2], "text") == 0;
	skip = strcmp(argv[2], "decode") == 0;
	with_special = strcmp(argv[2], "special") == 0;
	json = read_file(argv[1], &count);
	if (bdx_tokenizer_open(&t, json, count, argv[1], &err))
		fail(err.text);
	free(json);
	while (read_record(&data, &size)) {
		if (decode) {
			if (bdx_tokenizer_decode(t, (const int32_t *)data, size / 4, skip, &text,
						 &count, &err))
				fail(err.text);
			write_record(text, count);
			free(text);
		} else {
			if (bdx_tokenizer_encode(t, data, size, with_special, &tokens, &count,
						 &err))
				fail(err.text);
			write_record(tokens, count * sizeof(*tokens));
			free(tokens);
		}
		free(data);
	}
	bdx_tokenizer_close(t);
	return fflush(stdout) ? 1 : 0;
}
