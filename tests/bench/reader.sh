# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154 # variables of bench.sh
# reader.sh: the part "reader" of bench.sh: one process reads one big file, in all ways.

servers=(ours copy zero)
ways=(read mmap direct:1:1 direct:1:2 direct:16:1 direct:16:2)
declare -A way_text=([read]="read(2), 1 MiB" [mmap]="mmap, touched in order"
	[direct:1:1]="O_DIRECT, 1 MiB, 1 thread" [direct:1:2]="O_DIRECT, 1 MiB, 2 threads"
	[direct:16:1]="O_DIRECT, 16 MiB, 1 thread" [direct:16:2]="O_DIRECT, 16 MiB, 2 threads")

measure_reader() {
	local how s i k cpu
	say "one reader: the mount, copy, zero and a plain file, $rounds rounds"
	mount_ours "$work/big/base" "$delta"
	start_reference "$copy" copy "$fine"
	start_reference "$zero" zero "$size"
	declare -A file=([ours]=$mnt/x/model.safetensors [copy]=$copy/0 [zero]=$zero/0)
	declare -A where=([ours]=$mnt [copy]=$copy [zero]=$zero)
	cmp -s "${file[copy]}" "$fine" || fail "the copy server's file differs"
	readahead=$(cat "$(readahead_of "$mnt")")

	for ((i = 0; i < rounds; i++)); do
		# Cached by reading them from the disk in order, as after a first load: how they were read or
		# written decides how large the folios of the page cache are, and with them the paging.
		unmount "$mnt"
		drop "$base" "$delta" "$fine"
		cat "$base" "$delta" "$fine" >/dev/null
		mount_ours "$work/big/base" "$delta"
		reads plain_hot_read read "$fine"
		reads plain_hot_mmap mmap "$fine"
		for how in "${ways[@]}"; do
			for ((k = 0; k < 3; k++)); do
				s=${servers[(i + k) % 3]} # nobody is always first
				drop "${file[$s]}"
				cpu=$(cpu_of "${where[$s]}")
				reads "${s}_$how" "$how" "${file[$s]}"
				[ "${got[1]}" = "$size" ] || fail "$s: ${got[1]} bytes came instead of $size"
				sample "${s}_${how}_cpu" "$(calc %.6f "$(cpu_of "${where[$s]}") - $cpu")"
			done
		done
		for s in ours copy; do
			drop "${file[$s]}"
			"$read_file" read "${file[$s]}" >/dev/null
			reads "${s}_second_read" read "${file[$s]}"
			reads "${s}_second_mmap" mmap "${file[$s]}"
		done
		for how in faults faults-plain; do
			for ((k = 0; k < 3; k++)); do
				s=${servers[(i + k) % 3]}
				drop "${file[$s]}"
				reads "${s}_${how}_p50" "$how" "${file[$s]}"
				sample "${s}_${how}_p99" "${got[1]}"
			done
		done
		drop "$fine"
		reads plain_cold_read read "$fine"
		drop "$fine"
		reads plain_cold_mmap mmap "$fine"
		drop "$fine"
		reads plain_direct direct:1:1 "$fine"
		for how in read mmap; do
			unmount "$mnt" # what the daemon has mapped stays in the page cache
			drop "$base" "$delta"
			reads "inputs_cold_$how" "$how" "$base" "$delta"
			drop "$base" "$delta"
			mount_ours "$work/big/base" "$delta"
			reads "ours_allcold_$how" "$how" "${file[ours]}"
		done
	done
	cat "$base" "$delta" "$fine" >/dev/null
	folios_plain=$(folios_of "$fine")
	folios_copy=$(folios_of "${file[copy]}")
	folios_ours=$(folios_of "${file[ours]}")
	measure_tensor "${file[ours]}"
	end_all
}

folios_of() { # FILE: percentage, as root
	local share
	share=$("$read_file" folios "$1" 2>/dev/null) && calc %.0f%% "100 * $share" || echo unknown
}

# What is touched of base and delta for exactly one matrix of FILE.
measure_tensor() {
	local name=model.layers.0.mlp.gate_proj.weight rows=5504 cols=2048 header from before
	header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
	from=$(tail -c +9 "$1" | head -c "$header" | tr '}' '\n' | grep -F "\"$name\"" |
		sed 's/.*"data_offsets":\[\([0-9]*\),.*/\1/')
	drop "$1"
	before=$(($(stat_of base_bytes) + $(stat_of delta_bytes)))
	"$read_file" "range:$((8 + header + from)):$((2 * rows * cols))" "$1" >/dev/null
	touched=$(($(stat_of base_bytes) + $(stat_of delta_bytes) - before))
	needed=$((2 * rows * cols + rows * cols / 8 + 4 * (rows + cols)))
}

