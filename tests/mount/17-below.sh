#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 17-below.sh: deltas in subdirectories: a note where they are not shown, and deltas=DIR/**, which shows them.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

tunes tunes
M=$W/mnt
B=$W/models/tunes/base
D=$W/all
mkdir -p "$M" "$D/org/team" "$D/.hidden" "$D/empty" "$W/elsewhere"
put() { cp "$W/deltas/$1.bdelta" "$2.new" && mv "$2.new" "$2"; } # a|b|c FILE
put a "$D/top.bdelta"
put b "$D/org/one.bdelta"
put c "$D/org/team/one.bdelta"
put a "$D/.hidden/not.bdelta"
put b "$D/org/.not.bdelta"
put c "$W/elsewhere/away.bdelta"
ln -s "$W/elsewhere" "$D/link"       # of a directory: not entered
ln -s ../org "$D/org/loop"
ln -s "$W/elsewhere/away.bdelta" "$D/org/linked.bdelta"
mkfifo "$D/org/pipe"

names() { ls -A "$M" | paste -sd' '; }
shows() { [ "$(names)" = "$1" ]; }
left_out() { stat_of "$M" '" ".join(r["reason"] for r in s["rejected"])'; }

# --- not asked for: a note ---

note="$D: 3 deltas in its subdirectories are not shown; deltas=$D/\*\* shows them too"
text=$(mount_at "$M" "$B" "deltas=$D" 2>&1)
same "a directory: mounted" 0 $?
check "a directory: the note" grep -qx "mount.bitdelta: $note" <<<"$text"
same "a directory: what it shows" top "$(names)"
check "a directory: the note in .bitdelta/status" grep -qx "note      $note" "$M/.bitdelta/status"
check "a directory: bitdelta status says so, and that all is well" "$BUILD/bitdelta" status "$M"
check "a directory: the note in bitdelta status" grep -qx "  note      $note" <("$BUILD/bitdelta" status "$M")
same "a directory: the note as JSON" "${note//\\/}" "$(stat_of "$M" 's["notes"][0]["text"]')"
check "a directory: umount" unmount "$M"
text=$(mount_at "$M" "$B" "deltas=$D/org/team" 2>&1)
same "a directory without any: no note" "" "$text"
same "a directory without any: none as JSON" "[]" "$(stat_of "$M" 's["notes"]')"
check "a directory without any: umount" unmount "$M"

# --- asked for ---

text=$(mount_at "$M" "$B" "deltas=$D/**,log=$W/log" 2>&1)
same "all: mounted, without a word" "0 " "$? $text"
same "all: names tell where they lie" "org--linked org--one org--team--one top" "$(names)"
check "all: contents" diff -r "$W/truth/a" "$M/top"
check "all: contents below" diff -r "$W/truth/b" "$M/org--one"
check "all: contents two below" diff -r "$W/truth/c" "$M/org--team--one"
check "all: contents of a link" diff -r "$W/truth/c" "$M/org--linked"
same "all: nothing is left out" "" "$(left_out)"
same "all: no note" "[]" "$(stat_of "$M" 's["notes"]')"
same "all: the delta's path" "$D/org/team/one.bdelta" \
	"$(getfattr --only-values -n user.bitdelta.delta "$M/org--team--one" 2>/dev/null)"

put b "$W/elsewhere/away.bdelta"
kill -HUP "$(daemon_of "$M")"
relinked() { diff -r "$W/truth/b" "$M/org--linked" >/dev/null; }
check "all: a link's file is replaced, also in the sandbox" wait_for 10 relinked

# Directories come and go.
mkdir "$D/org/new"
put a "$D/org/new/two.bdelta"
check "a new directory" wait_for 10 shows "org--linked org--new--two org--one org--team--one top"
check "a new directory: contents" diff -r "$W/truth/a" "$M/org--new--two"
put b "$D/org/new/two.bdelta"
replaced() { diff -r "$W/truth/b" "$M/org--new--two" >/dev/null; }
check "replaced in it" wait_for 10 replaced
exec 7<"$M/org--new--two/config.json"
mv "$D/org/new" "$D/moved"
check "moved: under its new name" wait_for 10 shows "moved--two org--linked org--one org--team--one top"
check "moved: what was open can be read" cmp - "$W/truth/b/config.json" <&7
exec 7<&-
put c "$D/moved/three.bdelta"
check "moved: it is watched" wait_for 10 test -e "$M/moved--three"
rm -r "$D/moved"
check "removed" wait_for 10 shows "org--linked org--one org--team--one top"
mkdir "$D/moved"
put a "$D/moved/two.bdelta"
check "made again" wait_for 10 shows "moved--two org--linked org--one org--team--one top"
check "made again: contents" diff -r "$W/truth/a" "$M/moved--two"
rm -r "$D/moved"
check "removed again" wait_for 10 shows "org--linked org--one org--team--one top"

# Two with one name: the first stays.
put b "$D/org--one.bdelta"
check "a clash is reported" wait_for 10 grep -q 'LEFT OUT.*would both be the directory "org--one"' "$M/.bitdelta/status"
rm "$D/org--one.bdelta"
clear() { [ -z "$(left_out)" ] && shows "org--linked org--one org--team--one top"; }
check "a clash ends" wait_for 10 clear
check "all: umount" unmount "$M"

# --- the mount within, other mounts, depth ---

mkdir "$D/mnt"
must mount_at "$D/mnt" "$B" "deltas=$D/**"
put a "$D/later.bdelta"
check "a mount within: what comes is shown" wait_for 10 test -e "$D/mnt/later"
kill -HUP "$(daemon_of "$D/mnt")"
rm "$D/later.bdelta"
check "a mount within: what goes is not" wait_for 10 test ! -e "$D/mnt/later"
same "a mount within is not entered" "org--linked org--one org--team--one top" "$(ls "$D/mnt" | paste -sd' ')"
check "a mount within: umount" unmount "$D/mnt"
must mount -t tmpfs none "$D/mnt"
put a "$D/mnt/other.bdelta"
must mount_at "$M" "$B" "deltas=$D/**"
same "what else is mounted within is not entered" "org--linked org--one org--team--one top" "$(names)"
check "umount" unmount "$M"
umount "$D/mnt"
deep=$W/deep
mkdir "$deep"
for i in $(seq 16); do
	deep=$deep/d
	mkdir "$deep"
done
put a "$deep/in.bdelta"
mkdir "$deep/d"
put a "$deep/d/out.bdelta"
must mount_at "$M" "$B" "deltas=$W/deep/**:$D/org/**"
same "sixteen levels; and two such lists" "$(printf 'd--%.0s' {1..16})in linked one team--one" "$(names)"
check "sixteen levels: umount" unmount "$M"
refuses "of a file" 32 'Not a directory' mount_at "$M" "$B" "deltas=$D/top.bdelta/**"
refuses "of nothing" 32 'No such file' mount_at "$M" "$B" "deltas=$W/nothing/**"
same "nothing else was logged" "" "$(logged "$W/log" | grep -v 'would both be\|: changed\|SIGHUP')"
finish
