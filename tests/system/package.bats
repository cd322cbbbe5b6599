# SPDX-License-Identifier: LGPL-2.1-or-later
# The packages come, are upgraded and go while systemd runs, and programs are managed.
# tests/package has what needs no systemd.
bats_require_minimum_version 1.5.0

load lib

DEB=(/usm/build/deb/usmd_*.deb)
DEV=(/usm/build/deb/usmd-dev_*.deb)

setup() {
	system_setup
}

teardown() {
	exec 7>&- || :
	[ "$(dpkg-query -W -f '${Status} ${Version}' usmd 2>/dev/null)" = \
		"install ok installed $(dpkg-deb -f "${DEB[0]}" Version)" ] ||
		dpkg -i "${DEB[0]}" "${DEV[0]}" || :
	system_teardown
}

# hold_start: a program of 48 MiB in a pool of 16. PROGRAM is its pid.
hold_start() {
	start_usmd "memory 16M" "default policyOne"
	mkfifo "$T/in"
	timeout -k 5 150 usmctl run -- "$PROGS/hold" 48 < "$T/in" > "$T/out" 2>&1 3>&- &
	BACKGROUND+=($!)
	exec 7> "$T/in"
	wait_for 60 grep -q ready "$T/out"
	wait_for 20 swapped
	PROGRAM=$(usmctl list processes --json | jq '.processes[0].pid')
}

swapped() {
	[ "$(usmctl list processes --json | jq '.processes[0].swapped')" -gt 4000 ]
}

# hold_verifies: it finds its pages as it left them.
hold_verifies() {
	local before

	before=$(grep -c '^ok$' "$T/out" || :)
	echo verify >&7
	wait_for 60 verified "$before"
}

verified() {
	[ "$(grep -c '^ok$' "$T/out")" -gt "$1" ]
}

# Is memory of the program usmd's?
registered() {
	grep -q '^VmFlags:.* um' "/proc/$PROGRAM/smaps"
}

files() {
	find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /usm \
		-o -path "$T" -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \
		-o -path '/etc/group*' -o -path '/etc/gshadow*' -o -path /etc/.pwd.lock \
		-o -path /var/lib/systemd \) -prune -o -printf '%M %u:%g %p %l\n' | sort
	find /run -path '*usm*' ! -path '*/usmd-tests*'
	systemctl list-unit-files 'usm*' --no-legend
}

@test "installed it runs, and manages nothing; purged it leaves nothing" {
	dpkg -P usmd usmd-dev
	files > "$T/before"

	dpkg -i "${DEB[0]}"
	[ "$(systemctl is-active usmd.socket)" = active ]
	[ "$(systemctl is-enabled usmd.socket)" = enabled ]
	[ "$(systemctl is-active usmd.service)" = active ]
	[ "$(systemctl is-enabled usmd.service)" = enabled ]
	[ "$(usmctl list assignments --json | jq '.total')" -eq 0 ]
	[ "$(usmctl list assignments --json | jq -r '.defaultPolicy')" = none ]
	run ! usmctl run -- true
	[ "$(status framesTotal)" -gt 0 ]
	[ ! -e /var/lib/usmd/swap ]
	# A swap file as large as a quarter of this machine's memory takes its time.
	configure "memory 64M"
	systemctl restart usmd
	usmctl assign stressapptest policyOne --limit 32M
	run -0 timeout 100 usmctl run -- stressapptest -s 3 -M 64 -m 1 -W
	[ -s /var/lib/usmd/swap ]

	rm "$CONF"
	dpkg -P usmd
	files > "$T/after"
	run -0 diff "$T/before" "$T/after"
}

@test "an upgrade restarts the service once the new files are there, and leaves the sockets alone" {
	local pid since

	start_usmd
	pid=$(property MainPID)
	since=$(systemctl show --value -p ActiveEnterTimestampMonotonic usmd.socket)
	run -0 dpkg -i "${DEB[0]}"
	[ "$(systemctl is-active usmd.service)" = active ]
	[ "$(property MainPID)" != "$pid" ]
	[ "$(systemctl show --value -p ActiveEnterTimestampMonotonic usmd.socket)" = "$since" ]
	[ "$(readlink "/proc/$(property MainPID)/exe")" = /usr/sbin/usmd ]
}

