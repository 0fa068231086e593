//! How an answer is cut into pieces makes no difference, and no answer breaks the parser.
#![no_main]

use ds4_coordinator::prompt::{AnswerStart, Ended, OutputEvent, OutputParser};
use libfuzzer_sys::fuzz_target;

const STARTS: [AnswerStart; 6] = [
    AnswerStart::Plain,
    AnswerStart::Reasoning,
    AnswerStart::ReasoningContinued,
    AnswerStart::Content,
    AnswerStart::ContentContinued,
    AnswerStart::ToolCalls,
];

/// Everything that came, neighbours of one kind joined.
fn joined(events: Vec<OutputEvent>) -> Vec<OutputEvent> {
    let mut out: Vec<OutputEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), &event) {
            (Some(OutputEvent::Reasoning(all)), OutputEvent::Reasoning(more))
            | (Some(OutputEvent::Content(all)), OutputEvent::Content(more)) => all.push_str(more),
            (
                Some(OutputEvent::CallArguments {
                    index: a,
                    json: all,
                }),
                OutputEvent::CallArguments {
                    index: b,
                    json: more,
                },
            ) if a == b => all.push_str(more),
            _ => out.push(event),
        }
    }
    out
}

fuzz_target!(|input: (u8, bool, bool, u8, &str)| {
    let (start, tools, stops, size, text) = input;
    let start = STARTS[usize::from(start) % STARTS.len()];
    let stops = if stops {
        vec!["ab".to_owned()]
    } else {
        Vec::new()
    };
    let parse = |size: usize| {
        let mut parser = OutputParser::new(start, tools, stops.clone());
        let mut events = Vec::new();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            let piece: String = piece.iter().collect();
            let _ = parser.push(&piece, &mut events);
        }
        let reason = parser.finish(Ended::Stop, &mut events);
        (joined(events), reason)
    };
    let whole = parse(text.len().max(1));
    assert_eq!(parse(1), whole);
    assert_eq!(parse(usize::from(size).max(1)), whole);
});
