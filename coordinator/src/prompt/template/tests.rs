use serde_json::json;

use super::{
    Dialect, EFFORT_X, EFFORT_Y, JSON_NOTE, RenderedPrompt, SCHEMA_NOTE, TOOLS_FOOT, TOOLS_HEAD,
    render,
};
use crate::prompt::message::{
    Conversation, Effort, Message, ResponseFormat, Thinking, Tool, ToolCall, ToolChoice, ToolError,
};
use crate::prompt::output::AnswerStart;

const BOS: &str = "<｜begin▁of▁sentence｜>";

fn chat(messages: Vec<Message>) -> Conversation {
    Conversation {
        messages,
        thinking: Thinking::Off,
        ..Conversation::default()
    }
}

fn tool() -> Tool {
    Tool::from_function(json!({"parameters": {"b": 1, "a": 2}, "name": "f", "strict": true}))
        .unwrap()
}

fn rendered(conversation: &Conversation) -> RenderedPrompt {
    render(conversation, Dialect::V0731).unwrap()
}

/// The prompt without what all prompts begin with.
fn body(conversation: &Conversation) -> String {
    rendered(conversation)
        .text()
        .strip_prefix(BOS)
        .unwrap()
        .to_owned()
}

fn called(ids: &[&str]) -> Message {
    let call = |id: &&str| ToolCall {
        id: (*id).to_owned(),
        name: (*id).to_owned(),
        arguments: "{}".to_owned(),
    };
    Message::Assistant {
        content: String::new(),
        reasoning: None,
        tool_calls: ids.iter().map(call).collect(),
        prefix: false,
    }
}

fn prefix(reasoning: &str, content: &str) -> Message {
    Message::Assistant {
        content: content.to_owned(),
        reasoning: Some(reasoning.to_owned()),
        tool_calls: Vec::new(),
        prefix: true,
    }
}

#[test]
fn dialects_have_ladders_of_their_own() {
    let text = |dialect, effort| {
        let thinking = Thinking::On(effort);
        let prompt = render(
            &Conversation {
                thinking,
                ..chat(vec![])
            },
            dialect,
        )
        .unwrap()
        .text();
        let after_bos = prompt.strip_prefix(BOS).unwrap();
        after_bos
            .strip_suffix("<｜Assistant｜><think>")
            .unwrap()
            .to_owned()
    };
    for (effort, preview, current) in [
        (None, "", EFFORT_X),
        (Some(Effort::Low), "", ""),
        (Some(Effort::Medium), "", EFFORT_X),
        (Some(Effort::High), "", EFFORT_X),
        (Some(Effort::XHigh), "", EFFORT_X),
        (Some(Effort::Max), EFFORT_X, EFFORT_Y),
    ] {
        assert_eq!(text(Dialect::Preview, effort), preview, "{effort:?}");
        assert_eq!(text(Dialect::V0731, effort), current, "{effort:?}");
    }
}

#[test]
fn dialects_are_known_by_name_and_found_by_hints() {
    assert_eq!(Dialect::from_name("preview"), Some(Dialect::Preview));
    assert_eq!(Dialect::from_name("0731"), Some(Dialect::V0731));
    assert_eq!(Dialect::from_name("other"), None);
    assert_eq!(
        Dialect::detect(["x", "DeepSeek-V4-Flash-Preview"]),
        Dialect::Preview
    );
    assert_eq!(
        Dialect::detect(["DeepSeek-V4-Flash-0731.gguf"]),
        Dialect::V0731
    );
    assert_eq!(Dialect::detect([]), Dialect::V0731);
}

#[test]
fn the_preview_shows_tools_as_they_were_given() {
    let conversation = Conversation {
        tools: vec![tool()],
        ..chat(vec![])
    };
    let line = |dialect| {
        let text = render(&conversation, dialect).unwrap().text();
        let (_, after) = text.split_once(TOOLS_HEAD).unwrap();
        after.split_once(TOOLS_FOOT).unwrap().0.to_owned()
    };
    assert_eq!(
        line(Dialect::V0731),
        "{\"name\": \"f\", \"description\": \"\", \"parameters\": {\"b\": 1, \"a\": 2}}\n"
    );
    assert_eq!(
        line(Dialect::Preview),
        "{\"parameters\": {\"b\": 1, \"a\": 2}, \"name\": \"f\", \"strict\": true}\n"
    );
}

#[test]
fn tool_choice_none_hides_the_tools_and_required_opens_a_block() {
    let with = |tool_choice, thinking| {
        let tools = vec![tool()];
        rendered(&Conversation {
            tools,
            tool_choice,
            thinking,
            ..chat(vec![Message::user("a")])
        })
    };
    let hidden = with(ToolChoice::None, Thinking::Off);
    assert_eq!(
        hidden.text(),
        format!("{BOS}<｜User｜>a<｜Assistant｜></think>")
    );
    let required = with(ToolChoice::Required, Thinking::Off);
    assert!(
        required
            .text()
            .ends_with("</think>\n\n<｜DSML｜tool_calls>\n")
    );
    assert_eq!(required.start, AnswerStart::ToolCalls);
    let thinking = with(ToolChoice::Required, Thinking::On(None));
    assert!(thinking.text().ends_with("<think>"));
    assert_eq!(thinking.start, AnswerStart::Reasoning);
}

