/* SPDX-License-Identifier: Apache-2.0 */
/* config.c: reading config.json and its neighbours, see config.h. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "sidecars.h"

#define CONFIG "config.json"
#define MAX_CONFIG ((size_t)16 << 20)
#define MAX_KEY 1024

static int out_of_memory(const struct bd_checkpoint *c, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", c->path);
}

static void add_vocabulary(struct bd_config *config, uint64_t size)
{
	if (size > 0 && config->vocabulary_count < BD_CONFIG_VOCABULARIES)
		config->vocabularies[config->vocabulary_count++] = size;
}

/* vocab_size, padded_vocab_size, text_vocab_size, vocab_size_per_layer_input; n_vocab. */
static bool is_vocabulary_key(const char *key)
{
	return strstr(key, "vocab_size") || strcmp(key, "n_vocab") == 0;
}

/* transformers and most others; MLX; compressed-tensors of old. */
static bool is_quantisation_key(const char *key)
{
	return strcmp(key, "quantization_config") == 0 || strcmp(key, "quantization") == 0 ||
	       strcmp(key, "compression_config") == 0;
}

/* The members of one object, then of those inside. */
static int read_object(struct bd_config *config, struct bd_json *j, unsigned depth)
{
	char key[MAX_KEY];
	double number;
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0) {
		enum bd_json_kind kind = bd_json_peek(j);

		if (kind == BD_JSON_OBJECT && depth < BD_JSON_DEPTH) {
			config->quantised |= is_quantisation_key(key);
			rc = read_object(config, j, depth + 1);
		} else if (kind == BD_JSON_NUMBER && is_vocabulary_key(key)) {
			rc = bd_json_number(j, &number);
			if (rc == 0 && number > 0 && number < 0x1p53)
				add_vocabulary(config, (uint64_t)number);
		} else if (kind == BD_JSON_STRING && depth == 0 && !config->model_type &&
			   strcmp(key, "model_type") == 0) {
			rc = bd_json_string_dup(j, &config->model_type, NULL);
		} else if (kind == BD_JSON_STRING && depth == 0 && !config->name_or_path &&
			   strcmp(key, "_name_or_path") == 0) {
			rc = bd_json_string_dup(j, &config->name_or_path, NULL);
		} else {
			rc = bd_json_skip(j);
		}
	}
	return rc;
}

/* *tokens becomes at least one more than the number of a token. */
static void add_token(uint64_t *tokens, uint64_t number)
{
	if (number >= *tokens && number < UINT32_MAX)
		*tokens = number + 1;
}

static int read_id(struct bd_json *j, uint64_t *tokens)
{
	uint64_t number;
	int rc = bd_json_u64(j, &number);

	if (rc == 0)
		add_token(tokens, number);
	return rc;
}

/* {"token": number, ...}, or a list of tokens whose places are their numbers. */
static int read_vocabulary(struct bd_json *j, uint64_t *tokens)
{
	bool list = bd_json_peek(j) == BD_JSON_ARRAY;
	int rc = list ? bd_json_array(j) : bd_json_object(j);

	for (uint64_t place = 0; list && rc == 0 && (rc = bd_json_item(j)) > 0; place++) {
		add_token(tokens, place);
		rc = bd_json_skip(j);
	}
	while (!list && rc == 0 && (rc = bd_json_member(j, NULL, 0, NULL)) > 0)
		rc = read_id(j, tokens);
	return rc;
}

/* Read the member `wanted` of an object by `read`, and past all others. */
static int read_member(struct bd_json *j, const char *wanted, uint64_t *tokens,
		       int (*read)(struct bd_json *, uint64_t *))
{
	char key[MAX_KEY];
	int rc = bd_json_object(j);

	while (rc == 0 && (rc = bd_json_member(j, key, sizeof(key), NULL)) > 0)
		rc = strcmp(key, wanted) == 0 ? read(j, tokens) : bd_json_skip(j);
	return rc;
}

