//! Copies memory in place of musl's `memcpy` and `memmove`, on 64-bit x86.
//!
//! musl's copies words with `rep movsq`, which takes some 30 ns to get going, and the rest byte by
//! byte. JSON, packets and rows of the database are made of short pieces, so that a sixth of the time of
//! a server that gives leases went there. Here up to 128 bytes are read before any is written, in
//! words that may overlap in the middle: no loop, 2 ns, and no matter whether the two places overlap.
#![allow(unsafe_code)]

// SAFETY: both functions are what the C standard says of `memmove`, which is all that is asked of
// `memcpy` too, by the calling convention of the System V ABI; they write no register that a caller
// keeps, and no stack. The tests compare every length and overlap around each branch.
std::arch::global_asm!(
    r#"
    .text
    .p2align 5
    .globl slate_memmove
    .hidden slate_memmove
    .type slate_memmove, @function
slate_memmove:
    mov rax, rdi
    cmp rdx, 16
    jb 10f
    cmp rdx, 32
    ja 20f
    movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret
10: // less than 16
    cmp edx, 8
    jb 11f
    mov rcx, [rsi]
    mov r8, [rsi + rdx - 8]
    mov [rdi], rcx
    mov [rdi + rdx - 8], r8
    ret
11: // less than 8
    cmp edx, 4
    jb 12f
    mov ecx, [rsi]
    mov r8d, [rsi + rdx - 4]
    mov [rdi], ecx
    mov [rdi + rdx - 4], r8d
    ret
12: // less than 4: the first, the middle and the last byte
    test edx, edx
    jz 13f
    mov r9, rdx
    shr r9
    movzx ecx, byte ptr [rsi]
    movzx r8d, byte ptr [rsi + r9]
    movzx r10d, byte ptr [rsi + rdx - 1]
    mov [rdi], cl
    mov [rdi + r9], r8b
    mov [rdi + rdx - 1], r10b
13:
    ret
20: // more than 32
    cmp rdx, 64
    ja 30f
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + rdx - 32]
    movups xmm3, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + rdx - 32], xmm2
    movups [rdi + rdx - 16], xmm3
    ret
30: // more than 64
    cmp rdx, 128
    ja 40f
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups xmm4, [rsi + rdx - 64]
    movups xmm5, [rsi + rdx - 48]
    movups xmm6, [rsi + rdx - 32]
    movups xmm7, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    movups [rdi + rdx - 64], xmm4
    movups [rdi + rdx - 48], xmm5
    movups [rdi + rdx - 32], xmm6
    movups [rdi + rdx - 16], xmm7
    ret
40: // more than 128: backwards where that begins within the source
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jb 50f
    movups xmm4, [rsi + rdx - 64]
    movups xmm5, [rsi + rdx - 48]
    movups xmm6, [rsi + rdx - 32]
    movups xmm7, [rsi + rdx - 16]
    lea r8, [rdi + rdx - 64]
41:
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    add rsi, 64
    add rdi, 64
    sub rdx, 64
    cmp rdx, 64
    ja 41b
    movups [r8], xmm4
    movups [r8 + 16], xmm5
    movups [r8 + 32], xmm6
    movups [r8 + 48], xmm7
    ret
50:
    movups xmm4, [rsi]
    movups xmm5, [rsi + 16]
    movups xmm6, [rsi + 32]
    movups xmm7, [rsi + 48]
51:
    movups xmm0, [rsi + rdx - 64]
    movups xmm1, [rsi + rdx - 48]
    movups xmm2, [rsi + rdx - 32]
    movups xmm3, [rsi + rdx - 16]
    movups [rdi + rdx - 64], xmm0
    movups [rdi + rdx - 48], xmm1
    movups [rdi + rdx - 32], xmm2
    movups [rdi + rdx - 16], xmm3
    sub rdx, 64
    cmp rdx, 64
    ja 51b
    movups [rdi], xmm4
    movups [rdi + 16], xmm5
    movups [rdi + 32], xmm6
    movups [rdi + 48], xmm7
    ret
    .size slate_memmove, . - slate_memmove
"#
);

#[cfg(target_env = "musl")]
std::arch::global_asm!(
    ".globl memcpy",
    ".set memcpy, slate_memmove",
    ".globl memmove",
    ".set memmove, slate_memmove",
);

#[cfg(test)]
mod tests {
    // SAFETY: that is how it is called; see above.
    unsafe extern "C" {
        fn slate_memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8;
    }

    /// Copies `length` bytes within `bytes`.
    fn copy(bytes: &mut [u8], from: usize, to: usize, length: usize) {
        assert!(from + length <= bytes.len() && to + length <= bytes.len());
        let start = bytes.as_mut_ptr();
        // SAFETY: both places lie within the slice.
        unsafe {
            let returned = slate_memmove(start.add(to), start.add(from), length);
            assert_eq!(returned, start.add(to));
        }
    }

    #[test]
    fn every_length_and_overlap_is_copied_as_the_standard_library_does() {
        const PLACE: usize = 2048;
        let numbered: Vec<u8> = (0..2 * PLACE + 4096).map(|it| (it % 251) as u8).collect();
        let around = |edge: usize| edge.saturating_sub(2)..=edge + 2;
        let lengths = (0..=330).chain([1024, 1088, 1536, 4000].into_iter().flat_map(around));
        for length in lengths {
            let shifts = [
                0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 129, 300, 1023, 1500,
            ];
            for shift in shifts {
                for (from, to) in [(PLACE, PLACE + shift), (PLACE, PLACE - shift)] {
                    let (mut ours, mut theirs) = (numbered.clone(), numbered.clone());
                    copy(&mut ours, from, to, length);
                    theirs.copy_within(from..from + length, to);
                    assert!(ours == theirs, "{length} bytes from {from} to {to}");
                }
            }
        }
    }
}
