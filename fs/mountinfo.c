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
 * 1 if the line is about PATH (then *info is replaced), 0 if not, -ENOMEM. */
static int take_line(struct bdfs_mountinfo *info, char *line, const char *path)
{
	char *save = NULL, *field, *type, *source, *point = NULL, *device = NULL;
	unsigned major, minor;
	int n = 0;

	for (field = strtok_r(line, " \n", &save); field; field = strtok_r(NULL, " \n", &save)) {
		n++;
		if (n == 3)
			device = field;
		if (n == 5)
			point = field;
		if (n > 6 && !strcmp(field, "-"))
			break;
	}
	if (!field)
		return 0;
	unescape(point);
	if (strcmp(point, path) || sscanf(device, "%u:%u", &major, &minor) != 2)
		return 0;
	type = strtok_r(NULL, " \n", &save);
	source = strtok_r(NULL, " \n", &save);
	bdfs_mountinfo_clear(info);
	info->major = major;
	info->minor = minor;
	info->type = strdup(type ? type : "");
	info->source = strdup(source ? source : "");
	if (!info->type || !info->source)
		return -ENOMEM;
	unescape(info->type);
	unescape(info->source);
	return 1;
}

int bdfs_mountinfo_find(struct bdfs_mountinfo *info, const char *path, struct bd_error *err)
{
	static const char table[] = "/proc/self/mountinfo";
	char *line = NULL;
	size_t capacity = 0;
	FILE *f;
	int r = 0;

	memset(info, 0, sizeof(*info));
	f = fopen(table, "re");
	if (!f)
		return bd_error_set(err, -errno, "cannot read %s: %s", table, strerror(errno));
	while (r >= 0 && getline(&line, &capacity, f) > 0)
		r = take_line(info, line, path); /* a later line lies above an earlier one */
	free(line);
	fclose(f);
	if (r < 0) {
		bdfs_mountinfo_clear(info);
		return bd_error_set(err, r, "out of memory while reading %s", table);
	}
	if (!info->type)
		return bd_error_set(err, -ENOENT, "%s is not a mount point", path);
	return 0;
}

void bdfs_mountinfo_clear(struct bdfs_mountinfo *info)
{
	free(info->type);
	free(info->source);
	memset(info, 0, sizeof(*info));
}

bool bdfs_mountinfo_is_ours(const struct bdfs_mountinfo *info)
{
	return info->type && !strcmp(info->type, "fuse.bitdelta");
}
