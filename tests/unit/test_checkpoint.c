/* SPDX-License-Identifier: Apache-2.0 */
/* test_checkpoint.c: model directories, Hugging Face cache entries, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "buffer.h"
#include "checkpoint.h"
#include "testdata.h"

#define INDEX "model.safetensors.index.json"

static struct bd_error err;

static struct bd_checkpoint *opened(const char *path)
{
	struct bd_checkpoint *c;

	if (bd_checkpoint_open(&c, path, &err))
		fail_msg("%s", err.text);
	return c;
}

/* PATH must be refused with this error, in these words. */
static void refused(const char *path, int code, const char *says)
{
	struct bd_checkpoint *c = (struct bd_checkpoint *)1;

	memset(&err, 0, sizeof(err));
	if (bd_checkpoint_open(&c, path, &err) != code || !strstr(err.text, says))
		fail_msg("expected \"%s\", message is (%d): %s", says, err.code, err.text);
	assert_null(c);
	assert_int_equal(err.code, code);
}

/* A shard with BF16 matrices of 2 x 2 with these names (NULL ends). */
static char *shard(const char *dir, const char *name, const char *const *names)
{
	struct td_tensor t[8];
	size_t n = 0;

	for (; names[n]; n++)
		t[n] = (struct td_tensor){
			.name = names[n], .dtype = BD_BF16, .dims = 2, .shape = { 2, 2 },
		};
	return td_safetensors(dir, name, t, n, "{\"format\":\"pt\"}");
}
#define SHARD(dir, name, ...) shard(dir, name, (const char *const[]){ __VA_ARGS__, NULL })

static void check_list(char *const *list, size_t count, const char *const *expected)
{
	for (size_t i = 0; i < count; i++) {
		assert_non_null(expected[i]);
		assert_string_equal(list[i], expected[i]);
	}
	assert_null(expected[count]);
}
#define LIST(list, count, ...) check_list(list, count, (const char *const[]){ __VA_ARGS__ NULL })

static void single_file(void **state)
{
	char *dir = td_mkdir(td_dir(), "my-model");
	const struct bd_shard *where;
	struct bd_checkpoint *c;

	(void)state;
	SHARD(dir, "model.safetensors", "a", "b");
	c = opened(td_path(dir, "../my-model/"));
	assert_string_equal(c->path, dir);
	assert_string_equal(c->label, "my-model");
	assert_null(c->revision);
	assert_int_equal(c->shard_count, 1);
	assert_string_equal(c->shards[0].name, "model.safetensors");
	assert_int_equal(c->tensor_count, 2);
	assert_int_equal(c->tensor_bytes, 16);
	assert_ptr_equal(bd_checkpoint_find(c, "b", &where), &c->shards[0].st->tensors[1]);
	assert_ptr_equal(where, &c->shards[0]);
	assert_non_null(bd_checkpoint_find(c, "a", NULL));
	assert_null(bd_checkpoint_find(c, "c", &where));
	bd_checkpoint_close(c);
	bd_checkpoint_close(NULL);

	/* A checkpoint without tensors is one, too. */
	dir = td_dir();
	td_safetensors(dir, "model.safetensors", NULL, 0, NULL);
	c = opened(dir);
	assert_int_equal(c->tensor_count, 0);
	assert_null(bd_checkpoint_find(c, "a", NULL));
	bd_checkpoint_close(c);
}

/* Two shards; the index as given. */
static char *sharded(const char *index)
{
	char *dir = td_dir();

	SHARD(dir, "m-1.safetensors", "a", "b");
	SHARD(dir, "m-2.safetensors", "c", "d", "e");
	td_text(dir, "config.json", "{}");
	td_text(dir, INDEX, index);
	return dir;
}

#define MAP(map) "{\"metadata\":{\"total_size\":40},\"weight_map\":" map "}"
#define GOOD_MAP                                                                                 \
	"{\"e\":\"m-2.safetensors\",\"c\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\","        \
	"\"d\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}"

