#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# cli.sh: import with distillation, distill, eval and generate on the shipped pair: what they write, say and
# leave behind when they fail or are interrupted. Without a GPU, also where there is one.
. "$(dirname "$0")/../mount/lib.sh"

B=$DATA/base
F=$DATA/kjv
BITDELTA=$BUILD/bitdelta
export CUDA_VISIBLE_DEVICES=
cd "$W" || exit 1

# holds NAME FILE CONDITION: lines of JSON; in Python's CONDITION, o is the first
holds() {
	check "$1" python3 -c '
import json, math, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
o = lines[0]
if not eval("(" + sys.argv[2] + ")"):
    sys.exit(f"{sys.argv[2]} does not hold for {o}")' "$2" "$3"
}
closed_import() { must "$BITDELTA" import -q --steps 0 --base "$B" "$F" -o "${1:-closed.bdelta}"; }
distill() { "$BITDELTA" distill --base "$B" --fine "$F" --device cpu "$@"; }
# A background process of a shell without job control begins with SIGINT ignored.
defaults=(env --default-signal=INT,TERM,HUP)
closed_import

# --- import ---

"$BITDELTA" import --json --base "$B" "$F" -o kjv.bdelta >import.json 2>import.err
same "import: exit status" 0 $?
holds "import refines the scales" import.json "o['distillation']['done'] and 0 <
	o['distillation']['kl_after'] < 0.75 * o['distillation']['kl_before'] and
	o['distillation']['mse_after'] < o['distillation']['mse_before']"
holds "import --json: members" import.json \
	'list(o) == ["output", "fine_bytes", "delta_bytes", "ratio", "sign_weights", "encodings",
		"other_files", "error", "distillation", "seconds", "peak_memory"] and
	list(o["distillation"]) == ["done", "device", "kl_before", "kl_after", "mse_before", "mse_after",
		"top1_before", "top1_after", "best_step", "seconds_load", "seconds_calibrate", "seconds_teacher", "seconds_steps",
		"seconds_total", "peak_memory"]'
holds "import --json: figures" import.json "(lambda d: 0 < d['best_step'] <= 200 and
	'CPU' in d['device'] and d['peak_memory'] > 1e6 and d['seconds_total'] <= o['seconds'] and
	o['delta_bytes'] == $(stat -c %s kjv.bdelta))(o['distillation'])"
check "what import wrote is whole" "$BITDELTA" verify -q kjv.bdelta --base "$B"
"$BITDELTA" info --json kjv.bdelta >info.json
"$BITDELTA" info --json closed.bdelta >closed.json
holds "info knows" info.json 'o["import"] == {"scale": "rank1", "attenuation": 1.4, "distilled": True}'
holds "all but the scales is as without" info.json '(lambda c: all(o[k] == c[k] for k in ("base", "encodings",
	"other_files", "error", "sign_weights")) and not c["import"]["distilled"])(json.load(open("closed.json")))'
check "info prints so" grep -q '^  scales rank1, distilled,' <("$BITDELTA" info kjv.bdelta)
"$BITDELTA" import --base "$B" "$F" --steps 10 --seed 3 -o line.bdelta >line.txt 2>&1
check "a line says what it did" grep -qE '^  distilled on .*: kl [0-9.]+ -> [0-9.]+ on held-out text' line.txt
check "another one how well" grep -qE "^  likeliest next token as the fine-tune's: [0-9.]+ % -> [0-9.]+ %" line.txt
check "the weights do not matter then" bash -c '! grep -q "off by" line.txt'
"$BITDELTA" import --base "$B" "$F" --steps 0 -o line.bdelta >line.txt 2>&1
check "without distillation, what is known of the weights" grep -q \
	'^  changes coded by signs are off by 0.6[0-9]* of their size (median; at most 0.6' line.txt
"$BITDELTA" import --json --steps 0 --base "$B" "$F" -o none.bdelta >none.json 2>none.err
holds "--steps 0 does nothing" none.json '"distillation" not in o'
check "--steps 0: the closed form" cmp none.bdelta closed.bdelta

# --- what an export gave, imported again ---

cp closed.bdelta generation1.bdelta
for i in 1 2; do
	must "$BITDELTA" export -q generation$i.bdelta --base "$B" -o generation$i
	must "$BITDELTA" import -q --steps 0 --base "$B" generation$i -o generation$((i + 1)).bdelta
done
for i in 1 3; do
	"$BITDELTA" eval --json --windows 4 --device cpu generation$i.bdelta --base "$B" --fine "$F" >generation$i.json
