/* SPDX-License-Identifier: Apache-2.0 */
/* test_import_match.c: a fine-tune whose names or layout are not its base's, and options that concern nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <zlib.h>

#include "export.h"
#include "import.h"
#include "refine.h"
#include "testdata.h"
#include "verify.h"

static struct bd_error err;
static char note[2048];
static unsigned notes;

static void take_note(void *context, const char *text)
{
	(void)context;
	notes++;
	snprintf(note, sizeof(note), "%s", text);
}

static char first_note[2048];

static void take_first_note(void *context, const char *text)
{
	(void)context;
	if (!*first_note)
		snprintf(first_note, sizeof(first_note), "%s", text);
}

/* ---- Checkpoints, named by a list ---- */

struct place {
	char *base, *fine, *out;
};

/* NAMES are patterns in which %d is the layer; a name that ends in "!" is a vector, in "?" an empty tensor. Equal
 * endings of names have equal data in a base, and other data where `changed`. */
static void write_model(const char *dir, const char *const *names, unsigned layers, bool changed)
{
	struct td_tensor t[200];
	size_t n = 0;

	for (; *names; names++)
		for (unsigned layer = 0; layer < (strchr(*names, '%') ? layers : 1); layer++) {
			char *name = td_format("%s", *names), *at = strstr(name, "%d"), last = name[strlen(name) - 1];

			if (at)
				name = td_format("%.*s%u%s", (int)(at - name), name, layer, at + 2);
			t[n] = (struct td_tensor){ .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } };
			/* A row per token: other matrices must have another number. */
			if (strstr(name, "embed") || strstr(name, "lm_head"))
				t[n].shape[0] = 80;
			if (last == '!' || last == '?') {
				name[strlen(name) - 1] = '\0';
				t[n].dims = 1;
				t[n].shape[0] = last == '!' ? 64 : 0;
			}
			t[n].name = name;
			if (changed) {
				char *data = td_format("%*s", (int)td_tensor_size(&t[n]), "");

				td_fill(data, td_tensor_size(&t[n]), BD_BF16, td_format("%s changed", name));
				t[n].data = data;
			}
			n++;
		}
	td_safetensors(dir, "model.safetensors", t, n, NULL);
}

static struct place pair(const char *const *base, const char *const *fine)
{
	char *dir = td_dir();
	struct place p = { td_mkdir(dir, "base"), td_mkdir(dir, "fine"), td_path(dir, "x.bdelta") };

	write_model(p.base, base, 3, false);
	write_model(p.fine, fine, 3, true);
	return p;
}

static int import(const struct place *p, struct bd_import_options o)
{
	o.base = p->base;
	o.fine = p->fine;
	o.out = p->out;
	o.scale = BD_SCALE_RANK1;
	o.attenuation = BD_ATTENUATION;
	o.threads = 2;
	o.watch.note = take_note;
	memset(&err, 0, sizeof(err));
	notes = 0;
	*note = '\0';
	unlink(p->out);
	return bd_import(&o, &err);
}

static void says(const char *text, const char *const *words)
{
	for (; *words; words++)
		if (!strstr(text, *words))
			fail_msg("\"%s\" is not in: %s", *words, text);
}
#define SAYS(text, ...) says(text, (const char *const[]){ __VA_ARGS__, NULL })

static void refused(const struct place *p, struct bd_import_options o)
{
	if (import(p, o) != -EINVAL)
		fail_msg("accepted: %s", note);
	assert_int_not_equal(access(p->out, F_OK), 0);
}

static struct bd_delta *imported(const struct place *p, struct bd_import_options o)
{
	struct bd_delta *d;

	if (import(p, o) || bd_delta_open(&d, p->out, &err))
		fail_msg("%s", err.text);
	return d;
}

