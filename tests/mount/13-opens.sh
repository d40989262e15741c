#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 13-opens.sh: ten thousand opens, at once and one after the other: nothing is lost, and little is held. The same
# for a model of many tensors.
# sanitizers: yes
. "$(dirname "$0")/lib.sh"

tunes tunes
M=$W/mnt
must mount_at "$M" "$W/models/tunes/base" "deltas=$W/deltas,log=$W/log"
pid=$(daemon_of "$M")
nothing_open() { [ "$(open_files "$M")" = 0 ]; }

# opens COUNT AT_ONCE: of all files in turn, each read from somewhere; between them prints "held"
# and waits for a line
cat >"$W/opens.py" <<'EOF2'
import os, random, resource, sys
mounted, truth, count, at_once = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
names = sorted(os.path.join(m, f) for m in os.listdir(truth) for f in os.listdir(os.path.join(truth, m)))
want = {n: open(os.path.join(truth, n), "rb").read() for n in names}
held, dice = [], random.Random(3)
for i in range(count):
    name = names[i % len(names)]
    fd = os.open(os.path.join(mounted, name), os.O_RDONLY)
    at = dice.randrange(len(want[name]))
    if os.pread(fd, 100, at) != want[name][at:at + 100]:
        sys.exit(f"WRONG BYTES in {name} at {at}")
    held.append(fd)
    if len(held) == at_once:
        if at_once > 1:
            print("held", flush=True)
            sys.stdin.readline()
        while held:
            os.close(held.pop(dice.randrange(len(held))))
EOF2
opens() { python3 "$W/opens.py" "$M" "$W/truth" "$@"; }

check "10,000 opens, one after the other" opens 10000 1
check "they are closed" wait_for 20 nothing_open
descriptors=$(descriptors "$pid") before=$(memory "$pid")
for i in 1 2; do
	coproc opens 10000 10000 2>&1
	client=$COPROC_PID
	read -r -u "${COPROC[0]}" answer
	same "10,000 files open at once, $i" held "$answer"
	same "they are counted, $i" 10000 "$(open_files "$M")"
	held=$(memory "$pid")
	check "they cost no descriptors, $i" test "$(descriptors "$pid")" -le $((descriptors + 6))
	echo >&"${COPROC[1]}"
	wait "$client"
	same "they can be closed, $i" 0 "$?"
	check "they are closed, $i" wait_for 20 nothing_open
	echo "# memory: $before KiB, $held KiB with 10,000 open files, $(memory "$pid") KiB after"
done
check "10,000 more, one after the other" opens 10000 1
check "no descriptor is lost" test "$(descriptors "$pid")" -le $((descriptors + 2))
if [ -z "$SLOW" ]; then # freed memory is kept for a while there
	check "an open file costs less than a kilobyte" test $((held - before)) -lt 10000
	check "no memory is lost" test "$(memory "$pid")" -lt $((before + 4096))
fi
same "nothing was logged" "" "$(logged "$W/log")"
check "umount" unmount "$M"

# --- many tensors: the delta is parsed once, and little stays of it ---

tensors=50000
[ -z "$SLOW" ] || tensors=3000
must python3 "$here/../faults/make_many.py" "$W/models/many" $tensors 8 8 20
import "$W/models/many/base" "$W/models/many/fine" many
must mount_at "$M" "$W/models/many/base" "deltas=$W/deltas/many.bdelta,log=$W/log"
pid=$(daemon_of "$M")
# The first open in ms, then the median of all files' later ones
cat >"$W/times.py" <<'EOF2'
import os, sys, time
def opened(name):
    start = time.perf_counter()
    fd = os.open(name, os.O_RDONLY)
    end = time.perf_counter()
    os.close(fd)
    return 1000 * (end - start)
names = [os.path.join(sys.argv[1], n) for n in sorted(os.listdir(sys.argv[1]))]
first = opened(names[1])
later = sorted(opened(n) for _ in range(5) for n in names)
print(first, later[len(later) // 2])
EOF2
times=$(python3 "$W/times.py" "$M/many")
echo "# $tensors tensors: the first file is opened in ${times% *} ms, others in ${times#* } ms"
check "many tensors: all files are right" diff -r "$W/truth/many" "$M/many"
if [ -z "$SLOW" ]; then
	check "many tensors: only the first file takes long" awk -v t="$times" 'BEGIN {
		split(t, ms, " "); exit !(ms[2] <= 5 || ms[2] <= ms[1] / 20) }'
	more=$(($(memory "$pid") - before)) # than a daemon takes that serves few
	check "many tensors: 400 bytes for each ($((more * 1024 / tensors)))" test $((more * 1024 / tensors)) -le 400
fi
check "many tensors: umount" unmount "$M"
finish
