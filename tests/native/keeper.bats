# SPDX-License-Identifier: LGPL-2.1-or-later
# The keeper is killed, alone or with its engine, under programs that check their memory: no page is
# wrong, nothing hangs, and nothing of usmd stays that nobody needs.
bats_require_minimum_version 1.5.0

load ../lib/common
load ../lib/workloads

# How long programs are without a daemon; by hand: USM_NO_DAEMON_SEC=60.
NO_DAEMON_SEC=${USM_NO_DAEMON_SEC:-3}
GIVEN_UP=": usmd is gone, and with it pages of this program; it is killed"

setup() {
	setup_tree
	requires_command jq
	cp "$BUILD"/tests/{torture,events,hold} "$T/bin/"
	ENGINE=""
	declare -gA PROGRAMS=()
}

teardown() {
	local pid

	for pid in "${PROGRAMS[@]}"; do
		end_pid "$pid" || :
	done
	# An engine without a keeper, too.
	for pid in $(pgrep -f "^$T/bin/usmd "); do
		[ "$pid" = "$USMD_PID" ] || kill -KILL "$pid"
	done
	teardown_tree
}

# program NAME COMMAND...: in the background; what it says is in $T/NAME.out.
program() {
	local name=$1

	shift
	managed root 200 "$@" > "$T/$name.out" 2>&1 </dev/null 3>&- &
	PROGRAMS[$name]=$!
}

# Programs that check their memory; in a pool of 32 MiB they have pages on swap soon.
load_start() {
	local i

	program torture "$T/bin/torture" "$1" 3 4096 5
	program stressapptest stressapptest -s "$1" -M 64 -m 1 -W
	# Each may be in an event or in a fault when usmd dies.
	for i in 1 2 3 4 5; do
		program "events-$i" "$T/bin/events" "$1"
	done
}

has_swapped() {
	[ "$(usmctl list processes --json |
		jq "[.processes[] | select(.name == \"$1\" and .swapped > 100)] | length")" -gt 0 ]
}

swapped_start() {
	requires_command stressapptest
	load_start "$1"
	wait_for 30 has_swapped torture
	wait_for 30 has_swapped stressapptest
}

has_ended() {
	! pid_alive "$1"
}

# ends NAME STATUS: in its time, and none of its bytes was wrong. A forked child says so, too.
ends() {
	local status=0

	wait_for 90 has_ended "${PROGRAMS[$1]}" || return 1
	wait "${PROGRAMS[$1]}" || status=$?
	unset "PROGRAMS[$1]"
	# "wrong" after anything but 0; "miscompare" is stressapptest's.
	if [ $status -ne "$2" ] || grep -E 'failed:|holds|[1-9]+ wrong|miscompare|Status: FAIL' "$T/$1.out"; then
		echo "$1: status $status; the end of what it said:"
		tail -n 20 "$T/$1.out"
		return 1
	fi
}

all_end_well() {
	local name

	for name in "${!PROGRAMS[@]}"; do
		ends "$name" 0
	done
}

kill_keeper() {
	ENGINE=$(status enginePid)
	kill -KILL "$USMD_PID"
	reap_keeper
}

# Neither can do anything about the other's death.
kill_both() {
	ENGINE=$(status enginePid)
	kill -STOP "$USMD_PID"
	kill -KILL "$ENGINE"
	kill -KILL "$USMD_PID"
	reap_keeper
	wait_for 10 has_ended "$ENGINE"
	ENGINE=""
}

reap_keeper() {
	wait "$USMD_PID" || :
	USMD_PID=""
}

engine_ends() {
	wait_for 30 has_ended "$ENGINE"
	ENGINE=""
}

@test "the keeper is killed: the engine goes on until the last program has ended" {
	start_usmd 32 "default policyOne"
	swapped_start 8
	kill_keeper
	wait_for 10 grep -q "The keeper has ended" "$LOG"
	run -0 env USMD_RUNTIME_DIR="$T/run" LD_PRELOAD="$TAGGER" true
	[[ $output == *"runs unmanaged: the keeper of usmd was killed"* ]]
	# Nobody takes its place as long as it has programs.
	run -1 timeout 20 "$T/bin/usmd" --config "$T/usmd.conf" --runtime-dir "$T/run" --state-dir "$T/state"
	[[ $output == *"Another usmd runs in"* ]]
	all_end_well
	engine_ends
	start_usmd 32 "default policyOne"
	run -0 managed root 60 "$T/bin/torture" 1 1 512 1
}

@test "the keeper is killed: its engine can be told to stop, with the programs going on" {
	start_usmd 32 "default policyOne"
	swapped_start 8
	kill_keeper
	kill -TERM "$ENGINE"
	engine_ends
	start_usmd 32 "default policyOne"
	all_end_well
}

@test "the keeper is killed while its engine starts: no engine stays" {
	local i

	for i in {0..15}; do
		start_usmd 32
		ENGINE=$(status enginePid)
		kill -KILL "$ENGINE"
		sleep "$(printf '0.%03d' $((i * 2)))"
		kill -KILL "$USMD_PID"
		reap_keeper
		wait_for 30 no_usmd
	done
	ENGINE=""
}

# A process that is just ending has no command line any more, and still the lock.
no_usmd() {
	! pgrep -f "^$T/bin/usmd " && flock -n "$T/run/lock" true
}

@test "usmd is told to stop, with the programs in the middle of everything" {
	local i

	for i in 1 2 3 4; do
		start_usmd 32 "default policyOne"
		swapped_start 6
		stop_usmd
		all_end_well
	done
}

@test "both are killed: who has pages on swap is killed after the grace, and says so" {
	start_usmd 32 "default policyOne" "grace $NO_DAEMON_SEC"
	swapped_start 60
	kill_both
	ends stressapptest 137
	grep -q "usm-tagger: stressapptest$GIVEN_UP" "$T/stressapptest.out"
}

@test "both are killed: who has nothing on swap goes on after the grace" {
	start_usmd 512 "default policyOne" "grace $NO_DAEMON_SEC"
	requires_command stressapptest
	load_start $((NO_DAEMON_SEC + 6))
	wait_for 30 has_faulted torture
	wait_for 30 has_faulted stressapptest
	wait_for 30 has_faulted events
	kill_both
	all_end_well
}

has_faulted() {
	[ "$(usmctl list processes --json |
		jq "[.processes[] | select(.name == \"$1\" and .faults > 20)] | length")" -gt 0 ]
}

@test "both are killed, and usmd comes back: programs wait for it, and see no wrong byte" {
	local dir=$T/home/redis

	requires_command redis-check-rdb redis-cli
	start_usmd 32 "default policyOne" "grace 120"
	mkdir -m 777 "$dir"
	ln -s "$(command -v redis-check-rdb)" "$dir/redis-server"
	redis_start root "$dir"
	redis_cli "$dir/sock" eval "for i = 1, 20000 do
		redis.call('set', 'key:' .. i, string.rep(redis.sha1hex(i), 100)) end" 0
	redis_bgsave "$dir/sock"
	swapped_start 60
	kill_both
	sleep "$NO_DAEMON_SEC"
	pid_alive "${PROGRAMS[stressapptest]}"
	pid_alive "$REDIS_PID"
	start_usmd 32 "default policyOne"
	ends stressapptest 137
	wait_for 30 has_ended "$REDIS_PID"
	grep -q "$GIVEN_UP" "$T/redis.log"
	# What it had saved is whole.
	run -0 redis-check-rdb "$dir/dump.rdb"
	[[ $output == *"20000 keys read"* ]]
	run -0 managed root 60 "$T/bin/torture" 1 1 512 1
}
