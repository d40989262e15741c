/* SPDX-License-Identifier: Apache-2.0 */
/* test_mountstats.c: reading what a mount says of itself, from daemons that may be anybody's. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../../mount-tools/mountstats.h"
#include "testdata.h"

static struct bd_error err;

#define MODEL "{\"name\":\"kjv\",\"delta\":\"/d/kjv.bdelta\",\"base\":\"b\",\"virtual_bytes\":2000,"    \
	"\"stored_bytes\":700,\"files\":3,\"distilled\":true,\"open_files\":1,\"opens\":2,\"reads\":3,"   \
	"\"bytes\":18446744073709551615,\"base_bytes\":5,\"delta_bytes\":6,\"errors\":7}"
#define BASE "{\"name\":\"b\",\"path\":\"/b\",\"digest\":\"0123\",\"tensors\":9,\"bytes\":1000,"      \
	"\"models\":1,\"problem\":null}"
#define HEAD "{\"version\":\"0.1.0\",\"pid\":42,\"mounted_at\":1700000000,\"uptime_s\":12.5,\n"          \
	"\"source\":\"b\",\"mountpoint\":\"/m\",\"layout\":\"dirs\",\"threads\":4,\"later\":[{}],"
#define IN_USE "\"in_use\":{\"readahead_kib\":1024,\"passthrough\":false,\"mapped\":true,\"cpu\":\"avx2\"," \
	"\"sandbox\":\"none\",\"user\":\"root\",\"watch\":\"inotify\"},"
#define REST "\"totals\":{\"virtual_bytes\":2000,\"stored_bytes\":700,\"opens\":1,\"reads\":2,\"bytes\":3," \
	"\"base_bytes\":4,\"delta_bytes\":5,\"errors\":6,\"reloads\":7},"                            \
	"\"latency_us\":{\"count\":8,\"p50\":1.5,\"p90\":2,\"p99\":3e1,\"max\":4}}"
#define DOCUMENT(bases, models, rejected)                                                             \
	HEAD IN_USE "\"bases\":[" bases "],\"models\":[" models "],\"rejected\":[" rejected "]," REST
#define WITH_NOTES HEAD IN_USE "\"bases\":[],\"models\":[],\"rejected\":[],\"notes\":[{\"text\":\"a\"},{\"text\":\"b\"}]," REST

static const char good[] = DOCUMENT(BASE, MODEL "," MODEL,
				    "{\"delta\":\"/d/x.bdelta\",\"reason\":\"\\u001b[31m is\\nbad\"}");

static int parse(struct mountstats **s, const char *text)
{
	memset(&err, 0, sizeof(err));
	return mountstats_parse(s, text, strlen(text), "stats", &err);
}

static void reads_all(void **state)
{
	struct mountstats *s;

	(void)state;
	assert_int_equal(parse(&s, good), 0);
	assert_string_equal(s->version, "0.1.0");
	assert_string_equal(s->mountpoint, "/m");
	assert_int_equal(s->pid, 42);
	assert_true(s->uptime == 12.5 && s->mounted_at == 1700000000);
	assert_int_equal(s->threads, 4);
	assert_int_equal(s->in_use.readahead, 1024);
	assert_true(s->in_use.mapped && !s->in_use.passthrough);
	assert_string_equal(s->in_use.watch, "inotify");
	assert_int_equal(s->base_count, 1);
	assert_null(s->bases[0].problem);
	assert_int_equal(s->bases[0].bytes, 1000);
	assert_int_equal(s->model_count, 2);
	assert_string_equal(s->models[1].delta, "/d/kjv.bdelta");
	assert_true(s->models[1].bytes == UINT64_MAX && s->models[1].distilled);
	assert_int_equal(s->models[0].errors, 7);
	assert_int_equal(s->rejected_count, 1);
	assert_string_equal(s->rejected[0].reason, "\x1b[31m is\nbad");
	assert_int_equal(s->note_count, 0);
	assert_int_equal(s->totals.reloads, 7);
	assert_true(s->latency.p99 == 30);
	assert_null(strchr(s->text, '\n')); /* one line, the same otherwise */
	assert_int_equal(strlen(s->text), strlen(good));
	mountstats_free(s);

	assert_int_equal(parse(&s, DOCUMENT("", "", "")), 0);
	assert_int_equal(s->model_count, 0);
	mountstats_free(s);
	mountstats_free(NULL);
	assert_int_equal(parse(&s, WITH_NOTES), 0);
	assert_int_equal(s->note_count, 2);
	assert_string_equal(s->notes[1].text, "b");
	mountstats_free(s);
}

