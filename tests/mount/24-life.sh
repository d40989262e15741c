#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 24-life.sh: ends of a mount: signals, open files, lazy unmounting, a terminal that hangs up; mounts over
# their own inputs; and where messages go.
. "$(dirname "$0")/lib.sh"

import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
B=$DATA/base
D=$W/dir
mkdir "$M" "$D"
cp "$W/deltas/kjv.bdelta" "$D"
is_mounted() { grep -qF " $1 " /proc/self/mountinfo; }
is_free() { ! is_mounted "$1"; }

# --- open files ---
check "open files: mount" mount_at "$M" "$B" "deltas=$D"
pid=$(daemon_of "$M")
exec 7<"$M/kjv/model.safetensors"
kill "$pid"
check "open files: SIGTERM ends the daemon" wait_for 30 has_ended "$pid"
check "open files: SIGTERM unmounts" is_free "$M"
check "open files: they fail then" bash -c '! head -c 1 <&7 2>/dev/null'
exec 7<&-
check "umount -l: mount" mount_at "$M" "$B" "deltas=$D"
first=$(daemon_of "$M")
exec 7<"$M/kjv/model.safetensors" 8<"$M/kjv"
check "umount -l" umount -l "$M"
check "umount -l: mounted anew" "$MOUNT" "$B" "$M" -o "deltas=$D"
check "umount -l: the old file works" cmp /proc/self/fd/7 "$W/truth/kjv/model.safetensors"
kill "$first"
check "umount -l: the old daemon ends" wait_for 30 has_ended "$first"
check "umount -l: and leaves the new mount alone" diff -r "$W/truth/kjv" "$M/kjv"
exec 7<&- 8<&-
exec 7<"$M/kjv/model.safetensors"
second=$(daemon_of "$M")
check "umount -l once more" umount -l "$M"
check "umount -l: the daemon stays" is_alive "$second"
exec 7<&-
check "umount -l: and ends with the last file" wait_for 30 has_ended "$second"

# --- a daemon that hangs ---
check "hung: mount" mount_at "$M" "$B" "deltas=$D"
pid=$(daemon_of "$M")
kill -STOP "$pid"
cat "$M/kjv/model.safetensors" >/dev/null 2>"$W/hung" &
reader=$!
kill "$(awk '/^PPid/ { print $2 }' "/proc/$pid/status")"
check "hung: SIGTERM frees readers" wait_for 30 has_ended "$reader"
check "hung: SIGTERM unmounts" wait_for 30 is_free "$M"
kill -CONT "$pid"
check "hung: it ends when it can" wait_for 30 has_ended "$pid"

# --- what the caller has open ---
exec 9>"$W/lock" 77<"$B/config.json"
check "inherited: a lock is taken" flock -n 9
check "inherited: mount" mount_at "$M" "$B" "deltas=$D"
exec 9>&- 77<&-
pid=$(daemon_of "$M")
for p in "$pid" "$(awk '/^PPid/ { print $2 }' "/proc/$pid/status")"; do
	same "inherited: $(cat "/proc/$p/comm") keeps nothing" "" \
		"$(readlink "/proc/$p"/fd/* | grep -E '/(lock|config\.json)$')"
done
check "inherited: the lock is free" flock -n "$W/lock" true
check "inherited: umount" unmount "$M"

# --- dead mounts ---
for i in 1 2; do
	check "dead: mount $i" "$MOUNT" "$B" "$M" -o "deltas=$D,fsname=layer$i"
done
same "other sources may lie above each other" 2 "$(grep -cF " $M " /proc/self/mountinfo)"
for p in $(for q in /proc/[0-9]*; do
	[ "$(cat "$q/comm" 2>/dev/null)" != bitdelta-parent ] && tr '\0' '\n' 2>/dev/null <"$q/cmdline" |
		grep -qF "fsname=layer" && tr '\0' '\n' <"$q/cmdline" | grep -qxF -- "$M" && echo "${q#/proc/}"
done); do
	kill -9 "$p"
	wait_for 30 has_ended "$p"
done
refuses "dead: remounting needs a daemon" 32 'dead' "$MOUNT" layer2 "$M" -o remount
text=$("$MOUNT" "$B" "$M" -o "deltas=$D" 2>&1)
same "dead: two layers are replaced" "0 2" "$? $(grep -c 'replacing a mount that had lost its daemon' <<<"$text")"
same "dead: mounted once" 1 "$(grep -cF " $M " /proc/self/mountinfo)"
check "dead: contents" diff -r "$W/truth/kjv" "$M/kjv"
check "dead: umount" unmount "$M"

