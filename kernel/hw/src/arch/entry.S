/* Every way into the kernel and out of it: gates, traps, upcalls. This code lies in the entry area, because
   gates, traps and sandboxed upcalls execute at least one instruction with a domain's root in CR3.

   At every label that is reached from ring 1:
     - CPL is 0, but CR3 is the domain's and all registers are the driver's. So CR3, and not the ring, tells whether a
       trap belongs to a paged domain or to the kernel. The root of a segmented domain maps the kernel, which goes on with
       it; there a word of the kernel's (`in_segment`) tells. CS tells nothing: QEMU enters virtual-8086 mode from
       32-bit code, with whatever CS the driver likes.
     - A call gate clears no flags: IF, TF, DF, AC and NT are as the driver left them until the first POPFQ, or at the end
       of an upcall until `leave_upcall` looks at them. SYSCALL clears all but IF.
     - RSP points into the stacks' page of the loaded root, but behind SYSCALL, which leaves that of the driver. Each root
       maps a frame of its own at that address, so a value on the stack is out of reach after a write to CR3: values cross
       in registers.
   Driver arguments: RDI, RSI, RDX (System V). Free for this code: RAX, R9, R10, R11.

   Not taken:
     - SYSCALL for services: it has one entry for all of them, and SYSRET returns to ring 3 only. It ends the upcalls of
       segmented drivers, where there is nothing to tell apart and nothing to return to (`syscall32_return`).
     - INT n: the CPU pushes and checks more than for a call gate. All domains share one IDT. It would have a vector for
       each service, or one vector and a number in a register, which a driver may forge. With call gates, a driver
       cannot call a gate that is not present in its own domain's LDT.
     - One gate, and a number in a register: code would check on each call whether the domain has the service.
     - The kernel mapped in each domain's root: a call would not write CR3, but the kernel's memory would be only one
       speculative or wrong read away from the driver. */

.section .entry.text, "ax"

/* ---- gates: driver -> kernel ------------------------------------------------------------------------------------ */

/* One entry for each service; arch/gates.rs expands GATE for each line of the service table. */
.macro GATE number
.p2align 4
.global gate_\number
.type gate_\number, @function
gate_\number:
    /* stacks' page, from RSP up:  driver RIP | DRIVER_CODE | driver RSP | SS        (SDM 5.8.5.1) */
    push 2
    popfq                               /* IF, TF, DF, AC, NT = 0 */
    /* Load the address only now: an interrupt would have saved it where the driver can read it. */
    mov rax, qword ptr [{services} + 8 * \number] /* service_entry_N */
    jmp gate_enter
.endm

.p2align 4
gate_enter:
    /* stacks' page, from RSP up:  driver RIP | DRIVER_CODE | driver RSP | SS */
    mov qword ptr [rsp + 24], {driver_stack} /* the driver may have loaded another; CS can only be DRIVER_CODE */
    mov r10, [rsp]                      /* driver RIP */
    mov r11, [rsp + 16]                 /* driver RSP */
    mov r9, qword ptr [{kernel_cr3}]
    mov cr3, r9
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    /* kernel stack, below the continuation of the upcall; 16-byte aligned */
    push r11
    push r10
    push rbx                            /* services keep these; a report of the driver's end shows them */
    push rbp
    push r12
    push r13
    push r14
    push r15
    call rax                            /* service_entry_N: does not return if the driver is ended */
    /* kernel stack, from RSP up:  Caller (arch/gates.rs): R15-R12 | RBP | RBX | driver RIP | driver RSP | continuation */
    mov rcx, [rip + {cpu} + {cpu_domain_cr3}]
    mov cr3, rcx
    /* The call's frame is still in the stacks' page: no upcall enters the domain meanwhile, and a
       trap pushes into the page of the kernel's root. A service that slept returns through `resume_sandboxed`. */
    mov rsp, {entry_stack_top} - 32
    xor ecx, ecx                        /* clear registers that may hold kernel values */
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    /* stacks' page, from RSP up:  driver RIP | DRIVER_CODE | driver RSP | DRIVER_STACK;   RAX: result */
    sti                                 /* takes effect after the return */
    retfq

