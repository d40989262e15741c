/* SPDX-License-Identifier: Apache-2.0 */
/* container.c: a safetensors file whose header is written last, see container.h. */
#include "container.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"

static unsigned digits(uint64_t n)
{
	unsigned count = 1;

	while (n >= 10) {
		n /= 10;
		count++;
	}
	return count;
}

size_t bd_container_entry_bound(size_t name, enum bd_dtype dtype, size_t shape, uint64_t data)
{
	/* The fixed part is `,:{"dtype":"","shape":,"data_offsets":[,]}`. */
	return 41 + name + strlen(bd_dtype_name(dtype)) + shape + 2 * digits(data);
}

size_t bd_container_name_bound(const char *name)
{
	struct bd_buffer b = { 0 };
	size_t size;

	bd_buffer_json_string(&b, name, strlen(name));
	size = b.failed ? 6 * strlen(name) + 2 : b.size;
	bd_buffer_free(&b);
	return size;
}

static int out_of_memory(const char *path, struct bd_error *err)
{
	return bd_error_set(err, -ENOMEM, "%s: out of memory", path);
}

int bd_container_open(struct bd_container **out, const char *path, uint64_t bound,
		      struct bd_error *err)
{
	struct bd_container *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return out_of_memory(path, err);
	c->reserved = (bound + 7) / 8 * 8;
	rc = bd_output_open(&c->output, path, err);
	if (rc < 0) {
		bd_container_close(c);
		return rc;
	}
	*out = c;
	return 0;
}

int bd_container_place(struct bd_container *c, const char *kind, const char *name,
		       enum bd_dtype dtype, unsigned dims, const uint64_t *shape, uint64_t size,
		       uint64_t *offset, struct bd_error *err)
{
	struct bd_placed *p;

	if (c->count == c->capacity) {
		size_t capacity = c->capacity ? 2 * c->capacity : 256;
		struct bd_placed *grown = realloc(c->placed, capacity * sizeof(*grown));

		if (!grown)
			return out_of_memory(c->output->path, err);
		c->placed = grown;
		c->capacity = capacity;
	}
	p = &c->placed[c->count];
	*p = (struct bd_placed){ .dtype = dtype, .dims = dims, .offset = c->data_size, .size = size };
	memcpy(p->shape, shape, dims * sizeof(*shape));
	if (asprintf(&p->name, "%s%s%s", kind, *name ? "/" : "", name) < 0)
		return out_of_memory(c->output->path, err);
	c->count++;
	c->data_size += size;
	*offset = c->reserved + p->offset;
	return 0;
}

int bd_container_add(struct bd_container *c, const char *kind, const char *name, const void *data,
		     uint64_t size, struct bd_error *err)
{
	uint64_t offset = 0;
	int rc = bd_container_place(c, kind, name, BD_U8, 1, &size, size, &offset, err);

	return rc < 0 ? rc : bd_output_write(c->output, data, size, offset, err);
}

int bd_container_finish(struct bd_container *c, const char *metadata, struct bd_error *err)
{
	struct bd_buffer b = { 0 };
	uint64_t length = c->reserved - 8;
	int rc;

	for (int i = 0; i < 8; i++)
		bd_buffer_append(&b, &(char){ (char)(length >> 8 * i) }, 1);
	bd_buffer_printf(&b, "{\"__metadata__\":%s", metadata);
	for (size_t i = 0; i < c->count; i++) {
		const struct bd_placed *p = &c->placed[i];

		bd_buffer_printf(&b, ",");
		bd_buffer_json_string(&b, p->name, strlen(p->name));
		bd_buffer_printf(&b, ":{\"dtype\":\"%s\",\"shape\":[", bd_dtype_name(p->dtype));
		for (unsigned d = 0; d < p->dims; d++)
			bd_buffer_printf(&b, "%s%" PRIu64, d ? "," : "", p->shape[d]);
		bd_buffer_printf(&b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", p->offset,
				 p->offset + p->size);
	}
	bd_buffer_printf(&b, "}");
	while (!b.failed && b.size < c->reserved)
		bd_buffer_append(&b, " ", 1);
	if (b.failed)
		rc = out_of_memory(c->output->path, err);
	else if (b.size > c->reserved || length > BD_MAX_HEADER)
		rc = bd_error_set(err, -E2BIG, "%s: too many tensors for one safetensors header",
				  c->output->path);
	else
		rc = bd_output_write(c->output, b.data, b.size, 0, err);
	bd_buffer_free(&b);
	return rc;
}

void bd_container_close(struct bd_container *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < c->count; i++)
		free(c->placed[i].name);
	free(c->placed);
	bd_output_close(c->output);
	free(c);
}
