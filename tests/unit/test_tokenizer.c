/* SPDX-License-Identifier: Apache-2.0 */
/* test_tokenizer.c: the tokenizer on files small enough to work out the tokens by hand, on damaged
 * and on hostile ones. tests/engine/tokenizer.py compares it with the package on more lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "stream.h"
#include "testdata.h"
#include "tokenizer_impl.h"
#include "utf8.h"

#define MEGABYTE ((size_t)1 << 20)
#define ADDED(members) "'added_tokens':[" members "],"
#define MODEL(members, vocab, merges) \
	"'model':{'type':'BPE'," members "'vocab':{" vocab "},'merges':[" merges "]}"

static struct bd_error err;

/* Text as it is written here, with ' for the quotes of JSON, as it is meant. */
static char *quoted(const char *text)
{
	char *copy = td_format("%s", text);

	for (char *p = copy; *p; p++)
		if (*p == '\'')
			*p = '"';
	return copy;
}

static struct bdx_tokenizer *open_json(const char *text)
{
	const char *json = quoted(text);
	struct bdx_tokenizer *t;

	if (bdx_tokenizer_open(&t, json, strlen(json), "tokenizer.json", &err))
		fail_msg("%s", err.text);
	return t;
}

static char *show(const int32_t *tokens, size_t count)
{
	struct bd_buffer b = { 0 };

	bd_buffer_append(&b, "", 0);
	for (size_t i = 0; i < count; i++)
		bd_buffer_printf(&b, "%s%d", i ? " " : "", tokens[i]);
	return b.data;
}

static void check_encode(const struct bdx_tokenizer *t, const char *text, size_t size, bool special,
			 const char *expected)
{
	int32_t *tokens;
	size_t count;
	char *shown;

	if (bdx_tokenizer_encode(t, text, size, special, &tokens, &count, &err))
		fail_msg("%s: %s", text, err.text);
	shown = show(tokens, count);
	if (strcmp(shown, expected) != 0)
		fail_msg("'%s' gives %s, expected %s", text, shown, expected);
	free(shown);
	free(tokens);
}

static void encodes(const struct bdx_tokenizer *t, const char *text, const char *expected)
{
	check_encode(t, text, strlen(text), false, expected);
}

/* TOKENS as numbers with spaces between them. */
static void decodes(const struct bdx_tokenizer *t, const char *tokens, bool skip,
		    const char *expected)
{
	int32_t numbers[64];
	size_t count = 0, size;
	char *text, *end;

	while (*tokens) {
		numbers[count++] = (int32_t)strtol(tokens, &end, 10);
		tokens = end;
	}
	assert_int_equal(bdx_tokenizer_decode(t, numbers, count, skip, &text, &size, &err), 0);
	assert_string_equal(text, expected);
	assert_int_equal(size, strlen(expected));
	free(text);
}

/* --- The model --- */

static void merges(void **state)
{
	struct bdx_tokenizer *t = open_json("{" MODEL("",
		"'a':0,'b':1,'c':2,'ab':3,'bc':4,'abc':5,'aa':6,'aaaa':7,'\\u00e9':8",
		"['b','c'],['a','b'],['ab','c'],['a','a'],['aa','aa']") "}");

	(void)state;
	encodes(t, "", "");
	encodes(t, "c", "2");
	encodes(t, "ab", "3");
	encodes(t, "abc", "0 4");     /* b c has the lower rank, and a bc is none */
	encodes(t, "aab", "0 3");     /* a b before a a */
	encodes(t, "aaa", "6 0");     /* leftmost first */
	encodes(t, "aaaaaaa", "7 6 0");
	encodes(t, "aaaab", "6 0 3");
	encodes(t, "xa\xc3\xa9y", "0 8"); /* without an unknown token, the unknown is dropped */
	assert_int_equal(bdx_tokenizer_size(t), 9);
	assert_int_equal(bdx_tokenizer_find(t, "abc"), 5);
	assert_int_equal(bdx_tokenizer_find(t, "\xc3\xa9"), 8);
	assert_int_equal(bdx_tokenizer_find(t, "x"), -1);
	assert_false(bdx_tokenizer_is_special(t, 0));
	assert_false(bdx_tokenizer_is_special(t, 99));
	assert_false(bdx_tokenizer_is_special(t, -1));
	decodes(t, "0 4 77 -5 2", true, "a bc c"); /* no decoder: spaces */
	bdx_tokenizer_close(t);
	bdx_tokenizer_close(NULL);

	/* Merges as strings, with the comment that old files have; members in another order. */
	t = open_json("{'model':{'merges':['#version: 0.2','a b'],'vocab':{'ab':2,'a':0,'b':1},"
		"'dropout':0.0,'end_of_word_suffix':''},'other':[{}]}");
	encodes(t, "abba", "2 1 0");
	bdx_tokenizer_close(t);

	/* A pair twice: the later rank counts, so that b c goes first. */
	t = open_json("{" MODEL("", "'a':0,'b':1,'c':2,'ab':3,'bc':4",
				"'a b','b c','a b'") "}");
	encodes(t, "abc", "0 4");
	bdx_tokenizer_close(t);

	/* A whole word of the vocabulary that no merges lead to. */
	t = open_json("{" MODEL("'ignore_merges':true,", "'a':0,'b':1,'aba':2", "") "}");
	encodes(t, "aba", "2");
	encodes(t, "abab", "0 1 0 1");
	bdx_tokenizer_close(t);
}