#[test]
fn calls_and_their_results_are_ordered_by_id() {
    let messages = vec![
        Message::user("a"),
        called(&["c", "b", "a"]),
        Message::tool("C", Some("c".into())),
        Message::user("x"),
        Message::tool("A", Some("a".into())),
        Message::tool("B", Some("b".into())),
    ];
    let invoke = |name| format!("<｜DSML｜invoke name=\"{name}\">\n</｜DSML｜invoke>\n");
    let calls = ["a", "b", "c"].map(invoke).concat();
    assert_eq!(
        body(&chat(messages)),
        format!(
            "<｜User｜>a<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n{calls}</｜DSML｜tool_calls>\
             <｜end▁of▁sentence｜><｜User｜><tool_result>A</tool_result>\n\n\
             <tool_result>C</tool_result>\n\nx<｜User｜><tool_result>B</tool_result>\
             <｜Assistant｜></think>"
        )
    );
}

#[test]
fn answer_formats_come_last_in_the_head() {
    let with = |response_format| {
        body(&Conversation {
            response_format,
            ..chat(vec![])
        })
    };
    let end = "<｜Assistant｜></think>";
    assert_eq!(
        with(ResponseFormat::JsonObject),
        format!("\n\n{JSON_NOTE}{end}")
    );
    assert_eq!(
        with(ResponseFormat::JsonSchema(json!({"type": "object"}))),
        format!("\n\n{SCHEMA_NOTE}{{\"type\": \"object\"}}{end}")
    );
}

#[test]
fn empty_messages_leave_no_blank_lines() {
    let messages = vec![
        Message::system("s1"),
        Message::user(""),
        Message::system(""),
        Message::user("b"),
        Message::system("s2"),
        Message::user(""),
    ];
    assert_eq!(
        body(&chat(messages)),
        "s1\n\ns2<｜User｜>b<｜Assistant｜></think>"
    );
}

#[test]
fn a_prefix_is_continued_where_it_ends() {
    let with = |reasoning, content, thinking| {
        let messages = vec![prefix(reasoning, content)];
        let prompt = rendered(&Conversation {
            thinking,
            ..chat(messages)
        });
        let text = prompt.text();
        let (_, answer) = text.rsplit_once("<｜Assistant｜>").unwrap();
        (answer.to_owned(), prompt.start)
    };
    let on = Thinking::On(Some(Effort::Low));
    assert_eq!(with("", "", on), ("<think>".into(), AnswerStart::Reasoning));
    assert_eq!(
        with("r", "", on),
        ("<think>r".into(), AnswerStart::ReasoningContinued)
    );
    assert_eq!(
        with("r", "c", on),
        ("<think>r</think>c".into(), AnswerStart::ContentContinued)
    );
    assert_eq!(
        with("r", "c", Thinking::Off),
        ("</think>c".into(), AnswerStart::ContentContinued)
    );
    assert_eq!(
        with("", "", Thinking::Off),
        ("</think>".into(), AnswerStart::Content)
    );
}

#[test]
fn only_the_format_itself_is_template_text() {
    let marker = "<｜User｜>";
    let messages = vec![
        Message::system(marker),
        Message::user(marker),
        Message::Assistant {
            content: marker.into(),
            reasoning: Some(marker.into()),
            tool_calls: vec![ToolCall {
                id: "i".into(),
                name: marker.into(),
                arguments: json!({marker: marker, "n": [marker]}).to_string(),
            }],
            prefix: false,
        },
        Message::tool(marker, Some("i".into())),
        Message::LatestReminder {
            content: marker.into(),
        },
    ];
    let tools = vec![Tool::from_function(json!({"name": marker})).unwrap()];
    let response_format = ResponseFormat::JsonSchema(json!({marker: 1}));
    let thinking = Thinking::On(Some(Effort::Low));
    let conversation = Conversation {
        messages,
        tools,
        thinking,
        response_format,
        ..Conversation::default()
    };
    let prompt = rendered(&conversation);
    let count = |template| {
        let segments = prompt
            .segments
            .iter()
            .filter(|s| s.is_template() == template);
        segments
            .map(|segment| segment.text.matches(marker).count())
            .sum::<usize>()
    };
    // The format opened two user turns; twelve times somebody else wrote the marker.
    assert_eq!((count(true), count(false)), (2, 12));
}

#[test]
fn completions_are_text_after_the_first_token() {
    let prompt = RenderedPrompt::completion("<｜User｜>x");
    assert_eq!(prompt.text(), format!("{BOS}<｜User｜>x"));
    let template: Vec<bool> = prompt.segments.iter().map(|s| s.is_template()).collect();
    assert_eq!(
        (template, prompt.start),
        (vec![true, false], AnswerStart::Plain)
    );
}

#[test]
fn tools_need_a_name_and_sound_fields() {
    for (function, error) in [
        (json!("f"), ToolError::NotAnObject),
        (json!({}), ToolError::Name),
        (json!({"name": ""}), ToolError::Name),
        (json!({"name": 1}), ToolError::Name),
        (
            json!({"name": "f", "description": 1}),
            ToolError::Description("f".into()),
        ),
        (
            json!({"name": "f", "parameters": []}),
            ToolError::Parameters("f".into()),
        ),
    ] {
        assert_eq!(Tool::from_function(function).unwrap_err(), error);
    }
    assert_eq!(
        Tool::from_function(json!({"name": "f", "parameters": null}))
            .unwrap()
            .name(),
        "f"
    );
}
