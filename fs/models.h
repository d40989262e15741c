/* SPDX-License-Identifier: Apache-2.0 */
/* models.h: what a mount shows: bases, the deltas found for them, and the models they make.
 *
 * A model is one directory of the mount: a delta over its base, or a base itself. It keeps only what
 * listing needs (some kilobytes); its view, with all that reading needs, is opened when the first of its
 * files is, and closed some time after the last. Deltas are opened relative to descriptors of their
 * directories, so they stay reachable when the mount covers them, and stay open, so that a model has its
 * bytes as long as anybody uses it, whatever became of the file's name.
 *
 * The set of models changes while the mount lives: bdfs_models_scan, called by one thread, makes it what
 * the directories hold now. Models are counted references and never change; those that went live on
 * as long as somebody uses them. All other functions may be called from any thread. */
#ifndef BDFS_MODELS_H
#define BDFS_MODELS_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "log.h"
#include "sidecars.h"
#include "stats.h"
#include "view.h"

enum bdfs_layout {
	BDFS_DIRS, /* NAME/ for NAME.bdelta */
	BDFS_HUB,  /* models--NAME/{refs/main,snapshots/REVISION/}: a Hugging Face cache */
};

struct bdfs_config {
	char *const *bases;  /* base checkpoints, as bd_base_open takes them */
	size_t base_count;   /* at least 1 */
	char *const *deltas; /* `.bdelta` files, directories, and DIR with a slash and two stars: all below it */
	size_t delta_count;
	enum bdfs_layout layout;
	bool show_base;      /* the bases are models too */
};

struct bdfs_base {
	atomic_uint users;
	char *path;           /* absolute */
	struct bd_base *base; /* owned */
	struct bd_sidecars sidecars; /* its files besides the checkpoint's; none where `unlisted` says why */
	struct bd_error unlisted;
	uint64_t bytes;       /* of its files */
};

#define BDFS_REVISION 41 /* 40 hexadecimal digits, as commits have, and a NUL */

struct bdfs_file {
	char *name;           /* a path below the model's directory */
	uint64_t size;
	uint64_t stored;      /* bytes that are kept for it: in the delta; of a base, all */
	unsigned encodings;   /* of a safetensors file: 1 << enum bd_encoding for each one used */
	struct bd_file *real; /* it has exactly the bytes of this file; NULL: it is computed */
	bool owned;           /* private: `real` is this model's */
	unsigned handles;     /* of ops.c, as is the next: open ones that read `real` */
	int backing;          /* the kernel's number for `real` while it passes reads through; 0: none */
};

struct bdfs_model {
	atomic_uint users;
	char *name;           /* of the delta or base */
	char *directory;      /* what the mount calls it: the name, with layout=hub models--NAME */
	char *path;           /* of the delta (or base), absolute, for people */
	char revision[BDFS_REVISION]; /* of the contents */
	struct bdfs_base *base;
	struct bdfs_file *files; /* in ascending order of name */
	size_t file_count;
	uint64_t virtual_bytes; /* of all files */
	uint64_t stored_bytes;  /* the delta's size; 0 for a base, which is stored anyway */
	struct timespec mtime;
	bool is_base, distilled;
	struct bdfs_counters counters;
	/* private: */
	const struct bdfs_source *source; /* where its delta was found; NULL for a base */
	char *entry;             /* the delta's name there */
	struct bd_file *file;    /* the delta, open: its contents stay when its name goes */
	struct bd_view *view;    /* guarded by bdfs_models.views, as are the rest */
	unsigned view_users;
	size_t view_bytes;       /* what it takes */
	bool opening;
	struct bdfs_model *older, *newer; /* in the list of idle views */
};

/* A delta that is there and cannot be shown, or a directory of deltas that cannot be read. */
struct bdfs_rejected {
	char *path;
	char *reason;
	/* private: */
	const struct bdfs_source *source;
	struct stat frozen;
	bool transient; /* not the file's fault: try again at the next scan */
};

struct bdfs_source;

struct bdfs_models {
	struct bdfs_log *log; /* borrowed */
	struct bdfs_counters totals;
	struct bdfs_latency latency;
	_Atomic uint64_t reloads; /* scans that changed something */
	atomic_bool unsettled;    /* at the last scan memory or descriptors were short: scan again soon */
	pthread_mutex_t lock;     /* guards what follows; only bdfs_models_scan changes it */
	struct bdfs_base **bases;
	size_t base_count;
	struct bdfs_model **list; /* in ascending order of `directory`, no two alike */
	size_t count;
	struct bdfs_rejected *rejected;
	size_t rejected_count;
	/* private: */
	enum bdfs_layout layout;
	struct bdfs_source **sources; /* guarded by `lock` as well */
	size_t source_count;
	struct bdfs_model **base_models;
	pthread_mutex_t views;    /* guards the views of all models and the list of idle ones */
	pthread_cond_t opened;
	struct bdfs_model *oldest, *newest;
	unsigned idle;
	size_t idle_bytes, idle_limit; /* of all idle views; the limit of all but the newest */
};

/* Open the bases and examine the deltas. A delta given by name must be good. One found in a directory
 * that is damaged, belongs to another base or has a name that is taken becomes a warning in LOG and an
 * entry of `rejected`. Entries of a directory that start with a dot are not looked at.
 * Errors: those of bd_base_open, bd_delta_open and bd_view_open; -EEXIST where two deltas given by name
 * have one name. */
int bdfs_models_open(struct bdfs_models **models, const struct bdfs_config *config,
		     struct bdfs_log *log, struct bd_error *err);
void bdfs_models_close(struct bdfs_models *models); /* NULL allowed; no model may be in use any more */

/* Look at the directories again. RETRY: also at deltas that were rejected and have not changed since,
 * and at bases that have: a base that is what it was before, such as one downloaded anew, is taken.
 * *changed says whether the list or the rejected ones are others now. Never removes a model because
 * memory or descriptors are short, or a directory cannot be read.
 * Errors: -ENOMEM, and with RETRY those of opening the files of a base that is shown; what is listed is then
 * as before. */
int bdfs_models_scan(struct bdfs_models *models, bool retry, bool *changed, struct bd_error *err);
/* After a scan: what it found can be seen now. */
void bdfs_models_shown(struct bdfs_models *models);
/* Has a directory changed since the scan of which that was said? Costs one fstat for each. */
bool bdfs_models_is_stale(struct bdfs_models *models);

/* What should be known of directory INDEX of deltas, a sentence; 0: nothing, -1: there is no such directory. With
 * the lock held. */
#define BDFS_LONGEST_NOTE (2 * PATH_MAX + 100) /* bytes */
int bdfs_models_note(const struct bdfs_models *models, size_t index, char *text, size_t size);

/* The directories of the deltas, by descriptors that belong to the models: NULL at INDEX >= their number. For the
 * thread that scans. */
const char *bdfs_models_directory(const struct bdfs_models *models, size_t index, int *fd);

/* References to a model. */
void bdfs_model_get(struct bdfs_model *model);
void bdfs_model_put(struct bdfs_models *models, struct bdfs_model *model);

/* Open the view of a model and file INDEX in it (bd_view_acquire); for files without `real`.
 * Errors: -ESTALE: the delta was written to: scan, then look again; -ENOMEM, -EMFILE, -ENFILE; -EIO. */
int bdfs_model_acquire(struct bdfs_models *models, struct bdfs_model *model, size_t index,
		       struct bd_view **view, struct bd_error *err);
void bdfs_model_release(struct bdfs_models *models, struct bdfs_model *model, size_t index);

#endif
