/* Code of a segmented domain that checks whether 32-bit code is confined (arch/confinement.rs).
   It is data to the kernel, which copies it into such a domain, to the start of the image. Called with the C convention;
   returns in EAX a bit for each check that failed. An address that is not cut off to 32 bits names nothing, and ends the
   domain. */

.section .rodata.confinement, "a"
.global confinement_begin, confinement_end
.code32

confinement_begin:
    xor edx, edx
    /* bit 0: the byte 0x48 is DEC EAX, and no prefix */
    mov eax, 2
    .byte 0x48
    cmp al, 1
    je 1f
    or edx, 1
1:  /* bit 1: base and displacement are cut off */
    mov ebx, {there} - {far}            /* below 0: near 4 GiB */
    mov eax, dword ptr [ebx + {far}]
    cmp eax, {value}
    je 1f
    or edx, 2
1:  /* bit 2: base and index are cut off */
    mov ecx, {far} / 4
    mov eax, dword ptr [ebx + ecx * 4]
    cmp eax, {value}
    je 1f
    or edx, 4
1:  /* bit 3: an index that is scaled is cut off */
    mov ecx, {there} / 4 + {far}
    mov eax, dword ptr [ecx * 4]
    cmp eax, {value}
    je 1f
    or edx, 8
1:  /* bit 4: the place of a bit is cut off */
    mov ebx, {there} - {far} / 8
    mov ecx, {far}
    bt dword ptr [ebx], ecx
    jc 1f
    or edx, 16
1:  /* bit 5: this is the driver's own code segment */
    mov eax, cs
    cmp eax, {driver_code}
    je 1f
    or edx, 32
1:  /* bit 6: no code segment that ring 1 can have is for 64-bit code, or conforming; its own can be looked at */
    mov ecx, cs
    lar eax, ecx
    jz 1f
    or edx, 64
1:  xor ecx, ecx
2:  mov ebx, ecx
    or ebx, 1
    lar eax, ebx
    jnz 3f
    and eax, 0x1800                     /* a segment, and of code */
    cmp eax, 0x1800
    jne 3f
    lar eax, ebx
    test eax, 0x200400                  /* L, or conforming */
    jz 3f
    or edx, 64
3:  add ecx, 4                          /* the next one is in the LDT, or in the GDT */
    cmp ecx, {tables_bytes}
    jb 2b
    mov eax, edx
    xor edx, edx
    ret
    .skip {offset} - 8 - (. - confinement_begin), 0x90
    .ascii "confined"                   /* the next word is compared; a test finds it by this */
    .long {value}
confinement_end:
.code64
