/* SPDX-License-Identifier: Apache-2.0 */
/* origin.c: see origin.h. */
#include "origin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config.h"
#include "hub.h"
#include "utf8.h"

#define MAX_CARD ((size_t)4 << 20)

/* The text of FILE in a checkpoint's directory, malloced; NULL where it cannot be had. */
static char *slurp(const struct bd_checkpoint *c, const char *file, size_t max)
{
	char *path, *text = NULL;
	size_t size;

	if (asprintf(&path, "%s/%s", c->path, file) < 0)
		return NULL;
	if (bd_file_slurp(path, max, &text, &size, NULL) < 0)
		text = NULL;
	free(path);
	return text;
}

/* ---- The commit of a directory that the Hugging Face tools downloaded ---- */

static bool is_unchanged(const struct bd_checkpoint *c, const char *file, double downloaded)
{
	struct stat st;
	char *path;
	bool same;

	if (asprintf(&path, "%s/%s", c->path, file) < 0)
		return false;
	same = stat(path, &st) == 0 && (double)st.st_mtime - 1 <= downloaded;
	free(path);
	return same;
}

/* `.cache/huggingface/download/FILE.metadata` has three lines: commit, etag, time. */
static char *commit_of(const struct bd_checkpoint *c, const char *file)
{
	char *name = NULL, *text = NULL, *etag, *when, *commit = NULL;

	if (asprintf(&name, ".cache/huggingface/download/%s.metadata", file) < 0)
		return NULL;
	text = slurp(c, name, 4096);
	etag = text ? strchr(text, '\n') : NULL;
	when = etag ? strchr(etag + 1, '\n') : NULL;
	if (when && strspn(text, "0123456789abcdef") == 40 && etag == text + 40 &&
	    is_unchanged(c, file, strtod(when + 1, NULL)))
		commit = strndup(text, 40);
	free(text);
	free(name);
	return commit;
}

/* The commit that all shards are from; NULL: none, or not the same. */
static char *download_commit(const struct bd_checkpoint *c)
{
	char *commit = commit_of(c, c->shards[0].name);

	for (size_t s = 1; commit && s < c->shard_count; s++) {
		char *other = commit_of(c, c->shards[s].name);

		if (!other || strcmp(other, commit) != 0) {
			free(commit);
			commit = NULL;
		}
		free(other);
	}
	return commit;
}

/* ---- The path ---- */

/* Is DIR somebody's home, whose name is a person's? */
static bool is_home(const char *dir)
{
	const char *home = getenv("HOME"), *slash = strrchr(dir, '/');

	return (home && strcmp(dir, home) == 0) || strcmp(dir, "/root") == 0 ||
	       (slash == dir + strlen("/home") && strncmp(dir, "/home", strlen("/home")) == 0);
}

static char *end_of_path(const char *path)
{
	char *parent = strdup(path), *name = parent ? strrchr(parent, '/') : NULL, *before, *text = NULL;

	if (!name || name == parent) /* no memory, or a child of the root */
		return parent;
	*name++ = '\0';
	before = strrchr(parent, '/');
	if (asprintf(&text, "%s/%s", is_home(parent) ? "~" : before + 1, name) < 0)
		text = NULL;
	free(parent);
	return text;
}

/* ---- What the model card says ---- */

/* The name in TEXT, up to the end of the line, without what YAML allows around it; false: it is not one name of
 * the hub. */
static bool take_name(const char *text, char *name, size_t room)
{
	size_t length = strcspn(text, "\n#");

	while (length && strchr(" \t\"'[]\r", text[0])) {
		text++;
		length--;
	}
	while (length && strchr(" \t\"'[]\r", text[length - 1]))
		length--;
	if (length >= room)
		return false;
	snprintf(name, room, "%.*s", (int)length, text);
	return bd_hub_is_name(name);
}

/* base_model of the card's YAML header, where that is one name: after the key, in brackets, or as a list of one. */
static char *card_base(const char *card)
{
	static const char key[] = "base_model:";
	const char *line = card, *next;
	char name[256] = "", item[256];
	bool inside = false;

	if (strncmp(card, "---", 3) != 0)
		return NULL;
	while ((next = strchr(line, '\n'))) {
		line = next + 1;
		if (strncmp(line, "---", 3) == 0)
			break;
		if (strncmp(line, key, strlen(key)) == 0) {
			const char *value = line + strlen(key);

			value += strspn(value, " \t\r");
			inside = *value == '\n';
			if (!inside)
				return take_name(value, name, sizeof(name)) ? strdup(name) : NULL;
		} else if (inside) {
			const char *dash = line + strspn(line, " \t");

			if (*dash != '-')
				break;
			if (*name || !take_name(dash + 1, item, sizeof(item)))
				return NULL;
			memcpy(name, item, sizeof(name));
		}
	}
	return *name ? strdup(name) : NULL;
}

/* What both configurations call the base; NULL: they do not agree, or it is no name of the hub. */
static char *common_name(const struct bd_checkpoint *base, const struct bd_checkpoint *fine)
{
	struct bd_config a = { 0 }, b = { 0 };
	char *name = NULL;

	if (bd_config_read(&a, base, NULL) == 0 && bd_config_read(&b, fine, NULL) == 0 && a.name_or_path &&
	    b.name_or_path && strcmp(a.name_or_path, b.name_or_path) == 0 && bd_hub_is_name(a.name_or_path))
		name = strdup(a.name_or_path);
	bd_config_free(&a);
	bd_config_free(&b);
	return name;
}

static char *hub_name(const struct bd_checkpoint *base, const struct bd_checkpoint *fine)
{
	char *card = slurp(fine, "README.md", MAX_CARD), *name = card ? card_base(card) : NULL;

	free(card);
	return name ? name : common_name(base, fine);
}

int bd_origin_find(struct bd_origin *o, const struct bd_checkpoint *base, const struct bd_checkpoint *fine,
		   struct bd_error *err)
{
	bool cached = base->revision != NULL;

	*o = (struct bd_origin){ 0 };
	o->revision = cached ? strdup(base->revision) : download_commit(base);
	if (!cached) {
		o->hub = hub_name(base, fine);
		o->path = end_of_path(base->path);
	}
	if (o->revision)
		bd_utf8_make_plain(o->revision);
	if (o->path)
		bd_utf8_make_plain(o->path);
	return (cached ? o->revision : o->path) ? 0 : bd_error_set(err, -ENOMEM, "%s: out of memory", base->path);
}
