# SPDX-License-Identifier: LGPL-2.1-or-later
# Every directive of usmd.conf(5) acts on a running usmd: what it says is seen from outside.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT/build/tests/hold" "$T/bin/hold"
	cp "$ROOT/build/tests/hold" "$T/bin/other"
	PIDS=()
}

teardown() {
	teardown_tree
}

# start_program NAME MIB: fills its memory and says so, then waits; its pid is in PID.
# launch_program is the same without waiting for that.
start_program() {
	launch_program "$@"
	wait_for 60 grep -q ready "$T/$1.out" || { cat "$T/$1.err"; return 1; }
}

launch_program() {
	mkfifo "$T/$1.in"
	timeout 120 "$T/bin/usmctl" run -- "$T/bin/$1" "$2" \
		< "$T/$1.in" > "$T/$1.out" 2> "$T/$1.err" 3>&- &
	BACKGROUND+=($!)
	# Its input stays open as long as this shell lives.
	exec {INPUT}> "$T/$1.in"
	wait_for 10 pgrep -P "${BACKGROUND[-1]}" -x "$1"
	PID=$(pgrep -P "${BACKGROUND[-1]}" -x "$1")
}

# process PID FIELD
process() {
	usmctl list processes --json | jq -r ".processes[] | select(.pid == $1).$2"
}

# process_is PID FIELD VALUE
process_is() {
	[ "$(process "$1" "$2")" = "$3" ]
}

# at_most NUMBER COMMAND...
at_most() {
	[ "$("${@:2}")" -le "$1" ]
}

at_least() {
	[ "$("${@:2}")" -ge "$1" ]
}

resident() {
	process "$1" resident
}

rss_pages() {
	awk '$1 == "RssAnon:" { print int($2 / 4) }' "/proc/$1/status"
}

# A policy like policyOne under another name, as a file beside the shipped ones.
build_policy() {
	sed "s/policyOne/$1/" "$ROOT/usmd/policies/policyOne.c" > "$T/$1.c"
	cc -std=gnu11 -O2 -fPIC -shared -I"$ROOT/usmd/include" -o "$2" "$T/$1.c"
}

@test "memory: what programs use together stays below it, also when it shrinks" {
	start_usmd 32
	echo "default policyOne" >> "$T/usmd.conf"
	run -0 usmctl reload
	[ "$(status framesTotal)" -eq 8192 ]
	start_program hold 48
	[ "$(rss_pages "$PID")" -le $((8192 + 256)) ]
	sed -i 's/^memory .*/memory 16M/' "$T/usmd.conf"
	run -0 usmctl reload
	[ "$(status framesTotal)" -eq 4096 ]
	wait_for 20 at_most 4096 resident "$PID"
	[ "$(rss_pages "$PID")" -le $((4096 + 256)) ]
	# More than the pools were made for is said, not silently left out.
	sed -i 's/^memory .*/memory 64M/' "$T/usmd.conf"
	run -0 usmctl reload
	grep -q "takes effect when usmd is started again" "$LOG"
}

@test "workers: so many serve, and one more reads" {
	local n

	start_usmd 32 "workers 3"
	n=$(cat "/proc/$(status enginePid)/task/"*/comm | grep -c '^usmd-worker-')
	[ "$n" -eq 4 ]
}

# waits_in_fault PID: its thread stands still, and in no system call.
waits_in_fault() {
	grep -q '^-1 ' "/proc/$1/syscall"
}

@test "workers: events are read although all that serve wait" {
	local input i

	start_usmd 16 "workers 2" "default policyOne" "eviction off" "oom wait"
	start_program other 1
	input=$INPUT
	echo check >&"$input"
	wait_for 10 grep -q ok "$T/other.out"
	for i in 1 2 3 4; do
		cp "$T/bin/hold" "$T/bin/hold-$i"
		launch_program "hold-$i" 24
		PIDS+=("$PID")
	done
	for i in "${PIDS[@]}"; do
		wait_for 20 waits_in_fault "$i"
	done
	[ "$(status framesFree)" -le 64 ]
	echo unmap >&"$input"
	wait_for 10 grep -qz 'ok.ok' "$T/other.out"
}

@test "faultaround: 1 is a fault for each page, more is fewer faults" {
	local one many

	start_usmd 64 "default policyOne" "faultaround 1"
	start_program hold 16
	one=$(process "$PID" faults)
	[ "$one" -ge 4096 ] || die "$one faults for 4096 pages"
	sed -i 's/^faultaround .*/faultaround 64/' "$T/usmd.conf"
	run -0 usmctl reload
	start_program other 16
	many=$(process "$PID" faults)
	note "$one faults, with faultaround 64: $many"
	[ "$many" -lt $((one / 4)) ]
}

@test "watermark: reclaim starts below the one and stops at the other" {
	start_usmd 64 "default policyOne" "watermark 25% 40%"
	start_program hold 60
	# 16384 frames; a batch more may leave, and the program may touch a few again afterwards, as
	# reclaim begins only below the lower one.
	wait_for 20 at_least $((16384 * 40 / 100 - 64)) status framesFree
	sleep 1
	[ "$(status framesFree)" -le $((16384 * 40 / 100 + 512)) ]
	sed -i 's/^watermark .*/watermark 60% 70%/' "$T/usmd.conf"
	run -0 usmctl reload
	wait_for 20 at_least $((16384 * 70 / 100 - 64)) status framesFree
}

