//! GGUF files: the container that model weights come in.
//!
//! [`parse`] turns bytes into a header and trusts none of them, [`Mapping`] is the one place where
//! files are mapped, [`GgufModel`] joins the files of a model, [`FileWatch`] notices when they change
//! under their mappings, and [`GgufWriter`] writes them.

mod cursor;
mod error;
mod file_stamp;
mod file_watch;
mod metadata;
mod mmap;
mod model_file;
mod parse;
mod split;
mod tensor;
mod value;
mod write;

#[cfg(test)]
mod robustness;

pub use error::{FormatError, GgufError};
pub use file_stamp::FileStamp;
pub use file_watch::{FileChange, FileChanged, FileEvent, FileWatch};
pub use metadata::{Metadata, MetadataError, MetadataProblem};
pub use mmap::Mapping;
pub use model_file::GgufModel;
pub use parse::{DEFAULT_ALIGNMENT, Header, RawTensor, parse, parse_head};
pub use tensor::{Tensor, TensorInfo, UnsupportedTensor};
pub use value::{Array, Value, ValueType};
pub use write::{GgufWriter, PlannedTensor, WriteError};
