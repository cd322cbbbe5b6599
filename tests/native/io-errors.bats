# SPDX-License-Identifier: LGPL-2.1-or-later
# Swap files that are changed behind usmd's back, disks that are full, broken or read-only, and a
# kernel without io_uring. Everything is done from outside, to an usmd as it is shipped.
bats_require_minimum_version 1.5.0

load ../lib/common

# Of the swap file's layout (docs/swap.md).
SLOTS_AT=131072
SLOT=4096

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT/build/tests/"{hold,torture,without-uring} "$T/bin/"
	cp "$ROOT/build/tests/hold" "$T/bin/other"
	DISK="" LOOP="" GROUP=""
	declare -gA PIDS=() INPUTS=()
}

teardown() {
	teardown_tree
	[ -z "$DISK" ] || { umount "$DISK" 2>/dev/null; rmdir "$DISK"; }
	[ -z "$LOOP" ] || { losetup -d "$LOOP"; rm -f "$IMAGE"; }
	[ -z "$GROUP" ] || rmdir "$GROUP"
}

# --- programs whose memory is known ------------------------------------------------------------

# start_program NAME MIB: fills its memory and says so, then waits.
start_program() {
	local fd

	mkfifo "$T/$1.in"
	timeout 200 "$T/bin/usmctl" run -- "$T/bin/$1" "$2" \
		< "$T/$1.in" > "$T/$1.out" 2> "$T/$1.err" 3>&- &
	BACKGROUND+=($!)
	exec {fd}> "$T/$1.in"
	INPUTS[$1]=$fd
	wait_for 60 grep -q ready "$T/$1.out" || { cat "$T/$1.err"; return 1; }
	PIDS[$1]=$(pgrep -P "${BACKGROUND[-1]}" -x "$1")
}

# All of its memory is read and must be right.
check_program() {
	local before

	before=$(grep -c ok "$T/$1.out" || :)
	echo check >&"${INPUTS[$1]}"
	wait_for 60 answered "$1" "$before" || { cat "$T/$1.err"; return 1; }
}

answered() {
	[ "$(grep -c ok "$T/$1.out")" -gt "$2" ]
}

# It reads what cannot be had: it is killed before it sees anything else, the journal says so once,
# and nobody but it is affected.
assert_killed_by_usmd() {
	local pid=${PIDS[$1]} engine

	engine=$(status enginePid)
	echo check >&"${INPUTS[$1]}"
	wait_for 30 not pid_alive "$pid"
	run -1 grep -q ok "$T/$1.out"
	[ ! -s "$T/$1.err" ] || { cat "$T/$1.err"; die "$1 saw wrong data"; } || return 1
	wait_for 10 grep -q "$1 (pid $pid) is no longer managed" "$LOG"
	[ "$(grep -c "$1 (pid $pid): .*; killing it" "$LOG")" -eq 1 ]
	[ "$(grep -c '; killing it' "$LOG")" -eq 1 ] || die "others were killed too" || return 1
	[ "$(status enginePid)" = "$engine" ] || die "the engine ended" || return 1
	[ "$(status errors)" -gt 0 ]
}

not() {
	! "$@"
}

# evict NAME [REASON]: all of it, as far as it can leave, which ends with a reason why not more.
evict() {
	run usmctl evict "$1" --size 1G
	[[ $status -eq 1 && $output == *"${2:-}"* ]] || die "usmctl evict: $status, $output" || return 1
	note "$1: $(process "$1" swapped) pages swapped"
}

process() {
	usmctl list processes --json | jq -r ".processes[] | select(.pid == ${PIDS[$1]}).$2"
}

# device FILE FIELD
device() {
	usmctl list swap --json | jq -r ".swaps[] | select(.path == \"$1\").$2"
}

assert_at_least() {
	[ "$1" -ge "$2" ] || die "$1 is below $2"
}

# --- file systems ------------------------------------------------------------------------------

# make_disk KIND MIB [OPTION...]: a file system of its own at $DISK.
make_disk() {
	local kind=$1 mib=$2

	shift 2
	DISK=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-disk.XXXXXX")
	if [ "$kind" = tmpfs ]; then
		mount -t tmpfs -o "size=${mib}M,mode=755" usmd-test "$DISK" ||
			skip_or_die "cannot mount a tmpfs here"
		return
	fi
	requires_command "mkfs.$kind" losetup
	IMAGE=$DISK.image
	truncate -s "${mib}M" "$IMAGE"
	"mkfs.$kind" -q "$@" "$IMAGE"
	LOOP=$(losetup --show -f "$IMAGE") || { rm -f "$IMAGE"; skip_or_die "no loop device here"; }
	mount "$LOOP" "$DISK" || skip_or_die "this kernel cannot mount $kind"
}

