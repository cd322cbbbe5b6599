# SPDX-License-Identifier: LGPL-2.1-or-later
# usmd.service and usmd.socket as they are installed: the units themselves, activation, sandbox.
bats_require_minimum_version 1.5.0

load lib

UNITS=/usr/lib/systemd/system

setup() {
	system_setup
}

teardown() {
	system_teardown
}

# --- the units -----------------------------------------------------------------------------------

@test "systemd knows every key of the units, and finds every program" {
	run -0 systemd-analyze verify --man=no $UNITS/usmd.service $UNITS/usmd.socket
	[ -z "$output" ]
	# It would have complained.
	sed 's/^KillMode=/KilMode=/' $UNITS/usmd.service > "$T/usmd.service"
	run systemd-analyze verify --man=no "$T/usmd.service"
	[[ $output == *"Unknown key"*"KilMode"* ]]
}

@test "every manual page that the units name is installed" {
	local page pages

	pages=$(sed -n 's/^Documentation=//p' $UNITS/usmd.service $UNITS/usmd.socket | tr ' ' '\n' | sort -u)
	[ "$(wc -w <<< "$pages")" -ge 3 ]
	for page in $pages; do
		[[ $page =~ ^man:([a-z.]+)\(([0-9])\)$ ]]
		compgen -G "/usr/share/man/man${BASH_REMATCH[2]}/${BASH_REMATCH[1]}.${BASH_REMATCH[2]}*"
	done
}

@test "systemd-analyze security: 3.0 or better" {
	run -0 systemd-analyze security --no-pager --offline=true --threshold=30 usmd.service
	note "${lines[-1]}"
}

@test "what newer versions of systemd know is in force there, and older ones do not complain" {
	local version

	version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
	start_usmd
	journalctl --sync
	run journalctl -q -b _PID=1 -p warning -o cat
	[ -z "$output" ]
	if [ "$version" -ge 254 ]; then
		[ "$(property FileDescriptorStorePreserve)" = yes ]
		[ "$(property RestartSteps)" -gt 0 ]
		[ "$(property RestartMaxDelayUSec)" = 5s ]
	else
		[ ! -e /run/systemd/generator/usmd.service.d ]
	fi
	[ "$(property FileDescriptorStoreMax)" -ge 4096 ]
	[ "$(property StartLimitIntervalUSec)" = 0 ]
}

@test "/dev/usm is open to the service where usm.ko is installed, and nowhere else" {
	[[ $(property DeviceAllow) != */dev/usm* ]]
	mkdir "$T/bin" "$T/out"
	printf '#!/bin/sh\n[ "$*" = usm ]\n' > "$T/bin/modinfo"
	chmod +x "$T/bin/modinfo"
	PATH=$T/bin:$PATH /usr/lib/systemd/system-generators/usmd-generator "$T/out" "$T/out" "$T/out"
	grep -qx "DeviceAllow=/dev/usm rw" "$T/out/usmd.service.d/20-usm.conf"
}

@test "group usm exists, without members" {
	[[ $(getent group usm) =~ ^usm:[^:]*:[0-9]+:$ ]]
}

@test "tmpfiles.d makes the runtime directory as it should be" {
	rm -rf /run/usmd
	systemd-tmpfiles --create /usr/lib/tmpfiles.d/usmd.conf
	[ "$(stat -c '%n %a %U %G' /run/usmd /run/usmd/conf.d | tr '\n' ' ')" = \
		"/run/usmd 755 root root /run/usmd/conf.d 755 root root " ]
}

@test "the udev rule and the options of the module are well formed" {
	local rule=/usr/lib/udev/rules.d/60-usm.rules

	[ -e "$rule" ] || rule=/lib/udev/rules.d/60-usm.rules
	# udevadm verify is younger than Debian 12.
	if udevadm verify --help >/dev/null 2>&1; then
		run -0 udevadm verify "$rule"
	fi
	run -0 udevadm test --action=add /sys/class/misc/userfaultfd
	# What is said with the number of a line is a complaint: the rule is for another device.
	[[ $output == *60-usm.rules* && ! $output =~ 60-usm.rules:[0-9] ]]
	run -0 modprobe --showconfig
	[[ $output != *usm.conf* ]]
}

