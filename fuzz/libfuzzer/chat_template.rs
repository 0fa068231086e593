//! libFuzzer's entry into [`ds4_fuzz::chat_template`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::chat_template::run(data);
});
