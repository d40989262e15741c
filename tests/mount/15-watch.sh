#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 15-watch.sh: directories of deltas are watched: what comes, goes, is replaced, renamed or broken; and
# things that look like deltas and are none.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

models odd
tunes tunes
M=$W/mnt
B=$W/models/tunes/base
D=$W/watched
mkdir "$D" "$W/second"
milliseconds=$(($(patience 1) * 1000))
[ -z "$SLOW" ] || milliseconds=$(($(patience 8) * 1000))

# soon NAME COMMAND...: it succeeds within a second, or some (patience.sh)
soon() {
	local name=$1 start=${EPOCHREALTIME/./} now
	shift
	until "$@" >/dev/null 2>&1; do
		now=${EPOCHREALTIME/./}
		if [ $(((now - start) / 1000)) -gt $milliseconds ]; then
			not_ok "$name" "not within $milliseconds ms: $*"
			return 1
		fi
		sleep 0.01
	done
	ok "$name"
}
put() { # DELTA NAME: by renaming
	cp "$W/deltas/$1.bdelta" "$D/.new" && mv "$D/.new" "$D/$2.bdelta"
}
is() { cmp -s "$W/truth/$1/name.txt" "$M/$2/name.txt"; }
is_gone() { [ ! -e "$M/$1" ] && ! ls "$M" | grep -qxF -- "$1"; }
is_listed() { ls "$M" | grep -qxF -- "$1"; }
rejected() { # NAME PATTERN: its reason fits
	stat_of "$M" '"\n".join(r["reason"] for r in s["rejected"] if r["delta"].endswith("/'"$1"'.bdelta"))' |
		grep -qE -- "$2"
}
none_rejected() { [ "$(stat_of "$M" 'len(s["rejected"])')" = 0 ]; }
contents() { check "$1: contents" diff -r "$W/truth/$2" "$M/$3"; }

# --- coming and going ---

check "mount an empty directory" mount_at "$M" "$B" "deltas=$D:$W/second,log=$W/log"
pid=$(daemon_of "$M")
same "nothing is there" "" "$(ls -A "$M")"
check "what may come is not there" test ! -e "$M/one" -a ! -e "$M/two" -a ! -e "$M/three"
put a one
soon "a new one appears" is a one
soon "a new one is listed" is_listed one
contents "a new one" a one
cp "$W/deltas/b.bdelta" "$D/two.bdelta"
soon "a copied one appears" is b two
ln "$W/deltas/c.bdelta" "$D/three.bdelta"
soon "a linked one appears" is c three
ln -s three.bdelta "$D/four.bdelta"
soon "one by a symbolic link appears" is c four
cp "$W/deltas/a.bdelta" "$W/second/five.bdelta"
soon "one in the second directory appears" is a five
same "all are there" "five four one three two" "$(ls "$M" | paste -sd' ')"
contents "a copied one" b two
contents "one of the second directory" a five
same "links of the root" 7 "$(stat -c %h "$M")"

