# SPDX-License-Identifier: LGPL-2.1-or-later
# Hostile clients of the control and attach sockets. Meanwhile usmctl is answered, memory and
# descriptors are bounded, a managed program goes on, and the journal says it without a flood.
bats_require_minimum_version 1.5.0

load ../lib/common

SIZE_MIB=24
# How long usmctl may take while others do their worst, and how much memory the engine may use
# more than before: 128 clients with 64 KiB of half a message each, and what the allocator keeps.
ANSWER_MSEC=2000
GROWTH_KIB=24576

setup() {
	setup_tree
	requires_command jq python3
	cp "$ROOT/build/tests/hold" "$T/bin/"
	cp "$ROOT/tests/native/hostile.py" "$T/bin/"
	start_usmd 16 "default policyOne"
	mkfifo "$T/in"
	timeout 300 "$T/bin/usmctl" run -- "$T/bin/hold" "$SIZE_MIB" \
		< "$T/in" > "$T/out" 2> "$T/err" 3>&- &
	BACKGROUND+=($!)
	exec 4> "$T/in"
	wait_for 30 grep -q ready "$T/out" || { cat "$T/err"; return 1; }
	usmctl status >/dev/null
	ENGINE=$(status enginePid)
	FDS=$(nr_fds)
	RSS=$(rss_kib)
}

teardown() {
	teardown_tree
}

# --- what must hold ----------------------------------------------------------------------------

nr_fds() {
	find "/proc/$ENGINE/fd" -mindepth 1 | wc -l
}

rss_kib() {
	awk '$1 == "VmRSS:" { print $2 }' "/proc/$ENGINE/status"
}

# The engine is the same, answers at once, and has not grown.
assert_well() {
	local begin msec growth

	begin=$(date +%s%3N)
	usmctl status >/dev/null || die "usmctl status fails" || return 1
	msec=$(($(date +%s%3N) - begin))
	growth=$(($(rss_kib) - RSS))
	note "answered in $msec ms, $growth KiB more"
	[ "$msec" -le "$ANSWER_MSEC" ] || die "usmctl status took $msec ms" || return 1
	[ "$growth" -le "$GROWTH_KIB" ] || die "the engine has grown by $growth KiB" || return 1
	[ "$(status enginePid)" -eq "$ENGINE" ] || die "the engine was replaced"
}

# Nothing is left of those who are gone, and the program reads all of its memory back.
assert_clean() {
	assert_well
	wait_for 15 fds_are_back || { ls -l "/proc/$ENGINE/fd"; return 1; }
	check_hold
}

# It reads all of its memory.
check_hold() {
	local before

	before=$(grep -c ok "$T/out" || :)
	echo check >&4
	wait_for 60 hold_answered "$before" || { cat "$T/err"; return 1; }
}

fds_are_back() {
	[ "$(nr_fds)" -le "$FDS" ]
}

hold_answered() {
	[ "$(grep -c ok "$T/out")" -gt "$1" ]
}

# assert_logged LEAST MOST PATTERN: entries of usmd's log.
assert_logged() {
	local n

	n=$(grep -cE "$3" "$LOG" || :)
	note "$n entries of: $3"
	[ "$n" -ge "$1" ] && [ "$n" -le "$2" ] || die "$n entries, expected $1 to $2: $3"
}

# hostile USER WHAT [N]: to its end.
hostile() {
	as "$1" timeout -k 5 120 python3 "$T/bin/hostile.py" "$T/run" "${@:2}"
}

# hostile_start USER WHAT [N]: until hostile_end; what it says is in $T/said.
hostile_start() {
	rm -f "$T/hold"
	mkfifo "$T/hold"
	hostile "$@" < "$T/hold" > "$T/said" 2>&1 3>&- &
	BACKGROUND+=($!)
	exec 5> "$T/hold"
	wait_for 60 grep -q ready "$T/said" || { cat "$T/said"; return 1; }
}

hostile_end() {
	exec 5>&-
	wait "${BACKGROUND[-1]}"
}

# said KEY: its value.
said() {
	awk -v k="$1" '$1 == k { print $2 }' "$T/said"
}

# --- control -------------------------------------------------------------------------------------

@test "control: garbage is answered by an error, and is no flood in the journal" {
	run -0 hostile $UNPRIVILEGED garbage 300
	[ "${#lines[@]}" -eq 300 ]
	[ "$(sort -u <<< "$output")" = "reply io.usmd.Manager.Failed: a message is not a JSON object with a method" ]
	assert_logged 10 10 "control client of uid $(id -u $UNPRIVILEGED) .*JSON"
	assert_logged 1 1 "more of this are not logged for a minute"
	assert_clean
}

@test "control: 100 MiB in one message are not taken in" {
	run -0 hostile $UNPRIVILEGED large 100
	[ "${lines[1]}" = "reply io.usmd.Manager.Failed: a message is longer than 65536 bytes" ]
	[[ ${lines[0]} =~ ^took\ ([0-9]+)$ ]]
	[ "${BASH_REMATCH[1]}" -le 1 ]
	assert_logged 1 1 "control client of uid .*longer than"
	assert_clean
}

