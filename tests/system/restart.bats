# SPDX-License-Identifier: LGPL-2.1-or-later
# The service ends and comes back under programs that check their memory: they go on with their
# pages, or wait for it, or are killed with an entry. Nobody reads zeros.
bats_require_minimum_version 1.5.0

load lib

# A usmd that does not know the arena of the one that is installed.
OTHER=/usm/build/tests/usmd-other-arena

setup() {
	system_setup
	declare -gA PROGRAMS=()
	cp /usr/sbin/usmd "$T/usmd"
}

teardown() {
	local pid

	for pid in "${PROGRAMS[@]}"; do
		kill -KILL "$pid" 2>/dev/null || :
	done
	install_binary "$T/usmd"
	system_teardown
}

# As a package does it: the path names another file, the old one stays as long as it runs.
install_binary() {
	cp "$1" /usr/sbin/.usmd.new
	mv /usr/sbin/.usmd.new /usr/sbin/usmd
}

# program NAME COMMAND...: in the background; what it says is in $T/NAME.out.
program() {
	local name=$1

	shift
	timeout -k 5 150 usmctl run -- "$@" > "$T/$name.out" 2>&1 </dev/null 3>&- &
	PROGRAMS[$name]=$!
}

# Programs that check their memory, for so many seconds; in a pool of 32 MiB they have pages on swap.
load_start() {
	start_usmd "memory 32M" "default policyOne" "grace 3"
	program torture "$PROGS/torture" "$1" 3 4096 5
	program stressapptest stressapptest -s "$1" -M 64 -m 1 -W
	program events "$PROGS/events" "$1"
	wait_for 30 has_swapped torture
	wait_for 30 has_swapped stressapptest
}

has_swapped() {
	[ "$(timeout 20 usmctl list processes --json |
		jq "[.processes[] | select(.name == \"$1\" and .swapped > 500)] | length")" -gt 0 ]
}

# hold_start: a program of 64 MiB in a pool of 16, that does what it is told by "hold".
hold_start() {
	start_usmd "memory 16M" "default policyOne" "grace 3"
	mkfifo "$T/hold.in"
	timeout -k 5 150 usmctl run -- "$PROGS/hold" 64 < "$T/hold.in" > "$T/hold.out" 2>&1 3>&- &
	PROGRAMS[hold]=$!
	exec 7> "$T/hold.in"
	wait_for 60 grep -q ready "$T/hold.out"
	has_swapped hold
	OKS=0
}

# hold COMMAND: told, not waited for.
hold() {
	echo "$1" >&7
	OKS=$((OKS + 1))
}

holds() {
	[ "$(grep -c '^ok$' "$T/hold.out")" -eq "$OKS" ]
}

hold_end() {
	exec 7>&-
	ends hold
}

has_ended() {
	! kill -0 "$1" 2>/dev/null
}

# ends NAME: in its time, and none of its bytes was wrong. A forked child says so, too.
ends() {
	local status=0

	wait_for 90 has_ended "${PROGRAMS[$1]}" || return 1
	wait "${PROGRAMS[$1]}" || status=$?
	unset "PROGRAMS[$1]"
	if [ $status -ne 0 ] || grep -E 'failed:|holds|[1-9]+ wrong|miscompare|Status: FAIL' "$T/$1.out"; then
		echo "$1: status $status; the end of what it said:"
		tail -n 20 "$T/$1.out"
		return 1
	fi
}

all_end_well() {
	local name

	for name in "${!PROGRAMS[@]}"; do
		ends "$name"
	done
	[ "$(status errors)" -eq 0 ]
}

is_back() {
	[ "$(property ActiveState)" = active ] && [ "$(property MainPID)" != "$MAIN" ] && usmctl status
}

# comes_back COMMAND...: it ends the service's main process, and systemd starts another.
comes_back() {
	MAIN=$(property MainPID)
	"$@"
	wait_for 60 is_back
	[ "$(status processes)" -gt 0 ]
	[ "$(status slotsUsed)" -gt 0 ]
}

fails_to_start() {
	[ "$(property NRestarts)" -gt "${1:-0}" ] && [ "$(property ActiveState)" = activating ]
}

@test "systemctl restart: programs go on with the pages that they have on swap devices" {
	local i

	load_start 10
	for i in 1 2 3 4; do
		timeout 60 systemctl restart usmd
		[ "$(status processes)" -ge 3 ]
		[ "$(status slotsUsed)" -gt 0 ]
		sleep 1
	done
	[ "$(journal -o cat | grep -c 'programs with .* MiB on swap devices wait for the next usmd')" -eq 4 ]
	all_end_well
}

@test "the main process is killed, and all of usmd is: programs go on with their pages" {
	local i

	drop_in "[Service]" "RestartSec=100ms" "RestartSteps=0"
	load_start 12
	for i in 1 2 3; do
		comes_back systemctl kill --kill-whom=main -s KILL usmd
		sleep 0.$i
		comes_back systemctl kill -s KILL usmd
		sleep 0.$i
	done
	all_end_well
}

