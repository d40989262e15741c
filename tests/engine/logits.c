/* SPDX-License-Identifier: Apache-2.0 */
/* logits.c: the logits of a model directory for tokens from standard input, for transformers.py.
 *
 *     logits BACKEND DIR BATCH LENGTH <tokens >logits
 *
 * BACKEND: f32 or f64, the C reference; cuda-bf16, cuda-f16 or cuda-f32. tokens: int32 [BATCH,
 * LENGTH]. Out come float32 [BATCH, LENGTH, vocabulary] from one pass, then float32 [BATCH,
 * vocabulary] after the last token from a decoder that read half of the tokens at once and the
 * others one by one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static struct bd_error err;

static void check(int rc)
{
	if (rc == 0)
		return;
	fprintf(stderr, "logits: %s\n", err.text);
	exit(1);
}

static void write_reals(struct bdx_ops *ops, const void *logits, uint64_t count)
{
	char *reals = malloc(count * bdx_real_size(ops));

	if (!reals)
		exit(1);
	ops->download(ops, reals, logits, count * bdx_real_size(ops));
	check(ops->finish(ops, &err));
	for (uint64_t i = 0; i < count; i++) {
		float f = ops->real == BD_F64 ? (float)((double *)reals)[i] : ((float *)reals)[i];

		fwrite(&f, sizeof(f), 1, stdout);
	}
	free(reals);
}

static void decode(struct bdx_model *model, const int32_t *tokens, uint64_t batch, uint64_t length)
{
	struct bdx_ops *ops = model->ops;
	struct bdx_decoder *decoder;
	int32_t *columns = malloc(batch * length * sizeof(*columns));
	void *device, *logits = NULL;

	check(bdx_decoder_open(&decoder, model, batch, length, &err));
	device = ops->alloc(ops, batch * length * sizeof(*tokens), &err);
	if (!device || !columns)
		exit(1);
	for (uint64_t done = 0, count; done < length; done += count) {
		count = done == 0 ? length / 2 : 1;
		count = count ? count : 1;
		for (uint64_t b = 0; b < batch; b++)
			memcpy(columns + b * count, tokens + b * length + done,
			       count * sizeof(*tokens));
		check(ops->finish(ops, &err));
		ops->upload(ops, device, columns, batch * count * sizeof(*tokens));
		check(bdx_decoder_append(decoder, device, count, &logits, &err));
	}
	write_reals(ops, logits, batch * model->config->vocabulary);
	ops->free(ops, device);
	bdx_decoder_close(decoder);
	free(columns);
}

static struct bdx_ops *open_ops(const char *name)
{
	struct bdx_ops *ops = NULL;

	if (strcmp(name, "f32") == 0)
		check(bdx_ops_cpu_open(&ops, BD_F32, 0, &err));
	else if (strcmp(name, "f64") == 0)
		check(bdx_ops_cpu_open(&ops, BD_F64, 0, &err));
	else if (strcmp(name, "cuda-bf16") == 0)
		check(bdx_ops_cuda_open(&ops, 0, BD_BF16, &err));
	else if (strcmp(name, "cuda-f16") == 0)
		check(bdx_ops_cuda_open(&ops, 0, BD_F16, &err));
	else
		check(bdx_ops_cuda_open(&ops, 0, BD_F32, &err));
	return ops;
}

int main(int argc, char **argv)
{
	struct bdx_source *source;
	struct bdx_config *config;
	struct bdx_model *model;
	struct bdx_ops *ops;
	uint64_t batch, length, count;
	void *hidden, *logits;
	int32_t *tokens;

	if (argc != 5) {
		fprintf(stderr, "Usage: logits BACKEND DIR BATCH LENGTH <tokens >logits\n");
		return 2;
	}
	batch = strtoull(argv[3], NULL, 10);
	length = strtoull(argv[4], NULL, 10);
	count = batch * length;
	tokens = calloc(count, sizeof(*tokens));
	if (!tokens || fread(tokens, sizeof(*tokens), count, stdin) != count)
		return 2;
	ops = open_ops(argv[1]);
	check(bdx_source_open(&source, argv[2], &err));
	check(bdx_config_read(&config, source, &err));
	check(bdx_model_open(&model, ops, config, source, NULL, &err));
	hidden = ops->alloc(ops, count * config->width * bdx_operand_size(ops), &err);
	logits = ops->alloc(ops, count * config->vocabulary * bdx_real_size(ops), &err);
	if (!hidden || !logits)
		check(err.code);
	check(bdx_model_forward(model, tokens, batch, length, false, hidden, &err));
	bdx_model_logits(model, logits, hidden, count);
	write_reals(ops, logits, count * config->vocabulary);
	decode(model, tokens, batch, length);
	ops->free(ops, hidden);
	ops->free(ops, logits);
	bdx_model_close(model);
	bdx_config_free(config);
	bdx_source_close(source);
	bdx_ops_close(ops);
	free(tokens);
	return 0;
}
