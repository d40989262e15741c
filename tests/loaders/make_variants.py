# SPDX-License-Identifier: Apache-2.0
"""make_variants.py OUT: write pairs of checkpoints with everything in which a fine-tune may differ.

OUT/NAME/{base,fine}/ for each variant below; deterministic. Writes safetensors files itself, since
the package would sort the tensors and choose the header.
"""
import json, os, sys

import ml_dtypes
import numpy as np

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
          "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}
dice = np.random.default_rng(42)


def write(path, tensors, metadata={"format": "pt"}, pad=8, indent=None):
    """TENSORS in the given order; the header lists them in reverse where INDENT is set."""
    header, offset, blobs = {}, 0, []
    for name, t in tensors.items():
        blob = np.ascontiguousarray(t).tobytes()
        header[name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    if indent is not None:
        header = dict(reversed(header.items()))
    if metadata is not None:
        header = {"__metadata__": metadata} | header
    text = json.dumps(header, indent=indent, ensure_ascii=False).encode()
    text += b" " * (-len(text) % pad)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def save(directory, tensors, shards=1, loosen=None, files={}, **options):
    """LOOSEN changes shards and index of what is written: loosen({file: tensors}, index). FILES: path -> bytes."""
    os.makedirs(directory)
    for path, data in files.items():
        os.makedirs(os.path.dirname(os.path.join(directory, path)), exist_ok=True)
        with open(os.path.join(directory, path), "wb") as f:
            f.write(data)
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump({"architectures": ["Test"], "model_type": "test", "where": directory[-9:]}, f)
    if shards == 1:
        write(os.path.join(directory, "model.safetensors"), tensors, **options)
        return
    names = list(tensors)
    parts = {}
    for i in range(shards):
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        parts[f"model-{i + 1:05}-of-{shards:05}.safetensors"] = {n: tensors[n] for n in part}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
             "weight_map": {n: file for file, part in parts.items() for n in part}}
    if loosen:
        loosen(parts, index)
    for file, part in parts.items():
        write(os.path.join(directory, file), part, **options)
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
        json.dump(index, f, indent=2)


def weight(dtype, *shape, scale=0.05):
    return (dice.standard_normal(shape) * scale).astype(DTYPES[dtype])


def tuned(t, dtype=None, scale=0.002):
    """A fine-tuned copy of a weight."""
    out = t.astype(np.float32) + (dice.standard_normal(t.shape) * scale).astype(np.float32)
    return out.astype(DTYPES[dtype] if dtype else t.dtype)


def model(dtype, vocabulary=300, width=72, hidden=200, layers=2, head=True):
    t = {"model.embed_tokens.weight": weight(dtype, vocabulary, width)}
    for i in range(layers):
        for name, shape in {"self_attn.q_proj": (width, width), "self_attn.k_proj": (24, width),
                            "self_attn.o_proj": (width, width), "mlp.up_proj": (hidden, width),
                            "mlp.down_proj": (width, hidden)}.items():
            t[f"model.layers.{i}.{name}.weight"] = weight(dtype, *shape)
            t[f"model.layers.{i}.{name}.bias"] = weight(dtype, shape[0])
        t[f"model.layers.{i}.input_layernorm.weight"] = weight(dtype, width) + DTYPES[dtype](1)
    t["model.norm.weight"] = weight(dtype, width)
    if head:
        t["lm_head.weight"] = weight(dtype, vocabulary, width)
    return t


def tune(tensors, dtype=None):
    return {n: tuned(t, dtype) for n, t in tensors.items()}


def loosen_base(parts, index):
    """One tensor lies in both shards, and counts in the first; one is not listed, another is and not there."""
    first, second = parts.values()
    name = "model.layers.0.self_attn.q_proj.weight"
    second[name] = first[name][::-1].copy()
    second["mtp.weight"] = weight("BF16", 64, 64)
    index["weight_map"]["gone.weight"] = list(parts)[1]


def loosen_fine(parts, index):
    """Tensors lie in two and three shards, or in others than the index says; the sum is that of another model."""
    first, second, third = parts.values()
    first["lm_head.weight"] = third["lm_head.weight"] + DTYPES["BF16"](1)
    name = "model.layers.0.mlp.up_proj.weight"
    for part in first, second, third:
        part[name] = second.get(name, first.get(name))
    third[name] = third[name][:9]
    index["weight_map"][name] = list(parts)[1]
    second["mtp.weight"] = weight("BF16", 64, 64)
    index["weight_map"]["model.norm.weight"] = list(parts)[0]
    index["weight_map"]["gone.weight"] = list(parts)[0]
    index["metadata"]["total_size"] = 12345


