/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors.c: the strict reader of safetensors headers. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "buffer.h"
#include "safetensors.h"
#include "testdata.h"

static struct bd_error err;

/* What holds for every header that is accepted. */
static void check_invariants(const struct bd_safetensors *st)
{
	uint64_t at = st->header_size;
	char shape[256];

	for (size_t i = 0; i < st->count; i++) {
		const struct bd_tensor *t = &st->tensors[i];
		uint64_t count = 1;

		assert_true(t->offset == at);
		at += t->size;
		assert_true(t->dims <= BD_MAX_DIMS);
		for (unsigned k = 0; k < t->dims; k++)
			count *= t->shape[k];
		assert_true(count == t->count);
		assert_true(t->size == count * bd_dtype_bits(t->dtype) / 8);
		assert_true(bd_tensor_rows(t) * bd_tensor_cols(t) == count);
		assert_true(strlen(t->name) >= 1 && strlen(t->name) <= BD_MAX_NAME);
		assert_ptr_equal(bd_safetensors_find(st, t->name), t);
		assert_ptr_equal(bd_tensor_shape_text(t, shape, sizeof(shape)), shape);
		assert_int_equal(shape[strlen(shape) - 1], ']');
	}
	assert_true(at == st->file_size);
	for (size_t i = 0; i < st->metadata_count; i++)
		assert_ptr_equal(bd_safetensors_metadata(st, st->metadata[i].key),
				 st->metadata[i].value);
}

