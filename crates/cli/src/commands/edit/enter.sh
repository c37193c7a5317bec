# Runs in mount, process, host name and IPC namespaces of its own: what it mounts and starts ends
# with it. Arguments: the image's root, a scratch directory, the image's kernel release or nothing,
# the host name, where below the root the resolver's configuration is missing or nothing; then the
# command.
set -eu
root=$1 scratch=$2 release=$3 name=$4 resolv=$5
shift 5
hostname "$name" 2>/dev/null || echo "$name" > /proc/sys/kernel/hostname
mount --bind "$root" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755,nosuid dev dev
mount -t tmpfs -o mode=755,nosuid,nodev run run
mount --bind "$scratch" tmp
for device in null zero full random urandom tty; do
	: > "dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mkdir -p run/lock run/slate/bin
if [ -n "$resolv" ] && [ -e /etc/resolv.conf ]; then
	mkdir -p "$(dirname "$resolv")"
	cat /etc/resolv.conf > "$resolv"
fi
# DKMS and drivers' installers ask for the running kernel and mean the image's.
if [ -n "$release" ]; then
	cat > run/slate/bin/uname <<-END
		#!/bin/sh
		for real in /usr/bin/uname /bin/uname; do
		    [ -x "\$real" ] && break
		done
		"\$real" "\$@" | sed "s|\$("\$real" -r)|$release|g"
	END
fi
# Nodes boot by an initramfs that is made from the finished image; one in it would be dead weight, and
# its hooks look at this machine.
for program in update-initramfs mkinitramfs dracut; do
	cat > "run/slate/bin/$program" <<-END
		#!/bin/sh
		echo "$program: not run: the nodes' initramfs is made by slate" >&2
	END
done
chmod 755 run/slate/bin/*
path=/run/slate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -- HOME=/root "TERM=${TERM:-linux}" LANG=C.UTF-8 "PATH=$path" "$@"
[ -t 0 ] || set -- DEBIAN_FRONTEND=noninteractive "$@"
for variable in http_proxy https_proxy ftp_proxy no_proxy; do
	eval "value=\${$variable:-}"
	[ -z "$value" ] || set -- "$variable=$value" "$@"
done
exec chroot . /usr/bin/env -i "$@"
