//! libFuzzer's entry into [`ds4_fuzz::completion_body`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::completion_body::run(data);
});
