//! What several tests need.
#![allow(dead_code, unreachable_pub)]

use std::io::Write;

/// Says on the real standard error that a test cannot run here, or fails when the host was promised to be fit.
pub fn skip(name: &str, needs: &str, found: &str) {
    let text = format!("SKIP {name}: needs {needs}; found {found}\n");
    assert!(std::env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none_or(|value| value != "1"), "{text}");
    // The handle: libtest keeps what `eprint!` writes.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Leaves the test unless the condition holds: `require!("name", condition, "what it needs", found)`.
#[macro_export]
macro_rules! require {
    ($name:expr, $condition:expr, $needs:expr, $found:expr) => {
        if !$condition {
            common::skip($name, $needs, &$found.to_string());
            return;
        }
    };
}
