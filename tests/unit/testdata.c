/* SPDX-License-Identifier: Apache-2.0 */
/* testdata.c: temporary directories and small safetensors files, see testdata.h. */
#include "testdata.h"

#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "buffer.h"

/* Everything that lives until exit. */
static struct kept {
	struct kept *before;
	char *string;
	bool directory; /* remove the directory of this name */
	pid_t owner;    /* a forked child must not */
} *kept;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((format(printf, 1, 2), noreturn))
static void stop(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("testdata: ", stderr);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %m\n");
	exit(2);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void remove_all(void)
{
	while (kept) {
		struct kept *k = kept;

		kept = k->before;
		if (k->directory && k->owner == getpid())
			nftw(k->string, remove_one, 16, FTW_DEPTH | FTW_PHYS);
		free(k->string);
		free(k);
	}
}

static char *keep(char *string, bool directory)
{
	struct kept *k = malloc(sizeof(*k));

	if (!string || !k)
		stop("out of memory");
	pthread_mutex_lock(&lock);
	if (!kept)
		atexit(remove_all);
	*k = (struct kept){
		.before = kept, .string = string, .directory = directory, .owner = getpid(),
	};
	kept = k;
	pthread_mutex_unlock(&lock);
	return string;
}

char *td_format(const char *format, ...)
{
	va_list args;
	char *text;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		text = NULL;
	va_end(args);
	return keep(text, false);
}

char *td_dir(void)
{
	const char *parent = getenv("TMPDIR");
	char *pattern, *real;

	pattern = td_format("%s/bitdelta-test-XXXXXX", parent && *parent ? parent : "/tmp");
	if (!mkdtemp(pattern))
		stop("%s", pattern);
	real = realpath(pattern, NULL);
	if (!real)
		stop("%s", pattern);
	return keep(real, true);
}

char *td_path(const char *dir, const char *name)
{
	return td_format("%s/%s", dir, name);
}

char *td_mkdir(const char *dir, const char *name)
{
	char *path = td_path(dir, name);

	for (char *slash = path + strlen(dir) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0777);
		*slash = '/';
	}
	if (mkdir(path, 0777) < 0)
		stop("%s", path);
	return path;
}

char *td_write(const char *dir, const char *name, const void *data, size_t size)
{
	char *path = td_path(dir, name);
	FILE *f = fopen(path, "w");

	if (!f || (size && fwrite(data, size, 1, f) != 1) || fclose(f) != 0)
		stop("%s", path);
	return path;
}

char *td_text(const char *dir, const char *name, const char *text)
{
	return td_write(dir, name, text, strlen(text));
}

char *td_link(const char *dir, const char *name, const char *target)
{
	char *path = td_path(dir, name);

	if (symlink(target, path) < 0)
		stop("%s", path);
	return path;
}

char *td_read(const char *path, size_t *size)
{
	FILE *f = fopen(path, "r");
	struct stat st;
	char *data;

	if (!f || fstat(fileno(f), &st) < 0)
		stop("%s", path);
	data = keep(malloc((size_t)st.st_size + 1), false);
	if (st.st_size && fread(data, (size_t)st.st_size, 1, f) != 1)
		stop("%s", path);
	fclose(f);
	data[st.st_size] = '\0';
	*size = (size_t)st.st_size;
	return data;
}

/* splitmix64 */
static uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

void td_fill(void *data, size_t size, enum bd_dtype dtype, const char *seed)
{
	unsigned char *bytes = data;
	uint64_t state = 1469598103934665603u;

	for (; *seed; seed++)
		state = (state ^ (unsigned char)*seed) * 1099511628211u;
	for (size_t i = 0; i < size; i++)
		bytes[i] = (unsigned char)(random_next(&state) >> 32);
	/* Sign and fraction stay random, the exponent is that of 2^-7 to just below 1. */
	if (dtype == BD_BF16 || dtype == BD_F32) {
		size_t width = dtype == BD_BF16 ? 2 : 4;

		for (size_t i = 0; i + width <= size; i += width) {
			unsigned exponent = 120 + bytes[i + width - 1] % 7;

			bytes[i + width - 1] = (unsigned char)((bytes[i + width - 1] & 0x80) |
							       exponent >> 1);
			bytes[i + width - 2] = (unsigned char)((bytes[i + width - 2] & 0x7f) |
							       (exponent & 1) << 7);
		}
	} else if (dtype == BD_F16) {
		for (size_t i = 0; i + 2 <= size; i += 2) {
			unsigned exponent = 8 + bytes[i + 1] % 7;

			bytes[i + 1] = (unsigned char)((bytes[i + 1] & 0x83) | exponent << 2);
		}
	}
}

size_t td_tensor_size(const struct td_tensor *t)
{
	uint64_t bits = bd_dtype_bits(t->dtype);

	for (unsigned i = 0; i < t->dims; i++)
		bits *= t->shape[i];
	return (size_t)(bits / 8);
}

static char *keep_buffer(struct bd_buffer *b)
{
	if (b->failed)
		stop("out of memory");
	return keep(b->data, false);
}

char *td_raw_safetensors(const char *header, size_t header_size, const void *data,
			 size_t data_size, size_t *size)
{
	char *file = keep(calloc(1, 8 + header_size + data_size + 1), false);

	for (int i = 0; i < 8; i++)
		file[i] = (char)(header_size >> 8 * i);
	if (header_size)
		memcpy(file + 8, header, header_size);
	if (data && data_size)
		memcpy(file + 8 + header_size, data, data_size);
	*size = 8 + header_size + data_size;
	return file;
}

char *td_safetensors_bytes(const struct td_tensor *tensors, size_t n, const char *metadata,
			   size_t *size)
{
	struct bd_buffer header = { 0 };
	uint64_t at = 0;
	char *file, *to;

	bd_buffer_append(&header, "{", 1);
	if (metadata)
		bd_buffer_printf(&header, "\"__metadata__\":%s", metadata);
	for (size_t i = 0; i < n; i++) {
		const struct td_tensor *t = &tensors[i];

		bd_buffer_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
				 i || metadata ? "," : "", t->name, bd_dtype_name(t->dtype));
		for (unsigned k = 0; k < t->dims; k++)
			bd_buffer_printf(&header, "%s%" PRIu64, k ? "," : "", t->shape[k]);
		bd_buffer_printf(&header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
				 at + td_tensor_size(t));
		at += td_tensor_size(t);
	}
	bd_buffer_append(&header, "}", 1);
	while (header.size % 8 != 0)
		bd_buffer_append(&header, " ", 1);
	keep_buffer(&header);
	file = td_raw_safetensors(header.data, header.size, NULL, (size_t)at, size);
	to = file + 8 + header.size;
	for (size_t i = 0; i < n; i++) {
		size_t bytes = td_tensor_size(&tensors[i]);

		if (tensors[i].data && bytes)
			memcpy(to, tensors[i].data, bytes);
		else
			td_fill(to, bytes, tensors[i].dtype, tensors[i].name);
		to += bytes;
	}
	return file;
}

char *td_safetensors(const char *dir, const char *name, const struct td_tensor *tensors, size_t n,
		     const char *metadata)
{
	size_t size;
	char *file = td_safetensors_bytes(tensors, n, metadata, &size);

	return td_write(dir, name, file, size);
}

unsigned td_slowness(void)
{
	return TD_SLOWNESS;
}