# Takes the space of a swap file away: its blocks, then everything that is free.
starve() {
	fallocate --punch-hole --offset $SLOTS_AT --length "$(stat -c %s "$1")" "$1"
	dd if=/dev/zero of="$DISK/ballast" bs=64K status=none oflag=append conv=notrunc 2>/dev/null || :
	dd if=/dev/zero of="$DISK/ballast" bs=4K status=none oflag=append conv=notrunc 2>/dev/null || :
	sync "$DISK/ballast"
}

# From now on every access to the file system is an I/O error.
break_disk() {
	requires_command python3
	python3 - "$DISK" <<-'END'
		import fcntl, os, struct, sys
		FS_IOC_SHUTDOWN = 0x8004587d
		NO_FLUSH_OF_THE_LOG = 2
		fd = os.open(sys.argv[1], os.O_RDONLY)
		fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_FLUSH_OF_THE_LOG))
	END
}

# --- what is read is not what was written -------------------------------------------------------

@test "a flipped bit on the disk: its program is killed, another goes on" {
	local byte

	start_usmd 128 "default policyOne" "faultaround 16"
	start_program hold 16
	start_program other 16
	evict hold
	evict other
	assert_at_least "$(process hold swapped)" 3500
	# Slots are given out from the front: one of the first program's pages.
	byte=$(od -An -tu1 -j $((SLOTS_AT + 700 * SLOT + 99)) -N 1 "$SWAP")
	printf "\\x$(printf %x $((byte ^ 4)))" |
		dd of="$SWAP" bs=1 seek=$((SLOTS_AT + 700 * SLOT + 99)) conv=notrunc status=none
	assert_killed_by_usmd hold
	grep -q "cannot read the page at .* back from slot 701: its checksum is wrong" "$LOG"
	check_program other
}

@test "a truncated swap file: its program is killed, later evictions work" {
	start_usmd 128 "default policyOne"
	start_program hold 16
	start_program other 16
	evict hold
	truncate -s $SLOTS_AT "$SWAP"
	assert_killed_by_usmd hold
	check_program other
	# What is written now makes the file longer again.
	evict other
	assert_at_least "$(process other swapped)" 3500
	check_program other
}

@test "a disk that breaks: who has pages on it is killed, others keep theirs" {
	make_disk ext4 64
	SWAP=$DISK/swap SWAP_SIZE=32M
	start_usmd 128 "default policyOne"
	[ "$(status io)" = io_uring ] || note "without io_uring"
	start_program hold 16
	start_program other 16
	evict hold
	break_disk
	# Writes fail: nothing leaves, nothing is lost.
	evict other "no swap device takes its pages"
	[ "$(process other swapped)" -eq 0 ]
	[ "$(grep -c "swap file $SWAP: writing slot" "$LOG")" -eq 1 ]
	assert_at_least "$(device "$SWAP" errors)" 1000
	check_program other
	assert_killed_by_usmd hold
	check_program other
	# With another device it leaves, although the broken one comes first.
	run -0 usmctl swap add "$T/state/good" 64M --priority -5
	evict other
	assert_at_least "$(process other swapped)" 3500
	check_program other
}

# --- what cannot be written ---------------------------------------------------------------------

# full_disk KIND MIB
full_disk() {
	make_disk "$1" "$2" "${@:3}"
	SWAP=$DISK/swap SWAP_SIZE=16M
	start_usmd 128 "default policyOne"
	starve "$SWAP"
	start_program hold 24
	evict hold "no swap device takes its pages"
	grep -q "swap file $SWAP: writing slot .*: No space left on device" "$LOG"
	assert_at_least "$(device "$SWAP" errors)" 1000
	assert_at_least "$(status errors)" 1000
	check_program hold
	# The next device takes what this one does not.
	run -0 usmctl swap add "$T/state/good" 64M --priority -5
	evict hold
	assert_at_least "$(process hold swapped)" 5000
	assert_at_least "$(device "$T/state/good" used)" 4000
	check_program hold
	pid_alive "${PIDS[hold]}"
	[ "$(status engineRestarts)" -eq 0 ]
}

@test "a full disk, tmpfs: pages stay, then the next device takes them" { full_disk tmpfs 24; }
@test "a full disk, ext4: pages stay, then the next device takes them" { full_disk ext4 32 -O ^has_journal; }

