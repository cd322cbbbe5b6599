#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# run.sh [-r RELEASE] [-f PATTERN] [FILE.bats...]: the packages, installed in Debian 12 and 13 with
# systemd as process 1 (systemd-nspawn, the kernel is this machine's). Each file of tests has a
# machine of its own. Prints TAP; TAP, journals and consoles are left in build/results/system.
# run.sh -r RELEASE --shell [COMMAND...]: a command, or a shell, in such a machine.
#
# While a machine runs, another terminal gets into it by
# nsenter -t $(cat build/results/system/RELEASE-FILE.leader) -m -p -i -u -n -C
# Needs root.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 1
# What is mounted here nobody else sees, and it goes with the last process.
[ -n "${USM_OWN_MOUNTS:-}" ] || USM_OWN_MOUNTS=1 exec unshare -m --propagation private "$0" "$@"
unset USM_OWN_MOUNTS

results=build/results/system
releases=(bookworm trixie)
declare -A version=([bookworm]="Debian 12" [trixie]="Debian 13")
# At a time. Most of a test's time is waiting.
jobs=${USM_JOBS:-4}
boot_sec=60 stop_sec=60 file_sec=600
filter=() shell=""

while [ $# -gt 0 ]; do
	case $1 in
	-r) releases=("$2"); shift 2 ;;
	-f) filter=(-f "$2"); shift 2 ;;
	--shell) shell=1; shift; break ;;
	*) break ;;
	esac
done

# fail TEXT: TAP with this one failure.
fail() {
	echo "not ok 1 system: $1"
	echo "1..1"
	exit 1
}

for c in systemd-nspawn mmdebstrap nsenter unshare dpkg-buildpackage; do
	command -v $c >/dev/null || fail "needs the command $c (make deps)"
done
make --no-print-directory build/deb/built >&2 || fail "the packages cannot be built"
[ -c /dev/userfaultfd ] || fail "needs /dev/userfaultfd (Linux 6.1 or newer)"

