#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 08-handles.sh: handles to files and directories, as NFS servers keep them, work when the kernel has forgotten
# what they stand for, and in the next mount of the same delta.
. "$(dirname "$0")/lib.sh"

models sharded
M=$W/mnt
B=$W/models/sharded/base
K=$W/deltas/sharded.bdelta

# handles.py take MOUNTPOINT FILE: a handle of everything there; open MOUNTPOINT FILE TRUTH: each must give what
# its name gives, nothing being known to the kernel but the root. TRUTH has the files as they must be.
cat >"$W/handles.py" <<'EOF2'
import ctypes, errno, os, pickle, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]

def forget():
    for _ in range(4): # the first ones only find that nobody has asked since
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")

def take(path):
    handle, mount = Handle(size=128), ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0) < 0:
        sys.exit(f"{path}: no handle: {errno.errorcode[ctypes.get_errno()]}")
    return bytes(handle)

what, root, kept = sys.argv[1:4]
if what == "take":
    paths = [root] + [os.path.join(d, n) for d, dirs, files in os.walk(root) for n in dirs + files]
    with open(kept, "wb") as f:
        pickle.dump([(p, os.path.isdir(p), take(p)) for p in paths], f)
else:
    fd = os.open(root, os.O_RDONLY)
    with open(kept, "rb") as f:
        handles = pickle.load(f)
    for path, directory, handle in handles:
        forget()
        found = libc.open_by_handle_at(fd, ctypes.byref(Handle.from_buffer_copy(handle)), os.O_RDONLY)
        if found < 0:
            sys.exit(f"{path}: {errno.errorcode[ctypes.get_errno()]}")
        if directory:
            if os.readlink(f"/proc/self/fd/{found}") != path or sorted(os.listdir(found)) != sorted(os.listdir(path)):
                sys.exit(f"{path}: another directory")
        else:
            with open(found, "rb") as f, open(os.path.join(sys.argv[4], os.path.basename(path)), "rb") as t:
                if f.read() != t.read():
                    sys.exit(f"{path}: WRONG BYTES")
            continue
        os.close(found)
    print(len(handles))
EOF2
if ! python3 -c 'open("/proc/sys/vm/drop_caches", "w").write("2")' 2>/dev/null; then
	skip "handles" "the kernel cannot be made to forget here"
	exit 0
fi
handles() { python3 "$W/handles.py" "$@"; }

must mount_at "$M" "$B" "deltas=$K"
must handles take "$M" "$W/kept"
entries=$(find "$M" | wc -l)
same "all handles work when they are forgotten" "$entries" "$(handles open "$M" "$W/kept" "$W/truth/sharded" 2>&1)"
check "umount" unmount "$M"
must mount_at "$M" "$B" "deltas=$K"
same "and in the next mount" "$entries" "$(handles open "$M" "$W/kept" "$W/truth/sharded" 2>&1)"
check "umount again" unmount "$M"
cp "$K" "$W/one.bdelta"
must mount_at "$M" "$B" "deltas=$W/one.bdelta"
same "of what is not there: ESTALE" "$M/sharded: ESTALE" "$(handles open "$M" "$W/kept" "$W/truth/sharded" 2>&1)"
check "umount at the end" unmount "$M"
finish
