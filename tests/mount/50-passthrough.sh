#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 50-passthrough.sh: files that equal real ones: those of bases shown by show_base, and shards of a fine-tune
# that are a base's. Their bytes are right, and where libfuse and the kernel can, the kernel itself reads them.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"
export W

M=$W/mnt
B=$W/models/tunes/base
F=$W/models/tunes/a
S=model-00001-of-00002.safetensors # the one that stays the base's
O=model-00002-of-00002.safetensors
D=$W/deltas/frozen.bdelta
must python3 "$here/make_models.py" "$W/models" tunes
must cp "$B/$S" "$F/$S"
import "$B" "$F" frozen
must cmp -s "$W/truth/frozen/$S" "$B/$S"
must cp -r "$B" "$W/kept"

# mount_it [OPTIONS]
mount_it() { mount_at "$M" "$B" "deltas=$D,show_base,log=$W/log${1:+,$1}"; }
passes() { stat_of "$M" 's["in_use"]["passthrough"]'; }
# of MODEL NAME: one of its counters
of() { stat_of "$M" "[m['$2'] for m in s['models'] if m['name'] == '$1'][0]"; }

all_closed() { [ "$(open_files "$M")" = 0 ]; }
# over LOWER NAME: an overlay of LOWER in $W/NAME
over() {
	mkdir -p "$W/$2" "$W/$2.upper" "$W/$2.work"
	mount -t overlay none "$W/$2" -o "lowerdir=$1,upperdir=$W/$2.upper,workdir=$W/$2.work"
}

# --- the bytes, with any libfuse ---

: >"$W/log"
check "mount" mount_it
python3 "$here/reader.py" "$M/base" "$B" 60 >"$W/out" 2>&1 || failed=1
sed -E 's/^(ok|not ok) /\1 a base: /' "$W/out"
python3 "$here/reader.py" "$M/frozen" "$W/truth/frozen" 60 >"$W/out" 2>&1 || failed=1
sed -E 's/^(ok|not ok) /\1 a fine-tune with a shard of the base: /' "$W/out"
same "nothing was logged" "" "$(logged "$W/log" | grep -v passthrough)"
check "umount" unmount "$M"

# --- who reads ---

