#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
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
checks=(ops memcheck bench models small mounted big)
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

# Whole models against transformers.
models() {
	[ -x "$build/engine/logits" ] || { echo "skip models: $build/engine/logits is not built"; return; }
	python3 -c 'import torch, transformers' 2>/dev/null || {
		echo "skip models: python3 has no torch or transformers"
		return
	}
	timeout 200 python3 tests/engine/transformers.py "$build/engine/logits" \
		--on cuda-bf16,cuda-f16,cuda-f32
}

# The shipped pair distilled on the GPU: twice the same, as good as on the CPU, whatever goes wrong.
small() {
	local pair=tests/data/nano-llama2 d rc
	d=$(mktemp -d) || return
	import() { "$build/bitdelta" import --base $pair/base $pair/kjv -o "$d/$1.bdelta" --json "${@:2}"; }
	if import a --device cuda >"$d/a.json" && import b --device cuda >"$d/b.json" && cmp "$d/a.bdelta" "$d/b.bdelta"; then
		echo "ok the same seed gives the same file"
	else
		echo "not ok the same seed gives the same file"
	fi
	import cpu --device cpu >"$d/cpu.json" 2>/dev/null
	python3 - "$d" <<'END'
import json, sys
cuda, cpu = (json.load(open(f"{sys.argv[1]}/{x}.json"))["distillation"] for x in ("a", "cpu"))
close = abs(cuda["kl_after"] / cpu["kl_after"] - 1) < 0.1 and cuda["kl_after"] < 0.75 * cuda["kl_before"]
print("ok" if close else "not ok", f"distilled: kl {cuda['kl_before']:.4f} -> {cuda['kl_after']:.4f} in "
      f"{cuda['seconds_total']:.1f} s on the GPU, {cpu['kl_after']:.4f} in {cpu['seconds_total']:.1f} s on the CPU")
END
	BITDELTA_GPU_MEMORY=4000000 import c --device cuda >"$d/c.json" 2>"$d/c.err"
	rc=$?
	if [ $rc = 1 ] && grep -q memory "$d/c.err" && "$build/bitdelta" verify "$d/c.bdelta" --base $pair/base >/dev/null; then
		echo "ok without enough memory the closed form stays: $(tail -n 1 "$d/c.err")"
	else
		echo "not ok without enough memory the closed form stays: exit status $rc, $(tail -n 1 "$d/c.err")"
	fi
	rm -rf "$d"
}

# A distilled delta, mounted and loaded by an unmodified transformers.
mounted() {
	local pair=tests/data/nano-llama2 d
	[ -e /dev/fuse ] && command -v fusermount3 >/dev/null || [ "$(id -u)" = 0 ] || {
		echo "skip mounted: FUSE is missing"
		return
	}
	d=$(mktemp -d) || return
	mkdir "$d/deltas" "$d/mnt"
	"$build/bitdelta" import -q --device cuda --base $pair/base $pair/kjv -o "$d/deltas/kjv.bdelta" &&
		"$build/mount.bitdelta" $pair/base "$d/mnt" -o "deltas=$d/deltas" &&
		timeout 120 python3 tests/gpu/mounted.py "$build/engine/logits" "$d/mnt/kjv"
	umount "$d/mnt" 2>/dev/null || fusermount3 -u "$d/mnt"
	rm -rf "$d"
}

# A pair of 7B, files to file, against the goals.
big() {
	local at=${TMPDIR:-/tmp}
	[ "$(df -Pk "$at" | awk 'NR == 2 { print $4 }')" -gt 31000000 ] || {
		echo "skip big: $at has no 31 GB left"
		return
	}
	tests/gpu/big.sh "$build" "$(mktemp -d -p "$at")"
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
		$build/device/ops_bench $build/engine/logits >build/gpu-build.log 2>&1 && return
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
