//! What the examples share: exit codes, tables and JSON output.