static void unknown(void **state)
{
	static const char vocab[] = "'<unk>':0,'a':1,'<0xC3>':2,'<0xA9>':3,'<0x0A>':4";
	struct bdx_tokenizer *t;
	int32_t *tokens;
	size_t count;

	(void)state;
	t = open_json(td_format("{'model':{'unk_token':'<unk>','vocab':{%s},'merges':[]}}", vocab));
	encodes(t, "xxa\xc3\xa9", "0 0 1 0");
	bdx_tokenizer_close(t);
	t = open_json(td_format("{'model':{'unk_token':'<unk>','fuse_unk':true,'vocab':{%s},"
		"'merges':[]}}", vocab));
	encodes(t, "xxa\xc3\xa9y", "0 1 0");
	bdx_tokenizer_close(t);
	t = open_json(td_format("{'model':{'unk_token':'<unk>','fuse_unk':true,"
		"'byte_fallback':true,'vocab':{%s},'merges':[]}}", vocab));
	encodes(t, "a\xc3\xa9\n", "1 2 3 4");
	encodes(t, "\xc3\xa8", "0"); /* all bytes of a character or none */
	/* As in the package: what is unknown waits for the next character of the vocabulary. */
	encodes(t, "x\ny\na", "4 4 0 1");
	/* Not UTF-8: U+FFFD for each maximal part. */
	check_encode(t, "\xff" "a\xe2\x82" "a\xed\xa0", 7, false, "0 1 0 1 0");
	bdx_tokenizer_close(t);

	t = open_json("{" MODEL("'unk_token':'[UNK]',", "'a':0", "") "}");
	encodes(t, "aa", "0 0");
	assert_int_equal(bdx_tokenizer_encode(t, "ab", 2, false, &tokens, &count, &err), -EINVAL);
	assert_non_null(strstr(err.text, "[UNK]"));
	assert_null(tokens);
	bdx_tokenizer_close(t);
}

/* --- Components --- */

#define LLAMA_VOCAB "'<unk>':0,'<s>':1,'</s>':2,'\u2581':3,'a':4,'b':5,'\u2581a':6"
#define TOKEN(text, flags) "{'id':0,'content':'" text "'," flags "'special':true}"
#define RAW "'normalized':false,"

static void prepended_spaces(void **state)
{
	struct bdx_tokenizer *t = open_json("{" ADDED(TOKEN("<s>", RAW) "," TOKEN("</s>", RAW))
		"'normalizer':{'type':'Sequence','normalizers':["
		"{'type':'Prepend','prepend':'\u2581'},"
		"{'type':'Replace','pattern':{'String':' '},'content':'\u2581'}]},"
		MODEL("", LLAMA_VOCAB, "'\u2581 a'") "}");

	(void)state;
	encodes(t, "ab", "6 5");
	encodes(t, " a", "3 6");
	encodes(t, "<s>a<s></s> b", "1 6 1 2 3 3 5"); /* each part between added tokens */
	bdx_tokenizer_close(t);
}

static struct bdx_tokenizer *open_metaspace(const char *scheme, const char *split)
{
	return open_json(td_format("{" ADDED(TOKEN("<s>", RAW))
		"'pre_tokenizer':{'type':'Metaspace','replacement':'\u2581',%s'split':%s},"
		MODEL("", LLAMA_VOCAB ",'b\u2581':7", "'b \u2581','\u2581 a'") "}", scheme, split));
}

static void metaspace(void **state)
{
	struct bdx_tokenizer *t = open_metaspace("'prepend_scheme':'first',", "true");

	(void)state;
	encodes(t, "a<s>a", "6 1 4");
	encodes(t, "<s>a", "1 4");
	encodes(t, " a b a", "6 3 5 6");
	encodes(t, "  ", "3 3");
	bdx_tokenizer_close(t);
	t = open_metaspace("", "false");
	encodes(t, "a<s>a", "6 1 6");
	encodes(t, "\u2581" "b a", "3 7 4"); /* not cut before the space: b+space merges */
	bdx_tokenizer_close(t);
	t = open_metaspace("'prepend_scheme':'never',", "true");
	encodes(t, "a a<s> a", "4 6 1 6");
	bdx_tokenizer_close(t);
	t = open_metaspace("'add_prefix_space':false,", "true"); /* how older files say `never` */
	encodes(t, "a a", "4 6");
	bdx_tokenizer_close(t);
}

static void byte_level(void **state)
{
	struct bdx_tokenizer *t = open_json("{'pre_tokenizer':{'type':'ByteLevel',"
		"'add_prefix_space':true},'decoder':{'type':'ByteLevel'}," MODEL("",
		"'a':0,'\u0120':1,'\u0120a':2,'\u00c3':3,'\u00a9':4,'\u010a':5,'\\u0027':6,'s':7,"
		"'\\u0027s':8,'a\\u0027':9,'\u0120\u0120':10",
		"'\u0120 a','a \\u0027','\\u0027 s','\u0120 \u0120'") "}");

	(void)state;
	encodes(t, "a a's", "2 2 8");      /* the word ends before 's, so that a' is not merged */
	encodes(t, " a", "2");
	encodes(t, "\xc3\xa9", "1 3 4");
	encodes(t, "a   a", "2 10 2");     /* the last space belongs to the word */
	encodes(t, "\n a", "1 5 2");
	decodes(t, "2 1 3 4", true, " a \xc3\xa9");
	decodes(t, "3 0 4", true, "\xef\xbf\xbd" "a\xef\xbf\xbd");
	bdx_tokenizer_close(t);
	for (unsigned byte = 0; byte < 256; byte++)
		assert_int_equal(bdx_unicode_char_byte(bdx_unicode_byte_char((unsigned char)byte)),
				 byte);
	assert_int_equal(bdx_unicode_char_byte(0x20), -1);
	assert_int_equal(bdx_unicode_char_byte(0xad), -1);
	assert_int_equal(bdx_unicode_char_byte(0x144), -1);
}

