use proptest::prelude::*;

use super::OutputParser;
use crate::prompt::output::{AnswerStart, Continuation, Ended, FinishReason, OutputEvent};

/// What a client ends up with.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    reasoning: String,
    content: String,
    /// Name, arguments, whether complete.
    calls: Vec<(String, String, bool)>,
    finish: Option<FinishReason>,
}

struct Setup<'a> {
    start: AnswerStart,
    tools: bool,
    stops: &'a [&'a str],
    ended: Ended,
}

const ANSWER: Setup<'static> = Setup {
    start: AnswerStart::Content,
    tools: true,
    stops: &[],
    ended: Ended::Stop,
};
const REASONING: Setup<'static> = Setup {
    start: AnswerStart::Reasoning,
    ..ANSWER
};

impl Setup<'_> {
    fn parse<'t>(&self, deltas: impl IntoIterator<Item = &'t str>) -> Answer {
        let stops = self.stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut parser = OutputParser::new(self.start, self.tools, stops);
        let mut events = Vec::new();
        for delta in deltas {
            if parser.push(delta, &mut events) == Continuation::Stopped {
                break;
            }
        }
        let finish = parser.finish(self.ended, &mut events);
        collect(events, finish)
    }

    fn parse_whole(&self, text: &str) -> Answer {
        self.parse([text])
    }
}

fn collect(events: Vec<OutputEvent>, finish: FinishReason) -> Answer {
    let mut answer = Answer {
        finish: Some(finish),
        ..Answer::default()
    };
    for event in events {
        match event {
            OutputEvent::Reasoning(text) => answer.reasoning.push_str(&text),
            OutputEvent::Content(text) => answer.content.push_str(&text),
            OutputEvent::CallStart { index, name } => {
                assert_eq!(index, answer.calls.len());
                answer.calls.push((name, String::new(), false));
            }
            OutputEvent::CallArguments { index, json } => answer.calls[index].1.push_str(&json),
            OutputEvent::CallEnd { index } => answer.calls[index].2 = true,
        }
    }
    answer
}

fn answer(reasoning: &str, content: &str, finish: FinishReason) -> Answer {
    Answer {
        reasoning: reasoning.to_owned(),
        content: content.to_owned(),
        calls: Vec::new(),
        finish: Some(finish),
    }
}

fn call(name: &str, arguments: &str) -> (String, String, bool) {
    (name.to_owned(), arguments.to_owned(), true)
}

const OPEN: &str = "<｜DSML｜tool_calls>\n";
const INVOKE: &str = "<｜DSML｜invoke name=\"f\">\n";
const END_INVOKE: &str = "</｜DSML｜invoke>\n";
const CLOSE: &str = "</｜DSML｜tool_calls>";

fn parameter(name: &str, value: &str, is_string: bool) -> String {
    format!(
        "<｜DSML｜parameter name=\"{name}\" string=\"{is_string}\">{value}</｜DSML｜parameter>\n"
    )
}

#[test]
fn reasoning_ends_at_its_marker_and_newlines_around_it_disappear() {
    let parsed = REASONING.parse_whole("\n\nabc\n\n</think>\n\nhello\n");
    assert_eq!(parsed, answer("abc", "hello\n", FinishReason::Stop));
}

#[test]
fn continued_texts_keep_their_first_newlines() {
    let parse = |start, text| Setup { start, ..ANSWER }.parse_whole(text);
    assert_eq!(
        parse(AnswerStart::ReasoningContinued, "\nr</think>c"),
        answer("\nr", "c", FinishReason::Stop)
    );
    assert_eq!(
        parse(AnswerStart::ContentContinued, "\nc"),
        answer("", "\nc", FinishReason::Stop)
    );
}

#[test]
fn a_stray_end_of_reasoning_is_dropped_from_content() {
    let parsed = REASONING.parse_whole("a</think>b</think>c\n</think>\nd");
    assert_eq!(parsed, answer("a", "bc\n\nd", FinishReason::Stop));
    assert_eq!(
        ANSWER.parse_whole("<think>x"),
        answer("", "<think>x", FinishReason::Stop)
    );
}

