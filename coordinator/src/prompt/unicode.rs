//! The Unicode classes that the pre-tokenizer distinguishes.

use std::sync::LazyLock;

/// The class of a character: its general category, coarsened, or white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{M}`
    Mark,
    /// `\p{N}`
    Number,
    /// `\p{P}`
    Punctuation,
    /// `\p{S}`
    Symbol,
    /// `\s`
    Space,
    /// Everything else: control, format, private use and unassigned characters.
    Other,
}

/// The class of `c`.
pub(super) fn class(c: char) -> Class {
    let code = c as usize;
    let table = &*TABLE;
    // In bounds: `pages` has an entry for each run of 256 code points up to the last one.
    table.classes[usize::from(table.pages[code >> 8]) << 8 | code & 0xff]
}

static TABLE: LazyLock<ClassTable> = LazyLock::new(ClassTable::new);

/// The classes of all code points in pages of 256, equal pages stored once.
struct ClassTable {
    /// By the high bits of a code point: which page of `classes` has it.
    pages: Vec<u16>,
    /// The pages, one after the other.
    classes: Vec<Class>,
}

impl ClassTable {
    fn new() -> Self {
        let mut flat = vec![Class::Other; 0x11_0000];
        for (pattern, class) in [
            (r"\p{L}", Class::Letter),
            (r"\p{M}", Class::Mark),
            (r"\p{N}", Class::Number),
            (r"\p{P}", Class::Punctuation),
            (r"\p{S}", Class::Symbol),
            (r"\s", Class::Space),
        ] {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].fill(class);
            }
        }
        let mut table = Self {
            pages: Vec::new(),
            classes: Vec::new(),
        };
        for page in flat.chunks_exact(256) {
            let known = table
                .classes
                .chunks_exact(256)
                .position(|other| other == page);
            let number = known.unwrap_or_else(|| {
                table.classes.extend_from_slice(page);
                table.classes.len() / 256 - 1
            });
            // There are 4352 pages, far below the limit of u16.
            table.pages.push(number as u16);
        }
        table
    }
}

/// The code points that a class pattern stands for, as inclusive ranges. The patterns above are
/// constants that parse.
fn ranges(pattern: &str) -> Vec<(char, char)> {
    use regex_syntax::hir::{Class as HirClass, HirKind};
    match regex_syntax::parse(pattern).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(HirClass::Unicode(class))) => class
            .iter()
            .map(|range| (range.start(), range.end()))
            .collect(),
        other => unreachable!("{pattern} is a Unicode class, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, class};

    #[test]
    fn samples_of_every_class() {
        for (c, expected) in [
            ('a', Class::Letter),
            ('語', Class::Letter),
            ('\u{301}', Class::Mark),
            ('٣', Class::Number),
            ('½', Class::Number),
            ('_', Class::Punctuation),
            ('،', Class::Punctuation),
            ('+', Class::Symbol),
            ('🙂', Class::Symbol),
            ('\u{85}', Class::Space),
            ('\u{3000}', Class::Space),
            ('\u{200b}', Class::Other),
            ('\u{10ffff}', Class::Other),
        ] {
            assert_eq!(class(c), expected, "{c:?}");
        }
    }
}
