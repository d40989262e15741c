/* SPDX-License-Identifier: Apache-2.0 */
/* units.h: sizes as people read them. */
#ifndef BD_UNITS_H
#define BD_UNITS_H

#include <stdint.h>

/* "13.5 GB": decimal units into buf, which is returned. */
char *bd_units_bytes(uint64_t bytes, char buf[32]);

#endif
