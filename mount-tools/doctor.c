/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c: `bitdelta doctor`: what this machine has and lacks for mounting and distilling. Changes
 * nothing. */
#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>
#include <zlib.h>

#include "blas.h"
#include "cli.h"
#include "mounts.h"
#include "obstacle.h"
#include "ops.h"
#include "sign.h"

static const char help[] =
"Usage: bitdelta doctor [--json]\n"
"Show what this machine has and lacks for mounting and distilling, for this user, and what to do\n"
"about it.\n"
"\n"
"  --json               one JSON object\n"
"  -h, --help           this text\n"
"\n"
"A line each: ok, note (something works less well, or only for some) or problem (this user cannot\n"
"mount). Nothing is changed, and nothing is mounted to try it.\n"
"Exit status 0: no problem; 1: a problem; 2: wrong usage.\n";

#define FEW_FILES 4096
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#define LANDLOCK_VERSION 1 /* flag: only ask for the version */

enum level { OK = BDFS_OK, NOTE = BDFS_NOTE, PROBLEM = BDFS_PROBLEM };

struct report {
	struct json json;
	cJSON *checks;
	bool as_json;
	unsigned problems;
	/* What several checks need: */
	struct bdfs_caller caller;
	unsigned kernel[2];
};

/* REMEDY is "" where there is nothing to do. */
static void say(struct report *r, enum level level, const char *what, const char *remedy,
		const char *format, ...) __attribute__((format(printf, 5, 6)));
static void say(struct report *r, enum level level, const char *what, const char *remedy,
		const char *format, ...)
{
	static const char *const names[] = { "ok", "note", "problem" };
	char state[2048];
	va_list args;
	cJSON *o;

	va_start(args, format);
	vsnprintf(state, sizeof(state), format, args);
	va_end(args);
	if (level == PROBLEM)
		r->problems++;
	if (r->as_json) {
		o = json_element(&r->json, r->checks);
		json_string(&r->json, o, "level", names[level]);
		json_string(&r->json, o, "what", what);
		json_string(&r->json, o, "state", state);
		json_string(&r->json, o, "remedy", remedy);
		return;
	}
	printf("%-8s %s: ", names[level], what);
	print_plain(state);
	if (*remedy) {
		printf("  -> ");
		print_plain(remedy);
	}
	putchar('\n');
}

/* The start of a file as text without the last line end; "" where it cannot be read. */
static char *read_text(const char *path, char *text, size_t capacity)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, capacity - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
		text[--n] = '\0';
	return text;
}

static void look_around(struct report *r)
{
	struct utsname u;

	bdfs_caller_find(&r->caller);
	if (uname(&u) < 0 || sscanf(u.release, "%u.%u", &r->kernel[0], &r->kernel[1]) != 2)
		r->kernel[0] = r->kernel[1] = 0;
}

static bool kernel_is(const struct report *r, unsigned major, unsigned minor)
{
	return r->kernel[0] > major || (r->kernel[0] == major && r->kernel[1] >= minor);
}

static void check_versions(struct report *r)
{
	unsigned x = XXH_versionNumber();

	say(r, OK, "versions", "", "bitdelta %s, libfuse %s, zlib %s, xxHash %u.%u.%u, cJSON %s",
	    BD_VERSION, fuse_pkgversion(), zlibVersion(), x / 10000, x / 100 % 100, x % 100,
	    cJSON_Version());
}

static void check_kernel(struct report *r)
{
	struct utsname u;

	if (uname(&u) < 0)
		say(r, NOTE, "kernel", "", "unknown: %s", strerror(errno));
	else if (strcmp(u.sysname, "Linux") != 0 || !kernel_is(r, 4, 20))
		say(r, NOTE, "kernel", "use Linux 4.20 or newer",
		    "%s %s, whose FUSE reads at most 128 KiB at a time", u.sysname, u.release);
	else
		say(r, OK, "kernel", "", "%s %s, whose FUSE reads up to 1 MiB at a time%s", u.sysname,
		    u.release, kernel_is(r, 6, 9) ? " and knows passthrough" : "");
}

static void say_finding(struct report *r, const struct bdfs_finding *f)
{
	say(r, (enum level)f->level, f->what, f->remedy, "%s", f->state);
}