@test "limit: a program stays at its own, another one is not touched" {
	local other

	start_usmd 128 "default policyOne" "limit hold 16M"
	start_program other 24
	other=$PID
	start_program hold 32
	[ "$(process "$PID" limit)" -eq 4096 ]
	[ "$(resident "$PID")" -le $((4096 + 256)) ] || die "$(resident "$PID") pages resident"
	[ "$(process "$PID" swapped)" -ge $((4096 - 256)) ]
	[ "$(process "$other" swapped)" -eq 0 ]
	# A smaller one is in force at once, whether it faults or not.
	sed -i 's/^limit .*/limit hold 8M/' "$T/usmd.conf"
	run -0 usmctl reload
	wait_for 20 at_most $((2048 + 256)) resident "$PID"
	[ "$(process "$other" swapped)" -eq 0 ]
}

@test "priority: pages of the lower one leave first" {
	local low

	start_usmd 64 "default policyOne" "priority hold -1" "priority other 1"
	start_program hold 32
	low=$PID
	start_program other 48
	note "swapped: low $(process "$low" swapped), high $(process "$PID" swapped)"
	[ "$(process "$low" swapped)" -ge $((16 * 256 - 1024)) ]
	[ "$(process "$PID" swapped)" -le 1024 ]
}

@test "threshold: the default policy changes under pressure, and back" {
	local first

	build_policy policyTwo "$T/bin/policies/policyTwo.so"
	start_usmd 64 "default policyOne" "threshold 50 policyTwo" "process other policyOne"
	start_program hold 8
	first=$PID
	[ "$(process "$first" policy)" = policyOne ]
	start_program other 40
	wait_for 10 process_is "$first" policy policyTwo
	# One with a rule of its own keeps it.
	[ "$(process "$PID" policy)" = policyOne ]
	grep -q "the default policy is now policyTwo" "$LOG"
	run -0 usmctl evict "$PID" --pages 8192
	wait_for 10 process_is "$first" policy policyOne
}

@test "default: none leaves programs alone, a policy manages them" {
	start_usmd 32
	run managed root 20 "$T/bin/hold" 1 < /dev/null
	[ "$(status processes)" -eq 0 ]
	echo "default policyOne" >> "$T/usmd.conf"
	run -0 usmctl reload
	start_program hold 1
	[ "$(process "$PID" policy)" = policyOne ]
}

@test "oom exceed: the pool is exceeded with a warning" {
	start_usmd 16 "default policyOne" "eviction off" "oom exceed"
	start_program hold 24
	[ "$(status exceeded)" -ge 2048 ]
	grep -q "exceeding the pool" "$LOG"
	pid_alive "$PID"
}

@test "oom wait: the program waits, and goes on when it may" {
	start_usmd 16 "default policyOne" "eviction off" "oom wait"
	launch_program hold 24
	wait_for 20 at_most 64 status framesFree
	sleep 2
	run -1 grep ready "$T/hold.out"
	pid_alive "$PID"
	[ "$(status exceeded)" -eq 0 ]
	sed -i 's/^oom .*/oom exceed/' "$T/usmd.conf"
	run -0 usmctl reload
	wait_for 20 grep -q ready "$T/hold.out"
}

@test "oom kill: the program is killed, and the log says why" {
	start_usmd 16 "default policyOne" "eviction off" "oom kill"
	run managed root 30 "$T/bin/hold" 24 < /dev/null
	[ "$status" -eq 137 ]
	[[ $output != *ready* ]]
	grep -q "'oom kill' is set" "$LOG"
}

@test "swap: in the order of their priorities" {
	local lines=("default policyOne")

	lines+=("swap $T/state/slow 16M priority -5" "swap $T/state/fast 4M priority 5")
	start_usmd 64 "${lines[@]}"
	start_program hold 32
	run -0 usmctl evict "$PID" --pages 900
	[ "$(swap_used fast)" -ge 800 ]
	[ "$(swap_used swap)" -eq 0 ]
	[ "$(swap_used slow)" -eq 0 ]
	# The first is full after 1024 pages, then comes the one of priority 0.
	run -0 usmctl evict "$PID" --pages 2000
	[ "$(swap_used swap)" -ge 1500 ]
	[ "$(swap_used slow)" -eq 0 ]
	[ "$(stat -c %s "$T/state/slow")" -ge $((16 << 20)) ]
}

swap_used() {
	usmctl list swap --json | jq "[.swaps[] | select(.path | endswith(\"/$1\")).used] | add"
}

@test "eviction off: no page leaves" {
	start_usmd 64 "default policyOne" "eviction off"
	[ "$(status eviction)" = off ]
	start_program hold 16
	run -1 usmctl evict "$PID" --pages 100
	[[ $output == *'eviction off'* ]]
	[ "$(process "$PID" swapped)" -eq 0 ]
	[ "$(status evictions)" -eq 0 ]
}