#[test]
fn calls_have_arguments_of_both_kinds() {
    let text = [
        "r</think>c\n\n",
        OPEN,
        INVOKE,
        &parameter("x", "1", false),
        &parameter("s", "a<b\"\\\n&lt;", true),
        END_INVOKE,
        "<｜DSML｜invoke name=\"g\">\n",
        END_INVOKE,
        CLOSE,
    ];
    let parsed = REASONING.parse_whole(&text.concat());
    assert_eq!(
        (parsed.reasoning.as_str(), parsed.content.as_str()),
        ("r", "c")
    );
    let arguments = r#"{"x": 1, "s": "a<b\"\\\n&lt;"}"#;
    assert_eq!(parsed.calls, [call("f", arguments), call("g", "{}")]);
    assert_eq!(parsed.finish, Some(FinishReason::ToolCalls));
}

#[test]
fn calls_may_follow_reasoning_directly() {
    let parsed = REASONING.parse_whole(&["r\n\n", OPEN, INVOKE, END_INVOKE, CLOSE].concat());
    assert_eq!(
        (parsed.reasoning.as_str(), parsed.content.as_str()),
        ("r", "")
    );
    assert_eq!(parsed.calls, [call("f", "{}")]);
}

#[test]
fn a_block_that_the_prompt_opened_goes_on() {
    let setup = Setup {
        start: AnswerStart::ToolCalls,
        ..ANSWER
    };
    let parsed = setup.parse_whole(&[INVOKE, END_INVOKE, CLOSE].concat());
    assert_eq!(parsed.calls, [call("f", "{}")]);
    assert_eq!(
        setup.parse_whole("\nno"),
        answer("", "no", FinishReason::Stop)
    );
}

