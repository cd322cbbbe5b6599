# SPDX-License-Identifier: LGPL-2.1-or-later
# Helpers of the package tests: throw-away roots of Debian releases without systemd running.
# Sourced by bats files. What "make deb" built lies in DEB.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DEB=$ROOT/build/deb
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C

note() {
	echo "# $*"
}

die() {
	echo "FAILED: $*" >&2
	return 1
}

# package_setup: T is the test's own folder.
package_setup() {
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	T=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-package.XXXXXX")
	chmod 755 "$T"
}

package_teardown() {
	if [ -z "${BATS_TEST_COMPLETED:-}" ] && [ -n "${output:-}" ]; then
		echo "--- the end of the last command's output:"
		tail -n 40 <<< "$output"
	fi
	[ -z "${T:-}" ] || rm -rf "$T"
}

# The version of the changelog, and the files of that version.
version() {
	sed -n '1s/.*(\(.*\)).*/\1/p' "$ROOT/packaging/debian/changelog"
}

# deb NAME [FOLDER]: the file of that binary package.
deb() {
	local files=("${2:-$DEB}/$1"_*_amd64.deb)

	[[ ${#files[@]} -eq 1 && -s ${files[0]} ]] || die "no package $1 in ${2:-$DEB} (make deb)" || return 1
	echo "${files[0]}"
}

# Git gives nothing of a checkout to anybody else, root included.
as_owner() {
	setpriv --reuid="$(stat -c %u "$ROOT")" --regid="$(stat -c %g "$ROOT")" --clear-groups "$@"
}

# copy_tree FOLDER: what belongs to the source, without git.
copy_tree() {
	mkdir "$1"
	as_owner "$ROOT/packaging/source.sh" 0 > "$1.tar.xz"
	tar -x --no-same-owner --strip-components=1 -C "$1" -f "$1.tar.xz"
}

# new_root RELEASE [PACKAGE...]: a root in $T/RELEASE, on top of the one that all tests share.
new_root() {
	local base

	base=$("$ROOT/tests/system/root.sh" "$@") || return 1
	mkdir -p "$T/$1"/{upper,work,root}
	echo "$base" > "$T/$1/base"
}

# in_root RELEASE COMMAND...: what it changes stays until the test's end. It is mounted for this
# command alone, so that whatever happens nothing stays mounted.
in_root() {
	# shellcheck disable=SC2016
	timeout -k 5 "${IN_ROOT_SEC:-120}" \
		unshare --mount --pid --fork --kill-child --propagation private bash -ec '
		d=$1
		shift
		mount -t overlay overlay \
			-o "lowerdir=$(cat "$d/base"),upperdir=$d/upper,workdir=$d/work" "$d/root"
		mount -t proc proc "$d/root/proc"
		mount --rbind /dev "$d/root/dev"
		exec env -i PATH="$PATH" LC_ALL=C HOME=/root DEBIAN_FRONTEND=noninteractive \
			chroot "$d/root" "$@"' bash "$T/$1" "${@:2}" </dev/null
}

# All files of a root, but for what each package changes: dpkg's own, logs, caches, the groups that
# sysusers makes (they are never taken away), and the catalog's database.
files_of() {
	in_root "$1" find / -xdev \( -path /proc -o -path /dev -o -path /var/lib/dpkg -o -path /var/log \
		-o -path /var/cache -o -path /tmp -o -path '/etc/group*' -o -path '/etc/gshadow*' \
		-o -path /etc/.pwd.lock -o -path /var/lib/systemd/catalog/database \) -prune \
		-o -printf '%M %u:%g %p %l\n' | sort
}
