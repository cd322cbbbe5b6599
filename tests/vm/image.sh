#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# image.sh FOLDER: a Debian 12 root file system with its stock kernel, for qemu. It is made from
# the package sources that this machine has itself. Leaves root.img, vmlinuz and initrd in FOLDER,
# which appears only when all of it is there. Needs root.
set -euo pipefail

# shellcheck source=tests/lib/debian-root.bash
. "$(dirname "$0")/../lib/debian-root.bash"
out=$1
release=bookworm
# What usmd and the tests need; no init system: tests/vm/guest.sh is process 1.
packages=linux-image-amd64,busybox-static,kmod,libsystemd0,libjson-c5,libcap2,liburing2,libxxhash0
packages+=,stress-ng,jq,procps
# Modules of hardware that no test needs make the image four times as large.
unneeded=(drivers/{gpu,net,media,infiniband,usb,staging,iio,scsi,input,hwmon,isdn,mtd,bluetooth}
	sound net)

# The smallest initramfs that finds the root file system, and brings the tests into it.
make_initrd() {
	local root=$1 tree=$2 kernel module path nr=100

	kernel=$(ls "$root/usr/lib/modules")
	mkdir -p "$tree"/{bin,modules,dev,new}
	cp "$root/usr/bin/busybox" "$tree/bin/busybox"
	chroot "$root" depmod "$kernel"
	for module in virtio_pci virtio_blk ext4 crc32c_generic; do
		chroot "$root" modprobe -S "$kernel" --show-depends $module
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
		cp "$root$path" "$tree/modules/$((nr++))-${path##*/}"
	done
	cat > "$tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
for module in /modules/*; do $b insmod "$module"; done
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do $b usleep 20000; done
$b mount -t ext4 -o noatime /dev/vda /new
$b mkdir /new/usm
$b tar -x -C /new/usm -f /dev/vdb
$b mount --move /dev /new/dev
exec $b switch_root /new /usm/tests/vm/guest.sh
INIT
	chmod 755 "$tree/init"
	(cd "$tree" && find . | cpio -o -H newc --quiet)
}

mkdir -p "${out%/*}"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/sources" "$work/done"
own_sources "$work/sources" $release
exclude=()
for p in "${unneeded[@]}"; do
	exclude+=("--dpkgopt=path-exclude=/lib/modules/*/kernel/$p/*")
	exclude+=("--dpkgopt=path-exclude=/usr/lib/modules/*/kernel/$p/*")
done
# No initrd of the kernel package's own.
INITRD=No mmdebstrap "${ROOT_OPTIONS[@]}" --include=$packages "${exclude[@]}" \
	$release "$work/root" "$work"/sources/debian.*
cp "$work"/root/boot/vmlinuz-* "$work/done/vmlinuz"
make_initrd "$work/root" "$work/initrd" > "$work/done/initrd"
rm -rf "$work"/root/boot/* "$work"/root/var/lib/apt/lists/* "$work"/root/var/cache/apt/*
truncate -s 2G "$work/done/root.img"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -d "$work/root" "$work/done/root.img"
mv -T "$work/done" "$out"
