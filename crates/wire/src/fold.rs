//! Kernel modules, folded: the same bytes in an order that compresses better.
//!
//! More than half of a module is its relocations, records of 24 bytes that differ little from one
//! to the next (ELF-64 object file format, version 1.5: `Elf64_Rela`). Compressors that look for
//! repeated bytes, as zstd does, find little in them. Folding replaces each number by what it is
//! more than the one it resembles, and then puts all first bytes of the records side by side, all
//! second ones, and so on. The symbol table is treated alike. Unfolding gives back every byte, the
//! signature's too, so the kernel loads what its distribution signed.
//!
//! A folded module keeps its ELF header and section headers, but for the last byte of `e_ident`,
//! which is padding and 0 in any other module.
//!
//! Panic contract: nothing here panics on any input.

use std::fmt;
use std::ops::Range;

/// The last byte of `e_ident`.
const MARK_AT: usize = 15;
const MARK: u8 = 1;
const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
/// `Elf64_Rela` and `Elf64_Sym` are equally long.
const RECORD: usize = 24;
const SYMBOLS: u32 = 2;
const RELOCATIONS: u32 = 4;
/// Tables that are folded at most; a module has some tens.
const TABLES_MAX: usize = 512;
/// Numbers that are remembered: addends by the symbol and type of their relocation, values of
/// symbols by their section.
const SLOTS: usize = 1 << 14;

/// What was to be folded or unfolded is no module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAModule;

impl fmt::Display for NotAModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a 64-bit little-endian ELF file with its section headers")
    }
}

impl std::error::Error for NotAModule {}

/// Folds a module. One that is folded already, or that has something in the padding of its header,
/// is refused.
pub fn fold(module: &mut [u8]) -> Result<(), NotAModule> {
    if module.get(MARK_AT) != Some(&0) {
        return Err(NotAModule);
    }
    let mut memory = Memory::default();
    for table in tables(module)? {
        let records = &mut module[table.range];
        match table.kind {
            Kind::Relocations => memory.fold_relocations(records),
            Kind::Symbols => memory.fold_symbols(records),
        }
        transpose(records);
    }
    module[MARK_AT] = MARK;
    Ok(())
}

/// Undoes [`fold`]; a module that is not folded stays as it is.
pub fn unfold(module: &mut [u8]) -> Result<(), NotAModule> {
    if module.get(MARK_AT) != Some(&MARK) {
        return Ok(());
    }
    let mut memory = Memory::default();
    for table in tables(module)? {
        let records = &mut module[table.range];
        transpose_back(records);
        match table.kind {
            Kind::Relocations => memory.unfold_relocations(records),
            Kind::Symbols => memory.unfold_symbols(records),
        }
    }
    module[MARK_AT] = 0;
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Relocations,
    Symbols,
}

struct Table {
    kind: Kind,
    range: Range<usize>,
}

/// The tables that are folded: the first ones that overlap neither each other nor the headers that
/// tell where they are.
fn tables(module: &[u8]) -> Result<Vec<Table>, NotAModule> {
    if !module.starts_with(b"\x7fELF\x02\x01") || module.len() < HEADER {
        return Err(NotAModule);
    }
    let start = usize::try_from(number::<8>(module, 0x28)).map_err(|_| NotAModule)?;
    let count = number::<2>(module, 0x3c) as usize;
    let end = start.checked_add(count * SECTION_HEADER);
    let end = end.filter(|end| *end <= module.len()).ok_or(NotAModule)?;
    let mut tables: Vec<Table> = Vec::new();
    for header in module[start..end].chunks_exact(SECTION_HEADER) {
        let kind = match number::<4>(header, 4) as u32 {
            SYMBOLS => Kind::Symbols,
            RELOCATIONS => Kind::Relocations,
            _ => continue,
        };
        let from = usize::try_from(number::<8>(header, 0x18)).unwrap_or(usize::MAX);
        let bytes = usize::try_from(number::<8>(header, 0x20)).unwrap_or(usize::MAX);
        let range = from..from.saturating_add(bytes);
        let is_apart = |other: &Range<usize>| range.end <= other.start || range.start >= other.end;
        let is_free = range.end <= module.len()
            && is_apart(&(0..HEADER))
            && is_apart(&(start..end))
            && tables.iter().all(|table| is_apart(&table.range));
        if bytes % RECORD == 0 && is_free && tables.len() < TABLES_MAX {
            tables.push(Table { kind, range });
        }
    }
    Ok(tables)
}

