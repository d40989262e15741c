#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 41-bases.sh: several bases in one mount: each delta finds its own by what the base holds.
. "$(dirname "$0")/lib.sh"

models odd files
tunes tunes
M=$W/mnt
D=$W/deltas # odd, files, a, b, c
tunes_base=$W/models/tunes/base odd_base=$W/models/odd/base files_base=$W/models/files/base

names() { ls -A "$M" | paste -sd' '; }
rejected() { stat_of "$M" '" ".join(sorted(r["delta"].split("/")[-1] for r in s["rejected"]))'; }
bases() { stat_of "$M" '" ".join("%s=%d" % (b["path"].split("/")[-2], b["models"]) for b in s["bases"])'; }
contents() { # NAME MODEL...: as exported
	local name=$1 model
	shift
	for model in "$@"; do
		check "$name: contents of $model" diff -r "$W/truth/$model" "$M/$model"
	done
}

# --- all bases are there ---

all="deltas=$D,base=$odd_base,base=$files_base"
check "a source and two more bases" mount_at "$M" "$tunes_base" "$all"
same "all: every delta is a directory" "a b c files odd" "$(names)"
contents "all" a b c files odd
same "all: models of each base" "tunes=3 odd=1 files=1" "$(bases)"
same "all: none is left out" "" "$(rejected)"
check "all: umount" unmount "$M"
check "no source" mount_at "$M" none "$all,base=$tunes_base"
same "no source: every delta is a directory" "a b c files odd" "$(names)"
contents "no source" a files odd
same "no source: the source is shown as given" none "$(findmnt -no SOURCE "$M")"
same "no source: models of each base" "odd=1 files=1 tunes=3" "$(bases)"
check "no source: umount" unmount "$M"
refuses "neither source nor base" 1 'base=' mount_at "$M" none "deltas=$D"
refuses "a base that is not there" 32 'nowhere' mount_at "$M" "$tunes_base" "deltas=$D,base=$W/nowhere"
check "one base twice" mount_at "$M" "$tunes_base" "deltas=$D/a.bdelta,base=$tunes_base"
contents "one base twice" a
check "one base twice: umount" unmount "$M"

# --- one is absent ---

text=$(mount_at "$M" none "deltas=$D,base=$odd_base,base=$tunes_base" 2>&1)
same "one is absent: mounted all the same" 0 $?
check "one is absent: the warning" grep -q "files.bdelta was made from base 'base', which is none of the 2 bases" <<<"$text"
same "one is absent: no directory for its delta" "a b c odd" "$(names)"
check "one is absent: not by name either" test ! -e "$M/files"
contents "one is absent" a odd
same "one is absent: left out" files.bdelta "$(rejected)"
check "one is absent: status says why and what to do" \
	grep -q "^LEFT OUT .*files.bdelta was made from base .* add it with base=" "$M/.bitdelta/status"
check "one is absent: so does the command" \
	grep -q "files.bdelta was made from base" <("$BUILD/bitdelta" status "$M" 2>&1)
kill -HUP "$(daemon_of "$M")"
same "one is absent: still so after SIGHUP" files.bdelta "$(sleep 0.2; rejected)"
check "one is absent: umount" unmount "$M"
check "added at the next mount" mount_at "$M" none "$all,base=$tunes_base"
same "added at the next mount: it is there" "a b c files odd" "$(names)"
contents "added at the next mount" files
check "added at the next mount: umount" unmount "$M"
refuses "a delta given by name must have its base" 32 'files.bdelta was made from base' \
	mount_at "$M" "$tunes_base" "deltas=$D/files.bdelta,base=$odd_base"
mkdir "$W/later"
check "an empty directory over two bases" mount_at "$M" "$tunes_base" "deltas=$W/later,base=$odd_base"
cp "$D/odd.bdelta" "$W/later/.new" && mv "$W/later/.new" "$W/later/odd.bdelta"
contents "later" odd
cp "$D/files.bdelta" "$W/later/.new" && mv "$W/later/.new" "$W/later/files.bdelta"
check "later: one without a base is left out" wait_for 10 grep -q 'LEFT OUT.*files.bdelta' "$M/.bitdelta/status"
contents "later, with one left out" odd
check "later: umount" unmount "$M"

