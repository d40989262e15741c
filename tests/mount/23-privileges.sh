#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 23-privileges.sh: the sandbox, drop_privileges and setuid=: what is in force, and that all else works.
. "$(dirname "$0")/lib.sh"

import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
D=$W/dir
B=$W/base
chmod 755 "$W"
mkdir "$M" "$D" "$W/outside" "$W/links"
cp -r "$DATA/base" "$B"
install -m 644 "$W/deltas/kjv.bdelta" "$D/"
chmod -R a+rX "$B"
status_of() { awk -v k="$1:" '$1 == k { print $2 }' "/proc/$2/status"; }
is_free() { ! grep -qF " $1 " /proc/self/mountinfo; }
soon() { wait_for 10 "$@" 2>/dev/null; }
rejected() { stat_of "$M" '" ".join(r["delta"] + ": " + r["reason"] for r in s["rejected"])'; }
is_rejected() { grep -q "$1.bdelta" <<<"$(rejected)"; }
add() { install -m 644 "$W/deltas/kjv.bdelta" "$D/.new" && mv "$D/.new" "$D/$1.bdelta"; }
ends() { # TITLE PID: SIGTERM ends the daemon and unmounts
	kill "$2"
	check "$1: SIGTERM ends it" wait_for 30 has_ended "$2"
	check "$1: SIGTERM unmounts" is_free "$M"
}
parent_of() { awk '/^PPid/ { print $2 }' "/proc/$1/status"; }

# --- the sandbox ---
check "sandbox: mount" mount_at "$M" "$B" "deltas=$D,log=$W/log"
pid=$(daemon_of "$M")
sandbox=$(stat_of "$M" 's["in_use"]["sandbox"]')
check "sandbox: contents" diff -r "$W/truth/kjv" "$M/kjv"
if [ "$sandbox" = none ]; then
	skip "sandbox" "$(grep -o 'no sandbox: .*' "$W/log")"
else
	check "sandbox: named" grep -qxE 'landlock [0-9]+' <<<"$sandbox"
	same "sandbox: no new privileges" 1 "$(status_of NoNewPrivs "$pid")"
	cp "$W/deltas/kjv.bdelta" "$W/outside/secret.bdelta"
	ln -s ../outside/secret.bdelta "$D/escape.bdelta"
	check "sandbox: a link out of the directories is refused" soon is_rejected escape
	check "sandbox: it says so" grep -qi 'denied\|link' <<<"$(rejected)"
	rm "$D/escape.bdelta"
	add later
	check "sandbox: a new delta comes" soon test -e "$M/later"
	check "sandbox: and is right" diff -r "$W/truth/kjv" "$M/later"
	rm "$D/later.bdelta"
	check "sandbox: umount" unmount "$M"
	# What links led to when it was mounted stays reachable.
	ln -s ../outside/secret.bdelta "$W/links/linked.bdelta"
	check "sandbox: mount with links" mount_at "$M" "$B" "deltas=$W/links"
	check "sandbox: contents with links" diff -r "$W/truth/kjv" "$M/linked"
	cp "$W/deltas/kjv.bdelta" "$W/outside/.new" && mv "$W/outside/.new" "$W/outside/secret.bdelta"
	check "sandbox: remount after a target was replaced" "$MOUNT" "$B" "$M" -o remount
	check "sandbox: what a link leads to may be replaced" diff -r "$W/truth/kjv" "$M/linked"
	same "sandbox: nothing is rejected" "" "$(rejected)"
	check "sandbox: umount with links" unmount "$M"
	# Links to anything but regular files open nothing, and a file not all that is beside it.
	mkdir "$W/tree" "$W/tree/sub"
	cp "$W/deltas/kjv.bdelta" "$W/tree/hidden.bdelta"
	cp "$W/deltas/kjv.bdelta" "$W/tree/hash"
	ln -s "$W/tree/sub" "$W/links/dir.bdelta"
	ln -s /etc "$W/links/etc.bdelta"
	ln -s / "$W/links/root.bdelta"
	ln -s "$W/tree/hash" "$W/links/hash.bdelta"
	check "sandbox: mount with hostile links" mount_at "$M" "$B" "deltas=$W/links"
	check "sandbox: a link to a file of any name" diff -r "$W/truth/kjv" "$M/hash"
	ln -s "$W/tree/hidden.bdelta" "$W/links/escape.bdelta"
	check "sandbox: a link to a directory or a file opens nothing beside it" soon is_rejected escape
	check "sandbox: umount with hostile links" unmount "$M"
	rm -r "$W/links"/{dir,etc,root,escape}.bdelta
	# A Hugging Face cache with deltas, to which more are downloaded.
	snapshot=$W/hub/models--me--tunes/snapshots/0123
	blobs=$W/hub/models--me--tunes/blobs
	mkdir -p "$snapshot" "$blobs"
	download() { cp "$W/deltas/kjv.bdelta" "$blobs/$1" && ln -s "../../blobs/$1" "$snapshot/$1.bdelta"; }
	check "sandbox: mount of a cache" mount_at "$M" "$B" "deltas=$snapshot"
	download first
	check "sandbox: a later download comes" soon test -e "$M/first"
	check "sandbox: a later download is right" diff -r "$W/truth/kjv" "$M/first"
	check "sandbox: umount of a cache" unmount "$M"
	check "nosandbox: mount" mount_at "$M" "$B" "deltas=$D,nosandbox"
	same "nosandbox: in use" none "$(stat_of "$M" 's["in_use"]["sandbox"]')"
	pid=$(daemon_of "$M")
	same "nosandbox: privileges as they were" 0 "$(status_of NoNewPrivs "$pid")"
	ln -s ../outside/secret.bdelta "$D/escape.bdelta"
	check "nosandbox: links lead anywhere" soon test -e "$M/escape/config.json"
	rm "$D/escape.bdelta"
