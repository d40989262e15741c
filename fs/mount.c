/* SPDX-License-Identifier: Apache-2.0 */
/* mount.c: mount and serve, see mount.h. */
#include "mount.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"
#include "models.h"
#include "mountpoint.h"
#include "obstacle.h"
#include "ops.h"
#include "sandbox.h"
#include "supervise.h"
#include "watch.h"

#define LARGE (256 << 10) /* of a block of memory */

/* Everything of one mount, from before the forks to the end. */
struct server {
	const struct bdfs_options *options;
	struct bdfs_mounted mounted;
	struct bdfs_log *log;
	struct bdfs_models *models;
	struct bdfs_tree *tree;
	struct bdfs_ops ops;
	struct bdfs_sandbox sandbox;
	struct bdfs_user user;    /* to become, if options say so */
	struct bdfs_signals signals;
	struct fuse_session *session;
	int broken;               /* a pipe that nobody reads: see end_session() */
	bool terminal;            /* we have one */
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
	if (r == 0 && fuse_session_mount(s->session, s->mounted.path) < 0) {
		fuse_session_destroy(s->session);
		s->session = NULL;
		r = -EIO;
	}
	return r;
}

/* libfuse and fusermount3 said TEXT. */
static int explain_refusal(const struct server *s, int code, const char *text, struct bd_error *err)
{
	struct bdfs_finding f;

	if (strstr(text, "user_allow_other"))
		return bd_error_set(err, -EPERM, "cannot mount on %s: allow_other needs the line "
				    "user_allow_other in /etc/fuse.conf, or root", s->mounted.path);
	if (bdfs_obstacle_find(&f))
		return bd_error_set(err, code, "cannot mount on %s: %s: %s; what helps: %s",
				    s->mounted.path, f.what, f.state, f.remedy);
	return bd_error_set(err, code, "cannot mount on %s: %s", s->mounted.path,
			    *text ? text : strerror(-code));
}

static int start(struct server *s, struct bd_error *err)
{
	char text[512];
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return bd_error_set(err, -errno, "cannot create a pipe: %s", strerror(errno));
	close(ends[0]);
	s->broken = ends[1];
	r = bdfs_mount_capture(mount_session, s, text, sizeof(text));
	if (r < 0)
		return explain_refusal(s, r, text, err);
	if (*text)
		bdfs_log_write(s->log, s->options->debug ? LOG_DEBUG : LOG_WARNING, "%s", text);
	fuse_messages = s->log;
	fuse_set_log_func(log_fuse);
	bdfs_mountpoint_note(&s->mounted);
	s->ops.device = fuse_session_fd(s->session);
	s->ops.use.source = s->options->source;
	s->ops.use.mountpoint = s->mounted.path;
	s->ops.use.threads = s->options->threads ? s->options->threads : default_threads();
	s->ops.use.mapped = bd_guard_installed();
	if (s->options->readahead &&
	    bdfs_mountpoint_readahead(&s->mounted, s->options->readahead))
		s->ops.use.readahead = s->options->readahead;
	return 0;
}

/* Let go of the session without unmounting. libfuse would unmount whatever is at the mount point by
 * now, and may not in the sandbox; it leaves that where the device says that its connection is gone,
 * which a broken pipe in the place of the device says too. */
static void end_session(struct server *s)
{
	if (!s->session)
		return;
	dup3(s->broken, fuse_session_fd(s->session), O_CLOEXEC);
	fuse_session_unmount(s->session);
	fuse_session_destroy(s->session);
	s->session = NULL;
}

static void server_end(struct server *s)
{
	end_session(s);
	if (s->ops.models)
		bdfs_ops_end(&s->ops);
	bdfs_tree_free(s->tree);
	bdfs_models_close(s->models);
	bdfs_sandbox_clear(&s->sandbox);
	if (s->broken >= 0)
		close(s->broken);
	fuse_set_log_func(NULL);
	bdfs_log_close(s->log);
	free(s->user.name);
	free(s->mounted.path);
}

/* --- the daemon --- */

/* A signal handler gets no context. libfuse's own would not say that there was a signal. */
static struct fuse_session *serving;
static volatile sig_atomic_t ended_by;

static void on_end(int number)
{
	ended_by = number;
	fuse_session_exit(serving);
}

static int catch_end(struct fuse_session *session, struct bd_error *err)
{
	struct sigaction action = { .sa_handler = on_end };

	serving = session;
	sigemptyset(&action.sa_mask);
	if ((!bdfs_signal_is_ignored(SIGTERM) && sigaction(SIGTERM, &action, NULL) < 0) ||
	    (!bdfs_signal_is_ignored(SIGINT) && sigaction(SIGINT, &action, NULL) < 0))
		return bd_error_set(err, -errno, "cannot handle signals: %s", strerror(errno));
	return 0;
}

