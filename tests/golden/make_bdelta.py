#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_bdelta.py: write the good and bad files of tests/golden/bdelta/, from delta/FORMAT.md alone.

base/ is a tiny base. Every good-NAME.bdelta must open over it and stand for the files in
good-NAME.expected/. Every bad-FAULT.bdelta has that one fault; faults.txt says for each when it must
be found (open, base, read or verify) and a word of the message. Run without arguments after a
change here and commit what it writes; --check only compares (exit status 1 where the files differ).

Standard library only; XXH3 comes from the C library that bitdelta links. Streams are stored blocks,
written by hand, so that the bytes do not depend on the version of zlib.
"""
import copy
import json
import math
import os
import shutil
import struct
import sys
import tempfile
import zlib

from xxh3 import xxh64, xxh128

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bdelta")


def stream(data):
    """A zlib stream (RFC 1950) of stored blocks."""
    out, rest = b"\x78\x01", data
    while True:
        block, rest = rest[:65535], rest[65535:]
        out += struct.pack("<BHH", not rest, len(block), len(block) ^ 0xFFFF) + block
        if not rest:
            return out + struct.pack(">I", zlib.adler32(data))


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ---- Numbers (section 4) ----

SIZE = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1}


def f32(x):
    """Round to binary32. A sum or product of two of them is exact enough in binary64 for that."""
    if math.isnan(x) or math.isinf(x):
        return x
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def number(data, dtype):
    if dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    return struct.unpack("<e" if dtype == "F16" else "<f", data)[0]


def encode(x, dtype):
    if math.isnan(x):
        return {"BF16": b"\xc0\x7f", "F16": b"\0\x7e", "F32": b"\0\0\xc0\x7f"}[dtype]
    if dtype == "F32":
        return struct.pack("<f", x)
    if dtype == "F16":
        try:
            return struct.pack("<e", x)
        except OverflowError:
            return struct.pack("<e", math.copysign(math.inf, x))
    u = struct.unpack("<I", struct.pack("<f", x))[0]
    low, high = u & 0xFFFF, u >> 16
    return struct.pack("<H", high + (low > 0x8000 or (low == 0x8000 and high & 1)))


def rebuild(base, base_dtype, dtype, bits, scales, planes, rows, cols):
    out = b""
    for e in range(rows * cols):
        acc = number(base[e * SIZE[base_dtype]:(e + 1) * SIZE[base_dtype]], base_dtype)
        for p in range(planes):
            row = scales[p * (rows + cols) + e // cols]
            col = scales[p * (rows + cols) + rows + e % cols]
            s = f32(row * col)
            acc = f32(acc + (s if bits[p * rows * cols + e] == "+" else -s))
        out += encode(acc, dtype)
    return out


def numbers(dtype, *values):
    return b"".join(encode(f32(v), dtype) for v in values)


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


# ---- The base ----

inf, nan = math.inf, math.nan
BASE = {
    "w": ("BF16", [2, 3], numbers("BF16", 1, 2, 3, -1, -2, -3)),
    "f": ("F32", [2, 2], numbers("F32", 0.5, -0.25, 1e-40, 3e38)),
    "odd": ("F16", [2, 4], numbers("F16", nan, inf, -inf, 0, 65504, 6e-8, -0.0, 1)),
    "table": ("BF16", [3, 2], numbers("BF16", 1, 2, 3, 4, 5, 6)),
    "ids": ("I64", [2], struct.pack("<2q", 7, -7)),
    "scalar": ("F32", [], numbers("F32", 2.5)),
    "vector": ("F32", [5], numbers("F32", 1, 2, 3, 4, 5)),
    "cube": ("F16", [2, 1, 3], numbers("F16", 1, 2, 3, 4, 5, 6)),
    "none": ("F32", [0, 2], b""),
}


def safetensors(tensors, metadata=None, pad=8):
    """The bytes of a file with these (name, dtype, shape, data), and its header."""
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = compact(header).encode()
    text += b" " * (-len(text) % pad)
    return struct.pack("<Q", len(text)) + text + b"".join(t[3] for t in tensors), text.decode()


def sample(data):
    at = (len(data) - 4096) // 2 // 8 * 8 if len(data) > 4096 else 0
    return xxh64(data[at:at + 4096])


def base_digest():
    lines = [f"{n}\t{d}\t{','.join(map(str, s))}\t{sample(x)}\n" for n, (d, s, x) in sorted(BASE.items())]
    return xxh128("".join(lines).encode())


# ---- Fine-tunes ----

class Delta:
    """What a .bdelta file is made of, before it is packed; faults change it."""

    def __init__(self):
        self.metadata = {"format": "bdelta", "version": "1"}
        self.manifest = {"features": [], "producer": "make_bdelta.py",
                         "base": {"label": "golden", "digest": base_digest()}}
        self.stored = []        # [name, dtype, shape, data] of the container, without the manifest
        self.scales = []
        self.files = []
        self.expected = {}
        self.text = None        # the manifest's text, where it is not compact(self.manifest)
        self.packed = None      # its stream
        self.container = None   # function on the container's (dict) header
        self.raw = None         # function on the finished bytes
        self.pad = 8
        self.last = []          # names of the container's tensors that come after the manifest

    def entry(self, name):
        for f in self.manifest["files"]:
            for t in f.get("tensors", []):
                if t["name"] == name:
                    return t
        raise KeyError(name)

    def file(self, name):
        return next(f for f in self.manifest["files"] if f["name"] == name)

    def part(self, name):
        return next(p for p in self.stored if p[0] == name)

    def add_text(self, name, text):
        data = text.encode()
        self.expected[name] = data
        self.files.append({"name": name, "size": len(data), "xxh128": xxh128(data)})
        packed = stream(data)
        self.stored.append(["file/" + name, "U8", [len(packed)], packed])

    def add_plain(self, name, data):
        self.expected[name] = data
        self.files.append({"name": name, "size": len(data), "xxh128": xxh128(data), "plain": True})
        self.stored.append(["plain/" + name, "U8", [len(data)], data])

    def add_model(self, name, *tensors, pad=8, metadata=None):
        fine, entries = [], []
        for t in tensors:
            data, entry = t(self)
            fine.append((entry["name"], *data))
            entries.append(entry)
        whole, header = safetensors(fine, metadata, pad)
        self.expected[name] = whole
        self.files.append({"name": name, "size": len(whole), "header": header, "tensors": entries})

    def finish(self):
        self.files.sort(key=lambda f: f["name"].encode())
        self.manifest["files"] = self.files
        if self.scales:
            data = struct.pack(f"<{len(self.scales)}f", *self.scales)
            self.manifest["scales_xxh128"] = xxh128(data)
            self.stored.append(["scales", "F32", [len(self.scales)], data])
        return self

    def pack(self):
        text = self.text if self.text is not None else compact(self.manifest)
        text = text if isinstance(text, bytes) else text.encode()
        packed = self.packed if self.packed is not None else stream(text)
        metadata = {"manifest_size": str(len(text)), "manifest_xxh128": xxh128(text), **self.metadata}
        stored = [p for p in self.stored if p[0] not in self.last]
        stored.append(["manifest", "U8", [len(packed)], packed])
        stored += [p for p in self.stored if p[0] in self.last]
        header, at = {"__metadata__": metadata}, 0
        for name, dtype, shape, data in stored:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
            at += len(data)
        if self.container:
            self.container(header)
        head = compact({k: v for k, v in header.items() if v is not None}).encode()
        head += b" " * (-len(head) % self.pad)
        whole = struct.pack("<Q", len(head)) + head + b"".join(p[3] for p in stored)
        return self.raw(whole) if self.raw else whole


def base_of(name, explicit=False, fine=None):
    dtype, shape, data = BASE[name]
    b = {"sample": sample(data), "xxh128": xxh128(data)}
    if explicit or (fine and fine[0] != dtype):
        b["dtype"] = dtype
    if explicit or (fine and fine[1] != shape):
        b["shape"] = shape
    return b


def raw(name, dtype, shape, data):
    def make(d):
        d.stored.append(["raw/" + name, dtype, shape, data])
        return (dtype, shape, data), {"name": name, "encoding": "raw", "xxh128": xxh128(data)}
    return make


def same(name, explicit=False):
    def make(d):
        return BASE[name], {"name": name, "encoding": "same", "base": base_of(name, explicit)}
    return make


def planes_of(bits):
    """'+-+...' as bytes: least significant bit first, 8 bytes at a time."""
    out = bytearray((len(bits) + 63) // 64 * 8)
    for k, b in enumerate(bits):
        out[k // 8] |= (b == "+") << k % 8
    return bytes(out)


def sign(name, bits, scales, dtype=None, planes=1, **more):
    def make(d):
        base_dtype, shape, base = BASE[name]
        fine = (dtype or base_dtype, shape)
        rows, cols = count(shape[:-1]), shape[-1]
        assert len(bits) == planes * rows * cols and len(scales) == planes * (rows + cols)
        d.stored.append(["sign/" + name, "U8", [len(planes_of(bits))], planes_of(bits)])
        d.scales += scales
        data = rebuild(base, base_dtype, fine[0], bits, [f32(s) for s in scales], planes, rows, cols)
        return (*fine, data), {"name": name, "encoding": "sign", "planes": planes,
                               "xxh128": xxh128(planes_of(bits)), "base": base_of(name, fine=fine), **more}
    return make


def rows(name, total, shared, tail=b"", bits=None, scales=None, planes=1, dtype=None):
    def make(d):
        base_dtype, base_shape, base = BASE[name]
        fine = (dtype or base_dtype, [total] + base_shape[1:])
        entry = {"name": name, "encoding": "rows", "shared": shared, "head": "sign" if bits else "same",
                 "base": base_of(name, fine=fine)}
        per = count(base_shape[1:])
        if bits:
            cols = base_shape[-1]
            n = shared * per // cols
            head = rebuild(base, base_dtype, fine[0], bits, [f32(s) for s in scales], planes, n, cols)
            d.stored.append(["sign/" + name, "U8", [len(planes_of(bits))], planes_of(bits)])
            d.scales += scales
            entry.update(planes=planes, xxh128=xxh128(planes_of(bits)))
        else:
            head = base[:shared * per * SIZE[base_dtype]]
        if shared < total:
            d.stored.append(["raw/" + name, fine[0], [total - shared] + base_shape[1:], tail])
            entry["tail_xxh128"] = xxh128(tail)
        return (*fine, head + tail), entry
    return make


# ---- Exact tensors (section 6) ----

LANES = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27,
         4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31]


def units(data, size):
    return [int.from_bytes(data[i:i + size], "little") for i in range(0, len(data), size)]


def planes_of_exact(data, dtype, over_base):
    """The planes of a tensor's bytes: (bytes of a unit, ordered, units)."""
    if over_base and dtype == "F32":
        halves = units(data, 2)
        return [(2, 1, halves[1::2]), (2, 0, halves[0::2])]
    if over_base and dtype in ("BF16", "F16"):
        return [(2, 1, units(data, 2))]
    return [(1, int(over_base and dtype == "F8_E4M3"), list(data))]


