//! Errors of pulling a slice: those that end it, and setbacks that are tried again.

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
    /// There is no slice, and no coordinator to fetch it from.
    #[error(
        "the slice {} does not exist: copy it there, or pass the coordinator's address with --join",
        file.display()
    )]
    NoSlice {
        /// File that the message names.
        file: PathBuf,
    },
    /// The coordinator's address cannot be connected to.
    #[error("'{address}' is not a valid coordinator address: {reason}")]
    Address {
        /// The address, as it was given.
        address: String,
        /// Why.
        reason: String,
    },
    /// TLS cannot use the certificates.
    #[error("cannot connect to the coordinator: {0}")]
    Settings(String),
    /// The coordinator is beyond this machine and there is no TLS.
    #[error(transparent)]
    PlainText(#[from] PlainText),
    /// The coordinator was not reached, or sent nothing, for too long.
    #[error("no progress from the coordinator {coordinator} for {seconds} s: {reason}")]
    Away {
        /// Its address.
        coordinator: String,
        /// Time without progress.
        seconds: u64,
        /// What failed last.
        reason: String,
    },
    /// The coordinator has no slice for this node.
    #[error("the coordinator {coordinator} refuses to send a slice: {reason}")]
    Refused {
        /// Its address.
        coordinator: String,
        /// What it answered.
        reason: String,
    },
    /// A tensor did not match its hash after several attempts.
    #[error("tensor {tensor} arrived corrupted several times: {reason}")]
    Wrong {
        /// Name of the tensor.
        tensor: String,
        /// What was wrong the last time.
        reason: String,
    },
    /// The folder of the slice does not exist and cannot be created.
    #[error("cannot create the folder {}: {problem}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        problem: io::Error,
    },
    /// The slice cannot be written.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The writing thread panicked, or the runtime is shutting down.
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
