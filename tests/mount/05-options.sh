#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 05-options.sh: the command line, exit statuses and messages; what is refused and why.
. "$(dirname "$0")/lib.sh"

models odd
import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
B=$DATA/base
mkdir "$M" "$W/dir" "$W/other" "$W/empty" "$W/bad"
cp "$W/deltas/kjv.bdelta" "$W/dir/one.bdelta"
cp "$W/deltas/kjv.bdelta" "$W/dir/two.bdelta"
cp "$W/deltas/kjv.bdelta" "$W/other/two.bdelta"
cp "$W/deltas/kjv.bdelta" "$W/a:b,c\"d\\e f.bdelta"
head -c 50000 "$W/deltas/kjv.bdelta" >"$W/bad/cut.bdelta"
K=$W/deltas/kjv.bdelta
cd "$W" || exit 1

# wrong usage: 1
refuses "no arguments" 1 'base and the mount point are missing' "$MOUNT"
refuses "no mount point" 1 'mount point is missing' "$MOUNT" "$B"
refuses "no deltas" 1 'deltas=PATH' "$MOUNT" "$B" "$M"
refuses "empty deltas" 1 'deltas=PATH' "$MOUNT" "$B" "$M" -o deltas=
refuses "deltas without a value" 1 'deltas needs a value' "$MOUNT" "$B" "$M" -o deltas
refuses "unknown option" 1 'unknown option "fancy"' "$MOUNT" "$B" "$M" -o "deltas=$K,fancy"
refuses "unknown option with a value" 1 'unknown option "fancy"' "$MOUNT" "$B" "$M" -o "deltas=$K,fancy=1"
refuses "unknown flag" 1 'unknown option "-q"' "$MOUNT" -q "$B" "$M" -o "deltas=$K"
refuses "three names" 1 'one argument too many' "$MOUNT" "$B" "$M" x -o "deltas=$K"
refuses "-o without a value" 1 '-o needs a value' "$MOUNT" "$B" "$M" -o
refuses "no number" 1 'uid=abc' "$MOUNT" "$B" "$M" -o "deltas=$K,uid=abc"
refuses "not octal" 1 'umask=088' "$MOUNT" "$B" "$M" -o "deltas=$K,umask=088"
refuses "too many threads" 1 'threads=99999' "$MOUNT" "$B" "$M" -o "deltas=$K,threads=99999"
refuses "readahead" 1 'readahead=1x' "$MOUNT" "$B" "$M" -o "deltas=$K,readahead=1x"
refuses "open quote" 1 'quote' "$MOUNT" "$B" "$M" -o "deltas=\"$K"
refuses "base without a value" 1 'base needs a value' "$MOUNT" "$B" "$M" -o "deltas=$K,base"
refuses "blocks" 1 'blocks=some: expected full or stored' "$MOUNT" "$B" "$M" -o "deltas=$K,blocks=some"
refuses "--base without a value" 1 'unknown option|--base needs a value' "$MOUNT" "$M" --deltas "$K" --base
refuses "--base with an empty value" 1 '--base needs a value' "$MOUNT" --base= "$M" --deltas "$K"
refuses "--deltas without a value" 1 '--deltas needs a value' "$MOUNT" "$B" "$M" --deltas
refuses "--base and --deltas, but no mount point" 1 'the mount point is missing' "$MOUNT" --base "$B" --deltas "$K"
refuses "--deltas, but no base" 1 'mount point is missing' "$MOUNT" "$M" --deltas "$K"
refuses "an option that only begins so" 1 'unknown option "--bases"' "$MOUNT" --bases "$B" "$M" --deltas "$K"
refuses "a long option of others" 1 'unknown option "--delta=x"' "$MOUNT" "$B" "$M" --delta=x
check "--help" "$MOUNT" --help
check "--version" grep -q '^mount.bitdelta [0-9]' <("$MOUNT" --version)

# a mount that fails: 32
refuses "no base" 32 'nowhere' "$MOUNT" "$W/nowhere" "$M" -o "deltas=$K"
refuses "a name instead of a base" 32 'Some/Model' "$MOUNT" Some/Model "$M" -o "deltas=$K"
refuses "no delta" 32 'nowhere.bdelta' "$MOUNT" "$B" "$M" -o "deltas=$W/nowhere.bdelta"
refuses "no mount point there" 32 'does not exist' "$MOUNT" "$B" "$W/nowhere" -o "deltas=$K"
refuses "mount point is a file" 32 'not a directory' "$MOUNT" "$B" "$K" -o "deltas=$K"
refuses "wrong base, by name" 32 "kjv.bdelta was made from base 'base'.*tensor" \
	"$MOUNT" "$W/models/odd/base" "$M" -o "deltas=$K"
refuses "the fine-tune as base: what differs" 32 "contents of tensor '[a-z0-9._]+'" \
	"$MOUNT" "$DATA/kjv" "$M" -o "deltas=$K"
