set -eu
root=$1 work=$2 out=$3
shift 3
export HOME="$work"
mkdir "$work/log"
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/etc/kernel/install.d"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o mode=755,nosuid dev "$root/dev"
for device in null zero full random urandom; do
	: > "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
# The kernel's package would make an initramfs, and a rescue one, that nobody uses (kernel-install(8)).
for step in 50-dracut 51-dracut-rescue; do
	ln -s /dev/null "$root/etc/kernel/install.d/$step.install"
done
dnf --installroot="$root" --config="$work/dnf.conf" --setopt=reposdir="$work/repos" \
	--setopt=varsdir="$work/vars" --setopt=cachedir="$work/cache" --setopt=logdir="$work/log" \
	--releasever=9 --forcearch=x86_64 --assumeyes install "$@"
echo "slate: packing"
umount --recursive "$root/dev"
umount "$root/sys"
umount "$root/proc"
cd "$root"
rm -f etc/kernel/install.d/50-dracut.install etc/kernel/install.d/51-dracut-rescue.install
rm -f boot/initramfs-* etc/hostname etc/resolv.conf etc/ssh/ssh_host_* var/lib/dbus/machine-id
rm -f etc/systemd/system/timers.target.wants/dnf-makecache.timer
rm -rf var/cache/dnf var/log/dnf* var/log/hawkey.log
# Nodes bring their own identity.
: > etc/machine-id
: > etc/fstab
tar --create --file="$out" --sort=name --numeric-owner --xattrs --xattrs-include='*' .
