//! End-to-end and parity tests of the workspace.
