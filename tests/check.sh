#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# check.sh: run the tests and count them.
#
#   tests/check.sh               everything; builds build/release, build/asan and build/tsan itself
#   tests/check.sh unit BUILD    unit tests and fuzz corpora of one variant, such as build/asan
#   tests/check.sh mount BUILD   the scripts against a real mount with one variant
#
# One line per test program; the whole output of each is in build/log/. The last line is
# `N passed, N failed, N skipped`, where every unit test and every reported step counts, and the exit
# status is 0 only where nothing failed. V=1 shows every step,
# and the command lines of the build in build/log/build-*.log.
#
# A test program is anything that prints `ok NAME`, `not ok NAME: why` or `skip NAME: why` at the
# start of lines (cmocka's TAP output is read too), and exits 0 where all went well. It fails also
# if it prints none of these, runs longer than its time limit, leaves a mount behind, or if a
# sanitizer reported something in it or in a daemon that it started. That no script at all can mount
# is a failure too in CI (CI is set), and for root where there is /dev/fuse.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/patience.sh
root=$PWD
log=$root/build/log
passed=0 failed=0 skipped=0
failures=()

# Sanitizers need the address space where they expect it; random placement with 32 bits breaks
# those of gcc 12 to 13.
fixed=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
	fixed=(setarch "$(uname -m)" -R)
fi

# The mounts of ours that are there now (only those below our own temporary directory).
our_mounts() {
	awk -v d="$TMPDIR/" 'index($2, d) == 1 { print $2 }' /proc/self/mounts
}

unmount_ours() {
	local m
	our_mounts | sort -r | while read -r m; do
		m=$(printf '%b' "$m")
		fusermount3 -u -z "$m" 2>/dev/null || umount -l "$m" 2>/dev/null
	done
}

# Processes of ours: programs from build/ that inherited our temporary directory.
our_processes() {
	local p
	find /proc -maxdepth 2 -path '/proc/[0-9]*/exe' -lname "$root/build/*" 2>/dev/null | while read -r p; do
		tr '\0' '\n' 2>/dev/null <"${p%exe}environ" | grep -qxF "TMPDIR=$TMPDIR" && basename "${p%/exe}"
	done
}

# A daemon ends shortly after its mount; what a sanitizer says comes last.
wait_for_processes() {
	local i pids
	for i in {1..600}; do
		pids=$(our_processes)
		[ -n "$pids" ] || return 0
		sleep 0.1
	done
	# shellcheck disable=SC2086
	kill -9 $pids 2>/dev/null
	return 1
}

# count FILE: ok, not ok and skipped steps in the output of a test
count() {
	awk '
	/^not ok ([0-9]+ )?# SKIP/ || /^ok .*# SKIP/ || /^skip( |:|$)/ { s++; next }
	/^not ok( |:|$)/ { f++; next }
	/^ok( |$)/ { p++; next }
	/^1\.\.[0-9]+$/ { plan += substr($0, 4) }
	END {
		missing = plan - (p + f + s)
		if (plan > 0 && missing > 0) f += missing # a group that died half-way
		print p + 0, f + 0, s + 0
	}' "$1"
}

# run NAME SECONDS COMMAND...: one test program, one line
run() {
	local name=$1 limit p f s status why="" start=$SECONDS
	limit=$(patience "$2")
	shift 2
	local out=$log/$name.log san=$log/$name.sanitizer
	mkdir -p "$(dirname "$out")"
	rm -f "$san".*
	# Debian's python3 and tools before others of the same name
	PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH \
	ASAN_OPTIONS=detect_leaks=1:log_path=$san \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=$san \
	TSAN_OPTIONS=second_deadlock_stack=1:log_path=$san \
	CMOCKA_MESSAGE_OUTPUT=TAP \
		timeout -k 10 "$limit" "$@" </dev/null >"$out" 2>&1
	status=$?
	read -r p f s < <(count "$out")
	[ $status != 124 ] && [ $status != 137 ] || why="took longer than $limit s"
	if [ -n "$(our_mounts)" ]; then
		why="${why:-left a mount behind}"
		unmount_ours
	fi
	wait_for_processes || why="${why:-left a process running}"
	if compgen -G "$san.*" >/dev/null; then
		why="${why:-a sanitizer reported something}"
		cat "$san".* >>"$out"
	fi
	[ $((p + f + s)) != 0 ] || why="${why:-reported no test (exit status $status)}"
	[ $status = 0 ] || [ "$f" != 0 ] || why="${why:-exit status $status}"
	[ -z "$why" ] || f=$((f + 1))
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))

	local result="$p passed"
	[ "$f" = 0 ] || result="$result, $f FAILED"
	[ "$s" = 0 ] || result="$result, $s skipped"
	printf '%-44s %s%s  (%d s)\n' "$name" "$result" "${why:+: $why}" $((SECONDS - start))
	if [ "${V:-}" ]; then
		grep -E '^(ok|not ok|skip)( |$)' "$out" | sed 's/^/    /'
	else
		grep -E '^(not ok ([0-9]+ )?# SKIP|ok .*# SKIP|skip )' "$out" |
			sed -E 's/^not ok ([0-9]+ )?# SKIP/skip/; s/^/    /'
	fi
	if [ "$f" != 0 ]; then
		failures+=("$name")
		echo "    --- last lines of ${out#"$root"/} ---"
		tail -n 60 "$out" | sed 's/^/    /'
		echo "    ---"
	fi
}