/* Parse `size` bytes of a file of `file_size`; 0 or the error. */
static int parse_part(const char *data, size_t size, uint64_t file_size)
{
	struct bd_safetensors *st = (struct bd_safetensors *)1;
	/* A copy without anything after it, so that the sanitizer sees every byte too far. */
	char *copy = malloc(size ? size : 1);
	int rc;

	assert_non_null(copy);
	memcpy(copy, data, size);
	memset(&err, 0, sizeof(err));
	rc = bd_safetensors_parse(&st, copy, size, file_size, "t.safetensors", &err);
	free(copy);
	if (rc == 0) {
		check_invariants(st);
		bd_safetensors_free(st);
		return 0;
	}
	assert_null(st);
	assert_int_equal(rc, -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	assert_ptr_equal(strstr(err.text, "t.safetensors: "), err.text);
	return rc;
}

/* The same for a whole file made of this header and `data_size` zeros. */
static int parse_header(const char *header, size_t data_size)
{
	size_t size;
	char *file = td_raw_safetensors(header, strlen(header), NULL, data_size, &size);

	return parse_part(file, size, size);
}

static struct bd_safetensors *parsed(const char *file, size_t size)
{
	struct bd_safetensors *st;

	if (bd_safetensors_parse(&st, file, size, size, "t.safetensors", &err))
		fail_msg("%s", err.text);
	check_invariants(st);
	return st;
}

static void parses(void **state)
{
	struct td_tensor tensors[] = {
		{ .name = "w", .dtype = BD_BF16, .dims = 2, .shape = { 4, 8 } },
		{ .name = "empty", .dtype = BD_F32, .dims = 2, .shape = { 0, 8 } },
		{ .name = "s", .dtype = BD_F32 },
		{ .name = "b\\u00e9", .dtype = BD_I64, .dims = 1, .shape = { 3 } },
		{ .name = "conv", .dtype = BD_F16, .dims = 4, .shape = { 2, 3, 5, 7 } },
	};
	const struct bd_tensor *t;
	struct bd_safetensors *st;
	char text[32];
	size_t size;
	char *file = td_safetensors_bytes(tensors, 5, "{\"format\":\"pt\",\"b\":\"x\\ny\"}", &size);

	(void)state;
	st = parsed(file, size);
	assert_int_equal(st->count, 5);
	assert_true(st->file_size == size);
	assert_memory_equal(st->header, file, st->header_size);
	assert_int_equal(st->metadata_count, 2);
	assert_string_equal(st->metadata[0].key, "format");
	assert_string_equal(bd_safetensors_metadata(st, "format"), "pt");
	assert_string_equal(bd_safetensors_metadata(st, "b"), "x\ny");
	assert_null(bd_safetensors_metadata(st, "w"));
	assert_null(bd_safetensors_find(st, "format"));
	assert_null(bd_safetensors_find(st, ""));
	t = bd_safetensors_find(st, "w");
	assert_ptr_equal(t, &st->tensors[0]);
	assert_int_equal(t->dtype, BD_BF16);
	assert_int_equal(t->dims, 2);
	assert_int_equal(t->count, 32);
	assert_int_equal(t->size, 64);
	assert_true(t->offset == st->header_size);
	assert_int_equal(bd_tensor_rows(t), 4);
	assert_int_equal(bd_tensor_cols(t), 8);
	assert_string_equal(bd_tensor_shape_text(t, text, sizeof(text)), "[4, 8]");
	assert_string_equal(bd_tensor_shape_text(t, text, 4), "[4,");
	assert_ptr_equal(bd_tensor_shape_text(t, NULL, 0), NULL);
	assert_string_equal(st->tensors[1].name, "empty");
	assert_int_equal(st->tensors[1].size, 0);
	t = bd_safetensors_find(st, "s");
	assert_int_equal(t->dims, 0);
	assert_int_equal(t->count, 1);
	assert_int_equal(bd_tensor_rows(t), 1);
	assert_int_equal(bd_tensor_cols(t), 1);
	assert_string_equal(bd_tensor_shape_text(t, text, sizeof(text)), "[]");
	assert_false(bd_tensor_same_shape(t, &st->tensors[0]));
	assert_true(bd_tensor_same_shape(t, t));
	t = bd_safetensors_find(st, "b\xc3\xa9");
	assert_non_null(t);
	assert_int_equal(bd_tensor_rows(t), 1);
	assert_int_equal(bd_tensor_cols(t), 3);
	t = bd_safetensors_find(st, "conv");
	assert_int_equal(bd_tensor_rows(t), 30);
	assert_int_equal(bd_tensor_cols(t), 7);
	bd_safetensors_free(st);
	bd_safetensors_free(NULL);
}

/* Tensors come in the order of their bytes, whatever the order of the header. */
static void orders(void **state)
{
	static const char header[] =
		"{\"c\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[3,6]},"
		"\"z2\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[3,3]},"
		"\"end\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[6,6]},"
		"\"a\":{\"data_offsets\":[0,3],\"shape\":[3],\"dtype\":\"U8\"},"
		"\"z1\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[3,3]},"
		"\"z0\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
	static const char *const order[] = { "z0", "a", "z2", "z1", "c", "end" };
	struct bd_safetensors *st;
	size_t size;
	char *file = td_raw_safetensors(header, strlen(header), NULL, 6, &size);

	(void)state;
	st = parsed(file, size);
	assert_int_equal(st->count, 6);
	for (size_t i = 0; i < 6; i++)
		assert_string_equal(st->tensors[i].name, order[i]);
	bd_safetensors_free(st);
}

/* One tensor "t" of 16 bytes, with any text in place of a part of its description. */
#define GOOD "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}"
#define TENSOR(name, dtype, shape, begin, end)                                                   \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin    \
	"," #end "]}"
#define T(dtype, shape, begin, end) "{" TENSOR("t", dtype, shape, begin, end) "}"
#define OFFSETS(offsets) "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":" offsets "}}"
#define DTYPE(dtype) T(dtype, "[4]", 0, 16)

struct verdict {
	const char *name;
	const char *header;
	size_t header_size; /* 0: strlen(header) */
	size_t data_size;
	bool reference; /* what the reference parser says */
	bool ours;
};

#define YES true, true
#define NO false, false
#define STRICTER true, false

/* The cases on which the reference parser (the safetensors crate) was asked for its verdict. Ours is
 * never more tolerant. */
static void reference_verdicts(void **state)
{
	static const char nul[] = GOOD "\0\0\0";
	struct bd_buffer dims = { 0 }, deep200 = { 0 }, deep100000 = { 0 };

	(void)state;
	bd_buffer_printf(&dims, "{\"t\":{\"dtype\":\"F32\",\"shape\":[1");
	for (int i = 1; i < 5000; i++)
		bd_buffer_printf(&dims, ",1");
	bd_buffer_printf(&dims, "],\"data_offsets\":[0,4]}}");
	bd_buffer_printf(&deep200, "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16],\"x\":");
	for (int i = 0; i < 400; i++)
		bd_buffer_append(&deep200, i < 200 ? "[" : "]", 1);
	bd_buffer_printf(&deep200, "}}");
	bd_buffer_printf(&deep100000, "{\"t\":");
	for (int i = 0; i < 100000; i++)
		bd_buffer_append(&deep100000, "[", 1);
	const struct verdict cases[] = {
		{ "ok", GOOD, 0, 16, YES },
		/* The header lengths follow below: len>file, len=100000001, len=2^64-1, 7 bytes */
		{ "len=0", "", 0, 0, NO },
		{ "{} empty", "{}", 0, 0, YES },
		{ "leading ws", "  \n" GOOD, 0, 16, YES },
		{ "trailing ws", GOOD " \n\t\r ", 0, 16, YES },
		{ "trailing garbage in hdr", GOOD "xx", 0, 16, NO },
		{ "trailing NUL in hdr", nul, sizeof(nul) - 1, 16, NO },
		{ "BOM", "\xef\xbb\xbf" GOOD, 0, 16, NO },
		{ "start at 4", T("F32", "[4]", 4, 20), 0, 20, NO },
		{ "hole", "{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 8, 12) "}",
		  0, 12, NO },
		{ "overlap", "{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("b", "F32", "[2]", 4, 12)
		  "}", 0, 12, NO },
		{ "dup tensor key", "{" TENSOR("t", "F32", "[4]", 0, 16) ","
		  TENSOR("t", "F32", "[4]", 0, 16) "}", 0, 16, STRICTER },
		{ "dup dtype key", "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16],"
		  "\"dtype\":\"F32\"}}", 0, 16, NO },
		{ "dup __metadata__", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, 0, NO },
		{ "dup metadata inner", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"},"
		  TENSOR("t", "F32", "[4]", 0, 16) "}", 0, 16, STRICTER },
		{ "metadata non-string", "{\"__metadata__\":{\"a\":1}}", 0, 0, NO },
		{ "metadata null", "{\"__metadata__\":null," TENSOR("t", "F32", "[4]", 0, 16) "}", 0, 16,
		  YES },
		{ "unknown dtype", DTYPE("F33"), 0, 16, NO },
		{ "lowercase dtype", DTYPE("f32"), 0, 16, NO },
		{ "extra field", "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16],"
		  "\"x\":[1,{\"y\":null}]}}", 0, 16, YES },
		{ "missing shape", "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", 0, 16, NO },
		{ "3 offsets", OFFSETS("[0,16,16]"), 0, 16, NO },
		{ "offset 16.0", OFFSETS("[0,16.0]"), 0, 16, NO },
		{ "offset 1.6e1", OFFSETS("[0,1.6e1]"), 0, 16, NO },
		{ "offset -0", OFFSETS("[-0,16]"), 0, 16, NO },
		{ "offset negative", OFFSETS("[-1,15]"), 0, 16, NO },
		{ "offset reversed", OFFSETS("[16,0]"), 0, 16, NO },
		{ "leading zero 016", OFFSETS("[0,016]"), 0, 16, NO },
		{ "shape overflow", T("F32", "[4294967296,4294967296,4]", 0, 16), 0, 16, NO },
		{ "shape 0*huge", T("F32", "[0,18446744073709551615]", 0, 0), 0, 0, STRICTER },
		{ "shape huge*huge*0", T("F32", "[4294967296,4294967296,0]", 0, 0), 0, 0, NO },
		{ "shape > u64", T("F32", "[18446744073709551616]", 0, 16), 0, 16, NO },
		{ "scalar", T("F32", "[]", 0, 4), 0, 4, YES },
		{ "bool", T("BOOL", "[3]", 0, 3), 0, 3, YES },
		{ "dtype F4", T("F4", "[4]", 0, 2), 0, 2, YES },
		{ "dtype F6_E2M3", T("F6_E2M3", "[4]", 0, 3), 0, 3, YES },
		{ "dtype F6_E3M2", T("F6_E3M2", "[4]", 0, 3), 0, 3, YES },
		{ "dtype F8_E8M0", T("F8_E8M0", "[4]", 0, 4), 0, 4, YES },
		{ "dtype F8_E5M2", T("F8_E5M2", "[4]", 0, 4), 0, 4, YES },
		{ "dtype F8_E4M3", T("F8_E4M3", "[4]", 0, 4), 0, 4, YES },
		{ "dtype F8_E4M3FNUZ", T("F8_E4M3FNUZ", "[4]", 0, 4), 0, 4, YES },
		{ "dtype C64", T("C64", "[4]", 0, 32), 0, 32, YES },
		{ "dtype U16", T("U16", "[4]", 0, 8), 0, 8, YES },
		{ "dtype U32", T("U32", "[4]", 0, 16), 0, 16, YES },
		{ "dtype U64", T("U64", "[4]", 0, 32), 0, 32, YES },
		{ "dtype BF16", T("BF16", "[4]", 0, 8), 0, 8, YES },
		{ "dtype I4", T("I4", "[4]", 0, 2), 0, 2, NO },
		{ "dtype U4", T("U4", "[4]", 0, 2), 0, 2, NO },
		{ "dtype F128", T("F128", "[1]", 0, 16), 0, 16, NO },
		{ "file longer", GOOD, 0, 17, NO },
		{ "file shorter", GOOD, 0, 15, NO },
		{ "bad utf8", "{\"\xff\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 0,
		  16, NO },
		{ "\\u0000 in name", "{" TENSOR("a\\u0000b", "F32", "[4]", 0, 16) "}", 0, 16, STRICTER },
		{ "empty name", "{" TENSOR("", "F32", "[4]", 0, 16) "}", 0, 16, STRICTER },
		{ "lone surrogate", "{" TENSOR("\\ud800", "F32", "[4]", 0, 16) "}", 0, 16, NO },
		{ "raw ctrl in name", "{" TENSOR("a\nb", "F32", "[4]", 0, 16) "}", 0, 16, NO },
		{ "escaped same key", "{" TENSOR("a", "F32", "[4]", 0, 16) ","
		  TENSOR("\\u0061", "F32", "[4]", 0, 16) "}", 0, 16, STRICTER },
		{ "array root", "[]", 0, 0, NO },
		{ "null root", "null", 0, 0, NO },
		{ "deep 200", deep200.data, 0, 16, NO },
		{ "deep 100000", deep100000.data, 0, 16, NO },
		{ "tensor is null", "{\"t\":null}", 0, 0, NO },
		{ "NaN", T("F32", "[NaN]", 0, 16), 0, 16, NO },
		{ "key order swapped", "{" TENSOR("b", "F32", "[1]", 4, 8) ","
		  TENSOR("a", "F32", "[1]", 0, 4) "}", 0, 8, YES },
		{ "zero-size between", "{" TENSOR("a", "F32", "[1]", 0, 4) ","
		  TENSOR("z", "F32", "[0]", 4, 4) "," TENSOR("b", "F32", "[1]", 4, 8) "}", 0, 8, YES },
		{ "zero-size stray off", "{" TENSOR("a", "F32", "[1]", 0, 4) ","
		  TENSOR("z", "F32", "[0]", 2, 2) "," TENSOR("b", "F32", "[1]", 4, 8) "}", 0, 8, NO },
		{ "shape too many dims", dims.data, 0, 4, STRICTER },
		{ "tensor named __metadata__ w/ dtype", "{\"__metadata__\":{\"dtype\":\"F32\"}}", 0, 0,
		  YES },
		{ "trailing comma", "{" TENSOR("t", "F32", "[4]", 0, 16) ",}", 0, 16, NO },
		{ "TensorInfo as array", "{\"t\":[\"F32\",[4],[0,16]]}", 0, 16, STRICTER },
	};
	size_t n = sizeof(cases) / sizeof(cases[0]), good_size;
	char *good = td_raw_safetensors(GOOD, strlen(GOOD), NULL, 16, &good_size);

	for (size_t i = 0; i < n; i++) {
		const struct verdict *v = &cases[i];
		size_t size;
		char *file = td_raw_safetensors(v->header,
						v->header_size ? v->header_size : strlen(v->header),
						NULL, v->data_size, &size);
		bool ours = parse_part(file, size, size) == 0;

		if (ours != v->ours)
			fail_msg("%s: %s", v->name, ours ? "accepted" : err.text);
		assert_true(v->reference || !v->ours);
	}
	/* Header lengths: len>file, len=100000001, len=2^64-1 (all refused), and 7 bytes. */
	for (int i = 0; i < 3; i++) {
		uint64_t length = i == 0 ? good_size - 7 : i == 1 ? 100000001 : UINT64_MAX;

		for (int k = 0; k < 8; k++)
			good[k] = (char)(length >> 8 * k);
		assert_int_equal(parse_part(good, good_size, i ? UINT64_MAX : good_size), -EINVAL);
	}
	assert_int_equal(parse_part(good, 7, 7), -EINVAL);
	assert_int_equal(n + 3 + 1, 74);
	bd_buffer_free(&dims);
	bd_buffer_free(&deep200);
	bd_buffer_free(&deep100000);
}

