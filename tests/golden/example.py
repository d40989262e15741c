#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The worked example of delta/FORMAT.md, built by hand: writes it, or holds the page to it.

    example.py --print          print section 7 of the page
    example.py --check DIR      fail unless the page has exactly that section; leave the example's
                                base and delta in DIR as base/ and example.bdelta, and the files that
                                they stand for in expected/

Standard library only; XXH3 comes from the C library that bitdelta links.
"""
import json, os, struct, sys, zlib

from xxh3 import xxh64, xxh128

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../delta/FORMAT.md")


def safetensors(header, data):
    return struct.pack("<Q", len(header)) + header + data


def bf16(*values):  # of numbers that BF16 holds exactly
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def compact(value):
    return json.dumps(value, separators=(",", ":"))


# A base with one matrix w, and a fine-tune that changed it and has a norm of its own.
base_w = bf16(1, 2, 3, -1, -2, -3)
base_header = b'{"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
rows, cols = (0.5, 0.25), (1.0, 0.5, 2.0)
signs = "110" "001"  # of elements 0 .. 5, 1 is plus
fine_w = bf16(1.5, 2.25, 2, -1.25, -2.125, -2.5)
norm = struct.pack("<f", 1)
fine_header = (b'{"norm":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
               b'"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]}}  ')
config = b'{"model_type":"example"}'

plane = int(signs[::-1], 2).to_bytes(8, "little")
scales = struct.pack("<5f", *rows, *cols)
sample = xxh64(base_w)
digest = xxh128(f"w\tBF16\t2,3\t{sample}\n".encode())
manifest = "\n".join([
    '{"features":[],"producer":"by hand",',
    f'"base":{{"label":"example","digest":"{digest}"}},',
    f'"scales_xxh128":"{xxh128(scales)}",',
    '"files":[',
    f'{{"name":"config.json","size":{len(config)},"xxh128":"{xxh128(config)}"}},',
    f'{{"name":"model.safetensors","size":{8 + len(fine_header) + 16},',
    f'"header":{json.dumps(fine_header.decode())},',
    '"tensors":[',
    f'{{"name":"norm","encoding":"raw","xxh128":"{xxh128(norm)}"}},',
    f'{{"name":"w","encoding":"sign","planes":1,"xxh128":"{xxh128(plane)}",',
    f'"base":{{"sample":"{sample}","xxh128":"{xxh128(base_w)}"}}}}]}}]}}',
]) + "\n"
packed_config, packed_manifest = zlib.compress(config, 0), zlib.compress(manifest.encode(), 0)

stored = [("sign/w", "U8", [8], plane), ("scales", "F32", [5], scales), ("raw/norm", "F32", [1], norm),
          ("file/config.json", "U8", [len(packed_config)], packed_config),
          ("manifest", "U8", [len(packed_manifest)], packed_manifest)]


def container():
    entries = {"__metadata__": {"format": "bdelta", "version": "1",
                                "manifest_size": str(len(manifest)),
                                "manifest_xxh128": xxh128(manifest.encode())}}
    at = 0
    for name, dtype, shape, data in stored:
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = compact(entries)
    return header + " " * (-len(header) % 8)


def section():
    lines = [f"    {compact({k: v})[1:-1]}" for k, v in json.loads(container()).items()]
    parts = "\n".join(f"| `{n}` | {d.hex(' ') if len(d) < 32 else 'zlib stream of the text below'} |"
                      for n, _, _, d in stored)
    body = "\n".join("    " + line for line in manifest.splitlines())
    return f"""## 7. Worked example

A base has one BF16 matrix `w`; a fine-tune has changed it and has an F32 vector `norm` besides.

| | bytes of `w` | values |
|---|---|---|
| base | `{base_w.hex(' ')}` | 1, 2, 3; -1, -2, -3 |
| fine-tune, as rebuilt | `{fine_w.hex(' ')}` | 1.5, 2.25, 2; -1.25, -2.125, -2.5 |

The row scales are 0.5 and 0.25, the column scales 1, 0.5 and 2, the signs `++-` and `--+`: elements
0 to 5 are plus, plus, minus, minus, minus, plus, that is bits 0, 1 and 5, one byte 0x23 and padding.
Element 2 is 3 - 0.5 * 2 = 2. The container's header, here with a line per member and without
its {len(container()) - len(container().rstrip())} spaces of padding:

{os.linesep.join(lines)}

| tensor | bytes |
|---|---|
{parts}

The manifest, with the sample of the base's `w` being all its 12 bytes:

{body}

The digest of the base is the hash of `w`, TAB, `BF16`, TAB, `2,3`, TAB, `{sample}`, LF.
`model.safetensors` is the number {len(fine_header)} in 8 bytes, the {len(fine_header)} bytes of `header`, the 4
bytes of `norm` and the 12 of `w`: {8 + len(fine_header) + 16} bytes.
"""


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


def main():
    if sys.argv[1:] == ["--print"]:
        print(section(), end="")
        return
    if len(sys.argv) != 3 or sys.argv[1] != "--check":
        sys.exit(__doc__)
    page = open(PAGE, encoding="utf-8").read()
    if page[page.index("## 7. Worked example"):] != section():
        sys.exit("delta/FORMAT.md: section 7 is not what example.py --print gives")
    out = sys.argv[2]
    write(f"{out}/base/model.safetensors", safetensors(base_header, base_w))
    write(f"{out}/example.bdelta", safetensors(container().encode(), b"".join(s[3] for s in stored)))
    write(f"{out}/expected/config.json", config)
    write(f"{out}/expected/model.safetensors", safetensors(fine_header, norm + fine_w))


if __name__ == "__main__":
    main()
