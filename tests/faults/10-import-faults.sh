#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 10-import-faults.sh: an import that fails or is killed leaves the old file or nothing, and says why.
. "$(dirname "$0")/../mount/lib.sh"
faults=$(cd "$(dirname "$0")" && pwd)
BITDELTA=$BUILD/bitdelta
O=$W/out
mkdir "$O"
must "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$W/reference.bdelta"

import_kjv() { "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "${1:-$O/x.bdelta}"; }
reset() {
	rm -rf "$O"
	mkdir "$O"
	echo old >"$O/x.bdelta"
}
# What is in the output's directory: "old", "new" (byte for byte) or what else
state() {
	local names
	names=$(ls -A "${1:-$O}" | tr '\n' ' ')
	if [ "$names" != "x.bdelta " ]; then
		echo "files: $names"
	elif cmp -s "$W/reference.bdelta" "${1:-$O}/x.bdelta"; then
		echo new
	elif grep -qx old "${1:-$O}/x.bdelta"; then
		echo old
	else
		echo "another file of $(stat -c %s "${1:-$O}/x.bdelta") bytes"
	fi
}

# --- No room, no permission ---

if mkdir "$W/small" && mount -t tmpfs -o size=200k tmpfs "$W/small" 2>/dev/null; then
	refuses "disk full" 1 "x.bdelta: .*No space left" import_kjv "$W/small/x.bdelta"
	same "disk full: nothing is left" "" "$(ls -A "$W/small")"
	echo old >"$W/small/x.bdelta"
	refuses "disk full, with an old file" 1 "No space left" import_kjv "$W/small/x.bdelta"
	same "disk full: the old file is left" old "$(state "$W/small")"
	refuses "export: disk full" 1 "No space left" "$BITDELTA" export "$W/reference.bdelta" \
		--base "$DATA/base" -o "$W/small/out"
	same "export, disk full: nothing is left" old "$(state "$W/small")"
	must mount -o remount,ro "$W/small"
	refuses "read-only filesystem" 1 "x.bdelta: .*Read-only file system" import_kjv "$W/small/x.bdelta"
	same "read-only filesystem: the old file is left" old "$(state "$W/small")"
	umount "$W/small"
else
	skip "disk full" "tmpfs cannot be mounted"
fi
reset
nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
chmod 755 "$W"
if nobody test -x "$BITDELTA" -a -r "$DATA/kjv/model.safetensors" -a -r "$W/reference.bdelta" \
	2>/dev/null; then
	refuses "directory of somebody else" 1 "x.bdelta: .*Permission denied" \
		nobody "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$O/x.bdelta"
	same "directory of somebody else: the old file is left" old "$(state)"
	cp -r "$DATA/kjv" "$W/closed"
	chmod 000 "$W/closed/model.safetensors"
	chmod 777 "$O"
	refuses "unreadable model" 1 "closed/model.safetensors: .*Permission denied" \
		nobody "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$W/closed" -o "$O/x.bdelta"
	chmod 000 "$W/closed"
	refuses "unreadable directory" 1 "closed.*: .*Permission denied" \
		nobody "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$W/closed" -o "$O/x.bdelta"
	same "unreadable: the old file is left" old "$(state)"
else
	skip "permissions" "nobody cannot run $BITDELTA or look into $W"
fi

# --- Every call that can fail, at every place ---

if ${CC:-gcc} -shared -fPIC -O1 -o "$W/inject.so" "$faults/inject.c" -ldl 2>"$W/cc.log"; then
	# inject CALL AT ERRNO [VARIABLE=VALUE...]: an import under these conditions
	inject() {
		local call=$1 k=$2 code=$3
		shift 3
		env "$@" INJECT_CALL="$call" INJECT_AT="$k" INJECT_ERRNO="$code" LD_PRELOAD="$W/inject.so" \
			"$BITDELTA" import -q --steps 0 --threads 2 --base "$DATA/base" "$DATA/kjv" -o "$O/x.bdelta" \
			2>"$W/inject.log"
	}
	# calls CALL: how many an import makes
	calls() {
		reset
		inject "$1" 0 5 INJECT_COUNT="$W/count" && cat "$W/count"
	}
	# each NAME CALL ERRNO STEP PATTERN [VARIABLE=VALUE...]: fail the first, and every STEP-th after it
	each() {
		local name=$1 call=$2 code=$3 step=$4 pattern=$5 n k s wrong="" tried=0 done=0 succeeded=0
		shift 5
		n=$(calls "$call")
		for ((k = 1; k <= ${n:-0}; k += step)); do
			reset
			inject "$call" "$k" "$code" "$@"
			s=$?
			tried=$((tried + 1))
			found=$(state)
			if [ $s = 0 ]; then
				# What failed was not needed; then all must be well. (Without memory for an
				# exact bound, the header has more padding.)
				succeeded=$((succeeded + 1))
				[ "$found" = new ] || { [ "$call" = malloc ] && "$BITDELTA" verify -q \
					--base "$DATA/base" "$O/x.bdelta" 2>>"$W/inject.log"; } ||
					wrong="$wrong $k: success, but $found;"
			elif [ $s != 1 ] && ! { [ $s = 2 ] && [ "$call" = malloc ]; }; then
				wrong="$wrong $k: exit status $s ($(tail -n 1 "$W/inject.log"));"
			elif ! grep -qE -- "$pattern" "$W/inject.log"; then
				wrong="$wrong $k: says $(tail -n 1 "$W/inject.log");"
			elif [ "$found" != old ]; then
				# Only the last fsync, of the directory, comes after the rename.
				[ "$call" = fsync ] && [ "$found" = new ] && [ "$k" = "$n" ] ||
					wrong="$wrong $k: $found;"
			fi
		done
		if [ "$tried" = 0 ]; then
			not_ok "$name" "no such call is made"
		elif [ -n "$wrong" ]; then
			not_ok "$name" "of $tried:$(cut -c 1-600 <<<"$wrong")"
		else
			ok "$name: $tried places ($succeeded did not matter)"
		fi
	}
	each "ENOSPC at a write" pwrite 28 1 "x.bdelta: .*No space left"
	each "EIO at a write" pwrite 5 3 "x.bdelta: .*Input/output error"
	each "ENOSPC from a write on" pwrite 28 3 "x.bdelta: .*No space left" INJECT_ALL=1
	each "short writes" pwrite 28 5 "never" INJECT_SHORT=1 INJECT_ALL=1
	each "EINTR at a write" pwrite 4 7 "never"
	each "EIO at fsync" fsync 5 1 "x.bdelta: .*Input/output error"
	each "ENOSPC at fsync" fsync 28 1 "x.bdelta: .*No space left"
	each "EIO at linkat" linkat 5 1 "x.bdelta: .*Input/output error"
	each "EEXIST at linkat" linkat 17 1 "never"
	each "ENOSPC at renameat" renameat 28 1 "x.bdelta: .*No space left"
	each "EIO at a read" pread 5 101 "(base|kjv)/[a-z_.]*: .*Input/output error"
	each "EIO from a read on" pread 5 307 "(base|kjv)/[a-z_.]*: .*Input/output error" INJECT_ALL=1
	each "EIO at fstat" fstat 5 1 "Input/output error"
	each "EMFILE at open" open 24 1 "Too many open files"
	each "no O_TMPFILE" openat 95 1 "not supported"
	each "no thread" thread 11 1 "cannot start a thread"
	each "no threads at all" thread 11 100 "cannot start a thread" INJECT_ALL=1
	n=$(calls malloc)
	each "no memory" malloc 12 $((${n:-0} / 150 + 1)) "memory|Cannot allocate|cannot start a thread"
	each "no memory from then on" malloc 12 $((${n:-0} / 50 + 1)) "memory|Cannot allocate|cannot start a thread|^$" INJECT_ALL=1

	# Inputs that change while they are read.
	for which in base kjv; do
		reset
		cp -r "$DATA/$which" "$W/touched"
		args=("$DATA/base" "$DATA/kjv")
		[ $which = base ] && args[0]=$W/touched || args[1]=$W/touched
		refuses "$which changes meanwhile" 1 "touched/model.safetensors: was written to" \
			env INJECT_CALL=pread INJECT_AT=90 INJECT_TOUCH="$W/touched/model.safetensors" \
			LD_PRELOAD="$W/inject.so" "$BITDELTA" import -q --steps 0 --base "${args[@]}" -o "$O/x.bdelta"
		same "$which changes meanwhile: the old file is left" old "$(state)"
		rm -rf "$W/touched"
	done
else
	skip "injected errors" "$(head -n 1 "$W/cc.log")"
fi

# --- Killed ---

# killed SIGNAL COUNT BASE FINE: imports that get a signal at some moment of the time that one takes
killed() {
	local signal=$1 count=$2 base=$3 fine=$4 i pid s found wrong="" stray=0 whole=0 early=0 took
	reset
	took=$(date +%s%N)
	import_kjv
	took=$((($(date +%s%N) - took) / 1000000 + 5))
	reset
	for ((i = 0; i < count; i++)); do
		env --default-signal=INT,TERM,HUP "$BITDELTA" import -q --steps 0 --base "$base" "$fine" -o "$O/x.bdelta" 2>"$W/killed.log" &
		pid=$!
		sleep "$(printf '%d.%03d' $((k = RANDOM % took, k / 1000)) $((k % 1000)))"
		kill "-$signal" $pid 2>/dev/null
		wait $pid 2>/dev/null
		s=$?
		found=$(state)
		case $s:$signal in
		0:*) ;;
		130:INT | 130:TERM | 130:HUP | 137:KILL) early=$((early + 1)) ;;
		129:HUP | 143:TERM) early=$((early + 1)) ;; # before it had begun to care
		*) wrong="$wrong exit status $s: $(tail -n 1 "$W/killed.log");" ;;
		esac
		case $found in
		"files: .x.bdelta."*".tmp x.bdelta ")
			# Between linkat and renameat, and by nothing but SIGKILL.
			[ "$signal" = KILL ] || wrong="$wrong $found;"
			stray=$((stray + 1))
			;;
		old | new) ;;
		*) wrong="$wrong $found;" ;;
		esac
		case $found in
		*new*)
			whole=$((whole + 1))
			echo old >"$O/x.bdelta"
			;;
		esac
	done
	if [ -n "$wrong" ]; then
		not_ok "$count times SIG$signal" "$(cut -c 1-600 <<<"$wrong")"
	elif [ $early = 0 ]; then
		not_ok "$count times SIG$signal" "all were too late"
	else
		ok "$count times SIG$signal: $early early, $whole whole, $stray times a temporary file"
	fi
	must import_kjv
	same "after SIG$signal an import leaves the new file alone" new "$(state)"
}
killed KILL 200 "$DATA/base" "$DATA/kjv"
killed INT 25 "$DATA/base" "$DATA/kjv"
killed TERM 25 "$DATA/base" "$DATA/kjv"
killed HUP 10 "$DATA/base" "$DATA/kjv"
reset
for i in 123456 abcdef; do echo dead >"$O/.x.bdelta.$i.tmp"; done
must import_kjv
same "files of dead writers are removed" new "$(state)"

