# SPDX-License-Identifier: Apache-2.0
# system.sh: for tests that need mount(8) to find its helper; source it instead of lib.sh.
#
# The test runs again in a mount namespace of its own, where /usr/sbin (or /sbin) is a directory of links
# to what is there, and the two helpers. Nothing outside sees any of it.
if [ -z "${IN_NAMESPACE:-}" ] && unshare -m --propagation private true 2>/dev/null; then
	IN_NAMESPACE=yes exec unshare -m --propagation private bash "$0"
fi
[ -z "${IN_NAMESPACE:-}" ] || umount -a -l -t fuse.bitdelta # of others, which we would keep alive
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# install_helpers: or says why not, in a substitution
install_helpers() {
	local sbin
	[ "${IN_NAMESPACE:-}" ] || { echo "no mount namespace can be made here"; return 1; }
	sbin=$(realpath /sbin)
	mkdir "$W/sbin" "$W/sbin.real"
	mount --bind "$sbin" "$W/sbin.real" &&
		find "$W/sbin.real" -mindepth 1 -maxdepth 1 ! -name 'mount.*bitdelta' \
			-exec ln -s -t "$W/sbin" {} + &&
		cp "$MOUNT" "$W/sbin/mount.bitdelta" && ln -s mount.bitdelta "$W/sbin/mount.fuse.bitdelta" &&
		mount --bind "$W/sbin" "$sbin" || { echo "$sbin cannot be replaced"; return 1; }
	MOUNT=$sbin/mount.bitdelta
}
is_mounted() { grep -qF " ${1// /\\040} " /proc/self/mountinfo; }
is_free() { ! is_mounted "$1"; }
times_mounted() { grep -cF " ${1// /\\040} " /proc/self/mountinfo; }
options_of() { findmnt -no OPTIONS "$1"; }
