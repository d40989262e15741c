/* SPDX-License-Identifier: Apache-2.0 */
/* normalize.c: the normalizers of tokenizer.json, which rewrite a text; see tokenizer_impl.h. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"

/* A text on its way through the steps: each reads `from` and writes `to`. */
struct passage {
	struct bdx_run *run;
	struct bd_buffer from, to;
	bool first;
};

static int replace(const struct bdx_step *step, struct passage *p)
{
	uint32_t code;
	int rc = bdx_pattern_split(step->pattern, p->run, p->from.data, p->from.size);

	if (rc)
		return rc;
	for (size_t i = 0; i < p->run->spans.count; i++) {
		const struct bdx_span *s = &p->run->spans.data[i];

		if (!s->match) {
			bd_buffer_append(&p->to, p->from.data + s->start, s->end - s->start);
			continue;
		}
		bd_buffer_append(&p->to, step->text, step->size);
		/* New text counts as if it stood where the last character that it replaces was. */
		if (s->start == 0 && s->end > 0 &&
		    (step->size == 0 || bdx_unicode_next(p->from.data, &code) < s->end))
			p->first = false;
		rc = bdx_run_check(p->run, &p->to);
		if (rc)
			return rc;
	}
	return 0;
}

static void strip(const struct bdx_step *step, struct passage *p)
{
	size_t start = 0, end = p->from.size;
	uint32_t code;

	while (step->left && start < end) {
		unsigned length = bdx_unicode_next(p->from.data + start, &code);

		if (!bdx_unicode_is_space(code))
			break;
		start += length;
	}
	while (step->right && end > start) {
		size_t previous = bdx_unicode_previous(p->from.data, end);

		bdx_unicode_next(p->from.data + previous, &code);
		if (!bdx_unicode_is_space(code))
			break;
		end = previous;
	}
	if (start > 0)
		p->first = false;
	bd_buffer_append(&p->to, p->from.data + start, end - start);
}

static void strip_accents(struct passage *p)
{
	uint32_t code;

	for (size_t i = 0; i < p->from.size;) {
		unsigned length = bdx_unicode_next(p->from.data + i, &code);

		if (!bdx_unicode_is_mark(code))
			bd_buffer_append(&p->to, p->from.data + i, length);
		else if (i == 0)
			p->first = false;
		i += length;
	}
}

static int take_step(const struct bdx_step *step, struct passage *p)
{
	switch (step->kind) {
	case BDX_PREPEND:
		if (p->from.size)
			bd_buffer_append(&p->to, step->text, step->size);
		bd_buffer_append(&p->to, p->from.data, p->from.size);
		return 0;
	case BDX_REPLACE:
		return replace(step, p);
	case BDX_NORMALIZE:
		return bdx_unicode_normalize(&p->to, p->from.data, p->from.size, step->form) ?
		       bdx_run_nomem(p->run) : 0;
	case BDX_LOWERCASE:
		bdx_unicode_lower(&p->to, p->from.data, p->from.size);
		return 0;
	case BDX_STRIP:
		strip(step, p);
		return 0;
	default:
		strip_accents(p);
		return 0;
	}
}

int bdx_normalize(const struct bdx_steps *steps, struct bdx_run *run, const char *text, size_t size,
		  bool *first)
{
	struct passage p = { .run = run, .first = *first };
	int rc = 0;

	bd_buffer_append(&p.from, text, size);
	for (size_t i = 0; i < steps->count && rc == 0; i++) {
		struct bd_buffer from = p.from;

		p.to.size = 0;
		bd_buffer_append(&p.to, "", 0);
		rc = p.from.failed ? bdx_run_nomem(run) : bdx_run_clock(run);
		if (rc == 0)
			rc = take_step(&steps->data[i], &p);
		if (rc == 0)
			rc = bdx_run_check(run, &p.to);
		p.from = p.to;
		p.to = from;
	}
	if (rc == 0) {
		bd_buffer_append(&run->other_text, p.from.data, p.from.size);
		rc = bdx_run_check(run, &run->other_text);
	}
	*first = p.first;
	bd_buffer_free(&p.from);
	bd_buffer_free(&p.to);
	return rc;
}
