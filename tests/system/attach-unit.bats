# SPDX-License-Identifier: LGPL-2.1-or-later
# Services that usmctl attach-unit has managed: Debian's redis-server with its sandbox, and units
# made for one setting each.
bats_require_minimum_version 1.5.0

load lib

UNITS=/run/systemd/system

setup() {
	MADE=()
	system_setup
	start_usmd
}

teardown() {
	local unit

	exec 4>&-
	for unit in "${MADE[@]}" redis-server.service; do
		systemctl kill -s KILL "$unit" 2>/dev/null || :
		systemctl stop "$unit" 2>/dev/null || :
		rm -rf "$UNITS/$unit" {/etc,/run}/systemd/system/"$unit".d
		systemctl reset-failed "$unit" 2>/dev/null || :
	done
	system_teardown
}

# make_unit NAME [LINE...]: a service that runs "hold" (32 MiB); its input is descriptor 4.
make_unit() {
	local name=$1

	shift
	mkfifo -m 666 "$T/in"
	touch "$T/out" && chmod 666 "$T/out"
	exec 4<> "$T/in"
	cp "$PROGS/hold" /usr/local/bin/usm-hold
	printf '%s\n' "[Service]" "ExecStart=/usr/local/bin/usm-hold 32" "StandardInput=file:$T/in" \
		"StandardOutput=file:$T/out" "$@" > "$UNITS/$name"
	MADE+=("$name")
	systemctl daemon-reload
}

main_pid() {
	systemctl show --value -p MainPID "$1"
}

# process UNIT FIELD: of the unit's main process, in the list of managed ones.
process() {
	usmctl list processes --json | jq -r ".processes[] | select(.pid == $(main_pid "$1")).$2"
}

rss_kib() {
	awk '$1 == "RssAnon:" { print $2 }' "/proc/$(main_pid "$1")/status"
}

rss_is_below() {
	[ "$(rss_kib "$1")" -lt "$2" ]
}

# runs_managed UNIT: with a limit of 16 MiB of the 32 that it has, and its memory is right.
runs_managed() {
	systemctl start "$1"
	wait_for 30 grep -q ready "$T/out"
	[ "$(process "$1" policy)" = policyOne ]
	wait_for 30 rss_is_below "$1" $((17 * 1024))
	check_memory
	[ "$(process "$1" swapIns)" -gt 0 ]
}

check_memory() {
	: > "$T/out"
	echo check >&4
	wait_for 30 grep -q ok "$T/out"
}

# No line of the rules, and no file of attach-unit.
nothing_left() {
	[ "$(usmctl list assignments --json | jq .total)" -eq 0 ]
	[ -z "$(find /etc/systemd /run/systemd -name 50-usmd.conf)" ]
	[ -z "$(find /etc/systemd/system /run/systemd/system -name '*.service.d' -empty)" ]
}

# redis_data fill|check: 4,000 values of 16 KiB that nothing else has.
redis_data() {
	timeout 100 python3 - "$1" <<'EOF'
import hashlib, socket, sys
s = socket.create_connection(("127.0.0.1", 6379))
f = s.makefile("rwb")
def call(*words):
    f.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    f.flush()
    line = f.readline()
    return f.read(int(line[1:]) + 2)[:-2] if line[:1] == b"$" else line
for i in range(4000):
    value = hashlib.shake_128(b"%d" % i).digest(16384)
    if sys.argv[1] == "fill":
        assert call(b"SET", b"key%d" % i, value) == b"+OK\r\n"
    else:
        assert call(b"GET", b"key%d" % i) == value, i
EOF
}

@test "redis-server.service: its limit holds, its data is right, and detach restores it" {
	local before pid

	before=$(systemctl show redis-server -p Environment -p SystemCallFilter -p Wants -p DropInPaths)
	run -0 usmctl attach-unit redis-server.service --policy policyOne --limit 24M
	note "$output"
	[[ $output == *"Its system call filter lets these pass besides:"* ]]
	[[ $output == *"usmctl detach-unit redis-server.service"* ]]
	systemctl restart redis-server
	pid=$(main_pid redis-server)
	[ "$(process redis-server policy)" = policyOne ]
	[ "$(process redis-server limit)" -eq 6144 ]
	timeout 20 redis-cli config set save ""
	redis_data fill
	wait_for 30 rss_is_below redis-server $((26 * 1024))
	redis_data check
	[ "$(process redis-server evictions)" -gt 10000 ]
	[ "$(process redis-server swapIns)" -gt 5000 ]
	[ "$(process redis-server unevictableReason)" = null ] ||
		note "$(process redis-server unevictableReason)"

	run -0 usmctl detach-unit redis-server.service
	nothing_left
	# It goes on unmanaged, with all that it had, ...
	wait_for 30 not_managed redis-server
	[ "$(main_pid redis-server)" -eq "$pid" ]
	redis_data check
	[ "$(systemctl show redis-server -p Environment -p SystemCallFilter -p Wants -p DropInPaths)" = "$before" ]
	# ... and without the library from its next start.
	grep -q libusm-tagger "/proc/$pid/maps"
	timeout 20 redis-cli flushall
	systemctl restart redis-server
	run -1 grep libusm-tagger "/proc/$(main_pid redis-server)/maps"
}