/* Ends when the mount is unmounted or a signal comes, whose number it then returns. */
static int loop(struct server *s, struct bd_error *err)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r;

	if (!config)
		return bd_error_set(err, -ENOMEM, "out of memory for the threads");
	fuse_loop_cfg_set_clone_fd(config, 0);
	fuse_loop_cfg_set_max_threads(config, s->ops.use.threads);
	fuse_loop_cfg_set_idle_threads(config, s->ops.use.threads); /* keep them: their buffers are warm */
	r = fuse_session_loop_mt(s->session, config);
	fuse_loop_cfg_destroy(config);
	if (r == -1) /* not an errno: not even one thread could be started */
		return bd_error_set(err, -EAGAIN, "cannot start a thread to serve %s: memory or the number "
				    "of processes is limited", s->mounted.path);
	if (r < 0)
		return bd_error_set(err, r, "serving %s ended: %s", s->mounted.path, strerror(-r));
	return ended_by;
}

static void note_user(struct server *s)
{
	const struct passwd *entry = getpwuid(geteuid());

	if (entry)
		snprintf(s->ops.use.user, sizeof(s->ops.use.user), "%s", entry->pw_name);
	else
		snprintf(s->ops.use.user, sizeof(s->ops.use.user), "%u", (unsigned)geteuid());
}

/* From here on with as few rights as may be. */
static int restrict_rights(struct server *s, struct bd_error *err)
{
	const struct bdfs_options *o = s->options;
	int r = 0;

	if (o->drop_privileges)
		r = bdfs_privileges_drop(o->setuid ? &s->user : NULL, err);
	if (r < 0)
		return r;
	note_user(s);
	snprintf(s->ops.use.sandbox, sizeof(s->ops.use.sandbox), "none");
	if (o->sandbox)
		bdfs_sandbox_enter(&s->sandbox, s->log, s->ops.use.sandbox,
				   sizeof(s->ops.use.sandbox));
	bdfs_sandbox_clear(&s->sandbox);
	return 0;
}

/* The daemon's life, in a process of its own; never returns. */
static void daemon_run(struct server *s, pid_t parent, int report_fd)
{
	struct bd_error err = { 0 };
	struct bdfs_signals unused;
	int r = restrict_rights(s, &err);

	/* Changed credentials cancel it, so not earlier. */
	if (r == 0 && !bdfs_die_with(parent))
		r = bd_error_set(&err, -ESRCH, "the parent was killed");
	if (r == 0)
		r = bdfs_watch_catch_hangup(&err);
	if (r == 0)
		r = catch_end(s->session, &err);
	if (r == 0)
		r = bdfs_watch_start(&s->ops.watch, s->models, s->tree, s->session, s->log, &err);
	if (r == 0) {
		s->ops.use.watch = s->ops.watch;
		pthread_sigmask(SIG_SETMASK, &s->signals.mask, NULL);
		r = loop(s, &err);
		bdfs_signals_hold(&unused); /* another one must not spoil the end */
	}
	if (r > 0)
		err.code = r;
	bdfs_say_goodbye(report_fd, &err);
	bdfs_watch_stop(s->ops.watch);
	close(report_fd);
	server_end(s);
	exit(r < 0 ? 1 : 0);
}

/* --- its parent --- */

/* Serve in a child until the mount ends. */
static int serve(struct server *s, struct bd_error *err)
{
	struct bdfs_supervisor supervisor = {
		.mounted = &s->mounted,
		.log = s->log,
		.terminal = s->terminal,
		.auto_unmount = s->options->auto_unmount,
	};
	const pid_t parent = getpid();
	char name[16] = "";
	int fds[2], code;

	prctl(PR_GET_NAME, name);
	prctl(PR_SET_NAME, "bitdelta-parent"); /* so that people can tell the two apart */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		code = -errno;
	} else {
		fflush(NULL); /* the daemon's exit() must not print it a second time */
		supervisor.daemon = fork();
		code = supervisor.daemon < 0 ? -errno : 0;
		if (supervisor.daemon == 0) {
			prctl(PR_SET_NAME, name);
			close(fds[0]);
			daemon_run(s, parent, fds[1]);
		}
		close(fds[1]);
		supervisor.report_fd = fds[0];
		if (code)
			close(fds[0]);
	}
	/* All that the daemon has, above all the connection, ends with the daemon. */
	end_session(s);
	bdfs_tree_free(s->tree);
	bdfs_models_close(s->models);
	bdfs_sandbox_clear(&s->sandbox);
	s->tree = NULL;
	s->models = NULL;
	if (code) {
		bdfs_mountpoint_detach(&s->mounted, NULL);
		return bd_error_set(err, code, "cannot start the daemon: %s", strerror(-code));
	}
	return bdfs_supervise(&supervisor, err);
}

/* Let go of the caller: its session, directory and standard files. Not before it is mounted: autofs lets only
 * the process group of who mounts pass. */
static int detach(struct bd_error *err)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || chdir("/") < 0) {
		int code = -errno;

		if (fd >= 0)
			close(fd);
		return bd_error_set(err, code, "cannot become a daemon: %s", strerror(-code));
	}
	setsid();
	for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(fd, i);
	if (fd > STDERR_FILENO)
		close(fd);
	return 0;
}

