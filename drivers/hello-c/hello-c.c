/* A driver in C: it logs, and counts its commands. The header is generated from kernel/abi. */
#include <ringfence.h>

RF_MANIFEST = {
    RF_VERSIONS,
    .kind = RfKind_Other,
    .name = "hello-c",
    .version = "0.1.0",
    .pci_ids = RF_NO_PCI_IDS,
    .heap_bytes = 0,
    .dma_bytes = 0,
    .stack_bytes = 16384,
    .upcall_ms = 100,
};

static int64_t calls;

int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
{
    (void)a, (void)b, (void)c;
    switch (operation) {
    case RF_INIT:
        rf_log_text(RF_LOG_INFO, "hello from C");
        return 0;
    case RF_COMMAND:
        return ++calls;
    case RF_EXIT:
        rf_log_text(RF_LOG_INFO, "good-bye from C");
        return 0;
    default:
        return 0;
    }
}
