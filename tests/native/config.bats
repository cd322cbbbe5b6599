# SPDX-License-Identifier: LGPL-2.1-or-later
# Every directive through "usmd --check": what is right is accepted, what is wrong is named with
# its file and line. Needs no root.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	F=$BATS_TEST_TMPDIR/usmd.conf
}

# accepts LINE...
accepts() {
	printf '%s\n' "$@" > "$F"
	run -0 timeout 10 "$BUILD/usmd" --config "$F" --check
}

# rejects LINE: as the second line of a file.
rejects() {
	printf '# a comment\n%s\n' "$1" > "$F"
	run timeout 10 "$BUILD/usmd" --config "$F" --check
	[ "$status" -ne 0 ] && [ "$status" -ne 124 ] || die "accepted: $1" || return 1
	[[ $output == *"$F:2"* ]] || die "no file and line for: $1: $output"
}

@test "the original's file works as it is" {
	accepts "memory 256" "workers 2" "page 4096" "process stressapptest policyOne" \
		"process alloc redis-server policyOne" "process swap redis-server policyOne" \
		"priority stressapptest 3" "threshold 80 policyOne"
}

@test "our own directives" {
	accepts "memory 25%" "limit redis-server 64M" "default none" "swap /var/tmp/s 1G priority 3" \
		"watermark 2% 5%" "faultaround 16" "mechanism userfault" "eviction lazyfree" \
		"oom wait" "grace 600" "allow /usr/bin/true root" "allow /usr/bin/true @root"
}

@test "comments, empty lines and white space" {
	accepts "" "# comment" "   memory   64   # here too" "	workers	1"
}

@test "shipped configuration files are accepted" {
	local f found=0

	for f in "$ROOT"/conf.d/*.conf; do
		[ -e "$f" ] || continue
		found=1
		run -0 timeout 10 "$BUILD/usmd" --config "$f" --check
	done
	[ $found = 1 ] || skip "no shipped configuration in conf.d"
}

@test "an unknown directive is named" {
	rejects "nonsense 1"
	[[ $output == *nonsense* ]]
}

@test "rules for units and users" {
	accepts "process unit:redis-server.service policyOne" "limit unit:redis-server@.service 64M" \
		"priority user:root 3" "process user:4000000 none" "allow unit:redis-server.service"
	rejects "process unit:redis-server policyOne"
	rejects "process unit:../x.service policyOne"
	rejects "limit unit: 64M"
	rejects "limit user: 64M"
	rejects "allow unit:redis-server"
	rejects "allow user:root"
	# Users come and go.
	accepts "process user:no-such-user-here policyOne"
	[[ $output == *"$F:1: there is no user 'no-such-user-here'"* ]]
}

@test "memory" {
	rejects "memory"
	rejects "memory 0"
	rejects "memory lots"
	rejects "memory 64 64"
	rejects "memory -1"
}

@test "workers" {
	rejects "workers 0"
	rejects "workers 65"
	rejects "workers two"
}

@test "page" {
	rejects "page 2048"
	rejects "page 2097152"
}

@test "process, limit and priority" {
	rejects "process"
	rejects "process stressapptest"
	rejects "process nonsense stressapptest policyOne"
	rejects "process a/b policyOne"
	rejects "limit stressapptest"
	rejects "limit stressapptest lots"
	rejects "priority stressapptest high"
}

@test "threshold" {
	rejects "threshold 101 policyOne"
	rejects "threshold 80"
}

@test "swap" {
	rejects "swap"
	rejects "swap relative/path 1G"
	rejects "swap /var/tmp/s 1K"
	rejects "swap /var/tmp/s 1G priority"
	rejects "swap /var/tmp/s 1G nonsense 3"
}

@test "watermark" {
	rejects "watermark 5%"
	rejects "watermark 5% 2%"
	rejects "watermark 5 101%"
}

@test "faultaround, mechanism, eviction, oom, grace" {
	rejects "faultaround 0"
	rejects "faultaround 3"
	rejects "faultaround 512"
	rejects "mechanism magic"
	rejects "eviction never"
	rejects "oom panic"
	rejects "grace 0"
	rejects "grace 2m"
}

@test "policy and allow" {
	rejects "policy"
	rejects "policy relative.so"
	rejects "allow /usr/bin/true"
	rejects "allow true root"
	rejects "allow /usr/bin/true no-such-user-here"
	rejects "allow /usr/bin/true @no-such-group-here"
}

@test "a file that is not there is named" {
	run timeout 10 "$BUILD/usmd" --config "$BATS_TEST_TMPDIR/none.conf" --check
	[ "$status" -ne 0 ]
	[[ $output == *none.conf* ]]
}

@test "usage errors" {
	run timeout 10 "$BUILD/usmd" --nonsense
	[ "$status" -ne 0 ] && [ "$status" -ne 124 ]
	run -0 timeout 10 "$BUILD/usmd" --help
}
