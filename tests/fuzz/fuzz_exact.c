/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_exact.c: libFuzzer target for what is stored of a tensor that is kept exactly.
 *
 * The first bytes choose dtypes and shape, the rest is what is stored; the base is made up. Whatever is
 * stored, nothing outside it is read, and all levels accept the same chunks with the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec/exact.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* A copy that ends where it ends. */
static uint8_t *copy_of(const uint8_t *p, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	require(copy != NULL);
	if (size)
		memcpy(copy, p, size);
	return copy;
}

static const enum bd_dtype dtypes[] = { BD_BF16, BD_F16, BD_F32, BD_F8_E4M3, BD_F8_E5M2, BD_U8, BD_I32, BD_I64 };

static void read_chunks(const struct bd_exact *x, const struct bd_exact_shape *shape, const uint8_t *stored,
			size_t size, const uint8_t *base)
{
	size_t element = bd_dtype_bits(shape->dtype) / 8;
	size_t base_element = shape->base_dtype == BD_DTYPES ? 0 : bd_dtype_bits(shape->base_dtype) / 8;
	size_t total = (size_t)(shape->rows * shape->cols) * element;
	struct bd_exact_scratch *scratch = bd_exact_scratch_new();
	uint8_t *out = malloc(BD_EXACT_CHUNK);

	require(scratch && out);
	for (uint64_t c = 0; c * BD_EXACT_CHUNK < total; c++) {
		size_t at = (size_t)(c * BD_EXACT_CHUNK), n = total - at;
		uint64_t index[2][2] = { 0 };
		struct bd_exact_place place;
		uint8_t *part[2] = { NULL, NULL }, *under;

		n = n < BD_EXACT_CHUNK ? n : BD_EXACT_CHUNK;
		for (unsigned p = 0; p < bd_exact_planes(x); p++) {
			unsigned words;
			uint64_t where = bd_exact_index_at(x, p, c, &words);

			require(where + 8 * words <= size);
			memcpy(index[p], stored + where, 8 * words);
		}
		if (!bd_exact_locate(x, c, (const uint64_t(*)[2])index, &place))
			continue;
		for (unsigned p = 0; p < bd_exact_planes(x); p++) {
			require(place.part[p].at + place.part[p].size <= size);
			part[p] = copy_of(stored + place.part[p].at, place.part[p].size);
		}
		under = copy_of(base + at / element * base_element, n / element * base_element);
		(void)bd_exact_decode_chunk(x, c, &place, under, (const uint8_t *const *)part, n, out, scratch);
		(void)bd_exact_decode_chunk(x, c, &place, under, (const uint8_t *const *)part, n / element / 2 * element,
					    out, scratch);
		free(under);
		free(part[0]);
		free(part[1]);
	}
	free(out);
	bd_exact_scratch_free(scratch);
}

/* The same bytes as a table and one chunk, at all levels. */
static void compare_levels(const uint8_t *data, size_t size)
{
	struct bd_exact_model *m = malloc(sizeof(*m));
	struct bd_exact_decoder *d;
	uint8_t base[2 * 100], rows[100], out[BD_CPUS][200], *chunk;
	size_t table;
	bool good[BD_CPUS];

	require(m != NULL);
	m->cols = 9;
	m->row_offset = rows;
	memset(rows, 3, sizeof(rows));
	table = bd_exact_table_parse(m, data, size);
	if (table == 0) {
		free(m);
		return;
	}
	for (size_t i = 0; i < sizeof(base); i++)
		base[i] = (uint8_t)(i * 37);
	d = bd_exact_decoder_new(m);
	require(d != NULL);
	chunk = copy_of(data + table, size - table);
	for (int cpu = 0; cpu <= (int)bd_cpu_best(); cpu++) {
		struct bd_exact_run run = { base, 0, 100 };

		memset(out[cpu], 0, sizeof(out[cpu]));
		good[cpu] = bd_exact_decode_at((enum bd_cpu)cpu, d, &run, chunk, size - table, 100, out[cpu]);
		require(good[cpu] == good[0]);
		require(!good[0] || memcmp(out[cpu], out[0], sizeof(out[0])) == 0);
	}
	free(chunk);
	bd_exact_decoder_free(d);
	free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t base[64 << 10];
	struct bd_exact_shape shape;
	struct bd_exact *x;
	struct bd_error err;
	uint8_t *stored;
	uint64_t head;

	if (size < 12)
		return 0;
	for (size_t i = 0; i < sizeof(base); i++)
		base[i] = (uint8_t)(i * 31 ^ i >> 6);
	shape.dtype = dtypes[data[0] % 8];
	shape.base_dtype = data[0] & 8 ? BD_DTYPES : data[0] & 16 ? dtypes[data[1] % 8] : shape.dtype;
	if (shape.base_dtype != BD_DTYPES && !bd_exact_has_base(shape.dtype, shape.base_dtype))
		return 0;
	shape.rows = data[2] % 64 + 1;
	shape.cols = data[3] % 128 + 1;
	data += 4;
	size -= 4;
	compare_levels(data, size);
	stored = copy_of(data, size);
	head = bd_exact_head_size(&shape, stored, size);
	if (head && bd_exact_open(&x, &shape, stored, head, size, &err) == 0) {
		read_chunks(x, &shape, stored, size, base);
		require(bd_exact_memory(x) > 0);
		bd_exact_close(x);
	}
	free(stored);
	return 0;
}
