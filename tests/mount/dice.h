/* SPDX-License-Identifier: Apache-2.0 */
/* dice.h: chance, time and giving up, for the programs that read a mount. */
#ifndef DICE_H
#define DICE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Not 0; each process has its own, so that a run can be repeated. */
static uint64_t dice_state;

/* A number smaller than BELOW. */
static uint64_t dice(uint64_t below)
{
	dice_state ^= dice_state << 13;
	dice_state ^= dice_state >> 7;
	dice_state ^= dice_state << 17;
	return dice_state % below;
}

/* Seconds since some moment. */
static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

#endif
