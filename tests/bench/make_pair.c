/* make_pair DIR GIB: a synthetic base (DIR/base) and fine-tune (DIR/fine) of about GIB GiB each, with
 * the shapes of a small Llama in BF16, for tests/bench.sh. Same arguments, same bytes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A vocabulary that takes 4 % of 1 GiB, as that of a 7B model does of the whole. */
enum { WIDTH = 2048, HIDDEN = 5504, VOCABULARY = 5000, MAX_TENSORS = 4096 };

static struct tensor { char name[80]; unsigned rows, cols; /* cols 0: a vector */ } tensors[MAX_TENSORS];
static unsigned count;

static void add(unsigned rows, unsigned cols, const char *format, unsigned layer)
{
	if (count == MAX_TENSORS) {
		fprintf(stderr, "make_pair: too many tensors\n");
		exit(1);
	}
	struct tensor *t = &tensors[count++];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(t->name, sizeof(t->name), format, layer);
#pragma GCC diagnostic pop
	t->rows = rows;
	t->cols = cols;
}

static uint64_t elements(const struct tensor *t)
{
	return (uint64_t)t->rows * (t->cols ? t->cols : 1);
}

static uint64_t state = 0x9e3779b97f4a7c15;

/* About normal with standard deviation 1: four 16-bit uniform numbers from one step of xorshift64*. */
static float normal(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	uint64_t x = state * 0x2545f4914f6cdd1d;
	int32_t sum = (int32_t)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
	return (float)(sum - 2 * 65535) * (1.0f / 37837.0f); /* 65536 * sqrt(4 / 12) */
}

static uint16_t bf16(float f)
{
	uint32_t bits;
	memcpy(&bits, &f, sizeof(bits));
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void die(const char *what)
{
	fprintf(stderr, "make_pair: %s: %s\n", what, strerror(errno));
	exit(1);
}

static FILE *start(const char *directory, const char *name, const char *header, size_t size)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	if (mkdir(path, 0777) != 0 && errno != EEXIST)
		die(path);
	snprintf(path, sizeof(path), "%s/%s/config.json", directory, name);
	FILE *f = fopen(path, "w");
	if (!f || fputs("{\"model_type\": \"llama\"}\n", f) < 0 || fclose(f) != 0)
		die(path);
	snprintf(path, sizeof(path), "%s/%s/model.safetensors", directory, name);
	f = fopen(path, "wb");
	uint64_t n = size; /* little-endian machines only, like everything here */
	if (!f || fwrite(&n, 8, 1, f) != 1 || fwrite(header, 1, size, f) != size)
		die(path);
	return f;
}

int main(int argc, char **argv)
{
	double gib = argc == 3 ? atof(argv[2]) : 0;
	if (gib <= 0) {
		fprintf(stderr, "usage: make_pair DIR GIB\n");
		return 1;
	}
	add(VOCABULARY, WIDTH, "model.embed_tokens.weight", 0);
	add(VOCABULARY, WIDTH, "lm_head.weight", 0);
	double per_layer = 2.0 * (4.0 * WIDTH * WIDTH + 3.0 * WIDTH * HIDDEN);
	double room = gib * (1 << 30) - 2.0 * 2 * VOCABULARY * WIDTH;
	unsigned layers = room > per_layer ? (unsigned)(room / per_layer + 0.5) : 1;
	for (unsigned i = 0; i < layers; i++) {
		add(WIDTH, 0, "model.layers.%u.input_layernorm.weight", i);
		add(HIDDEN, WIDTH, "model.layers.%u.mlp.gate_proj.weight", i);
		add(HIDDEN, WIDTH, "model.layers.%u.mlp.up_proj.weight", i);
		add(WIDTH, HIDDEN, "model.layers.%u.mlp.down_proj.weight", i);
		add(WIDTH, 0, "model.layers.%u.post_attention_layernorm.weight", i);
		add(WIDTH, WIDTH, "model.layers.%u.self_attn.q_proj.weight", i);
		add(WIDTH, WIDTH, "model.layers.%u.self_attn.k_proj.weight", i);
		add(WIDTH, WIDTH, "model.layers.%u.self_attn.v_proj.weight", i);
		add(WIDTH, WIDTH, "model.layers.%u.self_attn.o_proj.weight", i);
	}
	add(WIDTH, 0, "model.norm.weight", 0);

	size_t capacity = 64 + (size_t)count * 256, size = 0;
	char *header = malloc(capacity);
	if (!header)
		die("memory");
	size += (size_t)sprintf(header, "{\"__metadata__\":{\"format\":\"pt\"}");
	uint64_t offset = 0;
	for (unsigned i = 0; i < count; i++) {
		struct tensor *t = &tensors[i];
		char shape[32];
		snprintf(shape, sizeof(shape), t->cols ? "%u,%u" : "%u", t->rows, t->cols);
		size += (size_t)sprintf(header + size, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],"
				"\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->name, shape, offset,
				offset + 2 * elements(t));
		offset += 2 * elements(t);
	}
	header[size++] = '}';
	while (size % 8)
		header[size++] = ' ';

	if (mkdir(argv[1], 0777) != 0 && errno != EEXIST)
		die(argv[1]);
	FILE *base = start(argv[1], "base", header, size), *fine = start(argv[1], "fine", header, size);
	static uint16_t b[1 << 16], f[1 << 16];
	for (unsigned i = 0; i < count; i++) {
		for (uint64_t left = elements(&tensors[i]), n; left; left -= n) {
			n = left < 1 << 16 ? left : 1 << 16;
			for (uint64_t k = 0; k < n; k++) {
				float w = tensors[i].cols ? 0.02f * normal() : 1 + 0.1f * normal();
				b[k] = bf16(w);
				f[k] = bf16(w + 0.0008f * normal());
			}
			if (fwrite(b, 2, n, base) != n || fwrite(f, 2, n, fine) != n)
				die("write");
		}
	}
	/* On the disk, so that the page cache can be dropped. */
	if (fflush(base) != 0 || fsync(fileno(base)) != 0 || fclose(base) != 0 || fflush(fine) != 0 ||
	    fsync(fileno(fine)) != 0 || fclose(fine) != 0)
		die("write");
	free(header);
	return 0;
}
