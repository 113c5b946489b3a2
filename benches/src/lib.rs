//! What the benchmarks share: the resident server's loop, the tiny target, the statistics, and the documents.
//!
//! A measured row is a **resident program**: for each byte on its standard input it runs a target once and writes 8 bytes,
//! the elapsed nanoseconds. So every row is timed inside its own process, from the call to the outcome, and start-up of
//! the measuring program is in nobody's figures.

pub mod command_lines;
pub mod random;
pub mod report;
pub mod resident;
pub mod stats;
pub mod sys;
pub mod tiny;
