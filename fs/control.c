/* SPDX-License-Identifier: Apache-2.0 */
/* control.c: what the mount says about itself, see control.h. */
#include "control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "buffer.h"
#include "sign.h"
#include "utf8.h"
#include "watch.h"

static const char *layout_name(enum bdfs_layout layout)
{
	return layout == BDFS_HUB ? "hub" : "dirs";
}

/* Paths are bytes, JSON is UTF-8. */
static void string(struct bd_buffer *b, const char *key, const char *text)
{
	char *copy = text ? strdup(text) : NULL;

	bd_buffer_printf(b, "\"%s\":%s", key, text ? "" : "null");
	if (copy) {
		bd_utf8_make_plain(copy);
		bd_buffer_json_string(b, copy, strlen(copy));
	} else if (text) {
		b->failed = true;
	}
	free(copy);
}

static void counters(struct bd_buffer *b, const struct bdfs_counters *c)
{
	bd_buffer_printf(b, "\"opens\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"bytes\":%" PRIu64
			 ",\"base_bytes\":%" PRIu64 ",\"delta_bytes\":%" PRIu64 ",\"errors\":%" PRIu64,
			 bdfs_counted(&c->opens), bdfs_counted(&c->reads), bdfs_counted(&c->bytes),
			 bdfs_counted(&c->base_bytes), bdfs_counted(&c->delta_bytes),
			 bdfs_counted(&c->errors));
}

/* Models whose base this is. */
static size_t models_of(const struct bdfs_models *m, const struct bdfs_base *base)
{
	size_t n = 0;

	for (size_t i = 0; i < m->count; i++)
		n += m->list[i]->base == base && !m->list[i]->is_base;
	return n;
}

struct sums {
	uint64_t virtual_bytes, stored_bytes;
};

static struct sums sums_of(const struct bdfs_models *m)
{
	struct sums sums = { 0 };

	for (size_t i = 0; i < m->count; i++) {
		sums.virtual_bytes += m->list[i]->virtual_bytes;
		sums.stored_bytes += m->list[i]->stored_bytes;
	}
	return sums;
}

static void stats_bases(struct bd_buffer *b, const struct bdfs_models *m)
{
	bd_buffer_printf(b, "\"bases\":[");
	for (size_t i = 0; i < m->base_count; i++) {
		const struct bdfs_base *base = m->bases[i];
		struct bd_error err = { 0 };
		bool well = bd_base_check(base->base, &err) == 0;

		bd_buffer_printf(b, "%s\n{", i ? "," : "");
		string(b, "name", base->base->checkpoint->label);
		bd_buffer_printf(b, ",");
		string(b, "path", base->path);
		bd_buffer_printf(b, ",\"digest\":\"%s\",\"tensors\":%zu,\"bytes\":%" PRIu64
				 ",\"models\":%zu,", base->base->digest, base->base->count,
				 base->bytes, models_of(m, base));
		string(b, "problem", well ? NULL : err.text);
		bd_buffer_printf(b, "}");
	}
	bd_buffer_printf(b, "],\n");
}

