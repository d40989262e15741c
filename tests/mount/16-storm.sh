#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 16-storm.sh: a thousand rounds of replacing a delta, opening and reading, with readers beside.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

rounds=${ROUNDS:-1000}
case $BUILD in */asan) rounds=${ROUNDS:-300} ;; esac
tunes tunes
M=$W/mnt
mkdir "$W/watched"
cp "$W/deltas/a.bdelta" "$W/watched/tune.bdelta"
cp "$W/deltas/b.bdelta" "$W/watched/other.bdelta"
must mount_at "$M" "$W/models/tunes/base" "deltas=$W/watched,log=$W/log"
pid=$(daemon_of "$M")
nothing_open() { [ "$(open_files "$M")" = 0 ]; }

storm() { # ROUNDS
	"$BUILD/mount/storm" -r "$1" -n 4 -p "$pid" "$M" "$W/watched" tune \
		"$W/deltas/a.bdelta" "$W/truth/a" "$W/deltas/b.bdelta" "$W/truth/b" \
		"$W/deltas/c.bdelta" "$W/truth/c" || failed=1
}
storm $((rounds / 10)) # after these, memory and descriptors have their final size
check "all files are closed" wait_for 20 nothing_open
descriptors=$(descriptors "$pid") before=$(memory "$pid")
storm $((rounds - rounds / 10))
check "all files are closed again" wait_for 20 nothing_open
echo "# descriptors: $descriptors, then $(descriptors "$pid")"
check "no descriptor is lost" test "$(descriptors "$pid")" -le $((descriptors + 4))
echo "# memory: $before KiB, then $(memory "$pid") KiB"
if [ -z "$SLOW" ]; then # freed memory is kept for a while there
	check "no memory is lost" test "$(memory "$pid")" -lt $((before + 8192))
fi
same "two models" "other tune" "$(ls "$M" | paste -sd' ')"
check "the other one is well" diff -r "$W/truth/b" "$M/other"
check "reloads are counted" test "$(stat_of "$M" 's["totals"]["reloads"]')" -ge $((rounds / 30))
cp "$W/deltas/c.bdelta" "$W/watched/.new"
mv "$W/watched/.new" "$W/watched/tune.bdelta"
check "the last one is seen" wait_for 10 cmp "$W/truth/c/name.txt" "$M/tune/name.txt"
check "its contents" diff -r "$W/truth/c" "$M/tune"
check "umount" unmount "$M"
finish
