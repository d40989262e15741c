/* SPDX-License-Identifier: Apache-2.0 */
/* test_models.c: what a mount shows, and its tree of names, without a mount. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "testdata.h"
#include "testdelta.h"
#include "tree.h"

static struct bd_error err;

/* A directory with a base and the deltas one, two and three of it, which differ in their scales. */
struct fixture {
	char *base, *other, *dir;
	char *delta[3];
	struct bdfs_log *log;
	struct bdfs_models *models;
	struct bdfs_tree *tree;
};

static void build(struct ts_model *m, const char *dir, const char *tensor)
{
	struct ts_tensor t[] = {
		{ .name = tensor, .dtype = BD_BF16, .dims = 2, .shape = { 16, 24 }, .kind = TS_SIGN },
		{ .name = "norm", .dtype = BD_BF16, .dims = 1, .shape = { 24 }, .kind = TS_RAW },
	};

	*m = (struct ts_model){ .tensors = t, .count = 2, .file_count = 1,
				.files = { { .name = "config.json", .text = "{}" } } };
	ts_build(m, dir);
}

static void copy(const char *from, const char *dir, const char *name)
{
	size_t size;
	char *data = td_read(from, &size);

	/* As writers should: complete before it has its name. */
	assert_int_equal(rename(td_write(dir, ".new", data, size), td_path(dir, name)), 0);
}

