# SPDX-License-Identifier: LGPL-2.1-or-later
# Small programs that do to their memory what programs do, and check every page.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	cp "$ROOT"/build/tests/{fork-cow,threads,mappings,huge,robust,direct-io,signals,churn,uninherited,torture,family,moves} "$T/bin/"
}

teardown() {
	teardown_tree
}

# program USER EVICTION NAME ARGUMENT...: in a pool of 32 MiB.
program() {
	local user=$1 eviction=$2 path=$T/bin/$3

	shift 3
	requires_command jq
	start_usmd 32 "default policyOne" "eviction $eviction" "allow $path $UNPRIVILEGED" \
		"allow $(realpath "$(type -P true)") $UNPRIVILEGED"
	sampler_start
	run -0 managed "$user" 200 "$path" "$@"
	[ "${lines[-1]}" = ok ]
	# What these exceed the pool by: docs/internals.md, "What escapes".
	case "$eviction $path $*" in
		"lazyfree $T/bin/fork-cow"* | *"/family "* | *"/huge "* | *" small") note "peak $(($(sampler_peak_kib) / 1024)) MiB" ;;
		*) assert_peak_within_pool ;;
	esac
	assert_swap_used
	sampler_stop
	stop_usmd
}

@test "fork: each process sees its own pages, as root" { program root auto fork-cow 64; }
@test "fork: each process sees its own pages, unprivileged" { program $UNPRIVILEGED auto fork-cow 64; }
@test "fork: each process sees its own pages, eviction lazyfree" { program root lazyfree fork-cow 64; }
@test "fork: a child does not get what it must not, as root" { program root auto uninherited 64; }
@test "fork: a child does not get what it must not, eviction lazyfree" { program root lazyfree uninherited 64; }
@test "fork: a child does not get what it must not, in small ranges that move" { program root auto uninherited 64 small; }
@test "fork: what one of a family lets go is another's, as root" { program root auto family 48 3; }
@test "fork: what one of a family lets go is another's, unprivileged" { program $UNPRIVILEGED auto family 48 3; }
@test "threads start, end and are joined, as root" { program root auto threads 64; }
@test "threads start, end and are joined, unprivileged" { program $UNPRIVILEGED auto threads 64; }
@test "threads start, end and are joined, eviction lazyfree" { program root lazyfree threads 64; }
@test "thousands of threads, futexes and signals, as root" { program root auto churn 64 4000; }
@test "thousands of threads, futexes and signals, eviction lazyfree" { program root lazyfree churn 64 2000; }
@test "robust mutexes of threads and processes that end, unprivileged" { program $UNPRIVILEGED auto robust 40; }
@test "robust mutexes of threads and processes that end, eviction lazyfree" { program root lazyfree robust 40; }
@test "mappings move, shrink, grow and go, as root" { program root auto mappings 64; }
@test "mappings move, shrink, grow and go, unprivileged" { program $UNPRIVILEGED auto mappings 64; }
@test "mappings move, shrink, grow and go, eviction lazyfree" { program root lazyfree mappings 64; }
@test "memory that becomes huge pages, unprivileged" { program $UNPRIVILEGED auto huge 48; }
@test "memory that becomes huge pages, eviction lazyfree" { program root lazyfree huge 48; }
@test "signals come in the middle of faults, as root" { program root auto signals 64; }
@test "signals come in the middle of faults, unprivileged" { program $UNPRIVILEGED auto signals 64; }
@test "direct reads and writes, as root" { program root auto direct-io 64 "$T/home/data"; }
@test "direct reads and writes, unprivileged" { program $UNPRIVILEGED auto direct-io 64 "$T/home/data"; }
@test "direct reads and writes, eviction lazyfree" { program root lazyfree direct-io 64 "$T/home/data"; }

# At nice 10, so that threads stand still between what they do and the kernel's telling of it.
moves() {
	requires_command jq
	start_usmd 2 "default policyOne" "eviction $1"
	run -0 managed root 60 nice -n 10 "$T/bin/moves" 8 16
	[ "${lines[-1]}" = ok ]
	[ "$(status evictions)" -gt 1000 ]
	stop_usmd
}

@test "threads move mappings to where others have just left" { moves auto; }
@test "threads move mappings to where others have just left, eviction lazyfree" { moves lazyfree; }

# Without the peak: what a parent unmaps, and its child still has, is accounted for when the next
# look finds it to be the child's own.
torture() {
	requires_command jq
	start_usmd 32 "default policyOne" "eviction $2" "allow $T/bin/torture $UNPRIVILEGED"
	sampler_start
	run -0 managed "$1" 200 "$T/bin/torture" 10 3 4096 "$3" "$T/home"
	note "$(grep -e "^seed" -e "^io_uring" <<< "$output")"
	[ "${lines[-1]}" = ok ]
	assert_swap_used
	sampler_stop
	stop_usmd
}

@test "torture: every byte is checked, as root" { torture root auto 1; }
@test "torture: every byte is checked, unprivileged" { torture $UNPRIVILEGED auto 2; }
@test "torture: every byte is checked, eviction lazyfree" { torture root lazyfree 3; }

@test "torture while the engine is killed, both evictions" {
	requires_command jq
	for eviction in move lazyfree; do
		start_usmd 32 "default policyOne" "eviction $eviction"
		kill_engine_start 0.3
		run -0 managed root 200 "$T/bin/torture" 8 3 4096 4 "$T/home"
		kill_engine_stop
		assert_killed 5
		stop_usmd
	done
}

# 100 deaths of the engine in all, over programs that fork, remap and start threads.
@test "programs carry on while the engine is killed 100 times" {
	requires_command jq
	start_usmd 32 "default policyOne"
	kill_engine_start
	while [ "$(kills)" -lt 100 ]; do
		for p in fork-cow threads mappings signals; do
			run -0 managed root 200 "$T/bin/$p" 64
		done
	done
	kill_engine_stop
	assert_killed 100
}

@test "a program ends as it would alone: exit status, signal, input and output" {
	start_usmd 32 "default policyOne"
	run -7 managed root 20 sh -c 'exit 7'
	run -143 managed root 20 sh -c 'kill -TERM $$'
	run -0 managed root 20 cat < /etc/hostname
	[ "$output" = "$(cat /etc/hostname)" ]
	run -127 managed root 20 /nonexistent/program
}