refuses "a damaged delta" 32 'cut.bdelta' "$MOUNT" "$B" "$M" -o "deltas=$W/bad/cut.bdelta"
refuses "something else as delta" 32 'config.json' "$MOUNT" "$B" "$M" -o "deltas=$B/config.json"
mkfifo "$W/fifo.bdelta"
refuses "a FIFO" 32 'fifo.bdelta.*FIFO' in_time 20 "$MOUNT" "$B" "$M" -o "deltas=$W/fifo.bdelta"
refuses "one name twice" 32 'dir/two.bdelta and .*other/two.bdelta' \
	"$MOUNT" "$B" "$M" -o "deltas=$W/dir/two.bdelta:$W/other/two.bdelta"
cp "$K" "$W/bad name"$'\n'".bdelta"
refuses "a name that cannot be a directory" 32 'name' \
	"$MOUNT" "$B" "$M" -o "deltas=$W/bad name"$'\n'".bdelta"
refuses "the log cannot be written" 32 'nowhere/log' "$MOUNT" "$B" "$M" -o "deltas=$K,log=$W/nowhere/log"
same "nothing is mounted after all that" "" "$(mounts)"
if [[ $BUILD == */release ]]; then # sanitizers need files themselves
	refuses "no file descriptors: 2" 2 'Too many open files' bash -c 'exec 3<&-; ulimit -n 4; exec "$@"' - \
		"$MOUNT" "$B" "$M" -o "deltas=$K"
fi

# shows NAME "DIRECTORIES" ARGUMENTS...
shows() {
	local name=$1 want=$2 text
	shift 2
	if text=$("$@" 2>&1); then
		same "$name" "$want" "$(ls "$M" | paste -sd' ')"
		unmount "$M" || not_ok "$name" "cannot be unmounted"
	else
		not_ok "$name" "exit status $?: $text"
	fi
}
shows "an empty directory" "" "$MOUNT" "$B" "$M" -o "deltas=$W/empty"
shows "a directory of bad deltas" "" "$MOUNT" "$B" "$M" -o "deltas=$W/bad"
shows "one name in two directories" "one two" "$MOUNT" "$B" "$M" -o "deltas=$W/dir:$W/other"
shows "the base, too" "base kjv" "$MOUNT" "$B" "$M" -o "deltas=$K,show_base"
shows "the base alone" "base" "$MOUNT" "$B" "$M" -o show_base
shows "several bases" "base kjv odd" "$MOUNT" none "$M" -o \
	"base=$W/models/odd/base,base=$B,deltas=$K:$W/deltas/odd.bdelta,show_base"
shows "a directory" "one two" "$MOUNT" "$B" "$M" -o "deltas=$W/dir"
shows "a directory and a file" "kjv one two" "$MOUNT" "$B" "$M" -o "deltas=$W/dir/:$K"
shows "options repeated" "kjv one two" "$MOUNT" "$B" "$M" -o "delta=$K" -o "deltas=$W/dir,ro"
shows "relative paths" "kjv one two" "$MOUNT" "$B" mnt -o "deltas=dir:deltas/kjv.bdelta"
shows "options first" "kjv" "$MOUNT" -o "deltas=$K" "$B" "$M"
shows "flags of mount(8)" "kjv" "$MOUNT" "$B" "$M" -svnrw -t fuse.bitdelta -o "deltas=$K"
shows "flags in one" "kjv" "$MOUNT" "$B" "$M" -nvo"deltas=$K"
shows "sloppy" "kjv" "$MOUNT" "$B" "$M" -s -o "deltas=$K,fancy,shmancy=1"
shows "options of fstab" "kjv" "$MOUNT" "$B" "$M" -o \
	"rw,defaults,user,users,nouser,auto,noauto,nofail,_netdev,noatime,relatime,suid,dev,exec,async,x-systemd.automount,X-mine,comment=\"a,b\",deltas=$K"
shows "escaped characters" "a:b,c\"d\\e f" "$MOUNT" "$B" "$M" -o \
	"deltas=$W/a\\:b\\,c\\\"d\\e f.bdelta"
shows "quotes" "a:b,c\"d\\e f" "$MOUNT" "$B" "$M" -o "\"deltas=$W/a\\:b,c\\\"d\\\\e f.bdelta\",ro"
shows "bitdelta mount" "kjv" "$BUILD/bitdelta" mount "$B" "$M" -o "deltas=$K"
shows "--base and --deltas" "kjv" "$BUILD/bitdelta" mount --base "$B" --deltas "$K" "$M"
shows "--base and --deltas after the mount point" "kjv one two" "$MOUNT" "$M" --deltas="dir:$K" --base="$B"
shows "--base beside a base" "base kjv odd" "$MOUNT" --base "$W/models/odd/base" "$B" "$M" \
	--deltas "$K:$W/deltas/odd.bdelta" -o show_base
shows "--base twice, --deltas twice" "base kjv odd" "$MOUNT" --base "$B" --base "$W/models/odd/base" "$M" \
	--deltas "$K" --deltas "$W/deltas/odd.bdelta" -o show_base
shows "--deltas beside -o deltas=" "kjv one two" "$MOUNT" "$B" "$M" --deltas "$K" -o "deltas=$W/dir"
shows "--deltas with a colon and a comma" "a:b,c\"d\\e f" "$MOUNT" --base "$B" "$M" \
	--deltas "$W/a\\:b,c\"d\\e f.bdelta"
