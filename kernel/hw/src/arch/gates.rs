//! Assembles `entry.S` with the constants it takes from Rust, and one gate entry for each service.

use super::cpu::{self, CPU, Cpu};
use super::entry_area;
use super::frame::TrapFrame;
use super::handlers;
use super::traps::{trap_from_driver, trap_from_kernel};
use core::arch::global_asm;
use core::mem::offset_of;
use ringfence_abi::for_each_service;
use ringfence_abi::layout::{STUB_BYTES, STUBS};
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;

/// The address in a segmented domain of the code in which its upcalls begin and end, behind the
/// stubs.
const SHIM: u64 = STUBS + SERVICE_COUNT as u64 * STUB_BYTES;

global_asm!(
    include_str!("entry.S"),
    kernel_cr3 = const entry_area::KERNEL_CR3 as i64,
    services = const entry_area::SERVICES as i64,
    traps = const entry_area::TRAPS as i64,
    entry_stack_top = const entry_area::ENTRY_STACK_TOP as i64,
    stacks = const entry_area::STACKS as i64,
    driver_code = const descriptor::DRIVER_CODE,
    driver_stack = const descriptor::DRIVER_STACK,
    driver_data = const descriptor::DRIVER_DATA,
    root_kind = const entry_area::ROOT_KIND as i64,
    segmented_root = const entry_area::SEGMENTED_ROOT,
    cpu = sym CPU,
    cpu_upcall_rsp = const offset_of!(Cpu, upcall_rsp),
    cpu_domain_cr3 = const offset_of!(Cpu, domain_cr3),
    cpu_domain_stacks = const offset_of!(Cpu, domain_stacks),
    cpu_root = const offset_of!(Cpu, root),
    cpu_segment_efer = const offset_of!(Cpu, segment_efer),
    efer = const cpu::EFER.bits(),
    efer_register = const cpu::EFER_REGISTER,
    cpu_lift = const offset_of!(Cpu, lift),
    shim = const SHIM,
    cpu_in_segment = const offset_of!(Cpu, in_segment),
    cpu_interrupt_stack = const offset_of!(Cpu, interrupt_stack),
    cpu_exception_stack = const offset_of!(Cpu, exception_stack),
    cpu_critical_stack = const offset_of!(Cpu, critical_stack),
    frame_cr3 = const offset_of!(UpcallFrame, cr3),
    frame_rip = const offset_of!(UpcallFrame, rip),
    frame_rsp = const offset_of!(UpcallFrame, rsp),
    frame_args = const offset_of!(UpcallFrame, args),
    trap_vector = const offset_of!(TrapFrame, vector),
);

macro_rules! define_gates {
    ($($number:literal $symbol:ident($($argument:ident: $kind:ident),*) $what:literal => $value:literal, $refuses:literal;)*) => {
        global_asm!(
            ".section .entry.text, \"ax\"",
            $(concat!("GATE ", $number),)*
            $(concat!("GATE32 ", $number),)*
            ".text",
        );

        mod segmented {
            unsafe extern "C" {
                $(
                    #[link_name = concat!("gate32_", $number)]
                    pub safe fn $symbol();
                )*
            }
        }

        unsafe extern "C" {
            $(
                #[link_name = concat!("gate_", $number)]
                safe fn $symbol();
            )*
        }

        /// Returns the address of each service's gate entry, by number.
        pub fn gate_entries() -> [u64; SERVICE_COUNT] {
            [$($symbol as *const () as u64),*]
        }

        /// Returns the address of each service's gate entry for segmented drivers, by number.
        pub fn gate32_entries() -> [u64; SERVICE_COUNT] {
            [$(segmented::$symbol as *const () as u64),*]
        }
    };
}
for_each_service!(define_gates);

/// Returns the address of the function behind each service's gate, by number; 0 if no functions are
/// installed.
pub fn service_functions() -> [u64; SERVICE_COUNT] {
    match handlers::installed() {
        Some(handlers) => handlers.services.map(|service| service as *const () as u64),
        None => [0; SERVICE_COUNT],
    }
}

/// Returns the addresses of the functions for traps from the kernel, and from drivers.
pub fn trap_functions() -> [u64; 2] {
    [trap_from_kernel as *const () as u64, trap_from_driver as *const () as u64]
}