static void shards(void **state)
{
	char *dir = sharded(MAP(GOOD_MAP));
	const struct bd_shard *where;
	struct bd_checkpoint *c;

	(void)state;
	c = opened(dir);
	assert_int_equal(c->shard_count, 2);
	assert_string_equal(c->shards[0].name, "m-1.safetensors");
	assert_string_equal(c->shards[1].name, "m-2.safetensors");
	assert_int_equal(c->shards[1].first, 2);
	assert_int_equal(c->tensor_count, 5);
	assert_int_equal(c->tensor_bytes, 40);
	for (char name[2] = "a"; name[0] <= 'e'; name[0]++) {
		const struct bd_tensor *t = bd_checkpoint_find(c, name, &where);

		assert_non_null(t);
		assert_string_equal(t->name, name);
		assert_ptr_equal(where, &c->shards[name[0] >= 'c']);
	}
	assert_null(bd_checkpoint_find(c, "f", NULL));
	assert_true(c->indexed);
	bd_checkpoint_close(c);

	/* 0 stands for not known. */
	c = opened(sharded("{\"metadata\":{\"total_size\":0},\"weight_map\":" GOOD_MAP "}"));
	LIST(c->notes, c->note_count, );
	bd_checkpoint_close(c);

	/* Unknown and long members are no matter. */
	c = opened(sharded("{\"x\":{\"weight_map\":1},\"weight_map\":" GOOD_MAP
			   ",\"a rather long name for a member of an index file\":[1,2]}"));
	bd_checkpoint_close(c);
}

/* The binary search for a shard, with many of them. */
static void many_shards(void **state)
{
	struct bd_buffer index = { 0 };
	char *dir = td_dir();
	const struct bd_shard *where;
	struct bd_checkpoint *c;

	(void)state;
	bd_buffer_printf(&index, "{\"weight_map\":{");
	for (int i = 0; i < 40; i++) {
		char *file = td_format("m-%02d.safetensors", i);

		SHARD(dir, file, td_format("%d.a", i), td_format("%d.b", i));
		bd_buffer_printf(&index, "%s\"%d.b\":\"%s\",\"%d.a\":\"%s\"", i ? "," : "", i, file, i,
				 file);
	}
	bd_buffer_printf(&index, "}}");
	td_text(dir, INDEX, index.data);
	bd_buffer_free(&index);
	c = opened(dir);
	for (int i = 0; i < 40; i++) {
		const struct bd_tensor *t = bd_checkpoint_find(c, td_format("%d.b", i), &where);

		assert_ptr_equal(where, &c->shards[i]);
		assert_ptr_equal(t, &where->st->tensors[1]);
	}
	bd_checkpoint_close(c);
}

/* A tensor is found in the shard with this number. */
static void lies_in(const struct bd_checkpoint *c, const char *name, size_t shard)
{
	const struct bd_shard *where;
	const struct bd_tensor *t = bd_checkpoint_find(c, name, &where);

	assert_non_null(t);
	assert_string_equal(t->name, name);
	assert_ptr_equal(where, &c->shards[shard]);
	assert_false(bd_checkpoint_is_copy(c, t));
	for (size_t i = 0; i < c->shard_count; i++) {
		const struct bd_tensor *other = bd_safetensors_find(c->shards[i].st, name);

		assert_true(!other || other == t || bd_checkpoint_is_copy(c, other));
	}
}

/* Indices that differ from the shards, as programs write them: whatever the shards hold counts, and one note
 * says what differs. */