work=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-system.XXXXXX") || exit 1
# systemd wants a hierarchy of cgroups version 2 and no other; each machine has its own part of it.
{ umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; } || fail "no cgroup2"
cgroup=/sys/fs/cgroup/${work##*/}
mkdir -p /run/systemd/nspawn

# --- a machine ---------------------------------------------------------------------------------

# layer FOLDER LOWER...: mounts FOLDER/root, what is written there stays in FOLDER/upper.
layer() {
	local IFS=:

	mkdir -p "$1"/{upper,work,root}
	mount -t overlay overlay -o "lowerdir=${*:2},upperdir=$1/upper,workdir=$1/work" "$1/root"
}

# install_usmd ROOT: the packages, and what the tests need, below /usm.
install_usmd() {
	mkdir -p "$1/usm/build" && cp -r --parents tests packaging usmd/io.usmd.Manager.varlink "$1/usm/" &&
		cp -r build/tests build/deb "$1/usm/build/" || return 1
	chroot "$1" sh -c 'dpkg -i /usm/build/deb/usmd_*.deb /usm/build/deb/usmd-dev_*.deb' || return 1
	# Nothing is left to be done at the first boot.
	touch "$1/etc/.updated" "$1/var/.updated"
}

# machine_start FOLDER RELEASE: sets NSPAWN and LEADER, the process 1 of the machine.
machine_start() {
	local folder=$1 release=$2 name=${work##*.}-${1##*/} end=$((SECONDS + boot_sec))

	NSPAWN="" LEADER=""
	layer "$folder" "$work/$release/upper" "${root[$release]}" || return 1
	# Swap files belong on a real file system, which an overlay is not.
	cp -a "$folder/root/var/lib" "$folder/lib" || return 1
	mkdir -p "$cgroup/$name" || return 1
	(
		echo "$BASHPID" > "$cgroup/$name/cgroup.procs"
		# Nobody ends it, if nobody is there any more.
		SYSTEMD_NSPAWN_LOCK=0 exec setpriv --pdeathsig TERM systemd-nspawn --quiet --register=no --keep-unit \
			--private-network --console=pipe --capability=all \
			--system-call-filter="bpf @keyring" --bind=/dev/userfaultfd \
			--bind="$folder/lib:/var/lib" --directory="$folder/root" --machine="usm-${name,,}" --boot
	) </dev/null >"$folder/console" 2>&1 &
	NSPAWN=$!
	until LEADER=$(pgrep -P $NSPAWN -x systemd) &&
		inside timeout 20 systemctl is-system-running --wait >"$folder/state" 2>&1 ||
		grep -q degraded "$folder/state" 2>/dev/null; do
		if ! kill -0 $NSPAWN 2>/dev/null || [ $SECONDS -ge $end ]; then
			tail -n 30 "$folder/console" >&2
			return 1
		fi
		sleep 0.1
	done
	echo "$LEADER" > "$folder.leader"
}

# inside COMMAND...: with the privileges of process 1, but not as its child.
inside() {
	nsenter -t "$LEADER" -m -p -i -u -n -C -- "$@"
}

# As the machine's own halt does it; it has its time.
machine_stop() {
	local i

	[ -n "$NSPAWN" ] || return 0
	[ -z "$LEADER" ] || kill -RTMIN+4 "$LEADER" 2>/dev/null
	for ((i = 0; i < stop_sec * 10; i++)); do
		kill -0 "$NSPAWN" 2>/dev/null || break
		sleep 0.1
	done
	if kill -0 "$NSPAWN" 2>/dev/null; then
		echo "the machine did not stop within $stop_sec s"
		kill -KILL ${LEADER:+"$LEADER"} "$NSPAWN"
	fi
	wait "$NSPAWN" 2>/dev/null
	NSPAWN=""
}

# --- tests ---------------------------------------------------------------------------------------

# run_file RELEASE FILE: leaves RELEASE-NAME.{tap,journal,console} in the results.
run_file() {
	local release=$1 file=$2 name folder tap planned status

	name=$(basename "$file" .bats)
	folder=$work/$release-$name
	tap=$results/$release-$name.tap
	mkdir -p "$folder"
	trap machine_stop EXIT
	trap 'exit 1' TERM INT
	if machine_start "$folder" "$release"; then
		mv "$folder.leader" "$results/$release-$name.leader"
		# In a unit of its own: a service's cgroup, environment and journal, as users have it.
		timeout -k 5 $file_sec nsenter -t "$LEADER" -m -p -i -u -n -C -- \
			systemd-run --quiet --wait --pipe --collect --unit=usmd-tests \
			--setenv=BATS_TEST_TIMEOUT=180 --setenv=HOME=/root --working-directory=/usm \
			bats --tap --timing "${filter[@]}" "/usm/$file" </dev/null >"$tap" 2>&1 &
		wait $!
		status=$?
	else
		status=boot
	fi
	planned=$(sed -n 's/^1\.\.\([0-9]*\)$/\1/p' "$tap")
	if [ "$status" != 0 ] && ! grep -q '^not ok' "$tap" ||
		[ "${planned:-0}" != "$(grep -cE '^(not )?ok ' "$tap")" ]; then
		echo "not ok the tests of $name come to their end (status: $status)" >> "$tap"
	fi
	machine_stop >> "$folder/console" 2>&1 || :
	rm -f "$results/$release-$name.leader"
	! grep -q '^the machine did not stop' "$folder/console" ||
		echo "not ok the machine stops after $name" >> "$tap"
	cp "$folder/console" "$results/$release-$name.console"
	journalctl -q -o short-monotonic -D "$folder"/root/var/log/journal \
		> "$results/$release-$name.journal" 2>&1
	umount "$folder/root" && rm -rf "$folder"
}

# Whoever ends this ends the machines, each by its pid.
finish() {
	local pid

	trap - EXIT
	machine_stop
	for pid in "${job[@]}"; do
		kill "$pid" 2>/dev/null
	done
	wait
	umount -l "$work"/*/root 2>/dev/null
	rm -rf "$work"
	[ ! -d "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} +
	chown -R --reference=. build
}
NSPAWN="" LEADER=""
declare -A root=() job=()
trap finish EXIT
trap 'exit 1' TERM INT

rm -rf $results
mkdir -p $results
for r in "${releases[@]}"; do
	tests/system/root.sh "$r" >"$results/$r.root" 2>"$results/$r.log" &
done
wait
for r in "${releases[@]}"; do
	root[$r]=$(cat "$results/$r.root")
	[ -d "${root[$r]:-}" ] || { tail -n 20 "$results/$r.log" >&2; fail "no root file system of $r"; }
	if ! layer "$work/$r" "${root[$r]}" || ! install_usmd "$work/$r/root" >>"$results/$r.log" 2>&1; then
		tail -n 20 "$results/$r.log" >&2
		fail "cannot install usmd in $r"
	fi
	# A layer below another one must not be mounted and changed.
	umount "$work/$r/root"
done

if [ -n "$shell" ]; then
	mkdir -p "$work/shell"
	machine_start "$work/shell" "${releases[0]}" || exit 1
	cp "$work/shell.leader" "$results/${releases[0]}-shell.leader"
	[ $# -gt 0 ] || set -- bash -l
	inside "$@"
	exit
fi

[ $# -gt 0 ] || set -- tests/system/*.bats
nr=0 status=0
for file in "$@"; do
	for r in "${releases[@]}"; do
		while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do
			wait -n
		done
		run_file "$r" "$file" &
		job[$r-$file]=$!
	done
done
for file in "$@"; do
	for r in "${releases[@]}"; do
		wait "${job[$r-$file]}"
		while IFS= read -r line; do
			if [[ $line =~ ^((not )?ok)[[:space:]]([0-9]+ )?(.*) ]]; then
				echo "${BASH_REMATCH[1]} $((++nr)) ${version[$r]}: ${BASH_REMATCH[4]}"
				[ -z "${BASH_REMATCH[2]}" ] || status=1
			elif [[ $line != 1..* ]]; then
				echo "$line"
			fi
		done < "$results/$r-$(basename "$file" .bats).tap"
	done
done
echo "1..$nr"
exit $status