static const struct bd_entry *entry(const struct bd_delta *d, const char *name)
{
	for (size_t i = 0; i < d->files[0].st->count; i++)
		if (strcmp(d->files[0].st->tensors[i].name, name) == 0)
			return &d->files[0].entries[i];
	fail_msg("no tensor %s", name);
	return NULL;
}

static const char *const plain[] = {
	"model.embed_tokens.weight", "model.layers.%d.q_proj.weight", "model.layers.%d.k_proj.weight",
	"model.layers.%d.norm.weight!", "lm_head.weight", NULL,
};
static const char *const nested[] = {
	"model.language_model.embed_tokens.weight", "model.language_model.layers.%d.q_proj.weight",
	"model.language_model.layers.%d.k_proj.weight", "model.language_model.layers.%d.norm.weight!",
	"lm_head.weight", NULL,
};

/* ---- Renames ---- */

/* A fine-tune under each prefix: refused with the rename that helps, and right with it. */
static void prefixes(void **state)
{
	static const struct {
		const char *prefix, *rename;
	} cases[] = {
		{ "base_model.model.", "--rename 'base_model.model.='" }, { "module.", "--rename 'module.='" },
		{ "_orig_mod.", "--rename '_orig_mod.='" }, { "transformer.", "--rename 'transformer.='" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const char *names[8] = { 0 };
		struct bd_rename rename = { cases[i].prefix, "" };
		struct bd_import_options o = { .renames = &rename, .rename_count = 1 };
		struct place p;
		struct bd_delta *d;

		for (size_t k = 0; plain[k]; k++)
			names[k] = td_format("%s%s", cases[i].prefix, plain[k]);
		p = pair(plain, names);
		refused(&p, (struct bd_import_options){ 0 });
		SAYS(err.text, cases[i].rename, "'model.layers.0.", cases[i].prefix, "nothing in common");
		d = imported(&p, o);
		assert_int_equal(notes, 1); /* the data have nothing to do with each other */
		assert_int_equal(entry(d, td_format("%smodel.layers.2.k_proj.weight", cases[i].prefix))->encoding,
				 BD_SIGN);
		bd_delta_close(d);
		/* The other way round, an empty prefix becomes one. */
		rename = (struct bd_rename){ "", cases[i].prefix };
		p = pair(names, plain);
		refused(&p, (struct bd_import_options){ 0 });
		SAYS(err.text, td_format("--rename '=%s'", cases[i].prefix));
		d = imported(&p, o);
		assert_string_equal(entry(d, "model.layers.1.q_proj.weight")->base_name,
				    td_format("%smodel.layers.1.q_proj.weight", cases[i].prefix));
		bd_delta_close(d);
	}
}

/* What is stored under the base's names is verified, refined, shown and exported. */
static void renamed_file(void **state)
{
	struct bd_rename rename = { "model.language_model.", "model." };
	struct bd_import_options o = { .renames = &rename, .rename_count = 1 };
	struct place p = pair(plain, nested), wrong = pair(nested, plain);
	struct bd_watch watch = { 0 };
	struct bd_delta *d;
	struct bd_base *base, *other;
	struct bd_view *v;
	char *out = td_path(td_dir(), "export"), *text;
	float *scales;
	size_t size;

	(void)state;
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "6 of 6 weights", "49.2 kB", "'model.language_model.layers.0.", "'model.layers.0.",
	     "--rename 'model.language_model.=model.' finds 6 of them", "--force");
	d = imported(&p, o);
	assert_string_equal(bd_entry_base(entry(d, "model.language_model.layers.0.q_proj.weight")),
			    "model.layers.0.q_proj.weight");
	assert_null(entry(d, "lm_head.weight")->base_name);
	assert_int_equal(bd_base_open(&base, p.base, &err), 0);
	assert_int_equal(bd_verify(d, base, &watch, &err), 0);
	/* Refining keeps the names and the feature. */
	scales = malloc(d->scales->size);
	assert_int_equal(bd_file_read(d->file, scales, d->scales->size, d->scales->offset, &err), 0);
	assert_int_equal(bd_refine(d, scales, p.out, NULL, NULL, &err), 0);
	free(scales);
	bd_delta_close(d);
	if (bd_delta_open(&d, p.out, &err) || bd_verify(d, base, &watch, &err))
		fail_msg("%s", err.text);
	assert_true(d->distilled);
	assert_non_null(strstr(d->base_path, "/base"));
	/* A base of other names is another one. */
	assert_int_equal(bd_base_open(&other, wrong.base, &err), 0);
	assert_int_equal(bd_delta_check_base(d, other, &err), -EINVAL);
	SAYS(err.text, "it has no tensor 'model.layers.0.");
	bd_base_close(other);
	if (bd_view_open(&v, d, base, &err) || bd_export(v, out, &watch, &err))
		fail_msg("%s", err.text);
	text = td_read(td_path(out, "model.safetensors"), &size);
	assert_non_null(memmem(text, size, "model.language_model.layers.2.norm.weight", 41));
	bd_view_close(v);
	bd_base_close(base);
}

