//! Module tables: parse, encode, parse gives the same table; any pattern against any name ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::modtable::Table;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = Table::parse(bytes) {
        assert_eq!(Table::parse(table.encode().as_bytes()).as_ref(), Ok(&table));
        for alias in &table.aliases {
            let _ = table.for_modalias(&alias.pattern).count();
        }
    }
});