static int read_added(struct bd_json *j, uint64_t *tokens)
{
	int rc = bd_json_array(j);

	while (rc == 0 && (rc = bd_json_item(j)) > 0)
		rc = read_member(j, "id", tokens, read_id);
	return rc;
}

static int read_model(struct bd_json *j, uint64_t *tokens)
{
	return read_member(j, "vocab", tokens, read_vocabulary);
}

/* The text of a file of the model, malloced; NULL where there is no such file. */
static int slurp(const struct bd_checkpoint *c, const char *name, size_t limit, char **text,
		 size_t *size, struct bd_error *err)
{
	char *path;
	int rc;

	*text = NULL;
	if (asprintf(&path, "%s/%s", c->path, name) < 0)
		return out_of_memory(c, err);
	rc = bd_file_slurp(path, limit, text, size, err);
	free(path);
	return rc == -ENOENT ? 0 : rc;
}

/* Is it no file, or one that is too large? Such a one says nothing. */
static bool is_no_text(int code)
{
	return code == -EINVAL || code == -EFBIG;
}

/* How many tokens tokenizer.json knows. */
static int read_tokenizer(struct bd_config *config, const struct bd_checkpoint *c, struct bd_error *err)
{
	uint64_t tokens = 0;
	struct bd_json j;
	char *text;
	size_t size;
	int rc = slurp(c, "tokenizer.json", BD_MAX_SIDECAR, &text, &size, err);

	if (rc < 0 || !text)
		return is_no_text(rc) ? 0 : rc;
	bd_json_init(&j, text, size, "tokenizer.json", 0, NULL);
	read_member(&j, "model", &tokens, read_model);
	bd_json_init(&j, text, size, "tokenizer.json", 0, NULL);
	read_member(&j, "added_tokens", &tokens, read_added);
	add_vocabulary(config, tokens);
	free(text);
	return 0;
}

/* What config.json says before its fault, if it has one. */
static int read_json(struct bd_config *config, const struct bd_checkpoint *c, struct bd_error *err)
{
	char *path = NULL, *text;
	struct bd_error why = { 0 };
	struct bd_json j;
	size_t size;
	int rc = slurp(c, CONFIG, MAX_CONFIG, &text, &size, &why);

	if (is_no_text(rc)) {
		config->fault = why;
		return 0;
	}
	if (rc < 0 && err)
		*err = why;
	if (rc < 0 || !text)
		return rc;
	if (asprintf(&path, "%s/" CONFIG, c->path) < 0) {
		free(text);
		return out_of_memory(c, err);
	}
	bd_json_init(&j, text, size, path, 0, &config->fault);
	j.constants = true;
	if (bd_file_is_pointer(text, size))
		bd_error_set(&config->fault, -EINVAL, "%s: is " BD_LFS_POINTER, path);
	else if (read_object(config, &j, 0) == -ENOMEM)
		rc = out_of_memory(c, err);
	free(text);
	free(path);
	return rc;
}

int bd_config_read(struct bd_config *config, const struct bd_checkpoint *c, struct bd_error *err)
{
	/* Of AutoGPTQ, AutoAWQ and ModelOpt, which write no more than these. */
	static const char *const quantisers[] = {
		"quantize_config.json", "quant_config.json", "hf_quant_config.json",
	};
	int rc;

	*config = (struct bd_config){ 0 };
	rc = read_json(config, c, err);
	if (rc == 0 && config->vocabulary_count == 0)
		rc = read_tokenizer(config, c, err);
	for (size_t i = 0; rc == 0 && i < sizeof(quantisers) / sizeof(*quantisers); i++) {
		char *path;

		if (asprintf(&path, "%s/%s", c->path, quantisers[i]) < 0)
			return out_of_memory(c, err);
		config->quantised |= access(path, F_OK) == 0;
		free(path);
	}
	return rc;
}

void bd_config_free(struct bd_config *config)
{
	free(config->model_type);
	free(config->name_or_path);
	config->model_type = config->name_or_path = NULL;
}