us() { calc %.1f "$(median "$1")"; }
ms_per_gib() { calc %.0f "$(median "$1") * 1000 * 2^30 / $size"; }
# core_ms NAME: what one core takes for 1 GiB by the first streaming row of that name of bench_sign
core_ms() {
	awk -v n="$1" 'index($1, n) == 1 && /stream/ && !f { f = 1; printf "%.0f", 2^30 / $2 / 1e6 }' "$work/sign"
}
first_read_note() {
	echo "1 GiB takes $(ms_per_gib "ours_$1") ms (copy $(ms_per_gib "copy_$1")), of the daemon's CPU" \
		"$(ms_per_gib "ours_${1}_cpu") ms (copy $(ms_per_gib "copy_${1}_cpu"))"
	[ ! -s "$work/sign" ] || echo "; in memory one core rebuilds it in $(core_ms rebuild) ms and" \
		"copies it in $(core_ms memcpy) ms"
}
disk_note() {
	echo "the disk gives $(calc %.2f "($size + $delta_size) / $size") times the bytes; reading just base and" \
		"delta from it, without a mount, reaches $(ratio "inputs_cold_$1" "plain_cold_$1")"
}
pages_note() {
	echo "copy's second read reaches $(ratio "copy_second_$1" "plain_hot_$1"); in folios larger than a page are" \
		"of the page cache: plain $folios_plain, copy $folios_copy, ours $folios_ours"
}

report_reader() {
	local how value mark p
	declare -A limit=([p50]=10 [p99]=20)
	printf '\n%-30s %7s %7s %7s %10s %8s         %s\n' "First read, base cached: MB/s" ours copy zero \
		ours/copy goal "daemon's CPU, ms/GiB"
	for how in "${ways[@]}"; do
		name_row "first read, ${way_text[$how]}: ours / copy"
		value=$(ratio "ours_$how" "copy_$how")
		mark=$(judge "$value" ">= 0.92") || why "$(first_read_note "$how" | tr -d '\n')"
		printf '%-30s %7s %7s %7s %10s %-17s%4s %4s %4s\n' "${way_text[$how]}" \
			"$(rate "ours_$how" "$size")" "$(rate "copy_$how" "$size")" \
			"$(rate "zero_$how" "$size")" "$value" "$mark" "$(ms_per_gib "ours_${how}_cpu")" \
			"$(ms_per_gib "copy_${how}_cpu")" "$(ms_per_gib "zero_${how}_cpu")"
	done
	echo "copy: the same FUSE loop serving a file from memory; zero: serving a constant buffer. Readahead of" \
		"all three: $readahead KiB."

	heading "One reader against a plain file" "MB/s" "ref MB/s" ratio
	for how in read mmap; do
		speed "$how: first, base cached / plain cold" "ours_$how" "plain_cold_$how" "$size" ">= 1.7" ||
			why "copy, which computes nothing, reaches $(ratio "copy_$how" "plain_cold_$how")"
		speed "$how: first, base and delta cold / plain cold" "ours_allcold_$how" "plain_cold_$how" \
			"$size" ">= 0.75" || why "$(disk_note "$how")"
		speed "$how: first, base cached / plain hot" "ours_$how" "plain_hot_$how" "$size"
		speed "$how: second / plain hot" "ours_second_$how" "plain_hot_$how" "$size" ">= 0.95" ||
			why "$(pages_note "$how")"
		speed "$how: second / copy's second" "ours_second_$how" "copy_second_$how" "$size"
	done
	speed "O_DIRECT 1 MiB: base cached / plain O_DIRECT 1 MiB" ours_direct:1:1 plain_direct "$size"

	heading "Random 4 KiB faults, base cached: us" ours copy zero
	for p in p50 p99; do
		figure "MADV_RANDOM, $p" "$(us "ours_faults_$p")" "$(us "copy_faults_$p")" \
			"$(us "zero_faults_$p")" "<= ${limit[$p]}" ||
			why "copy takes $(us "copy_faults_$p") us, and zero, which only answers," \
				"$(us "zero_faults_$p") us"
	done
	for p in p50 p99; do
		figure "no advice (each fault reads ahead), $p" "$(us "ours_faults-plain_$p")" \
			"$(us "copy_faults-plain_$p")" "$(us "zero_faults-plain_$p")"
	done

	heading "Reading one matrix of 22 MB: bytes of base and delta" touched needed ratio
	value=$(calc %.3f "$touched / $needed")
	figure "FUSE cache cold" "$touched" "$needed" "$value" "<= 1.1" "$value" ||
		why "as .bitdelta/stats.json counts"
}
