# SPDX-License-Identifier: LGPL-2.1-or-later
# Helpers of the system tests. They run as root in a throw-away machine (run.sh) where usmd is
# installed and systemd is process 1. Sourced by bats files.
# shellcheck shell=bash

# Programs that tests/native uses as well.
PROGS=/usm/build/tests
CONF=/etc/usmd/conf.d/90-test.conf
UNPRIVILEGED=nobody
export LC_ALL=C

note() {
	echo "# $*"
}

die() {
	echo "FAILED: $*" >&2
	return 1
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local end=$((SECONDS + $1))

	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || { die "waited in vain for: $*"; return 1; }
		sleep 0.1
	done
}

# system_setup: usmd as it is after its installation, and not running.
system_setup() {
	# Where swap files may lie: /var/lib is no overlay.
	T=$(mktemp -d /var/lib/usmd-test.XXXXXX)
	chmod 755 "$T"
	BACKGROUND=()
	SINCE=$(date +%s.%N)
	usmd_as_installed
}

# A failed test shows what the journal says since its beginning.
system_teardown() {
	local pid

	if [ -z "${BATS_TEST_COMPLETED:-}" ]; then
		if [ -n "${output:-}" ]; then
			echo "--- the end of the last command's output:"
			tail -n 20 <<< "$output"
		fi
		echo "--- the end of the journal:"
		journalctl -q -o short-monotonic --no-hostname --since "@$SINCE" | tail -n 60
	fi
	for pid in "${BACKGROUND[@]}"; do
		kill -KILL "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
	done
	rm -rf "$T"
}

# Stopped, with the configuration and the directories of a fresh installation.
usmd_as_installed() {
	systemctl stop usmd.socket usmd.service
	systemctl reset-failed usmd.socket usmd.service 2>/dev/null || :
	# What a stop that failed has left; Debian 12's systemd keeps nothing.
	systemctl clean --what=fdstore usmd.service 2>/dev/null || :
	rm -rf /run/systemd/system/usmd.service.d /etc/systemd/system/usmd.service.d
	rm -rf /var/lib/usmd /run/usmd
	find /etc/usmd/conf.d -type f -delete
	systemctl daemon-reload
}

# configure LINE...: what usmd reads besides its shipped configuration. A quarter of this machine's
# memory is more than a test needs, and making the swap file for it takes seconds.
configure() {
	printf '%s\n' "memory 128M" "swap /var/lib/usmd/swap 256M" "$@" > "$CONF"
}

# drop_in LINE...: of usmd.service, for this test.
drop_in() {
	mkdir -p /run/systemd/system/usmd.service.d
	printf '%s\n' "$@" > /run/systemd/system/usmd.service.d/90-test.conf
	systemctl daemon-reload
}

# start_usmd [LINE...]: the service, with these lines of configuration.
start_usmd() {
	configure "$@"
	systemctl start usmd
}

# A number or text of GetStatus by its name.
status() {
	timeout 20 usmctl status --json | jq -r ".$1"
}

# property NAME: of usmd.service.
property() {
	systemctl show --value -p "$1" usmd.service
}

# journal ARGUMENT...: of usmd since the test's beginning.
journal() {
	journalctl --sync
	journalctl -q --since "@$SINCE" -u usmd.service "$@"
}

# in_journal PATTERN: an entry's text matches it.
in_journal() {
	journal -o cat | grep -qE -- "$1"
}

# --- a program that checks its memory whenever it is told to ------------------------------------------

# hold_start MIB [COMMAND...]: managed, by COMMAND (usmctl run --); HOLD is its pid.
hold_start() {
	local size=$1

	shift
	[ $# -gt 0 ] || set -- usmctl run --
	[ -x "$T/hold" ] || cp "$PROGS/hold" "$T/"
	mkfifo "$T/in"
	"$@" "$T/hold" "$size" < "$T/in" > "$T/out" 2> "$T/err" 3>&- &
	HOLD=$!
	BACKGROUND+=("$HOLD")
	exec 4> "$T/in"
	wait_for 60 grep -q ready "$T/out" || { cat "$T/err"; return 1; }
	[ ! -s "$T/err" ] || { cat "$T/err"; return 1; }
}

hold_answered() {
	[ "$(grep -c ok "$T/out")" -gt "$1" ]
}

# All of its bytes are what they were.
hold_check() {
	local before

	before=$(grep -c ok "$T/out" || :)
	echo check >&4
	wait_for 60 hold_answered "$before" || { cat "$T/err"; return 1; }
}

# Pages of it that are on swap.
hold_swapped() {
	usmctl list processes --json | jq ".processes[] | select(.pid == $HOLD) | .swapped"
}

has_ended() {
	local state

	state=$(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) || return 0
	[[ -z $state || $state == Z* || $state == X* ]]
}
