//! The scripts for gdb: they name the port on which QEMU waits for gdb, and the files with the
//! symbols.

use crate::build::System;
use crate::machine::GDB_PORT;
use crate::project;
use crate::toolchain::BUILT_AS;
use ringfence_abi::layout::{IMAGE, slot_base};

/// Returns the gdb commands that load the kernel's symbols and define `rf-symbols FILE SLOT`, which
/// loads the symbols of a module.
pub fn symbols(system: &System) -> String {
    let mut script = format!("set substitute-path {BUILT_AS} {}\n", project().display());
    script += &format!("file {}\n", system.kernel.display());
    script += "# rf-symbols FILE SLOT: the symbols of a module, where 'lsmod' says that it is\n";
    script += "define rf-symbols\n";
    // gdb splits the arguments of add-symbol-file at blanks, even inside an expression.
    let (first, distance) = (slot_base(0) + IMAGE, slot_base(1) - slot_base(0));
    script += &format!("  add-symbol-file $arg0 -o {first:#x}+($arg1)*{distance:#x}\n");
    script += "end\n";
    for module in &system.modules {
        script += &format!("# rf-symbols {} SLOT\n", module.debug.display());
    }
    script
}

/// Returns the commands of [`symbols`], and the command that connects gdb to QEMU.
pub fn script(system: &System) -> String {
    format!("{}target remote :{GDB_PORT}\n", symbols(system))
}
