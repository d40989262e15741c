# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154 # variables of bench.sh
# rows.sh: rows of the report of bench.sh, which sources this file. Figures come from $samples.
#
# A row with a goal ends in "ok", or in "below" or "above" and then returns 1, so that
# `row ... || why "..."` keeps what was measured about the obstacle for the end of the report.

median() { # NAME: of the figures in $samples/NAME
	sort -n "$samples/$1" | awk '{ v[NR] = $1 }
		END { print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'
}
calc() { awk "BEGIN { printf \"$1\", $2 }"; } # FORMAT EXPRESSION
rate() { calc %.0f "$2 / $(median "$1") / 1e6"; } # NAME BYTES: MB/s
ratio() { calc %.2f "$(median "$2") / $(median "$1")"; } # NAME REFERENCE: of their speeds

# judge VALUE GOAL: prints the two last columns. GOAL is ">= N", "<= N" or nothing; VALUE is judged as
# it is printed.
judge() {
	[ -n "$2" ] || { echo; return 0; }
	awk -v v="$1" -v op="${2%% *}" -v l="${2##* }" -v goal="$2" 'BEGIN {
		ok = op == ">=" ? v >= l : v <= l
		printf " %8s  %s\n", goal, ok ? "ok" : op == ">=" ? "below" : "above"
		exit !ok }'
}

heading() { # TEXT COLUMN...
	local text=$1
	shift
	if [ $# -gt 0 ]; then
		printf '\n%-62s %8s %8s %7s %8s\n' "$text" "$@" goal
	else
		printf '\n%s\n' "$text"
	fi
}
name_row() { row_text=$1; } # for why
# speed TEXT NAME REFERENCE BYTES [GOAL]: MB/s
speed() {
	name_row "$1"
	printf '%-62s %8s %8s %7s' "$1" "$(rate "$2" "$4")" "$(rate "$3" "$4")" "$(ratio "$2" "$3")"
	judge "$(ratio "$2" "$3")" "${5:-}"
}
# duration TEXT NAME REFERENCE: seconds; the ratio is that of the speeds, as elsewhere
duration() {
	printf '%-62s %8.2f %8.2f %7s\n' "$1" "$(median "$2")" "$(median "$3")" "$(ratio "$2" "$3")"
}
# figure TEXT VALUE REFERENCE THIRD [GOAL [JUDGED]]: any three columns; the first is judged, or JUDGED
figure() {
	name_row "$1"
	printf '%-62s %8s %8s %7s' "$1" "$2" "$3" "$4"
	judge "${6:-$2}" "${5:-}"
}
# why TEXT...: what was measured about the obstacle of the last row
why() { printf '%s:\n\t%s\n' "$row_text" "$*" >>"$work/why"; }
