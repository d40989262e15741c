/* SPDX-License-Identifier: Apache-2.0 */
/* testdata.h: temporary directories and small safetensors files for the tests.
 *
 *     char *dir = td_dir();
 *     struct td_tensor t[] = {
 *             { .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 4, 8 } },
 *             { .name = "a.bias", .dtype = BD_F32, .dims = 1, .shape = { 4 }, .data = bias },
 *     };
 *     td_safetensors(dir, "model.safetensors", t, 2, "{\"format\":\"pt\"}");
 *     td_text(dir, "config.json", "{}");
 *
 * Strings that are returned live until the process exits; directories are removed then (not after
 * _exit or a crash). A failure of the test's own preparations ends the test program with a message:
 * nothing here returns an error. */
#ifndef BD_TESTDATA_H
#define BD_TESTDATA_H

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

/* A new empty directory below $TMPDIR or /tmp, as an absolute path without links. */
char *td_dir(void);
/* "DIR/NAME". */
char *td_path(const char *dir, const char *name);
/* printf to a string that lives until exit. */
char *td_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Make the directory DIR/NAME (NAME may have several components); its path. */
char *td_mkdir(const char *dir, const char *name);
/* Write DIR/NAME, replacing it; its path. */
char *td_write(const char *dir, const char *name, const void *data, size_t size);
char *td_text(const char *dir, const char *name, const char *text);
/* Make DIR/NAME a symbolic link to TARGET; its path. */
char *td_link(const char *dir, const char *name, const char *target);
/* The contents of a file, with a NUL byte after them. */
char *td_read(const char *path, size_t *size);

struct td_tensor {
	const char *name; /* written into the JSON as it is: escapes are the caller's */
	enum bd_dtype dtype;
	unsigned dims;
	uint64_t shape[8];
	const void *data; /* all bytes of the tensor; NULL: td_fill seeded with the name */
};

/* Deterministic bytes from SEED. For BF16, F16 and F32 they are finite numbers of the size of model
 * weights (absolute value from 2^-7 to 1), for other types any bytes. */
void td_fill(void *data, size_t size, enum bd_dtype dtype, const char *seed);
size_t td_tensor_size(const struct td_tensor *t);

/* Build a safetensors file in memory: tensors one after the other in the given order, header
 * padded with spaces to a multiple of 8 bytes. METADATA is the JSON text of the object, or NULL for
 * none. Lives until exit. */
char *td_safetensors_bytes(const struct td_tensor *tensors, size_t n, const char *metadata,
			   size_t *size);
/* The same, written to DIR/NAME; its path. */
char *td_safetensors(const char *dir, const char *name, const struct td_tensor *tensors, size_t n,
		     const char *metadata);
/* A file from any header text: its length (u64), itself, and `data_size` bytes of data (zeros where
 * `data` is NULL). For tests of what must be refused. */
char *td_raw_safetensors(const char *header, size_t header_size, const void *data,
			 size_t data_size, size_t *size);

/* How much longer things may take than in an optimised build: 1, more under a sanitizer. */
unsigned td_slowness(void);
/* The same for the preprocessor. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define TD_SLOWNESS 30
#elif defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) || \
	__has_feature(memory_sanitizer)
#define TD_SLOWNESS 10
#else
#define TD_SLOWNESS 1
#endif

#endif
