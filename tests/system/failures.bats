# SPDX-License-Identifier: LGPL-2.1-or-later
# The service when something is wrong: it hangs, is killed, cannot be stopped, or does not find what it
# needs. What becomes of swapped pages over a restart is in store.bats.
bats_require_minimum_version 1.5.0

load lib

setup() {
	system_setup
}

teardown() {
	exec 4>&-
	umount "$T/meminfo" /var/lib/usmd 2>/dev/null || :
	system_teardown
}

# is_new MAIN: the service runs with another main process.
is_new() {
	[ "$(property MainPID)" -ne "$1" ] && [ "$(property MainPID)" -ne 0 ] && usmctl status
}

# New programs are managed, and nothing of the old usmd is left.
assert_works() {
	run -0 timeout 60 usmctl run -- "$PROGS/torture" 1 1 512 1
	[[ $output != *unmanaged* ]]
	[ "$(status processes)" -ge 0 ]
	[ "$(pgrep -c -x 'usmd|usmd-engine')" -eq 2 ]
	[ "$(property NFileDescriptorStore)" -ge 0 ]
}

# --- it hangs, or is killed -------------------------------------------------------------------------

@test "a hung engine is the keeper's business: systemd does not notice" {
	local main engine

	start_usmd "default policyOne"
	main=$(property MainPID)
	engine=$(status enginePid)
	hold_start 32
	kill -STOP "$engine"
	wait_for 40 in_journal "The engine hangs; killing it"
	wait_for 20 usmctl status
	hold_check
	[ "$(status engineRestarts)" -eq 1 ]
	[ "$(property MainPID)" -eq "$main" ]
	[ "$(property NRestarts)" -eq 0 ]
	run ! in_journal "[Ww]atchdog"
}

@test "a hung keeper: the watchdog expires, and the service comes back" {
	local main engine

	drop_in "[Service]" "WatchdogSec=3s"
	start_usmd "default policyOne"
	main=$(property MainPID)
	engine=$(status enginePid)
	kill -STOP "$main"
	wait_for 60 is_new "$main"
	in_journal "[Ww]atchdog timeout"
	[ "$(property NRestarts)" -eq 1 ]
	has_ended "$engine"
	assert_works
}

@test "the watchdog is fed: it does not expire while all is well, nor while an engine is replaced" {
	local i

	drop_in "[Service]" "WatchdogSec=3s"
	start_usmd "default policyOne"
	hold_start 32
	# Longer than two of its periods.
	for i in 1 2 3 4; do
		kill -KILL "$(status enginePid)"
		sleep 2
		hold_check
	done
	[ "$(property NRestarts)" -eq 0 ]
	[ "$(status engineRestarts)" -eq "$i" ]
}

@test "the main process is killed: the service comes back at once" {
	local main engine

	start_usmd "default policyOne"
	main=$(property MainPID)
	engine=$(status enginePid)
	kill -KILL "$main"
	wait_for 30 is_new "$main"
	has_ended "$engine"
	[ "$(property NRestarts)" -eq 1 ]
	assert_works
}

@test "all of it is killed: systemctl kill -s KILL" {
	local main

	start_usmd "default policyOne"
	main=$(property MainPID)
	systemctl kill -s KILL usmd.service
	wait_for 30 is_new "$main"
	assert_works
}

@test "systemctl kill: SIGTERM to both processes stops it once, and brings pages back" {
	start_usmd "default policyOne" "memory 16M"
	hold_start 32
	[ "$(hold_swapped)" -gt 1000 ]
	systemctl kill usmd.service
	wait_for 60 is_stopped
	[ "$(property Result)" = success ]
	run ! in_journal "by force"
	hold_check
}

is_stopped() {
	[ "$(property ActiveState)" = inactive ]
}

@test "it fails to start again and again: systemd goes on trying, and it comes back" {
	start_usmd "default policyOne"
	# The start fails, not the programs that run.
	drop_in "[Service]" "ExecStartPre=/usr/bin/test ! -e $T/fail" "RestartSec=50ms" "$(no_back_off)"
	touch "$T/fail"
	kill -KILL "$(property MainPID)"
	# More often than the limit that systemd has without StartLimitIntervalSec=0.
	wait_for 60 has_tried 7
	[ "$(property ActiveState)" = activating ]
	rm "$T/fail"
	wait_for 60 systemctl is-active -q usmd.service
	assert_works
}

# A setting for tests that cannot wait for a pause that grows.
no_back_off() {
	[ -z "$(property RestartSteps)" ] || echo RestartSteps=0
}

has_tried() {
	[ "$(property NRestarts)" -ge "$1" ]
}

