/* SPDX-License-Identifier: Apache-2.0 */
/* delta.h: an open .bdelta file: container and manifest, checked against each other (FORMAT.md).
 *
 * bd_delta_open reads the container's header and the manifest and holds every rule of FORMAT.md
 * that can be checked without reading the planes and the base; afterwards a delta is immutable and
 * any thread may use it. Deltas come from strangers: sizes are checked before they are allocated. */
#ifndef BD_DELTA_H
#define BD_DELTA_H

#include "base.h"

#define BD_VERSION "0.1.0"

enum bd_encoding { BD_SAME, BD_SIGN, BD_RAW, BD_ROWS, BD_EXACT, BD_ENCODINGS };
const char *bd_encoding_name(enum bd_encoding encoding);

struct bd_entry {                        /* one tensor of the fine-tune */
	const struct bd_tensor *tensor;  /* in its file's header: offset is in the virtual file */
	unsigned copy;                   /* of a tensor of that name in another file, which is the one that
					  * loaders use: the number of this file, from 1; else 0 */
	enum bd_encoding encoding;
	enum bd_encoding head;           /* of BD_ROWS: BD_SAME or BD_SIGN; else == encoding */
	uint64_t shared;                 /* of BD_ROWS: slices of the first dimension in the head */
	uint64_t rows, cols;             /* of the sign-coded part, else 0 */
	unsigned planes;                 /* of the sign-coded part, else 0 */
	double error;                    /* relative error found at import; negative if unknown */
	const struct bd_tensor *sign;    /* in the container; NULL if none */
	const struct bd_tensor *raw;     /* in the container: raw tensor or tail; NULL if none */
	const struct bd_tensor *exact;   /* in the container: what codes the tensor; NULL if none */
	uint64_t scales;                 /* index of its first scale, if sign-coded */
	char xxh128[BD_HASH];            /* of the sign planes, or of the raw or exact tensor */
	char tail_xxh128[BD_HASH];       /* of a tail */
	/* The base tensor it needs, base_xxh128 == "" if none: */
	char *base_name;                 /* NULL: as the tensor's own, see bd_entry_base */
	enum bd_dtype base_dtype;
	unsigned base_dims;
	const uint64_t *base_shape;
	char base_xxh128[BD_HASH];
	uint64_t base_sample;
};

/* Does the entry need a tensor of the base? */
bool bd_entry_has_base(const struct bd_entry *e);
/* The name in the base of that tensor. */
const char *bd_entry_base(const struct bd_entry *e);

struct bd_delta_file {                   /* one file of the fine-tune's directory */
	char *name;                      /* a path below the directory (paths.h) */
	uint64_t size;
	struct bd_safetensors *st;       /* parsed header, NULL for other files */
	struct bd_entry *entries;        /* of a safetensors file: st->count, by offset */
	const struct bd_tensor *stored;  /* of another file, in the container: its zlib stream ... */
	bool plain;                      /* ... or the bytes themselves */
	char xxh128[BD_HASH];            /* of another file */
};

struct bd_delta {
	char *name;                      /* file name without .bdelta */
	struct bd_file *file;
	struct bd_safetensors *st;       /* the container */
	struct bd_delta_file *files;     /* ascending names */
	size_t file_count;
	const struct bd_tensor *scales;  /* NULL if there are none */
	char scales_xxh128[BD_HASH];
	char *base_label;
	char *base_revision, *base_path, *base_hub; /* for people (origin.h); each may be NULL */
	char base_digest[BD_HASH];
	char *producer;
	char *scale_kind;                /* "rank1", …; NULL if unknown */
	double attenuation;
	bool distilled;
	/* private: */
	struct bd_shapes shapes;         /* those of base tensors */
	struct bd_tensor *kept;          /* room for what `stored` points to when the tensors are forgotten */
};

/* Errors: -EINVAL not a .bdelta file, damaged, or needing a newer version: the sentence says
 * which. */
int bd_delta_open(struct bd_delta **delta, const char *path, struct bd_error *err);
/* The same for NAME below the open directory DIRFD (or AT_FDCWD); PATH is what messages call it, and
 * its last component gives the delta's name. */
int bd_delta_open_at(struct bd_delta **delta, int dirfd, const char *name, const char *path,
		     struct bd_error *err);
/* The same for a file that is open already; takes it over, also where it fails. */
int bd_delta_open_file(struct bd_delta **delta, struct bd_file *file, struct bd_error *err);
void bd_delta_close(struct bd_delta *delta); /* NULL allowed */

/* Give up the container's header and all about tensors, which is nearly all. What stays is what
 * bd_delta_inflate needs, the lengths and names of the files, and what the delta says about itself. */
void bd_delta_forget_tensors(struct bd_delta *delta);

/* Does BASE fit? 0, or -EINVAL with what differs: the delta's and the base's names, the first
 * tensor that is missing or has another dtype, shape or content. */
int bd_delta_check_base(const struct bd_delta *delta, const struct bd_base *base,
			struct bd_error *err);

/* Inflate a file that is kept as a zlib stream, and check its hash. *data is malloced (size as in the
 * file's record; at least one byte). */
int bd_delta_inflate(const struct bd_delta *delta, const struct bd_delta_file *file, char **data,
		     struct bd_error *err);

#endif
