#!/bin/bash
# 04-faults.sh: base and deltas that are truncated, overwritten, replaced or deleted under the mount.
# Readers get right bytes or EIO, never others; the daemon lives, and the rest of the mount too.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

models sharded
M=$W/mnt
FILE=model-00002-of-00003.safetensors
mkdir "$W/inputs"

truncate_all() { truncate -s 0 "$1"; }
truncate_half() { truncate -s $(($(stat -c %s "$1") / 2)) "$1"; }
append() { echo more >>"$1"; }
overwrite() { dd if=/dev/urandom of="$1" bs=4096 seek=3 count=9 conv=notrunc status=none; }
replace() { dd if=/dev/urandom of="$1.new" bs=4096 count=9 status=none && mv "$1.new" "$1"; }
replace_alike() { cp "$1" "$1.new" && overwrite "$1.new" && mv "$1.new" "$1"; }
delete() { rm "$1"; }

# harm TITLE FAULT FILE...
harm() {
	local title=$1 fault=$2 way victims=() f pid status
	shift 2
	rm -rf "$W/inputs"
	mkdir -p "$W/inputs/deltas"
	cp -r "$W/models/sharded/base" "$W/inputs/base"
	cp "$W/deltas/sharded.bdelta" "$W/inputs/deltas/sick.bdelta"
	cp "$W/deltas/sharded.bdelta" "$W/inputs/deltas/well.bdelta"
	: >"$W/log"
	must mount_at "$M" "$W/inputs/base" "deltas=$W/inputs/deltas,log=$W/log"
	pid=$(daemon_of "$M")
	for way in direct cached mmap open; do
		rm -f "$W/ready.$way"
		python3 "$here/victim.py" $way "$M/sick/$FILE" "$W/truth/sharded/$FILE" \
			"$W/ready.$way" >"$W/victim.$way" 2>&1 &
		victims+=($!)
		pids+=($!)
	done
	for way in direct cached mmap open; do
		wait_for 60 test -e "$W/ready.$way" || not_ok "$title: $way" "the reader does not start"
	done
	for f in "$@"; do
		$fault "$f"
	done
	for way in direct cached mmap open; do
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
	refuses "$title: cannot be opened any more" 1 'Input/output error' cat "$M/sick/$FILE"
	check "$title: the log says what and why" \
		grep -qE "sick/.*: .*$(basename "$1")" "$W/log"
	check "$title: the daemon lives" is_alive "$pid"
	check "$title: directories can be listed" ls -lR "$M"
	case $1 in
	*.bdelta) check "$title: the other model is well" diff -r "$W/truth/sharded" "$M/well" ;;
	*) refuses "$title: so does the other model" 1 'Input/output error' cat "$M/well/$FILE" ;;
	esac
	check "$title: umount" unmount "$M"
}

base=$W/inputs/base/model-00001-of-00002.safetensors
base2=$W/inputs/base/model-00002-of-00002.safetensors
delta=$W/inputs/deltas/sick.bdelta
faults="truncate_all truncate_half append overwrite replace replace_alike delete"
case $BUILD in */asan | */tsan) faults="truncate_half overwrite replace delete" ;; esac
for fault in $faults; do
	harm "base, $fault" "$fault" "$base" "$base2"
	harm "delta, $fault" "$fault" "$delta"
done

# The same files again, whole: everything is well.
rm -rf "$W/inputs"
check "mount after all that" mount_at "$M" "$W/models/sharded/base" "deltas=$W/deltas"
check "contents after all that" diff -r "$W/truth/sharded" "$M/sharded"
check "umount after all that" unmount "$M"

# A disk that fails now and then.
if ! command -v strace >/dev/null || ! strace -o /dev/null true 2>/dev/null; then
	skip "a failing disk" "strace is missing or not allowed"
elif [[ $BUILD == */asan || $BUILD == */tsan ]]; then
	skip "a failing disk" "strace and sanitizers do not mix"
else
	# Not the first reads, which are those of opening.
	strace -f -o /dev/null -e trace=pread64 -e inject=pread64:error=EIO:when=400+5 \
		"$MOUNT" -f "$W/models/sharded/base" "$M" \
		-o "deltas=$W/deltas,threads=2,log=$W/strace.log" &
	pids+=($!)
	if wait_for 30 test -e "$M/sharded/$FILE"; then
		python3 - "$M/sharded/$FILE" "$W/truth/sharded/$FILE" <<-'EOF'
		import os, sys
		want, right, errors = open(sys.argv[2], "rb").read(), 0, 0
		for i in range(300):
		    fd = os.open(sys.argv[1], os.O_RDONLY)
		    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
		    try:
		        got = os.pread(fd, 8192, i * 8192)
		        assert got == want[i * 8192:i * 8192 + 8192], "WRONG BYTES"
		        right += 1
		    except OSError as e:
		        assert e.errno == 5
		        errors += 1
		    os.close(fd)
		ok = right > 20 and errors > 20
		print("ok" if ok else "not ok", "a failing disk:", right, "right,", errors, "EIO")
		sys.exit(not ok)
		EOF
		[ $? = 0 ] || failed=1
		check "a failing disk: umount" umount "$M"
		wait "${pids[@]}"
	else
		not_ok "a failing disk" "no mount"
	fi
	same "the log is kept short" yes "$([ "$(wc -l <"$W/strace.log")" -lt 60 ] && echo yes)"
fi
finish