/* The longest prefix decides; a name stays where the base has no renamed one. */
static void several_renames(void **state)
{
	static const char *const base[] = {
		"text.layers.%d.q.weight", "model.visual.blocks.%d.q.weight", "lm_head.weight", "l.norm!", NULL,
	};
	static const char *const fine[] = {
		"model.layers.%d.q.weight", "visual.blocks.%d.q.weight", "lm_head.weight", "l.norm!", NULL,
	};
	struct bd_rename renames[] = { { "", "model." }, { "model.", "text." }, { "mod", "x" } };
	struct bd_import_options o = { .renames = renames, .rename_count = 2 };
	struct place p = pair(base, fine);
	struct bd_delta *d;

	(void)state;
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "'=model.'", "'model.=text.'", "finds 6 of them");
	d = imported(&p, o);
	assert_string_equal(entry(d, "model.layers.1.q.weight")->base_name, "text.layers.1.q.weight");
	assert_string_equal(entry(d, "visual.blocks.1.q.weight")->base_name, "model.visual.blocks.1.q.weight");
	assert_null(entry(d, "l.norm")->base_name);
	bd_delta_close(d);
	o.rename_count = 3; /* nothing begins with "mod" but not with "model." */
	refused(&p, o);
	SAYS(err.text, "--rename 'mod=x' renames no tensor");
}

/* What is proposed may be copied to a shell. */
static void hostile_names(void **state)
{
	static const char *const fine[] = { "x'; touch y; '.layers.%d.q.weight", "x'; touch y; '.layers.%d.k.weight", NULL };
	static const char *const base[] = { "layers.%d.q.weight", "layers.%d.k.weight", NULL };
	struct place p = pair(base, fine);

	(void)state;
	refused(&p, (struct bd_import_options){ 0 });
	assert_null(strstr(err.text, "--rename"));
	/* Neither as an option nor as a pattern. */
	for (size_t i = 0; i < 3; i++) {
		static const char *const names[] = { "x'; touch y; '", "layer[0]", "layer" };
		char *name = td_format("%s", names[i]);
		struct td_tensor t = { .name = name, .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } };

		td_safetensors(p.base, "model.safetensors", &t, 1, NULL);
		t.shape[0] = 63;
		td_safetensors(p.fine, "model.safetensors", &t, 1, NULL);
		refused(&p, (struct bd_import_options){ 0 });
		SAYS(err.text, i < 2 ? "with --raw and a pattern of its name" : "with --raw 'layer'");
		t.shape[0] = 0;
		td_safetensors(p.base, "model.safetensors", &t, 1, NULL);
		t.shape[0] = 63;
		refused(&p, (struct bd_import_options){ 0 });
		SAYS(err.text, i < 2 ? "with --raw and a pattern of its name" : "with --raw 'layer'");
	}
}

/* ---- Weights without a counterpart ---- */

