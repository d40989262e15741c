/* SPDX-License-Identifier: Apache-2.0 */
/* sidecars.c: looking through a model's directory, see sidecars.h. */
#include "sidecars.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "glob.h"
#include "paths.h"
#include "units.h"
#include "utf8.h"

#define MAX_ENTRIES 100000 /* that are looked at: links can make a small directory endless */
#define MAX_POINTER 1024   /* bytes of a pointer of Git LFS */

/* Why something is not taken. OMITTED is a user's word, and no news to him. */
enum reason { TAKEN, OMITTED, NO_MODEL, NO_NAME, NO_FILE, LOOP, ELSEWHERE, COPY, UNLISTED, STATE, LARGE, REASONS };

static const char *const reasons[REASONS] = {
	[NO_MODEL] = "no part of a model",
	[NO_NAME] = "not a valid name (UTF-8 without control characters, not too long or too deep)",
	[NO_FILE] = "not a regular file",
	[LOOP] = "link to a directory that it is in",
	[ELSEWHERE] = "link to a directory elsewhere; --keep takes it",
	[COPY] = "a second copy of the weights; --keep takes it",
	[UNLISTED] = "weights that " BD_CHECKPOINT_INDEX " does not list; --keep takes them",
	[STATE] = "state of the training; --keep takes it",
	[LARGE] = "larger than 64 MiB; --keep takes it",
};

/* Globs of names, of files or directories. */
static const char *const no_model[] = {
	".git", ".cache", ".huggingface", ".*.lock", "*.incomplete", "*.bdelta", "lost+found",
};
/* Whole models, each in one file, or files of them. */
static const char *const copies[] = {
	"consolidated*", "*.gguf", "*.onnx", "*.onnx_data", "*.tflite", "flax_model*", "tf_model*", "rust_model*",
	"openvino_model*", "*.llamafile",
};
/* The same where their directory has safetensors as well. */
static const char *const copies_beside[] = { "pytorch_model*.bin", "pytorch_model*.bin.index*.json", "*.ckpt" };
static const char shard[] = "*-of-*.safetensors";
/* The same beside the checkpoint: shards and variants that it does not consist of. */
static const char *const copies_at_top[] = {
	"model.bin", "model*.safetensors", shard, "*.safetensors.index*.json", "original",
};
static const char *const state[] = {
	"optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*.pth",
	"random_states_*.pkl", "*_optim_states.pt", "*_model_states.pt", "checkpoint-[0-9]*", "global_step[0-9]*",
	"wandb", "mlruns",
};

/* A directory on the way to where the walk is, or the model's. */
struct place {
	const struct place *parent;
	const char *path;     /* below the model's directory; "" for that */
	dev_t device;
	ino_t inode;
	bool has_safetensors;
	enum reason reason;   /* for which all in it is left out unless a rule says otherwise */
	const char *named;    /* path of the directory that the reason comes from */
	bool *counted;        /* of that: something in it was left out */
	const struct bd_file_rule *rule; /* that its path matches; what is in it may match another */
};

struct walk {
	struct bd_sidecars *s;
	const struct bd_checkpoint *c;
	const struct bd_file_rule *rules;
	size_t rule_count;
	bool *used;           /* per rule */
	size_t room, seen;
	struct left_out {     /* per reason */
		char *first;
		size_t count;
		uint64_t bytes;
	} left_out[REASONS];
	struct bd_error *err;
};

static int no_memory(const struct walk *w)
{
	return bd_error_set(w->err, -ENOMEM, "%s: out of memory", w->c->path);
}

/* ---- What is left out ---- */

static int count_once(struct walk *w, enum reason reason, const char *path, bool directory)
{
	struct left_out *l = &w->left_out[reason];

	if (l->count++ == 0 && asprintf(&l->first, "%s%s", path, directory ? "/" : "") < 0) {
		l->first = NULL;
		return no_memory(w);
	}
	return 0;
}

static int leave_out(struct walk *w, enum reason reason, const struct place *place, const char *path,
		     uint64_t bytes)
{
	w->left_out[reason].bytes += bytes;
	if (reason != place->reason || !place->counted)
		return count_once(w, reason, path, false);
	if (*place->counted)
		return 0;
	*place->counted = true;
	return count_once(w, reason, place->named, true);
}

