#!/bin/bash
# bench.sh: ratios taken in one run, printed and written to build/bench.txt. `make bench` builds
# what it needs.
#
# BENCH_GIB=1       size of each of the two checkpoints, which are made up in build/bench/
# BENCH_ROUNDS=3    every figure is the median of so many rounds, in which all kinds take turns
#
# Only ratios mean something on another machine: a busy neighbour or a slow disk moves both sides.
# "Cold" drops the page cache of the files concerned (posix_fadvise), nobody else's.
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C
gib=${BENCH_GIB:-1} rounds=${BENCH_ROUNDS:-3}
bin=$PWD/build/release
work=$PWD/build/bench
samples=$work/samples
mnt=$work/mnt
read_file=$bin/bench/read_file
report=build/bench.txt

cleanup() {
	! grep -qF " $mnt " /proc/self/mounts || "$bin/bitdelta" umount "$mnt" || umount -l "$mnt"
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
! grep -qF " $mnt " /proc/self/mounts || umount -l "$mnt"
rm -rf "$work"
mkdir -p "$samples" "$mnt"

need=$(awk -v g="$gib" 'BEGIN { printf "%d", g * 2.4 * 1048576 + 102400 }')
have=$(df -Pk "$work" | awk 'NR == 2 { print $4 }')
[ "$have" -gt "$need" ] || { echo "bench: $((need / 1024)) MiB of disk are needed; set BENCH_GIB" >&2; exit 1; }

echo "bench: making two checkpoints of $gib GiB"
"$bin/bench/make_pair" "$work" "$gib"
base=$work/base/model.safetensors fine=$work/fine/model.safetensors delta=$work/x.bdelta

# seconds NAME COMMAND...: run it and keep how long it took
seconds() {
	local name=$1 start=${EPOCHREALTIME/./}
	shift
	"$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; echo "bench: failed: $*" >&2; exit 1; }
	echo $((${EPOCHREALTIME/./} - start)) | awk '{ printf "%.6f\n", $1 / 1e6 }' >>"$samples/$name"
}
# reads NAME HOW FILE: what read_file measured
reads() {
	"$read_file" "$2" "$3" >"$work/out" || exit 1
	awk '{ print $1 }' "$work/out" >>"$samples/$1"
}
drop() { "$read_file" drop "$@"; }
both() { cat "$base" "$fine" >/dev/null; }

echo "bench: import against reading both inputs, $rounds rounds"
for ((i = 0; i < rounds; i++)); do
	drop "$base" "$fine"
	seconds cat_cold both
	drop "$base" "$fine"
	seconds import_cold "$bin/bitdelta" import --base "$work/base" "$work/fine" -o "$work/y.bdelta"
	both
	seconds cat_hot both
	seconds import_hot "$bin/bitdelta" import --base "$work/base" "$work/fine" -o "$delta"
	rm "$work/y.bdelta"
done

echo "bench: reading through the mount against a plain file of the same size, $rounds rounds"
"$bin/mount.bitdelta" "$work/base" "$mnt" -o "deltas=$delta"
mounted=$mnt/x/model.safetensors
for ((i = 0; i < rounds; i++)); do
	drop "$fine"
	reads plain_cold_read read "$fine"
	reads plain_hot_read read "$fine"
	reads plain_hot_mmap mmap "$fine"
	reads plain_direct direct "$fine"
	drop "$fine"
	reads plain_cold_mmap mmap "$fine"

	cat "$base" "$delta" >/dev/null
	drop "$mounted"
	reads mount_cold_read read "$mounted"
	reads mount_hot_read read "$mounted"
	reads mount_hot_mmap mmap "$mounted"
	reads mount_direct direct "$mounted"
	drop "$mounted"
	reads mount_cold_mmap mmap "$mounted"
	drop "$mounted" "$base" "$delta"
	reads mount_allcold_read read "$mounted"
done
size=$(stat -c %s "$fine") delta_size=$(stat -c %s "$delta")
"$bin/bitdelta" umount "$mnt"

echo "bench: reconstruction against memcpy, one core"
"$bin/bench/bench_sign" >"$work/sign"

median() { sort -n "$samples/$1" | awk '{ v[NR] = $1 } END { print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'; }
# row TEXT NAME REFERENCE BYTES: speed of NAME, and of NAME as a part of REFERENCE's speed
row() {
	awk -v t="$1" -v a="$(median "$2")" -v b="$(median "$3")" -v n="$4" 'BEGIN {
		printf "%-58s %8.0f %8.0f %7.2f\n", t, n / a / 1e6, n / b / 1e6, b / a }'
}

{
	echo "bitdelta benchmark, $(date -u +%Y-%m-%d)"
	echo
	echo "cpu      $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
	echo "cores    $(nproc)"
	echo "memory   $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
	echo "kernel   $(uname -sr)"
	echo "libfuse  $(pkg-config --modversion fuse3)"
	echo "compiler $(${CC:-gcc} --version | head -n 1)"
	echo "load     $(cut -d ' ' -f 1-3 /proc/loadavg) at the end"
	echo
	echo "Two BF16 checkpoints of $(awk -v n="$size" 'BEGIN { printf "%.2f GiB", n / 2^30 }'), delta" \
		"$(awk -v n="$delta_size" -v m="$size" 'BEGIN { printf "%.1f MiB (1/%.1f)", n / 2^20, m / n }')." \
		"Medians of $rounds rounds in turns. Ratio = ours / reference."
	echo
	printf '%-58s %8s %8s %7s\n' "" "MB/s" "ref MB/s" "ratio"
	row "import / cat of both inputs, page cache hot" import_hot cat_hot $((2 * size))
	row "import / cat of both inputs, cold" import_cold cat_cold $((2 * size))
	row "mount, first read (1 MiB read) / plain file hot" mount_cold_read plain_hot_read "$size"
	row "mount, first read (1 MiB read) / plain file cold" mount_cold_read plain_cold_read "$size"
	row "mount, first read, base and delta cold too / plain cold" mount_allcold_read plain_cold_read "$size"
	row "mount, first read by mmap / plain file by mmap hot" mount_cold_mmap plain_hot_mmap "$size"
	row "mount, first read by mmap / plain file by mmap cold" mount_cold_mmap plain_cold_mmap "$size"
	row "mount, second read / plain file hot" mount_hot_read plain_hot_read "$size"
	row "mount, second read by mmap / plain file by mmap hot" mount_hot_mmap plain_hot_mmap "$size"
	row "mount, O_DIRECT / plain file O_DIRECT" mount_direct plain_direct "$size"
	echo
	echo "One core, in memory: GB/s, and as a part of memcpy of the same kind"
	cat "$work/sign"
} >"$report.new"
mv "$report.new" "$report"
echo
cat "$report"
echo
echo "bench: written to $report"
