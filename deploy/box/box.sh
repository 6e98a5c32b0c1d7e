#!/bin/sh
# Make a Vagrant box of Debian for libvirt and register it as guywire/debian:
# packages come from apt's sources, boxes of others and loop devices are not
# needed. Root runs it. SUITE and MIRROR as in rootfs.sh; OUT is where it works.
set -eu
umask 022
cd "$(dirname "$0")/../.."
out=${OUT:-out/box}
name=guywire/debian
size=3 # GiB, of which what is empty takes no room
grub=/usr/lib/grub/i386-pc
missing=''
for need in vagrant:vagrant qemu-img:qemu-utils sfdisk:fdisk grub-mkimage:grub-common; do
	command -v "${need%:*}" >/dev/null || missing="$missing ${need#*:}"
done
[ -e $grub/boot.img ] || missing="$missing grub-pc-bin"
[ -z "$missing" ] || {
	echo "apt-get install$missing" >&2
	exit 1
}
root=$out/rootfs
rm -rf --one-file-system "$root"
mkdir -p "$out"
deploy/box/rootfs.sh "$root" linux-image-cloud-amd64 initramfs-tools openssh-server sudo

# What Vagrant expects: its user, its key, sudo, sshd, an address from DHCP.
vagrant box list >/dev/null # a first run makes the key
key=${VAGRANT_HOME:-$HOME/.vagrant.d}/insecure_private_key
[ -e "$key" ] || key=${key%/*}/insecure_private_keys/vagrant.key.rsa
chroot "$root" useradd -m -s /bin/bash vagrant
install -d -m 700 "$root/home/vagrant/.ssh"
ssh-keygen -y -f "$key" >"$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n' >"$root/etc/hosts"
cat >"$root/etc/systemd/network/50-vagrant.network" <<-'END'
	[Match]
	Name=eth0
	[Network]
	DHCP=ipv4
	[DHCPv4]
	ClientIdentifier=mac
END
# One host key, of a kind that is quick to make and that all clients know.
rm -f "$root"/etc/ssh/ssh_host_*
printf 'HostKey /etc/ssh/ssh_host_ecdsa_key\nUseDNS no\n' >"$root/etc/ssh/sshd_config.d/box.conf"
mkdir -p "$root/etc/systemd/system/ssh.service.d"
cat >"$root/etc/systemd/system/ssh.service.d/key.conf" <<-'END'
	[Service]
	ExecStartPre=
	ExecStartPre=/bin/sh -c 'test -e /etc/ssh/ssh_host_ecdsa_key || ssh-keygen -q -t ecdsa -N "" -f /etc/ssh/ssh_host_ecdsa_key'
	ExecStartPre=/usr/sbin/sshd -t
END
echo 'LABEL=guywire / ext4 noatime 0 1' >"$root/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
chroot "$root" systemctl -q enable ssh systemd-networkd

# The disk: GRUB behind the partition table, one partition. No part of it needs
# to be mounted: mke2fs copies the tree, and GRUB is found by its position.
disk=$out/disk.raw
rm -f "$disk"
truncate -s ${size}G "$disk"
echo '2048,,83,*' | sfdisk -q "$disk"
mke2fs -q -t ext4 -L guywire -d "$root" -E offset=$((2048 * 512)) "$disk" $((size * 1048576 - 1024))k
cat >"$out/grub.cfg" <<-'END'
	set root=hd0,msdos1
	linux /vmlinuz root=LABEL=guywire ro net.ifnames=0 mitigations=off quiet console=tty0 console=ttyS0
	initrd /initrd.img
	boot
END
grub-mkimage -O i386-pc -p '(hd0,msdos1)/' -c "$out/grub.cfg" -o "$out/core.img" biosdisk part_msdos ext2 linux
[ "$(stat -c %s "$out/core.img")" -lt $((2047 * 512)) ]
dd if=$grub/boot.img of="$disk" bs=440 count=1 conv=notrunc status=none
dd if="$out/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none

rm -rf "$out/tree"
mkdir "$out/tree"
qemu-img convert -c -O qcow2 "$disk" "$out/tree/box.img"
printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' $size >"$out/tree/metadata.json"
tar -C "$out/tree" -cf "$out/guywire-debian.box" metadata.json box.img
rm -rf --one-file-system "$root" "$out/tree" "$disk" "$out/core.img" "$out/grub.cfg"
cat >"$out/box.json" <<-END
	{"name": "$name", "versions": [{"version": "$(date -u +%Y%m%d.%H%M.0)",
	  "providers": [{"name": "libvirt", "url": "file://$(realpath "$out")/guywire-debian.box"}]}]}
END
vagrant box add --force --provider libvirt "$out/box.json"