static void stats_models(struct bd_buffer *b, const struct bdfs_models *m)
{
	char text[BDFS_LONGEST_NOTE];
	bool any = false;
	int note;

	bd_buffer_printf(b, "\"models\":[");
	for (size_t i = 0; i < m->count; i++) {
		const struct bdfs_model *model = m->list[i];

		bd_buffer_printf(b, "%s\n{", i ? "," : "");
		string(b, "name", model->directory);
		bd_buffer_printf(b, ",");
		string(b, "delta", model->is_base ? NULL : model->path);
		bd_buffer_printf(b, ",");
		string(b, "base", model->base->base->checkpoint->label);
		bd_buffer_printf(b, ",\"virtual_bytes\":%" PRIu64 ",\"stored_bytes\":%" PRIu64
				 ",\"files\":%zu,\"distilled\":%s,\"open_files\":%" PRIu64 ",",
				 model->virtual_bytes, model->stored_bytes, model->file_count,
				 model->distilled ? "true" : "false",
				 bdfs_counted(&model->counters.open_files));
		counters(b, &model->counters);
		bd_buffer_printf(b, "}");
	}
	bd_buffer_printf(b, "],\n\"rejected\":[");
	for (size_t i = 0; i < m->rejected_count; i++) {
		bd_buffer_printf(b, "%s\n{", i ? "," : "");
		string(b, "delta", m->rejected[i].path);
		bd_buffer_printf(b, ",");
		string(b, "reason", m->rejected[i].reason);
		bd_buffer_printf(b, "}");
	}
	bd_buffer_printf(b, "],\n\"notes\":[");
	for (size_t i = 0; (note = bdfs_models_note(m, i, text, sizeof(text))) >= 0; i++) {
		if (!note)
			continue;
		bd_buffer_printf(b, "%s\n{", any ? "," : "");
		string(b, "text", text);
		bd_buffer_printf(b, "}");
		any = true;
	}
	bd_buffer_printf(b, "],\n");
}

static void print_stats(struct bd_buffer *b, struct bdfs_models *m, const struct bdfs_in_use *use,
			double uptime)
{
	struct bdfs_percentiles p;
	struct sums sums = sums_of(m);

	bdfs_latency_percentiles(&m->latency, &p);
	bd_buffer_printf(b, "{\"version\":\"%s\",\"pid\":%d,\"mounted_at\":%lld,\"uptime_s\":%.3f,\n",
			 BD_VERSION, (int)getpid(), (long long)use->mounted_at, uptime);
	string(b, "source", use->source);
	bd_buffer_printf(b, ",");
	string(b, "mountpoint", use->mountpoint);
	bd_buffer_printf(b, ",\"layout\":\"%s\",\"threads\":%u,\n\"in_use\":{\"readahead_kib\":%u,"
			 "\"passthrough\":%s,\"mapped\":%s,\"cpu\":\"%s\",", layout_name(m->layout),
			 use->threads, use->readahead, use->passthrough ? "true" : "false",
			 use->mapped ? "true" : "false", bd_cpu_name(bd_cpu_best()));
	string(b, "sandbox", use->sandbox);
	bd_buffer_printf(b, ",");
	string(b, "user", use->user);
	bd_buffer_printf(b, ",");
	string(b, "watch", bdfs_watch_method(use->watch));
	bd_buffer_printf(b, "},\n");
	stats_bases(b, m);
	stats_models(b, m);
	bd_buffer_printf(b, "\"totals\":{\"virtual_bytes\":%" PRIu64 ",\"stored_bytes\":%" PRIu64 ",",
			 sums.virtual_bytes, sums.stored_bytes);
	counters(b, &m->totals);
	bd_buffer_printf(b, ",\"reloads\":%" PRIu64 "},\n\"latency_us\":{\"count\":%" PRIu64
			 ",\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}}\n",
			 bdfs_counted(&m->reloads), p.count, p.p50, p.p90, p.p99, p.max);
}

/* "13.5 GB" */
static const char *amount(uint64_t bytes, char text[32])
{
	static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB", "EB" };
	double value = (double)bytes;
	size_t unit = 0;

	while (value >= 999.5 && unit + 1 < sizeof(units) / sizeof(*units)) {
		value /= 1000;
		unit++;
	}
	snprintf(text, 32, "%.*f %s", unit && value < 99.95 ? 1 : 0, value, units[unit]);
	return text;
}

/* Names of files go to somebody's terminal. */
static void plain(struct bd_buffer *b, const char *text)
{
	char *copy = strdup(text);

	if (copy) {
		bd_utf8_make_plain(copy);
		bd_buffer_append(b, copy, strlen(copy));
	} else {
		b->failed = true;
	}
	free(copy);
}

