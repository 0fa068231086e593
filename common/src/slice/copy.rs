//! Moves tensors from the model into slices, and hashes them, in bounded memory.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};

use blake3::{Hash, Hasher};

use super::{CutTensor, SliceError, SliceWriter, WholeModel};

/// Bytes that are moved at once.
const PIECE: usize = 4 << 20;

/// Pieces between reading and writing.
const AHEAD: usize = 2;

/// Appends what is missing of the tensor that comes next in `writer`, and ends it. Reading the
/// model and writing the slice overlap. `written` is called with the number of bytes of each step.
///
/// # Errors
/// The model cannot be read or the slice cannot be written.
pub fn copy_tensor(
    model: &WholeModel,
    writer: &mut SliceWriter,
    written: &mut dyn FnMut(u64),
) -> Result<(), SliceError> {
    let Some((tensor, start)) = writer.position() else {
        return Ok(());
    };
    let mut cut = model.cut(&writer.head().tensors()[tensor]);
    if cut.bytes() - start <= PIECE as u64 {
        let mut piece = vec![0; (cut.bytes() - start) as usize];
        cut.read(start, &mut piece)?;
        writer.append(&piece)?;
        written(piece.len() as u64);
        return writer.end_tensor(None);
    }
    std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(AHEAD);
        let (empty, used) = sync_channel(AHEAD + 2);
        scope.spawn(move || {
            let next = || used.try_recv().unwrap_or_default();
            read_ahead(&mut cut, start, next, &full);
        });
        for piece in pieces {
            let piece: Vec<u8> = piece?;
            writer.append(&piece)?;
            written(piece.len() as u64);
            // A full channel only means that the piece is dropped.
            let _ = empty.try_send(piece);
        }
        writer.end_tensor(None)
    })
}

/// Sends the bytes from `offset` on until they end, reading fails, or the receiver is gone.
fn read_ahead(
    cut: &mut CutTensor,
    mut offset: u64,
    next: impl Fn() -> Vec<u8>,
    full: &SyncSender<Result<Vec<u8>, SliceError>>,
) {
    while offset < cut.bytes() {
        let mut piece = next();
        piece.resize((cut.bytes() - offset).min(PIECE as u64) as usize, 0);
        offset += piece.len() as u64;
        let read = cut.read(offset - piece.len() as u64, &mut piece);
        let failed = read.is_err();
        if full.send(read.map(|()| piece)).is_err() || failed {
            return;
        }
    }
}

/// The hash of `bytes` bytes that `read` fills pieces with, by offset. `done` is told the bytes of
/// each step.
pub(super) fn hash_of(
    bytes: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    done: &mut dyn FnMut(u64),
) -> io::Result<Hash> {
    let mut hasher = Hasher::new();
    let mut piece = Vec::new();
    let mut offset = 0;
    while offset < bytes {
        piece.resize((bytes - offset).min(PIECE as u64) as usize, 0);
        read(&mut piece, offset)?;
        hasher.update(&piece);
        offset += piece.len() as u64;
        done(piece.len() as u64);
    }
    Ok(hasher.finalize())
}
