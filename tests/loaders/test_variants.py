# SPDX-License-Identifier: Apache-2.0
"""test_variants.py BUILD WORK: pairs of all kinds through import, export, mount and decode.py.

Export, mount and the independent decoder must agree byte for byte; headers and other files must be
the fine-tune's own; what is not sign-coded must be the fine-tune's bits, and what is must be nearer to the
fine-tune than the base is.
"""
import glob, json, os, shutil, subprocess, sys, zlib

import ml_dtypes
import numpy as np

import make_variants
from steps import files, finish, same_files, shards, step

build, work = (os.path.abspath(p) for p in sys.argv[1:3])
here = os.path.dirname(os.path.abspath(__file__))


def call(*argv):
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=600, text=True, errors="replace")
    assert p.returncode == 0, f"{' '.join(argv)}: exit {p.returncode}: {p.stdout[-2000:]}"
    return p.stdout


def number(name, names):
    """A tensor that lies in several files has its number among these behind its name from the second on."""
    i = 1
    while (f"{name} {i}" if i > 1 else name) in names:
        i += 1
    return f"{name} {i}" if i > 1 else name


def read(directory):
    """name -> array, and file name -> header text"""
    tensors, headers = {}, {}
    for path in shards(directory):
        with open(path, "rb") as f:
            text = f.read(int.from_bytes(f.read(8), "little"))
            data = f.read()
        headers[os.path.basename(path)] = text
        for name, t in json.loads(text).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                dtype = make_variants.DTYPES[t["dtype"]]
                tensors[number(name, tensors)] = np.frombuffer(data[a:b], dtype).reshape(t["shape"])
    return tensors, headers