/* What else is refused, and what the message says about it. */
static void refuses(void **state)
{
	static const struct {
		const char *header;
		size_t data_size;
		const char *says;
	} cases[] = {
		{ T("F32", "[5]", 0, 16), 16, "takes 16 bytes, but its dtype and shape mean 20" },
		{ T("F32", "[4]", 0, 12), 12, "takes 12 bytes, but its dtype and shape mean 16" },
		{ T("F4", "[3]", 0, 2), 2, "12 bits" },
		{ T("F4", "[3]", 0, 1), 1, "12 bits" },
		{ T("F6_E2M3", "[5]", 0, 3), 3, "30 bits" },
		{ T("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1), 1, "more than 8 dimensions" },
		{ T("U8", "[9223372036854775808,0]", 0, 0), 0, "too large" },
		{ T("F64", "[2305843009213693952]", 0, 0), 0, "too large" },
		{ T("U8", "[-1]", 0, 1), 1, "non-negative integer" },
		{ T("U8", "[1.0]", 0, 1), 1, "non-negative integer" },
		{ T("U8", "[\"1\"]", 0, 1), 1, "non-negative integer" },
		{ T("U8", "1", 0, 1), 1, "expected an array, found a number" },
		{ T("U8", "{}", 0, 1), 1, "expected an array, found an object" },
		{ T("U8", "null", 0, 1), 1, "expected an array, found null" },
		{ OFFSETS("[0]"), 16, "two integers" }, { OFFSETS("[]"), 16, "two integers" },
		{ OFFSETS("{}"), 16, "expected an array" }, { OFFSETS("[0,\"16\"]"), 16, "integer" },
		{ OFFSETS("[0,18446744073709551616]"), 16, "64 bits" },
		{ OFFSETS("[0,18446744073709551615]"), 16, "cut short or damaged" },
		{ OFFSETS("[18446744073709551600,18446744073709551615]"), 16, "cut short or damaged" },
		{ OFFSETS("[18446744073709551615,15]"), 16, "ends before" },
		{ OFFSETS("[0,32]"), 16, "ends at 32 of 16 bytes" },
		{ "{\"t\":{}}", 0, "tensor t has no dtype" },
		{ "{\"t\":{\"dtype\":\"F32\",\"shape\":[4]}}", 0, "has no data_offsets" },
		{ "{\"t\":{\"shape\":[4],\"data_offsets\":[0,16]}}", 16, "has no dtype" },
		{ "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
		  "shape of tensor t for the second time" },
		{ "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],"
		  "\"data_offs\\u0065ts\":[0,1]}}", 1, "data_offsets of tensor t for the second time" },
		{ "{\"t\":{\"dtype\":\"U8\\u0000\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
		  "unknown dtype" },
		{ "{\"t\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
		  "expected a string, found a number" },
		{ "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":01}}", 1,
		  "begins with 0" },
		{ "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":\"\\ud800\"}}", 1,
		  "surrogate" },
		{ "{\"t\":1}", 0, "expected an object, found a number" },
		{ "{\"t\":\"x\"}", 0, "expected an object, found a string" },
		{ "{" TENSOR("a\\u0001", "U8", "[1]", 0, 1) "}", 1, "control character in a tensor name" },
		{ "{" TENSOR("a\\u001b[31m", "U8", "[1]", 0, 1) "}", 1, "control character" },
		{ "{" TENSOR("a\\u0085", "U8", "[1]", 0, 1) "}", 1, "control character" },
		{ "{" TENSOR("\x7f", "U8", "[1]", 0, 1) "}", 1, "control character" },
		{ "{\"__metadata__\":[]}", 0, "expected an object, found an array" },
		{ "{\"__metadata__\":\"x\"}", 0, "expected an object" },
		{ "{\"__metadata__\":null,\"__metadata__\":{}}", 0, "second time" },
		{ "{\"__metadata__\":{},\"__metadata\\u005f_\":{}}", 0, "second time" },
		{ "{\"__metadata__\":{\"a\":\"1\",\"\\u0061\":\"2\"}}", 0, "key \"a\" occurs twice" },
		{ "{\"__metadata__\":{\"a\":{}}}", 0, "expected a string, found an object" },
		{ "{\"__metadata__\":{\"a\":null}}", 0, "expected a string, found null" },
		{ "{\"__metadata__\":{\"a\":\"x\\u0000y\"}}", 0, "U+0000" },
		{ "{\"__metadata__\":{\"a\\u0000\":\"x\"}}", 0, "control character" },
		{ "{}", 1, "bytes that belong to no tensor" },
		{ "{\"__metadata__\":{}}", 8, "bytes that belong to no tensor" },
		{ "{" TENSOR("a", "U8", "[2]", 0, 2) "," TENSOR("b", "U8", "[2]", 0, 2) "}", 2,
		  "tensor b overlaps tensor a" },
		{ "{" TENSOR("a", "U8", "[1]", 1, 2) "}", 2, "hole of 1 bytes between the header" },
		{ "{" TENSOR("a", "U8", "[1]", 0, 1) "," TENSOR("b", "U8", "[1]", 2, 3) "}", 3,
		  "hole of 1 bytes between a and tensor b" },
		{ "{} {}", 0, "follows the end" }, { "{}{}", 0, "follows the end" },
		{ "\"x\"", 0, "expected an object" }, { "{", 0, "found the end" },
		{ "        ", 0, "found the end" },
	};
	char *name = td_format("%0*d", BD_MAX_NAME, 0);
	size_t size;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (parse_header(cases[i].header, cases[i].data_size) == 0)
			fail_msg("accepted: %s", cases[i].header);
		if (!strstr(err.text, cases[i].says))
			fail_msg("%s: message is: %s", cases[i].header, err.text);
	}
	/* The longest name, and one byte more. */
	assert_int_equal(parse_header(td_format("{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],"
						"\"data_offsets\":[0,1]}}", name), 1), 0);
	assert_int_equal(parse_header(td_format("{\"%sx\":{\"dtype\":\"U8\",\"shape\":[1],"
						"\"data_offsets\":[0,1]}}", name), 1), -EINVAL);
	assert_non_null(strstr(err.text, "name of 1025 bytes"));
	assert_int_equal(parse_part("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
				    64, 64), -EINVAL);
	assert_non_null(strstr(err.text, "git lfs pull"));
	/* The caller read too little. */
	name = td_raw_safetensors(GOOD, strlen(GOOD), NULL, 16, &size);
	assert_int_equal(parse_part(name, 20, size), -EINVAL);
	assert_int_equal(parse_part(name, 0, size), -EINVAL);
	assert_int_equal(bd_safetensors_parse(&(struct bd_safetensors *){ NULL }, name, 20, size, "x",
					      NULL), -EINVAL);
}

