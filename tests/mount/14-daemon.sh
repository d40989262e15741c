#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 14-daemon.sh: a daemon that is killed or stopped: readers get errors, and a new mount takes its place.
. "$(dirname "$0")/lib.sh"

tunes library
M=$W/mnt
B=$W/models/library/base
FILE=model-00001-of-00002.safetensors
mkdir "$M"

# client.py OPEN | MAPPED: opens and waits for a line, then says what happens to reads
cat >"$W/client.py" <<'EOF2'
import errno, mmap, os, signal, sys
mounted, way = sys.argv[1:]


def attempt(what):
    try:
        what()
        return "right"
    except OSError as e:
        return errno.errorcode[e.errno]


cached, direct = os.open(mounted, os.O_RDONLY), os.open(mounted, os.O_RDONLY | os.O_DIRECT)
mapping = mmap.mmap(cached, 0, prot=mmap.PROT_READ)
print("open", flush=True)
sys.stdin.readline()
os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_DONTNEED)
if way == "fault":
    child = os.fork()
    if child == 0:
        os._exit(mapping[1 << 20] == 999)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(signal.Signals(-status).name if status else "right")
elif way == "direct":
    print(attempt(lambda: os.preadv(direct, [mmap.mmap(-1, 4096)], 1 << 20)))
elif way == "cached":
    print(attempt(lambda: os.pread(cached, 4096, 1 << 20)))
else:
    print(attempt(lambda: os.open(mounted, os.O_RDONLY)))
EOF2

# start_clients, then let_them_read: their answers are in $W/out.WAY
ways="cached direct fault open"
start_clients() {
	local way
	clients=()
	mkdir -p "$W/in"
	for way in $ways; do
		rm -f "$W/in/$way"
		mkfifo "$W/in/$way"
		python3 "$W/client.py" "$M/b/$FILE" $way >"$W/out.$way" 2>&1 <>"$W/in/$way" &
		clients+=($!)
		pids+=($!)
	done
	for way in $ways; do
		must wait_for 30 grep -q open "$W/out.$way"
	done
}
let_them_read() {
	local way
	for way in $ways; do
		echo >"$W/in/$way"
	done
}
answers() { # TITLE PATTERN [ALSO], the last of those whom the page cache may answer
	local way want i=0
	for way in $ways; do
		want=$2
		case $way in cached | fault) want="$2${3:+|$3}" ;; esac
		check "$1: $way ends" wait_for 20 has_ended "${clients[$i]}"
		check "$1: $way says $want" grep -qxE "$want" <(tail -n 1 "$W/out.$way")
		i=$((i + 1))
	done
	pids=()
}

# --- killed ---

for i in 1 2; do
	must mount_at "$M" "$B" "deltas=$W/deltas"
	pid=$(daemon_of "$M")
	start_clients
	"$BUILD/mount/readers" -n 8 -s 600 -k "$M" "$W/truth" >/dev/null 2>&1 &
	readers=$!
	pids+=($readers)
	sleep 0.3
	kill -9 "$pid"
	check "killed, $i: the daemon ends" wait_for 20 has_ended "$pid"
	let_them_read
	answers "killed, $i" 'ENOTCONN|ECONNABORTED|EIO|SIGBUS' right # other readers keep pages there
	refuses "killed, $i: the mount point is dead" 2 'not connected' ls "$M"
	kill "$readers"
	wait "$readers"
	check "killed, $i: mount over the dead mount point" mount_at "$M" "$B" "deltas=$W/deltas"
	check "killed, $i: contents" diff -r "$W/truth" "$M"
	same "killed, $i: it is mounted once" 1 "$(grep -c " $M " /proc/self/mountinfo)"
	check "killed, $i: umount" unmount "$M"
	same "killed, $i: nothing is left" "" "$(mounts)$(ls -A "$M")"
done

# --- stopped ---

stop() { kill -STOP "$1" && wait_for 10 grep -q '^State:.T' "/proc/$1/status" && sleep 0.1; }

fusectl=/sys/fs/fuse/connections
[ -e "$fusectl" ] && ! mountpoint -q "$fusectl" && mount -t fusectl none "$fusectl" 2>/dev/null &&
	trap 'umount "$fusectl"; clean_up' EXIT
must mount_at "$M" "$B" "deltas=$W/deltas"
pid=$(daemon_of "$M")
abort=$fusectl/$(mountpoint -d "$M" | cut -d: -f2)/abort
start_clients
stop "$pid"
let_them_read
sleep 1
for way in $ways; do
	same "stopped: $way waits" open "$(cat "$W/out.$way")"
done
if [ -w "$abort" ]; then
	echo 1 >"$abort"
	answers "aborted" 'ENOTCONN|ECONNABORTED|EIO|SIGBUS'
	check "aborted: umount" umount "$M"
	kill -CONT "$pid"
	check "aborted: the daemon ends when it goes on" wait_for 20 has_ended "$pid"
else
	skip "aborted" "there is no fusectl"
	kill -CONT "$pid"
	answers "going on" 'right'
	check "umount" unmount "$M"
fi

# Stopped for a while: then it goes on as if nothing had happened.
must mount_at "$M" "$B" "deltas=$W/deltas"
pid=$(daemon_of "$M")
"$BUILD/mount/readers" -n 8 -s 4 "$M" "$W/truth" >"$W/readers.out" 2>&1 &
readers=$!
pids+=($readers)
for i in 1 2 3; do
	sleep 0.4
	stop "$pid"
	sleep 0.4
	kill -CONT "$pid"
done
wait "$readers"
same "stopped for a while: all bytes are right" 0 "$?"
# A reader that waits for a stopped daemon can be killed.
stop "$pid"
cat "$M/a/model.safetensors" >/dev/null 2>&1 &
reader=$!
sleep 0.3
kill -9 $reader
check "stopped: a reader that waits can be killed" wait_for 10 has_ended $reader
kill -CONT "$pid"
pids=()
check "contents after that" diff -r "$W/truth" "$M"

# Who would have to wait for a stopped daemon is told what to do instead, and that can be done.
stuck() { # TITLE OPTIONS
	local start=$SECONDS
	refuses "stopped: $1" 32 "does not answer.* bitdelta umount --lazy $M\$" \
		in_time 30 "$MOUNT" "$B" "$M" -o "$2"
	check "stopped: $1 waits only some seconds" test $((SECONDS - start)) -le "$(patience 8)"
}
exec 7<"$M/b/$FILE"
stop "$pid"
stuck "mounting over it" "deltas=$W/deltas"
stuck "remounting" remount
refuses "stopped: an open file keeps it mounted" '[1-9].*' 'in use' \
	in_time 10 "$BUILD/bitdelta" umount "$M"
check "stopped: bitdelta umount --lazy" in_time 10 "$BUILD/bitdelta" umount --lazy "$M"
same "stopped: it is gone" "" "$(mounts)"
check "stopped: the mount point can be used" mount_at "$M" "$B" "deltas=$W/deltas"
check "stopped: contents" diff -r "$W/truth" "$M"
kill -CONT "$pid"
exec 7<&-
check "stopped: the detached daemon ends" wait_for 20 has_ended "$pid"
pid=$(daemon_of "$M")
stop "$pid"
check "stopped: bitdelta umount" in_time 10 "$BUILD/bitdelta" umount "$M"
same "stopped: it is unmounted" "" "$(mounts)"
kill -CONT "$pid"
check "stopped: the daemon ends when it goes on" wait_for 20 has_ended "$pid"
finish
