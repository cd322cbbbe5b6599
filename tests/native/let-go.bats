# SPDX-License-Identifier: LGPL-2.1-or-later
# usmd is told to stop: programs go on without it, and all of their memory is their own again, also
# what the kernel was allowed to drop.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	cp "$ROOT"/build/tests/{let-go,torture,fork-cow,threads} "$T/bin/"
}

teardown() {
	exec 4>&- || :
	teardown_tree
}

# start_program MIB USER: CHILD and PARENT are its processes, file descriptor 4 its input.
start_program() {
	mkfifo "$T/in"
	managed "$2" 300 "$T/bin/let-go" "$1" < "$T/in" > "$T/out" 2> "$T/err" 3>&- &
	BACKGROUND+=($!)
	exec 4> "$T/in"
	wait_for 60 grep -q ready "$T/out" || { cat "$T/err"; return 1; }
	CHILD=$(awk '/ready/ { print $2 }' "$T/out")
	PARENT=$(ps -o ppid= -p "$CHILD" | tr -d ' ')
}

# tell LINE: what the program is to do, until it has done it.
tell() {
	local before

	before=$(grep -c ok "$T/out" || :)
	echo "$1" >&4
	wait_for 60 answered "$before" || { cat "$T/err"; return 1; }
}

answered() {
	[ "$(grep -c ok "$T/out")" -gt "$1" ]
}

# let_go EVICTION USER WHO: of two processes that share pages WHO ends first, and the other has them.
let_go() {
	requires_command jq
	start_usmd 16 "default policyOne" "eviction $1" "allow $T/bin/let-go $UNPRIVILEGED"
	start_program 32 "$2"
	tell check
	[ "$(swap_counter writes)" -gt 4096 ]
	stop_usmd
	tell "$3"
	tell drop
}

@test "a program that is let go keeps its pages" { let_go auto root child; }
@test "a program that is let go keeps its pages, eviction lazyfree" { let_go lazyfree root child; }
@test "a program that is let go keeps its pages, eviction lazyfree, unprivileged" { let_go lazyfree $UNPRIVILEGED child; }
@test "a forked child that is let go keeps its pages" { let_go auto root parent; }
@test "a forked child that is let go keeps its pages, eviction lazyfree" { let_go lazyfree root parent; }

# stop_under USER EVICTION PROGRAM ARGUMENT...: usmd ends in the middle, the program ends well.
stop_under() {
	local user=$1 eviction=$2 program=$3

	shift 3
	start_usmd 32 "default policyOne" "eviction $eviction" "allow $T/bin/$program $UNPRIVILEGED"
	managed "$user" 200 "$T/bin/$program" "$@" > "$T/out" 2>&1 3>&- </dev/null &
	BACKGROUND+=($!)
	wait_for 60 has_swapped
	stop_usmd 60
	wait "${BACKGROUND[0]}" || { cat "$T/out"; return 1; }
	[ "$(tail -n 1 "$T/out")" = ok ]
}

has_swapped() {
	[ "$(swap_counter reads)" -gt 2000 ]
}

@test "usmd is stopped under torture" { stop_under root auto torture 8 3 4096 1; }
@test "usmd is stopped under torture, unprivileged" { stop_under $UNPRIVILEGED auto torture 8 3 4096 2; }
@test "usmd is stopped under torture, eviction lazyfree" { stop_under root lazyfree torture 8 3 4096 3; }
@test "usmd is stopped while a program forks" { stop_under $UNPRIVILEGED auto fork-cow 64; }
@test "usmd is stopped while threads come and go, eviction lazyfree" { stop_under root lazyfree threads 64; }

# --- not enough memory -----------------------------------------------------------------------

# What usmd reads as the machine's memory.
memory_available() {
	echo "MemAvailable: $1 kB" > "$T/meminfo"
}

start_in_small_pool() {
	requires_command jq unshare
	memory_available 1000000
	USMD_PREFIX=(unshare --mount sh -c "mount --bind '$T/meminfo' /proc/meminfo && exec \"\$@\"" usmd)
	unshare --mount mount --bind "$T/meminfo" /proc/meminfo || skip "needs mount namespaces"
	start_usmd 16 "default policyOne"
	start_program 32 root
	tell check
}

fall_short_of_memory() {
	memory_available 2000
	# As systemctl kill does it: it counts once.
	kill -TERM "$(status enginePid)" "$USMD_PID"
	wait_for 20 grep -q "Cannot stop yet: .* End some of them, or stop once more .* to kill" "$LOG"
	# They stay as they are.
	tell check
	is_managed let-go
}

@test "no memory for what is swapped: usmd says so and goes on, until there is some" {
	start_in_small_pool
	fall_short_of_memory
	# It is told to stop, and takes nobody new.
	run -0 timeout 20 "$T/bin/usmctl" run -- true
	[[ $output == *"usmd is stopping"* ]]
	memory_available 1000000
	wait_for 60 ended "$USMD_PID"
	stop_usmd
	! grep -q "by force" "$LOG"
	tell child
	tell drop
}

@test "no memory for what is swapped: stopped once more, the programs are killed" {
	start_in_small_pool
	fall_short_of_memory
	stop_usmd
	grep -q "let-go (pid $PARENT): usmd is stopped by force" "$LOG"
	wait_for 20 ended "$PARENT"
	wait_for 20 ended "$CHILD"
	! grep check.h "$T/err"
}

@test "no memory for what is swapped: stopped once more, a program that fits goes on" {
	local small

	start_in_small_pool
	managed root 60 "$T/bin/torture" 6 2 512 1 > "$T/small" 2>&1 3>&- </dev/null &
	small=$!
	BACKGROUND+=($small)
	wait_for 20 is_managed torture
	fall_short_of_memory
	memory_available 12000
	stop_usmd
	grep -q "let-go (pid $PARENT): usmd is stopped by force" "$LOG"
	wait "$small" || { cat "$T/small"; return 1; }
	[ "$(tail -n 1 "$T/small")" = ok ]
}

is_managed() {
	[ "$(usmctl list processes --json | jq "[.processes[] | select(.name == \"$1\")] | length")" -gt 0 ]
}

ended() {
	! pid_alive "$1"
}
