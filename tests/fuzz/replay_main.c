/* SPDX-License-Identifier: Apache-2.0 */
/* replay_main.c: run a fuzz target over files instead of under a fuzzer, so that a corpus can be
 * replayed with any compiler.
 *
 *     PROGRAM FILE|DIRECTORY...
 *
 * Directories are searched with everything below them. Prints the number of inputs; exits 1 where
 * one cannot be read or there is none. A finding ends the process, as under the fuzzer. */
#include <errno.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long inputs;

static int replay(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	size_t size = (size_t)st->st_size;
	uint8_t *data;
	FILE *f;

	(void)ftw;
	if (type == FTW_D)
		return 0;
	/* Exactly as large as the input, so that a sanitizer sees a read past its end. */
	data = malloc(size ? size : 1);
	f = type == FTW_F ? fopen(path, "rb") : NULL;
	if (!data || !f || (size && fread(data, size, 1, f) != 1)) {
		fprintf(stderr, "%s: cannot be read\n", path);
		return 1;
	}
	fclose(f);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
	inputs++;
	return 0;
}

int main(int argc, char **argv)
{
	int status = 0;

	for (int i = 1; i < argc; i++) {
		int rc = nftw(argv[i], replay, 16, 0);

		if (rc < 0)
			fprintf(stderr, "%s: %s\n", argv[i], strerror(errno));
		status |= rc != 0;
	}
	printf("%lu inputs\n", inputs);
	return status || inputs == 0;
}
