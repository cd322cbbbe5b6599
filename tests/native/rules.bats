# SPDX-License-Identifier: LGPL-2.1-or-later
# Rules for units and users, besides those for programs of a name: who is meant, and which rule
# counts. A unit is what systemd makes of it, a cgroup of that name.
bats_require_minimum_version 1.5.0

load ../lib/common

POOL=96

setup() {
	UNIT="" CGROUP=""
	setup_tree
	requires_command jq
	cp "$ROOT/build/tests/hold" "$T/bin/"
}

teardown() {
	exec 4>&-
	teardown_tree
	[ -z "$CGROUP" ] || { wait_for 20 rmdir "$CGROUP" && rmdir "${CGROUP%/*}" 2>/dev/null || :; }
}

# make_unit NAME: CGROUP is its cgroup, below a slice of the test's own.
make_unit() {
	local root=""

	[ ! -e /sys/fs/cgroup/cgroup.procs ] || root=/sys/fs/cgroup
	[ ! -e /sys/fs/cgroup/unified/cgroup.procs ] || root=/sys/fs/cgroup/unified
	[ -n "$root" ] || skip "needs a cgroup2 hierarchy at /sys/fs/cgroup"
	UNIT=$1
	CGROUP=$root/usmtest$$.slice/$1
	mkdir -p "$CGROUP" || skip "needs a cgroup2 hierarchy that can be written"
}

# in_unit COMMAND...: also a function.
in_unit() {
	(echo "$BASHPID" > "$CGROUP/cgroup.procs" && "$@")
}

# hold COMMAND...: starts the program "hold" (8 MiB) through the command; HOLD_PID is itself.
start_hold() {
	rm -f "$T/in"
	mkfifo -m 666 "$T/in"
	"$@" timeout 120 env LD_PRELOAD="$TAGGER" "$T/bin/hold" 8 < "$T/in" > "$T/out" 2> "$T/err" 3>&- &
	BACKGROUND+=($!)
	exec 4> "$T/in"
	wait_for 30 grep -q ready "$T/out" || { cat "$T/err"; return 1; }
	HOLD_PID=$(usmctl list processes --json | jq -r '.processes[] | select(.name == "hold").pid')
}

# Its memory is right, and then it ends.
end_hold() {
	echo check >&4
	wait_for 20 grep -q ok "$T/out"
	exec 4>&-
	wait "${BACKGROUND[-1]}"
	unset 'BACKGROUND[-1]'
}

process() {
	usmctl list processes --json | jq -r ".processes[] | select(.pid == $HOLD_PID).$1"
}

@test "a unit's programs are managed by its rule, and no others" {
	make_unit usmtest.service
	start_usmd $POOL "default none" "process unit:usmtest.service policyOne" \
		"limit unit:usmtest.service 16M"
	start_hold env
	[ -z "$HOLD_PID" ]
	end_hold
	start_hold in_unit
	[ "$(process policy)" = policyOne ]
	[ "$(process limit)" -eq 4096 ]
	end_hold
}

@test "an instance is managed by the rule of its template, and its own goes before" {
	make_unit usmtest@one.service
	start_usmd $POOL "default none" "process unit:usmtest@.service policyOne" \
		"limit unit:usmtest@.service 16M"
	start_hold in_unit
	[ "$(process limit)" -eq 4096 ]
	run -0 usmctl assign unit:usmtest@one.service --limit 12M
	[[ $output == *"1 running process was taken over"* ]]
	[ "$(process limit)" -eq 3072 ]
	end_hold
}

@test "the narrower rule counts: program, unit, user" {
	make_unit usmtest.service
	start_usmd $POOL "process user:root policyOne" "limit user:root 8M"
	start_hold in_unit
	[ "$(process limit)" -eq 2048 ]
	run -0 usmctl assign unit:usmtest.service --limit 12M
	[ "$(process limit)" -eq 3072 ]
	run -0 usmctl assign hold --limit 16M
	[ "$(process limit)" -eq 4096 ]
	run -0 usmctl unassign hold
	[ "$(process limit)" -eq 3072 ]
	run -0 usmctl unassign unit:usmtest.service
	[ "$(process limit)" -eq 2048 ]
	# A rule says none for all that it means.
	run -0 usmctl assign unit:usmtest.service none
	wait_for 20 not_managed
	end_hold
}

not_managed() {
	[ -z "$(process policy)" ]
}

