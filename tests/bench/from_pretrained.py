# SPDX-License-Identifier: Apache-2.0
"""from_pretrained.py ROUNDS READ_FILE PLAIN MOUNTPOINT NAME FILE,FILE... MOUNT...: seconds that
transformers takes to load the model of a plain directory and the same of MOUNTPOINT/NAME, as lines
`WHAT SECONDS`, for tests/bench.sh.

FILE...: what the mounted model is computed from. MOUNT...: the command that mounts it. Cold: all files
were dropped from the page cache; cached: the same model was loaded just before; base_cached: only
FILE... are in the page cache. Weights may stay mapped files when from_pretrained returns, so one element
of each page is read too."""
import gc
import glob
import os
import subprocess
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import torch
import transformers


def load(what, directory):
    start = time.monotonic()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)
    with torch.no_grad():
        for p in model.parameters():
            p.view(torch.int16).flatten()[::2048].sum()
    seconds = time.monotonic() - start
    if what:
        print(what, "%.6f" % seconds, flush=True)
    return sum(p.numel() for p in model.parameters())


def main():
    rounds, read_file, plain, mountpoint, name, inputs, mount = *sys.argv[1:7], sys.argv[7:]
    mounted, inputs = os.path.join(mountpoint, name), inputs.split(",")

    def drop(files):
        gc.collect()
        subprocess.run([read_file, "drop", *files], check=True)

    def drop_all():
        gc.collect()
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        drop(inputs)  # what a daemon has mapped would stay
        subprocess.run(mount, check=True)

    subprocess.run(mount, check=True)
    sizes = {load(None, plain), load(None, mounted)}  # and whatever is imported late
    assert len(sizes) == 1, "the two models differ in size"
    for _ in range(int(rounds)):
        drop(glob.glob(plain + "/*.safetensors"))
        load("pretrained_plain_cold", plain)
        load("pretrained_plain_cached", plain)
        drop_all()
        load("pretrained_mount_cold", mounted)
        load("pretrained_mount_cached", mounted)
        drop(glob.glob(mounted + "/*.safetensors"))
        subprocess.run([read_file, "read", *inputs], check=True, stdout=subprocess.DEVNULL)
        load("pretrained_mount_base_cached", mounted)


main()
