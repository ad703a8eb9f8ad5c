//! What a driver may ask of the kernel: one service, one call gate, one number.
//!
//! A module asks for a service by leaving its symbol undefined. The loader answers each granted one with a stub:
//! `lcall *gate` in ring 1, `jmp service` in ring 0. Arguments go in RDI, RSI, RDX, RCX, R8 (System V), the result
//! comes back in RAX: 0 or more is the value, negative is minus a [`Refusal`].

use core::fmt;

/// Hands the list of all services to the macro `$then`, as `number symbol(argument: type, ...) "what it does";` each.
///
/// Everything that must agree with the list is generated from it: the kernel's gates, the SDK's declarations and the
/// loader's table of names.
#[macro_export]
macro_rules! for_each_service {
    ($then:ident) => {
        $then! {
            0 rf_null() "does nothing: the cost of a crossing";
            1 rf_log(level: u64, text: u64, len_bytes: u64) "writes a line to the kernel's log";
            2 rf_panic(text: u64, len_bytes: u64) "ends this driver, with a message";
            3 rf_heap_grow(len_bytes: u64) "maps more heap behind what is there";
            4 rf_time_ns() "nanoseconds since boot";
            5 rf_dma_alloc(len_bytes: u64) "maps physically contiguous zeroed memory";
            6 rf_dma_free(address: u64) "gives DMA memory back";
            7 rf_dma_address(address: u64) "where the device sees DMA memory";
            8 rf_bar_map(bar: u64) "maps a memory BAR, or grants an I/O BAR's ports";
            9 rf_bar_len(bar: u64) "the length of a BAR in bytes";
            10 rf_pci_read(offset: u64, width_bytes: u64) "reads the device's PCI configuration space";
            11 rf_pci_write(offset: u64, width_bytes: u64, value: u64) "writes the permitted part of it";
            12 rf_irq_enable() "lets the device's interrupt line through";
            13 rf_irq_ack() "lets it through again after an interrupt";
            14 rf_offer(info: u64, len_bytes: u64) "offers what its class is about and maps the queues";
            15 rf_irq_vectors(wanted: u64) "gives the device interrupts of its own (MSI-X)";
        }
    };
}

macro_rules! define_services {
    ($($number:literal $symbol:ident($($argument:ident: $type:ty),*) $what:literal;)*) => {
        /// Name, number of arguments and purpose of each service, indexed by its number.
        pub const SERVICES: &[Service] = &[$(Service {
            symbol: stringify!($symbol),
            arguments: &[$(stringify!($argument)),*],
            what: $what,
        }),*];

        // A service's number is its place in the list.
        const _: () = {
            let mut index = 0;
            $(assert!(index == $number); index += 1;)*
            assert!(index == SERVICE_COUNT);
        };
    };
}
for_each_service!(define_services);

/// How many services there are.
pub const SERVICE_COUNT: usize = SERVICES.len();

/// What is known of a service without calling it.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// The symbol a module leaves undefined to ask for it.
    pub symbol: &'static str,
    /// Names of the arguments, in order.
    pub arguments: &'static [&'static str],
    /// What it does, in a few words.
    pub what: &'static str,
}

/// The number of the service that `symbol` asks for.
pub fn by_symbol(symbol: &[u8]) -> Option<usize> {
    SERVICES.iter().position(|service| service.symbol.as_bytes() == symbol)
}

/// Why the kernel refuses a request. The driver may go on, and may ask again.
///
/// What no correct driver ever asks (a pointer outside its slot, say) is not refused: it is a fault, and ends the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Refusal {
    /// An argument is outside what the service takes.
    Invalid = 1,
    /// The domain's budget, or the machine's memory, does not allow it.
    NoMemory = 2,
    /// There is no such thing: BAR, device, DMA region.
    NotFound = 3,
    /// It was done before and can be done only once.
    Busy = 4,
    /// This part of configuration space is the kernel's.
    Denied = 5,
    /// There are as many of these as there can be.
    Full = 6,
}

impl Refusal {
    const ALL: [Refusal; 6] =
        [Refusal::Invalid, Refusal::NoMemory, Refusal::NotFound, Refusal::Busy, Refusal::Denied, Refusal::Full];

    /// The result in RAX that says so: negative.
    pub const fn to_result(self) -> i64 {
        -(self as i64)
    }

    /// The refusal that a negative result stands for.
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
    fn refusals_survive_the_trip_through_rax() {
        for refusal in Refusal::ALL {
            assert!(refusal.to_result() < 0);
            assert_eq!(Refusal::from_result(refusal.to_result()), Some(refusal));
        }
        assert_eq!(Refusal::from_result(0), None);
        assert_eq!(Refusal::from_result(i64::MIN), None);
    }
}
