#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 30-tools.sh: bitdelta status, df and doctor: mounts that live, are stopped, dead, covered or somebody
# else's; a crippled system.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

BITDELTA=$BUILD/bitdelta
cp -r "$DATA/base" "$W/base"
B=$W/base
M=$W/mnt
D=$W/deltas
cd "$W" || exit 1

# holds NAME FILE CONDITION: lines of JSON, each an object; in Python's CONDITION, o is the first and
# all of them are `lines`
holds() {
	check "$1" python3 -c '
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
o = lines[0]
s = o.get("stats")
if not eval("(" + sys.argv[2] + ")"):
    sys.exit(f"{sys.argv[2]} does not hold for {o}")' "$2" "$3"
}
# runs NAME STATUS ARGUMENTS...: bitdelta ends with that status; what it prints is in out and err
runs() {
	local name=$1 status=$2
	shift 2
	"$BITDELTA" "$@" >out 2>err
	same "$name" "$status" $?
}
says() { check "$1" grep -qE -- "$2" out; }
bytes_in() { cat "$1"/* | wc -c; }

import "$B" "$DATA/kjv" kjv
cp "$D/kjv.bdelta" "$D/second.bdelta"
head -c 50000 "$D/kjv.bdelta" >"$D/cut.bdelta"
must mount_at "$M" "$B" "deltas=$D" 2>mount.err
pid=$(daemon_of "$M")

# --- status ---

runs "status: a rejected delta is an error" 1 status "$M"
says "status: the mount" "^$M: 2 models, [0-9.]+ MB shown, [0-9.]+ MB stored$"
says "status: the source" "^  source    $B$"
says "status: the daemon" "^  daemon    process $pid of root, [0-9]+ threads, bitdelta [0-9.]+, mounted for "
says "status: the base" "^  base      base: [0-9.]+ MB in [0-9]+ tensors, 2 models, $B$"
says "status: what is in use" '^  in use    .*readahead.*, cpu [a-z0-9]+, sandbox '
says "status: the rejected delta" "^  rejected  $D/cut.bdelta: .*(bytes|short|truncated|cut|ends)"
same "status: no more of them" 1 "$(grep -c rejected out)"
runs "status --json: exit status" 1 status --json "$M"
cp out status.json
holds "status --json: one object per mount" status.json 'len(lines) == 1 and
	list(o) == ["mountpoint", "source", "state", "stats"]'
holds "status --json: the mount" status.json "o['mountpoint'] == s['mountpoint'] == '$M' and
	o['source'] == s['source'] == '$B' and o['state'] == 'alive' and s['pid'] == $pid"
holds "status --json: models" status.json "[m['name'] for m in s['models']] == ['kjv', 'second'] and
	all(m['virtual_bytes'] == $(bytes_in "$M/kjv") and m['stored_bytes'] ==
	$(stat -c %s "$D/kjv.bdelta") and m['files'] == $(ls "$M/kjv" | wc -l) for m in s['models'])"
holds "status --json: rejected" status.json "[r['delta'] for r in s['rejected']] == ['$D/cut.bdelta']"
holds "status --json: bases" status.json "len(s['bases']) == 1 and s['bases'][0]['path'] == '$B' and
	s['bases'][0]['problem'] is None and s['bases'][0]['models'] == 2"

rm "$D/cut.bdelta"
all_well() { "$BITDELTA" status "$M" >out 2>err; }
check "status: all is well without it" wait_for 10 all_well
same "status: nothing is rejected" 0 "$(grep -c rejected out)"

"$BITDELTA" status --json "$M" >before.json
cat "$M/second"/* >/dev/null # the kernel has the other one by now
"$BITDELTA" status --json "$M" >after.json
check "status: reading is counted" python3 -c '
import json, sys
before, after = (json.load(open(x))["stats"] for x in ("before.json", "after.json"))
size = int(sys.argv[1])
models = [(b, a) for b, a in zip(before["models"], after["models"])]
grown = [a["bytes"] - b["bytes"] for b, a in models]
assert size - 4096 <= grown[1] <= 2 * size and grown[0] == 0, grown
assert after["totals"]["bytes"] - before["totals"]["bytes"] == grown[1]
assert after["totals"]["errors"] == 0 and after["totals"]["reads"] > before["totals"]["reads"]
assert 0 < after["latency_us"]["p50"] <= after["latency_us"]["max"]' "$(bytes_in "$W/truth/kjv")"
runs "status after reading" 0 status "$M"
says "status: latency" '^  latency   median [0-9]+ us, .* longest [0-9]+ us$'

ln -s mnt link
for path in mnt ./mnt/ .//mnt/. link "$W/../$(basename "$W")/mnt"; do
	runs "status $path" 0 status "$path"
	says "status $path: the same mount" "^$M: 2 models"
done
same "status of the working directory" 0 "$(cd mnt && "$BITDELTA" status . >/dev/null 2>&1; echo $?)"
refuses "status of no mount" 1 'is no mount point of bitdelta' "$BITDELTA" status "$W"
refuses "status of nothing" 1 'is no mount point of bitdelta' "$BITDELTA" status /nowhere
refuses "status of another mount" 1 'is no mount point of bitdelta' "$BITDELTA" status /proc
"$BITDELTA" status >out 2>err
says "status of all mounts" "^$M: 2 models"
"$BITDELTA" status --json >all.json
holds "status --json of all mounts" all.json "[x['state'] for x in lines if x['mountpoint'] == '$M'] == ['alive']"

# --- df ---

size=$(stat -c %s "$D/kjv.bdelta")
shown=$(bytes_in "$W/truth/kjv")
runs "df of a mount" 0 df "$M"
same "df: a line per model" "kjv second" "$(awk '/ (kjv|second)$/ { print $NF }' out | xargs)"
says "df: totals" ' 2 models$'
says "df: what is saved" '^All as plain copies: [0-9.]+ MB. As base and deltas: [0-9.]+ MB, [0-9.]+ % of that'
runs "df --json of a mount" 0 df --json "$M"
holds "df --json: models" out "[(m['name'], m['path'], m['mountpoint'], m['base'], m['virtual_bytes'],
	m['stored_bytes']) for m in o['models']] == [(n, '$D/' + n + '.bdelta', '$M', 'base', $shown, $size)
	for n in ('kjv', 'second')]"
holds "df --json: totals" out "(lambda t: t['virtual_bytes'] == 2 * $shown and
	t['stored_bytes'] == 2 * $size and t['base_bytes'] == sum(b['bytes'] for b in o['bases']) > 0 and
	t['as_copies'] == 2 * $shown + t['base_bytes'] and t['models'] == 2 and t['bases'] == 1 and
	t['as_deltas'] == 2 * $size + t['base_bytes'])(o['totals'])"
runs "df of a directory" 0 df --json "$D" --base "$B"
holds "df of a directory: as from the mount" out "(lambda t: t['virtual_bytes'] == 2 * $shown and
	t['stored_bytes'] == 2 * $size and t['base_bytes'] == $(bytes_in "$B"))(o['totals'])"
runs "df: all of it at once" 0 df --json "$D" "$M" "$D/kjv.bdelta" "$D/../deltas" --base "$B" --base "$B/"
holds "df: nothing counts twice" out "(lambda t: t['models'] == 2 and t['bases'] == 1 and
	t['stored_bytes'] == 2 * $size)(o['totals'])"
runs "df of a file" 0 df "$D/kjv.bdelta"
says "df of a file: no base" 'add --base BASE'
runs "df of something damaged" 1 df "$M" "$W/mount.err"
says "df: the rest is shown" ' 2 models$'
check "df: and what is wrong" grep -q '^bitdelta df: .*mount.err' err
refuses "df of an empty directory" 1 'no .bdelta files' "$BITDELTA" df "$W/truth"
refuses "df of nothing" 1 '/nowhere' "$BITDELTA" df /nowhere
refuses "df: no base" 1 '/nowhere' "$BITDELTA" df "$D" --base /nowhere

# --- a daemon that does not answer ---

start=$SECONDS
kill -STOP "$pid"
runs "a stopped daemon" 1 status "$M"
says "a stopped daemon: it is stuck" "^$M: stuck"
says "a stopped daemon: what to do" '^  remedy    kill -CONT'
text=$(in_time 30 "$BITDELTA" status --json "$M" | cat) # a pipe ends when all who write to it have
echo "$text" >stuck.json
holds "a stopped daemon: JSON" stuck.json 'o["state"] == "stuck" and o["problem"] and o["remedy"] and
	"stats" not in o'
refuses "a stopped daemon: df" 1 "^bitdelta df: $M: stuck" in_time 30 "$BITDELTA" df "$M"
# Whether the link can still be followed depends on what the kernel remembers.
in_time 30 "$BITDELTA" status "$W/link" >out 2>&1
same "a stopped daemon: through a link: exit status" 1 $?
says "a stopped daemon: through a link" 'does not answer'
check "a stopped daemon: within seconds" test $((SECONDS - start)) -lt "$(patience 60)"
kill -CONT "$pid"
runs "the daemon goes on" 0 status "$M"

# --- covered, and in part ---

mkdir part
if mount --bind "$M/kjv" part 2>/dev/null && mount -t tmpfs none "$M" 2>/dev/null; then
	"$BITDELTA" status --json >all.json
	holds "covered and bind mounts" all.json "sorted(x['state'] for x in lines if x['mountpoint'] in
		('$M', '$W/part')) == ['covered', 'part']"
	runs "a covered mount by name" 1 status "$M"
	says "it says so" "^$M: covered"
	umount "$M"
	umount part
else
	skip "covered and bind mounts" "cannot be made here"
fi

# --- a base that is not what it was ---

printf 'x' >>"$B/model.safetensors"
runs "a changed base" 1 status "$M"
says "a changed base: it is named" '^    problem .*model.safetensors'

# --- dead ---

kill -9 "$pid"
wait_for 30 has_ended "$pid"
runs "a dead mount" 1 status "$M"
says "a dead mount: it says so" "^$M: dead"
says "a dead mount: what to do" "^  remedy    bitdelta umount $M"
refuses "a dead mount: df" 1 "$M: dead" "$BITDELTA" df "$M"
"$BITDELTA" doctor >out
says "a dead mount: doctor" "^note     mount $M: dead.* -> bitdelta umount $M"
check "the remedy helps" "$BITDELTA" umount "$M"
refuses "then it is gone" 1 'is no mount point' "$BITDELTA" status "$M"
truncate -s -1 "$B/model.safetensors"

# --- any name ---

odd=$W/$'m\033[31m\nü x'
must mount_at "$odd" "$B" "deltas=$D/kjv.bdelta"
runs "any name of a mount point" 0 status "$odd"
says "control characters are not printed" "^$W/m\?\[31m\?ü x: 1 model, "
runs "any name: JSON" 0 status --json "$odd"
holds "any name: JSON has it as it is" out 'o["mountpoint"].endswith("/m\x1b[31m\nü x")'
must unmount "$odd"

# --- somebody else's ---

must mount_at "$M" "$B" "deltas=$D"
chmod 755 "$W"
mkdir bin
cp "$BITDELTA" bin/bitdelta
user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if "${user[@]}" bin/bitdelta --version >/dev/null 2>&1; then
	"${user[@]}" bin/bitdelta status "$M" >out 2>err
	same "somebody else's mount: exit status" 1 $?
	says "somebody else's mount" "^$M: mounted by user root for themselves alone"
	"${user[@]}" bin/bitdelta status --json >all.json 2>err
	holds "somebody else's mount: JSON" all.json \
		"[x['state'] for x in lines if x['mountpoint'] == '$M'] == ['denied']"
else
	skip "somebody else's mount" "another user cannot run programs in $W"
fi

# --- doctor ---

runs "doctor" 0 doctor
check "doctor: three words" bash -c '! grep -vE "^(ok|note) +[^:]+: " out'
for what in versions kernel /dev/fuse privileges fusermount3 /etc/fuse.conf 'mount\(8\)' /etc/mtab \
	passthrough readahead sandbox inotify 'open files' cpu gpu blas systemd "mount $M"; do
	says "doctor: $what" "^(ok|note) +$what: "
done
says "doctor: /dev/fuse is there" '^(ok|note) +/dev/fuse: can be opened'
says "doctor: the mount is alive" "^ok +mount $M: alive"
if readahead=$(cat "/sys/class/bdi/$(mountpoint -d "$M")/read_ahead_kb" 2>/dev/null); then
	says "doctor: its readahead" "^ok +mount $M: alive, readahead $readahead KiB"
else
	skip "doctor: its readahead" "no sysfs"
fi
runs "doctor --json: exit status" 0 doctor --json
holds "doctor --json" out 'len(lines) == 1 and o["problems"] == 0 and all(list(c) == ["level", "what",
	"state", "remedy"] and c["level"] in ("ok", "note") and c["state"] for c in o["checks"])'
must unmount "$M"

BITDELTA_CPU=scalar "$BITDELTA" doctor >out
says "doctor: a lowered level of instructions" '^note     cpu: scalar, .* -> unset BITDELTA_CPU'
BITDELTA_BLAS=0 "$BITDELTA" doctor >out
says "doctor: OpenBLAS, switched off" '^note     blas: not used, .* -> unset BITDELTA_BLAS'
BITDELTA_CUDA=$W/nothing.so "$BITDELTA" doctor >out
same "doctor: no CUDA is no problem" 0 $?
says "doctor: nor is it needed" '^(ok|note) +gpu: .*distilling uses the processor'
PATH=/nowhere "$BITDELTA" doctor >out
same "doctor: root needs no fusermount3 on PATH" 0 $?
says "doctor: PATH without fusermount3" '^note     fusermount3: (missing|.* is not on PATH)'
bash -c 'ulimit -n 100 && exec "$0" doctor' "$BITDELTA" >out
says "doctor: few files" '^note     open files: at most 100'

# crippled NAME WHAT STATUS PATTERN PREPARATION [COMMAND...]: in a mount namespace where PREPARATION was
# done, doctor ends with STATUS and prints PATTERN; as COMMAND runs it
crippled() {
	local name=$1 status=$2 pattern=$3 preparation=$4
	shift 4
	unshare -m --propagation private bash -c "$preparation"' || exit 99; exec "$@"' - \
		"$@" "$W/bin/bitdelta" doctor >out 2>err
	local found=$?
	if [ $found = 99 ] || [ $found = 126 ] || [ $found = 127 ]; then
		skip "doctor: $name" "cannot be arranged here: $(tail -n 1 err)"
		return
	fi
	same "doctor: $name: exit status" "$status" $found
	says "doctor: $name" "$pattern"
}
if unshare -m --propagation private true 2>/dev/null; then
	crippled "no /dev/fuse" 1 '^problem  /dev/fuse: (missing|No such file.*)  -> .*--device /dev/fuse' \
		'mount -t tmpfs none /dev'
	crippled "another device" 1 '^problem  /dev/fuse: is not the device' \
		'mount --bind /dev/null /dev/fuse'
	crippled "a user may not open /dev/fuse" 1 '^problem  /dev/fuse: this user may not open it.*chmod 666' \
		'mount -t tmpfs none /dev && mknod -m 600 /dev/fuse c 10 229' "${user[@]}"
	ready='mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 229'
	crippled "a user" 0 '^ok       privileges: user 65534: mounts through fusermount3' \
		"$ready" "${user[@]}"
	says "doctor: a user: readahead" '^note     readahead: '
	: >empty.conf
	crippled "no user_allow_other" 0 '^note     /etc/fuse.conf: no user_allow_other' \
		"$ready && mount --bind '$W/empty.conf' /etc/fuse.conf" "${user[@]}"
	echo '  user_allow_other ' >fuse.conf
	crippled "user_allow_other" 0 '^ok       /etc/fuse.conf: user_allow_other' \
		"$ready && mount --bind '$W/fuse.conf' /etc/fuse.conf" "${user[@]}"
	crippled "no new privileges" 1 '^problem  fusermount3: .*no_new_privs' \
		"$ready" "${user[@]}" --no-new-privs
	fusermount=$(realpath "$(command -v fusermount3)")
	install -m 755 "$fusermount" "$W/bin/fusermount3"
	crippled "fusermount3 without setuid" 1 '^problem  fusermount3: .*is not setuid root' \
		"$ready && mount --bind '$W/bin/fusermount3' '$fusermount'" "${user[@]}"
	crippled "root without CAP_SYS_ADMIN" 1 '^problem  privileges: root without CAP_SYS_ADMIN' \
		: setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin
	crippled "no /proc" 1 '^ok       privileges: CAP_SYS_ADMIN' 'umount -l /proc'
	crippled "no /sys" 0 '^note     readahead: ' 'umount -l /sys'
else
	skip "doctor: a crippled system" "no mount namespace can be made here"
fi
finish
