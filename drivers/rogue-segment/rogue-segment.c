/* Attacks of 32-bit code on the walls of a segmented domain: its segments, its gates, and the cut of each address to 32
   bits. It has no paged build. `tell rogue-segment NAME [NUMBER]` makes one attack; an unknown name is answered with 0. */
#include <ringfence.h>

RF_MANIFEST = {
    RF_VERSIONS,
    .kind = RfKind_Other,
    .name = "rogue-segment",
    .version = "0.1.0",
    .pci_ids = RF_NO_PCI_IDS,
    .heap_bytes = 4096,
    .dma_bytes = 0,
    .stack_bytes = 16384,
    .upcall_ms = 100,
    .flags = RF_BY_HAND,
};

/* Selectors: the kernel's code and data, the domain's own data, and the gate of a service that was not granted. */
#define KERNEL_CODE "0x08"
#define KERNEL_DATA "0x10"


static int is_called(const char *text, uint32_t len, const char *name, uint32_t *number)
{
    uint32_t at = 0;
    while (name[at] && at < len && text[at] == name[at])
        at++;
    if (name[at] || (at < len && text[at] != ' '))
        return 0;
    *number = 0;
    for (at++; at < len && text[at] != ' '; at++) {
        char c = text[at];
        *number = *number * 16 + (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return 1;
}

/* The instructions that are tried, by name. None of them may have an effect beyond the driver. */
#define INSTRUCTIONS(X)                                                                                               \
    X("cli", "cli")                                                                                                   \
    X("sti", "sti")                                                                                                   \
    X("hlt", "hlt")                                                                                                   \
    X("mov-to-cr3", "mov %%eax, %%cr3")                                                                               \
    X("mov-from-cr3", "mov %%cr3, %%eax")                                                                             \
    X("mov-to-cr0", "mov %%eax, %%cr0")                                                                               \
    X("mov-to-cr4", "mov %%eax, %%cr4")                                                                               \
    X("mov-to-dr7", "mov %%eax, %%dr7")                                                                               \
    X("clts", "clts")                                                                                                 \
    X("lmsw", "lmsw %%ax")                                                                                            \
    X("lgdt", "lgdt (%%esp)")                                                                                         \
    X("lidt", "lidt (%%esp)")                                                                                         \
    X("lldt", "lldt %%ax")                                                                                            \
    X("ltr", "ltr %%ax")                                                                                              \
    X("sgdt", "sgdt -16(%%esp)")                                                                                      \
    X("sidt", "sidt -16(%%esp)")                                                                                      \
    X("str", "str %%eax")                                                                                             \
    X("rdmsr", "rdmsr")                                                                                               \
    X("wrmsr", "wrmsr")                                                                                               \
    X("invd", "invd")                                                                                                 \
    X("invlpg", "invlpg (%%esp)")                                                                                     \
    X("in", "inb $0x60, %%al")                                                                                        \
    X("out", "outb %%al, $0x64")                                                                                      \
    X("sysenter", "sysenter")                                                                                         \
    X("sysexit", "sysexit")                                                                                           \
    X("sysret", ".byte 0x0f, 0x07")                                                                                   \
    X("syscall", "xor %%edx, %%edx; .byte 0x0f, 0x05")                                                                \
    X("syscall-with-stack", "mov %%eax, %%esp; mov $1, %%eax; xor %%edx, %%edx; .byte 0x0f, 0x05")                    \
    X("syscall-with-flags", "pushf; orl %%eax, (%%esp); mov $1, %%eax; cltd; popf; .byte 0x0f, 0x05")                 \
    X("return-gate-with-flags", "pushf; orl %%eax, (%%esp); mov $1, %%eax; cltd; popf; lcall $0x25, $0")              \
    X("int-3", "int3")                                                                                                \
    X("int-80", "int $0x80")                                                                                          \
    X("ud2", "ud2")                                                                                                   \
    X("x87", "fldz")                                                                                                  \
    X("sse", ".byte 0x0f, 0x57, 0xc0")                                                                                \
    X("null-ss", "xor %%eax, %%eax; mov %%ax, %%ss")                                                                  \
    X("kernel-ss", "mov $" KERNEL_DATA ", %%eax; mov %%ax, %%ss")                                                     \
    X("kernel-ds", "mov $" KERNEL_DATA ", %%eax; mov %%ax, %%ds")                                                     \
    X("pop-null-ss", "push $0; pop %%ss")                                                                             \
    X("far-jump-to-the-kernel", "ljmp $" KERNEL_CODE ", $0")                                                          \
    X("far-call-of-the-kernel", "lcall $" KERNEL_CODE ", $0")                                                         \
    X("far-return-to-the-kernel", "push $" KERNEL_CODE "; push $0; lret")                                             \
    X("iret-to-the-kernel", "pushf; push $" KERNEL_CODE "; push $0; iret")                                            \
    X("jump-to-a-gate", "ljmp $0x35, $0")                                                                             \
    X("16-bit-call-of-the-kernel", "lcallw $" KERNEL_CODE ", $0")                                                     \
    X("call-of-a-task", "lcall $0x18, $0")                                                                            \
    X("call-of-a-gate-not-granted", "lcall $0x85, $0")                                                                \
    X("nested-task", "pushf; orl $0x4000, (%%esp); popf; iret")                                                       \
    X("read-over-the-end", "mov 0xfffffffe, %%eax")                                                                   \
    X("write-over-the-end", "mov %%eax, 0xfffffffe")                                                                  \
    X("push-over-the-end", "mov $2, %%esp; push %%eax")                                                               \
    X("jump-over-the-end", "jmp . - 0x500000")                                                                              \
    X("virtual-8086", "mov %%ss, %%eax; push %%eax; push %%esp; push $0x23202; push $" KERNEL_CODE "; push $0x1234; iret") \
    X("no-stack", "xor %%esp, %%esp; push %%eax")                                                                     \
    X("lds", "push $" KERNEL_DATA "; push $0; lds (%%esp), %%eax")                                                    \
    X("les", "push $" KERNEL_DATA "; push $0; les (%%esp), %%eax")                                                    \
    X("lfs", "push $" KERNEL_DATA "; push $0; lfs (%%esp), %%eax")                                                    \
    X("lss", "push $" KERNEL_DATA "; push %%esp; lss (%%esp), %%esp")                                                 \
    X("lss-null", "push $0; push %%esp; lss (%%esp), %%esp")                                                          \
    X("bound", "push $0; push $0; mov $1, %%eax; bound %%eax, (%%esp)")                                               \
    X("into", "mov $0x7fffffff, %%eax; inc %%eax; into")                                                              \
    X("aam", "aam $0")                                                                                                \
    X("popf-iopl", "pushf; orl $0x3000, (%%esp); popf; cli")                                                          \
    X("iret-iopl", "pushf; orl $0x3000, (%%esp); push %%cs; push $1f; iret; 1: cli")                                  \
    X("sldt", "sldt %%eax")                                                                                           \
    X("smsw", "smsw %%eax")                                                                                           \
    X("rdpmc", "rdpmc")                                                                                               \
    X("wbinvd", "wbinvd")                                                                                             \
    X("ins", "mov $0x60, %%edx; insb")                                                                                \
    X("outs", "mov $0x64, %%edx; outsb")                                                                              \
    X("rsm", "rsm")                                                                                                   \
    X("vmcall", ".byte 0x0f, 0x01, 0xc1")                                                                             \
    X("swapgs", ".byte 0x0f, 0x01, 0xf8")                                                                             \
    X("jump-to-a-gate-of-16-bits", "ljmpw $0x35, $0")                                                                 \
    X("popa-over-the-end", "mov $0xfffffffe, %%esp; popa")                                                            \
    X("enter-over-the-end", "mov $2, %%esp; enter $8, $0")                                                            \
    X("leave-with-flags", "pushf; orl %%eax, (%%esp); popf")                                                          \
    X("segments-over-interrupts", "mov %%ss, %%eax; mov %%ax, %%fs; mov %%ax, %%gs; 1: loop 1b; mov %%fs, %%edx; "    \
      "cmp %%edx, %%eax; jne 2f; mov %%gs, %%edx; cmp %%edx, %%eax; je 3f; 2: ud2; 3:")                               \
    X("spin", "1: jmp 1b")

/* Enters a gate with the stack pointer at `esp`: the CPU uses its own stack for the call. */
static void call_gate_at(uint32_t esp)
{
    __asm__ volatile("mov %%esp, %%esi; mov %0, %%esp; lcall $0x35, $0; mov %%esi, %%esp" : : "r"(esp)
                     : "eax", "ecx", "edx", "esi", "memory");
}

/* A trap flag that is set across a gate: the debug exception hits the gate's first instruction, in ring 0. */
static void step_into_gate(void)
{
    __asm__ volatile("pushf; orl $0x100, (%%esp); popf; lcall $0x35, $0" : : : "eax", "ecx", "edx", "memory");
}

/* QEMU enters virtual-8086 mode with any CS that the image has, and then fails to fetch, as no page is a user's. If an
   interrupt comes in between, its frame says CS=8, SS=16 and RIP=0x1234: the kernel must go on there in ring 1. QEMU looks
   for interrupts where a block of instructions ends, so one that comes during the slow instructions of this block is met
   right behind the IRET. A block ends at a page's end as well, so this one is kept within a page. */
static void virtual_8086_slowly(void)
{
    __asm__ volatile("mov %%ss, %%eax; jmp 1f; .balign 2048; 1: .rept 400; lsl %%ax, %%ecx; .endr; push $" KERNEL_DATA
                     "; push %%esp; push $0x23202; push $" KERNEL_CODE "; push $0x1234; iret"
                     : : : "eax", "ecx", "memory");
}

/* In virtual-8086 mode the base of a segment is its selector times 16. With the driver's own selector in DS and ES, the
   next driver finds its own there, and another base, unless the kernel loads them anew. */
static void virtual_8086_data(void)
{
    __asm__ volatile("mov %%ss, %%eax; push $0; push $0; push %%eax; push %%eax; push %%eax; push %%esp; push $0x23202;"
                     "push $" KERNEL_CODE "; push $0x1234; iret" : : : "eax", "memory");
}

int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
{
    (void)b, (void)c;
    const char *text = (const char *)(uintptr_t)RF_MAILBOX;
    uint32_t len = (uint32_t)a, number;
    if (operation != RF_COMMAND)
        return rf_null();
#define TRY(name, instruction)                                                                                        \
    if (is_called(text, len, name, &number)) {                                                                        \
        uint32_t count = number;                                                                                      \
        __asm__ volatile(instruction : "+a"(number), "+c"(count) : : "edx", "memory");                                \
        return 1;                                                                                                     \
    }
    INSTRUCTIONS(TRY)
    if (is_called(text, len, "read", &number))
        return *(volatile uint32_t *)(uintptr_t)number;
    if (is_called(text, len, "write", &number)) {
        *(volatile uint32_t *)(uintptr_t)number = 0xbadbad;
        return 1;
    }
    if (is_called(text, len, "run", &number)) {
        ((void (*)(void))(uintptr_t)number)();
        return 1;
    }
    if (is_called(text, len, "gate-at", &number)) {
        call_gate_at(number);
        return 1;
    }
    if (is_called(text, len, "16-bit-call-of-a-gate", &number)) {
        __asm__ volatile("lcallw $0x35, $0" : : : "eax", "ecx", "edx", "memory");
        return 1;
    }
    if (is_called(text, len, "step-into-a-gate", &number)) {
        step_into_gate();
        return 1;
    }
    if (is_called(text, len, "virtual-8086-data", &number))
        virtual_8086_data();
    if (is_called(text, len, "virtual-8086-slowly", &number))
        virtual_8086_slowly();
    if (is_called(text, len, "flags", &number)) {
        __asm__ volatile("pushf; pop %0" : "=r"(number));
        return number & ~0x8d5u; /* but for CF, PF, AF, ZF, SF and OF */
    }
    if (is_called(text, len, "log-from", &number))
        return rf_log_words(RF_LOG_INFO, number, 16);
    if (is_called(text, len, "log-from-above", &number))
        return rf_log_words(RF_LOG_INFO, (uint64_t)number << 32 | RF_MAILBOX, 16);
    return 0;
}
