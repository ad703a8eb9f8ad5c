#!/usr/bin/env bash
# Sets up what Ringfence needs and this machine lacks. Safe to run again: what is there is left alone.
#
#   1. host packages: QEMU, Bochs, a linker, the tools of the ISO (apt on Debian and Ubuntu, advice elsewhere)
#   2. the Rust that rust-toolchain.toml names, where there is rustup
#   3. `core` and `alloc` for x86_64-unknown-none, and for the 32-bit code of segmented domains: from rustup
#      where it can, else built once from the distribution's rust-src into a cached sysroot (1 to 3 minutes)
#
# `boot/setup.sh --print-sysroot` prints the sysroot that the target is built with, and does nothing else.
set -euo pipefail

target=x86_64-unknown-none
# Without this one there are no modules for segmented domains, and all else works.
target32=i586-unknown-linux-gnu
host=x86_64-unknown-linux-gnu
# Containers and services may have no HOME.
home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
export HOME="${home:-/tmp}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/ringfence"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

has_target() { [ -n "$1" ] && [ -d "$1/lib/rustlib/$target/lib" ]; }
add_target32() { # sysroot
    [ -d "$1/lib/rustlib/$target32/lib" ] && return
    if [ "$1" = "$(rustc --print sysroot 2>/dev/null)" ] && command -v rustup >/dev/null 2>&1 && timeout 120 rustup target add "$target32" >/dev/null 2>&1; then
        say "rustup added $target32"
    else
        say "rustup cannot add $target32 here: no modules for segmented domains are built"
    fi
}

distribution_sysroot() { # of the distribution's compiler, or nothing
    [ -x /usr/bin/rustc ] || return 0
    # The content of this script is part of the key: a sysroot built by another version of it is not used.
    printf '%s/sysroot-%s-%s\n' "$cache" "$(/usr/bin/rustc --version | cut -d' ' -f2)" "$(cksum <"$0" | cut -d' ' -f1)"
}

find_sysroot() {
    local own=
    # One that is there and does not run is not made up for: nothing that it should build would be built.
    if command -v rustc >/dev/null 2>&1; then
        own=$(rustc --print sysroot 2>/dev/null) || die "rustc does not run: $(rustc --print sysroot 2>&1 || true)"
    fi
    if has_target "$own"; then echo "$own"; return; fi
    own=$(distribution_sysroot)
    if has_target "$own"; then echo "$own"; fi
}

if [ "${1:-}" = --print-sysroot ]; then
    find_sysroot
    exit 0
fi

[ -d "$(dirname "$0")/../target" ] || say "the first build takes some five minutes on two cores and fills 1.5 GB"

# ---- 1. packages -----------------------------------------------------------------------------------
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); } # command, Debian package that has it
need qemu-system-x86_64 qemu-system-x86
need gcc gcc
need g++ g++
need xorriso xorriso
# bochs-term, or it would bring a desktop's libraries for its window.
command -v bochs >/dev/null 2>&1 || missing+=(bochs bochs-term)
[ -e /usr/share/bochs/BIOS-bochs-latest ] || missing+=(bochsbios)
[ -e /usr/share/bochs/VGABIOS-lgpl-latest ] || missing+=(vgabios)
need mformat mtools
# Any of them will do for the tests of the page.
command -v google-chrome >/dev/null 2>&1 || need chromium chromium
# Their folder may not be in the PATH of one who is not root.
[ -e /usr/sbin/fsck.fat ] || command -v fsck.fat >/dev/null 2>&1 || missing+=(dosfstools)
[ -e /usr/sbin/sfdisk ] || command -v sfdisk >/dev/null 2>&1 || missing+=(fdisk)
[ -e /usr/sbin/e2fsck ] || command -v e2fsck >/dev/null 2>&1 || missing+=(e2fsprogs)
need tshark tshark
need gdb gdb
need grub-mkrescue grub-common
[ -d /usr/lib/grub/i386-pc ] || missing+=(grub-pc-bin)
[ -d /usr/lib/grub/x86_64-efi ] || missing+=(grub-efi-amd64-bin)
[ -e /usr/share/ovmf/OVMF.fd ] || missing+=(ovmf)
[ -e /usr/include/stdint.h ] || missing+=(libc6-dev)
command -v cargo >/dev/null 2>&1 || missing+=(rustc-web cargo-web rust-web-src rust-web-clippy rustfmt-web lld-19)

