#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# rpm.sh FOLDER: RPM packages of this tree in FOLDER, which is made anew. On a distribution without
# RPM packages of what usmd is built with, and without systemd's macros, this is no more than a test
# of the spec file.
set -euo pipefail
umask 022

cd "$(dirname "$0")/.."
out=$1
command -v rpmbuild >/dev/null || { echo "rpm: needs the command rpmbuild (make deps)" >&2; exit 1; }
version=$(sed -n 's/^Version: *//p' packaging/rpm/usmd.spec)

rm -rf "$out"
mkdir -p "$out/SOURCES"
out=$(realpath "$out")
packaging/source.sh "$version" > "$out/SOURCES/usmd-$version.tar.xz"
options=()
if [ "$(rpm -E '%{?_unitdir}')" = "" ]; then
	options=(--nodeps --define '_unitdir /usr/lib/systemd/system')
	for m in post preun postun_with_restart; do
		options+=(--define "systemd_$m() %{nil}")
	done
fi
env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES -u DESTDIR -u CFLAGS -u CPPFLAGS -u LDFLAGS \
	rpmbuild -ba --define "_topdir $out" "${options[@]}" packaging/rpm/usmd.spec