unsafe extern "C" {
    fn gate_return();
    fn gate32_return();
    fn syscall32_return();

    /// Runs a segmented driver until it returns or is ended.
    ///
    /// # Safety
    /// As for [`enter_sandboxed`], for a segmented domain.
    pub fn enter_segmented(frame: *const UpcallFrame) -> UpcallEnd;

    /// Goes on with a segmented driver that sleeps in a service, as if the service had returned 0.
    ///
    /// # Safety
    /// As for [`resume_sandboxed`], for a segmented domain.
    pub fn resume_segmented(caller: &Caller, cr3: u64) -> UpcallEnd;

    /// Runs a driver in ring 1 until it returns or is ended.
    ///
    /// # Safety
    /// `frame` and [`super::cpu::this`] must describe the same domain, and its root must map the
    /// entry area.
    pub fn enter_sandboxed(frame: *const UpcallFrame) -> UpcallEnd;

    /// Runs a driver in ring 0 until it returns or asks to be ended.
    ///
    /// The frame's entry point must be that of a trusted domain. The driver's actions in ring 0 are
    /// not checked: that is the meaning of trust.
    pub fn enter_trusted(frame: *const UpcallFrame) -> UpcallEnd;

    /// Ends the upcall that is under way: [`enter_sandboxed`] or [`enter_trusted`] returns with
    /// `ended` set.
    ///
    /// # Safety
    /// An upcall must be under way, and nothing on the stack above it may need to be dropped.
    pub fn abort_upcall() -> !;

    /// Leaves the upcall that is under way, from a service that a sandboxed driver has called, or
    /// from a trap: [`enter_sandboxed`] returns. [`resume_sandboxed`] or [`resume_trapped`] goes on
    /// with the upcall.
    ///
    /// # Safety
    /// As for [`abort_upcall`].
    pub fn leave_asleep() -> !;

    /// Goes on with a sandboxed driver that sleeps in a service, as if the service had returned 0.
    ///
    /// # Safety
    /// `caller` must be the value of [`caller`] from when the driver fell asleep. `cr3` and
    /// [`super::cpu::this`] must be those of the same domain, which must still be sandboxed.
    pub fn resume_sandboxed(caller: &Caller, cr3: u64) -> UpcallEnd;

    /// Goes on with a sandboxed driver that stands behind a trap.
    ///
    /// # Safety
    /// `frame` must be the address, in the stacks' page, of a frame that is sanitized
    /// ([`super::frame::TrapFrame::sanitize`]), and [`super::cpu::this`] that of the same domain,
    /// which must still be sandboxed.
    pub fn resume_trapped(frame: u64) -> UpcallEnd;

    /// Leaves the upcall that is under way, from a service that a trusted driver has called:
    /// [`enter_trusted`] returns, with an RSP as its value. This function returns when
    /// [`resume_trusted`] is called with that RSP.
    ///
    /// # Safety
    /// As for [`abort_upcall`], as long as this has not returned.
    pub fn sleep_trusted();

    /// Goes on with a trusted driver that sleeps in a service.
    ///
    /// # Safety
    /// `rsp` must be the value with which the upcall ended when the driver fell asleep
    /// ([`sleep_trusted`]), and must be used only once. The driver's memory must be as it was then,
    /// and executable.
    pub fn resume_trusted(rsp: u64) -> UpcallEnd;
}

/// Returns the address of the return gate's entry.
pub fn return_gate_entry() -> u64 {
    gate_return as *const () as u64
}

/// Returns the address of the return gate's entry for segmented drivers.
pub fn return_gate32_entry() -> u64 {
    gate32_return as *const () as u64
}

/// Returns the address to which SYSCALL leads.
pub fn syscall_entry() -> u64 {
    syscall32_return as *const () as u64
}

/// The state with which a driver is entered.
#[repr(C)]
pub struct UpcallFrame {
    /// CR3 of the domain; not used for a trusted domain.
    pub cr3: u64,
    /// Entry point.
    pub rip: u64,
    /// Stack, with room for a return address at its top.
    pub rsp: u64,
    /// Arguments in RDI, RSI, RDX, RCX.
    pub args: [u64; 4],
}

/// The result of an upcall.
#[repr(C)]
pub struct UpcallEnd {
    /// The driver's return value; for a trusted driver that sleeps, the RSP to resume it with.
    pub value: i64,
    /// 0 if the driver returned, 1 if it was ended, 2 if it sleeps.
    pub ended: u64,
}

/// Registers of a driver in ring 1 when it called a gate, as `gate_enter` in `entry.S` pushes them.
/// They are the registers that a service preserves (System V), so that they still have the driver's
/// values. A segmented driver's EDI and ESI are in the places of R12 and R13.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are registers")]
pub struct Caller {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    /// The address after the far call, in the stub.
    pub rip: u64,
    pub rsp: u64,
}

impl Caller {
    /// Returns the registers with which the driver goes on behind its call, which returns `result`.
    pub fn behind_call(&self, result: i64) -> TrapFrame {
        let Caller { r15, r14, r13, r12, rbp, rbx, rip, rsp } = *self;
        let rax = result as u64;
        let mut frame = TrapFrame { r15, r14, r13, r12, rbp, rbx, rip, rsp, rax, ..TrapFrame::default() };
        frame.sanitize(false);
        frame
    }
}

/// The state that resumes a driver which sleeps in a service, or stands behind a trap.
#[derive(Debug)]
pub enum Asleep {
    /// The driver's registers in a service.
    Sandboxed(Caller),
    /// The driver's registers at the trap.
    Trapped(TrapFrame),
    /// The address on the driver's stack of the kernel's registers, saved in the middle of the
    /// service.
    Trusted(u64),
}

/// Returns the registers of the driver in ring 1 whose gate call is under way. If no call is under
/// way, they are left from the last call.
pub fn caller() -> Option<Caller> {
    let cpu = super::cpu::this();
    // The continuation of the upcall lies right above.
    let above = cpu.upcall_rsp.get();
    let word = |below: u64| crate::memory::read_kernel(above.checked_sub(below * 8)?);
    Some(Caller {
        rsp: word(1)? | cpu.lift.get(),
        rip: word(2)? | cpu.lift.get(),
        rbx: word(3)?,
        rbp: word(4)?,
        r12: word(5)?,
        r13: word(6)?,
        r14: word(7)?,
        r15: word(8)?,
    })
}
