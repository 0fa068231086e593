//! Names of the parts of a split model: `NAME-00001-of-00003.gguf` and its siblings.

use std::path::{Path, PathBuf};

use super::{GgufError, Metadata};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSOR_COUNT: &str = "split.tensors.count";

/// Writers store the count as u16.
const MOST_PARTS: u32 = u16::MAX as u32;

/// What the split.* keys of one part say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SplitPart {
    /// From 0.
    pub(super) no: u32,
    pub(super) count: u32,
}

/// `None` for a file that is a model (or layer shard) by itself.
pub(super) fn part(path: &Path, metadata: &Metadata) -> Result<Option<SplitPart>, GgufError> {
    let count = metadata.optional_u32(COUNT)?.unwrap_or(0);
    if count <= 1 {
        return Ok(None);
    }
    if count > MOST_PARTS {
        let reason = format!("a model has at most {MOST_PARTS} parts");
        return Err(metadata.invalid(COUNT, count, &reason).into());
    }
    let no = metadata.u32(NO)?;
    if no >= count {
        return Err(GgufError::SplitNumber {
            file: path.to_path_buf(),
            no,
            count,
        });
    }
    Ok(Some(SplitPart { no, count }))
}

pub(super) fn tensor_count(metadata: &Metadata) -> Result<Option<u64>, GgufError> {
    Ok(metadata.optional_u64(TENSOR_COUNT)?)
}

fn suffix(no: u32, count: u32) -> String {
    format!("-{:05}-of-{count:05}.gguf", u64::from(no) + 1)
}

/// The paths of all parts, in order, beside the one that is known.
pub(super) fn siblings(path: &Path, part: SplitPart) -> Result<Vec<PathBuf>, GgufError> {
    let expected = suffix(part.no, part.count);
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let Some(stem) = name.strip_suffix(&expected) else {
        return Err(GgufError::SplitName {
            file: path.to_path_buf(),
            part: part.no + 1,
            count: part.count,
            expected,
        });
    };
    Ok((0..part.count)
        .map(|no| path.with_file_name(format!("{stem}{}", suffix(no, part.count))))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_follow_the_pattern() {
        let part = SplitPart { no: 1, count: 3 };
        let all = siblings(Path::new("/m/big-00002-of-00003.gguf"), part).unwrap();
        assert_eq!(all[0], Path::new("/m/big-00001-of-00003.gguf"));
        assert_eq!(all[2], Path::new("/m/big-00003-of-00003.gguf"));
        let error = siblings(Path::new("/m/renamed.gguf"), part)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("part 2 of 3") && error.contains("-00002-of-00003.gguf"),
            "{error}"
        );
    }
}