static void a_part_is_missing(void **state)
{
	static const char *const more[] = {
		"model.embed_tokens.weight", "model.layers.%d.q_proj.weight", "model.layers.%d.k_proj.weight",
		"lm_head.weight", "vision.0.fc.weight", "vision.1.fc.weight", NULL,
	};
	static const char *const most[] = {
		"model.embed_tokens.weight", "model.layers.0.q_proj.weight", "other.%d.a.weight", "other.%d.b.weight",
		NULL,
	};
	struct place p = pair(plain, more);

	(void)state;
	bd_delta_close(imported(&p, (struct bd_import_options){ 0 }));
	assert_int_equal(notes, 2);
	p = pair(plain, most);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "6 of 7 weights", "'other.0.a.weight'", "has such as 'model.", "--force");
	assert_null(strstr(err.text, "--rename"));
	bd_delta_close(imported(&p, (struct bd_import_options){ .force = true }));
	/* Where signs were not wanted anyhow, nothing is lost. */
	bd_delta_close(imported(&p, (struct bd_import_options){
		.rules = (struct bd_rule[]){ { false, "other.*" } }, .rule_count = 1 }));
}

static void part_is_said(void **state)
{
	static const char *const more[] = {
		"model.layers.%d.q_proj.weight", "model.layers.%d.k_proj.weight", "vision.0.fc.weight", NULL,
	};
	struct place p = pair(more, more);
	struct td_tensor t[] = {
		{ .name = "model.layers.0.q_proj.weight", .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } },
		{ .name = "model.layers.1.q_proj.weight", .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } },
		{ .name = "vision.0.fc.weight", .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } },
	};

	(void)state;
	td_safetensors(p.fine, "model.safetensors", t, 3, NULL);
	td_safetensors(p.base, "model.safetensors", t, 2, NULL);
	bd_delta_close(imported(&p, (struct bd_import_options){ 0 }));
	assert_int_equal(notes, 1);
	SAYS(note, "1 of 3 weights", "8.19 kB of 24.6 kB", "kept whole", "'vision.0.fc.weight'",
	     "'model.layers.0.q_proj.weight'");
	/* That another matrix of its shape ends in "weight" too is no reason to propose a rename. */
	t[1].name = "vision.0.other.weight";
	td_safetensors(p.base, "model.safetensors", (struct td_tensor[]){ t[0], t[2], t[1] }, 3, NULL);
	t[1].name = "model.layers.1.q_proj.weight";
	td_safetensors(p.fine, "model.safetensors", t, 3, NULL);
	bd_delta_close(imported(&p, (struct bd_import_options){ 0 }));
	assert_null(strstr(note, "--rename"));
	SAYS(note, "1 of 3 weights", "'model.layers.1.q_proj.weight'", "'vision.0.other.weight'");
	/* A base of bytes, as quantised ones are. */
	t[0].dtype = t[1].dtype = t[2].dtype = BD_F8_E4M3;
	td_safetensors(p.base, "model.safetensors", t, 3, NULL);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "3 of 3 weights", "as F8_E4M3", "before it was quantised");
}

