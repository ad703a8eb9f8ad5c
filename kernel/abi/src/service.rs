//! The requests that a driver can make of the kernel. Each service has one number and one call
//! gate.
//!
//! A module asks for a service by leaving its symbol undefined. The loader resolves the symbol of
//! each granted service to a stub: `lcall *gate` in ring 1, `jmp service` in ring 0. Arguments go
//! in RDI, RSI, RDX (System V); the result comes back in RAX. A result of 0 or more is the
//! value, a negative one is the negated number of a [`Refusal`].

use core::fmt;

/// Hands the list of all services to the macro `$then`, one after the other as `number
/// symbol(argument: Kind, ...) "what it does" => "its value", "what it refuses";`, where a kind is
/// a variant of [`Kind`].
///
/// All parts that must agree with the list are generated from it: the kernel's gates and the
/// functions behind them, the SDK's declarations and safe functions, the loader's table of names,
/// the C header, the output of a trace, and the table in the documents.
#[macro_export]
macro_rules! for_each_service {
    ($then:ident) => {
        $then! {
            0 rf_null() "does nothing: the cost of a crossing" => "0", "never";
            1 rf_log(level: Level, text: Text) "writes a line to the kernel's log"
                => "0; levels 4 and 5 are not kept",
                   "a level outside 1 to 5, more than 512 bytes; more than 64 lines in one upcall (busy)";
            2 rf_panic(text: Text) "ends this driver, with a message" => "does not return; 512 bytes of the message are read", "never";
            3 rf_heap_grow(len_bytes: Length) "maps more heap behind what is there"
                => "address of the new memory, whole pages, right behind the old", "0 bytes; beyond the budget";
            4 rf_time_ns() "nanoseconds since boot" => "nanoseconds since boot", "never";
            5 rf_dma_alloc(len_bytes: Length) "maps physically contiguous zeroed memory"
                => "address of the memory, whole pages",
                   "0 bytes; beyond the budget; more than 256 regions; 256 MiB of addresses used up";
            6 rf_dma_free(address: GivenBack) "gives DMA memory back"
                => "0; the address faults from then on. The memory stays the driver's, within its budget, for its next request of that length",
                   "any other address, the queues' memory among them";
            7 rf_dma_address(address: Address) "the address at which the device sees DMA memory"
                => "behind an IOMMU its offset in the slot, otherwise its physical address",
                   "any other address; a device that reaches no memory";
            8 rf_bar_map(bar: Number) "maps a memory BAR, or opens a run of ports"
                => "address of the registers, or the first port; of a device at fixed ports the BAR is a run of them; pages that hold the MSI-X table or the pending bits are left out",
                   "no such BAR; a BAR of such pages alone, pages shared with another device, addresses that are memory, ports below 0x400 (denied)";
            9 rf_bar_len(bar: Number) "the length of a BAR" => "its length in bytes, or in ports", "no such BAR";
            10 rf_pci_read(offset: Number, width_bytes: Number) "reads the device's PCI configuration space"
                => "the value", "offsets from 256 on, a width that is not 1, 2 or 4, an offset that is no multiple of it";
            11 rf_pci_write(offset: Number, width_bytes: Number, value: Number) "writes the permitted part of it"
                => "0; of the command register only the bit for bus mastering is written",
                   "other registers (denied); a recipe for the reset that does not fit the device";
            12 rf_irq_enable() "lets the device's interrupt line through" => "0", "a device without an interrupt line";
            13 rf_irq_ack() "lets it through again after an interrupt" => "0", "interrupts that were not enabled";
            14 rf_offer(info: Bytes) "offers a device of its class and maps the queues"
                => "address of the queues; info is a NetInfo, a ScsiInfo, or a BlockInfo",
                   "another length; numbers out of range; a second time (busy); more than 4 network interfaces (full)";
            15 rf_irq_vectors(wanted: Number) "gives the device interrupts of its own (MSI-X)"
                => "how many it has from then on, in place of its line; 0 if it has no MSI-X, or if no IOMMU checks which device sent a message",
                   "none, or more than 8; after rf_irq_enable, or a second time (busy)";
            16 rf_use(name: Text) "opens what the manifest says that it uses, by its name: a disk"
                => "address of the queues",
                   "no such thing; a name of more than 32 bytes; a second time (busy)";
            17 rf_timer(delay_ns: Number, period_ns: Number)
                "has the driver polled after a delay, and from then on once a period, in nanoseconds"
                => "0; without a period it is polled once, without a delay after a period; with neither, the timer stops",
                   "a period below 100000";
            18 rf_answer(text: Text) "prints text for the person who typed the command that is under way"
                => "0; the text is shown in lines, besides the command's value",
                   "other upcalls than commands; more than 4096 bytes in all (full)";
            19 rf_command(text: Text) "names a command that the driver understands, for help and completion"
                => "0; the text is the command as it is typed, a tab, and its description",
                   "other upcalls than init; a text in another format, or of more than 160 bytes; more than 32 (full)";
            20 rf_sleep(delay_ns: Number) "leaves the upcall, and goes on later"
                => "0, at a tick of the clock; a driver that sleeps for longer than the limit sleep-ms in one upcall is ended",
                   "never";
            21 rf_wait() "leaves the upcall until the device that the driver uses has answered"
                => "0, when a request of the driver is done; a driver that waits for too long in one upcall is ended",
                   "a driver that has no request under way";
        }
    };
}

