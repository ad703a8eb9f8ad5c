//! The things that the loader left: memory, the screen, the kernel's own file and the ramdisk, and
//! firmware's tables.

use crate::arch::{entry_area, trap_stacks};
use crate::console::screen;
use crate::firmware::Firmware;
use crate::memory;
use crate::symbols::map;
use bootloader_api::BootInfo;
use bootloader_api::info::Optional;
use ringfence_core::extent::Extent;
use spin::Once;

/// The loader's description of the machine. There is only one, so its owner is the code that was
/// given the machine.
pub struct Boot(&'static BootInfo);

impl Boot {
    /// Takes the value that the loader passed to the kernel's entry point, and sets up the screen
    /// to show the log. A second call is an error.
    pub fn take(info: &'static mut BootInfo) -> Result<Boot, &'static str> {
        static TAKEN: Once<()> = Once::new();
        if TAKEN.is_completed() {
            return Err("the machine has been taken");
        }
        TAKEN.call_once(|| ());
        let frame_buffer = core::mem::replace(&mut info.framebuffer, Optional::None).into_option();
        if let Optional::Some(offset) = info.physical_memory_offset {
            screen::init(offset, frame_buffer);
        }
        Ok(Boot(info))
    }

    /// Takes over memory, and completes the entry area, which is in every address space. The error
    /// names the memory that was too small, or says that this was done before.
    pub fn set_memory_up(&self) -> Result<(), &'static str> {
        static UP: Once<()> = Once::new();
        if UP.is_completed() {
            return Err("memory has been taken");
        }
        UP.call_once(|| ());
        let Boot(info) = self;
        let heap = memory::init(info)?;
        let boot_stack = Extent::new(info.kernel_stack_bottom, info.kernel_stack_len);
        let ramdisk = Extent::new(info.ramdisk_addr.into_option().unwrap_or(0), info.ramdisk_len);
        map::init(heap, boot_stack, ramdisk);
        entry_area::init();
        trap_stacks::init().map_err(|_| "too little memory for the trap stacks")?;
        entry_area::protect();
        Ok(())
    }

    /// Returns firmware's description of the machine.
    pub fn firmware(&self) -> Firmware {
        Firmware::read(self.0.rsdp_addr.into_option(), |start, len_bytes| memory::firmware(self.0, start, len_bytes))
    }

    /// Returns the kernel's own file, and the ramdisk.
    pub fn files(&self) -> (&'static [u8], Option<&'static [u8]>) {
        memory::files(self.0)
    }
}