static void added_tokens(void **state)
{
	struct bdx_tokenizer *t = open_json("{" ADDED(
		TOKEN("<x>", RAW) "," TOKEN("<x>>", RAW) ","
		TOKEN("<l>", RAW "'lstrip':true,") "," TOKEN("<r>", RAW "'rstrip':true,") ","
		TOKEN("<w>", RAW "'single_word':true,") ",{'content':'Big','normalized':true},"
			TOKEN("b", RAW) "," TOKEN("", ""))
		"'normalizer':{'type':'Lowercase'},"
		MODEL("", "'a':0,'b':1,' ':2,'<':3,'w':4,'>':5,'B':6", "") "}");

	(void)state;
	encodes(t, "a<x>a", "0 7 0");
	encodes(t, "<x>><x>", "8 7");          /* the longest */
	encodes(t, "<<x>", "3 7");
	encodes(t, "a  <l> a", "0 9 2 0");     /* takes the spaces before it */
	encodes(t, "a <r> \t\na", "0 2 10 0"); /* and after it */
	encodes(t, "<r> <l>", "10 9");
	encodes(t, "<w>a<w> <w>", "3 4 5 0 3 4 5 2 11"); /* only where it stands alone */
	encodes(t, "BIG BiG", "12 2 12");      /* matched in normalized text */
	encodes(t, "bB", "1 1");               /* the first of them as it is, in the raw text */
	assert_int_equal(bdx_tokenizer_size(t), 13);
	assert_int_equal(bdx_tokenizer_find(t, "<x>>"), 8);
	assert_true(bdx_tokenizer_is_special(t, 8));
	assert_true(bdx_tokenizer_is_special(t, 1)); /* the vocabulary has it, too */
	assert_false(bdx_tokenizer_is_special(t, 12));
	decodes(t, "7 0 12", true, "a Big");
	decodes(t, "7 0 12", false, "<x> a Big");
	bdx_tokenizer_close(t);
}

#define SPLIT(pattern, behavior, invert) \
	"'Split','pattern':{" pattern "},'behavior':'" behavior "','invert':" invert