@test "control: half a message and silence end after ten seconds" {
	local begin=$SECONDS

	hostile_start $UNPRIVILEGED half 16
	# All places of this user are taken.
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" status
	[[ $output == *"too many clients"* ]]
	assert_well
	as daemon "$T/bin/usmctl" status >/dev/null
	wait "${BACKGROUND[-1]}"
	[ $((SECONDS - begin)) -ge 9 ]
	[ $((SECONDS - begin)) -le 20 ]
	[ "$(grep -c "half a message came, and the rest not in time" "$T/said")" -eq 16 ]
	as $UNPRIVILEGED "$T/bin/usmctl" status >/dev/null
	assert_logged 2 10 "control client of uid"
	assert_clean
}

@test "control: 500 clients of a user leave room for others" {
	hostile_start $UNPRIVILEGED crowd 500
	[ "$(said served)" -eq 16 ]
	[ "$(said refused)" -eq 484 ]
	assert_well
	as daemon "$T/bin/usmctl" status >/dev/null
	[ "$(nr_fds)" -le $((FDS + 16)) ] || die "$(nr_fds) descriptors, before it were $FDS"
	assert_logged 10 10 "control client of uid .*one too many"
	hostile_end
	assert_clean
}

@test "control: who never reads is dropped, or waits alone" {
	hostile_start $UNPRIVILEGED deaf 10
	[ "$(said sent)" -lt 100000 ]
	for _ in 1 2 3; do
		assert_well
		run timeout 3 "$T/bin/usmctl" monitor --json
		[ "$(wc -l <<< "$output")" -ge 2 ]
	done
	assert_logged 1 1 "control client of uid .*does not read its replies"
	hostile_end
	assert_clean
}

# --- attach --------------------------------------------------------------------------------------

@test "attach: what breaks the protocol is broken off, and leaves no descriptor" {
	run -0 hostile $UNPRIVILEGED packets 50
	note "$output"
	[ "${#lines[@]}" -eq 13 ]
	for c in empty short long garbage type many ready-first done-first; do
		grep -qx "$c nothing" <<< "$output" || die "$c was not broken off"
	done
	grep -qx "version .*of another version than usmd" <<< "$output"
	# This user has no "allow" line, and saying to be a forked child makes up for none.
	grep -qx "hello-twice no 'allow .*" <<< "$output"
	grep -qx "child its parent is not managed any more.*" <<< "$output"
	grep -qx "nonce its parent is not managed any more.*" <<< "$output"
	fds_are_back || { ls -l "/proc/$ENGINE/fd"; return 1; }
	assert_logged 10 10 "attach client of uid .*does not keep to the protocol"

	# As root, who is let in: the second step.
	run -0 hostile root packets 50
	grep -qx "hello-twice message 2; nothing" <<< "$output"
	grep -qx "no-userfaultfd message 2; nothing" <<< "$output"
	assert_clean
	[ "$(status processes)" -eq 1 ]
}

@test "attach: 500 handshakes that go no further keep nobody out, and end" {
	# The user is let in, so that each of them could go on.
	allow_lines python3 >> "$T/usmd.conf"
	usmctl reload
	hostile_start $UNPRIVILEGED silent 500
	[ "$(said held)" -eq 128 ]
	[ "$(said told)" -ge 180 ] # who does not say HELLO at the wrong moment is told why
	assert_well
	[ "$(nr_fds)" -le $((FDS + 128 * 3)) ] || die "$(nr_fds) descriptors, before it were $FDS"
	# A program of root's is managed meanwhile.
	run -0 managed root 30 "$T/bin/hold" 1 < /dev/null
	assert_logged 2 2 " is managed by "
	assert_logged 10 10 "attach client of uid "
	# All of them are given up, though their sockets stay open.
	wait_for 20 fds_are_back
	hostile_end
	assert_clean
}

# --- both ----------------------------------------------------------------------------------------

@test "descriptors whose close takes a minute keep nobody waiting, nor the next engine" {
	kill -STOP "$ENGINE"
	hostile_start $UNPRIVILEGED linger 12
	kill -CONT "$ENGINE"
	[ "$(said passed)" -eq 48 ]
	assert_well
	run -0 managed root 30 "$T/bin/hold" 1 < /dev/null
	assert_logged 2 2 " is managed by "
	kill -KILL "$ENGINE"
	wait_for 5 engine_is_new
	check_hold
	assert_well
	hostile_end
	assert_clean
}

engine_is_new() {
	ENGINE=$(USMCTL_TIMEOUT=2 status enginePid) && [ "$(status engineRestarts)" -eq 1 ]
}

@test "attach: an agent that sends without end keeps no other program waiting" {
	hostile_start root flood 4
	[ "$(said answer)" = message ]
	[ "$(status processes)" -eq 2 ]
	for _ in 1 2 3; do
		assert_well
		run -0 usmctl evict hold --pages 200
		check_hold
	done
	hostile_end || :
	wait_for 15 one_process
	assert_clean
}

one_process() {
	[ "$(status processes)" -eq 1 ]
}