# usmd is stopped, and a process of "hold" waits in clone() for it.
stops_in_fork() {
	local pid

	! holds || hold fork
	systemctl kill -s STOP usmd
	sleep 0.05
	for pid in $(pgrep -x hold); do
		! grep -q '^56 ' "/proc/$pid/syscall" || return 0
	done
	systemctl kill -s CONT usmd
	return 1
}

@test "all of usmd is killed while a program forks: children have their parent's pages" {
	local i

	drop_in "[Service]" "RestartSec=100ms" "RestartSteps=0"
	hold_start
	for i in 1 2; do
		wait_for 30 stops_in_fork
		comes_back systemctl kill -s KILL usmd
		wait_for 60 holds
	done
	hold_end
	[ "$(status errors)" -eq 0 ]
}

@test "the watchdog expires: programs go on with their pages" {
	drop_in "[Service]" "WatchdogSec=2" "TimeoutAbortSec=2"
	hold_start
	comes_back systemctl kill --kill-whom=main -s STOP usmd
	in_journal "Watchdog timeout"
	hold check
	wait_for 30 holds
	hold_end
}

@test "usmd cannot be started again and again: programs wait, and go on with their pages" {
	drop_in "[Service]" "RestartSec=200ms" "RestartSteps=0" "ExecStartPre=/bin/sh -c '! test -e $T/broken'"
	hold_start
	touch "$T/broken"
	systemctl kill -s KILL usmd
	wait_for 30 fails_to_start 3
	hold check
	sleep 1
	run ! holds
	rm "$T/broken"
	wait_for 30 holds
	hold_end
}

@test "a restart whose stop times out: programs go on with their pages" {
	drop_in "[Service]" "TimeoutStopSec=1"
	hold_start
	kill -STOP "$(status enginePid)"
	comes_back timeout 60 systemctl restart usmd
	in_journal "timed out"
	hold check
	wait_for 30 holds
	hold_end
}

@test "systemctl stop brings the pages back, and programs go on unmanaged" {
	hold_start
	timeout 60 systemctl stop usmd
	[ "$(property NFileDescriptorStore)" -eq 0 ]
	hold check
	wait_for 30 holds
	hold_end
}

# What is swapped stays there as long as systemd keeps the descriptors; Debian 12's systemd drops
# them when the service has failed.
@test "a stop that times out: programs wait for the next start, or are killed and say so" {
	local status=0

	drop_in "[Service]" "TimeoutStopSec=1"
	hold_start
	kill -STOP "$(status enginePid)"
	timeout 60 systemctl stop usmd
	in_journal "timed out"
	hold check
	if [ "$(property FileDescriptorStorePreserve)" = yes ]; then
		sleep 4
		run ! holds
		systemctl start usmd
		wait_for 30 holds
		hold_end
	else
		wait_for 30 has_ended "${PROGRAMS[hold]}"
		wait "${PROGRAMS[hold]}" || status=$?
		unset "PROGRAMS[hold]"
		[ "$status" -eq 137 ]
		in_journal "belongs to a usmd that ended without handing it over; it is killed"
	fi
}

@test "an upgrade: the new binary takes over" {
	hold_start
	cp /usr/sbin/usmd "$T/new"
	echo >> "$T/new"
	install_binary "$T/new"
	# The old one runs on as it is.
	run -0 cat "/proc/$(property MainPID)/comm"
	comes_back timeout 60 systemctl restart usmd
	cmp "/proc/$(property MainPID)/exe" "$T/new"
	hold check
	wait_for 30 holds
	hold_end
}

@test "an upgrade to another arena: packages see it, and a restart brings the pages back" {
	drop_in "[Service]" "Environment=USMD_POLICY_DIR=$(dirname /usr/lib/*/usmd/policies/policyOne.so)"
	hold_start
	install_binary $OTHER
	run -1 usmd --takes-over "$(cat /run/usmd/arena)"
	run -0 "$T/usmd" --takes-over "$(cat /run/usmd/arena)"
	timeout 60 systemctl restart usmd
	in_journal "cannot take the managed programs over"
	[ "$(status processes)" -eq 0 ]
	hold check
	wait_for 30 holds
	hold_end
	# And back.
	run -1 "$T/usmd" --takes-over "$(cat /run/usmd/arena)"
	PROGRAMS[second]=""
	timeout -k 5 100 usmctl run -- "$PROGS/torture" 5 1 8192 1 > "$T/second.out" 2>&1 3>&- &
	PROGRAMS[second]=$!
	wait_for 30 has_swapped torture
	install_binary "$T/usmd"
	timeout 60 systemctl restart usmd
	all_end_well
}

