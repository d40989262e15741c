#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# install.sh BUILD: `make install` into a directory, what is there, a program made with the installed
# library, completion, `make uninstall`.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/release}
data=tests/data/nano-llama2
status=0
ok() { echo "ok $1"; }
bad() { echo "not ok $1"; status=1; }
# check NAME COMMAND...: what the command says explains a failure
check() {
	local name=$1 said
	shift
	if said=$("$@" 2>&1); then ok "$name"; else bad "$name: ${said//$'\n'/; }"; fi
}

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
lib=/usr/lib/triplet
make() { env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u V make --no-print-directory "B=$build" "$@"; }
directories=("DESTDIR=$root" PREFIX=/usr SBINDIR=/usr/sbin "LIBDIR=$lib")

if ! make install "${directories[@]}" >"$tmp/log" 2>&1; then
	tail -n 20 "$tmp/log"
	bad "make install"
	exit 1
fi
version=$(sed -nE 's/^#define BD_VERSION "(.*)"/\1/p' delta/delta.h)
sed 's|^/||' <<LIST | sort >"$tmp/wanted"
usr/bin/bitdelta
usr/include/bitdelta.h
usr/lib/systemd/system/bitdelta@.service
$lib/libbitdelta.a
$lib/libbitdelta.so -> libbitdelta.so.0
$lib/libbitdelta.so.0 -> libbitdelta.so.$version
$lib/libbitdelta.so.$version
$lib/pkgconfig/libbitdelta.pc
usr/sbin/mount.bitdelta
usr/sbin/mount.fuse.bitdelta -> mount.bitdelta
usr/share/bash-completion/completions/bitdelta
usr/share/bash-completion/completions/mount.bitdelta -> bitdelta
usr/share/bash-completion/completions/mount.fuse.bitdelta -> bitdelta
usr/share/doc/bitdelta/FORMAT.md
usr/share/doc/bitdelta/LICENSE
usr/share/doc/bitdelta/NOTICE
usr/share/doc/bitdelta/README.md
usr/share/doc/bitdelta/examples/example.c
usr/share/doc/bitdelta/examples/fstab
usr/share/doc/bitdelta/examples/mnt-models.automount
usr/share/doc/bitdelta/examples/mnt-models.mount
usr/share/doc/bitdelta/examples/models.conf
usr/share/man/man1/bitdelta.1
usr/share/man/man3/libbitdelta.3
usr/share/man/man5/bdelta.5
usr/share/man/man8/mount.bitdelta.8
usr/share/man/man8/mount.fuse.bitdelta.8 -> mount.bitdelta.8
LIST
if [ -e "$build/bitdelta-cuda.so" ]; then
	echo usr/lib/bitdelta/bitdelta-cuda.so | sort -o "$tmp/wanted" "$tmp/wanted" -
fi
(cd "$root" && find . -type l -printf '%P -> %l\n' -o ! -type d -printf '%P\n') | sort >"$tmp/there"
check "make install: the right files" diff "$tmp/wanted" "$tmp/there"
check "nothing installed names the build directory or DESTDIR" \
	sh -c '! grep -rlF -e "$1" -e "$2" "$3/usr/lib/systemd" "$3$4/pkgconfig" "$3/usr/share"' - \
	"$PWD" "$tmp" "$root" $lib
unit=$root/usr/lib/systemd/system/bitdelta@.service
check "no @NAME@ is left to fill in" \
	sh -c '! grep -E "@[A-Z]+@" "$@"' - "$unit" "$root$lib/pkgconfig/libbitdelta.pc"

# --- the library ---

so=$root$lib/libbitdelta.so
header() { sed -nE 's/^[a-z].*[ *](bitdelta_[a-z_]+)\(.*/\1/p' "$1" | sort; }
header delta/bitdelta.h >"$tmp/declared"
nm -D --defined-only "$so" | sed -nE 's/.* T (.*)@@LIBBITDELTA_0/\1/p' | sort >"$tmp/exported"
check "the shared library exports what the header declares" diff "$tmp/declared" "$tmp/exported"
check "the shared library exports nothing else" \
	sh -c '! nm -D --defined-only "$1" | grep -vE " (bitdelta_.*@@|A )LIBBITDELTA_0$"' - "$so"
