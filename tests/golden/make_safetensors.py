#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_safetensors.py: write the good and bad files of tests/golden/safetensors/.

Every good-*.safetensors must parse; every bad-FAULT.safetensors is a small file with that one
fault and must be refused. Run without arguments after a change here and commit what it writes;
--check only compares (exit status 1 where the files differ from what would be written).
"""
import os
import struct
import sys

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "safetensors")
files = {}


def data(n):
    return bytes((7 * i + 1) % 256 for i in range(n))


def file(name, header, n, length=None):
    """A file of this header text and n bytes of data; length: another one than is true."""
    if isinstance(header, str):
        header = header.encode()
    assert name not in files, name
    files[name] = struct.pack("<Q", len(header) if length is None else length) + header + data(n)


def tensor(name="t", dtype="F32", shape="[4]", offsets="[0,16]"):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def one(**fields):
    return "{" + tensor(**fields) + "}"


def several(*tensors):
    return "{" + ",".join(tensors) + "}"


T = one()

# --- good ---

file("good-one-tensor", T, 16)
file("good-no-tensors", "{}", 0)
file("good-only-metadata", '{"__metadata__":{"format":"pt"}}', 0)
file("good-metadata-empty", '{"__metadata__":{},' + tensor() + "}", 16)
file("good-metadata-null", '{"__metadata__":null,' + tensor() + "}", 16)
file("good-metadata-last", "{" + tensor() + ',"__metadata__":{"a":"","b":"line\\nline"}}', 16)
file("good-padded-header", T + " " * 7, 16)
file("good-leading-space", " \n" + T, 16)
file("good-space-everywhere", '{ "t" :\t{ "dtype" : "U8" ,\r\n"shape" : [ 2 , 2 ] , '
     '"data_offsets" : [ 0 , 4 ] } }', 4)
file("good-scalar", one(shape="[]", offsets="[0,4]"), 4)
file("good-empty-tensor", one(shape="[0,5]", offsets="[0,0]"), 0)
file("good-empty-tensors-between", several(
    tensor("a", "U8", "[3]", "[0,3]"), tensor("z", "F64", "[0]", "[3,3]"),
    tensor("b", "U8", "[2]", "[3,5]"), tensor("end", "I8", "[2,0]", "[5,5]")), 5)
file("good-header-in-other-order", several(
    tensor("a", "U8", "[3]", "[4,7]"), tensor("b", "F32", "[1]", "[0,4]")), 7)
file("good-fields-in-other-order",
     '{"t":{"data_offsets":[0,4],"shape":[4],"dtype":"U8"}}', 4)
file("good-unknown-fields", '{"t":{"dtype":"U8","x":[1.5,-2e3,{"y":[true,null]}],"shape":[4],'
     '"data_offsets":[0,4],"":"\\ud83d\\ude00"}}', 4)
file("good-utf8-names", several(tensor("gewichte.ä", "U8", "[1]", "[0,1]"),
                                tensor("\\u91cd", "U8", "[1]", "[1,2]"),
                                tensor("\\ud83d\\ude00", "U8", "[1]", "[2,3]")), 3)
file("good-escaped-fields", '{"t":{"d\\u0074ype":"\\u00558","shape":[1],"data_offsets":[0,1]}}', 1)
file("good-eight-dimensions", one(dtype="U8", shape="[1,2,1,2,1,2,1,1]", offsets="[0,8]"), 8)
file("good-longest-name", one(name="n" * 1024, dtype="U8", shape="[1]", offsets="[0,1]"), 1)
for name, bits in [("BOOL", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E4M3", 8),
                   ("F8_E5M2", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8),
                   ("BF16", 16), ("F16", 16), ("F64", 64), ("C64", 64), ("I64", 64), ("U16", 16)]:
    size = 4 * bits // 8
    file(f"good-dtype-{name}", one(dtype=name, offsets=f"[0,{size}]"), size)

# --- bad: the frame ---

files["bad-empty-file"] = b""
files["bad-seven-bytes"] = struct.pack("<Q", 2)[:7]
files["bad-only-a-length"] = struct.pack("<Q", 2)
files["bad-git-lfs-pointer"] = (b"version https://git-lfs.github.com/spec/v1\noid sha256:" +
                                b"0" * 64 + b"\nsize 16\n")
files["bad-html-page"] = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
files["bad-pickle"] = b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00archive/data.pkl" + bytes(64)
files["bad-big-endian-length"] = struct.pack(">Q", len(T)) + T.encode() + data(16)
file("bad-header-empty", "", 0)
file("bad-header-longer-than-file", T, 16, len(T) + 17)
file("bad-header-100000001-bytes", T, 16, 100000001)
file("bad-header-length-2-to-63", T, 16, 1 << 63)
file("bad-header-length-2-to-64-minus-1", T, 16, (1 << 64) - 1)
file("bad-header-length-2-to-64-minus-8", T, 16, (1 << 64) - 8)
file("bad-header-cut-short", T, 16, len(T) - 1)
file("bad-header-runs-into-data", T, 16, len(T) + 1)
file("bad-file-longer", T, 17)
file("bad-file-shorter", T, 15)
file("bad-data-missing", T, 0)
file("bad-data-without-tensors", "{}", 8)

# --- bad: JSON ---

file("bad-byte-order-mark", b"\xef\xbb\xbf" + T.encode(), 16)
file("bad-trailing-text", T + "x", 16)
file("bad-trailing-nul", T + "\0\0\0", 16)
file("bad-trailing-second-object", T + "{}", 16)
file("bad-trailing-comma", "{" + tensor() + ",}", 16)
file("bad-leading-comma", "{," + tensor() + "}", 16)
file("bad-comma-missing", "{" + tensor("a", "U8", "[1]", "[0,1]") +
     tensor("b", "U8", "[1]", "[1,2]") + "}", 2)
file("bad-colon-missing", '{"t"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16)
file("bad-comment", "/* */" + T, 16)
file("bad-single-quotes", T.replace('"', "'"), 16)
file("bad-key-without-quotes", T.replace('"t"', "t"), 16)
file("bad-root-array", "[" + T + "]", 16)
file("bad-root-null", "null", 0)
file("bad-root-string", '"x"', 0)
file("bad-root-number", "0", 0)
file("bad-root-missing", "    ", 0)
file("bad-brackets-mixed", '{"t":{"dtype":"U8","shape":[1},"data_offsets":[0,1]]}', 1)
file("bad-brace-missing", T[:-1], 16)
file("bad-nested-200-deep", T[:-2] + ',"x":' + "[" * 200 + "]" * 200 + "}}", 16)
file("bad-nested-without-end", '{"t":' + "[" * 300, 0)
file("bad-vertical-tab", "\v" + T, 16)
file("bad-utf8-stray-byte", b'{"\xff":' + T[5:].encode(), 16)
file("bad-utf8-overlong", b'{"\xc0\x80":' + T[5:].encode(), 16)
file("bad-utf8-surrogate", b'{"\xed\xa0\x80":' + T[5:].encode(), 16)
file("bad-utf8-above-10ffff", b'{"\xf4\x90\x80\x80":' + T[5:].encode(), 16)
file("bad-utf8-cut-short", b'{"\xe2\x82":' + T[5:].encode(), 16)
file("bad-utf8-in-unknown-field", T[:-2].encode() + b',"x":"\xfe"}}', 16)
file("bad-escape-unknown", one(name="\\x41"), 16)
file("bad-escape-short", one(name="\\u41"), 16)
file("bad-escape-high-surrogate-alone", one(name="\\ud800"), 16)
file("bad-escape-low-surrogate-alone", one(name="\\udc00"), 16)
file("bad-escape-surrogates-swapped", one(name="\\udc00\\ud800"), 16)

# --- bad: names ---

file("bad-name-empty", one(name=""), 16)
file("bad-name-nul", one(name="a\\u0000b"), 16)
file("bad-name-control-character-raw", one(name="a\nb"), 16)
file("bad-name-control-character-escaped", one(name="a\\u001b[31mb"), 16)
file("bad-name-delete", one(name="a\x7f"), 16)
file("bad-name-c1-control-character", one(name="a\\u009b31m"), 16)
file("bad-name-1025-bytes", one(name="n" * 1025), 16)
file("bad-name-twice", several(tensor("t"), tensor("t")), 16)
file("bad-name-twice-other-place", several(tensor("t"), tensor("t", offsets="[16,32]")), 32)
file("bad-name-twice-by-escape", several(tensor("t"), tensor("\\u0074", offsets="[16,32]")), 32)
file("bad-name-twice-empty-tensors", several(tensor("t", shape="[0]", offsets="[0,0]"),
                                             tensor("t", shape="[0]", offsets="[0,0]")), 0)

# --- bad: metadata ---

file("bad-metadata-number", '{"__metadata__":{"a":1}}', 0)
file("bad-metadata-null-value", '{"__metadata__":{"a":null}}', 0)
file("bad-metadata-object-value", '{"__metadata__":{"a":{"b":"c"}}}', 0)
file("bad-metadata-array", '{"__metadata__":["a"]}', 0)
file("bad-metadata-string", '{"__metadata__":"a"}', 0)
file("bad-metadata-is-a-tensor", one(name="__metadata__"), 16)
file("bad-metadata-twice", '{"__metadata__":{},"__metadata__":{}}', 0)
file("bad-metadata-twice-null", '{"__metadata__":null,"__metadata__":null}', 0)
file("bad-metadata-twice-by-escape", '{"__metadata__":{},"\\u005f_metadata__":{}}', 0)
file("bad-metadata-key-twice", '{"__metadata__":{"a":"1","a":"2"}}', 0)
file("bad-metadata-key-twice-by-escape", '{"__metadata__":{"a":"1","\\u0061":"2"}}', 0)
file("bad-metadata-key-nul", '{"__metadata__":{"a\\u0000":"1"}}', 0)
file("bad-metadata-value-nul", '{"__metadata__":{"a":"1\\u00002"}}', 0)

# --- bad: descriptions ---

file("bad-tensor-null", '{"t":null}', 0)
file("bad-tensor-string", '{"t":"F32"}', 0)
file("bad-tensor-array", '{"t":["F32",[4],[0,16]]}', 16)
file("bad-tensor-empty", '{"t":{}}', 0)
file("bad-dtype-missing", '{"t":{"shape":[4],"data_offsets":[0,16]}}', 16)
file("bad-dtype-twice", T[:-2] + ',"dtype":"F32"}}', 16)
file("bad-dtype-twice-by-escape", T[:-2] + ',"\\u0064type":"F32"}}', 16)
file("bad-dtype-unknown", one(dtype="F33"), 16)
file("bad-dtype-lower-case", one(dtype="f32"), 16)
file("bad-dtype-with-space", one(dtype="F32 "), 16)
file("bad-dtype-with-nul", one(dtype="F32\\u0000"), 16)
file("bad-dtype-empty", one(dtype=""), 16)
file("bad-dtype-I4", one(dtype="I4", offsets="[0,2]"), 2)
file("bad-dtype-number", '{"t":{"dtype":3,"shape":[4],"data_offsets":[0,16]}}', 16)
file("bad-dtype-null", '{"t":{"dtype":null,"shape":[4],"data_offsets":[0,16]}}', 16)
file("bad-shape-missing", '{"t":{"dtype":"F32","data_offsets":[0,16]}}', 16)
file("bad-shape-twice", T[:-2] + ',"shape":[4]}}', 16)
file("bad-shape-number", one(shape="4"), 16)
file("bad-shape-object", one(shape='{"0":4}'), 16)
file("bad-shape-string-inside", one(shape='["4"]'), 16)
file("bad-shape-nested", one(shape="[[4]]"), 16)
file("bad-shape-negative", one(shape="[-4]"), 16)
file("bad-shape-fraction", one(shape="[4.0]"), 16)
file("bad-shape-exponent", one(shape="[4e0]"), 16)
file("bad-shape-leading-zero", one(shape="[04]"), 16)
file("bad-shape-nan", one(shape="[NaN]"), 16)
file("bad-shape-true", one(shape="[true]"), 16)
file("bad-shape-nine-dimensions", one(dtype="U8", shape="[1,1,1,1,1,1,1,1,1]", offsets="[0,1]"), 1)
file("bad-shape-2-to-64", one(shape="[18446744073709551616]"), 16)
file("bad-shape-product-overflow", one(shape="[4294967296,4294967296,4]"), 16)
file("bad-shape-product-wraps-to-4", one(shape="[2,9223372036854775810]"), 16)
file("bad-shape-overflow-before-zero", one(shape="[4294967296,4294967296,0]", offsets="[0,0]"), 0)
file("bad-shape-zero-times-2-to-63", one(shape="[0,9223372036854775808]", offsets="[0,0]"), 0)
file("bad-shape-bits-overflow", one(dtype="F64", shape="[2305843009213693954]"), 16)
file("bad-shape-too-small-for-range", one(shape="[3]"), 16)
file("bad-shape-too-large-for-range", one(shape="[5]"), 16)
file("bad-shape-empty-with-bytes", one(shape="[0]"), 16)
file("bad-bits-no-whole-byte-F4", one(dtype="F4", shape="[3]", offsets="[0,2]"), 2)
file("bad-bits-no-whole-byte-F6", one(dtype="F6_E3M2", shape="[2]", offsets="[0,1]"), 1)
file("bad-unknown-field-broken", T[:-2] + ',"x":[1,]}}', 16)

# --- bad: offsets ---

file("bad-offsets-missing", '{"t":{"dtype":"F32","shape":[4]}}', 16)
file("bad-offsets-twice", T[:-2] + ',"data_offsets":[0,16]}}', 16)
file("bad-offsets-one", one(offsets="[16]"), 16)
file("bad-offsets-three", one(offsets="[0,16,16]"), 16)
file("bad-offsets-none", one(offsets="[]"), 16)
file("bad-offsets-object", one(offsets='{"begin":0,"end":16}'), 16)
file("bad-offsets-string", one(offsets='["0","16"]'), 16)
file("bad-offsets-null", one(offsets="null"), 16)
file("bad-offsets-fraction", one(offsets="[0,16.0]"), 16)
file("bad-offsets-exponent", one(offsets="[0,1.6e1]"), 16)
file("bad-offsets-negative", one(offsets="[-16,0]"), 16)
file("bad-offsets-negative-zero", one(offsets="[-0,16]"), 16)
file("bad-offsets-leading-zero", one(offsets="[0,016]"), 16)
file("bad-offsets-plus", one(offsets="[0,+16]"), 16)
file("bad-offsets-hexadecimal", one(offsets="[0,0x10]"), 16)
file("bad-offsets-reversed", one(offsets="[16,0]"), 16)
file("bad-offsets-beyond-end", one(shape="[8]", offsets="[0,32]"), 16)
file("bad-offsets-2-to-64", one(offsets="[0,18446744073709551632]"), 16)
file("bad-offsets-wrap", one(offsets="[18446744073709551608,8]"), 16)
file("bad-offsets-start-at-4", one(offsets="[4,20]"), 20)
file("bad-hole", several(tensor("a", "U8", "[4]", "[0,4]"), tensor("b", "U8", "[4]", "[8,12]")), 12)
file("bad-hole-at-end", several(tensor("a", "U8", "[4]", "[0,4]"), tensor("b", "U8", "[4]", "[4,8]")),
     12)
file("bad-overlap", several(tensor("a", "U8", "[8]", "[0,8]"), tensor("b", "U8", "[8]", "[4,12]")), 12)
file("bad-overlap-same-range", several(tensor("a"), tensor("b")), 16)
file("bad-overlap-inside", several(tensor("a", "U8", "[8]", "[0,8]"),
                                   tensor("b", "U8", "[2]", "[2,4]")), 8)
file("bad-empty-tensor-inside-another", several(
    tensor("a", "U8", "[8]", "[0,8]"), tensor("z", "U8", "[0]", "[4,4]")), 8)
file("bad-empty-tensor-beyond-end", several(
    tensor("a", "U8", "[8]", "[0,8]"), tensor("z", "U8", "[0]", "[9,9]")), 8)


def main():
    wanted = {name + ".safetensors": content for name, content in files.items()}
    there = set(os.listdir(here)) if os.path.isdir(here) else set()
    if sys.argv[1:] == ["--check"]:
        wrong = sorted(there ^ wanted.keys())
        for name in sorted(there & wanted.keys()):
            with open(os.path.join(here, name), "rb") as f:
                if f.read() != wanted[name]:
                    wrong.append(name)
        for name in wrong:
            print(f"{name}: differs from what make_safetensors.py writes")
        return 1 if wrong else 0
    if sys.argv[1:]:
        sys.exit(__doc__)
    os.makedirs(here, exist_ok=True)
    for name in there - wanted.keys():
        os.unlink(os.path.join(here, name))
    for name, content in wanted.items():
        with open(os.path.join(here, name), "wb") as f:
            f.write(content)
    print(f"{len(wanted)} files in {here}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
