#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 43-containers.sh: mounts seen from containers, which are mount namespaces of their own: what a runtime does
# for `docker run -v DIR:DIR:rslave` and for `mountPropagation: HostToContainer` and `Bidirectional`.
. "$(dirname "$0")/lib.sh"

import "$DATA/base" "$DATA/kjv" kjv
host=$W/models # the directory that a container is given; the mount is below it
mkdir -p "$host/nano" "$W/inside"
if ! mount --bind "$host" "$host" || ! mount --make-shared "$host" ||
	! unshare --mount --propagation slave true 2>/dev/null; then
	skip "containers" "mount namespaces are not permitted"
	finish
fi

# container PROPAGATION: a process that lives in a namespace where $host is bound to $W/inside
container() {
	unshare --mount --propagation "$1" sleep 300 &
	pids+=($!)
	wait_for 10 grep -qx sleep "/proc/$!/comm" # its mounts are now as they will be
	must enter $! mount --rbind "$host" "$W/inside"
}
enter() { # PROCESS COMMAND...; --root and --wd: in a chroot its namespace would otherwise begin above it
	local p=$1
	shift
	nsenter --mount="/proc/$p/ns/mnt" --root="/proc/$p/root" --wd="/proc/$p/cwd" "$@"
}
leave() {
	kill "${pids[-1]}"
	wait "${pids[-1]}" 2>/dev/null
	unset 'pids[-1]'
}

container slave
early=${pids[-1]}
check "mount on the host" mount_at "$host/nano" "$DATA/base" "deltas=$W/deltas,allow_other"
check "rslave: a mount that came later is there" enter "$early" diff -r "$W/truth/kjv" "$W/inside/nano/kjv"
same "rslave: read by another user" "$(md5sum <"$W/truth/kjv/config.json")" "$(chmod 755 "$W"
	enter "$early" setpriv --reuid=65534 --regid=65534 --clear-groups cat "$W/inside/nano/kjv/config.json" | md5sum)"
check "umount on the host" unmount "$host/nano"
check "rslave: it went" enter "$early" test ! -e "$W/inside/nano/kjv"
check "mount again" mount_at "$host/nano" "$DATA/base" "deltas=$W/deltas,allow_other"
check "rslave: it came back" enter "$early" test -e "$W/inside/nano/kjv"
leave

container private
daemon=$(daemon_of "$host/nano")
check "private: a mount that was there is there" enter "${pids[-1]}" diff -r "$W/truth/kjv" "$W/inside/nano/kjv"
check "a container does not keep the host from unmounting" umount "$host/nano"
check "private: it keeps what it had" enter "${pids[-1]}" diff -r "$W/truth/kjv" "$W/inside/nano/kjv"
check "mount where a container still has the last one" mount_at "$host/nano" "$DATA/base" "deltas=$W/deltas"
check "umount again" umount "$host/nano"
leave
check "with the container its mount and the daemon end" wait_for 30 has_ended "$daemon"

# The daemon in a container, the readers outside.
container shared
daemon=${pids[-1]}
check "mount in a container" enter "$daemon" "$MOUNT" "$DATA/base" "$W/inside/nano" -o "deltas=$W/deltas,allow_other"
check "rshared: the host sees it" diff -r "$W/truth/kjv" "$host/nano/kjv"
container slave
check "rshared: another container sees it" enter "${pids[-1]}" diff -r "$W/truth/kjv" "$W/inside/nano/kjv"
leave
check "the daemon's process is stopped: SIGTERM" kill "$(stat_of "$host/nano" 's["pid"]')"
check "rshared: nothing stays on the host" wait_for 10 test ! -e "$host/nano/kjv"
leave
umount "$host"
finish
