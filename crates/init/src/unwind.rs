//! Leaves the machinery of unwinding and backtraces out of this program.
//!
//! The standard library prints a backtrace where a panic ends the program, if `RUST_BACKTRACE` asks
//! for it. In a program without symbols that shows bare addresses, yet what finds and decodes it is a
//! quarter of the size, and travels to every node at every boot. The functions here take the place of
//! the unwinder's, and the linker drops all that hangs on them. A panic still prints its message and
//! its place; then it aborts.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK` of the Itanium C++ ABI's exception handling, section 1.1.
const END_OF_STACK: c_int = 5;

/// Walks no frame: `trace` is never called.
// SAFETY: the name is that of the unwinder's function with this signature, and what it promises, an
// answer after any number of calls of `trace`, is kept.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_trace: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// Functions that only somebody calls who unwinds, which nobody does: a panic aborts. They look at
/// no argument and do not return, so they need no signature.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        // SAFETY: the name is the unwinder's; whoever calls it finds the program ended, as any
        // panic does it here.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )*};
}

never_called! {
    _Unwind_GetDataRelBase
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}
