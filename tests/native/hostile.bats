# SPDX-License-Identifier: LGPL-2.1-or-later
# Programs that do what none should, each beside a victim that checks its own memory under the
# same usmd: the victim ends well, usmd lives on and keeps nothing.
bats_require_minimum_version 1.5.0

load ../lib/common
load ../lib/offenders

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT"/build/tests/{victim,hostile,halt,liar} "$T/bin/"
	INPUTS=() PIDS=()
}

teardown() {
	kill_offenders
	teardown_tree
}

# More programs than usmd has workers are halted in the middle of an eviction, then fork.
halted_at_a_barrier() {
	local i names=()

	begin 32
	for i in 0 1 2 3 4; do
		offender "o$i" "$T/bin/hostile" "$1" 2
		names+=("o$i")
	done
	halt "${PIDS[@]}"
	for i in 0 1 2 3 4; do
		USMCTL_TIMEOUT=1 usmctl evict "${PIDS[$i]}" --size 1M || :
		tell "$i"
	done
	sleep 1
	victim 3
	"${2:-:}" "${PIDS[@]}"
	unhalt
	offenders_end "${names[@]}"
	assert_unharmed
}

@test "agents halted with a FORK pending: others go on, and so do they in the end" {
	halted_at_a_barrier fork
}

@test "agents halted with a REMAP pending: others go on, and so do they in the end" {
	halted_at_a_barrier remap
}

# beside SCENE [ARGUMENT]: the victim runs while one of these does; OFFENDERS of them, 1 if not said.
beside() {
	local i

	for ((i = 0; i < ${OFFENDERS:-1}; i++)); do
		offender "o$i" "$T/bin/hostile" "$@"
	done
	victim 3
}

# survives SCENE [ARGUMENT]: and it ends well itself.
survives() {
	begin 32
	beside "$@"
	offenders_end o0
	assert_unharmed
}

# Whatever becomes of three of them; usmd says so once of each if TEXT is not empty.
# perishes TEXT SCENE [ARGUMENT]
perishes() {
	begin 32
	OFFENDERS=3 beside "${@:2}"
	[ -z "$1" ] || told 3 "$1"
	kill_offenders
	assert_unharmed
}

@test "a program that closes every descriptor, again and again" { survives close 16; }
@test "a program that makes every descriptor blocking" { survives blocking 16; }
@test "a program that drops its rights" { survives setuid 16; }
@test "a program with children in user namespaces" { survives namespace 16; }
@test "a program with a userfaultfd of its own" { survives userfaultfd 16; }
@test "a program that forks without libc" { survives clones 8; }
@test "a program that scribbles over the operation memory" { perishes "" scribble 4; }
@test "a program that makes holes in the operation memory" { perishes "it made holes in the memory that it shares" punch 4; }

@test "a program that becomes a daemon and closes what it does not know" {
	begin 32
	managed root 60 "$T/bin/hostile" daemon "$T/home/daemon"
	victim 2
	wait_for 120 grep -q ok "$T/home/daemon"
	assert_unharmed
}

@test "a program that sets a filter for all threads" {
	begin 48
	beside seccomp 8
	told 1 "no page of it is evicted any more: it set a seccomp filter"
	usmctl list processes | grep "it set a seccomp filter for all its threads"
	offenders_end o0
	assert_unharmed
}

@test "a program that locks all of its memory" {
	begin 48
	beside lock 4
	told 1 "no page of it is evicted any more: it locked its memory"
	usmctl list processes | grep "it locked its memory (mlockall)"
	offenders_end o0
	assert_unharmed
}

@test "a program that forks as fast as it can, beyond what usmd manages" {
	begin 32
	beside storm 1100
	kill_offenders
	# What it keeps of a process it keeps for the next one.
	assert_unharmed 24
}

resident_kib() {
	awk '$1 == "RssAnon:" { print $2 }' "/proc/$1/status"
}

@test "a program that names its own thread as the agent, and waits over its limit alone" {
	begin 48 "oom wait" "limit liar 8M"
	liar mute
	victim 3
	# All of its threads are kept waiting, that one too.
	note "it has $(resident_kib "${PIDS[0]}") KiB"
	[ "$(resident_kib "${PIDS[0]}")" -le 9216 ]
	kill_offenders
	assert_unharmed
}

@test "500 handshakes that are never finished" {
	begin 32
	liar silent
	victim 2
	# It was managed all the same.
	[ "$(grep -c 'victim .* is managed' "$LOG")" -ge 2 ]
	kill_offenders
	assert_unharmed
}

# keep_stopping PID: it stands still for most of the time, and always in the middle of something.
keep_stopping() {
	while kill -STOP "$1" 2>/dev/null; do
		sleep 0.9
		kill -CONT "$1"
		sleep 0.05
	done
}

@test "a program that is stopped and continued in turn" {
	begin 48
	offender o0 "$T/bin/hostile" work 16
	keep_stopping "$PID" </dev/null >/dev/null 2>&1 3>&- &
	local stopper=$!
	victim 3
	kill "$stopper" && wait "$stopper" || :
	kill -CONT "$PID"
	offenders_end o0
	assert_unharmed
}

@test "programs that are killed at any moment" {
	begin 32
	for i in {1..20}; do
		offender "o$i" "$T/bin/hostile" work 24
		sleep "0.$((RANDOM % 10))"
		kill -KILL "$PID"
	done
	victim 1
	assert_unharmed 16
}
