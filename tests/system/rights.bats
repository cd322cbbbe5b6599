# SPDX-License-Identifier: LGPL-2.1-or-later
# Who may do what by the control socket: root, a member of group usm, somebody else. Each method has a
# line here; a new one without a line fails.
bats_require_minimum_version 1.5.0

load lib

INTERFACE=io.usmd.Manager
MEMBER=daemon
OTHER=$UNPRIVILEGED
OTHER_GID=$(id -g $OTHER)
# Who may call it (any, own: for processes of one's own, group, root), and with which parameters.
METHODS='
GetStatus       any    {}
ListProcesses   own    {}
ListFrames      own    {"state":"used","name":"nothing"}
Assign          group  {"name":"nothing","policy":"policyOne"}
Unassign        group  {"name":"nothing"}
ListAssignments group  {}
Evict           own    {"name":"nothing"}
AddSwap         root   {"path":"/var/lib/usmd/more","sizeBytes":16777216}
RemoveSwap      root   {"path":"/var/lib/usmd/more"}
ListSwaps       group  {}
LoadPolicy      root   {"file":"/usr/lib/none.so"}
UnloadPolicy    root   {"name":"none"}
ListPolicies    group  {}
Monitor         group  {}
Reload          root   {}
'

setup_file() {
	usermod -a -G usm $MEMBER
}

setup() {
	system_setup
	cp "$PROGS/hold" /usm/tests/system/call.py "$T/"
}

teardown() {
	system_teardown
}

# call USER METHOD [PARAMETERS]: the reply, also if it is an error.
call() {
	runuser -u "$1" -- "$T/call.py" "$INTERFACE.$2" "${@:3}"
}

# may_call USER METHOD PARAMETERS: the answer is anything but NotPermitted.
may_call() {
	local reply

	reply=$(call "$@") || die "no reply: $reply" || return 1
	jq -e . <<< "$reply" >/dev/null || die "not JSON: $reply" || return 1
	[ "$(jq -r '.error // ""' <<< "$reply")" != $INTERFACE.NotPermitted ]
}

# may_all USER RANK...: it may call the methods of these ranks, and no other.
may_all() {
	local user=$1 ranks=" ${*:2} " method rank parameters nr=0

	while read -r method rank parameters; do
		[ -n "$method" ] || continue
		nr=$((nr + 1))
		if [[ $ranks == *" $rank "* ]]; then
			may_call "$user" "$method" "$parameters" || die "$user may not call $method" || return 1
		elif may_call "$user" "$method" "$parameters"; then
			die "$user may call $method"
			return 1
		fi
	done <<< "$METHODS"
	[ $nr -ge 15 ]
}

@test "each method of the interface is looked at here" {
	local described

	start_usmd
	described=$("$T/call.py" org.varlink.service.GetInterfaceDescription "{\"interface\":\"$INTERFACE\"}" |
		jq -r .parameters.description | sed -n 's/^method \([A-Za-z]*\)(.*/\1/p' | sort)
	[ -n "$described" ]
	diff <(awk 'NF { print $1 }' <<< "$METHODS" | sort) <(echo "$described")
}

@test "root may call everything" {
	start_usmd
	may_all root any own group root
}

@test "a member of group usm is not root: no swap, no policy files, no reload" {
	start_usmd
	may_all $MEMBER any own group
	[ ! -e /var/lib/usmd/more ]
}

@test "somebody else may see the status, and what is his own" {
	start_usmd
	may_all $OTHER any own
	[ "$(usmctl list assignments --json | jq '.assignments | length')" -eq 0 ]
}

@test "what counts is the group of the process that calls" {
	start_usmd
	run -0 setpriv --reuid=$OTHER --regid=$OTHER_GID --clear-groups "$T/call.py" $INTERFACE.ListSwaps
	[[ $output == *NotPermitted* ]]
	run -0 setpriv --reuid=$OTHER --regid=$OTHER_GID --groups="$(getent group usm | cut -d: -f3)" \
		"$T/call.py" $INTERFACE.ListSwaps
	[[ $output != *NotPermitted* ]]
}
# hold_start USER: a managed program of that user; PID is its number.
hold_start() {
	mkfifo "$T/in-$1"
	runuser -u "$1" -- usmctl run -- "$T/hold" 8 < "$T/in-$1" > "$T/out-$1" 2>&1 3>&- &
	BACKGROUND+=($!)
	# Keeps it open.
	eval "exec {fd_$1}> '$T/in-$1'"
	wait_for 30 grep -q ready "$T/out-$1" || { cat "$T/out-$1"; return 1; }
	PID=$(usmctl list processes --json | jq ".processes[] | select(.uid == $(id -u "$1")) | .pid")
	[ -n "$PID" ]
}

