/* SPDX-License-Identifier: Apache-2.0 */
/* jsonout.c: JSON lines by cJSON, see jsonout.h. */
#include "jsonout.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "utf8.h"

/* Every item passes here once. */
static cJSON *noted(struct json *j, cJSON *item)
{
	if (!item)
		j->failed = true;
	return item;
}

cJSON *json_begin(struct json *j)
{
	*j = (struct json){ 0 };
	j->root = noted(j, cJSON_CreateObject());
	return j->root;
}

cJSON *json_object(struct json *j, cJSON *object, const char *name)
{
	return noted(j, cJSON_AddObjectToObject(object, name));
}

cJSON *json_array(struct json *j, cJSON *object, const char *name)
{
	return noted(j, cJSON_AddArrayToObject(object, name));
}

cJSON *json_element(struct json *j, cJSON *array)
{
	cJSON *item = noted(j, cJSON_CreateObject());

	if (item && !cJSON_AddItemToArray(array, item)) {
		cJSON_Delete(item);
		item = noted(j, NULL);
	}
	return item;
}

void json_string(struct json *j, cJSON *object, const char *name, const char *text)
{
	struct bd_buffer b = { 0 };
	size_t left = strlen(text);
	uint32_t code;

	bd_buffer_append(&b, "", 0); /* so that there is data for an empty text */
	while (left > 0) {
		unsigned n = bd_utf8_decode(text, left, &code);

		if (n > 0)
			bd_buffer_append(&b, text, n);
		else
			bd_buffer_append(&b, "\xef\xbf\xbd", 3);
		text += n ? n : 1;
		left -= n ? n : 1;
	}
	noted(j, b.failed ? NULL : cJSON_AddStringToObject(object, name, b.data));
	bd_buffer_free(&b);
}

void json_bool(struct json *j, cJSON *object, const char *name, bool value)
{
	noted(j, cJSON_AddBoolToObject(object, name, value));
}

void json_number(struct json *j, cJSON *object, const char *name, const char *format, ...)
{
	char text[64];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	json_raw(j, object, name, text);
}

void json_raw(struct json *j, cJSON *object, const char *name, const char *text)
{
	noted(j, cJSON_AddRawToObject(object, name, text));
}

int json_print(struct json *j, FILE *out, struct bd_error *err)
{
	char *text = j->failed ? NULL : cJSON_PrintUnformatted(j->root);

	json_drop(j);
	if (!text)
		return bd_error_set(err, -ENOMEM, "out of memory for the JSON output");
	fprintf(out, "%s\n", text);
	cJSON_free(text);
	return 0;
}

void json_drop(struct json *j)
{
	cJSON_Delete(j->root);
	j->root = NULL;
}
