#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare the engine's logits with those of transformers, for random models of every architecture.

    transformers.py LOGITS [--on BACKEND,...] [NAME...]

LOGITS is the program of logits.c, which knows the backends. Every case makes a small random model with transformers, saves it,
and runs both on the same tokens: the largest difference must be at most 1e-4 of the largest logit
(2e-2 where products take 16-bit numbers), for a whole pass and for a decoder that keeps keys and values. Each is then tried
again with its config.json as the other of transformers 4 and 5 writes it. NAMEs: these cases only,
or directories of models.

Prints `ok NAME` or `not ok NAME` and exits with 1 where one failed."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

# The folder of this script has its own idea of what `transformers` is.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import torch                                                      # noqa: E402
import transformers                                                # noqa: E402
from safetensors.torch import save_file                            # noqa: E402
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig,  # noqa: E402
                          MistralForCausalLM, MptConfig, MptForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)

try:
    from transformers import Qwen3Config, Qwen3ForCausalLM
except ImportError:
    Qwen3Config = None

backends = ["f32"]
failed = False


def report(name, good, text):
    global failed
    failed |= not good
    print(f"{'ok' if good else 'not ok'} {name}: {text}", flush=True)


def ours(program, backend, directory, tokens):
    batch, length = tokens.shape
    done = subprocess.run([program, backend, directory, str(batch), str(length)],
                          input=tokens.astype("<i4").tobytes(), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip() or f"exit {done.returncode}")
    out = np.frombuffer(done.stdout, "<f4")
    vocabulary = len(out) // (batch * (length + 1))
    split = batch * length * vocabulary
    return out[:split].reshape(batch, length, vocabulary), out[split:].reshape(batch, vocabulary)


def compare(program, name, directory, tokens, theirs):
    for backend in backends:
        limit = 2e-2 if backend.endswith("16") else 1e-4
        label = name if backend == "f32" else f"{name}, {backend}"
        try:
            full, last = ours(program, backend, directory, tokens)
            size = np.abs(theirs).max()
            difference = max(np.abs(full - theirs).max(), np.abs(last - theirs[:, -1]).max()) / size
            report(label, difference <= limit, f"largest difference {difference:.1e} of {size:.3g}")
        except (RuntimeError, ValueError) as e:
            report(label, False, str(e))


