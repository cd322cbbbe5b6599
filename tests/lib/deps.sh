#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# deps.sh SECTION...: says which Debian packages of these sections of tests/deps are needed,
# lists those that are missing, and installs them. Needs root only if something is missing.
set -euo pipefail

list=$(dirname "$0")/../deps
sections=" $* "
wanted=()
missing=()

while read -r section package _; do
	[[ $section == '#'* || -z $section || $sections != *" $section "* ]] || wanted+=("$package")
done < "$list"

echo "Packages needed ($*): ${wanted[*]}"
if ! command -v dpkg-query >/dev/null; then
	echo "deps: no dpkg here; install what corresponds to these packages by hand" >&2
	exit 1
fi
for package in "${wanted[@]}"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || :)
	[ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
	echo "All of them are installed."
	exit 0
fi
echo "To be installed by apt-get: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
	echo "deps: run it as root: sudo make deps" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if ! apt-get install -y --no-install-recommends "${missing[@]}" </dev/null; then
	# A machine that was never updated has no package lists, or old ones.
	apt-get update </dev/null
	apt-get install -y --no-install-recommends "${missing[@]}" </dev/null
fi
