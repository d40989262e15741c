/* SPDX-License-Identifier: Apache-2.0 */
/* example.c: list what a fine-tune holds, or write one of its tensors to standard output.
 *
 *	cc example.c $(pkg-config --cflags --libs libbitdelta) -o example
 *	./example BASE X.bdelta
 *	./example BASE X.bdelta model.norm.weight | od -A d -t f4 | head */
#include <bitdelta.h>
#include <err.h>
#include <inttypes.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	static char buf[1 << 20];
	struct bitdelta_base *base;
	struct bitdelta_error e;
	struct bitdelta *d;
	ssize_t tensor, n;

	if (argc != 3 && argc != 4)
		errx(2, "Usage: example BASE X.bdelta [TENSOR]");
	if (bitdelta_base_open(&base, argv[1], &e) < 0 || bitdelta_open(&d, base, argv[2], &e) < 0)
		errx(1, "%s", e.text);
	for (size_t i = 0; argc == 3 && i < bitdelta_tensor_count(d); i++) {
		const struct bitdelta_tensor *t = bitdelta_tensor_at(d, i);

		printf("%s %s %s %" PRIu64 " bytes in %s%s\n", t->name, t->dtype, t->encoding,
		       t->size, bitdelta_file_at(d, t->file)->name, t->lossy ? ", lossy" : "");
	}
	tensor = argc == 4 ? bitdelta_find_tensor(d, argv[3]) : 0;
	if (tensor < 0)
		errx(1, "%s has no tensor '%s'", bitdelta_name(d), argv[3]);
	for (uint64_t at = 0; argc == 4; at += (uint64_t)n) {
		n = bitdelta_read_tensor(d, (size_t)tensor, buf, sizeof(buf), at, &e);
		if (n < 0)
			errx(1, "%s", e.text);
		if (n == 0 || fwrite(buf, 1, (size_t)n, stdout) != (size_t)n)
			break;
	}
	bitdelta_close(d);
	bitdelta_base_close(base);
	if (fflush(stdout) != 0)
		err(1, "standard output");
	return 0;
}
