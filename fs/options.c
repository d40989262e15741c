/* options.c: the command line of mount.bitdelta, see options.h. */
#include "options.h"

#include <errno.h>
#include <limits.h>
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
	"dev", "nodev", "exec", "noexec", "default_permissions", NULL
};
static const char *const ignored_prefixes[] = { "x-", "X-", "comment=", "subtype=", NULL };
/* SELinux labels: the kernel's business. */
static const char *const kernel_prefixes[] = { "context=", "fscontext=", "defcontext=",
					       "rootcontext=", NULL };

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

static int add_deltas(struct bdfs_options *o, char *list, struct bd_error *err)
{
	char *end, *next;

	for (; list; list = next) {
		char **deltas;

		for (end = list; *end && *end != ':'; end++)
			if (end[0] == '\\' && end[1])
				end++;
		next = *end ? end + 1 : NULL;
		*end = '\0';
		if (!*list)
			continue;
		unescape(list);
		deltas = reallocarray(o->deltas, o->delta_count + 1, sizeof(*deltas));
		if (!deltas)
			return no_memory(err);
		o->deltas = deltas;
		deltas[o->delta_count] = strdup(list);
		if (!deltas[o->delta_count])
			return no_memory(err);
		o->delta_count++;
	}
	return 0;
}

static int number(const char *name, const char *value, int base, unsigned long limit,
		  unsigned long *result, struct bd_error *err)
{
	char *end;

	errno = 0;
	*result = strtoul(value, &end, base);
	if (errno || end == value || *end || *value < '0' || *value > '9' || *result > limit)
		return bd_error_set(err, -EINVAL, "option %s=%s: expected %s number of at most %lu", name,
				    value, base == 8 ? "an octal" : "a", limit);
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

static bool has_prefix(const char *option, const char *const *prefixes)
{
	for (; *prefixes; prefixes++)
		if (!strncmp(option, *prefixes, strlen(*prefixes)))
			return true;
	return false;
}

static bool is_ignored(const char *option)
{
	for (size_t i = 0; ignored[i]; i++)
		if (!strcmp(option, ignored[i]))
			return true;
	return has_prefix(option, ignored_prefixes);
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

/* One option, with its commas restored. */
static int take_option(struct bdfs_command *c, char *option, bool sloppy, struct bd_error *err)
{
	struct bdfs_options *o = &c->options;
	char *value = strchr(option, '=');
	size_t length = value ? (size_t)(value - option) : strlen(option);
	unsigned long n;
	int r = 0;

#define IS(name) (length == strlen(name) && !memcmp(option, name, length))
	if (!*option || is_ignored(option))
		return 0;
	if (value && has_prefix(option, kernel_prefixes))
		return take_kernel_option(o, option, err);
	if (value) {
		*value++ = '\0';
		if (IS("deltas") || IS("delta"))
			return add_deltas(o, value, err);
		unescape(value);
		if (IS("uid")) {
			if ((r = number(option, value, 10, UINT_MAX - 1, &n, err)) == 0)
				o->uid = (uid_t)n;
			return r;
		}
		if (IS("gid")) {
			if ((r = number(option, value, 10, UINT_MAX - 1, &n, err)) == 0)
				o->gid = (gid_t)n;
			return r;
		}
		if (IS("umask")) {
			if ((r = number(option, value, 8, 0777, &n, err)) == 0)
				o->umask = (mode_t)n;
			return r;
		}
		if (IS("threads")) {
			if ((r = number(option, value, 10, 1024, &n, err)) == 0)
				o->threads = (unsigned)n;
			return r;
		}
		if (IS("readahead"))
			return readahead(value, &o->readahead, err);
		if (IS("fsname"))
			return replace(&o->source, value, err);
		if (IS("log"))
			return strcmp(value, "syslog") ? replace(&o->log, value, err) : 0;
	} else {
		if (IS("allow_other")) {
			o->allow_other = true;
			return 0;
		}
		if (IS("foreground")) {
			o->foreground = true;
			return 0;
		}
		if (IS("debug")) {
			o->debug = o->foreground = true;
			return 0;
		}
		if (IS("remount"))
			return bd_error_set(err, -EINVAL, "remounting is not supported: unmount and mount "
					    "again");
		if (IS("deltas") || IS("delta") || IS("uid") || IS("gid") || IS("umask") ||
		    IS("threads") || IS("readahead") || IS("fsname") || IS("log"))
			return bd_error_set(err, -EINVAL, "option %s needs a value: %s=...", option,
					    option);
	}
#undef IS
	if (sloppy)
		return 0;
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

static int finish(struct bdfs_command *c, char *const *positional, int count, struct bd_error *err)
{
	struct bdfs_options *o = &c->options;
	int r;

	if (count < 2)
		return bd_error_set(err, -EINVAL, "%s missing", count ? "the mount point is"
				    : "the base and the mount point are");
	if (count > 2)
		return bd_error_set(err, -EINVAL, "\"%s\" is one argument too many", positional[2]);
	if (!*positional[0] || !*positional[1])
		return bd_error_set(err, -EINVAL, "the name of the %s is empty",
				    *positional[0] ? "mount point" : "base");
	if (!o->delta_count)
		return bd_error_set(err, -EINVAL, "no deltas are given: add -o deltas=PATH[:PATH...], "
				    "each a .bdelta file or a directory of them");
	if (!o->source && (r = replace(&o->source, positional[0], err)) < 0)
		return r;
	r = replace(&o->base, positional[0], err);
	if (r < 0)
		return r;
	return replace(&o->mountpoint, positional[1], err);
}

int bdfs_options_parse(struct bdfs_command *command, int argc, char *const *argv,
		       struct bd_error *err)
{
	char *positional[3] = { NULL };
	char *lists[64]; /* of -o; parsed at the end, when -s is known */
	int count = 0, list_count = 0, r = 0;
	bool only_names = false, sloppy = false;

	memset(command, 0, sizeof(*command));
	command->options.uid = getuid();
	command->options.gid = getgid();
	command->options.readahead = BDFS_READAHEAD;
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
		for (p++; *p; p++) {
			char *value = NULL;

			if (strchr("oNt", *p)) {
				value = p[1] ? (char *)p + 1 : i + 1 < argc ? argv[++i] : NULL;
				if (!value)
					return bd_error_set(err, -EINVAL, "-%c needs a value", *p);
			}
			switch (*p) {
			case 's': sloppy = true; break;
			case 'f': command->options.foreground = true; break;
			case 'v': command->verbose = true; break;
			case 'd': command->options.debug = command->options.foreground = true; break;
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
	return r < 0 ? r : finish(command, positional, count, err);
}

void bdfs_options_clear(struct bdfs_command *command)
{
	struct bdfs_options *o = &command->options;

	for (size_t i = 0; i < o->delta_count; i++)
		free(o->deltas[i]);
	free(o->deltas);
	free(o->source);
	free(o->base);
	free(o->mountpoint);
	free(o->log);
	free(o->kernel);
	free(o->namespace);
	memset(o, 0, sizeof(*o));
}