# --- it is stopped ------------------------------------------------------------------------------------

@test "systemctl stop: pages come back, and the program goes on unmanaged" {
	start_usmd "default policyOne" "memory 16M"
	hold_start 32
	[ "$(hold_swapped)" -gt 1000 ]
	systemctl stop usmd.service
	[ "$(property Result)" = success ]
	run ! pgrep -x 'usmd|usmd-engine'
	in_journal "hold \(pid $HOLD\) is no longer managed"
	! grep -qE ' u[mw]( |$)' "/proc/$HOLD/smaps"
	hold_check
}

# The service's idea of the machine's memory.
memory_available() {
	echo "MemAvailable: $1 kB" > "$T/meminfo"
}

start_short_of_memory() {
	memory_available 1000000
	drop_in "[Service]" "BindReadOnlyPaths=$T/meminfo:/proc/meminfo" "$@"
	start_usmd "default policyOne" "memory 16M"
	hold_start 32
	[ "$(hold_swapped)" -gt 1000 ]
	memory_available 2000
}

@test "a stop that finds no memory says so, waits for some, and ends well" {
	local stop

	start_short_of_memory
	systemctl stop usmd.service 3>&- 4>&- &
	stop=$!
	wait_for 20 in_journal "Cannot stop yet: [0-9]+ MiB are on swap devices, and only 1 MiB"
	# It is served as before.
	hold_check
	[ "$(property ActiveState)" = deactivating ]
	memory_available 1000000
	wait "$stop"
	[ "$(property Result)" = success ]
	hold_check
}

@test "a stop that finds no memory, by force: the program is killed, and an entry says why" {
	local stop

	start_short_of_memory
	systemctl stop usmd.service 3>&- 4>&- &
	stop=$!
	wait_for 20 in_journal "Cannot stop yet"
	# As the message says.
	systemctl kill --kill-whom=main usmd.service
	wait "$stop"
	[ "$(property Result)" = success ]
	in_journal "hold \(pid $HOLD\): usmd is stopped by force"
	wait_for 20 has_ended "$HOLD"
	[ ! -s "$T/err" ] || ! grep -q "failed:\|holds" "$T/err"
}

@test "a stop that finds no memory has a time limit; no byte of the program is wrong afterwards" {
	local before main

	start_short_of_memory "TimeoutStopSec=6s"
	before=$(grep -c ok "$T/out" || :)
	main=$(property MainPID)
	systemctl stop usmd.service
	in_journal "Cannot stop yet"
	in_journal "State 'stop-sigterm' timed out. Killing"
	in_journal "Failed with result 'timeout'"
	has_ended "$main"
	memory_available 1000000
	# Where systemd keeps what usmd had stored, that has the program's connection as well, and it waits
	# for the next start, which carries on. Otherwise its agent comes back to the socket, which starts
	# the next usmd, and that has it killed.
	if [ "$(property FileDescriptorStorePreserve)" = yes ]; then
		systemctl start usmd.service
		wait_for 30 is_new "$main"
		hold_check
	else
		wait_for 30 is_new "$main"
		echo check >&4 || :
		wait_for 60 is_right_or_gone "$before"
	fi
	! grep -qE 'failed:|holds' "$T/err" || { cat "$T/err"; return 1; }
}

is_right_or_gone() {
	hold_answered "$1" || has_ended "$HOLD"
}

# --- what it needs is not there -------------------------------------------------------------------------

@test "a kernel without userfaultfd: it says so, and is not started again and again" {
	drop_in "[Service]" "InaccessiblePaths=/dev/userfaultfd"
	run ! systemctl start usmd.service
	in_journal "Cannot open /dev/userfaultfd: .*usmd needs Linux 6.1 or later with CONFIG_USERFAULTFD"
}

@test "no /dev/userfaultfd at all: status 69, which systemd does not try again" {
	mv /dev/userfaultfd /dev/userfaultfd.away 2>/dev/null || hide_userfaultfd
	run ! systemctl start usmd.service
	mv /dev/userfaultfd.away /dev/userfaultfd 2>/dev/null || :
	in_journal "Cannot open /dev/userfaultfd: No such file"
	[ "$(property ExecMainStatus)" -eq 69 ]
	[ "$(property ActiveState)" = failed ]
	[ "$(property NRestarts)" -eq 0 ]
}

# It is a mount of this machine.
hide_userfaultfd() {
	drop_in "[Service]" "PrivateDevices=yes"
}

