# SPDX-License-Identifier: Apache-2.0
"""reader.py MOUNTED TRUTH [OPS]: every way to read a file of the mount gives the bytes of TRUTH.

MOUNTED and TRUTH are directories with the same files; OPS is the number of random reads per file
and way. Prints one line per way, as the scripts do.
"""
import ctypes, json, mmap, os, random, sys, threading

mounted, truth = sys.argv[1:3]
ops = int(sys.argv[3]) if len(sys.argv) > 3 else 300
names = sorted(os.listdir(truth))
data = {n: open(os.path.join(truth, n), "rb").read() for n in names}
page = os.sysconf("SC_PAGESIZE")
failed = False


class Wrong(Exception):
    pass


def compare(got, name, offset, length, what=""):
    want = data[name][offset:offset + length]
    if bytes(got) != want:
        at = next((i for i in range(min(len(got), len(want))) if got[i] != want[i]), "the end")
        raise Wrong(f"{name}: {length} bytes at {offset} {what}: got {len(got)}, wrong from {at}")


def borders(name):
    """Offsets where something changes: of tensors, and of the kernel's requests and pages."""
    blob = data[name]
    at = {0, len(blob)} | set(range(0, len(blob), 1 << 17)) | {page, 1 << 12}
    if name.endswith(".safetensors"):
        n = int.from_bytes(blob[:8], "little")
        at |= {8, 8 + n}
        for key, t in json.loads(blob[8:8 + n]).items():
            if key != "__metadata__":
                at |= {8 + n + o for o in t["data_offsets"]}
    return sorted(at)


def ranges(name, dice, count, largest=300000):
    """(offset, length): around all borders, then at random, also at and after the end."""
    size = len(data[name])
    around = borders(name)
    dice.shuffle(around)
    for b in around[:count]:
        before, after = dice.choice(((1, 1), (3, 5), (1, 4096), (4097, 1), (77, 200000), (0, 1)))
        start = max(0, b - before)
        yield start, b + after - start
    for _ in range(count):
        length = int(2 ** dice.uniform(0, largest.bit_length()))
        yield dice.randrange(size + 2 * page), min(length, largest)


