/* Crossings that only `bench` uses, to measure the parts of one, and other ways to cross. Comments as in entry.S.
   First gates that take the place of rf_null's. */

.section .entry.text.bench, "ax"

/* The shortest crossing with the same two CR3 writes: no checks, no stack switch, nothing saved, nothing cleared. */
.p2align 4
.global bench_gate_bare
bench_gate_bare:
    mov rax, qword ptr [{kernel_cr3}]
    mov cr3, rax
    mov rax, [rip + {cpu} + {cpu_domain_cr3}]
    mov cr3, rax
    retfq

/* gate_enter without its CR3 writes, for a root that maps the kernel too. */
.p2align 4
.global bench_gate_shared
bench_gate_shared:
    push 2
    popfq
    mov rax, qword ptr [{services}]     /* service_entry_0 */
    mov qword ptr [rsp + 24], {driver_stack}
    mov r10, [rsp]
    mov r11, [rsp + 16]
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    push r11
    push r10
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    call rax
    mov rsp, {entry_stack_top} - 32
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    sti
    retfq

/* The same crossing through an interrupt gate. */
.p2align 4
.global bench_interrupt
bench_interrupt:
    mov rax, qword ptr [{kernel_cr3}]
    mov cr3, rax
    mov rax, [rip + {cpu} + {cpu_domain_cr3}]
    mov cr3, rax
    iretq

/* ---- 64-bit ring 3 in the kernel's root: SYSRET and SYSCALL in place of IRETQ and gates -------------------------- */

/* Only the kernel's root is loaded meanwhile, and it maps this. Interrupts are off until the upcall ends: there is no
   descriptor of ring 3 that an IRETQ could load, so that an NMI meanwhile ends the kernel. */
.section .text.bench, "ax"

/* `enter_trusted` calls this, by way of a page of the slot. RDI, RSI, RDX, RCX: the driver's. */
.p2align 4
.global bench_enter_user
bench_enter_user:
    /* driver's stack, from RSP up:  return address in `enter_trusted` */
    pop qword ptr [rip + {user} + {user_back}] /* the driver will write there */
    mov r10, rcx                        /* SYSRET takes RIP from RCX; the shim moves the argument back */
    mov rcx, [rip + {user} + {user_shim}]
    mov rax, [rip + {user} + {user_entry}]
    xor ebx, ebx
    xor ebp, ebp
    xor r8d, r8d
    xor r9d, r9d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov r11d, 2                         /* IF = 0 */
    sysretq

/* Where SYSCALL leads. R10: the number of the service, or the one behind the last, which ends the upcall; RCX: driver RIP;
   R11: RFLAGS. IF, TF, DF, AC and NT are 0. Does what a call gate, its descriptor in the LDT and `gate_enter` do. */
.p2align 4
.global bench_syscall
bench_syscall:
    cmp r10, {service_count}
    jae 1f
    bt [rip + {user} + {user_granted}], r10
    jnc 2f
    mov r9, rsp
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    /* kernel stack, below the continuation of the upcall; 16-byte aligned */
    push r9
    push rcx
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov r9, {services}
    call qword ptr [r9 + 8 * r10]       /* service_entry_N */
    /* kernel stack, from RSP up:  R15-R12 | RBP | RBX | driver RIP | driver RSP | continuation */
    mov rcx, [rsp + 48]
    mov rdx, rcx
    shr rdx, 47                         /* Intel's SYSRET faults in ring 0, on the driver's stack, if RCX is not canonical */
    jnz 2f
    mov rsp, [rsp + 56]
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    mov r11d, 2
    sysretq
1:  jne 2f
    jmp qword ptr [rip + {user} + {user_back}] /* into `enter_trusted`, which loads RSP; RAX: the driver's value */
2:  ud2

.irp name, bench_enter_user, bench_syscall, bench_gate_bare, bench_gate_shared, bench_interrupt
.type \name, @function
.endr