#[test]
fn the_short_form_and_plain_tags_are_calls() {
    let short = [
        INVOKE,
        &parameter("q", "{\"a\":1}", false),
        END_INVOKE,
        "\ntext",
    ]
    .concat();
    let parsed = ANSWER.parse_whole(&short);
    assert_eq!(parsed.calls, [call("f", r#"{"q": {"a":1}}"#)]);
    assert_eq!(parsed.content, "text");
    let plain = "<tool_calls>\n<invoke name=\"f\">\n<parameter name=\"k\" string=\"true\">v</parameter>\
                 \n</invoke>\n</tool_calls>";
    assert_eq!(
        ANSWER.parse_whole(plain).calls,
        [call("f", r#"{"k": "v"}"#)]
    );
    assert_eq!(
        REASONING.parse_whole(plain),
        answer(plain, "", FinishReason::Stop)
    );
}

#[test]
fn without_tools_or_without_a_call_a_block_is_text() {
    let block = ["c\n\n", OPEN, INVOKE, END_INVOKE, CLOSE].concat();
    let parsed = Setup {
        tools: false,
        ..ANSWER
    }
    .parse_whole(&block);
    assert_eq!(parsed, answer("", &block, FinishReason::Stop));
    for broken in [
        "c\n\n<｜DSML｜tool_calls>\nHere you are",
        "<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>",
        "<｜DSML｜invoke name=\"\">",
        "<｜DSML｜invoke name=\"f\nx\">",
        "<tool_calls> are nice",
        "a < b <｜DSML",
        "c\n<｜DSML｜tool_calls>\n<｜DSML｜inv",
    ] {
        assert_eq!(
            ANSWER.parse_whole(broken),
            answer("", broken, FinishReason::Stop)
        );
    }
}

#[test]
fn a_broken_block_does_not_hide_the_next_one() {
    let text = [OPEN, "oops\n", OPEN, INVOKE, END_INVOKE, CLOSE].concat();
    let parsed = ANSWER.parse_whole(&text);
    assert_eq!(parsed.content, [OPEN, "oops"].concat());
    assert_eq!(parsed.calls, [call("f", "{}")]);
}

#[test]
fn missing_end_tags_are_implied() {
    let open_value = "<｜DSML｜parameter name=\"k\" string=\"true\">v";
    let no_parameter_end = [OPEN, INVOKE, open_value, END_INVOKE, CLOSE].concat();
    let no_invoke_end = [OPEN, INVOKE, &parameter("k", "v", true), CLOSE].concat();
    let only_block_end = [OPEN, INVOKE, open_value, CLOSE].concat();
    for text in [no_parameter_end, no_invoke_end, only_block_end] {
        let parsed = ANSWER.parse_whole(&(text + "after"));
        assert_eq!(parsed.calls, [call("f", r#"{"k": "v"}"#)]);
        assert_eq!(parsed.content, "after");
    }
    let two = [OPEN, INVOKE, INVOKE, END_INVOKE, CLOSE].concat();
    assert_eq!(
        ANSWER.parse_whole(&two).calls,
        [call("f", "{}"), call("f", "{}")]
    );
}

#[test]
fn stray_text_in_a_call_becomes_content() {
    let text = [
        OPEN,
        INVOKE,
        "hm <b>",
        &parameter("k", "v", true),
        END_INVOKE,
        CLOSE,
    ]
    .concat();
    let parsed = ANSWER.parse_whole(&text);
    assert_eq!(parsed.content, "hm <b>");
    assert_eq!(parsed.calls, [call("f", r#"{"k": "v"}"#)]);
}

#[test]
fn arguments_that_are_not_json_become_strings() {
    let text = [
        OPEN,
        INVOKE,
        &parameter("k", "nope\"", false),
        END_INVOKE,
        CLOSE,
    ]
    .concat();
    assert_eq!(
        ANSWER.parse_whole(&text).calls,
        [call("f", r#"{"k": "nope\""}"#)]
    );
}

#[test]
fn a_call_that_is_cut_off_stays_open() {
    let text = [
        OPEN,
        INVOKE,
        END_INVOKE,
        INVOKE,
        "<｜DSML｜parameter name=\"k\" string=\"true\">v<",
    ];
    for (ended, reason) in [
        (Ended::Length, FinishReason::Length),
        (Ended::Stop, FinishReason::Stop),
    ] {
        let parsed = Setup { ended, ..ANSWER }.parse_whole(&text.concat());
        let open = ("f".to_owned(), r#"{"k": "v<"#.to_owned(), false);
        assert_eq!(parsed.calls, [call("f", "{}"), open]);
        assert_eq!(parsed.finish, Some(reason));
    }
}

#[test]
fn stop_strings_end_the_content_only() {
    let setup = Setup {
        stops: &["STOP"],
        ..REASONING
    };
    let parsed = setup.parse_whole("a STOP b</think>c STOP d");
    assert_eq!(parsed, answer("a STOP b", "c ", FinishReason::Stop));
    assert_eq!(
        setup.parse_whole("</think>c STO"),
        answer("", "c STO", FinishReason::Stop)
    );
    let text = [
        OPEN,
        INVOKE,
        &parameter("k", "STOP", true),
        END_INVOKE,
        CLOSE,
    ]
    .concat();
    let parsed = Setup {
        start: AnswerStart::Content,
        ..setup
    }
    .parse_whole(&text);
    assert_eq!(parsed.calls, [call("f", r#"{"k": "STOP"}"#)]);
}

#[test]
fn plain_text_has_no_markers() {
    let text = ["\n</think>", OPEN, INVOKE, END_INVOKE].concat();
    let setup = Setup {
        start: AnswerStart::Plain,
        stops: &["name="],
        ..ANSWER
    };
    let before = text.split("name=").next().unwrap();
    assert_eq!(
        setup.parse_whole(&text),
        answer("", before, FinishReason::Stop)
    );
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let mut parser = OutputParser::new(AnswerStart::Reasoning, true, Vec::new());
    let mut push = |delta: &str| {
        let mut events = Vec::new();
        assert_eq!(parser.push(delta, &mut events), Continuation::Continue);
        (events, parser.in_markup())
    };
    let content = |text: &str| vec![OutputEvent::Content(text.to_owned())];
    assert_eq!(
        push("ab"),
        (vec![OutputEvent::Reasoning("ab".to_owned())], false)
    );
    assert_eq!(push("\n</thi"), (vec![], false));
    assert_eq!(push("nk>c <"), (content("c "), false));
    assert_eq!(push("｜DSML｜"), (vec![], true));
    let start = OutputEvent::CallStart {
        index: 0,
        name: "f".to_owned(),
    };
    assert_eq!(push("invoke name=\"f\">"), (vec![start], true));
    let arguments = |json: &str| {
        vec![OutputEvent::CallArguments {
            index: 0,
            json: json.to_owned(),
        }]
    };
    assert_eq!(
        push("<｜DSML｜parameter name=\"k\" string=\"true\">v"),
        (arguments("{\"k\": \"v"), false)
    );
    assert_eq!(push("\n<"), (arguments("\\n"), false));
    assert_eq!(push("/｜DSML｜"), (vec![], true));
}

fn any_answer() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        OPEN,
        INVOKE,
        END_INVOKE,
        CLOSE,
        "<｜DSML｜parameter name=\"k\" string=\"true\">",
        "<｜DSML｜parameter name=\"k\" string=\"false\">",
        "</｜DSML｜parameter>",
        "</｜DSML｜",
        "<｜DSML｜",
        "</think>",
        "<think>",
        "<tool_calls>",
        "<invoke name=\"g\">",
        "<parameter name=\"k\">",
        "</parameter>",
        "</invoke>",
        "</tool_calls>",
        "\n",
        "\n\n",
        " ",
        "<",
        "x",
        "12",
        "é｜",
        "\"",
        "STOP",
        "ST",
    ]);
    prop::collection::vec(pieces, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_cut_of_the_text_does_not_matter(
        text in any_answer(),
        start in prop::sample::select(vec![
            AnswerStart::Plain,
            AnswerStart::Reasoning,
            AnswerStart::ReasoningContinued,
            AnswerStart::Content,
            AnswerStart::ContentContinued,
            AnswerStart::ToolCalls,
        ]),
        tools in any::<bool>(),
        stops in prop::sample::select(vec![&[][..], &["STOP"], &["\n\n", "x"], &["<", "12\n"]]),
        mut cuts in prop::collection::vec(0usize..200, 0..12),
        single in any::<bool>(),
    ) {
        let setup = Setup { start, tools, stops, ended: Ended::Stop };
        let whole = setup.parse_whole(&text);
        cuts.sort_unstable();
        let mut deltas = Vec::new();
        let mut rest = text.as_str();
        for cut in cuts.into_iter().rev() {
            let (before, delta) = rest.split_at(rest.floor_char_boundary(cut.min(rest.len())));
            deltas.push(delta);
            rest = before;
        }
        deltas.push(rest);
        deltas.reverse();
        if single {
            deltas = text.split("").collect();
        }
        prop_assert_eq!(setup.parse(deltas), whole);
    }

    #[test]
    fn without_markers_nothing_is_lost(text in "[a-z<>/\n ]{0,40}") {
        let setup = Setup { start: AnswerStart::ContentContinued, ..ANSWER };
        prop_assert_eq!(setup.parse_whole(&text), answer("", &text, FinishReason::Stop));
    }
}

#[test]
fn long_answers_in_small_deltas_take_linear_time() {
    let value = format!(
        "<｜DSML｜parameter name=\"k\" string=\"true\">{}",
        "<\n".repeat(100_000)
    );
    let json = format!(
        "<｜DSML｜parameter name=\"k\" string=\"false\">{}",
        "\"<".repeat(100_000)
    );
    let texts = [
        "\n".repeat(200_000),
        "<".repeat(200_000),
        "ST".repeat(100_000),
        [OPEN, INVOKE, &value].concat(),
        [OPEN, INVOKE, &json].concat(),
        [OPEN, INVOKE, "x ".repeat(100_000).as_str()].concat(),
        OPEN.repeat(5_000),
        format!("<｜DSML｜invoke name=\"{}", "x".repeat(200_000)),
    ];
    let setup = Setup {
        start: AnswerStart::ContentContinued,
        stops: &["STOP", "\n<"],
        ..ANSWER
    };
    for text in texts {
        let start = std::time::Instant::now();
        let parsed = setup.parse(text.split("").take(200_000));
        assert!(parsed.finish.is_some());
        let elapsed = start.elapsed();
        assert!(
            elapsed < std::time::Duration::from_secs(10),
            "{elapsed:?} for {:.40}",
            text
        );
    }
}
