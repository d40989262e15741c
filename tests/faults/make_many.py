#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_many.py OUT COUNT ROWS COLS: a base and a fine-tune with so many BF16 tensors of this shape.

Writes OUT/base/ and OUT/fine/. Standard library only, deterministic; finite weights.
"""
import os
import random
import struct
import sys

out, count, rows, cols = sys.argv[1], *map(int, sys.argv[2:])
size = rows * cols * 2
dice = random.Random(7)
block = bytearray(dice.randbytes(size + 4096))
block[1::2] = bytes(0x3c + (b & 0x81) for b in block[1::2])
for which in ("base", "fine"):
    os.makedirs(os.path.join(out, which))
    header = ",".join(f'"model.layers.{i}.weight":{{"dtype":"BF16","shape":[{rows},{cols}],'
                      f'"data_offsets":[{i * size},{(i + 1) * size}]}}' for i in range(count))
    header = ("{" + header + "}").encode()
    with open(os.path.join(out, which, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        step = 0 if which == "base" else 2
        for i in range(count):
            at = (i * 6 + step) % 4096
            f.write(block[at:at + size])
