#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 04-faults.sh: base and deltas that are truncated, overwritten, replaced, deleted or closed to all below
# the mount. Who has a file open gets the old bytes as long as they exist, else EIO; never others.
# The daemon lives, and the rest of the mount too.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

models sharded
M=$W/mnt
FILE=model-00002-of-00003.safetensors
WAYS="direct cached mmap open"
mkdir "$W/inputs"

# The contents are others now, or may be:
truncate_all() { truncate -s 0 "$1"; }
truncate_half() { truncate -s $(($(stat -c %s "$1") / 2)) "$1"; }
append() { echo more >>"$1"; }
overwrite() { dd if=/dev/urandom of="$1" bs=4096 count=9 conv=notrunc status=none; }
overwrite_quietly() {
	touch -r "$1" "$W/time"
	overwrite "$1"
	touch -r "$W/time" "$1"
}
# The old bytes are still there:
replace() { dd if=/dev/urandom of="$1.new" bs=4096 count=9 status=none && mv "$1.new" "$1"; }
replace_alike() { cp "$1" "$1.new" && overwrite_quietly "$1.new" && mv "$1.new" "$1"; }
delete() { rm "$1"; }
close_to_all() { chmod 000 "$1"; }
give_away() { chown 12345:12345 "$1"; }
link_again() { ln "$1" "$1.link"; }

is_rejected() { # MOUNTPOINT NAME
	[ "$(stat_of "$1" "any('$2.bdelta' in r['delta'] and len(r['reason']) > 9 for r in s['rejected'])")" = True ]
}

# harm TITLE FAULT HELD OPENED FILE...: what is expected of held files, and of those opened later
harm() {
	local title=$1 fault=$2 held=$3 opened=$4 way expected victims=() f pid status
	shift 4
	rm -rf "$W/inputs" "$W/harmed"
	mkdir -p "$W/inputs/deltas"
	cp -r "$W/models/sharded/base" "$W/inputs/base"
	cp "$W/deltas/sharded.bdelta" "$W/inputs/deltas/sick.bdelta"
	cp "$W/deltas/sharded.bdelta" "$W/inputs/deltas/well.bdelta"
	: >"$W/log"
	must mount_at "$M" "$W/inputs/base" "deltas=$W/inputs/deltas,log=$W/log"
	pid=$(daemon_of "$M")
	for way in $WAYS; do
		expected=$held
		[ $way != open ] || expected=$opened
		rm -f "$W/ready.$way"
		python3 "$here/victim.py" $way "$expected" "$M/sick/$FILE" "$W/truth/sharded/$FILE" \
			"$W/ready.$way" "$W/harmed" >"$W/victim.$way" 2>&1 &
		victims+=($!)
		pids+=($!)
	done
	for way in $WAYS; do
		wait_for 60 test -e "$W/ready.$way" || not_ok "$title: $way" "the reader does not start"
	done
	for f in "$@"; do
		$fault "$f"
	done
	touch "$W/harmed"
	for way in $WAYS; do
		wait "${victims[0]}"
		status=$?
		victims=("${victims[@]:1}")
		if [ $status = 0 ]; then
			ok "$title: $way"
		else
			not_ok "$title: $way" "status $status: $(tail -n 1 "$W/victim.$way")"
		fi
	done
	pids=()
	case $opened in
	same) check "$title: can be opened as before" diff -r "$W/truth/sharded" "$M/sick" ;;
	error) refuses "$title: cannot be opened any more" 1 'Input/output error' cat "$M/sick/$FILE" ;;
	gone) check "$title: it goes" wait_for 10 test ! -e "$M/sick" ;;
	esac
	if [ $held = error ]; then
		check "$title: the log says what and why" grep -qE "sick/.*: .*$(basename "$1")" "$W/log"
	fi
	case $1-$opened in
	*.bdelta-gone)
		[ $fault = delete ] || check "$title: it is reported" wait_for 10 is_rejected "$M" sick
		;;
	*.bdelta-same) ;;
	*-error)
		same "$title: the base is reported" True \
			"$(stat_of "$M" 's["bases"][0]["problem"] is not None')"
		;;
	esac
	check "$title: the daemon lives" is_alive "$pid"
	check "$title: directories can be listed" ls -lR "$M"
	case $1-$opened in
	*.bdelta-* | *-same) check "$title: the other model is well" diff -r "$W/truth/sharded" "$M/well" ;;
	*) refuses "$title: so is the other model" 1 'Input/output error' cat "$M/well/$FILE" ;;
	esac
	check "$title: umount" unmount "$M"
}

base=$W/inputs/base/model-00001-of-00002.safetensors
base2=$W/inputs/base/model-00002-of-00002.safetensors
delta=$W/inputs/deltas/sick.bdelta
changes="truncate_all append overwrite overwrite_quietly"
others="replace replace_alike delete"
attributes="close_to_all give_away link_again"
if [ -n "$SLOW" ]; then
	changes="truncate_half overwrite_quietly" others="replace" attributes="close_to_all"
fi
for fault in $changes; do
	harm "base, $fault" $fault error error "$base" "$base2"
	harm "delta, $fault" $fault error gone "$delta"
done
for fault in $others; do
	harm "base, $fault" $fault same same "$base" "$base2"
	harm "delta, $fault" $fault same gone "$delta"
done
for fault in $attributes; do
	harm "base, $fault" $fault same same "$base" "$base2"
	harm "delta, $fault" $fault same same "$delta"
done
# The same with inputs that are read instead of mapped.
export BITDELTA_MAP=0
harm "base, not mapped" truncate_half error error "$base" "$base2"
harm "delta, not mapped" truncate_half error gone "$delta"
[ -n "$SLOW" ] || harm "base replaced, not mapped" replace same same "$base" "$base2"
unset BITDELTA_MAP

# A base that is put back is taken again at SIGHUP.
rm -rf "$W/inputs"
cp -r "$W/models/sharded/base" "$W/inputs"
must mount_at "$M" "$W/inputs" "deltas=$W/deltas"
pid=$(daemon_of "$M")
truncate -s 0 "$W/inputs"/*.safetensors
refuses "an empty base" 1 'Input/output error' cat "$M/sharded/$FILE"
cp "$W/models/sharded/base"/* "$W/inputs"
kill -HUP "$pid"
check "a base that was put back: contents" wait_for 20 diff -r "$W/truth/sharded" "$M/sharded"
same "a base that was put back: no problem" None "$(stat_of "$M" 's["bases"][0]["problem"]')"
check "a base that was put back: umount" unmount "$M"

# The same files again, whole: everything is well.
rm -rf "$W/inputs"
check "mount after all that" mount_at "$M" "$W/models/sharded/base" "deltas=$W/deltas"
check "contents after all that" diff -r "$W/truth/sharded" "$M/sharded"
check "umount after all that" unmount "$M"
finish