static void refuses(void **state)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{ "", "stats: at byte 0" },
		{ "null", "stats" },
		{ "[]", "stats" },
		{ "{}", "'version' is missing" },
		{ HEAD IN_USE REST, "'bases' is missing" },
		{ DOCUMENT("{}", "", ""), "'name' is missing" },
		{ DOCUMENT("", "1", ""), "stats" },
		{ DOCUMENT("", MODEL "," , ""), "stats" },
		{ DOCUMENT("", "", "{\"delta\":1,\"reason\":\"x\"}"), "stats" },
		{ DOCUMENT("", "", "{\"delta\":null,\"reason\":\"x\"}"), "stats" },
		{ DOCUMENT("", "", "{\"delta\":\"a\",\"delta\":\"b\",\"reason\":\"x\"}"), "second time" },
		{ DOCUMENT("", "", "{\"delta\":\"a\\u0000\",\"reason\":\"x\"}"), "stats" },
		{ DOCUMENT("", "", "{\"delta\":\"\xff\",\"reason\":\"x\"}"), "stats" },
		{ DOCUMENT("", "", "") "x", "stats" },
		{ HEAD IN_USE IN_USE "\"bases\":[],\"models\":[],\"rejected\":[]," REST, "second time" },
		{ "{\"version\":\"1\",\"pid\":-1", "stats" },
		{ "{\"uptime_s\":1e999}", "too large" },
		{ "{\"pid\":1.5}", "stats" },
		{ "{\"pid\":18446744073709551616}", "stats" },
		{ "{\"in_use\":{\"passthrough\":0}}", "stats" },
	};
	struct mountstats *s;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		int rc = parse(&s, bad[i].text);

		if (rc != -EINVAL || s || !strstr(err.text, bad[i].why))
			fail_msg("%s: %d: %s", bad[i].text, rc, err.text);
	}
}

/* Every beginning of the document, and the document with every byte changed in some ways: never
 * more than an error. */
static void survives_damage(void **state)
{
	static const char bytes[] = { '"', '{', '[', ']', '\\', '0', ',', '\n', '\xc3' };
	struct mountstats *s;

	(void)state;
	for (size_t n = 0; n < strlen(good); n++) {
		char *cut = malloc(n ? n : 1); /* exactly, for the sanitizer */

		memcpy(cut, good, n);
		assert_int_equal(mountstats_parse(&s, cut, n, "stats", &err), -EINVAL);
		free(cut);
		for (size_t i = 0; i < sizeof(bytes); i++) {
			char *text = strdup(good);

			text[n] = bytes[i];
			if (mountstats_parse(&s, text, strlen(text), "stats", &err) == 0)
				mountstats_free(s);
			free(text);
		}
	}
}

static char *fake(const char *name, const char *text)
{
	char *dir = td_mkdir(td_dir(), name), *hidden = td_mkdir(dir, ".bitdelta");

	if (text)
		td_text(hidden, "stats.json", text);
	return dir;
}

static void reads_a_directory(void **state)
{
	char *dir = fake("m", good);
	struct mountstats *s;
	struct stat st;

	(void)state;
	assert_int_equal(mountstats_read(&s, dir, 0, 10, &err), 0);
	assert_int_equal(s->model_count, 2);
	mountstats_free(s);
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(mountstats_read(&s, dir, st.st_dev, 10, &err), 0);
	mountstats_free(s);
	assert_int_equal(mountstats_read(&s, dir, makedev(0, 12345), 10, &err), -ESTALE);
	assert_int_equal(mountstats_read(&s, fake("none", NULL), 0, 10, &err), -ENOENT);
	assert_int_equal(mountstats_read(&s, td_dir(), 0, 10, &err), -ENOENT);
	assert_int_equal(mountstats_read(&s, "/nowhere", 0, 10, &err), -ENOENT);
	assert_int_equal(mountstats_read(&s, fake("cut", "{\"version\""), 0, 10, &err), -EINVAL);
	assert_non_null(strstr(err.text, "/cut/.bitdelta/stats.json: at byte"));
	assert_null(s);
}

/* A daemon of somebody else may show anything there. */
static void follows_nothing(void **state)
{
	char *real = fake("real", good), *dir = td_mkdir(td_dir(), "links"), *huge;
	char *hidden = td_mkdir(dir, ".bitdelta");
	struct mountstats *s;
	int fd;

	(void)state;
	td_link(hidden, "stats.json", td_format("%s/.bitdelta/stats.json", real));
	assert_int_equal(mountstats_read(&s, dir, 0, 10, &err), -ELOOP);
	dir = td_dir();
	td_link(dir, ".bitdelta", td_path(real, ".bitdelta"));
	assert_int_equal(mountstats_read(&s, dir, 0, 10, &err), -ENOTDIR);
	dir = td_dir();
	assert_int_equal(mkfifo(td_path(td_mkdir(dir, ".bitdelta"), "stats.json"), 0600), 0);
	assert_int_equal(mountstats_read(&s, dir, 0, 10, &err), -EINVAL);
	huge = fake("huge", "");
	fd = open(td_path(huge, ".bitdelta/stats.json"), O_WRONLY);
	assert_int_equal(ftruncate(fd, MOUNTSTATS_MAX + 1), 0);
	close(fd);
	assert_int_equal(mountstats_read(&s, huge, 0, 60, &err), -EFBIG);
}

static void resolves_paths(void **state)
{
	char *dir = td_dir(), *link = td_link(td_dir(), "link", dir), *found;

	(void)state;
	assert_int_equal(mountstats_realpath(&found, link, 10), 0);
	assert_string_equal(found, dir);
	free(found);
	assert_int_equal(mountstats_realpath(&found, "/nowhere/at/all", 10), -ENOENT);
	assert_null(found);
	assert_int_equal(mountstats_realpath(&found, link, 0), -ETIMEDOUT); /* no time at all */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_all),
		cmocka_unit_test(refuses),
		cmocka_unit_test(survives_damage),
		cmocka_unit_test(reads_a_directory),
		cmocka_unit_test(follows_nothing),
		cmocka_unit_test(resolves_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
