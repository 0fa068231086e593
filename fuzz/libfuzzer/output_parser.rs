//! libFuzzer's entry into [`ds4_fuzz::output_parser`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ds4_fuzz::output_parser::run(data);
});