/* ---- gates of segmented drivers: the root stays ------------------------------------------------------------------ */

/* Loads the root of a segmented domain, in `register`, unless the kernel goes on with it already. That is known without a
   look at CR3, which takes a hundred ticks under QEMU. R9 is used. */
.macro LOAD_ROOT register
    cmp [rip + {cpu} + {cpu_root}], \register
    je 1f
    mov cr3, \register
    cmp qword ptr [rip + {cpu} + {cpu_root}], 0
    mov [rip + {cpu} + {cpu_root}], \register
    jne 1f
    mov r9d, [rip + {cpu} + {cpu_segment_efer}]
    call set_efer                       /* with SYSCALL, if upcalls end by it */
1:
.endm

/* Says that another root than a segmented domain's is loaded next, or was: nobody there has SYSCALL. R9 is used. */
.macro LEAVE_ROOT
    cmp qword ptr [rip + {cpu} + {cpu_root}], 0
    je 1f
    call leave_root
1:
.endm

/* Loads the kernel's root, unless the kernel goes on with it. RAX and R9 are used. A segmented domain's root does not map
   other slots. */
.macro LOAD_KERNEL_ROOT
    cmp qword ptr [rip + {cpu} + {cpu_root}], 0
    je 1f
    mov rax, qword ptr [{kernel_cr3}]
    mov cr3, rax
    call leave_root
1:
.endm

.p2align 4
leave_root:
    mov qword ptr [rip + {cpu} + {cpu_root}], 0
    mov r9d, {efer}
set_efer:                               /* to R9 */
    push rax
    push rcx
    push rdx
    mov eax, r9d
    mov ecx, {efer_register}
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    ret

/* 32-bit code calls these. The kernel is mapped, so that no root is loaded, and its memory can be used at once. Upper
   halves of registers are not the driver's: it cannot write them, and finds the kernel's own values there again.
   Driver arguments: EBX:EAX, ESI:EDX, ECX; the driver's stub keeps what it had in EBX and ESI. */
.macro GATE32 number
.p2align 4
.global gate32_\number
.type gate32_\number, @function
gate32_\number:
    /* stacks' page, from RSP up:  driver EIP | DRIVER_CODE | driver ESP | DRIVER_DATA */
    push 2
    popfq
    mov r8, qword ptr [{services} + 8 * \number]
    jmp gate32_enter
.endm

.p2align 4
gate32_enter:
    mov qword ptr [rip + {cpu} + {cpu_in_segment}], 0
    /* stacks' page, from RSP up:  driver EIP | DRIVER_CODE | driver ESP | DRIVER_DATA */
    mov r10d, [rsp]
    mov r11d, [rsp + 16]
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    mov ebx, ebx                        /* cut off the upper halves */
    mov ebp, ebp
    mov edi, edi
    mov esi, esi
    /* kernel stack, below the continuation of the upcall; 16-byte aligned */
    push r11
    push r10
    push rbx
    push rbp
    push rdi
    push rsi
    push 0
    push 0
    mov edi, eax
    mov r9d, edx
    mov edx, ecx
    shl rbx, 32
    or rdi, rbx
    shl rsi, 32
    or rsi, r9
    call r8                             /* service_entry_N: does not return if the driver is ended */
    /* kernel stack, from RSP up:  Caller: 0 | 0 | RSI | RDI | RBP | RBX | driver EIP | driver ESP | continuation */
    mov rsi, [rsp + 16]
    mov rdi, [rsp + 24]
    xor ebx, ebx
    mov rdx, rax                        /* result: EDX:EAX */
    shr rdx, 32
    mov r8, [rip + {cpu} + {cpu_domain_cr3}]
    LOAD_ROOT r8                        /* a service may have freed a space, with the kernel's root loaded */
    /* The call's frame is still there, as `gate_enter` explains. No driver can name the page. */
    mov rsp, {entry_stack_top} - 32
    xor ecx, ecx
    /* stacks' page, from RSP up:  driver EIP | DRIVER_CODE | driver ESP | DRIVER_DATA;   EDX:EAX: result */
    mov qword ptr [rip + {cpu} + {cpu_in_segment}], 1
    sti                                 /* takes effect after the return */
    retfq

