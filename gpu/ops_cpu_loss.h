/* SPDX-License-Identifier: Apache-2.0 */
/* ops_cpu_loss.h: loss, sampling and optimiser of the C reference; a part of ops_cpu_impl.h. */

/* The first of the largest logits; 0 where none is a number. */
static uint64_t first_largest(const real *logits, uint64_t count)
{
	real value = largest(logits, count);
	uint64_t i = 0;

	while (i < count && logits[i] != value)
		i++;
	return i < count ? i : 0;
}

struct compare {
	struct bdx_comparison *results;
	real *gradient; /* NULL: not wanted */
	const real *student, *teacher;
	uint64_t student_stride, teacher_stride, vocabulary;
	const int32_t *targets; /* NULL: none */
	double mse_weight, kl_weight, factor;
	real *scratch; /* [threads, 2, vocabulary] */
};

/* log q = logits - largest - log(sum of exp(logits - largest)), for teacher (t) and student (s):
 *   KL = sum q_t (log q_t - log q_s)     dKL/ds = q_s - q_t */
static void compare_row(const struct compare *c, uint64_t row, real *exp_s, real *exp_t)
{
	const real *s = c->student + row * c->student_stride;
	const real *t = c->teacher + row * c->teacher_stride;
	struct bdx_comparison *result = &c->results[row];
	uint64_t n = c->vocabulary, top_s = first_largest(s, n), top_t = first_largest(t, n), i;
	double sum_s = exponentials(exp_s, s, s[top_s], 1, n);
	double sum_t = exponentials(exp_t, t, t[top_t], 1, n);
	double log_s = (double)s[top_s] + log(sum_s), log_t = (double)t[top_t] + log(sum_t);
	double squares[LANES] = { 0 }, weighted[LANES] = { 0 };
	/* Of the gradient: */
	real factor = (real)(c->factor * c->mse_weight * 2 / (double)n);
	real factor_s = (real)(c->factor * c->kl_weight / sum_s);
	real factor_t = (real)(c->factor * c->kl_weight / sum_t);
	unsigned j;

	for (i = 0; i < n; i += LANES) {
		real x[LANES], y[LANES], p_s[LANES], p_t[LANES];

		load_lanes(x, s + i, n - i, 0);
		load_lanes(y, t + i, n - i, 0);
		load_lanes(p_s, exp_s + i, n - i, 0);
		load_lanes(p_t, exp_t + i, n - i, 0);
		for (j = 0; j < LANES; j++)
			x[j] -= y[j];
		for (j = 0; j < LANES; j++)
			squares[j] += x[j] * x[j];
		for (j = 0; j < LANES; j++)
			weighted[j] += p_t[j] * x[j];
		if (!c->gradient)
			continue;
		for (j = 0; j < LANES; j++)
			x[j] = factor * x[j] + (factor_s * p_s[j] - factor_t * p_t[j]);
		store_lanes(c->gradient + row * n + i, x, n - i);
	}
	*result = (struct bdx_comparison){ .agree = top_s == top_t };
	result->mse = sum_of_lanes(squares) / (double)n;
	result->kl = log_s - log_t - sum_of_lanes(weighted) / sum_t;
	if (c->targets && c->targets[row] >= 0) {
		result->nll_student = log_s - (double)s[c->targets[row]];
		result->nll_teacher = log_t - (double)t[c->targets[row]];
	}
}

static void compare_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct compare *c = context;
	real *scratch = c->scratch + thread * 2 * c->vocabulary;
	uint64_t r;

	for (r = first; r < end; r++)
		compare_row(c, r, scratch, scratch + c->vocabulary);
}

