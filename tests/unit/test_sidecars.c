/* SPDX-License-Identifier: Apache-2.0 */
/* test_sidecars.c: which files of a directory belong to the model, in subdirectories and behind links. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecars.h"
#include "testdata.h"

#define MIB (1 << 20)
#define POINTER "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n"

static struct bd_error err;

/* A directory with a checkpoint of one file. */
static char *model(void)
{
	char *dir = td_dir();

	td_safetensors(dir, "model.safetensors", NULL, 0, NULL);
	return dir;
}

/* DIR/PATH with so many bytes, and its directories. */
static void file(const char *dir, const char *path, off_t size)
{
	const char *slash = strrchr(path, '/');
	char *parent = td_format("%.*s", slash ? (int)(slash - path) : 0, path);

	if (slash && access(td_path(dir, parent), F_OK) < 0)
		td_mkdir(dir, parent);
	if (truncate(td_text(dir, path, ""), size))
		fail_msg("%s", path);
}

static int list(struct bd_sidecars *s, const char *dir, const struct bd_file_rule *rules, size_t count)
{
	struct bd_checkpoint *c;
	int rc;

	memset(&err, 0, sizeof(err));
	if (bd_checkpoint_open(&c, dir, &err))
		fail_msg("%s", err.text);
	rc = bd_sidecars_list(s, c, rules, count, &err);
	bd_checkpoint_close(c);
	return rc;
}

static void check_list(const char *what, char *const *found, size_t count, const char *const *expected)
{
	for (size_t i = 0; i < count || expected[i]; i++)
		if (i >= count || !expected[i] || strcmp(found[i], expected[i]) != 0)
			fail_msg("%s %zu: %s, expected %s", what, i, i < count ? found[i] : "none",
				 expected[i] ? expected[i] : "none");
}

#define LIST(...) ((const char *const[]){ __VA_ARGS__ NULL })

static void expect(const char *dir, const struct bd_file_rule *rules, size_t rule_count,
		   const char *const *paths, const char *const *notes)
{
	struct bd_sidecars s;

	if (list(&s, dir, rules, rule_count))
		fail_msg("%s", err.text);
	check_list("path", s.paths, s.count, paths);
	if (notes)
		check_list("note", s.notes, s.note_count, notes);
	if (s.lost)
		fail_msg("%s", s.lost);
	bd_sidecars_free(&s);
}

static void subdirectories(void **state)
{
	char *dir = model();

	(void)state;
	file(dir, "config.json", 2);
	file(dir, "1_Pooling/config.json", 2);
	file(dir, "2_Dense/model.safetensors", 100);
	file(dir, "2_Dense/pytorch_model.bin", 100);
	file(dir, "3_Dense/pytorch_model.bin", 100); /* its only weights */
	file(dir, "additional_chat_templates/tool_use.jinja", 2);
	file(dir, "a/b/c/d/e", 1);
	file(dir, "a-b", 1);
	file(dir, "runs/.hidden", 1);
	td_mkdir(dir, "empty/nested");
	expect(dir, NULL, 0,
	       LIST("1_Pooling/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin", "a-b",
		    "a/b/c/d/e", "additional_chat_templates/tool_use.jinja", "config.json", "runs/.hidden",),
	       LIST("2_Dense/pytorch_model.bin (100 B): a second copy of the weights; --keep takes it",));
}

