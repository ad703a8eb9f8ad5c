/* Gates that only `bench` puts in place of rf_null's gate, to measure the parts of a crossing. Comments as in entry.S. */

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

.irp name, bench_gate_bare, bench_gate_shared, bench_interrupt
.type \name, @function
.endr
