//! /init
fn main() {}