done
holds "the third generation is as close as the first" generation1.json 'all(
	abs(a["delta"]["kl"] - b["delta"]["kl"]) < 0.02 * a["delta"]["kl"]
	for a, b in zip(o["texts"], json.load(open("generation3.json"))["texts"], strict=True))'
"$BITDELTA" info --json generation3.bdelta >generation.json
holds "its factor is 1" generation.json 'o["import"]["attenuation"] == 1 and o["error"]["worst"] < 0.1'
rm -r generation1 generation2

# --- distill ---

for i in 1 2; do
	check "distill -o" distill -q --steps 10 --seed 1 closed.bdelta -o refined$i.bdelta
done
check "the same bytes again" cmp refined1.bdelta refined2.bdelta
check "the same as import writes" "$BITDELTA" import -q --base "$B" "$F" --device cpu --steps 10 --seed 1 \
	-o imported.bdelta
check "the same as import writes: bytes" cmp imported.bdelta refined1.bdelta
check "the old file is as it was" cmp closed.bdelta none.bdelta
check "it is whole" "$BITDELTA" verify -q refined1.bdelta --base "$B"
check "another seed" distill -q --steps 10 --seed 2 closed.bdelta -o refined2.bdelta
check "gives other scales" bash -c '! cmp -s refined1.bdelta refined2.bdelta'
cp closed.bdelta x.bdelta
ln -s x.bdelta link.bdelta
distill --json --steps 10 --seed 1 link.bdelta >distill.json
same "distill --json: exit status" 0 $?
holds "distill --json" distill.json "o['output'] == '$W/x.bdelta' and o['done'] and
	o['kl_after'] < o['kl_before'] and o['best_step'] <= 10"
check "in place: the same bytes" cmp x.bdelta refined1.bdelta
check "in place: a link stays one" test -L link.bdelta
for loss in mse kl; do
	check "--loss $loss" distill -q --steps 10 --loss $loss closed.bdelta -o $loss.bdelta
done
check "the losses differ" bash -c '! cmp -s mse.bdelta kl.bdelta'
for i in {1..200}; do echo "In the beginning was the word number $i, and the word was with $((i * i))."; done >text.txt
distill --steps 1 --batch 1 --length 1000 closed.bdelta -o long.bdelta >long.txt 2>long.err
check "distill: windows are no longer than the model has positions" grep -q \
	"^note: windows of 512 tokens instead of 1000: " long.err
check "--calib" distill -q --steps 5 --batch 2 --length 64 --rate 0.02 --calib text.txt closed.bdelta -o calib.bdelta
refuses "--fine is missing" 2 "fine are needed" "$BITDELTA" distill closed.bdelta --base "$B"
refuses "no such directory" 1 "none/x.bdelta: cannot open the directory" distill closed.bdelta -o none/x.bdelta
refuses "another name" 1 "SOMETHING.bdelta" distill closed.bdelta -o x.txt
refuses "no such delta" 1 "nope.bdelta: No such file" distill nope.bdelta
refuses "another base" 1 "another one" "$BITDELTA" distill closed.bdelta --base "$F" --fine "$F"
: >empty.txt
refuses "nothing to calibrate with" 1 "^bitdelta distill: .*empty.txt" distill --calib empty.txt closed.bdelta
refuses "import: nothing to calibrate with" 1 "empty.txt.*; y.bdelta is complete, with closed-form scales" \
	"$BITDELTA" import -q --base "$B" "$F" --calib empty.txt -o y.bdelta
check "import: the closed form is there" cmp y.bdelta closed.bdelta
check "the old file is still as it was" cmp closed.bdelta none.bdelta

# --- eval ---

evaluate() { "$BITDELTA" eval --base "$B" --fine "$F" --device cpu "$@"; }
evaluate --json kjv.bdelta --windows 24 >eval.json 2>eval.err
same "eval: exit status" "0 " "$? $(grep -v 'progress\|"note":"this takes about' eval.err)"
holds "eval --json: members" eval.json 'list(o) == ["file", "device", "texts", "closed", "seconds"] and
	len(o["texts"]) == 2 and all(list(t) == ["name", "windows", "tokens", "base", "delta", "fine"] and
	list(t["base"]) == list(t["delta"]) == ["tokens", "kl", "top1", "mse", "perplexity"] and
	list(t["fine"]) == ["perplexity"] for t in o["texts"])'