/* A header with all that a header can have, in 500 bytes. */
static char *rich_file(size_t *size, size_t *header_size)
{
	static const char header[] =
		"{\"__metadata__\":{\"format\":\"pt\",\"note\":\"\\u00e9\\ud83d\\ude00\"},"
		TENSOR("model.embed", "BF16", "[3,4]", 0, 24) ","
		TENSOR("z", "I64", "[0,2]", 24, 24) ","
		TENSOR("n\\u00f6rm\xc3\xa9", "F32", "[2]", 24, 32) ","
		"\"x\":{\"dtype\":\"F4\",\"extra\":[1.5e3,true,null,{\"k\":\"v\"}],\"shape\":[2,2,2],"
		"\"data_offsets\":[32,36]}," TENSOR("s", "U8", "[]", 36, 37) "}   ";

	*header_size = 8 + sizeof(header) - 1;
	return td_raw_safetensors(header, sizeof(header) - 1, NULL, 37, size);
}

static void truncations(void **state)
{
	size_t size, header_size;
	char *file = rich_file(&size, &header_size);

	(void)state;
	assert_int_equal(parse_part(file, size, size), 0);
	for (size_t n = 0; n < size; n++) {
		assert_int_equal(parse_part(file, n, n), -EINVAL);
		assert_int_equal(parse_part(file, n, size), n < header_size ? -EINVAL : 0);
		if (n >= 8 && n < header_size) {
			/* Cut the header only, with its length put right. */
			char *cut = malloc(n);

			memcpy(cut, file, n);
			for (int k = 0; k < 8; k++)
				cut[k] = (char)((n - 8) >> 8 * k);
			if (n < header_size - 3) /* three spaces end it */
				assert_int_equal(parse_part(cut, n, n), -EINVAL);
			free(cut);
		}
	}
}

