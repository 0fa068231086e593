//! A GGUF file. A header that is accepted must be safe to use without another check.

use ds4_common::gguf::parse;

/// `file` is the whole file: header, directory and data.
pub fn run(file: &[u8]) -> bool {
    let Ok(header) = parse(file) else {
        return false;
    };
    let mut tensors: Vec<_> = header.tensors.iter().collect();
    tensors.sort_by_key(|t| t.offset);
    for t in &tensors {
        assert!(t.offset >= header.data_start);
        assert!((t.offset - header.data_start).is_multiple_of(header.alignment));
        assert!(t.offset + t.bytes <= file.len() as u64);
        assert!((1..=4).contains(&t.dims.len()) && !t.dims.contains(&0));
        if let Ok(ty) = t.ty {
            let rows: u64 = t.dims[1..].iter().product();
            assert_eq!(ty.row_bytes(t.dims[0]).map(|b| b * rows), Some(t.bytes));
        }
    }
    for pair in tensors.windows(2) {
        assert!(pair[0].offset + pair[0].bytes <= pair[1].offset);
    }
    true
}
