/* SPDX-License-Identifier: Apache-2.0 */
/* make_pair DIR WIDTH LAYERS TUNES: a synthetic base (DIR/base) and fine-tunes of it (DIR/fine0, fine1,
 * ...), TUNES of them, for tests/bench.sh: a Llama of that width and so many layers, in BF16, with a
 * config.json that transformers loads. Same arguments, same bytes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TENSORS 4096
#define CHUNK (1u << 16)

struct tensor {
	char name[80];
	unsigned rows, cols; /* cols 0: a vector */
};

static struct tensor tensors[MAX_TENSORS];
static unsigned count;

static void die(const char *what)
{
	fprintf(stderr, "make_pair: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void add(unsigned rows, unsigned cols, const char *name)
{
	struct tensor *t = &tensors[count++];

	snprintf(t->name, sizeof(t->name), "%s.weight", name);
	t->rows = rows;
	t->cols = cols;
}

static void add_layer(unsigned rows, unsigned cols, unsigned layer, const char *part)
{
	char name[64];

	snprintf(name, sizeof(name), "model.layers.%u.%s", layer, part);
	add(rows, cols, name);
}

static uint64_t elements(const struct tensor *t)
{
	return (uint64_t)t->rows * (t->cols ? t->cols : 1);
}

/* About normal with standard deviation 1: four 16-bit uniform numbers from one step of xorshift64*. */
static float normal(uint64_t *state)
{
	uint64_t x;
	int32_t sum;

	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	x = *state * 0x2545f4914f6cdd1d;
	sum = (int32_t)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
	return (float)(sum - 2 * 65535) * (1.0f / 37837.0f); /* 65536 * sqrt(4 / 12) */
}

static uint16_t bf16(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static FILE *create(const char *directory, const char *name)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	f = fopen(path, "wb");
	if (!f)
		die(path);
	return f;
}

/* On the disk, so that the page cache can be dropped. */
static void finish(FILE *f)
{
	if (fflush(f) || fsync(fileno(f)) < 0 || fclose(f))
		die("write");
}

/* The header of model.safetensors, padded; its length goes to *SIZE. */
static char *make_header(size_t *size)
{
	size_t capacity = 64 + (size_t)count * 256, n;
	char *header = malloc(capacity), shape[32];
	uint64_t offset = 0;

	if (!header)
		die("memory");
	n = (size_t)sprintf(header, "{\"__metadata__\":{\"format\":\"pt\"}");
	for (unsigned i = 0; i < count; i++) {
		const struct tensor *t = &tensors[i];

		if (t->cols)
			snprintf(shape, sizeof(shape), "%u,%u", t->rows, t->cols);
		else
			snprintf(shape, sizeof(shape), "%u", t->rows);
		n += (size_t)sprintf(header + n, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],"
				     "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->name, shape,
				     offset, offset + 2 * elements(t));
		offset += 2 * elements(t);
	}
	header[n++] = '}';
	while (n % 8)
		header[n++] = ' ';
	*size = n;
	return header;
}

/* TUNE 0: the base. All draw the same base weights, and each fine-tune its own small changes. */
static void make_model(const char *directory, const char *config, unsigned tune)
{
	uint64_t base_state = 0x9e3779b97f4a7c15, own_state = base_state * (2 * tune + 1), left, n, size_le;
	static uint16_t values[CHUNK];
	size_t size;
	char *header = make_header(&size);
	FILE *f;

	if (mkdir(directory, 0777) < 0 && errno != EEXIST)
		die(directory);
	f = create(directory, "config.json");
	if (fputs(config, f) < 0)
		die("write");
	finish(f);
	f = create(directory, "model.safetensors");
	size_le = size; /* little-endian machines only, like everything here */
	if (fwrite(&size_le, 8, 1, f) != 1 || fwrite(header, 1, size, f) != size)
		die("write");
	for (unsigned i = 0; i < count; i++) {
		for (left = elements(&tensors[i]); left; left -= n) {
			n = left < CHUNK ? left : CHUNK;
			for (uint64_t k = 0; k < n; k++) {
				float w = normal(&base_state);

				w = tensors[i].cols ? 0.02f * w : 1 + 0.1f * w;
				if (tune)
					w += 0.0008f * normal(&own_state);
				values[k] = bf16(w);
			}
			if (fwrite(values, 2, n, f) != n)
				die("write");
		}
	}
	finish(f);
	free(header);
}

int main(int argc, char **argv)
{
	unsigned width, layers, tunes, hidden, vocabulary;
	char config[1024], path[4096];

	if (argc != 5) {
		fprintf(stderr, "Usage: make_pair DIR WIDTH LAYERS TUNES\n");
		return 1;
	}
	width = (unsigned)atoi(argv[2]);
	layers = (unsigned)atoi(argv[3]);
	tunes = (unsigned)atoi(argv[4]);
	if (!width || width % 16 || !layers || layers * 9 + 3 > MAX_TENSORS) {
		fprintf(stderr, "make_pair: WIDTH must be a multiple of 16, LAYERS from 1 to %d\n",
			(MAX_TENSORS - 3) / 9);
		return 1;
	}
	hidden = width / 16 * 43; /* 5504 for 2048 */
	vocabulary = width * 5 / 2; /* 4 % of 1 GiB at 2048, as that of a 7B model is of the whole */
	add(vocabulary, width, "model.embed_tokens");
	add(vocabulary, width, "lm_head");
	for (unsigned i = 0; i < layers; i++) {
		add_layer(width, 0, i, "input_layernorm");
		add_layer(hidden, width, i, "mlp.gate_proj");
		add_layer(hidden, width, i, "mlp.up_proj");
		add_layer(width, hidden, i, "mlp.down_proj");
		add_layer(width, 0, i, "post_attention_layernorm");
		add_layer(width, width, i, "self_attn.q_proj");
		add_layer(width, width, i, "self_attn.k_proj");
		add_layer(width, width, i, "self_attn.v_proj");
		add_layer(width, width, i, "self_attn.o_proj");
	}
	add(width, 0, "model.norm");
	snprintf(config, sizeof(config),
		 "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
		 "\"hidden_size\": %u, \"intermediate_size\": %u, \"num_hidden_layers\": %u, "
		 "\"num_attention_heads\": %u, \"vocab_size\": %u, \"max_position_embeddings\": 2048, "
		 "\"torch_dtype\": \"bfloat16\", \"tie_word_embeddings\": false}\n",
		 width, hidden, layers, width < 128 ? 1 : width / 128, vocabulary);

	if (mkdir(argv[1], 0777) < 0 && errno != EEXIST)
		die(argv[1]);
	for (unsigned i = 0; i <= tunes; i++) {
		if (i)
			snprintf(path, sizeof(path), "%s/fine%u", argv[1], i - 1);
		else
			snprintf(path, sizeof(path), "%s/base", argv[1]);
		make_model(path, config, i);
	}
	return 0;
}
