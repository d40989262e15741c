#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 42-attributes.sh: extended attributes, sizes, times and inode numbers, and what the mount tells in
# .bitdelta; with the tools that look at them: cp -a, rsync, tar, du, df.
. "$(dirname "$0")/lib.sh"

tunes library
M=$W/mnt
B=$W/models/library/base
D=$W/shown
mkdir "$D"
cp "$W/deltas/a.bdelta" "$W/deltas/b.bdelta" "$D"
touch -d '2024-03-01 12:34:56.789' "$D/a.bdelta"
touch -d '1999-12-31 23:59:59' "$D/b.bdelta"

value() { getfattr --only-values -n "user.bitdelta.$1" "$M/$2" 2>/dev/null; }
attributes() { getfattr -d "$M/$1" 2>/dev/null | sed -n 's/^user\.bitdelta\.\([a-z]*\)=.*/\1/p' | sort | paste -sd' '; }
inodes() { find "$M" -printf '%i %P\n' | sort; }

must mount_at "$M" "$B" "deltas=$D"

# --- extended attributes ---

shard=b/model-00001-of-00002.safetensors
same "attributes of a directory" "base delta encoding ratio" "$(attributes a)"
same "attributes of a model's tensors" "base delta encoding ratio" "$(attributes $shard)"
same "attributes of another file" "base delta ratio" "$(attributes b/name.txt)"
same "none of the root" "" "$(attributes .)"
same "base" base "$(value base a)"
same "delta" "$D/a.bdelta $D/b.bdelta" "$(value delta a) $(value delta $shard)"
check "encodings of a directory" grep -qE '(^|,)sign' <<<"$(value encoding a)"
check "encodings of a file" grep -qE '^[a-z]+(,[a-z]+)*$' <<<"$(value encoding $shard)"
want=$(awk -v v="$(cat "$W"/truth/a/* | wc -c)" -v s="$(stat -c %s "$D/a.bdelta")" 'BEGIN { printf "%.2f", v / s }')
same "ratio is shown to stored" "$want" "$(value ratio a)"
check "ratio of a file" grep -qE '^[0-9]+\.[0-9][0-9]$' <<<"$(value ratio $shard)"
refuses "one of another name is absent" 1 'No such attribute' getfattr -n user.other "$M/a"
refuses "they cannot be set" 1 'Read-only' setfattr -n user.bitdelta.base -v x "$M/a"
refuses "they cannot be removed" 1 'Read-only' setfattr -x user.bitdelta.base "$M/a"
check "a small buffer is refused with ERANGE, an empty one asks for the size" python3 - "$M/a" <<'PY'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
path, name = sys.argv[1].encode(), b"user.bitdelta.delta"
size = len(os.getxattr(path, name))
buffer = ctypes.create_string_buffer(size)
assert libc.getxattr(path, name, None, 0) == size
assert libc.getxattr(path, name, buffer, size) == size
assert libc.getxattr(path, name, buffer, size - 1) == -1 and ctypes.get_errno() == errno.ERANGE
names = sum(len(n) + 1 for n in os.listxattr(path))
assert libc.listxattr(path, None, 0) == names
assert libc.listxattr(path, buffer, 3) == -1 and ctypes.get_errno() == errno.ERANGE
PY

check "importing a mounted model: told" grep -q "what bitdelta makes of $D/a.bdelta" \
	<("$BUILD/bitdelta" import --steps 0 --base "$B" "$M/a" -o "$W/again.bdelta" 2>&1)
check "a mounted base: told" grep -q "what bitdelta makes of $D/a.bdelta" \
	<("$BUILD/bitdelta" import --steps 0 --base "$M/a" "$M/b" -o "$W/again.bdelta" 2>&1)