/* What loaders open by name is kept; what nobody needs with a model is said once for each reason. */
static void other_files(void **state)
{
	static const char *const kept[] = {
		".gitattributes", "README.md", "adapter_model.bin", "adapter_model.safetensors", "adapters.npz",
		"colbert_linear.pt", "exactly", "gguf", "mm_projector.bin", "modell\xc3\xa9.txt", "name with space",
		"projector.safetensors", "sparse_linear.pt", "tokenizer.model", "trainer_state.json",
		"training_args.bin", "value_head.safetensors", NULL,
	};
	char *dir = model();

	(void)state;
	for (size_t i = 0; kept[i]; i++)
		file(dir, kept[i], strcmp(kept[i], "exactly") == 0 ? 64 * MIB : 10);
	file(dir, "model-00001-of-00002.safetensors", 1000);
	file(dir, "model.safetensors.index.json", 10);
	file(dir, "pytorch_model.bin", 3000);
	file(dir, "pytorch_model.bin.index.json", 10);
	file(dir, "consolidated.00.pth", 100);
	file(dir, "original/consolidated.00.pth", 100);
	file(dir, "original/params.json", 100);
	file(dir, "onnx/model.onnx", 100);
	file(dir, "x.gguf", 100);
	file(dir, "optimizer.pt", 70 * MIB);
	file(dir, "rng_state_0.pth", 10);
	file(dir, "checkpoint-500/model.safetensors", 100);
	file(dir, "checkpoint-500/config.json", 100);
	file(dir, "larger", 64 * MIB + 1);
	file(dir, "sub/larger", 70 * MIB);
	file(dir, ".git/objects/00", 1000);
	file(dir, ".git/config", 1000);
	file(dir, ".GIT", 0); /* where case does not matter, it would be the same */
	file(dir, "sub/.cache/huggingface/x", 1000);
	file(dir, ".model.safetensors.lock", 0);
	file(dir, "vocab.json.incomplete", 1000);
	file(dir, "m.bdelta", 1000);
	file(dir, "bad\033[31m", 10);
	file(dir, "bad\xff/x", 10);
	assert_int_equal(mkfifo(td_path(dir, "fifo"), 0600), 0);
	expect(dir, NULL, 0, kept,
	       LIST(".GIT and 5 more (5.00 kB): no part of a model",
		    "bad?[31m and 1 more (20 B): not a valid name (UTF-8 without control characters, not too long or "
		    "too deep)",
		    "fifo (0 B): not a regular file",
		    "consolidated.00.pth and 7 more (4.52 kB): a second copy of the weights; --keep takes it",
		    "checkpoint-500/ and 2 more (73.4 MB): state of the training; --keep takes it",
		    "larger and 1 more (141 MB): larger than 64 MiB; --keep takes it",));
}

static void rules(void **state)
{
	char *dir = model();
	struct bd_sidecars s;

	(void)state;
	file(dir, "config.json", 2);
	file(dir, "original/params.json", 2);
	file(dir, "original/consolidated.00.pth", 70 * MIB);
	file(dir, "runs/a/events", 2);
	file(dir, "runs/b/events", 2);
	file(dir, ".git/config", 2);
	expect(dir, (const struct bd_file_rule[]){ { true, "original" } }, 1,
	       LIST("config.json", "original/consolidated.00.pth", "original/params.json", "runs/a/events",
		    "runs/b/events",), NULL);
	/* The last match decides, and what a user leaves out is no news. */
	expect(dir, (const struct bd_file_rule[]){
		{ true, "original/" }, { false, "*.pth" }, { false, "runs" }, { true, "runs/b/*" } }, 4,
	       LIST("config.json", "original/params.json", "runs/b/events",),
	       LIST(".git/ (2 B): no part of a model",));
	expect(dir, (const struct bd_file_rule[]){ { true, "original/p*" } }, 1,
	       LIST("config.json", "original/params.json", "runs/a/events", "runs/b/events",), NULL);
	expect(dir, (const struct bd_file_rule[]){ { false, "*" } }, 1, LIST(), NULL);
	/* No rule takes what is no part of a model, or matches nothing. */
	expect(dir, (const struct bd_file_rule[]){ { true, "*" } }, 1,
	       LIST("config.json", "original/consolidated.00.pth", "original/params.json", "runs/a/events",
		    "runs/b/events",), NULL);
	for (int keep = 0; keep < 2; keep++) {
		assert_int_equal(list(&s, dir, (const struct bd_file_rule[]){ { keep, "run" } }, 1), -EINVAL);
		assert_non_null(strstr(err.text, keep ? "--keep 'run' matches no file" : "--omit 'run' matches no"));
	}
	assert_int_equal(list(&s, dir, (const struct bd_file_rule[]){ { true, ".git/config" } }, 1), -EINVAL);
}

static void links(void **state)
{
	char *dir = model(), *elsewhere = td_dir();
	const struct bd_file_rule taken = { true, "shared" };

	(void)state;
	file(elsewhere, "x/secret", 2);
	file(elsewhere, "one", 2);
	file(dir, "1_Pooling/config.json", 2);
	file(dir, ".git/config", 2);
	td_link(dir, "2_Pooling", "1_Pooling");
	td_link(dir, "1_Pooling/one", td_path(elsewhere, "one"));
	td_link(dir, "self", ".");
	td_link(dir, "1_Pooling/up", "..");
	td_link(dir, "1_Pooling/again", "../2_Pooling/up/1_Pooling");
	td_link(dir, "shared", elsewhere);
	td_link(dir, "parent", "../..");
	td_link(dir, "root", "/");
	td_link(dir, "objects", ".git");
	expect(dir, NULL, 0, LIST("1_Pooling/config.json", "1_Pooling/one", "2_Pooling/config.json", "2_Pooling/one",),
	       LIST(".git/ and 1 more (2 B): no part of a model",
		    "1_Pooling/again and 4 more (0 B): link to a directory that it is in",
		    "parent and 2 more (0 B): link to a directory elsewhere; --keep takes it",));
	expect(dir, &taken, 1, LIST("1_Pooling/config.json", "1_Pooling/one", "2_Pooling/config.json", "2_Pooling/one",
				    "shared/one", "shared/x/secret",), NULL);
}