static void check_mounting(struct report *r)
{
	struct bdfs_finding f;

	bdfs_check_device(&f);
	say_finding(r, &f);
	bdfs_check_privileges(&r->caller, &f);
	say_finding(r, &f);
	bdfs_check_fusermount(&r->caller, &f);
	say_finding(r, &f);
}

static bool has_line(const char *text, const char *line)
{
	size_t n = strlen(line);

	for (const char *at = text; (at = strstr(at, line)); at += n) {
		const char *start = at, *end = at + n;

		while (start > text && (start[-1] == ' ' || start[-1] == '\t'))
			start--;
		end += strspn(end, " \t");
		if ((start == text || start[-1] == '\n') && (!*end || *end == '\n'))
			return true;
	}
	return false;
}

static void check_conf(struct report *r)
{
	static const char what[] = "/etc/fuse.conf";
	char text[16384];

	if (access(what, R_OK) < 0 && errno != ENOENT)
		say(r, NOTE, what, "", "cannot be read: %s", strerror(errno));
	else if (has_line(read_text(what, text, sizeof(text)), "user_allow_other"))
		say(r, OK, what, "", "user_allow_other: users may mount with allow_other");
	else
		say(r, r->caller.admin ? OK : NOTE, what, r->caller.admin ? "" :
		    "as root: echo user_allow_other >>/etc/fuse.conf",
		    "no user_allow_other: only root may mount with allow_other");
}

static void check_helpers(struct report *r)
{
	static const char install[] = "make install, or install the package";
	bool helper = access("/sbin/mount.bitdelta", X_OK) == 0;
	bool typed = access("/sbin/mount.fuse.bitdelta", X_OK) == 0;

	if (helper && typed)
		say(r, OK, "mount(8)", "", "finds /sbin/mount.bitdelta and /sbin/mount.fuse.bitdelta");
	else if (helper)
		say(r, NOTE, "mount(8)", "ln -s mount.bitdelta /sbin/mount.fuse.bitdelta",
		    "does not find /sbin/mount.fuse.bitdelta, so `mount -t fuse.bitdelta` does not work");
	else
		say(r, NOTE, "mount(8)", install, "does not find /sbin/mount.bitdelta, so `mount -t "
		    "bitdelta` and fstab do not work; `bitdelta mount` does");
}

static void check_mtab(struct report *r)
{
	static const char what[] = "/etc/mtab", link[] = "as root: ln -sfn ../proc/self/mounts /etc/mtab";
	char target[PATH_MAX];
	ssize_t n = readlink(what, target, sizeof(target) - 1);

	if (access("/proc/self/mountinfo", R_OK) < 0) {
		say(r, PROBLEM, "/proc", "mount -t proc proc /proc", "is not mounted");
		return;
	}
	target[n < 0 ? 0 : n] = '\0';
	if (n > 0 && strstr(target, "mounts"))
		say(r, OK, what, "", "a link to %s", target);
	else if (n < 0 && errno == ENOENT)
		say(r, NOTE, what, link, "missing, which some programs do not expect");
	else
		say(r, NOTE, what, link, "not a link to /proc/self/mounts, so it may show what is not "
		    "mounted");
}

static void check_passthrough(struct report *r)
{
	static const char what[] = "passthrough";
	bool built = false;

#ifdef FUSE_CAP_PASSTHROUGH
	built = true;
#endif
	if (!built)
		say(r, NOTE, what, "build with libfuse 3.17 or newer",
		    "off: built with libfuse %d.%d, so files identical to real ones are copied",
		    FUSE_MAJOR_VERSION, FUSE_MINOR_VERSION);
	else if (fuse_version() < 317)
		say(r, NOTE, what, "install libfuse 3.17 or newer", "off: libfuse here is %s",
		    fuse_pkgversion());
	else if (!kernel_is(r, 6, 9))
		say(r, NOTE, what, "use Linux 6.9 or newer", "off: the kernel is too old");
	else if (!r->caller.admin)
		say(r, NOTE, what, "mount as root", "off: only for mounts of root");
	else
		say(r, OK, what, "", "files identical to real ones are read directly");
}

