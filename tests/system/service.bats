# SPDX-License-Identifier: LGPL-2.1-or-later
# usmd.service and usmd.socket as they are installed.
bats_require_minimum_version 1.5.0

load lib

setup() {
	system_setup
}

teardown() {
	system_teardown
}

@test "the service starts, and a program is managed in half of what it needs" {
	start_usmd
	usmctl assign stressapptest policyOne --limit 64M
	run -0 timeout 100 usmctl run -- stressapptest -s 5 -M 128 -m 1 -W
	[[ $output == *"Status: PASS"* ]]
	[ "$(status evictions)" -gt 0 ]
	[ "$(status errors)" -eq 0 ]
}
