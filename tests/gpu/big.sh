#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# big.sh BUILD FOLDER: import a pair of the shape of Llama-2-7B on the GPU and say how long each part took, beside
# its floor. FOLDER needs 30 GB of disk and is removed afterwards. As root the page cache is dropped first.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=$1 folder=$2
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder" || exit 1

cold() {
	sync
	echo 3 2>/dev/null >/proc/sys/vm/drop_caches || echo "(the page cache could not be dropped)"
}
seconds() { # of a command, whose output goes away
	local from to
	from=$(date +%s.%N)
	"$@" >/dev/null || return
	to=$(date +%s.%N)
	echo "$from $to" | awk '{ printf "%.1f", $2 - $1 }'
}
read_all() { find "$folder/base" "$folder/fine" -name '*.safetensors' -print0 | xargs -0 -P 8 cat; }

python3 tests/gpu/big_pair.py tests/data/nano-llama2/base/tokenizer.json "$folder" || {
	echo "not ok big pair: could not be made"
	exit 1
}
cold
read=$(seconds read_all)
echo "reading both checkpoints from the disk: $read s ($(du -sBM "$folder" | cut -f1))"

cold
closed=$(seconds "$build/bitdelta" import --steps 0 --base "$folder/base" "$folder/fine" \
	-o "$folder/closed.bdelta" --json)
echo "closed form only, from the disk: $closed s"

cold
from=$(date +%s.%N)
"$build/bitdelta" import --device cuda --base "$folder/base" "$folder/fine" \
	-o "$folder/fine.bdelta" --json >"$folder/report.json" || {
	echo "not ok big import: exit status $?"
	exit 1
}
to=$(date +%s.%N)
python3 - "$folder/report.json" "$read" "$closed" "$(echo "$from $to" | awk '{ print $2 - $1 }')" <<'END'
import json, sys

report = json.load(open(sys.argv[1]))
read, closed, whole = map(float, sys.argv[2:])
d = report["distillation"]
rows = [  # what, measured, floor, goal
    ("extracting signs and closed form, files to file", closed, read, None),
    ("loading teacher, then student", d["seconds_load"], 27.0e9 / 50e9, None),
    ("calibration text", d["seconds_calibrate"], 7 * 127 * 13.2e9 / 4.3e12, None),
    ("teacher over all windows", d["seconds_teacher"], 128 * 8.4e-3, None),
    ("200 steps of 512 tokens", d["seconds_steps"], 200 * (3 * 8.4e-3 + 2 * 6.2e-3), None),
    ("teacher and steps", d["seconds_teacher"] + d["seconds_steps"], 8.0, 14.0),
    ("whole import, files to file", whole, read, 2 * read + 20),
]
print(f"{'':48s} {'seconds':>8s} {'floor':>7s} {'goal':>7s}")
for what, measured, floor, goal in rows:
    print(f"{what:48s} {measured:8.1f} {floor:7.1f} {'' if goal is None else f'{goal:7.1f}'}")
print(f"{'peak GPU memory, GB':48s} {d['peak_memory'] / 1e9:8.1f} {'':7s} {24.0:7.1f}")
print(f"held-out kl {d['kl_before']:.5f} -> {d['kl_after']:.5f}")

def check(name, good):
    print(("ok " if good else "not ok ") + name)

check("a pair of 7B is distilled", d["done"] and d["kl_after"] < d["kl_before"])
check("200 steps and the teacher take at most 14 s", rows[5][1] <= 14)
check("a whole import takes at most twice the reading and 20 s", whole <= 2 * read + 20)
check("24 GB of GPU memory are enough", d["peak_memory"] <= 24e9)
END
