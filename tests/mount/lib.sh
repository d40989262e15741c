# SPDX-License-Identifier: Apache-2.0
# lib.sh: what the mount tests share; source it first.
#
# Each check prints `ok NAME`, `not ok NAME: why` or `skip NAME: why`. BUILD names the directory with the
# programs (build/release unless given). Everything happens below $W, which is unmounted and
# removed at the end, whatever happens. Nothing waits for a mount, which returns when it is ready; what comes
# later is waited for with wait_for. A sleep only lets time pass in which something goes on, or must not happen.
set -u
export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../patience.sh"
BUILD=$(realpath "${BUILD:-$here/../../build/release}")
DATA=$(realpath "$here/../data/nano-llama2")
MOUNT=$BUILD/mount.bitdelta
SLOW= # with a sanitizer, where a program takes some ten times as long
case $BUILD in */asan | */tsan) SLOW=yes ;; esac
failed=0
W=$(mktemp -d) || exit 1
W=$(realpath "$W")
pids=()   # further processes of a test, ended at the end

mounts() { awk -v d="$W/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo; }

clean_up() {
	local p m
	for p in ${pids[@]+"${pids[@]}"}; do
		kill -9 "$p" 2>/dev/null
	done
	for m in $(mounts | tac); do
		umount "$m" 2>/dev/null || umount -l "$m" 2>/dev/null || fusermount3 -uz "$m"
	done
	rm -rf "$W"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ok() { echo "ok $1"; }
not_ok() {
	echo "not ok $1: ${2:-}"
	failed=1
}
skip() { echo "skip $1: $2"; }
finish() { exit "$failed"; }

# check NAME COMMAND...: it succeeds
check() {
	local name=$1 text status
	shift
	text=$("$@" 2>&1)
	status=$?
	if [ $status = 0 ]; then
		ok "$name"
	else
		not_ok "$name" "exit status $status: $(tail -n 3 <<<"$text" | tr '\n' ' ')"
		return 1
	fi
}

# same NAME EXPECTED FOUND
same() {
	if [ "$2" = "$3" ]; then
		ok "$1"
	else
		not_ok "$1" "expected '$2', found '$3'"
	fi
}

# refuses NAME STATUS PATTERN COMMAND...: it ends with that status (a pattern too) and says so on stderr
refuses() {
	local name=$1 status=$2 pattern=$3 text found
	shift 3
	text=$("$@" 2>&1 >/dev/null)
	found=$?
	if ! grep -qxE "$status" <<<"$found"; then
		not_ok "$name" "expected exit status $status, found $found: $text"
	elif ! grep -qE -- "$pattern" <<<"$text"; then
		not_ok "$name" "expected a message like '$pattern', found: $text"
	else
		ok "$name"
	fi
}

# must COMMAND...: what a test cannot do without
must() {
	"$@" || {
		not_ok "$(basename "$0" .sh)" "cannot go on: $* gave $?"
		exit 1
	}
}

# import BASE FINE NAME: $W/deltas/NAME.bdelta, and what it must look like in $W/truth/NAME/
import() {
	mkdir -p "$W/deltas" "$W/truth"
	must "$BUILD/bitdelta" import --steps 0 --base "$1" "$2" -o "$W/deltas/$3.bdelta" >"$W/import.log" 2>&1
	must "$BUILD/bitdelta" export "$W/deltas/$3.bdelta" --base "$1" -o "$W/truth/$3" \
		>"$W/export.log" 2>&1
}

# models NAME...: generated pairs in $W/models/NAME/{base,fine}, imported as NAME
models() {
	local name
	must python3 "$here/make_models.py" "$W/models" "$@"
	for name in "$@"; do
		import "$W/models/$name/base" "$W/models/$name/fine" "$name"
	done
}

# tunes NAME: the generated base $W/models/NAME/base and its fine-tunes a, b and c, imported as such
tunes() {
	local name
	must python3 "$here/make_models.py" "$W/models" "$1"
	for name in a b c; do
		import "$W/models/$1/base" "$W/models/$1/$name" "$name"
	done
}

# stat_of MOUNTPOINT EXPRESSION: of Python, where s is what .bitdelta/stats.json says
stat_of() {
	python3 -c 'import json, sys
s = json.load(open(sys.argv[1] + "/.bitdelta/stats.json"))
print(eval(sys.argv[2]))' "$1" "$2"
}
open_files() { stat_of "$1" 'sum(m["open_files"] for m in s["models"])'; }
# logged FILE: what a daemon had to say, without what it says of sanitizers
logged() { grep -v 'no sandbox: a sanitizer' "$1"; }
descriptors() { ls "/proc/$1/fd" | wc -l; }
memory() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; } # KiB

# daemon_of MOUNTPOINT: process id of the daemon that was started with this argument (not its parent)
daemon_of() {
	local p exe
	exe=$(realpath "$MOUNT")
	for p in /proc/[0-9]*; do
		[[ $(readlink "$p/exe" 2>/dev/null) == "$exe"* ]] && # "... (deleted)" after a new build
			[ "$(cat "$p/comm" 2>/dev/null)" != bitdelta-parent ] &&
			tr '\0' '\n' 2>/dev/null <"$p/cmdline" | grep -qxF -- "$1" &&
			echo "${p#/proc/}" && return
	done
	return 1
}

# is_alive PID: there, and not only waiting to be reaped
is_alive() { [ -e "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

# wait_for SECONDS COMMAND...: until it succeeds (patience.sh)
wait_for() {
	local seconds=$1 start=$SECONDS
	shift
	until "$@"; do
		[ $((SECONDS - start)) -lt "$seconds" ] ||
			[ $((SECONDS - start)) -lt "$(patience "$seconds")" ] || return 1
		sleep 0.02
	done
}
has_ended() { ! is_alive "$1"; }

mount_at() { # MOUNTPOINT BASE OPTIONS [FLAGS...]
	local point=$1 base=$2 options=$3
	shift 3
	mkdir -p "$point"
	"$MOUNT" "$base" "$point" -o "$options" "$@"
}

# unmount MOUNTPOINT: also waits for the end of its daemon, whose sanitizer may have something to say
unmount() {
	local pid
	pid=$(daemon_of "$1")
	umount "$1" || return
	[ -z "$pid" ] || wait_for 30 has_ended "$pid"
}

[ -c /dev/fuse ] || { skip "$(basename "$0" .sh)" "there is no /dev/fuse"; exit 0; }
[ "$(id -u)" = 0 ] || { skip "$(basename "$0" .sh)" "needs root"; exit 0; }
