#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# replay.sh PROGRAM DIRECTORY: feed every file of a corpus to a fuzz target built with replay_main.c.
#
# All at once first; one by one only where that fails, to name the input.
set -u
program=$1 directory=$2
name=$(basename "$directory")
n=$(find "$directory" -type f 2>/dev/null | wc -l)
if [ "$n" = 0 ]; then
	echo "not ok $name: $directory holds no input"
	exit 1
fi
if find "$directory" -type f -print0 | xargs -0 "$program"; then
	echo "ok $name: $n inputs"
	exit 0
fi
find "$directory" -type f | sort | while read -r f; do
	"$program" "$f" || echo "not ok $name: $f"
done
exit 1
