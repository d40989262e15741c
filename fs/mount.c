/* mount.c: mount and serve, see mount.h. */
#include "mount.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "models.h"
#include "mountinfo.h"
#include "ops.h"

/* Everything of one mount, from before the fork to the end. */
struct server {
	const struct bdfs_options *options;
	char *mountpoint; /* absolute: the daemon leaves the working directory */
	struct bdfs_log *log;
	struct bdfs_models *models;
	struct bdfs_tree *tree;
	struct bdfs_ops ops;
	struct fuse_session *session;
};

int bdfs_mount_capture(int (*call)(void *), void *context, char *text, size_t capacity)
{
	int saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	int memory = memfd_create("stderr", MFD_CLOEXEC);
	ssize_t n = 0;
	int r;

	if (memory >= 0)
		dup2(memory, STDERR_FILENO);
	r = call(context);
	if (saved >= 0) {
		dup2(saved, STDERR_FILENO);
		close(saved);
	}
	if (memory >= 0) {
		n = pread(memory, text, capacity - 1, 0);
		close(memory);
	}
	text[n > 0 ? n : 0] = '\0';
	for (n = (ssize_t)strlen(text); n > 0 && text[n - 1] == '\n'; n--)
		text[n - 1] = '\0';
	for (char *p = text; (p = strchr(p, '\n')); )
		*p = ';';
	return r;
}

static struct bdfs_log *fuse_messages; /* libfuse hands its log function no context */

/* libfuse's own messages belong to the daemon's; the levels have syslog's numbers. */
static void log_fuse(enum fuse_log_level level, const char *format, va_list args)
{
	char text[1024];
	size_t n;

	if (level == FUSE_LOG_DEBUG) { /* every request: asked for on stderr */
		vfprintf(stderr, format, args);
		return;
	}
	vsnprintf(text, sizeof(text), format, args);
	for (n = strlen(text); n > 0 && text[n - 1] == '\n'; n--)
		text[n - 1] = '\0';
	bdfs_log_limited(fuse_messages, (int)level, "%s", text);
}

static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

void bdfs_fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

static int find_mountpoint(const char *path, char **resolved, struct bd_error *err)
{
	struct statvfs fs;
	struct stat st;
	int code;

	*resolved = realpath(path, NULL);
	/* A dead filesystem may still answer stat() from the kernel's cache, but not statvfs(). */
	if (!*resolved || stat(*resolved, &st) < 0 || statvfs(*resolved, &fs) < 0) {
		code = -errno;
		free(*resolved);
		*resolved = NULL;
		if (code == -ENOTCONN || code == -ECONNABORTED)
			return bd_error_set(err, code, "%s: the filesystem mounted there has lost its "
					    "daemon; unmount it first: umount %s (or fusermount3 -uz "
					    "%s)", path, path, path);
		if (code == -ENOENT)
			return bd_error_set(err, code, "the mount point %s does not exist", path);
		return bd_error_set(err, code, "the mount point %s: %s", path, strerror(-code));
	}
	if (!S_ISDIR(st.st_mode)) {
		free(*resolved);
		*resolved = NULL;
		return bd_error_set(err, -ENOTDIR, "the mount point %s is not a directory", path);
	}
	return 0;
}

static int enter_namespace(const char *path, struct bd_error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int code = 0;

	if (fd < 0 || setns(fd, CLONE_NEWNS) < 0)
		code = -errno;
	if (fd >= 0)
		close(fd);
	if (code)
		return bd_error_set(err, code, "cannot enter the mount namespace %s: %s", path,
				    strerror(-code));
	return 0;
}

static unsigned default_threads(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	/* Threads never wait for each other, only for the processor and the disk: a few more than
	 * processors keep both busy, and any number of waiting readers is served in turn. */
	n = (n < 1 ? 1 : n) + 2;
	return n < 4 ? 4 : n > 64 ? 64 : (unsigned)n;
}

