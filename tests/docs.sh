#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# docs.sh BUILD: manual pages against the programs, and clean markup.
#
# Every option that `--help` of a program (or of a subcommand) prints must stand in the program's manual
# page, and the other way round; and `man` must format the pages without a warning.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/release}
status=0
bad() { echo "not ok $1"; status=1; }

# Options in a text: --long ones, and -x where something that is not a word stands before the dash.
options() {
	grep -oE -e '(^|[^[:alnum:]_./=-])--?[[:alpha:]][[:alnum:]-]*' | grep -oE -e '--?[[:alpha:]][[:alnum:]-]*' |
		grep -E -e '^(--[[:alpha:]][[:alnum:]-]+|-[[:alpha:]])$' | sort -u
}

# A manual page as plain text: formatted without hyphenation and fonts, nothing broken at dashes.
plain() {
	# Adjacent escapes such as \fB\-\-base\fR come out as they are read by a person.
	MANWIDTH=400 GROFF_NO_SGR=1 LC_ALL=C.UTF-8 \
		man --no-hyphenation --no-justification -E ascii -l "$1" 2>/dev/null | col -bx
}

# same WHAT HELP PAGE: two lists of options
same() {
	local only
	only=$(comm -23 "$2" "$3" | tr '\n' ' ')
	[ -z "$only" ] || bad "$1: --help has, and the manual page lacks: $only"
	local more
	more=$(comm -13 "$2" "$3" | tr '\n' ' ')
	[ -z "$more" ] || bad "$1: the manual page has, and --help lacks: $more"
	[ -n "$only$more" ] || echo "ok $1: $(wc -l <"$2") options in --help and the manual page"
}

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

command -v man >/dev/null || { echo "skip docs: man is not installed"; exit 0; }

pages=$(ls mount-tools/man/*.[1-8] 2>/dev/null)
[ -n "$pages" ] || { bad "docs: no manual pages"; exit 1; }
for page in $pages; do
	warnings=$(LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
	if command -v mandoc >/dev/null; then
		warnings=$warnings$(mandoc -Tlint -W warning "$page")
	fi
	if [ -z "$warnings" ]; then
		echo "ok $(basename "$page"): formats without warnings"
	else
		echo "$warnings"
		bad "$(basename "$page"): warnings"
	fi
done

# bitdelta: its own help and that of all subcommands that it lists
help=$("$build/bitdelta" --help 2>&1) || bad "bitdelta --help: exit status $?"
commands=$(sed -nE 's/^  ?([a-z]+) .*/\1/p' <<<"$help" | sort -u)
{
	echo "$help"
	for c in $commands; do
		"$build/bitdelta" "$c" --help 2>&1 || echo "not ok bitdelta $c --help: exit status $?" >&3
	done
} 3>&1 >"$tmp/help" | tee "$tmp/bad"
[ ! -s "$tmp/bad" ] || status=1
wide=$(grep -E '^.{101}' "$tmp/help")
[ -z "$wide" ] && echo "ok --help fits into 100 columns" || bad "--help is wider than 100 columns: $wide"
options <"$tmp/help" >"$tmp/1"
plain mount-tools/man/bitdelta.1 | options >"$tmp/2"
same bitdelta "$tmp/1" "$tmp/2"
for c in $commands; do
	if plain mount-tools/man/bitdelta.1 | grep -qw "$c"; then
		echo "ok bitdelta $c is in the manual page"
	else
		bad "bitdelta $c is not in the manual page"
	fi
done

"$build/mount.bitdelta" --help >"$tmp/help" 2>&1 || bad "mount.bitdelta --help: exit status $?"
options <"$tmp/help" >"$tmp/1"
plain mount-tools/man/mount.bitdelta.8 | options >"$tmp/2"
same mount.bitdelta "$tmp/1" "$tmp/2"
# What stands after -o: NAME=VALUE words
mount_options() { grep -oE '(^|[ ,])[a-z_]+=' | tr -d ' ,' | sort -u; }
mount_options <"$tmp/help" >"$tmp/1"
plain mount-tools/man/mount.bitdelta.8 | mount_options >"$tmp/2"
only=$(comm -23 "$tmp/1" "$tmp/2" | tr '\n' ' ')
if [ -z "$only" ]; then
	echo "ok mount.bitdelta: -o options of --help are in the manual page"
else
	bad "mount.bitdelta: --help has, and the manual page lacks: $only"
fi
exit $status
