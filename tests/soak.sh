#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# soak.sh SECONDS [SEED [EVICTION USER]]: the torture program for that long, in a pool smaller than
# what it uses: in rounds, each with another kind of eviction, user and seed, or with these only.
# Each says at its beginning how to have it again.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=tests/lib/common.bash
source tests/lib/common.bash

ROUND=300

# The trap calls it.
# shellcheck disable=SC2317
finish() {
	teardown_tree $?
}

# round SECONDS SEED EVICTION USER
round() {
	echo "$(date +%T) tests/soak.sh $*"
	setup_tree
	cp build/tests/torture "$T/bin/"
	start_usmd 32 "default policyOne" "eviction $3" "allow $T/bin/torture $UNPRIVILEGED"
	# What it has to do when the time is over it does page by page.
	managed "$4" $(($1 + 120)) "$T/bin/torture" "$1" 3 4096 "$2" "$T/home"
	[ "$(status engineRestarts)" -eq 0 ] || die "the engine has died"
	echo "$(status faults) faults, $(status evictions) evictions, $(status swapIns) swap-ins"
	stop_usmd
	teardown_tree
}

trap finish EXIT
end=$((SECONDS + $1)) seed=${2:-$(date +%s)}
if [ $# -gt 2 ]; then
	round "$1" "$seed" "$3" "$4"
	exit
fi
while :; do
	for how in "auto root" "lazyfree $UNPRIVILEGED" "move $UNPRIVILEGED" "lazyfree root"; do
		left=$((end - SECONDS))
		if [ $left -lt 10 ]; then
			echo "$(date +%T) ok"
			exit
		fi
		# shellcheck disable=SC2086
		round $((left < ROUND ? left : ROUND)) "$seed" $how
		seed=$((seed + 1))
	done
done