not_managed() {
	[ -z "$(process "$1" policy)" ]
}

@test "with eviction lazyfree redis-server calls nothing that its filter kills for" {
	systemctl stop usmd.service
	start_usmd "eviction lazyfree"
	run -0 usmctl attach-unit redis-server.service --policy policyOne --limit 24M --runtime
	systemctl restart redis-server
	timeout 20 redis-cli config set save ""
	redis_data fill
	redis_data check
	[ "$(process redis-server evictions)" -gt 5000 ]
	# Letting go makes calls of its own.
	run -0 usmctl detach-unit redis-server.service
	wait_for 60 not_managed redis-server
	redis_data check
	nothing_left
}

@test "a user of its own, or a dynamic one" {
	make_unit usmtest.service DynamicUser=yes
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	runs_managed usmtest.service
	[ "$(process usmtest.service uid)" -ne 0 ]
}

@test "a strict list of system calls and of address families" {
	make_unit usmtest.service "SystemCallFilter=@default @basic-io @file-system" \
		"RestrictAddressFamilies=AF_INET"
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	[[ $output == *"system call filter"*"socketpair"* ]]
	[[ $output == *"address families besides: AF_UNIX"* ]]
	runs_managed usmtest.service
}

@test "a list of system calls that are refused" {
	make_unit usmtest.service "SystemCallFilter=~@network-io @debug @resources" \
		SystemCallErrorNumber=EPERM RestrictAddressFamilies=~AF_UNIX
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	runs_managed usmtest.service
}

@test "no address family at all" {
	make_unit usmtest.service RestrictAddressFamilies=none
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	runs_managed usmtest.service
}

@test "a file system of the unit's own, and few files that it may execute" {
	make_unit usmtest.service TemporaryFileSystem=/run PrivateUsers=yes PrivateTmp=yes \
		ProtectSystem=strict ProtectHome=yes PrivateDevices=yes ProtectProc=invisible \
		MemoryDenyWriteExecute=yes NoNewPrivileges=yes PrivateNetwork=yes
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	[[ $output == *"/run/usmd"* ]]
	runs_managed usmtest.service
}

@test "assign names the services whose programs run unmanaged" {
	make_unit usmtest.service
	systemctl start usmtest.service
	wait_for 30 grep -q ready "$T/out"
	run -0 usmctl assign usm-hold policyOne
	[[ $output == *"  usmctl attach-unit usmtest.service --policy policyOne   # now process $(main_pid usmtest.service)"* ]]
	[[ $output != *"usmctl run"* ]]
}

@test "what the unit preloads already stays" {
	local other

	other=$(find /usr/lib -name 'libjson-c.so.5' | head -n 1)
	make_unit usmtest.service "Environment=A=1 LD_PRELOAD=$other B=2"
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	[[ $output == *"stays: LD_PRELOAD="*"libusm-tagger.so:$other"* ]]
	runs_managed usmtest.service
	grep -q "$other" "/proc/$(main_pid usmtest.service)/maps"
	run -0 usmctl detach-unit usmtest.service
	[[ "$(systemctl show --value -p Environment usmtest.service)" == *"LD_PRELOAD=$other"* ]]
}

@test "what would take the place of the library is said" {
	make_unit usmtest.service "EnvironmentFile=$T/env"
	echo "LD_PRELOAD=/x.so" > "$T/env"
	run -1 usmctl attach-unit usmtest.service --policy policyOne
	[[ $output == *"$T/env"*"sets LD_PRELOAD"* ]]
	nothing_left
	: > "$T/env"
	mkdir "$UNITS/usmtest.service.d"
	printf '%s\n' "[Service]" "Environment=LD_PRELOAD=" > "$UNITS/usmtest.service.d/60-later.conf"
	systemctl daemon-reload
	run -0 usmctl attach-unit usmtest.service --policy policyOne
	[[ $output == *"another drop-in sets it after ours"* ]]
}

