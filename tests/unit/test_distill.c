/* SPDX-License-Identifier: Apache-2.0 */
/* test_distill.c: distilling the shipped pair on the CPU: it comes closer, repeatably, and nothing is lost
 * where it cannot. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint.h"
#include "distill.h"
#include "evaluate.h"
#include "generate.h"
#include "import.h"
#include "testdata.h"
#include "verify.h"

#define BASE BD_TESTS_DIR "/data/nano-llama2/base"
#define FINE BD_TESTS_DIR "/data/nano-llama2/kjv"

static char *import_pair(const char *dir, const char *base, const char *fine,
			 const struct bd_rule *rules, size_t count)
{
	struct bd_import_options o = {
		.base = base, .fine = fine, .out = td_path(dir, "kjv.bdelta"),
		.scale = BD_SCALE_RANK1, .attenuation = BD_ATTENUATION,
		.rules = rules, .rule_count = count,
	};
	struct bd_error err = { 0 };

	if (bd_import(&o, &err) < 0)
		fail_msg("%s", err.text);
	return td_path(dir, "kjv.bdelta");
}

static char *import_closed(const char *dir)
{
	return import_pair(dir, BASE, FINE, NULL, 0);
}

static char *replaced(const char *text, const char *from, const char *to)
{
	const char *at = strstr(text, from);

	assert_non_null(at);
	return td_format("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

static char *with_number(const char *config, const char *key, int from, uint64_t to)
{
	return replaced(config, td_format("\"%s\": %d", key, from),
			td_format("\"%s\": %d", key, (int)to));
}

/* FROM with another vocabulary (of 1024) and `times` its width; its numbers are repeated. */
static char *resized(const char *dir, const char *name, const char *from, uint64_t vocabulary,
		     uint64_t times)
{
	struct td_tensor tensors[64] = { 0 };
	struct bd_checkpoint *c;
	size_t size;
	char *to = td_mkdir(dir, name), *config = td_read(td_path(from, "config.json"), &size);

	assert_int_equal(bd_checkpoint_open(&c, from, NULL), 0);
	assert_in_range(c->shards[0].st->count, 1, 64);
	for (size_t i = 0; i < c->shards[0].st->count; i++) {
		const struct bd_tensor *t = &c->shards[0].st->tensors[i];
		struct td_tensor *n = &tensors[i];
		char *data;

		*n = (struct td_tensor){ .name = t->name, .dtype = t->dtype, .dims = t->dims };
		for (unsigned d = 0; d < t->dims; d++)
			n->shape[d] = t->shape[d] == 1024 ? vocabulary :
				      t->shape[d] == 128 ? 128 * times : t->shape[d];
		size = td_tensor_size(n);
		n->data = data = malloc(size);
		for (size_t at = 0; at < size; at += t->size)
			bd_file_read(c->shards[0].file, data + at,
				     size - at < t->size ? size - at : t->size, t->offset, NULL);
	}
	td_safetensors(to, "model.safetensors", tensors, c->shards[0].st->count, NULL);
	for (size_t i = 0; i < c->shards[0].st->count; i++)
		free((void *)tensors[i].data);
	bd_checkpoint_close(c);
	config = with_number(config, "vocab_size", 1024, vocabulary);
	config = with_number(config, "hidden_size", 128, 128 * times);
	config = with_number(config, "num_attention_heads", 2, 2 * times);
	config = with_number(config, "num_key_value_heads", 2, 2 * times);
	td_text(to, "config.json", config);
	td_text(to, "tokenizer.json", td_read(td_path(from, "tokenizer.json"), &size));
	return to;
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
	o.fine = BASE; /* not what the delta was made from */
	assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
	assert_non_null(strstr(err.text, "is not the fine-tune"));
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

		assert_int_equal(q->delta.tokens, 8 * 32);
		assert_int_equal(q->base.tokens, 8 * 32);
		assert_true(q->delta.kl > 0 && q->delta.kl < 0.5 * q->base.kl);
		assert_true(q->delta.mse < q->base.mse && q->delta.top1 > q->base.top1);
		assert_true(q->delta.top1 <= 1 && q->perplexity_fine > 1);
	}
	/* What the fine-tune writes, it predicts best. */
	assert_true(result.texts[0].perplexity_fine < result.texts[0].base.perplexity);
	assert_true(result.texts[0].delta.perplexity < result.texts[0].base.perplexity);
}

