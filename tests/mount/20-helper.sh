#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 20-helper.sh: what mount(8), fstab and autofs expect of a helper.
. "$(dirname "$0")/system.sh"

import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
B=$DATA/base
D=$W/dir
mkdir "$M" "$D"
cp "$W/deltas/kjv.bdelta" "$D"
why=$(install_helpers)
[ -z "$why" ] || { skip "mount(8)" "$why"; finish; }
MOUNT=$(realpath /sbin)/mount.bitdelta
has() { options_of "$M" | tr ',' '\n' | grep -qxF -- "$1"; }

# --- options ---
check "mount -t bitdelta" mount -t bitdelta "$B" "$M" -o \
	"deltas=$D,uid=nobody,gid=12345,fmask=0137,dmask=0027,allow_other,ro,nosuid,nodev,noexec,default_permissions,_netdev,nofail,user,x-mine=1"
same "owner by name, masks" "nobody 12345 440 nobody 750" \
	"$(stat -c '%U %g %a' "$M/kjv/config.json") $(stat -c '%U %a' "$M/kjv")"
for o in ro nosuid nodev noexec allow_other default_permissions; do
	check "$o" has "$o"
done
refuses "mounted already" 32 "already mounted on $M" mount -t bitdelta "$B" "$M" -o "deltas=$D"
same "mounted once" 1 "$(times_mounted "$M")"
check "umount" umount "$M"
same "dotted type" "fuse.bitdelta" "$(mount -t fuse.bitdelta "$B" "$M" -o "deltas=$D" && findmnt -no FSTYPE "$M")"
check "umount by type" umount -a -t fuse.bitdelta
check "umount by type unmounts" is_free "$M"
ln -s "$D" "$W/a,b c"
check "quotes and commas" mount -t bitdelta "$B" "$M" -o "ro,deltas=\"$W/a,b c\",umask=077"
same "umask" "400 700" "$(stat -c %a "$M/kjv/config.json") $(stat -c %a "$M/kjv")"
umount "$M"
check "a source that is no path" mount -t bitdelta none "$M" -o "base=$B,deltas=$D"
same "it is shown so" "none" "$(findmnt -no SOURCE "$M")"
check "contents" diff -r "$W/truth/kjv" "$M/kjv"
umount "$M"
refuses "none without a base" 1 'base=PATH' "$MOUNT" none "$M" -o "deltas=$D"
refuses "a user that is none" 1 'no such user' "$MOUNT" "$B" "$M" -o "deltas=$D,uid=no-such-user"
refuses "attr_timeout" 1 'not needed' "$MOUNT" "$B" "$M" -o "deltas=$D,attr_timeout=1"
refuses "layout" 1 'dirs or hub' "$MOUNT" "$B" "$M" -o "deltas=$D,layout=flat"
refuses "allow_other=1" 1 'has no value' "$MOUNT" "$B" "$M" -o "deltas=$D,allow_other=1"

# --- mount -f: fake ---
check "mount -f" in_time 60 mount -f -t bitdelta "$B" "$M" -o "deltas=$D"
check "mount -f does not mount" is_free "$M"
refuses "mount -f checks" 32 'nowhere' in_time 60 mount -f -t bitdelta "$B" "$M" -o "deltas=$W/nowhere"

# --- fstab ---
echo "$B $M bitdelta deltas=$D,allow_other,nofail,_netdev 0 0" >"$W/fstab"
for i in 1 2 3; do
	check "mount -a, time $i" mount -a -T "$W/fstab"
done
same "mount -a mounts once" 1 "$(times_mounted "$M")"
check "remount by fstab" mount -T "$W/fstab" -o remount "$M"
check "remount without options" "$MOUNT" "$B" "$M" -o remount
check "remount, repeating" mount -t fuse.bitdelta -o "remount,deltas=$D" "$B" "$M"
same "remount mounts nothing" 1 "$(times_mounted "$M")"
refuses "remount with another owner" '1|32' 'uid= cannot be changed' "$MOUNT" "$B" "$M" -o "remount,uid=77"
refuses "remount with other deltas" '1|32' 'deltas= cannot be changed' "$MOUNT" "$B" "$M" -o "remount,deltas=$W"
refuses "remount of another source" '1|32' 'the source cannot be changed' "$MOUNT" "$W" "$M" -o remount
check "contents after remounting" diff -r "$W/truth/kjv" "$M/kjv"
check "umount after remounting" umount "$M"
refuses "remount of nothing" 32 'nothing to remount' "$MOUNT" "$B" "$M" -o remount
mount -t tmpfs none "$M"
refuses "remount of something else" 32 'of type tmpfs' "$MOUNT" "$B" "$M" -o remount
umount "$M"
echo "$W/nowhere $M bitdelta deltas=$D,nofail 0 0" >"$W/fstab"
refuses "mount -a of what cannot be mounted" '[1-9][0-9]*' 'nowhere' mount -a -T "$W/fstab"

# --- autofs, which systemd uses for x-systemd.automount ---
mkdir "$W/auto"
text=$(in_time 120 python3 "$here/autofs.py" "$W/auto" "$W/auto/kjv/config.json" \
	mount -t bitdelta "$B" "$W/auto" -o "deltas=$D" 2>&1)
case $? in
0) same "automount" "$(cat "$W/truth/kjv/config.json")" "$text" ;;
77) skip "automount" "no autofs: $text" ;;
*) not_ok "automount" "$text" ;;
esac
while is_mounted "$W/auto"; do
	umount "$W/auto" || break
done
finish
