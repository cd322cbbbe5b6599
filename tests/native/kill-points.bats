# SPDX-License-Identifier: LGPL-2.1-or-later
# The engine dies at every named point (usmd/kill-point.h), under a load that forks, maps, frees
# and checks every byte, while its swap device is slow, so that writes are in flight.
bats_require_minimum_version 1.5.0

BUILD=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)/build/kill-points
load ../lib/common

setup() {
	setup_tree
	cp "$ROOT"/build/tests/{family,fork-cow,mappings,torture} "$T/bin/"
	PLAN=$T/plan
	truncate -s 4096 "$PLAN"
	export USM_KILL_PLAN=$PLAN
	FAILURES=$T/failures
	: > "$FAILURES"
}

teardown() {
	rm -f "$T/load"
	slow_swap_end
	teardown_tree
}

# u32 NUMBER OFFSET: writes it into the plan.
u32() {
	printf "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) \
		$(($1 >> 16 & 255)) $(($1 >> 24 & 255)))" |
		dd of="$PLAN" bs=1 seek="$2" conv=notrunc status=none
}

deaths() {
	od -An -tu4 -j8 -N4 "$PLAN" | tr -d ' '
}

# arm POINT SKIP
arm() {
	u32 0 0
	u32 "$2" 4
	printf '%s\0' "$1" | dd of="$PLAN" bs=1 seek=12 conv=notrunc status=none
	u32 1 0
}

points() {
	grep -rhoE 'KILL_POINT\("[a-z-]+"\)' "$ROOT/usmd" --include='*.c' | cut -d'"' -f2 | sort
}

# A few megabytes a second for what usmd writes and reads, where the kernel can do that.
slow_swap_start() {
	local group=/sys/fs/cgroup/blkio/usmd-test.$$ device

	device=$(stat -c '%Hd:%Ld' "$T/state")
	SLOW=""
	if mkdir "$group" 2>/dev/null && echo "$device $1" > "$group/blkio.throttle.write_bps_device" &&
		echo "$device $1" > "$group/blkio.throttle.read_bps_device" &&
		echo "$USMD_PID" > "$group/cgroup.procs" &&
		echo "$(status enginePid)" > "$group/cgroup.procs"; then
		SLOW=$group
		note "swap is slow: $1 bytes a second"
	else
		rmdir "$group" 2>/dev/null || :
		note "swap is as fast as it is: no blkio cgroup here"
	fi
}

slow_swap_end() {
	[ -n "${SLOW:-}" ] || return 0
	while read -r pid; do
		echo "$pid" > /sys/fs/cgroup/blkio/cgroup.procs 2>/dev/null
	done < "$SLOW/cgroup.procs"
	rmdir "$SLOW" 2>/dev/null || :
	SLOW=""
}

# load_loop USER COMMAND...: again and again, SEED counting up, until $T/load is gone; what fails is
# noted.
load_loop() {
	local user=$1 status n=0 out=$T/load.$BASHPID.out

	shift
	while [ -e "$T/load" ]; do
		status=0
		n=$((n + 1))
		managed "$user" 120 "${@/#SEED/$n}" > "$out" 2>&1 || status=$?
		[ $status -eq 0 ] && [ "$(tail -n 1 "$out")" = ok ] && continue
		echo "$* $n: status $status: $(tail -n 5 "$out")" >> "$FAILURES"
	done
}

load_start() {
	LOADS=() FAMILY=""
	touch "$T/load"
	load_loop root "$T/bin/torture" 2 3 2048 SEED </dev/null 3>&- & LOADS+=($!)
	load_loop $UNPRIVILEGED "$T/bin/fork-cow" 12 </dev/null 3>&- & LOADS+=($!)
	load_loop root "$T/bin/mappings" 12 </dev/null 3>&- & LOADS+=($!)
}

# Few of the others share pages long enough to give them to each other.
family_start() {
	[ -z "$FAMILY" ] || return 0
	FAMILY=1
	load_loop root "$T/bin/family" 4 3 </dev/null 3>&- & LOADS+=($!)
}

load_end() {
	local pid

	rm "$T/load"
	for pid in "${LOADS[@]}"; do
		wait_for 130 load_ended "$pid"
	done
}

load_ended() {
	! pid_alive "$1"
}

has_died() {
	[ "$(deaths)" -gt "$1" ]
}

# die_at POINT SKIP SECONDS: false if the point is not passed so often in that time.
die_at() {
	local before end=$((SECONDS + $3))

	before=$(deaths)
	arm "$1" "$2"
	# These are passed by the engine that comes after another's death.
	[[ $1 != recover-* ]] || kill -KILL "$(status enginePid)"
	until has_died "$before"; do
		if [ $SECONDS -ge $end ]; then
			u32 0 0
			has_died "$before"
			return
		fi
		sleep 0.02
	done
}

# die_everywhere EVICTION NOT RARELY: at all points but those of the pattern NOT, which this eviction
# does not pass; those of RARELY may be missed.
die_everywhere() {
	local point seconds

	requires_command jq
	start_usmd 16 "default policyOne" "eviction $1" "allow $T/bin/fork-cow $UNPRIVILEGED" \
		"allow $(realpath "$(type -P true)") $UNPRIVILEGED"
	slow_swap_start $((24 << 20))
	load_start
	: > "$T/missed"
	for point in $(points | grep -vxE "swap-(adding|removed)|release-.*|$2"); do
		seconds=60
		[[ ! $point =~ ^($3)$ ]] || seconds=10
		[[ $point != @(fault-of-agent|hand-over-*) ]] || family_start
		die_at "$point" 0 $seconds || { echo "$point" >> "$T/missed"; continue; }
		[ "$1" != auto ] || die_at "$point" 30 2 || :
		[ ! -s "$FAILURES" ] || break
	done
	load_end
	note "$(deaths) deaths, not reached: $(paste -sd ' ' "$T/missed")"
	assert_carried_on
	run -1 grep -vxE "$3" "$T/missed"
	slow_swap_end
	stop_usmd
}

