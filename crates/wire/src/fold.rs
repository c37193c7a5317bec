//! Kernel modules, folded: the same bytes in an order that compresses better.
//!
//! More than half of a module is its relocations, records of 24 bytes that differ little from one
//! to the next (ELF-64 object file format, version 1.5: `Elf64_Rela`). Compressors that look for
//! repeated bytes, as zstd does, find little in them. Folding replaces each number by what it is
//! more than the one it resembles, and then puts all first bytes of the records side by side, all
//! second ones, and so on. The symbol table is treated alike: names mostly follow each other in the
//! string table, and functions in their section. Unfolding gives back every byte, the signature's
//! too, so the kernel loads what its distribution signed.
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
/// Numbers that are remembered: addends by the symbol and type of their relocation, ends of symbols
/// by their section.
const SLOTS: usize = 1 << 14;
/// The first symbol's name: a string table begins with an empty string.
const FIRST_NAME: u64 = 1;

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
        let names = module[table.names].to_vec();
        let records = &mut module[table.range];
        match table.kind {
            Kind::Relocations => memory.fold_relocations(records),
            Kind::Symbols => Memory::default().fold_symbols(records, &names),
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
        let names = module[table.names].to_vec();
        let records = &mut module[table.range];
        transpose_back(records);
        match table.kind {
            Kind::Relocations => memory.unfold_relocations(records),
            Kind::Symbols => Memory::default().unfold_symbols(records, &names),
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
    /// Where the names of its symbols are, which no table overlaps; empty for relocations.
    names: Range<usize>,
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
    let headers = &module[start..end];
    let is_content = |range: &Range<usize>| {
        range.end <= module.len() && apart(range, &(0..HEADER)) && apart(range, &(start..end))
    };
    let mut tables: Vec<Table> = Vec::new();
    for header in headers.chunks_exact(SECTION_HEADER) {
        let (kind, names) = match number::<4>(header, 4) as u32 {
            SYMBOLS => (Kind::Symbols, linked(headers, header)),
            RELOCATIONS => (Kind::Relocations, 0..0),
            _ => continue,
        };
        let range = content(header);
        let is_free = is_content(&range) && tables.iter().all(|table| apart(&range, &table.range));
        if range.len().is_multiple_of(RECORD) && is_free && tables.len() < TABLES_MAX {
            tables.push(Table { kind, range, names });
        }
    }
    let ranges: Vec<Range<usize>> = tables.iter().map(|table| table.range.clone()).collect();
    for table in &mut tables {
        let names = &table.names;
        if !is_content(names) || !ranges.iter().all(|range| apart(range, names)) {
            table.names = 0..0;
        }
    }
    Ok(tables)
}

fn apart(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.end <= other.start || one.start >= other.end
}

/// Where the section of a header is (`sh_offset`, `sh_size`).
fn content(header: &[u8]) -> Range<usize> {
    let [from, bytes] = [0x18, 0x20].map(|at| number::<8>(header, at));
    let [from, bytes] = [from, bytes].map(|it| usize::try_from(it).unwrap_or(usize::MAX));
    from..from.saturating_add(bytes)
}

/// Where the section is that a header names (`sh_link`): of symbols, the strings.
fn linked(headers: &[u8], header: &[u8]) -> Range<usize> {
    let index = number::<4>(header, 0x28) as usize;
    let other = headers.chunks_exact(SECTION_HEADER).nth(index);
    other.map_or(0..0, content)
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
            let more = zigzag(addend.wrapping_sub(last));
            put_relocation(record, [offset.wrapping_sub(before), info, more]);
            before = offset;
        }
    }

    fn unfold_relocations(&mut self, records: &mut [u8]) {
        let mut before = 0_u64;
        for record in records.chunks_exact_mut(RECORD) {
            let [offset, info, more] = relocation(record);
            before = before.wrapping_add(offset);
            let last = self.of_relocation(info);
            *last = last.wrapping_add(unzigzag(more));
            let addend = *last;
            put_relocation(record, [before, info, addend]);
        }
    }

    fn fold_symbols(&mut self, records: &mut [u8], names: &[u8]) {
        let mut expected = FIRST_NAME;
        for record in records.chunks_exact_mut(RECORD) {
            let [name, value, size] = symbol(record);
            let last = std::mem::replace(self.of_symbol(record), behind(value, size));
            put_symbol(
                record,
                name.wrapping_sub(expected),
                zigzag(value.wrapping_sub(last)),
            );
            expected = next_name(names, name, expected);
        }
    }

    fn unfold_symbols(&mut self, records: &mut [u8], names: &[u8]) {
        let mut expected = FIRST_NAME;
        for record in records.chunks_exact_mut(RECORD) {
            let [more, further, size] = symbol(record);
            let name = more.wrapping_add(expected) & u64::from(u32::MAX);
            let last = self.of_symbol(record);
            let value = last.wrapping_add(unzigzag(further));
            *last = behind(value, size);
            put_symbol(record, name, value);
            expected = next_name(names, name, expected);
        }
    }
}

