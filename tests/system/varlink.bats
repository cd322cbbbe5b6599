# SPDX-License-Identifier: LGPL-2.1-or-later
# systemd's Varlink client, which Debian 12 does not have, and the service. tests/native/varlink.bats
# has another client.
bats_require_minimum_version 1.5.0

load lib

SOCKET=/run/usmd/io.usmd.Manager
IDL=/usm/usmd/io.usmd.Manager.varlink

setup() {
	command -v varlinkctl >/dev/null || skip "needs the command varlinkctl (systemd 257)"
	system_setup
	start_usmd "memory 32M" "default policyOne"
}

teardown() {
	[ -z "${T:-}" ] || system_teardown
}

# call METHOD [PARAMETERS]
call() {
	timeout 20 varlinkctl call --json=short "$SOCKET" "io.usmd.Manager.$1" "${2:-{\}}"
}

@test "the interface file is valid, and what the service describes itself by" {
	varlinkctl validate-idl "$IDL"
	run -0 timeout 20 varlinkctl info "$SOCKET"
	[[ $output == *io.usmd.Manager* && $output == *org.varlink.service* ]]
	run -0 timeout 20 varlinkctl list-interfaces "$SOCKET"
	[[ $output == *io.usmd.Manager* ]]
	timeout 20 varlinkctl introspect "$SOCKET" io.usmd.Manager > "$T/introspected"
	varlinkctl validate-idl "$T/introspected"
	# Both as the same program prints them.
	varlinkctl validate-idl "$IDL" > "$T/file"
	varlinkctl validate-idl "$T/introspected" > "$T/service"
	diff "$T/file" "$T/service"
}

@test "calls, their parameters and their errors" {
	run -0 call GetStatus
	[ "$(jq -r .version <<< "$output")" = "$(usmd --version | cut -d' ' -f2)" ]
	[ "$(jq -r .keeperPid <<< "$output")" = "$(property MainPID)" ]
	run -0 call Assign '{"name":"sleep","policy":"policyOne","limitBytes":16777216}'
	[ "$(jq .takenOver <<< "$output")" -eq 0 ]
	run -0 call ListAssignments '{"offset":0,"count":10}'
	[ "$(jq -r '.assignments[] | select(.name == "sleep") | .limitBytes' <<< "$output")" = 16777216 ]
	call Unassign '{"name":"sleep"}'
	run ! call Unassign '{"name":"sleep"}'
	[[ $output == *NoSuchAssignment* ]]
	run ! call Assign '{"name":3}'
	[[ $output == *InvalidParameter* ]]
	run ! call NoSuchMethod
	[[ $output == *MethodNotFound* ]]
}

# A sequence of JSON (RFC 7464).
three_replies() {
	[ "$(tr -d '\036' < "$T/stream" |
		jq -s 'map(select(.status.framesTotal > 0 and .timeUsec > 0)) | length')" -ge 3 ]
}

@test "a stream of replies" {
	timeout 60 varlinkctl call --more --json=short "$SOCKET" io.usmd.Manager.Monitor '{}' \
		> "$T/stream" 2>&1 3>&- &
	BACKGROUND+=($!)
	wait_for 30 three_replies
	run ! call Monitor
	[[ $output == *ExpectedMore* ]]
}

@test "an unprivileged client may read, and no more" {
	run -0 setpriv --reuid=$UNPRIVILEGED --regid=nogroup --clear-groups timeout 20 \
		varlinkctl call --json=short "$SOCKET" io.usmd.Manager.GetStatus '{}'
	run ! setpriv --reuid=$UNPRIVILEGED --regid=nogroup --clear-groups timeout 20 \
		varlinkctl call "$SOCKET" io.usmd.Manager.Reload '{}'
	[[ $output == *NotPermitted* ]]
}