/* Flip every bit; then every byte to everything. No crash, and what is accepted is consistent. */
static void damages(void **state)
{
	size_t size, header_size, accepted = 0;
	char *file = rich_file(&size, &header_size);
	unsigned step = td_slowness() > 1 ? 17 : 1;

	(void)state;
	for (size_t i = 0; i < header_size; i++) {
		char was = file[i];

		for (int bit = 0; bit < 8; bit++) {
			file[i] = (char)(was ^ 1 << bit);
			accepted += parse_part(file, size, size) == 0;
		}
		for (unsigned value = 0; value < 256; value += step) {
			file[i] = (char)value;
			parse_part(file, size, size);
		}
		file[i] = was;
	}
	/* Other letters in names, say, are no damage that a header could tell. */
	assert_in_range(accepted, 1, header_size * 8 / 2);
}

static double cpu_seconds(const struct rusage *u)
{
	return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
	       1e-6 * (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec);
}

/* What a child process needed that built a header of START, REPEAT (a format that counts) as
 * often as fits, and END, and parsed it. */
struct cost {
	double seconds; /* for parsing */
	long kilobytes; /* at most resident, with the input of 25 MB */
};

static struct cost cost_of(const char *start, const char *repeat, const char *end, bool good)
{
	size_t size = td_slowness() == 1 ? 25000000 : 2500000;
	struct bd_buffer b = { 0 };
	struct rusage before, after;
	struct cost cost = { 0 };
	int pipes[2], status;
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct bd_safetensors *st;
		int rc;