static void loose_indexes(void **state)
{
	char *dir = sharded("{\"metadata\":{\"total_size\":41},\"weight_map\":" GOOD_MAP "}");
	struct bd_checkpoint *c = opened(dir);

	(void)state;
	LIST(c->notes, c->note_count, td_format("%s/" INDEX ": metadata.total_size is 41, but the shards hold 40 "
						"bytes of tensors; the shards count", dir),);
	bd_checkpoint_close(c);

	dir = sharded(MAP("{\"a\":\"m-1.safetensors\",\"d\":\"m-2.safetensors\"}"));
	c = opened(dir);
	assert_int_equal(c->tensor_count, 5);
	lies_in(c, "b", 0);
	lies_in(c, "e", 1);
	LIST(c->notes, c->note_count, td_format("%s/" INDEX ": does not list tensors that its shards hold (3, such "
						"as b); they count like the others", dir),);
	bd_checkpoint_close(c);

	dir = sharded(MAP("{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\","
			  "\"d\":\"m-2.safetensors\",\"e\":\"m-2.safetensors\"}"));
	c = opened(dir);
	lies_in(c, "a", 0);
	LIST(c->notes, c->note_count, td_format("%s/" INDEX ": tensors lie in other shards than it says (1, such as "
						"a); they count where they are", dir),);
	bd_checkpoint_close(c);

	dir = sharded(MAP("{\"a\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\","
			  "\"d\":\"m-2.safetensors\",\"e\":\"m-2.safetensors\",\"x\":\"m-1.safetensors\","
			  "\"y\":\"m-2.safetensors\"}"));
	c = opened(dir);
	assert_null(bd_checkpoint_find(c, "x", NULL));
	LIST(c->notes, c->note_count, td_format("%s/" INDEX ": lists tensors that its shards do not have (2, such "
						"as x); the index is out of date, or a shard is another model's",
						dir),);
	bd_checkpoint_close(c);
}

/* One tensor in several shards: the one counts that the index names. */
static void copies(void **state)
{
	static const char *const maps[] = {
		"\"a\":\"m-1.safetensors\",\"b\":\"m-3.safetensors\"",
		"\"a\":\"m-3.safetensors\",\"b\":\"m-1.safetensors\"",
		"\"a\":\"m-2.safetensors\"",
	};
	static const size_t shard_of_a[] = { 0, 2, 1 };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		char *dir = td_dir();
		struct bd_checkpoint *c;

		SHARD(dir, "m-1.safetensors", "a", "b");
		SHARD(dir, "m-2.safetensors", "z", "a");
		SHARD(dir, "m-3.safetensors", "b", "a", "z");
		td_text(dir, INDEX, td_format("{\"weight_map\":{%s,\"k\":\"m-1.safetensors\","
					      "\"l\":\"m-2.safetensors\",\"m\":\"m-3.safetensors\"}}", maps[i]));
		c = opened(dir);
		assert_int_equal(c->tensor_count, 7);
		lies_in(c, "a", shard_of_a[i]);
		lies_in(c, "b", i == 1 ? 0 : 2);
		lies_in(c, "z", 2); /* not listed: the last */
		assert_int_equal(c->note_count, 3);
		assert_non_null(strstr(c->notes[1], "in more than one shard (4, such as a)"));
		bd_checkpoint_close(c);
	}
}

