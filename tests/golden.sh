#!/bin/bash
# golden.sh BUILD: the worked example of delta/FORMAT.md through every reader there is.
#
# tests/golden/example.py builds it by hand and holds the page to it. The golden good and bad files
# are read by unit tests (tests/unit/test_golden_*.c).
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/release}
status=0
python=build/venv/test/bin/python
[ -x $python ] || python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

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
exit $status
