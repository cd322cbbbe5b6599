#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# postgres.sh: prints the folder with PostgreSQL's programs: the installed one, or else that of the
# Debian packages, unpacked into the tests' cache, as installing them would start a server.
set -euo pipefail

cache=${USM_CACHE_DIR:-/var/cache/usmd-test}

programs() {
	local postgres

	postgres=$(ls -d "$1"/usr/lib/postgresql/*/bin/postgres 2>/dev/null | tail -n 1)
	[ -n "$postgres" ] && [ -x "${postgres%/*}/psql" ] && echo "${postgres%/*}"
}

[ -n "${USM_TEST_UNPACK:-}" ] || ! programs "" || exit 0
# A machine that was never updated has no package lists.
apt-cache show postgresql >/dev/null 2>&1 || apt-get update -qq >&2
package=$(apt-cache depends postgresql | sed -n 's/^ *Depends: //p' | head -n 1)
version=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
root=$cache/$package-$version
if [ ! -d "$root" ]; then
	mkdir -p "$cache"
	work=$(mktemp -d "$root.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	apt-get -o APT::Sandbox::User=root download "$package" "${package/-/-client-}" >/dev/null
	for p in *.deb; do
		dpkg -x "$p" root
	done
	mv root "$root"
fi
programs "$root"