fi
pid=$(daemon_of "$M")
ends "sandbox" "$pid"

# --- drop_privileges ---
check "drop_privileges: mount" mount_at "$M" "$B" "deltas=$D,drop_privileges"
pid=$(daemon_of "$M")
for set in CapEff CapPrm CapInh CapBnd CapAmb; do
	same "drop_privileges: $set" 0000000000000000 "$(status_of $set "$pid")"
done
same "drop_privileges: no new privileges" 1 "$(status_of NoNewPrivs "$pid")"
same "drop_privileges: user" root "$(stat_of "$M" 's["in_use"]["user"]')"
check "drop_privileges: contents" diff -r "$W/truth/kjv" "$M/kjv"
[ "$(id -u)" != 0 ] || same "drop_privileges: readahead" 1024 \
	"$(cat "/sys/class/bdi/$(mountpoint -d "$M")/read_ahead_kb" 2>/dev/null || echo 1024)"
add later
check "drop_privileges: a new delta comes" soon test -e "$M/later/config.json"
rm "$D/later.bdelta"
check "drop_privileges: umount" unmount "$M"
check "drop_privileges: mount again" mount_at "$M" "$B" "deltas=$D,drop_privileges"
ends "drop_privileges" "$(daemon_of "$M")"

# --- setuid= ---
check "setuid: mount" mount_at "$M" "$B" "deltas=$D,setuid=nobody,allow_other,log=$W/log"
pid=$(daemon_of "$M")
same "setuid: user" "nobody $(id -u nobody)" \
	"$(stat_of "$M" 's["in_use"]["user"]') $(status_of Uid "$pid")"
same "setuid: no capabilities" 0000000000000000 "$(status_of CapEff "$pid")"
same "setuid: groups" "$(id -G nobody)" "$(awk '/^Groups/ { $1 = ""; print substr($0, 2) }' "/proc/$pid/status" |
	sed 's/ *$//; s/^$/'"$(id -G nobody)"'/')"
check "setuid: contents" diff -r "$W/truth/kjv" "$M/kjv"
add later
check "setuid: a new delta comes" soon test -e "$M/later/config.json"
cp "$W/deltas/kjv.bdelta" "$D/.private" && chmod 600 "$D/.private" && mv "$D/.private" "$D/private.bdelta"
check "setuid: what the user may not read is refused" soon is_rejected private
rm "$D/later.bdelta" "$D/private.bdelta"
cat "$M/kjv/model.safetensors" >/dev/null
check "setuid: umount" unmount "$M"
check "setuid: mount by number" mount_at "$M" "$B" "deltas=$D,drop_privileges,setuid=54321"
same "setuid: number" 54321 "$(stat_of "$M" 's["in_use"]["user"]')"
pid=$(daemon_of "$M")
ends "setuid" "$pid"
refuses "setuid: nobody of that name" 1 'no such user' "$MOUNT" "$B" "$M" -o "deltas=$D,setuid=no-such-user"

# --- the two processes ---
check "parent: mount" mount_at "$M" "$B" "deltas=$D"
pid=$(daemon_of "$M")
parent=$(parent_of "$pid")
same "parent: its name" bitdelta-parent "$(cat "/proc/$parent/comm")"
same "parent: holds no input" "" "$(ls -l "/proc/$parent/fd" | grep -E 'safetensors|bdelta|fuse')"
kill "$parent"
check "parent: SIGTERM ends the daemon" wait_for 30 has_ended "$pid"
check "parent: SIGTERM unmounts" wait_for 30 is_free "$M"
check "parent: mount again" mount_at "$M" "$B" "deltas=$D"
pid=$(daemon_of "$M")
parent=$(parent_of "$pid")
kill -9 "$parent"
check "parent: SIGKILL ends the daemon, too" wait_for 30 has_ended "$pid"
refuses "parent: then readers get errors" 1 'not connected|connection abort' cat "$M/kjv/tokenizer.json"
check "parent: the dead mount is replaced" "$MOUNT" "$B" "$M" -o "deltas=$D"
check "parent: contents" diff -r "$W/truth/kjv" "$M/kjv"
umount "$M"
check "auto_unmount: mount" mount_at "$M" "$B" "deltas=$D,auto_unmount"
pid=$(daemon_of "$M")
kill -9 "$pid"
check "auto_unmount: unmounted after SIGKILL" wait_for 30 is_free "$M"
finish
