#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 01-basic.sh: what a mount looks like: names, sizes, bytes, attributes, many deltas.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

models odd files
import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
check "mount" mount_at "$M" "$DATA/base" "deltas=$W/deltas/kjv.bdelta"
check "it answers at once" test -f "$M/kjv/config.json"
same "one directory, named after the delta" kjv "$(ls -A "$M")"
same "the fine-tune's own files" "$(ls -A "$DATA/kjv")" "$(ls -A "$M/kjv")"
check "contents as exported" diff -r "$W/truth/kjv" "$M/kjv"
same "as many bytes as the original" "$(stat -c %s "$DATA/kjv/model.safetensors")" \
	"$(stat -c %s "$M/kjv/model.safetensors")"
for f in config.json tokenizer.json generation_config.json; do
	check "$f is the fine-tune's" cmp "$DATA/kjv/$f" "$M/kjv/$f"
done
same "type of the filesystem" fuse.bitdelta "$(findmnt -no FSTYPE "$M")"
same "source as given" "$DATA/base" "$(findmnt -no SOURCE "$M")"
for o in ro nosuid nodev noexec; do
	check "always $o" grep -qw "$o" <<<"$(findmnt -no OPTIONS "$M")"
done
same "permissions" "755 755 444" \
	"$(stat -c %a "$M" "$M/kjv" "$M/kjv/config.json" | paste -sd' ')"
check "cp -a" cp -a "$M/kjv" "$W/copy"
check "cp -a: the owner may delete it" setpriv --bounding-set=-all --inh-caps=-all rm -r "$W/copy"
same "links" "3 2 1" "$(stat -c %h "$M" "$M/kjv" "$M/kjv/config.json" | paste -sd' ')"
same "owner" "0 0" "$(stat -c '%u %g' "$M/kjv/config.json")"
same "times are the delta's" "$(stat -c %Y "$W/deltas/kjv.bdelta")" \
	"$(stat -c %Y "$M/kjv/config.json")"
same "blocks cover the whole file" $((($(stat -c %s "$DATA/kjv/model.safetensors") + 511) / 512)) \
	"$(stat -c %b "$M/kjv/model.safetensors")"
same "preferred size of reads" 1048576 "$(stat -c %o "$M/kjv/model.safetensors")"
same "df knows the size" "$((($(cat "$DATA"/kjv/* | wc -c) + 4095) / 4096)) 0" \
	"$(stat -f -c '%b %a' "$M")"
check "what is not there" test ! -e "$M/kjv/adapter_config.json" -a ! -e "$M/other"
same "dots" "$(stat -c %i "$M")" "$(stat -c %i "$M/kjv/..")"
if [ -w /sys/class/bdi ] && bdi=/sys/class/bdi/$(mountpoint -d "$M")/read_ahead_kb && [ -e "$bdi" ]; then
	same "readahead is raised" 1024 "$(cat "$bdi")"
else
	skip "readahead is raised" "no sysfs"
fi
inodes=$(find "$M" -printf '%i %P\n' | sort)
check "no two inode numbers alike" test -z "$(cut -d' ' -f1 <<<"$inodes" | uniq -d)"
same "directory entries tell the same numbers" "$(find "$M/kjv" -type f -printf '%i %f\n' | sort)" \
	"$(ls -fi "$M/kjv" | awk '$2 !~ /^\.+$/ { print $1, $2 }' | sort)"
pid=$(daemon_of "$M")
check "the daemon's directory is /" test "$(readlink "/proc/$pid/cwd")" = /
same "its standard files are closed" "/dev/null /dev/null /dev/null" \
	"$(readlink "/proc/$pid/fd/0" "/proc/$pid/fd/1" "/proc/$pid/fd/2" | paste -sd' ')"
check "it has left the session of its caller" test "$(ps -o sid= -p "$pid" | tr -d " ")" != "$(ps -o sid= -p $$ | tr -d " ")"
check "umount" unmount "$M"
same "nothing is left" "" "$(ls -A "$M")"

# The daemon keeps nothing of the caller: this would wait for the end of the output.
check "output can be captured" in_time 60 bash -c 'x=$("$@" 2>&1)' - \
	"$MOUNT" "$DATA/base" "$M" -o "deltas=$W/deltas/kjv.bdelta"
same "inode numbers stay" "$inodes" "$(find "$M" -printf '%i %P\n' | sort)"
is_free() { ! grep -qF " $1 " /proc/self/mountinfo; }
for signal in TERM INT; do
	mountpoint -q "$M" || mount_at "$M" "$DATA/base" "deltas=$W/deltas/kjv.bdelta"
	pid=$(daemon_of "$M")
	kill -$signal "$pid"
	check "SIG$signal ends the daemon" wait_for 30 has_ended "$pid"
	check "SIG$signal unmounts" wait_for 30 is_free "$M"
done

# In the foreground.
"$MOUNT" -f "$DATA/base" "$M" -o "deltas=$W/deltas/kjv.bdelta" 2>"$W/foreground.log" &
pid=$!
pids+=("$pid")
check "-f mounts" wait_for 30 test -e "$M/kjv/config.json"
check "-f stays" is_alive "$pid"
check "contents with -f" diff -r "$W/truth/kjv" "$M/kjv"
check "umount with -f" umount "$M"
wait "$pid"
same "-f returns 0 after umount" "0 " "$? $(cat "$W/foreground.log")"
pids=()

# Names and sizes of other files.
check "mount files" mount_at "$M" "$W/models/files/base" "deltas=$W/deltas/files.bdelta"
check "empty, large and oddly named files" diff -r "$W/truth/files" "$M/files"
check "they are the originals" diff -r -x '*.safetensors' "$W/models/files/fine" "$M/files"
same "an empty file is empty" "0 " "$(stat -c %s "$M/files/empty.txt") $(cat "$M/files/empty.txt")"
check "nothing of the base is there" test ! -e "$M/files/only-in-base.txt"
check "umount files" unmount "$M"

# Many deltas.
mkdir "$W/many"
for i in $(seq 300); do
	cp "$W/deltas/odd.bdelta" "$W/many/tune-$i.bdelta"
done
check "mount 300 deltas" mount_at "$M" "$W/models/odd/base" "deltas=$W/many"
same "300 directories" "300 300" "$(ls "$M" | wc -l) $(ls "$M" | sort -u | wc -l)"
same "all files are there" $((300 * $(ls "$W/truth/odd" | wc -l))) "$(find "$M" -type f | wc -l)"
check "no two inode numbers alike of many" test -z "$(find "$M" -printf '%i\n' | sort | uniq -d)"
for i in 1 77 300; do
	check "contents of tune-$i" diff -r "$W/truth/odd" "$M/tune-$i"
done
check "umount 300 deltas" unmount "$M"
finish
