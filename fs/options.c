/* SPDX-License-Identifier: Apache-2.0 */
/* options.c: the command line of mount.bitdelta, see options.h. */
#include "options.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What mount(8) and fstab use among themselves or what does not matter to a read-only mount. `rw`
 * is among them: it is what mount(8) says when the user says nothing. */
static const char *const ignored[] = {
	"defaults", "rw", "ro", "auto", "noauto", "user", "nouser", "users", "owner", "noowner", "group",
	"nogroup", "nofail", "_netdev", "async", "sync", "dirsync", "atime", "noatime", "diratime",
	"nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
	"nolazytime", "iversion", "noiversion", "mand", "nomand", "silent", "loud", "suid", "nosuid",
	"dev", "nodev", "exec", "noexec", "default_permissions", "kernel_cache", NULL
};
static const char *const ignored_prefixes[] = { "x-", "X-", "comment=", "subtype=", NULL };
/* What mount(8) repeats from the table of mounts when it remounts. */
static const char *const mounted_prefixes[] = { "user_id=", "group_id=", "rootmode=", "max_read=",
						"blksize=", "fd=", "seclabel", NULL };
/* SELinux labels: the kernel's business. */
static const char *const kernel_prefixes[] = { "context=", "fscontext=", "defcontext=",
					       "rootcontext=", NULL };

/* Options of other FUSE filesystems that people bring along, and why they are not ours. */
static const struct { const char *name, *why; } refused[] = {
	{ "attr_timeout", "is not needed: the kernel keeps names and attributes, and is told when they "
			  "change" },
	{ "entry_timeout", "is not needed: the kernel keeps names and attributes, and is told when they "
			   "change" },
	{ "negative_timeout", "is not needed: the kernel keeps names and attributes, and is told when "
			      "they change" },
	{ "direct_io", "would break mappings; open the files with O_DIRECT instead" },
};

static int no_memory(struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "out of memory for the options");
}

static int replace(char **where, const char *value, struct bd_error *err)
{
	char *copy = strdup(value);

	if (!copy)
		return no_memory(err);
	free(*where);
	*where = copy;
	return 0;
}

/* "\\" and "\:" in a value; a backslash before anything else stands for itself. */
static void unescape(char *text)
{
	char *out = text;

	for (; *text; text++) {
		if (text[0] == '\\' && (text[1] == '\\' || text[1] == ':'))
			text++;
		*out++ = *text;
	}
	*out = '\0';
}

static int append(char ***list, size_t *count, const char *value, struct bd_error *err)
{
	char **longer = reallocarray(*list, *count + 1, sizeof(**list));

	if (!longer)
		return no_memory(err);
	*list = longer;
	longer[*count] = strdup(value);
	if (!longer[*count])
		return no_memory(err);
	++*count;
	return 0;
}

static int add_deltas(struct bdfs_options *o, char *list, struct bd_error *err)
{
	char *end, *next;
	int r = 0;

	for (; list && r == 0; list = next) {
		for (end = list; *end && *end != ':'; end++)
			if (end[0] == '\\' && end[1])
				end++;
		next = *end ? end + 1 : NULL;
		*end = '\0';
		if (!*list)
			continue;
		unescape(list);
		r = append(&o->deltas, &o->delta_count, list, err);
	}
	return r;
}

static int number(const char *name, const char *value, int base, unsigned long limit,
		  unsigned long *result, struct bd_error *err)
{
	char *end;

	errno = 0;
	*result = strtoul(value, &end, base);
	if (errno || end == value || *end || *value < '0' || *value > '9' || *result > limit)
		return bd_error_set(err, -EINVAL, base == 8 ?
				    "option %s=%s: expected an octal number of at most %lo" :
				    "option %s=%s: expected a number of at most %lu", name, value, limit);
	return 0;
}

/* KiB, or with a suffix: 1024, 512K, 1M. */
static int readahead(const char *value, unsigned *kib, struct bd_error *err)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(value, &end, 10);
	if (*end == 'M' || *end == 'm')
		n = n > 1024 ? ULONG_MAX : n * 1024;
	if (*end && strchr("KkMm", *end))
		end++;
	if (errno || end == value || *end || *value < '0' || *value > '9' || n > 65536)
		return bd_error_set(err, -EINVAL, "option readahead=%s: expected a number of KiB, at "
				    "most 65536", value);
	*kib = (unsigned)n;
	return 0;
}

