/* SPDX-License-Identifier: Apache-2.0 */
/* test_export.c: a view as a plain directory, complete or not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "export.h"
#include "testdata.h"
#include "testdelta.h"

static struct bd_error err;
static const struct bd_watch nobody;

static unsigned entries(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(d);
	return n;
}

/* Some 40 MB in chunks of 8 MiB where `large`. */
static struct bd_view *view_of(struct ts_model *m, struct ts_tensor t[4], bool large)
{
	uint64_t side = large ? 3001 : 31;
	struct ts_tensor list[4] = {
		{ .name = "a", .dtype = BD_BF16, .dims = 2, .shape = { side, side }, .kind = TS_SIGN },
		{ .name = "b", .dtype = BD_F16, .dims = 2, .shape = { side, 33 }, .kind = TS_SIGN,
		  .file = "second.safetensors" },
		{ .name = "c", .dtype = BD_F32, .dims = 2, .shape = { side, 11 }, .kind = TS_RAW,
		  .file = "second.safetensors" },
		{ .name = "d", .dtype = BD_BF16, .dims = 2, .shape = { side, 2 * side }, .kind = TS_SAME },
	};
	struct bd_base *base;
	struct bd_delta *delta;
	struct bd_view *view;

	memcpy(t, list, sizeof(list));
	*m = (struct ts_model){
		.tensors = t, .count = 4, .file_count = 2,
		.files = { { .name = "config.json", .text = "{}" }, { .name = "empty", .text = "" } },
	};
	ts_build(m, td_dir());
	if (bd_base_open(&base, m->base_path, &err) || bd_delta_open(&delta, m->delta_path, &err) ||
	    bd_view_open(&view, delta, base, &err))
		fail_msg("%s", err.text);
	return view;
}

static void closed(struct bd_view *view)
{
	struct bd_base *base = view->base;

	bd_view_close(view);
	bd_base_close(base);
}

static void holds(const char *out, const struct ts_model *m)
{
	assert_int_equal(entries(out), m->file_count);
	for (size_t f = 0; f < m->file_count; f++) {
		size_t size;
		char *data = td_read(td_path(out, m->files[f].name), &size);

		assert_int_equal(size, m->files[f].size);
		assert_memory_equal(data, m->files[f].data, size);
	}
}

static void exports(void **state)
{
	for (int large = 0; large < (td_slowness() > 1 ? 1 : 2); large++) {
		struct ts_tensor t[4];
		struct ts_model m;
		struct bd_view *v = view_of(&m, t, large);
		char *dir = td_dir(), *out = td_path(dir, "out");
		struct stat st;
		mode_t mask = umask(027);

		(void)state;
		assert_int_equal(bd_export(v, out, &nobody, &err), 0);
		umask(mask);
		holds(out, &m);
		assert_int_equal(entries(dir), 1);
		assert_int_equal(stat(out, &st), 0);
		assert_int_equal(st.st_mode & 0777, 0750);
		assert_int_equal(stat(td_path(out, "config.json"), &st), 0);
		assert_int_equal(st.st_mode & 0777, 0640);
		/* Into an empty directory, with a slash or two after it. */
		td_mkdir(dir, "there");
		assert_int_equal(bd_export(v, td_path(dir, "there//"), &nobody, &err), 0);
		holds(td_path(dir, "there"), &m);
		assert_int_equal(entries(dir), 2);
		/* Whose permissions it keeps. */
		assert_int_equal(chmod(td_mkdir(dir, "closed"), 0700), 0);
		if (geteuid() == 0)
			assert_int_equal(chown(td_path(dir, "closed"), 1234, 4321), 0);
		assert_int_equal(bd_export(v, td_path(dir, "closed"), &nobody, &err), 0);
		holds(td_path(dir, "closed"), &m);
		assert_int_equal(stat(td_path(dir, "closed"), &st), 0);
		assert_int_equal(st.st_mode & 07777, 0700);
		assert_int_equal(st.st_uid, geteuid() == 0 ? 1234 : geteuid());
		/* Nobody holds on to the files that were inflated. */
		for (size_t i = 0; i < v->file_count; i++)
			assert_true(v->files[i].users == 0 && v->files[i].data == NULL);
		closed(v);
	}
}

static void refused(struct bd_view *v, const char *out, int code)
{
	int rc;

	memset(&err, 0, sizeof(err));
	rc = bd_export(v, out, &nobody, &err);
	if (rc != code || err.code != code || !*err.text)
		fail_msg("%s: %d, expected %d: %s", out, rc, code, err.text);
}

