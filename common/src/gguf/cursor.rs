//! Checked reads of little-endian fields.

use super::error::FormatError;

/// Reads little-endian fields from untrusted bytes. Every read is checked.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the bytes were cut off although the file goes on; running into it means that the
    /// header is too long, not that the file is too short.
    limit: Option<u64>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], limit: u64) -> Self {
        match usize::try_from(limit) {
            Ok(n) if n < bytes.len() => Self {
                bytes: &bytes[..n],
                at: 0,
                limit: Some(limit),
            },
            _ => Self {
                bytes,
                at: 0,
                limit: None,
            },
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The error for a field that needs more bytes than are left.
    pub(super) fn truncated(&self, what: &'static str) -> FormatError {
        self.header_too_long().unwrap_or(FormatError::Truncated {
            what,
            offset: self.position(),
            length: self.bytes.len() as u64,
        })
    }

    /// Checks that `count` things of at least `least_bytes` each can follow. The product must fit
    /// into a u64.
    pub(super) fn check_follow(
        &self,
        what: &'static str,
        count: u64,
        least_bytes: u64,
    ) -> Result<(), FormatError> {
        let (needed, left) = (count * least_bytes, self.remaining());
        if needed <= left {
            return Ok(());
        }
        Err(self.header_too_long().unwrap_or(FormatError::TooFewBytes {
            what,
            count,
            needed,
            left,
            length: self.bytes.len() as u64,
        }))
    }

    fn header_too_long(&self) -> Option<FormatError> {
        self.limit.map(|limit| FormatError::HeaderTooLong { limit })
    }

    pub(super) fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], FormatError> {
        if n > self.remaining() {
            return Err(self.truncated(what));
        }
        let start = self.at;
        // The comparison above bounds n by a usize.
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A u64 length and that many bytes of UTF-8, at most `most` of them.
    pub(super) fn string(&mut self, most: u64, what: &'static str) -> Result<String, FormatError> {
        let length = self.u64(what)?;
        if length > most {
            return Err(FormatError::Count {
                what,
                count: length,
                limit: most,
            });
        }
        let offset = self.position();
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| FormatError::Utf8 { what, offset })
    }
}