@test "io_uring is refused: swap is read and written by pread and pwrite" {
	drop_in "[Service]" "SystemCallFilter=~io_uring_setup"
	start_usmd "default policyOne" "memory 16M"
	[ "$(status io)" = pread ]
	hold_start 32
	hold_check
	[ "$(status errors)" -eq 0 ]
	[ "$(usmctl list swap --json | jq '[.swaps[].writes] | add')" -gt 1000 ]
}

@test "errors in the configuration: it does not start, names file and line, and is not tried again" {
	run ! start_usmd "nonsense 1"
	in_journal "90-test.conf:3: unknown directive 'nonsense'"
	[ "$(property ExecMainStatus)" -eq 78 ]
	[ "$(property ActiveState)" = failed ]
}

@test "a runtime directory of somebody else's: the service takes it over, by hand usmd refuses it" {
	mkdir -p /run/usmd
	chown nobody /run/usmd
	chmod 777 /run/usmd
	run -1 timeout 20 /usr/sbin/usmd
	[[ $output == *"The runtime directory /run/usmd belongs to user "*"chown root /run/usmd"* ]]
	[ ! -e /run/usmd/attach ]
	start_usmd
	[ "$(stat -c '%a %U' /run/usmd)" = "755 root" ]
	is_new 1
}

@test "two instances: the second one says so and ends, the service goes on" {
	start_usmd "default policyOne"
	hold_start 32
	run -1 timeout 20 /usr/sbin/usmd
	[[ $output == *"Another usmd runs in /run/usmd"* ]]
	hold_check
	run -0 usmctl status
	[ "$(property NRestarts)" -eq 0 ]
}

@test "the first instance was started by hand: the service waits until it has ended" {
	configure
	mkdir -p /run/usmd
	/usr/sbin/usmd </dev/null >"$T/log" 2>&1 3>&- &
	BACKGROUND+=($!)
	wait_for 20 usmctl status
	run ! systemctl start usmd.service
	in_journal "Another usmd runs in /run/usmd"
	kill -TERM "${BACKGROUND[0]}"
	wait "${BACKGROUND[0]}"
	wait_for 40 systemctl is-active -q usmd.service
	is_new 1
}

# What is shipped has no swap line, but makes a swap file for the first program.
start_with_default_swap() {
	printf '%s\n' "memory 16M" "default policyOne" > "$CONF"
	systemctl start usmd.service
}

assert_without_swap() {
	in_journal "No swap file: .*$1.*usmctl swap add"
	run -0 journal -o cat USM_EVENT=swap
	[[ $output == *"No swap file"* ]]
	hold_check
	[ "$(status slotsTotal)" -eq 0 ]
	[ "$(status exceeded)" -gt 0 ]
	run ! usmctl swap add /var/lib/usmd/more 16M
	[[ ${output,,} == *"$1"* ]]
	[ "$(property NRestarts)" -eq 0 ]
}

@test "a read-only state directory: programs run without swap, and an entry says why" {
	mkdir -p /var/lib/usmd
	drop_in "[Service]" "ReadOnlyPaths=/var/lib/usmd"
	start_with_default_swap
	hold_start 32
	assert_without_swap "read-only"
}

@test "a full state directory: programs run without swap, and an entry says why" {
	mkdir -p /var/lib/usmd
	mount -t tmpfs -o size=32M,mode=700 none /var/lib/usmd
	dd if=/dev/zero of=/var/lib/usmd/other bs=1M 2>/dev/null || :
	start_with_default_swap
	hold_start 32
	assert_without_swap "no space"
	# Swap elsewhere is what the entry says.
	exec 4>&-
	systemctl stop usmd.service
}

@test "a swap file that the configuration names cannot be had: it does not start, and goes on trying" {
	mkdir -p "$T/swap"
	drop_in "[Service]" "ReadWritePaths=$T/swap" "RestartSec=100ms"
	run ! start_usmd "swap $T/swap/folder/file 16M"
	in_journal "Swap file $T/swap/folder/file: "
	mkdir "$T/swap/folder"
	wait_for 60 systemctl is-active -q usmd.service
	[ "$(usmctl list swap --json | jq '.swaps | length')" -eq 2 ]
}

@test "a swap file elsewhere than in the state directory needs a drop-in, and the error says so" {
	mkdir -p "$T/swap"
	start_usmd
	run ! usmctl swap add "$T/swap/file" 16M
	[[ $output == *"ReadWritePaths="* ]]
	drop_in "[Service]" "ReadWritePaths=$T/swap"
	systemctl restart usmd.service
	usmctl swap add "$T/swap/file" 16M
	[ "$(usmctl list swap --json | jq '.swaps | length')" -eq 2 ]
}
