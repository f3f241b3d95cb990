# A disk's first sector: says BOOT on COM1, reads the 32 sectors behind it by the firmware's disk service,
# writes them to sector 64 and on, prints them, and says DONE. FAIL when a service fails.
.code16
.globl _start
_start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov %dl, drive
    mov $boot, %si
    call say
    movb $0x42, %ah             # extended read
    movl $1, packet_sector
    call disk
    movb $0x43, %ah             # extended write
    movl $64, packet_sector
    call disk
    mov $0x1000, %ax
    mov %ax, %ds
    xor %si, %si
    mov $(32 * 512), %cx
1:  lodsb
    call put
    loop 1b
    xor %ax, %ax
    mov %ax, %ds
    mov $done, %si
    call say
2:  hlt
    jmp 2b

disk:                           # %ah: the service
    xor %al, %al
    mov drive, %dl
    mov $packet, %si
    int $0x13
    jc fail
    ret
fail:
    mov $failed, %si
    call say
    jmp 2b

say:                            # %si: a string
    lodsb
    test %al, %al
    jz 3f
    call put
    jmp say
3:  ret

put:                            # %al: a byte for COM1
    push %ax
    mov $0x3fd, %dx
4:  in %dx, %al
    test $0x20, %al
    jz 4b
    pop %ax
    mov $0x3f8, %dx
    out %al, %dx
    ret

packet:
    .byte 16, 0
    .word 32                    # sectors
    .word 0, 0x1000             # offset, segment
packet_sector:
    .long 1, 0
drive:
    .byte 0
boot:
    .asciz "@@BOOT"
done:
    .asciz "@@DONE"
failed:
    .asciz "@@FAIL"
    .org 510
    .word 0xaa55
