# SPDX-License-Identifier: Apache-2.0
"""make_models.py OUT [NAME...]: write pairs of small checkpoints for the mount tests.

OUT/NAME/{base,fine}/ for each of these (the last two have a, b and c in place of fine)

    odd       BF16, F16 and F32, odd numbers of columns, scalars, empty tensors, a padded header
    sharded   some 12 MB; two shards in the base, three in the fine-tune, other order of tensors
    vocab     rows added to one table and taken from another, a new tensor, another dtype
    files     other files: an empty one, a large one, names with spaces and other scripts
    tunes     one small base and the fine-tunes a, b and c of it, alike in everything but the weights
    library   the same with some 5 MB, and another number of shards in each

Only the standard library; deterministic. Weights are random bytes whose exponents are held in a
small range, so that they are ordinary numbers.
"""
import json, os, random, sys

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "U8": 1}
# The highest byte of an element (sign, most of the exponent), by the random byte that was there.
TOPS = {"BF16": bytes((0x3c, 0x3d, 0xbc, 0xbd)), "F16": bytes((0x28, 0x2a, 0xa8, 0xaa)),
        "F32": bytes((0x3c, 0xbc))}
dice = random.Random(42)


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def weight(dtype, *shape):
    size = SIZES[dtype]
    data = bytearray(dice.randbytes(count(shape) * size))
    if dtype in TOPS:
        tops = TOPS[dtype]
        data[size - 1::size] = data[size - 1::size].translate(
            bytes(tops[i % len(tops)] for i in range(256)))
    return dtype, shape, bytes(data)


def tuned(tensor):
    """Other low bytes of the mantissa: some per cent of difference."""
    dtype, shape, old = tensor
    size = SIZES[dtype]
    data = bytearray(old)
    data[0::size] = dice.randbytes(count(shape))
    return dtype, shape, bytes(data)


def to_f32(tensor):
    dtype, shape, old = tensor
    assert dtype == "BF16"
    data = bytearray(2 * len(old))
    data[2::4], data[3::4] = old[0::2], old[1::2]
    return "F32", shape, bytes(data)


def write(path, tensors, metadata, padding=0):
    header, offset = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            f.write(data)


def save(directory, tensors, shards=1, metadata={"format": "pt"}, padding=0, files={}):
    os.makedirs(directory)
    files = {"config.json": json.dumps({"architectures": ["Test"], "model_type": "test"}).encode(),
             **files}
    if shards == 1:
        write(os.path.join(directory, "model.safetensors"), tensors, metadata, padding)
    else:
        names, where = list(tensors), {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
            write(os.path.join(directory, file), {n: tensors[n] for n in part}, metadata, padding)
            where.update({n: file for n in part})
        total = sum(len(data) for _, _, data in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        files["model.safetensors.index.json"] = json.dumps(index, indent=1).encode()
    for name, data in files.items():
        with open(os.path.join(directory, name), "wb") as f:
            f.write(data)


def make_odd(out):
    base = {}
    for dtype in ("BF16", "F16", "F32"):
        for rows, cols in ((1, 1), (3, 7), (129, 33), (64, 1), (5, 1001), (257, 255)):
            base[f"w.{dtype}.{rows}x{cols}"] = weight(dtype, rows, cols)
        base[f"w.{dtype}.cube"] = weight(dtype, 3, 5, 17)
        base[f"w.{dtype}.vector"] = weight(dtype, 77)
        base[f"w.{dtype}.scalar"] = weight(dtype)
        base[f"w.{dtype}.empty"] = weight(dtype, 0, 9)
    base["steps"] = weight("I64", 3)
    fine = {n: tuned(t) if t[0] in TOPS else t for n, t in base.items()}
    fine["w.BF16.same"] = base["w.BF16.same"] = weight("BF16", 31, 29)
    save(os.path.join(out, "base"), base)
    save(os.path.join(out, "fine"), fine, metadata={"format": "pt", "note": "odd \u00fc"}, padding=13)


def make_sharded(out):
    base = {"embed.weight": weight("BF16", 1000, 320)}
    for i in range(8):
        for name, shape in (("q", (320, 320)), ("k", (80, 320)), ("up", (861, 320)),
                            ("down", (320, 861)), ("norm", (320,))):
            base[f"layers.{i}.{name}.weight"] = weight("BF16", *shape)
    names = sorted(base, key=lambda n: (len(n), n), reverse=True)
    fine = {n: base[n] if ".k." in n else tuned(base[n]) for n in names}
    save(os.path.join(out, "base"), base, shards=2)
    save(os.path.join(out, "fine"), fine, shards=3)


def make_vocab(out):
    base = {"model.embed_tokens.weight": weight("BF16", 300, 71), "lm_head.weight": weight("BF16", 300, 71),
            "layer.weight": weight("BF16", 200, 99), "same.weight": weight("BF16", 40, 40)}
    grown, shrunk = weight("BF16", 303, 71), tuned(base["lm_head.weight"])
    grown = ("BF16", (303, 71), tuned(base["model.embed_tokens.weight"])[2] + grown[2][300 * 71 * 2:])
    shrunk = ("BF16", (288, 71), shrunk[2][:288 * 71 * 2])
    fine = {"model.embed_tokens.weight": grown, "lm_head.weight": shrunk, "layer.weight": tuned(base["layer.weight"]),
            "same.weight": base["same.weight"], "new.weight": weight("F16", 12, 34)}
    base["layer.weight"] = to_f32(base["layer.weight"])
    save(os.path.join(out, "base"), base)
    save(os.path.join(out, "fine"), fine)


def make_files(out):
    base = {"w.weight": weight("BF16", 50, 50)}
    fine = {"w.weight": tuned(base["w.weight"])}
    text = "".join(f"token {dice.randrange(10 ** 9)}\n" for _ in range(150000)).encode()
    save(os.path.join(out, "base"), base, files={"only-in-base.txt": b"base"})
    save(os.path.join(out, "fine"), fine, files={
        "empty.txt": b"", "merges.txt": text, "chat template.jinja": b"{{ x }}\n" * 1000,
        "\u043b\u0438\u0446\u0435\u043d\u0437\u0438\u044f.txt": b"text\n", "random.json": dice.randbytes(70000)})


def make_tunes(out, width=48, layers=3, shards=(2, 2, 2)):
    base = {"embed.weight": weight("BF16", 5 * width, width)}
    for i in range(layers):
        for name, shape in (("q", (width, width)), ("up", (3 * width - 1, width)), ("norm", (width,))):
            base[f"layers.{i}.{name}.weight"] = weight("BF16", *shape)
    save(os.path.join(out, "base"), base, shards=2)
    for name, count in zip("abc", shards):
        fine = {n: base[n] if n == "layers.1.q.weight" else tuned(t) for n, t in base.items()}
        save(os.path.join(out, name), fine, shards=count, files={"name.txt": name.encode() * 999})


def make_library(out):
    make_tunes(out, 320, 6, (1, 2, 3))


def main():
    makers = {"odd": make_odd, "sharded": make_sharded, "vocab": make_vocab, "files": make_files,
              "tunes": make_tunes, "library": make_library}
    for name in sys.argv[2:] or makers:
        makers[name](os.path.join(sys.argv[1], name))


main()