static struct bdx_evaluation evaluate(const char *base, const char *fine, const char *delta,
				      const char *text)
{
	struct bdx_evaluate_options o;
	struct bdx_evaluation result;
	struct bd_error err = { 0 };

	bdx_evaluate_defaults(&o);
	o.base = base;
	o.fine = fine;
	o.delta = delta;
	o.text = text;
	o.device = "cpu";
	o.windows = 4;
	o.length = 16;
	if (bdx_evaluate(&o, &result, &err) < 0)
		fail_msg("%s", err.text);
	return result;
}

/* A fine-tune with tokens of its own: what the base can read is what it is measured on. */
static void tokens_may_be_added(void **state)
{
	static const char added[] = "\"added_tokens\": [{\"id\":1024,\"content\":\"<|user|>\","
		"\"special\":true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
		"\"normalized\":false},";
	int32_t tokens[64] = { 1 };
	char *dir = td_dir(), *fine = resized(dir, "chat", FINE, 1025, 1), *closed, *text;
	struct bdx_distill_options o;
	struct bdx_evaluation result;
	size_t size;

	(void)state;
	text = td_read(td_path(fine, "tokenizer.json"), &size);
	td_text(fine, "tokenizer.json", replaced(text, "\"added_tokens\": [", added));
	td_text(fine, "chat_template.jinja", "{{ '<|user|>' + message }}");
	closed = import_pair(dir, BASE, fine, NULL, 0);
	o = quick(closed, td_path(dir, "out.bdelta"));
	o.fine = fine;
	assert_true(distill(&o).kl_after > 0);
	for (int i = 0; i < 64; i++)
		tokens[i] = i < 32 ? 5 + i : 1024;
	result = evaluate(BASE, fine, closed, td_write(dir, "text.tokens", tokens, sizeof(tokens)));
	assert_int_equal(result.texts[0].delta.tokens, 64);
	assert_int_equal(result.texts[0].base.tokens, 32);
	assert_true(isfinite(result.texts[0].base.kl) && isfinite(result.texts[0].delta.kl));
	text = td_write(dir, "text.tokens", tokens + 32, sizeof(tokens) / 2);
	result = evaluate(BASE, fine, closed, text);
	assert_int_equal(result.texts[0].base.tokens, 0);
	assert_true(isnan(result.texts[0].base.kl) && isfinite(result.texts[0].delta.kl));
}

/* Tokens that the model has no rows for, and a tokenizer without any. */
static void tokenizers_may_not_fit(void **state)
{
	static const char *const others[] = {
		NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}",
		"{\"model\":{\"type\":\"Unheard\"}}",
	};
	char *dir = td_dir(), *base = resized(dir, "base", BASE, 700, 1);
	char *fine = resized(dir, "fine", FINE, 700, 1), *closed;
	struct bdx_distill_options o;

	(void)state;
	closed = import_pair(dir, base, fine, NULL, 0);
	o = quick(closed, td_path(dir, "out.bdelta"));
	o.base = base;
	o.fine = fine;
	o.steps = 2;
	for (int i = 0; i < 3; i++) {
		struct bdx_distill_report report;
		struct bd_error err = { 0 };

		if (others[i])
			td_text(fine, "tokenizer.json", others[i]);
		if (bdx_distill(&o, &report, &err) < 0)
			fail_msg("%s", err.text);
		assert_int_equal(evaluate(base, fine, closed, NULL).count, i ? 1 : 2);
	}
}

/* All is kept exactly, so the base need not look like the fine-tune at all. */
static void the_base_may_be_wider(void **state)
{
	char *dir = td_dir(), *base = resized(dir, "wide", BASE, 1100, 2);
	char *closed = import_pair(dir, base, FINE, &(struct bd_rule){ false, "*" }, 1);
	struct bdx_evaluation result = evaluate(base, FINE, closed, NULL);

	(void)state;
	assert_true(result.texts[0].delta.kl < 1e-6 && result.texts[0].base.kl > 1);
}

/* A copy of FROM, whose tensors with `part` in their names are those of OTHER, or NaN where that is NULL. */
static char *mixed(const char *dir, const char *name, const char *from, const char *part, const char *other)
{
	char *to = resized(dir, name, from, 1024, 1);
	FILE *f = fopen(td_path(to, "model.safetensors"), "r+");
	struct bd_checkpoint *c, *o = NULL;
	const struct bd_shard *shard;

	assert_non_null(f);
	assert_int_equal(bd_checkpoint_open(&c, to, NULL), 0);
	assert_int_equal(other ? bd_checkpoint_open(&o, other, NULL) : 0, 0);
	for (size_t i = 0; i < c->shards[0].st->count; i++) {
		const struct bd_tensor *t = &c->shards[0].st->tensors[i];
		char *data = malloc(t->size);

		if (strstr(t->name, part)) {
			memset(data, 0xff, t->size);
			if (o)
				bd_file_read(o->shards[0].file, data, t->size,
					     bd_checkpoint_find(o, t->name, &shard)->offset, NULL);
			fseek(f, (long)t->offset, SEEK_SET);
			assert_int_equal(fwrite(data, 1, t->size, f), t->size);
		}
		free(data);
	}
	fclose(f);
	bd_checkpoint_close(c);
	bd_checkpoint_close(o);
	return to;
}

