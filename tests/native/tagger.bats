#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
# libusm-tagger alone, against tagger-peer: a daemon in its plainest form that evicts all the time.

bats_require_minimum_version 1.5.0
load ../lib/common

setup() {
	requires_root
	requires_userfaultfd
	TAGGER=$BUILD/libusm-tagger.so
	PROGS=$ROOT/build/tests
}

requires_move() {
	local major minor

	IFS=.- read -r major minor _ < <(uname -r)
	((major > 6 || (major == 6 && minor >= 8))) || skip "needs UFFDIO_MOVE (Linux 6.8 or newer)"
}

# peer [OPTION...] -- PROGRAM [ARGUMENT...]
peer() {
	local options=()

	while [ "$1" != -- ]; do
		options+=("$1")
		shift
	done
	shift
	timeout -k 5 90 "$PROGS/tagger-peer" "${options[@]}" "$TAGGER" "$@" 3>&-
}

scenes() {
	local mode=$1 scene

	shift
	for scene in "$@"; do
		note "$mode: $scene"
		peer --mode "$mode" -- "$PROGS/tagger-scenes" "$scene"
	done
}

@test "tagger: threads, exec, spawn and mapping calls while pages are moved out" {
	requires_move
	scenes move threads exits exec spawn errno lockall
	peer -- "$PROGS/threads" 16
	peer -- "$PROGS/mappings" 16
}

@test "tagger: threads, exec, spawn and mapping calls while pages are freed lazily" {
	scenes lazyfree threads exits exec spawn
	peer --mode lazyfree --pause 1000 -- "$PROGS/mappings" 4
}

@test "tagger: forked children are evicted, and see what they must" {
	scenes lazyfree fork wipe
	requires_move
	scenes both fork wipe
	peer --mode both -- "$PROGS/fork-cow" 8
}

@test "tagger: a program may close every descriptor, and no pipe of its stays open" {
	requires_move
	scenes move closefrom
	peer --min 0 -- "$PROGS/tagger-scenes" pipe
}

@test "tagger: a filter for all threads ends eviction and nothing else" {
	requires_move
	peer --pause 150000 -- "$PROGS/tagger-scenes" seccomp
}

@test "tagger: a released program goes on" {
	requires_move
	peer --release-after 500 -- "$PROGS/tagger-scenes" hold 1500
}

@test "tagger: a daemon that comes back takes its program up again" {
	requires_move
	peer --die-after 500 --back-after 500 --grace 10 -- "$PROGS/tagger-scenes" hold 2000
}

@test "tagger: a program whose pages are lost with the daemon is killed, with a message" {
	requires_move
	run peer --die-after 500 --grace 1 --expect 137 -- "$PROGS/tagger-scenes" hold 3000
	[ "$status" -eq 0 ]
	[[ $output == *"usm-tagger: tagger-scenes: usmd is gone"* ]]
}

@test "tagger: a program without swapped pages outlives its daemon" {
	requires_move
	peer --die-after 500 --settle --grace 1 -- "$PROGS/tagger-scenes" hold 2000
}

@test "tagger: unmanaged programs say so in one line, or nothing where there is no rule" {
	run peer --min 0 --refuse "not allowed here" -- echo hello
	[ "$status" -eq 0 ]
	[[ $output == *"usm-tagger: echo runs unmanaged: not allowed here"* ]]
	run peer --min 0 --refuse "" -- echo hello
	[[ $output == *hello* && $output != *unmanaged* ]]
	run env USMD_RUNTIME_DIR=/nonexistent LD_PRELOAD="$TAGGER" echo hello
	[[ $output == *"runs unmanaged: no usmd answers at /nonexistent/attach"* ]]
	run env USMD_QUIET=1 USMD_RUNTIME_DIR=/nonexistent LD_PRELOAD="$TAGGER" echo hello
	[ "$output" = hello ]
}

@test "tagger: libc's text stays as it is when asked to, and MOVE works all the same" {
	requires_move
	USMD_NO_PATCH=1 peer -- "$PROGS/threads" 16
}