static void splits(void **state)
{
	static const struct {
		const char *step, *expected;
	} cases[] = { /* for "a-a--a"; the vocabulary shows which words there are */
		{ SPLIT("'String':'-'", "Removed", "false"), "0 0 0" },
		{ SPLIT("'String':'-'", "Isolated", "false"), "0 1 0 1 1 0" },
		{ SPLIT("'Regex':'-'", "MergedWithPrevious", "false"), "2 2 1 0" },
		{ SPLIT("'Regex':'-'", "MergedWithNext", "false"), "0 3 1 3" },
		{ SPLIT("'Regex':'-'", "Contiguous", "false"), "0 1 0 4 0" },
		{ SPLIT("'Regex':'a'", "MergedWithPrevious", "true"), "2 5 0" },
		{ SPLIT("'Regex':'-+'", "MergedWithNext", "false"), "0 3 6" },
		{ "'Punctuation'", "0 1 0 1 1 0" },
		{ "'Punctuation','behavior':'Contiguous'", "0 1 0 4 0" },
		{ "'Whitespace'", "0 1 0 4 0" },
		{ "'WhitespaceSplit'", "0 1 0 1 1 0" }, /* nothing to cut: one unknown word */
		{ "'Sequence','pretokenizers':[]", "0 1 0 1 1 0" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct bdx_tokenizer *t = open_json(td_format("{'pre_tokenizer':{'type':%s},"
			MODEL("'ignore_merges':true,", "'a':0,'-':1,'a-':2,'-a':3,'--':4,'a--':5,"
			"'--a':6", "") "}", cases[i].step));

		encodes(t, "a-a--a", cases[i].expected);
		bdx_tokenizer_close(t);
	}
}

static void digits(void **state)
{
	struct bdx_tokenizer *t = open_json("{'pre_tokenizer':{'type':'Sequence',"
		"'pretokenizers':[{'type':'WhitespaceSplit'},{'type':'Digits',"
		"'individual_digits':false}]},"
		MODEL("'ignore_merges':true,", "'1':0,'12':1,'a':2,'a1':3,'121':4", "") "}");

	(void)state;
	encodes(t, "a12 1 121a1", "2 1 0 4 2 0");
	bdx_tokenizer_close(t);
	t = open_json("{'pre_tokenizer':{'type':'Digits','individual_digits':true},"
		      MODEL("'ignore_merges':true,", "'1':0,'11':1,'a':2,'\u00bd':3", "") "}");
	encodes(t, "a11\u00bd" "1", "2 0 0 3 0");
	bdx_tokenizer_close(t);
}

static void template(void **state)
{
	static const char post[] = "{'type':'TemplateProcessing',"
		"'single':[{'SpecialToken':{'id':'<s>','type_id':0}},{'Sequence':{'id':'A',"
		"'type_id':0}},{'SpecialToken':{'id':'end','type_id':0}}],'pair':[],"
		"'special_tokens':{'end':{'id':'end','ids':[2,0],'tokens':['x','y']},"
		"'<s>':{'id':'<s>','ids':[1],'tokens':['<s>']}}}";
	struct bdx_tokenizer *t = open_json(td_format("{'post_processor':{'type':'Sequence',"
		"'processors':[{'type':'ByteLevel'},%s]}," MODEL("", LLAMA_VOCAB, "") "}", post));

	(void)state;
	check_encode(t, "ab", 2, true, "1 4 5 2 0");
	check_encode(t, "", 0, true, "1 2 0");
	check_encode(t, "ab", 2, false, "4 5");
	bdx_tokenizer_close(t);
}

static void decoders(void **state)
{
	struct bdx_tokenizer *t = open_json("{" ADDED(TOKEN("<s>", RAW))
		"'decoder':{'type':'Sequence','decoders':["
		"{'type':'Replace','pattern':{'String':'\u2581'},'content':' '},"
		"{'type':'ByteFallback'},{'type':'Fuse'},"
		"{'type':'Strip','content':' ','start':1,'stop':0}]},"
		MODEL("", "'<s>':0,'\u2581a':1,'<0xC3>':2,'<0xA9>':3,'<0xe2>':4,'<0x4>':5,"
		"'\u2581\u2581':6,'b':7", "") "}");

	(void)state;
	decodes(t, "1 1", true, "a a");
	decodes(t, "0 1", true, "a");
	decodes(t, "0 1", false, "<s> a");
	decodes(t, "6 7", true, " b");
	decodes(t, "2 3 7", true, "\xc3\xa9" "b");
	decodes(t, "2 7 3", true, "\xef\xbf\xbd" "b\xef\xbf\xbd");
	decodes(t, "4 2 3", true, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* all bytes or none */
	decodes(t, "5", true, "<0x4>");
	decodes(t, "", true, "");
	decodes(t, "55 -1", true, "");
	bdx_tokenizer_close(t);
	t = open_json("{'decoder':{'type':'Metaspace','replacement':'_'},"
		      MODEL("", "'_a':0,'_':1", "") "}");
	decodes(t, "0 0 1", true, "a a ");
	bdx_tokenizer_close(t);
	t = open_json("{'decoder':{'type':'Sequence','decoders':[{'type':'Strip','content':'_',"
		"'start':0,'stop':2},{'type':'Replace','pattern':{'Regex':'[b-d]+'},"
		"'content':'-'}]}," MODEL("", "'a___':0,'_':1,'abcbe':2", "") "}");
	decodes(t, "0 1 2", true, "a_a-e");
	bdx_tokenizer_close(t);
}

/* --- Characters and patterns --- */

static void normalized(const char *text, enum bdx_form form, const char *expected)
{
	struct bd_buffer b = { 0 };

	assert_int_equal(bdx_unicode_normalize(&b, text, strlen(text), form), 0);
	assert_string_equal(b.data, expected);
	bd_buffer_free(&b);
}

static void normalization(void **state)
{
	(void)state;
	normalized("e\u0301", BDX_NFC, "\u00e9");
	normalized("\u00e9", BDX_NFD, "e\u0301");
	normalized("q\u0307\u0323", BDX_NFC, "q\u0323\u0307"); /* below comes before above */
	normalized("\u0301\u0323x\u0301\u0323", BDX_NFD, "\u0323\u0301x\u0323\u0301");
	normalized("\u1112\u1161\u11ab", BDX_NFC, "\ud55c");
	normalized("\ud55c", BDX_NFD, "\u1112\u1161\u11ab");
	normalized("\ufb01\u00bd", BDX_NFKC, "fi1\u20442");
	normalized("\ufb01\u00e9", BDX_NFC, "\ufb01\u00e9");
	normalized("\u212b\uff21", BDX_NFKD, "A\u030aA");
	normalized("\u0958", BDX_NFC, "\u0915\u093c"); /* excluded from composition */
	normalized("plain", BDX_NFKD, "plain");
}

/* TEXT with its matches in brackets. */
static void matches(const char *pattern, const char *text, const char *expected)
{
	struct bdx_tokenizer t = { .name = (char *)"t" };
	struct bdx_pattern *p;
	struct bd_buffer b = { 0 };
	struct bdx_run run;

	if (bdx_pattern_open(&p, pattern, strlen(pattern), false, "t", &err))
		fail_msg("%s", err.text);
	bdx_run_init(&run, &t, strlen(text), &err);
	if (bdx_pattern_split(p, &run, text, strlen(text)))
		fail_msg("%s", err.text);
	bd_buffer_append(&b, "", 0);
	for (size_t i = 0; i < run.spans.count; i++) {
		const struct bdx_span *s = &run.spans.data[i];

		bd_buffer_printf(&b, s->match ? "[%.*s]" : "%.*s", (int)(s->end - s->start),
				 text + s->start);
	}
	if (strcmp(b.data, expected) != 0)
		fail_msg("/%s/ gives %s, expected %s", pattern, b.data, expected);
	bd_buffer_free(&b);
	bdx_run_free(&run);
	bdx_pattern_close(p);
}

static void patterns(void **state)
{
	(void)state;
	matches("b", "abcb", "a[b]c[b]");
	matches("x", "", "");
	matches("x*", "axxb", "[]a[xx]b[]");
	matches("\\p{N}{1,3}", "1234567", "[123][456][7]");
	matches("\\p{N}{1,3}+", "1234567", "[1234567]");      /* again and again, not possessive */
	matches("(?:ab){2}+c?", "ababababc", "[ababababc]");
	matches("[ab]{,2}", "aab", "[aa][b]");
	matches("a{", "a{a{", "[a{][a{]");
	matches("a++b|a?+a", "aab", "[aab]");
	/* U+180E is no space any more; marks and circled letters belong to words. */
	matches("\\s+", "a\u1680\u180e\u3000", "a[\u1680]\u180e[\u3000]");
	matches("[^\\s]\\S", "\u180e\u180e", "[\u180e\u180e]");
	matches("\\w+", "d\u0301_9-\u24b6", "[d\u0301_9]-[\u24b6]");
	matches("[\\w-]+|\\W", "d\u0301-+", "[d\u0301-][+]");
	matches("\\b", "ab c", "[]ab[] []c[]");
	matches("\\Bb", "ab b", "a[b] b");
	matches("\\h+\\H", "xAf9g", "x[Af9g]");
	matches("\\v", "\x0b\x0c", "[\x0b]\x0c");
	matches("^a|b$", "ab\nab\n", "[a][b]\n[a][b]\n");
	matches("\\Aa|b\\z", "ab\nab", "[a]b\na[b]");
	matches("a.", "a\na\ra", "a\n[a\r]a");
	matches("a(?i)b|c", "aB aC C", "[aB] [aC] C"); /* (?i) reaches to the group's end */
	matches("(?i:'s|'LL)d(?-i:x)", "'SDx 'lLdX", "'SDx 'lLdX");
	matches("(?i:'s|'LL)", "'S'lL'x", "['S]['lL]'x");
	matches("(?i)k", "k\u212a", "[k][\u212a]");
	/* A script, not its extensions. */
	matches("\\p{Han}+", "\u6f22\u3001\u5b57", "[\u6f22]\u3001[\u5b57]");
	matches("\\p{^Lu}\\P{^Ll}", "-a A", "[-a] A");
	matches("[\\p{L}&]|\\u0041|\\x42|\\x{1F600}", "AB", "[A][B]");
	matches("[]a-c\\-]+", "]ab-d", "[]ab-]d");
	matches("(?<=a)b(?!c)", "abcabab", "abca[b]a[b]");
	matches("(?>a+)b|\\.", "aab.", "[aab][.]");
	matches("\u00e9+|\\\u00fc", "\u00e9\u00e9\u00fc", "[\u00e9\u00e9][\u00fc]");
	matches(" ?\\p{L}+|\\s+(?!\\S)|\\s+", "a   b  ", "[a][  ][ b][  ]");
}

static void refused_patterns(void **state)
{
	static const char *const bad[] = {
		"[a[b]]", "[a&&b]", "[[:alpha:]]", "(?<n>a)", "(?#c)", "(?m:a)", "(?s)a", "\\1",
		"\\R", "\\X", "\\G", "\\K", "\\Qa", "\\k<a>", "a{2}?", "[\\W]", "\\pL", "\\p{",
		"\\p{Nonsense}", "\\x{zz}", "\\u12", "\\xff", "(", ")", "a)", "[", "[^", "\\", "*",
		"a|+", "(*UTF)", "a**", "(?<=a+)b", "(?i", "(?", "\\p{a(b)}",
	};
	struct bdx_pattern *p;
	char deep[300];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		if (bdx_pattern_open(&p, bad[i], strlen(bad[i]), false, "t", &err) != -ENOTSUP)
			fail_msg("/%s/ was accepted", bad[i]);
		assert_null(p);
		assert_non_null(strstr(err.text, "t: the pattern '"));
	}
	memset(deep, '(', sizeof(deep));
	assert_int_equal(bdx_pattern_open(&p, deep, sizeof(deep), false, "t", &err), -ENOTSUP);
	assert_int_equal(bdx_pattern_open(&p, deep, MEGABYTE, false, "t", &err), -ENOTSUP);
}

/* --- Damage and hostility --- */

static void refuses(int code, const char *text, const char *message)
{
	const char *json = quoted(text);
	struct bdx_tokenizer *t = (struct bdx_tokenizer *)1;

	memset(&err, 0, sizeof(err));
	if (bdx_tokenizer_open(&t, json, strlen(json), "tok", &err) != code)
		fail_msg("%s: %s", json, err.code ? err.text : "accepted");
	assert_null(t);
	if (!strstr(err.text, quoted(message)) || strncmp(err.text, "tok: ", 5) != 0)
		fail_msg("'%s' lacks '%s'", err.text, message);
}

#define EMPTY MODEL("", "", "")

static void damaged(void **state)
{
	(void)state;
	refuses(-EINVAL, "", "object");
	refuses(-EINVAL, "[]", "object");
	refuses(-EINVAL, "{}", "'model' is missing");
	refuses(-EINVAL, "{" EMPTY "}x", "follows the end");
	refuses(-EINVAL, "{" EMPTY "," EMPTY "}", "second time");
	refuses(-ENOTSUP, "{'model':{'type':'Unigram','vocab':[]}}", "model Unigram");
	refuses(-ENOTSUP, "{'model':{'type':'WordPiece'}}", "model WordPiece");
	refuses(-EINVAL, "{'model':{'vocab':{}}}", "'merges' is missing");
	refuses(-EINVAL, "{'model':{'vocab':[],'merges':[]}}", "expected an object");
	refuses(-EINVAL, "{" MODEL("", "'a':16777216", "") "}", "16777216");
	refuses(-EINVAL, "{" MODEL("", "'a':-1", "") "}", "non-negative");
	refuses(-EINVAL, "{" MODEL("", "'a':'b'", "") "}", "integer");
	refuses(-EINVAL, "{" MODEL("", "'a':1,'b':1", "") "}", "two tokens have the number 1");
	refuses(-EINVAL, "{" MODEL("", "'a':1,'a':2", "") "}", "the same text");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "'a b'") "}", "merge 0");
	refuses(-EINVAL, "{" MODEL("", "'a':0,'b':1", "'a b'") "}", "merge 0");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "'a'") "}", "one space");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "'a  a'") "}", "one space");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "['a']") "}", "two parts");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "['a','a','a']") "}", "two parts");
	refuses(-EINVAL, "{" MODEL("", "'a':0", "7") "}", "string");
	refuses(-ENOTSUP, "{" MODEL("'dropout':0.1,", "", "") "}", "dropout");
	refuses(-ENOTSUP, "{" MODEL("'end_of_word_suffix':'</w>',", "", "") "}",
		"end_of_word_suffix");
	refuses(-ENOTSUP, "{" MODEL("'continuing_subword_prefix':'##',", "", "") "}",
		"continuing");
	refuses(-ENOTSUP, "{'normalizer':{'type':'BertNormalizer'}," EMPTY "}",
		"normalizer BertNormalizer");
	refuses(-ENOTSUP, "{'normalizer':{'type':'Precompiled'}," EMPTY "}", "Precompiled");
	refuses(-ENOTSUP, "{'pre_tokenizer':{'type':'UnicodeScripts'}," EMPTY "}",
		"pre-tokenizer Unicode");
	refuses(-ENOTSUP, "{'decoder':{'type':'CTC\\n'}," EMPTY "}", "decoder CTC?");
	refuses(-ENOTSUP, "{'post_processor':{'type':'BertProcessing'}," EMPTY "}",
		"BertProcessing");
	refuses(-EINVAL, "{'normalizer':{}," EMPTY "}", "'type' is missing");
	refuses(-EINVAL, "{'normalizer':[]," EMPTY "}", "object");
	refuses(-EINVAL, "{'normalizer':{'type':'Prepend'}," EMPTY "}", "'prepend' is missing");
	refuses(-EINVAL, "{'normalizer':{'type':'Replace','content':''}," EMPTY "}", "'pattern'");
	refuses(-EINVAL,
		"{'normalizer':{'type':'Replace','content':'','pattern':{}}," EMPTY "}",
		"either");
	refuses(-ENOTSUP, "{'normalizer':{'type':'Replace','content':'','pattern':{'Regex':'['}},"
		EMPTY "}", "a set without an end");
	refuses(-EINVAL,
		"{'pre_tokenizer':{'type':'Metaspace','replacement':'ab'}," EMPTY "}",
		"one character");
	refuses(-EINVAL,
		"{'pre_tokenizer':{'type':'Metaspace','replacement':''}," EMPTY "}",
		"one character");
	refuses(-EINVAL, "{'pre_tokenizer':{'type':'Metaspace','replacement':'a',"
		"'prepend_scheme':'x'}," EMPTY "}", "unknown word 'x'");
	refuses(-EINVAL, "{'pre_tokenizer':{'type':'Split'}," EMPTY "}", "'behavior' is missing");
	refuses(-EINVAL, "{'decoder':{'type':'Strip','content':'a'}," EMPTY "}",
		"'start' is missing");
	refuses(-EINVAL, "{'post_processor':{'type':'TemplateProcessing',"
		"'single':[{'SpecialToken':{'id':'x'}}],'special_tokens':{}}," EMPTY "}",
		"'x' is not among");
	refuses(-EINVAL,
		"{'post_processor':{'type':'TemplateProcessing','single':[]}," EMPTY "}",
		"no sequence");
	refuses(-ENOTSUP, "{'post_processor':{'type':'TemplateProcessing',"
		"'single':[{'Sequence':{'id':'B'}}]}," EMPTY "}", "template with the sequence B");
	refuses(-EINVAL, "{" ADDED("{}") EMPTY "}", "'content' is missing");
	refuses(-EINVAL, "{" ADDED("7") EMPTY "}", "object");
	refuses(-EINVAL, "{" ADDED(TOKEN("a", "") "," TOKEN("b", "") "," TOKEN("a", RAW)) EMPTY "}",
		"have the same text");
}

