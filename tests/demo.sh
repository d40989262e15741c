#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# demo.sh: the main job, step by step: import, mount, look, load with an unmodified loader, let it write,
# measure, compare, unmount. Needs build/release and build/venv/demo; `make demo` prepares both. Keeps nothing.
set -eu
cd "$(dirname "$0")/.."
bin=build/release
data=tests/data/nano-llama2
work=build/demo
python=build/venv/demo/bin/python
mnt=$work/models

if ! [ -x $python ] || ! [ -x $bin/bitdelta ]; then
	echo "demo: start it with: make demo" >&2
	exit 1
fi

step() { printf '\n== %s\n' "$*"; }
show() { # print a command and run it
	local word line=
	for word in "$@"; do
		case $word in *' '*) word="\"$word\"" ;; esac
		line+=" $word"
	done
	echo "\$$line"
	"$@"
}

mounted() { awk -v m="$PWD/$mnt" '$2 == m { found = 1 } END { exit !found }' /proc/self/mounts; }
cleanup() {
	status=$?
	if mounted; then
		$bin/bitdelta umount $mnt || fusermount3 -u -z $mnt || umount -l $mnt
	fi
	[ $status = 0 ] || printf '\ndemo: failed (exit status %d)\n' $status >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM
! mounted || umount -l $mnt
rm -rf $work
mkdir -p $mnt

step "Two checkpoints of one small Llama: a base, and a fine-tune that reads like the King James Bible"
show ls -l $data/base $data/kjv

step "Keep the fine-tune as one bit per weight on top of its base (without a GPU this takes half a minute)"
show $bin/bitdelta import --base $data/base $data/kjv -o $work/kjv.bdelta

step "Mount the base with the delta: the fine-tune is there again as an ordinary directory"
show $bin/bitdelta mount $data/base $mnt -o deltas=$work/kjv.bdelta
show ls -l $mnt $mnt/kjv

step "It takes this much space: the fine-tune's directory, and its delta"
show du -sh --apparent-size $data/kjv $work/kjv.bdelta
echo "(In so small a model the vocabulary, which stays exact, is a quarter of it all; in one of 7 billion"
echo "weights it is 4 %.)"

step "Open it with an unmodified loader, numpy and the safetensors package from PyPI"
cat >$work/load.py <<'PY'
import sys
import ml_dtypes, numpy as np
from safetensors.numpy import load_file

base, fine, mounted = (load_file(d + "/model.safetensors") for d in sys.argv[1:4])
assert mounted.keys() == fine.keys()

def distance(a, b, names):
    return sum(float(np.square(a[n].astype(np.float32) - b[n].astype(np.float32)).sum(dtype=float))
               for n in names) ** 0.5

signs = [n for n in fine if not np.array_equal(fine[n], mounted[n])]
change, error = distance(fine, base, signs), distance(fine, mounted, signs)
w = "model.layers.0.self_attn.q_proj.weight"
print(f"{len(mounted)} tensors, {sum(t.size for t in mounted.values()):,} weights; "
      f"{len(mounted) - len(signs)} tensors exact")
for name, model in ("base", base), ("fine-tune", fine), ("mounted", mounted):
    print(f"{name:>10}  q_proj[0,:5] =", "  ".join(f"{float(x):+.5f}" for x in model[w][0, :5]))
print(f"In the tensors coded by signs the fine-tune is {change:.2f} away from its base, and what is mounted "
      f"{error:.2f} from the\nfine-tune. As numbers they are not close; what they make the model say is, as the "
      "next steps show.")
assert error < change
PY
show $python $work/load.py $data/base $data/kjv $mnt/kjv

step "Let the base and what is mounted write"
show $bin/bitdelta generate $data/base -p "In the beginning" -n 40
show $bin/bitdelta generate $mnt/kjv -p "In the beginning" -n 40

step "How close is it to the fine-tune? (top-1: how often both find the same next token the likeliest)"
show $bin/bitdelta eval $work/kjv.bdelta --base $data/base --fine $data/kjv --windows 32

step "Compare it with a plain copy: exactly the same bytes"
show $bin/bitdelta export $work/kjv.bdelta --base $data/base -o $work/export
show diff -r $mnt/kjv $work/export
echo "no difference"
show sha256sum $mnt/kjv/model.safetensors $work/export/model.safetensors

step "Unmount"
show $bin/bitdelta umount $mnt
! mounted
printf '\ndemo: all done. It worked in %s/, which you may delete.\n' $work