# No program failed, and each death was followed by a new engine.
assert_carried_on() {
	cat "$FAILURES"
	[ ! -s "$FAILURES" ]
	[ "$(deaths)" -gt 0 ]
	[ "$(status engineRestarts)" -ge "$(deaths)" ]
	note "recovery: $(sed -n 's/.*carries on after \([0-9]*\) us.*/\1/p' "$LOG" | sort -n |
		awk '{ v[NR] = $1 } END { printf "median %d us, longest %d us", v[int((NR + 1) / 2)], v[NR] }')"
}

@test "the engine dies at every point, eviction auto" {
	# What an agent's own madvise() is told of at a barrier is the other eviction's.
	die_everywhere auto 'barrier-(told|read)' none
}

@test "the engine dies at every point of faults, evictions and events, eviction lazyfree" {
	# One death each: how often a point was passed before does not depend on the eviction.
	die_everywhere lazyfree 'attach-.*|detach-.*|recover-.*|node-.*|hand-over-.*' 'barrier-told|fault-of-agent'
}

# death_in POINT SKIP COMMAND...: the command makes the engine die there.
death_in() {
	local before

	before=$(deaths)
	arm "$1" "$2"
	timeout 60 "${@:3}" || note "$3: status $?"
	wait_for 60 has_died "$before"
}

# pages_on PATH: how many lie there; nothing if it is no swap device.
pages_on() {
	usmctl list swap --json | jq -r ".swaps[] | select(.path == \"$1\").used"
}

holds_pages() {
	[ "$(pages_on "$1")" -gt 100 ]
}

is_no_device() {
	status enginePid && [ -z "$(pages_on "$1")" ]
}

@test "the engine dies while a swap device comes and goes, with pages on it" {
	local more=$T/state/more point

	requires_command jq
	start_usmd 16 "default policyOne" "allow $T/bin/fork-cow $UNPRIVILEGED" \
		"allow $(realpath "$(type -P true)") $UNPRIVILEGED"
	load_start
	for point in fault-read slot-unreferenced swap-removed; do
		# It is not in use yet; its file is there.
		death_in swap-adding 0 "$T/bin/usmctl" swap add "$more" 64M --priority 9
		wait_for 20 is_no_device "$more"
		run -0 usmctl swap add "$more" 64M --priority 9
		wait_for 60 holds_pages "$more"
		death_in $point $([ $point = swap-removed ] && echo 0 || echo 300) \
			"$T/bin/usmctl" swap remove "$more" --no-wait
		wait_for 60 is_no_device "$more"
	done
	load_end
	assert_carried_on
	stop_usmd
}

# let_go_start EVICTION: a program that is managed by assignment alone, with pages on swap. Its pid
# is in PROGRAM, what it says in $T/program.
let_go_start() {
	start_usmd 16 "default none" "eviction $1"
	run -0 usmctl assign torture policyOne --runtime
	managed root 120 "$T/bin/torture" 5 3 4096 7 > "$T/program" 2>&1 </dev/null 3>&- &
	PROGRAM=$!
	BACKGROUND+=("$PROGRAM")
	wait_for 20 holds_pages "$SWAP"
}

nothing_is_managed() {
	[ "$(usmctl list processes --json | jq '.processes | length')" -eq 0 ]
}

ended_well() {
	wait_for 120 load_ended "$PROGRAM"
	wait "$PROGRAM" || { cat "$T/program"; return 1; }
	[ "$(tail -n 1 "$T/program")" = ok ]
}

@test "the engine dies while programs are let go by unassign" {
	local point

	requires_command jq
	for point in release-back release-told release-unregistered detach-dying detach-handed-over \
		detach-dropped detach-closing detach-closed; do
		let_go_start $([[ $point == release-* ]] && echo auto || echo lazyfree)
		death_in $point 0 "$T/bin/usmctl" unassign torture
		wait_for 30 nothing_is_managed
		ended_well
		assert_carried_on
		stop_usmd
		u32 0 8
	done
}

@test "the engine dies while usmd is told to stop: its successor goes on with that" {
	local point

	requires_command jq
	for point in release-back release-told release-unregistered detach-dying; do
		let_go_start auto
		death_in $point 0 kill -TERM "$USMD_PID"
		wait_for 30 load_ended "$USMD_PID"
		wait "$USMD_PID"
		USMD_PID=""
		ended_well
	done
}

# Not by its command line, which may be on swap.
family_ended() {
	! readlink /proc/[0-9]*/exe | grep -qx "$T/bin/family"
}

@test "all of usmd dies while an agent waits for it: the program is killed after the grace" {
	local before

	start_usmd 16 "default policyOne" "grace 1"
	managed root 60 "$T/bin/family" 8 1000 > "$T/program" 2>&1 </dev/null 3>&- &
	PROGRAM=$!
	BACKGROUND+=("$PROGRAM")
	# Nobody follows that engine.
	kill -STOP "$USMD_PID"
	before=$(deaths)
	arm fault-of-agent 20
	wait_for 60 has_died "$before"
	kill -KILL "$USMD_PID"
	wait "$USMD_PID" || :
	USMD_PID=""
	# Its children, too.
	wait_for 20 family_ended
	grep -q "usm-tagger: family: usmd is gone, and with it pages of this program" "$T/program"
}
