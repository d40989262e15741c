/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h: what the subcommands share that run models (import, distill, eval, generate). */
#ifndef BD_ENGINE_H
#define BD_ENGINE_H

#include "cli.h"
#include "distill.h"

/* Values of options as they were given; NULL where one was not. */
struct engine_arguments {
	const char *device, *calib, *loss, *steps, *seed, *batch, *length, *rate, *threads;
};

/* Each returns the exit status, and leaves what has no value as it is. */
/* --device */
int engine_device(const struct command *command, const char *value, const char **device);
int engine_threads(const struct command *command, const char *value, unsigned *threads);
/* All of them. Steps are at least `steps`. */
int engine_settle(const struct command *command, const struct engine_arguments *a, uint64_t steps,
		  struct bdx_distill_options *options);

/* As progress_begin, for an engine whose progress is no bytes. */
void engine_begin(struct progress *progress, struct bd_watch *watch, const char *verb, bool json,
		  bool quiet);

/* A line of the table, or members of an object, that say what distillation did. */
void engine_print_distillation(const struct bdx_distill_report *report);
void engine_json_distillation(struct json *j, cJSON *object,
			      const struct bdx_distill_report *report);
/* A number, or null where it is not finite. */
void engine_json_real(struct json *j, cJSON *object, const char *name, double value);

#endif