install() {
    command -v apt-get >/dev/null 2>&1 || die "please install what these Debian packages hold, then run this again: $*"
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    say "installing $*"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
        || die "apt-get could not install: $*"
}
[ ${#missing[@]} = 0 ] || install "${missing[@]}"

# ---- 2. the toolchain ------------------------------------------------------------------------------
pinned=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$(dirname "$0")/../rust-toolchain.toml")
# Where nothing can be fetched, the same version may be there as 'stable'.
is_there_as_stable() {
    [ "$(RUSTUP_TOOLCHAIN=stable rustc --version 2>/dev/null | cut -d' ' -f2)" = "$pinned" ] || return 1
    stable=$(RUSTUP_TOOLCHAIN=stable rustc --print sysroot)
    ln -s "$stable" "$(dirname "$stable")/$pinned-$host"
}
if command -v rustup >/dev/null 2>&1 && ! RUSTUP_TOOLCHAIN=$pinned rustc --version >/dev/null 2>&1; then
    say "rustup installs Rust $pinned"
    timeout 300 rustup toolchain install "$pinned" --profile minimal --component rustfmt,clippy --target "$target" \
        >/dev/null 2>&1 || is_there_as_stable || die "rustup cannot install Rust $pinned"
fi

# ---- 3. the target ---------------------------------------------------------------------------------
found=$(find_sysroot)
if has_target "$found"; then
    add_target32 "$found"
    exit 0
fi
if command -v rustup >/dev/null 2>&1 && timeout 120 rustup target add "$target" >/dev/null 2>&1 &&
    has_target "$(rustc --print sysroot)"; then
    say "rustup added $target"
    add_target32 "$(rustc --print sysroot)"
    exit 0
fi

say "rustup cannot add $target here: building core and alloc from the distribution's rust-src (1 to 3 minutes, once)"
if [ ! -d /usr/lib/rustlib/src/rust/library/core ] || [ ! -x /usr/bin/rustc ] ||
    [ "$(/usr/bin/rustc --version | cut -d. -f2)" -lt 91 ]; then
    install rustc-web cargo-web rust-web-src
fi
[ -x /usr/bin/cargo-clippy ] && [ -x /usr/bin/rustfmt ] || install rust-web-clippy rustfmt-web || true

lld=
for candidate in "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$host/bin/rust-lld" /usr/lib/llvm-*/bin/lld; do
    [ -x "$candidate" ] && lld=$candidate
done
if [ -z "$lld" ]; then
    install lld-19
    lld=/usr/lib/llvm-19/bin/lld
fi

sysroot=$(distribution_sysroot)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
library="$work/library"
cp -r /usr/lib/rustlib/src/rust/library "$library"
# compiler_builtins as a crate of its own pulls in nothing; std's other dependencies are not needed.
mkdir -p "$work/seed/src"
cat >"$work/seed/Cargo.toml" <<TOML
[package]
name = "seed"
version = "0.0.0"
edition = "2021"
[profile.release]
opt-level = 3
debug = 1
panic = "abort"
TOML
printf '#![no_std]\n' >"$work/seed/src/lib.rs"
build_core() ( # target
    cd "$work/seed"
    # Bootstrap is set for this one step only: everything after it is plain stable Rust.
    RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc __CARGO_TESTS_ONLY_SRC_ROOT="$library" \
        RUSTFLAGS="-C embed-bitcode=yes -C force-frame-pointers=yes --remap-path-prefix=$work=/rustc" \
        /usr/bin/cargo build --release --target "$1" -Zbuild-std=core,alloc -Zbuild-std-features=compiler-builtins-mem
)
built=("$target")
build_core "$target" || die "building core for $target failed"
if build_core "$target32"; then
    built+=("$target32")
else
    say "building core for $target32 failed: no modules for segmented domains are built"
fi

part="$sysroot.part.$$"
rm -rf "$part"
mkdir -p "$part/lib/rustlib/$host/bin" "$part/bin"
for each in "${built[@]}"; do
    mkdir -p "$part/lib/rustlib/$each/lib"
    cp "$work"/seed/target/$each/release/deps/lib{core,alloc,compiler_builtins}-*.rlib "$part/lib/rustlib/$each/lib/"
done
ln -s "/usr/lib/rustlib/$host/lib" "$part/lib/rustlib/$host/lib"
ln -s "$lld" "$part/lib/rustlib/$host/bin/rust-lld"
printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "%s" "$@"\n' "$sysroot" >"$part/bin/rustc"
chmod +x "$part/bin/rustc"
rm -rf "$sysroot"
mv "$part" "$sysroot"
say "$target is ready"