/* The child's side of mounting in the background; never returns. */
static void background_run(struct server *s, int report_fd)
{
	struct bd_error err = { 0 };
	int r;

	bdfs_signals_hold(&s->signals);
	r = start(s, &err);
	if (r == 0) {
		r = detach(&err);
		bdfs_log_detach(s->log, true);
		/* A caller that is gone wants no mount. */
		if (r == 0 && !bdfs_report_send(report_fd, &(struct bd_error){ 0 }))
			r = bd_error_set(&err, -EPIPE, "who mounts %s is gone", s->mounted.path);
		if (r == 0) {
			r = serve(s, &err);
		} else {
			end_session(s);
			bdfs_mountpoint_detach(&s->mounted, NULL);
		}
		if (r < 0)
			bdfs_log_write(s->log, LOG_ERR, "%s", err.text);
	}
	if (r < 0)
		bdfs_report_send(report_fd, &err);
	close(report_fd);
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

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return bd_error_set(err, -errno, "cannot create a socket: %s", strerror(errno));
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
		background_run(s, fds[1]);
	}
	close(fds[1]);
	told = bdfs_report_receive(fds[0], &report);
	if (told && report.code == 0) {
		/* The kernel keeps this waiting until INIT is answered and then asks the daemon. */
		if (stat(s->mounted.path, &st) == 0) {
			close(fds[0]);
			return 0;
		}
		r = -errno;
		kill(pid, SIGTERM);
		told = bdfs_report_receive(fds[0], &report);
		if (!told) {
			told = true;
			bd_error_set(&report, r, "the mount on %s does not answer: %s", s->mounted.path,
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

static int serve_in_foreground(struct server *s, struct bd_error *err)
{
	int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC), r;

	s->terminal = fd >= 0;
	if (fd >= 0)
		close(fd);
	bdfs_signals_hold(&s->signals);
	r = start(s, err);
	if (r == 0) {
		bdfs_log_detach(s->log, false);
		r = serve(s, err);
	}
	bdfs_signals_restore(&s->signals);
	return r;
}

/* Open all there is to open, so that it stays reachable when the mount covers it. */
static int open_inputs(struct server *s, struct bd_error *err)
{
	const struct bdfs_options *o = s->options;
	const struct bdfs_config config = { o->bases, o->base_count, o->deltas, o->delta_count,
					    o->layout, o->show_base };
	const struct bdfs_tree_options looks = { o->uid, o->gid, o->file_mask, o->directory_mask,
						 o->stored_blocks };
	struct bd_error why = { 0 };
	int r = 0;

	if (o->setuid)
		r = bdfs_user_find(&s->user, o->setuid, err);
	if (r == 0)
		r = bdfs_models_open(&s->models, &config, s->log, err);
	if (r == 0)
		r = bdfs_tree_new(&s->tree, s->models, &looks, err);
	if (r == 0)
		r = bdfs_ops_init(&s->ops, s->models, s->tree, s->log, err);
	/* Without it the sandbox allows nothing, and nobody could read. */
	if (r == 0 && o->sandbox &&
	    bdfs_sandbox_prepare(&s->sandbox, o->bases, o->base_count, o->deltas, o->delta_count,
				 &why) < 0)
		r = bd_error_set(err, why.code, "%s (or mount with -o nosandbox)", why.text);
	return r;
}

int bdfs_mount(const struct bdfs_options *options, struct bdfs_sink sink, struct bd_error *err)
{
	struct server s = { .options = options, .broken = -1 };
	int r = 0;

	/* What the caller left open, such as a lock, must not stay open as long as the mount. */
	if (!options->foreground)
		close_range(STDERR_FILENO + 1, ~0u, 0);
	/* A daemon lives long: what is large goes back to the system when it is freed. Left to itself, the C
	 * library takes the largest block that was ever freed for usual and keeps all up to that size. */
	mallopt(M_MMAP_THRESHOLD, LARGE);
	raise_file_limit();
	bdfs_fill_standard_descriptors();
	bd_guard_install(); /* without it files are read and not mapped */
	/* Early, because its errors explain those of a base below a dead mount point. */
	if (!options->namespace)
		r = bdfs_mountpoint_find(options->mountpoint, options->source, options->fake, sink,
					 &s.mounted.path, err);
	if (r == 0)
		r = bdfs_log_open(&s.log, options->log, sink, err);
	if (r == 0)
		r = open_inputs(&s, err);
	if (r == 0 && options->namespace) {
		r = enter_namespace(options->namespace, err);
		if (r == 0)
			r = bdfs_mountpoint_find(options->mountpoint, options->source,
						 options->fake, sink, &s.mounted.path, err);
	}
	if (r == 0 && !options->fake)
		r = options->foreground ? serve_in_foreground(&s, err) : serve_in_background(&s, err);
	server_end(&s);
	return r;
}