static void print_status(struct bd_buffer *b, struct bdfs_models *m, const struct bdfs_in_use *use,
			 double uptime)
{
	struct bdfs_percentiles p;
	struct sums sums = sums_of(m);
	char one[32], two[32], three[32], text[BDFS_LONGEST_NOTE];
	int note;

	bdfs_latency_percentiles(&m->latency, &p);
	bd_buffer_printf(b, "bitdelta %s, process %d, mounted for %.0f s on ", BD_VERSION, (int)getpid(),
			 uptime);
	plain(b, use->mountpoint);
	bd_buffer_printf(b, "\n");
	for (size_t i = 0; i < m->base_count; i++) {
		struct bd_error err = { 0 };

		bd_buffer_printf(b, "base      ");
		plain(b, m->bases[i]->path);
		bd_buffer_printf(b, ": %s, %zu fine-tune%s\n", amount(m->bases[i]->bytes, one),
				 models_of(m, m->bases[i]), models_of(m, m->bases[i]) == 1 ? "" : "s");
		if (bd_base_check(m->bases[i]->base, &err) < 0) {
			bd_buffer_printf(b, "          PROBLEM: ");
			plain(b, err.text);
			bd_buffer_printf(b, "\n");
		}
	}
	bd_buffer_printf(b, "models    %zu, which show %s; their deltas take %s\n", m->count,
			 amount(sums.virtual_bytes, one), amount(sums.stored_bytes, two));
	bd_buffer_printf(b, "reads     %" PRIu64 ", %s given out, of %s base and %s delta; %" PRIu64
			 " errors\n", bdfs_counted(&m->totals.reads),
			 amount(bdfs_counted(&m->totals.bytes), one),
			 amount(bdfs_counted(&m->totals.base_bytes), two),
			 amount(bdfs_counted(&m->totals.delta_bytes), three),
			 bdfs_counted(&m->totals.errors));
	bd_buffer_printf(b, "latency   half within %.0f us, 99 of 100 within %.0f us, longest %.0f us\n",
			 p.p50, p.p99, p.max);
	bd_buffer_printf(b, "in use    %u threads, readahead %u KiB, %s, inputs %s, passthrough %s, %s, "
			 "sandbox %s, user %s\n", use->threads, use->readahead,
			 bd_cpu_name(bd_cpu_best()), use->mapped ? "mapped" : "read",
			 use->passthrough ? "yes" : "no", bdfs_watch_method(use->watch),
			 use->sandbox, use->user);
	for (size_t i = 0; i < m->count; i++) {
		bd_buffer_printf(b, "model     ");
		plain(b, m->list[i]->directory);
		bd_buffer_printf(b, ": %s%s%s, %" PRIu64 " open\n",
				 amount(m->list[i]->virtual_bytes, one),
				 m->list[i]->is_base ? ", the base" : " in ",
				 m->list[i]->is_base ? "" : amount(m->list[i]->stored_bytes, two),
				 bdfs_counted(&m->list[i]->counters.open_files));
	}
	for (size_t i = 0; i < m->rejected_count; i++) {
		bd_buffer_printf(b, "LEFT OUT  ");
		plain(b, m->rejected[i].reason);
		bd_buffer_printf(b, "\n");
	}
	for (size_t i = 0; (note = bdfs_models_note(m, i, text, sizeof(text))) >= 0; i++) {
		if (!note)
			continue;
		bd_buffer_printf(b, "note      ");
		plain(b, text);
		bd_buffer_printf(b, "\n");
	}
}

int bdfs_control_text(enum bdfs_control file, struct bdfs_models *models,
		      const struct bdfs_in_use *use, char **text, size_t *size)
{
	struct bd_buffer b = { 0 };
	double uptime = (double)(bdfs_now() - use->started) / 1e9;

	pthread_mutex_lock(&models->lock);
	if (file == BDFS_STATS)
		print_stats(&b, models, use, uptime);
	else if (file == BDFS_STATUS)
		print_status(&b, models, use, uptime);
	else
		bd_buffer_printf(&b, "bitdelta %s\n", BD_VERSION);
	pthread_mutex_unlock(&models->lock);
	if (b.failed) {
		bd_buffer_free(&b);
		return -ENOMEM;
	}
	*text = b.data;
	*size = b.size;
	return 0;
}