@test "somebody else sees and evicts his own processes, and nobody else's" {
	local own foreign

	start_usmd "default policyOne" "allow $T/hold $OTHER"
	hold_start root
	foreign=$PID
	hold_start $OTHER
	own=$PID
	run -0 call $OTHER ListProcesses
	[ "$(jq -c '[.parameters.processes[].pid]' <<< "$output")" = "[$own]" ]
	[ "$(jq .parameters.total <<< "$output")" -eq 1 ]
	run -0 call $OTHER ListFrames "{\"state\":\"used\",\"pid\":$own}"
	[ "$(jq '.parameters.frames | length' <<< "$output")" -gt 0 ]
	run -0 call $OTHER ListFrames "{\"state\":\"used\",\"pid\":$foreign}"
	[ "$(jq -r .error <<< "$output")" = $INTERFACE.NotPermitted ]
	# Those of all programs.
	run -0 call $OTHER ListFrames '{"state":"used"}'
	[ "$(jq -r .error <<< "$output")" = $INTERFACE.NotPermitted ]
	run -0 call $OTHER ListFrames '{"state":"used","name":"hold"}'
	[[ $(jq -r .parameters.reason <<< "$output") == *"give the process id of one of yours" ]]
	run -0 call $OTHER Evict "{\"pid\":$foreign}"
	[ "$(jq -r .error <<< "$output")" = $INTERFACE.NotPermitted ]
	run -0 call $OTHER Evict "{\"pid\":$own,\"pages\":100}"
	[ "$(jq .parameters.evicted <<< "$output")" -eq 100 ]
	[ "$(usmctl list processes --json | jq ".processes[] | select(.pid == $foreign) | .swapped")" -eq 0 ]
	# A member of the group evicts everybody's.
	run -0 call $MEMBER Evict "{\"pid\":$foreign,\"pages\":100}"
	[ "$(jq .parameters.evicted <<< "$output")" -eq 100 ]
}

@test "a member of group usm cannot bring in code, or files, by what it may call" {
	local policy name

	cp /usr/lib/*/usmd/policies/policyOne.so "$T/evil.so"
	chown $MEMBER "$T/evil.so"
	start_usmd
	for policy in "$T/evil" "$T/evil.so" ../../../../../..$T/evil evil/../policyOne; do
		run -0 call $MEMBER Assign "{\"name\":\"a\",\"policy\":\"$policy\"}"
		[ "$(jq -r '.error // ""' <<< "$output")" != "" ] || die "$policy: $output"
	done
	for name in "a b" $'a\\nallow' "../a" "a/b" "#" ""; do
		run -0 call $MEMBER Assign "{\"name\":\"$name\",\"policy\":\"policyOne\"}"
		[ "$(jq -r '.error // ""' <<< "$output")" != "" ] || die "$name: $output"
	done
	[ ! -e /etc/usmd/conf.d/50-usmctl.conf ] || ! grep -q '^process' /etc/usmd/conf.d/50-usmctl.conf
	# Root's own policy file, where the member can write.
	mkdir -m 777 "$T/open"
	cp /usr/lib/*/usmd/policies/policyOne.so "$T/open/open.so"
	run -0 call root LoadPolicy "{\"file\":\"$T/open/open.so\"}"
	[[ $(jq -r .parameters.reason <<< "$output") == *"writable"* ]]
}

@test "nobody but root reads the state directory, or writes to the configuration and runtime directories" {
	local user

	start_usmd
	for user in $MEMBER $OTHER; do
		run ! runuser -u "$user" -- ls /var/lib/usmd
		run ! runuser -u "$user" -- touch /run/usmd/x
		run ! runuser -u "$user" -- touch /run/usmd/conf.d/x
		run ! runuser -u "$user" -- touch /etc/usmd/conf.d/x
		run ! runuser -u "$user" -- rm -f /run/usmd/attach
	done
}