# --- over its own inputs ---
mkdir "$W/over"
cp -r "$B" "$W/over/base"
cp "$W/deltas/kjv.bdelta" "$W/over/base"
check "over base and deltas: mount" "$MOUNT" "$W/over/base" "$W/over/base" -o "deltas=$W/over/base"
check "over base and deltas: contents" diff -r "$W/truth/kjv" "$W/over/base/kjv"
pid=$(daemon_of "$W/over/base")
kill -9 "$pid"
wait_for 30 has_ended "$pid"
check "over base and deltas: dead, and again" "$MOUNT" "$W/over/base" "$W/over/base" -o "deltas=$W/over/base"
check "over base and deltas: contents again" diff -r "$W/truth/kjv" "$W/over/base/kjv"
check "over base and deltas: umount" unmount "$W/over/base"
check "over both: mount" "$MOUNT" "$W/over/base" "$W/over" -o "deltas=$W/over/base"
check "over both: contents" diff -r "$W/truth/kjv" "$W/over/kjv"
check "over both: umount" unmount "$W/over"

# --- the foreground ---
cat >"$W/terminal.py" <<'EOP'
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while not os.path.exists(sys.argv[4] + "/kjv"):
    time.sleep(0.02)
os.kill(pid, 1)  # no hang-up: the terminal is there
time.sleep(0.3)
print("alive" if os.waitpid(pid, os.WNOHANG)[0] == 0 else "ended", flush=True)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
EOP
same "foreground: SIGHUP rescans, a terminal that hangs up ends it" "alive 0" \
	"$(in_time 60 python3 "$W/terminal.py" "$MOUNT" -f "$B" "$M" -o "deltas=$D" | paste -sd' ')"
check "foreground: unmounted" is_free "$M"
"$MOUNT" -f "$B" "$M" -o "deltas=$D" 2>"$W/foreground" &
parent=$!
pids+=("$parent")
wait_for 30 test -e "$M/kjv/config.json"
kill -9 "$(daemon_of "$M")"
wait "$parent"
same "foreground: a killed daemon is a failure" 32 $?
check "foreground: and it says so" grep -q "killed by signal 9.*$M" "$W/foreground"
umount "$M"
pids=()
"$MOUNT" -f "$B" "$M" -o "deltas=$D" 2>"$W/foreground" &
parent=$!
pids+=("$parent")
wait_for 30 test -e "$M/kjv/config.json"
kill "$parent"
wait "$parent"
same "foreground: SIGTERM" "0 " "$? $(cat "$W/foreground")"
check "foreground: SIGTERM unmounts" is_free "$M"
pids=()

# --- messages ---
cp "$D/kjv.bdelta" "$D/cut.bdelta"
truncate -s 5000 "$D/cut.bdelta"
check "log=stderr" bash -c '"$@" 2>"$0"' "$W/stderr" "$MOUNT" "$B" "$M" -o "deltas=$D,log=stderr"
check "log=stderr gets warnings" grep -q 'bitdelta: .*cut.bdelta' "$W/stderr"
cp "$D/cut.bdelta" "$D/short.bdelta"
check "log=stderr gets messages of the daemon" wait_for 10 grep -q 'short.bdelta' "$W/stderr"
check "log=stderr: umount" unmount "$M"
rm "$D/short.bdelta"
if [ -e /run/systemd/journal/socket ] || ! unshare -m true 2>/dev/null; then
	skip "log=journal" "there is a journal of this system, or no mount namespace"
else
	refuses "log=journal without a journal" 32 'no journal' "$MOUNT" "$B" "$M" -o "deltas=$D,log=journal"
	cat >"$W/journal.py" <<'EOP'
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("/run/systemd/journal/socket")
s.settimeout(300)
open(sys.argv[1] + ".ready", "w")
data = ""
while "short.bdelta" not in data:
    data = s.recv(65536).decode()
open(sys.argv[1], "w").write(data)
EOP
	cat >"$W/journal.sh" <<'EOP'
mount -t tmpfs none /run && mkdir -p /run/systemd/journal || exit 9
python3 "$W/journal.py" "$W/journal" & p=$!
for i in {1..3000}; do [ -e "$W/journal.ready" ] && break; sleep 0.02; done
"$MOUNT" "$B" "$M" -o "deltas=$D,log=journal" 2>/dev/null || exit 8
cp "$D/cut.bdelta" "$D/.new" && mv "$D/.new" "$D/short.bdelta"
wait $p
umount "$M"
EOP
	W=$W B=$B M=$M D=$D MOUNT=$MOUNT unshare -m --propagation private bash "$W/journal.sh"
	same "log=journal" "0 SYSLOG_IDENTIFIER=bitdelta 1" \
		"$? $(grep -x 'SYSLOG_IDENTIFIER=bitdelta' "$W/journal") $(grep -c '^MESSAGE=.*short.bdelta' "$W/journal")"
fi
finish
