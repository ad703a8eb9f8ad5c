//! The reasons why a module is not loaded.

use crate::domain::calls::Call;
use crate::domain::cause::UpcallError;
use crate::domain::hardware::Which;
use alloc::string::String;
use core::fmt;
use hw::memory::frames::{self, OutOfMemory};
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_core::limits::{LOCK_BTS, SEG_LOADS, SS_LOADS};
use ringfence_core::module::ModuleError;
use ringfence_core::tcg::Hole;

/// The reason why a module is not loaded, or not unloaded.
#[derive(Debug)]
pub enum LoadError {
    /// The ramdisk has no such file.
    NoFile(String),
    /// The file is refused.
    Refused(ModuleError),
    /// The module's name, given here, is not the file's name.
    Misnamed(String),
    /// The module has code that QEMU's TCG mishandles, at this place.
    Hole(Hole, String),
    /// A parameter from a person does not fit the module: the reason.
    Parameter(String),
    /// This machine does not keep 32-bit code where it belongs: the reason.
    NotConfined(String),
    /// All slots are taken.
    NoSlot,
    /// There is not enough memory.
    NoMemory,
    /// The module's budgets add up to this number of frames, more than one module may have here.
    Budget(u64),
    /// No device that the module drives is free. The names are those of the driver that has one, if
    /// one has, and of the module.
    NoDevice(Option<(String, String)>),
    /// The only device that the module drives is set aside for good: it could not be stopped when
    /// an earlier driver ended.
    SetAside(Which),
    /// The module's `init` failed. The call is the last call that a service refused before the
    /// failure, if there is one.
    Init(UpcallError, Option<Call>),
    /// The module failed when it was given the state of the build before.
    Restore(UpcallError),
    /// The module's `init` failed because its class takes no more offers.
    Full(&'static str),
    /// The instruction to watch does not lie in the image.
    Outside,
    /// The module does not drive the device of the driver before it.
    OtherDevice(Which),
    /// The module does not offer the same class as the driver before it.
    Different,
    /// No domain of this name is loaded.
    NotLoaded(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::NoFile(name) => write!(f, "there is no module '{name}' in the ramdisk"),
            LoadError::Refused(error) => write!(f, "refused: {error}"),
            LoadError::NotConfined(why) => write!(f, "segmented domains are refused on this machine: {why}"),
            LoadError::Misnamed(name) => {
                write!(
                    f,
                    "refused: the module in this file is called '{name}', and what is trusted goes by the file's name"
                )
            }
            LoadError::Hole(Hole::LocksBitTest, place) => write!(
                f,
                "refused: it could LOCK a bit test of a register, which aborts QEMU 7.2 (limits {} lets it in)\n    at {place}",
                LOCK_BTS.name
            ),
            LoadError::Hole(Hole::LoadsNoSegment, place) => write!(
                f,
                "refused: it could load what is no segment register, which QEMU 10.0 does (limits {} lets it in)\n    at {place}",
                SEG_LOADS.name
            ),
            LoadError::Hole(Hole::LoadsSs, place) => write!(
                f,
                "refused: it could load SS, which QEMU's TCG takes for ring 0 (limits {} lets it in)\n    at {place}",
                SS_LOADS.name
            ),
            LoadError::Parameter(why) => f.write_str(why),
            LoadError::NoSlot => write!(f, "all {} slots are taken", ringfence_abi::layout::MAX_DOMAINS),
            LoadError::NoMemory => write!(f, "out of memory"),
            LoadError::Budget(frames) => {
                let [has, most] = [*frames, frames::most_of_one()].map(|frames| frames * PAGE_SIZE / 1024);
                write!(f, "refused: its budgets come to {has} KiB, and a module may have {most} KiB of this memory")
            }
            LoadError::NoDevice(None) => write!(f, "no free device that it drives"),
            LoadError::NoDevice(Some((driver, module))) => {
                write!(f, "no free device that it drives, as {driver} has it; 'reload {driver} {module}' replaces that")
            }
            LoadError::SetAside(which) => {
                write!(f, "no free device that it drives: {which} is set aside, as it could not be stopped before")
            }
            LoadError::Full(why) => write!(f, "init: refused: {why}"),
            LoadError::Init(error, None) => write!(f, "init: {error}"),
            LoadError::Init(error, Some(call)) => write!(f, "init: {error}\n    after {call}"),
            LoadError::Restore(error) => write!(f, "restore: {error}"),
            LoadError::Outside => write!(f, "the instruction to watch does not lie in the image"),
            LoadError::OtherDevice(which) => write!(f, "refused: it does not drive {which}"),
            LoadError::Different => write!(f, "it does not offer what the driver before it offered"),
            LoadError::NotLoaded(name) => write!(f, "no domain '{name}' is loaded"),
        }
    }
}

impl From<OutOfMemory> for LoadError {
    fn from(_: OutOfMemory) -> LoadError {
        LoadError::NoMemory
    }
}
