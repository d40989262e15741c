#!/bin/bash
# run.sh BUILD: unmodified loaders on a mounted directory, and the independent decoder.
#
# Needs build/venv/test (tests/setup.sh test) and /dev/fuse. Prints steps for tests/check.sh.
set -u
build=$(realpath "${1:-build/release}")
here=$(cd "$(dirname "$0")" && pwd)
data=$here/../data/nano-llama2
python=$here/../../build/venv/test/bin/python
[ -x "$python" ] || { echo "not ok loaders: run tests/setup.sh test first"; exit 1; }
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

work=$(mktemp -d) || exit 1
mounted=
cleanup() {
	[ -z "$mounted" ] || "$build/bitdelta" umount "$work/mnt" || umount -l "$work/mnt"
	rm -rf "$work"
}
trap cleanup EXIT
status=0

# must NAME COMMAND...: a step without which the others make no sense
must() {
	local name=$1
	shift
	if "$@"; then
		echo "ok $name"
	else
		echo "not ok $name: $* gave $?"
		exit 1
	fi
}

mkdir "$work/mnt"
must import "$build/bitdelta" import --base "$data/base" "$data/kjv" -o "$work/kjv.bdelta"
must export "$build/bitdelta" export "$work/kjv.bdelta" --base "$data/base" -o "$work/export"
must mount "$build/mount.bitdelta" "$data/base" "$work/mnt" -o "deltas=$work/kjv.bdelta"
mounted=yes
kjv=$work/mnt/kjv

must "mounted equals exported" diff -r "$kjv" "$work/export"
must "decode.py runs" "$python" "$here/decode.py" "$work/kjv.bdelta" "$data/base" "$work/decoded"
must "decode.py equals mounted" diff -r "$work/decoded" "$kjv"

"$python" "$here/test_safetensors.py" "$kjv" "$work/export" || status=1
"$python" "$here/test_transformers.py" "$kjv" "$work/export" "$data/kjv" || status=1
mkdir "$work/variants"
"$python" "$here/test_variants.py" "$build" "$work/variants" || status=1

must umount "$build/bitdelta" umount "$work/mnt"
mounted=
exit $status
