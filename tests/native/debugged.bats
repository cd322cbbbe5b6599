# SPDX-License-Identifier: LGPL-2.1-or-later
# Programs that are looked at by others, stopped by others, or take over the number of another one.
bats_require_minimum_version 1.5.0

load ../lib/common
load ../lib/offenders

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT"/build/tests/{victim,hostile,halt,peek,liar} "$T/bin/"
	INPUTS=() PIDS=()
}

teardown() {
	kill_offenders
	teardown_tree
}

# memory NAME: where an offender's memory is.
memory() {
	sed -n 's/^memory //p' "$T/$1.out"
}

# halt_after CALLS PID: its agent stands still in the middle of the eviction that this begins.
halt_after() {
	mkfifo "$T/halt.in"
	"$T/bin/halt" --calls "$1" "$2" < "$T/halt.in" > "$T/halt.out" 2>&1 3>&- &
	HALT_PID=$!
	BACKGROUND+=("$HALT_PID")
	exec {HALT}> "$T/halt.in"
	wait_for 10 grep -q waits "$T/halt.out"
	USMCTL_TIMEOUT=1 usmctl evict "$2" --size 1M || :
	wait_for 10 grep -q halted "$T/halt.out" || { cat "$T/halt.out"; return 1; }
}

@test "pages whose way out was stopped halfway are read by others all the same" {
	local calls

	begin 32
	offender o0 "$T/bin/hostile" still 2
	for calls in 1 2 3 4 5 7; do
		halt_after "$calls" "$PID"
		run -0 timeout -s KILL 20 "$T/bin/peek" "$PID" "$(memory o0)" 2 1
		note "$calls: $output"
		unhalt
	done
	offenders_end o0
	assert_unharmed
}

# core_is_right FILE ADDRESS MIB: of what was filled under the tag 1 (tests/lib/check.h) each page
# is what it was, or left out.
core_is_right() {
	python3 - "$@" <<-'END'
		import struct, sys
		f, at, size = open(sys.argv[1], "rb"), int(sys.argv[2], 0), int(sys.argv[3]) << 20
		header = f.read(64)
		offset, n = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
		pages = right = 0
		for i in range(n):
		    f.seek(offset + 56 * i)
		    kind, _, data, start, _, length = struct.unpack_from("<IIQQQQ", f.read(56))
		    if kind != 1:
		        continue
		    for page in range(max(start, at), min(start + length, at + size), 4096):
		        word = ((1 << 40) ^ (page - at) // 4096) * 0x9e3779b97f4a7c15 % 2**64 | 1
		        f.seek(data + page - start)
		        content = f.read(4096)
		        words = struct.unpack_from("<Q", content, 0) + struct.unpack_from("<Q", content, 4088)
		        if words == (word, word):
		            right += 1
		        elif any(content):
		            sys.exit("page %d of the core is wrong" % ((page - at) // 4096))
		        pages += 1
		print("%d of %d pages" % (right, pages))
		if pages != size // 4096:
		    sys.exit("the core has no room for %d pages" % (size // 4096))
	END
}

# Linux does not wait for the pages that it needs for a debugger.
@test "a debugger attaches, writes a core, and lets go" {
	requires_command gdb gcore python3
	begin 32
	offender o0 "$T/bin/hostile" work 48
	run -0 timeout -s KILL 120 gcore -o "$T/home/core" "$PID"
	[[ $output == *"Memory read failed"* ]]
	note "$(core_is_right "$T/home/core.$PID" "$(memory o0)" 48)"
	core_is_right "$T/home/core.$PID" "$(memory o0)" 48
	run -0 "$T/bin/peek" "$PID" "$(memory o0)" 48 2 mem
	note "$output"
	offenders_end o0
	assert_unharmed
}

@test "another program's memory is read while its pages come and go" {
	begin 32
	offender o0 "$T/bin/hostile" work 48
	run -0 timeout -s KILL 120 "$T/bin/peek" "$PID" "$(memory o0)" 48 3
	note "$output"
	offenders_end o0
	assert_unharmed
}

@test "a program that ends while it is being attached, and whose number another one gets" {
	begin 32
	liar recycled
	no_process
	kill_offenders
	assert_unharmed
}

# For as long as the victim takes, or USM_STOPPED seconds by hand.
@test "a program that is stopped as a whole in the middle of an eviction, with a FORK pending" {
	local calls

	begin 32
	for calls in 1 2 4; do
		offender "o$calls" "$T/bin/hostile" fork 2
		halt_after "$calls" "$PID"
		tell $((${#INPUTS[@]} - 1))
		kill -STOP "$PID"
		unhalt
	done
	victim 3
	sleep "${USM_STOPPED:-0}"
	for PID in "${PIDS[@]}"; do
		grep -q "^State:[[:space:]]*T" "/proc/$PID/status"
		kill -CONT "$PID"
	done
	offenders_end o1 o2 o4
	assert_unharmed
}