/* A file cut short anywhere is refused; with a byte changed anywhere it opens or not, and works. */
static void every_byte(void **state)
{
	static const char written[] =
		"{" ADDED(TOKEN("<s>", RAW "'lstrip':true,") "," TOKEN("x", ""))
		"'normalizer':{'type':'Replace','pattern':{'Regex':'[a-c]{1,2}+\\\\s|\\\\p{L}'},"
		"'content':'\\u2581'},'pre_tokenizer':{'type':'Sequence','pretokenizers':["
		"{'type':'Digits','individual_digits':true},{'type':'ByteLevel',"
		"'use_regex':true}]},"
		"'post_processor':{'type':'TemplateProcessing','single':["
		"{'SpecialToken':{'id':'<s>'}},{'Sequence':{'id':'A'}}],"
		"'special_tokens':{'<s>':{'ids':[1]}}},'decoder':{'type':'ByteLevel'},"
		MODEL("'byte_fallback':true,", "'a':0,'b':1,'ab':2,'\u0120':3", "'a b'") "}";
	static const char changes[] = { ' ', '"', '0', '9', '\\', '{', '\xff' };
	static const char text[] = "ab <s> x1 abc\xff";
	const char *json = quoted(written);
	const size_t size = sizeof(written) - 1;
	struct bdx_tokenizer *t;
	int32_t *tokens;
	char *copy = malloc(size), *back;
	size_t count;

	(void)state;
	for (size_t cut = 0; cut < size; cut++) {
		char *part = malloc(cut ? cut : 1);

		memcpy(part, json, cut);
		assert_int_equal(bdx_tokenizer_open(&t, part, cut, "t", &err), -EINVAL);
		free(part);
	}
	for (size_t i = 0; i < size * sizeof(changes); i++) {
		memcpy(copy, json, size);
		copy[i / sizeof(changes)] = changes[i % sizeof(changes)];
		if (bdx_tokenizer_open(&t, copy, size, "t", &err))
			continue;
		if (bdx_tokenizer_encode(t, text, sizeof(text) - 1, true, &tokens, &count, &err) ==
		    0) {
			assert_int_equal(
				bdx_tokenizer_decode(t, tokens, count, false, &back, NULL, &err),
				0);
			free(back);
			free(tokens);
		}
		bdx_tokenizer_close(t);
	}
	free(copy);
}

