#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bench.sh: ratios taken in one run, printed and written to build/bench.txt. `make bench` builds
# what it needs.
#
# BENCH_GIB=1       size of each of the two checkpoints, which are made up in build/bench/; takes five
#                   times that of memory
# BENCH_ROUNDS=5    every figure is the median of so many rounds, in which all kinds take turns
# BENCH_PARTS=...   of the parts below, only these; the default is all of them
# BENCH_PAIR="BASE FINE"   a pair whose exact sizes are measured besides the shipped one's
# BENCH_BIN=DIR     programs to measure, instead of those of build/release
#
# Only ratios mean something on another machine: a busy neighbour or a slow disk moves both sides.
# "Cold" drops the page cache of the files concerned (posix_fadvise), nobody else's. The references
# are plain files and two servers with the daemon's own loop and settings (tests/bench/reference_server.c):
# "copy" serves a file out of its memory, "zero" one constant buffer. Missed goals are reported, with
# what was measured about the obstacle; they do not fail the run.
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C
gib=${BENCH_GIB:-1} rounds=${BENCH_ROUNDS:-5}
parts=${BENCH_PARTS:-import sign reader pretrained together directory tensors exact}
bin=$(realpath "${BENCH_BIN:-build/release}")
work=$PWD/build/bench
samples=$work/samples
mnt=$work/mnt copy=$work/copy zero=$work/zero
read_file=$bin/bench/read_file
report=build/bench.txt

say() { echo "bench: $*"; }
fail() { echo "bench: $*" >&2; exit 1; }
mounted() { grep -qF " $1 " /proc/self/mounts; }
unmount() { # MOUNTPOINT...: each one if it is mounted, busy or not
	local m i
	for m; do
		mounted "$m" || continue
		umount "$m" 2>/dev/null || fusermount3 -u "$m" 2>/dev/null || fusermount3 -uz "$m" || umount -l "$m"
		for ((i = 0; i < 50; i++)); do # until then it has files mapped, which cannot be dropped
			[ -n "$(of_processes "$m" comm)" ] || break
			sleep 0.1
		done
		[ "$i" -lt 50 ] || say "the daemon of $m still runs after unmounting; another mount namespace?"
	done
}
references=() # process ids
end_all() {
	[ ${#references[@]} = 0 ] || kill "${references[@]}" 2>/dev/null || :
	wait
	references=()
	unmount "$mnt" "$copy" "$zero"
}
cleanup() {
	trap '' INT TERM
	end_all
	rm -rf "$work"
}

for part in $parts; do
	case $part in
	import | sign | reader | pretrained | together | directory | tensors | exact) ;;
	*) fail "BENCH_PARTS: there is no part \"$part\"" ;;
	esac
done
trap cleanup EXIT
trap 'exit 130' INT TERM
unmount "$mnt" "$copy" "$zero"
rm -rf "$work"
mkdir -p "$samples" "$mnt" "$copy" "$zero"
load_before=$(cut -d ' ' -f 1-3 /proc/loadavg)

# --- measuring ---