static bool is_number(const char *value)
{
	return *value && !value[strspn(value, "0123456789")];
}

static int user(const char *name, const char *value, uid_t *uid, struct bd_error *err)
{
	const struct passwd *entry;
	unsigned long n;
	int r;

	if (is_number(value)) {
		r = number(name, value, 10, UINT_MAX - 1, &n, err);
		if (r == 0)
			*uid = (uid_t)n;
		return r;
	}
	entry = getpwnam(value);
	if (!entry)
		return bd_error_set(err, -EINVAL, "option %s=%s: there is no such user", name, value);
	*uid = entry->pw_uid;
	return 0;
}

static int group(const char *name, const char *value, gid_t *gid, struct bd_error *err)
{
	const struct group *entry;
	unsigned long n;
	int r;

	if (is_number(value)) {
		r = number(name, value, 10, UINT_MAX - 1, &n, err);
		if (r == 0)
			*gid = (gid_t)n;
		return r;
	}
	entry = getgrnam(value);
	if (!entry)
		return bd_error_set(err, -EINVAL, "option %s=%s: there is no such group", name, value);
	*gid = entry->gr_gid;
	return 0;
}

/* One of two words: *second says which. */
static int choice(const char *name, const char *value, const char *one, const char *two,
		  bool *second, struct bd_error *err)
{
	*second = !strcmp(value, two);
	if (*second || !strcmp(value, one))
		return 0;
	return bd_error_set(err, -EINVAL, "option %s=%s: expected %s or %s", name, value, one, two);
}

static bool has_prefix(const char *option, const char *const *prefixes)
{
	for (; *prefixes; prefixes++)
		if (!strncmp(option, *prefixes, strlen(*prefixes)))
			return true;
	return false;
}

static int take_kernel_option(struct bdfs_options *o, const char *option, struct bd_error *err)
{
	size_t old = o->kernel ? strlen(o->kernel) + 1 : 0;
	char *list = realloc(o->kernel, old + 2 * strlen(option) + 1), *out;

	if (!list)
		return no_memory(err);
	o->kernel = list;
	out = list + old;
	if (old)
		out[-1] = ',';
	for (; *option; option++) {
		if (*option == ',' || *option == '\\')
			*out++ = '\\';
		*out++ = *option;
	}
	*out = '\0';
	return 0;
}

static int needs_value(const char *option, struct bd_error *err)
{
	return bd_error_set(err, -EINVAL, "option %s needs a value: %s=...", option, option);
}

static int take_value(struct bdfs_options *o, const char *name, char *value, struct bd_error *err)
{
	bool second;
	uid_t uid;
	unsigned long n;
	int r;

	if (!strcmp(name, "deltas") || !strcmp(name, "delta"))
		return add_deltas(o, value, err);
	if (!*value)
		return needs_value(name, err);
	unescape(value);
	if (!strcmp(name, "base"))
		return append(&o->bases, &o->base_count, value, err);
	if (!strcmp(name, "layout")) {
		r = choice(name, value, "dirs", "hub", &second, err);
		o->layout = second ? BDFS_HUB : BDFS_DIRS;
		return r;
	}
	if (!strcmp(name, "blocks"))
		return choice(name, value, "full", "stored", &o->stored_blocks, err);
	if (!strcmp(name, "uid"))
		return user(name, value, &o->uid, err);
	if (!strcmp(name, "gid"))
		return group(name, value, &o->gid, err);
	if (!strcmp(name, "umask") || !strcmp(name, "fmask") || !strcmp(name, "dmask")) {
		r = number(name, value, 8, 0777, &n, err);
		if (r == 0 && *name != 'd')
			o->file_mask = (mode_t)n;
		if (r == 0 && *name != 'f')
			o->directory_mask = (mode_t)n;
		return r;
	}
	if (!strcmp(name, "threads")) {
		r = number(name, value, 10, 1024, &n, err);
		if (r == 0)
			o->threads = (unsigned)n;
		return r;
	}
	if (!strcmp(name, "readahead"))
		return readahead(value, &o->readahead, err);
	if (!strcmp(name, "setuid")) {
		r = user(name, value, &uid, err);
		o->drop_privileges = true;
		return r < 0 ? r : replace(&o->setuid, value, err);
	}
	if (!strcmp(name, "fsname"))
		return replace(&o->source, value, err);
	return replace(&o->log, value, err);
}