/* One side has in one tensor what the other has in several. */
static void fused(void **state)
{
	struct td_tensor one[] = {
		{ .name = "model.layers.0.o.weight", .dtype = BD_BF16, .dims = 2, .shape = { 64, 64 } },
		{ .name = "model.layers.0.mlp.experts.gate_up", .dtype = BD_BF16, .dims = 3, .shape = { 4, 128, 64 } },
		{ .name = "model.layers.0.mlp.experts.down", .dtype = BD_BF16, .dims = 3, .shape = { 4, 64, 64 } },
	};
	struct td_tensor many[16] = { one[0] };
	struct td_tensor qkv[] = {
		one[0], { .name = "model.layers.0.qkv.weight", .dtype = BD_F16, .dims = 2, .shape = { 192, 64 } },
	};
	struct td_tensor split[] = {
		one[0], { .name = "model.layers.0.q.weight", .dtype = BD_F16, .dims = 2, .shape = { 64, 64 } },
		{ .name = "model.layers.0.k.weight", .dtype = BD_F16, .dims = 2, .shape = { 64, 64 } },
		{ .name = "model.layers.0.v.weight", .dtype = BD_F16, .dims = 2, .shape = { 64, 64 } },
	};
	struct place p = pair(plain, plain);
	size_t n = 1;

	(void)state;
	for (int e = 0; e < 4; e++)
		for (int k = 0; k < 3; k++)
			many[n++] = (struct td_tensor){
				.name = td_format("model.layers.0.mlp.experts.%d.%s.weight", e,
						  (const char *[]){ "gate_proj", "up_proj", "down_proj" }[k]),
				.dtype = BD_BF16, .dims = 2, .shape = { 64, 64 },
			};
	td_safetensors(p.base, "model.safetensors", many, n, NULL);
	td_safetensors(p.fine, "model.safetensors", one, 3, NULL);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "2 of 3 weights", "'model.layers.0.mlp.experts.", "like (2)", "like (12)", "fuses");
	td_safetensors(p.base, "model.safetensors", one, 3, NULL);
	td_safetensors(p.fine, "model.safetensors", many, n, NULL);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "12 of 13 weights", "like (12)", "the base's 'model.layers.0.mlp.experts.", "like (2)", "fuses");
	td_safetensors(p.base, "model.safetensors", split, 4, NULL);
	td_safetensors(p.fine, "model.safetensors", qkv, 2, NULL);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "'model.layers.0.qkv.weight' and its like (1)", "like (3)", "fuses");
}

/* ---- Empty tensors ---- */

static void empty_tensors(void **state)
{
	static const char *const hollow[] = {
		"model.embed_tokens.weight?", "model.layers.%d.q_proj.weight?", "model.layers.%d.k_proj.weight?",
		"model.layers.%d.norm.weight?", "lm_head.weight?", NULL,
	};
	static const char *const one[] = {
		"model.embed_tokens.weight", "model.layers.%d.q_proj.weight", "model.layers.%d.k_proj.weight",
		"model.layers.%d.norm.weight!", "lm_head.weight?", NULL,
	};
	struct bd_rule rule = { false, "lm_head.weight" };
	struct place p = pair(plain, hollow);

	(void)state;
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "is empty (shape [0]) in the fine-tune", p.fine, "[80, 64]", "ZeRO-3", "zero_to_fp32.py",
	     "stage3_gather_16bit_weights_on_model_save");
	p = pair(plain, one);
	refused(&p, (struct bd_import_options){ .force = true });
	SAYS(err.text, "tensor 'lm_head.weight' is empty");
	bd_delta_close(imported(&p, (struct bd_import_options){ .rules = &rule, .rule_count = 1 }));
	p = pair(one, plain);
	refused(&p, (struct bd_import_options){ 0 });
	SAYS(err.text, "tensor 'lm_head.weight' is empty (shape [0]) in the base");
}

/* ---- Options that concern nothing ---- */

