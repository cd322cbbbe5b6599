# SPDX-License-Identifier: LGPL-2.1-or-later
# attach-unit and detach-unit on the files of a system that lies in a folder, without systemd.
# What systemd makes of them is tested in tests/system.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	R=$T/root
	ETC=$R/etc/systemd/system RUN=$R/run/systemd/system LIB=$R/usr/lib/systemd/system
	mkdir -p "$LIB"
	start_usmd 64 "default none"
}

teardown() {
	teardown_tree
}

# unit NAME [LINE...]: in the folder of packages.
unit() {
	local name=$1

	shift
	printf '%s\n' "[Service]" "ExecStart=/usr/sbin/nothing --option" "$@" > "$LIB/$name"
}

attach() {
	usmctl attach-unit --root "$R" "$@"
}

detach() {
	usmctl detach-unit --root "$R" "$@"
}

# The rules, one a line.
rules() {
	usmctl list assignments --json | jq -r '.assignments[] | "\(.name) \(.allocPolicy) \(.limitBytes)"'
}

# nothing_but FILE...: exactly these are in the folder, and no folder is empty.
nothing_but() {
	diff <(printf '%s\n' "$@" | sort) <(find "$R" -type f | sort)
	[ -z "$(find "$ETC" "$RUN" -mindepth 1 -type d -empty 2>/dev/null)" ]
}

@test "attach writes a drop-in and a rule, detach leaves nothing of both" {
	unit one.service
	run -0 attach one.service --policy policyOne --limit 32M
	[[ $output == *"one.service: policyOne, limit 32M"* ]]
	[[ $output == *"systemctl restart one.service"* ]]
	[[ $output == *"usmctl detach-unit --root $R one.service"* ]]
	nothing_but "$LIB/one.service" "$ETC/one.service.d/50-usmd.conf"
	[ "$(stat -c '%a %U' "$ETC/one.service.d/50-usmd.conf")" = "644 root" ]
	grep -qx "Environment=\"LD_PRELOAD=$TAGGER\"" "$ETC/one.service.d/50-usmd.conf"
	grep -qx "Environment=\"USMD_RUNTIME_DIR=$T/run\"" "$ETC/one.service.d/50-usmd.conf"
	[ "$(rules)" = "unit:one.service policyOne 33554432" ]
	grep -qx "allow unit:one.service" "$T/run/conf.d/50-usmctl.conf"

	run -0 detach one.service
	[[ $output == *"systemctl restart one.service"* ]]
	nothing_but "$LIB/one.service"
	[ -z "$(rules)" ]
	run -1 grep one.service "$T/run/conf.d/50-usmctl.conf"
	run -1 detach one.service
	[[ $output == *"is not attached"* ]]
}

@test "attached once more only the rule changes" {
	local before

	unit one.service
	run -0 attach one.service --policy policyOne --limit 32M
	before=$(stat -c '%i %Y' "$ETC/one.service.d/50-usmd.conf")
	run -0 attach one.service --policy policyOne --limit 16M
	[[ $output == *"attached already"* ]]
	[ "$(stat -c '%i %Y' "$ETC/one.service.d/50-usmd.conf")" = "$before" ]
	[ "$(rules)" = "unit:one.service policyOne 16777216" ]
	run -1 attach one.service --policy policyOne --runtime
	[[ $output == *"is attached for good"* ]]
	nothing_but "$LIB/one.service" "$ETC/one.service.d/50-usmd.conf"
}

@test "until the next boot" {
	unit one.service
	run -0 attach one.service --policy policyOne --runtime
	nothing_but "$LIB/one.service" "$RUN/one.service.d/50-usmd.conf"
	run -1 attach one.service --policy policyOne
	run -0 detach one.service
	nothing_but "$LIB/one.service"
}

@test "what others wrote stays" {
	unit one.service
	mkdir -p "$ETC/one.service.d"
	echo "# mine" > "$ETC/one.service.d/override.conf"
	run -0 attach one.service --policy policyOne
	run -0 detach one.service
	nothing_but "$LIB/one.service" "$ETC/one.service.d/override.conf"
	echo "# mine, too" > "$ETC/one.service.d/50-usmd.conf"
	run -1 attach one.service --policy policyOne
	[[ $output == *"not of usmctl's making"* ]]
	[ -z "$(rules)" ]
	run -1 detach one.service
	[[ $output == *"left alone"* ]]
	grep -qx "# mine, too" "$ETC/one.service.d/50-usmd.conf"
}

@test "a template, and an instance of it" {
	unit many@.service
	run -0 attach many@.service --policy policyOne
	run -0 attach many@one.service --policy policyOne --limit 16M
	nothing_but "$LIB/many@.service" "$ETC/many@.service.d/50-usmd.conf" \
		"$ETC/many@one.service.d/50-usmd.conf"
	[ "$(rules)" = $'unit:many@.service policyOne 0\nunit:many@one.service policyOne 16777216' ]
	run -0 detach many@.service
	[ "$(rules)" = "unit:many@one.service policyOne 16777216" ]
	run -0 detach many@one.service
	nothing_but "$LIB/many@.service"
}