# --- Two at once ---

wrong=""
reset
for i in {1..20}; do
	import_kjv 2>>"$W/two.log" &
	one=$!
	import_kjv 2>>"$W/two.log" &
	two=$!
	wait $one || wrong="$wrong one: $?;"
	wait $two || wrong="$wrong two: $?;"
	[ "$(state)" = new ] || wrong="$wrong $(state);"
done
same "two importers at once, 20 times" "" "$wrong"

# --- Many tensors ---

must python3 "$faults/make_many.py" "$W/many" 5000 16 24
check "5,000 tensors: import" "$BITDELTA" import -q --steps 0 --base "$W/many/base" "$W/many/fine" -o "$W/many.bdelta"
check "5,000 tensors: verify" "$BITDELTA" verify --base "$W/many/base" "$W/many.bdelta"
rm -rf "$W/many" "$W/many.bdelta"
must python3 "$faults/make_many.py" "$W/many" 200000 1 1
start=$SECONDS
check "200,000 tensors: import" in_time 120 "$BITDELTA" import --steps 0 --json --base "$W/many/base" "$W/many/fine" \
	--raw '*' -o "$W/many.bdelta"
took=$((SECONDS - start))
check "200,000 tensors: within a minute (took $took s)" test $took -le "$(patience 60)"
check "200,000 tensors: info" in_time 60 "$BITDELTA" info "$W/many.bdelta"
check "200,000 tensors: verify" in_time 60 "$BITDELTA" verify --base "$W/many/base" "$W/many.bdelta"
rm -rf "$W/many" "$W/many.bdelta"