must "$MOUNT" --base "$B" "$M" --deltas "$K:$W/dir"
same "--base: the source is the base" "$B" "$(findmnt -no SOURCE "$M")"
check "--base: remount" "$MOUNT" --base "$B" "$M" --deltas "$K:$W/dir" -o remount
check "--base: remount as mount(8) does" "$MOUNT" "$B" "$M" -o remount
refuses "--base: remount with other deltas" '1|32' 'deltas= cannot be changed' \
	"$MOUNT" --base "$B" "$M" --deltas "$K" -o remount
unmount "$M"
ln -s "$M" "$W/link"
shows "a link to the mount point" "kjv" "$MOUNT" "$B" "$W/link" -o "deltas=$K"
ln -s "$B" "$W/base, \\ with odd name"
must "$MOUNT" "base, \\ with odd name" "$M" -o "deltas=$K"
same "the source is shown as given" 'base, \ with odd name' "$(findmnt -no SOURCE "$M")"
unmount "$M"
must "$MOUNT" "$B" "$M" -o "deltas=$K,fsname=models\\,x"
same "fsname=" "models,x" "$(findmnt -no SOURCE "$M")"
unmount "$M"

# A directory with one bad delta shows the others and says what is missing.
cp "$W/bad/cut.bdelta" "$W/dir/bad.bdelta"
cp "$W/deltas/odd.bdelta" "$W/dir/stranger.bdelta"
ln -s nowhere "$W/dir/dangling.bdelta"
mkdir "$W/dir/directory.bdelta"
touch "$W/dir/.hidden.bdelta" "$W/dir/readme.txt"
text=$("$MOUNT" "$B" "$M" -o "deltas=$W/dir" 2>&1)
same "a directory with bad deltas: exit status" 0 $?
same "a directory with bad deltas: the good ones" "one two" "$(ls "$M" | paste -sd' ')"
for name in bad stranger directory dangling; do
	check "a warning about $name" grep -q "warning:.*dir/$name.bdelta" <<<"$text"
done
same "no other warnings" 4 "$(wc -l <<<"$text")"
unmount "$M"

# The log.
must "$MOUNT" "$B" "$M" -o "deltas=$W/dir/one.bdelta,log=log"
truncate -s 5000 "$W/dir/one.bdelta"
cat "$M/one/config.json" >/dev/null 2>&1
check "log= names file and reason" wait_for 10 grep -q 'one.bdelta: .*' "$W/log"
unmount "$M"

# The mount covers its own base and deltas.
cp -r "$B" "$W/covered"
cp "$K" "$W/covered/"
check "mount over the base" "$MOUNT" "$W/covered" "$W/covered" -o "deltas=$W/covered/kjv.bdelta"
check "over the base: contents" diff -r "$W/truth/kjv" "$W/covered/kjv"
same "over the base: nothing else" kjv "$(ls "$W/covered")"
check "over the base: umount" unmount "$W/covered"
check "over the base: it is back" test -e "$W/covered/model.safetensors"

# A daemon that was killed.
must "$MOUNT" "$B" "$M" -o "deltas=$K"
pid=$(daemon_of "$M")
cat "$M/kjv/config.json" >/dev/null
kill -9 "$pid"
wait_for 30 has_ended "$pid"
refuses "dead: readers get an error" 1 'not connected|connection abort' cat "$M/kjv/tokenizer.json"
check "dead: bitdelta umount" "$BUILD/bitdelta" umount "$M"
check "dead: mount again" "$MOUNT" "$B" "$M" -o "deltas=$K"
pid=$(daemon_of "$M")
kill -9 "$pid"
wait_for 30 has_ended "$pid"
text=$("$MOUNT" "$B" "$M" -o "deltas=$K" 2>&1)
same "dead: mounting there replaces it" "0 1" "$? $(grep -c "$M: replacing a mount that had lost its daemon" <<<"$text")"
check "dead: contents again" diff -r "$W/truth/kjv" "$M/kjv"

# bitdelta umount.
exec 7<"$M/kjv/model.safetensors"
refuses "umount: in use" '[1-9][0-9]*' 'in use' "$BUILD/bitdelta" umount "$M"
check "umount --lazy" "$BUILD/bitdelta" umount --lazy "$M"
check "umount --lazy: open files work" cmp /proc/self/fd/7 "$W/truth/kjv/model.safetensors"
exec 7<&-
refuses "umount: nothing there" '[1-9][0-9]*' 'nothing is mounted' "$BUILD/bitdelta" umount "$M"
mount -t tmpfs none "$M"
refuses "umount: not ours" '[1-9][0-9]*' 'tmpfs, not fuse.bitdelta' "$BUILD/bitdelta" umount "$M"
umount "$M"
mkdir "$W/mount point"
must "$MOUNT" "$B" "$W/mount point" -o "deltas=$K"
check "umount: relative, with a space" "$BUILD/bitdelta" umount "mount point/"
finish
