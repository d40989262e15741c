#!/usr/bin/env python3
"""decode.py X.bdelta BASE_DIR OUT_DIR writes all files of a fine-tune into OUT_DIR, where none may exist yet.

An independent reader, written from delta/FORMAT.md alone: it checks that page and the other readers
against each other. Any exception is a file that contradicts the page, or a wrong base. Hashes are
checked if the xxhash package is installed.
"""
import json, os, re, sys, zlib
from math import prod
import numpy as np
try:
    from xxhash import xxh3_64_hexdigest as xxh64, xxh3_128_hexdigest as xxh128
except ImportError:
    xxh64 = xxh128 = None

def checked(data, digest, hash=xxh128):
    assert not hash or hash(data) == digest, "damaged, or another base"
    return data

def parse(text):
    def members(pairs):
        assert len(dict(pairs)) == len(pairs), "a member twice"
        return dict(pairs)
    return json.loads(text, object_pairs_hook=members, parse_constant=int)    # int() refuses NaN

# Section 1. A tensor is (dtype, shape, its bytes or where they are).

def bytes_of(dtype, shape):
    bits = prod(shape) * (8 if dtype == "BOOL" else int(re.match("[A-Z]+([0-9]+)", dtype)[1]))
    assert bits % 8 == 0 and all(type(n) is int and n >= 0 for n in shape)
    return bits // 8

def layout(header, size):
    """The metadata and the tensors, in the order of their offsets, of a safetensors header."""
    entries, tensors, end = parse(header), {}, 0
    metadata = entries.pop("__metadata__", {})
    for name, t in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]):    # stable
        begin, end = end, end + bytes_of(t["dtype"], t["shape"])
        assert t["data_offsets"] == [begin, end], name
        tensors[name] = t["dtype"], t["shape"], slice(begin, end)
    assert size == end and header[0] == "{"
    return metadata, tensors

def load(path):
    file = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    metadata, tensors = layout(file[8:start].tobytes().decode(), len(file) - start)
    return metadata, {name: (dtype, shape, file[start:][where])
                      for name, (dtype, shape, where) in tensors.items()}

def take(name, dtype, shape=None):
    """Uses up a tensor of the container. No shape: any vector."""
    t = container.pop(name)
    assert t[0] == dtype and (t[1] == shape if shape is not None else len(t[1]) == 1), name
    return t[2]

def inflate(name, size, digest):
    stream = zlib.decompressobj()
    data = stream.decompress(take(name, "U8").tobytes(), size + 1)
    assert stream.eof and not stream.unused_data and len(data) == size, name
    return checked(data, digest)

# Sections 3 and 4

def widen(data, dtype):
    if dtype == "BF16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4")
    return data.view({"F16": "<f2", "F32": "<f4"}[dtype]).astype("<f4")

