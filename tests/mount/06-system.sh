#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 06-system.sh: installed: mount(8), fstab, fusermount3, another mount namespace, and an ordinary user.
. "$(dirname "$0")/lib.sh"

import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
B=$DATA/base
K=$W/deltas/kjv.bdelta
mkdir "$M"

# --- mount(8) finds its helpers in /sbin ---

if [ -e /sbin/mount.bitdelta ] || [ -e /sbin/mount.fuse.bitdelta ]; then
	skip "mount -t" "/sbin/mount.bitdelta is there already, perhaps of another version"
elif ! cp "$MOUNT" /sbin/mount.bitdelta 2>/dev/null; then
	skip "mount -t" "/sbin cannot be written"
else
	trap 'rm -f /sbin/mount.bitdelta /sbin/mount.fuse.bitdelta; clean_up' EXIT
	ln -s mount.bitdelta /sbin/mount.fuse.bitdelta
	check "mount -t bitdelta" mount -t bitdelta "$B" "$M" -o "deltas=$K"
	check "contents" diff -r "$W/truth/kjv" "$M/kjv"
	same "mount shows it" "$B on $M type fuse.bitdelta" \
		"$(mount | grep " $M " | sed 's/ (.*//')"
	check "umount" umount "$M"
	check "mount -t fuse.bitdelta" mount -t fuse.bitdelta "$B" "$M" -o "ro,deltas=$K,nofail"
	check "contents again" diff -r "$W/truth/kjv" "$M/kjv"
	check "fusermount3 -u" fusermount3 -u "$M"
	check "mount -r -v -o options" mount -r -v -t bitdelta "$B" "$M" \
		-o "rw,noatime,user,_netdev,umask=077" -o "deltas=\"$K\""
	same "umask" 400 "$(stat -c %a "$M/kjv/config.json")"
	check "umount again" umount "$M"
	refuses "mount passes the message and status on" 32 'nowhere.bdelta' \
		mount -t bitdelta "$B" "$M" -o "deltas=$W/nowhere.bdelta"
	refuses "mount passes usage errors on" 1 'unknown option "fancy"' \
		mount -t bitdelta "$B" "$M" -o "deltas=$K,fancy"

	# fstab writes a space as \040; a second mount -a must see that it is mounted.
	mkdir "$W/my models"
	echo "$B $(sed 's/ /\\040/g' <<<"$W/my models") bitdelta deltas=$K,nofail,noauto,x-gvfs-hide 0 0" \
		>"$W/fstab"
	check "mount by fstab" mount -T "$W/fstab" "$W/my models"
	check "contents by fstab" diff -r "$W/truth/kjv" "$W/my models/kjv"
	sed -i 's/noauto,//' "$W/fstab"
	check "mount -a" mount -a -T "$W/fstab"
	same "mount -a mounts once" 1 "$(grep -c 'my.040models' /proc/self/mountinfo)"
	check "umount by fstab" umount "$W/my models"
	check "mount -a again" mount -a -T "$W/fstab"
	same "mount -a mounted it" kjv "$(ls "$W/my models")"
	check "umount after mount -a" umount "$W/my models"

	# Another mount namespace. (None can be made where / is not a mount, as in a chroot.)
	unshare -m --propagation private sleep 300 &
	other=$!
	pids+=("$other")
	wait_for 30 bash -c '! [ -e /proc/$1 ] ||
		[ "$(readlink /proc/$1/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]' - $other
	if is_alive "$other" && mount -N "$other" -t tmpfs none "$W/my models" 2>/dev/null; then
		check "mount -N" mount -N "$other" -t bitdelta "$B" "$M" -o "deltas=$K"
		same "mount -N: not here" "" "$(ls "$M")"
		check "mount -N: there" nsenter -t "$other" -m diff -r "$W/truth/kjv" "$M/kjv"
		check "mount -N: umount there" nsenter -t "$other" -m umount "$M"
	else
		skip "mount -N" "this mount(8) or kernel cannot"
	fi
	kill "$other" 2>/dev/null
	wait "$other" 2>/dev/null
fi

# --- an ordinary user, who needs fusermount3 and an accessible /dev/fuse ---

# In a mount namespace of its own, so that the mode of /dev/fuse changes for nobody else, and with
# all files below a directory that the user can reach wherever the source tree is.
cat >"$W/user.sh" <<'EOF'
. "$here/lib.sh"
trap - EXIT
rmdir "$W"
W=/mnt
mount -t tmpfs -o mode=755 none $W && mknod -m 666 $W/fuse c 10 229 &&
	mount --bind $W/fuse /dev/fuse || exit 9
{ sed '/^user_allow_other/d' /etc/fuse.conf >$W/fuse.conf && chmod 644 $W/fuse.conf; } 2>/dev/null
mount --bind $W/fuse.conf /etc/fuse.conf || exit 9
mkdir $W/bin $W/mnt $W/roots
cp "$BUILD/mount.bitdelta" "$BUILD/bitdelta" $W/bin && cp -r "$DATA/base" "$OUTSIDE/truth" $W &&
	install -m 644 "$OUTSIDE/deltas/kjv.bdelta" $W || exit 9
chown 65534:65534 $W/mnt
MOUNT=$W/bin/mount.bitdelta
user=(setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=$W)
B=$W/base
K=$W/kjv.bdelta
M=$W/mnt
cd /
"${user[@]}" bash -c ': <>/dev/fuse' 2>/dev/null && "${user[@]}" "$MOUNT" --version >/dev/null || exit 9

check "user: mount" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K"
check "user: contents" "${user[@]}" diff -r "$W/truth/kjv" "$M/kjv"
same "user: owns the files" 65534 "$("${user[@]}" stat -c %u "$M/kjv/config.json")"
refuses "user: not even root may look" '[12]' 'Permission denied' ls "$M"
for o in ro nosuid nodev noexec; do
	check "user: $o" grep -qw "$o" <<<"$(findmnt -no OPTIONS "$M")"
done
exec 7< <("${user[@]}" bash -c 'exec 8<"$1/kjv/config.json"; echo; exec sleep 300' - "$M")
holder=$!
read -r -u 7 _
refuses "user: umount, in use" '[1-9][0-9]*' 'in use' "${user[@]}" "$W/bin/bitdelta" umount "$M"
kill "$holder"
check "user: umount" wait_for 30 "${user[@]}" "$W/bin/bitdelta" umount "$M"
refuses "user: allow_other" 32 'user_allow_other in /etc/fuse.conf' \
	"${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K,allow_other"
refuses "user: mount point of somebody else" 32 'cannot mount on' \
	"${user[@]}" "$MOUNT" "$B" "$W/roots" -o "deltas=$K"
check "user: mount once more" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K"
pid=$(daemon_of "$M")
kill -9 "$pid"
wait_for 30 has_ended "$pid"
refuses "user: a dead mount gives errors" 1 'not connected|connection abort' "${user[@]}" cat "$M/kjv/tokenizer.json"
check "user: a dead mount is replaced" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K"
check "user: contents after that" "${user[@]}" diff -r "$W/truth/kjv" "$M/kjv"
same "user: mounted once" 1 "$(grep -c " $M " /proc/self/mountinfo)"
pid=$(daemon_of "$M")
same "user: no new privileges" 1 "$(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")"
kill "$pid"
wait_for 30 has_ended "$pid"
check "user: SIGTERM unmounts" bash -c '! grep " $1 " /proc/self/mountinfo' - "$M"
check "user: mount and kill" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K"
pid=$(daemon_of "$M")
kill -9 "$pid"
wait_for 30 has_ended "$pid"
check "user: umount a dead one" "${user[@]}" "$W/bin/bitdelta" umount "$M"
refuses "user: setuid=" 32 'only root' "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K,setuid=root"
check "user: drop_privileges" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K,drop_privileges"
check "user: drop_privileges: contents" "${user[@]}" diff -r "$W/truth/kjv" "$M/kjv"
check "user: drop_privileges: umount" "${user[@]}" fusermount3 -u "$M"
echo user_allow_other >>/etc/fuse.conf 2>/dev/null
check "user: allow_other with user_allow_other" "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K,allow_other"
check "user: others may look" diff -r "$W/truth/kjv" "$M/kjv"
check "user: umount with allow_other" "${user[@]}" fusermount3 -u "$M"