drop() { "$read_file" drop "$@"; }
sample() { echo "$2" >>"$samples/$1"; } # NAME VALUE
# seconds NAME COMMAND...: run it and keep how long it took
seconds() {
	local name=$1 start=${EPOCHREALTIME/./}
	shift
	"$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; fail "failed: $*"; }
	sample "$name" "$(calc %.6f "$((${EPOCHREALTIME/./} - start)) / 1e6")"
}
# reads NAME HOW FILE...: what read_file measured; all of it is in $got too
reads() {
	local name=$1
	shift
	read -r -a got <<<"$("$read_file" "$@")"
	[ ${#got[@]} -gt 0 ] || fail "read_file failed: $*"
	sample "$name" "${got[0]}"
}

# of_processes MOUNTPOINT PATTERN: what is in /proc/PID/PATTERN of the processes that serve a mount
of_processes() {
	local p
	for p in /proc/[0-9]*; do
		case $(readlink "$p/exe") in
		"$bin/mount.bitdelta" | "$bin/bench/reference_server")
			# shellcheck disable=SC2086
			! tr '\0' '\n' <"$p/cmdline" | grep -qxF "$1" || cat "$p"/$2
			;;
		esac
	done 2>/dev/null
}
# Of a mount's processes: seconds on a processor, KiB
cpu_of() { of_processes "$1" "task/*/schedstat" | awk '{ s += $1 } END { printf "%.6f\n", s / 1e9 }'; }
memory_of() { of_processes "$1" status | awk -v k="$2:" '$1 == k { s += $2 } END { print s }'; }
# stat_of NAME: a number of the mount's stats.json; the totals come last
stat_of() { tr -d ' \t\n' <"$mnt/.bitdelta/stats.json" | tr ',{}' '\n' | sed -n "s/^\"$1\"://p" | tail -n 1; }
readahead_of() { echo "/sys/class/bdi/$(stat -c %Hd:%Ld "$1")/read_ahead_kb"; } # MOUNTPOINT: the file

mount_ours() { # BASE DELTAS
	"$bin/mount.bitdelta" "$1" "$mnt" -o "deltas=$2"
}
# With the threads of the mount on $mnt, and the readahead that was set there if it could be.
start_reference() { # MOUNTPOINT copy|zero FILE|SIZE
	local readahead i
	"$bin/bench/reference_server" "$1" "$(stat_of threads)" "$2" "$3" &
	references+=($!)
	for ((i = 0; i < 600; i++)); do
		! mounted "$1" || break
		sleep 0.1
	done
	stat "$1/0" >/dev/null || fail "the reference server does not come up"
	readahead=$(cat "$(readahead_of "$mnt")")
	[ "$(cat "$(readahead_of "$1")")" = "$readahead" ] || echo "$readahead" >"$(readahead_of "$1")"
}

# shellcheck source=tests/bench/rows.sh
. tests/bench/rows.sh
# shellcheck source=tests/bench/reader.sh
. tests/bench/reader.sh
# shellcheck source=tests/bench/many.sh
. tests/bench/many.sh

measure_import() {
	local i
	say "import against reading both inputs, $rounds rounds"
	for ((i = 0; i < rounds; i++)); do
		drop "$base" "$fine"
		seconds cat_cold both
		drop "$base" "$fine"
		seconds import_cold import_big "$work/y.bdelta"
		both
		seconds cat_hot both
		seconds import_hot import_big "$work/y.bdelta"
	done
	rm "$work/y.bdelta"
}
both() { cat "$base" "$fine" >/dev/null; }
import_big() { "$bin/bitdelta" import --steps 0 --base "$work/big/base" "$work/big/fine0" -o "$@"; }
report_import() {
	heading "Import / cat of both inputs" "MB/s" "ref MB/s" "ratio"
	speed "page cache hot" import_hot cat_hot $((2 * size))
	speed "cold" import_cold cat_cold $((2 * size))
}

measure_sign() {
	say "reconstruction against memcpy, one core"
	"$bin/bench/bench_sign" >"$work/sign"
}
measure_exact() {
	local pair
	say "exact tensors, one core"
	for pair in "tests/data/nano-llama2/base tests/data/nano-llama2/kjv" "${BENCH_PAIR:-}"; do
		[ -n "$pair" ] || continue
		echo "$pair"
		# shellcheck disable=SC2086 # two directories
		"$bin/bench/bench_exact" $pair
	done >"$work/exact"
}
report_exact() {
	printf '\nExact tensors (import --exact): sizes, and GB/s of their bytes on one core\n'
	cat "$work/exact"
}
report_sign() {
	printf '\nOne core, in memory: GB/s, and as a part of memcpy of the same kind\n'
	cat "$work/sign"
}

measure_pretrained() {
	local python=build/venv/test/bin/python name value
	pretrained_skipped="transformers is not in build/venv/test; tests/setup.sh test puts it there"
	[ -x $python ] && $python -c 'import transformers, torch' 2>/dev/null || return 0
	pretrained_rounds=$((rounds < 3 ? rounds : 3))
	say "from_pretrained, $pretrained_rounds rounds"
	if $python tests/bench/from_pretrained.py "$pretrained_rounds" "$read_file" "$work/big/fine0" "$mnt" x \
		"$base,$delta" "$bin/mount.bitdelta" "$work/big/base" "$mnt" -o "deltas=$delta" \
		>"$work/pretrained" 2>"$work/out"; then
		pretrained_skipped=
		while read -r name value; do
			sample "$name" "$value"
		done <"$work/pretrained"
	else
		pretrained_skipped="it failed: $(tail -n 1 "$work/out")"
	fi
	end_all
}
report_pretrained() {
	heading "from_pretrained, and every page of the weights: seconds" mounted plain ratio
	if [ -n "$pretrained_skipped" ]; then
		echo "skipped: $pretrained_skipped"
		return
	fi
	duration "both cached" pretrained_mount_cached pretrained_plain_cached
	duration "both cold (base and delta too)" pretrained_mount_cold pretrained_plain_cold
	duration "mounted with base cached / plain cold" pretrained_mount_base_cached pretrained_plain_cold
}

# --- what is measured on ---

layers=$(calc %d "($gib * 2^30 - 41e6) / 101.2e6 + 0.5")
[ "$layers" -ge 1 ] || layers=1
need=$(calc %d "($gib * 2.4 + 1) * 1048576")
have=$(df -Pk "$work" | awk 'NR == 2 { print $4 }')
[ "$have" -gt "$need" ] || fail "$((need / 1024)) MiB of disk are needed; set BENCH_GIB"
say "making two checkpoints of $gib GiB"
"$bin/bench/make_pair" "$work/big" 2048 "$layers" 1
base=$work/big/base/model.safetensors fine=$work/big/fine0/model.safetensors delta=$work/x.bdelta
size=$(stat -c %s "$fine")
import_big "$delta" >/dev/null
sync "$delta" # so that it can be dropped
delta_size=$(stat -c %s "$delta")

for part in $parts; do
	"measure_$part"
done

: >"$work/why"
{
	echo "bitdelta benchmark, $(date -u +%Y-%m-%d)"
	echo
	echo "cpu       $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
	echo "cores     $(nproc)"
	echo "memory    $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
	echo "kernel    $(uname -sr)"
	echo "libfuse   $(pkg-config --modversion fuse3)"
	echo "compiler  $(${CC:-gcc} --version | head -n 1)"
	echo "load      $load_before before, $(cut -d ' ' -f 1-3 /proc/loadavg) at the end"
	awk -v n="$(nproc)" '$1 > n / 2 { print "          (others were using the processors: even ratios are unreliable)" }' \
		<<<"$load_before"
	echo
	echo "Two BF16 checkpoints of $(calc %.2f "$size / 2^30") GiB, delta" \
		"$(calc "%.1f MiB (1/%.1f)" "$delta_size / 2^20, $size / $delta_size")." \
		"Medians of $rounds rounds in turns. Ratio = ours / reference."
	for part in $parts; do
		[ "$part" = sign ] || [ "$part" = exact ] || "report_$part"
	done
	if [ -s "$work/why" ]; then
		printf '\nGoals missed, and what was measured about the obstacle\n'
		cat "$work/why"
	fi
	[ ! -s "$work/sign" ] || report_sign
	[ ! -s "$work/exact" ] || report_exact
} >"$report.new"
sed 's/ *$//' "$report.new" >"$report"
rm "$report.new"
echo
cat "$report"
echo
say "written to $report"