static void refuses(void **state)
{
	struct ts_tensor t[4];
	struct ts_model m;
	struct bd_view *v = view_of(&m, t, false);
	char *dir = td_dir();
	size_t size;

	(void)state;
	td_text(td_mkdir(dir, "full"), "file", "mine");
	refused(v, td_path(dir, "full"), -EEXIST);
	assert_non_null(strstr(err.text, "full"));
	td_text(dir, "text", "mine");
	refused(v, td_path(dir, "text"), -ENOTDIR);
	refused(v, td_path(dir, "none/out"), -ENOENT);
	refused(v, td_path(dir, "text/out"), -ENOTDIR);
	assert_string_equal(td_read(td_path(dir, "text"), &size), "mine");
	assert_int_equal(entries(dir), 2);
	if (geteuid() != 0) {
		chmod(td_mkdir(dir, "closed"), 0500);
		refused(v, td_path(dir, "closed/out"), -EACCES);
	}
	closed(v);
}

/* Damage and lack of room leave nothing behind. */
static void failures(void **state)
{
	struct ts_tensor t[4];
	struct ts_model m;
	struct bd_view *v = view_of(&m, t, false);
	char *dir = td_dir(), *out = td_path(dir, "out"), *stored, byte;
	struct rlimit old, small = { 4096, 0 };
	int fd;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	small.rlim_cur = 2000;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	refused(v, out, -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(entries(dir), 0);
	/* No descriptors. */
	getrlimit(RLIMIT_NOFILE, &old);
	small = (struct rlimit){ (rlim_t)dup(0) + 1, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &small), 0);
	refused(v, out, -EMFILE);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(entries(dir), 0);
	assert_int_equal(bd_export(v, out, &nobody, &err), 0);
	closed(v);
	/* A sidecar that is damaged. */
	dir = td_dir();
	out = td_path(dir, "out");
	v = view_of(&m, t, false);
	stored = m.delta + bd_safetensors_find(v->delta->st, "file/config.json")->offset;
	byte = (char)(stored[4] ^ 4);
	fd = open(m.delta_path, O_WRONLY);
	assert_int_equal(pwrite(fd, &byte, 1, stored + 4 - m.delta), 1);
	close(fd);
	closed(v);
	{
		struct bd_base *base;
		struct bd_delta *delta;

		assert_int_equal(bd_base_open(&base, m.base_path, &err), 0);
		assert_int_equal(bd_delta_open(&delta, m.delta_path, &err), 0);
		assert_int_equal(bd_view_open(&v, delta, base, &err), 0);
		assert_true(bd_export(v, out, &nobody, &err) < 0);
		assert_non_null(strstr(err.text, "config.json"));
		assert_int_equal(entries(dir), 0);
		/* The base changes. */
		assert_int_equal(truncate(td_path(m.base_path, "model.safetensors"), 100), 0);
		assert_true(bd_export(v, out, &nobody, &err) < 0);
		assert_int_equal(entries(dir), 0);
		closed(v);
	}
}

static atomic_int cancel;

/* As a signal handler would, which no sanitizer minds. */
__attribute__((no_sanitize_thread))
static void *cancel_later(void *argument)
{
	struct timespec t = { .tv_nsec = *(long *)argument };

	nanosleep(&t, NULL);
	cancel = 1;
	return NULL;
}

static unsigned long long last_done, last_total;

static void progress(void *context, unsigned long long done, unsigned long long total)
{
	(void)context;
	assert_true(done <= total);
	last_done = done;
	last_total = total;
}

static void watched(void **state)
{
	struct ts_tensor t[4];
	struct ts_model m;
	struct bd_view *v = view_of(&m, t, td_slowness() == 1);
	char *dir = td_dir(), *out = td_path(dir, "out");
	struct bd_watch watch = { .progress = progress, .cancel = &cancel };

	(void)state;
	cancel = 0;
	assert_int_equal(bd_export(v, out, &watch, &err), 0);
	assert_int_equal(last_done, last_total);
	for (long i = 0; i < 8; i++) {
		long nanoseconds = i * 3000 * 1000;
		pthread_t thread;
		int rc;

		dir = td_dir();
		out = td_path(dir, "out");
		cancel = 0;
		assert_int_equal(pthread_create(&thread, NULL, cancel_later, &nanoseconds), 0);
		rc = bd_export(v, out, &watch, &err);
		pthread_join(thread, NULL);
		if (rc == 0) {
			holds(out, &m);
			assert_int_equal(entries(dir), 1);
		} else {
			assert_int_equal(rc, -EINTR);
			assert_int_equal(entries(dir), 0);
		}
	}
	closed(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exports),
		cmocka_unit_test(refuses),
		cmocka_unit_test(failures),
		cmocka_unit_test(watched),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
