/* SPDX-License-Identifier: Apache-2.0 */
/* jsonout.h: what the subcommands print with --json: one object a line.
 *
 *     struct json j;
 *     cJSON *o = json_begin(&j), *base = json_object(&j, o, "base");
 *
 *     json_string(&j, base, "label", label);
 *     json_number(&j, o, "bytes", "%" PRIu64, bytes);
 *     rc = json_print(&j, stdout, &err);
 *
 * Failure is looked at once, in json_print: whatever could not be added is remembered there, and
 * objects that could not be made (NULL) may be passed on. */
#ifndef BD_JSONOUT_H
#define BD_JSONOUT_H

#include <cJSON.h>
#include <stdbool.h>
#include <stdio.h>

#include "error.h"

struct json {
	cJSON *root;
	bool failed; /* out of memory: something is missing */
};

/* A new object, to be ended with json_print or json_drop. */
cJSON *json_begin(struct json *j);
/* An object or array as member NAME of an object, and an object at the end of an array. */
cJSON *json_object(struct json *j, cJSON *object, const char *name);
cJSON *json_array(struct json *j, cJSON *object, const char *name);
cJSON *json_element(struct json *j, cJSON *array);
/* TEXT may be any bytes (it often names a file): what is not UTF-8 becomes U+FFFD. */
void json_string(struct json *j, cJSON *object, const char *name, const char *text);
void json_bool(struct json *j, cJSON *object, const char *name, bool value);
/* A number as printf writes it: sizes exactly, also above 2^53, where a double would round them,
 * and fractions with as many digits as they are worth. It must be finite. */
void json_number(struct json *j, cJSON *object, const char *name, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* The same for an array of numbers that is printed already: "[2,3]". */
void json_raw(struct json *j, cJSON *object, const char *name, const char *text);

/* Print the object as one line and free it. Errors: -ENOMEM, and then nothing is printed. Errors of
 * writing stay in OUT, where the program looks for them at its end. */
int json_print(struct json *j, FILE *out, struct bd_error *err);
/* Free it without printing. */
void json_drop(struct json *j);

#endif