def drop(fd):
    """Forget what the kernel has cached, so that the filesystem is asked again."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def each(way, flags=os.O_RDONLY):
    for name in names:
        fd = os.open(os.path.join(mounted, name), flags)
        try:
            drop(fd)
            way(fd, name, random.Random(name))
        finally:
            os.close(fd)


def step(title):
    def run(function):
        global failed
        try:
            function()
            print(f"ok {title}", flush=True)
        except Exception as e:
            failed = True
            print(f"not ok {title}: {type(e).__name__}: {e}", flush=True)
    return run


@step("read() to the end")
def _():
    def way(fd, name, dice):
        got = b""
        while chunk := os.read(fd, dice.randrange(1, 1 << 21)):
            got += chunk
        compare(got, name, 0, len(data[name]) + 1)
    each(way)


@step("pread at any offset and length")
def _():
    def way(fd, name, dice):
        for offset, length in ranges(name, dice, ops):
            compare(os.pread(fd, length, offset), name, offset, length)
    each(way)


@step("pread in random order, never cached")
def _():
    def way(fd, name, dice):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset, length in ranges(name, dice, ops // 3):
            drop(fd)
            compare(os.pread(fd, length, offset), name, offset, length)
    each(way)


@step("one pread over everything")
def _():
    each(lambda fd, name, dice: compare(os.pread(fd, len(data[name]) + 99, 0), name, 0,
                                        len(data[name]) + 99))


@step("readv, preadv")
def _():
    def way(fd, name, dice):
        for offset, _ in ranges(name, dice, ops // 5):
            parts = [bytearray(dice.randrange(1, 70000)) for _ in range(dice.randrange(1, 9))]
            total = sum(map(len, parts))
            if dice.random() < 0.5:
                n = os.preadv(fd, parts, offset)
            else:
                os.lseek(fd, offset, os.SEEK_SET)
                n = os.readv(fd, parts)
            compare(b"".join(parts)[:n], name, offset, total)
    each(way)


@step("lseek to data, holes and end")
def _():
    def way(fd, name, dice):
        size = len(data[name])
        if os.lseek(fd, 0, os.SEEK_END) != size:
            raise Wrong(f"{name}: SEEK_END")
        if size and (os.lseek(fd, size // 2, os.SEEK_DATA) != size // 2 or
                     os.lseek(fd, size // 2, os.SEEK_HOLE) != size):
            raise Wrong(f"{name}: it has holes")
    each(way)


@step("sendfile")
def _():
    def way(fd, name, dice):
        with open(os.environ["W"] + "/sent", "w+b") as out:
            offset = dice.randrange(len(data[name]) + 1)
            start = offset
            while n := os.sendfile(out.fileno(), fd, offset, 1 << 20):
                offset += n
            out.seek(0)
            compare(out.read(), name, start, len(data[name]))
    each(way)


@step("splice through a pipe")
def _():
    if not hasattr(os, "splice"):
        return

    def way(fd, name, dice):
        r, w = os.pipe()
        got, offset = b"", 0
        while n := os.splice(fd, w, 60000, offset_src=offset):
            got += os.read(r, n)
            offset += n
        os.close(r)
        os.close(w)
        compare(got, name, 0, len(data[name]))
    each(way)


@step("copy_file_range or its refusal")
def _():
    def way(fd, name, dice):
        with open(os.environ["W"] + "/copied", "w+b") as out:
            try:
                while os.copy_file_range(fd, out.fileno(), 1 << 30):
                    pass
            except OSError:
                return
            out.seek(0)
            compare(out.read(), name, 0, len(data[name]))
    each(way)


def mapped(title, flags, prot):
    @step(title)
    def _():
        def way(fd, name, dice):
            size = len(data[name])
            if not size:
                return
            with mmap.mmap(fd, size, flags=flags, prot=prot) as m:
                m.madvise(mmap.MADV_RANDOM)
                for offset, length in ranges(name, dice, ops // 2):
                    compare(m[offset:offset + length], name, offset, length)
                m.madvise(mmap.MADV_NORMAL)
                compare(m[:], name, 0, size)
                if prot & mmap.PROT_WRITE:
                    at = dice.randrange(size)
                    m[at] ^= 255 # stays with this process
                    compare(os.pread(fd, 1, at), name, at, 1, "after a private write")
            drop(fd)
            with mmap.mmap(fd, size, flags=flags | getattr(mmap, "MAP_POPULATE", 0x8000),
                           prot=prot) as m:
                compare(m[:], name, 0, size, "populated")
        each(way)


mapped("mmap private", mmap.MAP_PRIVATE, mmap.PROT_READ)
mapped("mmap private, writable", mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
mapped("mmap shared", mmap.MAP_SHARED, mmap.PROT_READ)


@step("a part of a file mapped")
def _():
    def way(fd, name, dice):
        size = len(data[name])
        for _ in range(ops // 10 if size else 0):
            start = dice.randrange(size) // page * page
            length = min(size - start, dice.randrange(1, 1 << 20))
            with mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ,
                           offset=start) as m:
                compare(m[:], name, start, length)
    each(way)


@step("the last page of a mapping ends with zeros")
def _():
    def way(fd, name, dice):
        size = len(data[name])
        if not size:
            return
        rounded = (size + page - 1) // page * page
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                              ctypes.c_int, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        p = libc.mmap(None, rounded, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
        last = ctypes.string_at(p + rounded - page, page)
        libc.munmap(p, rounded)
        if any(last[size - (rounded - page):]):
            raise Wrong(f"{name}: bytes after the end")
    each(way)


def direct(fd, name, dice, count):
    buffer = mmap.mmap(-1, 1 << 22) # aligned to a page
    size = len(data[name])
    for _ in range(count):
        offset = dice.randrange(size + page) // page * page
        length = dice.randrange(1, 1 << 10) * page
        n = os.preadv(fd, [memoryview(buffer)[:length]], offset)
        compare(buffer[:n], name, offset, length, "direct")
    for offset, length in ranges(name, dice, count): # FUSE asks for no alignment
        n = os.preadv(fd, [memoryview(buffer)[1:1 + length]], offset)
        compare(buffer[1:1 + n], name, offset, length, "direct, unaligned")
    buffer.close()


@step("O_DIRECT, aligned and not, past the end")
def _():
    each(lambda fd, name, dice: direct(fd, name, dice, ops // 3), os.O_RDONLY | os.O_DIRECT)


def in_threads(title, count, way):
    @step(title)
    def _():
        errors = []

        def work(i):
            dice = random.Random(i)
            try:
                for _ in range(max(1, ops // 30)):
                    name = dice.choice([n for n in names if data[n]])
                    way(name, dice)
            except Exception as e:
                errors.append(e)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if errors:
            raise errors[0]


def mixed(name, dice):
    fd = os.open(os.path.join(mounted, name), os.O_RDONLY |
                 (os.O_DIRECT if dice.random() < 0.3 else 0))
    try:
        if dice.random() < 0.3:
            drop(fd)
        size = len(data[name])
        way = dice.randrange(3)
        for offset, length in ranges(name, dice, 3):
            if way == 0:
                compare(os.pread(fd, length, offset), name, offset, length)
            elif way == 1:
                with mmap.mmap(fd, size, prot=mmap.PROT_READ, flags=dice.choice(
                        (mmap.MAP_SHARED, mmap.MAP_PRIVATE))) as m:
                    compare(m[offset:offset + length], name, offset, length)
            else:
                os.lseek(fd, offset, os.SEEK_SET)
                compare(os.read(fd, length), name, offset, length)
    finally:
        os.close(fd)


in_threads("32 threads, all ways at once", 32, mixed)

# Threads of this interpreter take turns at faults of the mapping; processes do not.
@step("16 processes fault in one file")
def _():
    name = max(names, key=lambda n: len(data[n]))
    fd = os.open(os.path.join(mounted, name), os.O_RDONLY)
    drop(fd)
    children = []
    for i in range(16):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                dice = random.Random(i)
                with mmap.mmap(fd, len(data[name]), prot=mmap.PROT_READ) as m:
                    for offset, length in ranges(name, dice, ops // 10):
                        compare(m[offset:offset + length], name, offset, length)
                status = 0
            except Exception as e:
                print(f"# {e}", flush=True)
            finally:
                os._exit(status)
        children.append(child)
    bad = [c for c in children if os.waitpid(c, 0)[1] != 0]
    os.close(fd)
    if bad:
        raise Wrong(f"{len(bad)} of 16 failed")


@step("a forked child reads on")
def _():
    name = max(names, key=lambda n: len(data[n]))
    fd = os.open(os.path.join(mounted, name), os.O_RDONLY)
    child = os.fork()
    if child == 0:
        ok = os.pread(fd, 5000, 12345) == data[name][12345:17345]
        os.close(fd)
        os._exit(0 if ok else 1)
    status = os.waitpid(child, 0)[1]
    compare(os.pread(fd, 5000, 54321), name, 54321, 5000)
    os.close(fd)
    if status:
        raise Wrong("the child read something else")


@step("2000 opens")
def _():
    name = names[0]
    fds = [os.open(os.path.join(mounted, name), os.O_RDONLY) for _ in range(500)]
    for fd in fds:
        compare(os.pread(fd, 100, 7), name, 7, 100)
        os.close(fd)
    for _ in range(1500):
        os.close(os.open(os.path.join(mounted, name), os.O_RDONLY))


sys.exit(failed)