macro_rules! define_services {
    ($($number:literal $symbol:ident($($argument:ident: $kind:ident),*) $what:literal => $value:literal, $refuses:literal;)*) => {
        /// The description of each service, indexed by its number.
        pub const SERVICES: &[Service] = &[$(Service {
            symbol: stringify!($symbol),
            arguments: &[$(Argument { name: stringify!($argument), kind: Kind::$kind }),*],
            what: $what,
            value: $value,
            refuses: $refuses,
        }),*];

        // A service's number is its place in the list, and its arguments fit into three registers.
        const _: () = {
            let mut index = 0;
            $(
                assert!(index == $number);
                let taken = 0 $(+ Kind::$kind.registers())*;
                assert!(taken <= REGISTERS);
                index += 1;
            )*
            assert!(index == SERVICE_COUNT);
        };
    };
}
for_each_service!(define_services);

/// Number of services.
pub const SERVICE_COUNT: usize = SERVICES.len();
/// Most registers in which arguments are passed.
pub const REGISTERS: usize = 3;

/// The type of an argument of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number of something.
    Number,
    /// A length in bytes.
    Length,
    /// An address in the driver's slot.
    Address,
    /// An address that the driver got from a service and does not use any more.
    GivenBack,
    /// Severity of a line: 1 (error), 2 (warning), 3 (info), 4 (debug), 5 (trace).
    Level,
    /// Text in the driver's slot, in two registers: its address, and its length in bytes.
    Text,
    /// Bytes in the driver's slot, in two registers: their address, and their length.
    Bytes,
}

impl Kind {
    /// Returns the number of registers that an argument of this kind takes.
    pub const fn registers(self) -> usize {
        match self {
            Kind::Number | Kind::Length | Kind::Address | Kind::GivenBack | Kind::Level => 1,
            Kind::Text | Kind::Bytes => 2,
        }
    }

    /// Returns the kind of the value in the first register of an argument, and in the second
    /// register if it has two.
    pub const fn of_registers(self) -> (Kind, Option<Kind>) {
        match self {
            Kind::Text | Kind::Bytes => (Kind::Address, Some(Kind::Length)),
            other => (other, None),
        }
    }

    /// Writes the value of a register of this kind, for a person.
    pub fn write(self, f: &mut fmt::Formatter<'_>, value: u64) -> fmt::Result {
        match (self, value) {
            (Kind::Level, 1) => f.write_str("error"),
            (Kind::Level, 2) => f.write_str("warning"),
            (Kind::Level, 3) => f.write_str("info"),
            (Kind::Level, 4) => f.write_str("debug"),
            (Kind::Level, 5) => f.write_str("trace"),
            _ => write!(f, "{value:#x}"),
        }
    }
}

