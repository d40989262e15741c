/* SPDX-License-Identifier: Apache-2.0 */
/* bench_exact BASE FINE: what the tensors of a fine-tune take as exact deltas, and how fast one core codes and
 * decodes them, beside XOR with bytes apart and zstd -1 (the method of TensorDex) in the same run.
 *
 * Prints for linear weights, for tables and for the rest: bytes, bits a weight, the conditional entropy, the
 * method's bits; then GB/s of the tensors' bytes: coding with statistics, decoding at each level. Bytes are
 * checked against the fine-tune. Processor time is counted, so a busy neighbour hardly matters. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "checkpoint.h"
#include "codec/exact.h"

#define BLOCK ((size_t)2 << 20) /* of the method compared with */

enum kind { LINEAR, TABLE, REST, KINDS };
static const char *const kinds[KINDS] = { "linear weights", "tables", "other tensors" };

struct sum {
	double plain, stored, weights, entropy, zstd, code_s, zstd_code_s, zstd_decode_s, decode_s[BD_CPUS];
};

struct pair {
	uint8_t *fine, *base;
};

static struct bd_error err;

static void die(const char *what)
{
	fprintf(stderr, "bench_exact: %s\n", what);
	exit(1);
}

static void *must(void *p)
{
	if (!p)
		die("out of memory");
	return p;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int read_fine(void *context, uint64_t at, size_t size, void *out, struct bd_error *e)
{
	(void)e;
	memcpy(out, ((struct pair *)context)->fine + at, size);
	return 0;
}

static int read_base(void *context, uint64_t at, size_t size, void *out, struct bd_error *e)
{
	(void)e;
	memcpy(out, ((struct pair *)context)->base + at, size);
	return 0;
}

static void decode(const struct bd_exact_shape *shape, const struct pair *p, const uint8_t *stored, size_t size,
		   size_t plain, enum bd_cpu cpu, struct sum *sum)
{
	size_t element = bd_dtype_bits(shape->dtype) / 8;
	size_t base_element = shape->base_dtype == BD_DTYPES ? 0 : bd_dtype_bits(shape->base_dtype) / 8;
	struct bd_exact_scratch *scratch = must(bd_exact_scratch_new());
	uint8_t *out = must(aligned_alloc(64, BD_EXACT_CHUNK));
	struct bd_exact *x;

	if (bd_exact_open(&x, shape, stored, bd_exact_head_size(shape, stored, size), size, &err) < 0)
		die(err.text);
	for (uint64_t c = 0; c * BD_EXACT_CHUNK < plain; c++) {
		size_t at = (size_t)c * BD_EXACT_CHUNK, n = plain - at < BD_EXACT_CHUNK ? plain - at : BD_EXACT_CHUNK;
		uint64_t index[2][2] = { 0 };
		struct bd_exact_place place;
		const uint8_t *part[2] = { NULL, NULL };
		double start;

		for (unsigned k = 0; k < bd_exact_planes(x); k++) {
			unsigned words;
			uint64_t where = bd_exact_index_at(x, k, c, &words);

			memcpy(index[k], stored + where, 8 * words);
		}
		if (!bd_exact_locate(x, c, (const uint64_t(*)[2])index, &place))
			die("an index that is damaged");
		for (unsigned k = 0; k < bd_exact_planes(x); k++)
			part[k] = stored + place.part[k].at;
		start = now();
		if (!bd_exact_decode_chunk_at(cpu, x, c, &place, p->base + at / element * base_element, part, n, out,
					      scratch))
			die("a chunk that is damaged");
		sum->decode_s[cpu] += now() - start;
		if (memcmp(out, p->fine + at, n) != 0)
			die("other bytes than the fine-tune's");
	}
	bd_exact_close(x);
	bd_exact_scratch_free(scratch);
	free(out);
}

/* Bits of the differences of 16-bit floats given the exponent of the base's. */
static double entropy(const struct pair *p, size_t count, unsigned shift)
{
	uint32_t (*n)[65536] = must(calloc(256, sizeof(*n)));
	double bits = 0;

	for (size_t i = 0; i < count; i++) {
		uint16_t b, f;

		memcpy(&b, p->base + 2 * i, 2);
		memcpy(&f, p->fine + 2 * i, 2);
		n[b >> shift & (shift == 7 ? 255 : 31)][(uint16_t)((f & 0x8000 ? f ^ 0x7fff : f) -
								   (b & 0x8000 ? b ^ 0x7fff : b))]++;
	}
	for (int e = 0; e < 256; e++) {
		double total = 0;

		for (int i = 0; i < 65536; i++)
			total += n[e][i];
		for (int i = 0; total > 0 && i < 65536; i++)
			if (n[e][i])
				bits += n[e][i] * log2(total / n[e][i]);
	}
	free(n);
	return bits;
}

static void compare(const struct pair *p, size_t size, struct sum *sum)
{
#ifdef HAVE_ZSTD
	uint8_t *apart = must(malloc(BLOCK)), *packed = must(malloc(ZSTD_compressBound(BLOCK)));

	for (size_t at = 0; at < size; at += BLOCK) {
		size_t n = size - at < BLOCK ? size - at : BLOCK, got;
		double start = now();

		for (size_t i = 0; i < n; i++)
			apart[i % 2 * (n / 2) + i / 2] = p->fine[at + i] ^ p->base[at + i];
		got = ZSTD_compress(packed, ZSTD_compressBound(BLOCK), apart, n, 1);
		sum->zstd_code_s += now() - start;
		sum->zstd += (double)got;
		start = now();
		ZSTD_decompress(apart, BLOCK, packed, got);
		sum->zstd_decode_s += now() - start;
	}
	free(apart);
	free(packed);
#else
	(void)p;
	(void)size;
	(void)sum;
#endif
}

static void measure(const struct bd_shard *fine, const struct bd_tensor *t, const struct bd_shard *base,
		    const struct bd_tensor *b, struct sum *sums)
{
	bool table = strstr(t->name, "embed") || strstr(t->name, "lm_head");
	struct sum *sum = &sums[t->dims < 2 ? REST : table ? TABLE : LINEAR];
	struct bd_exact_shape shape = { t->dtype, b ? b->dtype : BD_DTYPES, 1, t->count };
	struct pair p = { must(malloc(t->size + 1)), must(malloc((b ? b->size : 0) + 1)) };
	struct bd_exact_input input = { read_base, read_fine, &p, NULL };
	struct bd_exact_plan *plan = NULL;
	uint8_t *stored;
	size_t size;
	double start;

	if (t->dims) {
		shape.cols = bd_tensor_cols(t);
		shape.rows = t->count / shape.cols;
	}
	if (bd_file_read(fine->file, p.fine, t->size, t->offset, &err) < 0 ||
	    (b && bd_file_read(base->file, p.base, b->size, b->offset, &err) < 0))
		die(err.text);
	sum->plain += (double)t->size;
	sum->weights += (double)t->count;
	start = now();
	if (bd_exact_plan_new(&plan, &shape, table, &input, NULL) < 0) {
		sum->stored += (double)t->size;
		sum->zstd += (double)t->size;
		sum->entropy += 8.0 * (double)t->size;
	} else {
		if (bd_exact_plan_code(plan, &input, &stored, &size, &err) < 0)
			die(err.text);
		sum->code_s += now() - start;
		sum->stored += (double)size;
		if (b && b->dtype == t->dtype && (t->dtype == BD_BF16 || t->dtype == BD_F16)) {
			sum->entropy += entropy(&p, (size_t)t->count, t->dtype == BD_BF16 ? 7 : 10);
			compare(&p, (size_t)t->size, sum);
		}
		for (int cpu = BD_CPU_SCALAR; cpu <= (int)bd_cpu_best() && cpu <= BD_CPU_AVX512; cpu++)
			decode(&shape, &p, stored, size, (size_t)t->size, (enum bd_cpu)cpu, sum);
		free(stored);
	}
	bd_exact_plan_free(plan);
	free(p.fine);
	free(p.base);
}

int main(int argc, char **argv)
{
	struct sum sums[KINDS] = { 0 };
	struct bd_checkpoint *base, *fine;
	double all = 0, plain = 0, zstd = 0;

	if (argc != 3)
		die("usage: bench_exact BASE FINE");
	if (bd_checkpoint_open(&base, argv[1], &err) < 0 || bd_checkpoint_open(&fine, argv[2], &err) < 0)
		die(err.text);
	for (size_t s = 0; s < fine->shard_count; s++)
		for (size_t i = 0; i < fine->shards[s].st->count; i++) {
			const struct bd_tensor *t = &fine->shards[s].st->tensors[i];
			const struct bd_shard *shard = NULL;
			const struct bd_tensor *b = bd_checkpoint_find(base, t->name, &shard);

			if (!bd_exact_has_dtype(t->dtype) || t->count == 0)
				continue;
			if (b && (!bd_tensor_same_shape(b, t) || !bd_exact_has_base(t->dtype, b->dtype)))
				b = NULL;
			measure(&fine->shards[s], t, shard, b, sums);
		}
	for (int k = 0; k < KINDS; k++) {
		const struct sum *s = &sums[k];
		double gb = s->plain * 1e-9;

		all += s->stored;
		plain += s->plain;
		zstd += s->zstd;
		if (s->weights == 0)
			continue;
		printf("%s: %.0f of %.0f bytes, %.3f bits a weight (entropy given the exponent %.3f",
		       kinds[k], s->stored, s->plain, 8 * s->stored / s->weights, s->entropy / s->weights);
		if (s->zstd_code_s > 0)
			printf(", XOR and zstd -1 %.3f", 8 * s->zstd / s->weights);
		printf(")\n");
		if (s->code_s == 0)
			continue;
		printf("  GB/s a core: coding %.3f, decoding", gb / s->code_s);
		for (int cpu = 0; cpu < BD_CPUS; cpu++)
			if (s->decode_s[cpu] > 0)
				printf(" %s %.2f", bd_cpu_name((enum bd_cpu)cpu), gb / s->decode_s[cpu]);
		if (s->zstd_code_s > 0)
			printf("; XOR and zstd -1: %.3f, %.2f (zstd alone)", gb / s->zstd_code_s, gb / s->zstd_decode_s);
		printf("\n");
	}
	printf("tensors: %.0f of %.0f bytes (%.1f %%)", all, plain, 100 * all / plain);
	if (sums[LINEAR].zstd_code_s > 0)
		printf("; XOR and zstd -1: %.0f", zstd);
	printf("\n");
	bd_checkpoint_close(fine);
	bd_checkpoint_close(base);
	return 0;
}
