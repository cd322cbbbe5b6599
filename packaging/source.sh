#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# source.sh VERSION: this tree, as a .tar.xz of the folder usmd-VERSION, to standard output. The same
# tree gives the same bytes, wherever and whoever made it.
set -euo pipefail
umask 022

version=$1
cd "$(dirname "$0")/.."

# What git does not ignore, as it is now; without git, all but what is built.
tree() {
	local f

	if [ -e .git ]; then
		git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do
			[ ! -e "$f" ] || printf '%s\0' "$f"
		done
	else
		find . -path ./build -prune -o -type f -printf '%P\0'
	fi
}

tree | LC_ALL=C sort -z | tar -c -J --null -T - --transform "s,^,usmd-$version/," --owner=0 --group=0 \
	--numeric-owner --mode=u=rwX,go=rX \
	--mtime="@$(dpkg-parsechangelog -l packaging/debian/changelog -S Timestamp)"
