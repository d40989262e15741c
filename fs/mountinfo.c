/* SPDX-License-Identifier: Apache-2.0 */
/* mountinfo.c: what is mounted at a path, see mountinfo.h and proc_pid_mountinfo(5). */
#include "mountinfo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Space, tab, newline and backslash are written as a backslash and three octal digits. */
static void unescape(char *text)
{
	char *out = text;

	for (; *text; text++) {
		if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' &&
		    text[2] >= '0' && text[2] <= '7' && text[3] >= '0' && text[3] <= '7') {
			*out++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*out++ = *text;
		}
	}
	*out = '\0';
}

/* 36 35 98:0 /root /mnt/point rw,noatime [optional fields] - type source superoptions
 * The strings of *info point into the line. False where the line is none. */
static bool parse_line(struct bdfs_mountinfo *info, char *line)
{
	char *save = NULL, *field, *device = NULL, *nothing = line + strlen(line);
	int n = 0;

	memset(info, 0, sizeof(*info));
	for (field = strtok_r(line, " \n", &save); field; field = strtok_r(NULL, " \n", &save)) {
		n++;
		if (n == 3)
			device = field;
		if (n == 4)
			info->root = field;
		if (n == 5)
			info->point = field;
		if (n > 6 && !strcmp(field, "-"))
			break;
	}
	if (!field || sscanf(device, "%u:%u", &info->major, &info->minor) != 2)
		return false;
	info->type = strtok_r(NULL, " \n", &save);
	info->source = strtok_r(NULL, " \n", &save);
	info->options = strtok_r(NULL, " \n", &save);
	if (!info->options) { /* an empty source leaves two spaces, which strtok takes for one */
		info->options = info->source ? info->source : nothing;
		info->source = nothing;
	}
	if (!info->type)
		info->type = nothing;
	return true;
}

int bdfs_mountinfo_each(int (*take)(void *context, const struct bdfs_mountinfo *info), void *context,
			struct bd_error *err)
{
	static const char table[] = "/proc/self/mountinfo";
	struct bdfs_mountinfo info;
	char *line = NULL;
	size_t capacity = 0;
	FILE *f;
	int r = 0;

	f = fopen(table, "re");
	if (!f)
		return bd_error_set(err, -errno, "cannot read %s: %s", table, strerror(errno));
	while (r == 0 && getline(&line, &capacity, f) > 0) {
		if (!parse_line(&info, line))
			continue;
		unescape(info.root);
		unescape(info.point);
		unescape(info.type);
		unescape(info.source);
		unescape(info.options);
		r = take(context, &info);
	}
	free(line);
	fclose(f);
	if (r == -ENOMEM)
		bd_error_set(err, r, "out of memory while reading %s", table);
	return r;
}

struct search {
	const char *path;
	struct bdfs_mountinfo *found;
};

static int take_if_there(void *context, const struct bdfs_mountinfo *info)
{
	struct search *s = context;

	if (strcmp(info->point, s->path))
		return 0;
	bdfs_mountinfo_clear(s->found); /* it lies below this one */
	return bdfs_mountinfo_copy(s->found, info);
}

int bdfs_mountinfo_find(struct bdfs_mountinfo *info, const char *path, struct bd_error *err)
{
	struct search s = { path, info };
	int r;

	memset(info, 0, sizeof(*info));
	r = bdfs_mountinfo_each(take_if_there, &s, err);
	if (r < 0) {
		bdfs_mountinfo_clear(info);
		return r;
	}
	if (!info->type)
		return bd_error_set(err, -ENOENT, "%s is not a mount point", path);
	return 0;
}

int bdfs_mountinfo_copy(struct bdfs_mountinfo *to, const struct bdfs_mountinfo *from)
{
	*to = (struct bdfs_mountinfo){
		.major = from->major, .minor = from->minor,
		.root = strdup(from->root), .point = strdup(from->point),
		.type = strdup(from->type), .source = strdup(from->source),
		.options = strdup(from->options),
	};
	if (to->root && to->point && to->type && to->source && to->options)
		return 0;
	bdfs_mountinfo_clear(to);
	return -ENOMEM;
}

void bdfs_mountinfo_clear(struct bdfs_mountinfo *info)
{
	free(info->root);
	free(info->point);
	free(info->type);
	free(info->source);
	free(info->options);
	memset(info, 0, sizeof(*info));
}

bool bdfs_mountinfo_is_ours(const struct bdfs_mountinfo *info)
{
	return info->type && !strcmp(info->type, "fuse.bitdelta");
}
