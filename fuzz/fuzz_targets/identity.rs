//! Identity exchange: requests, replies and documents from anybody; what decodes as a document
//! survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::identity::{self, BootId, Document, Request, Token};
use wire::mac::Mac;

fuzz_target!(|bytes: &[u8]| {
    let token = Token([1; 16]);
    let _ = Request::decode(bytes, &token);
    let request = Request::new(BootId([2; 8]), Mac([2, 0, 0, 0, 0, 1]), &[3; 32]);
    let _ = identity::open(&request, &token, &[3; 32], bytes);
    if let Ok(document) = Document::decode(bytes) {
        assert_eq!(Document::decode(&document.encode()), Ok(document));
    }
});
