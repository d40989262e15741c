/* SPDX-License-Identifier: Apache-2.0 */
/* obstacle.c: what keeps this user from mounting, see obstacle.h. */
#include "obstacle.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FUSE_MAJOR 10
#define FUSE_MINOR 229

static void find(struct bdfs_finding *f, enum bdfs_level level, const char *remedy, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
static void find(struct bdfs_finding *f, enum bdfs_level level, const char *remedy, const char *format, ...)
{
	va_list args;

	f->level = level;
	snprintf(f->remedy, sizeof(f->remedy), "%s", remedy);
	va_start(args, format);
	vsnprintf(f->state, sizeof(f->state), format, args);
	va_end(args);
}

/* The start of a file; "" where it cannot be read. */
static char *read_text(const char *path, char *text, size_t capacity)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, capacity - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
	return text;
}

void bdfs_caller_find(struct bdfs_caller *caller)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
	char text[256];

	/* Asked for, and not read in /proc, which a chroot may lack. */
	caller->admin = syscall(SYS_capget, &header, data) == 0 &&
			data[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN);
	caller->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
	read_text("/proc/self/attr/current", text, sizeof(text));
	caller->confined = strstr(text, "docker-default") || strstr(text, "containers-default");
}

static bool has_filesystem_fuse(void)
{
	char text[4096];

	return strstr(read_text("/proc/filesystems", text, sizeof(text)), "\tfuse\n") != NULL;
}

void bdfs_check_device(struct bdfs_finding *f)
{
	static const char what[] = "/dev/fuse", container[] = "; in a container: start it with "
		"--device /dev/fuse --cap-add SYS_ADMIN";
	char remedy[256];
	struct stat st;
	int fd;

	f->what = what;
	if (stat(what, &st) < 0) {
		snprintf(remedy, sizeof(remedy), "%s%s", has_filesystem_fuse() ?
			 "mknod -m 666 /dev/fuse c 10 229" : "modprobe fuse", container);
		find(f, BDFS_PROBLEM, remedy, "%s", errno == ENOENT ? "missing" : strerror(errno));
		return;
	}
	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(FUSE_MAJOR, FUSE_MINOR)) {
		find(f, BDFS_PROBLEM, "rm /dev/fuse && mknod -m 666 /dev/fuse c 10 229",
		     "is not the device 10, 229");
		return;
	}
	fd = open(what, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		close(fd);
		if ((st.st_mode & 0666) == 0666)
			find(f, BDFS_OK, "", "can be opened");
		else
			find(f, BDFS_NOTE, "chmod 666 /dev/fuse, if other users shall mount",
			     "can be opened by this user, but its mode is %03o, not 666",
			     (unsigned)(st.st_mode & 07777));
	} else if (errno == EACCES) {
		find(f, BDFS_PROBLEM, "as root: chmod 666 /dev/fuse", "this user may not open it "
		     "(mode %03o)", (unsigned)(st.st_mode & 07777));
	} else if (errno == EPERM) {
		find(f, BDFS_PROBLEM, "start the container with --device /dev/fuse",
		     "the container may not use it");
	} else {
		snprintf(remedy, sizeof(remedy), "modprobe fuse%s", container);
		find(f, BDFS_PROBLEM, remedy, "%s", strerror(errno));
	}
}

void bdfs_check_privileges(const struct bdfs_caller *caller, struct bdfs_finding *f)
{
	f->what = "privileges";
	if (caller->confined && caller->admin)
		find(f, BDFS_NOTE, "start the container with --security-opt apparmor=unconfined",
		     "CAP_SYS_ADMIN, but AppArmor's profile for containers forbids mounting");
	else if (caller->admin)
		find(f, BDFS_OK, "", "CAP_SYS_ADMIN: mounts directly");
	else if (geteuid() == 0)
		find(f, BDFS_PROBLEM, "start the container with --cap-add SYS_ADMIN --device /dev/fuse",
		     "root without CAP_SYS_ADMIN, who may not mount");
	else
		find(f, BDFS_OK, "", "user %ld: mounts through fusermount3", (long)geteuid());
}

/* PROGRAM on PATH, or where libfuse looks before that. */
static bool find_program(const char *program, char path[PATH_MAX], bool *on_path)
{
	const char *list = getenv("PATH"), *end;

	*on_path = true;
	for (list = list ? list : ""; ; list = end + 1) {
		end = strchrnul(list, ':');
		if (snprintf(path, PATH_MAX, "%.*s/%s", (int)(end - list), list, program) < PATH_MAX &&
		    end > list && access(path, X_OK) == 0)
			return true;
		if (!*end)
			break;
	}
	*on_path = false;
	snprintf(path, PATH_MAX, "/usr/bin/%s", program);
	return access(path, X_OK) == 0;
}

void bdfs_check_fusermount(const struct bdfs_caller *caller, struct bdfs_finding *f)
{
	static const char what[] = "fusermount3", install[] = "install the package fuse3";
	/* With CAP_SYS_ADMIN, mounting works without. */
	enum bdfs_level bad = caller->admin ? BDFS_NOTE : BDFS_PROBLEM;
	char path[PATH_MAX];
	struct statvfs fs;
	struct stat st;
	bool on_path;

	f->what = what;
	if (!find_program(what, path, &on_path))
		find(f, bad, install, "missing, so users cannot mount");
	else if (stat(path, &st) < 0 || statvfs(path, &fs) < 0)
		find(f, bad, install, "%s: %s", path, strerror(errno));
	else if (!(st.st_mode & S_ISUID) || st.st_uid != 0)
		find(f, bad, "as root: chown root, chmod 4755, or install the package fuse3 again",
		     "%s is not setuid root, so users cannot mount", path);
	else if (fs.f_flag & ST_NOSUID)
		find(f, bad, "mount that filesystem without nosuid",
		     "%s lies on a filesystem mounted nosuid, so users cannot mount", path);
	else if (caller->no_new_privs)
		find(f, bad, "start without no_new_privs (Docker: no-new-privileges; systemd: "
		     "NoNewPrivileges=)", "%s gains no privileges: this process has no_new_privs", path);
	else if (!on_path)
		find(f, BDFS_NOTE, "add its directory to PATH", "%s is not on PATH, so users can mount, "
		     "but `bitdelta umount` does not find it", path);
	else
		find(f, BDFS_OK, "", "%s, setuid root", path);
}

bool bdfs_obstacle_find(struct bdfs_finding *f)
{
	struct bdfs_caller caller;

	bdfs_caller_find(&caller);
	bdfs_check_device(f);
	if (f->level != BDFS_PROBLEM)
		bdfs_check_privileges(&caller, f);
	if (f->level == BDFS_OK)
		bdfs_check_fusermount(&caller, f);
	/* A note that something is for root alone explains nothing to root. */
	return f->level == BDFS_PROBLEM || (f->level == BDFS_NOTE && caller.confined && caller.admin);
}