/* Many links to many directories are endless, though none holds itself. */
static void endless(void **state)
{
	char *dir = model();
	struct bd_sidecars s;

	(void)state;
	for (int i = 0; i < 12; i++) {
		td_mkdir(dir, td_format("d%d", i));
		for (int k = 0; k < 12; k++)
			if (i != k)
				td_link(dir, td_format("d%d/%d", i, k), td_format("../d%d", k));
	}
	assert_int_equal(list(&s, dir, NULL, 0), -EINVAL);
	assert_non_null(strstr(err.text, "more than 100000 files"));
}

static void loses(const char *dir, const char *path, const char *says)
{
	struct bd_sidecars s;
	const struct bd_file_rule rule = { false, path };

	assert_int_equal(list(&s, dir, NULL, 0), 0);
	if (!s.lost || !strstr(s.lost, td_path(dir, path)) || !strstr(s.lost, says))
		fail_msg("%s: %s", says, s.lost);
	bd_sidecars_free(&s);
	expect(dir, &rule, 1, LIST(), NULL);
}

/* What belongs to the model and cannot be had. */
static void lost(void **state)
{
	char *dir = model();

	(void)state;
	td_link(dir, "tokenizer.json", "../../blobs/0123");
	loses(dir, "tokenizer.json", "is a link to a file that is not there");
	unlink(td_path(dir, "tokenizer.json"));
	td_link(dir, "tokenizer.json", "tokenizer.json");
	loses(dir, "tokenizer.json", "is a link to a file that is not there");
	unlink(td_path(dir, "tokenizer.json"));
	td_text(dir, "tokenizer.json", POINTER);
	loses(dir, "tokenizer.json", "is a Git LFS pointer and not the file itself; run `git lfs pull`");
	unlink(td_path(dir, "tokenizer.json"));
	td_mkdir(dir, "1_Pooling");
	td_text(dir, "1_Pooling/config.json", POINTER);
	loses(dir, "1_Pooling", "is a Git LFS pointer");
	unlink(td_path(dir, "1_Pooling/config.json"));
	/* Not what nobody would take. */
	td_text(dir, "pytorch_model.bin", POINTER);
	td_link(dir, "consolidated.safetensors", "nowhere");
	expect(dir, NULL, 0, LIST(), NULL);
}

/* Directories that others may not read. */
static void closed(void **state)
{
	const struct bd_file_rule omit = { false, "1_Pooling" }, rules[] = { omit, { true, "wandb" } };
	struct bd_sidecars s;
	char *dir = model();
	uid_t user = geteuid();

	(void)state;
	assert_int_equal(chmod(dir, 0755), 0);
	assert_int_equal(chmod(td_mkdir(dir, "1_Pooling"), 0), 0);
	assert_int_equal(chmod(td_mkdir(dir, "wandb"), 0), 0);
	if (user == 0 && seteuid(65534) < 0)
		skip();
	if (faccessat(AT_FDCWD, td_path(dir, "model.safetensors"), R_OK, AT_EACCESS) == 0) {
		assert_int_equal(list(&s, dir, NULL, 0), 0);
		assert_string_equal(s.lost, td_format("%s/1_Pooling: may not be read; leave the directory out with "
						      "--omit, or read it as its owner", dir));
		bd_sidecars_free(&s);
		expect(dir, &omit, 1, LIST(), LIST("wandb/ (0 B): state of the training; --keep takes it",));
		assert_int_equal(list(&s, dir, rules, 2), 0);
		assert_non_null(strstr(s.lost, "wandb: may not be read"));
		bd_sidecars_free(&s);
	}
	assert_int_equal(seteuid(user), 0);
}

/* An index belongs to the checkpoint whose shards it lists. */
static void index_file(void **state)
{
	char *dir = td_dir();

	(void)state;
	td_safetensors(dir, "model-00001-of-00001.safetensors", NULL, 0, NULL);
	td_safetensors(dir, "model-00001-of-00002.safetensors", NULL, 0, NULL);
	td_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"x\":\"model-00001-of-00001.safetensors\"}}");
	expect(dir, NULL, 0, LIST("model.safetensors.index.json",),
	       LIST("model-00001-of-00002.safetensors (16 B): weights that model.safetensors.index.json does not list; "
		    "--keep takes them",));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(subdirectories),
		cmocka_unit_test(other_files),
		cmocka_unit_test(rules),
		cmocka_unit_test(links),
		cmocka_unit_test(endless),
		cmocka_unit_test(lost),
		cmocka_unit_test(closed),
		cmocka_unit_test(index_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
