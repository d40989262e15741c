/* SPDX-License-Identifier: Apache-2.0 */
/* names.h: a table from names to numbers, for look-ups in constant time.
 *
 * The names come from files that strangers wrote, so the hash is keyed: nobody can prepare names
 * that all fall into one slot. The table borrows the names (C strings), which must outlive it.
 * Adding needs the table for itself; any number of threads may look up at once. */
#ifndef BD_NAMES_H
#define BD_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bd_name_table;

/* A table that takes `expected` names without growing (it grows where needed). NULL where there
 * is no memory. */
struct bd_name_table *bd_name_table_new(size_t expected);
void bd_name_table_free(struct bd_name_table *t); /* NULL allowed */

/* 0; -EEXIST, and nothing is changed, where the name is there already; -ENOMEM. */
int bd_name_table_add(struct bd_name_table *t, const char *name, uint32_t number);
/* Another number for a name that is there. */
void bd_name_table_replace(struct bd_name_table *t, const char *name, uint32_t number);
/* True where the name is there; *number (may be NULL) is then what was added with it. */
bool bd_name_table_find(const struct bd_name_table *t, const char *name, uint32_t *number);

#endif