/// Small numbers of either sign have small bytes so.
fn zigzag(number: u64) -> u64 {
    let number = number as i64;
    (number << 1 ^ number >> 63) as u64
}

fn unzigzag(number: u64) -> u64 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

/// Where the next symbol's name is expected: behind this one's, unless that was somewhere else
/// itself, as a name is that is the end of another.
fn next_name(names: &[u8], name: u64, expected: u64) -> u64 {
    if name != expected {
        return expected;
    }
    let rest = names.get(name as usize..).unwrap_or_default();
    let length = rest.iter().position(|byte| *byte == 0);
    name + length.unwrap_or(rest.len()) as u64 + 1
}

/// Where the next function begins in its section: compilers align them.
fn behind(value: u64, size: u64) -> u64 {
    value.wrapping_add(size).wrapping_add(15) & !15
}

/// Its name's offset, its value and its size.
fn symbol(record: &[u8]) -> [u64; 3] {
    [
        number::<4>(record, 0),
        number::<8>(record, 8),
        number::<8>(record, 16),
    ]
}

fn put_symbol(record: &mut [u8], name: u64, value: u64) {
    record[..4].copy_from_slice(&(name as u32).to_le_bytes());
    record[8..16].copy_from_slice(&value.to_le_bytes());
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

    /// An ELF file with these section headers (type, offset, size, link) behind 240 bytes of content.
    fn module(sections: &[(u32, u64, u64, u32)], content: &[u8; CONTENT]) -> Vec<u8> {
        let mut module = b"\x7fELF\x02\x01\x01".to_vec();
        module.resize(HEADER, 0);
        module[0x28..0x30].copy_from_slice(&((HEADER + CONTENT) as u64).to_le_bytes());
        module[0x3c..0x3e].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        module.extend(content);
        for (kind, offset, size, link) in sections {
            let mut header = [0; SECTION_HEADER];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            header[0x28..0x2c].copy_from_slice(&link.to_le_bytes());
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
        let plain = module(&[(RELOCATIONS, 64, 72, 0)], &content);
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
    fn symbols_that_follow_each_other_become_zeros() {
        const STRINGS: u32 = 3;
        let mut content = [0; CONTENT];
        // Two functions, one behind the other, and between them one whose name is the end of another's.
        let symbols = [(1, 0x100, 0x15), (3, 0x40, 8), (5, 0x120, 8)];
        for (record, (name, value, size)) in content.chunks_exact_mut(RECORD).zip(symbols) {
            put_symbol(record, name, value);
            record[6] = if name == 3 { 9 } else { 7 };
            record[16] = size;
        }
        content[72..80].copy_from_slice(b"\0run\0go\0");
        let sections = [(SYMBOLS, 64, 72, 1), (STRINGS, 64 + 72, 8, 0)];
        let plain = module(&sections, &content);
        let small = folded(&plain);
        let planes: Vec<&[u8]> = small[64..64 + 72].chunks_exact(3).collect();
        assert_eq!(planes[..2], [[0, 0xfe, 0], [0, 0xff, 0]]);
        // Values: twice as large for the sign's sake, 0x80 after nothing, and where the next one was expected.
        assert_eq!(planes[8..10], [[0x00, 0x80, 0], [0x02, 0, 0]]);
        assert_eq!(small[64 + 72..], plain[64 + 72..]);
        assert_eq!(unfolded(&small), plain);
        // Names that are themselves folded are not looked at.
        for strings in [
            (SYMBOLS, 64, 48, 0),
            (STRINGS, 0, 1000, 0),
            (STRINGS, 300, 48, 0),
        ] {
            let plain = module(&[(SYMBOLS, 64, 72, 1), strings], &content);
            assert_eq!(unfolded(&folded(&plain)), plain, "{strings:?}");
        }
    }

    #[test]
    fn what_is_not_folded_is_left_alone() {
        let plain = module(&[(RELOCATIONS, 64, 72, 0)], &[7; CONTENT]);
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
            let plain = module(&[(RELOCATIONS, at, 48, 0)], &[7; CONTENT]);
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
            sections in proptest::collection::vec(
                (0..6_u32, 0..400_u64, 0..12_u64, 0..9_u32),
                0..8,
            ),
            cut in 0..1000_usize,
        ) {
            let sections: Vec<_> = sections
                .into_iter()
                .map(|(kind, at, records, link)| (kind, at, records * 24, link))
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
