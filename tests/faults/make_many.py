#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_many.py OUT COUNT ROWS COLS [SHARDS]: a base and a fine-tune with so many BF16 tensors of this shape.

Writes OUT/base/ and OUT/fine/: model.safetensors, or so many shards and their index. Standard library only,
deterministic; finite weights.
"""
import json
import os
import random
import struct
import sys

out, (count, rows, cols, shards) = sys.argv[1], [*map(int, sys.argv[2:]), 1][:4]
size = rows * cols * 2
dice = random.Random(7)
block = bytearray(dice.randbytes(size + 4096))
block[1::2] = bytes(0x3c + (b & 0x81) for b in block[1::2])
where = {}
for which in ("base", "fine"):
    os.makedirs(os.path.join(out, which))
    step = 0 if which == "base" else 2
    for s in range(shards):
        numbers = range(s * count // shards, (s + 1) * count // shards)
        shard = "model.safetensors" if shards == 1 else f"model-{s + 1:05}-of-{shards:05}.safetensors"
        where.update({f"model.layers.{i}.weight": shard for i in numbers})
        header = ",".join(f'"model.layers.{i}.weight":{{"dtype":"BF16","shape":[{rows},{cols}],'
                          f'"data_offsets":[{k * size},{(k + 1) * size}]}}' for k, i in enumerate(numbers))
        header = ("{" + header + "}").encode()
        with open(os.path.join(out, which, shard), "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            for i in numbers:
                at = (i * 6 + step) % 4096
                f.write(block[at:at + size])
    if shards > 1:
        with open(os.path.join(out, which, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {"total_size": count * size}, "weight_map": where}, f)
