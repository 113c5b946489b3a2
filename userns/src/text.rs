//! Small helpers for text that comes from others.

/// The text, cut to what an error message can bear.
pub(crate) fn shorten(text: &str) -> String {
    shorten_to(text, 60)
}

/// The text, cut to so many characters.
pub(crate) fn shorten_to(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