/* The options that have a value, as take_value knows them, and those that have none. */
static const char *const valued[] = { "deltas", "delta", "base", "layout", "blocks", "uid", "gid",
				      "umask", "fmask", "dmask", "threads", "readahead", "setuid",
				      "fsname", "log", NULL };
static const struct { const char *name; size_t offset; bool value; } switches[] = {
	{ "allow_other", offsetof(struct bdfs_options, allow_other), true },
	{ "auto_unmount", offsetof(struct bdfs_options, auto_unmount), true },
	{ "show_base", offsetof(struct bdfs_options, show_base), true },
	{ "drop_privileges", offsetof(struct bdfs_options, drop_privileges), true },
	{ "sandbox", offsetof(struct bdfs_options, sandbox), true },
	{ "nosandbox", offsetof(struct bdfs_options, sandbox), false },
	{ "foreground", offsetof(struct bdfs_options, foreground), true },
	{ "debug", offsetof(struct bdfs_options, debug), true },
	{ "remount", offsetof(struct bdfs_options, remount), true },
};

static bool is_among(const char *word, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(word, *list))
			return true;
	return false;
}

/* One option, with its commas restored. */
static int take_option(struct bdfs_command *c, char *option, bool sloppy, struct bd_error *err)
{
	char *value = strchr(option, '=');

	if (!*option || is_among(option, ignored) || has_prefix(option, ignored_prefixes) ||
	    has_prefix(option, mounted_prefixes))
		return 0;
	if (value && has_prefix(option, kernel_prefixes))
		return take_kernel_option(&c->options, option, err);
	if (value)
		*value++ = '\0';
	if (is_among(option, valued))
		return value ? take_value(&c->options, option, value, err)
			     : needs_value(option, err);
	for (size_t i = 0; i < sizeof(switches) / sizeof(*switches); i++)
		if (!strcmp(option, switches[i].name)) {
			if (value)
				return bd_error_set(err, -EINVAL, "option %s has no value", option);
			*(bool *)((char *)&c->options + switches[i].offset) = switches[i].value;
			return 0;
		}
	if (sloppy)
		return 0;
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
		if (!strcmp(option, refused[i].name))
			return bd_error_set(err, -EINVAL, "option %s %s", option, refused[i].why);
	return bd_error_set(err, -EINVAL, "unknown option \"%s\"", option);
}

/* Split at commas, with `\,`, `\"` and double quotes undone; other backslashes stay for
 * take_option(). */
static int take_options(struct bdfs_command *c, const char *list, bool sloppy,
			struct bd_error *err)
{
	char *option = malloc(strlen(list) + 1), *out = option;
	bool quoted = false;
	int r = 0;

	if (!option)
		return no_memory(err);
	for (;; list++) {
		if (!*list || (*list == ',' && !quoted)) {
			*out = '\0';
			if (quoted)
				r = bd_error_set(err, -EINVAL, "a double quote is not closed: %s", option);
			else
				r = take_option(c, option, sloppy, err);
			if (r < 0 || !*list)
				break;
			out = option;
		} else if (*list == '"') {
			quoted = !quoted;
		} else if (*list == '\\' && list[1]) {
			if (list[1] != ',' && list[1] != '"')
				*out++ = *list;
			*out++ = *++list;
		} else {
			*out++ = *list;
		}
	}
	free(option);
	return r;
}

/* The source is the first base, or "none" where base= says all. */
static int place_source(struct bdfs_options *o, const char *source, struct bd_error *err)
{
	char *first;
	int r;

	if (!o->source && (r = replace(&o->source, source, err)) < 0)
		return r;
	if (!strcmp(source, "none"))
		return o->base_count || o->remount ? 0 :
		       bd_error_set(err, -EINVAL, "no base is given: instead of \"none\", or with -o "
				    "base=PATH");
	r = append(&o->bases, &o->base_count, source, err);
	if (r < 0)
		return r;
	first = o->bases[o->base_count - 1];
	memmove(o->bases + 1, o->bases, (o->base_count - 1) * sizeof(*o->bases));
	o->bases[0] = first;
	return 0;
}

