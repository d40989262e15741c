#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 07-cli.sh: the program bitdelta: JSON, progress, exit statuses, signals, streams that are closed or full.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

B=$DATA/base
F=$DATA/kjv
BITDELTA=$BUILD/bitdelta
cd "$W" || exit 1

# holds NAME FILE CONDITION: lines of JSON, each an object; in Python's CONDITION, o is the first and
# all of them are `lines`
holds() {
	check "$1" python3 -c '
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
o = lines[0]
assert all(type(x) is dict for x in lines)
if not eval("(" + sys.argv[2] + ")"):
    sys.exit(f"{sys.argv[2]} does not hold for {o}")' "$2" "$3"
}
bytes_in() { cat "$1"/* | wc -c; }

# --- JSON ---

check "import --json" "$BITDELTA" import --steps 0 --json --base "$B" "$F" -o kjv.bdelta
"$BITDELTA" import --steps 0 --json --base "$B" "$F" -o kjv.bdelta >import.json 2>import.err
same "import --json: exit status" 0 $?
size=$(stat -c %s kjv.bdelta)
check "it is JSON" python3 -m json.tool import.json
holds "import --json: members" import.json \
	'list(o) == ["output", "fine_bytes", "delta_bytes", "ratio", "sign_weights", "encodings",
		"other_files", "error", "seconds", "peak_memory"] and len(lines) == 1'
holds "import --json: figures" import.json \
	"o['output'] == 'kjv.bdelta' and o['delta_bytes'] == $size and
	o['fine_bytes'] == $(bytes_in "$F") and abs(o['ratio'] - o['fine_bytes'] / $size) < 1e-3 and
	0 <= o['seconds'] < 300 and 1e6 < o['peak_memory'] < 1e11"
"$BITDELTA" info --json kjv.bdelta >info.json
same "info --json: exit status" 0 $?
check "info is JSON" python3 -m json.tool info.json
holds "info --json: members" info.json \
	'list(o) == ["file", "name", "version", "producer", "base", "import", "fine_bytes",
		"delta_bytes", "ratio", "sign_weights", "encodings", "other_files", "error"]'
holds "info --json: sizes" info.json \
	"o['delta_bytes'] == $size and o['fine_bytes'] == $(bytes_in "$F") and
	o['other_files']['files'] == $(find "$F" -type f ! -name '*.safetensors' | wc -l) and
	o['other_files']['bytes'] == $(find "$F" -type f ! -name '*.safetensors' -exec cat {} + | wc -c)"
holds "info --json: encodings" info.json \
	'list(o["encodings"]) == ["same", "sign", "raw", "rows", "exact"] and
	all(list(e) == ["tensors", "bytes", "stored"] for e in o["encodings"].values()) and
	sum(e["stored"] for e in o["encodings"].values()) < o["delta_bytes"] and
	sum(e["bytes"] for e in o["encodings"].values()) < o["fine_bytes"]'
holds "info --json: base and error" info.json \
	'o["name"] == "kjv" and o["version"] == 1 and o["base"]["label"] == "base" and
	len(o["base"]["digest"]) == 32 and o["import"] == {"scale": "rank1", "attenuation": 1.4,
	"distilled": False} and 0 < o["error"]["median"] <= o["error"]["worst"] < 1'
"$BITDELTA" info --json --tensors kjv.bdelta >tensors.json
holds "info --tensors --json: the same and tensors" tensors.json \
	'{k: o[k] for k in o if k not in ("tensors", "files")} == json.load(open("info.json"))'
holds "info --tensors --json: files" tensors.json \
	'[f["name"] for f in o["files"]] == sorted(f["name"] for f in o["files"]) and sum(f["bytes"] for f in o["files"]) == o["other_files"]["bytes"]'
holds "info --tensors --json: sums" tensors.json \
	'all(sum(t[what] for t in o["tensors"] if t["encoding"] == name) == e[what]
		for name, e in o["encodings"].items() for what in ("bytes", "stored")) and
	sum(t["rows"] * t["cols"] for t in o["tensors"] if "planes" in t) == o["sign_weights"]'
holds "info --tensors --json: as the file's header says" tensors.json "(lambda f: (lambda header:
	all(header[t['name']]['shape'] == t['shape'] and header[t['name']]['dtype'] == t['dtype']
	for t in o['tensors']) and len(header) - ('__metadata__' in header) == len(o['tensors']))(
	json.loads(f.read(int.from_bytes(f.read(8), 'little')))))(open('$F/model.safetensors', 'rb'))"
holds "info --tensors --json: members" tensors.json 'all(list(t)[:7] == ["name", "file", "dtype", "shape",
	"encoding", "bytes", "stored"] and ("base" in t) == (t["encoding"] != "raw") for t in o["tensors"])'

odd="odd \"q\\ "$'\001\n\xff'" ü.bdelta"
cp kjv.bdelta "$W/ü.bdelta"
"$BITDELTA" info --json "ü.bdelta" kjv.bdelta >two.json
holds "info --json: a line per file" two.json 'len(lines) == 2 and o["name"] == "ü"'
"$BITDELTA" verify --json "$odd" >odd.json 2>/dev/null
same "verify --json: no such file: exit status" 1 $?
holds "verify --json: any name" odd.json 'o["file"] == "odd \"q\\ \x01\n\ufffd ü.bdelta"'
"$BITDELTA" verify --json --base "$B" kjv.bdelta >verify.json 2>verify.err
same "verify --json: exit status" "0 " "$? $(cat verify.err)"
holds "verify --json" verify.json 'lines == [{"file": "kjv.bdelta", "ok": True, "base": True}]'
head -c 50000 kjv.bdelta >cut.bdelta
cp kjv.bdelta bad.bdelta
printf '\377\377\377\377' | dd of=bad.bdelta bs=1 seek=$((size - 300000)) conv=notrunc 2>/dev/null
"$BITDELTA" verify --json cut.bdelta kjv.bdelta bad.bdelta >verify.json 2>verify.err
same "verify --json: damaged files: exit status" 1 $?
holds "verify --json: damaged files" verify.json '[x["ok"] for x in lines] == [False, True, False] and
	[x["file"] for x in lines if "error" in x] == ["cut.bdelta", "bad.bdelta"] and not o["base"]'
same "they are on stderr, too" 2 "$(grep -c '^bitdelta verify: ' verify.err)"
"$BITDELTA" verify --json kjv.bdelta --base /nope >verify.json 2>/dev/null
same "verify --json: no base: exit status" 1 $?
holds "verify --json: no base" verify.json \
	'o["file"] == "kjv.bdelta" and not o["ok"] and not o["base"] and "/nope" in o["error"]'
"$BITDELTA" export --json kjv.bdelta --base "$B" -o exported >export.json 2>export.err
same "export --json: exit status" "0 " "$? $(cat export.err)"
holds "export --json" export.json "list(o) == ['output', 'files', 'bytes', 'seconds'] and
	o['output'] == 'exported' and o['files'] == $(ls exported | wc -l) and
	o['bytes'] == $(bytes_in exported)"

# --- quiet ---

same "import -q says nothing" "0 " "$("$BITDELTA" import --steps 0 -q --base "$B" "$F" -o q.bdelta 2>&1
	echo $?) "
check "and writes the same file" cmp q.bdelta kjv.bdelta
"$BITDELTA" import --steps 0 -q --json --base "$B" "$F" -o q.bdelta >quiet.json 2>quiet.err
holds "import -q --json still prints the result" quiet.json "o['delta_bytes'] == $size"
same "but nothing else" "" "$(cat quiet.err)"
same "verify -q says nothing" "" "$("$BITDELTA" verify -q kjv.bdelta --base "$B" 2>&1)"
same "export -q says nothing" "" "$("$BITDELTA" export -q kjv.bdelta --base "$B" -o exported2 2>&1)"
refuses "verify -q prints failures" 1 'cut.bdelta' "$BITDELTA" verify -q cut.bdelta

# --- names and what is there ---

ln -s "$F" linked
for given in linked linked/ "$W/linked//"; do
	rm -f linked.bdelta
	"$BITDELTA" import --steps 0 -q --base "$B" "$given"
	check "import $given: a link gives its own name" cmp linked.bdelta kjv.bdelta
done
mkdir -p models--org--tune/snapshots
cp -r "$F" models--org--tune/snapshots/abc
ln -s models--org--tune models--org--alias
"$BITDELTA" import --steps 0 -q --base "$B" models--org--alias
check "import of a cache entry behind a link: the model's name" test -e tune.bdelta
refuses "import --no-clobber" 1 'kjv.bdelta: is there already' \
	"$BITDELTA" import --steps 0 --no-clobber --base "$B" "$F" -o kjv.bdelta
check "import --no-clobber: of nothing" "$BITDELTA" import --steps 0 --no-clobber -q --base "$B" "$F" -o new.bdelta
refuses "import --sign of nothing" 1 "--sign 'nomatch\*' matches no tensor" \
	"$BITDELTA" import --steps 0 --base "$B" "$F" --sign 'nomatch*' -o new.bdelta
refuses "import --rename of nothing" 1 "'x=y' renames no tensor" \
	"$BITDELTA" import --steps 0 --base "$B" "$F" --rename x=y -o new.bdelta
for wrong in x x=x =; do
	refuses "import --rename $wrong" 2 "OLD=NEW, two different prefixes" "$BITDELTA" import --base "$B" "$F" --rename $wrong
done
check "info tells the base's directory" grep -qx "  from   nano-llama2/base" <("$BITDELTA" info kjv.bdelta)
"$BITDELTA" info --json kjv.bdelta >info.json
holds "info --json tells the base's directory" info.json 'o["base"]["path"] == "nano-llama2/base"'
cp -r "$B" models--org--base
mkdir -p models--org--base/snapshots
cp -r "$B" models--org--base/snapshots/0123abc
"$BITDELTA" import --steps 0 -q --base models--org--base/snapshots/0123abc "$F" -o hub.bdelta
check "info tells hub id and revision" grep -q "base   org/base at 0123abc," <("$BITDELTA" info hub.bdelta)

# --- usage ---

for option in -h --help; do
	for command in "" import distill eval generate mount umount info verify export status df doctor; do
		check "bitdelta $command $option" grep -q '^Usage: bitdelta' \
			<("$BITDELTA" $command $option 2>&1)
		"$BITDELTA" $command $option >/dev/null 2>&1
		same "bitdelta $command $option: exit status" 0 $?
	done
done
for option in -V --version; do
	check "bitdelta $option" grep -qx 'bitdelta [0-9.]*' <("$BITDELTA" $option)
done
check "bitdelta mount --version" grep -q '^bitdelta mount [0-9]' <("$BITDELTA" mount --version)
check "help in a cluster" grep -q '^Usage: bitdelta verify' <("$BITDELTA" verify -qh)
refuses "no command" 2 'Usage: bitdelta' "$BITDELTA"
refuses "unknown command" 2 "no command 'frobnicate'" "$BITDELTA" frobnicate
check "help of mount names umount" grep -q 'bitdelta umount MOUNTPOINT' <("$BITDELTA" mount --help)
# The same mistake has the same status, whatever the command.
refuses "mount: unknown option" 2 'unknown option "--fancy" \(see bitdelta mount --help\)' \
	"$BITDELTA" mount --fancy x
refuses "mount: nothing to do" 2 'missing \(see' "$BITDELTA" mount
mkdir mnt
refuses "mount: no such base" 1 '/nope: no such directory' "$BITDELTA" mount /nope mnt -o deltas=kjv.bdelta
for command in distill eval export generate; do
	refuses "$command: no base given" 2 '--base' "$BITDELTA" $command kjv.bdelta
done
refuses "import: no base given" 2 '--base' "$BITDELTA" import "$F"
for command in generate eval distill export; do
	refuses "$command: too many arguments" 2 'one' "$BITDELTA" $command a b --base x
done
for command in import distill eval generate info verify export umount status df; do
	refuses "$command: an empty argument" 2 'an argument is empty' "$BITDELTA" $command ""
done
for command in import distill eval generate verify export df; do
	refuses "$command: an empty base" 2 'the value of --base is empty' "$BITDELTA" $command kjv.bdelta --base ""
done
refuses "mount: an empty argument" 2 'name of the base is empty' "$BITDELTA" mount "" mnt -o deltas=x
refuses "umount: too many arguments" 2 'one mount point' "$BITDELTA" umount a b
refuses "mount: too many arguments" 2 'too many' "$BITDELTA" mount a b c -o deltas=x
for command in import distill eval generate info verify export umount status df doctor; do
	refuses "$command: unknown option" 2 "^bitdelta $command: unknown option: '--fancy' \(see" \
		"$BITDELTA" $command --fancy x
	refuses "$command: unknown letter" 2 "unknown option: '-z'" "$BITDELTA" $command -z x
	refuses "$command: unknown letter in a cluster" 2 "unknown option: '-z'" \
		"$BITDELTA" $command -zq x
	refuses "$command: --help with a value" 2 '--help takes no value' "$BITDELTA" $command --help=x
done
for command in import distill eval generate info verify export umount; do
	refuses "$command: nothing to do" 2 'needed|missing' "$BITDELTA" $command
done
for command in import distill eval verify export; do
	refuses "$command: option without its value" 2 '--base needs a value' "$BITDELTA" $command --base
	refuses "$command: value for a flag" 2 '--json takes no value' "$BITDELTA" $command --json=x
	refuses "$command: unknown letter at the end of a cluster" 2 "unknown option: '-z'" \
		"$BITDELTA" $command -qz x
done
refuses "import: letter without its value" 2 '-o needs a value' "$BITDELTA" import -qo
refuses "export: letter without its value" 2 '-o needs a value' "$BITDELTA" export x -o
refuses "import: wrong value" 2 "--scale is .* not 'x'" "$BITDELTA" import --scale x
refuses "import: wrong factor" 2 "--attenuation needs .* not '0'" "$BITDELTA" import --attenuation 0
refuses "import: wrong number of threads" 2 "--threads needs .* not '1.5'" "$BITDELTA" import --threads 1.5
for command in import distill; do
	refuses "$command: wrong loss" 2 "--loss is both, mse or kl, not 'x'" "$BITDELTA" $command --loss x
	refuses "$command: wrong seed" 2 "--seed needs .* not '-1'" "$BITDELTA" $command --seed -1
	refuses "$command: no such text" 1 "^bitdelta $command: /nope: No such file" \
		"$BITDELTA" $command --calib /nope --base "$B" --threads 1
done
for command in import distill eval generate; do
	for device in gpu cuda: cuda:x cuda:-1; do
		refuses "$command: wrong device '$device'" 2 "--device is .* not '$device'" \
			"$BITDELTA" $command --device "$device"
	done
done
refuses "import: steps" 2 "--steps needs .* 0 to .* not 'x'" "$BITDELTA" import --steps x
refuses "distill: no steps" 2 "--steps needs .* 1 to .* not '0'" "$BITDELTA" distill --steps 0
refuses "distill: wrong rate" 2 "--rate needs .* not '0'" "$BITDELTA" distill --rate 0
refuses "distill: wrong length" 2 "--length needs .* not '1'" "$BITDELTA" distill --length 1
refuses "distill: wrong batch" 2 "--batch needs .* not '0'" "$BITDELTA" distill --batch 0
refuses "eval: wrong number of windows" 2 "--windows needs .* not '0'" "$BITDELTA" eval --windows 0
refuses "generate: wrong temperature" 2 "--temperature needs .* not '-1'" "$BITDELTA" generate --temperature -1
refuses "generate: wrong number of tokens" 2 "--tokens needs .* not '1e3'" "$BITDELTA" generate -n 1e3
check "the last value decides" "$BITDELTA" import --steps 0 -q --scale x --scale row --base /nope --base "$B" \
	"$F" -o last.bdelta
refuses "import: two fine-tunes" 2 '2 given' "$BITDELTA" import --steps 0 --base "$B" "$F" "$F"
refuses "doctor: arguments" 2 'no arguments' "$BITDELTA" doctor x
refuses "info goes on with the next file, and fails" 1 '/nope' "$BITDELTA" info /nope kjv.bdelta
same "info goes on with the next file" kjv.bdelta \
	"$("$BITDELTA" info /nope kjv.bdelta 2>/dev/null | head -n 1)"

# --- what is no delta, and names that a terminal might obey ---

printf 'GGUF\3\0\0\0\1\0\0\0\0\0\0\0' >model.gguf
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >pointer.bdelta
refuses "info: GGUF" 1 'model.gguf: is a GGUF file; .* safetensors checkpoint' "$BITDELTA" info model.gguf
refuses "info: a Git LFS pointer" 1 'git lfs pull' "$BITDELTA" info pointer.bdelta
refuses "info: a checkpoint's file" 1 'not a .bdelta file.*bitdelta import' "$BITDELTA" info "$B/model.safetensors"
refuses "info: a checkpoint" 1 'base: is a directory and not a .bdelta file.*bitdelta import' "$BITDELTA" info "$B"
name=$'x\e[31m\xc2\x9b1m\n\xff.bdelta'
plain='x?[31m?1m??.bdelta'
cp kjv.bdelta "$name"
same "info: a name with escapes" "$plain" "$("$BITDELTA" info "$name" | head -n 1)"
same "verify: a name with escapes" "$plain: ok" "$("$BITDELTA" verify "$name")"
check "df: a name with escapes" grep -qF " ${plain%.bdelta}" <("$BITDELTA" df "$name")
same "import: a name with escapes" "$plain" "$("$BITDELTA" import --steps 0 --base "$B" "$F" -o "$name" | head -n 1)"
check "export: a name with escapes" grep -q '^x?: ' <("$BITDELTA" export "$name" --base "$B" -o $'x\e')
same "an option with escapes" "bitdelta info: unknown option: '--?' (see bitdelta info --help)" \
	"$("$BITDELTA" info $'--\e' 2>&1)"
same "nothing of that reaches the terminal" "" "$({
	"$BITDELTA" info $'no\e' model.gguf "$name"
	"$BITDELTA" verify --base $'no\e' "$name"
	"$BITDELTA" $'no\e'
	"$BITDELTA" mount -v $'no\e' mnt -o deltas="$name"
	"$BITDELTA" export "$name" --base "$B" -o $'/no\e/x'
} 2>&1 | tr -d '[:print:]\n')"
rm "$name"
cp -r "$B" other
printf '\377\377\377' | dd of=other/model.safetensors bs=1 seek=1500000 conv=notrunc 2>/dev/null
refuses "verify names the delta whose base differs" 1 '^bitdelta verify: kjv.bdelta: .*base tensor' \
	"$BITDELTA" verify kjv.bdelta --base other

refuses "import fails" 1 '^bitdelta import: .*/nope: no such' "$BITDELTA" import --steps 0 --base /nope "$F" -o n.bdelta
refuses "export fails" 1 '^bitdelta export: .*/nope: no such' "$BITDELTA" export kjv.bdelta --base /nope -o n
refuses "export: the target is a dot" 1 'name of a directory' \
	"$BITDELTA" export kjv.bdelta --base "$B" -o .
ln -s exported "$W/link"
refuses "export: the target is a link" 1 'name of a directory' \
	"$BITDELTA" export kjv.bdelta --base "$B" -o link
refuses "umount fails" 1 '^bitdelta umount: ' "$BITDELTA" umount "$W"
ln -s q.bdelta link.bdelta
check "import -o LINK" "$BITDELTA" import --steps 0 -q --scale tensor --base "$B" "$F" -o link.bdelta
check "the link was replaced" test ! -L link.bdelta
check "not its target" cmp q.bdelta kjv.bdelta

# --- streams ---

for arguments in --help --version "info kjv.bdelta" "info --json kjv.bdelta" "verify --json kjv.bdelta" \
	"mount --help" "df kjv.bdelta" "df --json kjv.bdelta" doctor "doctor --json"; do
	text=$("$BITDELTA" $arguments 2>&1 >/dev/full)
	same "full standard output: $arguments" \
		"1 bitdelta: cannot write to standard output: No space left on device" "$? $text"
done
"$BITDELTA" frobnicate >/dev/full 2>/dev/null
same "wrong usage stays 2" 2 $?
for closed in '<&-' '>&-' '2>&-' '<&- >&- 2>&-'; do
	rm -rf closed closed.bdelta
	eval '"$BITDELTA" import --steps 0 --base "$B" "$F" -o closed.bdelta '"$closed" >out 2>&1
	same "import $closed" 0 $?
	check "import $closed: the same file" cmp closed.bdelta kjv.bdelta
	eval '"$BITDELTA" export closed.bdelta --base "$B" -o closed '"$closed" >out 2>&1
	same "export $closed" 0 $?
	check "export $closed: the same files" diff -r exported closed
done
refuses "file size limit" 1 'limit.bdelta: .*File too large' \
	bash -c 'ulimit -f 64; exec "$@"' - "$BITDELTA" import --steps 0 --base "$B" "$F" -o limit.bdelta
refuses "file size limit, export" 1 'File too large' \
	bash -c 'ulimit -f 64; exec "$@"' - "$BITDELTA" export kjv.bdelta --base "$B" -o limit
same "file size limit: nothing is left" "" "$(ls -A | grep '^\.*limit')"

# --- signals, and progress, which begins after ten seconds where there is no terminal ---

# 256 GiB of zeros that take no space, for one thread
python3 - "$W/big" <<'EOF' 2>big.err
import json, os, sys
size = 4096 * 4096 * 4
header = json.dumps({f"w{i}": {"dtype": "F32", "shape": [4096, 4096], "data_offsets": [i * size, i * size + size]}
                     for i in range(4096)}).encode()
os.mkdir(sys.argv[1])
with open(sys.argv[1] + "/model.safetensors", "wb") as f:
    f.write(len(header).to_bytes(8, "little") + header)
    f.truncate(8 + len(header) + 4096 * size)
EOF
if [ $? != 0 ]; then
	skip "signals and progress" "no large sparse files here: $(tail -n 1 big.err)"
	finish
fi
# A background process of a shell without job control begins with SIGINT ignored.
defaults=(env --default-signal=INT,TERM,HUP)
big=(import --threads 1 --base big big)

# catches PID NUMBER: it is bitdelta by now, and has a handler
catches() {
	local mask
	[[ $(readlink "/proc/$1/exe") == "$BITDELTA"* ]] || return
	mask=$(awk '/^SigCgt:/ { print $2 }' "/proc/$1/status") && [ $((0x$mask >> ($2 - 1) & 1)) = 1 ]
}
start() { # COMMAND...: output in started.out and started.err, process in $pid
	"$@" >"$W/started.out" 2>"$W/started.err" </dev/null &
	pid=$!
	pids+=("$pid")
}

for signal in INT TERM HUP; do
	start "${defaults[@]}" "$BITDELTA" "${big[@]}" -o "$signal.bdelta"
	check "an import begins" wait_for 30 catches $pid 2
	kill -$signal $pid
	wait $pid
	same "SIG$signal: exit status" 130 $?
	same "SIG$signal: nothing is left" "" "$(ls -A | grep "^\.*$signal")"
	check "SIG$signal: it says so" grep -q '^bitdelta import: ' "$W/started.err"
done

nohup "${defaults[@]:0:1}" --default-signal=INT,TERM "$BITDELTA" "${big[@]}" --json -o nohup.bdelta \
	>nohup.out 2>nohup.err </dev/null &
nohup=$!
pids+=("$nohup")
start "${defaults[@]}" "$BITDELTA" "${big[@]}" -o plain.bdelta
check "imports begin" wait_for 30 catches $nohup 15
check "imports begin" wait_for 30 catches $pid 15
check "nohup: SIGHUP stays ignored" bash -c '! "$@"' - bash -c "$(declare -f catches)
	BITDELTA=$BITDELTA catches $nohup 1"
kill -HUP $nohup
check "progress is shown" wait_for 60 grep -q importing "$W/started.err"
check "progress is a plain line" grep -qxE 'importing: [0-9]+% \([0-9.]+ [kMG]?B of 275 GB\)' \
	"$W/started.err"
same "no control characters" "" "$(tr -d '[:print:]\n' <"$W/started.err")"
check "progress is shown as JSON" wait_for 60 grep -q progress nohup.err
holds "progress as JSON" nohup.err '[list(x) for x in lines if "note" not in x][0] == ["progress", "done",
	"total", "seconds"] and all(0 <= x["progress"] <= 1 and x["done"] <= x["total"] and
	x["seconds"] >= 10 for x in lines if "note" not in x)'
check "nohup: an import survives SIGHUP" is_alive $nohup
kill -INT $nohup
kill -INT $pid
wait $nohup
same "nohup: SIGINT still works" 130 $?
wait $pid
same "plain: exit status" 130 $?
same "no result of an interrupted import" "" "$(cat nohup.out "$W/started.out")"
nohup "$BITDELTA" import --steps 0 -q --base "$B" "$F" -o small.bdelta >/dev/null 2>&1
same "nohup: exit status" 0 $?

check "a terminal has a bar, and Ctrl-C" python3 - "${defaults[@]}" "$BITDELTA" "${big[@]}" -o t.bdelta <<'EOF'
import os, pty, signal, sys
signal.alarm(600)
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
text = b""
while b"\r\x1b[Kimporting [" not in text or b" of 275 GB" not in text:
    text += os.read(fd, 1000)
os.write(fd, b"\x03")
try:
    while more := os.read(fd, 1000):
        text += more
except OSError:
    pass  # the other end is closed
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(0 if status == 130 and b"\r\x1b[Kbitdelta import: " in text else f"{status}: {text}")
EOF
pids=()
finish
