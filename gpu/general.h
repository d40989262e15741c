/* SPDX-License-Identifier: Apache-2.0 */
/* general.h: the general text that the program carries for calibration: gpu/general/, some 200
 * kB in many registers, written for this project. */
#ifndef BDX_GENERAL_H
#define BDX_GENERAL_H

#include <stddef.h>

/* All of it, UTF-8, static. */
const char *bdx_general_text(size_t *size);

#endif