def variants():
    """name, base, fine-tune, options of save for either"""
    for dtype in "F16", "F32", "BF16":
        base = model(dtype)
        yield dtype.lower(), base, tune(base), {}, {}

    base = model("BF16")
    yield "wider-dtype", base, tune(base, "F32"), {}, {}
    yield "other-16-bit-dtype", base, tune(base, "F16"), {}, {}
    base = model("F32")
    fine = {n: tuned(t, ("BF16", "F16", "F32")[i % 3]) for i, (n, t) in enumerate(base.items())}
    yield "mixed-dtypes", base, fine, {}, {}

    base = model("BF16")
    fine = tune(base)
    for n in "model.embed_tokens.weight", "lm_head.weight":
        fine[n] = np.concatenate([fine[n], weight("BF16", 5, 72)])
    yield "grown-vocabulary", base, fine, {}, {}
    fine = tune(base)
    for n in "model.embed_tokens.weight", "lm_head.weight":
        fine[n] = fine[n][:-7]
    yield "shrunk-vocabulary", base, fine, {}, {}
    fine = dict(base)
    fine["lm_head.weight"] = np.concatenate([fine["lm_head.weight"], weight("BF16", 1, 72)])
    yield "only-one-row-more", base, fine, {}, {}

    base = model("BF16", head=False)
    yield "tied", base, tune(base), {}, {}
    fine = tune(base)
    fine["lm_head.weight"] = fine["model.embed_tokens.weight"].copy()
    yield "untied-by-fine-tune", base, fine, {}, {}
    base = model("BF16")
    fine = tune(base)
    del fine["lm_head.weight"]
    yield "tied-by-fine-tune", base, fine, {}, {}

    base = model("BF16")
    yield "one-file-over-two-shards", base, tune(base), {"shards": 2}, {}
    yield "three-shards-over-one-file", base, tune(base), {}, {"shards": 3}
    yield "five-shards-over-two", base, dict(reversed(tune(base).items())), {"shards": 2}, {"shards": 5}

    base = model("BF16")
    yield "loose-indices", base, tune(base), {"shards": 2, "loosen": loosen_base}, {"shards": 3, "loosen": loosen_fine}

    base = model("BF16")
    yield "subdirectories", base, tune(base), {"files": {"1_Pooling/config.json": b"{}"}}, {"files": {
        "1_Pooling/config.json": b'{"pooling_mode_lasttoken": true}', "a/b/c": b"", "a/b-c": b"x", "a-b": b"\0\1",
        "additional_chat_templates/tool_use.jinja": b"{{ messages }}", "colbert_linear.pt": b"PK\3\4" + bytes(2000)}}

    base = model("F16")
    fine = {n: t for n, t in tune(base).items() if "layers.1.mlp" not in n}
    fine["score.weight"] = weight("F16", 3, 72)
    fine["model.rotary.inv_freq"] = weight("F32", 36)
    fine["model.positions"] = np.arange(77, dtype=np.int64)[None]
    fine["model.mask"] = dice.integers(0, 2, (3, 5)).astype(np.bool_)
    fine["model.bytes"] = dice.integers(0, 256, 13).astype(np.uint8)
    fine["model.double"] = weight("F64", 4, 4)
    base["model.only_in_base"] = weight("F16", 64, 64)
    yield "extra-and-missing-tensors", base, fine, {}, {}

    base = {"scalar": weight("F32"), "empty": weight("F32", 0), "empty2": weight("BF16", 4, 0),
            "column": weight("BF16", 999, 1), "row": weight("BF16", 1, 999),
            "conv": weight("F16", 8, 3, 5, 7), "experts": weight("BF16", 4, 33, 65),
            "same": weight("BF16", 64, 64), "integers": np.arange(640, dtype=np.int32).reshape(64, 10),
            "Gewicht.ä\"\\/": weight("BF16", 65, 63), "one": weight("BF16", 1, 1)}
    fine = {n: tuned(t) if t.dtype.kind in "fV" else t.copy() for n, t in base.items()}
    fine["same"] = base["same"].copy()
    fine["integers"][3, 3] = -1
    yield ("shapes-and-names", base, fine, {"metadata": None},
           {"metadata": {"format": "pt", "zü": "\n\"x"}, "pad": 64, "indent": 2})

    base = model("BF16")
    fine = tune(base)
    for t in list(base.values()) + list(fine.values()):
        if t.ndim == 2:
            bits = t.view(np.uint16).reshape(-1)
            at = dice.integers(0, bits.size, 40)
            bits[at] = dice.choice([0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81, 0x0001, 0x8001, 0x8000,
                                    0, 0x7F7F, 0xFF7F, 0x0080], 40)
    yield "not-finite", base, fine, {}, {}

    # Finite, but at the edges: subnormal numbers, signed zeros, in F16 sums that overflow.
    for dtype, edges in ("BF16", (0x0001, 0x8001, 0x8000, 0, 0x0080, 0x007F, 0x807F, 0x3F80)), \
                        ("F16", (0x0001, 0x8001, 0x8000, 0, 0x7BFF, 0xFBFF, 0x0400, 0x03FF, 0x3C00)):
        base = model(dtype)
        fine = tune(base)
        for t in list(base.values()) + list(fine.values()):
            bits = t.view(np.uint16).reshape(-1)
            at = dice.integers(0, bits.size, bits.size // 20)
            bits[at] = dice.choice(edges, at.size)
        yield f"edges-{dtype.lower()}", base, fine, {}, {}
    base = model("BF16")
    fine = {n: tuned(t, scale=1e-40 if i % 2 else 1e36) for i, (n, t) in enumerate(base.items())}
    yield "tiny-and-huge-changes", base, fine, {}, {}

    base = model("BF16")
    yield "identical", base, {n: t.copy() for n, t in base.items()}, {}, {}
    yield "negated", base, {n: -t for n, t in base.items()}, {}, {}


if __name__ == "__main__":
    out = sys.argv[1]
    for name, base, fine, base_options, fine_options in variants():
        save(os.path.join(out, name, "base"), base, **base_options)
        save(os.path.join(out, name, "fine"), fine, **fine_options)
        print(name)
