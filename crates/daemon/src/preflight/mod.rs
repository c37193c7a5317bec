//! Checks before the daemon starts.