@test "a unit that cannot be managed is refused, with the reason" {
	make_unit usmtest.service "RootDirectory=/srv"
	run -1 usmctl attach-unit usmtest.service --policy policyOne
	[[ $output == *"root directory of its own"* ]]
	rm "$T/in"
	make_unit usmtest.service "InaccessiblePaths=/run/usmd"
	run -1 usmctl attach-unit usmtest.service --policy policyOne
	[[ $output == *"hides usmd's socket"* ]]
	run -1 usmctl attach-unit no-such-unit.service --policy policyOne
	[[ $output == *"there is no unit no-such-unit.service"* ]]
	run -1 usmctl attach-unit getty@tty1.service --policy policyOne
	[[ $output == *"masked"* ]]
	run -2 usmctl attach-unit usmd.socket --policy policyOne
	nothing_left
}

@test "an instance, its template, and an alias" {
	make_unit usmtest@.service
	ln -s usmtest@.service "$UNITS/usmalias@.service"
	systemctl daemon-reload
	run -0 usmctl attach-unit usmalias@.service --policy policyOne --limit 16M
	[ -e /etc/systemd/system/usmtest@.service.d/50-usmd.conf ]
	runs_managed usmtest@one.service
	systemctl stop usmtest@one.service
	run -0 usmctl attach-unit usmalias@one.service --policy policyOne --limit 20M
	[ -e /etc/systemd/system/usmtest@one.service.d/50-usmd.conf ]
	: > "$T/out"
	systemctl start usmtest@one.service
	wait_for 30 grep -q ready "$T/out"
	[ "$(process usmtest@one.service limit)" -eq 5120 ]
	systemctl stop usmtest@one.service
	run -0 usmctl detach-unit usmalias@one.service
	run -0 usmctl detach-unit usmtest@.service
	rm "$UNITS/usmalias@.service"
	nothing_left
}

@test "usmd is started for the unit, and the unit starts without it, too" {
	make_unit usmtest.service
	run -0 usmctl attach-unit usmtest.service --policy policyOne --limit 16M
	systemctl stop usmd.socket usmd.service
	runs_managed usmtest.service
	systemctl stop usmtest.service
	systemctl stop usmd.socket usmd.service
	systemctl mask --runtime usmd.service usmd.socket
	: > "$T/out"
	systemctl start usmtest.service
	wait_for 30 grep -q ready "$T/out"
	check_memory
	systemctl unmask --runtime usmd.service usmd.socket
}

@test "as it is installed usmd changes nothing until something is assigned" {
	local tagger

	systemctl stop usmd.socket usmd.service
	rm "$CONF" /var/lib/usmd/swap
	tagger=$(find /usr/lib -name libusm-tagger.so)
	systemctl start usmd.service
	run -0 env LD_PRELOAD="$tagger" "$PROGS/hold" 8 < /dev/null
	[ "$output" = ready ]
	run -125 usmctl run -- "$PROGS/hold" 8 < /dev/null
	[[ $output == *"no policy is assigned to 'hold'"* ]]
	[ "$(status processes)" -eq 0 ]
	[ "$(status faults)" -eq 0 ]
	[ ! -e /var/lib/usmd/swap ]
	nothing_left
	echo "swap /var/lib/usmd/swap 64M" > "$CONF"
	usmctl reload
	run -0 usmctl assign hold policyOne
	run -0 env LD_PRELOAD="$tagger" "$PROGS/hold" 8 < /dev/null
	journalctl --sync
	journal USM_EVENT=attach USM_PROCESS=hold -o cat | grep -q "is managed by policyOne"
}

@test "rules for a user and for a scope" {
	usmctl assign user:$UNPRIVILEGED policyOne
	echo "allow $PROGS/hold $UNPRIVILEGED" >> "$CONF"
	usmctl reload
	run -0 systemd-run --quiet --wait --pipe --uid=$UNPRIVILEGED usmctl run -- "$PROGS/hold" 1 < /dev/null
	journalctl --sync
	journal USM_EVENT=attach -o cat | grep -q "hold .* is managed by policyOne"
	usmctl unassign user:$UNPRIVILEGED
	usmctl assign unit:usmtest.scope policyOne --limit 16M
	run -0 systemd-run --quiet --scope --unit=usmtest.scope usmctl run -- "$PROGS/hold" 1 < /dev/null
	[ "$(journalctl --sync; journal USM_EVENT=attach USM_PROCESS=hold -o cat | grep -c 'is managed')" -eq 2 ]
}
