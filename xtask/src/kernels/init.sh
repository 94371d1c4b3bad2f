#!/bin/busybox sh
# First process of a test machine: reaches the root of the machine outside, lays memory over it, and goes there.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "init: $module does not go in"
done
mkdir /outside /layer /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /outside || poweroff -f
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/outside,upperdir=/layer/upper,workdir=/layer/work overlay /root || poweroff -f
mkdir -p /root/lib/modules /root/run/xlb-kernels
for folder in proc sys dev; do
    mount --move "/$folder" "/root/$folder"
done
mount -t tmpfs run /root/run
mkdir -p /root/run/xlb-kernels
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 results /root/run/xlb-kernels || poweroff -f
exec switch_root /root /bin/sh /run/xlb-kernels/inside.sh