static char *repeat(const char *text, size_t size)
{
	char *all = malloc(size);

	for (size_t i = 0; i < size; i++)
		all[i] = text[i % strlen(text)];
	return all;
}

/* A file that makes texts grow without end, or that looks for a pattern for ever. */
/* What the stages of a tokenizer do with a text when there is no time left. */
static void clock_has_run_out(const char *parts, const char *text, size_t size)
{
	struct bdx_tokenizer *t = open_json(td_format("{" MODEL("", "'a':0,'aa':1,'aaaa':2", "'a a','aa aa'")
						      "%s}", parts));
	struct bdx_run run;
	bool first = true;
	int rc = 0;

	bdx_run_init(&run, t, size, &err);
	run.deadline = 0;
	bd_buffer_append(&run.text, text, size);
	if (t->normalizer.count)
		rc = bdx_normalize(&t->normalizer, &run, text, size, &first);
	else if (t->pretokenizer.count)
		rc = bdx_pretokenize(&t->pretokenizer, &run);
	else
		rc = bdx_bpe_encode(&t->bpe, &run, text, size);
	assert_int_equal(rc, -EINVAL);
	assert_non_null(strstr(err.text, "takes too long"));
	bdx_run_free(&run);
	bdx_tokenizer_close(t);
}

static void hostile(void **state)
{
	char *text = repeat("a", MEGABYTE);
	struct bdx_tokenizer *t, named = { .name = (char *)"t" };
	struct bdx_pattern *p;
	struct bdx_run run;
	int32_t *tokens;
	size_t count;

	(void)state;
	t = open_json("{'normalizer':{'type':'Sequence','normalizers':["
#define DOUBLE                                                                                     \
	"{'type':'Replace','pattern':{'String':'a'},'content':'aaaaaaaaaaaaaaaa'}"
		      DOUBLE "," DOUBLE "," DOUBLE "," DOUBLE "," DOUBLE "," DOUBLE "," DOUBLE
		      "]}," MODEL("", "'a':0", "") "}");
	assert_int_equal(bdx_tokenizer_encode(t, text, 65536, false, &tokens, &count, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "times as long"));
	bdx_tokenizer_close(t);
	t = open_json("{'pre_tokenizer':{'type':'Split','behavior':'Isolated',"
		"'pattern':{'Regex':'(?:a+)*b'}}," MODEL("", "'a':0", "") "}");
	assert_int_equal(bdx_tokenizer_encode(t, text, MEGABYTE, false, &tokens, &count, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "cannot be applied"));
	bdx_tokenizer_close(t);

	/* n steps from each of n points; the clock has run out already. */
	assert_int_equal(bdx_pattern_open(&p, "a*b", 3, false, "t", &err), 0);
	bdx_run_init(&run, &named, MEGABYTE, &err);
	run.deadline = 0;
	assert_int_equal(bdx_pattern_split(p, &run, text, MEGABYTE), -EINVAL);
	assert_non_null(strstr(err.text, "takes too long"));
	bdx_run_free(&run);
	bdx_pattern_close(p);
	free(text);
	/* Every stage looks at the clock. */
	clock_has_run_out(",'normalizer':{'type':'Lowercase'}", "a", 1);
	clock_has_run_out(",'pre_tokenizer':{'type':'WhitespaceSplit'}", "a", 1);
	text = repeat("a", (size_t)1 << 18);
	clock_has_run_out("", text, (size_t)1 << 18);
	free(text);
	t = open_json("{'decoder':{'type':'Fuse'}," MODEL("", "'a':0", "") "}");
	bdx_run_init(&run, t, 1, &err);
	run.deadline = 0;
	assert_int_equal(bdx_decode(&t->decoder, &run), -EINVAL);
	assert_non_null(strstr(err.text, "takes too long"));
	bdx_run_free(&run);
	bdx_tokenizer_close(t);
}