def ordinal(u, size, ordered):
    top = 1 << 8 * size - 1
    return u ^ (top - 1) if ordered and u & top else u


def symbol_of(d, size):
    """The symbol of a difference, its raw bits and their number."""
    d &= (1 << 8 * size) - 1
    d -= (d >> 8 * size - 1) << 8 * size
    if size == 1:
        return d + 128, 0, 0
    if -32 <= d < 32:
        return d + 32, 0, 0
    k = max(d, ~d).bit_length() - 5
    if k > 6:
        return 256, 0, 0
    return 32 * (k + 1) + (d >> k) % 32, d % (1 << k), k


def frequencies(symbols):
    """They sum up to 1024: what is over goes to the most frequent."""
    f = {s: max(1, symbols.count(s) * 1024 // len(symbols)) for s in symbols}
    most = max(f, key=lambda s: (f[s], s))
    f[most] += 1024 - sum(f.values())
    return f


def print_table(size, ordered, by, shift, mask, offset, tables):
    out = struct.pack("<5B2H", size, ordered, by, len(tables), shift, mask, offset)
    for f in tables:
        at = 0
        for s in sorted(f):
            while at < s:
                run = min(s - at, 255)
                out += bytes([0, run])
                at += run
            out += bytes([f[s]]) if f[s] < 128 else bytes([128 + (f[s] >> 8), f[s] & 255])
            at += 1
    return out


def code_chunk(coded, escapes):
    """coded: for each unit the symbol's frequency, the sum of those before it, the raw bits and their number."""
    states, words = [65536] * 32, []
    for group in reversed(range(0, len(coded), 32)):
        for j in reversed(range(32)):
            if group + LANES[j] >= len(coded):
                continue
            f, before, raw_bits, k = coded[group + LANES[j]]
            x = states[j]
            if x >= f << 22 - k:
                words.append(x & 65535)
                x >>= 16
            x = x << k | raw_bits
            states[j] = (x // f << 10) + x % f + before
    return struct.pack(f"<I{len(words)}H32I{len(escapes)}H", len(words), *reversed(words), *states, *escapes)


def code_exact(dtype, shape, data, base, by=0, contexts=1, shift=0, mask=0, offset=0, offsets=b"", kinds=None):
    """The bytes of exact/NAME for a tensor of one chunk. kinds: 0, 1 or 2 for each plane."""
    head, index, parts = b"", b"", b""
    planes = planes_of_exact(data, dtype, base is not None)
    under = planes_of_exact(base if base is not None else bytes(len(data)), dtype, base is not None)
    for p, ((size, ordered, fine), (_, _, below)) in enumerate(zip(planes, under)):
        by_place = base is None or not ordered
        n = (1 if size == 2 else SIZE[dtype]) if by_place else contexts
        steps = [ordinal(u, size, ordered) - ordinal(b, size, ordered) for u, b in zip(fine, below)]
        symbols = [symbol_of(d, size) for d in steps]
        places = []
        for i, b in enumerate(below):
            less = offsets[i // shape[-1]] if by == 1 else offset
            places.append(i % n if by_place else min(max((b >> shift & mask) - less, 0), n - 1))
        tables = [frequencies([s[0] for s, at in zip(symbols, places) if at == c] or [128 if size == 1 else 32])
                  for c in range(n)]
        head += print_table(size, ordered, 2 if by_place else by, shift, mask, offset, tables)
        head += b"" if by_place else offsets
        kind = kinds[p] if kinds else 2
        if kind == 2:
            coded = [(tables[at][s], sum(f for t, f in tables[at].items() if t < s), bits, k)
                     for (s, bits, k), at in zip(symbols, places)]
            parts += code_chunk(coded, [d & 65535 for d, s in zip(steps, symbols) if s[0] == 256])
        elif kind == 1:
            parts += b"".join(u.to_bytes(size, "little") for u in fine)
        else:
            assert fine == below
        index += struct.pack("<Q", 4 * len(parts) + kind)
    head += b"\0" * (-len(head) % 8)
    whole = struct.pack("<I4B", 8 + len(head), len(planes), 0, 0, 0) + head + index + parts
    return whole + b"\0" * (-len(whole) % 8)


def exact(name, data, base=None, dtype=None, shape=None, **how):
    """base: the name of the tensor below; dtype and shape are its own unless given."""
    def make(d):
        fine, entry = (dtype, shape), {"name": name, "encoding": "exact", "xxh128": xxh128(data)}
        below = None
        if base:
            base_dtype, base_shape, below = BASE[base]
            fine = (dtype or base_dtype, base_shape)
            entry["base"] = base_of(base, fine=fine)
            if base != name:
                entry["base"]["name"] = base
            if fine[0] != base_dtype:
                below = b"".join(encode(number(below[i:i + SIZE[base_dtype]], base_dtype), fine[0])
                                 for i in range(0, len(below), SIZE[base_dtype]))
        stored = code_exact(*fine, data, below, **how)
        d.stored.append(["exact/" + name, "U8", [len(stored)], stored])
        return (*fine, data), entry
    return make


def renamed(name, base, bits=None, scales=None, **more):
    """A tensor that the base calls something else."""
    make = (rows(base, **more) if more else sign(base, bits, scales) if bits else same(base))

    def change(d):
        before = len(d.stored)
        data, entry = make(d)
        for p in d.stored[before:]:
            p[0] = p[0].replace("/" + base, "/" + name)
        entry["name"] = name
        entry["base"]["name"] = base
        return data, entry
    return change


def copied(number, make):
    """The same in a further file, the one with this number."""
    def change(d):
        before = len(d.stored)
        data, entry = make(d)
        for p in d.stored[before:]:
            p[0] = p[0].replace("/", f".{number}/", 1)
        entry["copy"] = True
        return data, entry
    return change


W = sign("w", "++---+", [0.5, 0.25, 1, 0.5, 2])
NORM = raw("norm", "F32", [1], numbers("F32", 1))
TAIL = numbers("BF16", 7, 8)
CONFIG = '{"model_type":"llama"}'


def small():
    """A sign-coded matrix, a raw vector and a file."""
    d = Delta()
    d.add_text("config.json", CONFIG)
    d.add_model("model.safetensors", NORM, W)
    return d.finish()


def table():
    """A table that grew by a row, of equal and of sign-coded rows."""
    d = Delta()
    d.add_model("model.safetensors", rows("table", 4, 3, TAIL))
    return d.finish()


def sign_table():
    d = Delta()
    d.add_model("model.safetensors", rows("table", 4, 2, numbers("BF16", 1, 2, 7, 8), "+--+", [1, 2, 3, 4]))
    return d.finish()


def same_only():
    d = Delta()
    d.add_model("model.safetensors", same("w"))
    return d.finish()


def nested():
    """Files in subdirectories."""
    d = Delta()
    for name in ["1_Pooling/config.json", "a-b", "a.b", "a/deep/er/x", "a/y", "b/.hidden", "a/deep.txt"]:
        d.add_text(name, name)
    d.add_model("model.safetensors", NORM, W)
    d.add_model("2_Dense/model.safetensors", raw("linear.weight", "F32", [1], numbers("F32", 3)))
    d.manifest["features"] = ["paths"]
    return d.finish()


def twice():
    """Tensors that lie in two and three files; loaders use those that are no copies."""
    d = Delta()
    d.add_text("0.txt", "number one")
    d.add_model("1.safetensors", copied(2, raw("norm", "F32", [2], numbers("F32", 5, 6))),
                copied(2, sign("w", "------", [1, 1, 1, 1, 1])), copied(2, same("ids")), same("scalar"))
    d.add_model("2.safetensors", copied(3, raw("norm", "F32", [1], numbers("F32", 4))), same("ids"))
    d.add_model("3.safetensors", NORM, W, copied(4, rows("table", 4, 3, TAIL)))
    d.add_model("4.safetensors", rows("table", 4, 2, numbers("BF16", 1, 2, 7, 8), "+--+", [1, 2, 3, 4]))
    d.manifest["features"] = ["copies"]
    return d.finish()


def plain():
    """Files that are kept as they are."""
    d = Delta()
    d.add_text("config.json", CONFIG)
    d.add_plain("empty", b"")
    d.add_plain("large.bin", bytes(range(256)) * 20)
    d.manifest["features"] = ["plain-files"]
    return d.finish()


def exact_model():
    """Exact tensors over bases."""
    d = Delta()
    d.add_model("model.safetensors",
                exact("w", numbers("BF16", 1.0078125, 2.5, 3, -1, 7, -0.0), "w"),
                exact("odd", bytes.fromhex("017e 007c ff7f 0080 ff7b 0200 0000 01bc"), "odd", contexts=3, shift=10,
                      mask=31, offset=14),
                exact("f", bytes.fromhex("0000003f 010080be ffffff7f 00000080"), "f", contexts=2, shift=7, mask=255,
                      offset=126),
                exact("table", numbers("BF16", 1.5, 2, 3, 4.25, 5, 60), "table", by=1, contexts=4, shift=6, mask=510,
                      offsets=b"\xfd\xff\0"),
                exact("cube", BASE["cube"][2], "cube", kinds=[0]),
                exact("scalar", numbers("F32", 2.75), "scalar", kinds=[2, 1]),
                exact("ids", struct.pack("<2q", 8, -7), "ids"))
    d.manifest["features"] = ["exact"]
    return d.finish()


def exact_alone():
    """Exact tensors without a base, of several groups, and signs."""
    d = Delta()
    d.add_model("model.safetensors",
                exact("bytes", bytes(i * i % 7 for i in range(100)), dtype="U8", shape=[4, 25]),
                exact("counts", struct.pack("<50i", *range(-20, 30)), dtype="I32", shape=[50]),
                exact("raw", numbers("F32", 1, 2, 3), dtype="F32", shape=[3], kinds=[1]),
                exact("zeros", bytes(6), dtype="BF16", shape=[3], kinds=[0]),
                exact("yes", b"\1", dtype="BOOL", shape=[]), W)
    d.manifest["features"] = ["exact"]
    return d.finish()


files = {}      # path below bdelta/ -> bytes
faults = []     # lines of faults.txt


def good(name, d):
    files[f"good-{name}.bdelta"] = d.pack()
    for n, data in d.expected.items():
        files[f"good-{name}.expected/{n}"] = data


def bad(name, when, word, change, make=small):
    assert f"bad-{name}.bdelta" not in files, name
    d = make()
    result = change(d)
    files[f"bad-{name}.bdelta"] = result if isinstance(result, bytes) else d.pack()
    faults.append(f"bad-{name}.bdelta {when} {word}\n")


def models(*tensors, **more):
    d = Delta()
    d.add_model("model.safetensors", *tensors, **more)
    return d.finish()


def write_good():
    good("small", small())
    good("same", models(same("w"), same("ids", True), same("scalar"), same("none"), same("vector")))
    good("two-planes", models(sign("w", "++---+" "-+-+-+", [0.5, 0.25, 1, 0.5, 2, 0.125, -1, 3, 0, -0.5],
                                   planes=2)))
    good("eight-planes", models(sign("f", "+-+-" * 8, [2.0 ** -k for k in range(32)], planes=8)))
    good("bf16-over-f32", models(sign("f", "+--+", [1, 0.001, 1, 3e-5], "BF16")))
    good("f16-over-bf16", models(sign("w", "+-+-+-", [1, 1e-6, 1, 1e-8, 65504], "F16")))
    good("f32-over-f16", models(sign("odd", "+-+-+-+-", [1, 1e-45, 1, 2, 3e38, 1e-45], "F32")))
    good("not-a-number", models(sign("odd", "++++----", [1, 3e38, 1e38, 1, 1, 1])))
    good("vector", models(sign("vector", "+-+-+", [0.1, 1, 2, 3, 4, 5])))
    good("cube", models(sign("cube", "+-+-+-", [1, 2, 0.5, 0.25, 0.125])))
    good("rows-same", table())
    good("rows-sign", sign_table())
    good("rows-shrunk", models(rows("table", 2, 2)))
    good("rows-shrunk-sign", models(rows("table", 2, 2, b"", "+-+-", [1, 2, 3, 4])))
    good("rows-fewer-shared", models(rows("table", 3, 1, numbers("BF16", 0, 0, 1, 1))))
    good("rows-other-dtype", models(rows("table", 4, 3, numbers("F32", 1, 2), "+-+-+-", [1, 2, 3, 4, 5],
                                         dtype="F32")))
    good("rows-cube", models(rows("cube", 3, 1, numbers("F16", 1, 2, 3, 4, 5, 6), "+-+", [1, 2, 3, 4])))
    d = models(renamed("theirs.w", "w", "++---+", [0.5, 0.25, 1, 0.5, 2]), same("scalar"),
               renamed("w", "vector", "+-+-+", [0.1, 1, 2, 3, 4, 5]), renamed("\u4e16", "ids"),
               renamed("again", "w"), renamed("taller", "table", total=4, shared=3, tail=TAIL))
    d.manifest["features"] = ["base-names"]
    good("base-names", d)
    d = small()
    d.manifest["features"] = ["base-names"]
    d.entry("norm")["base"] = {**base_of("w"), "name": "w"}
    good("base-names-unused", d)
    good("raw", models(raw("b", "BOOL", [3], b"\0\1\1"), raw("s", "F64", [], b"12345678"),
                       raw("e", "F8_E4M3", [0, 7], b""), raw("w", "I8", [2, 3], b"abcdef")))
    d = Delta()
    d.add_text("a.txt", "")
    d.add_text("\u00e9 \u4e16.txt", "text\n" * 3)
    d.add_text("x" * 120, "\0\1\2")
    d.add_text(".hidden", ".")
    good("files", d.finish())
    d = Delta()
    # In the order of their names, since that is the order of the scales.
    d.add_model("a.safetensors", same("f"), sign("vector", "-----", [1, 1, 1, 1, 1, 1]), pad=1)
    d.add_model("b.safetensors", NORM, W, metadata={"format": "pt"})
    d.add_model("c.safetensors")
    good("several", d.finish())
    good("paths", nested())
    good("copies", twice())
    good("plain-files", plain())
    good("exact", exact_model())
    good("exact-alone", exact_alone())
    d = models(exact("wide", numbers("F32", 1, 2.5, 3, -1.25, -2, -3), "w", "F32"),
               exact("narrow", numbers("BF16", 1, 2, 3.5, 4, 5), "vector", "BF16"),
               exact("other", numbers("BF16", nan, inf, -inf, 0, 1, 0, 0, 2), "odd", "BF16"))
    d.manifest["features"] = ["base-names", "exact"]
    good("exact-other-dtype", d)
    d = Delta()
    d.add_model("1.safetensors", copied(1, exact("w", numbers("BF16", 1, 2, 3, 4, 5, 6), "w")))
    d.add_model("2.safetensors", exact("w", numbers("BF16", 1, 2, 3, -4, -5, -6), "w"))
    d.manifest["features"] = ["copies", "exact"]
    good("exact-copies", d.finish())
    d = small()
    d.manifest["features"] = ["plain-files", "paths", "copies", "paths"]
    d.file("model.safetensors")["plain"] = True
    d.file("config.json")["plain"] = d.entry("w")["copy"] = False
    good("features-unused", d)
    good("nothing", Delta().finish())
    d = small()
    d.manifest["import"] = {"scale": "rank1", "attenuation": 1.4, "distilled": False, "later": [1]}
    d.manifest["base"].update(revision="0123456789", path="~/golden", hub="org/golden")
    d.manifest["later"] = {"deep": [[[{"a": None, "b": True, "c": -1.5e-3, "d": "\u00e9\n"}]]]}
    d.manifest["n" * 63] = 1
    d.entry("w").update(error=0.5, unknown={}, base={**d.entry("w")["base"], "also": []})
    d.file("config.json")["mode"] = 420
    d.metadata["another"] = "key"
    good("unknown-members", d)
    d = small()
    d.text = json.dumps(d.manifest, indent="\t").replace("model", "\\u006dodel")
    good("white-space-and-escapes", d)
    d = small()
    d.pad = 13
    d.last = ["scales", "raw/norm"]
    d.container = lambda h: h["manifest"].update(note="extra")
    good("misaligned", d)
    d = small()
    d.packed = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FIXED)
    text = b"   " + compact(d.manifest).encode()
    d.text = text
    d.packed = d.packed.compress(text) + d.packed.flush()
    good("deflated", d)


def replaced(old, new, times=1):
    def change(d):
        text = compact(d.manifest)
        assert text.count(old) >= 1, old
        d.text = text.replace(old, new, times)
    return change


def header(old, new):
    """In the fine-tune's own header, whose length and the file's size follow."""
    def change(d):
        f = d.file("model.safetensors")
        assert old in f["header"], old
        before = len(f["header"].encode())
        f["header"] = f["header"].replace(old, new, 1)
        f["size"] += len(f["header"].encode()) - before
    return change


def setting(path, value):
    """setting("files.1.size", 3): in the manifest; value None removes."""
    def change(d):
        at, keys = d.manifest, path.split(".")
        keys = [int(k) if k.isdigit() else k for k in keys]
        for k in keys[:-1]:
            at = at[k]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
    return change


def part(name, dtype=None, shape=None, data=None, rename=None):
    def change(d):
        p = d.part(name)
        p[:] = [rename or p[0], dtype or p[1], p[2] if shape is None else shape,
                p[3] if data is None else data]
    return change


def dropped(name):
    return lambda d: d.stored.remove(d.part(name))


def added(name, dtype, shape, data):
    return lambda d: d.stored.append([name, dtype, shape, data])


def metadata(**values):
    return lambda d: d.metadata.update(values)


def without_metadata(key):
    def change(d):
        d.container = lambda h: h["__metadata__"].pop(key)
    return change


def bytes_changed(f):
    def change(d):
        d.raw = f
    return change


def scales_with(index, value):
    def change(d):
        p = d.part("scales")
        s = list(struct.unpack(f"<{len(p[3]) // 4}f", p[3]))
        s[index] = value
        p[3] = struct.pack(f"<{len(s)}f", *s)
        d.manifest["scales_xxh128"] = xxh128(p[3])
    return change


def flipped(part_name, index, bit=1):
    def change(d):
        p = d.part(part_name)
        data = bytearray(p[3])
        data[index] ^= bit
        p[3] = bytes(data)
    return change


def both(*changes):
    def change(d):
        for c in changes:
            c(d)
    return change


M, C = "files.1", "files.0"     # model.safetensors and config.json of small()
NORM_ENTRY, W_ENTRY = M + ".tensors.0", M + ".tensors.1"
T = "files.0.tensors.0"         # of table()
HEX = "0" * 32


def bad_container():
    bad("empty", "open", "too few", lambda d: b"")
    bad("text", "open", "safetensors", lambda d: b"this is not a delta, but a text")
    bad("lfs-pointer", "open", "git lfs pull",
        lambda d: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    bad("plain-safetensors", "open", "not a .bdelta",
        lambda d: safetensors([("w", *BASE["w"])], {"format": "pt"})[0])
    bad("no-metadata", "open", "not a .bdelta", lambda d: safetensors([("w", *BASE["w"])])[0])
    bad("format-other", "open", "not a .bdelta", metadata(format="bdelta2"))
    bad("format-upper-case", "open", "not a .bdelta", metadata(format="BDELTA"))
    bad("version-2", "open", "newer bitdelta", metadata(version="2"))
    bad("version-0", "open", "version '0'", metadata(version="0"))
    bad("version-with-zero", "open", "version '01'", metadata(version="01"))
    bad("version-minor", "open", "version '1.1'", metadata(version="1.1"))
    bad("version-missing", "open", "version", without_metadata("version"))
    bad("version-escape", "open", "version '?'", metadata(version="\x1b[2J"))
    bad("manifest-size-missing", "open", "manifest_size", without_metadata("manifest_size"))
    bad("manifest-hash-missing", "open", "manifest_xxh128", without_metadata("manifest_xxh128"))
    bad("manifest-hash-upper-case", "open", "manifest_xxh128", metadata(manifest_xxh128="A" * 32))
    bad("manifest-hash-short", "open", "manifest_xxh128", metadata(manifest_xxh128="0" * 31))
    bad("manifest-hash-wrong", "open", "damaged", metadata(manifest_xxh128=HEX))
    bad("manifest-size-larger", "open", "does not inflate",
        lambda d: d.metadata.update(manifest_size=str(len(compact(d.manifest)) + 1)))
    bad("manifest-size-smaller", "open", "does not inflate",
        lambda d: d.metadata.update(manifest_size=str(len(compact(d.manifest)) - 1)))
    bad("manifest-size-bomb", "open", "impossible size", metadata(manifest_size="999999999999999999"))
    bad("manifest-size-too-long", "open", "malformed", metadata(manifest_size="1" * 19))
    bad("manifest-size-negative", "open", "malformed", metadata(manifest_size="-1"))
    bad("manifest-size-plus", "open", "malformed", metadata(manifest_size="+700"))
    bad("manifest-size-hexadecimal", "open", "malformed", metadata(manifest_size="0x100"))
    bad("manifest-size-empty", "open", "malformed", metadata(manifest_size=""))
    bad("manifest-missing", "open", "manifest", lambda d: setattr(d, "container", lambda h: h.update(
        manifest2=h.pop("manifest"))))
    bad("manifest-shape", "open", "wrong dtype or size", lambda d: setattr(
        d, "container", lambda h: h["manifest"].update(shape=[1, h["manifest"]["shape"][0]])))
    bad("manifest-dtype", "open", "wrong dtype or size", lambda d: setattr(
        d, "container", lambda h: h["manifest"].update(dtype="I8")))
    bad("manifest-cut", "open", "does not inflate",
        lambda d: setattr(d, "packed", stream(compact(d.manifest).encode())[:-1]))
    bad("manifest-adler-wrong", "open", "does not inflate",
        lambda d: setattr(d, "packed", stream(compact(d.manifest).encode())[:-4] + b"\0\0\0\0"))
    bad("manifest-trailing-byte", "open", "does not inflate",
        lambda d: setattr(d, "packed", stream(compact(d.manifest).encode()) + b"\0"))
    bad("manifest-two-streams", "open", "does not inflate",
        lambda d: setattr(d, "packed", stream(compact(d.manifest).encode()) + stream(b"")))
    bad("manifest-raw-deflate", "open", "does not inflate",
        lambda d: setattr(d, "packed", stream(compact(d.manifest).encode())[2:-4]))
    bad("manifest-not-packed", "open", "does not inflate",
        lambda d: setattr(d, "packed", compact(d.manifest).encode()))
    dictionary = zlib.compressobj(0, zlib.DEFLATED, 15, 8, 0, b"features")
    bad("manifest-dictionary", "open", "does not inflate", lambda d: setattr(
        d, "packed", dictionary.compress(compact(d.manifest).encode()) + dictionary.flush()))
    bad("manifest-empty", "open", "manifest", lambda d: setattr(d, "text", ""))
    bad("trailing-bytes", "open", "belong to no tensor", bytes_changed(lambda b: b + b"\0"))
    bad("cut-short", "open", "cut short", bytes_changed(lambda b: b[:-1]))
    bad("cut-in-header", "open", "cut short", bytes_changed(lambda b: b[:100]))
    bad("header-length-bomb", "open", "at most", bytes_changed(lambda b: b"\xff" * 8 + b[8:]))
    bad("header-length-too-large", "open", "cut short",
        bytes_changed(lambda b: struct.pack("<Q", len(b)) + b[8:]))
    bad("tensors-overlap", "open", "overlaps", lambda d: setattr(d, "container", lambda h: h.update(
        again=dict(h["raw/norm"]))))
    bad("tensor-twice", "open", "raw/norm", bytes_changed(lambda b: b.replace(b'"scales":', b'"raw/norm":', 1)
        .replace(struct.pack("<Q", struct.unpack("<Q", b[:8])[0]),
                 struct.pack("<Q", struct.unpack("<Q", b[:8])[0] + 2), 1)))
    bad("stray-tensor", "open", "does not mention", added("raw/stray", "U8", [1], b"x"))
    bad("stray-empty-tensor", "open", "does not mention", added("stray", "F32", [0], b""))
    bad("stray-scales", "open", "scales", added("scales", "F32", [1], b"1234"), same_only)
    bad("stray-file", "open", "does not mention", added("file/a", "U8", [11], stream(b"")))
    bad("stray-sign", "open", "does not mention", added("sign/norm", "U8", [8], b"12345678"))
    bad("raw-missing", "open", "raw/norm", dropped("raw/norm"))
    bad("sign-missing", "open", "sign/w", dropped("sign/w"))
    bad("file-missing", "open", "file/config.json", dropped("file/config.json"))
    bad("scales-missing", "open", "scales", dropped("scales"))
    bad("tail-missing", "open", "raw/table", dropped("raw/table"), table)
    bad("raw-other-dtype", "open", "another dtype or shape", part("raw/norm", "I32"))
    bad("raw-other-shape", "open", "another dtype or shape", part("raw/norm", shape=[1, 1]))
    bad("raw-too-long", "open", "another dtype or shape", part("raw/norm", shape=[2], data=b"12345678"))
    bad("tail-other-dtype", "open", "another dtype or shape", part("raw/table", "F16"), table)
    bad("tail-too-long", "open", "another dtype or shape", part("raw/table", shape=[2, 2], data=b"12345678"),
        table)
    bad("tail-other-columns", "open", "another dtype or shape", part("raw/table", shape=[2, 1]), table)
    bad("sign-too-short", "open", "wrong dtype or size", part("sign/w", shape=[7], data=b"1234567"))
    bad("sign-too-long", "open", "wrong dtype or size", part("sign/w", shape=[16], data=b"12345678" * 2))
    bad("sign-not-padded", "open", "wrong dtype or size", part("sign/w", shape=[1], data=b"\x23"))
    bad("sign-other-dtype", "open", "wrong dtype or size", part("sign/w", "I8"))
    bad("sign-other-shape", "open", "wrong dtype or size", part("sign/w", shape=[2, 4]))
    bad("sign-empty", "open", "wrong dtype or size", part("sign/w", shape=[0], data=b""))
    bad("file-other-dtype", "open", "wrong dtype or size", part("file/config.json", "I8"))
    bad("file-other-shape", "open", "wrong dtype or size", lambda d: part(
        "file/config.json", shape=[len(d.part("file/config.json")[3]), 1])(d))
    bad("scales-other-dtype", "open", "not a vector of F32", part("scales", "I32"))
    bad("scales-matrix", "open", "not a vector of F32", part("scales", shape=[1, 5]))
    bad("scales-too-few", "open", "too short", part("scales", shape=[4], data=b"1234" * 4))
    bad("scales-too-many", "open", "more scales", part("scales", shape=[6], data=b"1234" * 6))
    bad("scales-none", "open", "too short", part("scales", shape=[0], data=b""))


def bad_json():
    for name, old, new, word in [
            ("json-trailing-comma", '"features":[]', '"features":[],', "at byte"),
            ("json-single-quotes", '"features"', "'features'", "expected"),
            ("json-comment", '{"features"', '{/**/"features"', "expected"),
            ("json-cut", '"files"', '"files', "at byte"),
            ("json-bare-word", '"features":[]', '"features":[],"x":yes', "expected"),
            ("json-number-leading-zero", '"features":[]', '"features":[],"x":01', "number"),
            ("json-number-plus", '"features":[]', '"features":[],"x":+1', "expected"),
            ("json-not-a-number", '"features":[]', '"features":[],"x":NaN', "expected"),
            ("json-raw-newline-in-string", "make_bdelta", "make\nbdelta", "control"),
            ("json-nul-escape", "make_bdelta", "make\\u0000bdelta", "U+0000"),
            ("json-lone-surrogate", "make_bdelta", "make\\ud800bdelta", "surrogate"),
            ("json-bad-escape", "make_bdelta", "make\\xbdelta", "escape"),
            ("json-key-twice", '"features":[]', '"features":[],"features":[]', "second time"),
            ("json-key-twice-by-escape", '"features":[]', '"features":[],"f\\u0065atures":[]', "second time"),
            ("json-key-twice-unknown", '"features":[]', '"features":[],"x":{"a":1,"a":2}', "second time"),
    ]:
        bad(name, "open", word, replaced(old, new))
    bad("json-trailing-garbage", "open", "follows", lambda d: setattr(d, "text", compact(d.manifest) + "x"))
    bad("json-two-documents", "open", "follows", lambda d: setattr(d, "text", compact(d.manifest) * 2))
    bad("json-array", "open", "expected an object", lambda d: setattr(d, "text", "[]"))
    bad("json-byte-order-mark", "open", "expected",
        lambda d: setattr(d, "text", "\ufeff" + compact(d.manifest)))
    bad("json-not-utf8", "open", "UTF-8",
        lambda d: setattr(d, "text", compact(d.manifest).encode().replace(b"make_b", b"make\xffb")))
    bad("json-overlong", "open", "UTF-8",
        lambda d: setattr(d, "text", compact(d.manifest).encode().replace(b"make_b", b"make\xc0\xafb")))
    bad("json-too-deep", "open", "nested", replaced('"features":[]', '"features":[],"x":' + "[" * 40 + "]" * 40))


def bad_manifest():
    bad("feature-unknown", "open", "feature 'xor'", setting("features", ["xor"]))
    bad("feature-number", "open", "expected", setting("features", [1]))
    bad("features-missing", "open", "features", setting("features", None))
    bad("features-null", "open", "expected", replaced('"features":[]', '"features":null'))
    bad("producer-missing", "open", "producer", setting("producer", None))
    bad("producer-number", "open", "expected", setting("producer", 1))
    bad("base-missing", "open", "label", setting("base", None))
    bad("base-label-missing", "open", "label", setting("base.label", None))
    bad("base-label-too-long", "open", "label", setting("base.label", "x" * 1025))
    bad("base-label-control-characters", "open", "control", setting("base.label", "\x1b]0;x\x07"))
    bad("base-revision-control-characters", "open", "control", setting("base.revision", "a\nb"))
    bad("base-digest-missing", "open", "digest", setting("base.digest", None))
    bad("base-digest-short", "open", "hash", setting("base.digest", "0" * 31))
    bad("base-digest-not-hexadecimal", "open", "hash", setting("base.digest", "g" * 32))
    bad("import-attenuation-text", "open", "expected", setting("import", {"attenuation": "1.4"}))
    bad("import-distilled-number", "open", "expected", setting("import", {"distilled": 1}))
    bad("import-attenuation-infinite", "open", "number",
        replaced('"features":[]', '"features":[],"import":{"attenuation":1e999}'))
    bad("scales-hash-missing", "open", "scales", setting("scales_xxh128", None))
    bad("scales-hash-without-scales", "open", "scales_xxh128", setting("scales_xxh128", HEX), same_only)
    bad("files-missing", "open", "files", setting("files", None))
    bad("files-object", "open", "expected an array", setting("files", {}))
    # Files
    bad("file-without-name", "open", "name", setting(C + ".name", None))
    bad("file-without-size", "open", "size", setting(C + ".size", None))
    bad("file-without-hash", "open", "xxh128", setting(C + ".xxh128", None))
    bad("file-size-negative", "open", "integer", setting(C + ".size", -1))
    bad("file-size-fraction", "open", "integer", setting(C + ".size", 22.0))
    bad("file-size-exponent", "open", "integer", replaced('"size":22', '"size":22e0'))
    bad("file-size-65-bits", "open", "64 bits", setting(C + ".size", 1 << 64))
    bad("file-size-bomb", "open", "impossible size", setting(C + ".size", 1 << 62))
    bad("file-size-text", "open", "expected", setting(C + ".size", "22"))
    for name, value in [("parent", ".."), ("dot", "."), ("empty", ""), ("traversal", "../x"),
                        ("absolute", "/etc/passwd"), ("newline", "a\nb"), ("escape", "\x1b"),
                        ("delete", "a\x7f"), ("too-long", "x" * 256)]:
        bad("file-name-" + name, "open", "impossible name" if value != "" else "name",
            both(setting(C + ".name", value), part("file/config.json", rename="file/" + value)
                 if value.isprintable() else lambda d: None))
    bad("path-without-feature", "open", "uses the feature 'paths'",
        both(setting(C + ".name", "a/b"), part("file/config.json", rename="file/a/b")))
    for name, value in [("traversal", "a/../../x"), ("parent", "a/.."), ("dot", "a/./b"), ("begins-with-dots", "../a/b"),
                        ("absolute", "/a/b"), ("ends-with-slash", "a/"), ("empty-component", "a//b"),
                        ("git", ".git/config"), ("git-upper-case", "a/.Git/hooks/x"), ("too-deep", "a/" * 32 + "b"),
                        ("too-long", "/".join(["x" * 203] * 5)), ("long-component", "a/" + "x" * 256)]:
        bad("path-" + name, "open", "impossible name",
            both(setting("features", ["paths"]), setting(C + ".name", value),
                 part("file/config.json", rename="file/" + value[:1000])))
    for name, *values in [("file-and-directory", "a", "a/b"), ("file-and-directory-case", "A", "a/b"),
                          ("directories-differ-in-case", "A/x", "a/y"), ("differ-in-case", "a/X", "a/x"),
                          ("deep-directories-differ-in-case", "a/B/x", "a/b/c/y")]:
        bad("paths-" + name, "open", "cannot lie in one directory",
            lambda d, values=values: ([d.add_text(v, "") for v in values], setting("features", ["paths"])(d),
                                      d.files.sort(key=lambda f: f["name"].encode())))
    for name in ".git", ".GIT":
        bad("paths-beside-" + ("git-file" if name.islower() else "git-file-upper-case"), "open", f"a file '{name}' beside directories",
            lambda d, name=name: (d.add_text(name, "gitdir: a"), d.add_text("a/config", ""),
                                  setting("features", ["paths"])(d), d.files.sort(key=lambda f: f["name"].encode())))
    bad("paths-too-many", "open", "more than 4096 directories",
        lambda d: ([d.add_text(f"{i:04}/" + "d/" * 30 + "x", "") for i in range(133)],
                   setting("features", ["paths"])(d), d.files.sort(key=lambda f: f["name"].encode())))
    bad("plain-without-feature", "open", "uses the feature 'plain-files'", setting("features", []), plain)
    bad("plain-size-larger", "open", "wrong dtype or size", setting("files.2.size", 5121), plain)
    bad("plain-size-bomb", "open", "wrong dtype or size", setting("files.2.size", (1 << 64) - 1), plain)
    bad("plain-without-hash", "open", "xxh128", setting("files.2.xxh128", None), plain)
    bad("plain-missing", "open", "holds no tensor", dropped("plain/large.bin"), plain)
    bad("plain-packed", "open", "holds no tensor", setting("files.2.plain", None), plain)
    bad("plain-number", "open", "expected", setting("files.2.plain", 1), plain)
    bad("file-names-equal", "open", "", lambda d: d.manifest["files"].insert(0, d.manifest["files"][0]))
    bad("file-names-differ-in-case", "open", "upper and lower case",
        lambda d: (d.add_text("Config.json", "{}"), d.files.sort(key=lambda f: f["name"].encode())))
    bad("files-not-in-order", "open", "ascending", lambda d: d.manifest["files"].reverse())
    bad("file-name-of-model-traversal", "open", "impossible name", setting(M + ".name", "../m.safetensors"))
    # Models
    bad("model-without-header", "open", "lacks", setting(M + ".header", None))
    bad("model-without-tensors", "open", "lacks", setting(M + ".tensors", None))
    bad("model-size-larger", "open", "belong to no tensor",
        lambda d: d.file("model.safetensors").update(size=d.file("model.safetensors")["size"] + 1))
    bad("model-size-smaller", "open", "cut short",
        lambda d: d.file("model.safetensors").update(size=d.file("model.safetensors")["size"] - 1))
    bad("model-size-zero", "open", "too few", setting(M + ".size", 0))
    bad("model-size-bomb", "open", "belong to no tensor", setting(M + ".size", (1 << 64) - 1))
    bad("header-empty", "open", "header is empty", both(setting(M + ".header", ""), setting(M + ".size", 24)))
    bad("header-no-json", "open", "model.safetensors", header('{"norm"', '["norm"'))
    bad("header-hole", "open", "model.safetensors", header("[0,4]", "[1,5]"))
    bad("header-offsets-swapped", "open", "ends before", header("[0,4]", "[4,0]"))
    bad("header-dtype-unknown", "open", "dtype", header('"F32"', '"F33"'))
    bad("header-shape-overflow", "open", "too large", header("[2,3]", "[4294967296,4294967296]"))
    bad("header-nine-dimensions", "open", "dimensions", header("[1]", "[1,1,1,1,1,1,1,1,1]"))
    bad("header-other-name", "open", "the header names", header('"norm"', '"Norm"'))
    bad("header-one-more-tensor", "open", "the header names 3 tensors",
        header('{"norm"', '{"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"norm"'))
    bad("header-other-dtype-than-raw", "open", "another dtype or shape", header('"F32"', '"I32"'))
    bad("header-sign-of-integers", "open", "cannot be sign-coded", header('"BF16"', '"I16"'))
    bad("header-other-shape-than-base", "open", "another shape",
        both(header("[2,3]", "[3,2]"), setting(W_ENTRY + ".base.shape", [2, 3])))
    bad("tensors-not-in-order", "open", "the header names", lambda d: d.file("model.safetensors")["tensors"].reverse())
    bad("tensor-missing-in-manifest", "open", "the header names 2 tensors",
        lambda d: d.file("model.safetensors")["tensors"].pop())
    bad("tensor-twice-in-manifest", "open", "the header names 2 tensors",
        lambda d: d.file("model.safetensors")["tensors"].append(d.file("model.safetensors")["tensors"][1]))

    def two_files(d):
        f = copy.deepcopy(d.file("model.safetensors"))
        f["name"] = "second.safetensors"
        d.manifest["files"].append(f)
    bad("tensor-in-two-files", "open", "in two files", two_files)
    bad("copy-without-feature", "open", "uses the feature 'copies'", setting("features", []), twice)
    bad("copy-of-none", "open", "only there as a copy", both(setting(NORM_ENTRY + ".copy", True),
                                                             setting("features", ["copies"]),
                                                             part("raw/norm", rename="raw.2/norm")))
    bad("copy-of-file-zero", "open", "holds no tensor 'raw.2/norm'", part("raw.2/norm", rename="raw.1/norm"), twice)
    bad("copy-none-is-loaded", "open", "only there as a copy",
        setting("files.2.tensors.1.copy", True), twice)
    bad("copy-not-marked", "open", "in two files", setting("files.1.tensors.2.copy", None), twice)
    bad("copy-number", "open", "expected", setting("files.1.tensors.0.copy", 1), twice)


def bad_tensors():
    bad("tensor-without-name", "open", "name", setting(NORM_ENTRY + ".name", None))
    bad("tensor-without-encoding", "open", "encoding", setting(NORM_ENTRY + ".encoding", None))
    bad("tensor-number", "open", "expected an object", setting(NORM_ENTRY, 1))
    bad("encoding-unknown", "open", "unknown encoding 'xor'", setting(NORM_ENTRY + ".encoding", "xor"))
    bad("encoding-upper-case", "open", "unknown encoding", setting(NORM_ENTRY + ".encoding", "RAW"))
    bad("raw-without-hash", "open", "xxh128", setting(NORM_ENTRY + ".xxh128", None))
    bad("raw-hash-malformed", "open", "hash", setting(NORM_ENTRY + ".xxh128", "0" * 33))
    bad("sign-without-base", "open", "no base", setting(W_ENTRY + ".base", None))
    bad("sign-without-planes", "open", "planes", setting(W_ENTRY + ".planes", None))
    bad("sign-without-hash", "open", "xxh128", setting(W_ENTRY + ".xxh128", None))
    bad("sign-no-planes", "open", "1 to 8", setting(W_ENTRY + ".planes", 0))
    bad("sign-nine-planes", "open", "1 to 8", setting(W_ENTRY + ".planes", 9))
    bad("sign-planes-bomb", "open", "1 to 8", setting(W_ENTRY + ".planes", (1 << 64) - 1))
    bad("sign-more-planes-than-scales", "open", "too short", setting(W_ENTRY + ".planes", 2))
    bad("sign-error-text", "open", "expected", setting(W_ENTRY + ".error", "0.5"))
    bad("base-path-escape", "open", "control", setting("base.path", "models/\x1b[31m"))
    bad("base-path-number", "open", "expected", setting("base.path", 1))
    bad("base-hub-too-long", "open", "1024", setting("base.hub", "x" * 1025))
    bad("base-name-without-feature", "open", "uses the feature 'base-names'", setting(W_ENTRY + ".base.name", "w"))
    named = setting("features", ["base-names"])
    bad("base-name-empty", "open", "empty", both(named, setting(W_ENTRY + ".base.name", "")))
    bad("base-name-escape", "open", "control", both(named, setting(W_ENTRY + ".base.name", "w\x1b[31m")))
    bad("base-name-too-long", "open", "too long", both(named, setting(W_ENTRY + ".base.name", "w" * 1025)))
    bad("base-name-number", "open", "expected", both(named, setting(W_ENTRY + ".base.name", 1)))
    bad("base-name-absent", "base", "no tensor 'v'", both(named, setting(W_ENTRY + ".base.name", "v")))
    bad("base-name-of-other-shape", "base", "tensor 'f'", both(named, setting(W_ENTRY + ".base.name", "f")))
    bad("base-without-hash", "open", "hashes", setting(W_ENTRY + ".base.xxh128", None))
    bad("base-without-sample", "open", "hashes", setting(W_ENTRY + ".base.sample", None))
    bad("base-sample-malformed", "open", "sample", setting(W_ENTRY + ".base.sample", "0" * 15 + "G"))
    bad("base-dtype-unknown", "open", "dtype", setting(W_ENTRY + ".base.dtype", "BF17"))
    bad("base-dtype-integers", "open", "cannot be sign-coded", setting(W_ENTRY + ".base.dtype", "I16"))
    bad("base-shape-other", "open", "another shape", setting(W_ENTRY + ".base.shape", [3, 2]))
    bad("base-shape-more-dimensions", "open", "another shape", setting(W_ENTRY + ".base.shape", [2, 3, 1]))
    bad("base-shape-nine-dimensions", "open", "dimensions", setting(W_ENTRY + ".base.shape", [1] * 9))
    bad("base-shape-negative", "open", "integer", setting(W_ENTRY + ".base.shape", [2, -3]))
    bad("same-other-dtype", "open", "another dtype", setting(T + ".base.dtype", "F16"), same_only)
    bad("same-other-shape", "open", "another shape", setting(T + ".base.shape", [3, 3]), same_only)
    bad("same-without-base", "open", "no base", setting(T + ".base", None), same_only)

    def sign_of_scalar(d):
        d.add_model("model.safetensors", same("scalar"))
        d.finish()
        d.entry("scalar").update(encoding="sign", planes=1, xxh128=HEX)
        d.stored += [["sign/scalar", "U8", [8], b"\0" * 8], ["scales", "F32", [2], b"\0" * 8]]
        d.manifest["scales_xxh128"] = xxh128(b"\0" * 8)
    bad("sign-of-scalar", "open", "cannot be sign-coded", sign_of_scalar, Delta)

    def sign_of_nothing(d):
        d.add_model("model.safetensors", same("none"))
        d.finish()
        d.entry("none").update(encoding="sign", planes=1, xxh128=HEX)
        d.stored += [["sign/none", "U8", [0], b""], ["scales", "F32", [2], b"\0" * 8]]
        d.manifest["scales_xxh128"] = xxh128(b"\0" * 8)
    bad("sign-of-nothing", "open", "cannot be sign-coded", sign_of_nothing, Delta)

    # Rows
    bad("rows-without-head", "open", "head", setting(T + ".head", None), table)
    bad("rows-head-raw", "open", "head", setting(T + ".head", "raw"), table)
    bad("rows-head-rows", "open", "head", setting(T + ".head", "rows"), table)
    bad("rows-without-shared", "open", "shapes do not allow", setting(T + ".shared", None), table)
    bad("rows-shared-zero", "open", "shapes do not allow", setting(T + ".shared", 0), table)
    bad("rows-shared-more-than-base", "open", "shapes do not allow", setting(T + ".shared", 4), table)
    bad("rows-shared-more-than-fine", "open", "shapes do not allow",
        both(setting(T + ".shared", 5), setting(T + ".base.shape", [9, 2])), table)
    bad("rows-shared-bomb", "open", "shapes do not allow", setting(T + ".shared", (1 << 64) - 1), table)
    bad("rows-shared-fewer-than-tail", "open", "another dtype or shape", setting(T + ".shared", 2), table)
    bad("rows-other-columns", "open", "shapes do not allow", setting(T + ".base.shape", [3, 3]), table)
    bad("rows-other-dimensions", "open", "shapes do not allow", setting(T + ".base.shape", [3, 2, 1]), table)
    bad("rows-same-other-dtype", "open", "another dtype", setting(T + ".base.dtype", "F16"), table)
    bad("rows-without-tail-hash", "open", "tail_xxh128", setting(T + ".tail_xxh128", None), table)
    bad("rows-tail-hash-without-tail", "open", "no tail", setting(T + ".tail_xxh128", HEX),
        lambda: models(rows("table", 2, 2)))
    bad("rows-tail-without-rest", "open", "does not mention", added("raw/table", "BF16", [0, 2], b""),
        lambda: models(rows("table", 2, 2)))
    bad("rows-sign-without-planes", "open", "planes", setting(T + ".planes", None), sign_table)
    bad("rows-sign-scales-of-all-rows", "open", "more scales",
        both(part("scales", shape=[6], data=b"1234" * 6)), sign_table)

    def rows_of_vector(d):
        d.add_model("model.safetensors", same("vector"))
        d.finish()
        d.entry("vector").update(encoding="rows", head="same", shared=5)
    bad("rows-of-vector", "open", "shapes do not allow", rows_of_vector, Delta)

    def rows_of_nothing(d):
        d.add_model("model.safetensors", same("none"))
        d.finish()
        d.entry("none").update(encoding="rows", head="same", shared=1,
                               base={**base_of("none"), "shape": [1, 2]})
    bad("rows-of-nothing", "open", "shapes do not allow", rows_of_nothing, Delta)

    def planes_bomb(d):
        side = 1 << 30
        d.manifest["files"] = [{
            "name": "model.safetensors", "size": 0, "header": compact(
                {"w": {"dtype": "BF16", "shape": [side, side], "data_offsets": [0, 2 * side * side]}}),
            "tensors": [{"name": "w", "encoding": "sign", "planes": 8, "xxh128": HEX, "base": base_of("w")}]}]
        d.manifest["files"][0]["size"] = 8 + len(d.manifest["files"][0]["header"]) + 2 * side * side
        d.stored += [["sign/w", "U8", [8], b"\0" * 8], ["scales", "F32", [5], b"\0" * 20]]
        d.manifest["scales_xxh128"] = xxh128(b"\0" * 20)
    bad("sign-size-bomb", "open", "", planes_bomb, lambda: Delta().finish())


def exact_part(name, change):
    """Change the bytes of exact/NAME."""
    def apply(d):
        p = d.part("exact/" + name)
        data = bytearray(p[3])
        data = change(data) or data
        p[2:] = [[len(data)], bytes(data)]
    return apply


def put(at, value, size=1):
    def change(data):
        data[at:at + size] = value.to_bytes(size, "little")
    return change


def index_of(data):
    return int.from_bytes(data[:4], "little")


def bad_exact():
    def no_hash(d):
        del d.entry("w")["xxh128"]

    def over_integers(d):
        d.entry("w")["base"]["dtype"] = "I16"

    def over_more(d):
        d.entry("w")["base"]["shape"] = [3, 3]

    def of_nothing(d):
        d.add_model("model.safetensors", same("none"))
        d.finish()
        d.entry("none").update(encoding="exact", xxh128=HEX)
        d.stored.append(["exact/none", "U8", [16], bytes(16)])
        d.manifest["features"] = ["exact"]
    bad("exact-without-feature", "open", "uses the feature 'exact'", setting("features", []), exact_model)
    bad("exact-without-hash", "open", "xxh128", no_hash, exact_model)
    bad("exact-missing", "open", "no tensor 'exact/w'", dropped("exact/w"), exact_model)
    bad("exact-over-integers", "open", "cannot be exact", over_integers, exact_model)
    bad("exact-over-other-shape", "open", "another shape", over_more, exact_model)
    bad("exact-of-nothing", "open", "cannot be exact", of_nothing, Delta)
    bad("exact-size-odd", "open", "that many bytes", exact_part("w", lambda data: data + bytes(4)), exact_model)
    bad("exact-size-small", "open", "that many bytes", exact_part("w", lambda data: data[:8]), exact_model)
    # When they are read
    bad("exact-head-bomb", "read", "tables is wrong", exact_part("w", put(0, 0xFFFFFFF8, 4)), exact_model)
    bad("exact-head-odd", "read", "tables is wrong", exact_part("w", put(0, 12, 4)), exact_model)
    bad("exact-head-small", "read", "table 0 is damaged", exact_part("w", put(0, 8, 4)), exact_model)
    bad("exact-two-planes", "read", "planes", exact_part("w", put(4, 2)), exact_model)
    bad("exact-reserved", "read", "planes", exact_part("w", put(7, 1)), exact_model)
    bad("exact-unit", "read", "table 0 is damaged", exact_part("w", put(8, 1)), exact_model)
    bad("exact-not-ordered", "read", "table 0 is damaged", exact_part("w", put(9, 0)), exact_model)
    bad("exact-by-place", "read", "table 0 is damaged", exact_part("w", put(10, 2)), exact_model)
    bad("exact-no-context", "read", "table 0 is damaged", exact_part("w", put(11, 0)), exact_model)
    bad("exact-many-contexts", "read", "table 0 is damaged", exact_part("w", put(11, 33)), exact_model)
    bad("exact-shift", "read", "table 0 is damaged", exact_part("w", put(12, 16)), exact_model)
    bad("exact-frequencies", "read", "table 0 is damaged", exact_part("w", put(17, 0x184, 2)), exact_model)
    bad("exact-by-base-alone", "read", "table 0 is damaged", exact_part("bytes", put(10, 0)), exact_alone)
    bad("exact-rows-cut", "read", "", exact_part("w", put(10, 1)), exact_model)
    bad("exact-index-past-the-end", "read", "index is wrong",
        exact_part("w", lambda data: put(index_of(data), 4 << 40 | 2, 8)(data)), exact_model)
    bad("exact-index-short", "read", "index is wrong",
        exact_part("w", lambda data: put(index_of(data), 4 * 140 | 2, 8)(data)), exact_model)
    bad("exact-index-falls", "read", "index is wrong",
        exact_part("f", lambda data: put(index_of(data) + 8, 4 * 8 | 2, 8)(data)), exact_model)
    bad("exact-kind", "read", "index is wrong",
        exact_part("w", lambda data: put(index_of(data), data[index_of(data)] | 3)(data)), exact_model)
    bad("exact-kind-nothing", "read", "index is wrong",
        exact_part("w", lambda data: put(index_of(data), data[index_of(data)] & ~3)(data)), exact_model)
    bad("exact-kind-raw", "read", "index is wrong",
        exact_part("w", lambda data: put(index_of(data), data[index_of(data)] & ~3 | 1)(data)), exact_model)
    bad("exact-words-too-many", "read", "cannot be decoded",
        exact_part("w", lambda data: put(index_of(data) + 8, 1 << 31, 4)(data)), exact_model)
    bad("exact-words-too-few", "read", "cannot be decoded",
        exact_part("w", lambda data: put(index_of(data) + 8, data[index_of(data) + 8] - 1 & 255)(data)), exact_model)
    bad("exact-states-low", "read", "cannot be decoded",
        exact_part("counts", lambda data: put(index_of(data) + 8 + 4 + 2 * data[index_of(data) + 8], 1, 4)(data)),
        exact_alone)
    bad("exact-trailing", "read", "index is wrong", exact_part("w", lambda data: data + bytes(8)), exact_model)
    # By complete checks only
    bad("exact-hash-wrong", "verify", "exact/w", setting("files.0.tensors.0.xxh128", HEX), exact_model)
    bad("exact-damaged", "verify", "exact/raw",
        exact_part("raw", lambda data: put(len(data) - 8, 7)(data)), exact_alone)


def bad_later():
    # With the base
    bad("base-tensor-missing", "base", "no tensor 'norm'", both(dropped("raw/norm"), setting(
        NORM_ENTRY, {"name": "norm", "encoding": "same", "base": {**base_of("scalar"), "shape": [1]}})))
    bad("base-of-other-dtype", "base", "'w'", setting(W_ENTRY + ".base.dtype", "F16"))
    bad("base-of-other-contents", "base", "'w'", setting(W_ENTRY + ".base.sample", "0" * 16))
    bad("base-of-more-rows", "base", "'table'", setting(T + ".base.shape", [4, 2]), table)
    bad("base-of-huge-shape", "base", "'table'", setting(T + ".base.shape", [1 << 60, 2]), table)
    # When they are read
    for i, (name, value) in enumerate([("nan", nan), ("infinite", inf), ("minus-infinite", -inf)]):
        bad("scales-" + name, "read", "not finite", scales_with(i * 2, value))
    bad("file-damaged", "read", "config.json", flipped("file/config.json", 10))
    bad("file-cut", "read", "config.json", lambda d: part(
        "file/config.json", data=d.part("file/config.json")[3][:-1],
        shape=[len(d.part("file/config.json")[3]) - 1])(d))
    bad("file-trailing-byte", "read", "config.json", lambda d: part(
        "file/config.json", data=d.part("file/config.json")[3] + b"\0",
        shape=[len(d.part("file/config.json")[3]) + 1])(d))
    bad("file-hash-wrong", "read", "config.json", setting(C + ".xxh128", HEX))
    bad("file-size-smaller", "read", "config.json", setting(C + ".size", 21))
    bad("file-size-larger", "read", "config.json", setting(C + ".size", 23))
    bad("file-not-packed", "read", "config.json", part("file/config.json", data=CONFIG.encode(),
                                                       shape=[len(CONFIG)]))
    bad("file-empty-stream", "read", "config.json", both(part("file/config.json", data=b"", shape=[0]),
                                                         setting(C + ".size", 0)))
    # By complete checks only
    bad("sign-damaged", "verify", "sign/w", flipped("sign/w", 0))
    bad("sign-padding-damaged", "verify", "sign/w", flipped("sign/w", 7, 128))
    bad("sign-hash-wrong", "verify", "sign/w", setting(W_ENTRY + ".xxh128", HEX))
    bad("raw-damaged", "verify", "raw/norm", flipped("raw/norm", 3))
    bad("tail-damaged", "verify", "raw/table", flipped("raw/table", 1), table)
    bad("tail-hash-wrong", "verify", "raw/table", setting(T + ".tail_xxh128", HEX), table)
    bad("scales-damaged", "verify", "scales", flipped("scales", 1))
    bad("plain-damaged", "verify", "plain/large.bin", flipped("plain/large.bin", 100), plain)
    bad("copy-damaged", "verify", "raw.2/norm", flipped("raw.2/norm", 1), twice)
    bad("scales-hash-wrong", "verify", "scales", setting("scales_xxh128", HEX))
    bad("base-hash-wrong", "verify", "base tensor 'w'", setting(W_ENTRY + ".base.xxh128", HEX))


def main():
    files["base/model.safetensors"] = safetensors([(n, *BASE[n]) for n in BASE])[0]
    write_good()
    bad_container()
    bad_json()
    bad_manifest()
    bad_tensors()
    bad_exact()
    bad_later()
    files["faults.txt"] = "".join(sorted(faults)).encode()
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    if not check:
        shutil.rmtree(here, ignore_errors=True)
    found = {os.path.relpath(os.path.join(d, f), here): os.path.join(d, f)
             for d, _, names in os.walk(here) for f in names}
    for name, data in files.items():
        path = os.path.join(here, name)
        if not check:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)
        elif name not in found or open(path, "rb").read() != data:
            sys.exit(f"{name} is not what make_bdelta.py writes")
    if check and set(found) != set(files):
        sys.exit(f"not of make_bdelta.py: {sorted(set(found) ^ set(files))}")
    n = sum(name.startswith("bad-") for name in files)
    print(f"{len(faults)} bad, {sum(f.endswith('.bdelta') for f in files) - n} good files, "
          f"{sum(map(len, files.values()))} bytes, the largest {max(map(len, files.values()))}")


main()
