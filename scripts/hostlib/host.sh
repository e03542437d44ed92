#!/bin/sh
# Process 1 of one test host, in namespaces of its own: host.sh NAME FOLDER
#
# Logging in works by keys that were made for the test. What is mounted here is seen by this host alone, so the
# user's own ssh configuration is neither read nor changed.
set -eu
name=$1 folder=$2
hostname "$name"
mount --bind "$folder/ssh" /etc/ssh
mount --bind "$folder/hosts" /etc/hosts
cat /proc/sys/kernel/random/uuid >"$folder/$name/boot_id" # by which machines are told apart
mount --bind "$folder/$name/boot_id" /proc/sys/kernel/random/boot_id
if [ -d ~/.ssh ]; then mount -t tmpfs none ~/.ssh; fi
mkdir -p /run/sshd # Debian's sshd wants it; there systemd makes it
ip link set lo up
exec "$(command -v sshd)" -D -f "$folder/$name/sshd_config" -E "$folder/$name/sshd.log"
