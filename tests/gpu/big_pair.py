#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a pair of checkpoints of the shape of Llama-2-7B, random but of realistic size.

    big_pair.py TOKENIZER OUT [LAYERS]

OUT/base has weights of standard deviation 0.02, OUT/fine those plus changes of 0.002, both in BF16 and
in shards of four layers. TOKENIZER is a tokenizer.json of at most 32,000 tokens, which both get.
Needs torch; with a GPU some seconds and the time to write 27 GB.
"""
import json
import os
import shutil
import struct
import sys
import threading

import torch

WIDTH, MLP, VOCABULARY = 4096, 11008, 32000


def shapes(layers):
    """Lists of (name, shape), one per shard."""
    shards = [[("model.embed_tokens.weight", (VOCABULARY, WIDTH))]]
    for n in range(layers):
        p = f"model.layers.{n}."
        if n % 4 == 0:
            shards.append([])
        shards[-1] += [(p + f"self_attn.{x}_proj.weight", (WIDTH, WIDTH)) for x in "qkvo"]
        shards[-1] += [(p + f"mlp.{x}_proj.weight", (MLP, WIDTH)) for x in ("gate", "up")]
        shards[-1] += [(p + "mlp.down_proj.weight", (WIDTH, MLP)),
                       (p + "input_layernorm.weight", (WIDTH,)),
                       (p + "post_attention_layernorm.weight", (WIDTH,))]
    shards.append([("model.norm.weight", (WIDTH,)), ("lm_head.weight", (VOCABULARY, WIDTH))])
    return shards


def write(path, tensors):
    """A safetensors file: header length, header, bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors:
        size = t.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, t in tensors:
            f.write(memoryview(t.view(torch.uint8).numpy()).cast("B"))


def main():
    tokenizer, out = sys.argv[1:3]
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }
    index = {"base": {}, "fine": {}}
    for which in index:
        os.makedirs(f"{out}/{which}", exist_ok=True)
        with open(f"{out}/{which}/config.json", "w") as f:
            json.dump(config, f, indent=1)
        shutil.copy(tokenizer, f"{out}/{which}/tokenizer.json")

    parts, writers = shapes(layers), []
    for number, part in enumerate(parts, 1):
        pair = {"base": [], "fine": []}
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        for tensor, shape in part:
            if len(shape) == 1:
                base = fine = torch.ones(shape, dtype=torch.bfloat16)
            else:
                def normal(deviation):
                    return deviation * torch.randn(shape, generator=generator, device=device)
                base = normal(0.02).bfloat16()
                fine = (base.float() + normal(0.002)).bfloat16().cpu()
                base = base.cpu()
            pair["base"].append((tensor, base))
            pair["fine"].append((tensor, fine))
            for which in index:
                index[which][tensor] = name
        for which, tensors in pair.items():
            writers.append(threading.Thread(target=write, args=(f"{out}/{which}/{name}", tensors)))
            writers[-1].start()
        while len(writers) > 6:
            writers.pop(0).join()
    for w in writers:
        w.join()
    for which, names in index.items():
        with open(f"{out}/{which}/model.safetensors.index.json", "w") as f:
            json.dump({"metadata": {}, "weight_map": names}, f)


if __name__ == "__main__":
    main()