static void idle_options(void **state)
{
	struct place p = pair(plain, plain);
	struct bd_rule rules[] = { { true, "*" }, { true, "nomatch*" }, { false, "model.layers.7.*" } };
	struct bd_rename renames[] = { { "bert.", "" }, { "model.", "bert." }, { "", "x." } };

	(void)state;
	bd_delta_close(imported(&p, (struct bd_import_options){ .rules = rules, .rule_count = 1 }));
	refused(&p, (struct bd_import_options){ .rules = rules, .rule_count = 2 });
	SAYS(err.text, "--sign 'nomatch*' matches no tensor", p.fine, "'model.embed_tokens.weight'");
	refused(&p, (struct bd_import_options){ .rules = rules + 2, .rule_count = 1 });
	SAYS(err.text, "--raw 'model.layers.7.*' matches no tensor");
	refused(&p, (struct bd_import_options){ .renames = renames, .rename_count = 1 });
	SAYS(err.text, "--rename 'bert.=' renames no tensor", "'model.embed_tokens.weight'");
	refused(&p, (struct bd_import_options){ .renames = renames + 1, .rename_count = 1 });
	SAYS(err.text, "--rename 'model.=bert.' finds no tensor in the base", "'bert.embed_tokens.weight'");
	refused(&p, (struct bd_import_options){ .renames = renames + 2, .rename_count = 1 });
	/* A name that would be too long. */
	renames[2].to = td_format("%01020d", 0);
	refused(&p, (struct bd_import_options){ .renames = renames + 2, .rename_count = 1 });
}

/* ---- What is there already, and what is no original ---- */

static void replacing(void **state)
{
	struct place p = pair(plain, plain);
	struct bd_import_options o = { .base = p.base, .fine = p.fine, .out = p.out, .scale = BD_SCALE_RANK1,
				       .attenuation = BD_ATTENUATION, .watch.note = take_note };
	struct bd_delta *d = imported(&p, (struct bd_import_options){ .no_clobber = true });
	float *scales = malloc(d->scales->size);
	struct bd_delta *old;

	(void)state;
	assert_int_equal(bd_import(&o, &err), 0);
	assert_null(strstr(note, "distilled"));
	assert_int_equal(bd_file_read(d->file, scales, d->scales->size, d->scales->offset, &err), 0);
	assert_int_equal(bd_refine(d, scales, p.out, NULL, NULL, &err), 0);
	free(scales);
	bd_delta_close(d);
	o.no_clobber = true;
	assert_int_equal(bd_import(&o, &err), -EEXIST);
	SAYS(err.text, p.out, "is there already");
	assert_int_equal(bd_delta_open(&old, p.out, &err), 0);
	assert_true(old->distilled);
	bd_delta_close(old);
	o.no_clobber = false;
	o.watch.note = take_first_note;
	first_note[0] = '\0';
	assert_int_equal(bd_import(&o, &err), 0);
	SAYS(first_note, p.out, "distilled", "--no-clobber");
	/* A link that leads nowhere is there, too. */
	unlink(p.out);
	assert_int_equal(symlink("nowhere", p.out), 0);
	o.no_clobber = true;
	assert_int_equal(bd_import(&o, &err), -EEXIST);
}

static void mounted(void **state)
{
	struct place p = pair(plain, plain);
	struct bd_import_options o = { .base = p.base, .fine = p.fine, .out = p.out, .scale = BD_SCALE_RANK1,
				       .attenuation = BD_ATTENUATION, .watch.note = take_first_note };

	(void)state;
	if (setxattr(p.fine, "user.bitdelta.delta", "/srv/\033x.bdelta", 15, 0) < 0)
		skip();
	setxattr(p.fine, "user.bitdelta.encoding", "same,raw", 8, 0);
	first_note[0] = '\0';
	assert_int_equal(bd_import(&o, &err), 0);
	assert_null(strstr(first_note, "what bitdelta makes"));
	setxattr(p.fine, "user.bitdelta.encoding", "same,sign", 9, 0);
	first_note[0] = '\0';
	assert_int_equal(bd_import(&o, &err), 0);
	SAYS(first_note, p.fine, "what bitdelta makes of /srv/?x.bdelta", "copy that file");
	removexattr(p.fine, "user.bitdelta.delta");
	setxattr(p.base, "user.bitdelta.delta", "/srv/b.bdelta", 13, 0);
	first_note[0] = '\0';
	assert_int_equal(bd_import(&o, &err), 0);
	SAYS(first_note, "the base", p.base, "of /srv/b.bdelta");
}

/* ---- Numbers that are none ---- */

