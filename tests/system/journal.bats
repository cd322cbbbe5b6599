# SPDX-License-Identifier: LGPL-2.1-or-later
# What usmd says in the journal: fields, the catalog, how much of it; and a journal that is not there.
bats_require_minimum_version 1.5.0

load lib

setup() {
	system_setup
}

teardown() {
	if [ -n "${STOPPED:-}" ]; then
		kill -CONT "$STOPPED"
	fi
	systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
	system_teardown
}

# sat SECONDS: under policyOne, with half of the memory that it needs.
sat() {
	timeout 100 usmctl run -- stressapptest -s "$1" -M 64 -m 1 -W > "$T/sat" 2>&1 ||
		{ tail -n 20 "$T/sat"; return 1; }
}

# entries MATCH...: as JSON, one a line.
entries() {
	journal -o json "$@"
}

@test "evictions, faults and swap-ins of a program are found by their fields" {
	local event fields

	start_usmd "process stressapptest policyOne" "limit stressapptest 32M"
	sat 4
	fields='.USM_PROCESS == "stressapptest" and (.USM_PID | test("^[0-9]+$")) and .USM_POLICY == "policyOne"'
	for event in evict fault swapin; do
		run -0 entries USM_EVENT=$event
		[ "${#lines[@]}" -gt 0 ]
		[ "$(jq -s "all($fields and (.USM_COUNT | tonumber > 0) and .PRIORITY == \"6\")" <<< "$output")" = true ]
		# One kind of entry, one id.
		[ "$(jq -r .MESSAGE_ID <<< "$output" | sort -u | wc -l)" -eq 1 ]
	done
	# What is counted there is what the program had.
	run -0 entries USM_EVENT=evict
	[ "$(jq -s 'map(.USM_COUNT | tonumber) | add' <<< "$output")" -gt 1000 ]
	for event in attach detach; do
		run -0 entries USM_EVENT=$event
		[ "$(jq -s "length == 1 and all($fields)" <<< "$output")" = true ]
	done
	run -0 journal -o cat USM_PROCESS=stressapptest
	[ "${#lines[@]}" -ge 5 ]
	[[ $output == *"is managed by policyOne"*"pages evicted"*"is no longer managed"* ]]
	run journal -o cat USM_PROCESS=nobody-of-that-name
	[ -z "$output" ]
}

@test "assignments, the engine's death and its successor, a policy that crashes: entries of their own" {
	start_usmd
	usmctl assign stressapptest policyOne --limit 32M
	run -0 entries USM_EVENT=assign
	[ "$(jq -s 'length == 1 and .[0].USM_PROCESS == "stressapptest" and .[0].USM_POLICY == "policyOne"' \
		<<< "$output")" = true ]
	kill -KILL "$(status enginePid)"
	wait_for 20 in_journal "A new engine carries on"
	run -0 entries USM_EVENT=crash
	[ "$(jq -r .PRIORITY <<< "$output")" -eq 3 ]
	run -0 entries USM_EVENT=recover
	[ "$(jq -r .PRIORITY <<< "$output")" -eq 5 ]
	usmctl unassign stressapptest
	run -0 entries USM_EVENT=assign
	[ "${#lines[@]}" -eq 2 ]
}

@test "an error in the configuration is named with its line, and the old one stays in force" {
	start_usmd "process a policyOne"
	configure "process a policyOne" "watermark 5% 3%"
	run ! systemctl reload usmd
	in_journal "90-test.conf:4: "
	in_journal "the old configuration stays in force"
	[ "$(property ActiveState)" = active ]
	[ "$(usmctl list assignments --json | jq '.assignments | length')" -eq 1 ]
	configure "process a policyOne" "process b policyOne"
	systemctl reload usmd
	[ "$(usmctl list assignments --json | jq '.assignments | length')" -eq 2 ]
}

@test "journalctl -x explains each kind of entry" {
	local ids

	# All ids that the program has.
	ids=$(grep -aoE '5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b[0-9a-f]{2}' /usr/sbin/usmd | sort -u)
	[ "$(wc -l <<< "$ids")" -ge 10 ]
	# shellcheck disable=SC2086
	run -0 journalctl --dump-catalog $ids
	[ "$(grep -c '^Subject: ' <<< "$output")" -eq "$(wc -l <<< "$ids")" ]
	[ "$(grep -c '^Documentation: man:' <<< "$output")" -eq "$(wc -l <<< "$ids")" ]
	start_usmd "process stressapptest policyOne" "limit stressapptest 32M"
	sat 2
	run -0 journal -x USM_EVENT=evict
	[[ $output == *"Subject: Pages of stressapptest were evicted"* ]]
	[[ $output == *"The policy policyOne chose them"* ]]
}

@test "how much is said of a program is bounded" {
	local n begin=$SECONDS

	start_usmd "process stressapptest policyOne" "limit stressapptest 32M"
	sat 12
	n=$(entries | wc -l)
	# Three a second for ten seconds, then each ten seconds, and a few more.
	note "$n entries in $((SECONDS - begin)) s"
	[ "$n" -ge 10 ]
	[ "$n" -le 50 ]
}

@test "how much is said of very many short programs is bounded" {
	local n begin=$SECONDS

	start_usmd "default policyOne"
	# A thousand programs, some hundred a second.
	LD_PRELOAD=libusm-tagger.so timeout 100 sh -c 'i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done'
	n=$(entries | wc -l)
	note "$n entries in $((SECONDS - begin)) s"
	[ "$n" -le $((150 + 50 * (SECONDS - begin + 1))) ]
	# What is left out is counted: nobody is managed unnoticed.
	wait_for 10 all_attached_are_said
}

all_attached_are_said() {
	[ "$(entries USM_EVENT=attach | jq -s 'map(.USM_COUNT // "1" | tonumber) | add')" -eq 1002 ]
}

@test "a journal that stands still: nobody waits for it, and it learns what it has missed" {
	start_usmd "process stressapptest policyOne" "limit stressapptest 32M"
	STOPPED=$(systemctl show --value -p MainPID systemd-journald.service)
	kill -STOP "$STOPPED"
	# More entries than its queue takes: each reload that fails is one.
	configure "nonsense"
	for _ in $(seq 600); do
		timeout 5 usmctl reload >/dev/null 2>&1 && return 1
	done
	configure "process stressapptest policyOne" "limit stressapptest 32M"
	timeout 5 usmctl reload
	sat 2
	[ "$(status engineRestarts)" -eq 0 ]
	kill -CONT "$STOPPED"
	STOPPED=""
	usmctl assign stressapptest policyOne
	wait_for 20 in_journal "entries are missing here: the journal did not take them"
	[ "$(property NRestarts)" -eq 0 ]
}

@test "no journal at all: usmd starts, works, is killed and comes back without it" {
	systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \
		systemd-journald.service
	[ "$(systemctl show --value -p ActiveState systemd-journald.service)" = inactive ]
	start_usmd "process stressapptest policyOne" "limit stressapptest 32M"
	sat 2
	[ "$(status evictions)" -gt 0 ]
	[ "$(status errors)" -eq 0 ]
	kill -KILL "$(status enginePid)"
	wait_for 20 engine_is_new
	systemctl restart usmd
	sat 2
}

engine_is_new() {
	[ "$(status engineRestarts)" -eq 1 ]
}
