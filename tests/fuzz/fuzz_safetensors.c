/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_safetensors.c: libFuzzer target for the reader of safetensors headers.
 *
 * `make fuzz` runs it; `make check` replays tests/fuzz/corpus/safetensors/ without a fuzzer. An input
 * is a whole file. What is accepted must be consistent, or the target aborts. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void check_tensor(const struct bd_safetensors *st, size_t i, uint64_t at)
{
	const struct bd_tensor *t = &st->tensors[i];
	uint64_t count = 1;
	char text[256], cut[9];

	require(t->offset == at);
	require(t->dims <= BD_MAX_DIMS && t->dtype < BD_DTYPES);
	for (unsigned k = 0; k < t->dims; k++)
		count *= t->shape[k];
	require(count == t->count && t->size == count * bd_dtype_bits(t->dtype) / 8);
	require(bd_tensor_rows(t) * bd_tensor_cols(t) == count);
	require(*t->name && strlen(t->name) <= BD_MAX_NAME);
	require(bd_safetensors_find(st, t->name) == t);
	require(bd_tensor_same_shape(t, t));
	bd_tensor_shape_text(t, text, sizeof(text));
	require(strncmp(bd_tensor_shape_text(t, cut, sizeof(cut)), text, sizeof(cut) - 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bd_safetensors *st;
	struct bd_error err = { 0 };
	uint64_t at;
	int rc;

	rc = bd_safetensors_parse(&st, (const char *)data, size, size, "input", &err);
	if (rc) {
		require(!st && err.code == rc && strncmp(err.text, "input: ", 7) == 0);
		return 0;
	}
	require(st->header_size <= size && memcmp(st->header, data, st->header_size) == 0);
	at = st->header_size;
	for (size_t i = 0; i < st->count; i++) {
		check_tensor(st, i, at);
		at += st->tensors[i].size;
	}
	require(at == size);
	for (size_t i = 0; i < st->metadata_count; i++)
		require(bd_safetensors_metadata(st, st->metadata[i].key) == st->metadata[i].value);
	require(!bd_safetensors_find(st, "") && !bd_safetensors_metadata(st, "\n"));
	bd_safetensors_free(st);
	return 0;
}