@test "a full disk, eviction lazyfree: no page is lost" {
	make_disk tmpfs 24
	SWAP=$DISK/swap SWAP_SIZE=16M
	start_usmd 128 "default policyOne" "eviction lazyfree"
	starve "$SWAP"
	start_program hold 24
	evict hold "no swap device takes its pages"
	assert_at_least "$(device "$SWAP" errors)" 100
	check_program hold
	run -0 usmctl swap add "$T/state/good" 64M --priority -5
	evict hold
	assert_at_least "$(process hold swapped)" 4000
	check_program hold
}

# Without a way out the pool is exceeded, as with a full swap file: faults do not wait for ever.
@test "a full disk and a full pool: 'oom' decides, no fault waits for ever" {
	make_disk tmpfs 24
	SWAP=$DISK/swap SWAP_SIZE=16M
	start_usmd 16 "default policyOne" "oom exceed"
	starve "$SWAP"
	start_program hold 24
	grep -q "exceeding the pool" "$LOG"
	check_program hold
	[ "$(status engineRestarts)" -eq 0 ]
}

@test "a limit on the size of files: short writes, pages stay, the engine lives" {
	start_usmd 128 "default policyOne"
	start_program hold 24
	# In the middle of the run that is being written.
	prlimit --pid "$(status enginePid)" --fsize=$((SLOTS_AT + 1000 * SLOT)):unlimited
	evict hold "no swap device takes its pages"
	[ "$(status engineRestarts)" -eq 0 ]
	grep -q "swap file $SWAP: writing slot .*: File too large" "$LOG"
	assert_at_least "$(process hold swapped)" 900
	[ "$(process hold swapped)" -le 1000 ]
	assert_at_least "$(device "$SWAP" errors)" 100
	check_program hold
	prlimit --pid "$(status enginePid)" --fsize=unlimited
	evict hold
	check_program hold
}

@test "a file system that is full, or read-only: the file is refused, and nothing is left of it" {
	make_disk tmpfs 8
	start_usmd 64 "default policyOne"
	start_program hold 16
	run -1 usmctl swap add "$DISK/second" 16M
	[[ $output == *"no space for $DISK/second"* ]]
	[ ! -e "$DISK/second" ]
	mount -o remount,ro "$DISK"
	run -1 usmctl swap add "$DISK/second" 2M
	[[ $output == *"$DISK/second is on a file system that is read-only for usmd"* ]]
	[ "$(usmctl list swap --json | jq '.swaps | length')" -eq 1 ]
	evict hold
	check_program hold
	stop_usmd
	# Said at the start, too.
	SWAP=$DISK/second SWAP_SIZE=2M
	write_config 64M
	run timeout 30 "$T/bin/usmd" --config "$T/usmd.conf" --runtime-dir "$T/run" \
		--state-dir "$T/state"
	[ "$status" -eq 1 ]
	[[ $output == *"$DISK/second is on a file system that is read-only for usmd"* ]]
}

@test "a file system that becomes read-only keeps what is on it" {
	local errors

	make_disk ext4 64
	mount -o remount,errors=remount-ro "$DISK"
	errors=/sys/fs/ext4/$(basename "$LOOP")/trigger_fs_error
	[ -w "$errors" ] || skip "this kernel's ext4 cannot be told to fail"
	SWAP=$DISK/swap SWAP_SIZE=32M
	start_usmd 128 "default policyOne"
	start_program hold 16
	evict hold
	echo 1 > "$errors"
	grep -q " $DISK ext4 .*ro" /proc/mounts
	check_program hold
	evict hold
	check_program hold
	pid_alive "${PIDS[hold]}"
}

# A new engine can neither read the header nor wait for the dead one's writes.
@test "a disk that breaks, and the engine dies: who has nothing on it goes on" {
	make_disk ext4 64
	SWAP=$DISK/swap SWAP_SIZE=32M
	start_usmd 128 "default policyOne"
	start_program hold 16
	start_program other 16
	evict hold
	break_disk
	kill -KILL "$(status enginePid)"
	wait_for 20 carried_on 1
	grep -q "swap file $SWAP: waiting for a dead engine's writes: .*; it takes no more pages" "$LOG"
	check_program other
	# It is brought back, which cannot succeed.
	wait_for 20 not pid_alive "${PIDS[hold]}"
	run -1 grep -q ok "$T/hold.out"
	[ "$(grep -c '; killing it' "$LOG")" -eq 1 ]
	wait_for 20 device_is_gone "$SWAP"
	run -0 usmctl swap add "$T/state/good" 64M
	evict other
	assert_at_least "$(process other swapped)" 3500
	check_program other
}