static void cpu_compare(struct bdx_ops *ops, struct bdx_comparison *results, void *logits_gradient,
			const void *student, uint64_t student_stride, const void *teacher,
			uint64_t teacher_stride, const int32_t *targets, uint64_t rows,
			uint64_t vocabulary, double mse_weight, double kl_weight, double factor)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);
	struct compare c = {
		.results = results, .gradient = logits_gradient, .student = student,
		.teacher = teacher, .student_stride = student_stride,
		.teacher_stride = teacher_stride, .vocabulary = vocabulary, .targets = targets,
		.mse_weight = mse_weight, .kl_weight = kl_weight, .factor = factor,
	};

	c.scratch = bdx_cpu_scratch(cpu, 2 * (size_t)bdx_pool_threads(cpu->pool),
				    vocabulary * sizeof(real));
	bdx_cpu_run(cpu, rows, rows_of_piece(vocabulary), compare_piece, &c);
}

struct sample {
	int32_t *tokens;
	const real *logits, *uniform;
	uint64_t vocabulary;
	real temperature;
	real *scratch; /* [threads, vocabulary] */
};

static uint64_t draw(const struct sample *s, const real *logits, double uniform,
		     real *probabilities)
{
	uint64_t token = first_largest(logits, s->vocabulary), i;
	double sum, cumulated = 0;

	if (s->temperature == 0)
		return token;
	sum = exponentials(probabilities, logits, logits[token], 1 / s->temperature, s->vocabulary);
	for (i = 0; i < s->vocabulary; i++) {
		cumulated += (double)probabilities[i];
		if (cumulated > uniform * sum)
			return i;
	}
	return token; /* only where logits are not numbers */
}

static void sample_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct sample *s = context;
	uint64_t r;

	for (r = first; r < end; r++)
		s->tokens[r] = (int32_t)draw(s, s->logits + r * s->vocabulary,
					     (double)s->uniform[r],
					     s->scratch + thread * s->vocabulary);
}

static void cpu_sample(struct bdx_ops *ops, int32_t *tokens, const void *logits,
		       const void *uniform, uint64_t rows, uint64_t vocabulary, double temperature)
{
	struct bdx_cpu *cpu = bdx_cpu(ops);
	struct sample s = {
		.tokens = tokens, .logits = logits, .uniform = uniform, .vocabulary = vocabulary,
		.temperature = (real)temperature,
	};

	s.scratch = bdx_cpu_scratch(cpu, bdx_pool_threads(cpu->pool), vocabulary * sizeof(real));
	bdx_cpu_run(cpu, rows, rows_of_piece(vocabulary), sample_piece, &s);
}

struct adam {
	const struct bdx_adam *settings;
	double correction1, correction2; /* 1 / (1 - beta^step) */
	real *parameter, *m, *v;
	const real *gradient, *unit;
};

static void adam_piece(void *context, uint64_t first, uint64_t end, unsigned thread)
{
	const struct adam *a = context;
	const struct bdx_adam *s = a->settings;
	uint64_t i;

	(void)thread;
	for (i = first; i < end; i++) {
		double unit = (double)a->unit[i];
		double g = (double)a->gradient[i] * s->gradient_factor * unit;
		double m = s->beta1 * (double)a->m[i] + (1 - s->beta1) * g;
		double v = s->beta2 * (double)a->v[i] + (1 - s->beta2) * g * g;

		a->m[i] = (real)m;
		a->v[i] = (real)v;
		a->parameter[i] -= (real)(s->rate * unit * m * a->correction1 /
					  (sqrt(v * a->correction2) + s->epsilon));
	}
}

static void cpu_adam(struct bdx_ops *ops, const struct bdx_adam *settings, void *parameter,
		     const void *gradient, const void *unit, void *m, void *v, uint64_t count)
{
	struct adam a = {
		.settings = settings, .parameter = parameter, .m = m, .v = v, .gradient = gradient,
		.unit = unit,
		.correction1 = 1 / (1 - pow(settings->beta1, (double)settings->step)),
		.correction2 = 1 / (1 - pow(settings->beta2, (double)settings->step)),
	};

	bdx_cpu_run(bdx_cpu(ops), count, PIECE_ELEMENTS, adam_piece, &a);
}