/// An argument of a service.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// The argument's name.
    pub name: &'static str,
    /// The argument's type.
    pub kind: Kind,
}

/// The description of a service.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// The symbol that a module leaves undefined to ask for the service.
    pub symbol: &'static str,
    /// The service's arguments, in order.
    pub arguments: &'static [Argument],
    /// The service's purpose, in a few words.
    pub what: &'static str,
    /// The meaning of a result of 0 or more.
    pub value: &'static str,
    /// The requests that the service refuses.
    pub refuses: &'static str,
}

impl Service {
    /// Returns the kind of the value in each register that the service takes.
    pub fn registers(&self) -> impl Iterator<Item = Kind> {
        self.arguments.iter().flat_map(|argument| {
            let (first, second) = argument.kind.of_registers();
            core::iter::once(first).chain(second)
        })
    }
}

/// Returns the number of the service with the name `symbol`.
pub fn by_symbol(symbol: &[u8]) -> Option<usize> {
    SERVICES.iter().position(|service| service.symbol.as_bytes() == symbol)
}

/// The reason why the kernel refuses a request. The driver may go on, and may ask again.
///
/// A request that no correct driver ever makes (a pointer outside its slot, for example) is not
/// refused: it is a fault, and ends the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Refusal {
    /// An argument is outside the range that the service accepts.
    Invalid = 1,
    /// The domain's budget, or the machine's memory, is used up.
    NoMemory = 2,
    /// The BAR, device or DMA region does not exist.
    NotFound = 3,
    /// The request was made before, and can be made only once.
    Busy = 4,
    /// This part of configuration space belongs to the kernel.
    Denied = 5,
    /// The limit on objects of this kind is reached.
    Full = 6,
    /// The device has not reached in time the state that its driver waits for. No service says so:
    /// it is for a driver's own results.
    NoAnswer = 7,
}

impl Refusal {
    /// All refusals.
    pub const ALL: [Refusal; 7] = [
        Refusal::Invalid,
        Refusal::NoMemory,
        Refusal::NotFound,
        Refusal::Busy,
        Refusal::Denied,
        Refusal::Full,
        Refusal::NoAnswer,
    ];

    /// Returns the result for RAX that stands for this refusal: it is negative.
    pub const fn to_result(self) -> i64 {
        -(self as i64)
    }

    /// Returns the refusal that a negative result stands for.
    pub fn from_result(result: i64) -> Option<Refusal> {
        Self::ALL.into_iter().find(|refusal| refusal.to_result() == result)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Invalid => "invalid argument",
            Refusal::NoMemory => "no memory",
            Refusal::NotFound => "not found",
            Refusal::Busy => "busy",
            Refusal::Denied => "denied",
            Refusal::Full => "there are as many as there can be",
            Refusal::NoAnswer => "the device does not answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_finds_its_own_number() {
        for (number, service) in SERVICES.iter().enumerate() {
            assert_eq!(by_symbol(service.symbol.as_bytes()), Some(number));
        }
        assert_eq!(by_symbol(b"rf_"), None);
        assert_eq!(by_symbol(b""), None);
    }

    #[test]
    fn each_register_has_a_kind() {
        for service in SERVICES {
            let counted: usize = service.arguments.iter().map(|argument| argument.kind.registers()).sum();
            assert_eq!(service.registers().count(), counted, "{}", service.symbol);
        }
        let log = SERVICES[by_symbol(b"rf_log").unwrap()];
        assert!(log.registers().eq([Kind::Level, Kind::Address, Kind::Length]));
    }

    #[test]
    fn refusals_survive_the_trip_through_rax() {
        for refusal in Refusal::ALL {
            assert!(refusal.to_result() < 0);
            assert_eq!(Refusal::from_result(refusal.to_result()), Some(refusal));
        }
        assert_eq!(Refusal::from_result(0), None);
        assert_eq!(Refusal::from_result(i64::MIN), None);
    }
}
