#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 45-exact.sh: `import --exact` keeps a fine-tune bit for bit: through the mount in both layouts, by many readers at
# once, out of export and out of the independent decoder.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

BITDELTA=$BUILD/bitdelta
B=$DATA/base
F=$DATA/kjv
M=$W/mnt
D=$W/deltas
mkdir "$D"
python=$here/../../build/venv/test/bin/python
[ -x "$python" ] || python=/usr/bin/python3

check "import --exact" "$BITDELTA" import --exact --base "$B" "$F" -o "$D/kjv.bdelta"
check "it is smaller than raw" test "$(stat -c %s "$D/kjv.bdelta")" -lt $(($(stat -c %s "$F/model.safetensors") * 3 / 4))
check "no weight is signs" python3 -c 'import json, subprocess, sys
o = json.loads(subprocess.check_output(sys.argv[1:]))
assert o["sign_weights"] == 0 and o["encodings"]["exact"]["tensors"] > 0 and "import" not in o, o' \
	"$BITDELTA" info --json "$D/kjv.bdelta"
check "info says so" grep -q 'exact: .*bit for bit' <<<"$("$BITDELTA" info "$D/kjv.bdelta")"
check "verify rebuilds it" "$BITDELTA" verify --base "$B" "$D/kjv.bdelta"
check "verify without the base says what it did not check" \
	grep -qE 'but for [0-9]+ exact tensors' <<<"$("$BITDELTA" verify "$D/kjv.bdelta")"
for option in "--sign *" "--scale row" "--attenuation 1" "--calib $W/x" "--loss kl" "--device cpu" "--steps 9"; do
	refuses "--exact with ${option%% *}" 2 "--exact" "$BITDELTA" import --exact --base "$B" "$F" -o "$W/x.bdelta" $option
done
check "nothing was written" test ! -e "$W/x.bdelta"
must "$BITDELTA" import --exact --threads 1 --base "$B" "$F" -o "$W/one.bdelta" >"$W/import.log"
check "one thread gives the same file" cmp "$W/one.bdelta" "$D/kjv.bdelta"
must "$BITDELTA" import --exact --base "$B" "$B" -o "$D/itself.bdelta" >"$W/import.log"
check "the base over itself costs next to nothing" test "$(stat -c %s "$D/itself.bdelta")" -lt 40000
check "export" "$BITDELTA" export "$D/kjv.bdelta" --base "$B" -o "$W/export"
check "export: contents" diff -r "$F" "$W/export"
if "$python" -c 'import numpy' 2>/dev/null; then
	check "decode.py" "$python" "$here/../loaders/decode.py" "$D/kjv.bdelta" "$B" "$W/decoded"
	check "decode.py: contents" diff -r "$F" "$W/decoded"
else
	skip "decode.py" "needs numpy"
fi

sums() { (cd "$1" && sha256sum ./*); }
wanted=$(sums "$F")
for mapped in 1 0; do
	must env BITDELTA_MAP=$mapped "$MOUNT" "$B" "$(mkdir -p "$M" && echo "$M")" -o "deltas=$D,log=$W/log"
	same "the mount shows the original, mapped $mapped" "$wanted" "$(sums "$M/kjv")"
	mkdir -p "$W/truth"
	ln -sfn "$F" "$W/truth/kjv"
	for i in 1 2 3 4 5 6 7 8; do
		# Parts of many sizes, each reader in an order of its own.
		python3 - "$F/model.safetensors" "$M/kjv/model.safetensors" $i >"$W/reader.$i" 2>&1 <<'END' &
import random, sys
want = open(sys.argv[1], "rb").read()
got = open(sys.argv[2], "rb", buffering=0)
random.seed(int(sys.argv[3]))
for _ in range(60):
    at, n = random.randrange(len(want)), random.choice([1, 7, 4096, 65536, 300000, 1 << 20])
    got.seek(at)
    data = got.read(n)
    assert data and data == want[at:at + len(data)], (at, n)
END
		readers[i]=$!
	done
	for i in 1 2 3 4 5 6 7 8; do
		wait "${readers[i]}"
		same "reader $i, mapped $mapped" 0 $?
	done
	same "nothing was logged" "" "$(logged "$W/log")"
	same "the attribute says exact" exact "$(getfattr --only-values -n user.bitdelta.encoding \
		"$M/kjv/model.safetensors" 2>/dev/null || python3 -c 'import os, sys
print(os.getxattr(sys.argv[1], "user.bitdelta.encoding").decode())' "$M/kjv/model.safetensors")"
	check "umount" unmount "$M"
done

must mount_at "$M" "$B" "deltas=$D,layout=hub"
r=$(cat "$M/models--kjv/refs/main")
same "layout=hub shows the original" "$wanted" "$(sums "$M/models--kjv/snapshots/$r")"
check "umount of the hub" unmount "$M"

# Damage that is found while it is read: an error, a line in the log, and no wrong byte.
at=$(python3 - "$D/kjv.bdelta" <<'END'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", data[:8])[0]
t = {k: v for k, v in json.loads(data[8:8 + n]).items() if k.startswith("exact/")}
print(8 + n + max(t.values(), key=lambda v: v["data_offsets"][1] - v["data_offsets"][0])["data_offsets"][0])
END
)
printf '\377\377\377\377' | dd of="$D/kjv.bdelta" bs=1 seek="$at" conv=notrunc status=none
rm "$D/itself.bdelta" "$W/log"
must mount_at "$M" "$B" "deltas=$D,log=$W/log"
refuses "a damaged tensor cannot be read" 1 "Input/output error" cat "$M/kjv/model.safetensors"
check "the log says where" grep -q "kjv.bdelta: the exact tensor at byte $at is damaged" "$W/log"
check "umount of what is damaged" unmount "$M"
refuses "verify finds it" 1 "the exact tensor at byte $at is damaged" "$BITDELTA" verify --base "$B" "$D/kjv.bdelta"
finish
