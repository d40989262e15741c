/* SPDX-License-Identifier: Apache-2.0 */
/* view.h: a delta over its base, as the directory of files that it stands for.
 *
 * The one place that computes a fine-tune's bytes: the mount, `export` and the tests read through
 * it. A view is immutable; any number of threads may read from it, each with its own scratch. */
#ifndef BD_VIEW_H
#define BD_VIEW_H

#include <pthread.h>
#include <sys/types.h>

#include "delta.h"

struct bd_view_file {
	const char *name; /* borrowed from the delta */
	uint64_t size;
	bool safetensors;
	/* private, as is all that follows: */
	bool packed;             /* it must be inflated to be read */
	struct bd_piece *pieces; /* consecutive runs of bytes with one source each, and one at the end */
	size_t piece_count;      /* without the last */
	char *header;            /* that a piece has; the delta's unless the view is slim */
	/* Of a packed file: its contents, from when they are needed until it is closed. */
	char *data;
	bool good;      /* they were there and had the right hash */
	unsigned users;
};

/* Bases and deltas are mapped where bd_guard_install was called before they were opened, else read
 * with pread; the bytes are the same. */
struct bd_view {
	const char *name;        /* of the delta: the directory's name */
	struct bd_delta *delta;  /* owned */
	struct bd_base *base;    /* borrowed, must outlive the view */
	struct bd_view_file *files; /* ascending names */
	size_t file_count;
	pthread_mutex_t lock;    /* guards data and users of the files */
	/* private: */
	uint64_t serial;         /* no other view of this process has it */
	uint64_t scales_at;      /* offset of the scales in the delta */
	struct bd_coded *coded;  /* the tensors of all files that are computed */
	size_t coded_count, coded_room;
	struct bd_shapes kinds;  /* what they point to */
	bool slim;
};

/* Memory for one read at a time; a thread keeps one. At most 512 KiB and 600 KiB more for each plane
 * of the files that it is used for, allocated when first needed; much less is touched. It remembers
 * the column scales of the last tensor. For exact tensors it takes what codec/exact_file.h says, and remembers the
 * last chunk. */
struct bd_scratch;
struct bd_scratch *bd_scratch_new(void); /* NULL: out of memory */
void bd_scratch_free(struct bd_scratch *scratch);
/* How many bytes of bases and of deltas the calls of bd_view_read with this scratch have needed since
 * this was last asked, whether they came from the disk or from the page cache. */
void bd_scratch_take_counts(struct bd_scratch *scratch, uint64_t *base, uint64_t *delta);

/* Takes the delta over on success. Refuses a wrong base (bd_delta_check_base). */
int bd_view_open(struct bd_view **view, struct bd_delta *delta, struct bd_base *base,
		 struct bd_error *err);
void bd_view_close(struct bd_view *view); /* NULL allowed; closes the delta */

/* Give up what only looking at the delta needs (bd_delta_forget_tensors). Reading is as before, and a tensor
 * takes some 50 bytes, and 100 to 150 more for its part of the header where no shard of the base has the same
 * one. Not while others use the view. */
void bd_view_slim(struct bd_view *view);
/* What a slim view takes, in bytes, without files that are inflated. */
size_t bd_view_bytes(const struct bd_view *view);

/* The file of the base that has just the bytes of file INDEX; NULL: none has. Borrowed from the base. */
struct bd_file *bd_view_verbatim(const struct bd_view *view, size_t index);

/* Make file INDEX ready for reading, and end that. They nest; every bd_view_read must lie
 * between the two. Files that are kept as zlib streams are inflated here the first time, to know that they
 * are good, and from then on when they are read: the index of a model of many tensors has megabytes, and the
 * kernel has them cached. */
#define BD_VIEW_INFLATED ((uint64_t)1 << 30) /* bytes of such files of all views; more are -ENOMEM */
int bd_view_acquire(struct bd_view *view, size_t index, struct bd_error *err);
void bd_view_release(struct bd_view *view, size_t index);

/* Read `size` bytes at `offset` of file INDEX into buf: the number of bytes, which is smaller than
 * `size` only at the end of the file. -EIO (or another errno of pread) where base or delta cannot
 * be read or have changed; then nothing of buf may be used. */
ssize_t bd_view_read(struct bd_view *view, size_t index, void *buf, size_t size, uint64_t offset,
		     struct bd_scratch *scratch, struct bd_error *err);

#endif