def distance(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    fit = np.isfinite(a) & np.isfinite(b)
    return np.linalg.norm((a - b)[fit])


def check_content(base, fine, export, encodings, prefix):
    (b, _), (f, headers), (e, export_headers) = read(base), read(fine), read(export)
    b = {prefix + name: data for name, data in b.items()}
    assert headers == export_headers, "headers are not the fine-tune's"
    assert e.keys() == f.keys()
    signs = 0
    for name in f:
        same = e[name].tobytes() == f[name].tobytes()
        if encodings.get(name) in ("same", "raw"):
            assert same, f"{name}: {encodings[name]}, but not the fine-tune's bits"
        if same:
            continue
        signs += 1
        of = name if name in b else name.rpartition(" ")[0]
        assert f[name].ndim >= 2 and of in b, f"{name}: changed"
        n = min(len(b[of]), len(f[name]))
        assert e[name][n:].tobytes() == f[name][n:].tobytes(), f"{name}: new rows changed"
        far, near = distance(b[of][:n], f[name][:n]), distance(e[name][:n], f[name][:n])
        # Rounding can put a student that hardly differs a little off.
        assert near < far * 1.001, f"{name}: error {near}, without delta {far}"
    for name in files(fine):
        if not name.endswith(".safetensors"):
            with open(os.path.join(fine, name), "rb") as x, open(os.path.join(export, name), "rb") as y:
                assert x.read() == y.read(), name
    return signs


def read_manifest(delta):
    with open(delta, "rb") as f:
        text = f.read(int.from_bytes(f.read(8), "little"))
        a, b = json.loads(text)["manifest"]["data_offsets"]
        f.seek(a, 1)
        return json.loads(zlib.decompress(f.read(b - a)))


def encodings(manifest):
    """Tensor name -> encoding."""
    found = {}
    for file in manifest["files"]:
        for t in file.get("tensors", []):
            found[number(t["name"], found)] = t["encoding"]
    return found


def check(name, base, fine, *options, plain_base=None, prefix=""):
    top = os.path.join(work, "test")
    shutil.rmtree(top, ignore_errors=True)
    os.mkdir(top)
    delta, export, decoded, mnt = (os.path.join(top, x) for x in
                                   (name + ".bdelta", "export", "decoded", "mnt"))
    bitdelta = os.path.join(build, "bitdelta")
    call(bitdelta, "import", "--steps", "0", *options, "--base", base, fine, "-o", delta)
    call(bitdelta, "verify", "--base", base, delta)
    call(bitdelta, "export", delta, "--base", base, "-o", export)
    said = call(sys.executable, os.path.join(here, "decode.py"), delta, plain_base or base, decoded)
    assert not said, said  # not even that the base's digest is another one
    same_files(export, decoded)
    os.mkdir(mnt)
    call(os.path.join(build, "mount.bitdelta"), base, mnt, "-o", f"deltas={delta}")
    try:
        same_files(os.path.join(mnt, name), decoded)
    finally:
        call(bitdelta, "umount", mnt)
    manifest = read_manifest(delta)
    kinds = encodings(manifest)
    # What is not used is not claimed: older readers take such a file.
    used = {"base-names": prefix, "copies": name == "loose-indices", "paths": name == "subdirectories"}
    assert manifest["features"] == [f for f in used if used[f]], manifest["features"]
    signs = check_content(plain_base or base, fine, export, kinds, prefix)
    sizes = sum(os.path.getsize(f) for f in shards(fine)), os.path.getsize(delta)
    print(f"# {name}: {signs} of {len(kinds)} tensors approximated, "
          f"{sizes[0]} bytes of safetensors, delta {sizes[1]}")
    assert name != "identical" or (signs == 0 and sizes[1] < sizes[0] / 5)
    shutil.rmtree(top)


def cache_entry(top, pair, which="base", revision="0123456789abcdef0123456789abcdef01234567"):
    """One of the pair as an entry of a Hugging Face cache."""
    repo = os.path.join(top, "models--acme--" + which)
    for d in "blobs", "refs", "snapshots/" + revision:
        os.makedirs(os.path.join(repo, d))
    with open(os.path.join(repo, "refs/main"), "w") as f:
        f.write(revision)
    for i, name in enumerate(files(os.path.join(pair, which))):
        shutil.copy(os.path.join(pair, which, name), os.path.join(repo, "blobs", f"{i:064x}"))
        os.makedirs(os.path.dirname(os.path.join(repo, "snapshots", revision, name)), exist_ok=True)
        os.symlink("../" * name.count("/") + f"../../blobs/{i:064x}", os.path.join(repo, "snapshots", revision, name))
    return repo


EVERYTHING = "--sign", "*"  # also vocabularies and small tensors
FURTHER = {  # pairs that are imported again with other options
    "bf16": [("--scale", "tensor"), ("--scale", "row"), ("--attenuation", "1"), EVERYTHING],
    "f32": [("--raw", "*mlp*"), EVERYTHING],
    "grown-vocabulary": [EVERYTHING],
    "shrunk-vocabulary": [EVERYTHING],
    "only-one-row-more": [EVERYTHING],
    "mixed-dtypes": [EVERYTHING],
    "shapes-and-names": [EVERYTHING],
    "edges-bf16": [EVERYTHING],
    "edges-f16": [EVERYTHING],
}

for name, base, fine, base_options, fine_options in make_variants.variants():
    pair = os.path.join(work, name)
    base_dir, fine_dir = os.path.join(pair, "base"), os.path.join(pair, "fine")
    make_variants.save(base_dir, base, **base_options)
    make_variants.save(fine_dir, fine, **fine_options)
    for options in [()] + FURTHER.get(name, []):
        with step(" ".join(("variant", name) + options)):
            check(name, base_dir, fine_dir, *options)
    if name == "bf16":
        with step("variant bf16 with the base as a cache entry"):
            check(name, cache_entry(os.path.join(work, "cache"), pair), fine_dir, plain_base=base_dir)
        with step("variant bf16 under another prefix"):
            other = os.path.join(pair, "other")
            make_variants.save(other, {"module." + n: t for n, t in fine.items()}, **fine_options)
            check(name, base_dir, other, "--rename", "module.=", prefix="module.")
    if name == "subdirectories":
        with step("variant subdirectories of a cache entry"):
            cache_entry(os.path.join(work, "cache"), pair, "fine")
            check(name, base_dir, glob.glob(os.path.join(work, "cache/models--acme--fine/snapshots/*"))[0])

finish()
