#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 44-paths.sh: the other files of a model, in subdirectories and above 64 MiB, from the import to the mount.
. "$(dirname "$0")/lib.sh"

B=$W/base
F=$W/fine
M=$W/mnt
D=$W/deltas
cp -r "$DATA/base" "$B"
cp -r "$DATA/kjv" "$F"
chmod -R u+w "$B" "$F"
mkdir -p "$B/1_Pooling" "$F"/{1_Pooling,a/b/c,.git,original,empty} "$D"
echo '{"word_embedding_dimension":64}' | tee "$B/1_Pooling/config.json" >"$F/1_Pooling/config.json"
echo '{{ messages }}' >"$F/a/b/c/tool_use.jinja"
echo x >"$F/a-b"
echo y >"$F/a.b"
echo z >"$F/a/b/x"
printf 'PK\3\4' >"$F/colbert_linear.pt"
cp "$F/model.safetensors" "$F/value_head.safetensors"
cp "$F/model.safetensors" "$F/original/consolidated.safetensors"
echo secret >"$F/.git/config"
truncate -s $((65 << 20)) "$F/large.bin"
echo end >>"$F/large.bin"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:cd\nsize 9085657\n' >"$F/a/vocab.json"

import_fine() { "$BUILD/bitdelta" import --steps 0 --base "$B" "$F" -o "$D/m.bdelta" "$@"; }

# --- import ---

refuses "a file that is a pointer of Git LFS" 1 'a/vocab.json: is a Git LFS pointer .*git lfs pull' import_fine
refuses "a glob that matches nothing" 1 "--keep 'nothing' matches no file" import_fine --omit a/vocab.json --keep nothing
text=$(import_fine --omit a/vocab.json 2>&1)
check "a second copy of the weights is told with its size" \
	grep -qE 'not taken: original/ \([0-9.]+ [kMG]B\): a second copy of the weights' <<<"$text"
check "a large file is told with its size" grep -q 'not taken: large.bin (68.2 MB): larger than 64 MiB; --keep' <<<"$text"
check "git's directory is told" grep -q 'not taken: .git/ (7 B): no part of a model' <<<"$text"
check "nothing else is" test "$(grep -c 'not taken' <<<"$text")" = 3
check "export" "$BUILD/bitdelta" export "$D/m.bdelta" --base "$B" -o "$W/small"
same "files of the export" "1_Pooling/config.json a-b a.b a/b/c/tool_use.jinja a/b/x colbert_linear.pt config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json value_head.safetensors" \
	"$(cd "$W/small" && find . -type f -printf '%P\n' | sort | paste -sd' ')"

check "import with --keep and --omit" import_fine --omit a/vocab.json --keep large.bin --keep original --omit '*.b'
check "verify" "$BUILD/bitdelta" verify --base "$B" "$D/m.bdelta"
check "export with a large file" "$BUILD/bitdelta" export "$D/m.bdelta" --base "$B" -o "$W/truth"
check "a large file is whole" cmp "$F/large.bin" "$W/truth/large.bin"
check "the files are the fine-tune's" diff -r --exclude=.git --exclude=empty --exclude=vocab.json --exclude=model.safetensors \
	--exclude=a.b "$F" "$W/truth"
rm "$W/truth/large.bin" "$F/large.bin"
import_fine --omit a/vocab.json >"$W/import.log" 2>&1
rm -rf "$W/truth/original"
echo y >"$W/truth/a.b"

# More files than a process may have open.
cp -r "$DATA/kjv" "$W/files"
mkdir -p "$W/files/many"
for i in {1..600}; do
	echo "$i" >"$W/files/many/$i"
done
"$BUILD/bitdelta" import --steps 0 --base "$B" "$W/files" -o "$W/files.bdelta" >"$W/import.log" 2>&1
check "export with few descriptors" bash -c 'ulimit -n 500 && exec "$0" export "$1/files.bdelta" --base "$2" -o "$1/files.out"' \
	"$BUILD/bitdelta" "$W" "$B"
check "all files are there" diff -r "$W/files/many" "$W/files.out/many"

# --- mount ---

sizes() { (cd "$1" && find . -type f -printf '%s %P\n' | sort); }
inodes() { (cd "$1" && find . -printf '%i %P\n' | sort); }

must mount_at "$M" "$B" "deltas=$D,show_base"
check "the mount is the export" diff -r "$W/truth" "$M/m"
same "names in a directory" "b" "$(ls -A "$M/m/a")"
same "types" "directory directory regular file" "$(stat -c %F "$M/m/a" "$M/m/a/b" "$M/m/a/b/x" | paste -sd' ')"
same "links count subdirectories" "4 3 3 2" "$(stat -c %h "$M/m" "$M/m/a" "$M/m/a/b" "$M/m/a/b/c" | paste -sd' ')"
same "a directory's parent" "$(stat -c %i "$M/m/a")" "$(stat -c %i "$M/m/a/b/..")"
same "no two inode numbers are alike" "" "$(inodes "$M/m" | cut -d' ' -f1 | uniq -d)"
same "the base shows its subdirectories" '{"word_embedding_dimension":64}' "$(cat "$M/base/1_Pooling/config.json")"
refuses "what is not there" 1 'No such file' cat "$M/m/a/b/y"
refuses "a file is no directory" 1 'Not a directory' cat "$M/m/a-b/x"
refuses "a directory is no file" 1 'directory' cat "$M/m/a"
same "attributes of a file in a subdirectory" "$D/m.bdelta" \
	"$(getfattr --only-values -n user.bitdelta.delta "$M/m/a/b/x" 2>/dev/null)"
check "df counts all" test "$(df --output=itotal "$M" | tail -n 1)" -ge "$(find "$M" | wc -l)"
same "sizes" "$(sizes "$W/truth")" "$(sizes "$M/m")"
check "cp -a" cp -a "$M/m" "$W/copied"
check "cp -a: contents" diff -r "$W/truth" "$W/copied"
before=$(inodes "$M/m")
must unmount "$M"
must mount_at "$M" "$B" "deltas=$D"
same "inode numbers stay" "$before" "$(inodes "$M/m")"
must unmount "$M"

must mount_at "$M" "$B" "deltas=$D,layout=hub"
check "the layout of the hub" diff -r "$W/truth" "$M/models--m/snapshots/"*
exec 3<"$(echo "$M/models--m/snapshots/"*)/a/b/x"
rm "$D/m.bdelta"
same "a file that is open outlives its delta" z "$(cat <&3)"
exec 3<&-
must unmount "$M"
finish
