#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 40-hub.sh: layout=hub, the directory tree of a Hugging Face cache, and show_base in both layouts.
# What the real huggingface_hub makes of it is tested in tests/loaders/test_hub.py.
. "$(dirname "$0")/lib.sh"

tunes tunes
M=$W/mnt
B=$W/models/tunes/base
D=$W/hub
mkdir "$D"
cp "$W/deltas/a.bdelta" "$D/org--name.bdelta"
cp "$W/deltas/b.bdelta" "$D/models--org--other.bdelta"
cp "$W/deltas/c.bdelta" "$D/plain.bdelta"

revision() { echo "$(cat "$M/$1/refs/main")"; }
revisions() { revision models--org--name && revision models--org--other; }
names() { ls -A "$M" | paste -sd' '; }

check "mount" mount_at "$M" "$B" "deltas=$D,layout=hub"
same "one directory for each model" "models--org--name models--org--other models--plain" "$(names)"
for model in name:a other:b; do
	m=models--org--${model%:*} truth=$W/truth/${model#*:}
	r=$(revision "$m")
	check "$m: a revision looks like a commit's" grep -qxE '[0-9a-f]{40}' <<<"$r"
	same "$m: the tree" "refs refs/main snapshots snapshots/$r" \
		"$(find "$M/$m" -mindepth 1 -maxdepth 2 -printf '%P\n' | sort | paste -sd' ')"
	same "$m: refs/main is the revision and no more" 40 "$(stat -c %s "$M/$m/refs/main")"
	check "$m: contents" diff -r "$truth" "$M/$m/snapshots/$r"
done
check "the revision is the contents'" test "$(revisions | sort -u | wc -l)" = 2
same "version.txt by name only" "1" "$(cat "$M/version.txt")"
same "links of the directories" "5 4 2 3 2" "$(cd "$M" && r=models--org--name &&
	stat -c %h . $r $r/refs $r/snapshots $r/snapshots/* | paste -sd' ')"
# One model in a cache of the user's own, to which others are downloaded.
mkdir "$W/own"
ln -s "$M/models--org--name" "$W/own/"
own=$W/own/models--org--name
check "a link in a cache: contents" diff -r "$W/truth/a" "$own/snapshots/$(cat "$own/refs/main")"
same "what one expects in a cache is absent, without an error" "" \
	"$(ls -d "$M/models--org--name/blobs" "$M/models--org--name/.no_exist" "$M/.locks" 2>/dev/null)"
refuses "writing is refused as on any read-only disk" 1 'Read-only' mkdir "$M/.locks"
same ".bitdelta says the layout" hub "$(stat_of "$M" 's["layout"]')"
before=$(revisions)
inodes=$(find "$M" -printf '%i %P\n' | sort)
check "umount" unmount "$M"

# The same contents have the same revision wherever they lie, others another one.
touch "$D"/*.bdelta
check "mount again" mount_at "$M" "$B" "deltas=$D,layout=hub"
same "revisions stay across mounts" "$before" "$(revisions)"
same "inode numbers stay across mounts" "$inodes" "$(find "$M" -printf '%i %P\n' | sort)"
cp "$W/deltas/c.bdelta" "$D/.new" && mv "$D/.new" "$D/org--name.bdelta"
r=$(revision models--org--name)
same "a replaced delta: its new revision is that of these contents" "$(revision models--plain)" "$r"
check "a replaced delta: not the old one" test "$r" != "$(head -c 40 <<<"$before")"
check "a replaced delta: contents" diff -r "$W/truth/c" "$M/models--org--name/snapshots/$r"
check "a replaced delta: through a link" diff -r "$W/truth/c" "$own/snapshots/$(cat "$own/refs/main")"
check "a replaced delta: the old revision is gone" \
	test ! -e "$M/models--org--name/snapshots/$(head -c 40 <<<"$before")"
cp "$W/deltas/a.bdelta" "$D/.new" && mv "$D/.new" "$D/org--name.bdelta"
same "put back: the old revision" "$(head -c 40 <<<"$before")" "$(revision models--org--name)"

# Two that would be one directory: the first in the order of names stays.
cp "$W/deltas/c.bdelta" "$D/models--org--name.bdelta"
check "a clash is reported" wait_for 10 grep -q 'LEFT OUT.*would both be the directory "models--org--name"' \
	"$M/.bitdelta/status"
same "a clash: still one directory each" "models--org--name models--org--other models--plain" "$(names)"
rm "$D/models--org--name.bdelta"
check "umount after that" unmount "$M"

# --- the bases too ---

for layout in dirs hub; do
	prefix= below=
	[ $layout = dirs ] || prefix=models--
	check "$layout, show_base" mount_at "$M" "$B" "deltas=$D/plain.bdelta,layout=$layout,show_base"
	same "$layout, show_base: names" "${prefix}base ${prefix}plain" "$(names)"
	[ $layout = dirs ] || below=snapshots/$(revision models--base)
	check "$layout, show_base: contents of the base" diff -r "$B" "$M/${prefix}base/$below"
	[ $layout = dirs ] || below=snapshots/$(revision models--plain)
	check "$layout, show_base: contents of the model" diff -r "$W/truth/c" "$M/${prefix}plain/$below"
	shown=$(find "$M" -type f -not -path '*/refs/*' -printf '%s\n' | awk '{ n += $1 } END { print n }')
	same "$layout, show_base: the bytes of both are counted" "$shown" "$(stat_of "$M" 's["totals"]["virtual_bytes"]')"
	check "$layout, show_base: so says status" grep -q '^models    2, which show ' "$M/.bitdelta/status"
	check "$layout, show_base: umount" unmount "$M"
done
check "show_base without deltas" mount_at "$M" "$B" show_base
check "show_base without deltas: contents" diff -r "$B" "$M/base"
same "show_base without deltas: nothing else" base "$(names)"
check "show_base without deltas: umount" unmount "$M"
check "not shown unless asked" mount_at "$M" "$B" "deltas=$D"
check "not shown unless asked: it is not there" test ! -e "$M/base"
check "not shown unless asked: umount" unmount "$M"

# A delta called as the base: the delta has the name.
cp "$W/deltas/a.bdelta" "$D/base.bdelta"
check "a delta called as the base" mount_at "$M" "$B" "deltas=$D/base.bdelta,show_base"
same "a delta called as the base: one directory" base "$(names)"
check "a delta called as the base: it is the delta's" diff -r "$W/truth/a" "$M/base"
check "a delta called as the base: reported" grep -q 'LEFT OUT.*would both be the directory "base"' \
	"$M/.bitdelta/status"
check "a delta called as the base: umount" unmount "$M"

# A base that is a cache entry keeps its own name and revision.
commit=0123456789abcdef0123456789abcdef01234567
repo=$W/cache/models--acme--small
mkdir -p "$repo/refs" "$repo/blobs" "$repo/snapshots/$commit"
echo -n $commit >"$repo/refs/main"
for f in "$B"/*; do
	n=$(md5sum <"$f" | cut -c1-32)
	cp "$f" "$repo/blobs/$n"
	ln -s "../../blobs/$n" "$repo/snapshots/$commit/${f##*/}"
done
check "a base in a cache" mount_at "$M" "$repo" "deltas=$D/plain.bdelta,layout=hub,show_base"
same "a base in a cache: names" "models--acme--small models--plain" "$(names)"
same "a base in a cache: its commit" $commit "$(revision models--acme--small)"
check "a base in a cache: contents" diff -r "$B" "$M/models--acme--small/snapshots/$commit"
ln -s "$M/models--acme--small" "$W/own/"
check "a link in a cache is a base" mount_at "$W/second" "$W/own/models--acme--small" "deltas=$D/plain.bdelta"
check "a link in a cache is a base: contents" diff -r "$W/truth/c" "$W/second/plain"
check "a link in a cache is a base: umount" unmount "$W/second"
check "a base in a cache: umount" unmount "$M"
check "the same with layout=dirs" mount_at "$M" "$repo" "deltas=$D/plain.bdelta,show_base"
same "the same with layout=dirs: names" "acme--small plain" "$(names)"
check "the same with layout=dirs: umount" unmount "$M"
refuses "another layout is unknown" 1 'layout=tree: expected dirs or hub' \
	mount_at "$M" "$B" "deltas=$D,layout=tree"
finish
