/* A driver in C: it logs, and answers when it is told something. The header is generated from kernel/abi. */
#include <ringfence.h>

__attribute__((section(".ringfence"), used)) const RfManifest rf_manifest = {
    .magic = RF_MAGIC,
    .abi_version = RF_ABI_VERSION,
    .kind = RfKind_Other,
    .name = "hello-c",
    .version = "0.1.0",
    .pci_ids = {{0xffff, 0xffff}},
    .heap_bytes = 0,
    .dma_bytes = 0,
    .stack_bytes = 16384,
    .upcall_ms = 100,
};

static void say(const char *text)
{
    uint64_t len_bytes = 0;
    while (text[len_bytes])
        len_bytes++;
    rf_log(RF_LOG_INFO, text, len_bytes);
}

static int64_t calls;

int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
{
    (void)a, (void)b, (void)c;
    switch (operation) {
    case RF_INIT:
        say("hello from C");
        return 0;
    case RF_COMMAND:
        return ++calls;
    case RF_EXIT:
        say("good-bye from C");
        return 0;
    default:
        return 0;
    }
}
