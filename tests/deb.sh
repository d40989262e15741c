#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# deb.sh: build the Debian packages, ask lintian, install them in a fresh minimal system, mount from its
# fstab, read with the library, and remove them again.
#
# Needs root, debootstrap, debhelper, lintian and the package sources; skips where one is missing. What is
# mounted and started lives in namespaces of its own, and ends with them.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
ok() { echo "ok $1"; }
bad() { echo "not ok $1"; status=1; }
skip() { echo "skip deb: $1"; exit 0; }
# check NAME COMMAND...: what the command says explains a failure
check() {
	local name=$1 said
	shift
	if said=$("$@" 2>&1); then ok "$name"; else bad "$name: ${said//$'\n'/; }"; fi
}

if [ "${1:-}" != inside ]; then
	[ "$(id -u)" = 0 ] || skip "only root can make a fresh system"
	for c in debootstrap dh lintian dpkg-buildpackage unshare; do
		command -v $c >/dev/null || skip "$c is not installed"
	done
	[ -c /dev/fuse ] || skip "no /dev/fuse"
	unshare -mpf true 2>/dev/null || skip "no namespaces can be made here"

	tmp=$(mktemp -d) || exit 1
	trap 'rm -rf --one-file-system "$tmp"' EXIT
	mount-tools/debian/build.sh "$tmp/deb" >"$tmp/log" 2>&1 || { cat "$tmp/log"; bad "make deb"; exit 1; }
	ok "make deb: $(cd "$tmp/deb" && echo *.deb)"
	# Once more, elsewhere, in another zone, as somebody else would; meanwhile the network is busy.
	(umask 077; TZ=Pacific/Kiritimati LC_ALL=C exec mount-tools/debian/build.sh "$tmp/a-longer-path/again") \
		>"$tmp/again.log" 2>&1 &
	again=$!
	said=$(lintian --allow-root --fail-on error,warning "$tmp"/deb/*.changes 2>&1)
	lintian=$?
	[ -z "$said" ] || echo "$said"
	if [ $lintian = 0 ]; then ok "lintian has no errors and no warnings"; else bad "lintian"; fi

	. tests/tree.sh
	# That of this machine, whose libraries the packages were built for
	suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$suite" ] || skip "this system does not say its suite"
	tree_tarball "$suite"
	made=$?
	wait $again || cat "$tmp/again.log"
	# shellcheck disable=SC2016 # for the inner shell
	check "a second build gives the same packages" sh -c \
		'cd "$1/deb" && for f in *.deb; do cmp "$f" "../a-longer-path/again/$f" || exit 1; done' - "$tmp"
	[ $made = 0 ] || skip "debootstrap cannot make a tree of $suite"
	unshare -mpf --kill-child --mount-proc --propagation private bash tests/deb.sh inside "$tmp" || status=1
	exit $status
fi

tmp=$2
tree=$tmp/tree
. tests/tree.sh
tree_tarball "$(. /etc/os-release && echo "$VERSION_CODENAME")" || exit 1
tree_unpack "$tree" || exit 1
tree_mount "$tree" || exit 1
run() { tree_run "$tree" "$@"; }
apt() { run env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@"; }
apt update >"$tmp/log" 2>&1 || { tail -n 3 "$tmp/log"; skip "the package sources cannot be reached"; }

mkdir "$tree/root/deb"
cp "$tmp"/deb/*.deb "$tree/root/deb/"
mapfile -t packages < <(cd "$tree" && printf '/%s\n' root/deb/*.deb)
if ! apt install --no-install-recommends "${packages[@]}" >"$tmp/log" 2>&1; then
	tail -n 20 "$tmp/log"
	bad "installing"
	exit 1
fi
ok "the packages install with what they depend on"
run dpkg -L bitdelta libbitdelta0 libbitdelta-dev | sort -u >"$tmp/files"

# --- a day in fstab ---

mkdir -p "$tree"/{srv/models,srv/deltas,mnt/models}
cp -r tests/data/nano-llama2/* "$tree/srv/models/"
check "import" run bitdelta import -q --steps 0 --base /srv/models/base /srv/models/kjv -o /srv/deltas/kjv.bdelta
check "export" run bitdelta export -q /srv/deltas/kjv.bdelta --base /srv/models/base -o /srv/kjv
sed -n '/^\/srv.*nofail/p' "$tree/usr/share/doc/bitdelta/examples/fstab" |
	sed 's|/srv/models/[^ ]*|/srv/models/base|' >"$tree/etc/fstab"
mounts() { grep -c " $tree/mnt/models fuse.bitdelta " /proc/self/mounts; }
check "mount -a mounts the example's line of fstab" run mount -a
run mount -a
if [ "$(mounts)" = 1 ]; then ok "mount -a mounts it once"; else bad "mount -a: $(mounts) mounts"; fi
check "what is mounted equals an export" run diff -r /mnt/models/kjv /srv/kjv
check "another user reads it" run setpriv --reuid 65534 --regid 65534 --clear-groups \
	cmp /mnt/models/kjv/config.json /srv/models/kjv/config.json
check "umount" run umount /mnt/models
check "mount -t fuse.bitdelta" run mount -t fuse.bitdelta /srv/models/base /mnt/models -o deltas=/srv/deltas
check "umount -a -t fuse.bitdelta" run umount -a -t fuse.bitdelta
[ "$(mounts)" = 0 ] || bad "something is still mounted"

# --- the library ---

lib=$(run sh -c 'dirname /usr/lib/*/libbitdelta.so.0')
export PKG_CONFIG_LIBDIR=$tree$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tree
# shellcheck disable=SC2046 # flags
check "the packaged example compiles" "${CC:-gcc}" -Wall -Werror \
	"$tree/usr/share/doc/libbitdelta-dev/examples/example.c" $(pkg-config --cflags --libs libbitdelta) \
	-Wl,--allow-shlib-undefined -o "$tree/root/example"
lines=$(run /root/example /srv/models/base /srv/deltas/kjv.bdelta | wc -l)
if [ "$lines" -gt 10 ]; then ok "it lists $lines tensors"; else bad "it lists $lines tensors"; fi
check "it reads a tensor" run sh -c \
	'/root/example /srv/models/base /srv/deltas/kjv.bdelta model.norm.weight | grep -q .'

# --- away again ---

# A mount that outlives the package must still answer and unmount.
check "mounted while the package goes" run mount /mnt/models
if ! apt purge bitdelta libbitdelta0 libbitdelta-dev >"$tmp/log" 2>&1; then
	tail -n 20 "$tmp/log"
	bad "purging"
fi
check "the mount is still good" run cmp /mnt/models/kjv/model.safetensors /srv/kjv/model.safetensors
check "and unmounts" run umount /mnt/models
left=$(while read -r f; do
	[ -d "$tree$f" ] && [[ $f != *bitdelta* ]] && continue
	[ ! -e "$tree$f" ] && [ ! -L "$tree$f" ] || echo "$f"
done <"$tmp/files")
if [ -z "$left" ]; then
	ok "nothing of the $(wc -l <"$tmp/files") paths is left"
else
	bad "left: ${left//$'\n'/ }"
fi
exit $status
