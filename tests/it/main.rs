mod engine;
mod golden;
