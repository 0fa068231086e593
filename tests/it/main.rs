mod cluster;
mod engine;
mod golden;