/* The options of fuse_session_new, with what must not be left to a user. */
static int session_arguments(const struct bdfs_options *options, struct fuse_args *args)
{
	char *list = NULL, *source = NULL;
	int r = -ENOMEM;

	if (asprintf(&source, "fsname=%s", options->source) < 0) {
		source = NULL;
		goto out;
	}
	if (fuse_opt_add_opt(&list, "ro,nosuid,nodev,noexec,default_permissions,subtype=bitdelta") ||
	    fuse_opt_add_opt_escaped(&list, source) ||
	    (options->allow_other && fuse_opt_add_opt(&list, "allow_other")) ||
	    (options->debug && fuse_opt_add_opt(&list, "debug")) ||
	    (options->kernel && fuse_opt_add_opt(&list, options->kernel)) ||
	    fuse_opt_add_arg(args, "bitdelta") || fuse_opt_add_arg(args, "-o") ||
	    fuse_opt_add_arg(args, list))
		goto out;
	r = 0;
out:
	free(source);
	free(list);
	return r;
}

/* With stderr captured: libfuse and fusermount3 say there what is wrong. */
static int mount_session(void *context)
{
	struct server *s = context;
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int r = session_arguments(s->options, &args);

	if (r == 0) {
		s->session = fuse_session_new(&args, &bdfs_ops_table, sizeof(bdfs_ops_table), &s->ops);
		if (!s->session)
			r = -EINVAL;
	}
	fuse_opt_free_args(&args);
	/* Before mounting, so that a signal never leaves a mount without a daemon. */
	if (r == 0 && fuse_set_signal_handlers(s->session) < 0) {
		fuse_session_destroy(s->session);
		s->session = NULL;
		r = -EIO;
	}
	if (r == 0 && fuse_session_mount(s->session, s->mountpoint) < 0) {
		fuse_remove_signal_handlers(s->session);
		fuse_session_destroy(s->session);
		s->session = NULL;
		r = -EIO;
	}
	return r;
}

static int start(struct server *s, struct bd_error *err)
{
	struct bdfs_mountinfo info;
	char text[512];
	int r;

	r = bdfs_mount_capture(mount_session, s, text, sizeof(text));
	if (r < 0) {
		if (strstr(text, "user_allow_other"))
			return bd_error_set(err, -EPERM, "cannot mount on %s: allow_other needs the line "
					    "user_allow_other in /etc/fuse.conf, or root", s->mountpoint);
		return bd_error_set(err, r, "cannot mount on %s: %s", s->mountpoint,
				    *text ? text : strerror(-r));
	}
	if (*text)
		bdfs_log_write(s->log, s->options->debug ? LOG_DEBUG : LOG_WARNING, "%s", text);
	fuse_messages = s->log;
	fuse_set_log_func(log_fuse);
	s->ops.threads = s->options->threads ? s->options->threads : default_threads();
	if (bdfs_mountinfo_find(&info, s->mountpoint, NULL) == 0) {
		s->ops.major = info.major;
		s->ops.minor = info.minor;
		s->ops.readahead = s->options->readahead;
		bdfs_mountinfo_clear(&info);
	}
	return 0;
}

/* Ends when the mount is unmounted or a signal comes. */
static int loop(struct server *s, struct bd_error *err)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r;

	if (!config)
		return bd_error_set(err, -ENOMEM, "out of memory for the threads");
	fuse_loop_cfg_set_clone_fd(config, 0);
	fuse_loop_cfg_set_max_threads(config, s->ops.threads);
	fuse_loop_cfg_set_idle_threads(config, s->ops.threads); /* keep them: their buffers are warm */
	r = fuse_session_loop_mt(s->session, config);
	fuse_loop_cfg_destroy(config);
	if (r < 0)
		return bd_error_set(err, r, "serving %s ended: %s", s->mountpoint, strerror(-r));
	return 0; /* unmounted, or the number of a signal */
}

static void stop(struct server *s)
{
	fuse_session_unmount(s->session);
	fuse_remove_signal_handlers(s->session);
	fuse_session_destroy(s->session);
	s->session = NULL;
}

static void server_end(struct server *s)
{
	bdfs_tree_free(s->tree);
	bdfs_models_close(s->models);
	fuse_set_log_func(NULL);
	bdfs_log_close(s->log);
	free(s->mountpoint);
}

/* Let go of the caller: its terminal, directory and standard files. */
static int detach(struct server *s, struct bd_error *err)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || chdir("/") < 0) {
		int code = -errno;

		if (fd >= 0)
			close(fd);
		return bd_error_set(err, code, "cannot become a daemon: %s", strerror(-code));
	}
	bdfs_log_detach(s->log);
	for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(fd, i);
	if (fd > STDERR_FILENO)
		close(fd);
	return 0;
}