FILE=model-00002-of-00002.safetensors
exec 7<"$M/one/$FILE" 8<"$M/two/$FILE"
put c one
soon "a replaced one is the new one" is c one
contents "a replaced one" c one
check "what was open stays what it was" cmp "$W/truth/a/$FILE" - <&7
rm "$D/two.bdelta"
soon "a removed one goes" is_gone two
check "what was open stays" cmp "$W/truth/b/$FILE" - <&8
put a two
soon "it may come again" is a two
exec 7<&- 8<&-
rm "$D/four.bdelta"
ln -s ../second/five.bdelta "$D/four.bdelta"
soon "a link that leads elsewhere now" is a four
mv "$D/three.bdelta" "$D/tres.bdelta"
soon "a renamed one has its new name" is c tres
soon "and not its old one" is_gone three
mv "$D/tres.bdelta" "$D/one.bdelta"
soon "one renamed over another" is_gone tres
contents "one renamed over another" c one
cp "$W/deltas/b.bdelta" "$W/second/.new" && mv "$W/second/.new" "$W/second/five.bdelta"
soon "what a link leads to is replaced" is b four
rm "$D/four.bdelta"
soon "a link goes" is_gone four
soon "before changing directories" is b five
mv "$W/second/five.bdelta" "$D/six.bdelta"
soon "one that changes directories" is b six
soon "one that changes directories has left" is_gone five
pushd "$M/six" >/dev/null || exit
rm "$D/six.bdelta"
soon "one in which somebody works goes" is_gone six
cat config.json >/dev/null 2>&1 # as it was, or an error
popd >/dev/null || exit
put b .hidden
sleep 0.3
same "hidden ones stay hidden" "one two" "$(ls -A "$M" | paste -sd' ')"
check "reloads are counted" test "$(stat_of "$M" 's["totals"]["reloads"]')" -ge 8
check "nothing was rejected" none_rejected

# --- what is broken ---

head -c 20000 "$W/deltas/a.bdelta" >"$D/cut.bdelta"
: >"$D/empty.bdelta"
echo "not a delta" >"$D/text.bdelta"
cp "$W/deltas/odd.bdelta" "$D/strange.bdelta"
mkfifo "$D/fifo.bdelta"
mknod "$D/device.bdelta" c 1 5
mkdir "$D/directory.bdelta"
ln -s loop.bdelta "$D/loop.bdelta"
truncate -s 8T "$D/huge.bdelta" 2>/dev/null || truncate -s 1T "$D/huge.bdelta"
ln -s . "$D/here.bdelta"
line='new?line' # as it is shown
cp "$W/deltas/a.bdelta" "$D/new"$'\n'"line.bdelta"
python3 -c 'import os, socket, sys
os.chdir(sys.argv[1])
socket.socket(socket.AF_UNIX).bind("socket.bdelta")' "$D"
broken="cut empty text strange fifo device directory loop huge here socket"
reasons() { # TITLE
	soon "$1: a truncated one" rejected cut .
	soon "$1: an empty one" rejected empty .
	soon "$1: another file" rejected text .
	soon "$1: one for another base" rejected strange 'base'
	soon "$1: a FIFO" rejected fifo 'FIFO'
	soon "$1: a device" rejected device 'device'
	soon "$1: a directory" rejected directory 'directory'
	soon "$1: a loop of links" rejected loop '[Ll]oop|links|levels'
	soon "$1: 8 TiB of nothing" rejected huge .
	soon "$1: a link to a directory" rejected here 'directory'
	soon "$1: a socket" rejected socket 'socket|No such device or address'
	soon "$1: a name that cannot be a directory" rejected "$line" 'name'
	same "$1: the others are there" "one two" "$(ls "$M" | paste -sd' ')"
	contents "$1" c one
	for name in $broken; do
		grep -qF "$name.bdelta" "$W/log" || not_ok "$1: the log tells" "nothing of $name"
		grep -qF "$name.bdelta" "$M/.bitdelta/status" || not_ok "$1: status tells" "nothing of $name"
	done
}
reasons "broken ones come"
lines=$(wc -l <"$W/log")
kill -HUP "$pid"
sleep 0.5
check "the daemon outlives SIGHUP" is_alive "$pid"
check "broken ones are not logged at every scan" test "$(wc -l <"$W/log")" -lt $((lines + 30))
check "umount" unmount "$M"
: >"$W/log"
check "mount with broken ones" in_time 60 "$MOUNT" "$B" "$M" -o "deltas=$D:$W/second,log=$W/log"
pid=$(daemon_of "$M")
reasons "broken ones are there"
for name in $broken; do
	rm -r "$D/$name.bdelta"
