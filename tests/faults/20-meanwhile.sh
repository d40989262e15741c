#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 20-meanwhile.sh: what others do to a file while it is refined is not undone, and permissions stay.
. "$(dirname "$0")/../mount/lib.sh"
faults=$(cd "$(dirname "$0")" && pwd)
BITDELTA=$BUILD/bitdelta
O=$W/out
X=$O/x.bdelta
R=$O/x.bdelta.new
few=(--device cpu --steps 6)
mkdir "$O"
must "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$W/closed.bdelta"
must "$BITDELTA" import -q "${few[@]}" --base "$DATA/base" "$DATA/kjv" -o "$W/refined.bdelta"
distill() { "$BITDELTA" distill -q "${few[@]}" --base "$DATA/base" --fine "$DATA/kjv" "$@"; }
import_kjv() { "$BITDELTA" import -q "${few[@]}" --base "$DATA/base" "$DATA/kjv" -o "${1:-$X}"; }
reset() {
	rm -rf "$O"
	mkdir "$O"
	cp "$W/closed.bdelta" "$X"
	echo newer >"$W/newer"
}
names() { ls -A "$O" | paste -sd' '; }

if ! ${CC:-gcc} -shared -fPIC -O1 -o "$W/inject.so" "$faults/inject.c" -ldl 2>"$W/cc.log"; then
	skip "what comes meanwhile" "$(head -n 1 "$W/cc.log")"
else
	# meanwhile N FROM [TO]: environment in which FROM is renamed to TO, or removed, at the N-th fsync
	meanwhile() {
		echo "LD_PRELOAD=$W/inject.so" INJECT_CALL=fsync "INJECT_AT=$1" "INJECT_FROM=$2" ${3:+"INJECT_TO=$3"}
	}
	# The words of `meanwhile` have no spaces.
	# shellcheck disable=SC2046
	run() {
		local n=$1 from=$2 to=$3
		shift 3
		env $(meanwhile "$n" "$from" "$to") "$@"
	}
	command="$BITDELTA distill -q ${few[*]} --base $DATA/base --fine $DATA/kjv"
	# What distill's only file, and import's second one, is about to replace.
	for how in "distill:1:$command $X" \
		"import:3:$BITDELTA import -q ${few[*]} --base $DATA/base $DATA/kjv -o $X"; do
		IFS=: read -r name at command <<<"$how"
		reset
		refuses "$name: a newer file comes" 1 \
			"^bitdelta $name: $X: another file came in its place meanwhile, and stays; .* is $R$" \
			run "$at" "$W/newer" "$X" $command
		same "$name: a newer file stays" newer "$(cat "$X")"
		check "$name: the refined file is beside it" cmp "$R" "$W/refined.bdelta"
		same "$name: nothing else is left" "x.bdelta x.bdelta.new" "$(names)"
		reset
		refuses "$name: it is removed" 1 "$X: was removed meanwhile and stays so; .* is $R$" \
			run "$at" "$X" "" $command
		same "$name: what was removed does not come back" x.bdelta.new "$(names)"
		check "$name, removed: the refined file is there" cmp "$R" "$W/refined.bdelta"
	done
	# Moved away, it is not the file that was opened any more.
	reset
	refuses "import: it is moved away" 1 "$X: was" run 3 "$X" "$O/y.bdelta" $command
	check "import: the moved file is whole" cmp "$O/y.bdelta" "$W/closed.bdelta"
	check "import: what was moved does not come back" test ! -e "$X"
	# Another file than X.bdelta.
	reset
	rm "$X"
	refuses "distill -o: a file comes where none was" 1 "x.bdelta: a file came there meanwhile, and stays" \
		run 1 "$W/newer" "$X" "$BITDELTA" distill -q "${few[@]}" --base "$DATA/base" --fine "$DATA/kjv" \
		"$W/closed.bdelta" -o "$X"
	same "distill -o: it stays" newer "$(cat "$X")"
fi

# --- Permissions ---

umask 022
reset
chmod 640 "$X"
chown 1234:4321 "$X"
check "distill replaces a user's file" distill "$X"
same "distill: mode, owner and group stay" "640 1234 4321" "$(stat -c '%a %u %g' "$X")"
chmod 600 "$X"
check "import replaces a user's file" "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$X"
same "import: mode, owner and group stay" "600 1234 4321" "$(stat -c '%a %u %g' "$X")"
rm "$X"
check "a new file" "$BITDELTA" import -q --steps 0 --base "$DATA/base" "$DATA/kjv" -o "$X"
same "a new file: as the umask says" "644 $(id -u) $(id -g)" "$(stat -c '%a %u %g' "$X")"
mkdir -m 700 "$O/dir"
chown 1234:4321 "$O/dir"
check "export into a user's directory" "$BITDELTA" export -q "$X" --base "$DATA/base" -o "$O/dir"
same "export: mode, owner and group stay" "700 1234 4321" "$(stat -c '%a %u %g' "$O/dir")"

# What may not be replaced is found out before the work.
chmod 755 "$W"
if setpriv --reuid=65534 --clear-groups test -r "$W" 2>/dev/null; then
	cp -r "$BITDELTA" "$DATA/base" "$DATA/kjv" "$W"
	install -d -m 1777 "$O/all"
	install -m 644 "$W/closed.bdelta" "$O/all/theirs.bdelta"
	for command in "distill $O/all/theirs.bdelta --fine" "import -o $O/all/theirs.bdelta"; do
		# shellcheck disable=SC2086
		refuses "somebody else's file: ${command%% *}" 1 \
			"^bitdelta ${command%% *}: $O/all/theirs.bdelta: belongs to another user, .*sticky" \
			setpriv --reuid=65534 --clear-groups "$W/bitdelta" $command "$W/kjv" --base "$W/base"
	done
	same "somebody else's file: nothing else is left" theirs.bdelta "$(ls -A "$O/all")"
	chown 65534 "$O/all/theirs.bdelta"
	check "one's own file there" setpriv --reuid=65534 --clear-groups "$W/bitdelta" distill -q "${few[@]}" \
		--base "$W/base" --fine "$W/kjv" "$O/all/theirs.bdelta"
else
	skip "somebody else's file" "cannot become another user, or one who can read $W"
fi
finish