@test "usm.ko is not there: the drop-in does no harm, and usmd says what it runs on" {
	[[ " $(property Wants) " == *" modprobe@usm.service "* ]]
	start_usmd
	[ ! -e /sys/module/usm ]
	run -0 journal -o cat
	[[ $output == *"mechanism userfault"* ]]
	[ "$(status mechanism)" = userfault ]
	[[ $(usmctl status) == *"mechanism    userfault"* ]]
}

# --- start, stop, activation ----------------------------------------------------------------------

is_listening() {
	[ -S /run/usmd/io.usmd.Manager ] && [ -S /run/usmd/attach ] &&
		systemctl is-active -q usmd.socket
}

@test "the service brings the sockets, with the rights that everybody may connect" {
	start_usmd
	is_listening
	[ "$(stat -c '%a %U %G' /run/usmd/io.usmd.Manager /run/usmd/attach | sort -u)" = "666 root usm" ]
	[ "$(stat -c '%a %U' /run/usmd)" = "755 root" ]
	[ "$(stat -c '%a %U' /var/lib/usmd)" = "700 root" ]
}

@test "the sockets alone: the first call of usmctl starts the service" {
	systemctl start usmd.socket
	is_listening
	run ! systemctl is-active -q usmd.service
	run -0 usmctl status
	# It answers before systemd has heard that it is ready.
	wait_for 10 systemctl is-active -q usmd.service
}

@test "the sockets alone: a program that attaches starts the service, and is managed" {
	configure "default policyOne"
	systemctl start usmd.socket
	LD_PRELOAD=libusm-tagger.so setsid "$PROGS/torture" 5 2 512 1 > "$T/out" 2>&1 3>&- &
	BACKGROUND+=($!)
	wait_for 30 in_journal "torture \(pid [0-9]+\) is managed by policyOne"
	wait "${BACKGROUND[0]}" || { cat "$T/out"; return 1; }
	systemctl is-active -q usmd.service
}

@test "the service is stopped: its sockets still listen, and the next call starts it again" {
	local main

	start_usmd
	main=$(property MainPID)
	systemctl stop usmd.service
	is_listening
	run -0 usmctl status
	[ "$(property MainPID)" -ne "$main" ]
}

@test "both are stopped: programs run unmanaged, and say so" {
	run -0 env LD_PRELOAD=libusm-tagger.so true
	[[ $output == *"true runs unmanaged"* ]]
	run -125 usmctl run -- true
	[[ $output == *"systemctl start usmd"* ]]
}

@test "the socket's unit without the service's: nothing is started, and who calls learns it" {
	mv $UNITS/usmd.service "$T/"
	systemctl daemon-reload
	run systemctl start usmd.socket
	mv "$T/usmd.service" $UNITS/
	systemctl daemon-reload
	[ "$status" -ne 0 ]
	run ! systemctl is-active -q usmd.socket
}

@test "the service without the socket's unit: usmd makes its sockets itself" {
	mkdir -p /run/systemd/system/usmd.service.d
	mv $UNITS/usmd.socket "$T/"
	sed -e '/usmd.socket/d' $UNITS/usmd.service > /run/systemd/system/usmd.service
	systemctl daemon-reload
	run systemctl start usmd.service
	mv "$T/usmd.socket" $UNITS/
	[ "$status" -eq 0 ]
	run -0 usmctl status
	[ "$(stat -c '%a' /run/usmd/io.usmd.Manager /run/usmd/attach | sort -u)" = 666 ]
	systemctl stop usmd.service
	rm /run/systemd/system/usmd.service
	systemctl daemon-reload
}

# --- what is shipped --------------------------------------------------------------------------------

@test "as it is shipped it changes nothing for any program, until the first assign" {
	# The shipped configuration alone.
	[ -z "$(ls -A /etc/usmd/conf.d)" ]
	systemctl start usmd
	run -0 env LD_PRELOAD=libusm-tagger.so "$PROGS/torture" 1 1 512 1
	[[ $output != *unmanaged* ]]
	run -0 journal -o cat
	[[ $output != *"is managed"* ]]
	[ "$(usmctl list assignments --json | jq '.assignments | length')" -eq 0 ]
	[ "$(usmctl list assignments --json | jq -r .defaultPolicy)" = none ]
	# No swap file is made before there is anybody to swap.
	[ -z "$(ls -A /var/lib/usmd)" ]
	configure # A quarter of the memory would be a large swap file.
	systemctl reload usmd
	usmctl assign torture policyOne
	run -0 env LD_PRELOAD=libusm-tagger.so "$PROGS/torture" 1 1 512 1
	wait_for 10 in_journal "torture \(pid [0-9]+\) is managed by policyOne"
}

