#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load a model directory onto the GPU with transformers, and compare its logits with the engine's.

    mounted.py LOGITS DIR

LOGITS is tests/engine/logits.c. Both read DIR, which may be a mount. Products of both take BF16, so they
differ as two such computations do: at most 2e-2 of the largest logit, for all but one in a thousand.
"""
import subprocess
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

program, directory = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to("cuda").eval()
tokens = np.random.default_rng(1).integers(3, model.config.vocab_size, (4, 96), dtype=np.int32)
with torch.no_grad():
    theirs = model(input_ids=torch.tensor(tokens, dtype=torch.long, device="cuda"), use_cache=False).logits
theirs = theirs.float().cpu().numpy()
done = subprocess.run([program, "cuda-bf16", directory, "4", "96"], input=tokens.astype("<i4").tobytes(),
                      capture_output=True, check=True)
ours = np.frombuffer(done.stdout, "<f4")[:theirs.size].reshape(theirs.shape)
scale = np.abs(theirs).max()
difference = np.abs(ours - theirs) / scale
usual, largest = np.quantile(difference, 0.999), difference.max()
agree = (ours.argmax(-1) == theirs.argmax(-1)).mean()
good = usual <= 2e-2 and largest <= 5e-2 and agree > 0.95
print(f"{'ok' if good else 'not ok'} a mounted delta, on the GPU: logits differ by at most {largest:.1e} of the largest, "
      f"{usual:.1e} for all but one in a thousand; the likeliest token is the same for {100 * agree:.1f} %")
sys.exit(not good)
