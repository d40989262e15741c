/* SPDX-License-Identifier: Apache-2.0 */
/* mountstats.h: what a mount says of itself in MOUNTPOINT/.bitdelta/stats.json.
 *
 * The strings come from whoever runs the daemon: valid UTF-8, but to be printed with print_plain only. */
#ifndef BD_MOUNTSTATS_H
#define BD_MOUNTSTATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct mountstats_base {
	char *name, *path, *digest;
	char *problem;           /* a sentence; NULL: none */
	uint64_t tensors, bytes; /* in its checkpoint */
	uint64_t models;         /* that are shown over it */
};

struct mountstats_model {
	char *name;  /* of its directory */
	char *delta; /* path of the file; NULL where it is a base itself */
	char *base;  /* label */
	uint64_t virtual_bytes, stored_bytes, files;
	bool distilled;
	uint64_t open_files, opens, reads, bytes, base_bytes, delta_bytes, errors;
};

struct mountstats_rejected {
	char *delta, *reason;
};

struct mountstats_note {
	char *text; /* a sentence */
};

struct mountstats {
	char *text; /* the whole document in one line, checked JSON */
	char *version, *source, *mountpoint, *layout;
	uint64_t pid, threads;
	double mounted_at, uptime; /* seconds: since 1970, since mounting */
	struct {
		uint64_t readahead; /* KiB; 0: the kernel's own */
		bool passthrough, mapped;
		char *cpu, *sandbox, *user, *watch;
	} in_use;
	struct mountstats_base *bases;
	size_t base_count;
	struct mountstats_model *models;
	size_t model_count;
	struct mountstats_rejected *rejected;
	size_t rejected_count;
	struct mountstats_note *notes;
	size_t note_count;
	struct {
		uint64_t virtual_bytes, stored_bytes, opens, reads, bytes, base_bytes, delta_bytes;
		uint64_t errors, reloads;
	} totals;
	struct {
		uint64_t count;
		double p50, p90, p99, max; /* microseconds */
	} latency;
};

/* Largest document that is read: some 30,000 models. */
#define MOUNTSTATS_MAX ((size_t)16 << 20)

/* Members that are not known are passed over, for daemons of later versions.
 * Errors: -EINVAL with what is wrong and WHERE (a path, for the sentence); -ENOMEM. */
int mountstats_parse(struct mountstats **stats, const char *text, size_t size, const char *where,
		     struct bd_error *err);
void mountstats_free(struct mountstats *stats); /* NULL allowed */

/* Read the document of the filesystem at DIRECTORY. Never waits longer than about SECONDS and never
 * follows a link. DEVICE (makedev) is what must be there, 0 for anything.
 * Errors: -ENOTCONN the daemon is gone; -ETIMEDOUT it does not answer; -EACCES; -ENOENT there is no such
 * document; -ESTALE another filesystem is there; -EFBIG; -EINVAL; others as the system gives them. */
int mountstats_read(struct mountstats **stats, const char *directory, uint64_t device,
		    double seconds, struct bd_error *err);

/* realpath() for paths that may lead through a filesystem that does not answer; *resolved is malloced.
 * Errors: those of realpath(), negative; -ETIMEDOUT after SECONDS. */
int mountstats_realpath(char **resolved, const char *path, double seconds);

#endif