@test "idle it uses less than 10 MB" {
	local main engine pss

	systemctl start usmd
	main=$(property MainPID)
	engine=$(status enginePid)
	pss=$(cat "/proc/$main/smaps_rollup" "/proc/$engine/smaps_rollup" |
		awk '$1 == "Pss:" { sum += $2 } END { print sum }')
	note "$pss KiB"
	[ "$pss" -lt 10240 ]
}

# --- the sandbox --------------------------------------------------------------------------------------

# CAP_DAC_READ_SEARCH, CAP_KILL, CAP_IPC_LOCK, CAP_SYS_PTRACE.
NEEDED=0000000000084024

# capabilities PID: the effective, permitted and bounding sets, if all are the same.
capabilities() {
	awk '/^Cap(Eff|Prm|Bnd):/ { print $2 }' "/proc/$1/status" | sort -u
}

@test "keeper and engine have the capabilities that they need, and no other" {
	start_usmd
	[ "$(capabilities "$(property MainPID)")" = $NEEDED ]
	[ "$(capabilities "$(status enginePid)")" = $NEEDED ]
	[ "$(awk '/^Cap(Inh|Amb):/ { print $2 }' "/proc/$(property MainPID)/status" | sort -u)" = 0000000000000000 ]
	# A new engine, too.
	kill -KILL "$(status enginePid)"
	wait_for 20 [ "$(status engineRestarts)" -eq 1 ]
	[ "$(capabilities "$(status enginePid)")" = $NEEDED ]
}

@test "started by hand usmd gives up what it does not need itself" {
	configure
	/usr/sbin/usmd </dev/null >"$T/log" 2>&1 3>&- &
	BACKGROUND+=($!)
	wait_for 20 usmctl status
	[ "$(capabilities $$)" != $NEEDED ]
	[ "$(capabilities "${BACKGROUND[0]}")" = $NEEDED ]
	[ "$(capabilities "$(status enginePid)")" = $NEEDED ]
	kill -TERM "${BACKGROUND[0]}"
	wait "${BACKGROUND[0]}"
}

@test "the sandbox is in force, and a managed program verifies its memory in it" {
	start_usmd
	[ "$(awk '$1 == "NoNewPrivs:" { print $2 }' "/proc/$(status enginePid)/status")" -eq 1 ]
	[ "$(awk '$1 == "Seccomp:" { print $2 }' "/proc/$(status enginePid)/status")" -eq 2 ]
	# Its own network, and its own read-only view of the file systems.
	[ "$(readlink "/proc/$(property MainPID)/ns/net")" != "$(readlink /proc/self/ns/net)" ]
	run ! nsenter -t "$(property MainPID)" -m touch /usr/usmd-test
	run -0 nsenter -t "$(property MainPID)" -m touch /var/lib/usmd/test
	usmctl assign stress-ng policyOne --limit 32M
	run -0 timeout 100 usmctl run -- stress-ng --temp-path "$T" --vm 1 --vm-bytes 64M --vm-method all \
		--verify --oomable --timeout 5
	[ "$(status evictions)" -gt 0 ] && [ "$(status swapIns)" -gt 0 ]
	[ "$(status errors)" -eq 0 ]
}

@test "programs of an unprivileged user, who is allowed to" {
	local exe

	exe=$(realpath "$(command -v stressapptest)")
	start_usmd "process stressapptest policyOne" "limit stressapptest 64M" "allow $exe $UNPRIVILEGED"
	run -0 runuser -u $UNPRIVILEGED -- timeout 100 usmctl run -- stressapptest -s 4 -M 128 -m 1 -W
	[[ $output == *"Status: PASS"* ]]
	[ "$(status evictions)" -gt 0 ] && [ "$(status swapIns)" -gt 0 ]
	# A fork's userfaultfd needs CAP_SYS_PTRACE, a look at its pagemap CAP_DAC_READ_SEARCH.
	cp "$PROGS/fork-cow" "$T/"
	configure "default policyOne" "allow $T/fork-cow $UNPRIVILEGED"
	systemctl reload usmd
	run -0 runuser -u $UNPRIVILEGED -- timeout 100 usmctl run -- "$T/fork-cow" 16
	[[ $output != *"fork-cow runs unmanaged"* ]]
}