# --- a base is known by what it holds, not by its name, its place or its files ---

mv "$tunes_base" "$W/called otherwise"
tunes_base="$W/called otherwise"
python3 - "$tunes_base" "$W" <<'PY'
"""The same tensors in one file, and in five, in another order and behind other headers."""
import glob, json, os, shutil, sys

base, out = sys.argv[1:3]
tensors = {}
for path in sorted(glob.glob(base + "/*.safetensors")):
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    for name, t in header.items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            tensors[name] = t, data[a:b]
for shards in 1, 5:
    directory = f"{out}/shards-{shards}"
    os.mkdir(directory)
    shutil.copy(base + "/config.json", directory)
    names, where = sorted(tensors, reverse=True), {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"part-{i}.safetensors"
        header, offset, part = {}, 0, names[i::shards]
        for n in part:
            t, data = tensors[n]
            header[n] = dict(t, data_offsets=[offset, offset + len(data)])
            offset += len(data)
        text = json.dumps(header, indent=3).encode()
        with open(f"{directory}/{file}", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text + b"".join(tensors[n][1] for n in part))
        where |= {n: file for n in part}
    if shards > 1:
        with open(directory + "/model.safetensors.index.json", "w") as f:
            json.dump({"weight_map": where}, f)
PY
for base in "$tunes_base" "$W/shards-1" "$W/shards-5"; do
	kind=$(basename "$base")
	check "$kind" mount_at "$M" none "deltas=$D,base=$odd_base,base=$base"
	same "$kind: found" "a b c odd" "$(names)"
	contents "$kind" a b c
	check "$kind: umount" unmount "$M"
done
inodes() { find "$M" -printf '%i %P\n' | sort; }
check "in five files, alone" mount_at "$M" "$W/shards-5" "deltas=$D/a.bdelta"
before=$(inodes)
check "in five files, alone: umount" unmount "$M"
check "in one file" mount_at "$M" "$W/shards-1" "deltas=$D/a.bdelta"
same "inode numbers do not depend on the files of the base" "$before" "$(inodes)"
check "in one file: umount" unmount "$M"

# Of two bases that would both do, the one that the delta names is taken: here they are alike in all
# that `odd` needs, and one holds a tensor more.
cp -r "$odd_base" "$W/richer"
python3 - "$W/richer/model.safetensors" <<'PY'
import json, sys
with open(sys.argv[1], "r+b") as f:
    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    data = f.read()
    header["zzz.more"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    text = json.dumps(header).encode()
    f.seek(0)
    f.write(len(text).to_bytes(8, "little") + text + data + b"\0\0\x80\x3f" * 2)
PY
check "two that would do" mount_at "$M" "$W/richer" "deltas=$D/odd.bdelta,base=$odd_base"
same "two that would do: the exact one is taken" "richer=0 odd=1" \
	"$(stat_of "$M" '" ".join("%s=%d" % ("richer" if b["path"].endswith("richer") else "odd", b["models"]) for b in s["bases"])')"
contents "two that would do" odd
check "two that would do: umount" unmount "$M"
check "one that holds more will do" mount_at "$M" "$W/richer" "deltas=$D/odd.bdelta"
contents "one that holds more" odd
check "one that holds more: umount" unmount "$M"

# --- all bases shown, in a mount with several of them ---

mkdir "$W/named"
ln -s "$tunes_base" "$W/named/one"
ln -s "$odd_base" "$W/named/two"
check "several shown" mount_at "$M" none "deltas=$D/a.bdelta:$D/odd.bdelta,base=$W/named/one,base=$W/named/two,show_base"
same "several shown: names" 4 "$(ls "$M" | wc -l)"
contents "several shown" a odd
check "several shown: umount" unmount "$M"
check "two bases of one name" mount_at "$M" none "base=$odd_base,base=$files_base,show_base"
same "two bases of one name: one is shown" base "$(names)"
check "two bases of one name: the other is reported" \
	grep -q 'LEFT OUT.*would both be the directory "base"' "$M/.bitdelta/status"
check "two bases of one name: umount" unmount "$M"
finish