missing=$(while read -r f; do
	grep -q "\b$f(" mount-tools/man/libbitdelta.3 || echo "$f"
done <"$tmp/declared")
if [ -z "$missing" ]; then ok "libbitdelta(3) has all functions"; else bad "libbitdelta(3) lacks $missing"; fi
check "the soname" sh -c 'objdump -p "$1" | grep -q "SONAME *libbitdelta.so.0$"' - "$so"
echo '#include <bitdelta.h>' >"$tmp/header.cc"
! command -v g++ >/dev/null || check "the header is C++ too" \
	g++ -Wall -Wextra -Wpedantic -Werror -fsyntax-only "-I$root/usr/include" "$tmp/header.cc"

pc() { PKG_CONFIG_PATH=$root$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root pkg-config "$@" libbitdelta; }
check "pkg-config knows the version" [ "$(pc --modversion)" = "$version" ]
cc=${CC:-gcc}
example=$root/usr/share/doc/bitdelta/examples/example.c
# shellcheck disable=SC2046 # flags
check "the example compiles against the installed library" \
	"$cc" -Wall -Wextra -Werror "$example" $(pc --cflags --libs) -o "$tmp/example"
# shellcheck disable=SC2046
check "and links statically with the archive" \
	"$cc" -Wall -Wextra -Werror "$example" $(pc --cflags) "$root$lib/libbitdelta.a" \
	$(pc --static --libs-only-l | sed 's/-lbitdelta//') -pthread -o "$tmp/example-static"

"$build/bitdelta" import -q --steps 0 --base $data/base $data/kjv -o "$tmp/kjv.bdelta" &&
	"$build/bitdelta" export -q "$tmp/kjv.bdelta" --base $data/base -o "$tmp/kjv" || bad "no delta to read"
example() { LD_LIBRARY_PATH=$root$lib "$tmp/example" $data/base "$tmp/kjv.bdelta" "$@"; }
cat >"$tmp/tensors.py" <<'PY'
# All tensors of an exported file, as the example names and writes them
import json, struct, subprocess, sys

path, command = sys.argv[1], sys.argv[2:]
data = open(path, "rb").read()
n = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + n])
header.pop("__metadata__", None)
listed = {}
for line in subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines():
    name, dtype, encoding, size, _, _, file, *_ = line.split()
    listed[name] = (dtype, int(size), file.rstrip(","))
assert listed.keys() == header.keys(), listed.keys() ^ header.keys()
for name, t in header.items():
    begin, end = t["data_offsets"]
    assert listed[name] == (t["dtype"], end - begin, "model.safetensors"), (name, listed[name])
    got = subprocess.run(command + [name], capture_output=True, check=True).stdout
    assert got == data[8 + n + begin:8 + n + end], f"{name}: other bytes than those of the export"
PY
for e in example example-static; do
	check "$e: every tensor has the bytes of an export" env "LD_LIBRARY_PATH=$root$lib" \
		/usr/bin/python3 "$tmp/tensors.py" "$tmp/kjv/model.safetensors" "$tmp/$e" $data/base "$tmp/kjv.bdelta"
done
said=$(example no.such.tensor 2>&1)
if [ $? = 1 ] && [[ $said == *"no tensor 'no.such.tensor'"* ]]; then
	ok "a tensor that is not there"
else
	bad "a tensor that is not there: $said"
fi
said=$(LD_LIBRARY_PATH=$root$lib "$tmp/example" $data/kjv "$tmp/kjv.bdelta" 2>&1)
if [ $? = 1 ] && [[ $said == *"another one"* ]]; then ok "another base"; else bad "another base: $said"; fi

# --- the unit ---

if command -v systemd-analyze >/dev/null; then
	# Checked below a name that has an instance, with programs that are there.
	sed -e "s|/usr/sbin/mount.bitdelta|$root&|" -e '/^Documentation=/d' "$unit" >"$tmp/bitdelta@models.service"
	cp "$root"/usr/share/doc/bitdelta/examples/mnt-models.* "$tmp/"
	sed -i '/^Documentation=/d' "$tmp"/mnt-models.*
	said=$(systemd-analyze verify "$tmp/bitdelta@models.service" "$tmp"/mnt-models.*mount 2>&1)
	if [ -z "$said" ]; then ok "systemd-analyze verify"; else bad "systemd-analyze verify: $said"; fi
