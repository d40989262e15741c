#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""decode.py X.bdelta BASE_DIR OUT_DIR rebuilds a fine-tune. Written from delta/FORMAT.md alone."""
import json, math, pathlib, sys, zlib
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
    assert xxh128(data) in (digest, None), name
    return data

def part(kind, t):
    return (f"{kind}.{number}/" if t.get("copy") else f"{kind}/") + t["name"]

def add_planes(t, data, base_dtype, dtype, shape):
    global scales
    planes, rows, cols = t["planes"], math.prod(shape[:-1]), shape[-1]
    bits = np.unpackbits(take(part("sign", t), t["xxh128"]), bitorder="little")
    if base_dtype == "BF16":    # the upper half of an F32
        data = data.view("<u2").astype("<u4") << 16
    acc = data.view("<f2" if base_dtype == "F16" else "<f4").astype("<f4").reshape(rows, cols)
    for plus in bits[:planes * rows * cols].reshape(planes, rows, cols):
        row, col, scales = np.split(scales, [rows, rows + cols])
        s = row.reshape(rows, 1) * col.reshape(1, cols)
        acc = acc + np.where(plus, s, -s)
    acc[np.isnan(acc)] = np.nan    # 0x7FC00000, which rounds to 0x7FC0 and 0x7E00
    if dtype == "BF16":
        bits = acc.view("<u4")
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")    # may carry to infinity
    return acc.astype({"F16": "<f2", "F32": "<f4"}[dtype])

def rebuild(t, dtype, shape):
    name, encoding, tail = t["name"], t["encoding"], b""
    if encoding == "raw":
        return take(part("raw", t), t["xxh128"])
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
    return data.tobytes() + tail

delta, base_dir, out_dir = map(pathlib.Path, sys.argv[1:])
np.seterr(all="ignore")    # infinities and NaNs are results like others
metadata, container = parse(np.memmap(delta, mode="r"))
manifest = json.loads(take("manifest", metadata["manifest_xxh128"], zlib.decompress))
assert [metadata["format"], metadata["version"]] == ["bdelta", "1"]
assert set(manifest["features"]) <= {"base-names", "copies", "paths", "plain-files"}, manifest["features"]
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
