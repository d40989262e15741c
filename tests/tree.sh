# SPDX-License-Identifier: Apache-2.0
# tree.sh: minimal systems of Debian or Ubuntu to run things in; sourced by fresh.sh and deb.sh.
#
# Needs root and debootstrap. The first tree of a suite is kept as a tarball in FRESH_DIR (build/fresh).
# FRESH_MIRROR: default is the first of this machine's sources. Functions return 1 and say why on stderr.
# shellcheck shell=bash
tree_dir=$(realpath -m "${FRESH_DIR:-build/fresh}")

# tree_tarball SUITE: make the tarball of a suite where there is none; sets tree_tar
tree_tarball() {
	local suite=$1 mirror new
	tree_tar=$tree_dir/$suite.tar
	[ ! -e "$tree_tar" ] || return 0
	mirror=${FRESH_MIRROR:-$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' \
		/etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list \
		2>/dev/null | head -n 1)}
	[ -n "$mirror" ] || { echo "no mirror found in /etc/apt; set FRESH_MIRROR" >&2; return 1; }
	mkdir -p "$tree_dir"
	new=$(mktemp -d -p "$tree_dir") || return 1
	if debootstrap --variant=minbase "$suite" "$new/tree" "$mirror" >"$tree_dir/debootstrap.log" 2>&1 &&
		tar -C "$new/tree" -cf "$new/tar" .; then
		mv "$new/tar" "$tree_tar"
	else
		tail "$tree_dir/debootstrap.log" >&2
	fi
	rm -rf --one-file-system "$new"
	[ -e "$tree_tar" ]
}

# tree_copy TREE PATHS...: lay files of this machine into a tree
tree_copy() {
	local tree=$1 p
	shift
	for p in "$@"; do
		[ -e "$p" ] || continue
		mkdir -p "$tree$(dirname "$p")"
		rm -rf "${tree:?}$p"
		cp -aL "$p" "$tree$p"
	done
}

# tree_unpack TREE: a new tree that reaches the package sources of this machine
tree_unpack() {
	local tree=$1
	mkdir -p "$tree"
	tar -C "$tree" -xf "$tree_tar" || return 1
	rm -f "$tree/etc/apt/sources.list"
	tree_copy "$tree" /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d \
		/etc/apt/trusted.gpg.d /etc/apt/keyrings /usr/share/keyrings /etc/resolv.conf /etc/hosts \
		/etc/pip.conf /root/.config/pip /root/.pip
	# Not at its usual place: installing ca-certificates there would replace it.
	mkdir -p "$tree/etc/ssl"
	[ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
		cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/fresh.crt"
}

# tree_mount TREE: the system's own file systems
tree_mount() {
	local tree=$1
	mount --bind /proc "$tree/proc" && mount --bind /sys "$tree/sys" && mount --bind /dev "$tree/dev" &&
		mount --bind /dev/pts "$tree/dev/pts" && mount -t tmpfs tmpfs "$tree/dev/shm"
}

tree_environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8)
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || tree_environment+=(PIP_CERT=/etc/ssl/fresh.crt)
while IFS= read -r -d '' v; do
	case $v in
	PIP_INDEX_URL=* | PIP_EXTRA_INDEX_URL=* | PIP_DEFAULT_TIMEOUT=* | *_proxy=* | *_PROXY=*)
		tree_environment+=("$v")
		;;
	esac
done < <(env -0)

# tree_run TREE COMMAND...: in the tree, with a plain environment
tree_run() {
	local tree=$1
	shift
	env -i "${tree_environment[@]}" chroot "$tree" "$@" </dev/null
}