		bd_buffer_printf(&b, "01234567%s", start);
		for (unsigned i = 0; b.size < size; i++) {
			char piece[128];
			int n = snprintf(piece, sizeof(piece), repeat, i);

			bd_buffer_append(&b, piece, (size_t)n);
		}
		bd_buffer_printf(&b, "%s", end);
		for (int i = 0; i < 8; i++)
			b.data[i] = (char)((b.size - 8) >> 8 * i);
		getrusage(RUSAGE_SELF, &before);
		rc = bd_safetensors_parse(&st, b.data, b.size, b.size, "hostile", NULL);
		getrusage(RUSAGE_SELF, &after);
		cost.seconds = cpu_seconds(&after) - cpu_seconds(&before);
		if (write(pipes[1], &cost.seconds, sizeof(cost.seconds)) < 0)
			_exit(2);
		_exit((rc == 0) != good);
	}
	close(pipes[1]);
	assert_int_equal(read(pipes[0], &cost.seconds, sizeof(cost.seconds)), sizeof(cost.seconds));
	close(pipes[0]);
	assert_int_equal(wait4(pid, &status, 0, &after), pid);
	assert_int_equal(status, 0);
	cost.kilobytes = after.ru_maxrss;
	return cost;
}

/* Headers of 25 MB made to be expensive: at most 1 s and 200 MB, input included. (A tenth of that
 * under a sanitizer, which has its own time and memory.) */
