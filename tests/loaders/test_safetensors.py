# SPDX-License-Identifier: Apache-2.0
"""test_safetensors.py MOUNTED EXPORTED: the real safetensors package and llama.cpp's reader.

Every way in which they get at a tensor must give the bytes of the exported plain copy.
"""
import concurrent.futures, json, mmap, os, random, struct, sys, tempfile

import ml_dtypes  # gives numpy its bfloat16
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from steps import Skip, finish, forget, shards, step

mounted, exported = sys.argv[1:3]
label = os.path.basename(mounted)
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
        with step(f"{label}: safe_open {framework} {backend}"):
            for m, e in files:
                forget(m)
                with safe_open(m, framework, **options(backend)) as a, safe_open(e, framework) as b:
                    assert a.keys() == b.keys() and a.metadata() == b.metadata()
                    for name in a.keys():
                        assert raw(a.get_tensor(name)) == raw(b.get_tensor(name)), name

with step(f"{label}: safetensors.torch.load_file"):
    for m, e in files:
        forget(m)
        a, b = safetensors.torch.load_file(m), safetensors.torch.load_file(e)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)

with step(f"{label}: safetensors.numpy.load_file"):
    for m, e in files:
        forget(m)
        a, b = safetensors.numpy.load_file(m), safetensors.numpy.load_file(e)
        assert a.keys() == b.keys() and all(raw(a[k]) == raw(b[k]) for k in a)

with step(f"{label}: safetensors.torch.load of a whole file in memory"):
    for m, e in files:
        a, b = (safetensors.torch.load(open(f, "rb").read()) for f in (m, e))
        assert a.keys() == b.keys() and all(raw(a[k]) == raw(b[k]) for k in a)

with step(f"{label}: get_slice, 200 random blocks"):
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

with step(f"{label}: get_slice, the parts of tensor parallelism"):
    for m, e in files:
        forget(m)
        with safe_open(m, "pt") as a, safe_open(e, "pt") as b:
            for name in a.keys():
                whole, part = b.get_tensor(name), a.get_slice(name)
                assert part.get_shape() == list(whole.shape) and part.get_dtype() == b.get_slice(name).get_dtype()
                for axis, size in enumerate(whole.shape):
                    for rank in range(2):
                        block = slice(rank * size // 2, (rank + 1) * size // 2)
                        key = (slice(None),) * axis + (block,)
                        assert torch.equal(part[key], whole[key]), (name, axis, rank)
                if whole.ndim == 3:  # one expert at a time
                    for i in range(whole.shape[0]):
                        assert torch.equal(part[i], whole[i]), (name, i)

with step(f"{label}: 64 threads, each with its own file object, cold cache"):
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

with step(f"{label}: 64 threads fault in one shared mapping"):
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

with step(f"{label}: np.memmap(mode='c') per tensor, own header parse"):
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

def blocks(size, block):
    return [(o, min(block, size - o)) for o in range(0, size, block)]


with step(f"{label}: pread by 16 threads into one buffer; a short one would be fatal"):
    for m, e in files:
        for block in 1 << 20, 65536 + 24:
            forget(m)
            fd, size = os.open(m, os.O_RDONLY), os.path.getsize(e)
            have = bytearray(size)

            def fetch(part):
                return os.preadv(fd, [memoryview(have)[part[0]:sum(part)]], part[0]) == part[1]

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                assert all(pool.map(fetch, blocks(size, block)))
            os.close(fd)
            with open(e, "rb") as f:
                assert have == f.read()

with step(f"{label}: O_DIRECT by 4 threads, whole pages, past the end"):
    for m, e in files:
        forget(m)
        fd, size = os.open(m, os.O_RDONLY | os.O_DIRECT), os.path.getsize(e)
        have = mmap.mmap(-1, size + (-size) % 4096)

        def fetch(part):
            with memoryview(have) as view, view[part[0]:sum(part)] as where:
                return os.preadv(fd, [where], part[0]) == min(part[1], size - part[0])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert all(pool.map(fetch, blocks(len(have), 256 * 1024)))
        os.close(fd)
        with open(e, "rb") as f:
            assert have[:size] == f.read() and not any(have[size:])

with step(f"{label}: mapped MAP_SHARED, read from front to back and in between"):
    for m, e in files:
        forget(m)
        with open(m, "rb") as f, open(e, "rb") as g:
            have, want = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ), g.read()
            dice = random.Random(2)
            for _ in range(50):
                o = dice.randrange(len(want))
                assert have[o:o + 5000] == want[o:o + 5000]
            assert have[:] == want
            have.close()

with step(f"{label}: read by seeking, 2 MiB at a time, by 16 threads with a file each"):
    for m, e in files:
        forget(m)

        def fetch(part):
            with open(m, "rb", 0) as f, open(e, "rb") as g:
                f.seek(part[0])
                g.seek(part[0])
                have = bytearray(part[1])
                return f.readinto(have) == part[1] and have == g.read(part[1])

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert all(pool.map(fetch, blocks(os.path.getsize(e), 2 << 20)))

with step(f"{label}: llama.cpp's converter: gguf.utility.SafetensorsLocal"):
    from gguf.utility import SafetensorsLocal
    for m, e in files:
        forget(m)
        with SafetensorsLocal(m) as a, SafetensorsLocal(e) as b:
            assert a.keys() == b.keys()
            for name in a:
                assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
                assert np.array_equal(a[name].mmap_bytes(), b[name].mmap_bytes()), name

with step(f"{label}: conversion to GGUF by memory map"):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    def convert(directory, out):
        writer = GGUFWriter(out, "llama", use_temp_file=False)
        parts = [SafetensorsLocal(f) for f in shards(directory)]
        for part in parts:
            for name, t in part.tensors.items():
                kind = GGMLQuantizationType[t.dtype]
                shape = t.shape[:-1] + (t.shape[-1] * (4 if t.dtype == "F32" else 2),)
                writer.add_tensor(name, t.mmap_bytes().reshape(shape), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    with tempfile.TemporaryDirectory() as top:
        one, two = os.path.join(top, "mounted.gguf"), os.path.join(top, "exported.gguf")
        for m, _ in files:
            forget(m)
        convert(mounted, one)
        convert(exported, two)
        with open(one, "rb") as a, open(two, "rb") as b:
            assert a.read() == b.read()
        assert len(GGUFReader(one).tensors) == sum(len(safe_open(e, "np").keys()) for _, e in files)

finish()
