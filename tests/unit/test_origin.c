/* SPDX-License-Identifier: Apache-2.0 */
/* test_origin.c: what is told of where a base came from. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <utime.h>

#include "origin.h"
#include "testdata.h"

#define COMMIT "0123456789abcdef0123456789abcdef01234567"

static struct bd_error err;

static char *model(const char *dir, const char *name)
{
	static const struct td_tensor t = { .name = "a.weight", .dtype = BD_BF16, .dims = 2, .shape = { 4, 4 } };
	char *path = td_mkdir(dir, name);

	td_safetensors(path, "model.safetensors", &t, 1, NULL);
	return path;
}

static struct bd_origin origin(const char *base, const char *fine)
{
	struct bd_checkpoint *b, *f;
	struct bd_origin o;

	if (bd_checkpoint_open(&b, base, &err) || bd_checkpoint_open(&f, fine, &err) ||
	    bd_origin_find(&o, b, f, &err))
		fail_msg("%s", err.text);
	bd_checkpoint_close(b);
	bd_checkpoint_close(f);
	return o;
}

static void is(const char *found, const char *expected)
{
	if (!found || !expected)
		assert_ptr_equal(found, expected);
	else
		assert_string_equal(found, expected);
}

static void drop(struct bd_origin *o)
{
	free(o->revision);
	free(o->path);
	free(o->hub);
}

static void cache_entry(void **state)
{
	char *dir = td_dir(), *fine = model(dir, "fine");
	struct bd_origin o;

	(void)state;
	model(dir, "models--org--name/snapshots/abcdef");
	td_text(fine, "README.md", "---\nbase_model: a/b\n---\n");
	o = origin(td_path(dir, "models--org--name"), fine);
	is(o.revision, "abcdef");
	is(o.path, NULL);
	is(o.hub, NULL);
	drop(&o);
}

static void paths(void **state)
{
	char *dir = td_dir(), *base = model(dir, "models/Llama-2-7b"), *fine = model(dir, "fine");
	struct bd_origin o = origin(base, fine);

	(void)state;
	is(o.path, "models/Llama-2-7b");
	is(o.revision, NULL);
	drop(&o);
	/* Whose home it is, is nobody's business. */
	setenv("HOME", td_path(dir, "models"), 1);
	o = origin(base, fine);
	is(o.path, "~/Llama-2-7b");
	drop(&o);
	setenv("HOME", "", 1);
	o = origin(model(dir, "a\nb/c\033[31m"), fine);
	is(o.path, "a?b/c?[31m");
	drop(&o);
}

static void downloads(void **state)
{
	static const char *const bad[] = {
		"", COMMIT, COMMIT "\n", "0123\netag\n99999999999\n", COMMIT "0\netag\n99999999999\n",
		"../../../etc/passwd0123456789abcdef012345\netag\n99999999999\n", COMMIT "\netag\n1\n",
	};
	char *dir = td_dir(), *base = model(dir, "base"), *fine = model(dir, "fine");
	char *cache = td_mkdir(base, ".cache/huggingface/download");
	struct bd_origin o;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		td_text(cache, "model.safetensors.metadata", bad[i]);
		o = origin(base, fine);
		is(o.revision, NULL);
		drop(&o);
	}
	td_text(cache, "model.safetensors.metadata", td_format(COMMIT "\netag\n%ld.25\n", (long)time(NULL)));
	o = origin(base, fine);
	is(o.revision, COMMIT);
	drop(&o);
	/* Written to since. */
	utime(td_path(base, "model.safetensors"), &(struct utimbuf){ time(NULL) + 60, time(NULL) + 60 });
	o = origin(base, fine);
	is(o.revision, NULL);
	drop(&o);
}

static void cards(void **state)
{
	static const struct {
		const char *card, *hub;
	} cases[] = {
		{ "---\nlicense: mit\nbase_model: meta-llama/Llama-2-7b-hf\n---\n# Text\n", "meta-llama/Llama-2-7b-hf" },
		{ "---\nbase_model: \"a/b\"   # a remark\n---\n", "a/b" },
		{ "---\r\nbase_model: a/b\r\n---\r\n", "a/b" },
		{ "---\nbase_model:\n- a/b\ntags:\n- x/y\n---\n", "a/b" },
		{ "---\nbase_model:\n  - 'a/b'\n---\n", "a/b" },
		{ "---\nbase_model: [a/b]\n---\n", "a/b" },
		{ "---\nbase_model:\n- a/b\n- c/d\n---\n", NULL },          /* merged of two */
		{ "---\nbase_model: [a/b, c/d]\n---\n", NULL },
		{ "---\nbase_model: /home/me/model\n---\n", NULL },
		{ "---\nbase_model: model\n---\n", NULL },
		{ "---\nbase_model: a/\033[31m\n---\n", NULL },
		{ "---\nbase_model:\n---\nbase_model: a/b\n", NULL },
		{ "---\nlicense: mit\n---\nbase_model: a/b\n", NULL },       /* in the text */
		{ "base_model: a/b\n", NULL },
		{ "---\nbase_model_relation: finetune\nbase_model: a/b\n---\n", "a/b" },
		{ "---\n base_model: a/b\n---\n", NULL },
		{ "---\nbase_model:", NULL }, { "---\nbase_model: a/b", "a/b" }, { "---", NULL }, { "", NULL },
	};
	char *dir = td_dir(), *base = model(dir, "base"), *fine = model(dir, "fine");
	struct bd_origin o;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		td_text(fine, "README.md", cases[i].card);
		o = origin(base, fine);
		if (!o.hub != !cases[i].hub || (o.hub && strcmp(o.hub, cases[i].hub) != 0))
			fail_msg("%s of %s", o.hub ? o.hub : "none", cases[i].card);
		drop(&o);
	}
	/* Both configurations must say so: alone, a name may be another model's or a path. */
	td_text(fine, "config.json", "{\"x\":NaN,\"_name_or_path\":\"org/base\"}");
	o = origin(base, fine);
	is(o.hub, NULL);
	drop(&o);
	td_text(base, "config.json", "{\"_name_or_path\":\"org/base\"}");
	o = origin(base, fine);
	is(o.hub, "org/base");
	drop(&o);
	td_text(base, "config.json", "{\"_name_or_path\":\"org/other\"}");
	o = origin(base, fine);
	is(o.hub, NULL);
	drop(&o);
	td_text(base, "config.json", "{\"_name_or_path\":");
	o = origin(base, fine);
	is(o.hub, NULL);
	drop(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cache_entry),
		cmocka_unit_test(paths),
		cmocka_unit_test(downloads),
		cmocka_unit_test(cards),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