/* Bytes of all files below a directory, as far as they can be known without much ado. */
static uint64_t bytes_below(struct walk *w, int parent, const char *name, unsigned depth)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	uint64_t bytes = 0;
	struct stat st;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return 0;
	}
	while ((entry = readdir(dir)) && w->seen++ < MAX_ENTRIES) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
		    fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		if (S_ISREG(st.st_mode))
			bytes += (uint64_t)st.st_size;
		else if (S_ISDIR(st.st_mode) && depth < BD_MAX_DEPTH)
			bytes += bytes_below(w, fd, entry->d_name, depth + 1);
	}
	closedir(dir);
	return bytes;
}

static int leave_out_directory(struct walk *w, enum reason reason, const char *path, const char *full)
{
	size_t seen = w->seen;

	w->left_out[reason].bytes += bytes_below(w, AT_FDCWD, full, 0);
	w->seen = seen; /* another's files are not the model's */
	return count_once(w, reason, path, true);
}

/* ---- What decides ---- */

static bool rule_matches(const struct bd_file_rule *rule, const char *path)
{
	size_t length = strlen(rule->glob);
	char glob[PATH_MAX], part[BD_MAX_PATH + 1];

	while (length > 1 && rule->glob[length - 1] == '/')
		length--;
	if (length >= sizeof(glob) || strlen(path) >= sizeof(part))
		return false;
	memcpy(glob, rule->glob, length);
	glob[length] = '\0';
	for (const char *end = path; (end = strchr(end, '/')); end++) {
		memcpy(part, path, (size_t)(end - path));
		part[end - path] = '\0';
		if (fnmatch(glob, part, 0) == 0)
			return true;
	}
	return fnmatch(glob, path, 0) == 0;
}

/* The rule that decides, NULL where none does. */
static const struct bd_file_rule *find_rule(struct walk *w, const char *path)
{
	const struct bd_file_rule *found = NULL;

	for (size_t i = 0; i < w->rule_count; i++)
		if (rule_matches(&w->rules[i], path)) {
			found = &w->rules[i];
			w->used[i] = true;
		}
	return found;
}

/* What the names of a file and of its directory say. */
static enum reason judge_name(const struct walk *w, const struct place *place, const char *name)
{
	bool top = !*place->path;

	if (place->reason != TAKEN)
		return place->reason;
	if (top && strcmp(name, BD_CHECKPOINT_INDEX) == 0 && w->c->indexed)
		return TAKEN;
	if (top && w->c->indexed && fnmatch(shard, name, 0) == 0)
		return UNLISTED;
	if (BD_GLOB_ANY(copies, name) || (place->has_safetensors && BD_GLOB_ANY(copies_beside, name)) ||
	    (top && BD_GLOB_ANY(copies_at_top, name)))
		return COPY;
	return BD_GLOB_ANY(state, name) ? STATE : TAKEN;
}

static bool is_shard(const struct bd_checkpoint *c, const char *name)
{
	for (size_t i = 0; i < c->shard_count; i++)
		if (strcmp(c->shards[i].name, name) == 0)
			return true;
	return false;
}

/* ---- The walk ---- */

static int lose(struct walk *w, const char *full, const char *why)
{
	if (w->s->lost)
		return 0;
	if (asprintf(&w->s->lost, "%s: %s", full, why) < 0) {
		w->s->lost = NULL;
		return no_memory(w);
	}
	bd_utf8_make_plain(w->s->lost);
	return 0;
}

static int take(struct walk *w, const char *path)
{
	struct bd_sidecars *s = w->s;

	if (s->count == w->room) {
		size_t room = w->room ? 2 * w->room : 32;
		char **grown = reallocarray(s->paths, room, sizeof(*grown));

		if (!grown)
			return no_memory(w);
		s->paths = grown;
		w->room = room;
	}
	s->paths[s->count] = strdup(path);
	if (!s->paths[s->count])
		return no_memory(w);
	s->count++;
	return 0;
}

/* A file that cannot be read is none here; whoever needs it will say so. */
static bool is_pointer(const char *full)
{
	char *data = NULL;
	size_t size = 0;
	bool pointer = bd_file_slurp(full, MAX_POINTER, &data, &size, NULL) == 0 && bd_file_is_pointer(data, size);

	free(data);
	return pointer;
}

