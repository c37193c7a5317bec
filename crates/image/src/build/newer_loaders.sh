# Lays a later release's signed shim and network GRUB into an image, beside those of its own packages.
#
# Run by mmdebstrap as a hook. Arguments: the image's root, its release, the later release. apt checks the
# later release's signatures as it does those of the image's own, from the same mirrors, and keeps what it
# notes to itself in a directory of its own. Where this fails the image goes without: one line says why.
set -- "$1" RELEASE NEWER
root=$1 release=$2 newer=$3
umask 022
loaders=$root/usr/lib/slate/loaders
work=$(mktemp -d) && said=$work/said || exit 1
trap 'rm -rf "$work"' EXIT
echo "slate: fetching the loaders of $newer"

apt() {
    apt-get -o "Dir::State=$work" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" \
        -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::Etc::TrustedParts=$work/keys" -o APT::Sandbox::User=root "$@"
}

# A file of a package, and what it is: file, package, version, release, SHA-256.
lay() {
    package=$1 path=$2 name=$3
    deb=$(ls "$work/$package"_*.deb)
    dpkg-deb --fsys-tarfile "$deb" | tar --extract --to-stdout ".$path" > "$work/new/$name"
    test -s "$work/new/$name"
    sum=$(sha256sum < "$work/new/$name")
    echo "$name $package $(dpkg-deb --field "$deb" Version) $newer ${sum%% *}" >> "$work/new/origins"
}

(
    set -e
    export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/keys" "$work/new"
    : > "$work/status"
    # This machine's keys, which the image's packages were checked with, and those among these packages:
    # an older keyring may not know the later release yet.
    eval "$(apt-config shell trusted Dir::Etc::TrustedParts/d)"
    for key in "${trusted:-/etc/apt/trusted.gpg.d}"/* "$root"/etc/apt/trusted.gpg.d/*; do
        if [ -f "$key" ]; then cp "$key" "$work/keys/"; fi
    done
    cat "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*.list 2> /dev/null |
        sed -n -E "s#^(deb +(\[[^]]*\] +)?[^ ]+ +)$release([ /-])#\1$newer\3#p" > "$work/sources.list"
    test -s "$work/sources.list" || { echo "E: no mirror names $release"; exit 1; }
    apt update
    cd "$work"
    apt download shim-signed grub-efi-amd64-signed
    cat > "$work/new/origins" <<END
# The signed shim and network GRUB of Debian $newer, because GRUB of $release cannot boot over HTTP or beside
# another DHCP server. Fetched when this image was built; apt does not update them, a new build does.
# file package version release SHA-256
END
    lay shim-signed /usr/lib/shim/shimx64.efi.signed shimx64.efi
    lay grub-efi-amd64-signed /usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed grubx64.efi
    mkdir -p "$loaders"
    cp "$work"/new/* "$loaders/"
) > "$said" 2>&1
status=$?
# Errors of apt would else be taken for those of the build.
sed 's/^/  /' "$said"
if [ $status -eq 0 ]; then
    sed 's/^\([^#].*\)/slate: laid \1/;/^#/d' "$loaders/origins"
else
    cause=$(sed -n -E 's/^(E|dpkg-deb: error|tar): *//p' "$said" | head -n 3 | tr '\n' ' ')
    echo "slate: warning: no shim and GRUB of $newer: ${cause:-all that was printed is in the log}"
fi