#define GPT4 \
	"(?i:\\u0027s|\\u0027t|\\u0027re)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|" \
	" ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

/* Quadratic time would be hours for a megabyte, and minutes for a part of it under a sanitizer. */
static void linear_time(void **state)
{
	static const char *const texts[] = {
		"a", " ", "\n ", "1", "'", "<s", "<s>", "\u0301\u0323", "e\u0323\u0301", " a", "ab",
		"\xff", "\u2581",
	};
	static const char *const tokenizers[] = {
		"{" ADDED(TOKEN("<s>", RAW "'lstrip':true,'rstrip':true,'single_word':true,") ","
			  TOKEN(" ", "'lstrip':true,'rstrip':true,"))
		"'normalizer':{'type':'NFC'},"
		MODEL("'byte_fallback':true,", "'a':0,'aa':1,'aaaa':2,' ':3,'  ':4,'b':5,'ab':6",
		      "'a a','aa aa',[' ',' '],'a b'") "}",
		"{'normalizer':{'type':'NFKD'},'pre_tokenizer':{'type':'Sequence','pretokenizers':["
		"{'type':'Split','pattern':{'Regex':'" GPT4 "'},'behavior':'Isolated'},"
		"{'type':'ByteLevel','use_regex':false}]},"
		MODEL("", "'a':0,'aa':1,'\u0120':2,'\u0120\u0120':3", "'a a','\u0120 \u0120'") "}",
		"{'pre_tokenizer':{'type':'Metaspace','replacement':'\u2581','split':false},"
		"'decoder':{'type':'Metaspace','replacement':'\u2581'},"
		MODEL("", "'a':0,'\u2581':1,'\u2581\u2581':2,'\u2581a':3",
		      "'\u2581 \u2581','\u2581 a'") "}",
	};
	const size_t size = TD_SLOWNESS > 1 ? MEGABYTE / 4 : MEGABYTE;
	struct timespec start, end;

	(void)state;
	for (size_t k = 0; k < sizeof(tokenizers) / sizeof(*tokenizers); k++) {
		struct bdx_tokenizer *t = open_json(tokenizers[k]);

		for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
			char *text = repeat(texts[i], size), *back;
			int32_t *tokens;
			size_t count;

			clock_gettime(CLOCK_MONOTONIC, &start);
			if (bdx_tokenizer_encode(t, text, size, false, &tokens, &count, &err))
				fail_msg("%s: %s", texts[i], err.text);
			assert_int_equal(
				bdx_tokenizer_decode(t, tokens, count, false, &back, NULL, &err),
				0);
			clock_gettime(CLOCK_MONOTONIC, &end);
			if (end.tv_sec - start.tv_sec > 30)
				fail_msg("%zu bytes of '%s' take %ld s", size, texts[i],
					 (long)(end.tv_sec - start.tv_sec));
			free(back);
			free(tokens);
			free(text);
		}
		bdx_tokenizer_close(t);
	}
}

/* --- The shipped tokenizer, and threads --- */

static struct bdx_tokenizer *open_nano(void)
{
	size_t size;
	char *json = td_read(BD_TESTS_DIR "/data/nano-llama2/base/tokenizer.json", &size);
	struct bdx_tokenizer *t;

	assert_int_equal(bdx_tokenizer_open(&t, json, size, "nano", &err), 0);
	return t;
}

static void shipped(void **state)
{
	struct bdx_tokenizer *t = open_nano();

	(void)state;
	check_encode(t, "In the beginning", 16, true, "1 968 568 633 332 560 339 586");
	check_encode(t, " two  spaces", 12, true, "1 368 559 348 340 368 985 622 577");
	encodes(t, "Gr\u00fc\u00dfe, \u4e16\u754c!",
		"860 343 198 191 198 162 330 273 368 231 187 153 234 152 143 262");
	encodes(t, "a<s>b</s>\n", "561 1 584 2 368 260");
	decodes(t, "1 561 1 584 2 368 260", true, "a b \n");
	assert_int_equal(bdx_tokenizer_size(t), 1024);
	assert_true(bdx_tokenizer_is_special(t, 1));
	assert_int_equal(bdx_tokenizer_find(t, "</s>"), 2);
	bdx_tokenizer_close(t);
}