@test "a file system that becomes read-only, and the engine dies: nothing is lost" {
	make_disk ext4 64
	mount -o remount,errors=remount-ro "$DISK"
	[ -w "/sys/fs/ext4/${LOOP##*/}/trigger_fs_error" ] ||
		skip "this kernel's ext4 cannot be told to fail"
	SWAP=$DISK/swap SWAP_SIZE=32M
	start_usmd 128 "default policyOne"
	start_program hold 16
	evict hold
	echo 1 > "/sys/fs/ext4/${LOOP##*/}/trigger_fs_error"
	kill -KILL "$(status enginePid)"
	wait_for 20 carried_on 1
	check_program hold
	wait_for 20 device_is_gone "$SWAP"
	check_program hold
}

@test "a disk that breaks: usmd can be stopped, and who has nothing on it goes on without" {
	make_disk ext4 64
	SWAP=$DISK/swap SWAP_SIZE=32M
	start_usmd 128 "default policyOne"
	start_program hold 16
	start_program other 16
	evict hold
	break_disk
	stop_usmd
	wait_for 10 not pid_alive "${PIDS[hold]}"
	check_program other
}

carried_on() {
	[ "$(status engineRestarts)" -eq "$1" ]
}

# --- copy-on-write ------------------------------------------------------------------------------

@test "btrfs: the swap file is marked no-copy-on-write, a file without the mark is refused" {
	make_disk btrfs 256
	SWAP=$DISK/swap SWAP_SIZE=64M
	start_usmd 32 "default policyOne"
	[[ $(lsattr "$SWAP") == *C*" $SWAP" ]] || die "$(lsattr "$SWAP")" || return 1
	sampler_start
	run -0 managed root 100 "$T/bin/torture" 8 2 2048 1
	[ "${lines[-1]}" = ok ]
	assert_swap_used
	sampler_stop
	# Ours in every respect but the mark.
	cp --reflink=never "$SWAP" "$DISK/copy"
	chmod 600 "$DISK/copy"
	chattr -C "$DISK/copy" 2>/dev/null || :
	run -1 usmctl swap add "$DISK/copy" 64M
	[[ $output == *"not marked no-copy-on-write"* ]]
	[ "$(stat -c %s "$DISK/copy")" -eq $((64 << 20)) ]
}

@test "xfs: programs verify their memory on it" {
	make_disk xfs 512
	SWAP=$DISK/swap SWAP_SIZE=64M
	start_usmd 32 "default policyOne"
	sampler_start
	run -0 managed root 100 "$T/bin/torture" 8 2 2048 1
	[ "${lines[-1]}" = ok ]
	assert_swap_used
	[ "$(device "$SWAP" direct)" = true ]
	sampler_stop
}

# --- io_uring -----------------------------------------------------------------------------------

# An usmd to which the kernel refuses io_uring_setup or io_uring_enter.
start_usmd_without() {
	mv "$T/bin/usmd" "$T/bin/usmd-itself"
	printf '#!/bin/sh\nexec %s %s %s "$@"\n' "$T/bin/without-uring" "$1" "$T/bin/usmd-itself" \
		> "$T/bin/usmd"
	chmod 755 "$T/bin/usmd"
	start_usmd 24 "default policyOne" "faultaround 1"
}

work_without_uring() {
	sampler_start
	run -0 managed root 200 "$T/bin/torture" 8 3 4096 2
	[ "${lines[-1]}" = ok ]
	assert_swap_used
	sampler_stop
	kill_engine_start 0.3
	run -0 managed root 200 "$T/bin/torture" 8 3 4096 3
	kill_engine_stop
	assert_killed 3
}

@test "no io_uring: pread and pwrite, with one warning" {
	start_usmd_without setup
	[ "$(status io)" = pread ]
	[ "$(grep -c "io_uring: only 0 of" "$LOG")" -eq 1 ]
	work_without_uring
}

@test "rings that take no requests: closed one by one, what was asked of them is done without" {
	start_usmd_without enter
	[ "$(status io)" = io_uring ]
	work_without_uring
	grep -q "closing the ring, ignoring" "$LOG"
}

# --- removing a device that is in use -----------------------------------------------------------