# repack VERSION [USMD]: the package with another version, and another daemon.
repack() {
	rm -rf "$T/repack"
	dpkg-deb -R "${DEB[0]}" "$T/repack"
	sed -i "s/^Version: .*/Version: $1/" "$T/repack/DEBIAN/control"
	[ $# -eq 1 ] || cp "$2" "$T/repack/usr/sbin/usmd"
	dpkg-deb -b "$T/repack" "$T/usmd.deb" >/dev/null
}

@test "an upgrade while a program is managed: it stays so, and nothing is brought back" {
	local pid swapped

	repack 0.0.9-1
	dpkg -i "$T/usmd.deb"
	hold_start
	pid=$(property MainPID)
	swapped=$(usmctl list processes --json | jq '.processes[0].swapped')
	run -0 dpkg -i "${DEB[0]}"
	[ "$(property MainPID)" != "$pid" ]
	[ "$(usmctl list processes --json | jq '.processes[0].pid')" -eq "$PROGRAM" ]
	[ "$(usmctl list processes --json | jq '.processes[0].swapped')" -gt $((swapped / 2)) ]
	registered
	hold_verifies
}

@test "an upgrade to a usmd that cannot take over: the old one goes on, and back again" {
	local pid

	hold_start
	pid=$(property MainPID)
	repack 9.9-1 /usm/build/tests/usmd-other-arena
	run -0 dpkg -i "$T/usmd.deb"
	[[ $output == *"the old one goes on running"* ]]
	[ "$(property MainPID)" = "$pid" ]
	[ "$(usmctl list processes --json | jq '.processes[0].pid')" -eq "$PROGRAM" ]
	hold_verifies
	run -0 dpkg -i "${DEB[0]}"
	[ "$(property MainPID)" != "$pid" ]
	[ "$(usmctl list processes --json | jq '.processes[0].pid')" -eq "$PROGRAM" ]
	hold_verifies
}

@test "an upgrade does not start what was stopped" {
	systemctl start usmd.socket
	run -0 dpkg -i "${DEB[0]}"
	[ "$(systemctl is-active usmd.service)" = inactive ]
	[ "$(systemctl is-active usmd.socket)" = active ]
}

@test "a removal brings the pages back, and the program goes on without usmd" {
	hold_start
	registered
	run -0 dpkg -r usmd
	[[ $output == *"they go on without usmd"* ]]
	[ ! -e /usr/sbin/usmd ]
	run ! registered
	hold_verifies
}

@test "a service that is attached starts without usmd as well, and is itself again after a purge" {
	printf '%s\n' '[Service]' 'TemporaryFileSystem=/run' 'ExecStart=/bin/sleep 1000' \
		> /run/systemd/system/usm-sleep.service
	systemctl daemon-reload
	start_usmd "memory 16M"
	usmctl attach-unit usm-sleep.service --policy policyOne
	run -0 dpkg -r usmd
	[[ $output == *"usm-sleep.service is still attached"* ]]
	systemctl start usm-sleep.service
	sleeps
	run -0 dpkg -P usmd
	[ ! -e /etc/systemd/system/usm-sleep.service.d ]
	systemctl restart usm-sleep.service
	sleeps
	run ! grep -z LD_PRELOAD "/proc/$(systemctl show --value -p MainPID usm-sleep.service)/environ"
	systemctl stop usm-sleep.service
	rm /run/systemd/system/usm-sleep.service
}

sleeps() {
	wait_for 10 grep -qx sleep "/proc/$(systemctl show --value -p MainPID usm-sleep.service)/comm"
}

@test "a removal is refused when pages cannot be brought back" {
	drop_in '[Service]' 'TimeoutStopSec=2s'
	hold_start
	# Longer than the stop takes, and shorter than the keeper waits before it starts another one.
	kill -STOP "$(status enginePid)"
	run ! dpkg -r usmd
	[[ $output == *"could not be brought back: $PROGRAM"* ]]
	dpkg -s usmd | grep -q '^Status: .* installed$'
	[ -x /usr/sbin/usmd ]
	[ "$(systemctl is-active usmd.socket)" = active ]
	# It runs again. Debian 12's systemd drops what a service that has failed had stored.
	wait_for 30 usmctl status
	if [ "$(property FileDescriptorStorePreserve)" = yes ]; then
		hold_verifies
	else
		wait_for 30 in_journal "belongs to a usmd that ended without handing it over; it is killed"
	fi
}

@test "the package's own tests" {
	export AUTOPKGTEST_TMP=$T
	run -0 timeout 250 /usm/packaging/debian/tests/managed-program
	[[ $output == *"Status: PASS"* ]]
}