holds "eval: the delta is closer than the base" eval.json '0.5 < o["closed"] < 1 and
	all(0 < t["delta"]["kl"] < t["base"]["kl"] and t["delta"]["mse"] < t["base"]["mse"] and
	0 < t["delta"]["top1"] < 1 and t["tokens"] == t["base"]["tokens"] == t["delta"]["tokens"] == 128 * t["windows"] == 128 * 24 for t in o["texts"])'
holds "eval: its own text suits the fine-tune best" eval.json '(lambda t: 1 < t["fine"]["perplexity"] <
	t["base"]["perplexity"])(o["texts"][0])'
evaluate --json -q closed.bdelta --windows 24 >eval-closed.json 2>eval.err
same "eval -q" "" "$(cat eval.err)"
holds "eval: distillation helped" eval.json 'o["closed"] > json.load(open("eval-closed.json"))["closed"]'
evaluate kjv.bdelta --text text.txt --windows 8 >eval.txt
same "eval --text: exit status" 0 $?
check "eval --text names it" grep -q 'text.txt, 1024 tokens in 8 windows' eval.txt
evaluate --json kjv.bdelta --seconds 1 --text text.txt --length 16 >seconds.json 2>seconds.err
holds "eval --seconds: as many windows as there is time for" seconds.json '
	4 <= o["texts"][0]["windows"] <= 256 and o["texts"][0]["tokens"] == 16 * o["texts"][0]["windows"]'
evaluate kjv.bdelta --seconds 1 --windows 1000 --length 256 --threads 1 >seconds.txt 2>seconds.err
check "eval --seconds: a note says so" grep -qE \
	'^note: [0-9]+ windows of each text instead of 1000, which takes about [0-9]+ (s|minutes) here: --seconds' seconds.err
evaluate kjv.bdelta --length 1048576 --windows 1 --text text.txt >long.txt 2>long.err
check "eval: windows are no longer than the model has positions" grep -qx \
	"note: windows of 512 tokens instead of 1048576: .* has no more positions" long.err
check "eval: nor are those that it counts" grep -q 'text.txt, 512 tokens in 1 windows' long.txt
check "eval prints a table" grep -qE '^    delta +[0-9.]+ +[0-9.]+ % +[0-9.e+-]+ +[0-9.e+-]+$' eval.txt
check "eval says what it means" grep -q '^The delta closes [0-9.]* % of' eval.txt
must "$BITDELTA" import -q --steps 0 --attenuation 9 --base "$B" "$F" -o worse.bdelta
evaluate worse.bdelta --text text.txt --windows 4 >worse.txt
check "eval: a delta that is no good is called so" grep -q '^The delta is further from the fine-tune (kl' worse.txt
must "$BITDELTA" export -q kjv.bdelta --base "$B" -o exported
evaluate kjv.bdelta --fine exported --windows 2 >same.txt
check "eval: what the delta itself gave" grep -q '^The delta answers just as the fine-tune does: .* unless' same.txt
rm -r exported
refuses "eval: another fine-tune" 1 "^bitdelta eval: $B is not the fine-tune that kjv.bdelta was made from: " \
	evaluate kjv.bdelta --fine "$B"