static int visit_file(struct walk *w, const struct place *place, const char *path, const char *full,
		      const struct stat *st)
{
	const struct bd_file_rule *rule = find_rule(w, path);
	enum reason reason = judge_name(w, place, bd_path_last(path));
	uint64_t size = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;

	if (rule)
		reason = rule->keep ? TAKEN : OMITTED;
	if (reason == TAKEN && S_ISLNK(st->st_mode)) /* it leads nowhere */
		return lose(w, full, "is a link to a file that is not there; download the model again, or leave it "
				     "out with --omit");
	if (reason == TAKEN && !S_ISREG(st->st_mode))
		reason = NO_FILE;
	if (reason == TAKEN && !rule && size > BD_MAX_SIDECAR)
		reason = LARGE;
	if (reason != TAKEN)
		return reason == OMITTED ? 0 : leave_out(w, reason, place, path, size);
	if (size <= MAX_POINTER && is_pointer(full))
		return lose(w, full, "is " BD_LFS_POINTER);
	return take(w, path);
}

/* Where a link to a directory leads: to a part of the model's directory (TAKEN), or why it is not followed. */
static int judge_link(const struct walk *w, const char *full, enum reason *reason)
{
	size_t length = strlen(w->c->path);
	char *real = realpath(full, NULL), *rest = NULL;

	if (!real && errno == ENOMEM)
		return no_memory(w);
	*reason = TAKEN;
	if (!real || strncmp(real, w->c->path, length) != 0 || (real[length] && real[length] != '/'))
		*reason = ELSEWHERE;
	else
		for (char *name = strtok_r(real + length, "/", &rest); name; name = strtok_r(NULL, "/", &rest))
			if (BD_GLOB_ANY(no_model, name))
				*reason = NO_MODEL;
	free(real);
	return 0;
}

static int walk_directory(struct walk *w, struct place *place, const char *full);

static int visit_directory(struct walk *w, const struct place *parent, const char *path, const char *full,
			   const struct stat *st, bool link)
{
	const struct bd_file_rule *rule = find_rule(w, path);
	bool counted = false;
	struct place place = {
		.parent = parent, .path = path, .device = st->st_dev, .inode = st->st_ino,
		.reason = parent->reason, .named = parent->named,
		.counted = parent->counted, .rule = rule,
	};
	enum reason reason = TAKEN;
	int rc = 0;

	for (const struct place *p = parent; p; p = p->parent)
		if (p->device == st->st_dev && p->inode == st->st_ino)
			return leave_out(w, LOOP, parent, path, 0);
	if (link)
		rc = judge_link(w, full, &reason);
	if (rc < 0)
		return rc;
	if (reason == NO_MODEL || (reason == ELSEWHERE && !(rule && rule->keep)))
		return rule && !rule->keep ? 0 : leave_out(w, reason, parent, path, 0);
	if (place.reason == TAKEN) {
		place.reason = judge_name(w, parent, bd_path_last(path));
		place.named = path;
		place.counted = &counted;
	}
	return walk_directory(w, &place, full);
}