static void special_numbers(void **state)
{
	static const struct {
		enum bd_dtype dtype;
		uint64_t largest, infinity, nan, minus;
	} types[] = {
		{ BD_BF16, 0x7F7F, 0x7F80, 0x7FC0, 0xFF80 }, { BD_F16, 0x7BFF, 0x7C00, 0x7E00, 0xFC00 },
		{ BD_F32, 0x7F7FFFFF, 0x7F800000, 0xFFC00001, 0xFF800000 },
		{ BD_C64, 0x7F7FFFFF, 0x7F800000, 0xFFC00001, 0xFF800000 },
		{ BD_F64, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000, 0xFFF0000000000000 },
		{ BD_F8_E4M3, 0x7E, 0x7F, 0xFF, 0x7F }, { BD_F8_E5M2, 0x7B, 0x7C, 0x7E, 0xFC },
	};
	char data[8 * 10000 + 1];

	(void)state;
	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
		for (size_t n = 1; n < 5000; n = n * 3 + 1)
			for (size_t shift = 0; shift < 2; shift++) {
				enum bd_dtype t = types[i].dtype;
				size_t unit = t == BD_C64 ? 4 : bd_dtype_bits(t) / 8;
				char *p = data + shift;

				for (size_t k = 0; k < n; k++)
					memcpy(p + k * unit, &types[i].largest, unit);
				assert_int_equal(bd_dtype_count_special(t, p, n * unit), 0);
				memcpy(p + (n - 1) * unit, &types[i].nan, unit);
				memcpy(p + n / 2 * unit, &types[i].minus, unit);
				memcpy(p, &types[i].infinity, unit);
				assert_int_equal(bd_dtype_count_special(t, p, n * unit), n == 1 ? 1 : 3);
			}
	memset(data, 0xFF, sizeof(data));
	assert_int_equal(bd_dtype_count_special(BD_I32, data, 4000), 0);
	assert_int_equal(bd_dtype_count_special(BD_U8, data, 4000), 0);
	assert_int_equal(bd_dtype_count_special(BD_BF16, data, 0), 0);
}

/* Counted wherever they are: in signs, exact and equal tensors, in grown tables; told once, kept as they are. */
static void special_fine_tune(void **state)
{
	static const struct {
		const char *name;
		unsigned special; /* numbers; 0: none */
	} cases[] = {
		{ "model.layers.0.q_proj.weight", 3 }, { "model.layers.0.norm.weight", 1 }, { "lm_head.weight", 2 },
		{ "model.embed_tokens.weight", 5 }, { "", 0 },
	};
	struct bd_watch watch = { 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct place p = pair(plain, plain);
		char *path = td_path(p.fine, "model.safetensors"), *data, *kept, *out = td_path(td_dir(), "export");
		struct bd_base *base;
		struct bd_view *v;
		struct bd_delta *d = imported(&p, (struct bd_import_options){ 0 });
		size_t size, at;

		assert_null(strstr(note, "infinite"));
		bd_delta_close(d);
		if (!cases[i].special)
			continue;
		d = imported(&p, (struct bd_import_options){ 0 });
		data = td_read(path, &size);
		at = entry(d, cases[i].name)->tensor->offset;
		for (unsigned k = 0; k < cases[i].special; k++)
			memcpy(data + at + 2 * k, k % 2 ? "\x80\xff" : "\xc0\x7f", 2);
		bd_delta_close(d);
		td_write(p.fine, "model.safetensors", data, size);
		d = imported(&p, (struct bd_import_options){ 0 });
		assert_int_equal(notes, 2);
		assert_int_equal(entry(d, cases[i].name)->encoding, BD_RAW);
		assert_int_equal(bd_base_open(&base, p.base, &err), 0);
		if (bd_view_open(&v, d, base, &err) || bd_export(v, out, &watch, &err))
			fail_msg("%s", err.text);
		kept = td_read(td_path(out, "model.safetensors"), &size);
		assert_memory_equal(kept + at, data + at, 2 * cases[i].special);
		bd_view_close(v);
		bd_base_close(base);
		/* The same in the base: an equal tensor. */
		td_write(p.base, "model.safetensors", data, size);
		d = imported(&p, (struct bd_import_options){ 0 });
		SAYS(note, td_format("%s has numbers that are infinite or not a number: %u in 1", p.fine, cases[i].special),
		     td_format("first in '%s'", cases[i].name));
		assert_int_equal(entry(d, cases[i].name)->encoding, BD_SAME);
		bd_delta_close(d);
	}
}