static void other_fine_tunes_are_refused(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	/* Another one, which has all in common that a delta keeps exactly. */
	char *other = mixed(dir, "other", FINE, "_proj", BASE);
	const char *const fines[] = { BASE, other };
	const char *const texts[] = { "tensors", "100 weights changed in another direction" };

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct bdx_distill_options o = quick(closed, td_path(dir, "out.bdelta"));
		struct bdx_evaluate_options e;
		struct bdx_distill_report report;
		struct bdx_evaluation result;
		struct bd_error err = { 0 };

		o.fine = fines[i];
		assert_int_equal(bdx_distill(&o, &report, &err), -EINVAL);
		assert_non_null(strstr(err.text, "is not the fine-tune that"));
		assert_non_null(strstr(err.text, texts[i]));
		bdx_evaluate_defaults(&e);
		e.base = BASE;
		e.fine = fines[i];
		e.delta = closed;
		e.device = "cpu";
		assert_int_equal(bdx_evaluate(&e, &result, &err), -EINVAL);
		assert_non_null(strstr(err.text, texts[i]));
	}
}

/* Windows are as many as there is time for, and some in any case. */
static void evaluation_takes_its_time(void **state)
{
	char *dir = td_dir(), *closed = import_closed(dir);
	static const double seconds[] = { 1e-6, 1e9, 0 };

	(void)state;
	for (int i = 0; i < 3; i++) {
		struct bdx_evaluate_options e;
		struct bdx_evaluation result;
		struct bd_error err = { 0 };

		bdx_evaluate_defaults(&e);
		assert_true(e.seconds == 60 && e.windows == 256);
		e.base = BASE;
		e.fine = FINE;
		e.delta = closed;
		e.device = "cpu";
		e.windows = 9;
		e.length = 8;
		e.seconds = seconds[i];
		if (bdx_evaluate(&e, &result, &err) < 0)
			fail_msg("%s", err.text);
		assert_int_equal(result.texts[0].windows, i ? 9 : 4);
		assert_int_equal(result.texts[1].windows, i ? 9 : 4);
		assert_int_equal(result.texts[0].delta.tokens, 8 * result.texts[0].windows);
	}
}

/* NaN among the logits: said whose they are, and no figures. */
static void models_without_numbers(void **state)
{
	char *dir = td_dir(), *no_fine = mixed(dir, "no-fine", FINE, "model.norm", NULL);
	char *no_base = mixed(dir, "no-base", BASE, "model.norm", NULL);

	(void)state;
	for (int i = 0; i < 2; i++) {
		const char *base = i ? no_base : BASE, *fine = i ? FINE : no_fine;
		char *sub_dir = td_mkdir(dir, i ? "1" : "0"), *closed = import_pair(sub_dir, base, fine, NULL, 0);
		struct bdx_distill_options o = quick(closed, td_path(sub_dir, "out.bdelta"));
		struct bdx_evaluate_options e;
		struct bdx_distill_report report;
		struct bdx_evaluation result;
		struct bd_error err = { 0 };

		bdx_evaluate_defaults(&e);
		e.base = base;
		e.fine = fine;
		e.delta = closed;
		e.device = "cpu";
		e.windows = 2;
		assert_int_equal(bdx_evaluate(&e, &result, &err), -EDOM);
		assert_non_null(strstr(err.text, i ? "/no-base: this model gives no numbers" :
				       "/no-fine: this model gives no numbers"));
		o.base = base;
		o.fine = fine;
		o.steps = 1;
		if (i == 0) {
			assert_int_equal(bdx_distill(&o, &report, &err), -EDOM);
			assert_non_null(strstr(err.text, "/no-fine: this model gives no numbers"));
		}
	}
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
		cmocka_unit_test(tokens_may_be_added),
		cmocka_unit_test(tokenizers_may_not_fit),
		cmocka_unit_test(the_base_may_be_wider),
		cmocka_unit_test(other_fine_tunes_are_refused),
		cmocka_unit_test(evaluation_takes_its_time),
		cmocka_unit_test(models_without_numbers),
		cmocka_unit_test(generation_is_repeatable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
