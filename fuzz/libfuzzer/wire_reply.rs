//! libFuzzer's entry into [`ds4_fuzz::wire_reply`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::wire_reply::run(data);
});