# --- Inputs that are none ---

# hostile NAME PATTERN DIRECTORY: refused as a fine-tune and as a base, quickly, with the old file kept
hostile() {
	reset
	refuses "$1: as a fine-tune" 1 "^bitdelta import: fine-tune: .*$2" \
		in_time 20 "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$3" -o "$O/x.bdelta"
	refuses "$1: as a base" 1 "^bitdelta import: base: .*$2" \
		in_time 20 "$BITDELTA" import -q --steps 0 --base "$3" "$DATA/kjv" -o "$O/x.bdelta"
	same "$1: the old file is left" old "$(state)"
}
H=$W/hostile
mkdir "$H"
new() {
	mkdir "$H/$1"
	D=$H/$1
}
new fifo
mkfifo "$D/model.safetensors"
hostile "FIFO" "fifo/model.safetensors: is a FIFO" "$D"
new directory
mkdir "$D/model.safetensors"
hostile "directory" "directory/model.safetensors: is a directory" "$D"
new loop
ln -s model.safetensors "$D/model.safetensors"
hostile "symbolic link to itself" "loop/model.safetensors" "$D"
new dangling
ln -s nowhere "$D/model.safetensors"
hostile "dangling link" "dangling/model.safetensors: is a link to nowhere.*download" "$D"
new device
ln -s /dev/zero "$D/model.safetensors"
hostile "device" "device/model.safetensors: is a device" "$D"
new sparse
if truncate -s 8T "$D/model.safetensors" 2>/dev/null; then
	hostile "sparse file of 8 TiB" "sparse/model.safetensors: .*header is empty" "$D"
	printf '\xff\xe0\xf5\x05\0\0\0\0' | dd of="$D/model.safetensors" conv=notrunc status=none
	hostile "sparse header of 100 MB" "sparse/model.safetensors: at byte 8: " "$D"
