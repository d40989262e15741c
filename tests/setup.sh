#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# setup.sh LEVEL: install what building (build), packaging (deb), the demo (demo) or all tests (test) need.
#
# Debian 12 or newer and Ubuntu 24.04 or newer, as root or with sudo. Asks apt and pip only for what
# is missing and takes about a second when nothing is. Each level holds build, and test holds all.
# Python packages go to build/venv/, never to the system.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

level=${1:-}
case $level in
build | deb | demo | test) ;;
*) fail "Usage: tests/setup.sh build | deb | demo | test" ;;
esac

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo

# --- Debian packages ---

packages="gcc make pkg-config libc6-dev libfuse3-dev fuse3 libcjson-dev libxxhash-dev zlib1g-dev
	libpcre2-dev libutf8proc-dev"
case $level in deb | test) packages="$packages build-essential debhelper" ;; esac
# OpenBLAS is opened where it is there; without it, distillation on the processor takes far longer.
case $level in demo | test) packages="$packages python3 python3-venv libopenblas0-pthread" ;; esac
[ "$level" != test ] || packages="$packages libcmocka-dev python3-torch python3-numpy \
	util-linux procps strace man-db lintian debootstrap rsync attr"

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
	missing=
	for p in $packages; do
		installed "$p" || missing="$missing $p"
	done
	if [ -n "$missing" ]; then
		[ -z "$as_root" ] || command -v sudo >/dev/null || fail "these packages are missing:$missing." \
			"Install them as root, or install sudo."
		say "installing$missing"
		log=$(mktemp)
		trap 'rm -f "$log"' EXIT
		apt() {
			$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$log" 2>&1 || {
				tail -n 20 "$log" >&2
				fail "apt-get $1 failed: see above"
			}
		}
		apt update
		# shellcheck disable=SC2086 # the list is split on purpose
		apt install --no-install-recommends $missing
	fi
else
	# Another system: we cannot install, but perhaps everything is there.
	lacking=
	for c in gcc make pkg-config fusermount3; do
		command -v $c >/dev/null || lacking="$lacking $c"
	done
	if command -v pkg-config >/dev/null; then
		for l in fuse3 libcjson libxxhash zlib libpcre2-8 libutf8proc; do
			pkg-config --exists $l || lacking="$lacking $l"
		done
	fi
	if [ "$level" = test ]; then
		echo 'int main(void){return 0;}' | gcc -x c - -lcmocka -o /dev/null 2>/dev/null ||
			lacking="$lacking cmocka"
	fi
	[ -z "$lacking" ] || fail "this is neither Debian nor Ubuntu, so nothing can be installed" \
		"from here, and these are missing:$lacking. On Debian they are called: $packages"
fi

case $level in build | deb) exit 0 ;; esac

# --- FUSE ---

if ! [ -c /dev/fuse ] && [ "$(id -u)" = 0 ] && command -v modprobe >/dev/null; then
	modprobe fuse 2>/dev/null || :
fi
[ -c /dev/fuse ] || fail "/dev/fuse is missing, so nothing can be mounted. Load the kernel's module" \
	"(modprobe fuse); in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"

# fusermount3 wants it; installers make it, a bare debootstrap does not.
if ! [ -e /etc/mtab ]; then
	say "making /etc/mtab a link to ../proc/self/mounts"
	$as_root ln -s ../proc/self/mounts /etc/mtab || fail "fusermount3 needs /etc/mtab"
fi

# --- Python: the interpreter that Debian's packages belong to, whatever else is first in PATH ---

python=/usr/bin/python3
[ -x $python ] || fail "$python is missing"

# venv NAME OPTIONS PACKAGES...: build/venv/NAME holds exactly what the stamp in it says
venv() {
	dir=build/venv/$1
	options=$2
	shift 2
	wanted="$($python -V) $options $*"
	if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$wanted" ]; then
		say "installing into $dir: $*"
		rm -rf "$dir"
		mkdir -p "$dir"
		# shellcheck disable=SC2086
		$python -m venv $options "$dir" || fail "$python -m venv failed"
		PIP_DISABLE_PIP_VERSION_CHECK=1 "$dir/bin/python" -m pip install -q \
			--no-warn-script-location "$@" || fail "pip could not install: $*"
		echo "$wanted" >"$dir/stamp"
	fi
}

# ml_dtypes gives numpy a bfloat16; safetensors.numpy uses it where it is there.
if [ "$level" = demo ]; then
	venv demo "" numpy safetensors ml_dtypes
	exit 0
fi

version() { $python -c "import importlib.metadata as m; print(m.version('$1'))"; }

# The last transformers that works with Debian's torch (1.13 in Debian 12, 2.1 in Ubuntu 24.04).
torch=$(version torch) || fail "$python has no torch"
case $torch in
1.* | 2.[01].*) transformers=4.47.1 accelerate=0.34.2 ;;
2.[2-5].*) transformers=4.51.3 accelerate=1.6.0 ;;
*) transformers=4.57.3 accelerate=1.11.0 ;;
esac
case $(version numpy) in
1.*) numpy='numpy<2' ;; # torch was built against it
*) numpy=numpy ;;
esac
venv test --system-site-packages "$numpy" "transformers==$transformers" \
	"accelerate==$accelerate" safetensors ml_dtypes gguf xxhash
