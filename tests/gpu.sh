#!/bin/bash
# gpu.sh: the tests that need an NVIDIA GPU, on a machine that has one; some minutes.
#
#   tests/gpu.sh [LOG]      the whole output goes to LOG (build/gpu.log)
#   ONLY="ops bench" tests/gpu.sh   only these checks
#
# Builds first where nvcc and the packages of `make deps` are there; else uses what is in build/release. A
# check is a function below, which prints `ok NAME`, `not ok NAME: why` or `skip NAME: why`; a new one is
# named in `checks`. The last line is `N passed, N failed, N skipped`.
set -u
cd "$(dirname "$0")/.." || exit 1
log=${1:-build/gpu.log}
build=build/release
checks=(ops memcheck bench)
export BITDELTA_CUDA=$PWD/$build/bitdelta-cuda.so

# Every operation against the reference.
ops() {
	program ops_check && timeout 300 "$build/device/ops_check"
}

# The same with every access to memory checked.
memcheck() {
	local out
	program ops_check || return 0
	command -v compute-sanitizer >/dev/null || {
		echo "skip memcheck: compute-sanitizer is not installed"
		return
	}
	# One check asks for more memory than there is: that error of the interface is none here.
	if out=$(timeout 180 compute-sanitizer --report-api-errors no --error-exitcode 9 \
		"$build/device/ops_check" 2>&1); then
		echo "ok memcheck"
	else
		grep '^=====' <<<"$out" | head -n 40
		echo "not ok memcheck: a kernel reads or writes where it must not, or an operation fails"
	fi
}

# How fast the operations are.
bench() {
	program ops_bench && timeout 120 "$build/device/ops_bench"
}

program() { # NAME: is it there?
	[ -x "$build/device/$1" ] || {
		echo "skip $1: $build/device/$1 is not built"
		return 1
	}
}

prepare() {
	command -v nvidia-smi >/dev/null && nvidia-smi -L
	if ! command -v nvcc >/dev/null || ! pkg-config --exists libcjson libxxhash zlib fuse3 libpcre2-8; then
		echo "# not built here: nvcc or the packages of 'make deps' are missing"
		return
	fi
	make --no-print-directory "-j$(nproc)" NVCC_ARCH=-arch=native all $build/device/ops_check \
		$build/device/ops_bench >build/gpu-build.log 2>&1 && return
	tail -n 30 build/gpu-build.log
	echo "not ok building: the whole of it is in build/gpu-build.log"
}

# One check: it must say something, and its exit status must agree.
run() {
	local out status start=$SECONDS
	out=$(mktemp) || exit 1
	echo "== $1"
	"$1" 2>&1 | tee "$out"
	status=${PIPESTATUS[0]}
	if ! grep -qE '^(ok|not ok|skip) ' "$out"; then
		echo "not ok $1: reported nothing (exit status $status)"
	elif [ "$status" != 0 ] && ! grep -qE '^(not ok|skip) ' "$out"; then
		echo "not ok $1: exit status $status"
	fi
	rm -f "$out"
	echo "== $1: $((SECONDS - start)) s"
}

mkdir -p build "$(dirname "$log")"
{
	prepare
	for check in ${ONLY:-"${checks[@]}"}; do
		run "$check"
	done
} >"$log" 2>&1
grep -E '^(not ok|skip|==) ' "$log"
passed=$(grep -cE '^ok ' "$log") failed=$(grep -cE '^not ok ' "$log") skipped=$(grep -cE '^skip ' "$log")
echo "$passed passed, $failed failed, $skipped skipped" | tee -a "$log"
[ "$failed" = 0 ]