@test "a user's rule is for his programs, and allows nothing that allow does not" {
	start_usmd $POOL "default none" "process user:$UNPRIVILEGED policyOne"
	start_hold env
	[ -z "$HOLD_PID" ]
	end_hold
	start_hold as $UNPRIVILEGED
	[ -z "$HOLD_PID" ]
	grep -q "no 'allow $T/bin/hold' line" "$T/err"
	end_hold
	echo "allow $T/bin/hold $UNPRIVILEGED" >> "$T/usmd.conf"
	run -0 usmctl reload
	start_hold as $UNPRIVILEGED
	[ "$(process policy)" = policyOne ]
	run -0 usmctl list assignments
	[[ $output == *"user:$UNPRIVILEGED"*policyOne* ]]
	end_hold
}

@test "allow unit: lets a unit's programs be managed whoever's they are" {
	make_unit usmtest.service
	start_usmd $POOL "default policyOne"
	start_hold in_unit as $UNPRIVILEGED
	[ -z "$HOLD_PID" ]
	end_hold
	echo "allow unit:usmtest.service" >> "$T/usmd.conf"
	run -0 usmctl reload
	start_hold in_unit as $UNPRIVILEGED
	[ "$(process policy)" = policyOne ]
	end_hold
	# Out of the unit he is nobody in particular.
	start_hold as $UNPRIVILEGED
	[ -z "$HOLD_PID" ]
	end_hold
}

@test "a forked child keeps its parent's unit, a program that is executed is looked up anew" {
	make_unit usmtest.service
	start_usmd $POOL "default none" "process unit:usmtest.service policyOne"
	mkfifo "$T/in"
	in_unit timeout 120 env LD_PRELOAD="$TAGGER" bash -c '
		( exec < "$1/in"; echo $BASHPID > "$1/child"; read -r _; exec "$1/bin/hold" 1 ) & wait' \
		- "$T" > "$T/out" 2> "$T/err" 3>&- &
	BACKGROUND+=($!)
	exec 4<> "$T/in" # waits for nobody
	wait_for 20 test -s "$T/child"
	HOLD_PID=$(cat "$T/child")
	wait_for 20 is_managed
	echo "$HOLD_PID" > "${CGROUP%/*/*}/cgroup.procs"
	run -0 usmctl reload
	[ "$(process policy)" = policyOne ]
	echo go >&4
	wait_for 20 not_managed
	end_hold
}

is_managed() {
	[ -n "$(process policy)" ]
}

@test "a program that calls itself by a unit's name is not the unit's" {
	make_unit usmtest.service
	start_usmd $POOL "default none" "process unit:usmtest.service policyOne" "process user:0 none"
	cp "$T/bin/hold" "$T/bin/unit:usmtest.service"
	start_hold bash -c 'exec -a unit:usmtest.service "$@"' -
	[ -z "$HOLD_PID" ]
	end_hold
	run -0 timeout 20 env LD_PRELOAD="$TAGGER" "$T/bin/unit:usmtest.service" 1 < /dev/null
	run -1 grep "is managed by" "$LOG"
}

@test "assign counts what runs unmanaged, by unit and by user" {
	make_unit usmtest.service
	start_usmd $POOL "default none"
	start_hold in_unit
	run -0 usmctl assign unit:usmtest.service policyOne
	[[ $output == *"0 running processes were taken over"* ]]
	[[ $output == *"running programs of that unit are not managed"* ]]
	[[ $output == *"usmctl attach-unit usmtest.service --policy policyOne"* ]]
	run -0 usmctl assign user:$UNPRIVILEGED policyOne
	[[ $output != *"hold"* ]]
	run -1 usmctl assign user:no-such-user-here policyOne
	[[ $output == *"There is no user 'no-such-user-here'"* ]]
	run -1 usmctl unassign unit:other.service
	end_hold
}

@test "usmctl run knows the rules for its own unit and user" {
	make_unit usmtest.service
	start_usmd $POOL "default none" "process unit:usmtest.service policyOne"
	run -125 usmctl run -- "$T/bin/hold" 1 < /dev/null
	[[ $output == *"no policy is assigned"* ]]
	run -0 in_unit timeout 20 "$T/bin/usmctl" run -- "$T/bin/hold" 1 < /dev/null
	grep -q "hold (pid .*) is managed by policyOne" "$LOG"
	echo "process user:root policyOne" >> "$T/usmd.conf"
	run -0 usmctl reload
	run -0 usmctl run -- "$T/bin/hold" 1 < /dev/null
	# The narrower rule says none.
	echo "process hold none" >> "$T/usmd.conf"
	run -0 usmctl reload
	run -125 in_unit timeout 20 "$T/bin/usmctl" run -- "$T/bin/hold" 1 < /dev/null
	[[ $output == *"no policy is assigned"* ]]
}
