#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# skips.sh BUILD: check.sh itself: where all scripts skip that should mount, it must fail in CI.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/release}
status=0

# Here /dev/fuse is a plain file.
hidden() {
	unshare -m --propagation private bash -c 'mount --bind /etc/passwd /dev/fuse && exec "$@"' - "$@"
}
if ! hidden true 2>/dev/null; then
	echo "skip skips: /dev/fuse cannot be hidden here"
	exit 0
fi
# expect NAME STATUS "LAST LINE (regular expression)" COMMAND...
expect() {
	local name=$1 want=$2 pattern=$3 said found
	shift 3
	said=$(hidden env -u MAKEFLAGS "$@" tests/check.sh mount "$build")
	found=$?
	if [ $found = "$want" ] && tail -n 1 <<<"$said" | grep -qxE "$pattern"; then
		echo "ok $name"
	else
		tail -n 5 <<<"$said" | sed 's/^/# /'
		echo "not ok $name: exit status $found"
		status=1
	fi
}
expect "nothing can be mounted: CI fails" 1 '0 passed, 1 failed, [0-9]+ skipped' CI=true
expect "nothing can be mounted: nobody expects it" 1 '0 passed, 0 failed, [0-9]+ skipped' -u CI
exit $status