static int visit(struct walk *w, const struct place *place, const char *name)
{
	bool link, directory, no_part;
	char *path = NULL, *full = NULL;
	struct stat st;
	int rc = 0;

	if (!*place->path && is_shard(w->c, name))
		return 0;
	if (asprintf(&path, "%s%s%s", place->path, *place->path ? "/" : "", name) < 0)
		path = NULL;
	if (!path || asprintf(&full, "%s/%s", w->c->path, path) < 0) {
		full = NULL;
		rc = no_memory(w);
		goto out;
	}
	if (w->seen++ == MAX_ENTRIES) {
		rc = bd_error_set(w->err, -EINVAL, "%s: more than %d files lie in the directory; give one that holds "
				  "only the model", w->c->path, MAX_ENTRIES);
		goto out;
	}
	if (lstat(full, &st) < 0) {
		rc = errno == ENOENT ? 0 : -errno; /* it went just now */
		if (rc)
			bd_error_set(w->err, rc, "%s: cannot be examined: %s", full, strerror(-rc));
		goto out;
	}
	link = S_ISLNK(st.st_mode);
	if (link && stat(full, &st) < 0 && errno != ENOENT && errno != ELOOP && errno != ENOTDIR) {
		rc = bd_error_set(w->err, -errno, "%s: cannot be examined: %s", full, strerror(errno));
		goto out;
	}
	directory = S_ISDIR(st.st_mode);
	no_part = BD_GLOB_ANY(no_model, name) || bd_name_is_git(name, strlen(name));
	if (no_part || !bd_path_is_safe(path, strlen(path))) {
		enum reason reason = no_part ? NO_MODEL : NO_NAME;

		rc = directory && !link ? leave_out_directory(w, reason, path, full) :
			leave_out(w, reason, place, path, S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0);
	} else {
		rc = directory ? visit_directory(w, place, path, full, &st, link)
			       : visit_file(w, place, path, full, &st);
	}
out:
	free(full);
	free(path);
	return rc;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* A directory that may not be read. */
static int do_without(struct walk *w, const struct place *place, const char *full)
{
	if (place->rule && !place->rule->keep)
		return 0;
	if (!place->rule && place->reason != TAKEN)
		return leave_out(w, place->reason, place, place->path, 0);
	return lose(w, full, "may not be read; leave the directory out with --omit, or read it as its owner");
}

static int walk_directory(struct walk *w, struct place *place, const char *full)
{
	struct dirent **entries = NULL;
	int rc = 0, n = scandir(full, &entries, NULL, by_name);

	if (n < 0 && (errno == EACCES || errno == EPERM))
		return do_without(w, place, full);
	if (n < 0) {
		rc = -errno;
		return bd_error_set(w->err, rc, "%s: cannot be listed: %s", full, strerror(-rc));
	}
	for (int i = 0; i < n; i++)
		place->has_safetensors |= strcmp(entries[i]->d_name, BD_CHECKPOINT_SINGLE) == 0 ||
					  strcmp(entries[i]->d_name, BD_CHECKPOINT_INDEX) == 0;
	for (int i = 0; i < n; i++) {
		const char *name = entries[i]->d_name;

		if (rc == 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
			rc = visit(w, place, name);
		free(entries[i]);
	}
	free(entries);
	return rc;
}

/* ---- Beginning and end ---- */

static int by_path(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int write_notes(struct walk *w)
{
	struct bd_sidecars *s = w->s;

	s->notes = calloc(REASONS, sizeof(*s->notes));
	if (!s->notes)
		return no_memory(w);
	for (int r = 0; r < REASONS; r++) {
		const struct left_out *l = &w->left_out[r];
		char more[32] = "", size[32], *text;

		if (l->count == 0)
			continue;
		if (l->count > 1)
			snprintf(more, sizeof(more), " and %zu more", l->count - 1);
		if (asprintf(&text, "%s%s (%s): %s", l->first, more, bd_units_bytes(l->bytes, size), reasons[r]) < 0)
			return no_memory(w);
		bd_utf8_make_plain(text);
		s->notes[s->note_count++] = text;
	}
	return 0;
}

static int check_rules(const struct walk *w)
{
	for (size_t i = 0; i < w->rule_count; i++)
		if (!w->used[i])
			return bd_error_set(w->err, -EINVAL, "--%s '%.200s' matches no file of %s that could be kept (those "
					    "in subdirectories have names such as '1_Pooling/config.json')",
					    w->rules[i].keep ? "keep" : "omit", w->rules[i].glob, w->c->path);
	return 0;
}

int bd_sidecars_list(struct bd_sidecars *s, const struct bd_checkpoint *c, const struct bd_file_rule *rules,
		     size_t rule_count, struct bd_error *err)
{
	struct walk w = { .s = s, .c = c, .rules = rules, .rule_count = rule_count, .err = err };
	struct place top = { .path = "" };
	struct stat st;
	int rc;

	*s = (struct bd_sidecars){ 0 };
	w.used = calloc(rule_count + 1, sizeof(*w.used));
	if (!w.used) {
		rc = no_memory(&w);
		goto out;
	}
	if (stat(c->path, &st) < 0) {
		rc = bd_error_set(err, -errno, "%s: cannot be examined: %s", c->path, strerror(errno));
		goto out;
	}
	top.device = st.st_dev;
	top.inode = st.st_ino;
	rc = walk_directory(&w, &top, c->path);
	if (rc == 0)
		rc = check_rules(&w);
	if (rc == 0)
		rc = write_notes(&w);
	if (rc == 0 && s->count)
		qsort(s->paths, s->count, sizeof(*s->paths), by_path);
out:
	for (int r = 0; r < REASONS; r++)
		free(w.left_out[r].first);
	free(w.used);
	if (rc < 0)
		bd_sidecars_free(s);
	return rc;
}

void bd_sidecars_free(struct bd_sidecars *s)
{
	for (size_t i = 0; i < s->count; i++)
		free(s->paths[i]);
	for (size_t i = 0; i < s->note_count; i++)
		free(s->notes[i]);
	free(s->paths);
	free(s->notes);
	free(s->lost);
	*s = (struct bd_sidecars){ 0 };
}