# What stands in the way, and what helps. `bitdelta doctor` says the same.
hinders() { # NAME MESSAGE COMMAND...
	local name=$1 message=$2
	shift 2
	refuses "user: $name" 32 "^mount.bitdelta: cannot mount on $M: $message" \
		"$@" "$MOUNT" "$B" "$M" -o "deltas=$K"
	check "user: $name: doctor says so" grep -qE "^problem +${message%%;*}" <("$@" "$W/bin/bitdelta" doctor)
}
fusermount=$(realpath "$(command -v fusermount3)")
hinders "no new privileges" "fusermount3: .* no_new_privs; what helps: .*no-new-privileges" "${user[@]}" \
	setpriv --no-new-privs
install -m 755 "$fusermount" $W/fusermount3
must "${user[@]}" "$MOUNT" "$B" "$M" -o "deltas=$K"
must mount --bind $W/fusermount3 "$fusermount"
refuses "user: umount without setuid" 1 \
	"cannot unmount $M: fusermount3: .* is not setuid root, .*; what helps: .*package fuse3" \
	"${user[@]}" "$W/bin/bitdelta" umount "$M"
must umount "$M"
hinders "fusermount3 without setuid" \
	"fusermount3: $fusermount is not setuid root, .*; what helps: .*chmod 4755.* package fuse3" "${user[@]}"
must umount "$fusermount"
must mount --bind /dev/null "$fusermount"
hinders "no fusermount3" "fusermount3: missing, .*; what helps: install the package fuse3" "${user[@]}"
must umount "$fusermount"
chmod 600 /dev/fuse
hinders "/dev/fuse of root alone" \
	"/dev/fuse: this user may not open it .mode 600.; what helps: as root: chmod 666 /dev/fuse" "${user[@]}"
finish
EOF
if ! command -v setpriv >/dev/null || ! command -v fusermount3 >/dev/null; then
	skip "an ordinary user" "setpriv or fusermount3 is missing"
elif ! unshare -m --propagation private true 2>/dev/null; then
	skip "an ordinary user" "no mount namespace can be made here"
else
	here=$here BUILD=$BUILD OUTSIDE=$W unshare -m --propagation private bash "$W/user.sh"
	case $? in
	0) ;;
	9) skip "an ordinary user" "no mount namespace with /dev/fuse for everybody can be made here" ;;
	*) failed=1 ;;
	esac
fi
finish