finish() {
	[ ${#failures[@]} = 0 ] || echo "failed: ${failures[*]}"
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" = 0 ] && [ "$passed" != 0 ]
	exit
}

# with VARIANT: sets `prefix` to what its programs must be started with
with() {
	prefix=()
	case $1 in
	asan | tsan) prefix=("${fixed[@]}") ;;
	esac
}

unit() { # VARIANT
	local v=$1 t c name
	with "$v"
	for t in tests/unit/test_*.c; do
		name=$(basename "$t" .c)
		[ -e "$t" ] && run "$v/unit/${name#test_}" 300 "${prefix[@]}" "build/$v/unit/$name"
	done
	for t in tests/fuzz/fuzz_*.c; do
		[ -e "$t" ] || continue
		name=$(basename "$t" .c)
		c=tests/fuzz/corpus/${name#fuzz_}
		run "$v/fuzz/${name#fuzz_}" 300 "${prefix[@]}" tests/fuzz/replay.sh "build/$v/fuzz/$name-replay" "$c"
	done
}

mount_scripts() { # VARIANT [all | load]
	local v=$1 t name before=$passed
	with "$v"
	for t in tests/mount/[0-9][0-9]-*.sh; do
		[ -e "$t" ] || continue
		name=$(basename "$t" .sh)
		if [ "${2:-all}" = load ]; then
			grep -q '^# sanitizers: yes' "$t" || continue
		fi
		BUILD=$root/build/$v run "$v/mount/$name" 300 "${prefix[@]}" bash "$t"
	done
	# Where mounting is expected to work, tests that all skip are no success.
	if [ "$passed" = "$before" ] && { [ "${CI:-}" ] || { [ -c /dev/fuse ] && [ "$(id -u)" = 0 ]; }; }; then
		echo "$v/mount: nothing was mounted: all scripts skip"
		failed=$((failed + 1))
		failures+=("$v/mount")
	fi
}

[ -w . ] || { echo "check.sh: $root is not writable" >&2; exit 1; }
mkdir -p "$log"
mkdir -p build/tmp
TMPDIR=$(mktemp -d "$root/build/tmp/XXXXXX") || exit 1
chmod 755 "$TMPDIR" # some tests run a program as nobody
export TMPDIR
trap 'unmount_ours; rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM

variant() {
	case $1 in
	build/release | build/asan | build/tsan) echo "${1#build/}" ;;
	*) echo "check.sh: BUILD must be build/release, build/asan or build/tsan" >&2; exit 1 ;;
	esac
}

case ${1:-all} in
unit)
	v=$(variant "${2:-build/release}") || exit
	unit "$v"
	finish
	;;
mount)
	v=$(variant "${2:-build/release}") || exit
	mount_scripts "$v"
	finish
	;;
all) ;;
*)
	sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
	exit 1
	;;
esac

# --- everything ---

jobs=-j$(nproc)
case ${MAKEFLAGS:-} in *jobserver*) jobs= ;; esac
for v in release asan tsan; do
	start=$SECONDS
	# shellcheck disable=SC2086
	if ! "${MAKE:-make}" --no-print-directory $jobs D=$v all tests >"$log/build-$v.log" 2>&1; then
		cat "$log/build-$v.log"
		echo "build/$v: does not build"
		echo "0 passed, 1 failed, 0 skipped"
		exit 1
	fi
	grep -E 'warning:' "$log/build-$v.log"
	printf '%-44s built  (%d s)\n' "build/$v" $((SECONDS - start))
done

run layering 60 tests/layering.sh
run docs 60 tests/docs.sh build/release
run golden 60 tests/golden.sh build/release
run install 120 tests/install.sh build/release
run skips 60 tests/skips.sh build/release
unit release
unit asan
unit tsan
mount_scripts release
mount_scripts asan load
mount_scripts tsan load
for t in tests/faults/[0-9][0-9]-*.sh; do
	[ -e "$t" ] || continue
	BUILD=$root/build/release run "faults/$(basename "$t" .sh)" 600 bash "$t"
done
for t in tests/engine/*.sh; do
	[ -e "$t" ] || continue
	BUILD=$root/build/release run "engine/$(basename "$t" .sh)" 600 bash "$t"
done
run loaders 600 tests/loaders/run.sh build/release
run deb 900 tests/deb.sh
finish
