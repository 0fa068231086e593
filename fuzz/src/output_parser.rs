//! A model's answer. It parses to the same events however it is cut into pieces.

use ds4_coordinator::prompt::{AnswerStart, Ended, OutputEvent, OutputParser};

use crate::text_of;

const STARTS: [AnswerStart; 6] = [
    AnswerStart::Plain,
    AnswerStart::Reasoning,
    AnswerStart::ReasoningContinued,
    AnswerStart::Content,
    AnswerStart::ContentContinued,
    AnswerStart::ToolCalls,
];

/// The events with neighbours of one kind joined.
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

/// Three bytes say where the answer starts, whether there are tools (1) and stop strings (2), and
/// the characters of a piece; then comes the answer's text.
pub fn run(data: &[u8]) -> bool {
    let Some((&[start, flags, size], rest)) = data.split_first_chunk() else {
        return false;
    };
    let text = text_of(rest);
    let start = STARTS[usize::from(start) % STARTS.len()];
    let tools = flags & 1 != 0;
    let stops = if flags & 2 != 0 {
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
    true
}