else
	skip "sparse file of 8 TiB" "the filesystem has none"
fi
new empty
: >"$D/model.safetensors"
hostile "empty file" "empty/model.safetensors: .*too few" "$D"
new cut
head -c 100000 "$DATA/kjv/model.safetensors" >"$D/model.safetensors"
hostile "cut short" "cut/model.safetensors: .*cut short" "$D"
new lfs
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n' >"$D/model.safetensors"
hostile "Git LFS pointer" "git lfs pull" "$D"
for name in '../x' '/etc/passwd' 'a/b' '..' ''; do
	rm -rf "$H/index"
	new index
	printf '{"weight_map":{"a":"%s.safetensors"}}' "$name" >"$D/model.safetensors.index.json"
	[ -n "$name" ] || printf '{"weight_map":{"a":""}}' >"$D/model.safetensors.index.json"
	hostile "index with '$name'" "index.json: .*(no file name|is missing)|.*\.\.\.safetensors: is missing" "$D"
done
new lora
echo '{}' >"$D/adapter_config.json"
: >"$D/adapter_model.safetensors"
hostile "LoRA adapter" "lora: holds a LoRA adapter.*merge" "$D"
new pickled
echo x >"$D/pytorch_model.bin"
hostile ".bin weights" "pickled: .*pickled form \(pytorch_model.bin\).*convert" "$D"
new gguf
echo GGUF >"$D/model.gguf"
hostile "GGUF" "gguf: holds GGUF weights.*safetensors" "$D"
hostile "GGUF file" "model.gguf: .*give the directory" "$D/model.gguf"
hostile "a file" "model.safetensors: is a file; give the directory" "$DATA/kjv/model.safetensors"
hostile "nothing there" "none: no such directory" "$H/none"
new nothing
hostile "empty directory" "nothing: holds neither" "$D"
reset
cp -r "$DATA/kjv" "$H/other"
sed -i 's/"model_type": *"[a-z0-9]*"/"model_type": "other"/' "$H/other/config.json"
refuses "wrong architecture" 1 "wrong architecture: .*'other'.*--force" \
	"$BITDELTA" import -q --steps 0 --base "$DATA/base" "$H/other" -o "$O/x.bdelta"
same "wrong architecture: the old file is left" old "$(state)"
check "wrong architecture, forced" "$BITDELTA" import -q --steps 0 --force --base "$DATA/base" "$H/other" -o "$O/x.bdelta"
refuses "output without .bdelta" 1 "must be named SOMETHING.bdelta" \
	"$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$O/x"
refuses "output in no directory" 1 "none/x.bdelta: .*No such file" \
	"$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$O/none/x.bdelta"
mkdir "$O/d.bdelta"
refuses "output is a directory" 1 "d.bdelta: not a file name|d.bdelta: .*regular file" \
	"$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$O/d.bdelta"
refuses "no base" 2 "--base" "$BITDELTA" import "$DATA/kjv" -o "$O/x.bdelta"

# Names from outside never reach the terminal as they are.
cp -r "$DATA/base" "$H/"$'esc\e[2J\xff\nbase'
check "base with a strange name: import" "$BITDELTA" import -q --steps 0 --base "$H/"$'esc\e[2J\xff\nbase' "$DATA/kjv" \
	-o "$W/strange.bdelta"
check "base with a strange name: info" "$BITDELTA" info "$W/strange.bdelta"
same "base with a strange name: info prints no control characters" 0 \
	"$("$BITDELTA" info "$W/strange.bdelta" 2>&1 | tr -d '\n' | LC_ALL=C grep -c '[[:cntrl:]]')"
finish
