#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# deb.sh FOLDER: the Debian packages of this tree, source and binary, in FOLDER, which is made anew.
# DEB_VERSION=X gives them the version X instead of the one in packaging/debian/changelog.
set -euo pipefail
umask 022

cd "$(dirname "$0")/.."
out=$1
for c in dpkg-buildpackage dh; do
	command -v $c >/dev/null || { echo "deb: needs the command $c (make deps)" >&2; exit 1; }
done
version=${DEB_VERSION:-$(sed -n '1s/.*(\(.*\)-[^-]*).*/\1/p' packaging/debian/changelog)}

rm -rf "$out"
mkdir -p "$out"
out=$(realpath "$out")
packaging/source.sh "$version" > "$out/usmd_$version.orig.tar.xz"
tar -x --no-same-owner -C "$out" -f "$out/usmd_$version.orig.tar.xz"
cd "$out/usmd-$version"
# Debian's tools want it at the top, and the top level of the tree is not theirs.
cp -r packaging/debian debian
[ -z "${DEB_VERSION:-}" ] || sed -i "1s/(.*)/($DEB_VERSION-1)/" debian/changelog
# The packages must not depend on what this make was told.
env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES -u DESTDIR -u CFLAGS -u CPPFLAGS -u LDFLAGS \
	dpkg-buildpackage -us -uc
rm -rf "$out/usmd-$version"
