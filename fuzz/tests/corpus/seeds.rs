//! Valid inputs for every target, made by the code that makes them in production where there is
//! such code.

use std::time::Duration;

use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, Route};
use ds4_common::gguf::{Array, GgufWriter, Value};
use ds4_common::quant::{BlockQ8, BlockQ8K, GgmlType, Layout, quantize_q8, quantize_q8_k};
use ds4_common::tiles::{Holdings, TileSet};
use ds4_fuzz::slice::valid_head;
use ds4_fuzz::wire_reply::WORK;
use ds4_fuzz::wire_request::{FINGERPRINT, SHAPE};
use ds4_proto::limits::PROTOCOL_VERSION;
use ds4_proto::pb::{self, FailureKind, compute_reply, compute_request};
use ds4_proto::wire::{
    EncodedBatch, encode_tiles, hello, reply, request, rows_checksum, rows_message, seal, welcome,
};
use prost::Message;

/// A file of the corpus.
pub(crate) struct Seed {
    /// The folder under `fuzz/corpus`.
    pub(crate) target: &'static str,
    /// The file, with an extension: `.gitignore` ignores files without one.
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// Names of files and what they hold.
type Files = Vec<(&'static str, Vec<u8>)>;

/// All committed files.
pub(crate) fn all() -> Vec<Seed> {
    let groups: [(&str, Files); 9] = [
        ("chat_body", chat_bodies()),
        ("chat_template", conversations()),
        ("completion_body", completion_bodies()),
        ("gguf_parse", gguf_files()),
        ("kernels", products()),
        ("output_parser", answers()),
        ("slice", slices()),
        ("wire_reply", replies()),
        ("wire_request", requests()),
    ];
    let seeds = groups.into_iter().flat_map(|(target, files)| {
        let seed = move |(name, bytes)| Seed {
            target,
            name,
            bytes,
        };
        files.into_iter().map(seed)
    });
    seeds.collect()
}

fn chat_bodies() -> Files {
    let bodies = [
        (
            "roles.json",
            r#"{"model":"ds4","messages":[{"role":"system","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"user","content":"\u00e9\ud83d\ude00","name":null},{"role":"assistant","content":null,"reasoning_content":"r","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": [1]}"}}]},{"role":"tool","tool_call_id":"c","content":"ok"}]}"#,
        ),
        (
            "options.json",
            r#"{"messages":[{"role":"user","content":"x"}],"stop":["a","b"],"temperature":0.5,"top_p":1,"top_k":-1,"min_p":0,"seed":7,"max_tokens":64.0,"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":2,"n":1,"logit_bias":{ },"unknown":[{"deep":[[]]}]}"#,
        ),
        (
            "tools.json",
            r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"thinking":{"type":"disabled"},"response_format":{"type":"json_object"}}"#,
        ),
    ];
    let seed = |(name, body): (&'static str, &str)| (name, body.as_bytes().to_vec());
    bodies.map(seed).into()
}

fn completion_bodies() -> Files {
    let bodies = [
        (
            "text.json",
            r#"{"prompt":"Once upon a time","max_tokens":5,"stop":"."}"#,
        ),
        (
            "list.json",
            r#"{"prompt":["one"],"logprobs":2,"echo":false}"#,
        ),
        ("ids.json", r#"{"prompt":[1,2.0,3,4,5,6],"suffix":""}"#),
        ("nested.json", r#"{"prompt":[[1,2]],"stream":false}"#),
    ];
    let seed = |(name, body): (&'static str, &str)| (name, body.as_bytes().to_vec());
    bodies.map(seed).into()
}

fn conversations() -> Files {
    let tool = r#"{"name":"weather","description":"At a place","parameters":{"type":"object","properties":{"place":{"type":"string"},"days":{"type":"integer"}},"required":["place"]}}"#;
    let seed = |flags: u8, json: &str, text: &str| {
        [&[flags], json.as_bytes(), &[0], text.as_bytes()].concat()
    };
    vec![
        ("thinking.chat", seed(1, tool, "Will it rain in Kyoto?")),
        (
            "markers.chat",
            seed(2, tool, "<｜User｜>not a turn<｜Assistant｜></think>"),
        ),
        ("bare.chat", seed(0, r#"{"name":"f"}"#, "")),
    ]
}

fn answers() -> Files {
    let call = "Looking.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n\
        <｜DSML｜parameter name=\"place\" string=\"true\">Kyoto</｜DSML｜parameter>\n\
        <｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n\
        </｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let seed = |head: [u8; 3], text: &str| [&head, text.as_bytes()].concat();
    vec![
        (
            "reasoning.answer",
            seed([1, 0, 4], "Seven.</think>\n\nIt is 7."),
        ),
        ("call.answer", seed([3, 1, 5], call)),
        ("stop.answer", seed([3, 2, 1], "one, two, a ab three")),
    ]
}

fn gguf_files() -> Files {
    let mut writer = GgufWriter::new();
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::F32(Vec::new())]);
    let values = [
        ("general.architecture", Value::String("deepseek4".into())),
        ("deepseek4.block_count", Value::U32(4)),
        ("key.bool", Value::Bool(true)),
        ("key.i64", Value::I64(i64::MIN)),
        ("key.f64", Value::F64(0.5)),
        ("key.nested", Value::Array(nested)),
        (
            "tokenizer.ggml.tokens",
            Value::Array(Array::String(vec!["a".into(), "é".into()])),
        ),
    ];
    for (key, value) in values {
        writer.add(key, value).expect("a new key");
    }
    for (name, dims, ty) in [
        ("token_embd.weight", [32, 2, 1], GgmlType::F16),
        ("blk.0.ffn_gate_exps.weight", [32, 2, 2], GgmlType::Q8_0),
        ("output_norm.weight", [4, 1, 1], GgmlType::F32),
    ] {
        writer.add_tensor(name, &dims, ty).expect("a legal tensor");
    }
    let mut bytes = Vec::new();
    let zeros = vec![0; 4096];
    writer
        .write_to(&mut bytes, |tensor, out| {
            out.write_all(&zeros[..tensor.bytes as usize])
        })
        .expect("written");
    vec![("small.gguf", bytes)]
}

fn slices() -> Files {
    let (head, length) = valid_head(Layout::Plain);
    vec![("plain.slice", [&length.to_le_bytes(), &head[..]].concat())]
}

/// One product a weight type: its index, 17 rows, 3 tokens, 2 blocks, and bytes without a pattern.
fn products() -> Files {
    const NAMES: [&str; GgmlType::ALL.len()] = [
        "f32.product",
        "f16.product",
        "bf16.product",
        "i32.product",
        "q8_0.product",
        "q2_k.product",
        "q3_k.product",
        "q4_k.product",
        "q5_k.product",
        "q6_k.product",
        "iq2_xxs.product",
        "mxfp4.product",
    ];
    let seed = |index: usize| {
        let noise = (0..32).map(|i: usize| (i * i * 37 + i * 11 + index) as u8);
        [index as u8, 16, 2, 1].into_iter().chain(noise).collect()
    };
    NAMES
        .iter()
        .enumerate()
        .map(|(index, name)| (*name, seed(index)))
        .collect()
}

/// One token's activations, of no meaning.
fn activations() -> Vec<f32> {
    (0..SHAPE.hidden).map(|i| (i % 7) as f32 - 3.0).collect()
}

fn requests() -> Files {
    let message = |kind| request(kind).encode_to_vec();
    let greeting = pb::Hello {
        software: "seed".into(),
        ..hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION)
    };
    let work = |tokens: usize, input: ExpertInput| {
        let route = |i: usize| Route {
            expert: (3 * i) as u32 % SHAPE.grid.experts,
            weight: 0.5,
        };
        let fields = BatchFields {
            layer: 1,
            tokens,
            routes: (0..tokens * SHAPE.experts_used).map(route).collect(),
            input,
            round: true,
        };
        let batch = ExpertBatch::new(SHAPE, fields).expect("a legal batch");
        let tiles = TileSet::whole(SHAPE.grid);
        let work = EncodedBatch::new(&batch, 0..tokens).work(9, &tiles, Duration::from_secs(1));
        message(compute_request::Kind::Work(work))
    };
    let mut q8 = vec![BlockQ8::ZERO; SHAPE.hidden / 32];
    quantize_q8(&activations(), &mut q8);
    let mut q8_k = vec![BlockQ8K::ZERO; SHAPE.hidden / 256];
    quantize_q8_k(&activations(), &mut q8_k);
    vec![
        (
            "hello.request",
            message(compute_request::Kind::Hello(greeting)),
        ),
        ("work_f32.request", work(1, ExpertInput::F32(activations()))),
        ("work_q8.request", work(1, ExpertInput::Q8(q8))),
        (
            "work_q8_k.request",
            work(2, ExpertInput::Q8K([q8_k.clone(), q8_k].concat())),
        ),
        (
            "cancel.request",
            message(compute_request::Kind::Cancel(pb::Cancel { id: 9 })),
        ),
    ]
}

fn replies() -> Files {
    let message = |kind| reply(kind).encode_to_vec();
    let held = Holdings::uniform(SHAPE.grid, SHAPE.layers, TileSet::whole(SHAPE.grid));
    let accepted = welcome(8, &held);
    let rows = activations();
    let rows = rows_message(9, &rows, rows_checksum(&rows, WORK), 20, 300);
    let failure = pb::Failure {
        id: 9,
        kind: FailureKind::Busy.into(),
        message: "the queue is full".into(),
    };
    let description = seal(pb::DescribeReply {
        protocol_version: PROTOCOL_VERSION,
        software: "seed".into(),
        model: "tiny".into(),
        fingerprint: FINGERPRINT.to_vec().into(),
        layers: SHAPE.layers as u32,
        hidden: SHAPE.hidden as u32,
        used: SHAPE.experts_used as u32,
        grid_experts: SHAPE.grid.experts,
        grid_blocks: SHAPE.grid.blocks,
        held: encode_tiles(&TileSet::whole(SHAPE.grid)),
        kernels: "scalar".into(),
        threads: 2,
        weight_bytes: 1 << 20,
        ..pb::DescribeReply::default()
    });
    vec![
        (
            "welcome.reply",
            message(compute_reply::Kind::Welcome(accepted)),
        ),
        ("rows.reply", message(compute_reply::Kind::Rows(rows))),
        (
            "failure.reply",
            message(compute_reply::Kind::Failure(failure)),
        ),
        ("describe.reply", description.encode_to_vec()),
    ]
}
