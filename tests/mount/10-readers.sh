#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 10-readers.sh: many readers at once, every byte of theirs compared, and readers that are killed.
# SECONDS_OF_READING=60 says how long (with a sanitizer, 8), READERS=64 how many.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

seconds=${SECONDS_OF_READING:-60}
[ -z "$SLOW" ] || seconds=${SECONDS_OF_READING:-8}
readers=${READERS:-64}
tunes library
M=$W/mnt

read_by() { # NAME ARGUMENTS...: of readers
	local name=$1
	shift
	"$BUILD/mount/readers" "$@" >"$W/readers.out" 2>&1 || failed=1
	sed -E "s/^(ok|not ok) /\1 $name: /" "$W/readers.out"
}
nothing_open() { [ "$(open_files "$M")" = 0 ]; }

must mount_at "$M" "$W/models/library/base" "deltas=$W/deltas,log=$W/log"
pid=$(daemon_of "$M")
read_by "$readers readers for $seconds s" -n "$readers" -s "$seconds" "$M" "$W/truth"
check "all files are closed again" wait_for 10 nothing_open
[ -n "$SLOW" ] || # what a sanitizer takes is its own
	check "the daemon's memory stays below 256 MiB" test "$(memory "$pid")" -lt 262144

# After these the memory has its final size, whatever the readers above did.
descriptors=$(descriptors "$pid")
read_by "before" -n 100 -s 2 -k "$M" "$W/truth"
check "killed readers' files are closed" wait_for 20 nothing_open
before=$(memory "$pid")
for i in 1 2 3; do
	read_by "again, $i" -n 100 -s 2 -k "$M" "$W/truth"
done
check "killed readers' files are closed again" wait_for 20 nothing_open
check "no descriptor is lost" test "$(descriptors "$pid")" -le $((descriptors + 2))
after=$(memory "$pid")
[ -n "$SLOW" ] || # freed memory is kept for a while there
	check "no memory is lost" test "$after" -lt $((before + 16384))
echo "# memory of the daemon: $before KiB, then $after KiB"
check "contents after all that" diff -r "$W/truth" "$M"
same "nothing was logged" "" "$(logged "$W/log")"
check "umount" unmount "$M"

# Inputs that are read instead of mapped, by one thread.
export BITDELTA_MAP=0
must mount_at "$M" "$W/models/library/base" "deltas=$W/deltas,threads=1"
read_by "one thread, inputs not mapped" -n 16 -s 4 "$M" "$W/truth"
check "umount again" unmount "$M"
finish