/* Does the manifest of an import claim the feature? */
static bool claims(const struct bd_delta *d, const char *feature)
{
	const struct bd_tensor *t = bd_safetensors_find(d->st, "manifest");
	size_t size;
	char *file = td_read(d->file->path, &size), *end;
	char *text = td_format("%100000s", "");
	uLongf room = 100000;

	assert_int_equal(uncompress((Bytef *)text, &room, (Bytef *)file + t->offset, t->size), Z_OK);
	end = strchr(text, ']');
	assert_non_null(end);
	*end = '\0';
	return strstr(text, feature) != NULL;
}

/* Renamed tensors that are kept whole need nothing of the base. */
static void feature_of_renames(void **state)
{
	static const char *const names[] = { "a.x.weight", "a.y.weight", "a.norm!", NULL };
	static const char *const others[] = { "b.x.weight", "b.y.weight", "b.norm!", NULL };
	static const struct bd_rename rename = { "b.", "a." };
	static const struct bd_rule raw = { false, "*" };
	struct place p = pair(names, others);
	struct bd_import_options o = { .renames = &rename, .rename_count = 1, .rules = &raw, .rule_count = 1 };
	struct bd_delta *d = imported(&p, o);

	(void)state;
	assert_false(claims(d, "base-names"));
	bd_delta_close(d);
	o.rule_count = 0;
	d = imported(&p, o);
	assert_true(claims(d, "base-names"));
	bd_delta_close(d);
}

/* A base with the same tensors in all of its shards: the copies that do not count are nothing to compare with. */
static void base_with_copies(void **state)
{
	static const char *const names[] = { "model.a.weight", "model.b.weight", "lm_head.weight", NULL };
	static const char *const other[] = { "m.a.weight", "m.b.weight", "lm_head.weight", NULL };
	struct place p = pair(names, names);
	struct bd_import_options o = { 0 };
	char *map = "";

	(void)state;
	for (int i = 1; i <= 20; i++)
		assert_int_equal(link(td_path(p.base, "model.safetensors"),
				      td_path(p.base, td_format("model-%d.safetensors", i))), 0);
	unlink(td_path(p.base, "model.safetensors"));
	for (int i = 1; i <= 20; i++)
		map = td_format("%s%s\"x%d\":\"model-%d.safetensors\"", map, i > 1 ? "," : "", i, i);
	td_text(p.base, "model.safetensors.index.json", td_format("{\"weight_map\":{%s}}", map));
	bd_delta_close(imported(&p, o));
	write_model(p.fine, other, 1, true);
	refused(&p, o);
	SAYS(err.text, "--rename 'm.=model.' finds 2 of them");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(prefixes),
		cmocka_unit_test(renamed_file),
		cmocka_unit_test(several_renames),
		cmocka_unit_test(hostile_names),
		cmocka_unit_test(a_part_is_missing),
		cmocka_unit_test(part_is_said),
		cmocka_unit_test(fused),
		cmocka_unit_test(empty_tensors),
		cmocka_unit_test(idle_options),
		cmocka_unit_test(replacing),
		cmocka_unit_test(mounted),
		cmocka_unit_test(special_numbers),
		cmocka_unit_test(special_fine_tune),
		cmocka_unit_test(base_with_copies),
		cmocka_unit_test(feature_of_renames),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
