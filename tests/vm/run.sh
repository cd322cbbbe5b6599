#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# run.sh: what is built, on the oldest kernel that usmd supports: Debian 12's 6.1, in qemu without
# hardware help. Prints TAP; the logs go to build/results/vm. Needs root.
#
# The image is made once and kept in $USM_CACHE_DIR, or else in /var/cache/usmd-test.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 1
results=build/results/vm
cache=${USM_CACHE_DIR:-/var/cache/usmd-test}
# Code runs some twenty times slower there.
limit_sec=600

# fail TEXT: TAP with this one failure.
fail() {
	echo "not ok 1 virtual machine: $1"
	echo "1..1"
	exit 1
}

for c in qemu-system-x86_64 mmdebstrap mke2fs cpio; do
	command -v $c >/dev/null || fail "needs the command $c (make deps)"
done
[ "$(uname -m)" = x86_64 ] || fail "needs an x86-64 machine"
# What is built here must run there.
(. /etc/os-release && [ "${VERSION_CODENAME:-}" = bookworm ]) || fail "needs Debian 12 to build on"

# Whoever changes how the image is made gets another one.
image=$cache/debian12-$(cat tests/vm/image.sh tests/lib/debian-root.bash /etc/apt/sources.list.d/* /etc/apt/sources.list \
	2>/dev/null | sha256sum | cut -c1-16)
rm -rf $results
mkdir -p $results "$cache"
(
	flock 9
	[ -d "$image" ] || tests/vm/image.sh "$image"
	touch "$image"
	find "$cache" -mindepth 1 -maxdepth 1 -name 'debian12-*' -mtime +30 -exec rm -rf {} +
) 9>"$cache/lock" >$results/image.log 2>&1 || { tail -n 20 $results/image.log >&2; fail "no image"; }

work=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-vm.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
tar -c --exclude=obj --exclude=results --exclude='*.d' -f "$work/in.tar" \
	tests/lib tests/vm build/usmd build/usmctl build/libusm-tagger.so build/policies build/tests ||
	fail "nothing is built"
truncate -s 64M "$work/out.tar"
# snapshot=on: the image stays as it is.
TMPDIR=$work timeout -k 5 $limit_sec qemu-system-x86_64 -M q35,smm=off -accel tcg,thread=multi,tb-size=512 \
	-cpu max -smp 2 -m 1024 -nodefaults -display none -serial "file:$results/console" -no-reboot \
	-kernel "$image/vmlinuz" -initrd "$image/initrd" \
	-append "console=ttyS0 root=/dev/vda rw panic=-1 quiet tsc=reliable mitigations=off random.trust_cpu=on" \
	-drive "file=$image/root.img,if=virtio,format=raw,snapshot=on" \
	-drive "file=$work/in.tar,if=virtio,format=raw,readonly=on" \
	-drive "file=$work/out.tar,if=virtio,format=raw,cache=unsafe" </dev/null >$results/qemu.log 2>&1
status=$?
tar -x --no-same-owner -C $results -f "$work/out.tar" 2>/dev/null
if [ ! -s $results/tap ]; then
	tail -n 20 $results/qemu.log $results/console $results/log >&2
	fail "no results (qemu ended with status $status)"
fi

# The guest's own plan says that it came to its end.
if [ "$(tail -n 1 $results/tap)" != "1..$(grep -cE '^(not )?ok ' $results/tap)" ]; then
	echo "not ok $(($(grep -cE '^(not )?ok ' $results/tap) + 1)) virtual machine:" \
		"the tests come to their end (qemu: status $status)" >> $results/tap
fi
sed -i '/^1\.\./d' $results/tap
nr=$(($(grep -cE '^(not )?ok ' $results/tap) + 1))
{
	grep -E 'BUG|WARNING|Oops|general protection|Call Trace|blocked for more|detected stall' \
		$results/dmesg $results/console >&2 && echo -n "not "
	echo "ok $nr virtual machine: the kernel's log has none of BUG, WARNING and the like"
	echo "1..$nr"
} >> $results/tap
cat $results/tap
! grep -q '^not ok' $results/tap || { cat $results/log >&2; exit 1; }
