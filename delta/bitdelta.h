/* SPDX-License-Identifier: Apache-2.0 */
/* bitdelta.h: read fine-tunes that are stored as .bdelta files, without a mount.
 *
 * The public interface of libbitdelta; see libbitdelta(3). A .bdelta file holds what a fine-tune
 * changed of a base checkpoint, mostly one bit per weight. Opened over its base it is a directory
 * of files (safetensors, configuration, tokenizer, ...) and a list of tensors, whose bytes are
 * computed while they are read. They are the bytes that a mount shows and `bitdelta export` writes;
 * of lossy tensors not those of the original.
 *
 *	struct bitdelta_error err;
 *	struct bitdelta_base *base;
 *	struct bitdelta *model;
 *
 *	if (bitdelta_base_open(&base, "Llama-2-7b", &err) < 0 ||
 *	    bitdelta_open(&model, base, "vicuna-7b.bdelta", &err) < 0)
 *		errx(1, "%s", err.text);
 *
 * Errors: functions that can fail return a negative errno, and put one sentence into the caller's
 * bitdelta_error: which file or tensor, what is wrong, what to do. A NULL bitdelta_error drops the
 * sentence. Nothing is printed, no signal is touched, and errno has no meaning afterwards.
 *
 * Threads: all functions may be called from any thread, and any number of threads may read from one
 * handle at once. Only closing must come after everything else, and a base is closed after the
 * deltas opened over it.
 *
 * Files: the base keeps one descriptor for each of its shards, a delta one. They must stay as they
 * are while they are open. If the contents of one are changed, reads fail with -EIO and never give
 * other bytes.
 *
 * Compatibility: handles are opaque. Structures that the library hands out may get further members
 * at their end in later versions: use them where they are, through the pointer. bitdelta_error
 * stays as it is. */
#ifndef BITDELTA_H
#define BITDELTA_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct bitdelta_base; /* an open base checkpoint; serves any number of deltas */
struct bitdelta;      /* an open delta over its base */

struct bitdelta_error {
	char text[1024]; /* one sentence without a final full stop, NUL-terminated */
};

struct bitdelta_file {
	const char *name; /* UTF-8; a path below the directory: "config.json", "1_Pooling/config.json" */
	uint64_t size;    /* in bytes */
	int safetensors;  /* 1: it has some of the tensors below; 0: any other, such as config.json */
};

struct bitdelta_tensor {
	const char *name;      /* UTF-8, unique in the delta */
	const char *dtype;     /* as safetensors spells it: "BF16", "F16", "F32", "I64", ... */
	size_t dims;           /* length of shape, 0 to 8; a scalar has 0 */
	const uint64_t *shape; /* in elements, the last dimension being contiguous */
	uint64_t size;         /* in bytes */
	size_t file;           /* index of the file that it lies in ... */
	uint64_t offset;       /* ... and where its first byte is there */
	const char *encoding;  /* "same", "sign", "raw", "rows" or "exact", see bitdelta(1) */
	int lossy;             /* 1: not the original's bytes; 0: exactly these */
};

/* The version of the library: "0.1.0". */
const char *bitdelta_version(void);

/* Open the base checkpoint at PATH: a directory with model.safetensors, or with shards and
 * model.safetensors.index.json, or an entry of a Hugging Face cache. Reads all headers and up to
 * 4096 bytes of each tensor. On success *base is the caller's: bitdelta_base_close. On failure it
 * is NULL.
 * Errors: -ENOENT no such directory; -EINVAL not a checkpoint, or a damaged one; -ENOMEM; -EIO;
 * those of open(2). */
int bitdelta_base_open(struct bitdelta_base **base, const char *path, struct bitdelta_error *err);
/* NULL is allowed. */
void bitdelta_base_close(struct bitdelta_base *base);

/* Open the .bdelta file at PATH over BASE, which must be the base that it was made from: names,
 * shapes and samples of the tensors are compared. On success *delta is the caller's:
 * bitdelta_close. On failure it is NULL.
 * Errors: -EINVAL not a .bdelta file, a damaged one, one that needs a newer library, or another
 * base; -ENOENT; -ENOMEM; -EIO; those of open(2). */
int bitdelta_open(struct bitdelta **delta, struct bitdelta_base *base, const char *path,
		  struct bitdelta_error *err);
/* NULL is allowed. All that the delta handed out ends with it. */
void bitdelta_close(struct bitdelta *delta);

/* The file's name without .bdelta. Borrowed from the delta. */
const char *bitdelta_name(const struct bitdelta *delta);

/* The files, in ascending order of name (as bytes), numbered from 0. Borrowed from the delta; NULL
 * where there is no such number. */
size_t bitdelta_file_count(const struct bitdelta *delta);
const struct bitdelta_file *bitdelta_file_at(const struct bitdelta *delta, size_t index);
/* The number of the file NAME, or -ENOENT. */
ssize_t bitdelta_find_file(const struct bitdelta *delta, const char *name);

/* The tensors of all files, by file and then by offset, numbered from 0; of several with one name, the one that
 * loaders use. Borrowed from the delta;
 * NULL where there is no such number. */
size_t bitdelta_tensor_count(const struct bitdelta *delta);
const struct bitdelta_tensor *bitdelta_tensor_at(const struct bitdelta *delta, size_t index);
/* The number of the tensor NAME, or -ENOENT. */
ssize_t bitdelta_find_tensor(const struct bitdelta *delta, const char *name);

/* Read `size` bytes from byte `offset` of a file into buf. Returns the number of bytes, which is
 * smaller than `size` only at the end of the file, where it is 0 in the end. Large reads (1 MiB and
 * more) are the fastest. Memory: some MiB for each read that goes on at the same time, kept for
 * later ones; and the contents of files that are not safetensors, once one was read.
 * Errors, after which nothing of buf may be used: -EINVAL no such file; -EIO the base or the delta
 * cannot be read, is damaged or has changed; -ENOMEM. */
ssize_t bitdelta_read_file(struct bitdelta *delta, size_t file, void *buf, size_t size,
			   uint64_t offset, struct bitdelta_error *err);
/* The same for a tensor: `offset` counts from its first byte and the tensor's end is the end. The
 * bytes are those of safetensors: row-major, little-endian, without padding. */
ssize_t bitdelta_read_tensor(struct bitdelta *delta, size_t tensor, void *buf, size_t size,
			     uint64_t offset, struct bitdelta_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
