# SPDX-License-Identifier: LGPL-2.1-or-later
# Root file systems of Debian releases, made from the package sources that this machine has itself.
# Sourced by tests/vm/image.sh and tests/system/root.sh.
# shellcheck shell=bash

# What no test reads, as options of mmdebstrap.
ROOT_OPTIONS=(--quiet --variant=apt '--aptopt=Acquire::Languages "none"')
for p in 'doc/*' 'man/*' 'locale/*' 'info/*'; do
	ROOT_OPTIONS+=("--dpkgopt=path-exclude=/usr/share/$p")
done

# own_sources FOLDER RELEASE: the stanzas and lines of the apt sources of this Debian release, as
# those of the wanted one.
own_sources() {
	local codename release=$2 f

	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	for f in /etc/apt/sources.list.d/*.sources; do
		[ ! -e "$f" ] || awk -v RS= -v ORS='\n\n' \
			-v suite="(^|\n)Suites:([^\n]*[ \t])?$codename([ \t\n-]|\$)" '$0 ~ suite' "$f"
	done | sed "s/$codename/$release/g" > "$1/debian.sources"
	cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
		grep -E "^deb[[:space:]].*[[:space:]]$codename([[:space:]-])" |
		sed "s/$codename/$release/g" > "$1/debian.list" || :
	find "$1" -name 'debian.*' -empty -delete
}

# release_file FOLDER RELEASE: the path of that release's own InRelease, fetched by the sources in
# FOLDER. It changes with each point release.
release_file() {
	local uri

	uri=$(awk -v release="$2" '
		function found(uri) { sub(/\/*$/, "", uri); print uri; exit }
		/^deb[[:space:]]/ { sub(/\[[^]]*\]/, ""); if ($3 == release) found($2) }
		/^$/ { uri = "" }
		/^URIs:/ { uri = $2 }
		/^Suites:/ { suites = " " substr($0, 8) " " }
		uri && suites ~ "[ \t]" release "[ \t]" { found(uri) }' "$1"/debian.*)
	[ -n "$uri" ] || return 1
	/usr/lib/apt/apt-helper -o Acquire::Retries=2 -o Acquire::http::Timeout=10 \
		-o APT::Sandbox::User=root \
		download-file "$uri/dists/$2/InRelease" "$1/InRelease" >/dev/null || return 1
	echo "$1/InRelease"
}
