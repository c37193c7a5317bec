//! Just enough of ELF to see whether a program is static, and for what processor.

use anyhow::{Context, bail, ensure};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// `e_machine` of programs for 64-bit ARM (elf(5)).
pub const AARCH64: u16 = 183;

/// `e_machine`: the processor that a program is for.
pub fn machine(program: &[u8]) -> anyhow::Result<u16> {
    u16_at(program, 0x12)
}

/// Refuses a 64-bit little-endian ELF program that asks for an interpreter or a shared library.
pub fn check_static(program: &[u8]) -> anyhow::Result<()> {
    ensure!(
        program.get(..6) == Some(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF program"
    );
    let table = u64_at(program, 0x20)?;
    let entry_size = u64::from(u16_at(program, 0x36)?);
    for index in 0..u64::from(u16_at(program, 0x38)?) {
        let header = usize::try_from(table + index * entry_size)?;
        match u32_at(program, header)? {
            PT_INTERP => bail!("it asks for an interpreter (PT_INTERP)"),
            PT_DYNAMIC => check_dynamic(
                program,
                u64_at(program, header + 8)?,
                u64_at(program, header + 32)?,
            )?,
            _ => {}
        }
    }
    Ok(())
}

fn check_dynamic(program: &[u8], offset: u64, size: u64) -> anyhow::Result<()> {
    for entry in (offset..offset + size).step_by(16) {
        match u64_at(program, usize::try_from(entry)?)? {
            DT_NULL => break,
            DT_NEEDED => bail!("it asks for a shared library (DT_NEEDED)"),
            _ => {}
        }
    }
    Ok(())
}

fn bytes_at<const N: usize>(program: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let bytes = at.checked_add(N).and_then(|end| program.get(at..end));
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .context("a truncated ELF program")
}

fn u16_at(program: &[u8], at: usize) -> anyhow::Result<u16> {
    bytes_at(program, at).map(u16::from_le_bytes)
}

fn u32_at(program: &[u8], at: usize) -> anyhow::Result<u32> {
    bytes_at(program, at).map(u32::from_le_bytes)
}

fn u64_at(program: &[u8], at: usize) -> anyhow::Result<u64> {
    bytes_at(program, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with one header of `kind` that points at one dynamic entry with `tag`.
    fn program(kind: u32, tag: u64) -> Vec<u8> {
        let mut bytes = vec![0; 0x40 + 56 + 16];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x20..0x28].copy_from_slice(&0x40_u64.to_le_bytes());
        bytes[0x36..0x38].copy_from_slice(&56_u16.to_le_bytes());
        bytes[0x38..0x3a].copy_from_slice(&1_u16.to_le_bytes());
        bytes[0x40..0x44].copy_from_slice(&kind.to_le_bytes());
        bytes[0x48..0x50].copy_from_slice(&(0x40_u64 + 56).to_le_bytes());
        bytes[0x60..0x68].copy_from_slice(&16_u64.to_le_bytes());
        bytes[0x40 + 56..0x40 + 64].copy_from_slice(&tag.to_le_bytes());
        bytes
    }

    #[test]
    fn only_static_programs_pass() {
        assert!(check_static(&program(1, 0)).is_ok());
        assert!(check_static(&program(PT_DYNAMIC, 5)).is_ok());
        assert!(check_static(&program(PT_INTERP, 0)).is_err());
        assert!(check_static(&program(PT_DYNAMIC, DT_NEEDED)).is_err());
    }

    #[test]
    fn truncation_is_an_error_everywhere() {
        let whole = program(PT_DYNAMIC, 5);
        for length in 0..0x40 + 57 {
            assert!(check_static(&whole[..length]).is_err(), "{length}");
        }
    }
}