static int finish(struct bdfs_command *c, char *const *positional, int count, struct bd_error *err)
{
	struct bdfs_options *o = &c->options;
	int r;

	if (count < 2)
		return bd_error_set(err, -EINVAL, "%s missing", count ? "the base or the mount point is"
				    : "the base and the mount point are");
	if (count > 2)
		return bd_error_set(err, -EINVAL, "\"%s\" is one argument too many", positional[2]);
	if (!*positional[0] || !*positional[1])
		return bd_error_set(err, -EINVAL, "the name of the %s is empty",
				    *positional[0] ? "mount point" : "base");
	if (!o->delta_count && !o->show_base && !o->remount)
		return bd_error_set(err, -EINVAL, "no deltas are given: add -o deltas=PATH[:PATH...] or "
				    "--deltas PATH[:PATH...], each a .bdelta file or a directory of them");
	r = place_source(o, positional[0], err);
	if (r < 0)
		return r;
	if (o->debug)
		o->foreground = true;
	return replace(&o->mountpoint, positional[1], err);
}

/* mount(8) passes its own -f on, which means "fake"; from people it means the foreground. */
static bool is_called_by_mount(void)
{
	char path[64], name[16] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)getppid());
	f = fopen(path, "re");
	if (!f)
		return false;
	if (!fgets(name, sizeof(name), f))
		*name = '\0';
	fclose(f);
	return !strcmp(name, "mount\n");
}

/* --base and --deltas, with the value behind = or as the next argument. The first base may be the one that
 * else is an argument of its own, so it is only noted. */
static int take_long(struct bdfs_options *o, char *const *argv, int argc, int *i, char **first_base,
		     struct bd_error *err)
{
	const char *name = argv[*i];
	const size_t length = strcspn(name, "=");
	const bool base = length == 6 && !strncmp(name, "--base", length);
	char *value = name[length] ? (char *)name + length + 1 : NULL, *list;
	int r;

	if (!base && (length != 8 || strncmp(name, "--deltas", length)))
		return bd_error_set(err, -EINVAL, "unknown option \"%s\"", name);
	if (!value && *i + 1 < argc)
		value = argv[++*i];
	if (!value || !*value)
		return bd_error_set(err, -EINVAL, "%.*s needs a value", (int)length, name);
	if (base && *first_base)
		return append(&o->bases, &o->base_count, value, err);
	if (base) {
		*first_base = value;
		return 0;
	}
	list = strdup(value);
	if (!list)
		return no_memory(err);
	r = add_deltas(o, list, err);
	free(list);
	return r;
}

/* *command holds the defaults. */
static int parse(struct bdfs_command *command, int argc, char *const *argv, struct bd_error *err)
{
	char *positional[3] = { NULL };
	char *lists[64]; /* of -o; parsed at the end, when -s is known */
	char *first_base = NULL;
	int count = 0, list_count = 0, r = 0;
	bool only_names = false, sloppy = false;

	for (int i = 0; i < argc; i++) {
		const char *p = argv[i];

		if (only_names || *p != '-' || !p[1]) {
			if (count < 3)
				positional[count++] = argv[i];
			continue;
		}
		if (!strcmp(p, "--")) {
			only_names = true;
			continue;
		}
		if (!strcmp(p, "--help") || !strcmp(p, "-h")) {
			command->request = BDFS_HELP;
			return 0;
		}
		if (!strcmp(p, "--version") || !strcmp(p, "-V")) {
			command->request = BDFS_VERSION;
			return 0;
		}
		if (p[1] == '-') {
			r = take_long(&command->options, argv, argc, &i, &first_base, err);
			if (r < 0)
				return r;
			continue;
		}
		for (p++; *p; p++) {
			char *value = NULL;

			if (strchr("oNt", *p)) {
				value = p[1] ? (char *)p + 1 : i + 1 < argc ? argv[++i] : NULL;
				if (!value)
					return bd_error_set(err, -EINVAL, "-%c needs a value", *p);
			}
			switch (*p) {
			case 's': sloppy = true; break;
			case 'f':
				*(is_called_by_mount() ? &command->options.fake
						       : &command->options.foreground) = true;
				break;
			case 'v': command->verbose = true; break;
			case 'd': command->options.debug = true; break;
			case 'n': case 'r': case 'w': case 't': break;
			case 'N': r = replace(&command->options.namespace, value, err); break;
			case 'o':
				if (list_count == (int)(sizeof(lists) / sizeof(*lists)))
					return bd_error_set(err, -EINVAL, "-o is given too often");
				lists[list_count++] = value;
				break;
			default:
				return bd_error_set(err, -EINVAL, "unknown option \"%s\"", argv[i]);
			}
			if (r < 0)
				return r;
			if (value)
				break;
		}
	}
	for (int i = 0; i < list_count && r == 0; i++)
		r = take_options(command, lists[i], sloppy, err);
	if (r < 0)
		return r;
	if (count < 2 && first_base) {
		positional[1] = positional[0];
		positional[0] = first_base;
		count++;
	} else if (first_base) {
		r = append(&command->options.bases, &command->options.base_count, first_base, err);
	}
	return r < 0 ? r : finish(command, positional, count, err);
}

