//! Limits on what a stranger can grow.