/* ---- upcalls: kernel -> driver ---------------------------------------------------------------------------------- */

/* Saves the registers that a function keeps (System V). */
.macro PUSH_KEPT
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
.endm

/* Restores them, and returns. */
.macro POP_KEPT
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
.endm

/* Begins an upcall: saves state for `leave_upcall`, and sets the stack for services and traps. Interrupts are on. */
.macro BEGIN_UPCALL
    PUSH_KEPT
    push qword ptr [rip + {cpu} + {cpu_upcall_rsp}]
    /* kernel stack, 16-byte aligned, from RSP up:  outer continuation | R15-R12 | RBX | RBP | return address */
    mov [rip + {cpu} + {cpu_upcall_rsp}], rsp
.endm

/* Makes DS, ES, FS and GS null: no driver finds a selector of another's there. A null selector that is there already is
   not loaded again: a load takes as long as a hundred instructions. R8 and R9 are used. */
.macro NULL_SEGMENTS
    mov r8d, ds
    mov r9d, es
    or r8d, r9d
    mov r9d, fs
    or r8d, r9d
    mov r9d, gs
    or r8d, r9d
    jz 1f
    xor r9d, r9d
    mov ds, r9d
    mov es, r9d
    mov fs, r9d
    mov gs, r9d
1:
.endm

/* extern "C" fn enter_sandboxed(&UpcallFrame) -> (rax: value, rdx: 0 if the driver returned, 1 if it was ended, 2 if it
   sleeps) */
.p2align 4
.global enter_sandboxed
enter_sandboxed:
    BEGIN_UPCALL
    cli
    mov rax, [rdi + {frame_cr3}]
    mov r10, [rdi + {frame_rip}]
    mov r11, [rdi + {frame_rsp}]
    mov rsi, [rdi + {frame_args} + 8]
    mov rdx, [rdi + {frame_args} + 16]
    mov rcx, [rdi + {frame_args} + 24]
    mov rdi, [rdi + {frame_args}]
    xor ebx, ebx
    xor ebp, ebp
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
into_driver:
    /* RAX: root; R10, R11: driver RIP, RSP; RBX, RBP, RCX, RDX, RSI, RDI, R12-R15: the driver's. Interrupts are off. */
    LEAVE_ROOT                          /* each way out of a paged domain leads into the kernel's root */
    NULL_SEGMENTS
    mov cr3, rax
    mov rsp, {entry_stack_top}
    push {driver_stack}
    push r11
    push 0x202                          /* IF; IOPL 0 */
    push {driver_code}
    push r10
    xor eax, eax
    xor r8d, r8d
    xor r10d, r10d
    xor r11d, r11d
    /* stacks' page, from RSP up:  RIP | CS | RFLAGS | RSP | SS */
    iretq

/* Loads the root of a segmented domain, in RAX, and the segments of 32-bit code: DS, ES driver data; FS, GS null. Mostly all
   of them are there: one branch tells that, as QEMU translates the code between two branches as a whole. With another
   root all are loaded anew: virtual-8086 mode leaves segments whose selectors do not tell their bases. R8 and R9 are
   used. */
.macro LOAD_SEGMENTED
    mov r8d, ds
    mov r9d, es
    xor r8d, {driver_data}
    xor r9d, {driver_data}
    or r8d, r9d
    mov r9d, fs
    or r8d, r9d
    mov r9d, gs
    or r8d, r9d
    mov r9, [rip + {cpu} + {cpu_root}]
    xor r9, rax
    or r8, r9
    jz 2f
    LOAD_ROOT rax                       /* the LDT is the domain's from here on */
    mov r9d, {driver_data}
    mov ds, r9d
    mov es, r9d
    xor r9d, r9d
    mov fs, r9d
    mov gs, r9d
