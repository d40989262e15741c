/* SPDX-License-Identifier: Apache-2.0 */
/* names.c: the hash table from names to numbers, see names.h.
 *
 * Open addressing with linear probing over 16-byte slots, at most three quarters full. A slot keeps
 * half of the hash, so that growing touches no name and nearly no mismatch costs a comparison. */
#include "names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <xxhash.h>

struct slot {
	const char *name; /* NULL: free */
	uint32_t hash;
	uint32_t number;
};

struct bd_name_table {
	struct slot *slots;
	size_t mask; /* slots - 1; a power of two less one */
	size_t used;
	uint64_t key;
};

/* The kernel gives every process 16 random bytes: a secret without a system call and without
 * global state. Hashes never leave the process, so its other users lose nothing. */
static uint64_t process_key(void)
{
	const void *random = (const void *)getauxval(AT_RANDOM);
	uint64_t key = 0;

	if (random)
		memcpy(&key, random, sizeof(key));
	return key;
}

static uint32_t hash_of(const struct bd_name_table *t, const char *name)
{
	return (uint32_t)XXH3_64bits_withSeed(name, strlen(name), t->key);
}

/* The slot of the name, or the free slot where it would go. */
static struct slot *slot_of(const struct bd_name_table *t, const char *name, uint32_t hash)
{
	size_t i = hash & t->mask;

	while (t->slots[i].name &&
	       (t->slots[i].hash != hash || strcmp(t->slots[i].name, name) != 0))
		i = (i + 1) & t->mask;
	return &t->slots[i];
}

static int grow(struct bd_name_table *t)
{
	size_t mask = t->mask * 2 + 1;
	struct slot *slots;

	if (mask > UINT32_MAX) /* the hashes have no more bits */
		return -ENOMEM;
	slots = calloc(mask + 1, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i <= t->mask; i++) {
		size_t to = t->slots[i].hash & mask;

		if (!t->slots[i].name)
			continue;
		while (slots[to].name)
			to = (to + 1) & mask;
		slots[to] = t->slots[i];
	}
	free(t->slots);
	t->slots = slots;
	t->mask = mask;
	return 0;
}

struct bd_name_table *bd_name_table_new(size_t expected)
{
	struct bd_name_table *t = calloc(1, sizeof(*t));
	size_t slots = 8;

	if (!t)
		return NULL;
	while (slots - slots / 4 < expected && slots <= UINT32_MAX / 2)
		slots *= 2;
	t->slots = calloc(slots, sizeof(*t->slots));
	if (!t->slots) {
		free(t);
		return NULL;
	}
	t->mask = slots - 1;
	t->key = process_key();
	return t;
}

void bd_name_table_free(struct bd_name_table *t)
{
	if (!t)
		return;
	free(t->slots);
	free(t);
}

int bd_name_table_add(struct bd_name_table *t, const char *name, uint32_t number)
{
	uint32_t hash = hash_of(t, name);
	struct slot *slot = slot_of(t, name, hash);
	int rc;

	if (slot->name)
		return -EEXIST;
	if (t->used >= t->mask + 1 - (t->mask + 1) / 4) {
		rc = grow(t);
		if (rc)
			return rc;
		slot = slot_of(t, name, hash);
	}
	*slot = (struct slot){ .name = name, .hash = hash, .number = number };
	t->used++;
	return 0;
}

void bd_name_table_replace(struct bd_name_table *t, const char *name, uint32_t number)
{
	slot_of(t, name, hash_of(t, name))->number = number;
}

bool bd_name_table_find(const struct bd_name_table *t, const char *name, uint32_t *number)
{
	const struct slot *slot = slot_of(t, name, hash_of(t, name));

	if (!slot->name)
		return false;
	if (number)
		*number = slot->number;
	return true;
}