def randomise(model, seed):
    """Weights whose every part shows in the logits: norms that are not 1, biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1 and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            elif p.dim() == 1:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / p.shape[1] ** 0.5)
            if backends != ["f32"]:
                p.copy_(p.to(torch.bfloat16))  # the same weights for all of them


def run(model, tokens):
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.float().numpy()


def as_version_5(config):
    """The same settings as transformers 5 spells them."""
    c = dict(config)
    c["dtype"] = c.pop("torch_dtype", "float32")
    if c["model_type"] != "mpt":
        scaling = c.pop("rope_scaling", None) or {}
        rope = {k: v for k, v in scaling.items() if k not in ("type", "rope_type")}
        rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
        rope["rope_theta"] = c.pop("rope_theta", 10000.0)
        c["rope_parameters"] = rope
    if c["model_type"].startswith("qwen"):
        window = c.get("sliding_window") if c.get("use_sliding_window") else None
        c["layer_types"] = ["sliding_attention" if window and i >= c["max_window_layers"]
                            else "full_attention" for i in range(c["num_hidden_layers"])]
    c["transformers_version"] = "5.17.0"
    return c


def as_version_4(config):
    """And as transformers 4 does."""
    c = dict(config)
    c["torch_dtype"] = c.pop("dtype", "float32")
    c.pop("layer_types", None)
    rope = dict(c.pop("rope_parameters", None) or {})
    if rope:
        c["rope_theta"] = rope.pop("rope_theta", 10000.0)
        c["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    c["transformers_version"] = "4.57.1"
    return c


def head_normed(config, seed):
    """Qwen3 for a transformers that may not have it: Llama with a norm of each head after q and k."""
    class HeadNorm(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(width))

        def forward(self, x):
            h = x.view(*x.shape[:-1], -1, len(self.weight))
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps)
            return (h * self.weight).view(x.shape)

    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        a = layer.self_attn
        a.q_proj = torch.nn.Sequential(a.q_proj, HeadNorm(config.head_dim))
        a.k_proj = torch.nn.Sequential(a.k_proj, HeadNorm(config.head_dim))
    randomise(model, seed)
    return model


def save_qwen3(model, directory):
    os.makedirs(directory)
    state = {}
    for name, value in model.state_dict().items():
        for x in "qk":
            name = name.replace(f"{x}_proj.0.", f"{x}_proj.").replace(f"{x}_proj.1.", f"{x}_norm.")
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            state[name] = value.clone().contiguous()
    save_file(state, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    config = model.config.to_dict()
    config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_window_layers": 28,
               "use_sliding_window": False, "sliding_window": None}
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config, f)


def qwen3(seed, **settings):
    if not Qwen3Config:
        return head_normed(LlamaConfig(**SMALL, **settings), seed)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL, **settings))
    randomise(model, seed)
    return model


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
SMALL = dict(hidden_size=48, intermediate_size=84, num_hidden_layers=3, vocab_size=101,
             max_position_embeddings=256, attn_implementation="eager")

CASES = {
    "llama2": lambda: LlamaForCausalLM(LlamaConfig(
        **SMALL, num_attention_heads=3, num_key_value_heads=3, rms_norm_eps=1e-5)),
    "llama2-old-linear": lambda: LlamaForCausalLM(LlamaConfig(
        **SMALL, num_attention_heads=6, rope_scaling={"type": "linear", "factor": 4.0})),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(
        **SMALL, num_attention_heads=6, num_key_value_heads=2, head_dim=12, rope_theta=500000.0,
        rope_scaling=dict(LLAMA3), tie_word_embeddings=True)),
    "llama-biases": lambda: LlamaForCausalLM(LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=1, attention_bias=True, mlp_bias=True,
        hidden_act="gelu_pytorch_tanh")),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(
        **SMALL, num_attention_heads=3, num_key_value_heads=1, head_dim=20, sliding_window=7)),
    "mistral-full": lambda: MistralForCausalLM(MistralConfig(
        **SMALL, num_attention_heads=2, num_key_value_heads=2, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(
        **SMALL, num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=True)),
    "qwen2-window": lambda: Qwen2ForCausalLM(Qwen2Config(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True,
        sliding_window=5, max_window_layers=0, hidden_act="gelu")),
    "mpt": lambda: MptForCausalLM(MptConfig(
        d_model=48, n_heads=4, n_layers=3, vocab_size=101, max_seq_len=64,
        attn_implementation="eager")),
    "mpt-odd-heads": lambda: MptForCausalLM(MptConfig(
        d_model=60, n_heads=5, n_layers=2, vocab_size=93, max_seq_len=64, layer_norm_epsilon=1e-3,
        attn_implementation="eager", attn_config={"softmax_scale": 0.2})),
    "qwen3": lambda: qwen3(
        5, num_attention_heads=5, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6),
    "qwen3-tied": lambda: qwen3(
        6, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_theta=1e6,
        tie_word_embeddings=True),
}
if hasattr(Qwen2Config(), "layer_types"):
    # Older versions have the window in all layers.
    CASES["qwen2-some-windows"] = lambda: Qwen2ForCausalLM(Qwen2Config(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True,
        sliding_window=5, max_window_layers=1))


def random_case(program, name, folder):
    model = CASES[name]()
    if not name.startswith("qwen3"):
        randomise(model, len(name))
    model.tie_weights()
    rng = np.random.default_rng(len(name))
    tokens = rng.integers(0, model.config.vocab_size, (2, 41))
    directory = os.path.join(folder, name)
    if model.config.model_type == "llama" and name.startswith("qwen3"):
        save_qwen3(model, directory)
    else:
        model.save_pretrained(directory)
    theirs = run(model, tokens)
    compare(program, name, directory, tokens, theirs)
    other = directory + "-other"
    shutil.copytree(directory, other)
    with open(os.path.join(other, "config.json")) as f:
        config = json.load(f)
    newer = "dtype" in config
    config = as_version_4(config) if newer else as_version_5(config)
    with open(os.path.join(other, "config.json"), "w") as f:
        json.dump(config, f)
    compare(program, f"{name}, as version {4 if newer else 5}", other, tokens, theirs)
    with open(os.path.join(other if newer else directory, "config.json")) as f:
        config = json.load(f)
    if config.get("rope_scaling"):
        # What version 4 says counts, and nothing of what stands beside it.
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 123.0}
        with open(os.path.join(other, "config.json"), "w") as f:
            json.dump(config, f)
        compare(program, f"{name}, as both", other, tokens, theirs)


def given(program, directory):
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32,
                                                 attn_implementation="eager")
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, model.config.vocab_size, (2, 150))
    compare(program, directory, directory, tokens, run(model, tokens))


def main():
    global backends
    program, names = os.path.abspath(sys.argv[1]), sys.argv[2:]
    if names[:1] == ["--on"]:
        backends, names = names[1].split(","), names[2:]
    torch.set_num_threads(1)
    print(f"# transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or CASES:
            if name in CASES:
                random_case(program, name, folder)
            else:
                given(program, name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
