//! libFuzzer's entry into [`ds4_fuzz::wire_request`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::wire_request::run(data);
});
