#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 12-limits.sh: no memory and no descriptors, when mounting and later: errors that say so, never wrong
# bytes, and everything works again when there is some.
. "$(dirname "$0")/lib.sh"

tunes tunes
M=$W/mnt
B=$W/models/tunes/base
mkdir "$W/many" "$M"
for i in $(seq 60); do
	cp "$W/deltas/$(echo abc | cut -c $((i % 3 + 1))).bdelta" "$W/many/$i.bdelta"
done
truth_of() { echo "$W/truth/$(echo abc | cut -c $(($1 % 3 + 1)))"; }

# right_or MESSAGE TRUTH DIRECTORY: the directory equals TRUTH, as far as it can be read; what cannot says
# MESSAGE
cat >"$W/right_or.py" <<'EOF2'
import errno, os, sys
allowed, truth, mounted = {int(e) for e in sys.argv[1].split(",")}, *sys.argv[2:]
right = errors = 0
for name in os.listdir(truth):
    want = open(os.path.join(truth, name), "rb").read()
    got = b""
    try:
        fd = os.open(os.path.join(mounted, name), os.O_RDONLY)
        try:
            while part := os.read(fd, 1 << 20):
                got += part
            right += 1
            if got != want:
                sys.exit(f"{name}: WRONG BYTES")
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno not in allowed:
            sys.exit(f"{name}: {errno.errorcode[e.errno]}")
        errors += 1
        if not want.startswith(got):
            sys.exit(f"{name}: WRONG BYTES before the error")
print(right, errors)
EOF2
right_or() { python3 "$W/right_or.py" "$@"; }

# --- when mounting ---

# limited KIND VALUES...: mount with each; it works, or gives status 2 or 32 and the reason
limited() {
	local kind=$1 pattern=$2 value status text worked=0 failed_well=0 bad=""
	shift 2
	for value in "$@"; do
		text=$(in_time 60 prlimit "--$kind=$value" "$MOUNT" "$B" "$M" -o "deltas=$W/many,threads=2" 2>&1)
		status=$?
		case $status in
		0)
			worked=$((worked + 1))
			text=$(right_or 5,12,23,24 "$(truth_of 7)" "$M/7" 2>&1) ||
				[ ! -e "$M/7" ] || bad="$bad $value: $text;"
			unmount "$M" || bad="$bad $value: cannot be unmounted;"
			;;
		2 | 32) # 2: out of something, as mount(8) has it
			failed_well=$((failed_well + 1))
			grep -qiE "$pattern" <<<"$text" || bad="$bad $value: $text;"
			;;
		127) ;; # the loader of shared libraries did not get so far
		*) bad="$bad $value: status $status, $text;" ;;
		esac
		[ -z "$(mounts)" ] || bad="$bad $value: left a mount behind;"
	done
	same "mount with little $kind: it works or says why" "" "$bad"
	echo "# $kind: $worked worked, $failed_well failed"
	check "mount with little $kind: both happen" test $worked -gt 0 -a $failed_well -gt 0
}
limited nofile 'open files|descriptor' $(seq 3 2 31) 40 60 80 200
limited as 'memory|thread|temporarily unavailable' $(seq 5000000 2500000 40000000) 80000000 300000000 2000000000

# --- later: descriptors ---

must mount_at "$M" "$B" "deltas=$W/many,log=$W/log"
pid=$(daemon_of "$M")
exec 7<"$M/1/model-00001-of-00002.safetensors"
limit=$(awk '/^Max open files/ { print $4 }' "/proc/$pid/limits")
prlimit --pid "$pid" --nofile="$(descriptors "$pid"):"
failures=0 bad=""
for i in $(seq 60); do
	text=$(right_or 5,23,24 "$(truth_of "$i")" "$M/$i" 2>&1) || bad="$bad $i: $text;"
	[ "${text#* }" = 0 ] || failures=$((failures + 1))
done
same "no descriptors: right bytes or an error" "" "$bad"
echo "# no descriptors: $failures of 60 models could not be read"
check "no descriptors: what is open goes on" cmp - "$(truth_of 1)/model-00001-of-00002.safetensors" <&7
check "no descriptors: directories can be listed" ls -lR "$M"
if [ $failures != 0 ]; then
	check "no descriptors: the log says it" grep -qiE 'open files|descriptor' "$W/log"
fi
prlimit --pid "$pid" --nofile="$limit":
bad=""
for i in $(seq 60); do
	diff -r "$(truth_of "$i")" "$M/$i" >/dev/null || bad="$bad $i"
done
same "descriptors again: everything is right" "" "$bad"
exec 7<&-

# A new delta takes two descriptors while it is examined. What was left out for that comes by itself.
left_out() { stat_of "$M" '"\n".join(r["reason"] for r in s["rejected"])' | grep -qE "$1"; }
free=0
while [ -e "/proc/$pid/fd/$free" ]; do
	free=$((free + 1))
done
prlimit --pid "$pid" --nofile=$((free + 1)):
cp "$W/deltas/a.bdelta" "$W/many/.new" && mv "$W/many/.new" "$W/many/new.bdelta"
check "one descriptor: a new delta is left out" wait_for 10 left_out 'new\.bdelta: .*Too many open files'
check "one descriptor: the others stay" test -e "$M/1" -a -e "$M/60" -a ! -e "$M/new"
prlimit --pid "$pid" --nofile="$limit":
check "descriptors again: the new delta comes" wait_for 10 test -e "$M/new"
check "descriptors again: it is right" diff -r "$W/truth/a" "$M/new"
same "descriptors again: nothing is left out" 0 "$(stat_of "$M" 'len(s["rejected"])')"
prlimit --pid "$pid" --nofile=3:
rm "$W/many/new.bdelta"
check "no descriptor: the directory is reported" wait_for 10 left_out 'cannot read the directory: Too many open files'
prlimit --pid "$pid" --nofile="$limit":
check "descriptors again: what went meanwhile goes" wait_for 10 test ! -e "$M/new"
same "descriptors again: nothing is left out any more" 0 "$(stat_of "$M" 'len(s["rejected"])')"
check "descriptors: umount" unmount "$M"

# --- later: memory ---

models files
: >"$W/log"
# One arena: others would have addresses reserved.
MALLOC_ARENA_MAX=1 must mount_at "$M" "$W/models/files/base" "deltas=$W/deltas/files.bdelta,log=$W/log"
pid=$(daemon_of "$M")
failures=0 bad=""
used=$(($(awk '/^VmSize/ { print $2 }' "/proc/$pid/status") * 1024))
for more in 0 100000 300000 1000000 3000000 10000000; do
	prlimit --pid "$pid" --as=$((used + more)):
	for i in 1 2; do
		text=$(right_or 5,12 "$W/truth/files" "$M/files" 2>&1) || bad="$bad $more: $text;"
		failures=$((failures + ${text#* }))
	done
done
same "no memory: right bytes or an error" "" "$bad"
echo "# no memory: $failures files could not be read"
check "no memory: some could not be read" test $failures -gt 0
check "no memory: the log says it" grep -qi 'memory' "$W/log"
check "no memory: directories can be listed" ls -lR "$M"
prlimit --pid "$pid" --as=unlimited:
check "memory again: everything is right" diff -r "$W/truth/files" "$M/files"
check "memory: the daemon lives" is_alive "$pid"
check "memory: umount" unmount "$M"
finish
