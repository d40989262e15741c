#!/bin/bash
# fresh.sh [demo | check | COMMAND...]: run the README's commands in a fresh minimal Debian tree.
#
# By hand, as root, on Debian with debootstrap: makes the tree below /tmp (kept as a tarball for the next
# time), lays the working tree in it without build/, and runs both commands there, one after the other in
# separate fresh trees. Uses the package sources, proxies and certificates of this machine.
# FRESH_SUITE=bookworm, FRESH_MIRROR= (default: from this machine's sources), FRESH_DIR=/tmp/bitdelta-fresh.
set -eu
cd "$(dirname "$0")/.."
source=$PWD
suite=${FRESH_SUITE:-bookworm}
dir=${FRESH_DIR:-/tmp/bitdelta-fresh}
tree=$dir/tree
tarball=$dir/$suite.tar

[ "$(id -u)" = 0 ] || { echo "fresh: must be root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "fresh: debootstrap is missing" >&2; exit 1; }

remove_tree() {
	local m
	awk -v t="$tree/" 'index($2 "/", t) == 1 { print $2 }' /proc/self/mounts | tac | while read -r m; do
		umount "$m" 2>/dev/null || umount -l "$m"
	done
	if grep -qE " $tree[/ ]" /proc/self/mounts; then
		echo "fresh: something is still mounted below $tree" >&2
		exit 1
	fi
	rm -rf --one-file-system "$tree"
}
trap remove_tree EXIT
trap 'exit 130' INT TERM
remove_tree
mkdir -p "$dir"

if [ ! -e "$tarball" ]; then
	mirror=${FRESH_MIRROR:-$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' \
		/etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list \
		2>/dev/null | head -n 1)}
	[ -n "$mirror" ] || { echo "fresh: no mirror found in /etc/apt; set FRESH_MIRROR" >&2; exit 1; }
	echo "fresh: debootstrap $suite"
	debootstrap --variant=minbase "$suite" "$tree" "$mirror" >"$dir/debootstrap.log" 2>&1 || {
		tail "$dir/debootstrap.log" >&2
		exit 1
	}
	tar -C "$tree" -cf "$tarball.new" .
	mv "$tarball.new" "$tarball"
	remove_tree
fi

# What the machine needs to reach its package sources
copy() {
	local p
	for p in "$@"; do
		[ -e "$p" ] || continue
		mkdir -p "$tree$(dirname "$p")"
		rm -rf "${tree:?}$p"
		cp -aL "$p" "$tree$p"
	done
}
environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8)
while IFS= read -r -d '' v; do
	case $v in
	PIP_INDEX_URL=* | PIP_EXTRA_INDEX_URL=* | PIP_DEFAULT_TIMEOUT=* | *_proxy=* | *_PROXY=*) environment+=("$v") ;;
	esac
done < <(env -0)
# Not at its usual place: installing ca-certificates there would replace it.
certificates=/etc/ssl/certs/ca-certificates.crt
[ ! -e $certificates ] || environment+=(PIP_CERT=/etc/ssl/fresh.crt)

prepare() {
	remove_tree
	mkdir -p "$tree"
	tar -C "$tree" -xf "$tarball"
	rm -f "$tree/etc/apt/sources.list"
	copy /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/apt/trusted.gpg.d \
		/etc/apt/keyrings /usr/share/keyrings /etc/resolv.conf /etc/hosts \
		/etc/pip.conf /root/.config/pip /root/.pip
	mkdir -p "$tree/etc/ssl"
	[ ! -e $certificates ] || cp -L $certificates "$tree/etc/ssl/fresh.crt"
	mount --bind /proc "$tree/proc"
	mount --bind /sys "$tree/sys"
	mount --bind /dev "$tree/dev"
	mount --bind /dev/pts "$tree/dev/pts"
	mount -t tmpfs tmpfs "$tree/dev/shm"
	mkdir -p "$tree/root/bitdelta"
	git -C "$source" ls-files -z -co --exclude-standard |
		tar -C "$source" --null --ignore-failed-read -T - -cf - | tar -C "$tree/root/bitdelta" -xf -
}

# inside COMMAND...: what a person types on the fresh system
inside() {
	local start=$SECONDS status=0
	prepare
	echo "fresh: $suite: $*"
	env -i "${environment[@]}" chroot "$tree" sh -c \
		"apt-get -q update >/dev/null && cd /root/bitdelta && $*" </dev/null || status=$?
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