done
rm "$D"/*line.bdelta
soon "broken ones go" none_rejected
echo broken >"$D/mended.bdelta"
soon "one is broken" rejected mended .
put b mended
soon "it is mended" is b mended
soon "it is reported no more" none_rejected
rm "$D/mended.bdelta"
soon "it goes" is_gone mended

# Written slowly, in place.
size=$(stat -c %s "$W/deltas/b.bdelta")
: >"$D/slow.bdelta"
bad=""
for i in $(seq 0 9); do
	tail -c +$((i * (size / 10 + 1) + 1)) "$W/deltas/b.bdelta" | head -c $((size / 10 + 1)) >>"$D/slow.bdelta"
	if [ $i != 9 ] && [ -e "$M/slow" ]; then
		diff -r "$W/truth/b" "$M/slow" >/dev/null || bad="$bad $i"
	fi
	sleep 0.1
done
same "one that grows is never seen half" "" "$bad"
soon "one that grew appears" is b slow
contents "one that grew" b slow
soon "one that grew is reported no more" none_rejected
(
	exec 6>"$D/opened.bdelta"
	cat "$W/deltas/a.bdelta" >&6
	sleep 0.3
)
soon "one whose writer takes long to close it" is a opened
rm "$D/slow.bdelta" "$D/opened.bdelta"
soon "they go" is_gone opened

# --- two of one name ---

cp "$W/deltas/a.bdelta" "$W/second/one.bdelta"
soon "a name that is taken is reported" rejected one 'one'
same "there is one of that name" 1 "$(ls "$M" | grep -c '^one$')"
contents "the first has the name" c one
rm "$D/one.bdelta"
soon "the second takes its place" is a one
soon "it is reported no longer" none_rejected
contents "the second" a one
rm "$W/second/one.bdelta"
soon "both are gone" is_gone one

# --- times after 2262, which do not fit into 64 bits of nanoseconds ---

put a later
touch -d 3000-01-01 "$D/later.bdelta"
soon "far future: it appears" is a later
soon "far future: its time is shown" bash -c '[ "$(stat -c %Y "$1")" = "$(stat -c %Y "$2")" ]' - \
	"$D/later.bdelta" "$M/later"
contents "far future" a later
cp "$W/deltas/b.bdelta" "$D/.new" && touch -d 3001-01-01 "$D/.new" && mv "$D/.new" "$D/later.bdelta"
touch -d 3000-01-01 "$D"
soon "far future: it is replaced" is b later
contents "far future, replaced" b later
rm "$D/later.bdelta"
soon "far future: it goes" is_gone later
cp -r "$B" "$W/future"
touch -d 3000-01-01 "$W"/future/*
must mount_at "$W/mnt2" "$W/future" "deltas=$W/deltas/a.bdelta,show_base"
check "far future: a base is shown" diff -r "$W/future" "$W/mnt2/future"
check "far future: contents over that base" diff -r "$W/truth/a" "$W/mnt2/a"
same "far future: the base's time" "$(stat -c %Y "$W/future/model-00001-of-00002.safetensors")" \
	"$(stat -c %Y "$W/mnt2/future")"
check "far future: umount" unmount "$W/mnt2"

# --- many at once ---

mkdir "$D/.many"
for i in $(seq 500); do
	cp "$W/deltas/b.bdelta" "$D/.many/many-$i.bdelta"
done
mv "$D"/.many/*.bdelta "$D/"
check "500 appear" wait_for 20 bash -c '[ "$(ls "$1" | grep -c many)" = 500 ]' - "$M"
for i in 1 250 500; do
	contents "number $i" b "many-$i"
done
check "the daemon's memory stays small" test -n "$SLOW" -o "$(memory "$pid")" -lt 100000
rm "$D"/many-*.bdelta
check "500 go" wait_for 20 bash -c '[ "$(ls "$1" | grep -c many)" = 0 ]' - "$M"

# --- the directory itself ---

check "umount" unmount "$M"
must mount_at "$M" "$B" "deltas=$D,nosandbox,log=$W/log" # in the sandbox the new one may not be read
pid=$(daemon_of "$M")
put a one
soon "before: it is there" is a one
rm -r "$D"
soon "with the directory its deltas go" is_gone one
check "the daemon outlives the directory" is_alive "$pid"
mkdir "$D"
put b one
kill -HUP "$pid"
soon "a directory made again, after SIGHUP" is b one
put c two
soon "it is watched again" is c two
mv "$D" "$W/away"
mkdir "$D"
put c one
kill -HUP "$pid"
soon "a directory that was replaced, after SIGHUP" is c one
soon "the old one's deltas go" is_gone two
check "umount after that" unmount "$M"

left_out() { # PATTERN: of what status says of $D itself
	grep -qE "^LEFT OUT +$D: $1" "$M/.bitdelta/status"
}

# Moved away and replaced, where the sandbox keeps the new one closed.
rm -f "$D"/*.bdelta
put a one
must mount_at "$M" "$B" "deltas=$D"
pid=$(daemon_of "$M")
if [ "$(stat_of "$M" 's["in_use"]["sandbox"]')" = none ]; then
	skip "a replaced directory in the sandbox" "there is no sandbox"
else
	mv "$D" "$W/moved"
	mkdir "$D"
	put c one
	kill -HUP "$pid"
	soon "a replaced directory in the sandbox is reported" left_out 'was deleted or moved.*mount again'
	check "a replaced directory: bitdelta status tells" grep -qF "$D: was deleted or moved" \
		<("$BUILD/bitdelta" status "$M" 2>&1)
	check "a replaced directory: the old one's deltas stay" is a one
	rm -r "$D"
	mv "$W/moved" "$D"
	kill -HUP "$pid"
	soon "a directory that is back is reported no more" none_rejected
	put b two
	soon "a directory that is back is watched" is b two
fi
check "umount the replaced one" unmount "$M"

# Modes: the daemon's user may not read a delta, then not the directory.
rm -f "$D"/*.bdelta
chmod 755 "$W" "$D"
chmod -R a+rX "$B"
publish() { put "$1" "$2" && chmod 644 "$D/$2.bdelta"; }
must mount_at "$M" "$B" "deltas=$D,setuid=nobody,allow_other"
publish a one
soon "setuid: a readable one appears" is a one
install -m 600 "$W/deltas/b.bdelta" "$D/.new" && mv "$D/.new" "$D/private.bdelta"
soon "setuid: an unreadable one is reported" rejected private 'denied'
chmod 644 "$D/private.bdelta"
soon "setuid: it appears with its new mode" is b private
soon "setuid: it is reported no more" none_rejected
chmod 700 "$D"
soon "setuid: an unreadable directory is reported" left_out 'cannot read the directory: Permission denied'
check "setuid: bitdelta status tells" grep -qF "$D: cannot read the directory" \
	<("$BUILD/bitdelta" status "$M" 2>&1)
same "setuid: its deltas stay" "one private" "$(ls "$M" | paste -sd' ')"
publish c two
rm "$D/one.bdelta"
chmod 755 "$D"
soon "setuid: a readable directory is reported no more" none_rejected
soon "setuid: what came meanwhile is there" is c two
soon "setuid: what went meanwhile is gone" is_gone one
check "setuid: umount" unmount "$M"

# --- a filesystem that tells nobody of its changes ---

mkdir "$W/silent" "$W/below"
must "$BUILD/mount/faulty_fs" "$W/below" "$W/silent"
must mount_at "$M" "$B" "deltas=$W/silent"
cp "$W/deltas/a.bdelta" "$W/below/one.bdelta"
kill -HUP "$(daemon_of "$M")"
check "SIGHUP finds what nobody told" wait_for 10 is a one
rm "$W/below/one.bdelta"
kill -HUP "$(daemon_of "$M")"
check "SIGHUP finds what is gone" wait_for 10 is_gone one
check "umount at last" unmount "$M"
check "umount the silent one" umount "$W/silent"
finish