@test "usmd is killed, and another arena's is installed: it leaves the programs to the right one" {
	drop_in "[Service]" "RestartSec=200ms" "RestartSteps=0"
	hold_start
	install_binary $OTHER
	systemctl kill -s KILL usmd
	wait_for 30 in_journal "Programs wait for a usmd that knows their pages"
	wait_for 30 fails_to_start 2
	hold check
	sleep 1
	run ! holds
	install_binary "$T/usmd"
	wait_for 30 holds
	hold_end
}

@test "a restart with an error in the configuration: the pages come back first" {
	hold_start
	echo "nonsense 1" >> "$CONF"
	run ! timeout 60 systemctl restart usmd
	in_journal "its configuration has errors"
	in_journal "$CONF:[0-9]*: .*nonsense"
	hold check
	wait_for 30 holds
	hold_end
}

@test "the configuration breaks while usmd is killed: programs wait until it is right" {
	drop_in "[Service]" "RestartSec=200ms" "RestartSteps=0"
	hold_start
	echo "nonsense 1" >> "$CONF"
	systemctl kill -s KILL usmd
	wait_for 30 fails_to_start 2
	hold check
	sed -i '$d' "$CONF"
	wait_for 30 holds
	hold_end
}

@test "a descriptor store too small: usmd says so, and a restart brings the pages back" {
	drop_in "[Service]" "FileDescriptorStoreMax=8"
	hold_start
	in_journal "FileDescriptorStoreMax=8 of usmd.service is too small"
	timeout 60 systemctl restart usmd
	[ "$(status processes)" -eq 0 ]
	hold check
	wait_for 30 holds
	hold_end
}

# Managed or not.
all_sleep() {
	local managed unmanaged

	managed=$(timeout 20 usmctl list processes --json | jq '[.processes[] | select(.name == "sleep")] | length')
	unmanaged=$(cat "$T"/sleep-*.out | grep -c "runs unmanaged")
	[ $((managed + unmanaged)) -eq 20 ]
}

@test "a descriptor store that is full: programs run unmanaged and say why; the others survive" {
	local i

	drop_in "[Service]" "FileDescriptorStoreMax=72"
	hold_start
	for i in {1..20}; do
		program "sleep-$i" sleep 8
	done
	wait_for 60 all_sleep
	grep -q "runs unmanaged: systemd's descriptor store is full" "$T"/sleep-*.out
	in_journal "runs unmanaged: systemd's descriptor store is full"
	comes_back systemctl kill -s KILL usmd
	hold check
	wait_for 30 holds
	hold_end
	all_end_well
}

@test "redis under load, usmd restarted and killed: its content stays the same" {
	local dir=$T/redis before after i cli=(timeout 60 redis-cli -s "$T/redis/sock")

	drop_in "[Service]" "RestartSec=100ms" "RestartSteps=0"
	start_usmd "memory 32M" "default policyOne"
	mkdir "$dir"
	program redis redis-server --port 0 --unixsocket "$dir/sock" --dir "$dir" --save "" \
		--enable-debug-command yes --stop-writes-on-bgsave-error no
	wait_for 30 "${cli[@]}" ping
	"${cli[@]}" eval "for i = 1, 20000 do
		redis.call('set', 'key:' .. i, string.rep(redis.sha1hex(i), 100)) end" 0
	before=$("${cli[@]}" debug digest)
	timeout 100 redis-benchmark -s "$dir/sock" -q -t lpush,lpop -n 100000 -d 1000 -c 8 >/dev/null 2>&1 3>&- &
	BACKGROUND+=($!)
	for i in 1 2 3; do
		# It forks while usmd ends.
		"${cli[@]}" bgsave
		comes_back timeout 60 systemctl restart usmd
		"${cli[@]}" --raw lastsave
		comes_back systemctl kill -s KILL usmd
	done
	wait "${BACKGROUND[-1]}"
	"${cli[@]}" del mylist
	after=$("${cli[@]}" debug digest)
	note "digest $before"
	[[ $before =~ ^[0-9a-f]{40}$ && $before != 0000* ]]
	[ "$before" = "$after" ]
	"${cli[@]}" shutdown nosave
	ends redis
}

@test "usmctl swap add: a swap file is there again after a stop, a restart and a kill" {
	hold_start
	usmctl swap add /var/lib/usmd/more 64M --priority 5
	comes_back systemctl kill -s KILL usmd
	usmctl list swap --json | jq -e '.swaps[] | select(.path == "/var/lib/usmd/more" and .priority == 5)'
	hold check
	wait_for 30 holds
	timeout 60 systemctl stop usmd
	hold_end
	systemctl start usmd
	usmctl list swap --json | jq -e '.swaps[] | select(.path == "/var/lib/usmd/more" and .priority == 5)'
	timeout 60 usmctl swap remove /var/lib/usmd/more
	systemctl restart usmd
	run ! grep -q more <(usmctl list swap --json)
}
