#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""decode.py X.bdelta BASE_DIR OUT_DIR rebuilds a fine-tune. Written from delta/FORMAT.md alone."""
import io, json, math, pathlib, re, sys, zlib
import numpy as np
try:
    from xxhash import xxh3_64_hexdigest as xxh64, xxh3_128_hexdigest as xxh128
except ImportError:
    xxh64 = xxh128 = lambda data: None    # nothing is checked

def sample_hash(data):
    start = max(len(data) - 4096, 0) // 16 * 8
    return xxh64(data[start:start + 4096])

def parse(file):
    """The metadata and the tensors (dtype, shape, bytes) of a safetensors file, in file order."""
    start = 8 + int.from_bytes(bytes(file[:8]), "little")
    header = json.loads(bytes(file[8:start]))
    metadata = header.pop("__metadata__", {})
    return metadata, {name: (t["dtype"], t["shape"], file[start:][slice(*t["data_offsets"])])
                      for name, t in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"])}

def take(name, digest, unpack=np.asarray):
    data = unpack(container.pop(name)[2])
    assert digest is None or xxh128(data) in (digest, None), name
    return data

def part(kind, t):
    return (f"{kind}.{number}/" if t.get("copy") else f"{kind}/") + t["name"]

def widen(data, dtype):
    if dtype == "BF16":    # the upper half of an F32
        data = data.view("<u2").astype("<u4") << 16
    return data.view("<f2" if dtype == "F16" else "<f4").astype("<f4")

def narrow(acc, dtype):
    acc[np.isnan(acc)] = np.nan    # 0x7FC00000, which rounds to 0x7FC0 and 0x7E00
    if dtype == "BF16":
        bits = acc.view("<u4")
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")    # may carry to infinity
    return acc.astype({"F16": "<f2", "F32": "<f4"}[dtype])

def add_planes(t, data, base_dtype, dtype, shape):
    global scales
    planes, rows, cols = t["planes"], math.prod(shape[:-1]), shape[-1]
    bits = np.unpackbits(take(part("sign", t), t["xxh128"]), bitorder="little")
    acc = widen(data, base_dtype).reshape(rows, cols)
    for plus in bits[:planes * rows * cols].reshape(planes, rows, cols):
        row, col, scales = np.split(scales, [rows, rows + cols])
        s = row.reshape(rows, 1) * col.reshape(1, cols)
        acc = acc + np.where(plus, s, -s)
    return narrow(acc, dtype)

LANES = np.r_[0:4, 8:12, 16:20, 24:28, 4:8, 12:16, 20:24, 28:32]
CHUNK = 131072

def split(data, dtype, over_base):
    """The planes of a tensor's bytes; are they ordered?"""
    if over_base and dtype == "F32":
        halves = data.view("<u2").reshape(-1, 2)
        return [halves[:, 1], halves[:, 0]], [True, False]
    if over_base and dtype in ("BF16", "F16"):
        return [data.view("<u2")], [True]
    return [data], [over_base and dtype.startswith("F8_E") and dtype != "F8_E8M0"]

def ordinal(units, ordered):
    top = 1 << 8 * units.itemsize - 1
    return np.where(units & top, units ^ top - 1, units).astype(units.dtype) if ordered else units

def read_table(stored, rows):
    unit, ordered, by, n, shift = stored.read(5)
    mask, offset = np.frombuffer(stored.read(4), "<u2").astype(int)
    slots = []    # symbol, frequency and bias of each number below 1024, context by context
    while len(slots) < 1024 * n:
        symbol, end = 0, len(slots) + 1024
        while len(slots) < end:
            f = stored.read(1)[0]
            if f == 0:
                symbol += stored.read(1)[0]
                continue
            f = (f - 128) * 256 + stored.read(1)[0] if f > 127 else f
            assert f and symbol < {1: 256, 2: 257}[unit]
            slots += [(symbol, f, bias) for bias in range(f)]
            symbol += 1
        assert len(slots) == end
    offsets = np.frombuffer(stored.read(rows), "u1").astype(int) if by == 1 else None
    return bool(ordered), by, n, shift, mask, offset, offsets, np.array(slots)

def decode_chunk(stored, base, first, cols, table):
    ordered, by, n, shift, mask, offset, offsets, slots = table
    index, count = first + np.arange(len(base)), len(base)
    if by == 2:
        context = index % n
    else:
        context = (base.astype(int) >> shift & mask) - (offsets[index // cols] if by == 1 else offset)
        context = np.clip(context, 0, n - 1)
    words = int.from_bytes(stored[:4], "little")
    state = np.frombuffer(stored, "<u4", 32, 4 + 2 * words).astype("i8")
    escapes = np.frombuffer(stored, "<u2", -1, 132 + 2 * words)
    words = np.frombuffer(stored, "<u2", words, 4).astype("i8")
    assert (state >= 65536).all()
    d, escaped = np.zeros(count, "i8"), np.zeros(count, bool)
    for start in range(0, count, 32):
        state_of = np.flatnonzero(LANES < count - start)
        at = start + LANES[state_of]
        x = state[state_of]
        symbol, f, bias = slots[1024 * context[at] + x % 1024].T
        x = f * (x // 1024) + bias
        if base.itemsize == 1:
            d[at] = symbol - 128
        else:
            escaped[at] = symbol == 256
            k = np.where((symbol < 64) | (symbol == 256), 0, (symbol - 32) // 32)
            low = symbol % 32
            d[at] = np.where(symbol < 64, symbol - 32, np.where(low < 16, low - 32, low) * 2**k + x % 2**k)
            x //= 2**k
        empty = x < 65536
        x[empty] = 65536 * x[empty] + words[:empty.sum()]
        words = words[empty.sum():]
        state[state_of] = x
    d[escaped] = escapes    # as many as there are
    assert (state == 65536).all() and not len(words)
    return ordinal((ordinal(base, ordered) + d).astype(base.dtype), ordered)

def add_steps(t, data, base_dtype, dtype, shape):
    """data: the base's bytes; None: no base."""
    stored = take(part("exact", t), None).tobytes()
    rows, cols = math.prod(shape[:-1]), (shape or [1])[-1]
    width = int((re.findall(r"\d+", dtype) or ["8"])[0]) // 8
    size, over_base = rows * cols * width, data is not None
    if not over_base:
        data = np.zeros(size, "u1")
    elif base_dtype != dtype:
        data = narrow(widen(data, base_dtype), dtype).view("u1")
    base, ordered = split(data, dtype, over_base)
    chunks = -(-size // CHUNK)
    head, stream = int.from_bytes(stored[:4], "little"), io.BytesIO(stored)
    assert stream.read(8)[4:] == bytes([len(base), 0, 0, 0]) and len(stored) % 8 == head % 8 == 0
    tables = [read_table(stream, rows) for _ in base]
    assert head - stream.tell() in range(8) and not any(stored[stream.tell():head])
    index = np.frombuffer(stored, "<u8", chunks * len(base), head)
    at, planes = head + index.nbytes, []
    for number, (plane, table) in enumerate(zip(base, tables)):
        assert table[0] == ordered[number] and (over_base or table[1] == 2)
        out, units = [], CHUNK // width * (plane.nbytes * width // size) // plane.itemsize
        for c in range(chunks):
            entry = int(index[number * chunks + c])
            end, kind = head + index.nbytes + entry // 4, entry % 4
            bytes_, under = stored[at:end], plane[c * units:(c + 1) * units]
            assert at <= end <= len(stored) and len(bytes_) == end - at
            if kind == 2:
                out.append(decode_chunk(bytes_, under, c * units, cols, table))
            else:
                assert len(bytes_) == {0: 0, 1: under.nbytes}[kind]
                out.append(np.frombuffer(bytes_, under.dtype) if kind else under)
            at = end
        planes.append(np.concatenate(out))
    assert len(stored) - at < 8
    whole = planes[0] if len(planes) == 1 else np.stack(planes[::-1], 1)
    assert xxh128(whole.tobytes()) in (t["xxh128"], None), t["name"]
    return whole

def rebuild(t, dtype, shape):
    name, encoding, tail = t["name"], t["encoding"], b""
    if encoding == "raw":
        return take(part("raw", t), t["xxh128"])
    if encoding == "exact" and "base" not in t:
        return add_steps(t, None, None, dtype, shape).tobytes()
    base_dtype, base_shape, data = base[t["base"].get("name", name)]
    assert (t["base"].get("dtype", dtype), t["base"].get("shape", shape)) == (base_dtype, base_shape), name
    assert sample_hash(data) in (t["base"]["sample"], None), name
    assert xxh128(data) in (t["base"]["xxh128"], None), name
    if encoding == "rows":
        data = data[:len(data) // base_shape[0] * t["shared"]]
        encoding, shape = t["head"], [t["shared"]] + shape[1:]
        if "tail_xxh128" in t:
            tail = take(part("raw", t), t["tail_xxh128"]).tobytes()
    if encoding == "sign":
        data = add_planes(t, data, base_dtype, dtype, shape)
    if encoding == "exact":
        data = add_steps(t, data, base_dtype, dtype, shape)
    return data.tobytes() + tail

delta, base_dir, out_dir = map(pathlib.Path, sys.argv[1:])
np.seterr(all="ignore")    # infinities and NaNs are results like others
metadata, container = parse(np.memmap(delta, mode="r"))
manifest = json.loads(take("manifest", metadata["manifest_xxh128"], zlib.decompress))
assert [metadata["format"], metadata["version"]] == ["bdelta", "1"]
assert set(manifest["features"]) <= {"base-names", "copies", "exact", "paths", "plain-files"}, manifest["features"]
scales = take("scales", manifest["scales_xxh128"]).view("<f4") if "scales" in container else []

base, where, index = {}, {}, {}
if not (base_dir / "model.safetensors").exists():
    index = json.loads((base_dir / "model.safetensors.index.json").read_bytes())["weight_map"]
for shard in sorted(set(index.values())) or ["model.safetensors"]:
    for name, tensor in parse(np.memmap(base_dir / shard, mode="r"))[1].items():
        if name not in base or index.get(name) not in where[name]:
            base[name] = tensor
        where.setdefault(name, []).append(shard)
lines = [f"{name}\t{dtype}\t{','.join(map(str, shape))}\t{sample_hash(data)}\n"
         for name, (dtype, shape, data) in sorted(base.items())]
if xxh128("".join(lines).encode()) not in (manifest["base"]["digest"], None):
    print("decode.py: the base as a whole has another digest", file=sys.stderr)

out_dir.mkdir(exist_ok=True)
for number, f in enumerate(manifest["files"], 1):
    path = f["name"].lower().split("/")
    assert not {"", ".", ".."} & set(path) and (".git" not in path or "paths" not in manifest["features"]), f["name"]
    (out_dir / f["name"]).parent.mkdir(parents=True, exist_ok=True)
    with open(out_dir / f["name"], "xb") as out:    # x: never over the base
        if "header" in f:
            header = f["header"].encode()
            header = len(header).to_bytes(8, "little") + header
            out.write(header)
            tensors = parse(header)[1]
            assert list(tensors) == [t["name"] for t in f["tensors"]]
            for t, (dtype, shape, _) in zip(f["tensors"], tensors.values()):
                out.write(rebuild(t, dtype, shape))
        elif f.get("plain"):
            out.write(take("plain/" + f["name"], f["xxh128"]))
        else:
            out.write(take("file/" + f["name"], f["xxh128"], zlib.decompress))
        assert out.tell() == f["size"], f["name"]
assert not container and not len(scales), "the manifest does not use up the container"