static void check_sandbox(struct report *r)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);

	if (version > 0)
		say(r, OK, "sandbox", "", "Landlock, ABI %ld", version);
	else
		say(r, NOTE, "sandbox", errno == EOPNOTSUPP ? "boot with landlock in the list of lsm=" :
		    "use a kernel with CONFIG_SECURITY_LANDLOCK (5.13 or newer)",
		    "no Landlock (%s): the daemon runs without it", strerror(errno));
}

static void check_inotify(struct report *r)
{
	char watches[32], instances[32];
	int fd = inotify_init1(IN_CLOEXEC);
	int code = fd < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	read_text("/proc/sys/fs/inotify/max_user_watches", watches, sizeof(watches));
	read_text("/proc/sys/fs/inotify/max_user_instances", instances, sizeof(instances));
	if (code)
		say(r, NOTE, "inotify", code == EMFILE ?
		    "as root: sysctl fs.inotify.max_user_instances=1024" : "",
		    "not to be had (%s; at most %s instances): directories of deltas are looked at "
		    "from time to time instead", strerror(code), *instances ? instances : "?");
	else
		say(r, OK, "inotify", "", "at most %s instances and %s watches per user",
		    *instances ? instances : "?", *watches ? watches : "?");
}

static void check_files(struct report *r)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	if (limit.rlim_max == RLIM_INFINITY)
		say(r, OK, "open files", "", "no limit");
	else if (limit.rlim_max < FEW_FILES)
		say(r, NOTE, "open files", "raise the hard limit (ulimit -Hn; systemd: LimitNOFILE=)",
		    "at most %llu, few for many models at a time",
		    (unsigned long long)limit.rlim_max);
	else
		say(r, OK, "open files", "", "at most %llu", (unsigned long long)limit.rlim_max);
}

static void check_cpu(struct report *r)
{
	const char *lowered = getenv("BITDELTA_CPU");
	enum bd_cpu cpu = bd_cpu_best();

	if (lowered && *lowered)
		say(r, NOTE, "cpu", "unset BITDELTA_CPU", "%s, as the environment variable "
		    "BITDELTA_CPU says", bd_cpu_name(cpu));
	else if (cpu == BD_CPU_SCALAR)
		say(r, NOTE, "cpu", "use a processor with AVX2 or AVX-512, if speed matters",
		    "%s: plain C, which is slower", bd_cpu_name(cpu));
	else
		say(r, OK, "cpu", "", "%s", bd_cpu_name(cpu));
}

/* Is there a GPU that distilling can use? Found out by opening it. */
static void check_gpu(struct report *r)
{
	static const char what[] = "gpu";
	struct bd_error err = { 0 };
	struct bdx_ops *ops;
	char driver[512];

	read_text("/proc/driver/nvidia/version", driver, sizeof(driver));
	driver[strcspn(driver, "\n")] = '\0';
	if (bdx_ops_cuda_open(&ops, 0, BD_BF16, &err) == 0) {
		say(r, OK, what, "", "%s, for distilling", ops->name);
		ops->close(ops);
	} else if (!*driver) {
		say(r, OK, what, "", "no NVIDIA driver: distilling uses the processor");
	} else if (access("/dev/nvidia0", R_OK | W_OK) < 0) {
		say(r, NOTE, what, errno == ENOENT ? "in a container: start it with --gpus all" : "",
		    "%s, but /dev/nvidia0: %s, so distilling uses the processor", driver,
		    strerror(errno));
	} else {
		say(r, NOTE, what, "", "%s, but distilling uses the processor: %s", driver, err.text);
	}
}

static void check_blas(struct report *r)
{
	static const char what[] = "blas";
	const char *off = getenv("BITDELTA_BLAS");
	struct bdx_blas blas;

	bdx_blas_open(&blas);
	if (blas.library)
		say(r, OK, what, "", "OpenBLAS, for distilling on the processor");
	else if (off && strcmp(off, "0") == 0)
		say(r, NOTE, what, "unset BITDELTA_BLAS", "not used, as the environment variable "
		    "BITDELTA_BLAS says");
	else
		say(r, NOTE, what, "install the package libopenblas0",
		    "no OpenBLAS: distilling on the processor takes far longer");
	bdx_blas_close(&blas);
}