2:
.endm

/* extern "C" fn enter_segmented(&UpcallFrame) -> as above. The root is loaded only if another one is there, and stays
   when the upcall ends. The driver begins in the shim behind its stubs, which calls its entry point. */
.p2align 4
.global enter_segmented
enter_segmented:
    BEGIN_UPCALL
    mov rax, [rdi + {frame_cr3}]
    LOAD_SEGMENTED
    mov r10d, {shim}
    mov r11d, [rdi + {frame_rsp}]
    add r11d, 8                         /* the shim pushes the return address */
    mov esi, [rdi + {frame_rip}]
    mov eax, [rdi + {frame_args}]
    mov edx, [rdi + {frame_args} + 8]
    mov ecx, [rdi + {frame_args} + 16]
    mov ebx, [rdi + {frame_args} + 24]
    xor edi, edi
    xor ebp, ebp
into_segment:
    /* R10, R11: driver EIP, ESP; EAX, EBX, ECX, EDX, ESI, EDI, EBP: the driver's. Interrupts are on, as the driver runs with
       the flags that are here. One that comes behind `in_segment` is taken for one that hits a gate. */
    mov rsp, {entry_stack_top}
    push {driver_data}
    push r11
    push {driver_code}
    push r10
    mov qword ptr [rip + {cpu} + {cpu_in_segment}], 1
    /* stacks' page, from RSP up:  EIP | CS | ESP | SS */
    retfq

/* Where SYSCALL leads, which ends a segmented upcall. EDX:EAX: the driver's value. IF is 1, and TF, DF, IOPL, NT and AC are
   0 (arch/syscall.rs). RSP is the driver's: no trap uses it, as each has a stack of its own. */
.p2align 4
.global syscall32_return
syscall32_return:
    mov qword ptr [rip + {cpu} + {cpu_in_segment}], 0
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    /* kernel stack, from RSP up:  outer continuation | R15-R12 | RBX | RBP | return address */
    shl rdx, 32
    mov eax, eax
    or rax, rdx
    xor edx, edx
    pop qword ptr [rip + {cpu} + {cpu_upcall_rsp}]
    POP_KEPT

/* The gate at which a segmented upcall ends on other CPUs. EDX:EAX: the driver's value. */
.p2align 4
.global gate32_return
gate32_return:
    mov qword ptr [rip + {cpu} + {cpu_in_segment}], 0 /* a trap from here on is the kernel's, with any flags */
    shl rdx, 32
    mov eax, eax
    or rax, rdx
    xor edx, edx
    jmp leave_upcall

/* extern "C" fn resume_segmented(&Caller, root) -> as enter_segmented. The service has returned 0. */
.p2align 4
.global resume_segmented
resume_segmented:
    BEGIN_UPCALL
    mov rax, rsi
    LOAD_SEGMENTED
    mov r10d, [rdi + 48]                /* driver EIP */
    mov r11d, [rdi + 56]                /* driver ESP */
    mov ebx, [rdi + 40]
    mov ebp, [rdi + 32]
    mov esi, [rdi + 16]
    mov edi, [rdi + 24]
    xor eax, eax
    xor edx, edx
    xor ecx, ecx
    jmp into_segment

/* extern "C" fn enter_trusted(&UpcallFrame) -> as above. The driver runs on its own stack, in the kernel's root. The
   services that it calls run on the same stack. */
