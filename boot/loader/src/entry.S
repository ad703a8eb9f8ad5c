/* From the 32-bit state that PVH and multiboot2 loaders leave (flat segments, paging off, interrupts off) to 64-bit
   Rust. EBX points to the loader's information; EDI becomes 0 for PVH, 1 for multiboot2. */

.section .note.pvh, "a", @note
.align 4
    .long 4, 8, 18              /* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad entry_pvh

.section .boot.multiboot2, "a"
.align 8
multiboot2_header:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_end - multiboot2_header))
    .word 3, 0                  /* entry address, required */
    .long 12, entry_multiboot2
    .align 8
    .word 6, 0                  /* modules aligned to pages */
    .long 8
    .word 0, 0                  /* end */
    .long 8
multiboot2_end:

.section .boot.text, "ax"
.code32
.global entry_pvh
entry_pvh:
    xorl %edi, %edi
    jmp 1f
entry_multiboot2:
    movl $1, %edi
1:  cli
    cld
    movl $boot_stack_top, %esp
    movl %edi, %esi             /* CPUID clobbers EBX: keep the arguments in ESI and EBP */
    movl %ebx, %ebp

    /* Long mode and NX: CPUID 80000001h, EDX bits 29 and 20 (SDM vol. 2A, CPUID) */
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb too_old
    movl $0x80000001, %eax
    cpuid
    andl $1 << 29 | 1 << 20, %edx
    cmpl $1 << 29 | 1 << 20, %edx
    jne too_old

    /* Identity-map the first 4 GiB with 2 MiB pages: PML4[0] -> PDPT[0..4] -> 4 page directories. */
    movl $boot_pml4, %edi
    movl $boot_pdpt + 3, (%edi)
    movl $boot_pdpt, %edi
    movl $boot_pd + 3, %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $8, %edi
    addl $4096, %eax
    loop 2b
    movl $boot_pd, %edi
    movl $0x83, %eax            /* present, writable, 2 MiB */
    movl $2048, %ecx
3:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    loop 3b

    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $1 << 5, %eax           /* PAE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER: LME, NXE */
    rdmsr
    orl $1 << 8 | 1 << 11, %eax
    wrmsr
    movl %cr0, %eax
    orl $1 << 31 | 1 << 16, %eax /* PG, WP */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $entry_64

/* Prints on COM1 that the CPU lacks a feature, and ends QEMU with the status of a panic. */
too_old:
    movl $too_old_text, %esi
4:  movb (%esi), %bl
    testb %bl, %bl
    jz 6f
    movl $100000, %ecx          /* limits the wait: a missing port is never ready */
5:  movw $0x3fd, %dx            /* line status: bit 5, ready for a byte */
    inb %dx, %al
    testb $1 << 5, %al
    loopz 5b
    movb %bl, %al
    movw $0x3f8, %dx
    outb %al, %dx
    incl %esi
    jmp 4b
6:  movl $0x12, %eax
    movw $0xf4, %dx
    outl %eax, %dx
7:  hlt
    jmp 7b
too_old_text:
    .asciz "\r\nboot failed: the CPU has no long mode, or cannot make pages not executable (NX)\r\n"

.code64
entry_64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $boot_stack_top, %esp
    movl %esi, %edi             /* loader_main(which, information) */
    movl %ebp, %esi
    xorl %ebp, %ebp
    call loader_main
    ud2

/* enter_kernel(rdi: entry, rsi: stack, rdx: page tables, rcx: boot information) */
.global enter_kernel
enter_kernel:
    movq %rdx, %cr3
    movq %rsi, %rsp
    movq %rdi, %rax
    movq %rcx, %rdi
    xorl %ebp, %ebp
    pushq %rbp                  /* RSP as after a call: 8 below a multiple of 16 */
    jmp *%rax

.align 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt

.section .bss
.align 4096
.global boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4 * 4096
boot_stack: .skip 32768
boot_stack_top:
.text