static void bad_indexes(void **state)
{
	static const struct {
		const char *index, *says;
	} cases[] = {
		{ "", "found the end" },
		{ "[]", "expected an object" },
		{ "{}", "no weight_map" },
		{ MAP("{}"), "no weight_map, or an empty one" },
		{ MAP("[]"), "expected an object" },
		{ MAP(GOOD_MAP) "x", "follows the end" },
		{ "{\"weight_map\":" GOOD_MAP ",\"weight_map\":" GOOD_MAP "}", "second time" },
		{ MAP("{\"a\":\"m-1.safetensors\",\"a\":\"m-1.safetensors\"}"), "second time" },
		{ MAP("{\"a\":\"m-1.safetensors\",\"\\u0061\":\"m-1.safetensors\"}"), "second time" },
		{ MAP("{\"a\":1}"), "expected a string" },
		{ MAP("{\"a\":null}"), "expected a string" },
		{ MAP("{\"a\":\"\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\".safetensors\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"m-1.bin\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"../m-1.safetensors\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"/etc/m-1.safetensors\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"x/m-1.safetensors\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"m\\n.safetensors\"}"), "no file name of a shard" },
		{ MAP("{\"a\":\"m-1.safetensors\\u0000\"}"), "U+0000" },
		{ MAP("{\"\":\"m-1.safetensors\"}"), "tensor name that is empty" },
		{ MAP("{\"a\\u0007\":\"m-1.safetensors\"}"), "control characters" },
		{ MAP("{\"a\\u0000\":\"m-1.safetensors\"}"), "U+0000" },
		{ MAP("{\"a\":\"m-3.safetensors\"}"), "m-3.safetensors: is missing, although" },
	};
	char *dir, *longest = td_format("%0300d", 0);

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refused(sharded(cases[i].index), -EINVAL, cases[i].says);
	refused(sharded(td_format(MAP("{\"a\":\"%s.safetensors\"}"), longest)), -EINVAL,
		"longer than 255 bytes");
	longest = td_format("%01025d", 0);
	refused(sharded(td_format(MAP("{\"%s\":\"m-1.safetensors\"}"), longest)), -EINVAL,
		"longer than 1024 bytes");
	/* An index that is out of date is no incomplete download. */
	dir = sharded("{\"weight_map\":{\"a\":\"m-00001-of-00003.safetensors\"}}");
	refused(dir, -EINVAL, "m-00001-of-00003.safetensors: is missing, although");
	SHARD(dir, "m-00001-of-00002.safetensors", "a");
	refused(dir, -EINVAL, "m-00001-of-00003.safetensors: is not there, although " INDEX " lists it, and "
		"m-00001-of-00002.safetensors, which is there, is not listed; the index is out of date");
	dir = td_dir();
	td_link(dir, INDEX, "nowhere");
	refused(dir, -EINVAL, INDEX ": is a link to nowhere, which is not there");
}

/* Damage in a shard is reported with its path. */
static void bad_shards(void **state)
{
	char *dir = sharded(MAP(GOOD_MAP)), *path = td_path(dir, "m-2.safetensors");
	struct stat st;

	(void)state;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	refused(dir, -EINVAL, path);
	assert_int_equal(unlink(path), 0);
	refused(dir, -EINVAL, "the download is not complete");
	td_link(dir, "m-2.safetensors", "../../blobs/0123");
	refused(dir, -EINVAL, "is a link to ../../blobs/0123, which is not there");
	unlink(path);
	td_mkdir(dir, "m-2.safetensors");
	refused(dir, -EINVAL, "is a directory");
	dir = td_dir();
	td_link(dir, "model.safetensors", "nowhere");
	refused(dir, -EINVAL, "is a link to nowhere");
}

/* Build a cache entry with the given snapshots; the weights are links into blobs. */
static char *cache_entry(const char *name, const char *const *revisions, const char *ref)
{
	char *entry = td_mkdir(td_dir(), name), *blobs = td_mkdir(entry, "blobs");

	SHARD(blobs, "b0", "a");
	td_text(blobs, "b1", "{}");
	td_mkdir(entry, "snapshots");
	td_mkdir(entry, "refs");
	for (; *revisions; revisions++) {
		char *snapshot = td_mkdir(entry, td_format("snapshots/%s", *revisions));

		td_link(snapshot, "model.safetensors", "../../blobs/b0");
		td_link(snapshot, "config.json", "../../blobs/b1");
	}
	if (ref)
		td_text(entry, "refs/main", ref);
	return entry;
}
#define CACHE(name, ref, ...) cache_entry(name, (const char *const[]){ __VA_ARGS__ NULL }, ref)

static void check_cached(const char *path, const char *label, const char *revision)
{
	struct bd_checkpoint *c = opened(path);

	assert_string_equal(c->label, label);
	assert_string_equal(c->revision, revision);
	assert_string_equal(strrchr(c->path, '/') + 1, revision);
	assert_int_equal(c->tensor_count, 1);
	bd_checkpoint_close(c);
}

