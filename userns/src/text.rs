//! Small helpers for text that comes from others.

/// The text, cut to what an error message can bear.
pub(crate) fn shorten(text: &str) -> String {
    const KEPT: usize = 60;
    match text.char_indices().nth(KEPT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