static void hostile_headers(void **state)
{
	static const struct {
		const char *start, *repeat, *end;
		bool good;
	} shapes[] = {
		{ "{", "\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
		  TENSOR("x", "U8", "[0]", 0, 0) "}", true },
		{ "{\"__metadata__\":{", "\"%x\":\"\",", "\"x\":\"\"}}", true },
		{ "{\"__metadata__\":{", "\"%08x\":\"some value that is longer\",", "\"x\":\"\"}}", true },
		{ "{\"t\":{\"x\":[", "0,", "0]}}", false },
		{ "{\"t\":{\"x\":[", "{},", "0]}}", false },
		{ "{\"t\":{", "\"\":0,", "\"x\":0}}", false },
		{ "{\"", "\\u0041", "\":{}}", false },
		{ "{\"__metadata__\":{\"a\":\"", "\\ud83d\\ude00", "\"}}", true },
		{ "{\"t\":{\"shape\":[", "1,", "1]}}", false },
		{ "{\"t\":{\"x\":", "[", "", false },
		{ "{\"t\":{\"x\":", "1", "}}", false },
		{ "{", " ", "}", true },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		struct cost cost = cost_of(shapes[i].start, shapes[i].repeat, shapes[i].end,
					   shapes[i].good);

		print_message("%-44.44s %.2f s, %ld MB\n", shapes[i].repeat, cost.seconds,
			      cost.kilobytes / 1000);
		assert_true(cost.seconds < 1.0 * td_slowness());
		if (td_slowness() == 1)
			assert_true(cost.kilobytes < 200000);
	}
}

/* A real model of 200,000 tensors, whose header is not in the order of the data. */
static void many_tensors(void **state)
{
	enum { N = 200000 };
	struct bd_buffer b = { 0 };
	struct rusage before, after;
	struct bd_safetensors *st;
	char name[80];
	double seconds;
	size_t size;
	char *file;

	(void)state;
	for (uint64_t i = 0; i < N; i++) {
		uint64_t at = i * 7919 % N * 32;

		bd_buffer_printf(&b, "%s\"model.layers.%" PRIu64 ".mlp.experts.%" PRIu64
				 ".down_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[4,4],"
				 "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", i ? "," : "{", i / 500,
				 i % 500, at, at + 32);
	}
	bd_buffer_append(&b, "}", 1);
	file = td_raw_safetensors(b.data, b.size, NULL, N * 32, &size);
	getrusage(RUSAGE_SELF, &before);
	st = parsed(file, size); /* finds every name as well */
	getrusage(RUSAGE_SELF, &after);
	seconds = cpu_seconds(&after) - cpu_seconds(&before);
	print_message("%zu bytes of header: %.2f s\n", b.size, seconds);
	assert_true(seconds < 1.0 * td_slowness());
	assert_int_equal(st->count, N);
	snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%d.down_proj.weight", 1 / 500, 1);
	assert_ptr_equal(bd_safetensors_find(st, name), &st->tensors[7919]);
	assert_true(sizeof(*st->tensors) <= 48);
	for (size_t i = 1; i < st->count; i++)
		assert_ptr_equal(st->tensors[i].shape, st->tensors[0].shape);
	bd_safetensors_free(st);
	bd_buffer_free(&b);
}