static void check_systemd(struct report *r)
{
	static const char *const directories[] = {
		"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
		"/usr/lib/systemd/system", "/lib/systemd/system",
	};
	char path[128];

	if (access("/run/systemd/system", F_OK) < 0) {
		say(r, OK, "systemd", "", "does not run here");
		return;
	}
	for (size_t i = 0; i < sizeof(directories) / sizeof(*directories); i++) {
		snprintf(path, sizeof(path), "%s/bitdelta@.service", directories[i]);
		if (access(path, R_OK) == 0) {
			say(r, OK, "systemd", "", "unit %s", path);
			return;
		}
	}
	say(r, NOTE, "systemd", "make install, or install the package",
	    "no unit bitdelta@.service; fstab works without it");
}

static void readahead_path(char path[64], const struct bdfs_mountinfo *info)
{
	snprintf(path, 64, "/sys/class/bdi/%u:%u/read_ahead_kb", info->major, info->minor);
}

/* The kernel's 128 KiB are too few for models; only root may change them, and /sys is often read-only
 * in containers. */
static void check_readahead(struct report *r)
{
	static const char what[] = "readahead";
	struct statvfs fs;

	if (statvfs("/sys/class/bdi", &fs) < 0)
		say(r, NOTE, what, "mount -t sysfs sysfs /sys", "/sys/class/bdi: %s, so mounts keep "
		    "the kernel's", strerror(errno));
	else if (fs.f_flag & ST_RDONLY)
		say(r, NOTE, what, "mount outside the container, or start it with --privileged",
		    "/sys is read-only, so mounts keep the kernel's");
	else if (geteuid() != 0)
		say(r, NOTE, what, "mount as root, if speed matters",
		    "only root can set it, so mounts of this user keep the kernel's");
	else
		say(r, OK, what, "", "can be set");
}

static void check_mounts(struct report *r)
{
	struct bd_error err = { 0 };
	struct mounts mounts;

	if (mounts_list(&mounts, &err) < 0) {
		say(r, NOTE, "mounts", "", "%s", err.text);
		return;
	}
	for (size_t i = 0; i < mounts.count; i++) {
		struct mount_entry *e = &mounts.list[i];
		char path[64], kib[32], what[PATH_MAX];

		mounts_ask(&mounts, e);
		snprintf(what, sizeof(what), "mount %s", e->info.point);
		readahead_path(path, &e->info);
		read_text(path, kib, sizeof(kib));
		if (e->state != MOUNT_ALIVE)
			say(r, mount_is_broken(e) ? NOTE : OK, what, e->remedy, "%s", e->problem);
		else
			say(r, mount_is_broken(e) ? NOTE : OK, what, mount_is_broken(e) ?
			    "bitdelta status says more" : "",
			    "alive, readahead %s KiB, passthrough %s, sandbox %s, cpu %s%s",
			    *kib ? kib : "of unknown", e->stats->in_use.passthrough ? "on" : "off",
			    e->stats->in_use.sandbox, e->stats->in_use.cpu, mount_is_broken(e) ?
			    "; a base or delta has a problem" : "");
	}
	mounts_free(&mounts);
}

static int run(const struct command *command, int argc, char **argv)
{
	struct report r = { 0 };
	const struct command_option options[] = {
		{ "json", .flag = &r.as_json },
		{ 0 },
	};
	struct bd_error err = { 0 };
	cJSON *o = NULL;
	int status = EXIT_OK;

	if (!command_parse(command, argc, argv, options, &status))
		return status;
	if (optind < argc)
		return command_usage(command, "no arguments are needed");
	if (r.as_json) {
		o = json_begin(&r.json);
		r.checks = json_array(&r.json, o, "checks");
	}
	look_around(&r);
	check_versions(&r);
	check_kernel(&r);
	check_mounting(&r);
	check_conf(&r);
	check_helpers(&r);
	check_mtab(&r);
	check_passthrough(&r);
	check_readahead(&r);
	check_sandbox(&r);
	check_inotify(&r);
	check_files(&r);
	check_cpu(&r);
	check_gpu(&r);
	check_blas(&r);
	check_systemd(&r);
	check_mounts(&r);
	if (r.as_json) {
		json_number(&r.json, o, "problems", "%u", r.problems);
		if (json_print(&r.json, stdout, &err) < 0)
			return command_fail(command, &err);
	}
	return r.problems ? EXIT_FAILED : EXIT_OK;
}

const struct command command_doctor = {
	"doctor", "show what this machine lacks for mounting and distilling", help, run,
};
