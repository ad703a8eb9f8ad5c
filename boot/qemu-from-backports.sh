#!/usr/bin/env bash
# Puts the QEMU of Debian 12's backports into a folder, beside the one that is installed, and prints how to start it. It changes
# nothing of the machine. Fails, and says so, where there is no Debian 12, or no mirror that has it.
#
#   RINGFENCE_QEMU=$(boot/qemu-from-backports.sh FOLDER) cargo test
set -euo pipefail
folder=$(realpath -m "${1:?the folder is missing}")
program=$folder/qemu-system-x86_64
if [ -x "$program" ]; then
    echo "$program"
    exit
fi
say() { echo "qemu-from-backports: $*" >&2; }

. /etc/os-release
if [ "${VERSION_CODENAME:-}" != bookworm ]; then
    say "this is no Debian 12"
    exit 1
fi
# The mirror that the machine's own packages come from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | sed -n 1p)
if [ -z "$mirror" ]; then
    say "apt has no mirror of Debian 12; has 'apt-get update' run?"
    exit 1
fi
mkdir -p "$folder/lists/partial" "$folder/packages"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in bookworm bookworm-backports; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done > "$folder/sources.list"
options=(-o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$folder/lists")
say "reading the lists of packages"
apt-get "${options[@]}" -qq update >&2
say "fetching QEMU (about 30 MB)"
packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)
(cd "$folder/packages" && apt-get "${options[@]}" -qq -o APT::Sandbox::User=root -t bookworm-backports download "${packages[@]}" >&2)
for package in "$folder"/packages/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done
cat > "$program.new" <<END
#!/bin/sh
export QEMU_MODULE_DIR="$folder/root/usr/lib/x86_64-linux-gnu/qemu"
exec "$folder/root/usr/bin/qemu-system-x86_64" -L "$folder/root/usr/share/qemu" -L "$folder/root/usr/share/seabios" "\$@"
END
chmod +x "$program.new"
# It may need a library that the installed one does not.
if ! "$program.new" --version >&2; then
    say "that QEMU does not run here"
    exit 1
fi
mv "$program.new" "$program"
echo "$program"
