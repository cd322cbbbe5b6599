#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# soak-kills.sh [KILLS [SEED]]: the engine is killed that often in all, at random moments, under
# stressapptest, redis with BGSAVE, and torture; a part of it is in tests/native. Status 0 only if
# each program found its memory right and ended in its time.
set -uo pipefail

# shellcheck source=tests/lib/common.bash
. "$(dirname "$0")/lib/common.bash"
# shellcheck source=tests/lib/workloads.bash
. "$(dirname "$0")/lib/workloads.bash"

KILLS=${1:-1000}
SEED=${2:-1}
RECOVERIES=()
TABLE=()
ok=yes

# The trap calls it.
# shellcheck disable=SC2317
finish() {
	local status=$?

	teardown_tree $status
	exit $status
}

# random_kills TIMES SEED: the next death comes at once in one case of four, while the new engine
# still takes over, and else within half a second.
random_kills() {
	local pid last=0 kills=0 msec

	RANDOM=$2
	while [ $kills -lt "$1" ]; do
		msec=$((RANDOM % 4 ? RANDOM % 500 : RANDOM % 12))
		sleep "$(printf '0.%03d' $msec)"
		# No usmctl, which waits until the engine answers. No new line at its end.
		read -r pid < <(cat "/proc/$USMD_PID/task/$USMD_PID/children"; echo)
		# A dead one that the keeper has not looked at yet is no second death.
		[ "$pid" != "$last" ] && kill -KILL "$pid" || continue
		last=$pid
		echo $((++kills)) > "$T/kills.new" && mv "$T/kills.new" "$T/kills"
	done
}

soak_stressapptest() {
	while [ "$(kills)" -lt "$KILLS_WANTED" ]; do
		(KILLS_WANTED=0 && work_stressapptest root) || return
		runs=$((runs + 1))
	done
}

soak_redis() {
	work_redis root && runs=1
}

soak_torture() {
	local log=$T/torture.log status

	while [ "$(kills)" -lt "$KILLS_WANTED" ]; do
		status=0
		managed root 120 "$T/bin/torture" 10 3 8192 $((SEED + runs)) > "$log" 2>&1 || status=$?
		if [ $status -ne 0 ] || [ "$(tail -n 1 "$log")" != ok ]; then
			echo "torture with the seed $((SEED + runs)): status $status"
			tail -n 20 "$log"
			return 1
		fi
		runs=$((runs + 1))
	done
}

recoveries() {
	sed -n 's/.*carries on after \([0-9]*\) us.*/\1/p' "$LOG"
}

# From the keeper's look at the death until the new engine serves faults.
percentiles() {
	sort -n | awk '{ v[NR] = $1 } END {
		printf "%d recoveries: %d us at least, %d median, %d p99, %d at most", NR, v[1],
			v[int((NR + 1) / 2)], v[int((NR * 99 + 99) / 100)], v[NR] }'
}

# soak NAME POOL_MIB KILLS EVICTION
soak() {
	local name=$1 runs=0 well=yes start=$SECONDS killed
	KILLS_WANTED=$3

	setup_tree
	cp "$BUILD/tests/torture" "$T/bin/"
	start_usmd "$2" "default policyOne" "eviction $4"
	echo 0 > "$T/kills"
	random_kills "$3" "$SEED" </dev/null >/dev/null 2>&1 3>&- &
	KILLER_PID=$!
	"soak_$name" || well=no
	kill_engine_stop
	killed=$(kills)
	[ "$(status engineRestarts)" -ge "$killed" ] || { echo "$name: fewer new engines than kills"; well=no; }
	[ "$killed" -ge "$3" ] || well=no
	[ $well = yes ] || ok=no
	mapfile -t -O ${#RECOVERIES[@]} RECOVERIES < <(recoveries)
	TABLE+=("$(printf '%-14s %-9s %4d kills %3d runs %4d s  %-8s  %s' "$name" "$4" "$killed" $runs \
		$((SECONDS - start)) "$([ $well = yes ] && echo 'all well' || echo FAILED)" \
		"$(recoveries | percentiles)")")
	echo "${TABLE[-1]}"
	[ $well = yes ] || cp "$LOG" "$ROOT/build/soak-$name.log"
	stop_usmd || ok=no
	teardown_tree "$([ $well = yes ] && echo 0 || echo 1)"
}

if [ "$(id -u)" -ne 0 ]; then
	echo "It needs root: sudo make soak-kills" >&2
	exit 1
fi
requires_command jq stressapptest redis-cli redis-benchmark || exit 1
trap finish EXIT

soak stressapptest 128 $((KILLS / 3)) auto
soak redis 96 $((KILLS / 3)) auto
soak torture 32 $((KILLS / 6)) move
soak torture 32 $((KILLS - 2 * (KILLS / 3) - KILLS / 6)) lazyfree

echo
printf '%s\n' "${TABLE[@]}"
printf '%s\n' "${RECOVERIES[@]}" | percentiles
echo
[ $ok = yes ]
