# SPDX-License-Identifier: Apache-2.0
"""victim.py WAY EXPECTED MOUNTED TRUTH READY HARMED: read a file of the mount while its inputs are harmed.

Reads at random, compares with TRUTH, creates the file READY after some good reads, and goes on. WAY is

    direct    pread with O_DIRECT: every read reaches the daemon
    cached    pread through the page cache, which is emptied now and then
    mmap      faults in a mapping, where an error is SIGBUS
    open      a new open and a whole read each time

EXPECTED is `same` where all bytes must stay right, also of some reads after the file HARMED is there; `error`
where reading must give EIO within a minute, and right bytes until then; `gone` where the file may also
be no longer there. Prints what happened. Exit status 0: as expected; 1: wrong bytes or another error;
2: no error came.
"""
import errno, mmap, os, random, signal, sys, time

way, expected, mounted, truth, ready, harmed = sys.argv[1:]
if way == "mmap":
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGBUS:
            print("right bytes, then SIGBUS")
            status = 0 if expected != "same" else 1
        sys.exit(abs(status))
want = open(truth, "rb").read()
size, page = len(want), mmap.PAGESIZE
dice = random.Random(1)
fd = os.open(mounted, os.O_RDONLY | (os.O_DIRECT if way == "direct" else 0))
buffer = mmap.mmap(-1, 1 << 20)
mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ) if way == "mmap" else None
if mapping:
    mapping.madvise(mmap.MADV_RANDOM)


def wrong(text):
    print("WRONG BYTES", text, flush=True)
    sys.exit(1)


def read(offset, length):
    """Until the end, as programs do: the kernel gives the pages before a bad one, then the error."""
    got = b""
    while len(got) < length and (part := os.pread(fd, length - len(got), offset + len(got))):
        got += part
    return got


def one(i):
    offset = dice.randrange(size) // page * page
    length = min(size - offset, dice.randrange(1, 64) * page)
    if way == "direct":
        n = os.preadv(fd, [memoryview(buffer)[:1 << 18]], offset)
        if n == 0 or buffer[:n] != want[offset:offset + n]:
            wrong(f"{n} bytes at {offset}")
    elif way == "cached":
        if i % 20 == 19:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if read(offset, length) != want[offset:offset + length]:
            wrong(f"at {offset}")
    elif way == "mmap":
        if i % 20 == 19:
            mapping.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if mapping[offset:offset + length] != want[offset:offset + length]:
            wrong(f"at {offset}")
    else:
        with open(mounted, "rb") as f:
            if f.read() != want:
                wrong("in the whole file")


end, i, after = time.monotonic() + 600, 0, 0
while time.monotonic() < end:
    try:
        is_harmed = os.path.exists(harmed)
        one(i)
        after += is_harmed
    except OSError as e:
        print(f"{i} right reads, then {errno.errorcode[e.errno]}", flush=True)
        fine = {"same": (), "error": (errno.EIO,), "gone": (errno.EIO, errno.ENOENT)}[expected]
        sys.exit(e.errno not in fine)
    i += 1
    if i == 25:
        open(ready, "w").close()
    if expected == "same" and after == 20:
        print(f"{i} right reads", flush=True)
        sys.exit(0)
print(f"{i} right reads, {after} of them after the harm, and no error", flush=True)
sys.exit(2)
