#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# golden.sh BUILD: the golden files, and the worked example of delta/FORMAT.md, through the programs,
# a mount and decode.py. (Unit tests read the same files through the library, and hold each bad one
# to its message.)
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/patience.sh
build=${1:-build/release}
status=0
python=build/venv/test/bin/python
[ -x $python ] || python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1
dir=$(mktemp -d) || exit 1
mounted=
cleanup() {
	[ -z "$mounted" ] || umount -l "$dir/mnt" 2>/dev/null || fusermount3 -uz "$dir/mnt"
	rm -rf "$dir"
}
trap cleanup EXIT

step() { # NAME COMMAND...
	local name=$1
	shift
	if "$@"; then
		echo "ok $name"
	else
		echo "not ok $name: $* gave $?"
		status=1
	fi
}

step "FORMAT.md has the worked example" $python tests/golden/example.py --check "$dir"
step "bitdelta verify" "$build/bitdelta" verify --base "$dir/base" "$dir/example.bdelta"
step "bitdelta export" "$build/bitdelta" export "$dir/example.bdelta" --base "$dir/base" -o "$dir/export"
step "the export is what the page says" diff -r "$dir/expected" "$dir/export"
step "decode.py" $python tests/loaders/decode.py "$dir/example.bdelta" "$dir/base" "$dir/decoded"
step "decode.py's output is what the page says" diff -r "$dir/expected" "$dir/decoded"

for generator in tests/golden/make_*.py; do
	step "$(basename "$generator") --check" $python "$generator" --check
done

golden=tests/golden/bdelta
mkdir "$dir/good" "$dir/mnt" "$dir/nothing"
expected() { # an empty directory cannot be committed
	if [ -e "$golden/$1.expected" ]; then
		echo "$golden/$1.expected"
	else
		echo "$dir/nothing"
	fi
}
for delta in "$golden"/good-*.bdelta; do
	name=$(basename "$delta" .bdelta)
	step "$name: bitdelta verify" "$build/bitdelta" verify --base $golden/base "$delta"
	step "$name: bitdelta export" "$build/bitdelta" export "$delta" --base $golden/base -o "$dir/$name.export"
	step "$name: the export is as expected" diff -r "$(expected "$name")" "$dir/$name.export"
	step "$name: decode.py" $python tests/loaders/decode.py "$delta" $golden/base "$dir/$name.decoded"
	step "$name: decode.py's output is as expected" diff -r "$(expected "$name")" "$dir/$name.decoded"
	cp "$delta" "$dir/good/"
done
step "mount of all good ones" "$build/mount.bitdelta" $golden/base "$dir/mnt" -o "deltas=$dir/good"
mounted=yes
for delta in "$golden"/good-*.bdelta; do
	name=$(basename "$delta" .bdelta)
	step "$name: the mount is as expected" diff -r "$(expected "$name")" "$dir/mnt/$name"
done
step "umount" "$build/bitdelta" umount "$dir/mnt" && mounted=

# Refused, with exit status 1 and one line that names the program: neither taken nor a crash.
for delta in "$golden"/bad-*.bdelta; do
	message=$(in_time 20 "$build/bitdelta" verify --base $golden/base "$delta" 2>&1 >/dev/null)
	found=$?
	if [ $found = 1 ] && [[ $message == "bitdelta verify: "* ]]; then
		echo "ok $(basename "$delta" .bdelta): refused"
	else
		echo "not ok $(basename "$delta" .bdelta): exit status $found: $message"
		status=1
	fi
done
exit $status
