"""test_safetensors.py MOUNTED EXPORTED: the real safetensors package and llama.cpp's reader.

Every way in which they get at a tensor must give the bytes of the exported plain copy.
"""
import concurrent.futures, inspect, json, os, random, struct, sys

import ml_dtypes  # gives numpy its bfloat16
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from steps import Skip, finish, forget, shards, step

mounted, exported = sys.argv[1:3]
files = [(m, e) for m, e in zip(shards(mounted), shards(exported), strict=True)]
has_backend = "backend" in (safe_open.__text_signature__ or "")
print(f"# safetensors {safetensors.__version__}, torch {torch.__version__}, numpy {np.__version__}")


def raw(t):
    """The bytes of a tensor of torch or numpy."""
    if isinstance(t, torch.Tensor):
        t = t.contiguous().flatten().view(torch.uint8).numpy()
    return np.ascontiguousarray(t).tobytes()


def options(backend):
    if backend == "mmap":
        return {}
    if not has_backend:
        raise Skip(f"safetensors {safetensors.__version__} has no back ends")
    return {"backend": backend}


for backend in "mmap", "pread":
    for framework in "pt", "np":
        with step(f"safe_open {framework} {backend}"):
            for m, e in files:
                forget(m)
                with safe_open(m, framework, **options(backend)) as a, safe_open(e, framework) as b:
                    assert a.keys() == b.keys() and a.metadata() == b.metadata()
                    for name in a.keys():
                        assert raw(a.get_tensor(name)) == raw(b.get_tensor(name)), name

with step("safetensors.torch.load_file"):
    for m, e in files:
        forget(m)
        a, b = safetensors.torch.load_file(m), safetensors.torch.load_file(e)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)

with step("safetensors.numpy.load_file"):
    for m, e in files:
        forget(m)
        a, b = safetensors.numpy.load_file(m), safetensors.numpy.load_file(e)
        assert a.keys() == b.keys() and all(raw(a[k]) == raw(b[k]) for k in a)

with step("safetensors.torch.load of a whole file in memory"):
    for m, e in files:
        a, b = (safetensors.torch.load(open(f, "rb").read()) for f in (m, e))
        assert a.keys() == b.keys() and all(raw(a[k]) == raw(b[k]) for k in a)

with step("get_slice, 200 random blocks"):
    dice = random.Random(1)
    for m, e in files:
        forget(m)
        with safe_open(m, "pt") as a, safe_open(e, "pt") as b:
            names = [n for n in a.keys() if len(a.get_slice(n).get_shape()) == 2]
            for _ in range(200):
                name = dice.choice(names)
                rows, cols = a.get_slice(name).get_shape()
                r, c = sorted(dice.sample(range(rows + 1), 2)), sorted(dice.sample(range(cols + 1), 2))
                block = np.s_[r[0]:r[1], c[0]:c[1]]
                assert torch.equal(a.get_slice(name)[block], b.get_slice(name)[block]), (name, block)

with step("64 threads, each with its own file object, cold cache"):
    def load(seed):
        dice = random.Random(seed)
        for _ in range(3):
            m, e = dice.choice(files)
            forget(m)
            with safe_open(m, "pt") as a, safe_open(e, "pt") as b:
                for name in dice.sample(list(a.keys()), min(8, len(a.keys()))):
                    assert raw(a.get_tensor(name)) == raw(b.get_tensor(name)), name
        return True

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        assert all(pool.map(load, range(64)))

with step("64 threads fault in one shared mapping"):
    for m, e in files:
        want = np.fromfile(e, np.uint8)
        forget(m)
        have = np.memmap(m, np.uint8, "r")

        def touch(seed):
            order = list(range(0, len(want), 65536))
            random.Random(seed).shuffle(order)
            return all(np.array_equal(have[o:o + 65536], want[o:o + 65536]) for o in order)

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            assert all(pool.map(touch, range(64)))

with step("np.memmap(mode='c') per tensor, own header parse"):
    for m, e in files:
        forget(m)
        with open(m, "rb") as f:
            start = 8 + struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(start - 8))
        want = np.fromfile(e, np.uint8)
        assert os.path.getsize(m) == len(want)
        for name, t in header.items():
            if name == "__metadata__" or t["data_offsets"][0] == t["data_offsets"][1]:
                continue
            a, b = (start + o for o in t["data_offsets"])
            view = np.memmap(m, mode="c", offset=a, shape=b - a)
            assert np.array_equal(view, want[a:b]), name
            view[0] ^= 255  # private: nobody else sees it
            del view
        assert np.array_equal(np.fromfile(m, np.uint8), want)

with step("llama.cpp's converter: gguf.utility.SafetensorsLocal"):
    from gguf.utility import SafetensorsLocal
    for m, e in files:
        forget(m)
        with SafetensorsLocal(m) as a, SafetensorsLocal(e) as b:
            assert a.keys() == b.keys()
            for name in a:
                assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
                assert np.array_equal(a[name].mmap_bytes(), b[name].mmap_bytes()), name

finish()
