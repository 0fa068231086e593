//! libFuzzer's entry into [`ds4_fuzz::gguf_parse`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::gguf_parse::run(data);
});