int bdfs_options_parse(struct bdfs_command *command, int argc, char *const *argv,
		       struct bd_error *err)
{
	memset(command, 0, sizeof(*command));
	command->options.uid = getuid();
	command->options.gid = getgid();
	command->options.readahead = BDFS_READAHEAD;
	command->options.sandbox = true;
	return parse(command, argc, argv, err);
}

static bool same_path(const char *a, const char *b)
{
	char *x, *y;
	bool same;

	if (!strcmp(a, b))
		return true;
	x = realpath(a, NULL);
	y = realpath(b, NULL);
	same = x && y && !strcmp(x, y);
	free(x);
	free(y);
	return same;
}

/* A list or a string that is not given is as it was. */
static bool same_paths(char *const *wanted, size_t wanted_count, char *const *now, size_t count)
{
	for (size_t i = 0; i < wanted_count; i++)
		if (i >= count || !same_path(wanted[i], now[i]))
			return false;
	return !wanted_count || wanted_count == count;
}

static bool same_text(const char *wanted, const char *now)
{
	return !wanted || (now && same_path(wanted, now));
}

int bdfs_options_check_remount(const struct bdfs_command *running, const char *source, int argc,
			       char *const *argv, struct bd_error *err)
{
	const struct bdfs_options *now = &running->options;
	struct bdfs_command command = *running;
	struct bdfs_options *o = &command.options;
	int r;

	/* What is not given is as it was; lists and strings are then empty. */
	o->bases = o->deltas = NULL;
	o->base_count = o->delta_count = 0;
	o->source = o->mountpoint = o->setuid = o->log = o->kernel = o->namespace = NULL;
	r = parse(&command, argc, argv, err);
	if (r == 0) {
		/* mount(8) gives what it shows as the source, which need not be the first base. */
		const bool by_name = !strcmp(o->source, source) || !strcmp(o->source, "none");
		const size_t first = by_name && strcmp(o->source, "none") && now->base_count;
		const struct { const char *name; bool same; } parts[] = {
			{ "the source", by_name || same_path(o->source, source) },
			{ "base=", same_paths(o->bases + first, o->base_count - first,
					      now->bases + first, now->base_count - first) },
			{ "deltas=", same_paths(o->deltas, o->delta_count, now->deltas,
						now->delta_count) },
			{ "layout=", o->layout == now->layout },
			{ "show_base", o->show_base == now->show_base },
			{ "blocks=", o->stored_blocks == now->stored_blocks },
			{ "uid=", o->uid == now->uid },
			{ "gid=", o->gid == now->gid },
			{ "umask=, fmask= or dmask=", o->file_mask == now->file_mask &&
			  o->directory_mask == now->directory_mask },
			{ "threads=", o->threads == now->threads },
			{ "readahead=", o->readahead == now->readahead },
			{ "allow_other", o->allow_other == now->allow_other },
			{ "auto_unmount", o->auto_unmount == now->auto_unmount },
			{ "drop_privileges", o->drop_privileges == now->drop_privileges },
			{ "setuid=", same_text(o->setuid, now->setuid) },
			{ "sandbox", o->sandbox == now->sandbox },
			{ "log=", same_text(o->log, now->log) },
			{ "context=", !o->kernel || (now->kernel && !strcmp(o->kernel, now->kernel)) },
		};

		for (size_t i = 0; i < sizeof(parts) / sizeof(*parts) && r == 0; i++)
			if (!parts[i].same)
				r = bd_error_set(err, -EINVAL, "%s cannot be changed by remounting: "
						 "unmount %s and mount it again", parts[i].name,
						 o->mountpoint);
	}
	bdfs_options_clear(&command);
	return r;
}

static void free_list(char **list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(list[i]);
	free(list);
}

void bdfs_options_clear(struct bdfs_command *command)
{
	struct bdfs_options *o = &command->options;

	free_list(o->bases, o->base_count);
	free_list(o->deltas, o->delta_count);
	free(o->source);
	free(o->mountpoint);
	free(o->setuid);
	free(o->log);
	free(o->kernel);
	free(o->namespace);
	memset(o, 0, sizeof(*o));
}