def narrow(acc, dtype):
    bits = acc.view("<u4")
    out, nan = {
        "BF16": ((bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2"), 0x7FC0),    # may carry to infinity
        "F16": (acc.astype("<f2").view("<u2"), 0x7E00),
        "F32": (bits, 0x7FC00000),
    }[dtype]
    out[np.isnan(acc)] = nan
    return out.view("u1")

def sign(t, rows, cols, base, base_dtype, dtype):
    global scales
    planes = t["planes"]
    assert planes in range(1, 9)
    count = planes * rows * cols
    bits = checked(take("sign/" + t["name"], "U8", [(count + 63) // 64 * 8]), t["xxh128"])
    bits = np.unpackbits(bits, bitorder="little")
    assert not bits[count:].any()
    acc = widen(base, base_dtype).reshape(rows, cols)
    for plus in bits[:count].reshape(planes, rows, cols):
        row, col, scales = np.split(scales, [rows, rows + cols])
        s = row.reshape(rows, 1) * col.reshape(1, cols)
        acc = acc + np.where(plus, s, -s)
    assert acc.dtype == np.float32
    return narrow(acc.reshape(-1), dtype)

# Sections 2 and 5

def sample(data):
    start = max(len(data) - 4096, 0) // 16 * 8
    return data[start:start + 4096]

def tensor(t, dtype, shape):
    """The bytes of a tensor, piece by piece."""
    name, head, shared = t["name"], t["encoding"], shape
    if head == "raw":
        yield checked(take("raw/" + name, dtype, shape), t["xxh128"])
        return
    base_dtype, base_shape, base = base_tensors[name]
    assert t["base"].get("dtype", dtype) == base_dtype, name
    assert t["base"].get("shape", shape) == base_shape, name
    checked(sample(base), t["base"]["sample"], xxh64)
    checked(base, t["base"]["xxh128"])
    if head == "rows":
        head, n = t["head"], t["shared"]
        assert len(shape) >= 2 and 0 < n <= min(shape[0], base_shape[0])
        shared, base_shape = [n] + shape[1:], [n] + base_shape[1:]
        base = base[:bytes_of(base_dtype, shared)]
    assert base_shape == shared and head in ("same", "sign"), name
    if head == "same":
        assert base_dtype == dtype
        yield base
    else:
        yield sign(t, prod(shared[:-1]), shared[-1], base, base_dtype, dtype)
    assert ("tail_xxh128" in t) == (shared != shape)
    if shared != shape:
        yield checked(take("raw/" + name, dtype, [shape[0] - n] + shape[1:]), t["tail_xxh128"])

def content(f):
    """The bytes of a file, piece by piece."""
    if "header" not in f:
        yield inflate("file/" + f["name"], f["size"], f["xxh128"])
        return
    header = f["header"].encode()
    yield len(header).to_bytes(8, "little") + header
    tensors = layout(f["header"], f["size"] - 8 - len(header))[1]
    assert [t["name"] for t in f["tensors"]] == list(tensors)
    for t in f["tensors"]:
        dtype, shape, _ = tensors[t["name"]]
        yield from tensor(t, dtype, shape)

delta, base_dir, out_dir = sys.argv[1:]
np.seterr(all="ignore")    # infinities and NaNs are results like others

base_tensors, shards = {}, {"model.safetensors"}
if not os.path.exists(os.path.join(base_dir, "model.safetensors")):
    with open(os.path.join(base_dir, "model.safetensors.index.json"), encoding="utf-8") as index:
        shards = set(parse(index.read())["weight_map"].values())
for shard in shards:
    tensors = load(os.path.join(base_dir, shard))[1]
    assert not base_tensors.keys() & tensors.keys(), "a tensor in two files of the base"
    base_tensors.update(tensors)

metadata, container = load(delta)
assert metadata["format"] == "bdelta" and metadata["version"] == "1"
manifest = parse(inflate("manifest", int(metadata["manifest_size"]), metadata["manifest_xxh128"]).decode())
assert manifest["features"] == []

if xxh128:    # another digest is no error: tensor() checks all that is used
    lines = ["\t".join([name, dtype, ",".join(map(str, shape)), xxh64(sample(data))]) + "\n"
             for name, (dtype, shape, data) in sorted(base_tensors.items())]    # code points sort like UTF-8
    if xxh128("".join(lines).encode()) != manifest["base"]["digest"]:
        print("decode.py: the base as a whole has another digest", file=sys.stderr)

scales = np.zeros(0, "<f4")
if "scales_xxh128" in manifest:
    scales = checked(take("scales", "F32"), manifest["scales_xxh128"]).view("<f4")
    assert len(scales) and np.isfinite(scales).all()

names = [f["name"].encode() for f in manifest["files"]]
assert names == sorted(set(names))
os.makedirs(out_dir, exist_ok=True)
for f in manifest["files"]:
    name = f["name"]
    assert len(name.encode()) <= 255 and name not in (".", "..")
    assert re.fullmatch(r"[^/\x00-\x1f\x7f-\x9f]+", name), name
    with open(os.path.join(out_dir, name), "xb") as out:    # x: never over the base
        for piece in content(f):
            out.write(piece)
        assert out.tell() == f["size"], name
assert not container and not len(scales), "the manifest does not use up the container"
