/* test_distill.c: distilling the shipped pair on the CPU: it comes closer, repeatably, and nothing is lost
 * where it cannot. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "distill.h"
#include "evaluate.h"
#include "generate.h"
#include "import.h"
#include "testdata.h"
#include "verify.h"

#define BASE BD_TESTS_DIR "/data/nano-llama2/base"
#define FINE BD_TESTS_DIR "/data/nano-llama2/kjv"

static char *import_closed(const char *dir)
{
	struct bd_import_options o = {
		.base = BASE, .fine = FINE, .out = td_path(dir, "kjv.bdelta"),
		.scale = BD_SCALE_RANK1, .attenuation = BD_ATTENUATION,
	};
	struct bd_error err = { 0 };

	if (bd_import(&o, &err) < 0)
		fail_msg("%s", err.text);
	return td_path(dir, "kjv.bdelta");
}

/* Few and short steps: a sanitizer makes them ten times as long. */
static struct bdx_distill_options quick(const char *delta, const char *out)
{
	struct bdx_distill_options o;

	bdx_distill_defaults(&o);
	o.base = BASE;
	o.fine = FINE;
	o.delta = delta;
	o.out = out;
	o.device = "cpu";
	o.steps = 12;
	o.batch = 2;
	o.length = 32;
	return o;
}

static struct bdx_distill_report distill(const struct bdx_distill_options *options)
{
	struct bdx_distill_report report;
	struct bd_error err = { 0 };

	if (bdx_distill(options, &report, &err) < 0)
		fail_msg("%s", err.text);
	if (!report.done)
		fail_msg("%s", report.why);
	return report;
}

static void check_whole(const char *path)
{
	struct bd_delta *delta;
	struct bd_error err = { 0 };

	if (bd_delta_open(&delta, path, &err) < 0)
		fail_msg("%s", err.text);
	bd_delta_close(delta);
}

static void it_comes_closer_and_repeatably(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_distill_options o = quick(closed, td_path(dir, "a.bdelta"));
	struct bdx_distill_report a = distill(&o), b;
	struct bd_delta *delta;
	char *first, *second;
	size_t size, other;

	(void)state;
	assert_true(a.kl_before > 0 && a.kl_after < 0.95 * a.kl_before);
	assert_true(a.mse_after < a.mse_before);
	assert_string_equal(a.why, "");
	o.out = td_path(dir, "b.bdelta");
	o.threads = 1;
	b = distill(&o);
	assert_true(a.kl_after == b.kl_after);
	first = td_read(td_path(dir, "a.bdelta"), &size);
	second = td_read(o.out, &other);
	assert_int_equal(size, other);
	assert_memory_equal(first, second, size);
	assert_int_equal(bd_delta_open(&delta, o.out, NULL), 0);
	assert_true(delta->distilled);
	bd_delta_close(delta);

	o.seed = 1;
	b = distill(&o);
	assert_true(a.kl_after != b.kl_after);
}

static void every_loss_and_text_will_do(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_distill_options o = quick(closed, td_path(dir, "out.bdelta"));
	struct bdx_distill_report report;
	char *text;
	size_t size;

	(void)state;
	o.loss = BDX_LOSS_MSE;
	report = distill(&o);
	assert_true(report.mse_after < report.mse_before);
	o.loss = BDX_LOSS_KL;
	text = td_read(BD_TESTS_DIR "/../gpu/general/05-stories.txt", &size);
	o.calib = td_write(dir, "calib.txt", text, size);
	report = distill(&o);
	assert_true(report.kl_after < report.kl_before);
}

/* Steps so large that all is lost at first: the result is no worse than the beginning. */
static void it_never_ends_worse(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_distill_options o = quick(closed, td_path(dir, "out.bdelta"));
	struct bdx_distill_report report;
	struct bd_error err = { 0 };

	(void)state;
	o.rate = 10;
	o.steps = 30;
	assert_int_equal(bdx_distill(&o, &report, &err), 0);
	assert_true(report.kl_after <= report.kl_before && report.kl_after > 0);
	if (!report.done) {
		assert_non_null(strstr(report.why, "held-out"));
		assert_int_equal(bd_delta_open(&(struct bd_delta *){ NULL }, o.out, NULL), -ENOENT);
	}
}

static void cancel_when_begun(void *context, unsigned long long done, unsigned long long total)
{
	(void)total;
	if (done > 450)
		atomic_store((atomic_int *)context, 1);
}