/// What the numbers of earlier records were, by what they have in common.
struct Memory(Vec<u64>);

impl Default for Memory {
    fn default() -> Self {
        Self(vec![0; SLOTS])
    }
}

impl Memory {
    /// The place for a key; others may share it, which costs nothing but a worse guess.
    fn at(&mut self, key: u64) -> &mut u64 {
        &mut self.0[key as usize % SLOTS]
    }

    fn of_relocation(&mut self, info: u64) -> &mut u64 {
        self.at(info >> 32 << 3 ^ info)
    }

    fn of_symbol(&mut self, record: &[u8]) -> &mut u64 {
        self.at(number::<2>(record, 6))
    }

    fn fold_relocations(&mut self, records: &mut [u8]) {
        let mut before = 0;
        for record in records.chunks_exact_mut(RECORD) {
            let [offset, info, addend] = relocation(record);
            let last = std::mem::replace(self.of_relocation(info), addend);
            let more = addend.wrapping_sub(last) as i64;
            // Small numbers of either sign have small bytes so.
            let zigzag = (more << 1 ^ more >> 63) as u64;
            put_relocation(record, [offset.wrapping_sub(before), info, zigzag]);
            before = offset;
        }
    }

    fn unfold_relocations(&mut self, records: &mut [u8]) {
        let mut before = 0_u64;
        for record in records.chunks_exact_mut(RECORD) {
            let [offset, info, zigzag] = relocation(record);
            before = before.wrapping_add(offset);
            let last = self.of_relocation(info);
            *last = last.wrapping_add(zigzag >> 1 ^ (zigzag & 1).wrapping_neg());
            let addend = *last;
            put_relocation(record, [before, info, addend]);
        }
    }

    /// Names of symbols are offsets that mostly grow, and so are values in one section.
    fn fold_symbols(&mut self, records: &mut [u8]) {
        let mut before = 0_u32;
        for record in records.chunks_exact_mut(RECORD) {
            let (name, value) = (number::<4>(record, 0) as u32, number::<8>(record, 8));
            let last = std::mem::replace(self.of_symbol(record), value);
            record[..4].copy_from_slice(&name.wrapping_sub(before).to_le_bytes());
            record[8..16].copy_from_slice(&value.wrapping_sub(last).to_le_bytes());
            before = name;
        }
    }

    fn unfold_symbols(&mut self, records: &mut [u8]) {
        let mut before = 0_u32;
        for record in records.chunks_exact_mut(RECORD) {
            before = before.wrapping_add(number::<4>(record, 0) as u32);
            let last = self.of_symbol(record);
            *last = last.wrapping_add(number::<8>(record, 8));
            let value = *last;
            record[..4].copy_from_slice(&before.to_le_bytes());
            record[8..16].copy_from_slice(&value.to_le_bytes());
        }
    }
}

fn relocation(record: &[u8]) -> [u64; 3] {
    [0, 8, 16].map(|at| number::<8>(record, at))
}

fn put_relocation(record: &mut [u8], numbers: [u64; 3]) {
    for (field, number) in record.chunks_exact_mut(8).zip(numbers) {
        field.copy_from_slice(&number.to_le_bytes());
    }
}

/// First all first bytes of the records, then all second ones, and so on.
fn transpose(records: &mut [u8]) {
    let (old, count) = (records.to_vec(), records.len() / RECORD);
    for (index, record) in old.chunks_exact(RECORD).enumerate() {
        for (at, byte) in record.iter().enumerate() {
            records[at * count + index] = *byte;
        }
    }
}

fn transpose_back(records: &mut [u8]) {
    let (old, count) = (records.to_vec(), records.len() / RECORD);
    for (index, record) in records.chunks_exact_mut(RECORD).enumerate() {
        for (at, byte) in record.iter_mut().enumerate() {
            *byte = old[at * count + index];
        }
    }
}