static void hub_cache(void **state)
{
	char *entry = CACHE("models--org--My-Model", "aaa", "aaa", "bbb",), *dir = td_dir();

	(void)state;
	check_cached(entry, "org/My-Model", "aaa");
	check_cached(td_path(entry, "snapshots/bbb"), "org/My-Model", "bbb");
	check_cached(td_path(entry, "snapshots/bbb/"), "org/My-Model", "bbb");
	check_cached(td_link(dir, "entry", entry), "org/My-Model", "aaa");
	check_cached(td_link(dir, "snapshot", td_path(entry, "snapshots/bbb")), "org/My-Model", "bbb");
	check_cached(CACHE("models--gpt2", "bbb\n", "aaa", "bbb",), "gpt2", "bbb");
	check_cached(CACHE("models--org--a--b", NULL, "ccc",), "org/a--b", "ccc");

	refused(CACHE("models--o--m", NULL, "aaa", "bbb",), -EINVAL, "aaa, bbb");
	refused(CACHE("models--o--m", NULL,), -EINVAL, "without snapshots");
	refused(CACHE("models--o--m", "ccc", "aaa",), -EINVAL, "names snapshot ccc, which is not there");
	refused(CACHE("models--o--m", "../aaa", "aaa",), -EINVAL, "does not name a snapshot");
	refused(CACHE("models--o--m", "", "aaa",), -EINVAL, "does not name a snapshot");
	refused(CACHE("models--o--m", "..", "aaa",), -EINVAL, "does not name a snapshot");
	entry = CACHE("models--o--m", NULL, "aaa",);
	assert_int_equal(unlink(td_path(entry, "blobs/b0")), 0);
	refused(entry, -EINVAL, "model.safetensors: is a link to ../../blobs/b0, which is not there");
	/* The cache itself. */
	refused(td_path(entry, ".."), -EINVAL, "is a Hugging Face cache; give one of its entries");
	entry = CACHE("models--o--m", NULL, "aaa",);
	td_mkdir(entry, "refs/main");
	refused(entry, -EINVAL, "refs/main: is a directory");
	/* Only the names of an entry: ordinary directories. */
	dir = td_mkdir(td_dir(), "x/snapshots/aaa");
	SHARD(dir, "model.safetensors", "a");
	{
		struct bd_checkpoint *c = opened(dir);

		assert_string_equal(c->label, "aaa");
		assert_null(c->revision);
		bd_checkpoint_close(c);
	}
	dir = td_mkdir(td_dir(), "models--x--y");
	SHARD(dir, "model.safetensors", "a");
	{
		struct bd_checkpoint *c = opened(dir);

		assert_string_equal(c->label, "models--x--y");
		assert_null(c->revision);
		bd_checkpoint_close(c);
	}
}

static void no_checkpoint(void **state)
{
	static const struct {
		const char *file, *says;
	} cases[] = {
		{ "pytorch_model.bin", "convert them to safetensors first (e.g. load the model with" },
		{ "pytorch_model-00001-of-00002.bin", "pickled form (pytorch_model-00001-of-00002.bin)" },
		{ "consolidated.00.pth", "pickled form (consolidated.00.pth)" },
		{ "model.ckpt", "pickled form" },
		{ "adapter_config.json", "LoRA adapter (adapter_config.json); merge it into its base" },
		{ "adapter_model.safetensors", "LoRA adapter" },
		{ "adapter_model.bin", "merge_and_unload" },
		{ "llama.gguf", "GGUF weights (llama.gguf), which are not supported" },
		{ "model-00001-of-00002.safetensors", "holds model-00001-of-00002.safetensors, but" },
		{ "tf_model.h5", "has no safetensors weights, only tf_model.h5" },
		{ "model_index.json", "pipeline of several models" },
		{ "config.json", "holds neither model.safetensors nor " INDEX },
	};
	char *dir = td_dir();

	(void)state;
	refused(dir, -EINVAL, "holds neither model.safetensors nor");
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		dir = td_dir();
		td_text(dir, cases[i].file, "");
		refused(dir, -EINVAL, cases[i].says);
		assert_ptr_equal(strstr(err.text, dir), err.text);
	}
	refused(td_path(dir, "none"), -ENOENT, "none: no such directory");
	refused(td_path(dir, "config.json/x"), -ENOENT, "no such directory");
	refused("meta-llama/Llama-2-7b-hf", -ENOENT,
		"~/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf");
	refused("no name/either", -ENOENT, "no name/either: no such directory");
	assert_null(strstr(err.text, "huggingface"));
	refused("./nothing/here", -ENOENT, "./nothing/here: no such directory");
	assert_null(strstr(err.text, "huggingface"));
	refused("", -ENOENT, "no such directory");
	refused(td_text(dir, "x.gguf", ""), -EINVAL, "GGUF files are not supported");
	refused(SHARD(dir, "model.safetensors", "a"), -EINVAL,
		"is a file; give the directory that holds the model");
	refused(td_link(dir, "loop", "loop"), -ELOOP, "cannot be found");
}

