#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh OUT: build the Debian packages from a copy of the source, in OUT/source, into OUT.
#
# Needs debhelper (tests/setup.sh deb). The same source gives the same packages: their times are that of
# the last entry in the changelog.
set -eu
umask 022
cd "$(dirname "$0")/../.."
out=${1:?Usage: mount-tools/debian/build.sh OUT}
source=$out/source

version=$(sed -nE 's/^#define BD_VERSION "(.*)"/\1/p' delta/delta.h)
packaged=$(dpkg-parsechangelog -l mount-tools/debian/changelog -S Version)
if [ "$version" != "$packaged" ]; then
	echo "build.sh: delta/delta.h says version $version, the changelog in mount-tools/debian $packaged" >&2
	exit 1
fi

rm -rf "$out"
mkdir -p "$source"
for part in Makefile README.md LICENSE NOTICE delta fs gpu mount-tools; do
	[ ! -e "$part" ] || cp -a --no-preserve=ownership "$part" "$source/"
done
cp -a mount-tools/debian "$source/debian"
rm "$source/debian/build.sh"
# Ubuntu knows no unstable.
! dpkg-vendor --derives-from Ubuntu ||
	sed -i "1s/ unstable;/ $(. /etc/os-release && echo "$VERSION_CODENAME");/" "$source/debian/changelog"

log=$out/build.log
# What a caller has set for the source tree is not meant for the packages.
if ! (cd "$source" && unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CFLAGS CPPFLAGS LDFLAGS D WERROR \
	PREFIX SBINDIR LIBDIR DESTDIR &&
	DEB_BUILD_OPTIONS="noautodbgsym parallel=$(nproc)" dpkg-buildpackage -b -us -uc) >"$log" 2>&1; then
	tail -n 40 "$log" >&2
	echo "build.sh: dpkg-buildpackage failed; all it said is in $log" >&2
	exit 1
fi
rm -rf "$source"
ls "$out"/*.deb
