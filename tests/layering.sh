#!/bin/bash
# layering.sh: dependencies point one way: mount-tools -> fs -> delta <- gpu, mount-tools -> gpu,
# mount-tools -> delta. Looks at every #include, and at what the finished daemon links.
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

# Mounting must work on a machine without a GPU.
daemon=build/release/mount.bitdelta
if [ -e $daemon ]; then
	if ldd $daemon | grep -E 'libcuda|libcublas|libnvrtc|libcudnn'; then
		bad "mount.bitdelta is linked with CUDA"
	else
		ok "mount.bitdelta is not linked with CUDA"
	fi
fi
exit $status