/* BELOW: "", or what is put after the directory's name. */
static void set_up_below(struct fixture *f, const struct bdfs_config *how, const char *below)
{
	const struct bdfs_sink nowhere = { 0 };
	struct bdfs_config config = *how;
	const struct bdfs_tree_options options = { 0 };
	struct ts_model m;
	char *deltas;

	build(&m, td_dir(), "w");
	f->base = td_format("%s", m.base_path);
	f->delta[0] = td_format("%s", m.delta_path);
	build(&m, td_dir(), "v");
	f->other = td_format("%s", m.base_path);
	f->delta[1] = td_format("%s", m.delta_path);
	f->dir = td_dir();
	copy(f->delta[0], f->dir, "one.bdelta");
	assert_int_equal(bdfs_log_open(&f->log, NULL, nowhere, &err), 0);
	config.bases = &f->base;
	config.base_count = 1;
	deltas = td_format("%s%s", f->dir, below);
	config.deltas = &deltas;
	config.delta_count = 1;
	if (bdfs_models_open(&f->models, &config, f->log, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(bdfs_tree_new(&f->tree, f->models, &options, &err), 0);
}

static void set_up(struct fixture *f, const struct bdfs_config *how)
{
	set_up_below(f, how, "");
}

static void tear_down(struct fixture *f)
{
	bdfs_tree_free(f->tree);
	bdfs_models_close(f->models);
	bdfs_log_close(f->log);
}

/* Scan and update; the names that changed, joined. */
static char *rescan(struct fixture *f, bool retry)
{
	struct bdfs_names names = { 0 };
	char *text = td_format("%s", "");
	bool changed;

	assert_int_equal(bdfs_models_scan(f->models, retry, &changed, &err), 0);
	if (changed)
		assert_int_equal(bdfs_tree_update(f->tree, &names, &err), 0);
	for (size_t i = 0; i < names.count; i++) {
		assert_int_equal(names.names[i].directory, BDFS_ROOT_INO);
		text = td_format("%s%s%s", text, i ? " " : "", names.names[i].name);
	}
	bdfs_names_free(&names);
	bdfs_models_shown(f->models);
	return text;
}

static char *listing_of(struct fixture *f, const struct bdfs_node *directory)
{
	struct bdfs_listing *l = bdfs_tree_list(f->tree, directory);
	char *text = td_format("%s", "");

	assert_non_null(l);
	for (size_t i = 2; i < l->count; i++)
		text = td_format("%s%s%s", text, i > 2 ? " " : "", l->nodes[i]->name);
	bdfs_listing_free(f->tree, l);
	return text;
}

static char *root_of(struct fixture *f)
{
	const struct bdfs_node *root = bdfs_tree_get(f->tree, BDFS_ROOT_INO);

	assert_non_null(root);
	return listing_of(f, root);
}

/* With a reference. */
static const struct bdfs_node *find(struct fixture *f, const char *path)
{
	const struct bdfs_node *node = bdfs_tree_get(f->tree, BDFS_ROOT_INO), *child;
	char *copy_of = strdup(path), *rest = copy_of, *name;

	while (node && (name = strsep(&rest, "/"))) {
		child = bdfs_tree_lookup(f->tree, node, name);
		bdfs_tree_put(f->tree, node, 1);
		node = child;
	}
	free(copy_of);
	return node;
}

static void come_and_go(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	assert_string_equal(root_of(&f), "one");
	assert_false(bdfs_models_is_stale(f.models));
	assert_string_equal(rescan(&f, false), "");
	copy(f.delta[0], f.dir, "two.bdelta");
	assert_true(bdfs_models_is_stale(f.models));
	assert_string_equal(rescan(&f, false), "two");
	assert_string_equal(root_of(&f), "one two");
	assert_false(bdfs_models_is_stale(f.models));
	unlink(td_path(f.dir, "one.bdelta"));
	assert_string_equal(rescan(&f, false), "one");
	assert_string_equal(root_of(&f), "two");
	assert_int_equal(bdfs_counted(&f.models->reloads), 2);
	tear_down(&f);
}

/* Who has an old model keeps it, with its bytes; it ends with its last reference. */
static void replaced(void **state)
{
	const struct bdfs_node *old, *new;
	struct bdfs_names names = { 0 };
	struct bd_view *view;
	struct fixture f;
	size_t file;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	old = find(&f, "one/model.safetensors");
	assert_non_null(old);
	file = old->file;
	copy(f.delta[0], f.dir, "one.bdelta");
	assert_string_equal(rescan(&f, false), "one");
	new = find(&f, "one/model.safetensors");
	assert_non_null(new);
	assert_ptr_not_equal(old->model, new->model);
	assert_int_not_equal(old->ino, new->ino);
	assert_int_equal(bdfs_model_acquire(f.models, old->model, file, &view, &err), 0);
	bdfs_model_release(f.models, old->model, file);
	bdfs_tree_lingering(f.tree, &names); /* its three files */
	assert_int_equal(names.count, old->parent->child_count);
	bdfs_names_free(&names);
	assert_ptr_equal(bdfs_tree_get(f.tree, old->ino), old);
	bdfs_tree_put(f.tree, old, 2);
	bdfs_tree_lingering(f.tree, &names);
	assert_int_equal(names.count, 0);
	bdfs_tree_put(f.tree, new, 1);
	tear_down(&f);
}

/* What was overwritten in place is not what was examined. */
static void overwritten(void **state)
{
	const struct bdfs_node *old;
	struct bd_view *view;
	struct fixture f;
	size_t size;
	char *data;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	old = find(&f, "one/model.safetensors");
	data = td_read(f.delta[0], &size);
	td_write(f.dir, "one.bdelta", data, size - 1);
	assert_int_equal(bdfs_model_acquire(f.models, old->model, old->file, &view, &err), -ESTALE);
	assert_string_equal(rescan(&f, false), "one");
	assert_string_equal(root_of(&f), "");
	assert_int_equal(f.models->rejected_count, 1);
	assert_non_null(strstr(f.models->rejected[0].reason, "one.bdelta"));
	/* Whole again: by another file of the same contents. */
	copy(f.delta[0], f.dir, "one.bdelta");
	assert_string_equal(rescan(&f, false), "one");
	assert_int_equal(f.models->rejected_count, 0);
	bdfs_tree_put(f.tree, old, 1);
	tear_down(&f);
}

static void rejected(void **state)
{
	struct fixture f;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	copy(f.delta[1], f.dir, "stranger.bdelta");
	td_text(f.dir, "text.bdelta", "no delta at all");
	td_text(f.dir, ".hidden.bdelta", "");
	td_text(f.dir, "readme.txt", "");
	td_link(f.dir, "dangling.bdelta", "nowhere");
	assert_string_equal(rescan(&f, false), "");
	assert_string_equal(root_of(&f), "one");
	assert_int_equal(f.models->rejected_count, 3);
	assert_non_null(strstr(f.models->rejected[0].reason, "dangling.bdelta"));
	assert_non_null(strstr(f.models->rejected[1].reason, "was made from base"));
	assert_non_null(strstr(f.models->rejected[2].reason, "text.bdelta"));
	unlink(td_path(f.dir, "text.bdelta"));
	rescan(&f, true);
	assert_int_equal(f.models->rejected_count, 2);
	tear_down(&f);
}

/* A delta given by name must be good, and no two may have one name. */
/* Called once, when the next directory has been listed. */
static void (*meanwhile)(struct fixture *);
static struct fixture *meanwhile_of;

int scandirat(int dirfd, const char *name, struct dirent ***list, int (*filter)(const struct dirent *),
	      int (*compare)(const struct dirent **, const struct dirent **))
{
	int (*real)(int, const char *, struct dirent ***, int (*)(const struct dirent *),
		    int (*)(const struct dirent **, const struct dirent **));
	void (*now)(struct fixture *) = meanwhile;
	int n;

	*(void **)&real = dlsym(RTLD_NEXT, "scandirat");
	n = real(dirfd, name, list, filter, compare);
	meanwhile = NULL;
	if (now)
		now(meanwhile_of);
	return n;
}

static void make_below(struct fixture *f)
{
	copy(f->delta[0], td_mkdir(f->dir, "org"), "two.bdelta");
}

/* A directory that is made when those beside it have been listed already is seen by the next scan. */
static void made_meanwhile(void **state)
{
	struct fixture f;

	(void)state;
	set_up_below(&f, &(struct bdfs_config){ 0 }, "/**");
	meanwhile = make_below;
	meanwhile_of = &f;
	assert_string_equal(rescan(&f, false), "");
	assert_true(bdfs_models_is_stale(f.models));
	assert_string_equal(rescan(&f, false), "org--two");
	assert_false(bdfs_models_is_stale(f.models));
	tear_down(&f);
}

static void must_be_good(void **state)
{
	struct bdfs_config config = { .base_count = 1, .delta_count = 2 };
	struct bdfs_models *models;
	struct fixture f;
	char *named[2], *again;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	again = td_dir();
	copy(f.delta[0], again, "one.bdelta");
	config.bases = &f.base;
	config.deltas = named;
	named[0] = td_path(f.dir, "one.bdelta");
	named[1] = td_path(again, "one.bdelta");
	assert_int_equal(bdfs_models_open(&models, &config, f.log, &err), -EEXIST);
	named[1] = td_path(again, "none.bdelta");
	assert_int_equal(bdfs_models_open(&models, &config, f.log, &err), -ENOENT);
	named[1] = f.delta[1];
	assert_int_equal(bdfs_models_open(&models, &config, f.log, &err), -EINVAL);
	assert_non_null(strstr(err.text, "was made from base"));
	/* In directories the first one wins, until it goes. */
	named[0] = f.dir;
	named[1] = again;
	assert_int_equal(bdfs_models_open(&models, &config, f.log, &err), 0);
	assert_int_equal(models->count, 1);
	assert_int_equal(models->rejected_count, 1);
	assert_non_null(strstr(models->list[0]->path, f.dir));
	bdfs_models_close(models);
	tear_down(&f);
}

static void several_bases(void **state)
{
	struct bdfs_config config = { .base_count = 2, .delta_count = 1, .show_base = true };
	struct bdfs_models *models;
	struct fixture f;
	char *bases[2];

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	copy(f.delta[1], f.dir, "two.bdelta");
	bases[0] = f.other;
	bases[1] = f.base;
	config.bases = bases;
	config.deltas = &f.dir;
	assert_int_equal(bdfs_models_open(&models, &config, f.log, &err), 0);
	for (size_t i = 0; i < models->count; i++)
		if (!models->list[i]->is_base)
			assert_ptr_equal(models->list[i]->base,
					 models->bases[strcmp(models->list[i]->name, "one") ? 0 : 1]);
	bdfs_models_close(models);
	tear_down(&f);
}

static void hub(void **state)
{
	const struct bdfs_node *ref, *file;
	struct fixture f;
	char *path;

	(void)state;
	set_up(&f, &(struct bdfs_config){ .layout = BDFS_HUB });
	assert_string_equal(root_of(&f), "models--one");
	ref = find(&f, "models--one/refs/main");
	assert_non_null(ref);
	assert_int_equal(ref->size, BDFS_REVISION - 1);
	path = td_format("models--one/snapshots/%s/config.json", bdfs_tree_text(ref));
	file = find(&f, path);
	assert_non_null(file);
	bdfs_tree_put(f.tree, file, 1);
	bdfs_tree_put(f.tree, ref, 1);
	ref = find(&f, "version.txt");
	assert_non_null(ref);
	assert_string_equal(bdfs_tree_text(ref), "1");
	tear_down(&f);
}

/* The same files have the same numbers in every mount, and no two one number. */
static void numbers(void **state)
{
	const struct bdfs_node *a, *b, *c;
	struct bdfs_models *models;
	struct bdfs_tree *tree;
	struct fixture f;
	uint64_t before;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	copy(f.delta[0], f.dir, "two.bdelta");
	rescan(&f, false);
	a = find(&f, "one/config.json");
	b = find(&f, "two/config.json");
	c = find(&f, ".bitdelta/status");
	assert_true(a && b && c);
	assert_true(a->ino != b->ino && b->ino != c->ino && a->ino != c->ino);
	before = a->ino;
	bdfs_tree_put(f.tree, a, 1);
	bdfs_tree_put(f.tree, b, 1);
	models = f.models;
	tree = f.tree;
	assert_int_equal(bdfs_models_open(&f.models, &(struct bdfs_config){
		.bases = &f.base, .base_count = 1, .deltas = &f.dir, .delta_count = 1 }, f.log, &err), 0);
	assert_int_equal(bdfs_tree_new(&f.tree, f.models, &(struct bdfs_tree_options){ 0 }, &err), 0);
	a = find(&f, "one/config.json");
	assert_int_equal(a->ino, before);
	bdfs_tree_put(f.tree, a, 1);
	bdfs_tree_free(tree);
	bdfs_models_close(models);
	tear_down(&f);
}

/* Views are kept when nobody uses them: the newest whatever it takes, others while there is room. */
static void idle_views(void **state)
{
	struct bdfs_model *one, *two;
	struct bd_view *view;
	struct fixture f;
	size_t bytes;

	(void)state;
	set_up(&f, &(struct bdfs_config){ 0 });
	copy(f.delta[0], f.dir, "two.bdelta");
	rescan(&f, false);
	one = f.models->list[0];
	two = f.models->list[1];
	f.models->idle_limit = 1;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(bdfs_model_acquire(f.models, one, 0, &view, &err), 0);
		assert_true(i == 0 || one->view_bytes == bytes);
		bytes = one->view_bytes;
		assert_int_equal(bytes, bd_view_bytes(view));
		assert_null(view->delta->st);
		bdfs_model_release(f.models, one, 0);
		assert_ptr_equal(one->view, view);
		assert_int_equal(f.models->idle_bytes, bytes);
	}
	assert_int_equal(bdfs_model_acquire(f.models, two, 0, &view, &err), 0);
	assert_non_null(one->view);
	bdfs_model_release(f.models, two, 0);
	assert_null(one->view);
	assert_ptr_equal(two->view, view);
	assert_int_equal(f.models->idle_bytes, two->view_bytes);
	f.models->idle_limit = 2 * bytes + 100;
	assert_int_equal(bdfs_model_acquire(f.models, one, 0, &view, &err), 0);
	bdfs_model_release(f.models, one, 0);
	assert_true(one->view && two->view);
	assert_int_equal(f.models->idle_bytes, one->view_bytes + two->view_bytes);
	tear_down(&f);
}

static void latencies(void **state)
{
	static struct bdfs_latency latency;
	struct bdfs_percentiles p;

	(void)state;
	bdfs_latency_percentiles(&latency, &p);
	assert_true(p.count == 0 && p.p50 == 0 && p.max == 0);
	for (uint64_t us = 1; us <= 1000; us++)
		bdfs_latency_add(&latency, us * 1000);
	bdfs_latency_percentiles(&latency, &p);
	assert_int_equal(p.count, 1000);
	assert_true(p.p50 >= 500 && p.p50 <= 500 * 1.13);
	assert_true(p.p90 >= 900 && p.p90 <= 1000);
	assert_true(p.p99 >= 990 && p.p99 <= 1000);
	assert_true(p.max == 1000);
	bdfs_latency_add(&latency, UINT64_MAX); /* beyond the last bucket */
	bdfs_latency_add(&latency, 0);
	bdfs_latency_percentiles(&latency, &p);
	assert_int_equal(p.count, 1002);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(come_and_go),
		cmocka_unit_test(replaced),
		cmocka_unit_test(overwritten),
		cmocka_unit_test(rejected),
		cmocka_unit_test(made_meanwhile),
		cmocka_unit_test(must_be_good),
		cmocka_unit_test(several_bases),
		cmocka_unit_test(hub),
		cmocka_unit_test(numbers),
		cmocka_unit_test(idle_views),
		cmocka_unit_test(latencies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