.p2align 4
.global enter_trusted
enter_trusted:
    BEGIN_UPCALL
    LOAD_KERNEL_ROOT
    mov rax, [rdi + {frame_rip}]
    mov rsi, [rdi + {frame_args} + 8]
    mov rdx, [rdi + {frame_args} + 16]
    mov rcx, [rdi + {frame_args} + 24]
    mov rsp, [rdi + {frame_rsp}]
    mov rdi, [rdi + {frame_args}]
    add rsp, 8                          /* the call below puts a return address there */
    call rax
    xor edx, edx
    jmp leave_upcall

/* The gate at which a sandboxed upcall ends. RAX: the driver's value. */
.p2align 4
.global gate_return
gate_return:
    mov rcx, qword ptr [{kernel_cr3}]
    mov cr3, rcx
    xor edx, edx
    jmp leave_upcall

/* extern "C" fn abort_upcall() -> !   Ends the upcall that is under way. Called with
   a root in CR3 that maps the kernel. The service or trap handler that runs on top of the upcall never continues. */
.p2align 4
.global abort_upcall
abort_upcall:
    mov edx, 1
leave_upcall:
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    /* kernel stack, from RSP up:  outer continuation | R15-R12 | RBX | RBP | return address */
    pushfq
    pop rcx
    xor ecx, 0x200                      /* IF must be 1, and TF, DF, IOPL, NT, AC, VIF, VIP and ID 0. Mostly they are, and a */
    test ecx, 0x3c7700                  /* POPFQ takes longer than this look at them. */
    jnz 2f
1:  pop qword ptr [rip + {cpu} + {cpu_upcall_rsp}]
pop_kept:
    POP_KEPT
2:  push 0x202
    popfq
    jmp 1b

/* ---- traps: exceptions and interrupts, from the kernel or from a driver ------------------------------------------ */

.p2align 4
.global trap_vectors
trap_vectors:
.set vector, 0
.rept 256
    .p2align 4
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0                              /* the CPU pushes no error code for this vector */
    .endif
    push vector
    jmp trap_enter
    .set vector, vector + 1
.endr

.p2align 4
trap_enter:
    /* stacks' page, from RSP up:  vector | error code | RIP | CS | RFLAGS | RSP | SS */
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    push 2
    popfq
    mov rbp, rsp
    /* RBP: the TrapFrame (arch/traps.rs), in the stacks' page of the loaded root */
    mov rax, cr3
    mov rcx, qword ptr [{kernel_cr3}]
    cmp rax, rcx
    je 3f
    cmp qword ptr [{root_kind}], {segmented_root}
    jne 1f
    cmp qword ptr [rip + {cpu} + {cpu_in_segment}], 0
    jne 4f

3:  mov rdi, rbp                        /* from the kernel: the stacks' page is one that no driver reaches */
    call trap_stack                     /* RSP: a stack for the handler */
    call qword ptr [{traps}]            /* trap_from_kernel */
    jmp 2f

4:  mov qword ptr [rip + {cpu} + {cpu_in_segment}], 0
    mov rdi, rbp                        /* from a segmented driver: the frame in its page, whatever root a handler loads */
    sub rdi, {stacks}
    add rdi, [rip + {cpu} + {cpu_domain_stacks}]
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    call qword ptr [{traps} + 8]        /* trap_from_driver: as below */
    jmp into_frame

1:  mov cr3, rcx                        /* from a paged driver: read the frame in its page through physical memory */
    mov rdi, rbp
    sub rdi, {stacks}
    add rdi, [rip + {cpu} + {cpu_domain_stacks}]
    mov rsp, [rip + {cpu} + {cpu_upcall_rsp}]
    call qword ptr [{traps} + 8]        /* trap_from_driver: returns, with a sanitized frame, only if the driver goes on */
into_frame:
    /* RBP: a sanitized TrapFrame in the domain's stacks' page, at its address there. Interrupts are off. */
    mov rcx, [rip + {cpu} + {cpu_domain_cr3}]
    mov rax, [rip + {cpu} + {cpu_lift}]
    test rax, rax
    jnz 5f
    LEAVE_ROOT                          /* as in `into_driver` */
    mov cr3, rcx
    jmp 2f