must mount_it
check "the same shard" cmp "$M/frozen/$S" "$B/$S"
same "the same shard: nothing of the delta was read" 0 "$(of frozen delta_bytes)"
why=$("$BUILD/bitdelta" doctor | sed -n 's/^note *passthrough: //p')
if [ "$(passes)" = True ]; then
	same "passthrough: doctor agrees" "" "$why"
	cat "$M/base/$S" "$M/base/$O" "$M/base/config.json" "$M/frozen/$S" | cmp - \
		<(cat "$B/$S" "$B/$O" "$B/config.json" "$B/$S") && ok "passthrough: contents" ||
		not_ok "passthrough: contents" "they differ"
	same "passthrough: the daemon reads nothing of a base" 0 "$(of base reads)"
	same "passthrough: the daemon reads nothing of the same shard" 0 "$(of frozen reads)"
	check "passthrough: another shard" cmp "$M/frozen/$O" "$W/truth/frozen/$O"
	check "passthrough: the daemon reads another shard" test "$(of frozen reads)" -gt 0

	# The kernel wants all handles of one file to have the same backing.
	many() {
		python3 - "$M/base/$S" "$M/frozen/$S" "$B/$S" <<'EOF'
import mmap, os, sys, threading
want = open(sys.argv[3], "rb").read()
wrong = []
def work(path):
    try:
        for round in range(40):
            files = [open(path, "rb") for _ in range(1 + round % 5)]
            if any(f.read() != want for f in files):
                wrong.append("read")
            m = mmap.mmap(files[0].fileno(), 0, mmap.MAP_SHARED if round % 2 else mmap.MAP_PRIVATE,
                          mmap.PROT_READ)
            for f in files:
                f.close()
            if m[:] != want: # after the last handle
                wrong.append("mmap")
    except Exception as e:
        wrong.append(f"{path}: {e}")
threads = [threading.Thread(target=work, args=(p,)) for p in sys.argv[1:3] * 4]
for t in threads: t.start()
for t in threads: t.join()
sys.exit("; ".join(sorted(set(wrong))) if wrong else 0)
EOF
	}
	check "passthrough: many handles at a time" many
	same "passthrough: still nothing was read by the daemon" 0 "$(of base reads)"
	check "passthrough: all were closed" wait_for 10 all_closed

	# What is stacked on the mount, to make a model writable.
	if over "$B" plain 2>/dev/null; then
		umount "$W/plain"
		check "passthrough: an overlay over it" over "$M/base" over
		check "passthrough: contents of the overlay" cmp "$W/over/$S" "$B/$S"
		check "passthrough: umount the overlay" umount "$W/over"
	else
		skip "passthrough: an overlay over it" "no overlay can be mounted in $W"
	fi
	check "passthrough: umount" unmount "$M"

	# Opened: what the file holds now. Opening: only what it held.
	must mount_it
	exec 5<"$M/frozen/$S" 6<"$M/base/$S"
	printf 'other bytes' | dd of="$B/$S" conv=notrunc bs=1 seek=2000 status=none
	check "passthrough, overwritten: open handles" cmp "$B/$S" - <&5
	refuses "passthrough, overwritten: a shard cannot be opened" 1 'Input/output error' cat "$M/frozen/$S"
	refuses "passthrough, overwritten: a base cannot be opened" 1 'Input/output error' cat "$M/base/$S"
	check "passthrough, overwritten: said so" grep -q 'was written to while it was in use' "$W/log"
	exec 5<&- 6<&-
	check "passthrough, overwritten: umount" unmount "$M"
	rm -r "$B"
	must cp -r "$W/kept" "$B"

	must mount_it
	exec 5<"$M/frozen/$S"
	rm -r "$B"
	check "passthrough, deleted: open handles" cmp "$W/kept/$S" - <&5
	check "passthrough, deleted: opened afterwards" cmp "$W/kept/$O" "$M/base/$O"
	same "passthrough, deleted: still not read by the daemon" 0 "$(of base reads)"
	exec 5<&-
	check "passthrough, deleted: umount" unmount "$M"
	must cp -r "$W/kept" "$B"

	must mount_it nosandbox
	check "passthrough without the sandbox" cmp "$M/base/$S" "$B/$S"
	same "passthrough without the sandbox: not read by the daemon" 0 "$(of base reads)"
	check "passthrough without the sandbox: umount" unmount "$M"

	# Who may not: ordinary reads, and not a word about it.
	: >"$W/log"
	must mount_it drop_privileges
	same "without privileges" False "$(passes)"
	check "without privileges: contents" cmp "$M/base/$S" "$B/$S"
	check "without privileges: the daemon reads" test "$(of base reads)" -gt 0
	same "without privileges: nothing was logged" "" "$(logged "$W/log")"
	check "without privileges: umount" unmount "$M"

	# Where the kernel refuses, because the base lies on a stacked filesystem.
	if over "$B" stacked 2>/dev/null; then
		must mount_at "$M" "$W/stacked" "deltas=$D,show_base,log=$W/log"
		check "a base on an overlay" diff -r "$B" "$M/stacked"
		check "a base on an overlay: the same shard" cmp "$M/frozen/$S" "$B/$S"
		same "a base on an overlay: read by the daemon" False "$(passes)"
		same "a base on an overlay: said once" 1 "$(grep -c 'no more passthrough' "$W/log")"
		check "a base on an overlay: umount" unmount "$M"
		umount "$W/stacked"
	else
		skip "a base on an overlay" "no overlay can be mounted in $W"
	fi
else
	same "the same shard: the daemon reads it from the base" "$(stat -c %s "$B/$S")" \
		"$(of frozen base_bytes)"
	[ -n "$why" ] || why=$(sed -n 's/.*bitdelta\[[0-9]*\]: //; /passthrough/p' "$W/log" | tail -n 1)
	skip "passthrough" "${why:-the kernel does not offer it}"
	check "umount again" unmount "$M"
fi
finish
