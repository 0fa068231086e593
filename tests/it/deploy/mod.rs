//! What `deploy/` says, against the programs: manifests, image and instructions.

mod certificates;
mod flags;
mod image;
mod machines;
mod manifests;
mod names;
mod objects;
mod readme;
mod topology;
