# SPDX-License-Identifier: LGPL-2.1-or-later
# usmctl on a program whose memory is known, checked against /proc.
bats_require_minimum_version 1.5.0

load ../lib/common

SIZE_MIB=48
POOL=96

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT/build/tests/hold" "$T/bin/"
}

teardown() {
	teardown_tree
}

# Starts the program "hold"; HOLD_PID is itself, file descriptor 4 its input.
start_hold() {
	mkfifo "$T/in"
	timeout 300 "$T/bin/usmctl" run "$@" -- "$T/bin/hold" "$SIZE_MIB" \
		< "$T/in" > "$T/out" 2> "$T/err" 3>&- &
	BACKGROUND+=($!)
	exec 4> "$T/in"
	wait_for 30 grep -q ready "$T/out" || { cat "$T/err"; return 1; }
	HOLD_PID=$(pgrep -P "${BACKGROUND[-1]}" -x hold)
}

# All of its memory is read again and must be right.
check_hold() {
	local before

	before=$(grep -c ok "$T/out" || :)
	echo check >&4
	wait_for 60 hold_answered "$before" || { cat "$T/err"; return 1; }
}

hold_answered() {
	[ "$(grep -c ok "$T/out")" -gt "$1" ]
}

# A field of our process in the list of processes.
process() {
	usmctl list processes --json |
		jq -r ".processes[] | select(.pid == $HOLD_PID).$1"
}

rss_pages() {
	awk '$1 == "RssAnon:" { print int($2 / 4) }' "/proc/$HOLD_PID/status"
}

# assert_near A B TOLERANCE WHAT
assert_near() {
	local diff=$(($1 > $2 ? $1 - $2 : $2 - $1))

	note "$4: $1 and $2"
	[ $diff -le "$3" ] || die "$4: $1 is not within $3 of $2"
}

@test "status says what runs" {
	start_usmd $POOL "default policyOne"
	[ "$(status framesTotal)" -eq $((POOL * 256)) ]
	[ "$(status keeperPid)" -eq "$USMD_PID" ]
	[ "$(ps -o ppid= -p "$(status enginePid)" | tr -d ' ')" = "$USMD_PID" ]
	[ "$(status engineRestarts)" -eq 0 ]
	[ "$(status mechanism)" = userfault ]
	[ "$(status processes)" -eq 0 ]
	for f in version eviction framesFree faults evictions swapIns slotsTotal slotsUsed errors; do
		[ "$(status $f)" != null ] || die "status lacks $f"
	done
	run -0 usmctl status
	[ -n "$output" ]
}

@test "list processes agrees with /proc" {
	start_usmd $POOL "default policyOne"
	start_hold
	[ "$(process name)" = hold ]
	[ "$(process policy)" = policyOne ]
	assert_managed "$HOLD_PID"
	assert_near "$(process resident)" "$(rss_pages)" 512 "resident pages"
	[ "$(process swapped)" -eq 0 ]
	[ "$(process faults)" -gt 0 ]
	assert_near "$(($(status framesTotal) - $(status framesFree)))" "$(rss_pages)" 512 "used frames"
	check_hold
}

@test "evict makes as many pages leave as it says" {
	local before

	start_usmd $POOL "default policyOne"
	start_hold
	before=$(rss_pages)
	run -0 usmctl evict "$HOLD_PID" --pages 1000
	assert_near $((before - $(rss_pages))) 1000 128 "pages that left by pid"
	before=$(rss_pages)
	run -0 usmctl evict hold --size 8M
	assert_near $((before - $(rss_pages))) 2048 128 "pages that left by name"
	assert_near "$(process swapped)" 3048 128 "swapped pages"
	run usmctl evict hold --all
	[ "$(rss_pages)" -lt 1024 ] || die "$(rss_pages) pages are still there"
	check_hold
	assert_near "$(rss_pages)" "$before" 4096 "pages that came back"
	[ "$(status swapIns)" -gt 10000 ]
	run -1 usmctl evict hold --pages 100000000
	[[ $output == *[a-z]* ]]
	run -1 usmctl evict no-such-program --pages 1
	run -2 usmctl evict
}

@test "list used shows the victims in order, and they leave first" {
	local first

	start_usmd $POOL "default policyOne"
	start_hold
	run -0 usmctl list used --process hold
	[ "${#lines[@]}" -ge 50 ]
	[ "$(usmctl list used --process hold --count 20 --json |
		jq '.frames | length')" -eq 20 ]
	first=$(usmctl list used --process hold --count 1 --json |
		jq -r '.frames[0].addr')
	usmctl evict hold --pages 256
	usmctl list used --process hold --all --json > "$T/used"
	jq -se --argjson a "$first" '[.[].frames[].addr] | length > 0 and index($a) == null' "$T/used"
	run -0 usmctl list free --count 5
	run -0 usmctl list policies
	[[ $output == *policyOne* ]]
	run -0 usmctl list swap
	[[ $output == *"$SWAP"* ]]
	run -2 usmctl list nonsense
	check_hold
}