static size_t open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* One descriptor per shard while it is open, none afterwards or after a failure. */
static void descriptors(void **state)
{
	char *dir = sharded(MAP(GOOD_MAP));
	size_t before = open_descriptors();
	struct rlimit old, few;
	struct bd_checkpoint *c = opened(dir);

	(void)state;
	assert_int_equal(open_descriptors(), before + 2);
	bd_checkpoint_close(c);
	assert_int_equal(open_descriptors(), before);
	refused(sharded(MAP("{\"a\":\"m-1.safetensors\",\"b\":\"m-3.safetensors\"}")), -EINVAL, "m-3");
	assert_int_equal(open_descriptors(), before);

	/* Every number of descriptors that does not suffice. */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	for (rlim_t n = 0; n < 64; n++) {
		few = (struct rlimit){ .rlim_cur = n, .rlim_max = old.rlim_max };
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
		if (bd_checkpoint_open(&c, dir, &err) == 0) {
			bd_checkpoint_close(c);
			break;
		}
		assert_int_equal(err.code, -EMFILE);
	}
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(open_descriptors(), before);
}

static double seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* 100,000 tensors in two shards: no look-up may be linear. */
static void many_tensors(void **state)
{
	enum { N = 100000 };
	struct td_tensor *t = calloc(N, sizeof(*t));
	struct bd_buffer index = { 0 };
	char *dir = td_dir();
	struct bd_checkpoint *c;
	double start;

	(void)state;
	assert_non_null(t);
	bd_buffer_printf(&index, "{\"weight_map\":{");
	for (int i = 0; i < N; i++) {
		t[i] = (struct td_tensor){
			.name = td_format("model.layers.%d.weight", i), .dtype = BD_F32,
		};
		bd_buffer_printf(&index, "%s\"%s\":\"m-%d.safetensors\"", i ? "," : "", t[i].name,
				 i >= N / 2);
	}
	bd_buffer_printf(&index, "}}");
	td_write(dir, INDEX, index.data, index.size);
	td_safetensors(dir, "m-0.safetensors", t, N / 2, NULL);
	td_safetensors(dir, "m-1.safetensors", t + N / 2, N / 2, NULL);
	start = seconds();
	c = opened(dir);
	for (int i = 0; i < N; i++)
		assert_non_null(bd_checkpoint_find(c, t[i].name, NULL));
	print_message("%d tensors: %.2f s\n", N, seconds() - start);
	assert_true(seconds() - start < 1.0 * td_slowness());
	bd_checkpoint_close(c);
	bd_buffer_free(&index);
	free(t);
}

static void pointer(void **state)
{
	char *dir = td_dir();
	struct bd_checkpoint *c;

	(void)state;
	td_text(dir, INDEX, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n");
	assert_int_equal(bd_checkpoint_open(&c, dir, &err), -EINVAL);
	assert_string_equal(err.text, td_format("%s/" INDEX ": is a Git LFS pointer and not the file itself; run `git lfs "
						"pull` in its repository", dir));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(single_file),
		cmocka_unit_test(shards),
		cmocka_unit_test(many_shards),
		cmocka_unit_test(loose_indexes),
		cmocka_unit_test(copies),
		cmocka_unit_test(pointer),
		cmocka_unit_test(bad_indexes),
		cmocka_unit_test(bad_shards),
		cmocka_unit_test(hub_cache),
		cmocka_unit_test(no_checkpoint),
		cmocka_unit_test(descriptors),
		cmocka_unit_test(many_tensors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
