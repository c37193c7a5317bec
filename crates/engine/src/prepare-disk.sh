#!/bin/sh
# Makes a file system or swap space on a disk that holds nothing. A disk that holds anything else
# than what is wanted is left alone.
# Usage: prepare-disk DEVICE TYPE if-blank|never|always
device=$1 type=$2 wipe=$3

fail() {
    echo "<3>$device: $1" >&2
    exit 1
}

waited=0
until [ -b "$device" ]; do
    [ "$waited" -lt 20 ] || fail "no such disk after 20 s"
    sleep 1
    waited=$((waited + 1))
done

found=$(wipefs --no-act --noheadings --output TYPE "$device") || fail "wipefs cannot read it"
found=$(echo $found)
if [ "$wipe" = always ] && [ -n "$found" ]; then
    wipefs --all --force --quiet "$device" || fail "wipefs cannot clear it"
    found=
fi
[ "$found" != "$type" ] || exit 0
[ -z "$found" ] || fail "it holds $found, so it is left alone"
[ "$wipe" != never ] || fail "it is blank, and wipe = \"never\""
if [ "$type" = swap ]; then
    mkswap "$device" || fail "mkswap failed"
else
    mkfs -t "$type" "$device" </dev/null || fail "mkfs -t $type failed"
fi
