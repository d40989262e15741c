#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh SECONDS: run every libFuzzer target of tests/fuzz/ for so long, with clang and its sanitizers.
#
# Starts from tests/fuzz/corpus/NAME/; new inputs and crashes go to build/fuzz/NAME/. A crash is
# worth a place in the corpus, which `make check` replays without clang.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
out=build/fuzz
command -v clang >/dev/null || {
	echo "fuzz: clang is missing: apt-get install clang libclang-rt-dev (without the second, -fsanitize=fuzzer has no library)" >&2
	exit 1
}
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
fixed=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
	fixed=(setarch "$(uname -m)" -R) # sanitizers of clang 14 to 17 dislike 32 bits of random placement
fi
libraries="libcjson libxxhash zlib libpcre2-8 libutf8proc"
status=0
for source in tests/fuzz/fuzz_*.c; do
	name=$(basename "$source" .c)
	name=${name#fuzz_}
	mkdir -p "$out/$name/new"
	echo "fuzz: building $name"
	# shellcheck disable=SC2046
	clang -std=gnu11 -O1 -g -ffp-contract=off -pthread -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=undefined -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Idelta -Igpu \
		$(pkg-config --cflags $libraries) -o "$out/$name/run" "$source" delta/*.c delta/codec/*.c gpu/*.c \
		$(pkg-config --libs $libraries) -ldl -lm
	echo "fuzz: $name for $seconds s"
	if "${fixed[@]}" "$out/$name/run" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 \
		-print_final_stats=1 -artifact_prefix="$out/$name/" "$out/$name/new" \
		"tests/fuzz/corpus/$name" >"$out/$name/log" 2>&1; then
		grep -E '^stat::number_of_executed_units|^Done' "$out/$name/log" || tail -n 3 "$out/$name/log"
	else
		tail -n 60 "$out/$name/log"
		echo "fuzz: $name FAILED: see $out/$name/"
		status=1
	fi
done
exit $status