/* What the daemon tells its parent: code 0 when it has mounted, then an error if one comes. */
static bool send_report(int fd, const struct bd_error *report)
{
	return write(fd, report, sizeof(*report)) == (ssize_t)sizeof(*report);
}

static bool receive_report(int fd, struct bd_error *report)
{
	ssize_t n;

	do
		n = read(fd, report, sizeof(*report)); /* less than PIPE_BUF: all or nothing */
	while (n < 0 && errno == EINTR);
	report->text[sizeof(report->text) - 1] = '\0';
	return n == (ssize_t)sizeof(*report);
}

/* The child's side; never returns. */
static void daemon_run(struct server *s, int report_fd)
{
	struct bd_error err = { 0 };
	int r;

	setsid();
	r = start(s, &err);
	if (r == 0) {
		r = detach(s, &err);
		/* A caller that is gone wants no mount: then the report fails with EPIPE. */
		if (r == 0 && send_report(report_fd, &(struct bd_error){ 0 }))
			r = loop(s, &err);
		stop(s);
		if (r < 0)
			bdfs_log_write(s->log, LOG_ERR, "%s", err.text);
	}
	if (r < 0)
		send_report(report_fd, &err);
	close(report_fd);
	bdfs_ops_end(&s->ops);
	server_end(s);
	exit(r < 0 ? 1 : 0);
}

static int serve_in_background(struct server *s, struct bd_error *err)
{
	struct bd_error report = { 0 };
	struct stat st;
	bool told = false;
	int fds[2], status = 0, r;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return bd_error_set(err, -errno, "cannot create a pipe: %s", strerror(errno));
	fflush(NULL); /* the daemon's exit() must not print it a second time */
	pid = fork();
	if (pid < 0) {
		r = bd_error_set(err, -errno, "cannot fork: %s", strerror(errno));
		close(fds[0]);
		close(fds[1]);
		return r;
	}
	if (pid == 0) {
		close(fds[0]);
		daemon_run(s, fds[1]);
	}
	close(fds[1]);
	told = receive_report(fds[0], &report);
	if (told && report.code == 0) {
		/* The kernel keeps this waiting until INIT is answered and then asks the daemon. */
		if (stat(s->mountpoint, &st) == 0) {
			close(fds[0]);
			return 0;
		}
		r = -errno;
		kill(pid, SIGTERM);
		told = receive_report(fds[0], &report);
		if (!told) {
			told = true;
			bd_error_set(&report, r, "the mount on %s does not answer: %s", s->mountpoint,
				     strerror(-r));
		}
	}
	close(fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (told)
		return bd_error_set(err, report.code, "%s", report.text);
	if (WIFSIGNALED(status))
		return bd_error_set(err, -EIO, "the daemon was killed by signal %d", WTERMSIG(status));
	return bd_error_set(err, -EIO, "the daemon ended with status %d", WEXITSTATUS(status));
}

static int serve(struct server *s, struct bd_error *err)
{
	int r = start(s, err);

	if (r == 0) {
		r = loop(s, err);
		stop(s);
	}
	return r;
}

int bdfs_mount(const struct bdfs_options *options, struct bdfs_sink sink, struct bd_error *err)
{
	struct server s = { .options = options };
	int r;

	raise_file_limit();
	bdfs_fill_standard_descriptors();
	/* Early, because its errors explain those of a base below a dead mount point. */
	if (!options->namespace) {
		r = find_mountpoint(options->mountpoint, &s.mountpoint, err);
		if (r < 0)
			return r;
	}
	r = bdfs_log_open(&s.log, options->log, sink, err);
	if (r < 0)
		goto out;
	/* Open files stay reachable when the mount covers their directory. */
	r = bdfs_models_open(&s.models, options->base, options->deltas, options->delta_count, s.log,
			     err);
	if (r < 0)
		goto out;
	r = bdfs_tree_new(&s.tree, s.models->views, s.models->count, options->uid, options->gid,
			  options->umask, err);
	if (r < 0)
		goto out;
	if (options->namespace) {
		r = enter_namespace(options->namespace, err);
		if (r == 0)
			r = find_mountpoint(options->mountpoint, &s.mountpoint, err);
		if (r < 0)
			goto out;
	}
	r = bdfs_ops_init(&s.ops, s.tree, s.log, err);
	if (r < 0)
		goto out;
	r = options->foreground ? serve(&s, err) : serve_in_background(&s, err);
	bdfs_ops_end(&s.ops);
out:
	server_end(&s);
	return r;
}
