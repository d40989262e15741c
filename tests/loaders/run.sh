#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
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
cleanup() {
	local m
	for m in mnt models hub; do
		! mountpoint -q "$work/$m" || "$build/bitdelta" umount "$work/$m" || umount -l "$work/$m"
	done
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
must import "$build/bitdelta" import --steps 0 --base "$data/base" "$data/kjv" -o "$work/kjv.bdelta"
must export "$build/bitdelta" export "$work/kjv.bdelta" --base "$data/base" -o "$work/export"
must mount "$build/mount.bitdelta" "$data/base" "$work/mnt" -o "deltas=$work/kjv.bdelta"
kjv=$work/mnt/kjv

must "mounted equals exported" diff -r "$kjv" "$work/export"
must "decode.py runs" "$python" "$here/decode.py" "$work/kjv.bdelta" "$data/base" "$work/decoded"
must "decode.py equals mounted" diff -r "$work/decoded" "$kjv"

"$python" "$here/test_safetensors.py" "$kjv" "$work/export" || status=1
"$python" "$here/test_transformers.py" "$kjv" "$work/export" "$data/kjv" || status=1
mkdir "$work/variants"
"$python" "$here/test_variants.py" "$build" "$work/variants" || status=1

must umount "$build/bitdelta" umount "$work/mnt"

# Models of many architectures, all in one mount, with a base each; and the same as a cache of the hub.
mkdir "$work/made" "$work/deltas" "$work/acme" "$work/truth" "$work/models" "$work/hub"
must "make models" "$python" "$here/make_models.py" "$work/made" "$data/base/tokenizer.json"
bases=
for d in "$work/made"/*; do
	name=$(basename "$d")
	must "import $name" "$build/bitdelta" import -q --steps 0 --base "$d/$name-base" "$d/$name" -o "$work/deltas/$name.bdelta"
	must "export $name" "$build/bitdelta" export -q "$work/deltas/$name.bdelta" --base "$d/$name-base" -o "$work/truth/$name"
	ln "$work/deltas/$name.bdelta" "$work/acme/acme--$name.bdelta"
	bases=$bases,base=$d/$name-base
done
must "mount models" "$build/mount.bitdelta" none "$work/models" -o "deltas=$work/deltas$bases"
must "mounted models equal exported" diff -r "$work/truth" "$work/models"
for name in qwen2 moe neox; do
	"$python" "$here/test_safetensors.py" "$work/models/$name" "$work/truth/$name" || status=1
done
"$python" "$here/test_models.py" "$work/models" "$work/truth" "$work/made" || status=1
must "umount models" "$build/bitdelta" umount "$work/models"

must "mount as a cache" "$build/mount.bitdelta" none "$work/hub" -o "deltas=$work/acme$bases,layout=hub,show_base"
HF_HUB_CACHE=$work/hub "$python" "$here/test_hub.py" "$work/hub" "$work/truth" || status=1
must "umount the cache" "$build/bitdelta" umount "$work/hub"
exit $status
