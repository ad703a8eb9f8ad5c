//! The boot loader: one ELF that QEMU starts directly (PVH) and that GRUB starts from a disk
//! (multiboot2).
//!
//! It finds the kernel in the ramdisk and maps it with W^X in the higher half. It starts the kernel
//! with the boot information of `bootloader_api`, and honours the kernel's `BootloaderConfig`. The
//! kernel cannot distinguish this loader from rust-osdev's bootloader.
//!
//! * `entry.S`: from 32-bit protected mode to 64-bit Rust
//! * [`firmware`]: memory map, ramdisk and RSDP, as the PVH or multiboot2 loader passes them
//! * [`frames`]: hands out physical memory and keeps account of it
//! * [`kernel`]: loads the kernel's ELF file and builds its address space
//! * [`console`]: reports a failed boot
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::fmt;

mod console;
mod firmware;
mod frames;
mod kernel;

global_asm!(include_str!("entry.S"), options(att_syntax));

/// The reason why the kernel cannot be started, printed on the console for a person.
enum BootError {
    Firmware(&'static str),
    Ramdisk(&'static str),
    NoKernel,
    Kernel(&'static str),
    TooLittleMemory { usable_bytes: u64 },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::Firmware(what) => write!(f, "the firmware's information is unusable: {what}"),
            BootError::Ramdisk(what) => write!(f, "the ramdisk is damaged: {what}"),
            BootError::NoKernel => write!(f, "there is no file 'kernel' in the ramdisk"),
            BootError::Kernel(what) => write!(f, "the kernel cannot be loaded: {what}"),
            BootError::TooLittleMemory { usable_bytes } => {
                write!(f, "too little memory: {} KiB are usable, and not enough", usable_bytes / 1024)
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn loader_main(multiboot2: u32, information: u32) -> ! {
    let error = match boot(multiboot2 != 0, information) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    console::fail(format_args!("{error}"))
}

fn boot(multiboot2: bool, information: u32) -> Result<core::convert::Infallible, BootError> {
    let firmware = if multiboot2 { firmware::multiboot2(information) } else { firmware::pvh(information) }?;
    let file = find_kernel(firmware.ramdisk)?;
    let mut frames = frames::Frames::new(&firmware);
    kernel::start(&firmware, &mut frames, file)
}

/// Returns the file `kernel` of the ramdisk, which is a tar archive. Checksums are verified on the
/// way.
fn find_kernel(ramdisk: &'static [u8]) -> Result<&'static [u8], BootError> {
    if ramdisk.is_empty() {
        return Err(BootError::Ramdisk("there is none"));
    }
    let archive = tar_no_std::TarArchiveRef::new(ramdisk).map_err(|_| BootError::Ramdisk("it is not a tar archive"))?;
    for entry in archive.entries() {
        if entry.filename().as_str() == Ok("kernel") {
            return Ok(entry.data());
        }
    }
    Err(BootError::NoKernel)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    console::fail(format_args!("{info}"))
}