static void cancelled_it_leaves_the_file(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_distill_options o = quick(closed, closed);
	struct bdx_distill_report report;
	struct bd_error err = { 0 };
	atomic_int cancel = 0;
	size_t size, other;
	char *before = td_read(closed, &size), *after;

	(void)state;
	o.watch = (struct bd_watch){
		.progress = cancel_when_begun, .context = &cancel, .cancel = &cancel,
	};
	assert_int_equal(bdx_distill(&o, &report, &err), -EINTR);
	assert_false(report.done);
	after = td_read(closed, &other);
	assert_int_equal(size, other);
	assert_memory_equal(before, after, size);
}

static void unknown_architectures_are_declined(void **state)
{
	char *dir = td_dir(), *fine = td_mkdir(dir, "fine"), *closed = import_closed(dir), *data;
	struct bdx_distill_options o = quick(closed, closed);
	struct bdx_distill_report report;
	struct bd_error err = { 0 };
	size_t size;

	(void)state;
	data = td_read(FINE "/model.safetensors", &size);
	td_write(fine, "model.safetensors", data, size);
	td_text(fine, "config.json", "{\"model_type\":\"unheard\",\"architectures\":[\"Unheard\"]}");
	o.fine = fine;
	assert_int_equal(bdx_distill(&o, &report, &err), 0);
	assert_false(report.done);
	assert_non_null(strstr(report.why, "unheard"));
	check_whole(closed);
}

static void nonsense_is_refused(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_distill_options o = quick(closed, closed);
	struct bdx_distill_report report;
	struct bd_error err = { 0 };

	(void)state;
	o.steps = 0;
	assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
	o = quick(closed, closed);
	o.rate = NAN;
	assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
	o = quick(closed, closed);
	o.device = "abacus";
	assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
	assert_non_null(strstr(err.text, "abacus"));
	o = quick(closed, closed);
	o.base = FINE; /* not the base of the delta */
	assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
	check_whole(closed);
}

static void evaluation_ranks_base_and_delta(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct bdx_evaluate_options o;
	struct bdx_evaluation result;
	struct bd_error err = { 0 };

	(void)state;
	bdx_evaluate_defaults(&o);
	o.base = BASE;
	o.fine = FINE;
	o.delta = closed;
	o.device = "cpu";
	o.windows = 8;
	o.length = 32;
	if (bdx_evaluate(&o, &result, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(result.count, 2);
	for (int t = 0; t < 2; t++) {
		const struct bdx_text_quality *q = &result.texts[t];

		assert_int_equal(q->tokens, 8 * 32);
		assert_true(q->delta.kl > 0 && q->delta.kl < 0.5 * q->base.kl);
		assert_true(q->delta.mse < q->base.mse && q->delta.top1 > q->base.top1);
		assert_true(q->delta.top1 <= 1 && q->perplexity_fine > 1);
	}
	/* What the fine-tune writes, it predicts best. */
	assert_true(result.texts[0].perplexity_fine < result.texts[0].base.perplexity);
	assert_true(result.texts[0].delta.perplexity < result.texts[0].base.perplexity);
}

struct written {
	char text[4096];
	size_t size;
};

static void collect(void *context, const char *text, size_t size)
{
	struct written *w = context;

	assert_true(w->size + size < sizeof(w->text));
	memcpy(w->text + w->size, text, size);
	w->size += size;
	w->text[w->size] = '\0';
}

static void generation_is_repeatable(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	struct written texts[4] = { 0 };
	struct bd_error err = { 0 };

	(void)state;
	for (int i = 0; i < 4; i++) {
		struct bdx_generate_options o;

		bdx_generate_defaults(&o);
		o.model = i == 3 ? FINE : closed;
		o.base = BASE;
		o.prompt = "And the LORD said";
		o.tokens = 24;
		o.seed = i == 2;
		o.device = "cpu";
		o.write = collect;
		o.write_context = &texts[i];
		if (bdx_generate(&o, &err) < 0)
			fail_msg("%s", err.text);
		assert_true(texts[i].size > strlen(o.prompt) + 10);
		assert_memory_equal(texts[i].text, o.prompt, strlen(o.prompt));
	}
	assert_string_equal(texts[0].text, texts[1].text);
	assert_string_not_equal(texts[0].text, texts[2].text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_comes_closer_and_repeatably),
		cmocka_unit_test(every_loss_and_text_will_do),
		cmocka_unit_test(it_never_ends_worse),
		cmocka_unit_test(cancelled_it_leaves_the_file),
		cmocka_unit_test(unknown_architectures_are_declined),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(evaluation_ranks_base_and_delta),
		cmocka_unit_test(generation_is_repeatable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
