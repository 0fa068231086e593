//! libFuzzer's entry into [`ds4_fuzz::chat_body`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::chat_body::run(data);
});
