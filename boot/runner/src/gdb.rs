//! What gdb is told: where QEMU waits for it, and where the symbols are.

use crate::build::System;
use crate::machine::GDB_PORT;
use crate::project;
use crate::toolchain::BUILT_AS;
use ringfence_abi::layout::{IMAGE, slot_base};

/// Commands that load the kernel's symbols, and define `rf-symbols FILE SLOT`, which adds a
/// module's.
pub fn symbols(system: &System) -> String {
    let mut script = format!("set substitute-path {BUILT_AS} {}\n", project().display());
    script += &format!("file {}\n", system.kernel.display());
    script += "# rf-symbols FILE SLOT: the symbols of a module, where 'lsmod' says that it is\n";
    script += "define rf-symbols\n";
    // gdb splits the words of add-symbol-file at blanks, also those of an expression.
    let (first, distance) = (slot_base(0) + IMAGE, slot_base(1) - slot_base(0));
    script += &format!("  add-symbol-file $arg0 -o {first:#x}+($arg1)*{distance:#x}\n");
    script += "end\n";
    for module in &system.modules {
        script += &format!("# rf-symbols {} SLOT\n", module.debug.display());
    }
    script
}

/// The same, and the command that connects it.
pub fn script(system: &System) -> String {
    format!("{}target remote :{GDB_PORT}\n", symbols(system))
}