# Copies keep bytes and times; where the destination takes attributes, these too.
check "cp -a" cp -a "$M/a" "$W/copied"
check "cp -a: contents" diff -r "$W/truth/a" "$W/copied"
same "cp -a: times" "$(stat -c %y "$M/a/name.txt")" "$(stat -c %y "$W/copied/name.txt")"
mkdir "$W/unpacked"
check "tar --xattrs" bash -c 'tar --xattrs -C "$1" -cf - a b | tar --xattrs -C "$2" -xf -' - "$M" "$W/unpacked"
check "tar --xattrs: contents" diff -r "$W/truth/b" "$W/unpacked/b"
if touch "$W/try" && setfattr -n user.try -v 1 "$W/try" 2>/dev/null; then
	same "cp -a: attributes" "$(value delta a)" \
		"$(getfattr --only-values -n user.bitdelta.delta "$W/copied" 2>/dev/null)"
else
	skip "cp -a: attributes" "the filesystem of $W has none"
fi
if command -v rsync >/dev/null; then
	check "rsync -aX" rsync -aX "$M/" "$W/synced/"
	check "rsync -aX: contents" diff -r "$W/truth/a" "$W/synced/a"
	same "rsync -aX again: nothing to do" "" "$(rsync -aX --itemize-changes "$M/" "$W/synced/")"
	same "rsync copies models only" "a b" "$(ls -A "$W/synced" | paste -sd' ')"
	same "rsync --checksum: nothing to do" "" "$(rsync -a --checksum --itemize-changes "$M/" "$W/synced/")"
else
	skip "rsync -aX" "rsync is not installed"
fi

# --- times, inode numbers, sizes ---

for m in a b; do
	same "times of $m are the delta's" "$(stat -c '%y' "$D/$m.bdelta")" \
		"$(stat -c '%x|%y|%z' "$M/$m" "$M/$m/name.txt" "$M/$m/config.json" | tr '|' '\n' | sort -u)"
