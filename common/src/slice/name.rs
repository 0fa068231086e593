//! Names of nodes, which become names of files.

use super::SliceError;

/// Characters of a node's name.
pub const MAX_NAME: usize = 63;

/// `NAME.gguf`, for a name that cannot mean anything else than a file in its folder.
///
/// # Errors
/// The name is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`, or
/// starts with none of the first two.
pub fn file_name(node: &str) -> Result<String, SliceError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = node.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || node.len() > MAX_NAME || !node.chars().all(legal) {
        // A name from elsewhere may be of any length.
        let name = node.chars().take(MAX_NAME).collect();
        return Err(SliceError::Name { name });
    }
    Ok(format!("{node}.gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(file_name("rack-2.node_7").unwrap(), "rack-2.node_7.gguf");
        let long = "x".repeat(MAX_NAME + 1);
        for bad in ["", ".", "..", "../a", "a/b", "a b", "-m", "é", "a\0", &long] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
