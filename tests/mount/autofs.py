# SPDX-License-Identifier: Apache-2.0
"""autofs.py DIRECTORY PATH COMMAND...: mount DIRECTORY by COMMAND when somebody looks at PATH below it.

As systemd does for x-systemd.automount: a direct autofs mount, and the command in the process group that
autofs lets pass. Prints what the reader of PATH found. Exit status 77: there is no autofs here.
"""
import ctypes, fcntl, os, select, struct, subprocess, sys

directory, path, command = sys.argv[1], sys.argv[2], sys.argv[3:]
READY, PACKET = 0x9360, 304  # struct autofs_v5_packet
libc = ctypes.CDLL(None, use_errno=True)
os.setpgid(0, 0)
events, pipe = os.pipe()
options = f"fd={pipe},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
if libc.mount(b"autofs", directory.encode(), b"autofs", 0, options.encode()):
    print(os.strerror(ctypes.get_errno()))
    sys.exit(77)
os.close(pipe)
root = os.open(directory, os.O_RDONLY)
reader = subprocess.Popen(["cat", path], start_new_session=True, stdout=subprocess.PIPE)
try:
    if not select.select([events], [], [], 30)[0]:
        sys.exit("nobody asked for the mount")
    token = struct.unpack_from("I", os.read(events, PACKET), 8)[0]
    status = subprocess.run(command, timeout=600).returncode
    fcntl.ioctl(root, READY, token)
    sys.stdout.write(reader.communicate(timeout=600)[0].decode())
    sys.exit(status)
finally:
    reader.kill()
    os.close(root)
    os.close(events)
