#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# layering.sh: dependencies point one way: mount-tools -> fs -> delta <- gpu, mount-tools -> gpu,
# mount-tools -> delta. Looks at every #include, and at what the finished programs are linked with; then at
# the licence: each source file has its line, and NOTICE every library.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
ok() { echo "ok $1"; }
bad() { echo "not ok $1"; status=1; }

# check AREA "ALLOWED AREAS" "FORBIDDEN SYSTEM HEADERS (regular expression)"
check() {
	local area=$1 allowed=$2 forbidden=$3 wrong=0 file header at target
	[ -n "$(find "$area" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh')" ] || return
	while IFS=: read -r file header; do
		case $header in
		'<'*)
			if [[ ${header:1} =~ $forbidden ]]; then
				bad "$area: $file includes $header"
				wrong=1
			fi
			continue
			;;
		esac
		header=${header:1}
		# As the compiler looks: beside the file, then as a path, then in the library folders.
		target=
		for at in "$(dirname "$file")" . delta fs gpu mount-tools; do
			if [ -e "$at/$header" ]; then
				target=$(realpath --relative-to=. "$at/$header")
				break
			fi
		done
		if [ -z "$target" ]; then
			bad "$area: $file includes $header, which is nowhere"
			wrong=1
		elif [[ " $allowed " != *" ${target%%/*} "* ]]; then
			bad "$area: $file includes $target"
			wrong=1
		fi
	done < <(grep -rHoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"][^>"]+' "$area" \
		--include='*.[ch]' --include='*.cu' --include='*.cuh' |
		sed -E 's/:[[:space:]]*#[[:space:]]*include[[:space:]]*/:/')
	[ $wrong = 1 ] || ok "$area includes only: $allowed"
}

fuse='^(fuse|fuse3|fuse_)'
cuda='^(cuda|cublas|cudnn|nccl|curand|cusparse|nvrtc|nvToolsExt|nvml)'
check delta "delta" "$fuse|$cuda"
check fs "fs delta" "$cuda"
check gpu "gpu delta" "$fuse"
check mount-tools "mount-tools fs delta gpu" "$cuda"

# The engine knows its backends by ops.h alone.
found=$(grep -lE "^[[:space:]]*#[[:space:]]*include[[:space:]]*<(${cuda#^(}" gpu/*.[ch])
if [ -z "$found" ]; then ok "gpu: CUDA in .cu files only"; else bad "gpu: CUDA in ${found//$'\n'/ }"; fi

# unlinked PROGRAM WHAT "LIBRARIES (regular expression)"
unlinked() {
	[ -e "build/release/$1" ] || return
	if ldd "build/release/$1" | grep -E "$3"; then
		bad "$1 is linked with $2"
	else
		ok "$1 is not linked with $2"
	fi
}

# All must work on a machine without a GPU, where these are opened if they are there; and mounting is none
# of the engine's business.
open='libcuda|libcublas|libnvrtc|libcudnn|libopenblas|libblas'
unlinked bitdelta "CUDA or BLAS" "$open"
unlinked mount.bitdelta "what the engine needs" "$open|libpcre2|libutf8proc"
unlinked libbitdelta.so.0 "what the engine needs" "$open|libpcre2|libutf8proc"

# --- the licence ---

line='SPDX-License-Identifier: Apache-2.0'
# Sources are what is neither documentation, nor data, nor a list of debhelper's. Without git, all files are
# taken for the project's.
sources() {
	{ git ls-files 2>/dev/null || find . -name .git -prune -o -type f -printf '%P\n'; } |
		grep -vE '^(build|tests/data|gpu/general|tests/fuzz/corpus|tests/golden/[^/]*)/|__pycache__/|^"' |
		grep -vE '\.md$|(^|/)\.gitignore$|^(LICENSE|NOTICE)$' |
		grep -vE '/debian/([^/]*\.(dirs|install|examples|symbols)|changelog|control|copyright|not-installed|source/.*)$'
}
without=$(sources | sort | while IFS= read -r f; do
	head -n 2 "$f" | grep -qF "$line" || echo "$f"
done)
if [ -z "$without" ]; then
	ok "$(sources | wc -l) source files say their licence"
else
	bad "no line '$line' at the beginning of: ${without//$'\n'/ }"
fi
unnamed=$({
	for p in bitdelta mount.bitdelta libbitdelta.so.0; do
		objdump -p "build/release/$p" | sed -nE 's/^ *NEEDED +(lib[^.]+)\.so.*/\1/p'
	done
	grep -rhoE 'dlopen\("lib[^.]+' fs gpu delta mount-tools --include='*.c' | sed 's/.*"//'
} | sort -u | grep -vxE 'libc|libm|libgcc_s' | while read -r l; do
	grep -qE "^ +$l " NOTICE || echo "$l"
done)
if [ -z "$unnamed" ]; then ok "NOTICE names all libraries"; else bad "NOTICE lacks ${unnamed//$'\n'/ }"; fi
exit $status
