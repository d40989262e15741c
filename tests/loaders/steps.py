# SPDX-License-Identifier: Apache-2.0
"""steps.py: report test steps the way tests/check.sh counts them, and compare bytes."""
import contextlib, os, sys, traceback

failed = 0


class Skip(Exception):
    """Raised in a step that cannot run here."""


@contextlib.contextmanager
def step(name):
    global failed
    try:
        yield
    except Skip as why:
        print(f"skip {name}: {why}", flush=True)
    except Exception as e:
        failed += 1
        traceback.print_exc(file=sys.stdout)
        print(f"not ok {name}: {type(e).__name__}: {e}".replace("\n", " "), flush=True)
    else:
        print(f"ok {name}", flush=True)


def finish():
    sys.exit(1 if failed else 0)


def shards(directory):
    """The safetensors files of a directory, sorted."""
    return sorted(os.path.join(directory, f) for f in os.listdir(directory)
                  if f.endswith(".safetensors"))


def files(directory):
    """The paths of all files below a directory, sorted."""
    return sorted(os.path.relpath(os.path.join(d, f), directory)
                  for d, _, names in os.walk(directory) for f in names)


def forget(path):
    """Drop the page cache of a file, so that the next access asks the filesystem."""
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same_files(one, other):
    """Both directories hold the same names with the same bytes."""
    names = files(one)
    assert names == files(other), (names, files(other))
    for name in names:
        with open(os.path.join(one, name), "rb") as a, open(os.path.join(other, name), "rb") as b:
            offset = 0
            while True:
                x, y = a.read(1 << 20), b.read(1 << 20)
                if x != y:
                    at = next((i for i in range(min(len(x), len(y))) if x[i] != y[i]),
                              min(len(x), len(y)))
                    raise AssertionError(f"{name}: first difference at byte {offset + at}, "
                                         f"{one} and {other}")
                if not x:
                    break
                offset += len(x)
