#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 11-disk.sh: the disk below base and deltas fails: EIO or SIGBUS for who reads, nothing else for
# anybody, and everything is well again when the disk is. Inputs mapped and read.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

export W
models sharded
clients=()
M=$W/mnt
FILE=model-00002-of-00003.safetensors
mkdir "$W/disk" "$W/disk/deltas" "$W/faulty"
cp -r "$W/models/sharded/base" "$W/disk/base"
cp "$W/deltas/sharded.bdelta" "$W/disk/deltas/sick.bdelta"
cp "$W/deltas/sharded.bdelta" "$W/disk/deltas/well.bdelta"
must "$BUILD/mount/faulty_fs" "$W/disk" "$W/faulty"
disk() { echo "$*" >"$W/faulty/.control"; }

# client.py WHAT FILE TRUTH: opens, waits for the file `go`, and reads at random, nothing cached. WHAT is
# `right` or `errors`: 10 by pread, 10 by O_DIRECT, 3 by faults; or `either` until the file `go`
# is gone, with some of both.
cat >"$W/client.py" <<'EOF2'
import mmap, os, random, signal, sys, time
what, path, truth = sys.argv[1:]
go = os.environ["W"] + "/go"
want = open(truth, "rb").read()
cached, direct = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT)
print("open", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
dice, right, errors = random.Random(5), 0, 0


def attempt(fd, offset, length):
    global right, errors
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        got = os.pread(fd, length, offset)
    except OSError as e:
        if e.errno != 5:
            sys.exit(f"errno {e.errno}")
        errors += 1
        return
    # The kernel gives the pages before a bad one.
    if not got or got != want[offset:offset + len(got)]:
        sys.exit(f"WRONG BYTES at {offset}")
    if what != "either" and len(got) != length:
        sys.exit(f"only {len(got)} of {length} bytes at {offset}")
    right += 1


def fault(offset):
    child = os.fork()
    if child == 0:
        os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_DONTNEED)
        os._exit(mmap.mmap(cached, len(want), prot=mmap.PROT_READ)[offset] != want[offset])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


i = 0
while i < 10 or what == "either" and os.path.exists(go):
    for fd in cached, direct:
        attempt(fd, dice.randrange(len(want) - 70000) & -4096, dice.randrange(1, 17) * 4096)
    i += 1
faults = [fault(dice.randrange(50000, len(want))) for _ in range(3)] if what != "either" else []
bad = what == "errors" and right or what == "right" and errors or \
    what == "either" and not (right and errors) or \
    any(f != (-signal.SIGBUS if what == "errors" else 0) for f in faults)
print(f"{right} right, {errors} EIO, faults: {faults}")
sys.exit(bool(bad))
EOF2
client() { # NAME WHAT: to its output, $W/out.NAME
	python3 "$W/client.py" "$2" "$M/sick/$FILE" "$W/truth/sharded/$FILE" >"$W/out.$1" 2>&1 &
	clients+=($!)
	wait_for 30 grep -q open "$W/out.$1"
}
clients_end() { # TITLE
	local i
	for i in "${!clients[@]}"; do
		wait "${clients[i]}"
		same "$1 $((i + 1))" 0 "$?"
		echo "# $(tail -n 1 "$W/out.$((i + 1))")"
	done
	clients=()
}

try() { # MODE
	local mode=$1 pid what i
	disk well
	: >"$W/log"
	must mount_at "$M" "$W/faulty/base" "deltas=$W/faulty/deltas,log=$W/log"
	pid=$(daemon_of "$M")
	check "$mode: contents before" diff -r "$W/truth/sharded" "$M/sick"
	for what in "base/" "sick.bdelta" ""; do
		# Opened while the disk was well: what fails is reading.
		rm -f "$W/go"
		client 1 errors
		disk fail "$what"
		touch "$W/go"
		clients_end "$mode, ${what:-everything} fails: errors and no wrong bytes"
		failures=$(<"$W/faulty/.control")
		echo "# $failures reads of the disk failed"
		check "$mode, ${what:-everything} fails: no storm of retries" test "$failures" -le 460
		check "$mode, ${what:-everything} fails: directories can be listed" ls -lR "$M"
		if [ "$what" = sick.bdelta ]; then
			check "$mode, $what fails: the other model is well" diff -r "$W/truth/sharded" "$M/well"
		fi
		disk well
		client 1 right
		clients_end "$mode, ${what:-everything} is well again"
		check "$mode, ${what:-everything} is well again: contents" diff -r "$W/truth/sharded" "$M/sick"
	done
	check "$mode: the log says it" \
		grep -qE "sick/$FILE: .*base/model-.*(Input/output error|device|disk)" "$W/log"
	# Now and then, below several readers.
	rm "$W/go"
	for i in 1 2 3; do
		client "$i" either
	done
	touch "$W/go"
	for i in {1..12}; do
		disk fail
		sleep 0.05
		disk well
		sleep 0.1
	done
	rm "$W/go"
	clients_end "$mode, now and then: reader"
	check "$mode: the daemon lives" is_alive "$pid"
	check "$mode: contents after" diff -r "$W/truth/sharded" "$M/sick"
	check "$mode: the log is kept short" test "$(wc -l <"$W/log")" -lt 60
	check "$mode: umount" unmount "$M"
}
export BITDELTA_MAP=1
try mapped
BITDELTA_MAP=0
try read
unset BITDELTA_MAP

disk fail base/
refuses "mount with a failing base" 32 'base/.*(Input/output error|device|disk)' \
	"$MOUNT" "$W/faulty/base" "$M" -o "deltas=$W/faulty/deltas"
disk fail sick
check "mount with a failing delta" mount_at "$M" "$W/faulty/base" "deltas=$W/faulty/deltas"
check "it is left out" test ! -e "$M/sick"
check "the other model is well" diff -r "$W/truth/sharded" "$M/well"
same "it is reported" True "$(stat_of "$M" 'any("sick.bdelta" in r["delta"] for r in s["rejected"])')"
disk well
kill -HUP "$(daemon_of "$M")"
check "SIGHUP finds it well" wait_for 10 test -e "$M/sick"
check "contents" diff -r "$W/truth/sharded" "$M/sick"
check "umount" unmount "$M"
check "umount the disk" umount "$W/faulty"
finish
