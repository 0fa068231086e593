//! Checks `deploy/` against the programs: manifests, image and instructions.

mod certificates;
mod flags;
mod image;
mod manifests;
mod names;
mod objects;
mod readme;
mod topology;
