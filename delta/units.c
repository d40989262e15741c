/* SPDX-License-Identifier: Apache-2.0 */
/* units.c: see units.h. */
#include "units.h"

#include <stdio.h>

char *bd_units_bytes(uint64_t bytes, char buf[32])
{
	static const char units[] = " kMGTPE";
	double value = (double)bytes;
	int unit = 0;

	while (value >= 999.5 && units[unit + 1]) {
		value /= 1000;
		unit++;
	}
	if (unit == 0)
		snprintf(buf, 32, "%d B", (int)bytes);
	else
		snprintf(buf, 32, "%.*f %cB", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value,
			 units[unit]);
	return buf;
}
