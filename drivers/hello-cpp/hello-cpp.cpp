// A driver in C++, of two files, with a compiler flag in compile_flags.txt. It logs, counts the
// commands it is given, and is polled by a timer. There are no exceptions and no run-time types,
// and no constructors run before the driver is entered.
#include "counter.hpp"

RF_MANIFEST = {
    RF_VERSIONS,
    .kind = RfKind_Other,
    .name = "hello-cpp",
    .version = "0.1.0",
    .pci_ids = RF_NO_PCI_IDS,
    .heap_bytes = 0,
    .dma_bytes = 0,
    .stack_bytes = 16384,
    .upcall_ms = 100,
};

namespace {

Counter told, polled;

int64_t command(const char *typed, uint64_t len_bytes)
{
    if (rf_is(typed, len_bytes, "polls")) {
        rf_answer_text("polled by its timer");
        return polled.count() - 1;
    }
    return told.count();
}

} // namespace

int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t, uint64_t)
{
    constexpr uint64_t MILLISECOND = 1000000;
    switch (operation) {
    case RF_INIT:
        rf_log_text(RF_LOG_INFO, GREETING);
        rf_command_text("polls\thow often its timer has gone off");
        return rf_timer(0, MILLISECOND);
    case RF_POLL:
        if (a & RF_EVENT_TIMER)
            polled.count();
        return RF_REPLY_ACKNOWLEDGED;
    case RF_COMMAND:
        return command(rf_typed(), a);
    default:
        return 0;
    }
}