@test "monitor streams what happens" {
	start_usmd $POOL "default policyOne"
	start_hold
	(sleep 1.5; "$T/bin/usmctl" evict hold --pages 500) </dev/null >/dev/null 2>&1 3>&- &
	BACKGROUND+=($!)
	run timeout 6 "$T/bin/usmctl" monitor --json
	[ "$status" -eq 124 ] # it streams until it is ended
	jq -se '[.[].status.evictions] |
		length >= 3 and (last - first >= 400)' <<< "$output"
	check_hold
}

@test "assign and unassign, kept in a file, in force at once" {
	start_usmd $POOL "default none"
	run managed root 20 "$T/bin/hold" 1 < /dev/null
	[ "$(status processes)" -eq 0 ]
	run -0 usmctl assign hold policyOne --runtime
	run -0 usmctl list assignments
	[[ $output == *hold*policyOne* ]]
	start_hold
	[ "$(process policy)" = policyOne ]
	run -0 usmctl assign hold policyOne --limit 24M --runtime
	[ "$(process limit)" -eq 6144 ]
	wait_for 20 rss_is_below 6400
	check_hold
	[ "$(rss_pages)" -le 6800 ]
	run -0 usmctl unassign hold
	run -0 usmctl list assignments
	[[ $output != *hold* ]]
	run -1 usmctl unassign hold
	run -1 usmctl assign hold no-such-policy --runtime
	run -2 usmctl assign hold
	check_hold
}

rss_is_below() {
	[ "$(rss_pages)" -lt "$1" ]
}

@test "a rule of the administrator's own file is not unassigned" {
	start_usmd $POOL "process hold policyOne"
	run -1 usmctl unassign hold
	[[ $output == *usmd.conf:4* ]]
}

@test "swap devices are added and removed" {
	start_usmd $POOL "default policyOne"
	start_hold
	run -0 usmctl swap add "$T/state/second" 64M --priority 5
	run -0 usmctl list swap
	[[ $output == *second* ]]
	usmctl evict hold --pages 4000
	[ "$(stat -c %a "$T/state/second")" = 600 ]
	USMCTL_TIMEOUT=60 run -0 usmctl swap remove "$T/state/second"
	wait_for 30 second_is_gone
	check_hold
	echo data > "$T/foreign"
	run -1 usmctl swap add "$T/foreign" 64M
	[ "$(cat "$T/foreign")" = data ]
}

second_is_gone() {
	! usmctl list swap | grep -q second
}

@test "reload keeps the old configuration when the new one is wrong" {
	start_usmd $POOL "default policyOne"
	start_hold
	echo "nonsense 1" >> "$T/usmd.conf"
	run -1 usmctl reload
	[[ $output == *usmd.conf:5* ]]
	[ "$(process policy)" = policyOne ]
	sed -i '$d' "$T/usmd.conf"
	echo "limit hold 24M" >> "$T/usmd.conf"
	run -0 usmctl reload
	[ "$(process limit)" -eq 6144 ]
	check_hold
}

@test "an unprivileged user sees and evicts only what is his" {
	start_usmd $POOL "default policyOne"
	start_hold
	run -0 as $UNPRIVILEGED "$T/bin/usmctl" status
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" evict "$HOLD_PID" --pages 1
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" assign hold policyOne --runtime
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" swap add "$T/home/swap" 64M
	[ ! -e "$T/home/swap" ]
	check_hold
}

@test "stopping usmd gives all memory back to the program" {
	start_usmd $POOL "default policyOne"
	start_hold
	usmctl evict hold --pages 5000
	stop_usmd
	check_hold
	[ "$(rss_pages)" -ge $((SIZE_MIB * 256)) ]
}

@test "without a daemon run refuses, preload and --or-unmanaged go on" {
	run -125 timeout 20 "$T/bin/usmctl" run -- true
	[ -n "$output" ]
	run -0 timeout 20 "$T/bin/usmctl" run --or-unmanaged -- true
	run -0 timeout 20 env LD_PRELOAD="$TAGGER" true
	[ "${#lines[@]}" -eq 1 ]
}

@test "usage errors end with status 2, help with 0" {
	run -2 usmctl
	run -2 usmctl nonsense
	run -2 usmctl status --nonsense
	run -0 usmctl --help
	[[ $output == *evict* ]]
}
