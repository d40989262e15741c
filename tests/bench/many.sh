# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154 # variables of bench.sh
# many.sh: the parts of bench.sh with many fine-tunes in one mount. A hard link of a delta under another
# name is a fine-tune of its own to the mount.

# together: 64 fine-tunes of some 60 MB, read by 64 processes at once; copy serves 64 files alike.
measure_together() {
	local i s many=$((rounds < 3 ? rounds : 3)) ours_files copy_files=()
	say "64 fine-tunes read by 64 processes, $many rounds"
	"$bin/bench/make_pair" "$work/small" 1024 2 4
	mkdir "$work/deltas64"
	for ((i = 0; i < 4; i++)); do
		"$bin/bitdelta" import --steps 0 --base "$work/small/base" "$work/small/fine$i" -o "$work/s$i.bdelta" >/dev/null
	done
	for ((i = 0; i < 64; i++)); do
		ln "$work/s$((i % 4)).bdelta" "$work/deltas64/$(printf 'tune%02d' "$i").bdelta"
		copy_files+=("$copy/$i")
	done
	mount_ours "$work/small/base" "$work/deltas64"
	start_reference "$copy" copy "$work/small/fine0/model.safetensors"
	ours_files=("$mnt"/tune*/model.safetensors)
	[ ${#ours_files[@]} = 64 ] || fail "${#ours_files[@]} of 64 fine-tunes are mounted"
	for ((i = 0; i < many; i++)); do
		cat "$work/small/base/model.safetensors" "$work"/s?.bdelta >/dev/null
		for s in ours copy; do
			declare -n files=${s}_files
			drop "${files[@]}"
			reads "${s}_alone" read "${files[@]}"
			together_size=${got[1]}
			drop "${files[@]}"
			reads "${s}_together" together "${files[@]}"
			sample "${s}_spread" "$(calc %.3f "${got[2]} / ${got[3]}")"
		done
	done
	peak=$(memory_of "$mnt" VmHWM) # of its whole life
	own=$(memory_of "$mnt" RssAnon)
	mapped=$(memory_of "$mnt" RssFile)
	end_all
}

report_together() {
	heading "64 fine-tunes of $(calc %.0f "$together_size / 64e6") MB, a process for each" "at once" alone ratio
	speed "all at once / one process reading them in turn, MB/s" ours_together ours_alone \
		"$together_size" ">= 1" || why "copy: $(ratio copy_together copy_alone)"
	speed "the same of copy" copy_together copy_alone "$together_size"
	figure "time of the slowest / of the fastest process" "$(calc %.2f "$(median ours_spread)")" "" "" "<= 2" ||
		why "copy: $(median copy_spread)"
	figure "the same of copy" "$(calc %.2f "$(median copy_spread)")" "" ""
	figure "peak memory of the daemon, MiB" "$(calc %.0f "$peak / 1024")" "" "" "<= 256" ||
		why "of what it has afterwards, $((own / 1024)) MiB are its own and $((mapped / 1024)) MiB pages of" \
			"mapped files"
}

# directory: 1,000 fine-tunes with as many tensors as a Llama 2 7B, but tiny ones.
measure_directory() {
	local i state one many=$((rounds < 3 ? rounds : 3))
	say "a directory of 1,000 fine-tunes, $many rounds"
	"$bin/bench/make_pair" "$work/tiny" 16 32 1
	mkdir "$work/deltas1000"
	"$bin/bitdelta" import --steps 0 --base "$work/tiny/base" "$work/tiny/fine0" -o "$work/t.bdelta" >/dev/null
	for ((i = 0; i < 1000; i++)); do
		ln "$work/t.bdelta" "$work/deltas1000/$(printf 'tune%03d' "$i").bdelta"
	done
	for ((i = 0; i < many; i++)); do
		mount_ours "$work/tiny/base" "$work/t.bdelta"
		declare -A one=([mounted]=$(memory_of "$mnt" VmRSS))
		cat "$mnt"/*/model.safetensors >/dev/null
		one[read]=$(memory_of "$mnt" VmRSS)
		unmount "$mnt"
		seconds mount1000 mount_ours "$work/tiny/base" "$work/deltas1000"
		for state in mounted read; do
			[ $state = mounted ] || cat "$mnt"/*/model.safetensors >/dev/null
			sample "each_$state" "$(calc %.1f "($(memory_of "$mnt" VmRSS) - ${one[$state]}) / 999")"
		done
		unmount "$mnt"
	done
}

report_directory() {
	heading "A directory of 1,000 fine-tunes of 291 tensors" "" "" ""
	figure "mounting it, seconds" "$(calc %.2f "$(median mount1000)")" "" "" "<= 2" ||
		why "$(calc %.2f "$(median mount1000)") ms for each delta"
	figure "memory for each once mounted, KiB" "$(calc %.1f "$(median each_mounted)")" "" "" "<= 64" ||
		why "growth of VmRSS against one delta"
	figure "memory for each after all were read, KiB" "$(calc %.1f "$(median each_read)")" "" "" "<= 64" ||
		why "growth of VmRSS against one delta, also read"
}

# tensors: a model of 250,000 tensors, as the largest checkpoints of mixtures of experts have, each of 128 bytes.
measure_tensors() {
	local i many=$((rounds < 3 ? rounds : 3)) files
	tensors=250000
	say "a model of $tensors tensors, $many rounds"
	python3 tests/faults/make_many.py "$work/many" $tensors 8 8 33
	"$bin/bitdelta" import --steps 0 --base "$work/many/base" "$work/many/fine" -o "$work/m.bdelta" >"$work/out" 2>&1
	for ((i = 0; i < many; i++)); do
		mount_ours "$work/many/base" "$work/m.bdelta"
		files=("$mnt"/m/*)
		seconds first_open dd if="${files[0]}" of=/dev/null bs=1 count=1
		read -r -a got <<<"$("$read_file" open "${files[@]}")"
		sample open_p50 "$(calc %.3f "${got[0]} / 1000")"
		sample open_p99 "$(calc %.3f "${got[1]} / 1000")"
		sample tensor_memory "$(calc %.0f "$(memory_of "$mnt" VmRSS) * 1024 / $tensors")"
		reads tensors_ours read "${files[@]}"
		unmount "$mnt"
		reads tensors_plain read "$work"/many/fine/*
	done
	tensors_size=$(cat "$work"/many/fine/* | wc -c)
	rm -r "$work/many" "$work/m.bdelta"
}

report_tensors() {
	heading "A model of 250,000 tensors in 33 shards" "" "" ""
	figure "opening its first file, ms (the delta is parsed)" "$(calc %.0f "$(median first_open) * 1000")" "" ""
	figure "opening a file after that, ms, p50" "$(calc %.2f "$(median open_p50)")" "" ""
	figure "opening a file after that, ms, p99" "$(calc %.2f "$(median open_p99)")" "" "" "<= 5" ||
		why "p50 is $(calc %.2f "$(median open_p50)") ms"
	figure "memory of the daemon for each tensor, bytes" "$(median tensor_memory)" "" "" "<= 400" ||
		why "of base and delta together, after all files were opened"
	speed "reading all files / plain files from the page cache, MB/s" tensors_ours tensors_plain "$tensors_size"
}
