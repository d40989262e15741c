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
	bool packed;             /* private: it must be inflated to be read */
	struct bd_piece *pieces; /* private: consecutive runs of bytes with one source each */
	size_t piece_count;
	/* private: contents of a packed file, while it is open */
	char *data;
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
	uint64_t serial;         /* private: no other view of this process has it */
};

/* Memory for one read at a time; a thread keeps one. At most 512 KiB and 600 KiB more for each plane
 * of the files that it is used for, allocated when first needed; much less is touched. It remembers
 * the column scales of the last tensor. */
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

/* Make file INDEX ready for reading, and end that. They nest; every bd_view_read must lie
 * between the two. Files that are kept as zlib streams are inflated here. */
#define BD_VIEW_INFLATED ((uint64_t)1 << 30) /* bytes of such files of all views; more are -ENOMEM */
int bd_view_acquire(struct bd_view *view, size_t index, struct bd_error *err);
void bd_view_release(struct bd_view *view, size_t index);

/* Read `size` bytes at `offset` of file INDEX into buf: the number of bytes, which is smaller than
 * `size` only at the end of the file. -EIO (or another errno of pread) where base or delta cannot
 * be read or have changed; then nothing of buf may be used. */
ssize_t bd_view_read(struct bd_view *view, size_t index, void *buf, size_t size, uint64_t offset,
		     struct bd_scratch *scratch, struct bd_error *err);

#endif