cp -r "$F" nan
python3 - <<'END'
import json, struct
with open("nan/model.safetensors", "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    at = json.loads(f.read(n))["model.norm.weight"]["data_offsets"][0]
    f.seek(8 + n + at)
    f.write(b"\xff\x7f")
END
must "$BITDELTA" import -q --steps 0 --base "$B" nan -o nan.bdelta
refuses "eval: a model without numbers" 1 "^bitdelta eval: $W/nan: this model gives no numbers" \
	"$BITDELTA" eval nan.bdelta --base "$B" --fine nan --device cpu --windows 2
refuses "eval: no such text" 1 "nope.txt" evaluate kjv.bdelta --text nope.txt

# --- generate ---

generate() { "$BITDELTA" generate --device cpu "$@"; }
generate "$F" -p "In the beginning" -n 30 --seed 5 >one.txt
same "generate: exit status" 0 $?
check "generate prints text" grep -q '[a-z][a-z]' one.txt
check "in lines" test "$(tail -c 1 one.txt | od -An -tx1)" = " 0a"
check "the same seed, the same text" cmp one.txt <(generate "$F" -p "In the beginning" -n 30 --seed 5)
check "another seed, another text" bash -c '! cmp -s "$@"' - one.txt \
	<(generate "$F" -p "In the beginning" -n 30 --seed 6)
generate kjv.bdelta --base "$B" -p "And the" -n 20 --temperature 0 >delta.txt
same "generate from a delta: exit status" 0 $?
# The same base under another prefix, which its config does not know.
cp -r "$B" wrapped
python3 - wrapped/model.safetensors <<'END'
import json, sys
file = open(sys.argv[1], "rb").read()
start = 8 + int.from_bytes(file[:8], "little")
header = json.dumps({"wrapped." * (k != "__metadata__") + k: v for k, v in json.loads(file[8:start]).items()}).encode()
with open(sys.argv[1], "wb") as out:
    out.write(len(header).to_bytes(8, "little") + header + file[start:])
END
must "$BITDELTA" import -q --steps 0 --base wrapped "$F" --rename =wrapped. -o wrapped.bdelta
check "generate over a base of other names" cmp <(generate closed.bdelta --base "$B" -p "And the" -n 20 --temperature 0) \
	<(generate wrapped.bdelta --base wrapped -p "And the" -n 20 --temperature 0)
refuses "distill over a base of other names than its config's" 1 "wrapped: tensor 'model.embed_tokens.weight' is missing" \
	"$BITDELTA" distill wrapped.bdelta --base wrapped --fine "$F" --device cpu
check "without a prompt" generate kjv.bdelta --base "$B" -n 5
refuses "a prompt of more tokens than there are positions" 1 \
	"the prompt has [0-9]* tokens, but the model only 512 positions" \
	generate "$F" -n 5 -p "$(printf 'word %.0s' {1..1000})"
generate "$F" -n 400 --temperature 0 -p "$(printf 'word %.0s' {1..150})" >long.txt 2>long.err
same "more tokens than there are positions: exit status" 0 $?
check "more tokens than there are positions: a note" grep -qE \
	'^note: at most [0-9]+ tokens can follow a prompt of [0-9]+: the model has 512 positions$' long.err
cp -r "$F" greedy
sed -i 's/"max_position_embeddings": 512/"max_position_embeddings": 1000000000/' greedy/config.json
python3 - <<'END'
import json
t = json.load(open("greedy/tokenizer.json"))
t["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": 60 * "\u00e9"}
json.dump(t, open("greedy/tokenizer.json", "w"))
END
refuses "a tokenizer that makes much of little" 1 "greedy: tokenizer.json makes [0-9]* tokens of 100 bytes" \
	generate greedy -p "$(printf 'a%.0s' {1..100})"
refuses "a delta without its base" 2 "--base BASE is missing" generate kjv.bdelta -n 5
refuses "a model without numbers" 1 "^bitdelta generate: $W/nan: this model gives no numbers" generate nan -n 5
refuses "no such model" 1 "^bitdelta generate: .*/nope" generate /nope -n 5

# --- mounted ---

mkdir deltas
closed_import deltas/m.bdelta
mount_at "$W/mnt" "$B" "deltas=$W/deltas"
must "$BITDELTA" export -q closed.bdelta --base "$B" -o before
must "$BITDELTA" export -q refined1.bdelta --base "$B" -o after
exec 7<"$W/mnt/m/model.safetensors"
head -c 100000 <&7 >read
check "refine what is mounted" distill -q --steps 10 --seed 1 deltas/m.bdelta
check "the mount shows the new scales" wait_for 30 cmp -s "$W/mnt/m/model.safetensors" after/model.safetensors
cat <&7 >>read
exec 7<&-
check "who has a file open reads the old ones" cmp read before/model.safetensors
generate "$W/mnt/m" -p "And the" -n 20 --temperature 0 >mounted.txt
check "the text of what is mounted" cmp mounted.txt \
	<(generate deltas/m.bdelta --base "$B" -p "And the" -n 20 --temperature 0)
unmount "$W/mnt"

# --- interrupted ---

"${defaults[@]}" "$BITDELTA" import --steps 1000000 --device cpu --base "$B" "$F" -o int.bdelta \
	>int.out 2>int.err </dev/null &
pid=$!
pids+=("$pid")
check "the closed form is there first" wait_for 60 test -e int.bdelta
kill -INT $pid
wait $pid
same "interrupted import: exit status" 130 $?
check "interrupted import: it says what is left" grep -qx \
	'bitdelta import: interrupted; int.bdelta is complete, with closed-form scales' int.err
check "interrupted import: the closed form" cmp int.bdelta closed.bdelta
same "interrupted import: no result" "" "$(cat int.out)"
cp refined1.bdelta int.bdelta
"${defaults[@]}" "$BITDELTA" distill int.bdelta --steps 1000000 --device cpu --base "$B" --fine "$F" 2>int.err &
pid=$!
pids+=("$pid")
catches_int() {
	local mask
	mask=$(awk '/^SigCgt:/ { print $2 }' "/proc/$pid/status") && [ $((0x${mask:-0} >> 1 & 1)) = 1 ]
}
check "distillation begins" wait_for 30 catches_int
kill -INT $pid
wait $pid
same "interrupted distillation: exit status" 130 $?
check "interrupted distillation: the old file" cmp int.bdelta refined1.bdelta
pids=()
same "nothing else is left" "" "$(ls -A | grep tmp)"

# --- what takes long ---

"${defaults[@]}" "$BITDELTA" distill int.bdelta --steps 200000 --device cpu --base "$B" --fine "$F" 2>long.err &
pid=$!
pids+=("$pid")
check "how long distilling takes is said when it begins" wait_for 60 grep -qE \
	'^note: distilling takes about [0-9]+ (minutes|hours|days) on this processor; interrupted, it leaves' long.err
kill -INT $pid
wait $pid
pids=()
"$BITDELTA" import --json --steps 1000000 --base "$B" "$F" -o long.bdelta >long.json 2>long.err
same "too long: exit status" 0 $?
holds "too long: it is not begun" long.json 'not o["distillation"]["done"] and
	"this processor would take some" in o["distillation"]["why"]'
check "too long: the closed form" cmp long.bdelta closed.bdelta

# --- what cannot be distilled ---

cp -r "$F" other
sed -i 's/"model_type": *"[a-z0-9]*"/"model_type": "other"/; s/LlamaForCausalLM/OtherForCausalLM/' other/config.json
must "$BITDELTA" import -q --force --steps 0 --base "$B" other -o other.bdelta
"$BITDELTA" import --json --force --base "$B" other -o unknown.bdelta >unknown.json 2>unknown.err
same "unknown architecture: exit status" 0 $?
holds "unknown architecture: JSON" unknown.json 'list(o["distillation"]) == ["done", "why"] and
	not o["distillation"]["done"] and "other" in o["distillation"]["why"]'
check "unknown architecture: a note" grep -q '"note":"not distilled.*other' unknown.err
check "unknown architecture: the closed form" cmp unknown.bdelta other.bdelta
same "unknown architecture: -q says nothing" "0 " "$("$BITDELTA" import -q --force --base "$B" other \
	-o unknown.bdelta 2>&1; echo $?) "
refuses "unknown architecture: distill" 1 "unknown.bdelta: not refined: .*other" \
	"$BITDELTA" distill unknown.bdelta --base "$B" --fine other
refuses "unknown architecture: eval" 1 "other" "$BITDELTA" eval unknown.bdelta --base "$B" --fine other
for device in cuda cuda:9; do
	refuses "no GPU: import --device $device" 1 "^bitdelta import: " \
		"$BITDELTA" import -q --device $device --base "$B" "$F" -o gpu.bdelta
	check "no GPU: import --device $device writes nothing" test ! -e gpu.bdelta
done
cp closed.bdelta gpu.bdelta
refuses "no GPU: distill" 1 "^bitdelta distill: " "$BITDELTA" distill gpu.bdelta --base "$B" --fine "$F" --device cuda:0
check "no GPU: the file is as it was" cmp gpu.bdelta closed.bdelta
refuses "no GPU: eval" 1 "^bitdelta eval: " "$BITDELTA" eval gpu.bdelta --base "$B" --fine "$F" --device cuda

# --- a full disk ---

if mkdir small && mount -t tmpfs -o size=1000k tmpfs small 2>/dev/null; then
	cp closed.bdelta small/x.bdelta
	refuses "disk full: distill" 1 "x.bdelta: .*No space left" distill -q --steps 5 small/x.bdelta
	check "disk full: the old file" cmp small/x.bdelta closed.bdelta
	rm small/x.bdelta
	check "disk full: import, of which the closed form has room" "$BITDELTA" import -q --steps 5 \
		--base "$B" "$F" -o small/x.bdelta
	check "disk full: the closed form" cmp small/x.bdelta closed.bdelta
	same "disk full: nothing else is left" x.bdelta "$(ls -A small)"
	umount small
else
	skip "disk full" "tmpfs cannot be mounted"
fi
finish
