#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 03-readonly.sh: nothing can be changed, and programs that copy attributes still work.
. "$(dirname "$0")/lib.sh"

import "$DATA/base" "$DATA/kjv" kjv
M=$W/mnt
must mount_at "$M" "$DATA/base" "deltas=$W/deltas/kjv.bdelta"

attempts() { # PREFIX
	local f=$M/kjv/config.json
	refuses "$1write" 1 'Read-only file system' bash -c 'echo x >>"$1"' - "$f"
	refuses "$1truncate" 1 'Read-only file system' truncate -s 0 "$f"
	refuses "$1create a file" 1 'Read-only file system' touch "$M/kjv/new"
	refuses "$1create in the root" 1 'Read-only file system' touch "$M/new"
	refuses "$1mkdir" 1 'Read-only file system' mkdir "$M/new"
	refuses "$1remove a file" 1 'Read-only file system' rm -f "$f"
	refuses "$1remove a directory" 1 'Read-only file system' rmdir "$M/kjv"
	refuses "$1rename" 1 'Read-only file system' mv "$f" "$M/kjv/other"
	refuses "$1symbolic link" 1 'Read-only file system' ln -s x "$M/kjv/link"
	refuses "$1hard link" 1 'Read-only file system' ln "$f" "$M/kjv/link"
	refuses "$1chmod" 1 'Read-only file system' chmod 777 "$f"
	refuses "$1chown" 1 'Read-only file system' chown 1 "$f"
	refuses "$1set the time" 1 'Read-only file system' touch -d 2020-01-01 "$f"
	refuses "$1mknod" 1 'Read-only file system' mknod "$M/kjv/node" p
	refuses "$1set an attribute" 1 'Read-only file system|not supported' \
		python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.a", b"1")' "$f"
}
check "test -w says no" bash -c '! test -w "$1"' - "$M/kjv/config.json"
attempts ""
# A superuser may take the ro away, but nothing changes by that.
if mount -i -o remount,rw "$M" 2>/dev/null && ! findmnt -no OPTIONS "$M" | grep -qw ro; then
	attempts "remounted rw: "
else
	skip "remounted rw" "the kernel refuses"
fi
check "contents are untouched" diff -r "$W/truth/kjv" "$M/kjv"

check "cp -a" cp -a "$M/kjv" "$W/copy"
check "cp -a copies contents" diff -r "$W/truth/kjv" "$W/copy"
same "cp -a copies times" "$(stat -c %y "$M/kjv/config.json")" "$(stat -c %y "$W/copy/config.json")"
# attributes FILE: as JSON
attributes() {
	python3 -c 'import json, os, sys
print(json.dumps({n: os.getxattr(sys.argv[1], n).decode() for n in sorted(os.listxattr(sys.argv[1]))}))' "$1"
}
same "attributes of a file of tensors" "base $W/deltas/kjv.bdelta raw,sign" "$(attributes "$M/kjv/model.safetensors" |
	python3 -c 'import json, sys; a = json.load(sys.stdin); p = "user.bitdelta."
assert float(a[p + "ratio"]) > 2, a
print(a[p + "base"], a[p + "delta"], ",".join(sorted(a[p + "encoding"].split(","))))')"
same "attributes of another file" "user.bitdelta.base user.bitdelta.delta user.bitdelta.ratio" \
	"$(attributes "$M/kjv/config.json" | python3 -c 'import json, sys; print(*json.load(sys.stdin))')"
same "the root has none" "{}" "$(attributes "$M")"
same "cp -a copies attributes that the target can hold, or none" \
	"$(attributes "$W/copy/config.json")" \
	"$([ "$(attributes "$W/copy/config.json")" = "{}" ] && echo "{}" || attributes "$M/kjv/config.json")"
check "flock" flock -n "$M/kjv/config.json" true
check "umount" unmount "$M"

check "mount with umask, uid, gid" mount_at "$M" "$DATA/base" \
	"deltas=$W/deltas/kjv.bdelta,umask=027,uid=1234,gid=99"
same "umask, uid, gid" "750 1234 99, 440 1234 99" \
	"$(stat -c '%a %u %g' "$M/kjv"), $(stat -c '%a %u %g' "$M/kjv/config.json")"
check "umount again" unmount "$M"
finish