5:  mov rdx, rcx                        /* a segmented driver: its root is there, unless a handler has left it */
    LOAD_ROOT rdx
    mov ecx, ds
    mov edx, es
    xor ecx, {driver_data}
    xor edx, {driver_data}
    or ecx, edx
    jz 6f
    mov ecx, {driver_data}
    mov ds, ecx
    mov es, ecx
6:  mov [rip + {cpu} + {cpu_in_segment}], rax

2:  mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16                         /* vector, error code */
    iretq

/* Selects the stack for a trap from the kernel. RDI: the TrapFrame. There is one stack for interrupts, one for
   exceptions, and one for NMI, double fault and machine check, which can hit the other handlers. */
trap_stack:
    pop rax
    mov rsp, [rip + {cpu} + {cpu_interrupt_stack}]
    mov rcx, [rdi + {trap_vector}]
    cmp rcx, 32
    jae 1f
    mov rsp, [rip + {cpu} + {cpu_exception_stack}]
    cmp rcx, 2
    je 2f
    cmp rcx, 8
    je 2f
    cmp rcx, 18
    jne 1f
2:  mov rsp, [rip + {cpu} + {cpu_critical_stack}]
1:  jmp rax

/* ---- sleep: an upcall is left in the middle of a service, and resumed later --------------------------------------- */

/* extern "C" fn sleep_trusted()   Leaves the upcall of a trusted driver. RAX: an RSP; resume_trusted with this RSP makes
   sleep_trusted return. */
.p2align 4
.global sleep_trusted
sleep_trusted:
    PUSH_KEPT
    /* driver's stack, from RSP up:  R15-R12 | RBX | RBP | return address */
    mov rax, rsp

/* extern "C" fn leave_asleep() -> !   Leaves the upcall of a sandboxed driver, from a service or a trap. Its Caller, or its
   TrapFrame, was saved before. Called with a root in CR3 that maps the kernel. */
.global leave_asleep
leave_asleep:
    mov edx, 2
    jmp leave_upcall

/* extern "C" fn resume_sandboxed(&Caller, root) -> as enter_sandboxed. The service has returned 0. */
.p2align 4
.global resume_sandboxed
resume_sandboxed:
    BEGIN_UPCALL
    cli
    mov rax, rsi
    mov r15, [rdi]
    mov r14, [rdi + 8]
    mov r13, [rdi + 16]
    mov r12, [rdi + 24]
    mov rbp, [rdi + 32]
    mov rbx, [rdi + 40]
    mov r10, [rdi + 48]                 /* driver RIP */
    mov r11, [rdi + 56]                 /* driver RSP */
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    jmp into_driver

/* extern "C" fn resume_trapped(&TrapFrame) -> as enter_sandboxed. The driver goes on behind the trap in which its upcall
   was left. The frame is sanitized, and lies in the domain's stacks' page, at its address there. */
.p2align 4
.global resume_trapped
resume_trapped:
    BEGIN_UPCALL
    cli
    NULL_SEGMENTS
    mov rbp, rdi
    jmp into_frame

/* extern "C" fn resume_trusted(RSP) -> as enter_trusted */
.p2align 4
.global resume_trusted
resume_trusted:
    BEGIN_UPCALL
    LOAD_KERNEL_ROOT
    mov rsp, rdi
    jmp pop_kept

/* Marks labels as functions, so that backtraces and reports can name them. */
.macro FUNCTIONS names:vararg
.irp name, \names
.type \name, @function
.endr
.endm
FUNCTIONS gate_enter, gate_return, trap_vectors, trap_enter, trap_stack
FUNCTIONS enter_sandboxed, enter_trusted, abort_upcall, leave_asleep, resume_sandboxed, resume_trapped
FUNCTIONS sleep_trusted, resume_trusted
FUNCTIONS leave_root, set_efer, gate32_enter, gate32_return, syscall32_return, enter_segmented, into_segment, resume_segmented