struct task {
	const struct bdx_tokenizer *tokenizer;
	char *text;
	int32_t *tokens;
	size_t count;
	int rc;
};

static void *encode_in_thread(void *data)
{
	struct task *task = data;

	task->rc = bdx_tokenizer_encode(task->tokenizer, task->text, 1 << 18, true, &task->tokens,
					&task->count, NULL);
	return NULL;
}

static void add_text(void *context, const char *text, size_t size)
{
	uint32_t code;

	for (size_t at = 0, length; at < size; at += length) {
		length = bd_utf8_decode(text + at, size - at, &code);
		assert_true(length > 0);
	}
	bd_buffer_append(context, text, size);
}

/* Tokens one by one give the text that they have together, and never cost more than some before. */
static void streams(void **state)
{
	static const char *const tokenizers[] = {
		/* Bytes that are characters only together, spaces in the front that are taken away. */
		"{" ADDED(TOKEN("<s>", ""))
		"'decoder':{'type':'Sequence','decoders':[{'type':'Replace','pattern':{'String':'\u2581'},"
		"'content':' '},{'type':'ByteFallback'},{'type':'Fuse'},{'type':'Strip','content':' ','start':1,"
		"'stop':0}]}," MODEL("'byte_fallback':true,", "'\u2581a':1,'\u2581':2,'b':3,'<0xC3>':4,'<0xA9>':5,"
				     "'<0xE2>':6,'\u00e9':7", "") "}",
		"{" ADDED(TOKEN("<s>", ""))
		"'decoder':{'type':'ByteLevel'}," MODEL("", "'a':1,'\u0120':2,'\u0120b':3,'\u00c3':4,'\u00a9':5,"
							  "'\u00e2':6,'\u0122':7", "") "}",
		"{" ADDED(TOKEN("<s>", ""))
		"'decoder':{'type':'Metaspace','replacement':'\u2581'},"
		MODEL("", "'\u2581a':1,'\u2581':2,'b':3,'c':4,'d':5,'e':6,'f':7", "") "}",
		"{" ADDED(TOKEN("<s>", "")) MODEL("", "'a':1,'b':2,'c':3,'d':4,'e':5,'f':6,'g':7", "") "}",
	};
	/* Which tokens are drawn, and how many. */
	static const char *const draws[] = { "1237", "0", "02", "01", "123456", "45", "6", "2" };

	(void)state;
	for (size_t k = 0; k < sizeof(tokenizers) / sizeof(*tokenizers); k++) {
		struct bdx_tokenizer *t = open_json(tokenizers[k]);

		for (size_t d = 0; d < sizeof(draws) / sizeof(*draws); d++) {
			struct bd_buffer out = { 0 };
			struct bdx_stream s = { .tokenizer = t, .write = add_text, .context = &out };
			int32_t tokens[1500];
			size_t size;
			char *text;

			for (size_t i = 0; i < 1500; i++) {
				tokens[i] = draws[d][(i * i * 7 + i / 3) % strlen(draws[d])] - '0';
				if (i % 5 == 4) /* the rest of a character */
					tokens[i] = tokens[i - 1] == 4 ? 5 : tokens[i];
				assert_int_equal(bdx_stream_take(&s, tokens, i + 1, i == 1499, &err), 0);
				assert_true(i + 1 - s.from < 600);
			}
			assert_int_equal(bdx_tokenizer_decode(t, tokens, 1500, true, &text, &size, &err), 0);
			bd_buffer_append(&out, "", 0);
			/* A run of byte tokens that is no text is replaced as a whole, of which a part is out. */
			if (k == 0 && strchr(draws[d], '5'))
				assert_true(out.size > 0);
			else if (out.size != size || memcmp(out.data, text, size) != 0)
				fail_msg("%zu, %s: '%.300s' (%zu), expected '%.300s' (%zu)", k, draws[d],
					 out.data, out.size, text, size);
			free(text);
			bd_buffer_free(&out);
		}
		bdx_tokenizer_close(t);
	}
}

static void threads(void **state)
{
	struct bdx_tokenizer *t = open_nano();
	char *text = repeat("In the beginning was the Wort, \u4e16 and<s> 12345  ", 1 << 18);
	struct task tasks[8];
	pthread_t ids[8];

	(void)state;
	for (size_t i = 0; i < 8; i++) {
		tasks[i] = (struct task){ .tokenizer = t, .text = text };
		assert_int_equal(pthread_create(&ids[i], NULL, encode_in_thread, &tasks[i]), 0);
	}
	for (size_t i = 0; i < 8; i++) {
		pthread_join(ids[i], NULL);
		assert_int_equal(tasks[i].rc, 0);
		assert_int_equal(tasks[i].count, tasks[0].count);
		assert_memory_equal(tasks[i].tokens, tasks[0].tokens,
				    tasks[0].count * sizeof(int32_t));
	}
	for (size_t i = 0; i < 8; i++)
		free(tasks[i].tokens);
	free(text);
	bdx_tokenizer_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(merges),
		cmocka_unit_test(unknown),
		cmocka_unit_test(prepended_spaces),
		cmocka_unit_test(metaspace),
		cmocka_unit_test(byte_level),
		cmocka_unit_test(added_tokens),
		cmocka_unit_test(splits),
		cmocka_unit_test(digits),
		cmocka_unit_test(template),
		cmocka_unit_test(decoders),
		cmocka_unit_test(normalization),
		cmocka_unit_test(patterns),
		cmocka_unit_test(refused_patterns),
		cmocka_unit_test(damaged),
		cmocka_unit_test(every_byte),
		cmocka_unit_test(hostile),
		cmocka_unit_test(linear_time),
		cmocka_unit_test(shipped),
		cmocka_unit_test(streams),
		cmocka_unit_test(threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