@test "eviction lazyfree and move: pages leave that way" {
	local kind

	for kind in lazyfree move; do
		start_usmd 64 "default policyOne" "eviction $kind"
		[ "$(status eviction)" = $kind ]
		start_program hold 16
		run -0 usmctl evict "$PID" --pages 1000
		[ "$(rss_pages "$PID")" -le $((16 * 256 - 700)) ]
		end_pid "${BACKGROUND[-1]}" || :
		stop_usmd
		rm -f "$T/hold."*
	done
}

@test "process: alloc says who places pages, swap who chooses what leaves" {
	build_policy policyTwo "$T/bin/policies/policyTwo.so"
	start_usmd 64 "default policyOne" "process alloc hold policyTwo" "process other policyTwo" \
		"process swap other none"
	start_program hold 4
	[ "$(process "$PID" policy)" = policyTwo ]
	run -0 usmctl evict "$PID" --pages 100
	start_program other 4
	[ "$(process "$PID" policy)" = policyTwo ]
	# Nothing of it leaves, until it is said again that it may.
	run -1 usmctl evict "$PID" --pages 100
	[[ $output == *"says none"* ]]
	[ "$(process "$PID" swapped)" -eq 0 ]
	sed -i '/^process swap other/d' "$T/usmd.conf"
	run -0 usmctl reload
	run -0 usmctl evict "$PID" --pages 100
	# A policy of another file does not know these pages: said, not silently left out.
	run -1 usmctl assign other policyOne --swap
	[[ $output == *"different policy files"* ]]
	echo "process swap other policyOne" >> "$T/usmd.conf"
	run -0 usmctl reload
	grep -q "'process swap other policyOne'" "$LOG"
}

@test "process swap: another policy of the same file chooses" {
	local evictions

	cp "$ROOT/tests/unit/policy-plugin.c" "$T/two.c"
	cc -std=gnu11 -O2 -fPIC -shared -DPLUGIN=TWO_POLICIES -I"$ROOT/usmd/include" \
		-o "$T/state/two.so" "$T/two.c"
	start_usmd 16 "policy $T/state/two.so" "process hold first" "process swap hold swapper"
	start_program hold 24
	[ "$(process "$PID" policy)" = first ]
	evictions=$(process "$PID" evictions)
	[ "$evictions" -ge 1024 ]
	[ "$(usmctl list policies --json | jq '.policies[] | select(.name == "first").allocs')" -ge 6144 ]
	[ "$(usmctl list policies --json | jq '.policies[] | select(.name == "second").allocs')" -eq 0 ]
	! grep -q "process swap" "$LOG"
}

@test "policy: a file is loaded at start, or usmd says why not" {
	build_policy policyTwo "$T/state/mine.so"
	start_usmd 64 "default policyTwo" "policy $T/state/mine.so"
	run -0 usmctl list policies
	[[ $output == *policyTwo* ]]
	start_program hold 4
	[ "$(process "$PID" policy)" = policyTwo ]
	end_pid "${BACKGROUND[-1]}" || :
	stop_usmd
	chmod 666 "$T/state/mine.so"
	run timeout 20 "$T/bin/usmd" --config "$T/usmd.conf" --runtime-dir "$T/run" \
		--state-dir "$T/state"
	[ "$status" -ne 0 ] && [ "$status" -ne 124 ]
	[[ $output == *"must be owned by root"* ]]
}

@test "allow: by user and by group, and nobody else" {
	start_usmd 64 "default policyOne"
	run managed $UNPRIVILEGED 20 "$T/bin/hold" 1 < /dev/null
	[[ $output == *allow* ]]
	echo "allow $T/bin/hold $UNPRIVILEGED" >> "$T/usmd.conf"
	run -0 usmctl reload
	run -0 managed $UNPRIVILEGED 20 "$T/bin/hold" 1 < /dev/null
	[[ $output != *allow* ]]
	grep -q "hold (pid .*) is managed by policyOne" "$LOG"
	# The same program under another path is another program.
	run managed $UNPRIVILEGED 20 "$T/bin/other" 1 < /dev/null
	[[ $output == *allow* ]]
	echo "allow $T/bin/other @$(id -gn $UNPRIVILEGED)" >> "$T/usmd.conf"
	run -0 usmctl reload
	run -0 managed $UNPRIVILEGED 20 "$T/bin/other" 1 < /dev/null
	grep -q "other (pid .*) is managed by policyOne" "$LOG"
}

@test "mechanism: userfault is used, module is refused where it is not there" {
	start_usmd 64 "mechanism userfault"
	[ "$(status mechanism)" = userfault ]
	stop_usmd
	[ ! -e /dev/usm ] || skip "usm.ko is loaded"
	sed -i 's/^mechanism .*/mechanism module/' "$T/usmd.conf"
	run timeout 20 "$T/bin/usmd" --config "$T/usmd.conf" --runtime-dir "$T/run" \
		--state-dir "$T/state"
	[ "$status" -ne 0 ] && [ "$status" -ne 124 ]
	[[ $output == *"/dev/usm"* ]]
}