# From the list, which is not to be had while a new engine starts.
device_is_gone() {
	local list

	list=$(usmctl list swap --json) && [[ $list == *swaps* && $list != *"\"$1\""* ]]
}

# A second device, of a higher priority, so that pages go there.
start_with_second() {
	start_usmd "$1" "default policyOne" "${@:2}"
	run -0 usmctl swap add "$T/state/second" 64M --priority 5
}

@test "swap remove: everything comes back while the program goes on, then nothing reads the file" {
	start_with_second 96
	start_program hold 48
	evict hold
	assert_at_least "$(device "$T/state/second" used)" 10000
	USMCTL_TIMEOUT=100 run -0 usmctl swap remove "$T/state/second"
	device_is_gone "$T/state/second"
	# Whatever is still needed of it would be seen.
	shred -n 1 "$T/state/second"
	check_program hold
	evict hold
	check_program hold
}

@test "swap remove: pages that the kernel may drop come back too" {
	start_with_second 96 "eviction lazyfree"
	start_program hold 48
	evict hold
	evict hold
	assert_at_least "$(device "$T/state/second" used)" 5000
	USMCTL_TIMEOUT=10 usmctl swap remove "$T/state/second" || :
	wait_for 60 device_is_gone "$T/state/second"
	shred -n 1 "$T/state/second"
	check_program hold
}

@test "swap remove: into a pool that is smaller than what is on the device" {
	start_with_second 24
	start_program hold 56
	assert_at_least "$(device "$T/state/second" used)" 6000
	USMCTL_TIMEOUT=100 run -0 usmctl swap remove "$T/state/second"
	device_is_gone "$T/state/second"
	shred -n 1 "$T/state/second"
	check_program hold
	[ "$(status exceeded)" -eq 0 ] || die "the pool was exceeded although another device had room"
}

@test "swap remove: under load, while the engine is killed" {
	local pid

	start_with_second 24
	managed root 200 "$T/bin/torture" 8 3 16384 7 > "$T/torture.out" 2>&1 3>&- &
	pid=$!
	BACKGROUND+=($pid)
	wait_for 30 second_is_used
	kill_engine_start 0.5 6
	USMCTL_TIMEOUT=10 usmctl swap remove "$T/state/second" || :
	sleep 4
	kill_engine_stop
	assert_killed 2
	wait_for 60 device_is_gone "$T/state/second"
	pid_alive "$pid" || die "the program ended before the device was gone" || return 1
	shred -n 1 "$T/state/second"
	wait "$pid" || { cat "$T/torture.out"; die "torture failed"; }
	[ "$(tail -n 1 "$T/torture.out")" = ok ]
}

second_is_used() {
	[ "$(device "$T/state/second" used)" -ge 1000 ]
}

@test "swap remove: a device with a page that cannot be read goes with its program" {
	start_with_second 96
	start_program hold 16
	start_program other 16
	evict hold
	evict other
	printf x | dd of="$T/state/second" bs=1 seek=$((SLOTS_AT + 300 * SLOT)) conv=notrunc status=none
	USMCTL_TIMEOUT=60 usmctl swap remove "$T/state/second" || :
	wait_for 60 device_is_gone "$T/state/second"
	not pid_alive "${PIDS[hold]}"
	[ "$(grep -c '; killing it' "$LOG")" -eq 1 ]
	check_program other
}

# --- a slow disk -------------------------------------------------------------------------------

# Writes of usmd below $T, bounded to so many bytes a second; the cgroup is GROUP.
slow_disk() {
	GROUP=/sys/fs/cgroup/blkio/usmd-test-${T##*.}
	[ -d /sys/fs/cgroup/blkio ] || skip "needs the blkio controller of cgroup version 1"
	mkdir "$GROUP"
	echo "$(findmnt -no MAJ:MIN -T "$T") $1" > "$GROUP/blkio.throttle.write_bps_device" ||
		skip "the disk of $T cannot be slowed down"
	USMD_PREFIX=(sh -c "echo \$\$ > $GROUP/cgroup.procs && exec \"\$@\"" usmd)
}

@test "a swap file that takes longer to make than an engine may hang: at start, and by swap add" {
	slow_disk 10000000
	SWAP_SIZE=128M start_usmd 16 "default policyOne"
	[ "$(status engineRestarts)" -eq 0 ]
	USMCTL_TIMEOUT=60 run -0 usmctl swap add "$T/state/second" 128M
	[ "$(status engineRestarts)" -eq 0 ]
	! grep -q "hangs" "$LOG"
}