/// A little-endian number of `N` bytes; 0 beyond the end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + N).unwrap_or_default();
    let add = |value, byte: &u8| value << 8 | u64::from(*byte);
    field.iter().rev().fold(0, add)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTENT: usize = 240;

    /// An ELF file with these section headers (type, offset, size) behind 240 bytes of content.
    fn module(sections: &[(u32, u64, u64)], content: &[u8; CONTENT]) -> Vec<u8> {
        let mut module = b"\x7fELF\x02\x01\x01".to_vec();
        module.resize(HEADER, 0);
        module[0x28..0x30].copy_from_slice(&((HEADER + CONTENT) as u64).to_le_bytes());
        module[0x3c..0x3e].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        module.extend(content);
        for (kind, offset, size) in sections {
            let mut header = [0; SECTION_HEADER];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            module.extend(header);
        }
        module.extend(b"signature");
        module
    }

    fn folded(module: &[u8]) -> Vec<u8> {
        let mut folded = module.to_vec();
        fold(&mut folded).expect("a module");
        folded
    }

    fn unfolded(module: &[u8]) -> Vec<u8> {
        let mut unfolded = module.to_vec();
        unfold(&mut unfolded).expect("a module");
        unfolded
    }

    #[test]
    fn relocations_become_small_numbers_side_by_side() {
        let mut content = [0; CONTENT];
        for (index, record) in (1..).zip(content[..3 * RECORD].chunks_exact_mut(RECORD)) {
            put_relocation(
                record,
                [0x1000 + 4 * index, 5 << 32 | 2, 0x700 + 10 * index],
            );
        }
        let plain = module(&[(RELOCATIONS, 64, 72)], &content);
        let folded = folded(&plain);
        let planes: Vec<&[u8]> = folded[64..64 + 72].chunks_exact(3).collect();
        // Offsets: the first whole, then 4 more each.
        assert_eq!(planes[..2], [[0x04, 4, 4], [0x10, 0, 0]]);
        // The type, and the symbol.
        assert_eq!((planes[8], planes[12]), (&[2; 3][..], &[5; 3][..]));
        // Addends: 0x70a, then 10 more, twice as large for the sign's sake.
        assert_eq!(planes[16..18], [[0x14, 20, 20], [0x0e, 0, 0]]);
        assert_eq!(folded[64 + 72..], plain[64 + 72..]);
        assert_eq!(unfolded(&folded), plain);
    }

    #[test]
    fn what_is_not_folded_is_left_alone() {
        let plain = module(&[(RELOCATIONS, 64, 72)], &[7; CONTENT]);
        assert_eq!(unfolded(&plain), plain);
        let mut twice = folded(&plain);
        assert_eq!(fold(&mut twice), Err(NotAModule));
        assert_eq!(fold(&mut b"#!/bin/sh\n#234567".to_vec()), Err(NotAModule));
        assert_eq!(unfold(&mut Vec::new()), Ok(()));
    }

    #[test]
    fn tables_that_overlap_the_headers_are_no_tables() {
        let over_headers = (HEADER + CONTENT - 24) as u64;
        for at in [0, 40, over_headers, u64::MAX - 10] {
            let plain = module(&[(RELOCATIONS, at, 48)], &[7; CONTENT]);
            let folded = folded(&plain);
            assert_eq!(folded[..MARK_AT], plain[..MARK_AT], "{at}");
            assert_eq!(folded[MARK_AT + 1..], plain[MARK_AT + 1..], "{at}");
            assert_eq!(unfolded(&folded), plain, "{at}");
        }
    }

    proptest! {
        #[test]
        fn every_module_comes_back(
            content: [u8; CONTENT],
            sections in proptest::collection::vec((0..6_u32, 0..400_u64, 0..12_u64), 0..8),
            cut in 0..1000_usize,
        ) {
            let sections: Vec<_> = sections
                .into_iter()
                .map(|(kind, at, records)| (kind, at, records * 24))
                .collect();
            let plain = module(&sections, &content);
            prop_assert_eq!(unfolded(&folded(&plain)), &*plain);
            // Whatever is done to it, and however short it is.
            let mut damaged = plain[..cut.min(plain.len())].to_vec();
            let _ = fold(&mut damaged);
            let _ = unfold(&mut damaged);
        }
    }
}
