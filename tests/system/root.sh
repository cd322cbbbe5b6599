#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# root.sh RELEASE [PACKAGE...]: a root file system of that Debian release (bookworm, trixie), with
# systemd, what the tests and the packages of usmd need, and these packages, but without usmd. Prints
# its folder.
#
# It is made once and kept in $USM_CACHE_DIR, or else in /var/cache/usmd-test, until the release
# has another point release or this script changes. Nothing ever writes to it. Needs root.
set -euo pipefail

cd "$(dirname "$0")/../.."
# shellcheck source=tests/lib/debian-root.bash
. tests/lib/debian-root.bash
release=$1
cache=${USM_CACHE_DIR:-/var/cache/usmd-test}
packages=systemd-sysv,udev,dbus,kmod,procps,util-linux,e2fsprogs
packages+=,libsystemd0,libjson-c5,libcap2,liburing2,libxxhash0
packages+=,bats,jq,python3,stress-ng,stressapptest,redis-server,redis-tools
for p in "${@:2}"; do
	packages+=,$p
done

mkdir -p "$cache"
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/sources"
own_sources "$work/sources" "$release"
base=$cache/system-$release-$({ cat tests/system/root.sh tests/lib/debian-root.bash "$work"/sources/debian.*
	echo "$packages"; } | sha256sum | cut -c1-16)
if file=$(release_file "$work/sources" "$release"); then
	root=$base-$(sha256sum "$file" | cut -c1-16)
else
	# Without a network the newest that there is will do.
	root=$(ls -td "$base"-* 2>/dev/null | head -n 1)
	[ -n "$root" ] || { echo "root.sh: cannot fetch the release file of $release" >&2; exit 1; }
fi
(
	flock 9
	if [ ! -d "$root" ]; then
		mmdebstrap "${ROOT_OPTIONS[@]}" --include=$packages "$release" "$work/root" \
			"$work"/sources/debian.*
		# A test starts what it wants; the journal is read from outside, after the end.
		systemctl --quiet --root="$work/root" disable redis-server.service
		systemctl --quiet --root="$work/root" mask apt-daily.timer apt-daily-upgrade.timer \
			systemd-networkd-wait-online.service getty@.service console-getty.service
		mkdir -p "$work/root/var/log/journal"
		# What is installed later comes with its manual pages.
		rm -rf "$work/root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
		rm -rf "$work"/root/var/lib/apt/lists/* "$work"/root/var/cache/apt/*.bin
		mv -T "$work/root" "$root"
	fi
	touch "$root"
	find "$cache" -mindepth 1 -maxdepth 1 -name "system-$release-*" -mtime +30 -exec rm -rf {} +
) 9>"$cache/lock-$release" >&2
echo "$root"
