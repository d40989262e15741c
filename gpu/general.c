/* SPDX-License-Identifier: Apache-2.0 */
/* general.c: the general text that the program carries, put into it when it is assembled (the
 * compiler runs in the project's root). See general.h. */
#include "general.h"

extern const char bdx_general_begin[], bdx_general_end[];

__asm__(".pushsection .rodata\n"
	"bdx_general_begin:\n"
	".incbin \"gpu/general/01-prose.txt\"\n"
	".incbin \"gpu/general/11-dialogue.txt\"\n"
	".incbin \"gpu/general/02-dictionary.txt\"\n"
	".incbin \"gpu/general/12-reasoning.txt\"\n"
	".incbin \"gpu/general/03-technical.txt\"\n"
	".incbin \"gpu/general/13-news-and-reviews.txt\"\n"
	".incbin \"gpu/general/04-code.txt\"\n"
	".incbin \"gpu/general/14-formal.txt\"\n"
	".incbin \"gpu/general/05-stories.txt\"\n"
	".incbin \"gpu/general/15-languages.txt\"\n"
	"bdx_general_end:\n"
	".popsection\n");

const char *bdx_general_text(size_t *size)
{
	*size = (size_t)(bdx_general_end - bdx_general_begin);
	return bdx_general_begin;
}
