#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fresh.sh [demo | check | COMMAND...]: run the README's commands in a fresh minimal Debian tree.
#
# By hand, as root, on Debian with debootstrap: makes a tree (tree.sh), lays the working tree in it without
# build/, and runs both commands there, one after the other in separate fresh trees. Uses the package
# sources, proxies and certificates of this machine.
# FRESH_SUITE=bookworm, FRESH_DIR=build/fresh, FRESH_MIRROR=
set -eu
cd "$(dirname "$0")/.."
source=$PWD
suite=${FRESH_SUITE:-bookworm}

[ "$(id -u)" = 0 ] || { echo "fresh: must be root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "fresh: debootstrap is missing" >&2; exit 1; }
. tests/tree.sh
tree=$tree_dir/tree

remove_tree() {
	local m
	awk -v t="$tree/" 'index($2 "/", t) == 1 { print $2 }' /proc/self/mounts | tac | while read -r m; do
		umount "$m" 2>/dev/null || umount -l "$m"
	done
	if grep -qE " ${tree}[/ ]" /proc/self/mounts; then
		echo "fresh: something is still mounted below $tree" >&2
		exit 1
	fi
	rm -rf --one-file-system "$tree"
}
trap remove_tree EXIT
trap 'exit 130' INT TERM
tree_tarball "$suite"

# inside COMMAND...: what a person types on the fresh system
inside() {
	local start=$SECONDS status=0
	remove_tree
	tree_unpack "$tree"
	tree_mount "$tree"
	mkdir -p "$tree/root/bitdelta"
	git -C "$source" ls-files -z -co --exclude-standard |
		tar -C "$source" --null --ignore-failed-read -T - -cf - | tar -C "$tree/root/bitdelta" -xf -
	echo "fresh: $suite: $*"
	tree_run "$tree" sh -c "apt-get -q update >/dev/null && cd /root/bitdelta && $*" || status=$?
	echo "fresh: $suite: $*: exit status $status after $((SECONDS - start)) s"
	return $status
}

make="apt-get -q install -y make >/dev/null && make"
case ${1:-both} in
both)
	inside "$make demo"
	inside "$make check"
	;;
demo | check) inside "$make $1" ;;
*) inside "$*" ;;
esac