@test "what is no service is refused, and nothing is written" {
	local name

	unit one.service
	unit one.socket
	for name in one one.socket ../one.service /etc/one.service one.service/ "one .service" .service \
		@.service "one.service.d/x" "" "a%n.service"; do
		run -2 attach "$name" --policy policyOne
		[[ $output == *"is no service"* ]]
		run -2 detach "$name"
	done
	run -1 attach other.service --policy policyOne
	[[ $output == *"there is no unit other.service"* ]]
	ln -s /dev/null "$LIB/masked.service"
	run -1 attach masked.service --policy policyOne
	[[ $output == *"is masked"* ]]
	run -2 attach one.service
	[[ $output == *"--policy"* ]]
	run -2 attach one.service --policy none
	run -2 attach one.service --policy policyOne --limit much
	run -2 usmctl attach-unit --root relative one.service --policy policyOne
	[ -z "$(rules)" ]
	nothing_but "$LIB/one.service" "$LIB/one.socket"
}

@test "a policy that is not there, or no usmd: nothing is written" {
	unit one.service
	run -1 attach one.service --policy no-such-policy
	[[ $output == *"no policy 'no-such-policy'"* ]]
	nothing_but "$LIB/one.service"
	run -0 attach one.service --policy policyOne
	stop_usmd
	# To get rid of the library must be possible at any time.
	run -1 detach one.service
	[[ $output == *"the rule for unit:one.service is still there"* ]]
	nothing_but "$LIB/one.service"
	run -1 attach one.service --policy policyOne
	nothing_but "$LIB/one.service"
}

@test "a rule of the administrator's own file stays" {
	unit one.service
	run -0 attach one.service --policy policyOne
	echo "process unit:one.service policyOne" >> "$T/usmd.conf"
	rm "$T/run/conf.d/50-usmctl.conf"
	run -0 usmctl reload
	run -0 detach one.service
	[[ $output == *"usmd.conf:"* ]]
	[ "$(rules)" = "unit:one.service policyOne 0" ]
	nothing_but "$LIB/one.service"
}

@test "a folder that cannot be written" {
	unit one.service
	mkdir -p "${ETC%/*}"
	touch "$ETC"
	run -1 attach one.service --policy policyOne
	[[ $output == *"cannot write"* ]]
	[ -z "$(rules)" ]
}

@test "settings that only systemd understands are refused, by their names" {
	local line

	for line in SystemCallFilter=@system-service "RestrictAddressFamilies = AF_INET" RootDirectory=/x \
		EnvironmentFile=/x InaccessiblePaths=/run "Environment=A=1 LD_PRELOAD=/x.so"; do
		unit one.service "$line"
		run -1 attach one.service --policy policyOne
		[[ $output == *"$LIB/one.service"* ]]
		[[ $output == *"systemd"* ]]
	done
	nothing_but "$LIB/one.service"
	[ -z "$(rules)" ]
}

@test "who is not root changes no unit" {
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" attach-unit one.service --policy policyOne
	[[ $output == *"only root"* ]]
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" detach-unit one.service
	[[ $output == *"only root"* ]]
	# His own files are his, but not the rule.
	unit one.service
	chmod -R a+rwX "$R"
	run -1 as $UNPRIVILEGED "$T/bin/usmctl" attach-unit --root "$R" one.service --policy policyOne
	nothing_but "$LIB/one.service"
	[ -z "$(rules)" ]
}

@test "all system calls of the preload library are in the list" {
	local listed used

	listed=$(sed -n '/^static const char \*const tagger_calls/,/^};/p' "$ROOT/usmctl/drop-in.c" |
		grep -o '"[a-z0-9_]*"' | tr -d '"' | sort)
	used=$({ grep -rhoE 'SYS_[a-z0-9_]+' "$ROOT/usmd/tagger" | sed 's/SYS_//'
		# opendir() and readdir() in libc.
		printf '%s\n' fstat newfstatat getdents64; } | sort -u)
	[ "$(wc -l <<< "$used")" -gt 30 ]
	diff <(echo "$listed") <(echo "$used")
}

@test "bash completes units and options" {
	requires_command bash
	run -0 bash -c '. "$1/usmctl/completion/usmctl.bash"
		_init_completion() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword - 1]}; }
		COMP_WORDS=(usmctl attach-unit one.service --) COMP_CWORD=3; _usmctl; echo "${COMPREPLY[@]}"' - "$ROOT"
	[[ $output == *--policy*--limit*--runtime*--root* ]]
}