else
	echo "skip systemd-analyze verify: systemd is not installed"
fi
own='Private[A-Z]|Protect[A-Z]|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind[A-Za-z]*)Paths|Temporary|Root|MountFl|Dynamic'
check "the unit sees no other file systems than everybody" sh -c '! grep -E "^($1)" "$2"' - "$own" "$unit"

# --- bash completion ---

# complete LINE: what bash would propose at the end of it
complete_line() {
	# shellcheck disable=SC2016
	env "PATH=$PWD/$build:$PATH" bash --norc -c '
		source mount-tools/completion/bitdelta
		COMP_LINE=$1 COMP_POINT=${#1}
		compopt() { :; }
		_bitdelta
		printf "%s\n" "${COMPREPLY[@]}"' - "$1" | sort
}
commands=$("$build/bitdelta" --help | sed -nE 's/^  ?([a-z]+) .*/\1/p' | sort)
check "completion proposes all commands" \
	diff <(complete_line "bitdelta " | grep -v '^-') <(echo "$commands")
for c in $commands; do
	"$build/bitdelta" "$c" --help | grep -E '^  -[^ ]' | sed 's/^  //; s/   .*//' | grep -oE '[^ ,]+' |
		grep -E -e '^-(-[a-z][a-z-]+|[A-Za-z])$' | sort -u >"$tmp/options"
	check "completion proposes the options of bitdelta $c" \
		diff <(complete_line "bitdelta $c -" | sort -u) "$tmp/options"
done
contains() { grep -qxF -e "$1" || { echo "no '$1'"; return 1; }; }
proposes() { complete_line "$1" | contains "$2"; }
mkdir -p "$tmp/dir"
check "completion: a mount option" proposes "bitdelta mount base mnt -o allow_o" allow_other
check "completion: what a mount option may be" proposes "mount.bitdelta base mnt -o layout=h" hub
check "completion: the next mount option" \
	proposes "mount.bitdelta base mnt -o allow_other,thr" allow_other,threads=
check "completion: a delta" proposes "bitdelta info $tmp/k" "$tmp/kjv.bdelta"
# After = and : readline has begun a new word.
check "completion: a delta as mount option" \
	proposes "bitdelta mount base mnt -o deltas=$tmp/kj" "$tmp/kjv.bdelta"
check "completion: the second delta" \
	proposes "bitdelta mount base mnt -o allow_other,deltas=$tmp/a.bdelta:$tmp/kj" "$tmp/kjv.bdelta"
check "completion: a kind of scales" proposes "bitdelta import --scale ran" rank1
check "completion: a device" proposes "bitdelta distill --device cu" cuda
check "completion: a text" proposes "bitdelta eval --text $tmp/heade" "$tmp/header.cc"
check "completion: a fine-tune" proposes "bitdelta eval --fine $tmp/di" "$tmp/dir"
check "completion: a directory" proposes "bitdelta import --base $tmp/di" "$tmp/dir"

# --- make ---

phony=$(sed -nE 's/^\.PHONY: *//p' Makefile)
help=$(make help)
unnamed=$(for t in $phony; do
	case $t in all | tests) continue ;; esac
	grep -qE "(^|; ) *make $t( |$)" <<<"$help" || echo "$t"
done)
if [ -z "$unnamed" ]; then ok "make help has all targets"; else bad "make help lacks ${unnamed//$'\n'/ }"; fi
json=$tmp/quiet/delta/json.o
quiet() { rm -f "$json"; make "B=$tmp/quiet" "$@" "$json"; }
check "a build is quiet" [ "$(quiet 2>&1)" = "  CC      delta/json.c" ]
check "V=1 shows its command lines" grep -q -- ' -c -o .*json.o delta/json.c$' <(quiet V=1)
check "make -s is silent" [ -z "$(quiet -s 2>&1)" ]

# --- and away again ---

touch "$root/usr/bin/other"
check "make uninstall" make uninstall "${directories[@]}"
check "nothing of it is left, and nothing else is gone" \
	diff <(echo usr/bin/other) <(cd "$root" && find . ! -type d -printf '%P\n')
check "nor its directories" [ ! -e "$root/usr/share/doc/bitdelta" ]
exit $status
