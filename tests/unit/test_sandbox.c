/* SPDX-License-Identifier: Apache-2.0 */
/* test_sandbox.c: what the sandbox leaves readable, and what links cannot add to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sandbox.h"
#include "testdata.h"

static struct bd_error err;

static bool is_noted(const struct bdfs_sandbox *s, const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	for (size_t i = 0; i < s->count; i++)
		if (s->list[i].dev == st.st_dev && s->list[i].ino == st.st_ino) {
			assert_int_equal(s->list[i].directory, S_ISDIR(st.st_mode));
			return true;
		}
	return false;
}

/* BASE (NULL: none) and DELTA leave readable exactly the paths that follow, up to NULL. */
static void leaves(const char *base, const char *delta, ...)
{
	char *bases[] = { (char *)base }, *deltas[] = { (char *)delta };
	struct bdfs_sandbox s;
	const char *path;
	va_list paths;
	size_t count = 0;

	if (bdfs_sandbox_prepare(&s, bases, base != NULL, deltas, delta != NULL, &err) < 0)
		fail_msg("%s", err.text);
	va_start(paths, delta);
	for (; (path = va_arg(paths, const char *)); count++)
		if (!is_noted(&s, path))
			fail_msg("%s is not readable", path);
	va_end(paths);
	if (s.count != count)
		fail_msg("%zu are readable, expected %zu", s.count, count);
	bdfs_sandbox_clear(&s);
}

static void deltas(void **state)
{
	char *dir = td_dir(), *file = td_text(dir, "a.bdelta", "");
	char *links = td_mkdir(dir, "links"), *store = td_mkdir(dir, "store"), *secret = td_mkdir(dir, "secret");
	char *delta = td_text(store, "b.bdelta", ""), *hash = td_text(secret, "0123abcd", "");

	(void)state;
	leaves(NULL, dir, dir, NULL);
	leaves(NULL, file, dir, NULL);
	leaves(NULL, td_path(dir, "none.bdelta"), dir, NULL);
	leaves(NULL, td_path(dir, "none/a.bdelta"), NULL);
	/* Files named as deltas lie among such; of others only the file. */
	td_link(links, "a.bdelta", delta);
	leaves(NULL, links, links, store, NULL);
	td_link(links, "b.bdelta", hash);
	leaves(NULL, links, links, store, hash, NULL);
	leaves(NULL, td_path(links, "b.bdelta"), links, hash, NULL);
	/* A chain leads to its end. */
	td_link(links, "chain.bdelta", "b.bdelta");
	td_link(links, "c.bdelta", "chain.bdelta");
	leaves(NULL, td_path(links, "c.bdelta"), links, hash, NULL);
	/* What is no link to a regular file opens nothing. */
	td_link(links, "dir.bdelta", secret);
	td_link(links, "etc.bdelta", "/etc");
	td_link(links, "root.bdelta", "/");
	td_link(links, "null.bdelta", "/dev/null");
	td_link(links, "none.bdelta", "nowhere");
	td_link(links, "loop.bdelta", "loop.bdelta");
	td_link(links, "other", "/etc/passwd");
	assert_int_equal(mkfifo(td_path(dir, "fifo"), 0600), 0);
	td_link(links, "fifo.bdelta", td_path(dir, "fifo"));
	leaves(NULL, links, links, store, hash, NULL);
	leaves(NULL, td_path(links, "dir.bdelta"), secret, NULL);
	td_link(links, "passwd.bdelta", "/etc/passwd");
	leaves(NULL, links, links, store, hash, "/etc/passwd", NULL);
}

/* One file in the root of a filesystem does not open it all. */
static void roots(void **state)
{
	char *dir = td_dir(), *links = td_mkdir(dir, "links"), *root = td_mkdir(dir, "root"), *file;

	(void)state;
	leaves(NULL, "/none.bdelta", NULL);
	if (mount("tmpfs", root, "tmpfs", 0, "size=64k") < 0)
		skip();
	file = td_text(root, "x.bdelta", "");
	td_link(links, "x.bdelta", file);
	leaves(NULL, links, links, file, NULL);
	leaves(NULL, root, root, NULL);
	assert_int_equal(umount2(root, MNT_DETACH), 0);
}

static char *entry(const char *cache, const char *name, char **snapshot)
{
	char *e = td_mkdir(cache, name);

	td_mkdir(e, "blobs");
	*snapshot = td_mkdir(td_mkdir(e, "snapshots"), "0123");
	td_text(td_path(e, "blobs"), "abcd", "");
	return e;
}

/* Links into blobs, also those that are not there yet. */
static void caches(void **state)
{
	char *dir = td_dir(), *snapshot, *model = entry(dir, "models--org--name", &snapshot), *below;
	char *other;

	(void)state;
	leaves(snapshot, NULL, snapshot, model, td_path(model, "blobs"), NULL);
	leaves(NULL, snapshot, snapshot, td_path(model, "blobs"), NULL);
	td_link(snapshot, "a.bdelta", "../../blobs/abcd");
	leaves(NULL, snapshot, snapshot, td_path(model, "blobs"), NULL);
	leaves(NULL, td_path(snapshot, "a.bdelta"), snapshot, td_path(model, "blobs"), NULL);
	leaves(NULL, td_link(dir, "linked", snapshot), snapshot, td_path(model, "blobs"), NULL);
	model = entry(dir, "datasets--org--deltas", &snapshot);
	below = td_mkdir(snapshot, "below");
	leaves(NULL, below, below, td_path(model, "blobs"), NULL);
	/* Anything else called so is none, and a link is no directory of blobs. */
	entry(dir, "backups", &snapshot);
	leaves(NULL, snapshot, snapshot, NULL);
	other = td_mkdir(dir, "models--a--b");
	td_link(other, "blobs", "/etc");
	snapshot = td_mkdir(td_mkdir(other, "snapshots"), "0123");
	leaves(NULL, snapshot, snapshot, NULL);
}

static void bases(void **state)
{
	char *dir = td_dir(), *base = td_mkdir(dir, "base"), *store = td_mkdir(dir, "store");
	char *config = td_text(store, "config", "{}"), *weights = td_mkdir(dir, "weights");

	(void)state;
	td_link(base, "config.json", config);
	td_link(base, "tokenizer.json", "/etc/passwd");
	td_link(base, "original", "/etc");
	leaves(base, NULL, base, config, "/etc/passwd", NULL);
	td_link(base, "model.safetensors", td_text(weights, "1.safetensors", ""));
	leaves(base, NULL, base, config, "/etc/passwd", weights, NULL);
	/* Also those of links further down. */
	td_link(td_mkdir(td_mkdir(base, "1_Pooling"), "below"), "config.json", "/etc/group");
	td_link(td_mkdir(base, ".git"), "HEAD", "/etc/hostname");
	leaves(base, NULL, base, config, "/etc/passwd", weights, "/etc/group", NULL);
	leaves(td_path(dir, "none"), NULL, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(deltas),
		cmocka_unit_test(roots),
		cmocka_unit_test(caches),
		cmocka_unit_test(bases),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
