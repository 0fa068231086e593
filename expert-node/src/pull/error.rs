use std::io;
use std::path::PathBuf;

use ds4_common::slice::SliceError;
use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::security::PlainText;
use ds4_proto::tls;
use ds4_proto::wire::clip;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a node has no slice.
#[derive(Debug, Error)]
pub enum PullError {
    #[error(
        "there is no slice {}: copy it there, or name a coordinator with --join",
        file.display()
    )]
    NoSlice { file: PathBuf },
    #[error("{address} is no address of a coordinator: {reason}")]
    Address { address: String, reason: String },
    #[error(transparent)]
    PlainText(#[from] PlainText),
    #[error("the coordinator {coordinator} gave no progress for {seconds} s: {reason}")]
    Away {
        coordinator: String,
        seconds: u64,
        reason: String,
    },
    #[error("the coordinator {coordinator} gives this node no slice: {reason}")]
    Refused { coordinator: String, reason: String },
    #[error("tensor {tensor} came wrong again and again: {reason}")]
    Wrong { tensor: String, reason: String },
    #[error("the folder {} cannot be made: {problem}", folder.display())]
    Folder { folder: PathBuf, problem: io::Error },
    #[error(transparent)]
    Slice(#[from] SliceError),
    #[error("writing the slice was interrupted")]
    Interrupted,
}

/// What kept a step from being done.
#[derive(Debug, Error)]
pub(super) enum Setback {
    /// May be over at the next try.
    #[error("{0}")]
    Passing(String),
    /// The data is not what it should be.
    #[error("{0}")]
    Wrong(String),
    /// The plan has changed.
    #[error("the coordinator has another slice for this node")]
    OtherSlice,
    /// Would be the same at the next try.
    #[error("{0}")]
    Refused(String),
}

impl Setback {
    pub(super) fn passing(reason: &str) -> Self {
        Setback::Passing(reason.to_owned())
    }
}

/// What a coordinator's error means.
pub(super) fn setback(status: &Status) -> Setback {
    if let Some(reason) = tls::explain(status) {
        return Setback::Passing(reason);
    }
    let reason = clip(status.message(), MAX_TEXT_BYTES);
    match status.code() {
        Code::FailedPrecondition => Setback::OtherSlice,
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Setback::Refused(reason),
        // Messages that are too large, among others.
        Code::OutOfRange => Setback::Wrong(reason),
        _ => Setback::Passing(reason),
    }
}
