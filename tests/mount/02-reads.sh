#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 02-reads.sh: every way of reading, at any offset and length, gives the bytes that export gives.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"
export W

models odd sharded vocab files
import "$DATA/base" "$DATA/kjv" kjv
ops=300
case $BUILD in */asan | */tsan) ops=60 ;; esac # the daemon is some ten times slower
M=$W/mnt
for name in odd sharded vocab files kjv; do
	base=$W/models/$name/base
	[ $name != kjv ] || base=$DATA/base
	check "$name: mount" mount_at "$M" "$base" "deltas=$W/deltas/$name.bdelta,log=$W/$name.log"
	python3 "$here/reader.py" "$M/$name" "$W/truth/$name" $ops >"$W/reader.out" 2>&1 || failed=1
	sed -E "s/^(ok|not ok) /\1 $name: /" "$W/reader.out"
	if [ $name = sharded ]; then
		check "cp" cp -r "$M/$name" "$W/cp"
		check "cp: contents" diff -r "$W/truth/$name" "$W/cp"
		check "cp --sparse=always" cp -r --sparse=always "$M/$name" "$W/sparse"
		check "cp --sparse=always: contents" diff -r "$W/truth/$name" "$W/sparse"
		check "cp --reflink=auto" cp -r --reflink=auto "$M/$name" "$W/reflink"
		check "cp --reflink=auto: contents" diff -r "$W/truth/$name" "$W/reflink"
		mkdir "$W/tar" "$W/tar-sparse"
		check "tar" bash -c 'tar -C "$1" -cf - . | tar -C "$2" -xf -' - "$M/$name" "$W/tar"
		check "tar: contents" diff -r "$W/truth/$name" "$W/tar"
		check "tar -S" bash -c 'tar -C "$1" -cSf - . | tar -C "$2" -xf -' - "$M/$name" "$W/tar-sparse"
		check "tar -S: contents" diff -r "$W/truth/$name" "$W/tar-sparse"
		check "dd, unaligned blocks" bash -c 'dd if="$1" bs=777777 status=none | cmp - "$2"' - \
			"$M/$name/model-00002-of-00003.safetensors" \
			"$W/truth/$name/model-00002-of-00003.safetensors"
		check "dd, direct" bash -c 'dd if="$1" bs=1M iflag=direct status=none | cmp - "$2"' - \
			"$M/$name/model-00002-of-00003.safetensors" \
			"$W/truth/$name/model-00002-of-00003.safetensors"
		rm -rf "$W/cp" "$W/sparse" "$W/reflink" "$W/tar" "$W/tar-sparse"
	fi
	same "$name: nothing was logged" "" "$(logged "$W/$name.log")"
	check "$name: umount" unmount "$M"
done

# One thread must be enough, however many wait.
check "threads=1: mount" mount_at "$M" "$W/models/sharded/base" \
	"deltas=$W/deltas/sharded.bdelta,threads=1,readahead=0"
check "threads=1: reads" python3 "$here/reader.py" "$M/sharded" "$W/truth/sharded" 60
check "threads=1: umount" unmount "$M"

# Unmounting and remounting under load: an error or the right bytes, and no daemon is left.
mkdir "$W/two"
cp "$W/deltas/sharded.bdelta" "$W/two/"
for i in 1 2 3; do
	must mount_at "$M" "$W/models/sharded/base" "deltas=$W/two"
	pid=$(daemon_of "$M")
	readers=()
	for j in 1 2 3 4; do
		(while cat "$M"/sharded/*.safetensors; do :; done) >/dev/null 2>&1 &
		readers+=($!)
		pids+=($!)
	done
	dd if="$M/sharded/model-00001-of-00003.safetensors" of=/dev/null bs=4k status=none
	case $i in
	1) kill -TERM "$pid" ;;
	2) umount -l "$M" ;;
	3) until umount "$M" 2>/dev/null; do :; done ;;
	esac
	for j in "${readers[@]}"; do
		wait "$j"
	done
	ok "end under load, $i: the readers end"
	check "end under load, $i: the daemon ends" wait_for 60 has_ended "$pid"
	check "end under load, $i: nothing is left" test ! -e "$M/sharded"
done
finish