done
same "the root is as old as its newest model" "$(stat -c %y "$D/a.bdelta")" "$(stat -c %y "$M")"
check "find -newer" test "$(find "$M/a" "$M/b" -maxdepth 0 -newermt 2010-01-01 -printf '%f')" = a
virtual=$(cat "$M"/*/* | wc -c)
same "df -B1 shows what is shown" "$(((virtual + 4095) / 4096 * 4096)) 0" \
	"$(df -B1 --output=size,avail "$M" | tail -n 1 | xargs)"
check "df -h lists the mount" grep -qE '[0-9](\.[0-9])?M +[0-9.]+M? +0 +100%' <<<"$(df -h "$M")"
same "df -T" fuse.bitdelta "$(df --output=fstype "$M" | tail -n 1)"
check "df -i counts the files" test "$(df --output=itotal "$M" | tail -n 1)" -ge "$(find "$M" | wc -l)"

# close NAME WANTED FOUND: within 5 % and 8 KiB
close() {
	local d=$(($2 - $3))
	check "$1" test ${d#-} -le $(($2 / 20 + 8192))
}
blocks() { du -s -B512 "$1" | cut -f1; }
close "du shows all by default" "$(cat "$M"/a/* | wc -c)" $((512 * $(blocks "$M/a")))
before=$(inodes)
for layout in dirs hub; do
	for blocks in full stored; do
		must unmount "$M"
		must mount_at "$M" "$B" "deltas=$D,blocks=$blocks,layout=$layout"
		case $layout in
		dirs)
			model=$M/a
			same "inode numbers stay, blocks=$blocks" "$before" "$(inodes)"
			;;
		hub) model=$M/models--a ;;
		esac
		apparent=$(du -s --apparent-size -B1 "$model" | cut -f1)
		close "$layout, blocks=$blocks: apparent size" "$(cat "$W"/truth/a/* | wc -c)" "$apparent"
		if [ $blocks = stored ]; then
			close "$layout: blocks=stored shows the delta's size" "$(stat -c %s "$D/a.bdelta")" \
				$((512 * $(blocks "$model")))
			check "$layout: blocks=stored, cp --sparse" cp -r --sparse=always "$model" "$W/sparse-$layout"
			mkdir "$W/holes-$layout"
			check "$layout: blocks=stored, tar -S" bash -c 'tar -C "$1" -cSf - . | tar -C "$2" -xf -' - \
				"$model" "$W/holes-$layout"
			check "$layout: both have all bytes" bash -c 'cmp <(find "$1" -type f -exec md5sum {} + |
				cut -c1-32 | sort) <(find "$2" -type f -exec md5sum {} + | cut -c1-32 | sort) && cmp <(find "$1" \
				-type f -exec md5sum {} + | cut -c1-32 | sort) <(find "$3" -type f -exec md5sum {} + | cut -c1-32 |
				sort)' - "$model" "$W/sparse-$layout" "$W/holes-$layout"
		fi
	done
done
must unmount "$M"
must mount_at "$M" "$B" "deltas=$D/b.bdelta:$D/a.bdelta,layout=dirs"
same "inode numbers stay when deltas are named one by one" "$before" "$(inodes)"
must unmount "$M"

# --- what the mount tells of itself ---

started=$(date +%s)
must mount_at "$M" "$B" "deltas=$D,threads=3,show_base"
C=$M/.bitdelta
same ".bitdelta is not listed" "a b base" "$(ls -A "$M" | paste -sd' ')"
same ".bitdelta: find does not meet it" "" "$(find "$M" -name '.bit*')"
check ".bitdelta: it is there" test -d "$C"
same ".bitdelta: its files" "stats.json status version" "$(ls -A "$C" | paste -sd' ')"
same "version" "bitdelta $("$MOUNT" --version | awk 'NR == 1 { print $2 }')" "$(cat "$C/version")"
check "status names the mount point" grep -qF "on $M" "$C/status"
check "status names the base" grep -qE "^base +$B: .*, 2 fine-tunes" "$C/status"
check "status names the models" grep -qE '^model +a: .* in .*, 0 open' "$C/status"
check "stats.json is JSON with the documented keys" python3 - "$C/stats.json" "$M" "$started" <<'PY'
import json, os, sys
s = json.load(open(sys.argv[1]))
wanted = {
    "": "version pid mounted_at uptime_s source mountpoint layout threads in_use bases models rejected notes totals "
        "latency_us",
    "in_use": "readahead_kib passthrough mapped cpu sandbox user watch",
    "bases": "name path digest tensors bytes models problem",
    "models": "name delta base virtual_bytes stored_bytes files distilled open_files opens reads bytes base_bytes "
              "delta_bytes errors",
    "totals": "virtual_bytes stored_bytes opens reads bytes base_bytes delta_bytes errors reloads",
    "latency_us": "count p50 p90 p99 max"}
for key, names in wanted.items():
    part = s if not key else s[key]
    for x in part if isinstance(part, list) else [part]:
        assert set(x) == set(names.split()), (key, set(x) ^ set(names.split()))
assert s["mountpoint"] == sys.argv[2] and s["layout"] == "dirs" and s["threads"] == 3
assert int(sys.argv[3]) <= s["mounted_at"] and 0 <= s["uptime_s"] < 300
assert os.path.realpath(f"/proc/{s['pid']}/exe").endswith("/mount.bitdelta")
assert [m["name"] for m in s["models"]] == ["a", "b", "base"] and s["models"][2]["delta"] is None
for m in s["models"][:2]:
    assert m["stored_bytes"] == os.path.getsize(m["delta"]) and m["files"] == len(os.listdir(f"{sys.argv[2]}/{m['name']}"))
assert s["totals"]["stored_bytes"] == sum(m["stored_bytes"] for m in s["models"])
PY
check "each opening reads anew" python3 - "$C" "$M" <<'PY'
import json, os, sys
control, mount = sys.argv[1:]
with open(control + "/stats.json", "rb", 0) as f:
    one = f.read(1 << 20)
    assert f.read() == b"" and f.seek(0) == 0
    with open(mount + "/a/config.json") as g:
        g.read()
        assert json.load(open(control + "/stats.json"))["models"][0]["open_files"] == 1
    two = b"".join(iter(lambda: f.read(7), b""))
    assert one == two, "an open file changes"
a = json.load(open(control + "/stats.json"))["models"][0]
assert a["open_files"] == 0 and a["opens"] == json.loads(one)["models"][0]["opens"] + 1
PY

# Exactly one tensor is read, past the page cache: what that touches, for each kind of tensor.
check "counters follow what is read" python3 - "$C/stats.json" "$M/a/model.safetensors" "$B" <<'PY'
import json, mmap, os, sys
stats, path, base = sys.argv[1:]
now = lambda: next(m for m in json.load(open(stats))["models"] if m["name"] == "a")
fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4 << 20)
start = 8 + int.from_bytes(os.pread(os.open(path, os.O_RDONLY), 8, 0), "little")
header = json.loads(os.pread(os.open(path, os.O_RDONLY), start - 8, 8))
tested = 0
for name, t in header.items():
    if name == "__metadata__":
        continue
    a, b = (start + x for x in t["data_offsets"])
    before = now()
    n = os.preadv(fd, [memoryview(buffer)[:b - a]], a)
    after = now()
    assert n == b - a, (n, b - a)
    delta = {k: after[k] - before[k] for k in ("bytes", "reads", "base_bytes", "delta_bytes", "errors")}
    assert delta["errors"] == 0
    # O_DIRECT need not be aligned, and the kernel asks for no more than was asked for.
    assert delta["bytes"] == b - a, (name, delta, b - a)
    if "up.weight" in name:    # one bit for every two bytes of the base, and a scale for each row and column
        size, (rows, cols) = b - a, t["shape"]
        needed = size + size // 16 + 4 * (rows + cols)
        assert size <= delta["base_bytes"] and delta["base_bytes"] + delta["delta_bytes"] <= 1.1 * needed, \
            (name, delta, needed)
        tested += 1
    else:                      # kept whole, or the base's: read once
        assert delta["base_bytes"] + delta["delta_bytes"] <= 1.1 * (b - a) + 4 * sum(t["shape"]) + (b - a) / 16, \
            (name, delta, b - a)
assert tested
PY
before=$(stat_of "$M" 's["totals"]["bytes"]')
cat "$M/b/name.txt" >/dev/null
same "totals count all models" "$(stat -c %s "$M/b/name.txt")" $(($(stat_of "$M" 's["totals"]["bytes"]') - before))
cat "$M/b/name.txt" >/dev/null
same "the page cache answers the second time" "$(stat -c %s "$M/b/name.txt")" \
	$(($(stat_of "$M" 's["totals"]["bytes"]') - before))
check "a reading is counted in the latencies" \
	test "$(stat_of "$M" 's["latency_us"]["count"] == s["totals"]["reads"] > 0')" = True
check "latencies are in order" test "$(stat_of "$M" '(lambda l: 0 < l["p50"] <= l["p90"] <= l["p99"])(s["latency_us"])')" = True
must unmount "$M"

# --- names that are hard to write ---

odd=$'odd "name" \\ \xc3\xa4 '"'x'"
mv "$D/a.bdelta" "$D/$odd.bdelta"
mv "$D/b.bdelta" "$D/"$'not utf8 \xff.bdelta'
text=$(mount_at "$M" "$B" "deltas=$D" 2>&1)
same "an odd name: mounted" 0 $?
check "an odd name: contents" diff -r "$W/truth/a" "$M/$odd"
same "an odd name: in stats.json" "$odd" "$(stat_of "$M" 's["models"][0]["name"]')"
same "an odd name: in the attributes" "$D/$odd.bdelta" "$(value delta "$odd")"
same "a name that is not UTF-8 is left out, and stats.json is still JSON" 1 "$(stat_of "$M" 'len(s["rejected"])')"
check "a name that is not UTF-8: the warning" grep -q 'not utf8' <<<"$text"
check "umount at last" unmount "$M"
finish
