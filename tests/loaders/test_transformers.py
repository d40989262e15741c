# SPDX-License-Identifier: Apache-2.0
"""test_transformers.py MOUNTED EXPORTED ORIGINAL: transformers loads the mounted directory.

The logits must be exactly those of the exported plain copy, and differ from the original
fine-tune's by little.
"""
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from steps import Skip, finish, forget, shards, step

mounted, exported, original = sys.argv[1:4]
transformers.logging.set_verbosity_error()
print(f"# transformers {transformers.__version__}, torch {torch.__version__}")
text = "And God said, Let there be light: and there was light."
major = int(transformers.__version__.split(".")[0])
tokens = None


def load(path, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(path, torch_dtype=dtype).eval()


def logits(path, dtype="auto"):
    with torch.no_grad():
        return load(path, dtype)(tokens).logits


def tokenizer(path, kind):
    return kind.from_pretrained(path)(text, return_tensors="pt")["input_ids"]


with step("AutoConfig"):
    assert AutoConfig.from_pretrained(mounted).to_dict() | {"_name_or_path": ""} == \
        AutoConfig.from_pretrained(exported).to_dict() | {"_name_or_path": ""}

with step("PreTrainedTokenizerFast"):
    tokens = tokenizer(mounted, PreTrainedTokenizerFast)
    assert tokens.numel() > 5 and torch.equal(tokens, tokenizer(exported, PreTrainedTokenizerFast))

with step("AutoTokenizer"):
    if major < 5:
        raise Skip("the model was saved by transformers 5, whose tokenizer class 4 does not know")
    assert torch.equal(tokenizer(mounted, AutoTokenizer), tokens)

for dtype in torch.bfloat16, torch.float32:
    with step(f"AutoModelForCausalLM logits equal the export's, {dtype}"):
        for m in shards(mounted):
            forget(m)
        a, b = logits(mounted, dtype), logits(exported, dtype)
        assert a.dtype == dtype and a.isfinite().all() and a.abs().max() > 0
        assert torch.equal(a, b), (a - b).abs().max()

with step("state_dict equals the export's"):
    a, b = load(mounted).state_dict(), load(exported).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

with step("low_cpu_mem_usage"):
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise Skip("accelerate is not installed")
    m = AutoModelForCausalLM.from_pretrained(mounted, low_cpu_mem_usage=True, torch_dtype="auto")
    with torch.no_grad():
        assert torch.equal(m(tokens).logits, logits(exported))

with step("next-token distribution close to the original fine-tune"):
    p, q = (logits(x, torch.float32).log_softmax(-1) for x in (original, mounted))
    divergence = (p.exp() * (p - q)).sum(-1).mean().item()
    print(f"# mean divergence from the original: {divergence:.4f} nats")
    assert 0 <= divergence < 1

finish()