/* Shapes stay where they are, and what was just there is not kept again. */
static void pools_shapes(void **state)
{
	enum { KINDS = 5000 };
	static const uint64_t *kept[KINDS];
	struct bd_shapes pool = { 0 };

	(void)state;
	for (uint64_t i = 0; i < KINDS; i++) {
		uint64_t shape[BD_MAX_DIMS] = { i, i + 1, i + 2 };

		kept[i] = bd_shapes_add(&pool, shape, i % 9);
		assert_non_null(kept[i]);
		assert_ptr_equal(bd_shapes_add(&pool, shape, i % 9), kept[i]);
	}
	for (uint64_t i = 0; i < KINDS; i++)
		for (unsigned d = 0; d < i % 9; d++)
			assert_true(kept[i][d] == (d < 3 ? i + d : 0));
	bd_shapes_free(&pool);
}

static int read_path(const char *path)
{
	struct bd_safetensors *st;
	struct bd_file *file;
	int rc;

	assert_int_equal(bd_file_open(&file, path, &err), 0);
	rc = bd_safetensors_read(&st, file, &err);
	if (rc)
		assert_ptr_equal(strstr(err.text, path), err.text);
	else
		check_invariants(st);
	bd_safetensors_free(st);
	bd_file_close(file);
	return rc;
}

static void reads_files(void **state)
{
	char *dir = td_dir(), *path, *data;
	struct td_tensor t = { .name = "w", .dtype = BD_F32, .dims = 1, .shape = { 3 } };
	struct bd_safetensors *st;
	struct bd_file *file;
	size_t size;

	(void)state;
	path = td_safetensors(dir, "good", &t, 1, NULL);
	assert_int_equal(read_path(path), 0);
	data = td_read(path, &size);
	for (size_t n = 0; n < size; n++)
		assert_int_equal(read_path(td_write(dir, "short", data, n)), -EINVAL);
	assert_int_equal(read_path(td_text(dir, "lfs", "version https://git-lfs.github.com/spec/v1\n"
					   "oid sha256:0\n")), -EINVAL);
	assert_non_null(strstr(err.text, "git lfs pull"));
	assert_int_equal(read_path(td_text(dir, "html", "<!DOCTYPE html><html></html>")), -EINVAL);
	assert_non_null(strstr(err.text, "web page"));
	assert_int_equal(read_path(td_text(dir, "html", "<html>")), -EINVAL);
	assert_non_null(strstr(err.text, "web page"));
	assert_int_equal(read_path(td_write(dir, "gguf", "GGUF\3\0\0\0\0\0\0\0", 12)), -EINVAL);
	assert_non_null(strstr(err.text, "GGUF file"));
	assert_int_equal(read_path(td_write(dir, "zip", "PK\3\4\0\0\x08\x08", 8)), -EINVAL);
	assert_non_null(strstr(err.text, "pickled weights"));
	assert_int_equal(read_path(td_write(dir, "pickle", "\200\2}q\0(X\4", 8)), -EINVAL);
	assert_non_null(strstr(err.text, "is pickled"));
	/* A size that is nothing but a claim. */
	path = td_write(dir, "sparse", "\xff\xff\xff\xff\0\0\0\0", 8);
	if (truncate(path, (off_t)1 << 43) == 0)
		assert_int_equal(read_path(path), -EINVAL);
	path = td_safetensors(dir, "changed", &t, 1, NULL);
	assert_int_equal(bd_file_open(&file, path, &err), 0);
	td_write(dir, "changed", data, size - 1);
	assert_int_equal(bd_safetensors_read(&st, file, &err), -EIO);
	assert_null(st);
	bd_file_close(file);
	/* Without a name it has its contents still. */
	path = td_safetensors(dir, "deleted", &t, 1, NULL);
	assert_int_equal(bd_file_open(&file, path, &err), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(bd_safetensors_read(&st, file, &err), 0);
	bd_safetensors_free(st);
	bd_file_close(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parses),
		cmocka_unit_test(orders),
		cmocka_unit_test(reference_verdicts),
		cmocka_unit_test(refuses),
		cmocka_unit_test(truncations),
		cmocka_unit_test(damages),
		cmocka_unit_test(hostile_headers),
		cmocka_unit_test(many_tensors),
		cmocka_unit_test(pools_shapes),
		cmocka_unit_test(reads_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
